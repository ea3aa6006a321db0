#include "pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemlens {
namespace {

// For new work before a thread sleeps: about a millisecond, as long as Python takes between two pieces of it.
constexpr int LOOKS = 60000;
constexpr int PATIENCE = 1000;  // looks at work that others do, before the processor is offered to them

void breathe() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

template <class Ready>
void wait_until(Ready ready) {
    for (int look = 0; !ready(); ++look)
        if (look < PATIENCE)
            breathe();
        else
            std::this_thread::yield();
}

}  // namespace

// With more threads than cores, one that looks for work would keep another from doing it.
Pool::Pool(int threads) : looks_(threads > static_cast<int>(std::thread::hardware_concurrency()) ? 0 : LOOKS) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        over_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(int parts, const std::function<void(int)>& part) {
    const std::lock_guard<std::mutex> one(callers_);
    if (workers_.empty() || parts < 2) {
        for (int i = 0; i < parts; ++i) part(i);
        return;
    }
    wait_until([&] { return inside_ == 0; });  // who came late to the work before is on the way out
    part_ = &part;
    parts_ = parts;
    next_ = done_ = 0;
    ++round_;
    if (asleep_) {
        { const std::lock_guard<std::mutex> lock(mutex_); }  // who is about to sleep has looked before, or will see
        wake_.notify_all();
    }
    take();
    wait_until([&] { return done_ == parts; });
    ++round_;
}

void Pool::take() {
    for (int i = next_++; i < parts_; i = next_++) {
        (*part_)(i);
        ++done_;
    }
}

void Pool::work() {
    const auto is_needed = [&] { return over_ || round_ % 2 == 1; };
    while (!over_) {
        for (int look = 0; look < looks_ && !is_needed(); ++look) breathe();
        if (!is_needed()) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            wake_.wait(lock, is_needed);
            --asleep_;
        }
        ++inside_;
        if (round_ % 2 == 1) take();
        --inside_;
    }
}

}  // namespace gemlens

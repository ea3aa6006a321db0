#include "pool.hpp"

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemlens {
namespace {

constexpr int LOOKS = 2000;  // for new work, before a thread sleeps

void breathe(int look) {
    if (look % 64 == 63) {
        std::this_thread::yield();  // where there are more threads than cores, another may need this one
        return;
    }
#if defined(__x86_64__)
    _mm_pause();
#endif
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        over_ = true;
        ++round_;
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
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        part_ = &part;
        parts_ = parts;
        next_ = 0;
        inside_ = static_cast<int>(workers_.size());
        ++round_;
    }
    wake_.notify_all();
    take();
    for (int look = 0; inside_.load(std::memory_order_acquire) > 0; ++look) breathe(look);
}

void Pool::take() {
    for (int i = next_.fetch_add(1); i < parts_; i = next_.fetch_add(1)) (*part_)(i);
}

void Pool::work() {
    std::uint64_t done = 0;
    while (true) {
        for (int look = 0; look < LOOKS && round_.load(std::memory_order_acquire) == done; ++look) breathe(look);
        if (round_ == done) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return round_ != done; });
        }
        done = round_;
        if (over_) return;
        take();
        inside_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace gemlens

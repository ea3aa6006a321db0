// A few threads that wait for work: the caller is one of them.
//
//     pool.run(parts, [&](int part) { ... })     every part once, by whichever thread is free
//
// Between two pieces of work that follow at once, threads look for it for some microseconds before they sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gemlens {

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Returns when all parts are done. One caller at a time; others wait.
    void run(int parts, const std::function<void(int)>& part);

private:
    void work();
    void take();

    std::vector<std::thread> workers_;
    std::mutex callers_, mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> round_{0};  // how many pieces of work were given out
    std::atomic<int> next_{0}, parts_{0}, inside_{0};
    const std::function<void(int)>* part_ = nullptr;
    std::atomic<bool> over_{false};
};

}  // namespace gemlens

// A few threads that wait for work: the caller is one of them.
//
//     pool.run(parts, [&](int part) { ... })     every part once, by whichever thread is free
//
// Pieces of work follow each other at once, so threads look for the next one for a while before they sleep. A thread
// that sleeps is woken and not waited for: what it would have done, others do meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
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
    const int looks_;
    std::mutex callers_, mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> round_{0};  // odd while there is work: how often it began and ended
    std::atomic<int> inside_{0};           // threads that may look at the work, the caller not counted
    std::atomic<int> asleep_{0}, next_{0}, done_{0};
    const std::function<void(int)>* part_ = nullptr;  // changed only while nobody is inside
    int parts_ = 0;
    std::atomic<bool> over_{false};
};

}  // namespace gemlens

#include "threads/pool.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ecrec::threads {
namespace {

class Pool {
public:
    explicit Pool(std::size_t helpers) {
        for (std::size_t i = 0; i < helpers; ++i) threads_.emplace_back([this] { help(); });
    }
    ~Pool() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        wanted_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    // False if somebody else is helped at the moment.
    bool run(std::size_t parts, const std::function<void(std::size_t)>& run) {
        const std::unique_lock only(caller_, std::try_to_lock);
        if (!only.owns_lock()) return false;
        {
            const std::lock_guard lock(mutex_);
            run_ = &run;
            parts_ = parts;
            next_ = 0;
            left_ = parts;
            thrown_ = nullptr;
        }
        wanted_.notify_all();
        std::unique_lock lock(mutex_);
        take_parts(lock);
        done_.wait(lock, [this] { return left_ == 0; });
        run_ = nullptr;
        if (thrown_ != nullptr) std::rethrow_exception(thrown_);
        return true;
    }

private:
    void help() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wanted_.wait(lock, [this] { return ends_ || (run_ != nullptr && next_ < parts_); });
            if (ends_) return;
            take_parts(lock);
        }
    }

    void take_parts(std::unique_lock<std::mutex>& lock) {
        while (run_ != nullptr && next_ < parts_) {
            const std::size_t part = next_++;
            const auto* run = run_;
            lock.unlock();
            std::exception_ptr thrown;
            try {
                (*run)(part);
            } catch (...) {
                thrown = std::current_exception();
            }
            lock.lock();
            if (thrown != nullptr) thrown_ = thrown;
            if (--left_ == 0) done_.notify_all();
        }
    }

    std::mutex caller_;
    std::mutex mutex_;
    std::condition_variable wanted_, done_;
    std::vector<std::thread> threads_;
    const std::function<void(std::size_t)>* run_ = nullptr;
    std::size_t parts_ = 0, next_ = 0, left_ = 0;
    std::exception_ptr thrown_;
    bool ends_ = false;
};

constinit std::atomic<int> count{1};
// Never destroyed with the process: its threads may not outlive it, and need not be joined at the end.
constinit Pool* pool = nullptr;

}  // namespace

void use(int wanted) {
    wanted = std::clamp(wanted, 1, threads_max);
    if (wanted == count) return;
    delete pool;
    pool = wanted == 1 ? nullptr : new Pool(static_cast<std::size_t>(wanted - 1));
    count = wanted;
}

int in_use() { return count; }

std::size_t parts_of(std::size_t work, std::size_t grain) {
    return std::clamp<std::size_t>(work / std::max<std::size_t>(grain, 1), 1, static_cast<std::size_t>(in_use()));
}

void run_parts(std::size_t parts, const std::function<void(std::size_t)>& run) {
    if (parts > 1 && pool != nullptr && pool->run(parts, run)) return;
    for (std::size_t part = 0; part < parts; ++part) run(part);
}

}  // namespace ecrec::threads

#include "threads/pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "threads/pauses.hpp"

namespace ecrec::threads {
namespace {

// Where threads are limited so many are left to others of the process, some of which end it if they get none: two of
// ZeroMQ, one that checks keys, two that write files, and that of a page.
constexpr std::size_t threads_left = 6;

class Pool {
public:
    // Starts as many helpers as the operating system has room for, at most `helpers`. Where that is less, those that run do
    // the work.
    explicit Pool(std::size_t helpers) {
        threads_.reserve(helpers);
        if (start(helpers)) return;
        const std::size_t room = threads_.size() > threads_left ? threads_.size() - threads_left : 0;
        end();
        start(room);
    }
    ~Pool() { end(); }

    std::size_t helpers() const { return threads_.size(); }

    void run(std::size_t parts, const std::function<void(std::size_t)>& run) {
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
        if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, nullptr));
    }

private:
    // False if a limit on threads or memory was met before.
    bool start(std::size_t helpers) {
        ends_ = false;
        try {
            while (threads_.size() < helpers) threads_.emplace_back([this] { help(); });
        } catch (const std::system_error&) {
            return false;
        } catch (const std::bad_alloc&) {
            return false;
        }
        return true;
    }

    void end() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        wanted_.notify_all();
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
    }

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

    std::mutex mutex_;
    std::condition_variable wanted_, done_;
    std::vector<std::thread> threads_;
    const std::function<void(std::size_t)>* run_ = nullptr;
    std::size_t parts_ = 0, next_ = 0, left_ = 0;
    std::exception_ptr thrown_;
    bool ends_ = false;
};

constinit std::atomic<int> count{1};
// Whom the pool helps, or who replaces it.
constinit std::mutex caller;
// Never destroyed with the process: its threads may not outlive it, and need not be joined at the end.
constinit Pool* pool = nullptr;

// A child of fork() has none of the threads. It forgets the pool, whose mutex may be held by one of them, and does all work
// in the calling thread until use() is called there. The fork waits until nobody is helped.
void before_fork() { caller.lock(); }
void after_fork_in_parent() { caller.unlock(); }
void after_fork_in_child() {
    pool = nullptr;
    count = 1;
    caller.unlock();
}

void survive_forks() {
    static const int error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    if (error != 0) throw std::bad_alloc();  // the only error that there is
}

}  // namespace

int use(int wanted) {
    wanted = std::clamp(wanted, 1, threads_max);
    survive_forks();
    const std::lock_guard only(caller);
    if (wanted == count) return wanted;
    delete std::exchange(pool, nullptr);
    count = 1;
    if (wanted > 1) {
        auto started = std::make_unique<Pool>(static_cast<std::size_t>(wanted - 1));
        if (started->helpers() != 0) {
            count = 1 + static_cast<int>(started->helpers());
            pool = started.release();
        }
    }
    return count;
}

int in_use() { return count; }

std::size_t parts_of(std::size_t work, std::size_t grain) {
    return std::clamp<std::size_t>(work / std::max<std::size_t>(grain, 1), 1, static_cast<std::size_t>(in_use()));
}

void run_parts(std::size_t parts, const std::function<void(std::size_t)>& run) {
    const pauses::Listening to_nobody(nullptr);
    if (parts > 1) {
        const std::unique_lock only(caller, std::try_to_lock);
        if (only.owns_lock() && pool != nullptr) {
            pool->run(parts, run);
            return;
        }
    }
    for (std::size_t part = 0; part < parts; ++part) run(part);
}

}  // namespace ecrec::threads

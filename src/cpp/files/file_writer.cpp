#include "files/file_writer.hpp"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

namespace ecrec::files {
namespace {

constexpr int lowest_priority = 19;

// Of the calling thread alone, as Linux has it. Where that fails it is an ordinary one.
void give_way() {
    static_cast<void>(::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), lowest_priority));
}

Done carry_out(const Job& job) {
    Done done;
    done.id = job.id;
    struct stat status = {};
    if (!job.absent.empty() && ::stat(job.absent.c_str(), &status) == 0) {
        done.was_there = true;
        return done;
    }
    try {
        done.written = write_durably(job.path, job.partial, job.buffers);
    } catch (const std::bad_alloc&) {
        done.written.error = ENOMEM;
    }
    return done;
}

}  // namespace

// Outlives the writer while a thread has a file in hand.
struct FileWriter::Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Job> jobs, urgent_jobs;
    std::vector<Done> done;
    std::size_t pending = 0;  // submitted, and not taken: `done` has room for them, as a thread must not fail
    bool ends = false;
};

FileWriter::FileWriter() : shared_(std::make_shared<Shared>()) {}

FileWriter::~FileWriter() { close(); }

void FileWriter::submit(Job job) {
    bool& has = job.urgent ? has_urgent_thread_ : has_thread_;
    if (!has) {
        std::thread([shared = shared_, urgent = job.urgent] { run(shared, urgent); }).detach();
        has = true;
    }
    {
        const std::lock_guard lock(shared_->mutex);
        shared_->done.reserve(shared_->pending + 1);
        (job.urgent ? shared_->urgent_jobs : shared_->jobs).push_back(std::move(job));
        ++shared_->pending;
    }
    shared_->changed.notify_all();
}

std::vector<Done> FileWriter::take() {
    const std::lock_guard lock(shared_->mutex);
    std::vector<Done> left;
    left.reserve(shared_->pending - shared_->done.size());
    shared_->pending -= shared_->done.size();
    return std::exchange(shared_->done, std::move(left));
}

std::vector<std::uint64_t> FileWriter::close() {
    std::vector<std::uint64_t> given_up;
    {
        const std::lock_guard lock(shared_->mutex);
        shared_->ends = true;
        for (std::deque<Job>* jobs : {&shared_->jobs, &shared_->urgent_jobs}) {
            for (const Job& job : *jobs) given_up.push_back(job.id);
            jobs->clear();
        }
        shared_->pending -= given_up.size();
    }
    shared_->changed.notify_all();
    return given_up;
}

void FileWriter::run(const std::shared_ptr<Shared>& shared, bool urgent) {
    if (!urgent) give_way();
    std::deque<Job>& jobs = urgent ? shared->urgent_jobs : shared->jobs;
    std::unique_lock lock(shared->mutex);
    while (true) {
        shared->changed.wait(lock, [&] { return shared->ends || !jobs.empty(); });
        if (jobs.empty()) return;
        const Job job = std::move(jobs.front());
        jobs.pop_front();
        lock.unlock();
        Done done = carry_out(job);
        lock.lock();
        shared->done.push_back(std::move(done));
    }
}

}  // namespace ecrec::files

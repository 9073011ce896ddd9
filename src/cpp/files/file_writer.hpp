// A thread that writes files for a server, so that its loop never waits for storage. It needs no interpreter.
//
// The thread has the lowest priority that the operating system gives: what it takes from a busy host is little, and an
// idle one is its own. A file that is urgent is written by another thread, of ordinary priority.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "files/durable_file.hpp"

namespace ecrec::files {

struct Job {
    std::uint64_t id = 0;
    std::string path, partial;
    std::string absent;          // a file that must not be there yet, or an empty string
    std::vector<Bytes> buffers;  // stay until the job is done
    bool urgent = false;
};

struct Done {
    std::uint64_t id = 0;
    Written written;
    bool was_there = false;  // the file `absent`; nothing was written
};

class FileWriter {
public:
    FileWriter();
    // Does not wait: a file that is being written is finished, or not, by a thread that is left alone with it.
    ~FileWriter();
    FileWriter(const FileWriter&) = delete;
    FileWriter& operator=(const FileWriter&) = delete;

    // Throws std::system_error if no thread can be started.
    void submit(Job job);
    // Of the files that were written since the last call, or could not be.
    std::vector<Done> take();
    // Gives up what has not been begun; the ids of those. Nothing is begun afterwards.
    std::vector<std::uint64_t> close();

private:
    struct Shared;
    static void run(const std::shared_ptr<Shared>& shared, bool urgent);
    std::shared_ptr<Shared> shared_;
    bool has_thread_ = false, has_urgent_thread_ = false;
};

}  // namespace ecrec::files

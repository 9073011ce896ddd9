#include "files/durable_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include "codec/crc32c.hpp"

namespace ecrec::files {
namespace {

constexpr std::size_t block = 4096;  // what O_DIRECT wants addresses, lengths and offsets to be multiples of

struct Free {
    void operator()(std::uint8_t* memory) const { ::operator delete(memory, std::align_val_t{block}); }
};
using Piece = std::unique_ptr<std::uint8_t, Free>;

Piece new_piece(std::size_t bytes) {
    return Piece(static_cast<std::uint8_t*>(::operator new(bytes, std::align_val_t{block})));
}

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() { close(); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }
    // 0 or an errno: some network file systems tell here that they could not write.
    int close() {
        if (number_ < 0) return 0;
        const int failed = ::close(number_) != 0 && errno != EINTR ? errno : 0;
        number_ = -1;
        return failed;
    }

private:
    int number_;
};

std::string folder_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

int sync_folder(const std::string& path) {
    const Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.number() < 0 || ::fsync(folder.number()) != 0) return errno;
    return 0;
}

// Each new one is durable before anything is put into it.
int make_folders(const std::string& path) {
    struct stat status = {};
    if (::stat(path.c_str(), &status) == 0) return S_ISDIR(status.st_mode) ? 0 : ENOTDIR;
    if (errno != ENOENT) return errno;
    const std::string above = folder_of(path);
    if (above == path) return ENOENT;
    if (const int failed = make_folders(above); failed != 0) return failed;
    if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) return errno;
    return sync_folder(above);
}

int write_all(int descriptor, std::size_t offset, const std::uint8_t* data, std::size_t bytes) {
    while (bytes != 0) {
        const ssize_t done = ::pwrite(descriptor, data, bytes, static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return errno;
        if (done == 0) return EIO;
        data += done;
        offset += static_cast<std::size_t>(done);
        bytes -= static_cast<std::size_t>(done);
    }
    return 0;
}

bool set_direct(int descriptor, bool direct) {
#ifdef O_DIRECT
    const int flags = ::fcntl(descriptor, F_GETFL);
    if (flags < 0) return false;
    return ::fcntl(descriptor, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
#else
    (void)descriptor;
    return !direct;
#endif
}

// One piece after the other: filled, summed while it is in a cache, written.
class Writing {
public:
    Writing(int descriptor, std::size_t bytes, Written& written)
        : descriptor_(descriptor),
          piece_(new_piece(std::min(piece_bytes, std::max(bytes, block)))),
          size_(std::min(piece_bytes, std::max(bytes, block))),
          direct_(bytes >= direct_bytes_min && set_direct(descriptor, true)),
          written_(written) {}

    int add(Bytes bytes) {
        while (!bytes.empty()) {
            const std::size_t count = std::min(bytes.size(), size_ - filled_);
            std::memcpy(piece_.get() + filled_, bytes.data(), count);
            filled_ += count;
            bytes = bytes.subspan(count);
            if (filled_ != size_) continue;
            if (const int failed = flush(); failed != 0) return failed;
        }
        return 0;
    }

    int flush() {
        const std::size_t offset = written_.bytes;
        written_.crc32c = crc32c(written_.crc32c, filled_, piece_.get());
        written_.bytes += filled_;
        std::size_t done = direct_ ? filled_ - filled_ % block : 0;
        int failed = write_all(descriptor_, offset, piece_.get(), done);
        // EINVAL: the file system takes the flag, and not what it means; or it took a part that is no whole block.
        if (direct_ && (failed == EINVAL || done != filled_)) {
            direct_ = false;
            if (!set_direct(descriptor_, false)) return errno;
            if (failed == EINVAL) done = 0, failed = 0;
        }
        if (failed == 0) failed = write_all(descriptor_, offset + done, piece_.get() + done, filled_ - done);
        filled_ = 0;
        return failed;
    }

private:
    int descriptor_;
    Piece piece_;
    std::size_t size_, filled_ = 0;
    bool direct_;
    Written& written_;
};

int write_partial(const std::string& partial, const std::vector<Bytes>& buffers, Written& written) {
    Descriptor file(::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.number() < 0) return errno;
    std::size_t bytes = 0;
    for (const Bytes& each : buffers) bytes += each.size();
    if (bytes >= direct_bytes_min) {
        // One extent, and a full disk is told before anything is written. Not all file systems can.
        const int failed = ::fallocate(file.number(), 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
        if (failed == ENOSPC || failed == EFBIG || failed == EDQUOT) return failed;
    }
    Writing writing(file.number(), bytes, written);
    for (const Bytes& each : buffers) {
        if (const int failed = writing.add(each); failed != 0) return failed;
    }
    if (const int failed = writing.flush(); failed != 0) return failed;
    if (::fsync(file.number()) != 0) return errno;
    return file.close();
}

}  // namespace

Written write_durably(const std::string& path, const std::string& partial, const std::vector<Bytes>& buffers) {
    Written written;
    const std::string folder = folder_of(path);
    written.place = folder;
    written.error = make_folders(folder);
    if (written.error != 0) return written;
    written.place = path;
    try {
        written.error = write_partial(partial, buffers, written);
    } catch (const std::bad_alloc&) {
        written.error = ENOMEM;
    }
    if (written.error == 0 && ::rename(partial.c_str(), path.c_str()) != 0) written.error = errno;
    if (written.error != 0) {
        if (written.error != EEXIST) ::unlink(partial.c_str());
        return written;
    }
    written.error = sync_folder(folder);
    return written;
}

}  // namespace ecrec::files

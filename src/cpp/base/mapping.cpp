#include "base/mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.hpp"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace ecrec {

std::uint8_t* map_memory(std::size_t bytes, bool reserves) {
    // What is large begins where a huge page can; what lies around is given back.
    const std::size_t spare = bytes >= huge_page_bytes ? huge_page_bytes : 0;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserves ? 0 : MAP_NORESERVE);
    void* memory = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* first = static_cast<std::uint8_t*>(memory);
    if (spare == 0) return first;
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t kept = (bytes + page - 1) / page * page;
    const std::size_t before = -reinterpret_cast<std::uintptr_t>(first) % huge_page_bytes;
    if (before != 0) munmap(first, before);
    first += before;
    if (bytes + spare - before > kept) munmap(first + kept, bytes + spare - before - kept);
    return first;
}

Mapping::Mapping(std::size_t bytes) {
    if (bytes == 0) return;
    bytes_ = bytes;
    data_ = map_memory(reserved_bytes(), false);
    if (data_ == nullptr) {
        refuse(ErrorKind::state, "cannot reserve ", bytes, " bytes of address space: ", std::strerror(errno),
               "; see ulimit -v and vm.overcommit_memory");
    }
#ifdef MADV_NOHUGEPAGE
    madvise(data_, reserved_bytes(), MADV_NOHUGEPAGE);
#endif
}

namespace {

Collapsed after_error(int error) {
    switch (error) {
        case EAGAIN:
        case EBUSY:
        case EINTR:
        case ENOMEM: return Collapsed::later;  // no huge page, or too many mappings, at the moment
        default: return Collapsed::refused;    // the system does not know how
    }
}

}  // namespace

Collapsed Mapping::collapse(std::size_t extent) const {
#ifndef MADV_COLLAPSE  // Linux 6.1; older headers lack it
#define MADV_COLLAPSE 25
#endif
    if (std::size_t failures = collapse_failures; failures != 0) {
        collapse_failures = failures - 1;
        return after_error(static_cast<int>(collapse_errno));
    }
#ifdef MADV_HUGEPAGE
    std::uint8_t* first = data_ + extent * extent_bytes;
    if (madvise(first, extent_bytes, MADV_HUGEPAGE) != 0 || madvise(first, extent_bytes, MADV_COLLAPSE) != 0) {
        return after_error(errno);
    }
    return Collapsed::moved;
#else
    return Collapsed::refused;
#endif
}

void Mapping::expect(std::size_t first, std::size_t last) const {
    last = std::min(last, extents());
    if (first >= last) return;
#ifdef MADV_HUGEPAGE
    madvise(data_ + first * extent_bytes, (last - first) * extent_bytes, MADV_HUGEPAGE);
#endif
}

void Mapping::clear() {
    if (data_ == nullptr) return;
#ifdef __linux__
    if (madvise(data_, reserved_bytes(), MADV_DONTNEED) == 0) return;
#endif
    std::memset(data_, 0, bytes_);
}

bool Mapping::shrink(std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t reserved = (reserved_bytes() + page - 1) / page * page;
    const std::size_t left = bytes < reserved ? (reserved - bytes) / extent_bytes * extent_bytes : 0;
    if (data_ != nullptr) munmap(data_ + left, reserved - left);
    bytes_ = left;  // whole extents: what is reserved for them is as long
    if (left == 0) data_ = nullptr;
    return left != 0;
}

Mapping::~Mapping() {
    if (data_ != nullptr) munmap(data_, reserved_bytes());
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace ecrec

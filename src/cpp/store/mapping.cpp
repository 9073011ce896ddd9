#include "store/mapping.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "store/error.hpp"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace ecrec {

Mapping::Mapping(std::size_t bytes) {
    if (bytes == 0) return;
    void* memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) refuse(ErrorKind::state, "cannot reserve ", bytes, " bytes of address space");
    data_ = static_cast<std::uint8_t*>(memory);
    bytes_ = bytes;
#ifdef MADV_NOHUGEPAGE
    // Where huge pages are the system's default, one touched row would make 2 MiB resident.
    madvise(data_, bytes_, MADV_NOHUGEPAGE);
#endif
}

Mapping::~Mapping() {
    if (data_ != nullptr) munmap(data_, bytes_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace ecrec

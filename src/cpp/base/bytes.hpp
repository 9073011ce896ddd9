// Bytes that grow without being zeroed and can be handed to somebody else.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "base/blocks.hpp"
#include "base/mapping.hpp"
#include "kernels/prefetch.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

template <class T>
class Growing {
public:
    Growing() = default;
    ~Growing() { blocks::release(data_); }
    Growing(Growing&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)),
          capacity_(std::exchange(other.capacity_, 0)),
          reached_(std::exchange(other.reached_, 0)) {}
    Growing& operator=(Growing&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(capacity_, other.capacity_);
        std::swap(reached_, other.reached_);
        return *this;
    }
    Growing(const Growing&) = delete;
    Growing& operator=(const Growing&) = delete;

    T* data() const { return data_; }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) const { return data_[i]; }
    T* begin() const { return data_; }
    T* end() const { return data_ + size_; }

    void reserve(std::size_t capacity) {
        if (capacity <= capacity_) return;
        if (capacity > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
        std::size_t granted = 0;
        Growing grown;
        grown.data_ = static_cast<T*>(blocks::allocate(capacity * sizeof(T), granted));
        grown.capacity_ = granted / sizeof(T);
        grown.size_ = size_;
        grown.reached_ = granted < huge_page_bytes ? grown.capacity_ : reached_by(size_);
        pauses::in_pieces(size_, pauses::piece_bytes / sizeof(T), 2 * sizeof(T),
                          [&](std::size_t first, std::size_t last) {
                              std::memcpy(grown.data_ + first, data_ + first, (last - first) * sizeof(T));
                          });
        *this = std::move(grown);
    }
    // The next `count` elements will be appended without a move.
    void make_room(std::size_t count) {
        if (count > SIZE_MAX / 8) throw std::bad_alloc();
        if (size_ + count > capacity_) reserve(size_ + count + capacity_);
        if (size_ + count > reached_) [[unlikely]]
            reach(size_ + count);
    }
    // Appends `count` elements of unspecified content; returns the first. Earlier pointers become invalid.
    T* extend(std::size_t count) {
        make_room(count);
        T* first = data_ + size_;
        size_ += count;
        return first;
    }
    void push_back(T value) { *extend(1) = value; }
    void shrink_to(std::size_t size) { size_ = size; }
    // Gives the memory away; the receiver frees it with blocks::release.
    T* release() {
        size_ = capacity_ = reached_ = 0;
        return std::exchange(data_, nullptr);
    }

private:
    static_assert(huge_page_bytes % sizeof(T) == 0);
    // Elements that lie in the huge pages of the first `elements`.
    static std::size_t reached_by(std::size_t elements) {
        const std::size_t pages = (elements * sizeof(T) + huge_page_bytes - 1) / huge_page_bytes;
        return pages * huge_page_bytes / sizeof(T);
    }
    // The system zeroes a huge page when it is touched, which takes up to some milliseconds: one at a time, or those of
    // the windows to all peers would be due together.
    __attribute__((noinline)) void reach(std::size_t end) {
        while (reached_ < end) {
            *reinterpret_cast<volatile std::uint8_t*>(data_ + reached_) = 0;  // beyond all that was written
            reached_ = reached_by(reached_ + 1);
            pauses::work(huge_page_bytes);
        }
    }

    T* data_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
    std::size_t reached_ = 0;  // elements that lie in memory that is there
};

// target ^= source; both 16-byte multiples long, as records are.
inline void xor_into(std::uint8_t* target, const std::uint8_t* source, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += 16) {
        std::uint64_t a[2], b[2];
        std::memcpy(a, target + i, 16);
        std::memcpy(b, source + i, 16);
        a[0] ^= b[0];
        a[1] ^= b[1];
        std::memcpy(target + i, a, 16);
    }
}

// Asks for what will be written, as the kernels ask for rows.
inline void prefetch_write(const void* memory, std::size_t bytes) {
    const auto* line = static_cast<const char*>(memory);
    const bool far = prefetch_into == PrefetchInto::second_level;
    for (std::size_t i = 0; i < bytes; i += 64) {
        if (far) {
            __builtin_prefetch(line + i, 0, 2);
        } else {
            __builtin_prefetch(line + i, 1);
        }
    }
}

}  // namespace ecrec

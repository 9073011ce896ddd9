// Anonymous memory that costs nothing until it is touched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ecrec {

// What became of a huge page: `later` may succeed another time, `refused` never will.
enum class Collapsed { not_moved, moved, later, refused };

constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

// Knobs (store/tuning.hpp). The next so many moves into huge pages fail, as if the system had refused them with this
// errno.
inline constinit std::atomic<std::size_t> collapse_failures{0}, collapse_errno{11};

// Zeroed memory for munmap(), from the start of a huge page on if it has room for one; null if there is none.
// reserves: there is, or will be, memory behind all of it, as far as the system makes sure of that.
std::uint8_t* map_memory(std::size_t bytes, bool reserves);

class Mapping {
public:
    Mapping() = default;
    // Zeroed memory, reserved and not yet resident. StoreError (state) if the address space is exhausted.
    // On small pages: where huge ones are the system's default, one touched row would make 2 MiB resident.
    explicit Mapping(std::size_t bytes);
    ~Mapping();
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    std::uint8_t* data() const { return data_; }
    std::size_t size() const { return bytes_; }

    // Huge pages that the memory has room for: the last one may reach beyond size(), into address space that is
    // reserved for it. None where size() is below one.
    static constexpr std::size_t extent_bytes = huge_page_bytes;
    std::size_t extents() const { return reserved_bytes() / extent_bytes; }
    // Moves an extent into a huge page, all of which is resident then.
    Collapsed collapse(std::size_t extent) const;
    // An extent of [first, last) that is touched from now on, and was not before, becomes a huge page, if the system has
    // one. What is beyond extents() is left out.
    void expect(std::size_t first, std::size_t last) const;
    // Zeroes all, and gives back its pages.
    void clear();
    // Gives back the last `bytes`, or a little more; false if nothing is left.
    bool shrink(std::size_t bytes);

private:
    std::size_t reserved_bytes() const {
        return bytes_ < extent_bytes ? bytes_ : (bytes_ + extent_bytes - 1) / extent_bytes * extent_bytes;
    }

    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace ecrec

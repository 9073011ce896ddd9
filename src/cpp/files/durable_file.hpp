// Files that are there as a whole or not at all, and stay when the machine loses its power.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ecrec::files {

using Bytes = std::span<const std::uint8_t>;

struct Written {
    std::size_t bytes = 0;
    std::uint32_t crc32c = 0;
    int error = 0;      // an errno; 0: it is written
    std::string place;  // what the error is of
};

// Writes the buffers, one after the other, to `partial` in the folder of `path`, and renames it to `path`, which is
// replaced if it is there; missing folders are made. File and names are durable when this returns. After an error
// neither file is there that was not there before. Never throws but std::bad_alloc.
//
// Large files go past the page cache where the file system can: what is written is not read again soon, and the copy
// into the cache costs as much as everything else.
Written write_durably(const std::string& path, const std::string& partial, const std::vector<Bytes>& buffers);

// What copying and writing through the memory of this call is done in, at a time.
inline constexpr std::size_t piece_bytes = std::size_t{2} << 20;
// Of files that go past the page cache, at least.
inline constexpr std::size_t direct_bytes_min = std::size_t{1} << 20;

}  // namespace ecrec::files

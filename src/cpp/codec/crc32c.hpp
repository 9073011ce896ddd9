// CRC-32C (Castagnoli, RFC 3720, appendix B.4): finds every flipped bit, every burst of up to 32 bits, and of longer damage all
// but one in 2^32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ecrec {

// The checksum of what `value` is the checksum of, and `bytes` more behind it; 0 is the checksum of nothing. By the CPU's
// instruction where there is one.
std::uint32_t crc32c(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);

// The same by a table, byte by byte: what the others are compared with, and what is left where there is no instruction.
std::uint32_t crc32c_by_table(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);

// "sse4.2", "armv8" or "table".
const char* crc32c_in_use();

}  // namespace ecrec

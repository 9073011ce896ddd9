// What the instructions for CRC-32C share: the register's arithmetic, and the tables that join lanes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ecrec::crc {

// x^32 is left out; the highest bit is x^0.
inline constexpr std::uint32_t polynomial = 0x82f63b78;

// The register after `bytes` more, without the inversions at both ends.
using Run = std::uint32_t (*)(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);

std::uint32_t run_sse42(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);
std::uint32_t run_avx512(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);
std::uint32_t run_armv8(std::uint32_t value, std::size_t bytes, const std::uint8_t* data);

}  // namespace ecrec::crc

// crc32cx of ARMv8's CRC extension: 8 bytes in each cycle.
#include <arm_acle.h>

#include "kernels/crc32c.hpp"

#define ECREC_CRC_TARGET __attribute__((target("+crc")))

namespace ecrec::crc {
namespace {

ECREC_CRC_TARGET inline std::uint64_t crc_word(std::uint64_t value, std::uint64_t word) {
    return __crc32cd(static_cast<std::uint32_t>(value), word);
}
ECREC_CRC_TARGET inline std::uint32_t crc_byte(std::uint32_t value, std::uint8_t byte) {
    return __crc32cb(value, byte);
}

}  // namespace

#include "kernels/crc32c.inl"

std::uint32_t run_armv8(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    return run(value, bytes, data);
}

}  // namespace ecrec::crc

// crc32 of SSE4.2: 8 bytes in each cycle.
#include <nmmintrin.h>

#include "kernels/crc32c.hpp"

#define ECREC_CRC_TARGET __attribute__((target("sse4.2")))

namespace ecrec::crc {
namespace {

ECREC_CRC_TARGET inline std::uint64_t crc_word(std::uint64_t value, std::uint64_t word) {
    return _mm_crc32_u64(value, word);
}
ECREC_CRC_TARGET inline std::uint32_t crc_byte(std::uint32_t value, std::uint8_t byte) {
    return _mm_crc32_u8(value, byte);
}

}  // namespace

#include "kernels/crc32c.inl"

std::uint32_t run_sse42(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    return run(value, bytes, data);
}

}  // namespace ecrec::crc

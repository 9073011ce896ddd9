// crc32 of SSE4.2: 8 bytes in each cycle.
#include <nmmintrin.h>

#include "kernels/crc32c.hpp"

#define ECREC_CRC_TARGET __attribute__((target("sse4.2")))

namespace ecrec::crc {

#include "kernels/x86/crc32c_words.inl"

#include "kernels/crc32c.inl"

std::uint32_t run_sse42(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    return run(value, bytes, data);
}

}  // namespace ecrec::crc

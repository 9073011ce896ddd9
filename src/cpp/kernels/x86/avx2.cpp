// AVX2: VPSHUFB as sixteen-entry table look-up, two a product (low and high nibble).
// Bound by: the shuffle ports for products, the load and store ports for a coefficient of one (plain XOR).
// Tail: an overlapping last block; below one block a copy through memory; floats use maskload and maskstore.
#include <immintrin.h>

#include <cstring>

#include "kernels/contract.hpp"
#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"
#include "kernels/x86/target.hpp"

ECREC_TARGET_BEGIN("avx2")

namespace ecrec::avx2 {
namespace {

#include "kernels/x86/vector_256.inl"

Bytes broadcast_table(const std::uint8_t* entries) {
    return reinterpret_cast<Bytes>(
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries))));
}

Bytes look_up(Bytes table, Bytes index) {
    return reinterpret_cast<Bytes>(
        _mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
}

#include "kernels/nibbles.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("avx2");

}  // namespace ecrec::avx2

ECREC_TARGET_END

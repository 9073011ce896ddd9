// AVX-512 (F, BW, DQ, VL) without GFNI: VPSHUFB as sixteen-entry table look-up, two a product (low and high nibble).
// Bound by: the shuffle ports for products, the load and store ports for a coefficient of one (plain XOR).
// Tail: an overlapping last block; below one block, and for floats, a mask.
#include <immintrin.h>

#include <cstring>

#include "kernels/contract.hpp"
#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"
#include "kernels/x86/target.hpp"

// The "undefined" vectors of GCC 12's own headers (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
ECREC_TARGET_BEGIN("avx2,avx512f,avx512bw,avx512dq,avx512vl")

namespace ecrec::avx512 {
namespace {

#include "kernels/x86/vector_512.inl"

Bytes broadcast_table(const std::uint8_t* entries) {
    return reinterpret_cast<Bytes>(
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries))));
}

Bytes look_up(Bytes table, Bytes index) {
    return reinterpret_cast<Bytes>(
        _mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(index)));
}

#include "kernels/nibbles.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("avx512");

}  // namespace ecrec::avx512

ECREC_TARGET_END
#pragma GCC diagnostic pop

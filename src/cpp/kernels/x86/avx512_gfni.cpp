// AVX-512 (F, BW, DQ, VL) and GFNI: VGF2P8AFFINEQB multiplies 64 bytes by a constant in one instruction, its
// matrix broadcast from memory.
// Bound by: the load and store ports, so there is no special case for a coefficient of one.
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
ECREC_TARGET_BEGIN("avx2,avx512f,avx512bw,avx512dq,avx512vl,gfni")

namespace ecrec::avx512_gfni {
namespace {

#include "kernels/x86/vector_512.inl"

Bytes affine(Bytes x, std::uint64_t matrix) {
    return reinterpret_cast<Bytes>(_mm512_gf2p8affine_epi64_epi8(
        reinterpret_cast<__m512i>(x), _mm512_set1_epi64(static_cast<long long>(matrix)), 0));
}

#include "kernels/x86/affine.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("avx512-gfni");

}  // namespace ecrec::avx512_gfni

ECREC_TARGET_END
#pragma GCC diagnostic pop

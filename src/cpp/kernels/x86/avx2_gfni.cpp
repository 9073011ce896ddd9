// AVX2 and GFNI: the VEX form of VGF2P8AFFINEQB multiplies 32 bytes by a constant in one instruction, its matrix
// broadcast from memory.
// Bound by: the load and store ports, so there is no special case for a coefficient of one.
// Tail: an overlapping last block; below one block a copy through memory; floats use maskload and maskstore.
#include <immintrin.h>

#include <cstring>

#include "kernels/contract.hpp"
#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"
#include "kernels/x86/target.hpp"

ECREC_TARGET_BEGIN("avx2,gfni")

namespace ecrec::avx2_gfni {
namespace {

#include "kernels/x86/vector_256.inl"

Bytes affine(Bytes x, std::uint64_t matrix) {
    return reinterpret_cast<Bytes>(_mm256_gf2p8affine_epi64_epi8(
        reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(static_cast<long long>(matrix)), 0));
}

#include "kernels/x86/affine.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("avx2-gfni");

}  // namespace ecrec::avx2_gfni

ECREC_TARGET_END

// SSSE3: PSHUFB as sixteen-entry table look-up, two a product (low and high nibble).
// Bound by: the shuffle ports for products, the load and store ports for a coefficient of one (plain XOR); the
// instructions of 32-bit products, which SSE4.1 brought, for initial weights.
// Tail: an overlapping last block; below one block, and for floats, a copy through memory.
#include <immintrin.h>

#include <cstring>

#include "kernels/contract.hpp"
#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"
#include "kernels/x86/target.hpp"

ECREC_TARGET_BEGIN("ssse3")

namespace ecrec::ssse3 {
namespace {

constexpr std::size_t block = 16;
constexpr int registers = 16;
#include "kernels/vectors.inl"

using Part = CopiedPart;
using PartLanes = CopiedPart;

constexpr bool has_stream = true;
void stream(std::uint8_t* at, Bytes x) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(at), reinterpret_cast<__m128i>(x));
}
void fence() { _mm_sfence(); }
constexpr bool has_line_stream = false;
using LineStream = NoLineStream;

bool all_zero(Bytes x) {
    return _mm_movemask_epi8(_mm_cmpeq_epi8(reinterpret_cast<__m128i>(x), _mm_setzero_si128())) == 0xffff;
}

Floats square_root(Floats x) { return _mm_sqrt_ps(x); }

float sum_of_lanes(Floats four) {
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

Bytes broadcast_table(const std::uint8_t* entries) { return Whole().load(entries); }

Bytes look_up(Bytes table, Bytes index) {
    return reinterpret_cast<Bytes>(
        _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(index)));
}

#include "kernels/nibbles.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("ssse3");

}  // namespace ecrec::ssse3

ECREC_TARGET_END

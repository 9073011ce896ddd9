// NEON (AArch64, where every CPU has it): TBL as sixteen-entry table look-up, two a product (low and high nibble).
// Bound by: TBL's ports for products, the load and store ports for a coefficient of one (plain XOR).
// Tail: an overlapping last block; below one block, and for floats, a copy through memory.
#include <arm_neon.h>

#include <cstring>

#include "kernels/contract.hpp"
#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"

namespace ecrec::neon {
namespace {

constexpr std::size_t block = 16;
constexpr int registers = 32;
#include "kernels/vectors.inl"

using Part = CopiedPart;
using PartLanes = CopiedPart;

// No intrinsic of GCC stores past the caches.
constexpr bool has_stream = false;
void stream(std::uint8_t* at, Bytes x) { Whole().store(at, x); }
void fence() {}
constexpr bool has_line_stream = false;
using LineStream = NoLineStream;

bool all_zero(Bytes x) { return vmaxvq_u8(reinterpret_cast<uint8x16_t>(x)) == 0; }

Floats square_root(Floats x) { return reinterpret_cast<Floats>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x))); }

float sum_of_lanes(Floats x) {
    const float32x4_t four = reinterpret_cast<float32x4_t>(x);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

Bytes broadcast_table(const std::uint8_t* entries) { return Whole().load(entries); }

Bytes look_up(Bytes table, Bytes index) {
    return reinterpret_cast<Bytes>(
        vqtbl1q_u8(reinterpret_cast<uint8x16_t>(table), reinterpret_cast<uint8x16_t>(index)));
}

#include "kernels/nibbles.inl"
#include "kernels/loops.inl"

}  // namespace

extern constinit const Operations table = table_named("neon");

}  // namespace ecrec::neon

// The counter-based generator of initial weights, in the words that every kernel shares.
//
// key = row_key(seed, row), 64 bits. The random bits of a column are
//     x  = column * column_step + low half of key
//     x ^= x >> 17;  x *= mix_1;  x += high half of key
//     x ^= x >> 11;  x *= mix_2
//     x ^= x >> 15;  x *= mix_3;  x ^= x >> 14
// and the weight is (int32(x >> 8) - 2^23) * (scale / 2^23): 24 bits, exact in float32, one rounding. Mixer:
// triple32 of C. Wellons' hash-prospector, the second half of the key added after its first round so that two
// rows whose keys agree in 32 bits do not share their weights. Only 32-bit operations: AVX2 has no 64-bit
// multiplication.
#pragma once

#include <cstdint>

namespace ecrec {

inline constexpr std::uint32_t column_step = 0x9e3779b9u;
inline constexpr std::uint32_t mix_1 = 0xed5ad4bbu;
inline constexpr std::uint32_t mix_2 = 0xac4c1b51u;
inline constexpr std::uint32_t mix_3 = 0x31848babu;

// SplitMix64's finaliser over a stream that starts at the finaliser of the seed. Not inline: kernels are
// compiled for different instruction sets and must not share an inline function.
std::uint64_t row_key(std::uint64_t seed, std::uint64_t row);

}  // namespace ecrec

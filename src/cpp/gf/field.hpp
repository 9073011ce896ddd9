// The field GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), as in ISA-L. Addition is XOR.
#pragma once

#include <cstdint>

namespace ecrec::gf {

inline constexpr unsigned polynomial = 0x11d;

std::uint8_t multiply(std::uint8_t a, std::uint8_t b);

// Multiplicative inverse; 0 for 0, which has none.
std::uint8_t inverse(std::uint8_t a);

}  // namespace ecrec::gf

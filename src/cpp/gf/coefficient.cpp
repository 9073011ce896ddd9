#include "gf/coefficient.hpp"

#include <array>

#include "gf/field.hpp"

namespace ecrec::gf {
namespace {

constexpr std::uint8_t shift_and_add(unsigned a, unsigned b) {
    unsigned product = 0;
    for (; b != 0; b >>= 1) {
        if (b & 1) product ^= a;
        a <<= 1;
        if (a & 0x100) a ^= polynomial;
    }
    return static_cast<std::uint8_t>(product);
}

// The matrix of x -> value * x for gf2p8affineqb: bit i of the result is the parity of (x AND byte 7 - i of
// the matrix), so bit j of that byte is bit i of value * 2^j. (gf2p8mulb cannot be used: its polynomial is
// 0x11b.)
constexpr std::uint64_t affine_matrix(unsigned value) {
    std::uint64_t matrix = 0;
    for (int column = 0; column < 8; ++column) {
        const std::uint64_t product = shift_and_add(value, 1u << column);
        for (int bit = 0; bit < 8; ++bit) {
            matrix |= ((product >> bit) & 1) << ((7 - bit) * 8 + column);
        }
    }
    return matrix;
}

constexpr std::array<Coefficient, 256> make_coefficients() {
    std::array<Coefficient, 256> all{};
    for (unsigned value = 0; value < 256; ++value) {
        Coefficient& c = all[value];
        for (unsigned x = 0; x < 16; ++x) {
            c.low[x] = shift_and_add(value, x);
            c.high[x] = shift_and_add(value, x << 4);
        }
        c.matrix = affine_matrix(value);
        c.value = static_cast<std::uint8_t>(value);
    }
    return all;
}

constexpr std::array<Coefficient, 256> coefficients = make_coefficients();

}  // namespace

const Coefficient& coefficient(std::uint8_t value) { return coefficients[value]; }

}  // namespace ecrec::gf

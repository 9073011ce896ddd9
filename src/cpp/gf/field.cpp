#include "gf/field.hpp"

#include <array>

namespace ecrec::gf {
namespace {

// 2 generates the multiplicative group: power[i] = 2^i, logarithm[2^i] = i.
struct Tables {
    std::array<std::uint8_t, 510> power{};  // twice around: a sum of two logarithms needs no reduction
    std::array<std::uint8_t, 256> logarithm{};
};

constexpr Tables make_tables() {
    Tables tables;
    unsigned value = 1;
    for (int i = 0; i < 255; ++i) {
        tables.power[i] = tables.power[i + 255] = static_cast<std::uint8_t>(value);
        tables.logarithm[value] = static_cast<std::uint8_t>(i);
        value <<= 1;
        if (value & 0x100) value ^= polynomial;
    }
    return tables;
}

constexpr Tables tables = make_tables();

}  // namespace

std::uint8_t multiply(std::uint8_t a, std::uint8_t b) {
    if (a == 0 || b == 0) return 0;
    return tables.power[tables.logarithm[a] + tables.logarithm[b]];
}

std::uint8_t inverse(std::uint8_t a) {
    if (a == 0) return 0;
    return tables.power[255 - tables.logarithm[a]];
}

}  // namespace ecrec::gf

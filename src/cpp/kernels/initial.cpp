#include "kernels/initial.hpp"

namespace ecrec {
namespace {

constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;

std::uint64_t finalise(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace

std::uint64_t row_key(std::uint64_t seed, std::uint64_t row) {
    return finalise(finalise(seed + golden) + row * golden);
}

}  // namespace ecrec

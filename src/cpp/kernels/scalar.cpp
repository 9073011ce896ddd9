// Scalar: no instructions beyond the baseline; the readable oracle of the other kernels, and their fallback. The steps of
// optimizers alone are the source that all kernels share (optimizers.inl); their oracle is ecrec/store/reference.py.
// Bound by: two table look-ups a byte. Tail: none, one element at a time.
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/prefetch.hpp"

namespace ecrec::scalar {
namespace {

std::uint8_t product(const Coefficient& c, std::uint8_t x) { return c.low[x & 15] ^ c.high[x >> 4]; }

void fold(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target) {
    for (std::size_t i = 0; i < bytes; ++i) target[i] ^= product(c, source[i]);
}

void encode(std::size_t bytes, int k, int r, const Coefficient* coefficients, const std::uint8_t* const* data,
            std::uint8_t* const* parity) {
    for (int i = 0; i < r; ++i) {
        if (bytes != 0) std::memset(parity[i], 0, bytes);
        for (int j = 0; j < k; ++j) fold(bytes, coefficients[i * k + j], data[j], parity[i]);
    }
}

void fold_rows(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* const* source,
               std::uint8_t* const* target) {
    for (std::size_t m = 0; m < rows; ++m) fold(bytes, c, source[m], target[m]);
}

void copy_rows(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source, std::uint8_t* target,
               std::size_t, bool) {
    for (std::size_t m = 0; m < rows; ++m) {
        if (source[m] != nullptr && bytes != 0) std::memcpy(target + m * bytes, source[m], bytes);
    }
}

void difference(std::size_t bytes, const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* target) {
    for (std::size_t i = 0; i < bytes; ++i) target[i] = a[i] ^ b[i];
}

bool is_zero(std::size_t bytes, const std::uint8_t* data) {
    for (std::size_t i = 0; i < bytes; ++i) {
        if (data[i] != 0) return false;
    }
    return true;
}

bool is_finite(std::size_t count, const float* values) {
    constexpr std::uint32_t exponent = 0x7f800000u;
    for (std::size_t i = 0; i < count; ++i) {
        if ((std::bit_cast<std::uint32_t>(values[i]) & exponent) == exponent) return false;
    }
    return true;
}

void sum_rows(std::size_t rows, std::size_t dim, const float* const* source, float* const* target, const bool* adds) {
    for (std::size_t m = 0; m < rows; ++m) {
        for (std::size_t i = 0; i < dim; ++i) {
            target[m][i] = (adds[m] ? target[m][i] : -0.0f) + source[m][i];
        }
    }
}

void pool_rows(std::size_t bags, std::size_t dim, const float* const* source, const std::size_t* ends,
               float* const* target) {
    std::size_t first = 0;
    for (std::size_t m = 0; m < bags; ++m) {
        for (std::size_t i = 0; i < dim; ++i) {
            float sum = first == ends[m] ? 0.0f : source[first][i];
            for (std::size_t j = first + 1; j < ends[m]; ++j) sum += source[j][i];
            target[m][i] = sum;
        }
        first = ends[m];
    }
}

// What the steps of optimizers are written for, which all kernels share: vectors that the baseline has, or that the compiler
// takes apart where it has none.
constexpr std::size_t block = 16;
#include "kernels/vectors.inl"

using PartLanes = CopiedPart;

constexpr bool has_stream = false;
void stream(std::uint8_t* at, Bytes x) { Whole().store(at, x); }
void fence() {}
constexpr bool has_line_stream = false;
using LineStream = NoLineStream;

Floats square_root(Floats x) {
    for (std::size_t i = 0; i < lanes; ++i) x[i] = std::sqrt(x[i]);
    return x;
}

float sum_of_lanes(Floats x) { return (x[0] + x[2]) + (x[1] + x[3]); }

// In this order: each may use what stands in those before it.
// clang-format off
#include "kernels/ahead.inl"
#include "kernels/floats.inl"
#include "kernels/optimizers.inl"
// clang-format on

void initial_uniform(std::size_t dim, std::uint64_t seed, std::uint64_t row, float scale, float* weights) {
    const std::uint64_t key = row_key(seed, row);
    const std::uint32_t low = static_cast<std::uint32_t>(key);
    const std::uint32_t high = static_cast<std::uint32_t>(key >> 32);
    const float unit = scale / 8388608.0f;
    for (std::size_t column = 0; column < dim; ++column) {
        std::uint32_t x = static_cast<std::uint32_t>(column) * column_step + low;
        x ^= x >> 17;
        x *= mix_1;
        x += high;
        x ^= x >> 11;
        x *= mix_2;
        x ^= x >> 15;
        x *= mix_3;
        x ^= x >> 14;
        weights[column] = static_cast<float>(static_cast<std::int32_t>(x >> 8) - (1 << 23)) * unit;
    }
}

}  // namespace

extern const Operations table = {
    .name = "scalar",
    .encode = encode,
    .fold = fold,
    .fold_rows = fold_rows,
    .copy_rows = copy_rows,
    .difference = difference,
    .is_zero = is_zero,
    .is_finite = is_finite,
    .sum_rows = sum_rows,
    .pool_rows = pool_rows,
    .steps = all_steps,
    .initial_uniform = initial_uniform,
};

}  // namespace ecrec::scalar

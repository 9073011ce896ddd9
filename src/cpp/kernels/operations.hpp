// The contract of a kernel: the operations that have a SIMD form. One table of
// function pointers a kernel; the registry picks one at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/optimizers.hpp"

namespace ecrec {

// A GF(2^8) constant prepared for every kernel: nibble product tables (SSSE3, AVX2, NEON)
// and the 8x8 bit matrix of the affine instruction (GFNI). Opaque outside of gf/ and kernels/.
struct alignas(16) Coefficient {
    std::uint8_t low[16];    // c * x           for x = 0..15
    std::uint8_t high[16];   // c * (x << 4)
    std::uint64_t matrix;    // for gf2p8affineqb
    std::uint8_t value;
};

// Most data blocks of a code.
inline constexpr int coefficients_max = 255;

// One step of an optimizer on each of some rows of a table.
struct Steps {
    std::size_t rows;
    std::size_t dim;
    std::size_t used_bytes;          // of weights and state
    std::size_t record_bytes;        // with padding, less than a vector of floats
    const float* hyper;              // of the optimizer, in its order: TableShape::hyper
    const float* const* gradients;   // dim floats each
    float* const* records;           // may repeat
    std::uint8_t* const* deltas;     // null: none are wanted
    const bool* merges;              // of each delta: true: delta ^= old ^ new, false: delta = old ^ new; padding zero
    const float* step_sizes;         // of each row, for Adam
    std::size_t later = 0;           // records of the calls to come, behind these in `records`: only asked for
    bool continues = false;          // these were `later` ones of the call before
    bool streams = false;            // deltas may go past the caches: none merges, and each, its weights and its state are
                                     // whole, aligned blocks of 64 bytes; or, of row-wise Adagrad, its weights are whole
                                     // blocks, and it lies at a multiple of 16 bytes
};

struct Operations {
    const char* name;

    // parity[i] = sum_j coefficients[i * k + j] * data[j]; all buffers `bytes` long, no overlap, any alignment;
    // 1 <= k <= coefficients_max.
    void (*encode)(std::size_t bytes, int k, int r, const Coefficient* coefficients,
                   const std::uint8_t* const* data, std::uint8_t* const* parity);

    // target ^= c * source.
    void (*fold)(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target);

    // target[m] ^= c * source[m] for m = 0..rows-1, with prefetch of later rows. A target may repeat.
    void (*fold_rows)(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* const* source,
                      std::uint8_t* const* target);

    // target + m * bytes = *source[m] for m = 0..rows-1, with prefetch of later sources; a source that is null is left
    // out. No source overlaps the target. `later`: so many sources follow, which are only asked for; continues: the
    // first ones of this run were asked for by the one before.
    void (*copy_rows)(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source, std::uint8_t* target,
                      std::size_t later, bool continues);

    // target = a ^ b.
    void (*difference)(std::size_t bytes, const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* target);

    // true if every byte is zero.
    bool (*is_zero)(std::size_t bytes, const std::uint8_t* data);

    // true if every float is finite.
    bool (*is_finite)(std::size_t count, const float* values);

    // target[m] += source[m] if adds[m], else target[m] = -0 + source[m], which is source[m]; dim floats each, one row after the other, with
    // prefetch of later rows. A target may repeat; no source overlaps a target.
    void (*sum_rows)(std::size_t rows, std::size_t dim, const float* const* source, float* const* target,
                     const bool* adds);

    // target[m] = the sum of source[ends[m - 1]]..source[ends[m] - 1] in this order (the first begins at 0), zeros if there
    // are none; dim floats each, with prefetch of later sources. No source overlaps a target.
    void (*pool_rows)(std::size_t bags, std::size_t dim, const float* const* source, const std::size_t* ends,
                      float* const* target);

    // Of each optimizer, in the order of `optimizers`: its steps on rows of one table, in order. A record is w[dim], then
    // state. Bit-exact across kernels: one rounding an operation, no fused multiply-add (optimizers.inl has the formulas).
    std::array<void (*)(const Steps& steps), optimizer_count> steps;
    auto step(const Optimizer& optimizer) const { return steps[static_cast<std::size_t>(&optimizer - optimizers)]; }

    // Initial weights: uniform in [-scale, scale) from a counter-based generator of (seed, row, column); 24 random bits a
    // weight, one multiplication, so that every kernel gives the same bits.
    void (*initial_uniform)(std::size_t dim, std::uint64_t seed, std::uint64_t row, float scale, float* weights);
};

}  // namespace ecrec

// A systematic (k, r) erasure code over bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "gf/matrix.hpp"
#include "kernels/operations.hpp"

namespace ecrec {

enum class CodeError {
    none,
    too_few_present,    // fewer than k
    slot_out_of_range,  // not in 0..k+r-1
    slot_repeated,      // twice in one list, or both present and lost
};

// Slots 0..k-1 are data, k..k+r-1 parity. k >= 1, r >= 0, k + r <= 255. Immutable.
class Code {
public:
    static constexpr int slots_max = coefficients_max;

    Code(int k, int r, gf::Generator generator);

    int k() const { return k_; }
    int r() const { return r_; }
    gf::Generator generator() const { return generator_; }

    // What data slot j counts for in parity i (0..r-1).
    const Coefficient& coefficient(int i, int j) const { return coefficients_[matrix_.index(i, j)]; }
    const gf::Matrix& matrix() const { return matrix_; }

    // All buffers `bytes` long; no parity overlaps anything else.
    void encode(std::size_t bytes, const std::uint8_t* const* data, std::uint8_t* const* parity) const;

    // The lost.size() x k matrix that maps the first k present blocks to the lost ones.
    CodeError decode_matrix(std::span<const int> present, std::span<const int> lost, gf::Matrix& out) const;

    // out[i] = slot lost[i], from blocks[j] = slot present[j]. No out overlaps anything else.
    CodeError reconstruct(std::size_t bytes, std::span<const int> present, const std::uint8_t* const* blocks,
                          std::span<const int> lost, std::uint8_t* const* out) const;

private:
    int k_;
    int r_;
    gf::Generator generator_;
    gf::Matrix matrix_;
    std::vector<Coefficient> coefficients_;
};

}  // namespace ecrec

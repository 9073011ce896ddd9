#include "codec/code.hpp"

#include <utility>

#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"
#include "threads/pool.hpp"

namespace ecrec {
namespace {

std::vector<Coefficient> prepare(const gf::Matrix& matrix) {
    std::vector<Coefficient> prepared;
    prepared.reserve(matrix.values.size());
    for (const std::uint8_t value : matrix.values) prepared.push_back(gf::coefficient(value));
    return prepared;
}

// The operation on all threads: each has a range of every buffer.
void encode_ranges(std::size_t bytes, int k, int r, const Coefficient* coefficients, const std::uint8_t* const* data,
                   std::uint8_t* const* parity) {
    const std::size_t buffers = static_cast<std::size_t>(k) + static_cast<std::size_t>(r);
    threads::for_ranges(bytes, threads::grain_bytes / buffers, 4096, [&](std::size_t first, std::size_t last) {
        if (first == 0 && last == bytes) {
            operations().encode(bytes, k, r, coefficients, data, parity);
            return;
        }
        std::vector<const std::uint8_t*> from(data, data + k);
        std::vector<std::uint8_t*> to(parity, parity + r);
        for (const std::uint8_t*& at : from) at += first;
        for (std::uint8_t*& at : to) at += first;
        operations().encode(last - first, k, r, coefficients, from.data(), to.data());
    });
}

}  // namespace

Code::Code(int k, int r, gf::Generator generator)
    : k_(k),
      r_(r),
      generator_(generator),
      matrix_(gf::parity_matrix(k, r, generator)),
      coefficients_(prepare(matrix_)) {}

void Code::encode(std::size_t bytes, const std::uint8_t* const* data, std::uint8_t* const* parity) const {
    encode_ranges(bytes, k_, r_, coefficients_.data(), data, parity);
}

CodeError Code::decode_matrix(std::span<const int> present, std::span<const int> lost,
                              gf::Matrix& out) const {
    if (present.size() < static_cast<std::size_t>(k_)) return CodeError::too_few_present;
    std::vector<bool> seen(static_cast<std::size_t>(k_ + r_));
    for (const std::span<const int> slots : {present, lost}) {
        for (const int slot : slots) {
            if (slot < 0 || slot >= k_ + r_) return CodeError::slot_out_of_range;
            if (seen[slot]) return CodeError::slot_repeated;
            seen[slot] = true;
        }
    }

    const auto copy_slot_row = [this](int slot, gf::Matrix& to, int row) {
        if (slot < k_) {
            to.at(row, slot) = 1;
        } else {
            for (int j = 0; j < k_; ++j) to.at(row, j) = matrix_.at(slot - k_, j);
        }
    };
    gf::Matrix survivors(k_, k_);
    for (int row = 0; row < k_; ++row) copy_slot_row(present[row], survivors, row);
    gf::Matrix wanted(static_cast<int>(lost.size()), k_);
    for (int row = 0; row < wanted.rows; ++row) copy_slot_row(lost[row], wanted, row);

    // Invertible for every choice of k slots: the generators are MDS.
    // NOLINTNEXTLINE(bugprone-unchecked-optional-access)
    out = gf::multiply(wanted, *gf::inverse(std::move(survivors)));
    return CodeError::none;
}

CodeError Code::reconstruct(std::size_t bytes, std::span<const int> present,
                            const std::uint8_t* const* blocks, std::span<const int> lost,
                            std::uint8_t* const* out) const {
    gf::Matrix decode(0, 0);
    const CodeError error = decode_matrix(present, lost, decode);
    if (error != CodeError::none) return error;
    encode_ranges(bytes, k_, decode.rows, prepare(decode).data(), blocks, out);
    return CodeError::none;
}

}  // namespace ecrec

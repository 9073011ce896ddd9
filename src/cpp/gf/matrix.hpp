// Small dense matrices over GF(2^8), and the generators of the codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace ecrec::gf {

struct Matrix {
    Matrix(int rows, int columns)
        : rows(rows), columns(columns), values(static_cast<std::size_t>(rows) * columns) {}

    std::uint8_t& at(int row, int column) { return values[index(row, column)]; }
    std::uint8_t at(int row, int column) const { return values[index(row, column)]; }
    std::size_t index(int row, int column) const { return static_cast<std::size_t>(row) * columns + column; }

    int rows;
    int columns;
    std::vector<std::uint8_t> values;  // row after row
};

// a.columns must be b.rows.
Matrix multiply(const Matrix& a, const Matrix& b);

// By Gauss-Jordan elimination; none if the matrix is singular. It must be square.
std::optional<Matrix> inverse(Matrix matrix);

enum class Generator {
    cauchy,       // 1 / ((k + i) ^ j), rows and columns scaled so that the first of each is all ones
    isal_cauchy,  // 1 / ((k + i) ^ j): gf_gen_cauchy1_matrix of ISA-L
};

std::optional<Generator> generator_from_name(std::string_view name);
const char* generator_name(Generator generator);

// The r x k parity part of a systematic generator: parity i = sum over j of at(i, j) * data j. Every square
// submatrix is invertible (it is a Cauchy matrix, or one with scaled rows and columns). k >= 1, r >= 0, k + r
// <= 256.
Matrix parity_matrix(int k, int r, Generator generator);

}  // namespace ecrec::gf

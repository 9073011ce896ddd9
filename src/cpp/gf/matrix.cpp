#include "gf/matrix.hpp"

#include <utility>

#include "gf/field.hpp"

namespace ecrec::gf {

Matrix multiply(const Matrix& a, const Matrix& b) {
    Matrix product(a.rows, b.columns);
    for (int row = 0; row < a.rows; ++row) {
        for (int inner = 0; inner < a.columns; ++inner) {
            for (int column = 0; column < b.columns; ++column) {
                product.at(row, column) ^= multiply(a.at(row, inner), b.at(inner, column));
            }
        }
    }
    return product;
}

std::optional<Matrix> inverse(Matrix matrix) {
    const int size = matrix.rows;
    Matrix result(size, size);
    for (int i = 0; i < size; ++i) result.at(i, i) = 1;

    for (int column = 0; column < size; ++column) {
        int pivot = column;
        while (pivot < size && matrix.at(pivot, column) == 0) ++pivot;
        if (pivot == size) return std::nullopt;
        if (pivot != column) {
            for (int i = 0; i < size; ++i) {
                std::swap(matrix.at(pivot, i), matrix.at(column, i));
                std::swap(result.at(pivot, i), result.at(column, i));
            }
        }
        const std::uint8_t scale = inverse(matrix.at(column, column));
        for (int i = 0; i < size; ++i) {
            matrix.at(column, i) = multiply(matrix.at(column, i), scale);
            result.at(column, i) = multiply(result.at(column, i), scale);
        }
        for (int row = 0; row < size; ++row) {
            const std::uint8_t factor = matrix.at(row, column);
            if (row == column || factor == 0) continue;
            for (int i = 0; i < size; ++i) {
                matrix.at(row, i) ^= multiply(factor, matrix.at(column, i));
                result.at(row, i) ^= multiply(factor, result.at(column, i));
            }
        }
    }
    return result;
}

std::optional<Generator> generator_from_name(std::string_view name) {
    for (const Generator generator : {Generator::cauchy, Generator::isal_cauchy}) {
        if (name == generator_name(generator)) return generator;
    }
    return std::nullopt;
}

const char* generator_name(Generator generator) {
    return generator == Generator::cauchy ? "cauchy" : "isal-cauchy";
}

Matrix parity_matrix(int k, int r, Generator generator) {
    Matrix matrix(r, k);
    for (int i = 0; i < r; ++i) {
        for (int j = 0; j < k; ++j) matrix.at(i, j) = inverse(static_cast<std::uint8_t>((k + i) ^ j));
    }
    if (generator == Generator::isal_cauchy || r == 0) return matrix;

    for (int j = 0; j < k; ++j) {
        const std::uint8_t scale = inverse(matrix.at(0, j));
        for (int i = 0; i < r; ++i) matrix.at(i, j) = multiply(matrix.at(i, j), scale);
    }
    for (int i = 0; i < r; ++i) {
        const std::uint8_t scale = inverse(matrix.at(i, 0));
        for (int j = 0; j < k; ++j) matrix.at(i, j) = multiply(matrix.at(i, j), scale);
    }
    return matrix;
}

}  // namespace ecrec::gf

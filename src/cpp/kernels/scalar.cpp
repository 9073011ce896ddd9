// Scalar: no instructions beyond the baseline; the readable oracle of the other kernels, and their fallback.
// Bound by: two table look-ups a byte. Tail: none, one element at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/initial.hpp"
#include "kernels/operations.hpp"

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

struct Delta {
    std::uint8_t* bytes;
    bool merges;
};

// record[index] = value; delta, if any, takes in the bits that changed.
void replace(float* record, std::size_t index, float value, Delta delta) {
    if (delta.bytes != nullptr) {
        std::uint32_t bits = 0;
        if (delta.merges) std::memcpy(&bits, delta.bytes + 4 * index, 4);
        bits ^= std::bit_cast<std::uint32_t>(record[index]) ^ std::bit_cast<std::uint32_t>(value);
        std::memcpy(delta.bytes + 4 * index, &bits, 4);
    }
    record[index] = value;
}

// step(gradient, record, delta, m) for each row m.
template <class Step>
void for_steps(const Steps& steps, Step step) {
    for (std::size_t m = 0; m < steps.rows; ++m) {
        const Delta delta =
            steps.deltas == nullptr ? Delta{nullptr, false} : Delta{steps.deltas[m], steps.merges[m]};
        step(steps.gradients[m], steps.records[m], delta, m);
        if (delta.bytes == nullptr) continue;
        std::fill(delta.bytes + steps.used_bytes, delta.bytes + steps.record_bytes, std::uint8_t{0});
    }
}

void sgd(const Steps& steps) {
    const float learning_rate = steps.hyper[0];
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t) {
        for (std::size_t i = 0; i < steps.dim; ++i) {
            replace(record, i, record[i] - learning_rate * gradient[i], delta);
        }
    });
}

// `direction(g, buffer)` of one element, when b = momentum * b + g.
template <class Direction>
void descend_with_momentum(const Steps& steps, Direction direction) {
    const float learning_rate = steps.hyper[0], momentum = steps.hyper[1];
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t) {
        for (std::size_t i = 0; i < steps.dim; ++i) {
            const float buffer = momentum * record[steps.dim + i] + gradient[i];
            replace(record, steps.dim + i, buffer, delta);
            replace(record, i, record[i] - learning_rate * direction(gradient[i], buffer), delta);
        }
    });
}

void momentum(const Steps& steps) {
    descend_with_momentum(steps, [](float, float buffer) { return buffer; });
}

void nesterov(const Steps& steps) {
    descend_with_momentum(steps, [&](float g, float buffer) { return g + steps.hyper[1] * buffer; });
}

void adagrad(const Steps& steps) {
    const float learning_rate = steps.hyper[0], eps = steps.hyper[1];
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t) {
        for (std::size_t i = 0; i < steps.dim; ++i) {
            const float g = gradient[i];
            const float sum = record[steps.dim + i] + g * g;
            replace(record, steps.dim + i, sum, delta);
            replace(record, i, record[i] - learning_rate * g / (std::sqrt(sum) + eps), delta);
        }
    });
}

void rowwise_adagrad(const Steps& steps) {
    const float learning_rate = steps.hyper[0], eps = steps.hyper[1];
    const std::size_t dim = steps.dim;
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t) {
        float lanes[16] = {};
        for (std::size_t i = 0; i < dim; ++i) lanes[i % 16] += gradient[i] * gradient[i];
        for (int width = 8; width != 0; width /= 2) {
            for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
        }
        const float moment = record[dim] + lanes[0] / static_cast<float>(dim);
        const float step = learning_rate / (std::sqrt(moment) + eps);
        for (std::size_t i = 0; i < dim; ++i) replace(record, i, record[i] - step * gradient[i], delta);
        replace(record, dim, moment, delta);
    });
}

void adam(const Steps& steps) {
    const float rate_1 = steps.hyper[1], rate_2 = steps.hyper[2], eps = steps.hyper[3];
    const std::size_t dim = steps.dim;
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t row) {
        for (std::size_t i = 0; i < dim; ++i) {
            const float g = gradient[i];
            const float m = record[dim + i] + (g - record[dim + i]) * rate_1;
            const float v = record[2 * dim + i] + (g * g - record[2 * dim + i]) * rate_2;
            replace(record, dim + i, m, delta);
            replace(record, 2 * dim + i, v, delta);
            replace(record, i, record[i] - steps.step_sizes[row] * (m / (std::sqrt(v) + eps)), delta);
        }
    });
}

void ftrl(const Steps& steps) {
    const float learning_rate = steps.hyper[0], beta = steps.hyper[1], l1 = steps.hyper[2], l2 = steps.hyper[3];
    const std::size_t dim = steps.dim;
    for_steps(steps, [&](const float* gradient, float* record, Delta delta, std::size_t) {
        for (std::size_t i = 0; i < dim; ++i) {
            const float g = gradient[i];
            const float n = record[dim + i] + g * g;
            const float root = std::sqrt(n);
            const float sigma = (root - std::sqrt(record[dim + i])) / learning_rate;
            const float z = record[2 * dim + i] + (g - sigma * record[i]);
            const float excess = std::fabs(z) - l1;
            const float magnitude = excess / ((beta + root) / learning_rate + l2);
            replace(record, dim + i, n, delta);
            replace(record, 2 * dim + i, z, delta);
            replace(record, i, excess > 0.0f ? (std::signbit(z) ? magnitude : -magnitude) : 0.0f, delta);
        }
    });
}

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
    .sgd = sgd,
    .momentum = momentum,
    .nesterov = nesterov,
    .adagrad = adagrad,
    .rowwise_adagrad = rowwise_adagrad,
    .adam = adam,
    .ftrl = ftrl,
    .initial_uniform = initial_uniform,
};

}  // namespace ecrec::scalar

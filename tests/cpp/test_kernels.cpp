// Every operation of every kernel that this machine can run against the scalar kernel, bit for bit: at all
// small sizes, and between pages that fault. The parts of the scalar kernel itself that Python cannot reach are
// checked against their definitions. Other offsets and large buffers: test_kernel_offsets.cpp.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "gf/coefficient.hpp"
#include "kernel_checks.hpp"
#include "kernels/prefetch.hpp"

namespace {

using namespace ecrec_tests;
using ecrec::Coefficient;

// Pages between two that fault on any access.
class GuardedPages {
public:
    explicit GuardedPages(std::size_t pages)
        : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))), size_(pages * page_) {
        void* memory =
            mmap(nullptr, size_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) std::abort();
        base_ = static_cast<std::uint8_t*>(memory);
        if (mprotect(base_, page_, PROT_NONE) != 0) std::abort();
        if (mprotect(base_ + page_ + size_, page_, PROT_NONE) != 0) std::abort();
    }
    GuardedPages(const GuardedPages&) = delete;
    GuardedPages& operator=(const GuardedPages&) = delete;
    ~GuardedPages() { munmap(base_, size_ + 2 * page_); }

    template <class T>
    std::span<T> at(std::size_t count, bool at_end) {
        std::uint8_t* first = base_ + page_ + (at_end ? size_ - count * sizeof(T) : 0);
        return {reinterpret_cast<T*>(first), count};
    }

private:
    std::size_t page_;
    std::size_t size_;
    std::uint8_t* base_;
};

GuardedPages pages[6]{GuardedPages(2), GuardedPages(2), GuardedPages(2),
                      GuardedPages(2), GuardedPages(2), GuardedPages(2)};

template <class T>
bool same(std::span<const T> a, std::span<const T> b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

template <class T>
std::vector<T> copy(std::span<T> values) {
    return {values.begin(), values.end()};
}

void check_encode(const Operations& kernel, const Operations& oracle, std::span<std::uint8_t> (&blocks)[6], int r, bool plain) {
    const std::size_t size = blocks[0].size();
    const int k = 6 - std::min(r, 5);
    const std::vector<Coefficient> coefficients = random_coefficients(k, r, plain);
    std::vector<const std::uint8_t*> data;
    std::vector<std::uint8_t*> parity, oracle_parity;
    std::vector<std::vector<std::uint8_t>> oracle_blocks(static_cast<std::size_t>(r), std::vector<std::uint8_t>(size));
    for (int j = 0; j < k; ++j) data.push_back(blocks[j].data());
    for (int i = 0; i < r; ++i) {
        parity.push_back(blocks[k + i].data());
        oracle_parity.push_back(oracle_blocks[i].data());
    }
    oracle.encode(size, k, r, coefficients.data(), data.data(), oracle_parity.data());
    kernel.encode(size, k, r, coefficients.data(), data.data(), parity.data());
    for (int i = 0; i < r; ++i) {
        check(same<std::uint8_t>(blocks[k + i], oracle_blocks[i]), kernel, plain ? "encode, plain" : "encode", size);
    }
}

void check_bytes(const Operations& kernel, const Operations& oracle, std::size_t size, bool at_end) {
    std::span<std::uint8_t> blocks[3];
    for (int i = 0; i < 3; ++i) {
        blocks[i] = pages[i].at<std::uint8_t>(size, at_end);
        fill_bytes(blocks[i]);
    }
    const auto c = ecrec::gf::coefficient(static_cast<std::uint8_t>(engine() % 5 == 0 ? 1 : engine()));

    auto expected = copy(blocks[1]);
    oracle.fold(size, c, blocks[0].data(), expected.data());
    kernel.fold(size, c, blocks[0].data(), blocks[1].data());
    check(same<std::uint8_t>(blocks[1], expected), kernel, "fold", size);

    std::uint8_t* const target[] = {blocks[2].data()};
    oracle.fold(size, c, blocks[0].data(), (expected = copy(blocks[2])).data());
    const std::uint8_t* const folded[] = {blocks[0].data()};
    kernel.fold_rows(1, size, c, folded, target);
    check(same<std::uint8_t>(blocks[2], expected), kernel, "fold_rows", size);

    const std::uint8_t* const copied[] = {blocks[0].data()};
    kernel.copy_rows(1, size, copied, blocks[2].data(), 0, false);
    check(same<std::uint8_t>(blocks[2], copy(blocks[0])), kernel, "copy_rows", size);

    std::vector<std::uint8_t> exclusive_or(size);
    for (std::size_t i = 0; i < size; ++i) exclusive_or[i] = blocks[0][i] ^ blocks[1][i];
    kernel.difference(size, blocks[0].data(), blocks[1].data(), blocks[2].data());
    check(same<std::uint8_t>(blocks[2], exclusive_or), kernel, "difference", size);
    kernel.difference(size, blocks[0].data(), blocks[1].data(), blocks[0].data());
    check(same<std::uint8_t>(blocks[0], exclusive_or), kernel, "difference onto its own source", size);

    if (size != 0) std::memset(blocks[0].data(), 0, size);
    check(kernel.is_zero(size, blocks[0].data()), kernel, "is_zero of zeros", size);
    for (std::size_t i = 0; i < size; ++i) {
        blocks[0][i] = 0x80;
        check(!kernel.is_zero(size, blocks[0].data()), kernel, "is_zero of one bit", size);
        blocks[0][i] = 0;
    }
}

void check_encodes(const Operations& kernel, const Operations& oracle, std::size_t size, bool at_end) {
    std::span<std::uint8_t> blocks[6];
    for (int i = 0; i < 6; ++i) {
        blocks[i] = pages[i].at<std::uint8_t>(size, at_end);
        fill_bytes(blocks[i]);
    }
    for (const bool plain : {true, false}) {
        for (int r = 1; r <= 5; ++r) check_encode(kernel, oracle, blocks, r, plain);
    }
}

template <class Step>
void check_step(const Operations& kernel, const Operations& oracle, const char* what, std::size_t dim,
                std::size_t state, bool at_end, Step step) {
    const auto gradient = pages[0].at<float>(dim, at_end);
    const auto record = pages[1].at<float>(dim + state, at_end);
    const auto delta = pages[2].at<std::uint8_t>(4 * (dim + state), at_end);
    fill_floats(gradient, -3.0f, 3.0f);
    fill_floats(record.first(dim), -1.0f, 1.0f);
    fill_floats(record.subspan(dim), 0.0f, 2.0f);
    fill_bytes(delta);
    const auto before = copy(record);
    auto expected = before;
    auto expected_delta = copy(delta);

    step(oracle, gradient.data(), expected.data(), nullptr, true);
    std::vector<std::uint8_t> changed(delta.size());
    for (std::size_t i = 0; i < delta.size(); ++i) {
        changed[i] = reinterpret_cast<const std::uint8_t*>(before.data())[i] ^
                     reinterpret_cast<const std::uint8_t*>(expected.data())[i];
        expected_delta[i] ^= changed[i];
    }
    step(kernel, gradient.data(), record.data(), delta.data(), true);
    check(same<float>(record, expected), kernel, what, dim);
    check(same<std::uint8_t>(delta, expected_delta), kernel, "delta of a step, merged", dim);
    std::memcpy(record.data(), before.data(), record.size_bytes());
    step(kernel, gradient.data(), record.data(), delta.data(), false);
    check(same<std::uint8_t>(delta, changed), kernel, "delta of a step, overwritten", dim);
    std::memcpy(record.data(), before.data(), record.size_bytes());
    step(kernel, gradient.data(), record.data(), nullptr, true);
    check(same<float>(record, expected), kernel, "step without delta", dim);
}

// Many rows, targets that repeat.
void check_sum_rows(const Operations& kernel, const Operations& oracle, std::size_t dim) {
    constexpr std::size_t rows = 40, sums = 7;
    std::vector<float> values(rows * dim), expected(sums * dim), found(sums * dim);
    fill_floats(std::span<float>(values), -1.0f, 1.0f);
    const float* source[rows];
    float *target[rows], *other[rows];
    bool adds[rows];
    for (std::size_t m = 0; m < rows; ++m) {
        source[m] = values.data() + m * dim;
        target[m] = expected.data() + (m * m % sums) * dim;
        other[m] = found.data() + (m * m % sums) * dim;
        adds[m] = m >= sums;
    }
    oracle.sum_rows(rows, dim, source, target, adds);
    kernel.sum_rows(rows, dim, source, other, adds);
    check(same<float>(found, expected), kernel, "sum_rows of many", dim);
    const std::size_t ends[sums] = {1, 1, 3, 10, 11, 38, rows};
    for (std::size_t m = 0; m < sums; ++m) {
        target[m] = expected.data() + m * dim;
        other[m] = found.data() + m * dim;
    }
    oracle.pool_rows(sums, dim, source, ends, target);
    kernel.pool_rows(sums, dim, source, ends, other);
    check(same<float>(found, expected), kernel, "pool_rows", dim);
    kernel.pool_rows(0, dim, nullptr, nullptr, nullptr);
}

void check_floats(const Operations& kernel, const Operations& oracle, std::size_t dim, bool at_end) {
    check_sum_rows(kernel, oracle, dim);
    const auto first = pages[0].at<float>(dim, at_end);
    const auto second = pages[1].at<float>(dim, at_end);
    fill_floats(first, -1e30f, 1e30f);
    fill_floats(second, -1e30f, 1e30f);
    if (dim != 0) first[dim / 2] = -0.0f;
    for (const bool adds : {false, true}) {
        auto expected = copy(second);
        for (std::size_t i = 0; i < dim; ++i) expected[i] = adds ? expected[i] + first[i] : first[i];
        const float* const source = first.data();
        float* const target = second.data();
        kernel.sum_rows(1, dim, &source, &target, &adds);
        check(same<float>(second, expected), kernel, "sum_rows", dim);
    }

    check(kernel.is_finite(dim, first.data()), kernel, "is_finite", dim);
    for (const float bad : {INFINITY, -INFINITY, NAN, -NAN}) {
        for (std::size_t i = 0; i < dim; ++i) {
            const float kept = first[i];
            first[i] = bad;
            check(!kernel.is_finite(dim, first.data()), kernel, "is_finite of one that is not", dim);
            first[i] = i % 2 == 0 ? kept : std::numeric_limits<float>::max();
        }
    }

    kernel.initial_uniform(dim, engine(), 7, 0.0f, first.data());
    const std::uint64_t seed = engine();
    const std::uint64_t row = engine();
    kernel.initial_uniform(dim, seed, row, 0.3f, first.data());
    std::vector<float> expected(dim);
    oracle.initial_uniform(dim, seed, row, 0.3f, expected.data());
    check(same<float>(first, expected), kernel, "initial_uniform", dim);

    if (dim == 0) return;
    // FTRL's z after the step lies in -3..5, so that its l1 makes some weights zero.
    for (const ecrec::Optimizer& optimizer : ecrec::optimizers) {
        check_step(kernel, oracle, optimizer.name.text, dim, state_of(optimizer, dim), at_end,
                   [&](const Operations& k, const float* g, float* record, std::uint8_t* delta, bool merges) {
                       step_one(k.step(optimizer), dim, {0.05f, 0.9f, 0.75f, 1e-8f}, g, record, delta, merges);
                   });
    }
}

// Many rows at once, some of them the same. streams: deltas go past the caches.
void check_many_steps(const Operations& kernel, const Operations& oracle, bool streams) {
    constexpr std::size_t rows = 70, records = 50, line = 64;
    const float hyper[4] = {0.05f, 0.5f, 0.25f, 1e-6f};
    for (const std::size_t dim : {1u, 16u, 24u, 48u, 64u, 128u, 400u}) {
        if (streams && 4 * dim % line != 0) continue;
        for (const ecrec::Optimizer& optimizer : ecrec::optimizers) {
            std::vector<float> gradients(rows * dim), step_sizes(rows), values[2];
            std::vector<std::uint8_t> before(records * (12 * dim + 16)), deltas[2];
            std::uint8_t* first_delta[2];
            fill_bytes(before);
            fill_floats(gradients, -1.0f, 1.0f);
            fill_floats(step_sizes, 0.0f, 0.1f);
            values[0].resize(records * 3 * dim);
            fill_floats(values[0], 0.0f, 1.0f);
            values[1] = values[0];
            for (int side = 0; side < 2; ++side) {
                deltas[side].resize(before.size() + line);
                first_delta[side] = deltas[side].data();
                first_delta[side] += -reinterpret_cast<std::uintptr_t>(first_delta[side]) % line;
                std::memcpy(first_delta[side], before.data(), before.size());
                const float* gradient[rows];
                float* record[rows];
                std::uint8_t* delta[rows];
                bool merges[rows];
                // Those with a float of the row begin anywhere in a line; the others' are whole lines.
                const bool is_rowwise = optimizer.alignment == 16;
                const std::size_t record_bytes = is_rowwise ? 4 * dim + 16 : 12 * dim;
                for (std::size_t m = 0; m < rows; ++m) {
                    const std::size_t at = m * m % records;
                    gradient[m] = gradients.data() + m * dim;
                    record[m] = values[side].data() + at * 3 * dim;
                    delta[m] = first_delta[side] + at * record_bytes;
                    merges[m] = !streams && m % 3 != 0;
                }
                (side == 0 ? oracle : kernel).step(optimizer)(
                    {rows, dim, is_rowwise ? 4 * dim + 4 : record_bytes, record_bytes, hyper, gradient, record, delta,
                     merges, step_sizes.data(), 0, false, streams});
            }
            check(same<float>(values[1], values[0]) &&
                      std::memcmp(first_delta[1], first_delta[0], before.size()) == 0,
                  kernel, streams ? "steps of many rows, deltas streamed" : "steps of many rows", dim);
        }
    }
}

void check_fold_rows(const Operations& kernel, const Operations& oracle) {
    for (const std::size_t bytes : {16u, 64u, 80u, 128u, 256u, 272u, 400u, 512u, 1024u, 5000u}) {
        constexpr std::size_t rows = 100, targets = 13;
        std::vector<std::uint8_t> source(rows * bytes), parity(targets * bytes);
        fill_bytes(source);
        fill_bytes(parity);
        auto expected = parity;
        const auto c = ecrec::gf::coefficient(static_cast<std::uint8_t>(engine()));
        std::vector<std::uint8_t*> target;
        for (std::size_t m = 0; m < rows; ++m) {
            const std::size_t index = engine() % targets;
            target.push_back(parity.data() + index * bytes);
            oracle.fold(bytes, c, source.data() + m * bytes, expected.data() + index * bytes);
        }
        std::vector<std::uint8_t> copied(rows * bytes), copied_by_oracle(rows * bytes);
        std::vector<const std::uint8_t*> copies(target.begin(), target.end());
        copies[rows / 3] = nullptr;
        oracle.copy_rows(rows, bytes, copies.data(), copied_by_oracle.data(), 0, false);
        constexpr std::size_t run = rows * 2 / 3;
        kernel.copy_rows(run, bytes, copies.data(), copied.data(), rows - run, false);
        kernel.copy_rows(rows - run, bytes, copies.data() + run, copied.data() + run * bytes, 0, true);
        check(copied == copied_by_oracle, kernel, "copy_rows", bytes);
        std::vector<const std::uint8_t*> sources;
        for (std::size_t m = 0; m < rows; ++m) sources.push_back(source.data() + m * bytes);
        kernel.fold_rows(rows, bytes, c, sources.data(), target.data());
        check(parity == expected, kernel, "fold_rows of many", bytes);
    }
}

void check_formulas_in_double(const Operations& kernel, std::span<const float> gradient) {
    const std::size_t dim = gradient.size();
    std::vector<float> start(3 * dim);
    fill_floats(start, 0.0f, 1.0f);
    auto momentum = start, nesterov = start, adam = start, rmsprop = start, ftrl = start;
    step_one(step_named(kernel, "momentum"), dim, {0.1f, 0.9f}, gradient.data(), momentum.data(), nullptr);
    step_one(step_named(kernel, "nesterov"), dim, {0.1f, 0.9f}, gradient.data(), nesterov.data(), nullptr);
    step_one(step_named(kernel, "adam"), dim, {0.1f, 0.25f, 0.125f, 1e-6f}, gradient.data(), adam.data(), nullptr);
    step_one(step_named(kernel, "rmsprop"), dim, {0.1f, 0.125f, 1e-6f}, gradient.data(), rmsprop.data(), nullptr);
    step_one(step_named(kernel, "ftrl"), dim, {0.5f, 1.0f, 0.75f, 0.25f}, gradient.data(), ftrl.data(), nullptr);
    const auto near = [&](float found, double expected, const char* what) {
        check(std::abs(found - expected) < 1e-4, kernel, what, dim);
    };
    for (std::size_t i = 0; i < dim; ++i) {
        const double g = gradient[i], w = start[i], first = start[dim + i], second = start[2 * dim + i];
        const double buffer = 0.9 * first + g;
        near(momentum[dim + i], buffer, "momentum's buffer");
        near(momentum[i], w - 0.1 * buffer, "momentum's formula");
        near(nesterov[dim + i], buffer, "nesterov's buffer");
        near(nesterov[i], w - 0.1 * (g + 0.9 * buffer), "nesterov's formula");
        const double m = 0.75 * first + 0.25 * g, v = 0.875 * second + 0.125 * g * g;
        near(adam[dim + i], m, "adam's m");
        near(adam[2 * dim + i], v, "adam's v");
        near(adam[i], w - 0.1 * m / (std::sqrt(v) + 1e-6), "adam's formula");
        const double square = 0.875 * first + 0.125 * g * g;
        near(rmsprop[dim + i], square, "rmsprop's square");
        near(rmsprop[i], w - 0.1 * g / (std::sqrt(square) + 1e-6), "rmsprop's formula");
        const double n = first + g * g;
        const double z = second + g - (std::sqrt(n) - std::sqrt(first)) / 0.5 * w;
        const double excess = std::max(std::abs(z) - 0.75, 0.0);
        near(ftrl[dim + i], n, "ftrl's n");
        near(ftrl[2 * dim + i], z, "ftrl's z");
        near(ftrl[i], -std::copysign(excess, z) / ((1.0 + std::sqrt(n)) / 0.5 + 0.25), "ftrl's formula");
    }
}

// The formulas of the optimizers, written with plain loops in the order that the contract states.
void check_formulas(const Operations& kernel) {
    for (std::size_t dim = 1; dim < 70; ++dim) {
        std::vector<float> gradient(dim), record(2 * dim);
        fill_floats(gradient, -3.0f, 3.0f);
        fill_floats(record, 0.0f, 1.0f);
        auto expected = record;
        for (std::size_t i = 0; i < dim; ++i) {
            const float square = gradient[i] * gradient[i];
            expected[dim + i] = expected[dim + i] + square;
            const float scaled = 0.1f * gradient[i];
            expected[i] = expected[i] - scaled / (std::sqrt(expected[dim + i]) + 1e-6f);
        }
        step_one(step_named(kernel, "adagrad"), dim, {0.1f, 1e-6f}, gradient.data(), record.data(), nullptr);
        check(same<float>(record, expected), kernel, "adagrad's formula", dim);

        std::vector<double> wide(gradient.begin(), gradient.end());
        double squares = 0;
        for (const double g : wide) squares += g * g;
        const double moment = record[dim] + squares / static_cast<double>(dim);
        const double step = 0.1 / (std::sqrt(moment) + 1e-6);
        auto weights = record;
        step_one(step_named(kernel, "rowwise-adagrad"), dim, {0.1f, 1e-6f}, gradient.data(), weights.data(), nullptr);
        bool close = std::abs(weights[dim] - moment) < 1e-5;
        for (std::size_t i = 0; i < dim; ++i) {
            close &= std::abs(weights[i] - (record[i] - step * wide[i])) < 1e-5;
        }
        check(close, kernel, "rowwise_adagrad's formula", dim);
        check_formulas_in_double(kernel, gradient);
    }
}

double correlation(std::span<const float> a, std::span<const float> b) {
    double product = 0, a_squares = 0, b_squares = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        product += static_cast<double>(a[i]) * b[i];
        a_squares += static_cast<double>(a[i]) * a[i];
        b_squares += static_cast<double>(b[i]) * b[i];
    }
    return product / std::sqrt(a_squares * b_squares);
}

// How far the pairs (a[i], b[i]) are from filling 16 x 16 cells evenly, in standard deviations.
double unevenness(std::span<const float> a, std::span<const float> b) {
    double cells[256] = {};
    for (std::size_t i = 0; i < a.size(); ++i) {
        const int row = static_cast<int>((a[i] + 1.0f) * 8.0f);
        const int column = static_cast<int>((b[i] + 1.0f) * 8.0f);
        cells[row * 16 + column] += 1;
    }
    const double expected = static_cast<double>(a.size()) / 256;
    double chi_square = 0;
    for (const double cell : cells) chi_square += (cell - expected) * (cell - expected) / expected;
    return (chi_square - 255) / std::sqrt(2.0 * 255);
}

// Mean, variance, each of the 24 bits, even pairs, and no correlation between neighbouring columns, rows and
// seeds. Limits are five standard deviations of what independent uniform numbers would show.
void check_initial_statistics(const Operations& kernel) {
    constexpr std::size_t dim = 64, rows = 4096, count = dim * rows;
    const auto table = [&](std::uint64_t seed, std::uint64_t first_row) {
        std::vector<float> values(count);
        for (std::size_t row = 0; row < rows; ++row) {
            kernel.initial_uniform(dim, seed, first_row + row, 1.0f, values.data() + row * dim);
        }
        return values;
    };
    const double limit = 5.0 / std::sqrt(static_cast<double>(count));
    for (const std::uint64_t seed : {0ull, 1ull, 7ull, 1ull << 32, ~0ull}) {
        const auto values = table(seed, 0);
        double sum = 0, squares = 0;
        int ones[24] = {};
        bool in_range = true;
        for (const float value : values) {
            in_range &= value >= -1.0f && value < 1.0f;
            sum += value;
            squares += static_cast<double>(value) * value;
            const int bits = static_cast<int>(value * 8388608.0f) + 8388608;
            for (int bit = 0; bit < 24; ++bit) ones[bit] += (bits >> bit) & 1;
        }
        check(in_range, kernel, "initial values lie in [-1, 1)", seed);
        const double mean = sum / count;
        const double variance = squares / count - mean * mean;
        check(std::abs(mean) < limit * std::sqrt(1.0 / 3), kernel, "mean of the initial values", seed);
        check(std::abs(variance - 1.0 / 3) < limit * std::sqrt(4.0 / 45), kernel, "their variance", seed);
        for (const int set : ones) {
            check(std::abs(static_cast<double>(set) / count - 0.5) < limit / 2, kernel, "their bits", seed);
        }
        const std::span<const float> all(values);
        for (const std::size_t lag : {1u, 2u, 8u, 16u, 64u, 128u, 4096u}) {
            const double r = correlation(all.first(count - lag), all.subspan(lag));
            check(std::abs(r) < 1.1 * limit, kernel, "correlation of columns and rows at a lag", lag);
            const double uneven = unevenness(all.first(count - lag), all.subspan(lag));
            check(std::abs(uneven) < 6, kernel, "pairs of columns and rows at a lag", lag);
        }
        constexpr std::uint64_t one = 1;
        for (const std::uint64_t other : {seed + one, seed ^ (one << 32), seed ^ (one << 63)}) {
            check(std::abs(correlation(all, table(other, 0))) < limit, kernel, "correlation of seeds", seed);
        }
        const double shifted = correlation(all, table(seed - one, 1));
        check(std::abs(shifted) < limit, kernel, "a row of the next seed is the next row", seed);
        const double far = correlation(all, table(seed, 1ull << 40));
        check(std::abs(far) < limit, kernel, "correlation of far rows", seed);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const Operations& oracle = kernel_named("scalar");
    check_formulas(oracle);
    check_initial_statistics(oracle);
    return for_each_kernel(argc, argv, [&](const Operations& kernel) {
        for (const bool at_end : {false, true}) {
            for (std::size_t size = 0; size <= 300; ++size) {
                check_bytes(kernel, oracle, size, at_end);
                check_encodes(kernel, oracle, size, at_end);
            }
            for (std::size_t dim = 0; dim <= 100; ++dim) check_floats(kernel, oracle, dim, at_end);
            for (const std::size_t dim : {127u, 128u, 256u, 300u}) check_floats(kernel, oracle, dim, at_end);
        }
        for (const auto cache : {ecrec::PrefetchInto::first_level, ecrec::PrefetchInto::second_level}) {
            ecrec::prefetch_into = cache;
            // Together more than the first-level cache holds.
            for (const bool at_end : {false, true}) {
                for (std::size_t size = 8192; size > 8192 - 256 - 64; --size) {
                    check_encodes(kernel, oracle, size, at_end);
                }
            }
            check_fold_rows(kernel, oracle);
            check_many_steps(kernel, oracle, false);
            check_many_steps(kernel, oracle, true);
        }
    });
}

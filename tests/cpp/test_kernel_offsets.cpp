// Every operation of every kernel that this machine can run against the scalar kernel, bit for bit, at every length
// 0..300 and every distance 0..63 from an aligned address; encode also at sizes for each level of the memory, where it
// takes other paths. That the kernels are different code is checked first.
#include <algorithm>
#include <memory>
#include <new>
#include <set>
#include <vector>

#include "gf/coefficient.hpp"
#include "kernel_checks.hpp"

namespace {

using namespace ecrec_tests;
using ecrec::Coefficient;

using Buffer = std::vector<std::uint8_t>;

// `size` random bytes that start `offset` after an aligned address and end where the allocation ends, so that the
// address sanitizer sees a byte too many; before them lie bytes that nobody may change.
class Block {
public:
    Block(std::size_t size, std::size_t offset)
        : memory_(static_cast<std::uint8_t*>(::operator new(offset + size, alignment))), offset_(offset), size_(size) {
        fill_bytes({memory_.get(), offset + size});
        before_.assign(memory_.get(), memory_.get() + offset);
    }

    std::uint8_t* data() { return memory_.get() + offset_; }
    float* floats() { return reinterpret_cast<float*>(data()); }
    Buffer copy() { return {data(), data() + size_}; }
    bool is(const Buffer& expected) {
        return std::equal(before_.begin(), before_.end(), memory_.get()) &&
               std::equal(expected.begin(), expected.end(), data(), data() + size_);
    }
    void fill(float low, float high) { fill_floats({floats(), size_ / sizeof(float)}, low, high); }

private:
    static constexpr std::align_val_t alignment{64};
    struct Delete {
        void operator()(std::uint8_t* memory) const { ::operator delete(memory, alignment); }
    };

    std::unique_ptr<std::uint8_t, Delete> memory_;
    Buffer before_;
    std::size_t offset_;
    std::size_t size_;
};

void check_bytes_at(const Operations& kernel, const Operations& oracle, std::size_t size, std::size_t offset) {
    const std::size_t others[] = {(offset * 7 + size) % 64, (offset * 11 + 5) % 64};
    Block a(size, offset), b(size, others[0]), target(size, others[1]);
    const auto c = ecrec::gf::coefficient(static_cast<std::uint8_t>(size % 5 == 0 ? 1 : engine()));

    Buffer expected = target.copy();
    oracle.fold(size, c, a.data(), expected.data());
    kernel.fold(size, c, a.data(), target.data());
    check(target.is(expected), kernel, "fold at an offset", size);

    std::uint8_t* const rows[] = {target.data()};
    oracle.fold(size, c, b.data(), expected.data());
    const std::uint8_t* const folded[] = {b.data()};
    kernel.fold_rows(1, size, c, folded, rows);
    check(target.is(expected), kernel, "fold_rows at an offset", size);

    const std::uint8_t* const sources[] = {a.data()};
    oracle.copy_rows(1, size, sources, expected.data(), 0, false);
    kernel.copy_rows(1, size, sources, target.data(), 0, false);
    check(target.is(expected), kernel, "copy_rows at an offset", size);

    oracle.difference(size, a.data(), b.data(), expected.data());
    kernel.difference(size, a.data(), b.data(), target.data());
    check(target.is(expected), kernel, "difference at an offset", size);
    check(kernel.is_zero(size, a.data()) == oracle.is_zero(size, a.data()), kernel, "is_zero at an offset", size);

    const Coefficient one = ecrec::gf::coefficient(1);
    const Coefficient coefficients[] = {one, one, offset % 2 == 0 ? one : c,
                                        ecrec::gf::coefficient(0x8e)};
    Block parity(size, others[0]);
    Buffer expected_second(size);
    const std::uint8_t* const data[] = {a.data(), b.data()};
    std::uint8_t* const out[] = {target.data(), parity.data()};
    std::uint8_t* const expected_out[] = {expected.data(), expected_second.data()};
    oracle.encode(size, 2, 2, coefficients, data, expected_out);
    kernel.encode(size, 2, 2, coefficients, data, out);
    check(target.is(expected) && parity.is(expected_second), kernel, "encode at an offset", size);
}

void check_floats_at(const Operations& kernel, const Operations& oracle, std::size_t dim, std::size_t offset) {
    Block gradient(4 * dim, offset);
    gradient.fill(-3.0f, 3.0f);
    const auto step = [&](const char* what, std::size_t state, auto run) {
        Block record(4 * (dim + state), (offset * 3 + 4) % 64), delta(4 * (dim + state), (offset * 5 + 8) % 64);
        record.fill(0.0f, 2.0f);
        Buffer expected = record.copy(), expected_delta = delta.copy();
        run(oracle, reinterpret_cast<float*>(expected.data()), expected_delta.data());
        run(kernel, record.floats(), delta.data());
        check(record.is(expected) && delta.is(expected_delta), kernel, what, dim);
    };
    const float* g = gradient.floats();
    for (const ecrec::Optimizer& optimizer : ecrec::optimizers) {
        step(optimizer.name.text, state_of(optimizer, dim), [&](const Operations& k, float* r, std::uint8_t* d) {
            step_one(k.step(optimizer), dim, {0.1f, 0.9f, 0.5f, 1e-6f}, g, r, d);
        });
    }
    step("pool_rows at an offset", 0, [&](const Operations& k, float* r, std::uint8_t*) {
        const float* const sources[] = {g, g, g};
        const std::size_t end = 3;
        k.pool_rows(1, dim, sources, &end, &r);
    });
    for (const bool adds : {false, true}) {
        step("sum_rows at an offset", 0, [&](const Operations& k, float* r, std::uint8_t*) {
            const float* const source = g;
            k.sum_rows(1, dim, &source, &r, &adds);
        });
    }
    step("initial_uniform at an offset", 0,
         [&](const Operations& k, float* r, std::uint8_t*) { k.initial_uniform(dim, 3, dim, 0.5f, r); });
    check(kernel.is_finite(dim, g), kernel, "is_finite at an offset", dim);
}

// The first-level cache, what lies behind it, and memory: all buffers together are `bytes_of_all` long.
void check_large_encode(const Operations& kernel, const Operations& oracle, std::size_t bytes_of_all, int k, int r,
                        std::size_t parity_offset, bool plain) {
    const std::size_t size = bytes_of_all / static_cast<std::size_t>(k + r) + 77;
    std::vector<Block> blocks;
    std::vector<const std::uint8_t*> data;
    std::vector<std::uint8_t*> parity, expected_parity;
    std::vector<Buffer> expected(static_cast<std::size_t>(r), Buffer(size));
    for (int i = 0; i < k + r; ++i) {
        blocks.emplace_back(size, i < k ? engine() % 64 : parity_offset);
        if (i < k) {
            data.push_back(blocks.back().data());
        } else {
            parity.push_back(blocks.back().data());
            expected_parity.push_back(expected[static_cast<std::size_t>(i - k)].data());
        }
    }
    const std::vector<Coefficient> coefficients = random_coefficients(k, r, plain);
    oracle.encode(size, k, r, coefficients.data(), data.data(), expected_parity.data());
    kernel.encode(size, k, r, coefficients.data(), data.data(), parity.data());
    for (int i = 0; i < r; ++i) {
        check(blocks[static_cast<std::size_t>(k) + static_cast<std::size_t>(i)].is(expected[static_cast<std::size_t>(i)]), kernel,
              "encode of many bytes", size);
    }
}

// Two kernels that shared a function would be one kernel tested twice.
void check_kernels_differ() {
    std::set<decltype(Operations::encode)> encodes;
    std::set<decltype(Operations::fold)> folds;
    std::size_t kernels = 0;
    for (const char* name : ecrec::runnable_kernels()) {
        const Operations& kernel = kernel_named(name);
        ++kernels;
        check(encodes.insert(kernel.encode).second, kernel, "encode is its own", 0);
        check(folds.insert(kernel.fold).second, kernel, "fold is its own", 0);
    }
    check(kernels >= 1, kernel_named("scalar"), "kernels", kernels);
}

}  // namespace

int main(int argc, char** argv) {
    check_kernels_differ();
    const Operations& oracle = kernel_named("scalar");
    return for_each_kernel(argc, argv, [&](const Operations& kernel) {
        for (std::size_t offset = 0; offset < 64; ++offset) {
            for (std::size_t size = 0; size <= 300; ++size) check_bytes_at(kernel, oracle, size, offset);
        }
        for (std::size_t offset = 0; offset < 64; offset += 4) {
            for (std::size_t dim = 1; dim <= 100; ++dim) check_floats_at(kernel, oracle, dim, offset);
        }
        for (const bool plain : {true, false}) {
            for (int r = 1; r <= 5; ++r) {
                for (const std::size_t bytes : {20u << 10, 100u << 10}) {
                    check_large_encode(kernel, oracle, bytes, 3, r, static_cast<std::size_t>(r), plain);
                }
            }
            // 32 MiB is where encode stores past the caches, if it can align all parities at once.
            for (const std::size_t offset : {0u, 24u}) {
                check_large_encode(kernel, oracle, 32u << 20, 3, 1, offset, plain);
                check_large_encode(kernel, oracle, 32u << 20, 4, 3, offset, plain);
            }
        }
    });
}

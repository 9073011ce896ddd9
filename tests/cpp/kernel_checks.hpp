// What the tests of kernels share: a failure with its kernel, random buffers, and each kernel in turn.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"

namespace ecrec_tests {

using ecrec::Coefficient;
using ecrec::Operations;
namespace gf = ecrec::gf;

inline int failures = 0;

inline void check(bool good, const Operations& kernel, const char* what, std::size_t size) {
    if (good) return;
    std::printf("FAILED: kernel %s, %s, size %zu\n", kernel.name, what, size);
    if (++failures > 20) std::exit(1);
}

inline const Operations& kernel_named(const char* name) {
    if (ecrec::use_kernel(name) != ecrec::KernelChoice::chosen) std::abort();
    return ecrec::operations();
}

inline std::mt19937_64 engine(20240607);

// r rows of k. Plain: ones in the first row and column, as those of a code, which kernels do not multiply by.
inline std::vector<Coefficient> random_coefficients(int k, int r, bool plain) {
    std::vector<Coefficient> coefficients;
    for (int i = 0; i < k * r; ++i) {
        const bool one = plain && (i < k || i % k == 0);
        coefficients.push_back(gf::coefficient(one ? 1 : static_cast<std::uint8_t>(engine())));
    }
    return coefficients;
}

inline void fill_bytes(std::span<std::uint8_t> bytes) {
    for (std::size_t i = 0; i < bytes.size(); i += 8) {
        const std::uint64_t word = engine();
        std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, bytes.size() - i));
    }
}

inline void fill_floats(std::span<float> values, float low, float high) {
    std::uniform_real_distribution<float> distribution(low, high);
    for (auto& value : values) value = distribution(engine);
}

using Step = void (*)(const ecrec::Steps&);

inline Step step_named(const Operations& kernel, const std::string& name) {
    for (const ecrec::Optimizer& each : ecrec::optimizers) {
        if (name == each.name.text) return kernel.step(each);
    }
    std::abort();
}

// Floats of state that a step of the kernel changes: those of doubles are the store's.
inline std::size_t state_of(const ecrec::Optimizer& optimizer, std::size_t dim) {
    std::size_t floats = optimizer.state_floats(dim);
    for (const ecrec::StatePart& part : optimizer.state) floats -= 2 * part.doubles;
    return floats;
}

// A step of an optimizer on one record. The first of hyper is Adam's step size.
inline void step_one(Step optimizer, std::size_t dim, std::array<float, 4> hyper,
                     const float* gradient, float* record, std::uint8_t* delta, bool merges = true) {
    optimizer({1, dim, 0, 0, hyper.data(), &gradient, &record, delta == nullptr ? nullptr : &delta, &merges,
               &hyper[0]});
}

// What a test that cannot run on this machine ends with; ctest shows it as skipped (SKIP_RETURN_CODE).
inline constexpr int skipped = 77;

// run(kernel) for the kernel that the program's argument names, or without one for each of the build, forced and proven to be
// the one in use. The exit status: 1 for a failure, `skipped` if a kernel cannot run on this machine.
template <class Run>
int for_each_kernel(int argc, char** argv, Run run) {
    int skips = 0;
    const std::vector<const char*> named(argv + 1, argv + argc);
    for (const char* name : argc > 1 ? named : ecrec::compiled_kernels()) {
        const ecrec::KernelChoice choice = ecrec::use_kernel(name);
        if (choice == ecrec::KernelChoice::unknown) {
            std::printf("FAILED: kernel %s is not in this build\n", name);
            ++failures;
            continue;
        }
        if (choice == ecrec::KernelChoice::unsupported) {
            std::printf("SKIPPED: kernel %s cannot run on this machine\n", name);
            ++skips;
            continue;
        }
        const Operations& kernel = ecrec::operations();
        check(std::string(kernel.name) == name, kernel, "the kernel in use is the one forced", 0);
        run(kernel);
        check(&ecrec::operations() == &kernel, kernel, "it stayed in use", 0);
        std::printf("checked: kernel %s\n", name);
    }
    if (failures != 0) return 1;
    return skips == 0 ? 0 : skipped;
}

}  // namespace ecrec_tests

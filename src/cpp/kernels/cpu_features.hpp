// What this CPU has and this operating system lets a program use.
#pragma once

#include <cstdint>

namespace ecrec {

// A feature counts only if the operating system also saves its registers (XGETBV): a CPU with AVX-512 under a
// kernel that does not enable it would fault.
enum CpuFeature : std::uint32_t {
    cpu_ssse3 = 1u << 0,
    cpu_avx2 = 1u << 1,
    cpu_avx512 = 1u << 2,  // F, BW, DQ and VL together
    cpu_gfni = 1u << 3,    // the affine instruction, in whatever width the other features allow
    cpu_sse42 = 1u << 4,
    cpu_arm_crc = 1u << 5,     // the optional instructions of ARMv8.0
    cpu_vpclmulqdq = 1u << 6,  // carry-less multiplication, in whatever width the other features allow
};

std::uint32_t cpu_features();

// true if the CPU says that Intel made it.
bool is_intel_cpu();

}  // namespace ecrec

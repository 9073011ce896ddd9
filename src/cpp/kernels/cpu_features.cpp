#include "kernels/cpu_features.hpp"

#if ECREC_X86
#include <cpuid.h>
#endif
#if ECREC_NEON
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ecrec {

#if ECREC_X86

std::uint32_t cpu_features() {
    constexpr std::uint64_t ymm_state = 0x06;   // XCR0: SSE, AVX
    constexpr std::uint64_t zmm_state = 0xe6;   // and opmask, the upper halves, the upper sixteen
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
    std::uint32_t features = 0;
    if (ecx & bit_SSSE3) features |= cpu_ssse3;
    if (ecx & bit_SSE4_2) features |= cpu_sse42;
    if ((ecx & bit_OSXSAVE) == 0 || (ecx & bit_AVX) == 0) return features;

    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const std::uint64_t enabled = static_cast<std::uint64_t>(high) << 32 | low;
    if ((enabled & ymm_state) != ymm_state) return features;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;

    if (ebx & bit_AVX2) features |= cpu_avx2;
    constexpr unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((enabled & zmm_state) == zmm_state && (ebx & avx512) == avx512) features |= cpu_avx512;
    if (ecx & bit_GFNI) features |= cpu_gfni;
    if (ecx & bit_VPCLMULQDQ) features |= cpu_vpclmulqdq;
    return features;
}

bool is_intel_cpu() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx && edx == signature_INTEL_edx &&
           ecx == signature_INTEL_ecx;
}

#else

std::uint32_t cpu_features() {
#if ECREC_NEON
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) return cpu_arm_crc;
#endif
    return 0;
}

bool is_intel_cpu() { return false; }

#endif

}  // namespace ecrec

// One line a kernel, fastest first: ECREC_KERNEL(namespace, features it needs). The namespace defines
// `extern const Operations table`.
#if ECREC_X86
ECREC_KERNEL(avx512_gfni, cpu_avx512 | cpu_gfni)
ECREC_KERNEL(avx2_gfni, cpu_avx2 | cpu_gfni)
ECREC_KERNEL(avx512, cpu_avx512)
ECREC_KERNEL(avx2, cpu_avx2)
ECREC_KERNEL(ssse3, cpu_ssse3)
#endif
#if ECREC_NEON
ECREC_KERNEL(neon, 0)
#endif
ECREC_KERNEL(scalar, 0)

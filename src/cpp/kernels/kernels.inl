// One line a kernel, fastest first: ECREC_KERNEL(namespace, features it needs). The namespace defines
// `extern const Operations table`.
#if ECREC_X86
ECREC_KERNEL(avx512_gfni, cpu_avx512 | cpu_gfni)
ECREC_KERNEL(avx2, cpu_avx2)
#endif
ECREC_KERNEL(scalar, 0)

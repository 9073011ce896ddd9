// One line a kernel, fastest first: ECREC_KERNEL(namespace, features it needs). The namespace defines
// `extern const Operations table`.
#if ECREC_X86
#endif
ECREC_KERNEL(scalar, 0)

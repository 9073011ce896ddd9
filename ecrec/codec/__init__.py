"""Erasure codes over GF(2^8) and the kernels that compute them.

The fast code is native (`Code`); `ecrec.codec.reference` is the slow, obvious version, and its oracle.
"""

from ecrec._native import (
    Code,
    compiled_kernels,
    crc32c,
    crc32c_by_table,
    crc32c_in_use,
    gf_inverse,
    gf_invert_matrix,
    gf_multiply,
    kernel,
    kernels,
    prefetch,
    threads,
    use_kernel,
    use_prefetch,
    use_threads,
)

__all__ = [
    "Code",
    "compiled_kernels",
    "crc32c",
    "crc32c_by_table",
    "crc32c_in_use",
    "gf_inverse",
    "gf_invert_matrix",
    "gf_multiply",
    "kernel",
    "kernels",
    "prefetch",
    "threads",
    "use_kernel",
    "use_prefetch",
    "use_threads",
]

"""Compares every kernel that this machine can run with the plain version, in an ecrec that was just installed."""

import numpy as np

from ecrec import codec
from ecrec.codec import Code, reference

K, R, BYTES = 4, 2, 4099


def main() -> None:
    data = np.random.default_rng(1).integers(0, 256, (K, BYTES), dtype=np.uint8)
    expected = reference.encode(K, R, "cauchy", data)
    present = [0, 2, 4, 5]
    for kernel in codec.kernels():
        codec.use_kernel(kernel)
        code = Code(K, R)
        parity = np.zeros((R, BYTES), np.uint8)
        code.encode(list(data), list(parity))
        assert np.array_equal(parity, expected), f"kernel {kernel}: wrong parity"
        blocks = np.concatenate([data, parity])
        found = np.zeros((2, BYTES), np.uint8)
        code.reconstruct(present, list(blocks[present]), [1, 3], list(found))
        assert np.array_equal(found, data[[1, 3]]), f"kernel {kernel}: wrong rows after a loss"
    print("kernels that compute right:", ", ".join(codec.kernels()))


if __name__ == "__main__":
    main()

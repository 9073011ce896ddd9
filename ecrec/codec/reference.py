"""The codes written down plainly, without the native core: what the fast version is tested against.

Field: GF(2^8) with the polynomial 0x11d, addition is XOR. A matrix is uint8[rows, columns]. Blocks are the
rows of uint8[blocks, length].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

POLYNOMIAL = 0x11D


def multiply(a: int, b: int) -> int:
    """Product of two field elements (0..255): shift and add, reduced by the polynomial."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


PRODUCTS: U8 = np.array([[multiply(a, b) for b in range(256)] for a in range(256)], dtype=np.uint8)
"""uint8[256, 256]: PRODUCTS[a, b] = a * b."""


def inverse(a: int) -> int:
    """The b with a * b = 1. ``ZeroDivisionError`` for 0."""
    for b in range(1, 256):
        if PRODUCTS[a, b] == 1:
            return b
    raise ZeroDivisionError("0 has no inverse")


def matrix_product(a: U8, b: U8) -> U8:
    """uint8[rows of a, columns of b]."""
    product = np.zeros((a.shape[0], b.shape[1]), dtype=np.uint8)
    for inner in range(a.shape[1]):
        product ^= PRODUCTS[a[:, inner, None], b[None, inner, :]]
    return product


def matrix_inverse(matrix: U8) -> U8:
    """Inverse of a square matrix, by Gauss-Jordan elimination. ``ValueError`` if it is singular."""
    size = matrix.shape[0]
    work = np.concatenate([matrix, np.eye(size, dtype=np.uint8)], axis=1)
    for column in range(size):
        pivots = np.flatnonzero(work[column:, column])
        if not pivots.size:
            raise ValueError("singular matrix")
        pivot = column + int(pivots[0])
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = PRODUCTS[inverse(int(work[column, column])), work[column]]
        for row in range(size):
            if row != column:
                work[row] ^= PRODUCTS[work[row, column], work[column]]
    return np.ascontiguousarray(work[:, size:])


def parity_matrix(k: int, r: int, generator: str = "cauchy") -> U8:
    """uint8[r, k]: what each data block counts for in each parity block.

    ``"isal-cauchy"`` is 1 / ((k + i) ^ j), ISA-L's ``gf_gen_cauchy1_matrix``. ``"cauchy"`` is the same with
    columns, then rows scaled so that the first row and the first column are ones. Every square submatrix of
    both is invertible. ``ValueError`` for any other name.
    """
    if generator not in ("cauchy", "isal-cauchy"):
        raise ValueError(f"generator: expected 'cauchy' or 'isal-cauchy', got {generator!r}")
    matrix = np.zeros((r, k), dtype=np.uint8)
    for i, j in np.ndindex(r, k):
        matrix[i, j] = inverse((k + i) ^ j)
    if generator == "cauchy" and r:
        for j in range(k):
            matrix[:, j] = PRODUCTS[inverse(int(matrix[0, j])), matrix[:, j]]
        for i in range(r):
            matrix[i] = PRODUCTS[inverse(int(matrix[i, 0])), matrix[i]]
    return matrix


def slot_matrix(k: int, r: int, generator: str = "cauchy") -> U8:
    """uint8[k + r, k]: all slots from the data, the identity above `parity_matrix`."""
    return np.concatenate([np.eye(k, dtype=np.uint8), parity_matrix(k, r, generator)])


def encode(k: int, r: int, generator: str, data: U8) -> U8:
    """uint8[r, length] parity blocks of uint8[k, length] data blocks."""
    return matrix_product(parity_matrix(k, r, generator), data)


def reconstruct(k: int, r: int, generator: str, present: Sequence[int], blocks: U8, lost: Sequence[int]) -> U8:
    """uint8[len(lost), length]: the lost slots, from the blocks of at least k present ones."""
    slots = slot_matrix(k, r, generator)
    data = matrix_product(matrix_inverse(slots[list(present[:k])]), blocks[:k])
    return matrix_product(slots[list(lost)], data)

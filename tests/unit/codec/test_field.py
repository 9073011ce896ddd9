"""The field and its matrices, against the plain version and the axioms."""

import numpy as np
import pytest

from ecrec import codec
from ecrec.codec import reference

PRODUCTS = reference.PRODUCTS


def native_products() -> reference.U8:
    return np.array([[codec.gf_multiply(a, b) for b in range(256)] for a in range(256)], dtype=np.uint8)


def test_every_product_is_the_references() -> None:
    assert np.array_equal(native_products(), PRODUCTS)


def test_products_commute_associate_and_distribute() -> None:
    products = native_products()
    assert np.array_equal(products, products.T)
    everything = np.arange(256)
    for c in range(256):
        assert np.array_equal(products[products, c], products[everything[:, None], products[:, c][None, :]])
        sums = everything[:, None] ^ everything[None, :]
        assert np.array_equal(products[sums, c], products[:, c][:, None] ^ products[:, c][None, :])


def test_one_is_neutral_and_every_inverse_inverts() -> None:
    for a in range(256):
        assert codec.gf_multiply(a, 1) == a
        assert codec.gf_multiply(a, 0) == 0
    for a in range(1, 256):
        assert codec.gf_inverse(a) == reference.inverse(a)
        assert codec.gf_multiply(a, codec.gf_inverse(a)) == 1


def test_zero_and_values_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="no inverse"):
        codec.gf_inverse(0)
    with pytest.raises(ValueError, match=r"a: expected 0\.\.255, got 256"):
        codec.gf_multiply(256, 1)
    with pytest.raises(ValueError, match=r"b: expected 0\.\.255, got -1"):
        codec.gf_multiply(1, -1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 16, 40])
def test_matrix_inverse_is_the_references_and_inverts(size: int) -> None:
    rng = np.random.default_rng(size)
    inverted = 0
    while inverted < 5:
        matrix = rng.integers(0, 256, (size, size), dtype=np.uint8)
        if rng.random() < 0.5 and size:
            matrix[0, 0] = 0  # force a row exchange
        try:
            expected = reference.matrix_inverse(matrix)
        except ValueError:
            with pytest.raises(ValueError, match="singular"):
                codec.gf_invert_matrix(matrix)
            continue
        result = codec.gf_invert_matrix(matrix)
        assert np.array_equal(result, expected)
        assert np.array_equal(reference.matrix_product(matrix, result), np.eye(size, dtype=np.uint8))
        inverted += 1


def test_matrices_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(ValueError, match="singular"):
        codec.gf_invert_matrix(np.zeros((3, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="square"):
        codec.gf_invert_matrix(np.zeros((2, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="matrix: expected 2 dimensions, got 1"):
        codec.gf_invert_matrix(np.zeros(4, dtype=np.uint8))
    with pytest.raises(TypeError, match="matrix: expected dtype uint8, got int64"):
        codec.gf_invert_matrix(np.zeros((2, 2), dtype=np.int64))

"""The generators: their shape, and that every erasure pattern decodes."""

from itertools import combinations

import numpy as np
import pytest

from ecrec.codec import Code, reference

GENERATORS = ("cauchy", "isal-cauchy")
SLOTS_MAX = 12


@pytest.mark.parametrize("generator", GENERATORS)
def test_coefficients_are_the_references(generator: str) -> None:
    for k in range(1, 20):
        for r in range(8):
            code = Code(k, r, generator)
            assert (code.k, code.r, code.generator) == (k, r, generator)
            assert code.coefficients.shape == (r, k)
            assert np.array_equal(code.coefficients, reference.parity_matrix(k, r, generator))


def test_first_parity_and_first_column_of_cauchy_are_ones() -> None:
    for k, r in [(1, 5), (4, 1), (10, 4), (200, 55), (1, 254), (254, 1)]:
        coefficients = Code(k, r).coefficients
        assert (coefficients[0] == 1).all()
        assert (coefficients[:, 0] == 1).all()
        assert (coefficients != 0).all()


def test_a_code_of_one_data_slot_is_replication() -> None:
    data = np.arange(100, dtype=np.uint8)
    copies = [np.empty_like(data) for _ in range(3)]
    Code(1, 3).encode([data], copies)
    assert all(np.array_equal(copy, data) for copy in copies)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("slots", range(1, SLOTS_MAX + 1))
def test_every_erasure_pattern_of_every_code_decodes(generator: str, slots: int) -> None:
    """Every choice of k survivors, for every k: a smaller loss decodes from k of its survivors.

    The decode matrix is judged by what it must do to the generator, and the bytes of a codeword come back.
    """
    rng = np.random.default_rng(slots)
    for k in range(1, slots + 1):
        code = Code(k, slots - k, generator)
        all_slots = reference.slot_matrix(k, slots - k, generator)
        data = rng.integers(0, 256, (k, 21), dtype=np.uint8)
        word = list(reference.matrix_product(all_slots, data))
        out = [np.empty(21, dtype=np.uint8) for _ in range(slots - k)]
        for present in combinations(range(slots), k):
            lost = [slot for slot in range(slots) if slot not in present]
            matrix = code.decode_matrix(present, lost)
            product = reference.matrix_product(matrix, all_slots[list(present)])
            assert np.array_equal(product, all_slots[lost]), (k, present)
            code.reconstruct(present, [word[slot] for slot in present], lost, out)
            for slot, block in zip(lost, out, strict=True):
                assert np.array_equal(block, word[slot]), (k, present, slot)


def test_bad_codes_are_refused() -> None:
    for k, r, generator, message in [
        (0, 1, "cauchy", "k: expected at least 1, got 0"),
        (-3, 1, "cauchy", "k: expected at least 1, got -3"),
        (1, -1, "cauchy", "r: expected at least 0, got -1"),
        (200, 56, "cauchy", r"k \+ r: expected at most 255, got 200 \+ 56"),
        (2**31 - 1, 2**31 - 1, "cauchy", r"k \+ r"),
        (4, 2, "vandermonde", "generator: expected .* got 'vandermonde'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Code(k, r, generator)

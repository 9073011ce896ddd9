"""What bad arguments get: an exception that names the argument, and nothing changed."""

from typing import Any

import numpy as np
import pytest

from ecrec.codec import Code


def zeros(length: int = 32) -> Any:
    return np.zeros(length, dtype=np.uint8)


def signed() -> Any:
    return np.zeros(32, dtype=np.int8)


def read_only() -> Any:
    array = zeros()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "data, parity, error, message",
    [
        ([zeros()], [zeros(), zeros()], ValueError, "data: expected 2 arrays, got 1"),
        ([zeros(), zeros()], [zeros()], ValueError, "parity: expected 2 arrays, got 1"),
        ([zeros(), zeros(31)], [zeros(), zeros()], ValueError, r"data\[1\]: expected 32 elements, got 31"),
        ([zeros(), zeros()], [zeros(9), zeros(9)], ValueError, r"parity\[0\]: expected 32 elements, got 9"),
        ([zeros(), zeros()], [zeros(), zeros(33)], ValueError, r"parity\[1\]: expected 32 elements, got 33"),
        ([zeros(), b"x" * 32], [zeros(), zeros()], TypeError, r"data\[1\]: expected a numpy array of uint8"),
        ([zeros(), signed()], [zeros(), zeros()], TypeError, r"data\[1\]: expected dtype uint8, got int8"),
        ([zeros(), zeros(64)[::2]], [zeros(), zeros()], TypeError, r"data\[1\]: expected a C-contiguous"),
        ([zeros(), zeros()], [zeros(64)[::2], zeros()], TypeError, r"parity\[0\]: expected a C-contiguous"),
        ([zeros(), zeros()], [zeros(), read_only()], TypeError, r"parity\[1\]: expected a writable"),
    ],
)
def test_encode_refuses(data: list[Any], parity: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Code(2, 2).encode(data, parity)


def test_encode_reads_a_read_only_array_and_the_same_data_twice() -> None:
    shared = read_only()
    Code(2, 1).encode([shared, shared], [zeros()])


def test_any_overlap_of_a_parity_is_refused() -> None:
    code = Code(2, 2)
    memory = np.arange(96, dtype=np.uint8)
    before = memory.copy()
    with pytest.raises(ValueError, match=r"parity\[1\] and data\[0\] overlap"):
        code.encode([memory[:32], zeros()], [zeros(), memory[31:63]])
    with pytest.raises(ValueError, match=r"parity\[1\] and parity\[0\] overlap"):
        code.encode([zeros(), zeros()], [memory[:32], memory[:32]])
    with pytest.raises(ValueError, match="x and parity overlap"):
        code.fold(0, 0, memory[:32], memory[16:48])
    with pytest.raises(ValueError, match="x and parity overlap"):
        rows = memory.reshape(3, 32)
        code.fold_rows(0, 0, rows[:2], np.array([0, 1]), rows[1:])
    with pytest.raises(ValueError, match=r"out\[0\] and blocks\[1\] overlap"):
        code.reconstruct([0, 2], [zeros(), memory[:32]], [1], [memory[1:33]])
    assert np.array_equal(memory, before)
    code.encode([memory[:32], memory[64:]], [memory[32:64], zeros()])  # neighbours are no overlap


def test_fold_refuses_indices_out_of_range() -> None:
    code = Code(3, 2)
    for i, j, message in [
        (2, 0, "parity_index: expected 0 <= index < 2, got 2"),
        (-1, 0, "parity_index: expected 0 <= index < 2, got -1"),
        (0, 3, "data_index: expected 0 <= index < 3, got 3"),
    ]:
        with pytest.raises(IndexError, match=message):
            code.fold(i, j, zeros(), zeros())
        with pytest.raises(IndexError, match=message):
            code.fold_rows(i, j, zeros()[None], np.zeros(1, dtype=np.int64), zeros()[None])
    with pytest.raises(ValueError, match="parity: expected 32 elements, got 31"):
        code.fold(0, 0, zeros(), zeros(31))


def test_fold_rows_refuses_before_it_changes_a_byte() -> None:
    code = Code(2, 1)
    x = np.ones((3, 16), dtype=np.uint8)
    parity = np.zeros((4, 16), dtype=np.uint8)
    for bad in (4, -1, 2**62):
        with pytest.raises(IndexError, match=rf"indices\[2\]: expected 0 <= index < 4, got {bad}"):
            code.fold_rows(0, 0, x, np.array([0, 1, bad]), parity)
    with pytest.raises(ValueError, match="indices: expected 3 elements, got 2"):
        code.fold_rows(0, 0, x, np.array([0, 1]), parity)
    with pytest.raises(ValueError, match="parity: expected rows of 16 bytes, got 8"):
        code.fold_rows(0, 0, x, np.array([0, 1, 2]), np.zeros((4, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="x: expected 2 dimensions, got 1"):
        code.fold_rows(0, 0, x.ravel(), np.array([0, 1, 2]), parity)
    with pytest.raises(TypeError, match="indices: expected dtype int64, got int32"):
        code.fold_rows(0, 0, x, np.array([0, 1, 2], dtype=np.int32), parity)
    assert not parity.any()


def test_reconstruct_refuses_slots_that_make_no_sense() -> None:
    code = Code(3, 2)
    for present, lost, error, message in [
        ([0, 1], [2], ValueError, "present: expected at least 3 slots"),
        ([0, 1, 5], [2], IndexError, "0 <= slot < 5"),
        ([0, 1, 3], [-1], IndexError, "0 <= slot < 5"),
        ([0, 1, 1], [2], ValueError, "named twice"),
        ([0, 1, 2], [2], ValueError, "named twice"),
        ([0, 1, 2], [3, 3], ValueError, "named twice"),
    ]:
        with pytest.raises(error, match=message):
            code.decode_matrix(present, lost)
        out = [zeros() + 7 for _ in lost]
        with pytest.raises(error, match=message):
            code.reconstruct(present, [zeros() for _ in present], lost, out)
        assert all((block == 7).all() for block in out)
    with pytest.raises(ValueError, match="blocks: expected 3 arrays, got 2"):
        code.reconstruct([0, 1, 2], [zeros(), zeros()], [3], [zeros()])
    with pytest.raises(ValueError, match="out: expected 1 arrays, got 0"):
        code.reconstruct([0, 1, 2], [zeros(), zeros(), zeros()], [3], [])
    with pytest.raises(ValueError, match=r"out\[0\]: expected 32 elements, got 16"):
        code.reconstruct([0, 1, 2], [zeros(), zeros(), zeros()], [3], [zeros(16)])

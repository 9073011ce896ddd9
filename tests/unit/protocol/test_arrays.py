"""Frames as arrays: without a copy where the bytes lie aligned, and refused where they are not whole items."""

import numpy as np
import pytest

from ecrec.protocol import arrays


def test_a_frame_is_an_array_of_its_items() -> None:
    assert arrays.keys(np.arange(3, dtype=np.uint64).tobytes()).tolist() == [0, 1, 2]
    assert arrays.records(b"\1\2").tolist() == [1, 2]
    assert arrays.keys(b"").size == arrays.records(b"").size == 0


@pytest.mark.parametrize("size", [1, 7, 9, 15])
def test_a_frame_that_ends_in_the_middle_of_an_item_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"keys: {size} bytes are not a multiple of 8"):
        arrays.keys(bytes(size))


def test_what_lies_aligned_is_not_copied_and_what_does_not_is() -> None:
    memory = np.zeros(8 * 4 + 8, np.uint8)
    first = -memory.ctypes.data % 8
    aligned = memory[first : first + 24]
    assert np.shares_memory(arrays.keys(aligned), memory)
    unaligned = memory[first + 1 : first + 25]
    copied = arrays.keys(unaligned)
    assert copied.flags.aligned and not np.shares_memory(copied, memory)

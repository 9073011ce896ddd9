"""The memory of a large store that nobody needs goes back to the system in many short calls."""

from itertools import pairwise

import numpy as np
import pytest

from ecrec import _native
from ecrec.store import Capture, Store, Window


@pytest.fixture
def store() -> Store:
    """16 MB of rows, all touched."""
    made = Store(0, 1)
    made.add_table(1 << 16, 64, 1, 0, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0)
    rows = np.arange(1 << 16)
    made.apply(np.zeros(1, np.int32), np.array([len(rows)]), rows, np.ones(len(rows) * 64, np.float32), None)
    return made


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_each_call_gives_back_a_part_of_it(store: Store) -> None:
    before, known = resident_bytes(), _native.tuning()["dropped_bytes_max"]
    _native.set_tuning(dropped_bytes_max=4 << 20)
    try:
        calls, left = 1, [resident_bytes()]
        while store.give_up():
            calls += 1
            left.append(resident_bytes())
    finally:
        _native.set_tuning(dropped_bytes_max=known)
    assert store.tables == 0 and calls >= 4
    assert all(later <= earlier for earlier, later in pairwise(left))
    assert resident_bytes() < before - (14 << 20)
    assert not store.give_up()
    with pytest.raises(ValueError, match="table"):
        store.record_bytes(0)


@pytest.mark.parametrize("made", [Window, lambda store: Capture(store, 1, 0, 1)], ids=["window", "capture"])
def test_a_store_of_which_something_was_made_is_not_given_up(made: object) -> None:
    store = Store(0, 2)
    store.add_table(8, 4, 1, 1, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0)
    holder = made(store)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="windows, captures or copies"):
        store.give_up()
    assert store.tables == 1
    del holder
    while store.give_up():
        pass
    assert store.tables == 0

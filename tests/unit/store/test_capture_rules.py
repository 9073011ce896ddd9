"""What a capture refuses, with nothing changed; how much it may hold; and which parity a wipe clears."""

from typing import Any

import numpy as np
import pytest
from store_group import ALL_CLASSES, Group, key, keys_of, sections, tuned

from ecrec.store import Capture, Store
from ecrec.store.reference import Table

TABLE = Table(41, 4, 3, 1, optimizer="adagrad", hyper=(0.1, 1e-8), shards=5)
HOLDER, CLASS = 3, 0
"""Shard 3 holds the parity of class 0: of stripes 0, 5 and 10 of each table, whose data are on shards 0 to 2."""
RECORD_BYTES = 32


@pytest.fixture
def store() -> Store:
    """The holder of class 0, of which all rows were pushed to."""
    group = Group([TABLE, TABLE], 5)
    for shard in range(5):
        parts = [(table, group.rows_of(shard, table)) for table in (0, 1)]
        count = sum(len(rows) for _, rows in parts)
        group.apply(shard, sections(*parts), np.ones(4 * count, dtype=np.float32))
    group.exchange()
    return group.stores[HOLDER]


def held(store: Store) -> Any:
    keys, records = Capture(store, CLASS, 0, store.class_size(CLASS)).take()
    return sorted(keys.tolist()), records.tobytes()


def delta(*pairs: tuple[int, int], spare: int = 0) -> tuple[Any, Any]:
    return keys_of(*pairs), np.ones(len(pairs) * RECORD_BYTES + spare, dtype=np.uint8)


def test_the_group_is_what_these_tests_take_it_for(store: Store) -> None:
    assert store.class_size(CLASS) == 6 and store.record_bytes(0) == RECORD_BYTES
    assert held(store)[0] == [key(table, stripe) for table in (0, 1) for stripe in (0, 5, 10)]


def test_a_range_that_goes_backwards_is_refused(store: Store) -> None:
    assert Capture(store, CLASS, 2, 2).take()[0].size == 0
    with pytest.raises(ValueError, match="Capture: first position 3 is after the last, 2"):
        Capture(store, CLASS, 3, 2)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (keys_of((2, 0)), "table 2"),
        (keys_of((0, 99)), "stripe 99"),
        (keys_of((0, 0), (0, 1)), "is of class 1, expected class 0"),
    ],
)
def test_keys_that_are_not_of_the_class_are_refused(store: Store, keys: Any, why: str) -> None:
    with pytest.raises((ValueError, IndexError), match=why):
        Capture.of_keys(store, CLASS, keys)


@pytest.mark.parametrize(
    ("source", "blob", "why"),
    [
        (5, delta((0, 0)), "shard 5"),
        (-1, delta((0, 0)), "shard -1"),
        (3, delta((0, 0)), "shard 3"),
        (4, delta((0, 0)), "Capture.fold: shard 4 has no data row in"),
        (0, delta((0, 0), spare=1), "Capture.fold"),
        (0, delta((0, 0), spare=-1), "Capture.fold"),
        (0, delta((2, 0)), "table 2"),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_delta_that_does_not_fit_is_refused_and_not_folded(
    store: Store, source: int, blob: Any, why: str, by_name: bool
) -> None:
    capture = Capture.of_keys(store, CLASS, keys_of((0, 0))) if by_name else Capture(store, CLASS, 0, 1)
    with pytest.raises((ValueError, IndexError), match=why):
        capture.fold(source, *blob)
    assert capture.take()[1].tobytes() == Capture(store, CLASS, 0, 1).take()[1].tobytes()


def test_a_delta_of_a_row_that_is_not_captured_is_passed_over_whoever_sends_it(store: Store) -> None:
    capture = Capture(store, CLASS, 0, 1)
    for source in (0, 4):
        capture.fold(source, *delta((0, 5), (1, 0)))
    assert capture.take()[1].tobytes() == Capture(store, CLASS, 0, 1).take()[1].tobytes()


def test_a_capture_holds_as_many_rows_as_may_be_and_no_more(store: Store) -> None:
    every = keys_of((0, 0), (0, 5), (0, 10))
    with tuned({"buffer_rows_max": 3}):
        assert Capture(store, CLASS, 0, 3).take()[0].size == 3
        assert Capture.of_keys(store, CLASS, every).take()[0].size == 3
        with pytest.raises(RuntimeError, match=r"Capture: .* do not fit a buffer"):
            Capture(store, CLASS, 0, 4)
        with pytest.raises(RuntimeError, match=r"Capture.of_keys: .* do not fit a buffer"):
            Capture.of_keys(store, CLASS, keys_of((0, 0), (0, 5), (0, 10), (1, 0)))
        capture = Capture(store, CLASS, 0, 1)
        with pytest.raises(RuntimeError, match=r"Capture.fold: .* do not fit a buffer"):
            capture.fold(0, *delta((0, 0), (0, 5), (0, 10)))


def test_a_wipe_clears_the_parity_of_its_class_and_nothing_where_there_is_none(store: Store) -> None:
    before = held(store)
    for class_id in (1, 2, 3, 4, 5, 9):  # of data, of no row here, and of a code that there is not
        store.wipe_parity(class_id)
        assert held(store) == before, class_id
    for class_id in (-1, 1 << 20):
        with pytest.raises((ValueError, IndexError), match=f"class id is {class_id}, expected 0 to 63"):
            store.wipe_parity(class_id)
    store.wipe_parity(CLASS)
    assert held(store) == ([], b"")
    store.fold(0, ALL_CLASSES, *delta((0, 0)))
    assert held(store)[0] == [key(0, 0)]

"""Which rows of a replacement are there: ranges that are marked in any order, beside a plain array."""

import random

import numpy as np
import pytest

from ecrec.store import Store


def replacement(rows: int) -> Store:
    """A store that has lost all rows of a table, which is one class of as many stripes."""
    store = Store(0, 1, 0, 1)
    store.add_table(rows, 1, 1, 0, "cauchy", "sgd", [0.1], "zeros", 1, 0.0, 0.0, False, 0.0, False, 0.0)
    return store


def check(store: Store, here: np.ndarray, places: list[int]) -> None:
    tables, missing = store.missing_counts(0)
    assert dict(zip(tables.tolist(), missing.tolist(), strict=True)).get(0, 0) == int((~here).sum())
    for place in places:
        later = np.flatnonzero(~here[place:])
        assert store.next_missing(0, place) == (place + int(later[0]) if later.size else -1), place
        asked = np.array([place], np.uint64)
        assert store.missing_of(asked, 1).tolist() == ([] if here[place] else [place])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 4095, 4096, 4097, 64 * 4096 + 70])
def test_ranges_that_meet_overlap_and_come_twice_are_counted_once(rows: int) -> None:
    store, here, rng = replacement(rows), np.zeros(rows, np.bool_), random.Random(rows)
    edges = sorted(
        {0, rows, *(e + d for e in (64, 128, 4096, 8192, 64 * 4096) for d in (-1, 0, 1) if 0 <= e + d <= rows)}
    )
    check(store, here, [0, rows - 1])
    for step in range(200):
        if step % 3:
            first, last = sorted((rng.choice(edges), rng.choice(edges)))
        else:
            first = rng.randrange(rows)
            last = min(rows, first + rng.choice((1, 2, 63, 64, 65, 200, 5000)))
        if first == last or (last - first > rows // 2 and step < 100):
            continue
        for _ in range(rng.choice((1, 2))):
            store.mark_recovered(0, first, last)
            here[first:last] = True
            check(store, here, [0, first, max(first - 1, 0), min(last, rows - 1), rng.randrange(rows)])
    assert store.next_missing(0, rows) == store.next_missing(0, rows + 1_000_000) == -1
    store.mark_recovered(0, rows, rows + 1_000_000)
    store.mark_recovered(0, 0, rows)
    here[:] = True
    check(store, here, [0, rows - 1])


def test_single_rows_that_are_here_are_not_counted_again_when_their_range_comes() -> None:
    rows = 3 * 4096
    store, here = replacement(rows), np.zeros(rows, np.bool_)
    for row in (0, 63, 64, 4095, 4096, 8191, rows - 1):
        store.mark_recovered(0, row, row + 1)
        here[row] = True
    check(store, here, [0, 1, 63, 64, 65, 4095, 4096])
    for first, last in ((64, 128), (0, 4096), (0, 4096), (0, 8192), (4096, rows), (0, rows)):
        store.mark_recovered(0, first, last)
        here[first:last] = True
        check(store, here, [0, first, last - 1])


def test_a_range_that_goes_backwards_is_refused_and_one_ends_with_the_class() -> None:
    store = replacement(10)
    with pytest.raises(ValueError, match="mark_recovered"):
        store.mark_recovered(0, 4, 3)
    check(store, np.zeros(10, np.bool_), [0, 9])
    store.mark_recovered(0, 8, 99)
    check(store, np.arange(10) >= 8, [0, 7, 8])

"""The store's thresholds as knobs, and what the system refuses for a moment."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_group import add_table, sections, tuned

from ecrec import _native
from ecrec.store import Store
from ecrec.store.reference import Table


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = _native.tuning()
    yield
    assert _native.tuning() == before


def test_knobs_are_set_together_or_not_at_all() -> None:
    before = _native.tuning()
    with tuned({"run_rows": 3, "index_slots_min": 8}):
        assert _native.tuning() == before | {"run_rows": 3, "index_slots_min": 8}
    for knobs, said in (
        ({"run_rows": 3, "no_such_knob": 1}, "unknown knob 'no_such_knob', expected some of block_bytes_min, "),
        ({"run_rows": 257}, "run_rows is 257, expected 1 to 256"),
        ({"run_rows": 0}, "run_rows is 0"),
        ({"run_rows": -1}, "run_rows is -1"),
        ({"index_slots_min": 48}, "index_slots_min is 48, expected a power of two from 2 to"),
        ({"index_growth": 1}, "index_growth is 1"),
    ):
        with pytest.raises(ValueError, match=said):
            _native.set_tuning(**knobs)
        assert _native.tuning() == before


def full_store(extents: int = 3) -> Store:
    """A table of so many extents of 2 MiB, all touched."""
    store = Store(0, 1)
    rows = extents * 8_192
    add_table(store, Table(rows, 64, 1, 0, "cauchy", "sgd", (0.1,)))
    store.assign(*sections((0, list(range(rows)))), np.arange(rows * 64, dtype=np.float32), None)
    return store


def can_collapse() -> bool:
    store = full_store(1)
    return store.use_huge_pages(1)


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EBUSY, errno.ENOMEM])
def test_a_huge_page_that_is_not_to_be_had_now_is_asked_for_again(error: int) -> None:
    """One extent a call; the one that failed comes again in the next look, and nothing is given up."""
    store = full_store()
    with tuned({"collapse_failures": 2, "collapse_errno": error}):
        assert store.use_huge_pages(1) and store.use_huge_pages(1)
        assert _native.tuning()["collapse_failures"] == 0
        moved = store.use_huge_pages(1)
        if not can_collapse():
            pytest.skip("this system has no MADV_COLLAPSE")
        assert moved
        looks = 0
        while store.use_huge_pages(100):
            looks += 1
            assert looks < 10
        # All three are moved by now: none of them asks the system again.
        _native.set_tuning(collapse_failures=5)
        assert not store.use_huge_pages(100)
        assert _native.tuning()["collapse_failures"] == 5


def test_a_system_that_has_no_huge_pages_is_not_asked_again() -> None:
    store = full_store()
    with tuned({"collapse_failures": 5, "collapse_errno": errno.EINVAL}):
        assert not store.use_huge_pages(100)
        assert not store.use_huge_pages(100)
        assert _native.tuning()["collapse_failures"] == 4


def test_only_extents_with_touched_rows_are_looked_at() -> None:
    """Of 1e11 rows a look takes a few steps, and it finds the dense extent in the middle."""
    store = Store(0, 1)
    add_table(store, Table(100_000_000_000, 4, 1, 0, "cauchy", "sgd", (0.1,)))
    first = 50_000_000_000
    first -= first * 16 % (2 << 20) // 16
    rows = list(range(first, first + (2 << 20) // 16))
    store.assign(*sections((0, [0, 70_000_000_000, *rows])), np.ones(4 * (len(rows) + 2), dtype=np.float32), None)
    with tuned({"collapse_failures": 1, "collapse_errno": errno.EINVAL}):
        assert not store.use_huge_pages(10)
        assert _native.tuning()["collapse_failures"] == 0, "it was found, and the hook refused it"


SMAPS = Path("/proc/self/smaps")


def huge_bytes() -> int:
    """Of this process's memory for which huge pages are asked for."""
    found, size = 0, 0
    for line in SMAPS.read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:") and " hg" in line:
            found += size
    return found


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell")
@pytest.mark.parametrize("indexed", [False, True], ids=["at their own places", "dense"])
@pytest.mark.parametrize("step", [1, 2, 100])
def test_rows_that_come_back_are_placed_in_huge_pages_where_they_fill_them(indexed: bool, step: int) -> None:
    """A page fault for each 4 KiB takes longer than all else that is done with rows that come back."""
    rows, extent = 65_536, 2 << 20
    table = Table(rows, 64, 1, 0, "cauchy", "sgd", (0.1,))
    with tuned({"unindexed_bytes_max": 1 if indexed else 1 << 40}):
        before, after = Store(0, 1), Store(0, 1)
        add_table(before, table)
        add_table(after, table, recovered=False)
    some = list(range(0, rows, step))
    before.assign(*sections((0, some)), np.ones(len(some) * 64, dtype=np.float32), None)
    keys, coded = before.coded_rows(0, 0, rows)
    had = huge_bytes()
    after.restore(keys, coded)
    extents = (huge_bytes() - had) / extent
    if indexed:  # all but the first, as far as there are records
        assert extents == max(0, -(-len(some) * 256 // extent) - 1)
    else:
        assert extents == (rows * 256 // extent if step == 1 else 0)

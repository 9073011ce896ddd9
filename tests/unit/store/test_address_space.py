"""Calls for which the system has no memory: an error, and what is there stays usable."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_group import Group, add_table, sections, tuned

from ecrec.store import RowBuffer, Store
from ecrec.store.reference import Table

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm"),
    pytest.mark.skipif("ECREC_SANITIZED" in os.environ, reason="the sanitizers' own memory fills the address space"),
]


@contextmanager
def address_space(spare_bytes: int) -> Iterator[None]:
    """This process may map so many bytes more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def pair(rows: int, dim: int) -> tuple[Store, Store]:
    """The two stores of a group with one table of code 1+1."""
    both = Store(0, 2), Store(1, 2)
    for store in both:
        add_table(store, Table(rows, dim, 1, 1, shards=2))
    return both


def test_a_table_for_which_there_is_no_address_space_is_refused_and_the_others_stay() -> None:
    group = Group([Table(100, 64, 1, 1, shards=2)], 2)
    store = group.stores[0]
    row = group.rows_of(0, 0)[0]
    too_many = r"add_table: table 1 of {} rows of dim 64: cannot reserve \d+ bytes of address space: Cannot allocate"
    with address_space(32 << 20), tuned({"unindexed_bytes_max": 1 << 40}):
        for rows in (4_000_000, 100_000_000_000):
            with pytest.raises(RuntimeError, match=too_many.format(rows)):
                add_table(store, Table(rows, 64, 1, 1, shards=2))
        assert store.tables == 1
        group.apply(0, sections((0, [row])), np.ones(64, np.float32))
    group.check_rows(0)


@pytest.mark.parametrize("rows", [3_000, 60_000])
def test_rows_for_which_there_is_no_memory_are_an_error(rows: int) -> None:
    """Of small blocks, which malloc gives, and of large ones, which are mapped. What others hold is not touched."""
    store, _ = pair(2 * rows, 64)
    store.apply(*sections((0, range(0, 2 * rows, 2))), np.ones(64 * rows, np.float32), None)
    keys, records = store.coded_rows(0, 0, store.class_size(0))
    assert len(keys) == rows
    buffers = [RowBuffer(store) for _ in range(2_000)]
    filled = 0
    with address_space(0), pytest.raises(MemoryError):
        for buffer in buffers:
            buffer.fold(1, keys, records)
            filled += 1
    assert filled < len(buffers)
    buffers[filled].take()
    for buffer in buffers[max(0, filled - 2) : filled]:
        taken, bytes_of = buffer.take()
        assert (taken == keys).all() and bytes_of.tobytes() == records.tobytes()
    again = store.coded_rows(0, 0, store.class_size(0))
    assert (again[0] == keys).all() and (again[1] == records).all()


def test_parity_is_wiped_in_place_where_a_new_bitmap_has_no_address_space() -> None:
    """The bits of a class are replaced by fresh ones if those can be had; quicker, and no more."""
    peer, store = pair(20_000_000, 1)
    some = np.array([0, 2, 19_999_998], np.int64)
    peer.apply(*sections((0, some.tolist())), np.ones(3, np.float32), None)
    keys, records = peer.coded_rows(0, 0, peer.class_size(0))
    store.fold(0, 1, keys, records)
    assert store.memory()["parity_rows_touched"] == 3
    with address_space(0):
        store.wipe_parity(0)
    assert store.memory()["parity_rows_touched"] == 0
    store.fold(0, 1, keys, records)
    assert store.memory()["parity_rows_touched"] == 3


def test_changes_that_cannot_be_noted_are_not_taken_for_none() -> None:
    """A checkpoint of what changed since a mark would silently lack them: all marks are gone instead."""
    store, _ = pair(20_000_000, 1)
    listed = sections((0, [0, 2, 19_999_998]))
    store.apply(*listed, np.ones(3, np.float32), None)
    mark = store.mark_changes()
    with address_space(0):
        store.apply(*listed, np.ones(3, np.float32), None)
    assert not store.has_mark(mark)
    with pytest.raises(ValueError, match="are not noted"):
        store.changes_between(mark, mark + 1)
    store.apply(*listed, np.ones(3, np.float32), None)
    again = store.mark_changes()
    store.apply(*listed, np.ones(3, np.float32), None)
    assert store.has_mark(again)

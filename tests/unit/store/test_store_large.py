"""Tables whose rows are nearly all untouched: nothing takes time or memory in proportion to them."""

import itertools
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from store_group import ALL_CLASSES, Group, sections

from ecrec.store import Capture, Store, Window
from ecrec.store.reference import Table

CALL_S = 0.5
"""For each call, on a machine that is busy: one that looked at all rows would take minutes."""


def timed(call: Callable[..., Any], *arguments: Any) -> Any:
    began = time.process_time()
    result = call(*arguments)
    assert time.process_time() - began < CALL_S, call
    return result


@pytest.mark.parametrize("rows", [100_000_000_000, 300_000_000_000])
def test_five_touched_rows_of_a_huge_table_are_lost_and_recovered(rows: int) -> None:
    n = 3
    table = Table(rows, 4, 2, 1, shards=n)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    group = timed(Group, [table], n)
    touched = [0, 1, rows // 3, rows // 2 + 1, rows - 1]
    for row in touched:
        shard = table.shard_of(row)[1]
        group.apply(shard, sections((0, [row])), np.full(4, row % 7 + 1, dtype=np.float32))
    group.exchange()
    for class_id in range(n):
        size = group.stores[0].class_size(class_id)
        for shard in range(n):
            slot = (shard - class_id) % n
            if slot == 2:
                assert timed(group.stores[shard].span, class_id, 0, size, 100) == size
                timed(Capture, group.stores[shard], class_id, 0, size)
            else:
                timed(group.stores[shard].coded_rows, class_id, 0, size)
    for lost in range(n):
        store = timed(group.new_store, lost, False)
        coded = {class_id: group.stores[lost].coded_rows(class_id, 0, 1 << 60) for class_id in range(n)}
        missing = sum(int(timed(store.missing_counts, class_id)[1].sum()) for class_id in range(n))
        assert missing == sum((rows - 1 - first) // 6 + 1 for first in {0: (0, 5), 1: (2, 1), 2: (4, 3)}[lost])
        for class_id in range(n):
            size = store.class_size(class_id)
            keys, records = coded[class_id]
            if not store.missing_counts(class_id)[0].size:
                continue
            assert store.next_missing(class_id, 0) == 0
            # Rows that somebody waits for first, then all in ranges.
            timed(store.restore, keys, records)
            window = Window(store)
            for peer in range(n):
                if (peer - class_id) % n == 2:
                    finished, blocked = timed(store.seed, window, peer, class_id, 1000)
                    assert not finished and blocked.size == 1000
            bounds = [0, *sorted(np.random.default_rng(lost).integers(0, size, 20).tolist()), size]
            for first, last in itertools.pairwise(bounds):
                timed(store.mark_recovered, class_id, first, last)
            assert timed(store.next_missing, class_id, 0) == -1
            assert not store.missing_counts(class_id)[0].size
            for peer in range(n):
                if (peer - class_id) % n == 2:
                    assert timed(store.seed, window, peer, class_id, 1000)[0]
                    assert window.buffer(peer).take()[0].tolist() == keys.tolist()
        own = [row for row in touched if table.shard_of(row)[1] == lost]
        listed = sections((0, own))
        found = np.empty(store.gather_bytes(*listed[:2], records=True), dtype=np.uint8)
        store.gather(*listed, found, records=True)
        assert found.tobytes() == b"".join(group.reference.record(0, row).tobytes() for row in own)
        assert not timed(store.use_huge_pages, 100)
        timed(store.memory)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 64 << 10


def test_parity_that_was_wiped_begins_at_zero_and_nobody_reads_what_it_was() -> None:
    table = Table(3000, 4, 2, 1, shards=3)
    group = Group([table], 3)
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(4 * len(rows), dtype=np.float32))
    keys, records = group.windows[0].buffer(2).take()
    holder = group.stores[2]
    size = holder.class_size(0)
    for _ in range(3):
        holder.fold(0, ALL_CLASSES, keys, records)
        assert Capture(holder, 0, 0, size).take()[1].tobytes() == records.tobytes()
        holder.wipe_parity(0)
        assert holder.memory()["parity_rows_touched"] == 0
        assert holder.memory()["parity_bytes_touched"] == 0
        assert not Capture(holder, 0, 0, size).take()[0].size
        assert not Capture.of_keys(holder, 0, keys).take()[0].size
        assert holder.span(0, 0, size, 1) == size
        some = keys[5:9]
        holder.fold(0, ALL_CLASSES, some, records[5 * 16 : 9 * 16])
        assert holder.memory()["parity_rows_touched"] == 4
        found = Capture(holder, 0, 0, size).take()
        assert found[0].tolist() == some.tolist() and found[1].tobytes() == records[5 * 16 : 9 * 16].tobytes()
        holder.wipe_parity(0)


def test_a_class_is_wiped_in_no_time() -> None:
    """2 million parity rows, far apart: the records of one page each are not read or written."""
    n, rows = 2, 40_000_000
    holder = Store(1, n)
    holder.add_table(rows, 4, 1, 1, "cauchy", "sgd", [0.1], "zeros", 0, 0.0, 0.0)
    stripes = np.arange(0, rows, 256, dtype=np.uint64)
    for _ in range(2):
        holder.fold(0, ALL_CLASSES, stripes, np.ones(len(stripes) * 16, dtype=np.uint8))
        assert holder.memory()["parity_rows_touched"] == len(stripes)
        began = time.process_time()
        holder.wipe_parity(0)
        assert time.process_time() - began < 0.02
        assert holder.memory()["parity_rows_touched"] == 0
        assert holder.span(0, 0, holder.class_size(0), 1) == holder.class_size(0)

"""A snapshot has each touched row once, as it was, whatever is pushed while it is copied out."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from store_group import OPTIMIZERS, U8, Group, random_tables, sections, tuned

from ecrec.store import Snapshot, Store
from ecrec.store.reference import Table

KNOBS = [{}, {"unindexed_bytes_max": 0}, {"run_rows": 2, "pause_bytes": 4096}]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def used_bytes(table: Table) -> int:
    floats = {"sgd": 0, "rowwise-adagrad": 1, "adam": 2 * table.dim + 4, "ftrl": 2 * table.dim}
    return 4 * (table.dim + floats.get(table.optimizer, table.dim))


def columns_of(tables: Sequence[Table]) -> list[list[int]]:
    return [
        [4 * table.dim, *([used_bytes(table) - 4 * table.dim] if table.optimizer != "sgd" else [])] for table in tables
    ]


def records_in(tables: Sequence[Table], chunk: tuple[int, int, U8]) -> dict[tuple[int, int], bytes]:
    """(table, row) -> record without padding."""
    table, rows, data = chunk
    ids, at = data[: 8 * rows].view(np.int64), 8 * rows
    parts = []
    for width in columns_of(tables)[table]:
        parts.append(data[at : at + rows * width].reshape(rows, width))
        at += rows * width
    assert at == len(data)
    records = np.concatenate(parts, axis=1)
    return {(table, row): records[i].tobytes() for i, row in enumerate(ids.tolist())}


def touched(group: Group, shard: int) -> dict[tuple[int, int], bytes]:
    found = {}
    for table, shape in enumerate(group.reference.tables):
        for row in group.rows_of(shard, table):
            if group.reference.touched(table, row):
                found[table, row] = group.reference.record(table, row)[: used_bytes(shape)].tobytes()
    return found


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("seed", range(6))
def test_a_snapshot_is_of_its_moment(seed: int, knobs: dict[str, int]) -> None:
    rng = np.random.default_rng(seed)
    with tuned(knobs, threads=1 + seed % 2):
        tables = random_tables(rng, 5, 2, count=4, rows_max=300)
        group = Group(tables, 5, group=seed % 2, groups=2)
        for _ in range(6):
            group.apply(2, *group.random_push(rng, 2, 40))
        expected = touched(group, 2)
        snapshot = Snapshot(group.stores[2], columns_of(tables))
        assert snapshot.rows == len(expected)
        found: dict[tuple[int, int], bytes] = {}
        while True:
            for _ in range(int(rng.integers(0, 3))):
                group.apply(2, *group.random_push(rng, 2, 30))
            if rng.random() < 0.3:
                listed, values = group.random_push(rng, 2, 10)
                group.stores[2].assign(*listed, values, group.windows[2])
                at = row_at = 0
                for table, count in zip(listed[0].tolist(), listed[1].tolist(), strict=True):
                    dim = tables[table].dim
                    for row in listed[2][row_at : row_at + count].tolist():
                        group.reference.assign(table, row, values[at : at + dim])
                        at += dim
                    row_at += count
            bytes_max = int(rng.integers(1, 2000))
            chunk = snapshot.take(bytes_max)
            if not chunk[1]:
                break
            assert chunk[1] == 1 or len(chunk[2]) <= bytes_max
            new = records_in(tables, chunk)
            assert not new.keys() & found.keys()
            found |= new
        assert found == expected and snapshot.taken == snapshot.rows and not snapshot.kept_bytes
        group.check_rows(2)
        group.exchange()
        group.check_parity()
        snapshot.close()
        assert Snapshot(group.stores[2], columns_of(tables)).rows == len(touched(group, 2))


def test_what_is_kept_aside_is_handed_out_first_and_stays_small() -> None:
    tables = [Table(rows=4000, dim=8, k=1, r=0, generator="cauchy", optimizer="adagrad", hyper=(0.1, 1e-8))]
    group = Group(tables, 1)
    rows = list(range(4000))
    group.apply(0, sections((0, rows)), np.ones(4000 * 8, np.float32))
    snapshot = Snapshot(group.stores[0], columns_of(tables))
    hot = list(range(3900, 4000))
    group.apply(0, sections((0, hot)), np.ones(len(hot) * 8, np.float32))
    assert snapshot.kept_bytes == len(hot) * 64
    table, count, data = snapshot.take(len(hot) * 72)
    assert (table, count) == (0, len(hot)) and not snapshot.kept_bytes
    assert sorted(data[: 8 * count].view(np.int64).tolist()) == hot


def test_a_table_that_is_added_later_is_not_in_it() -> None:
    tables = [Table(rows=50, dim=4, k=1, r=0, generator="cauchy", optimizer="sgd", hyper=(0.1,))] * 2
    group = Group(tables[:1], 1)
    group.apply(0, sections((0, range(50))), np.ones(200, np.float32))
    snapshot = Snapshot(group.stores[0], columns_of(tables[:1]))
    store = group.stores[0]
    store.add_table(50, 4, 1, 0, "cauchy", "sgd", (0.1,), "zeros", 0, 0.0, 0.0)
    store.apply(*sections((1, range(50))), np.ones(200, np.float32), None)
    assert snapshot.take(1 << 20)[1] == 50 and snapshot.take(1 << 20)[1] == 0


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("seed", range(6))
def test_changed_rows_are_those_between_two_marks(seed: int, knobs: dict[str, int]) -> None:
    """Marks come and go at random; between any two of them stands what was pushed between them, and nothing else."""
    rng = np.random.default_rng(seed)
    with tuned(knobs, threads=1 + seed % 2):
        tables = random_tables(rng, 5, 2, count=4, rows_max=300)
        group, shard = Group(tables, 5, group=seed % 2, groups=2), int(rng.integers(5))
        store = group.stores[shard]
        marks: list[int] = []
        pushed: list[tuple[int, set[tuple[int, int]]]] = []
        """Newest mark before a push, and its rows."""

        def push(rows: int) -> None:
            listed, gradients = group.random_push(rng, shard, rows)
            group.apply(shard, listed, gradients)
            of_table = np.repeat(listed[0], listed[1])
            keys = set(zip(of_table.tolist(), listed[2].tolist(), strict=True))
            pushed.append((marks[-1] if marks else 0, keys))

        for _ in range(30):
            if rng.random() < 0.5:
                push(30)
            elif rng.random() < 0.6 or len(marks) < 3:
                marks.append(store.mark_changes())
            else:
                dropped = marks.pop(int(rng.integers(len(marks) - 1)))  # not the newest one
                store.drop_mark(dropped)
                assert not store.has_mark(dropped)
        while len(marks) > 1:
            since = marks[0]
            marks.append(store.mark_changes())
            expected: set[tuple[int, int]] = set().union(*(rows for at, rows in pushed if at >= since))
            wanted = {key: record for key, record in touched(group, shard).items() if key in expected}
            snapshot = Snapshot(store, columns_of(tables), (since, marks[-1]))
            assert snapshot.rows == len(expected)
            push(40)
            if rng.random() < 0.7:  # as when a checkpoint ends: what was dropped is copied out all the same
                store.drop_mark(marks.pop(int(rng.integers(1, len(marks)))))
            found: dict[tuple[int, int], bytes] = {}
            while (chunk := snapshot.take(int(rng.integers(1, 2000))))[1]:
                new = records_in(tables, chunk)
                assert not new.keys() & found.keys()
                found |= new
                push(20)
            assert found == wanted and snapshot.taken == snapshot.rows
            snapshot.close()
            store.drop_mark(marks.pop(0))


def test_changes_of_a_huge_table_take_no_memory_in_proportion_to_it() -> None:
    store = Store(0, 1)
    store.add_table(10**11, 1, 1, 0, "cauchy", "sgd", (0.1,), "zeros", 0, 0.0, 0.0)
    rows = np.arange(0, 10**11, 10**11 // 50, dtype=np.int64)
    store.apply(*sections((0, rows)), np.ones(len(rows), np.float32), None)
    mark = store.mark_changes()
    before, began = resident_bytes(), time.monotonic()
    changed = rows[::5]
    store.apply(*sections((0, changed)), np.ones(len(changed), np.float32), None)
    snapshot = Snapshot(store, [[4]], (mark, store.mark_changes()))
    _, count, data = snapshot.take(1 << 20)
    assert sorted(data[: 8 * count].view(np.int64).tolist()) == changed.tolist()
    assert resident_bytes() - before < 4 << 20 and time.monotonic() - began < 5


def test_nothing_is_noted_where_there_is_no_mark_and_old_marks_stay_gone() -> None:
    tables = [Table(rows=50, dim=4, k=1, r=0, generator="cauchy", optimizer="sgd", hyper=(0.1,))]
    group = Group(tables, 1)
    store = group.stores[0]
    first = store.mark_changes()
    store.drop_mark(first)
    group.apply(0, sections((0, range(50))), np.ones(200, np.float32))
    second = store.mark_changes()
    assert second > first and store.has_mark(second) and not store.has_mark(first)
    for marks in [(first, second), (second, second), (second, second + 1), (0, second)]:
        with pytest.raises(ValueError, match="are not noted"):
            Snapshot(store, columns_of(tables), marks)
    assert Snapshot(store, columns_of(tables), (second, store.mark_changes())).take(1 << 20)[1] == 0


def test_what_does_not_fit_is_refused() -> None:
    tables = [Table(rows=50, dim=4, k=1, r=0, generator="cauchy", optimizer="adagrad", hyper=(0.1, 0.1))]
    store = Group(tables, 1).stores[0]
    with pytest.raises(ValueError, match="got columns of 0 tables, the store has 1"):
        Snapshot(store, [])
    with pytest.raises(ValueError, match="columns of table 0 have 16 bytes, expected 32"):
        Snapshot(store, [[16]])
    snapshot = Snapshot(store, [[16, 16]])
    with pytest.raises(RuntimeError, match="another one of this store is not over"):
        Snapshot(store, [[16, 16]])
    with pytest.raises(RuntimeError, match="a snapshot is being copied out"):
        store.restore(np.zeros(0, np.uint64), np.zeros(0, np.uint8))
    snapshot.close()
    store.restore(np.zeros(0, np.uint64), np.zeros(0, np.uint8))
    lacking = Store(0, 1)
    lacking.add_table(50, 4, 1, 0, "cauchy", "sgd", (0.1,), "zeros", 0, 0.0, 0.0, recovered=False)
    with pytest.raises(RuntimeError, match="50 rows of table 0 are not recovered yet"):
        Snapshot(lacking, [[16]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_whole_records_are_set_with_their_state_and_parity(optimizer: str) -> None:
    """What a snapshot hands out makes the same rows on another group of stores, of another size."""
    rng = np.random.default_rng(3)
    hyper = OPTIMIZERS[optimizer]

    def table(n: int, k: int, r: int) -> Table:
        return Table(rows=200, dim=5, k=k, r=r, generator="cauchy", optimizer=optimizer, hyper=hyper, init="uniform",
                     init_seed=7, init_scale=0.5, init_state=0.25, shards=n)  # fmt: skip

    one = Group([table(4, 3, 1)], 4)
    other = Group([table(5, 2, 2)], 5)
    for _ in range(5):
        for shard in range(4):
            one.apply(shard, *one.random_push(rng, shard, 30))
    shape = one.reference.tables[0]
    for shard in range(4):
        snapshot = Snapshot(one.stores[shard], columns_of([shape]))
        while (chunk := snapshot.take(500))[1]:
            for (index, row), record in records_in([shape], chunk).items():
                _, owner = other.reference.tables[0].shard_of(row)
                values = np.frombuffer(record, np.float32)
                other.stores[owner].assign_records(*sections((index, [row])), values, other.windows[owner])
                other.reference._records[index, row] = one.reference.record(index, row)
    other.exchange()
    for shard in range(5):
        other.check_rows(shard)
    other.check_parity()
    before = other.stores[0].memory()
    bad = np.zeros(used_bytes(shape) // 4, np.float32)
    bad[2] = np.inf
    row = other.rows_of(0, 0)[0]
    with pytest.raises(ValueError, match=f"the values for row {row} of table 0 are not all finite"):
        other.stores[0].assign_records(*sections((0, [row])), bad, other.windows[0])
    with pytest.raises(ValueError, match=r"got \d floats, expected"):
        short = np.zeros(5 if optimizer != "sgd" else 1, np.float32)
        other.stores[0].assign_records(*sections((0, [row])), short, other.windows[0])
    assert other.stores[0].memory() == before
    other.check_rows(0)


def test_a_mark_that_is_not_there_is_none_to_drop() -> None:
    store = Group([Table(90, 3, 3, 1, shards=5)], 5).stores[0]
    store.drop_mark(7)
    marks = [store.mark_changes() for _ in range(3)]
    for unknown in (0, 99):
        store.drop_mark(unknown)
    assert all(store.has_mark(mark) for mark in marks) and not store.has_mark(99)


def test_an_answer_has_changed_rows_of_one_table_alone() -> None:
    tables = [Table(90, 3, 3, 1, shards=5), Table(60, 2, 3, 1, shards=5), Table(90, 3, 3, 1, shards=5)]
    group = Group(tables, 5)
    store = group.stores[0]
    since = store.mark_changes()
    rows = {table: group.rows_of(0, table)[:4] for table in (0, 2)}
    listed = sections(*rows.items())
    group.apply(0, listed, np.ones(3 * len(listed[2]), np.float32))
    changes = store.changes_between(since, store.mark_changes())
    place, found, is_last = (0, 0, 0), [], False
    while not is_last:
        table, changed, place, is_last = store.next_rows(changes, *place, 1 << 20)
        found.append((table, sorted(changed.tolist())))
    assert [each for each in found if each[1]] == [(table, sorted(some)) for table, some in rows.items()]

"""A store is copied while it changes: when nothing is left, both have the same rows and the same parity."""

import numpy as np
import pytest
from store_group import Group, add_table, random_tables, sections, tuned

from ecrec.store import Copying, Store
from ecrec.store.reference import Table

KNOBS = [{}, {"unindexed_bytes_max": 0}, {"run_rows": 2, "pause_bytes": 4096}]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("seed", range(6))
def test_a_store_that_changes_is_copied(seed: int, knobs: dict[str, int]) -> None:
    rng = np.random.default_rng(seed)
    with tuned(knobs, threads=1 + seed % 2):
        tables = random_tables(rng, 5, 2, count=4, rows_max=300)
        group = Group(tables, 5, group=seed % 2, groups=2)

        def push() -> None:
            shard = int(rng.integers(0, 5))
            group.apply(shard, *group.random_push(rng, shard, 40))

        for _ in range(6):
            push()
        group.exchange()
        copying = Copying(group.stores[2])
        left = copying.rows
        memory = group.stores[2].memory()
        assert left == memory["data_rows_touched"] + memory["parity_rows_touched"]
        assert copying.nbytes == memory["data_bytes_touched"] + memory["parity_bytes_touched"]
        other = group.new_store(2)
        rounds = 0
        while copying.rows:
            rounds += 1
            if rounds < 40 and rng.random() < 0.5:
                push()
                group.exchange()
            bytes_max = int(rng.integers(1, 3000)) if rounds < 40 else 1 << 20
            before, before_bytes = copying.rows, copying.nbytes
            keys, records = copying.take(bytes_max)
            assert len(keys) == 1 or len(records) <= bytes_max
            assert len(set(keys.tolist())) == len(keys)
            assert (copying.rows, copying.nbytes) == (before - len(keys), before_bytes - len(records))
            other.put(keys, records)
        assert not copying.nbytes and not len(copying.take(1 << 20)[0])
        copying.close()
        assert other.memory() == group.stores[2].memory()
        group.stores[2] = other
        for shard in range(5):
            group.check_rows(shard)
        group.check_parity()
        assert Copying(other).rows == other.memory()["data_rows_touched"] + other.memory()["parity_rows_touched"]


def test_a_row_that_changes_again_is_handed_out_again_and_others_are_not() -> None:
    tables = [Table(rows=200, dim=4, k=1, r=0, generator="cauchy", optimizer="sgd", hyper=(0.1,))]
    group = Group(tables, 1)
    group.apply(0, sections((0, range(200))), np.ones(800, np.float32))
    copying = Copying(group.stores[0])
    assert copying.take(1 << 20)[0].tolist() == list(range(200)) and not copying.rows
    group.apply(0, sections((0, [130, 7])), np.ones(8, np.float32))
    group.apply(0, sections((0, [7])), np.ones(4, np.float32))
    assert sorted(copying.take(1 << 20)[0].tolist()) == [7, 130] and not copying.rows


def test_a_table_that_is_added_later_is_in_it() -> None:
    table = Table(rows=50, dim=4, k=1, r=0, generator="cauchy", optimizer="sgd", hyper=(0.1,))
    group = Group([table], 1)
    store = group.stores[0]
    copying = Copying(store)
    store.add_table(50, 4, 1, 0, "cauchy", "sgd", (0.1,), "zeros", 0, 0.0, 0.0)
    store.apply(*sections((1, range(50))), np.ones(200, np.float32), None)
    keys, _ = copying.take(1 << 20)
    assert (keys >> np.uint64(48)).tolist() == [1] * 50


def test_of_a_table_that_is_added_later_a_parity_row_may_change_first() -> None:
    table = Table(rows=50, dim=4, k=2, r=1, shards=3)
    group = Group([table], 3)
    copying = Copying(group.stores[0])
    for store in group.stores:
        add_table(store, table)
    group.reference.tables.append(table)
    for shard in (1, 2):
        rows = group.rows_of(shard, 1)
        group.apply(shard, sections((1, rows)), np.ones(4 * len(rows), np.float32))
    group.exchange()
    keys, records = copying.take(1 << 20)
    assert len(keys) and set((keys >> np.uint64(48)).tolist()) == {1}
    other = group.new_store(0)
    other.put(keys, records)
    copying.close()
    group.stores[0] = other
    group.check_parity()


def test_what_does_not_fit_is_refused() -> None:
    table = Table(rows=50, dim=4, k=2, r=1, generator="cauchy", optimizer="sgd", hyper=(0.1,))
    group = Group([table], 4)
    store = group.stores[0]
    record = np.zeros(16, np.uint8)
    with pytest.raises(ValueError, match="shard 0 has no row in stripe 1 of table 0"):
        store.put(np.array([1], np.uint64), record)
    with pytest.raises(IndexError, match="stripe 25 of table 0, which has 25"):
        store.put(np.array([25], np.uint64), record)
    with pytest.raises(ValueError, match="got 15 bytes of records for 1 keys, expected 16"):
        store.put(np.array([0], np.uint64), record[1:])
    copying = Copying(store)
    with pytest.raises(RuntimeError, match="another one of this store is not over"):
        Copying(store)
    for refused in (
        lambda: store.put(np.array([0], np.uint64), record),
        lambda: store.restore(np.zeros(0, np.uint64), np.zeros(0, np.uint8)),
        lambda: store.wipe_parity(2),
    ):
        with pytest.raises(RuntimeError, match="is being copied"):
            refused()
    copying.close()
    store.put(np.array([0], np.uint64), record)
    lacking = Store(0, 1)
    lacking.add_table(50, 4, 1, 0, "cauchy", "sgd", (0.1,), "zeros", 0, 0.0, 0.0, recovered=False)
    with pytest.raises(RuntimeError, match="50 rows of table 0 are not recovered yet"):
        Copying(lacking)


def large_pair(rows: int = 60_000) -> Group:
    """A group whose slots have so many rows that their bitmaps have a level above, all of shard 0's touched."""
    group = Group([Table(rows, 1, 2, 1, shards=3)], 3)
    mine = group.rows_of(0, 0)
    group.stores[0].apply(*sections((0, mine)), np.ones(len(mine), np.float32), group.windows[0])
    return group


def test_a_large_slot_is_copied_whole_in_small_pieces() -> None:
    """Words of a bitmap are emptied one bit at a time: the level above says so only of an empty one."""
    store = large_pair().stores[0]
    expected = {class_id: store.coded_rows(class_id, 0, store.class_size(class_id)) for class_id in range(3)}
    copying, other = Copying(store), Store(0, 3)
    add_table(other, Table(60_000, 1, 2, 1, shards=3))
    while copying.rows:
        before = copying.rows
        other.put(*copying.take(30 * store.record_bytes(0)))
        assert before - copying.rows in (30, before)
    for class_id, (keys, records) in expected.items():
        found = other.coded_rows(class_id, 0, other.class_size(class_id))
        assert found[0].tolist() == keys.tolist() and found[1].tobytes() == records.tobytes()


def test_a_piece_holds_as_many_bytes_as_were_asked_for() -> None:
    store = large_pair(600).stores[0]
    copying, each = Copying(store), store.record_bytes(0)
    for bytes_max, rows in ((5 * each, 5), (5 * each + 1, 5), (6 * each - 1, 5), (each, 1), (1, 1)):
        keys, records = copying.take(bytes_max)
        assert (len(keys), len(records)) == (rows, rows * each)

"""Properties of the store under arbitrary pushes and folds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from store_group import Group, add_table, keys_of, random_tables, split_blob

from ecrec.codec.reference import PRODUCTS
from ecrec.store import RowBuffer, Store
from ecrec.store.reference import Table

TABLES = (Table(50, 1, 1, 0), Table(60, 5, 1, 0), Table(20, 9, 1, 0))


def new_store() -> Store:
    store = Store(0, 1)
    for table in TABLES:
        add_table(store, table)
    return store


stripes = st.tuples(st.integers(0, 2), st.integers(0, 19))
folds = st.tuples(st.integers(0, 255), st.lists(stripes, max_size=12), st.integers(0, 3))
steps = st.one_of(folds, st.just("take"))


@given(st.lists(steps, max_size=12), st.integers(0, 1 << 32))
def test_a_row_buffer_is_a_dictionary_merged_by_xor(script: list[object], seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = new_store()
    buffer = RowBuffer(store)
    expected: dict[int, np.ndarray] = {}
    for step in script:
        if isinstance(step, tuple):
            coefficient, listed, kind = step
            keys = keys_of(*listed)
            records = []
            for table, _ in listed:
                size = store.record_bytes(table)
                records.append(rng.integers(0, 256 if kind else 1, size=size, dtype=np.uint8))
            buffer.fold(coefficient, keys, np.concatenate([np.empty(0, dtype=np.uint8), *records]))
            for each, record in zip(keys.tolist(), records, strict=True):
                if coefficient:
                    expected[each] = expected.get(each, np.zeros_like(record)) ^ PRODUCTS[coefficient, record]
        else:
            keys, records_taken = buffer.take()
            assert keys.tolist() == list(expected)
            assert split_blob(store, keys, records_taken) == {each: row.tobytes() for each, row in expected.items()}
            expected = {}
        assert len(buffer) == len(expected)
        assert buffer.nbytes == sum(len(row) for row in expected.values())
        assert buffer.nonzero().tolist() == [each for each, row in expected.items() if row.any()]


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 16), st.integers(1, 3), st.integers(0, 12))
def test_windows_folded_from_all_members_are_the_parity(seed: int, n: int, groups: int, pushes: int) -> None:
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, n, groups, count=3, rows_max=40 * groups)
    group = Group(tables, n, int(rng.integers(groups)), groups)
    for _ in range(pushes):
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 8))
        if rng.random() < 0.4:
            group.exchange()
    group.exchange()
    group.check_parity()
    for shard in range(n):
        group.check_rows(shard)


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(2, 6), st.integers(1, 5))
def test_seeding_resumed_at_any_point_gives_the_parity(seed: int, n: int, rows_max: int) -> None:
    rng = np.random.default_rng(seed)
    group = Group(random_tables(rng, n, 1, count=3, rows_max=60), n)
    for member in range(n):
        for peer in range(n):
            for class_id in range(len(group.stores[0].codes) * n):
                group.windows[member].set_limit(peer, class_id, 0)
    todo = []
    for index, (k, r, _) in enumerate(group.stores[0].codes):
        for residue in range(n):
            for slot in range(k):
                for parity in range(k, k + r):
                    todo.append(((residue + slot) % n, (residue + parity) % n, index * n + residue))
    for _ in range(400):
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 4))
        if todo:
            at = int(rng.integers(len(todo)))
            member, peer, class_id = todo[at]
            finished, blocked = group.stores[member].seed(group.windows[member], peer, class_id, rows_max)
            assert blocked.size == 0
            if finished:
                del todo[at]
        else:
            break
        if rng.random() < 0.3:
            group.exchange()
    for member, peer, class_id in todo:
        assert group.stores[member].seed(group.windows[member], peer, class_id, 1 << 40)[0]
    group.exchange()
    group.check_parity()

"""Seeding, captures, and a lost shard put together again, on real stores."""

import numpy as np
import pytest
from store_group import ALL_CLASSES, OPTIMIZERS, Group, key, keys_of, random_tables, sections, split_blob, tuned

from ecrec.codec import Code
from ecrec.store import Capture, RowBuffer, Store, Window
from ecrec.store.reference import KEY_STRIPE_BITS, Table

U64 = np.uint64


def table_of(rows: int, k: int, r: int, n: int, dim: int = 5) -> Table:
    return Table(rows, dim, k, r, optimizer="adagrad", hyper=(0.1, 1e-8), shards=n, init_seed=rows)


def filled(tables: list[Table], n: int, seed: int, pushes: int = 12) -> Group:
    group = Group(tables, n)
    rng = np.random.default_rng(seed)
    for _ in range(pushes):
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 10))
        if rng.random() < 0.3:
            group.exchange()
    group.exchange()
    return group


def recover(group: Group, lost: list[int], in_ranges: bool) -> list[Store]:
    """Replacements of the lost shards' data rows, decoded from the survivors' captures and coded rows."""
    replacements = {shard: group.new_store(shard, recovered=False) for shard in lost}
    n = group.n
    any_store = group.stores[0]
    for index, (k, r, generator) in enumerate(any_store.codes):
        code = Code(k, r, generator)
        for residue in range(n):
            class_id = index * n + residue
            slots = {slot: (residue + slot) % n for slot in range(k + r)}
            gone = [slot for slot in range(k) if slots[slot] in lost]
            present = [slot for slot in slots if slots[slot] not in lost][:k]
            if not gone or len(present) < k:
                continue
            matrix = code.decode_matrix(present, gone)
            size = any_store.class_size(class_id)
            for first in range(0, size, 3 if in_ranges else size):
                last = min(size, first + (3 if in_ranges else size))
                decoded = [RowBuffer(any_store) for _ in gone]
                for column, slot in enumerate(present):
                    store = group.stores[slots[slot]]
                    if slot < k:
                        blob = store.coded_rows(class_id, first, last)
                    else:
                        blob = Capture(store, class_id, first, last).take()
                    for row, buffer in enumerate(decoded):
                        buffer.fold(int(matrix[row, column]), *blob)
                for slot, buffer in zip(gone, decoded, strict=True):
                    replacements[slots[slot]].restore(*buffer.take())
                    replacements[slots[slot]].mark_recovered(class_id, first, last)
    return [replacements[shard] for shard in lost]


@pytest.mark.parametrize(
    ("n", "k", "r", "lost"), [(5, 4, 1, 1), (5, 3, 2, 2), (3, 1, 2, 2), (4, 1, 1, 1), (7, 2, 3, 3)]
)
@pytest.mark.parametrize("in_ranges", [False, True])
def test_lost_shards_come_back_byte_for_byte(kernel: str, n: int, k: int, r: int, lost: int, in_ranges: bool) -> None:
    tables = [table_of(97, k, r, n), table_of(61, 1, r, n, dim=4), table_of(30, k, r, n, dim=1)]
    group = filled(tables, n, seed=n * k + r)
    group.check_parity()
    gone = np.random.default_rng(n).permutation(n)[:lost].tolist()
    originals = [group.stores[shard] for shard in gone]
    for shard, replacement in zip(gone, recover(group, gone, in_ranges), strict=True):
        group.stores[shard] = replacement
        for class_id in range(64):
            assert replacement.next_missing(class_id, 0) == -1
        group.check_rows(shard)
    for original, shard in zip(originals, gone, strict=True):
        for class_id in range(2 * n):
            expected = original.coded_rows(class_id, 0, original.class_size(class_id))
            found = group.stores[shard].coded_rows(class_id, 0, original.class_size(class_id))
            assert found[0].tolist() == expected[0].tolist()
            assert found[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_every_optimizer_comes_back_and_goes_on(optimizer: str) -> None:
    n, lost = 5, [1, 3]
    hyper = OPTIMIZERS[optimizer]
    tables = [
        Table(97, dim, 3, 2, optimizer=optimizer, hyper=hyper, init_state=0.1, shards=n, init_seed=dim)
        for dim in (1, 7, 16)
    ]
    group = filled(tables, n, seed=2)
    group.check_parity()
    for shard, replacement in zip(lost, recover(group, lost, in_ranges=False), strict=True):
        group.stores[shard] = replacement
        group.windows[shard] = group.new_window(replacement)
        for class_id in range(n):
            # What it held of the parity is not decoded here.
            replacement.wipe_parity(class_id)
        group.check_rows(shard)
    rng = np.random.default_rng(3)
    for shard in [*lost, *lost]:
        group.apply(shard, *group.random_push(rng, shard, 10))
        group.check_rows(shard)


def test_lost_parities_are_seeded_while_pushes_go_on() -> None:
    n = 5
    group = filled([table_of(150, 3, 2, n), table_of(99, 3, 2, n, dim=2)], n, seed=3)
    rng = np.random.default_rng(4)
    peer = 2
    group.stores[peer].wipe_parity(0)
    for class_id in range(n):
        group.stores[peer].wipe_parity(class_id)
    assert group.parity_rows(peer) == {} and group.stores[peer].memory()["parity_rows_touched"] == 0
    todo = []
    for member in range(n):
        for residue in range(n):
            if (member - residue) % n < 3 <= (peer - residue) % n:
                group.windows[member].set_limit(peer, residue, 0)
                todo.append((member, residue))
    while todo:
        member, class_id = todo[int(rng.integers(len(todo)))]
        before = len(group.windows[member].buffer(peer))
        limit = group.windows[member].limit(peer, class_id)
        finished, blocked = group.stores[member].seed(group.windows[member], peer, class_id, 2)
        assert blocked.size == 0
        assert len(group.windows[member].buffer(peer)) <= before + 2
        assert group.windows[member].limit(peer, class_id) > limit
        if finished:
            todo.remove((member, class_id))
            assert group.windows[member].limit(peer, class_id) == Window.UNLIMITED
            assert group.stores[member].seed(group.windows[member], peer, class_id, 2)[0]
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 6))
        if rng.random() < 0.5:
            group.exchange()
    group.exchange()
    group.check_parity()


def test_seeding_stops_before_a_row_that_is_not_recovered() -> None:
    group = Group([table_of(40, 1, 1, 2)], 2)
    original = group.stores[0]
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(5 * len(rows), dtype=np.float32))
    keys, coded = original.coded_rows(0, 0, 20)
    store = group.new_store(0, recovered=False)
    window = Window(store)
    store.mark_recovered(0, 2, 4)
    store.restore(keys[:2], coded[: 2 * store.record_bytes(0)])
    store.restore(keys[4:6], coded[4 * store.record_bytes(0) : 6 * store.record_bytes(0)])
    finished, blocked = store.seed(window, 1, 0, 3)
    assert (finished, blocked.size, window.limit(1, 0)) == (False, 0, 5)
    assert window.buffer(1).take()[0].tolist() == [key(0, 0), key(0, 2), key(0, 8)]
    finished, blocked = store.seed(window, 1, 0, 3)
    assert (finished, window.limit(1, 0)) == (False, 6)
    assert blocked.tolist() == [key(0, 12), key(0, 14), key(0, 16)]
    assert window.buffer(1).take()[0].tolist() == [key(0, 10)]
    finished, blocked = store.seed(window, 1, 0, 100)
    assert (finished, window.limit(1, 0)) == (False, 6)
    assert blocked.tolist() == [key(0, stripe) for stripe in range(12, 40, 2)]


@pytest.mark.parametrize("of_keys", [False, True])
def test_a_capture_goes_on_with_the_folds_of_its_stripes_only(kernel: str, of_keys: bool) -> None:
    n, holder, class_id = 5, 4, 1
    group = filled([table_of(200, 3, 2, n), table_of(77, 3, 2, n)], n, seed=8)
    store = group.stores[holder]
    size = store.class_size(class_id)
    first, last = 2, size - 3
    inside = [
        key(table, stripe)
        for table in (0, 1)
        for stripe in range(class_id, group.reference.tables[table].stripes(0), n)
        if first <= int(store.positions(keys_of((table, stripe)))[0]) < last
    ]
    assert inside
    if of_keys:
        capture = Capture.of_keys(store, class_id, np.array(inside, dtype=U64))
    else:
        capture = Capture(store, class_id, first, last)
    rng = np.random.default_rng(1)
    for _ in range(6):
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 30))
        keys, records = group.windows[shard].buffer(holder).take()
        store.fold(shard, ALL_CLASSES, keys, records)
        capture.fold(shard, keys, records)
    now = {each: record for each, record in group.parity_rows(holder).items() if each in inside}
    found = split_blob(store, *capture.take())
    assert {each: record for each, record in found.items() if any(record)} == now
    assert set(found) <= set(inside)
    assert capture.take()[0].size == 0


def test_a_capture_is_a_copy() -> None:
    group = filled([table_of(60, 2, 1, 3)], 3, seed=2)
    before = group.parity_rows(2)
    capture = Capture(group.stores[2], 0, 0, 100)
    group.stores[2].wipe_parity(0)
    assert split_blob(group.stores[2], *capture.take()) == before


def test_span_ends_before_too_many_touched_parity_rows() -> None:
    group = Group([table_of(60, 1, 1, 2), table_of(60, 1, 1, 2)], 2)
    stripes = [0, 4, 6, 50]
    for table in (0, 1):
        group.apply(0, sections((table, stripes)), np.ones(20, dtype=np.float32))
    group.exchange()
    store = group.stores[1]
    touched = [0, 2, 3, 25, 30, 32, 33, 55]
    assert store.class_size(0) == 60
    for first in range(60):
        for rows_max in range(9):
            fits = [end for end in range(first + 1, 61) if sum(first <= p < end for p in touched) <= rows_max]
            assert store.span(0, first, 60, rows_max) == max(fits, default=first + 1), (first, rows_max)
    assert store.span(0, 0, 1000, 8) == 1000
    assert store.span(0, 4, 20, 0) == 20


def test_span_ends_before_too_many_bytes_of_parity_rows() -> None:
    group = Group([table_of(60, 1, 1, 2), table_of(60, 1, 1, 2, dim=40)], 2)
    stripes = [0, 4, 6, 50]
    group.apply(0, sections((0, stripes)), np.ones(20, dtype=np.float32))
    group.apply(0, sections((1, stripes)), np.ones(160, dtype=np.float32))
    group.exchange()
    store = group.stores[1]
    sizes = {at + base: store.record_bytes(t) for t, base in ((0, 0), (1, 30)) for at in (0, 2, 3, 25)}
    assert len(set(sizes.values())) == 2
    for first in range(60):
        for bytes_max in (0, 31, 32, 100, 200, 500, 1 << 20):
            fits = [first + 1]
            for end in range(first + 1, 61):
                inside = [size for at, size in sizes.items() if first <= at < end]
                if len(inside) <= 1 or sum(inside) <= bytes_max:
                    fits.append(end)
            assert store.span(0, first, 60, 100, bytes_max) == max(fits), (first, bytes_max)


def test_a_seed_stops_before_too_many_bytes_but_never_before_the_first_row() -> None:
    group = Group([table_of(40, 1, 1, 2, dim=40)], 2)
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(40 * len(rows), dtype=np.float32))
    store, size = group.stores[0], group.stores[0].record_bytes(0)
    for bytes_max, wanted in ((0, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (5 * size + 1, 5)):
        window = Window(store)
        sent = 0
        finished = False
        while not finished:
            finished, _ = store.seed(window, 1, 0, 100, bytes_max)
            count = len(window.buffer(1).take()[0])
            sent += count
            assert count <= wanted
        assert sent == len(rows)


def test_restore_leaves_a_recovered_row_alone_and_touches_no_zero_row() -> None:
    group = filled([table_of(50, 2, 1, 3)], 3, seed=5)
    keys, coded = group.stores[0].coded_rows(0, 0, 100)
    store = group.new_store(0, recovered=False)
    size = store.record_bytes(0)
    store.restore(keys[:1], np.zeros(size, dtype=np.uint8))
    assert store.memory()["data_rows_touched"] == 0
    store.restore(keys, coded)
    store.restore(keys, coded[::-1].copy())
    assert store.coded_rows_of(keys)[0].tolist() == keys[1:].tolist()
    assert store.coded_rows_of(keys)[1].tobytes() == coded[size:].tobytes()
    found = group.stores[0].coded_rows_of(keys[::-1].copy())
    assert found[0].tolist() == keys[::-1].tolist()


def test_missing_rows_are_found_by_position() -> None:
    group = Group([table_of(700, 2, 1, 3), table_of(40, 1, 1, 3), table_of(41, 2, 1, 3)], 3)
    store = group.new_store(1, recovered=False)
    members = {class_id: sorted({*range(store.class_size(class_id))}) for class_id in (0, 1)}
    rng = np.random.default_rng(0)
    missing: dict[int, set[int]] = {}
    for class_id in members:
        slot = (1 - class_id) % 3
        missing[class_id] = set()
        for table in (0, 2):
            shape = group.reference.tables[table]
            for stripe in range(class_id, shape.stripes(0), 3):
                if shape.rows_of_stripe(0, stripe)[slot] is not None:
                    missing[class_id].add(int(store.positions(keys_of((table, stripe)))[0]))
    for _ in range(60):
        class_id = int(rng.integers(2))
        first = int(rng.integers(0, store.class_size(class_id)))
        last = first + int(rng.integers(0, 12))
        store.mark_recovered(class_id, first, last)
        missing[class_id] -= set(range(first, last))
        for start in (0, first, last):
            expected = min((p for p in missing[class_id] if p >= start), default=-1)
            assert store.next_missing(class_id, start) == expected
    assert store.next_missing(2, 0) == -1, "shard 1 is parity of class 2"
    assert store.next_missing(60, 0) == -1


def test_keys_of_rows_that_are_missing_are_told_from_the_others() -> None:
    group = filled([table_of(80, 3, 2, 5), table_of(41, 2, 2, 5)], 5, seed=6)
    store = group.new_store(1, recovered=False)
    rows = [group.rows_of(1, table) for table in range(2)]
    keys = np.sort(store.missing(*sections((0, rows[0]), (1, rows[1]))))
    assert store.missing_of(keys, len(keys)).tolist() == keys.tolist()
    assert store.missing_of(keys, 3).tolist() == keys[:3].tolist() and store.missing_of(keys[:0], 3).size == 0
    here = keys[::3].copy()
    store.mark_recovered_keys(here)
    left = np.setdiff1d(keys, here)
    assert store.missing_of(keys, len(keys)).tolist() == left.tolist()
    assert store.missing_of(keys, 0).size == 0
    assert store.missing_of(here, 1).size == 0
    assert group.stores[1].missing_of(keys, 1).size == 0, "nothing is lost there"


def test_row_buffer_forgets_a_class() -> None:
    group = filled([table_of(80, 3, 2, 5), table_of(40, 2, 2, 5)], 5, seed=6)
    store = group.stores[0]
    buffer = RowBuffer(store)
    for class_id in range(10):
        buffer.fold(3, *store.coded_rows(class_id, 0, store.class_size(class_id)))
    keys = buffer.nonzero()
    buffer.remove_class(4)
    buffer.remove_class(40)
    left = keys[store.classes(keys) != 4]
    assert buffer.nonzero().tolist() == left.tolist() and len(left) < len(keys)
    found = split_blob(store, *buffer.take())
    assert sorted(found) == sorted(left.tolist())
    assert {each >> KEY_STRIPE_BITS for each in found} == {0, 1}
    with pytest.raises(ValueError, match="class id is 64"):
        buffer.remove_class(64)


@pytest.mark.parametrize("seed", range(8))
def test_parity_is_the_encoding_of_the_coded_rows(kernel: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    groups = int(rng.integers(1, 4))
    tables = random_tables(rng, n, groups, count=4, rows_max=60 * groups)
    group = Group(tables, n, int(rng.integers(groups)), groups)
    for _ in range(10):
        shard = int(rng.integers(n))
        group.apply(shard, *group.random_push(rng, shard, 12))
        if rng.random() < 0.4:
            group.exchange()
    group.exchange()
    group.check_parity()
    for shard in range(n):
        group.check_rows(shard)


def test_a_fold_in_many_batches_takes_each_row_at_its_own_coefficient() -> None:
    """Rows of two classes come in one window, in any order."""
    table = Table(900, 3, 3, 2, shards=5)
    with tuned({"fold_batch_rows": 4}):
        group = Group([table], 5)
        rng = np.random.default_rng(3)
        for shard in range(5):
            rows = rng.permutation(group.rows_of(shard, 0))
            group.apply(shard, sections((0, rows.tolist())), rng.standard_normal(3 * len(rows)).astype(np.float32))
        group.exchange()
        group.check_parity()


def test_parity_of_a_class_of_no_code_is_none_to_wipe() -> None:
    group = Group([Table(90, 3, 3, 2, shards=5)], 5)
    for class_id in (5, 63):
        group.stores[0].wipe_parity(class_id)
    with pytest.raises(ValueError, match="class id is 64"):
        group.stores[0].wipe_parity(64)


def test_a_class_of_which_a_shard_has_no_data_is_seeded_at_once() -> None:
    group = Group([Table(90, 3, 3, 1, shards=5)], 5)
    store, window = group.stores[0], Window(group.stores[0])
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(3 * len(rows), np.float32))
    for class_id in (1, 2, 60):  # parity, nothing, no class of a code
        assert store.seed(window, 4, class_id, 10) == (True, pytest.approx([]))
        assert window.limit(4, class_id) == Window.UNLIMITED and window.rows() == 0
        assert not store.missing_keys(class_id, 0, 10).size

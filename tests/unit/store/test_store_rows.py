"""gather, apply and assign, against the plain store, byte by byte, on every kernel."""

from typing import Any

import numpy as np
import pytest
from store_group import ALL_CLASSES, OPTIMIZERS, Group, add_table, key, keys_of, sections, split_blob

from ecrec.store import Store, Window
from ecrec.store.reference import F32, ReferenceStore, Table


def one_shard_store(optimizer: str, dim: int, rows: int = 40) -> tuple[Store, ReferenceStore]:
    table = Table(
        rows, dim, 1, 0, "cauchy", optimizer, OPTIMIZERS[optimizer],
        init="uniform", init_seed=9, init_scale=0.3, init_state=0.25,
    )  # fmt: skip
    store = Store(0, 1)
    add_table(store, table)
    return store, ReferenceStore([table])


def records_of(store: Store, table: int, rows: list[int]) -> bytes:
    listed = sections((table, rows))
    out = np.empty(store.gather_bytes(*listed[:2], records=True), dtype=np.uint8)
    store.gather(*listed, out, records=True)
    return out.tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [1, 3, 16, 17, 64, 100])
def test_apply_gives_the_bytes_of_numpy_float32(kernel: str, optimizer: str, dim: int) -> None:
    store, reference = one_shard_store(optimizer, dim)
    rng = np.random.default_rng(dim)
    for _ in range(4):
        rows = rng.integers(0, 40, size=25).tolist()
        gradients = (rng.standard_normal((25, dim)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        store.apply(*sections((0, rows)), gradients.ravel(), None)
        for row, gradient in zip(rows, gradients, strict=True):
            reference.apply(0, row, gradient)
    expected = b"".join(reference.record(0, row).tobytes() for row in range(40))
    assert records_of(store, 0, list(range(40))) == expected


def test_a_row_twice_in_one_push_is_stepped_twice_in_order() -> None:
    store, reference = one_shard_store("adagrad", 3)
    gradients = np.arange(9, dtype=np.float32).reshape(3, 3)
    store.apply(*sections((0, [7, 7]), (0, [7])), gradients.ravel(), None)
    for gradient in gradients:
        reference.apply(0, 7, gradient)
    assert records_of(store, 0, [7]) == reference.record(0, 7).tobytes()


def test_assign_sets_weights_and_keeps_state() -> None:
    store, reference = one_shard_store("adagrad", 5)
    gradient: F32 = np.full(5, 0.5, dtype=np.float32)
    values: F32 = np.arange(5, dtype=np.float32)
    store.apply(*sections((0, [3])), gradient, None)
    store.assign(*sections((0, [3, 4])), np.concatenate([values, values]), None)
    reference.apply(0, 3, gradient)
    reference.assign(0, 3, values)
    reference.assign(0, 4, values)
    assert records_of(store, 0, [3, 4]) == reference.record(0, 3).tobytes() + reference.record(0, 4).tobytes()


def test_gather_gives_weights_without_padding_and_touches_nothing() -> None:
    tables = [Table(50, dim, 2, 1, init_seed=dim, shards=4, groups=2) for dim in (3, 8)]
    group = Group(tables, 4, group=1, groups=2)
    store = group.stores[2]
    parts = [(1, group.rows_of(2, 1)), (0, group.rows_of(2, 0)), (1, group.rows_of(2, 1)[:1])]
    listed = sections(*parts)
    out = np.empty(store.gather_bytes(*listed[:2]), dtype=np.uint8)
    store.gather(*listed, out)
    expected = b"".join(group.reference.weights(table, row).tobytes() for table, rows in parts for row in rows)
    assert out.tobytes() == expected
    assert store.memory()["data_rows_touched"] == 0


@pytest.mark.parametrize("rows", [511, 512, 513, 1024, 3000])
@pytest.mark.parametrize("dim", [16, 20, 64, 128])
def test_gather_of_more_rows_than_a_run_has(kernel: str, rows: int, dim: int) -> None:
    """Every third row was never touched, and all come in no order, some twice."""
    store, reference = one_shard_store("rowwise-adagrad", dim, rows)
    rng = np.random.default_rng(rows + dim)
    touched = [row for row in range(rows) if row % 3]
    gradients = rng.standard_normal((len(touched), dim)).astype(np.float32)
    store.apply(*sections((0, touched)), gradients.ravel(), None)
    for row, gradient in zip(touched, gradients, strict=True):
        reference.apply(0, row, gradient)
    wanted = rng.integers(0, rows, size=rows).tolist()
    listed = sections((0, wanted))
    out = np.empty(rows * dim * 4, dtype=np.uint8)
    store.gather(*listed, out)
    assert out.tobytes() == b"".join(reference.weights(0, row).tobytes() for row in wanted)


@pytest.mark.parametrize("rows", [7_000, 8_192, 15_000, 16_383])
def test_huge_pages_keep_every_byte_up_to_the_last_row(rows: int) -> None:
    """256 bytes a row: the last huge page of the memory is whole, nearly whole, or mostly beyond the table."""
    store, _ = one_shard_store("sgd", 64, rows)
    listed = sections((0, list(range(rows))))
    values = np.arange(rows * 64, dtype=np.float32)
    store.assign(*listed, values, None)
    assert not store.use_huge_pages(100), "a second look finds nothing more to move"
    store.assign(*sections((0, [rows - 1])), values[:64], None)
    out = np.empty(rows * 256, dtype=np.uint8)
    store.gather(*listed, out)
    values[-64:] = values[:64]
    assert out.tobytes() == values.tobytes()
    assert store.memory()["data_bytes_reserved"] == rows * 256


@pytest.mark.parametrize("r", [1, 2, 3])
def test_deltas_of_one_push_reach_every_parity_holder(kernel: str, r: int) -> None:
    table = Table(60, 17, 2, r, optimizer="rowwise-adagrad", hyper=(0.1, 1e-8), shards=5)
    group = Group([table], 5)
    rng = np.random.default_rng(r)
    for _ in range(3):
        group.apply(1, *group.random_push(rng, 1, 12))
    found: dict[int, dict[int, bytes]] = {}
    for peer in range(5):
        window = group.windows[1]
        assert window.nbytes() == sum(window.buffer(p).nbytes for p in range(5))
        assert window.rows() == sum(len(window.buffer(p)) for p in range(5))
        found[peer] = split_blob(group.stores[1], *window.buffer(peer).take())
        assert len(window.buffer(peer)) == 0 and window.buffer(peer).nbytes == 0
    expected: dict[int, dict[int, bytes]] = {peer: {} for peer in range(5)}
    for row in group.rows_of(1, 0):
        if group.reference.touched(0, row):
            stripe = row // 2
            for peer in table.parity_shards(stripe):
                expected[peer][key(0, stripe)] = group.reference.coded(0, row).tobytes()
    assert found == expected


@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize(("optimizer", "dim"), [("rowwise-adagrad", 12), ("adagrad", 64)])
def test_rows_that_do_not_come_again_are_no_longer_looked_up(kernel: str, optimizer: str, dim: int, r: int) -> None:
    """Then a row can stand in a window twice, and what both add up to is the same.

    64 floats and as many of state are whole lines, and 80 of such rows enough to go past the caches.
    """
    table = Table(400, dim, 2, r, optimizer=optimizer, hyper=(0.1, 1e-8), shards=5)
    group = Group([table], 5)
    rows, window = group.rows_of(1, 0), group.windows[1]
    rng = np.random.default_rng(r)
    sums: dict[tuple[int, int], Any] = {}

    def window_of(pushes: int) -> bool:
        """Whether a row stands in the window twice."""
        for _ in range(pushes):
            group.apply(1, sections((0, rows)), rng.standard_normal(dim * len(rows)).astype(np.float32))
        repeats = False
        for peer in range(5):
            keys, records = window.buffer(peer).take()
            repeats |= len(keys) != len(set(keys.tolist()))
            for one, record in zip(keys.tolist(), records.reshape(len(keys), -1) if len(keys) else [], strict=True):
                sums[peer, one] = sums.get((peer, one), 0) ^ record
        return repeats

    assert not any(window_of(2) for _ in range(18)), "half of the rows come again: looking up pays"
    assert not window_of(1)
    assert window_of(2), "none came again"
    for _ in range(14):
        window_of(1)
    assert not window_of(2), "each sixteenth window looks"
    assert not window_of(2)
    for row in rows:
        for peer in table.parity_shards(row // 2):
            assert sums[peer, key(0, row // 2)].tobytes() == group.reference.coded(0, row).tobytes()


def test_two_classes_whose_rows_go_to_one_peer_share_its_buffer(kernel: str) -> None:
    """While two of the three that hold parity of a shard's rows recover, all go to the third, looked up or not."""
    table = Table(400, 12, 2, 2, optimizer="rowwise-adagrad", hyper=(0.1, 1e-8), shards=4)
    group = Group([table], 4)
    rows, store = group.rows_of(0, 0), group.stores[0]
    window = group.windows[0] = Window(store)
    for class_id in range(4):
        window.set_limit(2, class_id, Window.UNLIMITED)
    rng = np.random.default_rng(5)
    sums: dict[int, Any] = {}
    for _ in range(3):
        group.apply(0, sections((0, rows)), rng.standard_normal(12 * len(rows)).astype(np.float32))
        keys, records = window.buffer(2).take()
        assert sorted(keys.tolist()) == sorted(key(0, row // 2) for row in rows)
        for one, record in zip(keys.tolist(), records.reshape(len(keys), -1), strict=True):
            sums[one] = sums.get(one, 0) ^ record
    for row in rows:
        assert sums[key(0, row // 2)].tobytes() == group.reference.coded(0, row).tobytes()


def test_deltas_are_written_only_below_the_limit() -> None:
    table = Table(120, 4, 1, 2, shards=3)
    group = Group([table, table], 3)
    rows = group.rows_of(0, 0)
    store, window = group.stores[0], Window(group.stores[0])
    offset = store.class_size(0) // 2
    assert [window.limit(peer, 0) for peer in range(3)] == [0, 0, 0]
    window.set_limit(1, 0, 5)
    window.set_limit(2, 0, offset + 3)
    listed = sections((0, rows), (1, rows))
    store.apply(*listed, np.ones(8 * len(rows), dtype=np.float32), window)
    assert store.positions(window.buffer(1).take()[0]).tolist() == list(range(5))
    assert store.positions(window.buffer(2).take()[0]).tolist() == list(range(offset + 3))
    assert len(window.buffer(0)) == 0


def test_keys_classes_and_positions_follow_the_layout() -> None:
    rng = np.random.default_rng(5)
    n, groups = 5, 2
    tables = [Table(rows, 4, k, 1, shards=n, groups=groups) for rows, k in ((97, 3), (50, 2), (200, 3))]
    group = Group(tables, n, group=1, groups=groups)
    for shard, store in enumerate(group.stores):
        assert store.codes == [(3, 1, "cauchy"), (2, 1, "cauchy")]
        for index, table in enumerate(tables):
            rows = rng.permutation(group.rows_of(shard, index)).tolist()
            stripes = [table.stripe_of(row)[1] for row in rows]
            keys = store.keys(*sections((index, rows)))
            assert keys.tolist() == [key(index, stripe) for stripe in stripes]
            code = 1 if index == 1 else 0
            assert store.classes(keys).tolist() == [code * n + stripe % n for stripe in stripes]
            offset = -(-tables[0].stripes(1) // n) if index == 2 else 0
            assert store.positions(keys).tolist() == [offset + stripe // n for stripe in stripes]
    first = -(-tables[0].stripes(1) // n)
    assert group.stores[0].class_size(0) == first + -(-tables[2].stripes(1) // n)
    assert group.stores[0].class_size(63) == 0


def test_a_table_of_a_hundred_million_rows_reserves_and_does_not_touch() -> None:
    store = Store(1, 5)
    table = Table(100_000_000, 64, 4, 1, optimizer="rowwise-adagrad", hyper=(0.1, 1e-8), shards=5)
    add_table(store, table, recovered=False)
    store.mark_recovered(0, 0, store.class_size(0))
    assert store.next_missing(0, 0) == -1
    assert store.next_missing(1, 0) == 0
    for class_id in range(5):
        store.mark_recovered(class_id, 0, store.class_size(class_id))
        assert store.coded_rows(class_id, 0, store.class_size(class_id))[0].size == 0
    row = 4 * 5 * 4_000_000 + 4
    assert table.shard_of(row) == (0, 1)
    store.apply(*sections((0, [row])), np.ones(64, dtype=np.float32), None)
    memory = store.memory()
    assert memory["data_rows_touched"] == 1
    assert memory["data_bytes_touched"] == table.record_bytes
    assert memory["data_bytes_reserved"] == 20_000_000 * table.record_bytes
    assert memory["parity_bytes_reserved"] == 5_000_000 * table.record_bytes


def test_fold_skips_the_classes_that_are_not_in_the_mask() -> None:
    table = Table(60, 4, 2, 2, shards=4)
    group = Group([table], 4)
    rows = group.rows_of(0, 0)
    group.apply(0, sections((0, rows)), np.ones(4 * len(rows), dtype=np.float32))
    keys, records = group.windows[0].buffer(2).take()
    classes = group.stores[2].classes(keys)
    assert set(classes.tolist()) == {0, 3}
    group.stores[2].fold(0, 1 << 3, keys, records)
    folded = set(group.parity_rows(2))
    assert folded == set(keys[classes == 3].tolist())
    group.stores[2].fold(0, ALL_CLASSES ^ 1 << 3, keys, records)
    assert set(group.parity_rows(2)) == set(keys.tolist())
    group.stores[2].wipe_parity(0)
    assert set(group.parity_rows(2)) == folded
    assert group.stores[2].memory()["parity_rows_touched"] == len(folded)
    group.stores[2].wipe_parity(1)
    group.stores[2].wipe_parity(40)
    assert set(group.parity_rows(2)) == folded


def test_a_table_added_later_extends_its_class() -> None:
    table = Table(30, 4, 1, 1, shards=2)
    store = Store(0, 2)
    add_table(store, table)
    window = Window(store)
    window.set_limit(1, 0, Window.UNLIMITED)
    size = store.class_size(0)
    assert add_table(store, table) == 1
    assert store.class_size(0) == 2 * size and store.tables == 2
    assert store.positions(keys_of((1, 0))).tolist() == [size]
    store.apply(*sections((1, [0])), np.ones(4, dtype=np.float32), window)
    assert window.buffer(1).take()[0].tolist() == [key(1, 0)]

"""Properties of the store under arbitrary pushes and folds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from store_group import Group, add_table, key, keys_of, random_tables, split_blob, tuned

from ecrec.codec.reference import PRODUCTS
from ecrec.store import RowBuffer, Store, Window
from ecrec.store.reference import KEY_STRIPE_BITS, Table

TABLES = (Table(50, 1, 1, 0), Table(60, 5, 1, 0), Table(20, 9, 1, 0))


TUNINGS = st.fixed_dictionaries(
    {},
    optional={
        "block_bytes_min": st.sampled_from([1, 4096]),
        "dropped_bytes_max": st.just(1),
        "fold_batch_rows": st.integers(1, 5),
        "fold_batch_rows_threads": st.integers(1, 5),
        "gather_run_rows": st.integers(1, 5),
        "index_growth": st.sampled_from([2, 4]),
        "index_slots_min": st.sampled_from([2, 8]),
        "index_values_max": st.sampled_from([1, 9, 40]),
        "kept_bytes_max": st.just(0),
        "lookup_found_one_in": st.sampled_from([1, 2, 1 << 30]),
        "lookup_judged_rows_min": st.integers(0, 4),
        "lookup_windows_between": st.integers(1, 4),
        "pause_bytes": st.sampled_from([1, 1000]),
        "run_bytes_max": st.sampled_from([1, 100, 1000]),
        "run_rows": st.integers(1, 5),
        "run_rows_threads": st.integers(1, 9),
        "streamed_bytes_min": st.sampled_from([0, 300]),
        "thread_grain_bytes": st.sampled_from([1, 200]),
    },
)
"""Thresholds that a few rows reach; those that are left out are as in a server."""


def new_store() -> Store:
    store = Store(0, 1)
    for table in TABLES:
        add_table(store, table)
    return store


stripes = st.tuples(st.integers(0, 2), st.integers(0, 19))
folds = st.tuples(st.integers(0, 255), st.lists(stripes, max_size=12), st.integers(0, 3))
steps = st.one_of(folds, st.just("take"))


@given(TUNINGS, st.lists(steps, max_size=12), st.integers(0, 1 << 32))
def test_a_row_buffer_is_a_dictionary_merged_by_xor(knobs: dict[str, int], script: list[object], seed: int) -> None:
    with tuned(knobs):
        follow_a_dictionary(script, seed)


def follow_a_dictionary(script: list[object], seed: int) -> None:
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


class WindowOracle:
    """One shard's window as dictionaries: of each peer, key -> what its rows add up to by XOR."""

    def __init__(self, group: Group, shard: int) -> None:
        self.group, self.shard, self.store = group, shard, group.stores[shard]
        self.window = group.windows[shard] = Window(self.store)
        self.limits: dict[tuple[int, int], int] = {}
        self.sums: list[dict[int, np.ndarray]] = [{} for _ in range(group.n)]
        self.held: list[list[int]] = [[] for _ in range(group.n)]
        """Classes of which a peer's buffer may hold rows."""

    def places(self, table: int, row: int) -> tuple[int, int, int]:
        """Key, class, position."""
        keys = keys_of((table, self.group.reference.tables[table].stripe_of(row)[1]))
        return int(keys[0]), int(self.store.classes(keys)[0]), int(self.store.positions(keys)[0])

    def takers(self, table: int, row: int) -> list[int]:
        shape = self.group.reference.tables[table]
        return list(shape.parity_shards(shape.stripe_of(row)[1]))

    def add(self, peer: int, each: int, record: np.ndarray) -> None:
        before = self.sums[peer].get(each, np.zeros_like(record))
        self.sums[peer][each] = before ^ record

    def coded(self, table: int, row: int) -> np.ndarray:
        return np.frombuffer(self.group.reference.coded(table, row).tobytes(), np.uint8)

    def push(self, rng: np.random.Generator) -> None:
        listed, gradients = self.group.random_push(rng, self.shard, 8)
        changed = dict.fromkeys(zip(np.repeat(listed[0], listed[1]).tolist(), listed[2].tolist(), strict=True))
        before = {pair: self.coded(*pair) for pair in changed}
        self.group.apply(self.shard, listed, gradients)
        for table, row in changed:
            each, class_id, position = self.places(table, row)
            for peer in self.takers(table, row):
                if position < self.limits.get((peer, class_id), 0):
                    self.add(peer, each, before[table, row] ^ self.coded(table, row))

    def seed(self, peer: int, class_id: int, rows_max: int) -> None:
        rows = []
        for table in range(len(self.group.reference.tables)):
            for row in self.group.rows_of(self.shard, table):
                each, of_class, position = self.places(table, row)
                if of_class == class_id and self.group.reference.touched(table, row):
                    rows.append((position, each, table, row))
        limit = self.limits.get((peer, class_id), 0)
        rows = sorted(some for some in rows if some[0] >= limit)
        finished, blocked = self.store.seed(self.window, peer, class_id, rows_max)
        for _, each, table, row in rows[:rows_max]:
            self.add(peer, each, self.coded(table, row))
        assert not blocked.size and finished == (len(rows) <= rows_max)
        self.limits[peer, class_id] = Window.UNLIMITED if finished else rows[rows_max][0]
        assert self.window.limit(peer, class_id) == self.limits[peer, class_id]

    def begin_again(self, peer: int, class_id: int) -> None:
        self.window.set_limit(peer, class_id, 0)
        self.window.buffer(peer).remove_class(class_id)
        self.limits[peer, class_id] = 0
        classes = {each: int(self.store.classes(np.array([each], np.uint64))[0]) for each in self.sums[peer]}
        self.sums[peer] = {each: row for each, row in self.sums[peer].items() if classes[each] != class_id}

    def check(self, peer: int) -> None:
        buffer = self.window.buffer(peer)
        nonzero = buffer.nonzero().tolist()
        assert sorted(nonzero) == sorted(each for each, row in self.sums[peer].items() if row.any())
        assert len(buffer) >= len(nonzero)

    def take(self, peer: int) -> None:
        buffer = self.window.buffer(peer)
        rows, size = len(buffer), buffer.nbytes
        keys, records = buffer.take()
        assert (len(keys), len(records), len(buffer), buffer.nbytes) == (rows, size, 0, 0)
        at, found = 0, dict.fromkeys(self.sums[peer])
        sums: dict[int, np.ndarray] = {}
        for each in keys.tolist():
            end = at + self.store.record_bytes(each >> KEY_STRIPE_BITS)
            sums[each] = sums[each] ^ records[at:end] if each in sums else records[at:end]
            at = end
        assert at == len(records) and sums.keys() <= found.keys()
        for each, row in self.sums[peer].items():
            assert (sums[each] == row).all() if each in sums else not row.any()
        self.sums[peer] = {}


@settings(max_examples=60)
@given(TUNINGS, st.integers(0, 1 << 32), st.integers(2, 5), st.integers(1, 2))
def test_a_window_is_dictionaries_whatever_is_appended_or_looked_up(
    knobs: dict[str, int], seed: int, n: int, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    with tuned(knobs, threads):
        group = Group(random_tables(rng, n, 1, count=2, rows_max=120), n)
        oracle = WindowOracle(group, int(rng.integers(n)))
        tasks = []
        for index, (k, r, _) in enumerate(group.stores[0].codes):
            for residue in range(n):
                if (oracle.shard - residue) % n < k:
                    tasks += [((residue + parity) % n, index * n + residue) for parity in range(k, k + r)]
        for _ in range(30):
            peer = int(rng.integers(n))
            chosen = rng.random()
            if chosen < 0.5 or not tasks:
                oracle.push(rng)
            elif chosen < 0.75:
                oracle.seed(*tasks[int(rng.integers(len(tasks)))], int(rng.integers(1, 9)))
            elif chosen < 0.8:
                oracle.begin_again(*tasks[int(rng.integers(len(tasks)))])
            elif chosen < 0.9:
                oracle.take(peer)
            oracle.check(peer)
        for peer in range(n):
            oracle.take(peer)
        group.check_rows(oracle.shard)


@settings(max_examples=40)
@given(TUNINGS, st.integers(0, 1 << 32), st.integers(1, 16), st.integers(1, 3), st.integers(0, 12), st.integers(1, 2))
def test_windows_folded_from_all_members_are_the_parity(
    knobs: dict[str, int], seed: int, n: int, groups: int, pushes: int, threads: int
) -> None:
    with tuned(knobs, threads):
        fold_windows(seed, n, groups, pushes)


def fold_windows(seed: int, n: int, groups: int, pushes: int) -> None:
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, n, groups, count=3, rows_max=40 * groups)
    group = Group(tables, n, int(rng.integers(groups)), groups)
    for _ in range(pushes):
        shard = int(rng.integers(n))
        listed, gradients = group.random_push(rng, shard, 8)
        group.apply(shard, listed, gradients, rates=group.random_rates(rng, listed))
        if rng.random() < 0.4:
            group.exchange()
        if rng.random() < 0.2:  # what parity a class has, it loses and is seeded again
            begin_parity_again(group, rng)
    group.exchange()
    group.check_parity()
    for shard in range(n):
        group.check_rows(shard)


def begin_parity_again(group: Group, rng: np.random.Generator) -> None:
    group.exchange()
    n, codes = group.n, group.stores[0].codes
    index, residue = int(rng.integers(len(codes))), int(rng.integers(n))
    k, r, _ = codes[index]
    for parity in range(k, k + r):
        peer, class_id = (residue + parity) % n, index * n + residue
        group.stores[peer].wipe_parity(class_id)
        assert not any(group.stores[peer].classes(np.array([each], np.uint64))[0] == class_id
                       for each in group.parity_rows(peer))  # fmt: skip
        for slot in range(k):
            member = (residue + slot) % n
            group.windows[member].set_limit(peer, class_id, 0)
            while not group.stores[member].seed(group.windows[member], peer, class_id, 3)[0]:
                pass


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(1, 10_000), st.integers(1, 60))
def test_rows_not_yet_recovered_are_a_set(seed: int, rows: int, steps: int) -> None:
    """Ranges, single rows and rows that come back, in tables of one to three levels of marks."""
    rng = np.random.default_rng(seed)
    store = Store(0, 2)
    add_table(store, Table(2 * rows, 1, 1, 1, shards=2), recovered=False)
    add_table(store, Table(50, 1, 1, 1, shards=2), recovered=False)
    offset, size = rows, rows + 25
    missing = set(range(size))
    for _ in range(steps):
        kind, first = rng.random(), int(rng.integers(size))
        if kind < 0.4:
            last = int(rng.integers(first, size + 1)) if rng.random() < 0.3 else min(size, first + 64)
            store.mark_recovered(0, first, last)
            missing -= set(range(first, last))
        else:
            places = rng.integers(0, size, size=int(rng.integers(1, 200))).tolist()
            keys = keys_of(*[(0, 2 * p) if p < offset else (1, 2 * (p - offset)) for p in places])
            if kind < 0.7:
                store.mark_recovered_keys(keys)
            else:
                store.restore(keys, np.zeros(16 * len(keys), np.uint8))
            missing -= set(places)
        at = int(rng.integers(size + 3))
        assert store.next_missing(0, at) == min((p for p in missing if p >= at), default=-1)
        counts = dict(zip(*[part.tolist() for part in store.missing_counts(0)], strict=True))
        expected = {0: sum(p < offset for p in missing), 1: sum(p >= offset for p in missing)}
        assert counts == {table: count for table, count in expected.items() if count}
        listed = [key(0, 2 * p) if p < offset else key(1, 2 * (p - offset)) for p in sorted(missing) if p >= at]
        assert store.missing_keys(0, at, 1 << 60).tolist() == listed
        assert store.missing_keys(0, at, 5).tolist() == listed[:5]
    store.mark_recovered(0, 0, size)
    assert store.next_missing(0, 0) == -1 and not store.missing_counts(0)[0].size


@settings(max_examples=30)
@given(TUNINGS, st.integers(0, 1 << 32), st.integers(2, 6), st.integers(1, 5))
def test_seeding_resumed_at_any_point_gives_the_parity(knobs: dict[str, int], seed: int, n: int, rows_max: int) -> None:
    with tuned(knobs):
        seed_bit_by_bit(seed, n, rows_max)


def seed_bit_by_bit(seed: int, n: int, rows_max: int) -> None:
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

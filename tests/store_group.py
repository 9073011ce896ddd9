"""The stores of one coding group beside the plain store, fed the same pushes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.store import Capture, Store, Window
from ecrec.store.reference import F32, KEY_STRIPE_BITS, U8, ReferenceStore, Table

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Sections = tuple[I32, I64, I64]

ALL_CLASSES = (1 << 64) - 1

_HYPER = {
    "adagrad": (0.1, 1e-8),
    "rowwise-adagrad": (0.1, 1e-8),
    "adam": (0.1, 0.9, 0.999, 1e-8),
    "ftrl": (0.1, 1.0, 0.5, 0.1),
}
"""As they are used; l1 is such that some weights of random gradients are zero."""

OPTIMIZERS: dict[str, tuple[float, ...]] = {
    name: _HYPER.get(name, (0.1, *(0.9,) * (len(hyper) - 1))) for name, (hyper, *_) in _native.optimizers().items()
}
"""Of each optimizer hyper-parameters."""


@contextmanager
def tuned(knobs: Mapping[str, int], threads: int = 1) -> Iterator[None]:
    """Run with these thresholds of the store, and so many threads."""
    before, threads_before = _native.tuning(), _native.threads()
    _native.set_tuning(**knobs)
    _native.use_threads(threads)
    try:
        yield
    finally:
        _native.use_threads(threads_before)
        _native.set_tuning(**before)


def sections(*parts: tuple[int, Sequence[int]]) -> Sections:
    """Section list of (table, rows) parts."""
    return (
        np.array([table for table, _ in parts], dtype=np.int32),
        np.array([len(rows) for _, rows in parts], dtype=np.int64),
        np.array([row for _, rows in parts for row in rows], dtype=np.int64),
    )


def key(table: int, stripe: int) -> int:
    return table << KEY_STRIPE_BITS | stripe


def keys_of(*pairs: tuple[int, int]) -> U64:
    return np.array([key(*pair) for pair in pairs], dtype=np.uint64)


def add_table(store: Store, table: Table, recovered: bool = True) -> int:
    return store.add_table(
        table.rows, table.dim, table.k, table.r, table.generator, table.optimizer, table.hyper,
        table.init, table.init_seed, table.init_scale, table.init_state, recovered,
        table.weight_decay, table.decoupled, table.max_gradient,
    )  # fmt: skip


def split_blob(store: Store, keys: U64, records: U8) -> dict[int, bytes]:
    """key -> record; keys are distinct and the bytes are all used."""
    found: dict[int, bytes] = {}
    at = 0
    for each in keys.tolist():
        size = store.record_bytes(each >> KEY_STRIPE_BITS)
        assert each not in found
        found[each] = records[at : at + size].tobytes()
        at += size
    assert at == len(records)
    return found


class Group:
    """Group ``group`` of ``groups``: n stores, a window each (closed by `exchange`), and the plain store."""

    def __init__(self, tables: Sequence[Table], n: int, group: int = 0, groups: int = 1) -> None:
        self.n, self.group, self.groups = n, group, groups
        self.reference = ReferenceStore(tables)
        self.stores = [self.new_store(shard) for shard in range(n)]
        self.windows = [self.new_window(store) for store in self.stores]

    def new_store(self, shard: int, recovered: bool = True) -> Store:
        store = Store(shard, self.n, self.group, self.groups)
        for table in self.reference.tables:
            add_table(store, table, recovered)
        return store

    def new_window(self, store: Store) -> Window:
        window = Window(store)
        for peer in range(self.n):
            for class_id in range(64):
                window.set_limit(peer, class_id, Window.UNLIMITED)
        return window

    def rows_of(self, shard: int, table: int) -> list[int]:
        shape = self.reference.tables[table]
        return [row for row in range(shape.rows) if shape.shard_of(row) == (self.group, shard)]

    def random_push(self, rng: np.random.Generator, shard: int, rows_max: int) -> tuple[Sections, F32]:
        """Sections of random tables and rows (both may repeat) of a shard, and gradients."""
        parts = []
        for table in rng.integers(0, len(self.reference.tables), size=rng.integers(1, 4)).tolist():
            rows = self.rows_of(shard, table)
            count = int(rng.integers(0, rows_max + 1)) if rows else 0
            parts.append((table, rng.choice(rows, size=count).tolist() if count else []))
        floats = sum(len(rows) * self.reference.tables[table].dim for table, rows in parts)
        return sections(*parts), rng.standard_normal(floats).astype(np.float32)

    def random_rates(self, rng: np.random.Generator, listed: Sections) -> list[float]:
        """For each table of the sections a learning rate, its own among them; mostly none at all."""
        if rng.random() < 0.6:
            return []
        own = [self.reference.tables[table].hyper[0] for table in listed[0].tolist()]
        return [rate * float(rng.choice((1.0, 0.5, 1e-3, 1.25))) for rate in own]

    def apply(
        self, shard: int, listed: Sections, gradients: F32, to_store: bool = True, rates: Sequence[float] = ()
    ) -> None:
        """Apply to the store and to the plain store."""
        if to_store:
            self.stores[shard].apply(*listed, gradients, self.windows[shard], rates)
        at = row_at = 0
        for i, (table, count) in enumerate(zip(listed[0].tolist(), listed[1].tolist(), strict=True)):
            dim = self.reference.tables[table].dim
            for row in listed[2][row_at : row_at + count].tolist():
                self.reference.apply(table, row, gradients[at : at + dim], rates[i] if rates else None)
                at += dim
            row_at += count

    def exchange(self) -> None:
        """Fold what is in the windows into the parities."""
        for source, window in enumerate(self.windows):
            for peer in range(self.n):
                keys, records = window.buffer(peer).take()
                if len(keys):
                    self.stores[peer].fold(source, ALL_CLASSES, keys, records)

    def check_rows(self, shard: int) -> None:
        """Every row of the shard has the plain store's bytes."""
        store = self.stores[shard]
        for table in range(len(self.reference.tables)):
            rows = self.rows_of(shard, table)
            listed = sections((table, rows))
            out = np.empty(store.gather_bytes(*listed[:2], records=True), dtype=np.uint8)
            store.gather(*listed, out, records=True)
            expected = [self.reference.record(table, row) for row in rows]
            assert out.tobytes() == b"".join(record.tobytes() for record in expected), (shard, table)

    def parity_rows(self, shard: int) -> dict[int, bytes]:
        """Parity rows of a shard that are not all zero, by key."""
        store = self.stores[shard]
        found: dict[int, bytes] = {}
        for index, (k, r, _) in enumerate(store.codes):
            for residue in range(self.n):
                if k <= (shard - residue) % self.n < k + r:
                    class_id = index * self.n + residue
                    blob = Capture(store, class_id, 0, store.class_size(class_id)).take()
                    found |= split_blob(store, *blob)
        return {each: record for each, record in found.items() if any(record)}

    def check_parity(self) -> None:
        """Every parity row is the encoding of the plain store's coded rows."""
        expected: list[dict[int, bytes]] = [{} for _ in range(self.n)]
        for index, table in enumerate(self.reference.tables):
            for stripe in range(table.stripes(self.group)):
                parity = self.reference.parity(index, self.group, stripe)
                for peer, record in zip(table.parity_shards(stripe), parity, strict=True):
                    if record.any():
                        expected[peer][key(index, stripe)] = record.tobytes()
        for shard in range(self.n):
            assert self.parity_rows(shard) == expected[shard], shard


def random_tables(rng: np.random.Generator, n: int, groups: int, count: int, rows_max: int) -> list[Table]:
    """Tables of random codes (at most 64 // n different), optimizers, dims and sizes."""
    codes = []
    for _ in range(min(2, 64 // n)):
        k = int(rng.integers(1, n + 1))
        codes.append((k, int(rng.integers(0, n - k + 1)), str(rng.choice(["cauchy", "isal-cauchy"]))))
    tables = []
    for _ in range(count):
        k, r, generator = codes[int(rng.integers(len(codes)))]
        optimizer = str(rng.choice(list(OPTIMIZERS)))
        tables.append(
            Table(
                rows=int(rng.integers(1, rows_max)),
                dim=int(rng.choice([1, 3, 4, 5, 16, 17])),
                k=k,
                r=r,
                generator=generator,
                optimizer=optimizer,
                hyper=OPTIMIZERS[optimizer],
                init=str(rng.choice(["zeros", "uniform"])),
                init_seed=int(rng.integers(1 << 62)),
                init_scale=0.05,
                init_state=float(rng.choice([0.0, 0.1])),
                weight_decay=float(rng.choice([0.0, 0.0, 0.3])),
                decoupled=bool(rng.integers(2)),
                max_gradient=float(rng.choice([0.0, 0.0, 0.5])),
                shards=n,
                groups=groups,
            )
        )
    return tables

"""Rows of tables as checkpoints have them: where they lie, which were there already, their initial values."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecrec._native import Store
from ecrec.errors import CheckpointError
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.protocol.saved import Manifest, columns_of
from ecrec.protocol.table_memory import add_table

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Columns = dict[str, NDArray[Any]]
"""``weights`` float32[m, dim], and the parts of the optimizer's state by their names (`columns_of`)."""

CHUNK_BYTES = 8 << 20
"""Rows that are handed out at a time."""

BITMAP_BYTES_MAX = 256 << 20
"""Of the rows of a table that one shard may have: 2 billion. A larger bitmap must not be larger than their numbers."""

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def shards_of_rows(spec: TableSpec, n: int, groups: int, rows: I64) -> I64:
    """The shard, numbered over all groups of ``n``, that each row lies on."""
    stripe, slot = np.divmod(rows, spec.code.k)
    shards: I64 = stripe % groups * n + (stripe // groups + slot) % n
    return shards


class RowsSeen:
    """Which rows of a table were there already, of those that lie on one shard.

    A bitmap, or, where a shard could have far more rows than it has, their sorted numbers. ``expected``: how many rows
    will be added, at most; so many numbers are in files whose lengths were checked.
    """

    def __init__(self, spec: TableSpec, manifest: Manifest, shard: int, expected: int) -> None:
        self._k, self._n, self._groups = spec.code.k, manifest.shards, manifest.groups
        stripes = -(-spec.rows // spec.code.k)
        in_group = (stripes + self._groups - 1) // self._groups
        places = (in_group + self._n - 1) // self._n * self._k
        self._bits: NDArray[np.uint8] | None = None
        if places // 8 + 1 <= max(BITMAP_BYTES_MAX, 8 * expected):
            self._bits = np.zeros(places // 8 + 1, np.uint8)
        self._sorted: I64 = np.empty(0, np.int64)

    def add(self, rows: I64) -> int | None:
        """Add rows of this shard. Returns one that was there before, or is there twice, if there is one."""
        ordered = np.sort(rows, kind="stable")
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        if same.size:
            return int(ordered[same[0]])
        return self._add_to_sorted(ordered) if self._bits is None else self._add_to_bitmap(self._bits, ordered)

    def add_new(self, rows: I64) -> NDArray[np.bool_]:
        """Add rows of this shard, each once; says which of them were not there before."""
        if self._bits is None:
            at = np.minimum(np.searchsorted(self._sorted, rows), max(self._sorted.size - 1, 0))
            new: NDArray[np.bool_] = np.ones(len(rows), np.bool_)
            if self._sorted.size:
                new = self._sorted[at] != rows
            self._add_to_sorted(np.sort(rows[new]))
            return new
        byte, mask = self._places(rows)
        new = np.equal(self._bits[byte] & mask, 0)
        np.bitwise_or.at(self._bits, byte[new], mask[new])
        return new

    def _places(self, rows: I64) -> tuple[I64, NDArray[np.uint8]]:
        stripe, slot = np.divmod(rows, self._k)
        # The stripes of a slot on this shard are n apart, so no two of them have one place.
        place = stripe // self._groups // self._n * self._k + slot
        return place >> 3, np.left_shift(np.uint8(1), (place & 7).astype(np.uint8))

    def _add_to_bitmap(self, bits: NDArray[np.uint8], rows: I64) -> int | None:
        byte, mask = self._places(rows)
        there = np.flatnonzero(bits[byte] & mask)
        if there.size:
            return int(rows[there[0]])
        np.bitwise_or.at(bits, byte, mask)
        return None

    def _add_to_sorted(self, rows: I64) -> int | None:
        at = np.searchsorted(self._sorted, rows)
        if self._sorted.size:
            there = np.flatnonzero(self._sorted[np.minimum(at, self._sorted.size - 1)] == rows)
            if there.size:
                return int(rows[there[0]])
        self._sorted = np.insert(self._sorted, at, rows)
        return None


# ---------------------------------------------------------------------- initial values
class InitialValues:
    """The values of rows that were never touched, as the servers compute them."""

    def __init__(self, spec: TableSpec) -> None:
        self._columns = columns_of(spec.dim, spec.optimizer)
        self._store = Store(0, 1)
        # They do not depend on the code. Memory is reserved for the rows, and used by none of them.
        try:
            add_table(self._store, msgspec.structs.replace(spec, code=CodeSpec(1, 0)), recovered=True)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"table {spec.name!r}: there are no initial values of it: {error}") from error

    def columns(self, rows: I64) -> Columns:
        """Weights and state of these rows, as `Checkpoint.rows` gives them."""
        records = self._gather(rows, records=True).reshape(len(rows), -1)
        found: Columns = {}
        begin = 0
        for column in self._columns:
            array = np.ascontiguousarray(records[:, begin : begin + column.nbytes]).view(DTYPES[column.dtype])
            found[column.name] = array if column.width else array.reshape(-1)
            begin += column.nbytes
        return found

    def weights(self, rows: I64) -> F32:
        """The same without state: float32[len(rows), dim]."""
        return self._gather(rows, records=False).view(np.float32).reshape(len(rows), -1)

    def _gather(self, rows: I64, records: bool) -> NDArray[np.uint8]:
        tables, counts = np.zeros(1, np.int32), np.array([len(rows)], np.int64)
        out = np.empty(self._store.gather_bytes(tables, counts, records), np.uint8)
        self._store.gather(tables, counts, rows, out, records)
        return out


def initial_rows(spec: TableSpec, rows: I64) -> Columns:
    """The initial weights and state of some rows. Raises IndexError for a row that the table does not have."""
    return InitialValues(spec).columns(np.ascontiguousarray(rows, np.int64))


def records_of(spec: TableSpec, columns: Columns) -> NDArray[np.uint8]:
    """Rows as the servers hold them, uint8[m, record_bytes]: weights, state, zeros up to a multiple of 16 bytes."""
    records = np.zeros((len(columns["weights"]), spec.record_bytes), np.uint8)
    begin = 0
    for column in columns_of(spec.dim, spec.optimizer):
        array = np.ascontiguousarray(columns[column.name]).reshape(len(records), -1)
        records[:, begin : begin + column.nbytes] = array.view(np.uint8)
        begin += column.nbytes
    return records


def initial_blocks(spec: TableSpec, with_state: bool = False) -> Iterator[tuple[int, Columns]]:
    """The initial values of all rows, block by block: the first row of it, and its values."""
    initial = InitialValues(spec)
    step = max(1, CHUNK_BYTES // spec.record_bytes)
    for first in range(0, spec.rows, step):
        rows = np.arange(first, min(first + step, spec.rows), dtype=np.int64)
        yield first, initial.columns(rows) if with_state else {"weights": initial.weights(rows)}

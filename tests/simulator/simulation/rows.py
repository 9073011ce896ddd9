"""What pushes and pulls mean for rows, done the slow, obvious way: the checkers' own arithmetic."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecrec.protocol import messages as m
from ecrec.protocol.placement import TableSpec


class Applied(NamedTuple):
    """One push of one worker, as a shard's machine took it."""

    worker: int
    number: int
    push: m.Push
    frames: Sequence[Any]


class RowsOf(NamedTuple):
    """A section of a push or pull as arrays."""

    tables: Any
    counts: Any
    rows: Any
    values: Any


def sections_of(sections: Sequence[m.Section], frames: Sequence[Any], values: bool) -> list[RowsOf]:
    """The arrays of a message that is known to be well formed."""
    step = 2 if values else 1
    return [
        RowsOf(
            np.array(section.tables, np.int32),
            np.array(section.counts, np.int64),
            np.frombuffer(frames[step * i], np.int64),
            np.frombuffer(frames[step * i + 1], np.float32) if values else None,
        )
        for i, section in enumerate(sections)
    ]


def add_table(store: Any, table: TableSpec, recovered: bool = True) -> None:
    """Add a table of the protocol to a native store."""
    optimizer = table.optimizer
    store.add_table(
        table.rows, table.dim, table.code.k, table.code.r, table.code.generator, optimizer.name,
        list(optimizer.hyper), table.init, table.init_seed, table.init_scale, table.init_state, recovered,
        optimizer.weight_decay, optimizer.decoupled, optimizer.max_gradient,
    )  # fmt: skip


def sum_pushes(parts: Iterable[RowsOf], dims: Sequence[int]) -> RowsOf:
    """Several sections as one: each row's gradients added in the order given. The slow, obvious way."""
    sums: dict[tuple[int, int], Any] = {}
    for part in parts:
        at = row_at = 0
        for table, count in zip(part.tables.tolist(), part.counts.tolist(), strict=True):
            for row in part.rows[row_at : row_at + count].tolist():
                gradient = part.values[at : at + dims[table]]
                known = sums.get((table, row))
                sums[table, row] = gradient.copy() if known is None else known + gradient
                at += dims[table]
            row_at += count
    keys = sorted(sums)
    tables = sorted({table for table, _ in keys})
    return RowsOf(
        np.array(tables, np.int32),
        np.array([sum(1 for table, _ in keys if table == t) for t in tables], np.int64),
        np.array([row for _, row in keys], np.int64),
        np.concatenate([sums[key] for key in keys]) if keys else np.zeros(0, np.float32),
    )


def apply_entry(store: Any, pushes: Sequence[Applied], tables: Sequence[TableSpec]) -> None:
    """Do to a store what a shard does when it applies these pushes as one."""
    parts = [part for p in pushes for part in sections_of(p.push.sections, p.frames, True)]
    if pushes[0].push.records:
        for part in parts:
            store.assign_records(part.tables, part.counts, part.rows, part.values, None)
        return
    if pushes[0].push.assign:
        for part in parts:
            store.assign(part.tables, part.counts, part.rows, part.values, None)
        return
    if len(pushes) > 1:
        parts = [sum_pushes(parts, [table.dim for table in tables])]
    rates = pushes[0].push.rates
    for part in parts:
        if len(part.rows):
            own = [tables[table].optimizer.hyper[0] for table in part.tables.tolist()]
            at = [rates.get(table, rate) for table, rate in zip(part.tables.tolist(), own, strict=True)]
            store.apply(part.tables, part.counts, part.rows, part.values, None, at)


def gather(store: Any, sections: Sequence[RowsOf], records: bool) -> list[bytes]:
    """What a pull of these sections must be answered with."""
    answers = []
    for s in sections:
        out = np.empty(store.gather_bytes(s.tables, s.counts, records), np.uint8)
        store.gather(s.tables, s.counts, s.rows, out, records)
        answers.append(out.tobytes())
    return answers


class Layout:
    """Which rows lie where: the arithmetic of docs/protocol.md, written once more."""

    def __init__(self, n: int, groups: int) -> None:
        self.n = n
        self.groups = groups

    def shard_of(self, table: TableSpec, row: int) -> int:
        stripe = row // table.code.k
        g, group = stripe // self.groups, stripe % self.groups
        return group * self.n + (g + row % table.code.k) % self.n

    def shards_of(self, table: TableSpec, rows: Any) -> Any:
        """The same of many rows."""
        stripe = rows // table.code.k
        g, group = stripe // self.groups, stripe % self.groups
        return group * self.n + (g + rows % table.code.k) % self.n

    def rows_on(self, shard: int, tables: Sequence[TableSpec]) -> RowsOf:
        """All data rows of a shard."""
        rows = [np.flatnonzero(self.shards_of(t, np.arange(t.rows)) == shard) for t in tables]
        return RowsOf(
            np.arange(len(tables), dtype=np.int32),
            np.array([len(some) for some in rows], np.int64),
            np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64),
            None,
        )

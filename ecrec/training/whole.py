"""Whole tables, in chunks: all rows read from the shards, or written to them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ecrec._native import first_nonfinite
from ecrec.errors import ConfigurationError, GradientError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import TableSpec
from ecrec.training.parts import F32, I64, Share, TableSession, places_by_shard

CHUNK_BYTES = 8 << 20
"""Rows that are read or written at a time."""

WHOLE_BYTES_MAX = 1 << 30
"""A larger table is not brought into the memory of one process by a call that does not say so."""


def places_of(session: TableSession, spec: TableSpec, rows: I64) -> dict[int, I64]:
    """Shard -> which of these rows are on it, as indices into ``rows``."""
    return places_by_shard(rows, spec.code.k, session.machine.n, session.machine.groups)


def chunks(rows: int, row_bytes: int) -> Iterator[I64]:
    """All row numbers, so many at a time that they have `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, rows, step):
        yield np.arange(first, min(first + step, rows), dtype=np.int64)


class _Weights:
    """A pull of some rows of a table into their place in an array of it."""

    def __init__(self, session: TableSession, spec: TableSpec, rows: I64, into: F32) -> None:
        index = session.machine.tables[spec.name][0]
        self._places = places_of(session, spec, rows)
        self._rows, self._into = rows, into
        self.shares = {
            shard: Share(Section([index], [len(places)]), rows[places]) for shard, places in self._places.items()
        }

    def fill(self, answers: Mapping[int, Any]) -> None:
        for shard, frame in answers.items():
            values = np.frombuffer(frame, np.float32).reshape(-1, self._into.shape[1])
            self._into[self._rows[self._places[shard]]] = values


def check_size(spec: TableSpec) -> None:
    """Raise ConfigurationError for a table that is too large to be in one place."""
    size = 4 * spec.rows * spec.dim
    if size > WHOLE_BYTES_MAX:
        raise ConfigurationError(
            f"table {spec.name!r} has {size / 1e9:.1f} GB of weights, and at most {WHOLE_BYTES_MAX / 1e9:.1f} GB are "
            "read or written as one tensor: it stays on the servers. Take the state_dict of the dense modules alone"
        )


def read_table(session: TableSession, spec: TableSpec) -> F32:
    """The weights of all rows as the shards have them now, float32[rows, dim]. Raises ConfigurationError for a table of
    more than `WHOLE_BYTES_MAX` bytes."""
    check_size(spec)
    out = np.empty((spec.rows, spec.dim), np.float32)
    for rows in chunks(spec.rows, 4 * spec.dim):
        session.fetch(_Weights(session, spec, rows, out), exact=True)
    return out


def write_table(session: TableSession, spec: TableSpec, weights: F32) -> None:
    """Write the weights of all rows, float32[rows, dim], and wait until they are durable. What an optimizer keeps
    beside them stays. Raises as `read_table` and `Session.assign`."""
    check_size(spec)
    for shares in table_shares(session, spec, weights):
        session.assign(shares)


def check_finite(spec: TableSpec, weights: F32) -> None:
    """Raise GradientError for the first value that is not."""
    first = first_nonfinite(weights.reshape(-1))
    if first >= 0:
        row, column = divmod(first, spec.dim)
        raise GradientError(
            f"the weight of table {spec.name!r}, row {row}, column {column} is {weights[row, column]}; nothing was "
            "written",
            (spec.name, row, column),
        )


def table_shares(session: TableSession, spec: TableSpec, weights: F32) -> Iterator[dict[int, Share]]:
    """The weights of all rows, float32[rows, dim], by shard, chunk by chunk. Raises GradientError for a value that is
    not finite before the first one."""
    check_finite(spec, weights)
    index = session.machine.tables[spec.name][0]
    for rows in chunks(spec.rows, spec.record_bytes):
        yield {
            shard: Share(Section([index], [len(places)]), rows[places], weights[rows[places]].reshape(-1))
            for shard, places in places_of(session, spec, rows).items()
        }

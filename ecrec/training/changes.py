"""What changed on the servers since a reader last looked: for serving, or a copy elsewhere."""

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ecrec.checkpoint.rows import shards_of_rows
from ecrec.errors import ClusterError, ConfigurationError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.client_changes import ChangedAt
from ecrec.protocol.placement import TableSpec

I64 = NDArray[np.int64]

AGAIN_S = 0.2
"""A server that cannot answer yet, because it recovers, is asked again after that."""


class Change(NamedTuple):
    """Rows of one table, as they are now."""

    table: str
    rows: I64
    weights: NDArray[np.float32]
    """float32[len(rows), dim], for reading only."""
    deleted: I64
    """Rows that are not there any more: always none, since rows are not deleted yet."""


class Resent(NamedTuple):
    """All rows of one server follow: forget what you have of them. Those that do not come have their initial values."""

    shard: int
    reason: str
    n: int
    groups: int

    def rows_of(self, spec: TableSpec) -> I64:
        """The rows of a table that lie on the server; of a large table these are many."""
        rows = np.arange(spec.rows, dtype=np.int64)
        return np.flatnonzero(shards_of_rows(spec, self.n, self.groups, rows) == self.shard)


class Asks(Protocol):
    """What is needed of a session."""

    @property
    def machine(self) -> ClientMachine: ...

    def ask_changes(
        self, shard: int, reader: int, epoch: int, since: int, until: int, place: tuple[int, int, int]
    ) -> None: ...

    def take_changes(self, wait: bool) -> dict[int, ChangedAt]: ...


class Changes:
    """What changed since a token, in bounded pieces; read it to its end, then `token` is where to go on.

    Made by `Session.changes`. A row may come twice, and rows of one push may come in two turns: what is served
    meanwhile is a mix of steps, as it is for any reader of parameter servers. Everything that comes is durable.
    """

    def __init__(self, session: Asks, since: str | None) -> None:
        self._session = session
        self._reader, self._marks = _parsed(since, session.machine.origin.cluster)
        self._token: str | None = None

    @property
    def token(self) -> str:
        """For the next `Session.changes`, also of another process. Raises ConfigurationError before all was read."""
        if self._token is None:
            raise ConfigurationError("changes: read all of them first; only then there is a token")
        return self._token

    def __iter__(self) -> Iterator[Change | Resent]:
        machine = self._session.machine
        tables = {number: spec for number, spec in machine.tables.values()}
        again: dict[int, float] = {}
        done: dict[int, tuple[int, int]] = {}
        begun: set[int] = set()
        for shard in range(machine.shards):
            self._begin(shard)
        while len(done) < machine.shards:
            for shard in [shard for shard, at in again.items() if at <= time.monotonic()]:
                del again[shard]
                self._begin(shard)
            for shard, answer in self._session.take_changes(wait=not again).items():
                said = answer.message
                if not said.until:
                    again[shard] = time.monotonic() + AGAIN_S
                    begun.discard(shard)
                    continue
                if shard not in begun:
                    begun.add(shard)
                    if said.is_all:
                        yield Resent(shard, said.reason, machine.n, machine.groups)
                rows, weights = answer.frames
                if (numbers := np.frombuffer(rows, np.int64)).size:
                    if said.table not in tables:
                        tables = {number: spec for number, spec in machine.tables.values()}
                    yield _change(tables.get(said.table), shard, numbers, weights)
                if said.is_last:
                    done[shard] = answer.epoch, said.until
                else:
                    since = self._marks.get(shard, (0, 0))[1]
                    self._session.ask_changes(shard, self._reader, answer.epoch, since, said.until, said.place)
        shards = {str(shard): mark for shard, mark in sorted(done.items())}
        self._token = json.dumps({"cluster": machine.origin.cluster, "reader": self._reader, "shards": shards})

    def _begin(self, shard: int) -> None:
        epoch, since = self._marks.get(shard, (0, 0))
        self._session.ask_changes(shard, self._reader, epoch, since, 0, (0, 0, 0))


def _change(spec: TableSpec | None, shard: int, rows: I64, frame: Any) -> Change:
    weights = np.frombuffer(frame, np.float32)
    if spec is None or weights.size != rows.size * spec.dim or not 0 <= rows.min() <= rows.max() < spec.rows:
        raise ClusterError(f"shard {shard} has told changes of a table that is not what the scheduler says it is")
    return Change(spec.name, rows, weights.reshape(len(rows), spec.dim), np.zeros(0, np.int64))


def _parsed(token: str | None, cluster: str) -> tuple[int, dict[int, tuple[int, int]]]:
    """(reader, shard -> epoch and mark). A token of another cluster is worth nothing."""
    new: tuple[int, dict[int, tuple[int, int]]] = secrets.randbelow(1 << 62), {}
    if token is None:
        return new
    try:
        told = json.loads(token)
        marks = {int(shard): (int(epoch), int(mark)) for shard, (epoch, mark) in told["shards"].items()}
        reader, known = int(told["reader"]), str(told["cluster"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"since={token[:100]!r} is no token of changes: {error}") from error
    return (reader, marks) if known == cluster else new

"""Rows that come into the cluster of a run besides training: all touched once, or those of one server put back."""

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ecrec.checkpoint.reading import open_checkpoint
from ecrec.checkpoint.rows import records_of, shards_of_rows
from ecrec.errors import ClusterError
from ecrec.launch.environment import curve_keys
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import WORKER, WORKERS_MAX, Section
from ecrec.protocol.placement import TableSpec
from ecrec.transport.client_node import ClientNode

TOUCHER, LOADER = WORKERS_MAX - 2, WORKERS_MAX - 3
"""Numbers of workers that no run has, nor a restore."""

PUSH_BYTES = 8 << 20
WAIT_S = 60.0
"""The longest time without progress."""

GRADIENT = 1e-3
_PUMP_MS = 20.0


class RowPusher:
    """A worker for rows; a context manager that waits until all is durable, and says that it ends."""

    def __init__(self, endpoint: str, worker: int) -> None:
        self._machine = ClientMachine(worker, secrets.token_hex(8), WORKER)
        self._node = ClientNode(endpoint, self._machine, curve_keys())
        self.nbytes = 0

    def __enter__(self) -> "RowPusher":
        try:
            self._wait(lambda: self._machine.ready, "the cluster")
        except BaseException:
            self._node.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._node.perform(self._machine.flush())
                self._wait(lambda: self._machine.durable, "the rows to be durable")
                self._node.perform(self._machine.say_goodbye())
        finally:
            self._node.close()

    def table(self, spec: TableSpec) -> int:
        """The number of a table that is there, and equal. Raises ClusterError for another one."""
        machine, name = self._machine, spec.name
        self._node.perform(machine.create_table(spec))
        self._wait(lambda: machine.table_ready(name) or name in machine.table_refusals, f"table {name!r}")
        if name in machine.table_refusals:
            raise ClusterError(f"table {name!r}: {machine.table_refusals[name]}")
        return machine.tables[name][0]

    def push(self, spec: TableSpec, number: int, rows: Any, values: Any, records: bool = False) -> None:
        """Gradients float32[m, dim], or whole records, of rows int64[m]."""
        machine = self._machine
        shards = shards_of_rows(spec, machine.n, machine.groups, rows)
        by_shard = {}
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            frames = (np.ascontiguousarray(rows[mine]), np.ascontiguousarray(values[mine]).reshape(-1))
            by_shard[shard] = ([Section([number], [len(mine)])], frames)
        self._wait(lambda: machine.can_push, "room for a push")
        self._node.perform(machine.push(by_shard, assign=records, records=records))
        self.nbytes += values.nbytes
        self._node.pump(0.0)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            self._node.pump(_PUMP_MS)
            if self._machine.failed:
                raise ClusterError(f"rows cannot be pushed: {self._machine.failed}")
            if time.monotonic() > end:
                raise ClusterError(f"waited {WAIT_S:.0f} s for {what}")


def touch(endpoint: str, tables: list[TableSpec], seed: int) -> int:
    """Give every row of the embedding tables a small gradient; the bytes of gradients that were pushed."""
    draw = np.random.default_rng(seed)
    with RowPusher(endpoint, TOUCHER) as pusher:
        for spec in tables:
            if spec.is_module:
                continue
            number = pusher.table(spec)
            for first, last in _chunks(spec.rows, 4 * spec.dim):
                values = draw.standard_normal((last - first, spec.dim), np.float32) * np.float32(GRADIENT)
                pusher.push(spec, number, np.arange(first, last), values)
    return pusher.nbytes


def load_shard(endpoint: str, url: str, shard: int) -> int:
    """Put the rows of one server back to the newest complete checkpoint, which has as many servers and the same code;
    the bytes of their records. The dense part stays as it is: it has other copies."""
    checkpoint = open_checkpoint(url)
    with RowPusher(endpoint, LOADER) as pusher:
        for spec in checkpoint.manifest.tables:
            if spec.is_module:
                continue
            number = pusher.table(spec)
            floats = spec.dim + spec.optimizer.state_floats(spec.dim)
            for rows, columns in checkpoint.rows_on(spec.name, shard):
                records = np.ascontiguousarray(records_of(spec, columns)[:, : 4 * floats]).view(np.float32)
                for first, last in _chunks(len(rows), 4 * floats):
                    pusher.push(spec, number, rows[first:last], records[first:last], records=True)
    return pusher.nbytes


def _chunks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, PUSH_BYTES // row_bytes)
    for first in range(0, rows, step):
        yield first, min(rows, first + step)

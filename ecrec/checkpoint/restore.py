"""Bring a checkpoint into a cluster of any number of shards and groups, which was just started, or has its tables."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from ecrec.checkpoint.fitting import Fit, all_differences, as_here, fit
from ecrec.checkpoint.reading import Checkpoint, open_checkpoint
from ecrec.checkpoint.rows import InitialValues, records_of, shards_of_rows
from ecrec.checkpoint.saving import absolute
from ecrec.errors import ClusterError, ConfigurationError, DataLostError, RefusedError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.leases import trained_of
from ecrec.protocol.messages import (
    WAIT,
    WORKER,
    WORKERS_MAX,
    WRITE,
    WRITTEN,
    ClusterQuery,
    ClusterState,
    Dataset,
    Restore,
    RestoredDataset,
    RestoredFrom,
    Section,
    cursor_key,
)
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.protocol.saved import SavedDataset
from ecrec.transport.client_node import ClientNode, query
from ecrec.transport.curve import CurveKeys

PUSH_BYTES = 8 << 20
"""Of records in a push, to all shards together."""

RESTORER = WORKERS_MAX - 1
"""The number of the worker that brings the rows: no other one is likely to have it."""

NAME_MS = 10_000.0
"""For a scheduler of a busy machine to say its cluster's name."""

_PUMP_MS = 20.0


class Progress(NamedTuple):
    """How far a restore is."""

    rows: int
    rows_in_all: int
    nbytes: int
    differences: tuple[str, ...] = ()
    """Between the tables of the checkpoint and those of the cluster, where what fits was taken."""


def restore(
    endpoint: str,
    url: str,
    number: int | None = None,
    code: CodeSpec | None = None,
    timeout_s: float = 60.0,
    keys: CurveKeys | None = None,
    meanwhile: Callable[[Progress], None] = lambda _: None,
    *,
    into_tables: bool = False,
    names: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Progress:
    """Bring checkpoint ``number`` (default: the newest complete one) of ``url`` into the cluster of a scheduler.

    Rows go to their shards as pushes do, so that parity is right by construction. Data sets go on with the examples
    that come after the checkpoint. ``code``: of the tables in this cluster, instead of the one that they had;
    those of replicated modules get as many copies as it needs. ``timeout_s``: the longest time without progress.

    The cluster gets the tables of the checkpoint. With ``into_tables`` it has tables already, those of a model that
    nobody trains yet, and they get the rows: ``names`` says what a table of the checkpoint is called here. Tables that
    are missing, new or not the same are an error that names all of them; with ``partial`` what fits is taken: rows, if
    there are as many, of as many weights, and the optimizer's state, if it is of the same optimizer. Rows that nobody
    had touched have the initial values of the table here.

    Raises RefusedError for a cluster that has tables or data sets already, and for tables that it cannot hold;
    ConfigurationError for tables that do not fit; CheckpointError for a checkpoint that is damaged or not there;
    ClusterError when the cluster does not go on.
    """
    if not into_tables and (names or partial):
        raise ConfigurationError(
            "names and partial need the tables of the cluster to compare with: restore into_tables, once they are made"
        )
    checkpoint = open_checkpoint(url, number)
    state = cast(ClusterState, query(endpoint, ClusterQuery(secrets.randbelow(1 << 31)), keys=keys))
    rows = sum(checkpoint.touched_rows(spec.name) for spec in checkpoint.manifest.tables)
    restoring = Restoring(endpoint, timeout_s, keys, meanwhile, rows)
    if not into_tables:
        if state.tables:
            there = ", ".join(repr(table.name) for table in state.tables[:8])
            raise RefusedError(
                f"this cluster has tables already ({there}): restore into one that was just started, or into_tables; "
                "nothing was changed"
            )
        return restoring.run(
            url, checkpoint, [Fit(spec, _with_code(spec, code)) for spec in checkpoint.manifest.tables], False
        )
    if not state.tables:
        raise ConfigurationError("into_tables: this cluster has no tables yet: make the model first")
    found = fit(checkpoint.manifest.tables, state.tables, names or {})
    if found.differences and not partial:
        raise ConfigurationError(all_differences(found.differences))
    if not found.taken:
        raise ConfigurationError(f"nothing fits: {all_differences(found.differences)}")
    return restoring.run(url, checkpoint, found.taken, True)._replace(differences=tuple(found.differences))


def _with_code(spec: TableSpec, code: CodeSpec | None) -> TableSpec:
    """The table as a cluster of this code is to have it."""
    if code is None:
        return spec
    return msgspec.structs.replace(spec, code=CodeSpec(1 if spec.is_module else code.k, code.r, code.generator))


def cluster_name(endpoint: str, keys: CurveKeys | None = None) -> str:
    """The random name of a running cluster, which the checkpoints have that it writes."""
    asked = ClusterQuery(secrets.randbelow(1 << 31))
    return cast(ClusterState, query(endpoint, asked, NAME_MS, keys)).cluster


def restored_from(endpoint: str, keys: CurveKeys | None = None) -> RestoredFrom | None:
    """The checkpoint that a running cluster began with."""
    asked = ClusterQuery(secrets.randbelow(1 << 31))
    return cast(ClusterState, query(endpoint, asked, NAME_MS, keys)).restored


class Restoring:
    """One restore: a worker of the cluster, for as long as it takes."""

    def __init__(
        self, endpoint: str, timeout_s: float, keys: CurveKeys | None, meanwhile: Callable[[Progress], None],
        rows_in_all: int,
    ) -> None:  # fmt: skip
        self._endpoint, self._keys = endpoint, keys
        self._timeout_s = timeout_s
        self._meanwhile = meanwhile
        self._machine = ClientMachine(RESTORER, secrets.token_hex(8), WORKER)
        self._progress = Progress(0, rows_in_all, 0)

    def run(self, url: str, checkpoint: Checkpoint, tables: list[Fit], into_tables: bool) -> Progress:
        """Bring these tables of a checkpoint, and its data sets."""
        manifest = checkpoint.manifest
        fresh = {manifest.tables[number].name for number in manifest.fresh}
        with self.begun(into_tables):
            for each in tables:
                self._create(each.here)
            for each in tables:
                self._restore_table(checkpoint, each, has_values=each.source.name not in fresh)
        self.end(restored_datasets(checkpoint), into_tables, absolute(url), manifest.checkpoint)
        return self._progress

    @contextmanager
    def begun(self, into_tables: bool) -> Iterator[None]:
        """Nobody else is given tables, splits or runs from now on, until `end`."""
        machine = self._machine
        begins = Restore(secrets.randbelow(1 << 31), [], machine.worker, 0, begins=True, into_tables=into_tables)
        query(self._endpoint, begins, 1e3 * self._timeout_s, self._keys)
        with ClientNode(self._endpoint, machine, self._keys) as node:
            self._node = node
            self._wait(lambda: machine.ready, "the cluster to be ready")
            yield

    def end(self, datasets: list[RestoredDataset], into_tables: bool, url: str = "", checkpoint: int = 0) -> None:
        """All of it is durable."""
        machine = self._machine
        asked = Restore(
            secrets.randbelow(1 << 31), datasets, machine.worker, machine.epoch, into_tables=into_tables, url=url,
            checkpoint=checkpoint,
        )  # fmt: skip
        query(self._endpoint, asked, 1e3 * self._timeout_s, self._keys)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        machine, end = self._machine, time.monotonic() + self._timeout_s
        while not done():
            self._node.pump(_PUMP_MS)
            self._meanwhile(self._progress)
            if machine.failed:
                kind = DataLostError if machine.failed_kind == "lost" else ClusterError
                raise kind(f"the restore cannot go on: {machine.failed}")
            if time.monotonic() > end:
                raise ClusterError(f"the restore waited {self._timeout_s:.0f} s for {what}: {self._missing()}")

    def _missing(self) -> str:
        """Who is waited for, for people."""
        machine = self._machine
        silent_ms = machine.scheduler_silent_ms
        if silent_ms is None or silent_ms > 1e3 * self._timeout_s / 2:
            return f"the scheduler at {self._endpoint} does not answer"
        gone = machine.down()
        down = [f"shard {shard} is down for {ms / 1e3:.0f} s" for shard, ms in gone.items()]
        late = [f"shard {shard} has not answered" for shard in machine.unanswered() if shard not in gone]
        return ", ".join([*down, *late][:20]) or "all shards are up and have answered; see `ecrec status`"

    def _create(self, spec: TableSpec) -> None:
        machine = self._machine
        self._node.perform(machine.create_table(spec))
        name = spec.name
        self._wait(lambda: machine.table_ready(name) or name in machine.table_refusals, f"table {name!r}")
        if name in machine.table_refusals:
            raise RefusedError(f"table {name!r} of the checkpoint: {machine.table_refusals[name]}")

    def _claim(self, index: int, spec: TableSpec) -> bool:
        """These are the first values of a table, unless it has some. Returns whether it had none."""
        machine = self._machine
        self._node.perform(machine.initialise(index, claim=True))
        self._wait(lambda: machine.initial(index) != WAIT or index in machine.initial_refusals, "first values")
        if index in machine.initial_refusals:
            raise RefusedError(f"table {spec.name!r}: {machine.initial_refusals[index]}")
        return machine.initial(index) == WRITE

    def _make_durable(self, index: int, spec: TableSpec, writes: bool) -> None:
        """``writes``: what was pushed are its first values."""
        machine = self._machine
        self._node.perform(machine.flush())
        self._wait(lambda: machine.durable, f"the rows of table {spec.name!r} to be durable")
        if writes:
            self._node.perform(machine.initialised(index))
            self._wait(lambda: machine.initial(index) == WRITTEN, f"first values of table {spec.name!r}")

    def _restore_table(self, checkpoint: Checkpoint, each: Fit, has_values: bool) -> None:
        spec = each.here
        index, _ = self._machine.tables[spec.name]
        writes = has_values and self._claim(index, spec)
        initial = None if each.has_state else InitialValues(spec)
        for rows, columns in checkpoint.rows(each.source.name):
            records = records_of(spec, as_here(each, initial, rows, columns))
            step = max(1, PUSH_BYTES // spec.record_bytes)
            for first in range(0, len(rows), step):
                self._push_records(index, spec, rows[first : first + step], records[first : first + step])
        self._make_durable(index, spec, writes)

    def _push_records(self, index: int, spec: TableSpec, rows: Any, records: Any) -> None:
        floats = spec.dim + spec.optimizer.state_floats(spec.dim)
        self._push(index, spec, rows, np.ascontiguousarray(records[:, : 4 * floats]).view(np.float32), records=True)

    def _push(self, index: int, spec: TableSpec, rows: Any, values: Any, records: bool) -> None:
        """``values``: float32, a row for each of ``rows``: weights, or, with ``records``, weights and state."""
        machine = self._machine
        by_shard = {
            shard: ([Section([index], [len(mine)])], (np.ascontiguousarray(rows[mine]), values[mine].reshape(-1)))
            for shard, mine in _by_shard(spec, rows, machine.n, machine.groups)
        }
        self._wait(lambda: machine.can_push, "room for a push")
        self._node.perform(machine.push(by_shard, assign=True, records=records))
        done = self._progress
        self._progress = Progress(done.rows + len(rows), done.rows_in_all, done.nbytes + values.nbytes)
        self._node.pump(0.0)
        self._meanwhile(self._progress)


def _by_shard(spec: TableSpec, rows: Any, n: int, groups: int) -> Iterator[tuple[int, Any]]:
    """(shard, places in ``rows`` of those that lie on it)."""
    shards = shards_of_rows(spec, n, groups, rows)
    order = np.argsort(shards, kind="stable")
    ends = np.searchsorted(shards[order], np.arange(n * groups), side="right")
    first = 0
    for shard, last in enumerate(ends.tolist()):
        if last > first:
            yield shard, order[first:last]
        first = last


def restored_datasets(checkpoint: Checkpoint) -> list[RestoredDataset]:
    """The data sets of a checkpoint, and what is left of them.

    How far a worker was in its splits stands in the watermarks of the shards. Where a worker died just before the cut,
    some shards have more of its pushes than others: what not all of them have is trained on again.
    """
    watermarks = [checkpoint.index(shard).watermarks for shard in range(len(checkpoint.manifest.indexes))]
    return [_restored(dataset, watermarks) for dataset in checkpoint.manifest.datasets]


def _restored(dataset: SavedDataset, watermarks: list[dict[int, int]]) -> RestoredDataset:
    returned, trained, repeated = list(dataset.returned), dataset.trained, dataset.repeated
    for lease in dataset.leases:
        cursors = [each.get(cursor_key(lease.worker), 0) for each in watermarks]
        done = max(trained_of(lease, min(cursors)), lease.done)
        trained += done
        repeated += max(0, trained_of(lease, max(cursors)) - done)
        if lease.first + done < lease.last:
            returned.append((lease.first + done, lease.last))
    known = Dataset(dataset.name, dataset.examples, dataset.end, dataset.split_examples)
    return RestoredDataset(known, dataset.next, sorted(returned), trained, repeated)

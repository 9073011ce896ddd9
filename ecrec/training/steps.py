"""What a session moves in a step: rows that are pulled, gradients that are pushed, and values that are written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ecrec._native import first_nonfinite
from ecrec.errors import ConfigurationError, GradientError, RefusedError
from ecrec.protocol.arrays import frames_bytes
from ecrec.protocol.messages import WAIT, WRITE, WRITTEN, Section
from ecrec.protocol.requests import SectionsAndFrames
from ecrec.training.clipping import check_norms, clip, zero_nonfinite
from ecrec.training.connection import Connection, locked
from ecrec.training.owners import Owners
from ecrec.training.parts import F32, Fetch, Part, Share
from ecrec.training.pulls import Asked
from ecrec.training.rates import ShardOptimizer
from ecrec.transport.client_node import check_process

REASON_MAX = 1000
"""Characters of an error that other workers are told."""

TOLD_S = 1.0
"""A worker that fails waits at most this long for the scheduler to know why."""


class Steps:
    """Pulls and pushes of all parts over one connection. The session's lock is held by who calls a method, but for
    those that take it themselves, for iterators that are called outside of it."""

    def __init__(
        self,
        connection: Connection,
        owners: Owners,
        *,
        rank: int,
        world_size: int,
        sync: bool,
        nonfinite: str,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.sync = sync
        self.nonfinite = nonfinite
        self.pushes = self.assigns = 0
        """How often gradients were pushed, and values written."""
        self.pid, self.lock = connection.pid, connection.lock
        self._connection = connection
        self._machine = connection.machine
        self._figures = connection.figures
        self._owners = owners

    # ------------------------------------------------------------------ pulls
    @locked
    def ask(self, fetches: Sequence[Fetch], exact: bool, records: bool = False) -> Asked:
        """Send one request a shard for what all of these want; ``records``: with what optimizers keep."""
        asked = Asked(fetches)
        self._connection.check_open()
        self._connection.check_failed()
        ticket, effects = self._machine.pull(asked.by_shard, exact=exact, records=records)
        self._connection.asked[ticket] = asked
        self._connection.perform(effects)
        if self._connection.spans is not None:
            self._connection.spans.pulls(ticket, asked.by_shard)
        return asked

    @locked
    def take(self, asked: Asked) -> None:
        """Wait for the answers, and hand them out. Raises RefusedError for a pull that a shard refused."""
        with self._connection.span("pull"):
            self._connection.wait(lambda: asked.frames is not None or asked.refusal != "", "the answers to a pull")
            if asked.refusal:
                raise RefusedError(asked.refusal)
            self._figures.bytes_pulled += asked.fill()

    # ------------------------------------------------------------------ pushes
    def push(self, examples: int, counted: int, optimizer: ShardOptimizer | None) -> None:
        """Push what the parts have gathered, with the learning rates of an optimizer; ``counted`` of the examples are
        those of a split."""
        parts = self._checked_parts()
        rates = {} if optimizer is None else optimizer.rates()
        barrier = self.world_size if self.sync else 0
        self._wait_to_push(barrier)
        by_shard = self._by_shard([part.take_gradients() for part in parts], True)
        if not by_shard and optimizer is not None and optimizer.has_emptied:
            optimizer.has_emptied = False
            raise GradientError(
                "nothing to push: session.optimizer.zero_grad() was called since the last push, and no backward pass "
                "after it. A push forgets what it has sent; leave zero_grad out, or call it before the backward pass"
            )
        self._push(by_shard, barrier, examples=counted, rates=rates)
        if optimizer is not None:
            optimizer.pushed()
        self.pushes += 1
        for part in parts:
            part.pushed()
        self._figures.steps += 1
        self._figures.examples += examples

    def clip(self, max_norm: float | None, row_norm: float | None) -> float:
        """See `Session.clip_gradients`."""
        check_norms(max_norm, row_norm)
        if self.sync and self.world_size > 1:
            raise ConfigurationError(
                "clip_gradients with sync=True: the servers sum the gradients of all workers, and the norm of the sum "
                "is not known here; max_gradient of an optimizer clips the sum by value"
            )
        waiting = [gradients for part in self._checked_parts() for gradients in part.waiting_gradients()]
        if self.nonfinite == "zero":
            self._figures.nonfinite_gradients += sum(map(zero_nonfinite, waiting))
        return clip(waiting, max_norm, row_norm)

    def flush(self, what: str) -> None:
        """Wait until every push is durable."""
        self._connection.perform(self._machine.flush())
        self._connection.wait(lambda: self._machine.durable, what)

    def barrier(self) -> None:
        """See `Session.barrier`."""
        if self.world_size > 1 and not self.sync:
            # Any of them may have been started again since the last one: those that live now meet.
            self.flush("all pushes to be durable")
            self._connection.perform(self._machine.join_run(self.world_size))
        self._wait_to_push(self.world_size)
        self._push({}, self.world_size)
        self.flush(f"all {self.world_size} workers")

    # ------------------------------------------------------------------ values
    def assign(self, shares: Mapping[int, Share], is_stale: Callable[[Part, set[int]], bool]) -> None:
        """Write these weights, and wait until they are durable. Of which parts the rows are old then, ``is_stale``
        says, given a part and the tables that were written."""
        self._wait_to_push(0)
        self._push(self._by_shard([shares], False), 0, assign=True)
        written = {table for share in shares.values() for table in share.section.tables}
        self.written(lambda part: is_stale(part, written))
        self.flush("the weights to be durable")

    def written(self, is_stale: Callable[[Part], bool] = lambda part: True) -> None:
        """Values were written, here or by somebody else: what those parts have pulled is old."""
        self.assigns += 1
        for part in self._owners.parts:
            if is_stale(part):
                part.pushed()

    def initialise(self, name: str, chunks: Callable[[], Sequence[Mapping[int, Share]]]) -> None:
        """See `Session.initialise`. Takes the lock itself: ``chunks`` may compute for long, and this worker lives."""
        check_process(self.pid)
        values: Sequence[Mapping[int, Share]] = ()
        failure: Exception | None = None
        if self.rank == 0:
            try:
                values = chunks()
            except Exception as error:
                failure = error
        with self.lock:
            self._initialise(name, values, failure)

    def _initialise(self, name: str, values: Sequence[Mapping[int, Share]], failure: Exception | None) -> None:
        machine, wait = self._machine, self._connection.wait
        index = machine.tables[name][0]
        pushes: list[dict[int, SectionsAndFrames]] = []
        if self.rank == 0:
            try:
                if failure is not None:
                    raise failure
                pushes = [self._by_shard([shares], False) for shares in values]
                # Before it says that it will write them: all others would wait for it in vain.
                for push in pushes:
                    machine.check_push(push, assign=True)
            except Exception as error:
                if self.world_size > 1:
                    told = machine.initial_failed(index, f"{type(error).__name__}: {error}"[:REASON_MAX])
                    self._connection.tell_initial_failed(told, TOLD_S)
                raise
        self._connection.perform(machine.initialise(index, claim=self.rank == 0))
        what = f"the first values of table {name!r}, which worker 0 writes"
        wait(lambda: machine.initial(index) != WAIT or index in machine.initial_refusals, what)
        if index in machine.initial_refusals:
            again = " Start that worker again, and this one" * (self.rank != 0)
            raise RefusedError(f"first values of table {name!r}: {machine.initial_refusals[index]}.{again}")
        if machine.initial(index) == WRITE:
            for push in pushes:
                self._wait_to_push(0)
                self._push(push, 0, assign=True)
            self.flush(f"the first values of table {name!r} to be durable")
            self._connection.perform(machine.initialised(index))
            wait(lambda: machine.initial(index) == WRITTEN, what)

    # ------------------------------------------------------------------ what they have in common
    def _checked_parts(self) -> list[Part]:
        parts = self._owners.parts
        for part in parts:
            part.check_gradients()
        return parts

    def _wait_to_push(self, barrier: int) -> None:
        """Until a push can be sent at once. Gradients that are gathered before may have to be thrown away."""
        machine = self._machine
        if barrier > 1 and not machine.runs.run:
            self._connection.perform(machine.join_run(barrier))
            self._connection.wait(lambda: machine.runs.run > 0 or machine.runs.refusal != "", f"all {barrier} workers")
            if machine.runs.refusal:
                raise RefusedError(f"a run of {barrier} workers: {machine.runs.refusal}")
        self._connection.wait(lambda: machine.can_push, "room for a push")

    def _by_shard(self, parts: Sequence[Mapping[int, Share]], gradients: bool) -> dict[int, SectionsAndFrames]:
        by_shard: dict[int, tuple[list[Section], list[Any]]] = {}
        for shares in parts:
            for shard, share in shares.items():
                assert share.values is not None
                if gradients and self.nonfinite == "zero":
                    self._zero_nonfinite(share.values)
                sections, frames = by_shard.setdefault(shard, ([], []))
                sections.append(share.section)
                frames += [share.rows, share.values]
        return dict(by_shard)

    def _push(
        self,
        by_shard: Mapping[int, SectionsAndFrames],
        barrier: int,
        assign: bool = False,
        examples: int = 0,
        rates: Mapping[int, float] | None = None,
    ) -> None:
        """Behind `_wait_to_push`, and nothing between."""
        barrier = barrier if barrier > 1 else 0
        try:
            effects = self._machine.push(by_shard, barrier=barrier, assign=assign, examples=examples, rates=rates)
        except GradientError as error:
            parts = self._owners.parts
            what = next((text for part in parts if error.place and (text := part.describe(*error.place))), "")
            where = f": that is {what}" if what else ""
            advice = "" if assign else ' (nonfinite="zero" would take it as zero)'
            raise GradientError(f"{error}{where}{advice}", error.place) from None
        self._connection.perform(effects)
        if self._connection.spans is not None:
            self._connection.spans.pushes(self._machine)
        self._figures.bytes_pushed += sum(frames_bytes(frames) for _, frames in by_shard.values())

    def _zero_nonfinite(self, values: F32) -> None:
        if first_nonfinite(values) >= 0:
            bad = ~np.isfinite(values)
            self._figures.nonfinite_gradients += int(bad.sum())
            values[bad] = 0.0

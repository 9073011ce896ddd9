"""A session: one worker's way to the shards, without a thread of its own.

Everything happens while the session waits or is pumped: it hands the machine what arrived, and what the machine
wants done to the transport. A step pulls the rows of all its *parts* (embedding tables, replicated modules) in one
request a shard, and pushes all their gradients in one push.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
from torch import nn

from ecrec._native import first_nonfinite
from ecrec.errors import (
    ClusterError,
    ConfigurationError,
    DataLostError,
    FencedError,
    GradientError,
    RefusedError,
)
from ecrec.protocol.client import ClientMachine, SectionsAndFrames, SplitLease
from ecrec.protocol.events import Effect, Failed, PullDone
from ecrec.protocol.messages import WORKER, Dataset, Frames, Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.optimizers import Optimizer
from ecrec.training.parts import Fetch, Part, Share
from ecrec.training.replicated import ReplicatedModule
from ecrec.transport.client_node import ClientNode
from ecrec.transport.curve import CurveKeys

BatchT = TypeVar("BatchT")

TIMEOUT_S = 60.0
"""A wait that takes longer ends with ClusterError; a recovery takes seconds, and so does another worker's step."""

NONFINITE = ("error", "zero")

_PUMP_MS = 20.0


class Node(Protocol):
    """The transport under a session; `ClientNode` is one."""

    def perform(self, effects: Sequence[Effect]) -> None: ...

    def pump(self, timeout_ms: float) -> list[PullDone | Failed]: ...

    def close(self) -> None: ...


@dataclass
class Figures:
    """What a session did, for people and reports."""

    steps: int = 0
    examples: int = 0
    bytes_pulled: int = 0
    bytes_pushed: int = 0
    nonfinite_gradients: int = 0
    waited_s: float = 0.0
    longest_pause_s: float = 0.0


class Split(NamedTuple):
    """Examples first <= i < last of a pass, leased to this worker."""

    epoch: int
    """Number of the pass, from 0."""
    first: int
    last: int


class _Asked:
    """A pull of several parts: which frame of which shard is whose."""

    def __init__(self, fetches: Sequence[Fetch]) -> None:
        self.fetches = list(fetches)
        self.frames: dict[int, Frames] | None = None
        self.by_shard: dict[int, SectionsAndFrames] = {}
        self._order: dict[int, list[int]] = {}
        for i, fetch in enumerate(self.fetches):
            for shard, share in fetch.shares.items():
                sections, rows = self.by_shard.setdefault(shard, ([], []))
                sections.append(share.section)
                rows.append(share.rows)  # type: ignore[attr-defined]
                self._order.setdefault(shard, []).append(i)

    def fill(self) -> int:
        """Hand the frames to the fetches; returns their bytes."""
        assert self.frames is not None
        answers: list[dict[int, Any]] = [{} for _ in self.fetches]
        size = 0
        for shard, order in self._order.items():
            frames = self.frames[shard]
            if len(frames) != len(order):
                raise ClusterError(f"shard {shard} answered {len(order)} sections with {len(frames)} frames")
            for i, frame in zip(order, frames, strict=True):
                answers[i][shard] = frame
                size += memoryview(frame).nbytes
        for fetch, answer in zip(self.fetches, answers, strict=True):
            fetch.fill(answer)
        return size


class Session:
    """A worker's connection to the cluster; a context manager that waits for its pushes at the end.

    ``code``: of tables that name none (``"4+1"``). ``rank`` of ``world_size`` workers. ``sync``: every push is summed
    with the pushes of the same number of all other workers, in order of rank, and applied as one. ``exact``: a pull
    sees all pushes made before it and none later, so that a run is repeatable, bit for bit, whatever dies (with one
    worker, or with ``sync``); otherwise pulls and up to ``pushes_in_flight_max`` pushes run freely, and **no two runs
    need to be equal**. Default: exact with one worker or sync. ``nonfinite``: what `push` does with a gradient that is
    infinite or not a number: ``"error"`` raises GradientError before anything is sent, ``"zero"`` sets it to zero and
    counts it in ``figures``.
    """

    def __init__(
        self,
        machine: ClientMachine,
        node: Node,
        *,
        code: CodeSpec | str | None = None,
        rank: int = 0,
        world_size: int = 1,
        sync: bool = False,
        exact: bool | None = None,
        nonfinite: str = "error",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigurationError(f"rank {rank}: expected 0 to {world_size - 1}, there are {world_size} workers")
        if sync and exact is False:
            raise ConfigurationError("sync=True needs exact pulls: the sum would otherwise meet different rows")
        if nonfinite not in NONFINITE:
            raise ConfigurationError(f"nonfinite {nonfinite!r}: expected {' or '.join(NONFINITE)}")
        self.machine = machine
        self.nonfinite = nonfinite
        self.code = CodeSpec.parse(code) if isinstance(code, str) else code
        self.rank = rank
        self.world_size = world_size
        self.sync = sync
        self.exact = (sync or world_size == 1) if exact is None else exact
        self.timeout_s = timeout_s
        self.figures = Figures()
        self._node = node
        self._parts: list[Part] = []
        self._replicated: set[str] = set()
        self._asked: dict[int, _Asked] = {}
        self._closed = False
        self._split: SplitLease | None = None
        """What `lease_splits` last gave."""
        self.marks_at_start: dict[int, int] = {}
        """Watermark of each shard for this worker when the session began; not 0: an earlier process pushed."""

    # ------------------------------------------------------------------ life
    def start(self) -> "Session":
        """Wait until all shards are known and have answered. Raises ClusterError with advice if they do not."""
        self.wait(lambda: self.machine.ready, "the cluster")
        self.marks_at_start = self.machine.pushed
        return self

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def close(self) -> None:
        """Wait until every push is durable, then disconnect. May be called twice."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self.abandon()

    def flush(self) -> None:
        """Wait until every push is durable: no death of as many shards as the code stands can take it back any more.

        Raises ClusterError with advice after the timeout.
        """
        self._flush("all pushes to be durable")

    def _flush(self, what: str) -> None:
        self._node.perform(self.machine.flush())
        self.wait(lambda: self.machine.durable, what)

    def abandon(self) -> None:
        """Disconnect at once; pushes that are not durable may be lost."""
        self._closed = True
        self._node.close()

    @property
    def shards(self) -> int:
        """Number of shards of all coding groups."""
        return self.machine.shards

    @property
    def first_rows(self) -> dict[tuple[int, int], float]:
        """(shard, epoch) -> seconds of the monotonic clock at which that incarnation first answered a pull."""
        return {life: at_ms / 1e3 for life, at_ms in self.machine.first_rows.items()}

    def default_code(self) -> CodeSpec:
        """The session's code; without one, (n - 1) + 1 on n shards and no fault tolerance on a single one."""
        if self.code is not None:
            return self.code
        n = self.machine.n
        return CodeSpec(n - 1, 1) if n > 1 else CodeSpec(1, 0)

    # ------------------------------------------------------------------ waiting
    def pump(self, timeout_ms: float = 0.0) -> None:
        """Handle what arrived; call it now and then in a long computation, so that deaths are noticed in it.

        Raises DataLostError, RefusedError or ClusterError when the worker cannot go on.
        """
        for result in self._node.pump(timeout_ms):
            if isinstance(result, Failed):
                self._raise(result.reason)
            asked = self._asked.pop(result.ticket, None)
            if asked is not None:
                asked.frames = result.answers
        if self.machine.failed:
            self._raise(self.machine.failed)
        if lost := self.machine.damaged.intersection(self._replicated):
            raise DataLostError(
                f"rows of the replicated module {', '.join(sorted(lost))} were lost in all their copies, and training "
                "cannot go on with some parameters zero: start the cluster and all workers again. More copies "
                '(replicate(..., code="1+2")) stand more deaths'
            )

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float | None = None) -> None:
        """Pump until ``done()``. Raises ClusterError with advice after the timeout, and what `pump` raises."""
        begin = time.monotonic()
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        while not done():
            waited = time.monotonic() - begin
            if waited > limit_s:
                raise ClusterError(f"waited {waited:.1f} s for {what}: {self._advice()}")
            self.pump(_PUMP_MS)
        waited = time.monotonic() - begin
        self.figures.waited_s += waited
        self.figures.longest_pause_s = max(self.figures.longest_pause_s, waited)

    def _advice(self) -> str:
        machine = self.machine
        if not machine.groups:
            return "the scheduler has not answered; is it running, and at the address given?"
        down = machine.down()
        if down:
            names = ", ".join(map(str, down))
            return f"shard {names} of {machine.shards} is not running; start a replacement with ecrec-ps"
        if self.sync and self.world_size > 1:
            return f"all shards are up; do all {self.world_size} workers make the same number of steps?"
        return "all shards are up but one does not answer; its log may say why"

    def _raise(self, reason: str) -> NoReturn:
        kind = self.machine.failed_kind
        if kind == "lost":
            raise DataLostError(reason)
        if kind == "fenced":
            raise FencedError(reason)
        if kind == "refused":
            raise RefusedError(reason)
        raise ClusterError(reason)

    # ------------------------------------------------------------------ tables and parts
    def create_tables(self, specs: Sequence[TableSpec]) -> list[int]:
        """Their indices, once every running shard has them. Tables that are there and equal are taken.

        Raises RefusedError for one that does not fit the cluster or differs from the one of that name.
        """
        for spec in specs:
            self._node.perform(self.machine.create_table(spec))
        names = [spec.name for spec in specs]
        self.wait(lambda: all(map(self.machine.table_ready, names)), f"tables {', '.join(names)}")
        return [self.machine.tables[name][0] for name in names]

    def replicate(
        self, module: nn.Module, optimizer: Optimizer, *, code: CodeSpec | str | None = None, name: str = "dense"
    ) -> ReplicatedModule:
        """Replicate a module's parameters on the shards; see `ReplicatedModule`."""
        self._replicated.add(name)
        return ReplicatedModule(self, module, optimizer, code=code, name=name)

    def register(self, part: Part) -> None:
        """From now on `push` takes this part's gradients too."""
        self._parts.append(part)

    # ------------------------------------------------------------------ steps
    def prefetch(
        self,
        batches: Iterable[BatchT],
        *parts: Part,
        features: Callable[[BatchT], Any] = lambda batch: batch,
        depth: int = 1,
    ) -> Iterator[BatchT]:
        """The batches, each when its rows are here; meanwhile the rows of the next ``depth`` are on their way.

        ``features(batch)`` is what the parts' ``forward`` will be called with (the same object). With exact pulls the
        rows of batch t are as after push t - 1 - depth, and a push waits for the pulls made before it.
        """
        if depth < 0:
            raise ValueError(f"depth is {depth}, expected at least 0")
        source = iter(batches)
        queue: deque[tuple[BatchT, Any, _Asked]] = deque()
        ended = False
        while True:
            while not ended and len(queue) <= depth:
                try:
                    batch = next(source)
                except StopIteration:
                    ended = True
                    break
                seen = features(batch)
                queue.append((batch, seen, self._ask([part.plan(seen) for part in parts], self.exact)))
            if not queue:
                return
            batch, seen, asked = queue.popleft()
            self._await(asked)
            for part, fetch in zip(parts, asked.fetches, strict=True):
                part.offer(seen, fetch)
            yield batch

    def lease_splits(
        self, name: str, examples: int, *, split_examples: int, epochs: int = 1, end: int | None = None
    ) -> Iterator[Split]:
        """Splits of ``epochs`` passes over ``examples`` examples, dealt out to all workers that ask under this name.

        Each `push` takes its examples off the oldest split, in order; push all of a split before you ask for the next.
        The iterator ends when all examples of the data set, those of the other workers too, are trained on and
        durable; so long it waits for what a dead worker may leave. A worker that dies leaves its split to the next one
        that asks, from the first example on that some shard lacks (docs/protocol.md): every example is trained on at
        least once, and only those of batches that were on their way when their worker died are trained on again.

        ``split_examples``: of a split, at most; best a multiple of the batch size, and small enough for every worker to
        get several. ``end``: number of examples over all passes, where the last one is to end early.
        Raises ConfigurationError with ``sync``, for numbers that cannot be, while another iteration has a split, or,
        before the next split, if one was not pushed to its end; RefusedError for a name that is known with other
        numbers; FencedError when this worker was given up.
        """
        if self.sync:
            raise ConfigurationError("lease_splits with sync=True: the workers of a sum must go in step")
        if examples < 1 or split_examples < 1 or epochs < 0 or (end is not None and end < 0):
            raise ConfigurationError(
                f"lease_splits({name!r}): examples {examples} and split_examples {split_examples} must be at least 1, "
                f"epochs {epochs} and end {end} not negative"
            )
        return self._lease(Dataset(name, examples, epochs * examples if end is None else end, split_examples))

    def _lease(self, dataset: Dataset) -> Iterator[Split]:
        machine = self.machine
        if self._split is not None or machine.leases:
            raise ConfigurationError(f"lease_splits({dataset.name!r}): another iteration has a split")
        try:
            while True:
                self._ask_for_split(dataset)
                while machine.asking and not machine.leases:
                    # Each answer, be it that others have the rest, is a sign of life: wait on as long as they come.
                    known = machine.split_answers
                    self.wait(partial(self._split_answered, known), "the scheduler to answer about a split")
                if not machine.leases:
                    return
                # So that the next one is there when this one is done, even if the scheduler is away for a while.
                self._ask_for_split(dataset)
                self._split = split = machine.leases[0]
                epoch, first = divmod(split.first, dataset.examples)
                yield Split(epoch, first, first + split.last - split.first)
                if self._examples_left():
                    raise ConfigurationError(
                        f"{dataset.name!r}: {self._examples_left()} examples of the split {first} to "
                        f"{first + split.last - split.first} were not pushed; push(examples) counts them"
                    )
        finally:
            self._split = None

    def _split_answered(self, known: int) -> bool:
        return self.machine.split_answers != known

    def _ask_for_split(self, dataset: Dataset) -> None:
        if not self.machine.asking and dataset.name not in self.machine.finished:
            self._node.perform(self.machine.lease(dataset))

    def _examples_left(self) -> int:
        """Of the split that `lease_splits` last gave."""
        leases = self.machine.leases
        return (self.machine.examples_left or 0) if leases and leases[0] == self._split else 0

    def fetch(self, *fetches: Fetch, exact: bool | None = None) -> None:
        """Pull now, and wait for it."""
        self._await(self._ask(fetches, self.exact if exact is None else exact))

    def push(self, examples: int = 0) -> None:
        """Send the gradients that the parts have gathered since the last push, as one push; the end of a step.

        Waits while too many pushes are in flight or an exact pull is not answered. ``examples``: how many went into it,
        for the figures, and for `lease_splits`, where that is used: so many of the split are then done. Raises
        ConfigurationError for more than are left of it; nothing is sent then.
        """
        self._check_split(examples)
        gradients = [part.take_gradients() for part in self._parts]
        self._push(gradients, self.world_size if self.sync else 0, examples=examples)
        self.figures.steps += 1
        self.figures.examples += examples
        self.machine.figures = asdict(self.figures)

    def assign(self, shares: Mapping[int, Share]) -> None:
        """Set weights instead of stepping: one push that all workers make, of which only one names any rows."""
        self._push([shares], self.world_size, assign=True)

    def barrier(self) -> None:
        """Wait until all workers are here: an empty push that is applied when all have made it, and is durable."""
        self._push([], self.world_size)
        self._flush(f"all {self.world_size} workers")

    def pull_records(self, shares: Mapping[int, Share]) -> "RecordsAsked":
        """Ask for whole records (weights and optimizer state); ``.take()`` waits for the answers."""
        return RecordsAsked(self, shares)

    def _check_split(self, examples: int) -> None:
        left = self._examples_left()
        if self._split is not None and not 0 <= examples <= left:
            raise ConfigurationError(
                f"a push of {examples} examples, but {left} are left of the split: a batch must not reach into the next"
            )

    def _push(
        self, parts: Sequence[Mapping[int, Share]], barrier: int, assign: bool = False, examples: int = 0
    ) -> None:
        by_shard: dict[int, tuple[list[Section], list[Any]]] = {}
        for shares in parts:
            for shard, share in shares.items():
                sections, frames = by_shard.setdefault(shard, ([], []))
                sections.append(share.section)
                assert share.values is not None
                self._check_finite(share)
                frames += [share.rows, share.values]
                self.figures.bytes_pushed += share.rows.nbytes + share.values.nbytes
        self.wait(lambda: self.machine.can_push, "room for a push")
        barrier = barrier if barrier > 1 else 0
        self._node.perform(self.machine.push(by_shard, barrier=barrier, assign=assign, examples=examples))

    def _check_finite(self, share: Share) -> None:
        """Before any shard has a part of the push: a shard that refuses its part could not undo the others'."""
        values = share.values
        assert values is not None
        first = first_nonfinite(values)
        if first < 0:
            return
        if self.nonfinite == "zero":
            bad = ~np.isfinite(values)
            self.figures.nonfinite_gradients += int(bad.sum())
            values[bad] = 0.0
            return
        names = {index: (name, spec.dim) for name, (index, spec) in self.machine.tables.items()}
        begin = row = 0
        for table, count in zip(share.section.tables, share.section.counts, strict=True):
            name, dim = names[table]
            if first < begin + count * dim:
                at, column = divmod(first - begin, dim)
                raise GradientError(
                    f"the gradient of table {name!r}, row {share.rows[row + at]}, column {column} is {values[first]}; "
                    'nothing was pushed (nonfinite="zero" would take it as zero)'
                )
            begin, row = begin + count * dim, row + count

    def _ask(self, fetches: Sequence[Fetch], exact: bool, records: bool = False) -> _Asked:
        asked = _Asked(fetches)
        ticket, effects = self.machine.pull(asked.by_shard, exact=exact, records=records)
        self._asked[ticket] = asked
        self._node.perform(effects)
        return asked

    def _await(self, asked: _Asked) -> None:
        self.wait(lambda: asked.frames is not None, "the answers to a pull")
        self.figures.bytes_pulled += asked.fill()


class RecordsAsked:
    """A pull of whole records on its way."""

    def __init__(self, session: Session, shares: Mapping[int, Share]) -> None:
        self.shares = shares
        self.answers: Mapping[int, Any] = {}
        self._session = session
        self._asked = session._ask([self], True, records=True)

    def fill(self, answers: Mapping[int, Any]) -> None:
        self.answers = answers

    def take(self) -> Mapping[int, Any]:
        """The records of each shard asked, a buffer each."""
        self._session._await(self._asked)
        return self.answers


def connect(
    scheduler: str,
    *,
    code: CodeSpec | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    sync: bool = False,
    exact: bool | None = None,
    nonfinite: str = "error",
    timeout_s: float = TIMEOUT_S,
    keys: CurveKeys | None = None,
) -> Session:
    """Join a cluster as worker ``rank``, with ``keys`` if it encrypts; see `Session` for the rest.

    Raises ClusterError if the scheduler at this endpoint or a shard does not answer in time, ConfigurationError for
    arguments that cannot be.
    """
    machine = ClientMachine(rank, secrets.token_hex(8), WORKER)
    node = ClientNode(scheduler, machine, keys)
    try:
        session = Session(
            machine,
            node,
            code=code,
            rank=rank,
            world_size=world_size,
            sync=sync,
            exact=exact,
            nonfinite=nonfinite,
            timeout_s=timeout_s,
        )
        return session.start()
    except BaseException:
        node.close()
        raise

"""A session's connection: it hands the machine what arrived, and what the machine wants done to the transport.

That happens while somebody waits, and now and then, in a thread (`Heartbeat`), while nobody calls: so a worker that
computes for long is not taken for dead. Who waits is told for whom, and for how long at most.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from ecrec import termination
from ecrec.errors import (
    ClusterError,
    DataLostError,
    EcrecError,
    FencedError,
    PartialPushError,
    RefusedError,
)
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Effect, Failed, HalfHandledError, PullDone, Result
from ecrec.training.advice import advice
from ecrec.training.heartbeat import Heartbeat
from ecrec.training.pulls import Asked
from ecrec.training.spans import Spans
from ecrec.transport.client_node import check_process

SCHEDULER_TIMEOUT_S = 60.0
"""Without a limit of its own, a wait ends with ClusterError when no scheduler has ever answered for this long,"""

SCHEDULER_AWAY_TIMEOUT_S = 300.0
"""or when the one that did says nothing for this long: only it knows whether a recovery is possible. It is started
again within seconds, with its host within minutes."""

WAITS_S = 1.0
"""A wait that takes longer asks all shards for signs of life, and the scheduler for an answer."""

SAID_S = 10.0
"""How often the log says who is waited for."""

PUMP_MS = 20.0

BEAT_S = 0.25
"""A session that is not called for this long is pumped by its heartbeat."""

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class Locked(Protocol):
    """What a method needs that has the machine and the node to itself."""

    @property
    def pid(self) -> int: ...

    @property
    def lock(self) -> threading.RLock: ...


class Node(Protocol):
    """The transport under a session; `ClientNode` is one."""

    def perform(self, effects: Sequence[Effect]) -> None: ...

    def pump(self, timeout_ms: float) -> list[Result]: ...

    def scheduler_trouble(self) -> str:
        """Why the scheduler does not answer, as far as that can be seen from here."""

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


LockedT = TypeVar("LockedT", bound=Locked)


def locked(method: Callable[Concatenate[LockedT, P], R]) -> Callable[Concatenate[LockedT, P], R]:
    """A method that has the machine and the node to itself. Only in the process that made the session: in a child of
    `os.fork` the lock may be held by a thread that is not there."""

    @wraps(method)
    def call(self: LockedT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        check_process(self.pid)
        with self.lock:
            result = method(self, *args, **kwargs)
        if termination.is_asked():
            termination.check()
        return result

    return call


class Connection:
    """The machine of a worker (or tool) and the node under it. ``sync_workers``: so many workers' pushes are summed."""

    def __init__(
        self,
        machine: ClientMachine,
        node: Node,
        figures: Figures,
        *,
        rank: int = 0,
        sync_workers: int = 1,
        wait_timeout_ms: float | None = None,
    ) -> None:
        self.machine = machine
        self.wait_timeout_ms = wait_timeout_ms
        self.pid = os.getpid()
        self.lock = threading.RLock()
        """Of the machine and the node: `beat` uses them in another thread while this one computes."""
        self.closed = False
        self.asked: dict[int, Asked] = {}
        """Ticket -> the pull that waits for its answers."""
        self.replicated: set[str] = set()
        """Tables of replicated modules: with rows of theirs lost, nothing can go on."""
        self.failure: Callable[[], EcrecError | None] = lambda: None
        """Every call raises what this returns."""
        self.figures = figures
        self.spans: Spans | None = None
        """Who wants to know what is done when (`Session.observe`)."""
        self._waits: tuple[float, float | None] = (0.0, None)
        """Seconds of waits that are over, and when the present one began."""
        self._node = node
        self._rank = rank
        self._sync_workers = sync_workers
        self._heartbeat: Heartbeat | None = None
        self._end: Callable[[], None] | None = None
        """What the heartbeat calls next, and then no more."""
        self._pumped_s = time.monotonic()
        self._is_interruptible = False
        """It waits, and is between two events."""
        self._late: list[Result] = []
        """What came while nobody called the session."""
        self._late_error: Exception | None = None
        termination.add_busy(self.is_busy)

    def is_busy(self) -> bool:
        """This thread is in a call, in which the machine may be in the middle of an event."""
        return not self._is_interruptible and self.lock._is_owned()  # type: ignore[attr-defined]

    def abandon(self) -> None:
        """Disconnect at once."""
        self.closed = True
        termination.remove_busy(self.is_busy)
        if os.getpid() != self.pid:
            return
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with self.lock:
            self._node.close()

    def leave_run(self, limit_s: float) -> None:
        """The others of a run hear at once that this worker is gone, if the scheduler does; else they wait longer."""
        machine = self.machine
        if self.closed:
            return
        if machine.runs.run:
            self._node.perform(machine.leave_run())
            end = time.monotonic() + limit_s
            while machine.runs.leaving and not machine.failed and time.monotonic() < end:
                self._node.pump(PUMP_MS)
        if machine.durable and not machine.failed:
            # Nobody waits for its silence then: a checkpoint, for one.
            self._node.perform(machine.say_goodbye())

    def tell_initial_failed(self, effects: Sequence[Effect], limit_s: float) -> None:
        """The scheduler hears that the first values of a table do not come, if it answers within ``limit_s``."""
        self.perform(effects)
        end = time.monotonic() + limit_s
        while self.machine.initial_asked and not self.machine.failed and time.monotonic() < end:
            self._late += self._node.pump(PUMP_MS)

    @locked
    def pump(self, timeout_ms: float = 0.0) -> None:
        """Handle what arrived; call it now and then in a long computation, so that deaths are noticed in it.

        Raises ClusterError, or one of its kinds, when the worker cannot go on: every later call raises the same.
        RefusedError where that is because workers of a run pushed what contradicts each other.
        """
        self.check_open()
        try:
            results = self._pump(timeout_ms)
        except HalfHandledError as error:
            raise ClusterError(f"an error inside ecrec, start this worker again: {error}") from error
        for result in results:
            if isinstance(result, Failed):
                self._raise(result.reason)
            asked = self.asked.pop(result.ticket, None)
            if asked is None:
                continue
            if isinstance(result, PullDone):
                asked.frames = result.answers
            else:
                asked.refusal = result.reason
        self.check_failed()

    def _pump(self, timeout_ms: float) -> list[Result]:
        """What came, now or while nobody called."""
        error, self._late_error = self._late_error, None
        if error is not None:
            raise error
        late, self._late = self._late, []
        results = late + self._node.pump(0.0 if late else timeout_ms)
        self._pumped_s = time.monotonic()
        if self.spans is not None:
            self.spans.look(self.machine)
        return results

    def span(self, name: str) -> AbstractContextManager[None]:
        """What is done in this context is one span of a trace, if there is one."""
        return contextlib.nullcontext() if self.spans is None else self.spans.span(name)

    def waited_s(self, now: float) -> float:
        """Seconds of all waits until now, of the monotonic clock; for any thread."""
        over, since = self._waits
        return over if since is None else over + max(0.0, now - since)

    def beat(self) -> None:
        """Called by another thread now and then: what a worker must say to stay one is said while this one computes."""
        end, self._end = self._end, None
        if end is not None:
            end()
            return
        if not self.lock.acquire(blocking=False):
            return  # it is in a call of the session, which does that itself
        try:
            if self.closed or self._late_error or time.monotonic() - self._pumped_s < BEAT_S:
                return
            self._late += self._node.pump(0.0)
            if self.spans is not None:
                self.spans.look(self.machine)
        except Exception as error:
            self._late_error = error  # the next call raises it
        finally:
            self.lock.release()

    def start_heartbeat(self) -> None:
        """From now on a thread says that this worker lives, also while it is in a long computation."""
        self._heartbeat = Heartbeat(self.beat, BEAT_S)

    def end_in_heartbeat(self, end: Callable[[], None]) -> None:
        """Nobody can call the session any more: the heartbeat's thread calls this, which gives the connection up."""
        if not self.closed:
            self._end = end

    def check_open(self) -> None:
        if self.closed:
            raise ClusterError("this session is closed: connect again")

    def perform(self, effects: Sequence[Effect]) -> None:
        self.check_open()
        self._node.perform(effects)

    def check_failed(self) -> None:
        """Raise what the session has failed of."""
        if (error := self.failure()) is not None:
            raise error
        if self.machine.failed:
            self._raise(self.machine.failed)
        if lost := self.machine.damaged.intersection(self.replicated):
            raise DataLostError(
                f"rows of the replicated module {', '.join(sorted(lost))} were lost in all their copies, and training "
                "cannot go on with some parameters zero: start the cluster and all workers again. More copies "
                '(replicate(..., code="1+2")) tolerate more deaths'
            )

    @locked
    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Pump until ``done()``. Raises ClusterError with advice after ``wait_timeout_ms``, and what `pump` raises."""
        self.check_open()
        self.check_failed()
        begin = said = time.monotonic()
        self._waits = self.figures.waited_s, begin
        try:
            while not done():
                now = time.monotonic()
                if self._is_over(now - begin):
                    raise ClusterError(f"waited {now - begin:.1f} s for {what}: {self._advice()}")
                if now - begin > WAITS_S:
                    self.machine.wait(True)
                if now - said > SAID_S:
                    said = now
                    log.warning("worker %d waits for %s for %.0f s: %s", self._rank, what, now - begin, self._advice())
                self.pump(PUMP_MS)
                self._look_for_sigterm()
        finally:
            self.machine.wait(False)
            end = time.monotonic()
            self.figures.waited_s += end - begin
            self.figures.longest_pause_s = max(self.figures.longest_pause_s, end - begin)
            self._waits = self.figures.waited_s, None
            if self.spans is not None:
                self.spans.add("wait", begin, end, {"for": what})

    def meanwhile(self, work: Callable[[], R], name: str) -> R:
        """What ``work`` returns, or raises, in a thread of its own, ``ecrec-NAME``; meanwhile this worker answers."""
        answer: list[R] = []
        error: list[Exception] = []

        def run() -> None:
            try:
                answer.append(work())
            except Exception as failed:
                error.append(failed)

        thread = threading.Thread(target=run, name=f"ecrec-{name}", daemon=True)
        thread.start()
        while thread.is_alive():
            self.pump(PUMP_MS)
            self._look_for_sigterm()
        if error:
            raise error[0]
        return answer[0]

    def _look_for_sigterm(self) -> None:
        if termination.is_asked():
            self._is_interruptible = True
            try:
                termination.check()
            finally:
                self._is_interruptible = False

    def _advice(self) -> str:
        return advice(self.machine, self._sync_workers, self._node.scheduler_trouble())

    def _is_over(self, waited_s: float) -> bool:
        """A wait has taken too long."""
        if self.wait_timeout_ms is not None:
            return waited_s * 1e3 > self.wait_timeout_ms
        silent_ms = self.machine.scheduler_silent_ms
        if silent_ms is None:
            return waited_s > SCHEDULER_TIMEOUT_S
        return min(waited_s, silent_ms / 1e3) > SCHEDULER_AWAY_TIMEOUT_S

    def _raise(self, reason: str) -> NoReturn:
        kind = self.machine.failed_kind
        if kind == "lost":
            raise DataLostError(reason)
        if kind == "fenced":
            raise FencedError(reason)
        if kind == "taken":
            raise RefusedError(
                f"{reason}; this one has named no rank, and does not end it. To look, and change nothing: "
                "ecrec.connect(..., read_only=True). To train as another worker: rank= and world_size=, or "
                f"`ecrec-worker`, which sets RANK and WORLD_SIZE. rank={self._rank} takes its place, and ends it"
            )
        if kind == "refused":
            raise RefusedError(reason)
        if kind == "part":
            raise PartialPushError(reason)
        raise ClusterError(reason)

"""Runs one machine on real sockets: the loop around `ecrec.protocol.node_core.NodeCore`."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ecrec.errors import ConfigurationError
from ecrec.protocol import wire
from ecrec.protocol.events import Effect, FileWritten, Result, ToldToEnd, WriteFile
from ecrec.protocol.messages import SCHEDULER, SCHEDULER_ADDRESS, SHARD, Address, Unfit
from ecrec.protocol.node_core import Machine, NodeCore
from ecrec.transport.coordinator import is_coordinator, nobody_leads, watch_leader
from ecrec.transport.leadership import LeaderWatch, StateStore
from ecrec.transport.links import Arrived, Denied, Happening, Linked, Links
from ecrec.transport.offenders import Complaints
from ecrec.transport.scheduler_wait import SchedulerWait

log = logging.getLogger(__name__)

TICK_MS = 50.0
"""How often a machine looks at the clock of itself, and a node at its streams; what is due before, a machine names."""

LOOK_MS = 1000.0
"""How often who watches a node is shown its machine."""

FILES_MS = 5.0
"""How often a node looks whether files that are being written are done."""

TICK_PATIENCE_MS = 100.0
"""A due tick that is no deadline of the machine waits at most this long while messages are pending. After a stall, a
scheduler must read the heartbeats that piled up before it counts silences. A client that is flooded with answers must
still send its own messages."""

LAST_WORDS_MS = 20.0
"""A process that ends stays this long for its last message to leave."""

LEASE_WAIT_MS = 50.0
"""A scheduler that cannot tell whether it still leads waits for this long before it looks whether it is to stop."""

_LEVELS = {"info": logging.INFO, "error": logging.ERROR}


class FileStore(Protocol):
    """Carries out `WriteFile` in the background."""

    pending: int
    """Files that were given, and not taken back."""

    def write(self, effect: WriteFile) -> None: ...

    def take(self) -> list[FileWritten]:
        """Those that are done since the last call."""

    def close(self) -> None: ...


class _NoFiles:
    """Of a process that writes no files."""

    def __init__(self) -> None:
        self.pending = 0
        self._refused: list[FileWritten] = []

    def write(self, effect: WriteFile) -> None:
        self.pending += 1
        self._refused.append(FileWritten(effect.checkpoint, effect.name, 0, 0, "this process writes no files"))

    def take(self) -> list[FileWritten]:
        taken, self._refused, self.pending = self._refused, [], 0
        return taken

    def close(self) -> None: ...


class _Port:
    """The way out of a node: its sockets, its state store, its files, the log."""

    def __init__(self, links: Links, state_store: StateStore | None, files: FileStore) -> None:
        # Bound methods: a call costs no more than one of the links.
        self.connect, self.disconnect, self.is_connected = links.connect, links.disconnect, links.is_connected
        self.send, self.answer, self.remember = links.send, links.answer, links.remember
        self._state_store = state_store
        self.write_file = files.write
        self._complaints = Complaints()
        self.complain = self._complaints.add

    def persist(self, state: bytes) -> None:
        if self._state_store is not None:
            self._state_store.save(state)

    def note(self, level: str, text: str) -> None:
        if level in _LEVELS:  # of warnings the core complains
            log.log(_LEVELS[level], "%s", text)
        if self._state_store is not None:
            self._state_store.note(level, text)


class Node:
    """One machine and its sockets, in one thread.

    ``scheduler_endpoint``: connect to the scheduler there, or to the one that leads there (``zk://``, ``file://``).
    ``state_store``: carries out Persist, and says whether a scheduler may act.
    ``files``: carries out WriteFile.
    ``grace_ms``: tell the machine of shards whose connection stayed closed for this long (a scheduler).
    ``scheduler_wait``: what is said until a scheduler answers for the first time, and when the process ends for it.
    """

    def __init__(
        self,
        machine: Machine,
        links: Links,
        scheduler_endpoint: str | None = None,
        state_store: StateStore | None = None,
        grace_ms: float | None = None,
        tick_ms: float = TICK_MS,
        files: FileStore | None = None,
        scheduler_wait: SchedulerWait | None = None,
    ) -> None:
        self.machine = machine
        self.links = links
        self._state_store = state_store
        self._files = files if files is not None else _NoFiles()
        self._port = _Port(links, state_store, self._files)
        self.core = NodeCore(machine, self._port, grace_ms, state_store.term if state_store is not None else 0)
        self.core.listen(self._on_pause)
        self.stepped_s = time.monotonic()
        """When it last made a step, or said in the middle of one that it lives."""
        self._look: Callable[[Machine], None] | None = None
        self._next_look_ms = 0.0
        self._scheduler_wait = scheduler_wait
        self._tick_ms = tick_ms
        self._next_tick_ms = 0.0
        self._due_since_ms: float | None = None
        """When the loop saw that a tick is due; None when it is not."""
        self._leader_watch: LeaderWatch | None = None
        self._leader = ""
        """Endpoint of the scheduler that leads, as far as known."""
        self._stopping = False
        self._leaving = False
        """The machine is to be told to end."""
        if scheduler_endpoint is not None and is_coordinator(scheduler_endpoint):
            self._leader_watch = watch_leader(scheduler_endpoint)
        elif scheduler_endpoint is not None:
            links.connect(Address(SCHEDULER, 0, 0), scheduler_endpoint)

    @property
    def stopped(self) -> str:
        """Why the machine wants this process to end; empty while it does not."""
        return self.core.stopped

    @property
    def stop_kind(self) -> str:
        """The kind of that `Stop`."""
        return self.core.stop_kind

    def watch(self, look: Callable[[Machine], None]) -> None:
        """Have ``look(machine)`` called about once a second, between two events. It changes nothing."""
        self._look = look

    # ------------------------------------------------------------------ the loop
    def run(self) -> None:
        """Go on until `request_stop` or a Stop effect.

        Raises what `perform` raises, and MemoryError and HalfHandledError: nothing that the machine holds may be used
        any more then.
        """
        while not (self._stopping or self.stopped):
            self.step(self._tick_ms)

    def request_stop(self) -> None:
        """Make `run` return soon; may be called from a signal handler."""
        self._stopping = True

    def request_leave(self) -> None:
        """Make `run` return as soon as nothing is lost with it (a shard; others have nothing to lose, and end soon).

        May be called from a signal handler.
        """
        if self.core.address.role == SHARD:
            self._leaving = True
        else:
            self._stopping = True

    def step(self, timeout_ms: float) -> list[Result]:
        """Wait for messages or the next tick, at most ``timeout_ms``, and handle what came.

        Returns the results for the session since the last call, at once where some are there already.
        """
        self._follow_leader()
        core = self.core
        now_ms = _now_ms()
        self.stepped_s = now_ms / 1e3
        if self._leaving:
            self._leaving = False
            core.handle(ToldToEnd(), now_ms)
        due_ms = min(self._next_tick_ms, self._deadline_ms())
        if self._files.pending:
            due_ms = min(due_ms, now_ms + FILES_MS)
        wait_ms = 0.0 if core.results else max(0.0, min(timeout_ms, due_ms - now_ms))
        happenings = self.links.poll(wait_ms)
        has_all = self.links.drained
        if self._files.pending and not core.stopped and self._may_act():
            for written in self._files.take():
                core.handle(written, _now_ms())
        for happening in happenings:
            if core.stopped or not self._may_act():
                has_all = False
                break
            self._on_happening(happening, _now_ms())
            self._tick_if_due(idle=False)
        if has_all:
            core.read_until(now_ms)
        self._tick_if_due(idle=not happenings)
        results, core.results = core.results, []
        return results

    def perform(self, effects: Sequence[Effect], now_ms: float | None = None) -> None:
        """Carry out effects in order; results wait for `step`.

        Raises ClusterError if a Persist failed: nothing after it in the list is done then. HalfHandledError if
        something cannot be sent to a shard that must not lack it.
        """
        self.core.perform(effects, _now_ms() if now_ms is None else now_ms)

    def last_words(self, reason: str) -> None:
        """Tell the scheduler that this process ends, and why; no more than an attempt."""
        process = getattr(self.machine, "process", "")
        if process and self.core.address.role == SHARD:
            with contextlib.suppress(Exception):
                scheduler = Address(SCHEDULER, 0, 0)
                self.links.send(scheduler, wire.encode(Unfit(process, reason), (), self.core.address, scheduler))
                self.links.poll(LAST_WORDS_MS)

    def close(self) -> None:
        if self._leader_watch is not None:
            self._leader_watch.close()
        self.links.close()
        self._files.close()
        if self._state_store is not None:
            self._state_store.close()

    # ------------------------------------------------------------------ who leads
    def _may_act(self) -> bool:
        """Wait until it is certain that this scheduler leads. False: it is to end before. DeposedError: it does not."""
        while self._state_store is not None and not self._state_store.may_act(LEASE_WAIT_MS):
            if self._stopping:
                return False
        return True

    def _follow_leader(self) -> None:
        if self._leader_watch is None or (endpoint := self._leader_watch.endpoint) == self._leader:
            return
        self._leader = endpoint
        try:
            self.links.connect(Address(SCHEDULER, 0, 0), endpoint)
        except ConfigurationError as error:
            log.error("cannot follow the scheduler that leads: %s", error)

    # ------------------------------------------------------------------ what happens
    def _deadline_ms(self) -> float:
        """When the machine wants a Tick before the next regular one."""
        return getattr(self.machine, "deadline_ms", math.inf)

    def _tick_if_due(self, idle: bool) -> None:
        now_ms = _now_ms()
        deadline_ms = self._deadline_ms()
        if self.stopped or now_ms < min(self._next_tick_ms, deadline_ms) or not self._may_act():
            return
        if now_ms < deadline_ms and not idle:
            if self._due_since_ms is None:
                self._due_since_ms = now_ms
            if now_ms - self._due_since_ms < TICK_PATIENCE_MS:
                return
        self._due_since_ms = None
        self._next_tick_ms = now_ms + self._tick_ms
        self.core.tick(now_ms)
        if self._look is not None and now_ms >= self._next_look_ms:
            self._next_look_ms = now_ms + LOOK_MS
            self._look(self.machine)
        if self._scheduler_wait is not None:
            self._await_scheduler(self._scheduler_wait, now_ms)

    def _await_scheduler(self, wait: SchedulerWait, now_ms: float) -> None:
        if self.core.has_heard_scheduler:
            self._scheduler_wait = None
            return
        unknown = self._leader_watch is not None and not self._leader
        stop = wait.look(nobody_leads(wait.endpoint) if unknown else self.links.trouble(SCHEDULER_ADDRESS), now_ms)
        if stop is not None:
            self.core.carry_out(stop, now_ms)

    def _on_pause(self) -> None:
        """The machine is in the middle of an event. What arrives meanwhile waits in the sockets."""
        now_ms = _now_ms()
        self.stepped_s = now_ms / 1e3
        self.core.while_busy(now_ms)

    def _on_happening(self, happening: Happening, now_ms: float) -> None:
        if isinstance(happening, Arrived):
            self.core.arrived(happening, now_ms)
        elif isinstance(happening, Linked):
            self.core.linked(happening.address, happening.again, now_ms)
        elif isinstance(happening, Denied):
            self._port.complain("denied", happening.reason, now_ms)
        else:
            self.core.unlinked(happening.address, now_ms)


def _now_ms() -> float:
    return time.monotonic() * 1000.0

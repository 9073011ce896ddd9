"""Runs one machine on real sockets: the loop, the streams, and the carrying out of effects."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ecrec.errors import ConfigurationError, WireError
from ecrec.protocol import wire
from ecrec.protocol.events import (
    Connect,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Failed,
    Note,
    Persist,
    PullDone,
    Received,
    Send,
    Stop,
    Tick,
)
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, WORKER, Address
from ecrec.protocol.stream import Streams
from ecrec.transport.coordinator import LeaderWatch, StateStore, is_coordinator, watch_leader
from ecrec.transport.links import Arrived, Denied, Happening, Linked, Links
from ecrec.transport.offenders import IGNORE_MS, OFFENCES_MAX, Complaints, Offenders

log = logging.getLogger(__name__)

TICK_MS = 50.0
"""How often a machine looks at the clock of itself, and a node at its streams; what is due before, a machine names."""

TICK_PATIENCE_MS = 100.0
"""A tick that is due, though it is no deadline of the machine, lets waiting messages pass for so long. A scheduler that
was stopped for a while must read the heartbeats that piled up before it counts silences; a client in a flood of answers
must still send its own."""

ACKS_MS = 100.0
"""How often a node looks for streams to acknowledge; it acknowledges those whose peer got nothing else since it looked
before. A fifth of what makes a peer send again."""

HELD_MS = 2000.0
"""A process without a place keeps messages to a shard for so long: the one that places it may come a little later."""

HELD_MAX = 256

LEASE_WAIT_MS = 50.0
"""A scheduler that cannot tell whether it still leads waits for so long before it looks whether it is to stop."""

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Machine(Protocol):
    """What a node can run."""

    @property
    def address(self) -> Address: ...

    def handle(self, event: Event, now_ms: float) -> list[Effect]: ...


class _Held(NamedTuple):
    until_ms: float
    arrived: Arrived


class Node:
    """One machine and its sockets, in one thread.

    ``scheduler_endpoint``: connect to the scheduler there, or to the one that leads there (``zk://``).
    ``state_store``: carries out Persist, and says whether a scheduler may act.
    ``grace_ms``: tell the machine of shards whose connection stayed closed for so long (a scheduler).
    """

    def __init__(
        self,
        machine: Machine,
        links: Links,
        scheduler_endpoint: str | None = None,
        state_store: StateStore | None = None,
        grace_ms: float | None = None,
        tick_ms: float = TICK_MS,
    ) -> None:
        self.machine = machine
        self.links = links
        self.stopped = ""
        """Why the machine wants this process to end; empty while it does not."""
        self._state_store = state_store
        self._grace_ms = grace_ms
        self._tick_ms = tick_ms
        self._next_tick_ms = 0.0
        self._next_acks_ms = 0.0
        self._due_since_ms: float | None = None
        """When the loop saw that a tick is due; None when it is not."""
        self._address = self._own_address()
        self._term = 0
        """Of the newest scheduler that was heard."""
        self._leader_watch: LeaderWatch | None = None
        self._leader = ""
        """Endpoint of the scheduler that leads, as far as known."""
        self._streams: Streams[wire.Packed] = Streams()
        self._closed_ms: dict[Address, float] = {}
        self._held: deque[_Held] = deque()
        self._results: list[PullDone | Failed] = []
        self._complaints = Complaints()
        self._offenders = Offenders()
        self._stopping = False
        self._carry_out: dict[type, Callable[[Any, float], None]] = {
            Send: self._send,
            Connect: self._connect,
            Disconnect: self._disconnect,
            Persist: self._persist,
            Stop: self._stop,
            Note: self._note,
            PullDone: self._result,
            Failed: self._result,
        }
        if scheduler_endpoint is not None and is_coordinator(scheduler_endpoint):
            self._leader_watch = watch_leader(scheduler_endpoint)
        elif scheduler_endpoint is not None:
            links.connect(Address(SCHEDULER, 0, 0), scheduler_endpoint)

    # ------------------------------------------------------------------ the loop
    def run(self) -> None:
        """Go on until `request_stop` or a Stop effect; raises what `perform` raises, and MemoryError.

        After a MemoryError nothing that the machine holds may be used any more.
        """
        while not (self._stopping or self.stopped):
            self.step(self._tick_ms)

    def request_stop(self) -> None:
        """Make `run` return soon; may be called from a signal handler."""
        self._stopping = True

    def step(self, timeout_ms: float) -> list[PullDone | Failed]:
        """Wait for messages or the next tick, at most ``timeout_ms``, and handle what came.

        Returns the results for the session since the last call, at once where some are there already.
        """
        self._follow_leader()
        now_ms = _now_ms()
        due_ms = min(self._next_tick_ms, self._deadline_ms())
        wait_ms = 0.0 if self._results else max(0.0, min(timeout_ms, due_ms - now_ms))
        happenings = self.links.poll(wait_ms)
        for happening in happenings:
            if self.stopped or not self._may_act():
                break
            self._on_happening(happening, _now_ms())
            self._tick_if_due(idle=False)
        self._tick_if_due(idle=not happenings)
        results, self._results = self._results, []
        return results

    def perform(self, effects: Sequence[Effect], now_ms: float | None = None) -> None:
        """Carry out effects in order; results wait for `step`.

        Raises ClusterError if a Persist failed: nothing after it in the list is done then.
        """
        if now_ms is None:
            now_ms = _now_ms()
        for effect in effects:
            self._carry_out[type(effect)](effect, now_ms)

    def close(self) -> None:
        if self._leader_watch is not None:
            self._leader_watch.close()
        self.links.close()
        if self._state_store is not None:
            self._state_store.close()

    # ------------------------------------------------------------------ who leads
    def _own_address(self) -> Address:
        """The machine's; that of a scheduler with its term, by which others know a newer one."""
        address = self.machine.address
        if address.role == SCHEDULER and self._state_store is not None:
            return address._replace(epoch=self._state_store.term)
        return address

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
        self._on_tick(now_ms)

    def _on_tick(self, now_ms: float) -> None:
        if self._grace_ms is not None:
            for address, closed_ms in list(self._closed_ms.items()):
                if now_ms - closed_ms >= self._grace_ms:
                    del self._closed_ms[address]
                    self._handle(Disconnected(address), now_ms)
        self._handle(Tick(), now_ms)
        while self._held and self._held[0].until_ms <= now_ms:
            self._held.popleft()
        for peer, numbered in self._streams.resends_due(now_ms):
            log.info("%s acknowledged nothing for long: sending %d messages again", peer, len(numbered))
            self._resend(peer, numbered)
        if now_ms < self._next_acks_ms:
            return
        self._next_acks_ms = now_ms + ACKS_MS
        for peer in self._streams.acks_due():
            ack = self._streams.ack_for(peer)
            self.links.send(peer, wire.seal(wire.ACK_ONLY, self._address, peer, 0, ack))

    def _on_happening(self, happening: Happening, now_ms: float) -> None:
        if isinstance(happening, Arrived):
            self._on_arrived(happening, now_ms)
        elif isinstance(happening, Linked):
            self._closed_ms.pop(happening.address, None)
            if happening.again:
                self._resend(happening.address, self._streams.reconnected(happening.address, now_ms))
        elif isinstance(happening, Denied):
            self._complaints.add("denied", happening.reason, now_ms)
        else:
            self._closed_ms.setdefault(happening.address, now_ms)

    def _on_arrived(self, arrived: Arrived, now_ms: float) -> None:
        if self._offenders.ignores(arrived.route, now_ms):
            return
        try:
            envelope = wire.decode(arrived.parts)
            self._check_may_speak(envelope, arrived)
        except wire.RefusedByPeerError as error:
            self._complaints.add("refused", f"a peer refuses our messages: {error}", now_ms)
            self._results.append(Failed(f"a peer refuses our messages: {error}"))
            self._blame(arrived, str(error), now_ms)
            return
        except WireError as error:
            self._complaints.add(type(error).__name__, f"dropped a message from {arrived.peer}: {error}", now_ms)
            if isinstance(error, wire.WireVersionError):
                self.links.answer(arrived.route, wire.refusal(str(error)))
            self._blame(arrived, str(error), now_ms)
            return
        if envelope.source.role == SCHEDULER:
            if envelope.source.epoch < self._term:
                self._complaints.add(
                    "deposed", f"dropped a message from {envelope.source}: epoch {self._term} leads", now_ms
                )
                return
            self._term = envelope.source.epoch
            # Terms are the transport's: to a machine there is one scheduler.
            envelope = envelope._replace(source=envelope.source._replace(epoch=0))
        if self._is_mine(envelope, arrived, now_ms):
            self.links.remember(envelope.source, arrived.route)
            self._on_envelope(envelope, arrived, now_ms)

    def _check_may_speak(self, envelope: wire.Envelope, arrived: Arrived) -> None:
        """Raise WireError for a worker that claims to be a server."""
        if not arrived.may_serve and envelope.source.role in (SHARD, SCHEDULER):
            raise WireError(f"it says that it is {envelope.source}, but its key is not a server's")

    def _blame(self, arrived: Arrived, reason: str, now_ms: float) -> None:
        """Count a bad message; of one bad message after the other nobody wants the next."""
        # Whom this node connected to is a server that it needs: complaints must do.
        if arrived.route and self._offenders.add(arrived.route, now_ms):
            text = f"{arrived.peer} is ignored for {IGNORE_MS / 1e3:.0f} s after {OFFENCES_MAX} bad messages"
            self._complaints.add("ignored", f"{text}, the last: {reason}", now_ms)

    def _is_mine(self, envelope: wire.Envelope, arrived: Arrived, now_ms: float) -> bool:
        """Whether a message is for this life; one for a shard is kept while this process may yet become it."""
        mine = self._address
        if mine.role != SHARD or envelope.source.role == SCHEDULER or envelope.to == mine:
            return True
        if mine.id < 0 and envelope.to.role == SHARD and len(self._held) < HELD_MAX:
            self._held.append(_Held(now_ms + HELD_MS, arrived))
        return False

    def _on_envelope(self, envelope: wire.Envelope, arrived: Arrived, now_ms: float) -> None:
        source, message = envelope.source, envelope.message
        if source.role == SHARD and self._address.role == SHARD:
            self._streams.acknowledge(source, envelope.ack, now_ms)
            if message is None or not self._takes_from(source) or not self._streams.take(source, envelope.sequence):
                return
        if message is None:
            return
        event = Received(source, message, tuple(envelope.frames))
        try:
            effects = self.machine.handle(event, now_ms)
        except MemoryError:
            # It may have stopped in the middle: what this process holds counts no more. The code stands its death.
            raise
        except Exception as error:
            # Whatever a message does to a machine, the server stays: others depend on it.
            name = type(message).__name__
            self._complaints.add(
                f"{name} {type(error).__name__}",
                f"a {name} from {source} could not be handled: {type(error).__name__}: {error}",
                now_ms,
            )
            log.debug("while handling a %s", name, exc_info=True)
            if source.role in (WORKER, TOOL):
                self._blame(arrived, f"{name}: {error}", now_ms)
            return
        self._after(effects, now_ms)

    def _takes_from(self, source: Address) -> bool:
        """Whether the machine has room for another message of a peer; what it has not stays with the peer."""
        takes_from: Callable[[Address], bool] | None = getattr(self.machine, "takes_from", None)
        return takes_from is None or takes_from(source)

    def _handle(self, event: Event, now_ms: float) -> None:
        self._after(self.machine.handle(event, now_ms), now_ms)

    def _after(self, effects: Sequence[Effect], now_ms: float) -> None:
        address = self._own_address()
        placed = address != self._address
        if placed:
            self._address = address
            self._streams.reset()
        self.perform(effects, now_ms)
        if placed:
            held, self._held = self._held, deque()
            for kept in held:
                self._on_arrived(kept.arrived, now_ms)

    # ------------------------------------------------------------------ effects
    def _send(self, effect: Send, now_ms: float) -> None:
        try:
            self._send_packed(effect, wire.pack(effect.message, effect.frames), now_ms)
        except WireError as error:
            log.error("not sent to %s: %s", effect.to, error)

    def _send_packed(self, effect: Send, packed: wire.Packed, now_ms: float) -> None:
        to = effect.to
        if to.role == SHARD and self._address.role == SHARD:
            if self._streams.is_old(to):
                return
            # Sealed before it is numbered: an address that cannot be must leave no gap.
            wire.seal(wire.ACK_ONLY, self._address, to)
            sequence = self._streams.out(to).append(packed, now_ms)
            # Without a connection it waits for Connect: on the way back through the inbox it could overtake others.
            if self.links.is_connected(to):
                self.links.send(to, wire.seal(packed, self._address, to, sequence, self._streams.ack_for(to)))
        elif not self.links.send(to, wire.seal(packed, self._address, to)):
            name = type(effect.message).__name__
            self._complaints.add(f"no way {to.role}", f"no way to {to}: dropped a {name}", now_ms)

    def _resend(self, peer: Address, numbered: Sequence[Any]) -> None:
        for sequence, packed in numbered:
            ack = self._streams.ack_for(peer)
            if not self.links.is_connected(peer):
                return
            if not self.links.send(peer, wire.seal(packed, self._address, peer, sequence, ack)):
                return  # behind a gap nothing is taken

    def _connect(self, effect: Connect, now_ms: float) -> None:
        address = effect.address
        to_shard = address.role == SHARD
        streaming = to_shard and self._address.role == SHARD
        if streaming:
            self._streams.connected(address)
        try:
            new = self.links.connect(address, effect.endpoint, streaming or self._grace_ms is not None)
        except ConfigurationError as error:
            self._complaints.add("connect", f"{address}: {error}", now_ms)
            return
        if new:
            self._closed_ms.pop(address, None)
            if streaming:
                self._resend(address, self._streams.reconnected(address, now_ms))

    def _disconnect(self, effect: Disconnect, now_ms: float) -> None:
        address = effect.address
        self.links.disconnect(address)
        self._closed_ms.pop(address, None)
        if address.role == SHARD and self._address.role == SHARD:
            self._streams.fenced(address)

    def _persist(self, effect: Persist, now_ms: float) -> None:
        if self._state_store is not None:
            self._state_store.save(effect.state)

    def _stop(self, effect: Stop, now_ms: float) -> None:
        self.stopped = effect.reason or "no reason given"

    def _note(self, effect: Note, now_ms: float) -> None:
        if effect.level == "warning":  # such as what a peer can make a machine say, again and again
            self._complaints.add(effect.text, effect.text, now_ms)
        else:
            log.log(_LEVELS.get(effect.level, logging.INFO), "%s", effect.text)
        if self._state_store is not None:
            self._state_store.note(effect.level, effect.text)

    def _result(self, effect: PullDone | Failed, now_ms: float) -> None:
        self._results.append(effect)


def _now_ms() -> float:
    return time.monotonic() * 1000.0

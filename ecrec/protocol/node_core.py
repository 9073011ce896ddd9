"""What a process does around its machine: streams, terms, bad messages, and the carrying out of effects in order.

Sans-I/O like the machines: time is an argument, and everything that leaves goes through a `Port`. ``transport/node.py``
runs it on sockets, the simulator over links of its own; both run exactly this.

An error in a machine ends the process (`HalfHandledError`) where its state may have moved while its effects are lost,
or where a peer's stream would have a hole: the code tolerates deaths, not half-applied machines. Each machine says
itself whether its state has moved. Where a check raised before that, the message is refused, and its sender blamed.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ecrec.errors import ConfigurationError, WireError
from ecrec.protocol import wire
from ecrec.protocol.arrays import frames_bytes
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    BAD_CONTENT,
    Connect,
    Connection,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Failed,
    HalfHandledError,
    Note,
    Persist,
    PullDone,
    PullFailed,
    Received,
    Result,
    Send,
    Stop,
    Tick,
    WriteFile,
)
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, WORKER, Address, PullRefused, Rows
from ecrec.protocol.offenders import IGNORE_MS, OFFENCES_MAX, Offenders
from ecrec.protocol.stream import Numbered, Streams

ACKS_MS = 100.0
"""How often a node looks for streams to acknowledge; it acknowledges those whose peer got nothing else since it looked
before. A fifth of what makes a peer send again."""

HELD_MS = 2000.0
"""A process without a place keeps messages to a shard for this long: the one that places it may come a little later."""

HELD_MAX = 256
HELD_BYTES_MAX = ProtocolConfig().unplaced_bytes_max
"""So many of them, and of so many bytes and one message. What is dropped is sent again."""

ASK_MS = 20.0
"""A peer is asked at most this often to send again what a damaged frame, or a gap, keeps from being taken."""

PEER_ROUTES_MAX = 1024
"""Connections remembered on which a peer's stream came."""


class Machine(Protocol):
    """What a node can run."""

    @property
    def address(self) -> Address: ...

    def handle(self, event: Event, now_ms: float) -> list[Effect]: ...


class Frames(Protocol):
    """A message that arrived."""

    @property
    def route(self) -> bytes:
        """The connection on which an answer goes back; empty if it came on one that this process made."""

    @property
    def parts(self) -> Sequence[Any]: ...

    @property
    def may_serve(self) -> bool:
        """False on a connection whose key is not a server's: no shard or scheduler speaks there."""

    @property
    def peer(self) -> str:
        """Who sent it, for people."""


class Port(Protocol):
    """The way out of a process."""

    def connect(self, address: Address, endpoint: str, watched: bool) -> bool:
        """Whether the connection is a new one. ConfigurationError for an endpoint that cannot be one.

        ``watched``: `NodeCore.linked` and `NodeCore.unlinked` are called for it.
        """

    def disconnect(self, address: Address) -> None: ...

    def is_connected(self, address: Address) -> bool:
        """`connect` was called for the address, and `disconnect` was not since."""

    def remember(self, address: Address, route: bytes) -> None:
        """Answers to the address go to where it was heard, if there is no connection to it."""

    def send(self, to: Address, parts: Sequence[Any]) -> bool:
        """False: there is no way to it, or too much waits for it already."""

    def answer(self, route: bytes, parts: Sequence[Any]) -> bool:
        """The same to where a message came from."""

    def persist(self, state: bytes) -> None:
        """On stable storage on return. Raises if not: nothing that follows may be done then."""

    def write_file(self, effect: WriteFile) -> None:
        """Begin to write a file, behind those that are being written. Later `NodeCore.handle` gets a `FileWritten`."""

    def note(self, level: str, text: str) -> None: ...

    def complain(self, kind: str, text: str, now_ms: float) -> None:
        """A warning that a peer can cause again and again; those of one kind are to be limited."""


class _Held(NamedTuple):
    until_ms: float
    arrived: Frames
    nbytes: int


class NodeCore:
    """One machine, its streams and its manners.

    ``grace_ms``: tell the machine of shards whose connection stayed closed for this long (a scheduler).
    ``term``: of a scheduler among several; by it others know a newer one.

    Every call may raise HalfHandledError or MemoryError: nothing that the machine holds may be used any more then, and
    the process must end.
    """

    def __init__(self, machine: Machine, port: Port, grace_ms: float | None = None, term: int = 0) -> None:
        self.machine = machine
        self.port = port
        self.streams: Streams[wire.Packed] = Streams()
        self.stopped = ""
        """Why the machine wants this process to end; empty while it does not."""
        self.stop_kind = ""
        """The kind of that `Stop`."""
        self.results: list[Result] = []
        """For the session, which clears the list when it takes them."""
        self.closed_ms: dict[Address, float] = {}
        """Watched connections that are closed -> since when."""
        self.held: deque[_Held] = deque()
        """What came for an incarnation that this process is not yet."""
        self.held_bytes = 0
        self._grace_ms = grace_ms
        self._term = term
        self._heard_term = 0
        """Of the newest scheduler that was heard."""
        self.has_heard_scheduler = False
        self.address = self._own_address()
        self._next_acks_ms = 0.0
        self._offenders = Offenders()
        self._peer_routes: dict[bytes, Address] = {}
        self._asked_ms: dict[Address, float] = {}
        """Peers that were asked to send again -> when."""
        self._pause: Callable[[], None] | None = None
        self._carry_out: dict[type, Callable[[Any, float], None]] = {
            Send: self._send,
            Connect: self._connect,
            Disconnect: self._disconnect,
            Persist: self._persist,
            WriteFile: self._write_file,
            Stop: self._stop,
            Note: self._note,
            PullDone: self._result,
            PullFailed: self._result,
            Failed: self._result,
        }

    def _own_address(self) -> Address:
        address = self.machine.address
        return address._replace(epoch=self._term) if address.role == SCHEDULER else address

    # ------------------------------------------------------------------ in the middle of it
    def listen(self, pause: Callable[[], None]) -> None:
        """Have ``pause()`` called in the middle of what takes long, here and in a machine that can be busy.

        It may call `while_busy`, and nothing else: an event that is handled for long is one step for all others.
        """
        if hasattr(self.machine, "while_busy"):
            self._pause = pause
            self.machine.listen(pause)  # type: ignore[attr-defined]

    def while_busy(self, now_ms: float) -> None:
        """Say that this process lives, if that is due. Raises HalfHandledError for all that goes wrong with it."""
        try:
            self.perform(self.machine.while_busy(now_ms), now_ms)  # type: ignore[attr-defined]
        except (MemoryError, HalfHandledError):
            raise
        except Exception as error:
            raise _half_handled("pause", error) from error

    # ------------------------------------------------------------------ what happens
    def tick(self, now_ms: float) -> None:
        """Time passed: closed connections, the machine's own Tick, and what its streams need."""
        if self._grace_ms is not None:
            for address, closed_ms in list(self.closed_ms.items()):
                if now_ms - closed_ms >= self._grace_ms:
                    del self.closed_ms[address]
                    self.handle(Disconnected(address), now_ms)
        self.handle(Tick(), now_ms)
        while self.held and self.held[0].until_ms <= now_ms:
            self.held_bytes -= self.held.popleft().nbytes
        for peer, numbered in self.streams.resends_due(now_ms):
            self.port.note("info", f"{peer} acknowledged nothing for long: sending {len(numbered)} messages again")
            self._resend(peer, numbered)
        if now_ms < self._next_acks_ms:
            return
        self._next_acks_ms = now_ms + ACKS_MS
        for peer in self.streams.acks_due():
            self._send_ack(peer)

    def read_until(self, at_ms: float) -> None:
        """All that had arrived by then was given to `arrived`: silence counts up to then, and no longer."""
        tell: Callable[[float], None] | None = getattr(self.machine, "read_until", None)
        if tell is not None:
            tell(at_ms)

    def linked(self, address: Address, again: bool, now_ms: float) -> None:
        """A watched connection was made; ``again`` if not for the first time: what was in flight may be lost."""
        self.closed_ms.pop(address, None)
        if again:
            self._resend(address, self.streams.reconnected(address, now_ms))
        if address.role == SHARD and self.address.role == SHARD:
            self._send_ack(address)  # connections that never spoke are closed first when descriptors run out
        self.handle(Connection(address, up=True), now_ms)

    def unlinked(self, address: Address, now_ms: float) -> None:
        """A watched connection broke."""
        self.closed_ms.setdefault(address, now_ms)
        self.handle(Connection(address, up=False), now_ms)

    def arrived(self, frames: Frames, now_ms: float) -> None:
        """A message came, from any sender, with any content."""
        if self._offenders.ignores(frames.route, now_ms):
            return
        try:
            envelope = wire.decode(frames.parts, self._pause)
            self._check_may_speak(envelope, frames)
        except wire.RefusedByPeerError as error:
            self.port.complain("refused", f"a peer refuses our messages: {error}", now_ms)
            self.results.append(Failed(f"a peer refuses our messages: {error}"))
            self._blame(frames, str(error), now_ms)
            return
        except WireError as error:
            self._on_unreadable(frames, error, now_ms)
            return
        if envelope.source.role == SCHEDULER:
            if envelope.source.epoch < self._heard_term:
                self.port.complain(
                    "deposed", f"dropped a message from {envelope.source}: epoch {self._heard_term} leads", now_ms
                )
                return
            self._heard_term = envelope.source.epoch
            self.has_heard_scheduler = True
            # Terms are the transport's: to a machine there is one scheduler.
            envelope = envelope._replace(source=envelope.source._replace(epoch=0))
        if self._is_mine(envelope, frames, now_ms):
            self.port.remember(envelope.source, frames.route)
            self._on_envelope(envelope, frames, now_ms)

    def handle(self, event: Event, now_ms: float) -> None:
        """Give the machine an event that nobody can be refused for. Raises HalfHandledError for all that it raises."""
        try:
            effects = self.machine.handle(event, now_ms)
        except (MemoryError, HalfHandledError):
            raise
        except Exception as error:
            raise _half_handled(type(event).__name__, error) from error
        self._after(effects, now_ms)

    def perform(self, effects: Sequence[Effect], now_ms: float) -> None:
        """Carry out effects in order. Raises what `Port.persist` raises: nothing after it in the list is done then."""
        for effect in effects:
            self.carry_out(effect, now_ms)

    def carry_out(self, effect: Effect, now_ms: float) -> None:
        self._carry_out[type(effect)](effect, now_ms)

    # ------------------------------------------------------------------ messages
    def _check_may_speak(self, envelope: wire.Envelope, frames: Frames) -> None:
        """Raise WireError for a worker that claims to be a server."""
        if not frames.may_serve and envelope.source.role in (SHARD, SCHEDULER):
            raise WireError(f"it says that it is {envelope.source}, but its key is not a server's")

    def _on_unreadable(self, frames: Frames, error: WireError, now_ms: float) -> None:
        self.port.complain(type(error).__name__, f"dropped a message from {frames.peer}: {error}", now_ms)
        if isinstance(error, wire.WireVersionError):
            self.port.answer(frames.route, wire.refusal(str(error)))
        elif frames.route in self._peer_routes:
            # A peer's frame was damaged. It was not taken from its stream, so that it comes again.
            self._ask_again(self._peer_routes[frames.route], now_ms)
            return
        self._blame(frames, str(error), now_ms)

    def _blame(self, frames: Frames, reason: str, now_ms: float) -> None:
        """Count a bad message; of one bad message after the other nobody wants the next."""
        # Whom this node connected to is a server that it needs: complaints must do.
        if frames.route and self._offenders.add(frames.route, now_ms):
            text = f"{frames.peer} is ignored for {IGNORE_MS / 1e3:.0f} s after {OFFENCES_MAX} bad messages"
            self.port.complain("ignored", f"{text}, the last: {reason}", now_ms)

    def _is_mine(self, envelope: wire.Envelope, frames: Frames, now_ms: float) -> bool:
        """Whether a message is for this life; one for a shard is kept while this process may yet become it."""
        mine = self.address
        if mine.role != SHARD or envelope.source.role == SCHEDULER or envelope.to == mine:
            return True
        kept = envelope.message is not None and mine.id < 0 and envelope.to.role == SHARD
        if kept and len(self.held) < HELD_MAX and self.held_bytes < HELD_BYTES_MAX:
            self.held.append(_Held(now_ms + HELD_MS, frames, frames_bytes(frames.parts)))
            self.held_bytes += self.held[-1].nbytes
        return False

    def _on_envelope(self, envelope: wire.Envelope, frames: Frames, now_ms: float) -> None:
        source, message = envelope.source, envelope.message
        if source.role == SHARD and self.address.role == SHARD and not self._take(envelope, frames, now_ms):
            return
        if message is None:
            return
        event = Received(source, message, tuple(envelope.frames))
        try:
            effects = self.machine.handle(event, now_ms)
        except (MemoryError, HalfHandledError):
            # It may have stopped in the middle: what this process holds counts no more.
            raise
        except Exception as error:
            name = type(message).__name__
            # Nothing has moved. A shard takes nothing more of that peer's stream.
            streams = self.address.role == SHARD and source.role in (SHARD, SCHEDULER)
            if streams and not isinstance(error, BAD_CONTENT):
                raise _half_handled(f"{name} from {source}", error) from error
            # Whatever is asked for, the server stays: others depend on it.
            self.port.complain(
                f"{name} {type(error).__name__}",
                f"a {name} from {source} could not be handled: {type(error).__name__}: {error}",
                now_ms,
            )
            if source.role in (WORKER, TOOL):
                self._blame(frames, f"{name}: {error}", now_ms)
            return
        self._after(effects, now_ms)

    def _take(self, envelope: wire.Envelope, frames: Frames, now_ms: float) -> bool:
        """Whether a peer's message is the next of its stream, and there is room for it."""
        source = envelope.source
        self.streams.acknowledge(source, envelope.ack, now_ms)
        if envelope.message is None:
            if envelope.sequence:
                self._resend(source, self.streams.asked(source, envelope.sequence, now_ms))
            return False
        if not self._takes_from(source):
            return False
        if self.streams.take(source, envelope.sequence):
            if frames.route and self._peer_routes.get(frames.route) != source:
                if len(self._peer_routes) >= PEER_ROUTES_MAX:
                    self._peer_routes.clear()
                self._peer_routes[frames.route] = source
            return True
        if self.streams.lacks(source, envelope.sequence):
            self._ask_again(source, now_ms)
        return False

    def _takes_from(self, source: Address) -> bool:
        """Whether the machine has room for another message of a peer; what it has not stays with the peer."""
        takes_from: Callable[[Address], bool] | None = getattr(self.machine, "takes_from", None)
        return takes_from is None or takes_from(source)

    def _ask_again(self, peer: Address, now_ms: float) -> None:
        """Tell a peer what comes next in its stream: all from there on must be sent again."""
        if self.streams.is_old(peer) or now_ms - self._asked_ms.get(peer, -ASK_MS) < ASK_MS:
            return
        if len(self._asked_ms) >= PEER_ROUTES_MAX:
            self._asked_ms.clear()
        self._asked_ms[peer] = now_ms
        self._send_ack(peer, ask=True)

    def _send_ack(self, peer: Address, ask: bool = False) -> None:
        ack = self.streams.ack_for(peer)
        self.port.send(peer, wire.seal(wire.ACK_ONLY, self.address, peer, ack + 1 if ask else 0, ack))

    def _after(self, effects: Sequence[Effect], now_ms: float) -> None:
        address = self._own_address()
        placed = address != self.address
        if placed:
            self.address = address
            self.streams.reset()
        self.perform(effects, now_ms)
        if placed:
            held, self.held, self.held_bytes = self.held, deque(), 0
            for kept in held:
                self.arrived(kept.arrived, now_ms)

    # ------------------------------------------------------------------ effects
    def _send(self, effect: Send, now_ms: float) -> None:
        to, name = effect.to, type(effect.message).__name__
        try:
            packed = wire.pack(effect.message, effect.frames)
            if to.role == SHARD and self.address.role == SHARD:
                self._send_in_stream(to, packed, now_ms)
                return
            parts = wire.seal(packed, self.address, to)
        except WireError as error:
            if to.role == SHARD and self.address.role == SHARD:
                # Left out it would be a hole in a stream that is promised to have none.
                raise HalfHandledError(f"a {name} cannot be sent to {to}: {error}") from error
            self.port.note("error", f"not sent to {to}: {error}")
            if isinstance(effect.message, Rows):
                self._send(Send(to, PullRefused(effect.message.request, f"the answer cannot be sent: {error}")), now_ms)
            return
        if not self.port.send(to, parts):
            self.port.complain(f"no way {to.role}", f"no way to {to}: dropped a {name}", now_ms)

    def _send_in_stream(self, to: Address, packed: wire.Packed, now_ms: float) -> None:
        if self.streams.is_old(to):
            return
        # Sealed before it is numbered: an address that cannot be must leave no gap.
        wire.seal(wire.ACK_ONLY, self.address, to)
        packed.checksum(self._pause)  # and read before that, too: what is sent in a pause goes before it
        sequence = self.streams.out(to).append(packed, now_ms)
        # Without a connection it waits for Connect: on the way back through the inbox it could overtake others.
        if self.port.is_connected(to):
            self.port.send(to, wire.seal(packed, self.address, to, sequence, self.streams.ack_for(to)))

    def _resend(self, peer: Address, numbered: Sequence[Numbered[wire.Packed]]) -> None:
        for each in numbered:
            ack = self.streams.ack_for(peer)
            if not self.port.is_connected(peer):
                return
            if not self.port.send(peer, wire.seal(each.item, self.address, peer, each.sequence, ack)):
                return  # behind a gap nothing is taken

    def _connect(self, effect: Connect, now_ms: float) -> None:
        address = effect.address
        streaming = address.role == SHARD and self.address.role == SHARD
        if streaming:
            self.streams.connected(address)
        try:
            new = self.port.connect(address, effect.endpoint, streaming or self._grace_ms is not None)
        except ConfigurationError as error:
            self.port.complain("connect", f"{address}: {error}", now_ms)
            return
        if new:
            self.closed_ms.pop(address, None)
            if streaming:
                self._resend(address, self.streams.reconnected(address, now_ms))

    def _disconnect(self, effect: Disconnect, now_ms: float) -> None:
        address = effect.address
        self.port.disconnect(address)
        self.closed_ms.pop(address, None)
        if effect.for_good and address.role == SHARD and self.address.role == SHARD:
            self.streams.fenced(address)

    def _persist(self, effect: Persist, now_ms: float) -> None:
        self.port.persist(effect.state)

    def _write_file(self, effect: WriteFile, now_ms: float) -> None:
        self.port.write_file(effect)

    def _stop(self, effect: Stop, now_ms: float) -> None:
        self.stopped = effect.reason or "no reason given"
        self.stop_kind = effect.kind

    def _note(self, effect: Note, now_ms: float) -> None:
        if effect.level == "warning":  # such as what a peer can make a machine say, again and again
            self.port.complain(effect.text, effect.text, now_ms)
        self.port.note(effect.level, effect.text)

    def _result(self, effect: Result, now_ms: float) -> None:
        self.results.append(effect)


def _half_handled(what: str, error: Exception) -> HalfHandledError:
    return HalfHandledError(f"while handling a {what}: {type(error).__name__}: {error}")

"""The machine of one shard: pushes and pulls, windows and acknowledgements (docs/protocol.md).

`ShardMachine` owns the state and dispatches; what happens when shards die and come back stands in ``membership.py``,
the repair of data rows in ``repair.py``, the scrub in ``scrub.py``, the seeding of parity rows in ``seeding.py``.
"""

import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from ecrec._native import Store, sum_sections
from ecrec._native import Window as WindowBuffers
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.barriers import Barriers, DisagreementError
from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.departure import Departure
from ecrec.protocol.events import (
    BAD_CONTENT,
    Connection,
    Effect,
    Event,
    HalfHandledError,
    Note,
    Received,
    Send,
    Tick,
    ToldToEnd,
    half_handled,
)
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import (
    RECOVERING,
    SCHEDULER,
    SCHEDULER_ADDRESS,
    SEEDED,
    SHARD,
    UP,
    WORKER,
    Address,
    is_my_scheduler,
)
from ecrec.protocol.peer import Peer, Undo
from ecrec.protocol.placement import CLASSES_MAX, Placement
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.wanted import Wanted

PULLS_WAITING_MAX = 1024
"""Pulls of one worker that wait for a push or for lost rows; a session has a few."""
PULLS_WAITING_ALL_MAX = 1 << 16
"""The same of all workers and tools, of which anybody can invent some."""
HELD_MAX = 4096
"""Messages of one peer that wait for a view; no more are taken from its stream until the view comes. It waits for
acknowledgements meanwhile, so that it sends little more than its windows in flight, and repairs asked again."""
EARLY_MAX = 4096
"""Messages to a process without a place, if `unplaced_bytes_max` has room for them. What a peer sends to one that is
being placed waits in the transport."""
STATE_COPY_BYTES_MAX = 64 << 20
"""Of a copy of the scheduler's state; a larger one is not kept. 1,000 deaths make some hundred kilobytes."""
TABLE_BITS = 48
"""A key is table << TABLE_BITS | stripe."""
PINGS_MAX = 256
"""To a peer that is not heard; each waits in its stream until it is acknowledged."""
PINGS_IN_LINK_TIMEOUT = 8
"""How often a peer that does not answer is asked for a sign of life within `link_timeout_ms`."""
FIGURES_MS = 500.0
"""How often the figures for people are counted anew; counting scans bitmaps."""


class Observer(Protocol):
    """Told of what the machine does, for tests that keep their own record."""

    def applied(self, shard: Address, window: int, pushes: "list[QueuedPush]") -> None: ...

    def reinitialised(self, shard: Address, view: int, keys: Any) -> None: ...


@dataclass(slots=True, eq=False)
class QueuedPush:
    worker: int
    number: int
    push: m.Push
    frames: m.Frames
    source: Address
    wanted: Wanted | None = None
    """Its rows that were lost when it was first looked at."""

    @property
    def nbytes(self) -> int:
        return arrays.frames_bytes(self.frames)


@dataclass(slots=True, eq=False)
class QueuedPull:
    source: Address
    pull: m.Pull
    sections: "list[Rows]"
    wanted: Wanted | None = None
    """Its rows that were lost when it was first looked at."""

    @property
    def nbytes(self) -> int:
        return sum(section.rows.nbytes for section in self.sections)


@dataclass(slots=True)
class Unstable:
    """A closed window that some running peer has not acknowledged."""

    waiting: set[int]
    marks: dict[int, int]
    closed_ms: float
    """In the time that passed while this process was awake."""
    nbytes: int
    """Of its frames to all peers."""


@dataclass(slots=True)
class Rows:
    """A section of a push or pull as arrays: int32[m], int64[m], int64[N] and float32 values (a push)."""

    tables: Any
    counts: Any
    rows: Any
    values: Any = None


@dataclass(slots=True)
class WorkerState:
    """What a shard knows of a worker."""

    address: Address
    queue: deque[QueuedPush] = field(default_factory=deque)
    """Pushes in order, not yet applied."""
    flush: int = 0
    """It waits for its pushes up to this one."""


class ShardMachine:
    """One process of a shard: unplaced until the scheduler's Start, then one incarnation to its end.

    ``wanted`` is the shard (over all groups) that this process wants to be; -1 makes it a spare. ``leave_timeout_ms``:
    the longest time, after it was told to end, that it waits to be let go; 0: no limit.
    """

    def __init__(self, process: str, endpoint: str, wanted: int = -1, leave_timeout_ms: float = 0.0) -> None:
        self.process = process
        self.endpoint = endpoint
        self.wanted = wanted
        self.observer: Observer | None = None
        self.config = ProtocolConfig()
        self.address = Address(SHARD, -1, 0)
        self.group, self.shard, self.epoch, self.view = -1, -1, 0, -1
        self.base = 0
        self.state = ""
        self.now_ms = 0.0
        self.awake_ms = 0.0
        """Time that passed, less that in which this process stood still."""
        self._read_ms: float | None = None
        """All that had arrived by then was handled; None where nothing waits outside of the machine."""
        self.store: Store = None  # type: ignore[assignment]
        self.placement: Placement = None  # type: ignore[assignment]
        self.buffers: WindowBuffers = None  # type: ignore[assignment]
        self.dims: list[int] = []
        self.peers: dict[int, Peer] = {}
        self.early: list[Received] = []
        """Messages that came before my place."""
        self.early_bytes = 0
        self.marks: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.workers: dict[int, WorkerState] = {}
        self.origin = m.Origin()
        """What is known of the scheduler."""
        self.copy = b""
        """The newest copy of the scheduler's state,"""
        self.copied = 0
        """and its serial."""
        self.fenced: dict[int, int] = {}
        """Worker -> newest epoch of it that is over."""
        self.pulls: list[QueuedPull] = []
        self.pulls_due = False
        """One came, or what they wait for may have come: a view, rows, a push that is applied."""
        self.window_number = 1
        self.stable = 0
        self.open_marks: dict[int, int] = {}
        self.worked_ms = -1e18
        """When a worker last asked for something."""
        self.open_pushes: Counter[int] = Counter()
        """Pushes in the open window, by worker."""
        self.announces = False
        """The open window says to some peer that the seeding of a class begins or ends."""
        self.unstable: dict[int, Unstable] = {}
        self.unstable_bytes = 0
        self._record_sizes = np.zeros(0, np.int64)
        self.effects: list[Effect] = []
        self._acting = False
        """The event has passed its checks, and the state moves."""
        self.on_pause: Callable[[], None] | None = None
        """Called in the middle of an event that takes long. It may call `while_busy`, nothing else of the machine."""
        self.resident_bytes: Callable[[], int] | None = None
        """Of this process, for people; None where it is no process."""
        self._said: m.ShardStatus | None = None
        """The last heartbeat,"""
        self._said_to: list[Address] = []
        """and the peers to which there was a connection then."""
        self._busy_ms = -1e18
        """When it was last said again, in the middle of an event."""
        self.status_due = True
        self._acks_at_ms = NEVER_MS
        self._window_due_ms = NEVER_MS
        self._window_closed_ms = -1e18
        self._reached = 0
        """Number of the scheduler's last `Knock`."""
        self._status_at_ms = -1e18
        self._huge_pages_due_ms = -1e18
        self._figures: dict[str, float] = {}
        self._figures_at_ms = -1e18
        self.barriers = Barriers()
        self.repairs = Repairs(self)
        self.scrubs = Scrubs(self)
        self.seeding = Seeding(self)
        self.membership = Membership(self)
        self.departure = Departure(process, leave_timeout_ms or NEVER_MS)
        self._from_shards: dict[type, Callable[[Peer, Any, m.Frames], None]] = {
            m.Window: self._on_window,
            m.WindowAck: self._on_window_ack,
            m.Stable: self._on_stable,
            m.Join: self.membership.on_join,
            m.Joined: self.seeding.on_joined,
            m.Reseed: self.seeding.on_reseed,
            m.Repair: self.repairs.on_repair,
            m.CaptureParity: self.repairs.on_capture_parity,
            m.Snap: self.repairs.on_snap,
            m.Mark: self.repairs.on_mark,
            m.Captured: self.repairs.on_captured,
            m.Repaired: self.repairs.on_repaired,
            m.CorrectParity: self.scrubs.on_correct_parity,
            m.ParityCorrected: self.scrubs.on_parity_corrected,
            m.Ping: self._on_ping,
            m.RepairWanted: self.repairs.on_wanted,
            m.RepairWorking: self.repairs.on_working,
        }
        self._from_clients: dict[type, Callable[[Address, Any, m.Frames], None]] = {
            m.Hello: self._on_hello,
            m.Push: self._on_push,
            m.Flush: self._on_flush,
            m.Pull: self._on_pull,
            m.Scrub: self.scrubs.on_scrub,
        }

    # ------------------------------------------------------------------ the one way in
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take one event; return what is to be done, in order.

        Raises one of BAD_CONTENT for a message of a server that does not fit; nothing of it is done then. It is missing
        in that server's stream, so of a peer nothing more is taken, and the two accuse each other. Workers and tools
        are answered with a refusal. Raises HalfHandledError for whatever is raised once the state has moved: the
        process must end.
        """
        self.awake_ms += min(max(now_ms - self.now_ms, 0.0), float(self.config.heartbeat_ms))
        self.now_ms = now_ms
        self.effects = []
        self._acting = False
        try:
            self._take(event)
        except (HalfHandledError, MemoryError):
            raise
        except Exception as error:
            if not self._acting:
                raise
            raise half_handled(self.address, event, error) from error
        effects, self.effects = self.effects, []
        return effects

    def while_busy(self, now_ms: float) -> list[Effect]:
        """What is to be sent in the middle of an event, so that nobody takes this shard for dead; mostly nothing.

        trap: the state in the middle of an event is nobody's. What was said last is said again, with its age: a view
        that is not yet followed to its end must not be confirmed, nor a push acknowledged.
        """
        said = self._said
        if said is None or now_ms - max(self._status_at_ms, self._busy_ms) < self.config.heartbeat_ms:
            return []
        self._busy_ms = now_ms
        again = msgspec.structs.replace(said, age_ms=int(now_ms - self._status_at_ms))
        return [Send(SCHEDULER_ADDRESS, again), *(Send(to, m.Ping(asks=False)) for to in self._said_to)]

    def pause_of_store(self) -> Callable[[int], None]:
        """For `Store.on_pause`. The store keeps it, and must not keep the machine."""
        machine = weakref.ref(self)

        def pause(work: int) -> None:
            alive = machine()
            if alive is not None and alive.on_pause is not None:
                alive.on_pause()

        return pause

    def read_until(self, at_ms: float) -> None:
        """All that had arrived at this process by then was handled: what a peer said later may still wait."""
        self._read_ms = at_ms

    @property
    def listened_ms(self) -> float:
        """`awake_ms` up to when all that came was read. Who has unread messages knows of no silence since."""
        return self.awake_ms - (0.0 if self._read_ms is None else max(0.0, self.now_ms - self._read_ms))

    def checked(self) -> None:
        """The event fits; from here on the state moves, and whatever is raised ends the process."""
        self._acting = True

    def _take(self, event: Event) -> None:
        if isinstance(event, Tick):
            self.checked()
            self._on_tick()
        elif isinstance(event, Received):
            self._on_received(event)
        elif isinstance(event, Connection):
            self.checked()
            self._on_connection(event)
        elif isinstance(event, ToldToEnd):
            self.checked()
            self.effects += self.departure.begin(str(self.address), bool(self.state), self.now_ms)
        self.checked()
        if self.state:
            self.advance()
        if self.status_due:
            self._send_status()

    def takes_from(self, source: Address) -> bool:
        """False while so much of a peer waits for a view that the transport is to leave the rest with it."""
        if not self.state:
            return self._has_room_early()
        peer = self.peers.get(source.id - self.base)
        if peer is None or (peer.broken and source.epoch == peer.epoch):
            return peer is None
        return not self._is_full(peer)

    def _has_room_early(self) -> bool:
        return len(self.early) < EARLY_MAX and self.early_bytes < self.config.unplaced_bytes_max

    def _is_full(self, peer: Peer) -> bool:
        return len(peer.held) >= HELD_MAX or peer.held_bytes >= self.config.held_bytes_max

    def _hold(self, peer: Peer, event: Received) -> None:
        """Keep a message until a view comes; say so once when the peer is given no more room."""
        was_full = self._is_full(peer)
        peer.hold(event)
        if self._is_full(peer) and not was_full:
            self.note(
                "warning",
                f"{event.source} is ahead of view {self.view}: {len(peer.held)} messages of it wait for the next one, "
                f"{peer.held_bytes} bytes; the rest stays with it until that view comes",
            )

    def _on_received(self, event: Received) -> None:
        role = event.source.role
        if role == SCHEDULER:
            self._on_scheduler(event.message, event.frames)
        elif role == SHARD:
            self._on_shard(event)
        elif self.state:
            handler = self._from_clients.get(type(event.message))
            if handler is None:
                kind = type(event.message).__name__
                self.note("warning", f"{event.source}: dropped a {kind}, which a shard does not take")
            else:
                handler(event.source, event.message, event.frames)

    def _on_scheduler(self, message: m.Message, frames: m.Frames) -> None:
        if isinstance(message, m.Census):
            self.membership.tell()
        elif isinstance(message, m.Probe):
            self._on_probe(message)
        elif isinstance(message, m.Knock):
            self._on_knock(message)
        elif isinstance(message, m.PrepareTable):
            self.membership.on_prepare(message)
        elif isinstance(message, m.LeaveWaits):
            self.departure.answered(message, self.now_ms)
        elif not isinstance(message, m.Views | m.Fenced | m.StateCopy):
            self.note("warning", f"the scheduler: dropped a {type(message).__name__}, which a shard does not take")
        elif self.state and not is_my_scheduler(message, self.origin):
            # trap: one with an older state, or of another cluster, takes every healthy member for a dead one
            self.note("warning", f"dropped a {type(message).__name__} of a scheduler of {message.origin}: not mine")
        elif isinstance(message, m.Views):
            self.membership.on_views(message)
        elif isinstance(message, m.Fenced):
            self.effects.append(self.departure.ended(f"fenced by the scheduler: {message.reason}"))
        elif self.state:
            self._keep_copy(message.origin, frames[0])

    def _keep_copy(self, origin: m.Origin, frame: Any) -> None:
        """Keep the scheduler's state, if it is newer than what I keep."""
        if origin.serial >= self.copied and len(frame) <= STATE_COPY_BYTES_MAX:
            copy = bytes(memoryview(frame))
            self.checked()
            self.copy, self.copied = copy, origin.serial
            self.hear_origin(origin)

    def hear_origin(self, origin: m.Origin) -> None:
        """The generation rises with the view that announces it."""
        if origin.serial > self.origin.serial:
            self.origin = m.Origin(self.origin.cluster, self.origin.generation, origin.serial)

    def _on_connection(self, event: Connection) -> None:
        peer = self.peers.get(event.address.id - self.base)
        if peer is None or peer.epoch != event.address.epoch:
            return
        peer.severed = not event.up and (peer.linked or peer.severed)
        peer.linked = event.up
        if not event.up:
            self.status_due = True  # the scheduler, whose own connection may be closed too, waits for just that

    def _on_probe(self, message: m.Probe) -> None:
        """Ask those that were not heard just now for a sign of life; those that do not answer less often."""
        self.checked()
        config = self.config
        for shard in message.shards:
            peer = self.peers.get(shard)
            if peer is None or peer.shard == self.shard or not peer.running or peer.pings >= PINGS_MAX:
                continue
            pause_ms = config.link_timeout_ms / PINGS_IN_LINK_TIMEOUT if peer.pings else config.heartbeat_ms
            if self.now_ms - max(peer.pinged_ms, peer.heard_ms or -NEVER_MS) >= pause_ms:
                peer.pings, peer.pinged_ms = peer.pings + 1, self.now_ms
                self.send(peer, m.Ping(asks=True))

    def _on_ping(self, peer: Peer, message: m.Ping, frames: m.Frames) -> None:
        if message.asks:
            self.send(peer, m.Ping(asks=False))

    def _on_shard(self, event: Received) -> None:
        """Take a peer's message, or hold it until its view is here, and then all that comes behind it."""
        source = event.source
        if not self.state:
            if self._has_room_early():
                self.early.append(event)
                self.early_bytes += arrays.frames_bytes(event.frames)
            return
        peer = self.peers.get(source.id - self.base)
        handler = self._from_shards.get(type(event.message))
        if peer is None or handler is None or peer.shard == self.shard:
            kind = type(event.message).__name__
            self.note("warning", f"{source}: dropped a {kind}, which is not a peer's or not from a member")
            return
        if source.epoch == peer.epoch:
            peer.heard_ms, peer.heard_awake_ms, peer.pings = self.now_ms, self.awake_ms, 0
        try:
            self._take_of_peer(peer, event, handler)
        except Exception:
            # Left out it is a hole in the stream: what follows means nothing without it.
            peer.broken = True
            self.status_due = True
            raise

    def _take_of_peer(self, peer: Peer, event: Received, handler: Callable[[Peer, Any, m.Frames], None]) -> None:
        source = event.source
        if source.epoch > peer.epoch or (peer.held and peer.held[-1].source.epoch == source.epoch):
            self._hold(peer, event)
            return
        if source.epoch < peer.epoch or peer.settling or peer.broken:
            return
        view = getattr(event.message, "view", None)
        if view is not None and view <= self.view and self.membership.is_over(view, event.message):
            return
        if (view is not None and view > self.view) or self._is_ahead(event):
            self._hold(peer, event)
        else:
            handler(peer, event.message, event.frames)

    def _is_ahead(self, event: Received) -> bool:
        """Whether a message waits for a view: a seed that is asked for in one, or rows of a table that it brings.

        A worker that pushes before all shards have a table must not make a hole in the streams between them.
        """
        if isinstance(event.message, m.Reseed):
            return event.message.since > self.view
        if not isinstance(event.message, m.Window):
            return False
        keys = arrays.keys(event.frames[0])
        return bool(keys.size) and int(keys.max()) >> TABLE_BITS >= self.store.tables

    def release_held(self) -> None:
        """A view came: what waited for one is taken again, in order."""
        for peer in self.peers.values():
            held, peer.held, peer.held_bytes = peer.held, [], 0
            for event in held:
                self._take_late(event)
        early, self.early, self.early_bytes = self.early, [], 0
        for event in early:
            self._take_late(event)

    def _take_late(self, event: Received) -> None:
        """Take what waited. Of a peer of which something does not fit nothing more is taken."""
        self._acting = False
        try:
            self._on_shard(event)
        except Exception as error:
            if self._acting or not isinstance(error, BAD_CONTENT):
                self._acting = True
                raise
            kind = type(event.message).__name__
            self.note("error", f"{event.source}: took nothing more from it since a {kind} that does not fit: {error}")
        self._acting = True

    # ------------------------------------------------------------------ helpers for the parts
    def note(self, level: str, text: str) -> None:
        self.effects.append(Note(level, text))

    def send(self, peer: Peer, message: m.Message, frames: m.Frames = ()) -> None:
        """Say something to a peer. Raises HalfHandledError for a frame that no wire takes: left out, it would be a hole
        in a stream that has none."""
        longest = max(map(arrays.frame_bytes, frames), default=0)
        if longest > self.config.frame_bytes_max:
            raise HalfHandledError(
                f"a {type(message).__name__} for shard {self.base + peer.shard} has a frame of {longest} bytes, and "
                f"{self.config.frame_bytes_max} can be sent"
            )
        self.effects.append(Send(Address(SHARD, self.base + peer.shard, peer.epoch), message, frames))

    def reply(self, to: Address, message: m.Message, frames: m.Frames = ()) -> None:
        self.effects.append(Send(to, message, frames))

    def others(self) -> list[Peer]:
        """All other members that run."""
        return [p for p in self.peers.values() if p.shard != self.shard and p.running]

    def record_sizes(self) -> Any:
        """Bytes of a record of each table, int64[tables]."""
        if len(self._record_sizes) != self.store.tables:
            self._record_sizes = np.array([self.store.record_bytes(i) for i in range(self.store.tables)], np.int64)
        return self._record_sizes

    @property
    def settled(self) -> bool:
        return not any(p.unsettled for p in self.peers.values())

    def is_settled(self, class_id: int) -> bool:
        """Whether the parities of each stripe of a class fit each other: no cut of a member is to be announced."""
        stripe = self.placement.classes[class_id]
        return self.settled or not any(self.peers[shard].unsettled for shard in stripe.data + stripe.parity)

    # ------------------------------------------------------------------ workers: pushes
    def _on_hello(self, source: Address, message: m.Hello, frames: m.Frames) -> None:
        if self._worker(source) is not None:
            mark = self.marks.get(source.id, 0)
            self.reply(source, m.Welcome(mark, self.durable.get(source.id, 0)))

    def _worker(self, source: Address) -> WorkerState | None:
        """The worker's state; None for what is none and (with a refusal) for a process that a newer one replaced."""
        if source.role != WORKER:
            return None
        self.checked()
        worker = self.workers.get(source.id)
        if source.epoch <= self.fenced.get(source.id, 0):
            self.reply(source, m.Fenced(f"epoch {source.epoch} of worker {source.id} is over"))
            return None
        if worker is None:
            if not 0 <= source.id < m.WORKERS_MAX:
                self.reply(source, m.Fenced(f"there is no worker {source.id}: they are 0 to {m.WORKERS_MAX - 1}"))
                return None
            worker = self.workers[source.id] = WorkerState(source)
        elif source.epoch < worker.address.epoch:
            self.reply(source, m.Fenced(f"worker {source.id} has been started again (epoch {worker.address.epoch})"))
            return None
        elif source.epoch > worker.address.epoch:
            worker.address = source
            worker.queue.clear()
        return worker

    def fence_worker(self, worker: int, epoch: int) -> None:
        """Take nothing more of this life of a worker, nor of an earlier one; what is applied stays."""
        self.fenced[worker] = max(epoch, self.fenced.get(worker, 0))
        state = self.workers.get(worker)
        if state is not None and state.address.epoch <= epoch:
            state.queue.clear()
            self.pulls = [q for q in self.pulls if q.source.role != WORKER or q.source.id != worker]

    def _on_push(self, source: Address, push: m.Push, frames: m.Frames) -> None:
        worker = self._worker(source)
        if worker is None:
            return
        self.worked_ms = self.now_ms
        mark = self.marks.get(source.id, 0)
        if push.number <= mark:
            self.reply(source, m.PushAck(self.durable.get(source.id, 0)))
            return
        if push.barrier > 1 and (refusal := self.barriers.refusal(source.id, push)):
            worker.queue.clear()
            self.reply(source, m.PushRefused(push.number, refusal, nowhere=True))
            return
        if self._is_behind(source, push):
            return
        last = worker.queue[-1].number if worker.queue else mark
        # A worker never has more on the way; what it would lose here it sends again.
        if push.number == last + 1 and len(worker.queue) < self.config.pushes_in_flight_max and self._has_room(worker):
            worker.queue.append(QueuedPush(source.id, push.number, push, frames, source))

    def _is_behind(self, source: Address, request: m.Push | m.Pull) -> bool:
        """Whether a view is missing here that the sender of a push or pull has; then it is dropped, and sent again.

        A shard that was declared dead and does not know it is not waited for with a new table. trap: it must neither
        refuse what it cannot know, nor call a push durable of which it keeps the only copy: as long as it knows of no
        table, that a coded one may have come does not show.
        """
        tables = [table for section in request.sections for table in section.tables]
        newest = max(tables, default=-1)
        known = request.tables if isinstance(request, m.Push) else 0
        # Where the worker knows of no table either, there is nothing to keep but its number.
        if newest < self.store.tables and (self.store.tables or not known or self.coded()):
            return False
        what = f"names table {newest}" if tables else f"is of one that knows {known} tables"
        self.note(
            "warning",
            f"dropped a {type(request).__name__} of {source}: it {what}, and the views up to {self.view} tell of "
            f"{self.store.tables} tables",
        )
        return True

    def _has_room(self, worker: WorkerState) -> bool:
        """Whether one more push of the worker may wait: the first one, or as many as have room."""
        return not worker.queue or sum(p.nbytes for p in worker.queue) < self.config.push_queue_bytes_max

    def _on_flush(self, source: Address, message: m.Flush, frames: m.Frames) -> None:
        worker = self._worker(source)
        if worker is not None:
            worker.flush = message.number

    def _apply_queued(self) -> bool:
        """Apply what waits, in each worker's order, as far as its rows are here. True if anything was applied."""
        waiting = [worker for worker in self.workers.values() if worker.queue]
        if not waiting or any(p.awaits_joined for p in self.peers.values()):
            return False
        if self.unstable_bytes >= self.config.unstable_bytes_max:
            return False
        done = False
        for worker in waiting:
            while worker.queue and self.unstable_bytes < self.config.unstable_bytes_max:
                batch = self._batch(worker.queue[0])
                if batch is None or not self._apply(batch):
                    break
                done = True
        return done

    def _batch(self, head: QueuedPush) -> list[QueuedPush] | None:
        """The pushes that are applied together with this one; None while one of them is not here."""
        if head.push.barrier <= 1:
            return [head]
        try:
            return self.barriers.batch(head, self.workers)
        except DisagreementError as error:
            self._refuse(error.pushes, error.reason, nowhere=True)
            return None

    def _refuse(self, pushes: list[QueuedPush], reason: str, nowhere: bool) -> None:
        """Take nothing of these pushes, nor of what their workers sent behind them, which a hole would be before."""
        for p in pushes:
            self.workers[p.worker].queue.clear()
            self.reply(p.source, m.PushRefused(p.number, reason, nowhere))

    def _apply(self, batch: list[QueuedPush]) -> bool:
        """Apply pushes as one, or ask for the rows they wait for and return False."""
        if self._still_lacks(batch):
            return False
        try:
            for p in batch:
                self._check_cursor(p)
            parts = [_sections(p.push.sections, p.frames, values=True) for p in batch]
            if any([self._lacks(p, part) for p, part in zip(batch, parts, strict=True)]):
                return False
            self._apply_sections(batch, parts)
        except BAD_CONTENT as error:
            self._refuse(batch, str(error), nowhere=False)
            return False
        for p in batch:
            self.workers[p.worker].queue.popleft()
            self.marks[p.worker] = self.open_marks[p.worker] = p.number
            self.open_pushes[p.worker] += 1
            if p.push.cursor:
                key = m.cursor_key(p.worker)
                self.marks[key] = self.open_marks[key] = p.push.cursor
        if self.observer is not None:
            self.observer.applied(self.address, self.window_number, batch)
        return True

    def _check_cursor(self, p: QueuedPush) -> None:
        """Raise ValueError for a cursor that cannot follow the one of the push before."""
        before = self.marks.get(m.cursor_key(p.worker), 0)
        if p.push.cursor and not before < p.push.cursor <= m.NUMBER_MAX:
            raise ValueError(
                f"the cursor goes from lease {before >> m.CURSOR_BITS}, {before % (1 << m.CURSOR_BITS)} examples done, "
                f"to lease {p.push.cursor >> m.CURSOR_BITS}, {p.push.cursor % (1 << m.CURSOR_BITS)} done; it only rises"
            )

    def _lacks(self, request: QueuedPush | QueuedPull, sections: list[Rows]) -> bool:
        """Whether rows of a push or pull are still to be repaired. They are found here, once, and asked for."""
        if self.state != RECOVERING or request.wanted is not None:
            return False
        missing = [self.store.missing(s.tables, s.counts, s.rows) for s in sections]
        request.wanted = Wanted(self.store, np.concatenate([arrays.NO_KEYS, *missing]))
        return self._still_lacks([request])

    def _still_lacks(self, requests: Sequence[QueuedPush | QueuedPull]) -> bool:
        """Whether rows of these that were found to be lost are not here yet.

        What is raised here is no refusal of the push or pull that waits for them.
        """
        if self.state != RECOVERING:
            return False
        try:
            return any([self.repairs.lacks(r.wanted) for r in requests if r.wanted is not None])
        except BAD_CONTENT as error:
            raise HalfHandledError(f"{self.address} could not ask for rows: {error}") from error

    def _apply_sections(self, batch: list[QueuedPush], parts: list[list[Rows]]) -> None:
        """All sections or none: the first checks itself before it is applied, the others are checked before that."""
        assign = batch[0].push.assign
        sections = [s for part in parts for s in part]
        if len(parts) > 1 and not assign:
            parts_in_order = [(s.tables, s.counts, s.rows, s.values) for s in sections]
            sections = [Rows(*sum_sections(parts_in_order, np.array(self.dims, np.int32), self.store))]
        buffers = self.buffers if self.coded() else None
        if buffers is not None:
            self._make_room(sections)
        for s in sections[1:]:
            self.store.check(s.tables, s.counts, s.rows, s.values)
        step, stepped = self.store.assign if assign else self.store.apply, False
        try:
            for s in sections:
                stepped = step(s.tables, s.counts, s.rows, s.values, buffers) is None
        except BAD_CONTENT as error:
            if not stepped:
                raise
            raise HalfHandledError(f"{self.address} applied a part of a push: {error}") from error

    def _make_room(self, sections: list[Rows]) -> None:
        """Close the open window if deltas of these rows could make a frame of it too long.

        Raises ValueError if they could not even be sent alone. A peer gets at most one delta of each row, and a record
        is at least twice as long as its key.
        """
        sizes, limit = self.record_sizes(), self.config.frame_bytes_max
        size = sum(int(np.dot(sizes[s.tables], s.counts)) for s in sections)
        if size > limit:
            raise ValueError(
                f"its deltas would have up to {size} bytes for one peer (weights and optimizer state of each row), "
                f"and {limit} can be sent: push fewer rows at a time"
            )
        if self.buffers.nbytes() + size > limit:
            self.close_window()

    def coded(self) -> bool:
        """Peers keep something of mine: parity, or, where rows without parity may begin again at a death, at least the
        watermarks. trap: told of them only from the first coded table on, a death in between forgets what was
        acknowledged before."""
        return self.config.reinitialise_lost or any(code.r for code in self.placement.codes)

    # ------------------------------------------------------------------ workers: pulls
    def _on_pull(self, source: Address, pull: m.Pull, frames: m.Frames) -> None:
        if source.role == WORKER and self._worker(source) is None:
            return
        self.worked_ms = self.now_ms
        try:
            sections = _sections(pull.sections, frames, values=False)
        except BAD_CONTENT as error:
            self.reply(source, m.PullRefused(pull.request, str(error)))
            return
        self.checked()
        if self._is_behind(source, pull):
            return
        waiting = [q.pull.request for q in self.pulls if q.source == source]
        size, limit = sum(q.nbytes for q in self.pulls), self.config.pulls_waiting_bytes_max
        if len(waiting) >= PULLS_WAITING_MAX:
            self.reply(source, m.PullRefused(pull.request, f"{len(waiting)} pulls of this worker wait already"))
        elif len(self.pulls) >= PULLS_WAITING_ALL_MAX:
            self.reply(source, m.PullRefused(pull.request, f"{len(self.pulls)} pulls wait already"))
        elif pull.request in waiting:
            pass
        elif size and size + sum(s.rows.nbytes for s in sections) > limit:
            reason = f"{len(self.pulls)} pulls of {size} bytes of row ids wait already, {limit} bytes can: ask later"
            self.reply(source, m.PullRefused(pull.request, reason))
        else:
            self.pulls.append(QueuedPull(source, pull, sections))
            self.pulls_due = True

    def _answer_pulls(self) -> None:
        """Answer the pulls whose push is applied and whose rows are here."""
        self.pulls_due = False
        waiting: list[QueuedPull] = []
        for queued in self.pulls:
            after = queued.pull.after
            due = after <= self.marks.get(queued.source.id, 0) or queued.source.role != WORKER
            if not due or not self._answer(queued):
                waiting.append(queued)
        self.pulls = waiting

    def _answer(self, queued: QueuedPull) -> bool:
        pull, store = queued.pull, self.store
        if self._still_lacks([queued]):
            return False
        try:
            sizes = [store.gather_bytes(s.tables, s.counts, pull.records) for s in queued.sections]
            if sum(sizes) > self.config.answer_bytes_max:
                limit = self.config.answer_bytes_max
                raise ValueError(f"the answer would have {sum(sizes)} bytes, {limit} can be sent: ask for fewer rows")
            if self._lacks(queued, queued.sections):
                return False
            answers = []
            for s, size in zip(queued.sections, sizes, strict=True):
                out = np.empty(size, np.uint8)
                store.gather(s.tables, s.counts, s.rows, out, pull.records)
                answers.append(out)
        except BAD_CONTENT as error:
            self.reply(queued.source, m.PullRefused(pull.request, str(error)))
            return True
        self.reply(queued.source, m.Rows(pull.request), answers)
        return True

    # ------------------------------------------------------------------ windows, sending
    def advance(self) -> None:
        """Do what has become possible: answer, apply, seed, close the window."""
        if self.pulls_due and self.pulls:
            self._answer_pulls()
        while self._apply_queued():
            if self.pulls:
                self._answer_pulls()
            self.close_window_if_due()
        if self.seeding.tasks:
            self.seeding.advance()
        if self.state in SEEDED:
            self.repairs.sweep()
            self.close_window_if_due()
            self.check_whole()
        else:
            self.close_window_if_due()

    def shares_time(self) -> bool:
        """Whether a recovery leaves most of the time to workers."""
        config = self.config
        return config.recovery_share_percent < 100 and self.now_ms - self.worked_ms < config.foreground_ms

    def rows_at_once(self, rows_max: int) -> int:
        """Of a chunk of a recovery."""
        return min(rows_max, self.config.foreground_rows_max) if self.shares_time() else rows_max

    def has_open(self) -> bool:
        """Whether the open window has anything to say."""
        return bool(self.open_marks or self.announces or self.buffers.rows())

    def close_window_if_due(self) -> None:
        """Close the window when it is its time, or note when that will be."""
        self._window_due_ms = NEVER_MS
        if not self.has_open():
            return
        config = self.config
        full = self.buffers.nbytes() >= config.window_bytes_max
        if len(self.unstable) >= config.windows_in_flight_max and not full:
            return
        due_ms = self._window_closed_ms + config.window_interval_ms
        hurry = full or self.announces or self.seeding.is_open or not self.coded()
        if hurry or self.now_ms >= due_ms or self._is_waited_for():
            self.close_window()
        else:
            self._window_due_ms = due_ms

    def _is_waited_for(self) -> bool:
        """A worker waits for its pushes in the open window, or will soon have too many in flight."""
        return any(
            count >= self.config.window_pushes_max or self.workers[worker].flush >= self.open_marks[worker]
            for worker, count in self.open_pushes.items()
        )

    def close_window(self) -> None:
        """Close the open window, empty or not, and send it to every running peer that has joined."""
        marks, self.open_marks = self.open_marks, {}
        self.open_pushes.clear()
        if not self.coded():
            # Nobody else keeps anything of it. Windows are numbered from the first on that is sent.
            self.announces = self.seeding.is_open = False
            self._make_durable(marks)
            return
        targets = [p for p in self.others() if p.joined]
        size = 0
        for peer in targets:
            keys, records = self.buffers.buffer(peer.shard).take()
            size += keys.nbytes + records.nbytes
            window = m.Window(self.window_number, self.stable, marks, peer.begins, peer.ends, peer.received or 0)
            peer.ack_due = False
            self.send(peer, window, (keys, records))
            peer.begins, peer.ends = {}, []
        self._acknowledge_all()
        self.announces = self.seeding.is_open = False
        self._window_closed_ms, self._window_due_ms = self.now_ms, NEVER_MS
        self.unstable[self.window_number] = Unstable({p.shard for p in targets}, marks, self.awake_ms, size)
        self.unstable_bytes += size
        self.window_number += 1
        self.settle_windows()

    def settle_windows(self) -> None:
        """Windows that every running peer has are stable; their pushes are durable."""
        durable: dict[int, int] = {}
        stable = self.stable
        while stable + 1 in self.unstable and not self.unstable[stable + 1].waiting:
            stable += 1
            window = self.unstable.pop(stable)
            self.unstable_bytes -= window.nbytes
            durable.update(window.marks)
        if stable == self.stable:
            return
        self.stable = stable
        self._make_durable(durable)
        for peer in self.others():
            # it counts a class as seeded only when it knows that the seed is stable; no later window may come
            if peer.joined and peer.state in SEEDED:
                self.send(peer, m.Stable(stable))

    def _make_durable(self, marks: dict[int, int]) -> None:
        for worker, number in marks.items():
            self.durable[worker] = number
            state = self.workers.get(worker)
            if state is not None:
                self.reply(state.address, m.PushAck(number))

    def first_coded(self) -> None:
        """From now on there are peers that keep something of mine: what was pushed before, they have yet to hear."""
        self.open_marks, self.announces = dict(self.marks), True

    def _on_window_ack(self, peer: Peer, message: m.WindowAck, frames: m.Frames) -> None:
        self.checked()
        self._acknowledged(peer, message.number)

    def _acknowledged(self, peer: Peer, number: int) -> None:
        """The peer has my windows up to this one."""
        done = False
        for window, unstable in self.unstable.items():
            if window <= number and peer.shard in unstable.waiting:
                unstable.waiting.discard(peer.shard)
                done = True
        if done:
            self.settle_windows()

    def late(self) -> dict[int, int]:
        """Members that have not acknowledged a window of mine for half of `link_timeout_ms` -> for how long."""
        waits: dict[int, float] = {}
        for unstable in self.unstable.values():
            for shard in unstable.waiting:
                waits[shard] = max(waits.get(shard, 0.0), self.awake_ms - unstable.closed_ms)
        return {shard: int(ms) for shard, ms in sorted(waits.items()) if ms >= self.config.link_timeout_ms / 2}

    def unheard(self) -> list[int]:
        """Members that said nothing to me for `link_timeout_ms`, as far as I have read what came."""
        oldest_ms = self.listened_ms - self.config.link_timeout_ms
        return [peer.shard for peer in self.others() if peer.heard_awake_ms < oldest_ms]

    def _acknowledge(self, peer: Peer) -> None:
        if peer.ack_due and peer.received is not None:
            self.send(peer, m.WindowAck(peer.received))
        peer.ack_due = False

    def _acknowledge_all(self) -> None:
        """What no window has taken along."""
        self._acks_at_ms = NEVER_MS
        for peer in self.others():
            self._acknowledge(peer)

    @property
    def deadline_ms(self) -> float:
        """When a Tick is wanted, if none comes before. Acknowledgements wait for an open window."""
        due_ms = self._acks_at_ms if self._window_due_ms == NEVER_MS else self._window_due_ms
        resumes_ms = [self.repairs.share.resume_ms] if self.state == RECOVERING else []
        resumes_ms += [self.seeding.share.resume_ms] if self.seeding.tasks else []
        due_ms = min(due_ms, *(at_ms for at_ms in resumes_ms if at_ms > self.now_ms), NEVER_MS)
        return min(due_ms, self._status_at_ms + self.config.heartbeat_ms)

    # ------------------------------------------------------------------ windows, receiving
    def _on_window(self, peer: Peer, window: m.Window, frames: m.Frames) -> None:
        if peer.received is None or window.number != peer.received + 1:
            raise ValueError(f"window {window.number} after {peer.received}: the stream has a gap")
        keys, records = arrays.keys(frames[0]), arrays.records(frames[1])
        if any(not 0 <= class_id < CLASSES_MAX for class_id in window.begins):
            raise ValueError(f"window {window.number} begins classes {sorted(window.begins)}")
        rounds = {**peer.rounds, **window.begins}
        mask = self.seeding.accepted(peer.shard, rounds)
        if keys.size or records.size:
            self.store.fold(peer.shard, mask, keys, records)  # all or nothing: it checks before it folds
        self.checked()
        if keys.size:
            self.repairs.fold_captures(peer, mask, keys, records)
        peer.received, peer.rounds = window.number, rounds
        ends = self.seeding.accepted_ends(peer, window.ends)
        peer.undo.append(Undo(window.number, mask, keys, records, window.marks, ends))
        if peer.ack_due:
            self._acknowledge(peer)
        else:
            peer.ack_due = True
            self._acks_at_ms = min(self._acks_at_ms, self.now_ms + self.config.ack_delay_ms)
        self._acknowledged(peer, window.ack)
        self.commit_undo(peer, window.stable)

    def _on_stable(self, peer: Peer, message: m.Stable, frames: m.Frames) -> None:
        self.checked()
        self.commit_undo(peer, message.number)

    def commit_undo(self, peer: Peer, stable: int) -> None:
        """What every peer holds is final. Only now do its watermarks and the ends of its seeds count."""
        while peer.undo and peer.undo[0].number <= stable:
            undo = peer.undo.popleft()
            peer.marks.update(undo.marks)
            for class_id in undo.ends:
                self.seeding.seeded(class_id, peer.shard)

    # ------------------------------------------------------------------ the scheduler
    def check_whole(self) -> None:
        """All data rows here and all classes seeded: the group can lose r shards again."""
        if self.state in SEEDED and self.repairs.complete() and self.seeding.complete():
            self.state = UP
            self.repairs.asked.clear()  # rows that another answer brought
            self.status_due = True
            self.note("info", f"shard {self.base + self.shard} is whole again")

    def _on_knock(self, message: m.Knock) -> None:
        """The scheduler has reached me where I say that I am reached."""
        if not self.state and message.process == self.process:
            self._reached = message.number
            self._register()

    def _register(self) -> None:
        self._status_at_ms = self.now_ms
        self.effects.append(
            Send(SCHEDULER_ADDRESS, m.Register(self.process, self.endpoint, self.wanted, self._reached))
        )

    def _on_tick(self) -> None:
        if not self.state:
            self.status_due = False
            if self.now_ms - self._status_at_ms >= self.config.heartbeat_ms:
                self._register()
            return
        self.repairs.on_tick()
        self.scrubs.on_tick()
        self.effects += self.departure.on_tick(self.config, self.now_ms)
        if self.now_ms >= self._acks_at_ms and self._window_due_ms == NEVER_MS:
            self._acknowledge_all()
        if self.now_ms - self._status_at_ms >= self.config.heartbeat_ms:
            self.status_due = True
        self._use_huge_pages()

    def _use_huge_pages(self) -> None:
        """Move a little of the tables to huge pages, if nobody waits for anything and all shards are whole."""
        whole = self.state == UP and all(p.state == UP for p in self.peers.values() if p.shard != self.shard)
        if not whole or self.now_ms < self._huge_pages_due_ms:
            return
        if self.pulls or self.seeding.tasks or any(w.queue for w in self.workers.values()):
            return
        config = self.config
        goes_on = self.store.use_huge_pages(config.huge_pages_extents)
        self._huge_pages_due_ms = self.now_ms + (
            config.huge_pages_interval_ms if goes_on else config.huge_pages_pause_ms
        )

    def _send_status(self) -> None:
        self.status_due = False
        if not self.state:
            return
        self._status_at_ms = self.now_ms
        if self.now_ms - self._figures_at_ms >= FIGURES_MS:
            self._figures_at_ms = self.now_ms
            self._figures = {name: float(value) for name, value in self.store.memory().items()}
            if self.resident_bytes is not None:
                self._figures["resident_bytes"] = float(self.resident_bytes())
        figures = dict(self._figures)
        figures["windows"] = float(self.window_number - 1)
        figures["parity_rows_corrected"] = float(self.scrubs.corrected)
        figures["classes_to_repair"] = float(len(self.repairs.incomplete))
        figures["classes_to_seed"] = float(self.seeding.incomplete())
        running = self.others()
        read_ms = self.now_ms if self._read_ms is None else min(self._read_ms, self.now_ms)
        heard = {p.shard: int(max(0.0, read_ms - p.heard_ms)) for p in running if p.heard_ms is not None}
        status = m.ShardStatus(
            self.process, self.view, self.state == UP, list(self.membership.reports.values()),
            dict(self.marks), dict(self.durable), figures, dict(self.repairs.reinitialised),
            late=self.late(), unheard=self.unheard(), broken=[p.shard for p in running if p.broken], heard=heard,
            linked=[p.shard for p in running if p.linked], severed=[p.shard for p in running if p.severed],
            prepared=self.membership.prepared, refusal=self.membership.refusal, origin=self.origin,
        )  # fmt: skip
        self._said = status
        self._said_to = [Address(SHARD, self.base + p.shard, p.epoch) for p in running if p.linked]
        self.effects.append(Send(SCHEDULER_ADDRESS, status))


def _sections(sections: list[m.Section], frames: m.Frames, values: bool) -> list[Rows]:
    """Arrays of a message's sections. ValueError if the frames do not fit them."""
    each = 2 if values else 1
    if len(frames) != each * len(sections):
        raise ValueError(f"{len(sections)} sections need {each * len(sections)} frames, but {len(frames)} came")
    out = []
    for i, section in enumerate(sections):
        rows = arrays.array(frames[each * i], np.int64, f"row ids of section {i}")
        tables, counts = np.array(section.tables, np.int32), np.array(section.counts, np.int64)
        total = sum(section.counts)
        if len(tables) != len(counts) or min(section.counts, default=0) < 0 or total != len(rows):
            raise ValueError(
                f"section {i}: {len(tables)} tables, {len(counts)} counts with sum {total}, {len(rows)} row ids"
            )
        data = arrays.array(frames[each * i + 1], np.float32, f"values of section {i}") if values else None
        out.append(Rows(tables, counts, rows, data))
    return out

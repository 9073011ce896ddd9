"""The machine of one shard: pushes and pulls, and whom each message is for (docs/protocol.md).

`ShardMachine` dispatches, and is what its parts share (``shard_context.py``). Windows are closed in ``windows.py`` and
taken in ``peer_windows.py``; what happens when shards die and come back stands in ``membership.py``, the repair of data
rows in ``repair.py``, the scrub in ``scrub.py``, the seeding of parity rows in ``seeding.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from ecrec._native import sum_sections
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.barriers import Barriers, DisagreementError
from ecrec.protocol.config import NEVER_MS
from ecrec.protocol.departure import Departure
from ecrec.protocol.events import (
    BAD_CONTENT,
    Connection,
    Effect,
    Event,
    HalfHandledError,
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
from ecrec.protocol.peer import Peer
from ecrec.protocol.peer_windows import PeerWindows
from ecrec.protocol.queues import QueuedPull, QueuedPush, Rows, WorkerState, sections_of
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.wanted import Wanted
from ecrec.protocol.windows import Windows

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


class ShardMachine(ShardContext):
    """One process of a shard: unplaced until the scheduler's Start, then one incarnation to its end.

    ``wanted`` is the shard (over all groups) that this process wants to be; -1 makes it a spare. ``leave_timeout_ms``:
    the longest time, after it was told to end, that it waits to be let go; 0: no limit.
    """

    def __init__(self, process: str, endpoint: str, wanted: int = -1, leave_timeout_ms: float = 0.0) -> None:
        super().__init__(process, endpoint)
        self.wanted = wanted
        self._read_ms: float | None = None
        """All that had arrived by then was handled; None where nothing waits outside of the machine."""
        self.early: list[Received] = []
        """Messages that came before my place."""
        self.early_bytes = 0
        self.resident_bytes: Callable[[], int] | None = None
        """Of this process, for people; None where it is no process."""
        self._said: m.ShardStatus | None = None
        """The last heartbeat,"""
        self._said_to: list[Address] = []
        """and the peers to which there was a connection then."""
        self._busy_ms = -1e18
        """When it was last said again, in the middle of an event."""
        self._reached = 0
        """Number of the scheduler's last `Knock`."""
        self._status_at_ms = -1e18
        self._huge_pages_due_ms = -1e18
        self._figures: dict[str, float] = {}
        self._figures_at_ms = -1e18
        self.barriers = Barriers()
        self.windows = Windows(self)
        self.repairs = Repairs(self, self.windows)
        self.scrubs = Scrubs(self, self.repairs)
        self.seeding = Seeding(self, self.repairs)
        self.peer_windows = PeerWindows(self, self.windows, self.repairs, self.seeding)
        self.departure = Departure(process, leave_timeout_ms or NEVER_MS)
        self.membership = Membership(
            self, self.windows, self.peer_windows, self.repairs, self.scrubs, self.seeding, self.departure
        )
        self._from_shards: dict[type, Callable[[Peer, Any, m.Frames], None]] = {
            m.Window: self.peer_windows.on_window,
            m.WindowAck: self.windows.on_ack,
            m.Stable: self.peer_windows.on_stable,
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

    def read_until(self, at_ms: float) -> None:
        """All that had arrived at this process by then was handled: what a peer said later may still wait."""
        self._read_ms = at_ms

    @property
    def listened_ms(self) -> float:
        """`awake_ms` up to when all that came was read. Who has unread messages knows of no silence since."""
        return self.awake_ms - (0.0 if self._read_ms is None else max(0.0, self.now_ms - self._read_ms))

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
            self.membership.on_views(message, self.release_held)
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
            parts = [sections_of(p.push.sections, p.frames, values=True) for p in batch]
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
            self.windows.close()

    # ------------------------------------------------------------------ workers: pulls
    def _on_pull(self, source: Address, pull: m.Pull, frames: m.Frames) -> None:
        if source.role == WORKER and self._worker(source) is None:
            return
        self.worked_ms = self.now_ms
        try:
            sections = sections_of(pull.sections, frames, values=False)
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

    # ------------------------------------------------------------------ what has become possible
    def advance(self) -> None:
        """Do what has become possible: answer, apply, seed, close the window."""
        if self.pulls_due and self.pulls:
            self._answer_pulls()
        while self._apply_queued():
            if self.pulls:
                self._answer_pulls()
            self.windows.close_if_due()
        if self.seeding.tasks:
            self.seeding.advance()
        if self.state in SEEDED:
            self.repairs.sweep()
            self.windows.close_if_due()
            self.check_whole()
        else:
            self.windows.close_if_due()

    def unheard(self) -> list[int]:
        """Members that said nothing to me for `link_timeout_ms`, as far as I have read what came."""
        oldest_ms = self.listened_ms - self.config.link_timeout_ms
        return [peer.shard for peer in self.others() if peer.heard_awake_ms < oldest_ms]

    @property
    def deadline_ms(self) -> float:
        """When a Tick is wanted, if none comes before. Acknowledgements wait for an open window."""
        due_ms = self.windows.deadline_ms
        resumes_ms = [self.repairs.share.resume_ms] if self.state == RECOVERING else []
        resumes_ms += [self.seeding.share.resume_ms] if self.seeding.tasks else []
        due_ms = min(due_ms, *(at_ms for at_ms in resumes_ms if at_ms > self.now_ms), NEVER_MS)
        return min(due_ms, self._status_at_ms + self.config.heartbeat_ms)

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
        self.windows.on_tick()
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
            late=self.windows.late(), unheard=self.unheard(),
            broken=[p.shard for p in running if p.broken], heard=heard,
            linked=[p.shard for p in running if p.linked], severed=[p.shard for p in running if p.severed],
            prepared=self.membership.prepared, refusal=self.membership.refusal, origin=self.origin,
        )  # fmt: skip
        self._said = status
        self._said_to = [Address(SHARD, self.base + p.shard, p.epoch) for p in running if p.linked]
        self.effects.append(Send(SCHEDULER_ADDRESS, status))

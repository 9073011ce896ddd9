"""The machine of one shard: pushes and pulls, windows and acknowledgements (docs/protocol.md).

`ShardMachine` owns the state and dispatches; what happens when shards die and come back stands in ``membership.py``,
the repair of data rows in ``repair.py``, the scrub in ``scrub.py``, the seeding of parity rows in ``seeding.py``.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ecrec._native import Store, sum_sections
from ecrec._native import Window as WindowBuffers
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, Effect, Event, Note, Received, Send, Stop, Tick
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import RECOVERING, SCHEDULER, SEEDED, SHARD, UP, WORKER, Address
from ecrec.protocol.peer import Peer, Undo
from ecrec.protocol.placement import CLASSES_MAX, Placement
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scrub import Scrubs
from ecrec.protocol.seeding import Seeding

SCHEDULER_ADDRESS = Address(SCHEDULER, 0, 0)
PULLS_WAITING_MAX = 1024
"""Pulls of one worker that wait for a push or for lost rows; a session has a few."""
PULLS_WAITING_ALL_MAX = 1 << 16
"""The same of all workers and tools, of which anybody can invent some."""
HELD_MAX = 4096
"""Messages of one peer that wait for a view; no more are taken from its stream until the view comes. It waits for
acknowledgements meanwhile, so that it sends little more than its windows in flight, and repairs asked again."""
EARLY_MAX = 4096
"""Messages to a process without a place. What a peer sends to one that is being placed waits in the transport."""
NEVER_MS = float("inf")
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


@dataclass(slots=True, eq=False)
class QueuedPull:
    source: Address
    pull: m.Pull
    sections: "list[Rows]"


@dataclass(slots=True)
class Unstable:
    """A closed window that some running peer has not acknowledged."""

    waiting: set[int]
    marks: dict[int, int]
    closed_ms: float
    """In the time that passed while this process was awake."""


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

    ``wanted`` is the shard (over all groups) that this process wants to be; -1 makes it a spare.
    """

    def __init__(self, process: str, endpoint: str, wanted: int = -1) -> None:
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
        self.store: Store = None  # type: ignore[assignment]
        self.placement: Placement = None  # type: ignore[assignment]
        self.buffers: WindowBuffers = None  # type: ignore[assignment]
        self.dims: list[int] = []
        self.peers: dict[int, Peer] = {}
        self.early: list[Received] = []
        self.marks: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.workers: dict[int, WorkerState] = {}
        self.fenced: dict[int, int] = {}
        """Worker -> newest epoch of it that is over."""
        self.pulls: list[QueuedPull] = []
        self.window_number = 1
        self.stable = 0
        self.open_marks: dict[int, int] = {}
        self.open_pushes: Counter[int] = Counter()
        """Pushes in the open window, by worker."""
        self.announces = False
        """The open window says to some peer that the seeding of a class begins or ends."""
        self.unstable: dict[int, Unstable] = {}
        self.effects: list[Effect] = []
        self.status_due = True
        self._acks_at_ms = NEVER_MS
        self._window_due_ms = NEVER_MS
        self._window_closed_ms = -1e18
        self._status_at_ms = -1e18
        self._huge_pages_due_ms = -1e18
        self._figures: dict[str, float] = {}
        self._figures_at_ms = -1e18
        self.repairs = Repairs(self)
        self.scrubs = Scrubs(self)
        self.seeding = Seeding(self)
        self.membership = Membership(self)
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

        Raises one of BAD_CONTENT for a message of a server that does not fit; nothing of it is done then. Workers and
        tools are answered with a refusal.
        """
        self.awake_ms += min(max(now_ms - self.now_ms, 0.0), float(self.config.heartbeat_ms))
        self.now_ms = now_ms
        self.effects = []
        if isinstance(event, Tick):
            self._on_tick()
        elif isinstance(event, Received):
            self._on_received(event)
        if self.state:
            self.advance()
        if self.status_due:
            self._send_status()
        effects, self.effects = self.effects, []
        return effects

    def takes_from(self, source: Address) -> bool:
        """False while so much of a peer waits for a view that the transport is to leave the rest with it."""
        peer = self.peers.get(source.id - self.base)
        return peer is None or len(peer.held) < HELD_MAX

    def _on_received(self, event: Received) -> None:
        role = event.source.role
        if role == SCHEDULER:
            self._on_scheduler(event.message)
        elif role == SHARD:
            self._on_shard(event)
        elif self.state:
            handler = self._from_clients.get(type(event.message))
            if handler is None:
                kind = type(event.message).__name__
                self.note("warning", f"{event.source}: dropped a {kind}, which a shard does not take")
            else:
                handler(event.source, event.message, event.frames)

    def _on_scheduler(self, message: m.Message) -> None:
        if isinstance(message, m.Views):
            self.membership.on_views(message)
        elif isinstance(message, m.Fenced):
            self.effects.append(Stop(f"fenced by the scheduler: {message.reason}"))

    def _on_shard(self, event: Received) -> None:
        """Take a peer's message, or hold it until its view is here, and then all that comes behind it."""
        source = event.source
        if not self.state:
            if len(self.early) < EARLY_MAX:
                self.early.append(event)
            return
        peer = self.peers.get(source.id - self.base)
        handler = self._from_shards.get(type(event.message))
        if peer is None or handler is None or peer.shard == self.shard:
            kind = type(event.message).__name__
            self.note("warning", f"{source}: dropped a {kind}, which is not a peer's or not from a member")
            return
        if source.epoch > peer.epoch or (peer.held and peer.held[-1].source.epoch == source.epoch):
            peer.held.append(event)
            return
        if source.epoch < peer.epoch or peer.settling:
            return
        view = getattr(event.message, "view", None)
        if view is not None:
            if view > self.view:
                peer.held.append(event)
                return
            if view < self.view:
                return
        if isinstance(event.message, m.Reseed) and event.message.since > self.view:
            peer.held.append(event)
            return
        handler(peer, event.message, event.frames)

    def release_held(self) -> None:
        """A view came: what waited for one is taken again, in order."""
        for peer in self.peers.values():
            held, peer.held = peer.held, []
            for event in held:
                self._take_late(event)
        early, self.early = self.early, []
        for event in early:
            self._take_late(event)

    def _take_late(self, event: Received) -> None:
        """Take what waited; one that does not fit keeps nothing that came behind it from being taken."""
        try:
            self._on_shard(event)
        except BAD_CONTENT as error:
            self.note("error", f"{event.source}: dropped a {type(event.message).__name__}: {error}")

    # ------------------------------------------------------------------ helpers for the parts
    def note(self, level: str, text: str) -> None:
        self.effects.append(Note(level, text))

    def send(self, peer: Peer, message: m.Message, frames: m.Frames = ()) -> None:
        self.effects.append(Send(Address(SHARD, self.base + peer.shard, peer.epoch), message, frames))

    def reply(self, to: Address, message: m.Message, frames: m.Frames = ()) -> None:
        self.effects.append(Send(to, message, frames))

    def others(self) -> list[Peer]:
        """All other members that run."""
        return [p for p in self.peers.values() if p.shard != self.shard and p.running]

    @property
    def settled(self) -> bool:
        return not any(p.unsettled for p in self.peers.values())

    # ------------------------------------------------------------------ workers: pushes
    def _on_hello(self, source: Address, message: m.Hello, frames: m.Frames) -> None:
        if self._worker(source) is not None:
            mark = self.marks.get(source.id, 0)
            self.reply(source, m.Welcome(mark, self.durable.get(source.id, 0)))

    def _worker(self, source: Address) -> WorkerState | None:
        """The worker's state; None for what is none and (with a refusal) for a process that a newer one replaced."""
        if source.role != WORKER:
            return None
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
        mark = self.marks.get(source.id, 0)
        if push.number <= mark:
            self.reply(source, m.PushAck(self.durable.get(source.id, 0)))
            return
        last = worker.queue[-1].number if worker.queue else mark
        # A worker never has more on the way; what it would lose here it sends again.
        if push.number == last + 1 and len(worker.queue) < self.config.pushes_in_flight_max:
            worker.queue.append(QueuedPush(source.id, push.number, push, frames, source))

    def _on_flush(self, source: Address, message: m.Flush, frames: m.Frames) -> None:
        worker = self._worker(source)
        if worker is not None:
            worker.flush = message.number

    def _apply_queued(self) -> bool:
        """Apply what waits, in each worker's order, as far as its rows are here. True if anything was applied."""
        waiting = [worker for worker in self.workers.values() if worker.queue]
        if not waiting or any(p.awaits_joined for p in self.peers.values()):
            return False
        done = False
        for worker in waiting:
            while worker.queue:
                batch = self._batch(worker.queue[0])
                if batch is None or not self._apply(batch):
                    break
                done = True
        return done

    def _batch(self, head: QueuedPush) -> list[QueuedPush] | None:
        """The pushes that are applied together with this one; None while one of them is not here."""
        if head.push.barrier <= 1:
            return [head]
        batch = []
        for number in range(head.push.barrier):
            worker = self.workers.get(number)
            if worker is None or not worker.queue or worker.queue[0].number != head.number:
                return None
            batch.append(worker.queue[0])
        return batch

    def _apply(self, batch: list[QueuedPush]) -> bool:
        """Apply pushes as one, or ask for the rows they wait for and return False."""
        try:
            for p in batch:
                self._check_cursor(p)
            parts = [_sections(p.push.sections, p.frames, values=True) for p in batch]
            if self._lacks([s for part in parts for s in part]):
                return False
            self._apply_sections(batch, parts)
        except BAD_CONTENT as error:
            for p in batch:
                self.workers[p.worker].queue.clear()
                self.reply(p.source, m.PushRefused(p.number, str(error)))
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
        if p.push.cursor and not before < p.push.cursor < 1 << 63:
            raise ValueError(
                f"the cursor goes from lease {before >> m.CURSOR_BITS}, {before % (1 << m.CURSOR_BITS)} examples done, "
                f"to lease {p.push.cursor >> m.CURSOR_BITS}, {p.push.cursor % (1 << m.CURSOR_BITS)} done; it only rises"
            )

    def _lacks(self, sections: list[Rows]) -> bool:
        """Whether rows are still to be repaired; if so, they are asked for."""
        if self.state != RECOVERING:
            return False
        missing = [self.store.missing(s.tables, s.counts, s.rows) for s in sections]
        missing = [keys for keys in missing if keys.size]
        if missing:
            self.repairs.ask(np.unique(np.concatenate(missing)))
        return bool(missing)

    def _apply_sections(self, batch: list[QueuedPush], parts: list[list[Rows]]) -> None:
        """All sections or none: the first checks itself before it is applied, the others are checked before that."""
        assign = batch[0].push.assign
        sections = [s for part in parts for s in part]
        if len(parts) > 1 and not assign:
            if any(p.push.assign for p in batch):
                raise ValueError("pushes of one barrier mix weights and gradients")
            parts_in_order = [(s.tables, s.counts, s.rows, s.values) for s in sections]
            sections = [Rows(*sum_sections(parts_in_order, np.array(self.dims, np.int32)))]
        buffers = self.buffers if self.coded() else None
        for s in sections[1:]:
            self.store.check(s.tables, s.counts, s.rows, s.values)
        for s in sections:
            step = self.store.assign if assign else self.store.apply
            step(s.tables, s.counts, s.rows, s.values, buffers)

    def coded(self) -> bool:
        return any(code.r for code in self.placement.codes)

    # ------------------------------------------------------------------ workers: pulls
    def _on_pull(self, source: Address, pull: m.Pull, frames: m.Frames) -> None:
        if source.role == WORKER and self._worker(source) is None:
            return
        try:
            sections = _sections(pull.sections, frames, values=False)
        except BAD_CONTENT as error:
            self.reply(source, m.PullRefused(pull.request, str(error)))
            return
        waiting = [q.pull.request for q in self.pulls if q.source == source]
        if len(waiting) >= PULLS_WAITING_MAX:
            self.reply(source, m.PullRefused(pull.request, f"{len(waiting)} pulls of this worker wait already"))
        elif len(self.pulls) >= PULLS_WAITING_ALL_MAX:
            self.reply(source, m.PullRefused(pull.request, f"{len(self.pulls)} pulls wait already"))
        elif pull.request not in waiting:
            self.pulls.append(QueuedPull(source, pull, sections))

    def _answer_pulls(self) -> None:
        """Answer the pulls whose push is applied and whose rows are here."""
        waiting: list[QueuedPull] = []
        for queued in self.pulls:
            after = queued.pull.after
            due = after <= self.marks.get(queued.source.id, 0) or queued.source.role != WORKER
            if not due or not self._answer(queued):
                waiting.append(queued)
        self.pulls = waiting

    def _answer(self, queued: QueuedPull) -> bool:
        pull, store = queued.pull, self.store
        try:
            sizes = [store.gather_bytes(s.tables, s.counts, pull.records) for s in queued.sections]
            if sum(sizes) > self.config.answer_bytes_max:
                limit = self.config.answer_bytes_max
                raise ValueError(f"the answer would have {sum(sizes)} bytes, {limit} can be sent: ask for fewer rows")
            if self._lacks(queued.sections):
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
        if self.pulls:
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

    def close_window_if_due(self) -> None:
        """Close the window when it is its time, or note when that will be."""
        self._window_due_ms = NEVER_MS
        if not (self.open_marks or self.announces or self.buffers.rows()):
            return
        config = self.config
        full = self.buffers.nbytes() >= config.window_bytes_max
        if len(self.unstable) >= config.windows_in_flight_max and not full:
            return
        due_ms = self._window_closed_ms + config.window_interval_ms
        hurry = full or self.announces or self.seeding.tasks or self.state in SEEDED or not self.coded()
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
            self.announces = False
            self._make_durable(marks)
            return
        targets = [p for p in self.others() if p.joined]
        for peer in targets:
            keys, records = self.buffers.buffer(peer.shard).take()
            window = m.Window(self.window_number, self.stable, marks, peer.begins, peer.ends, peer.received or 0)
            peer.ack_due = False
            self.send(peer, window, (keys, records))
            peer.begins, peer.ends = {}, []
        self._acknowledge_all()
        self.announces = False
        self._window_closed_ms, self._window_due_ms = self.now_ms, NEVER_MS
        self.unstable[self.window_number] = Unstable({p.shard for p in targets}, marks, self.awake_ms)
        self.window_number += 1
        self.settle_windows()

    def settle_windows(self) -> None:
        """Windows that every running peer has are stable; their pushes are durable."""
        durable: dict[int, int] = {}
        stable = self.stable
        while stable + 1 in self.unstable and not self.unstable[stable + 1].waiting:
            stable += 1
            durable.update(self.unstable.pop(stable).marks)
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

    def missed(self) -> list[int]:
        """Members that have had a window of mine for too long without a word."""
        oldest_ms = self.awake_ms - self.config.link_timeout_ms
        return sorted({shard for u in self.unstable.values() if u.closed_ms < oldest_ms for shard in u.waiting})

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
        return min(due_ms, self._status_at_ms + self.config.heartbeat_ms)

    # ------------------------------------------------------------------ windows, receiving
    def _on_window(self, peer: Peer, window: m.Window, frames: m.Frames) -> None:
        if peer.received is None or window.number != peer.received + 1:
            text = f"shard {peer.shard}: window {window.number} after {peer.received}: the stream has a gap"
            self.note("error", text)
            return
        keys, records = arrays.keys(frames[0]), arrays.records(frames[1])
        if any(not 0 <= class_id < CLASSES_MAX for class_id in window.begins):
            raise ValueError(f"window {window.number} begins classes {sorted(window.begins)}")
        rounds = {**peer.rounds, **window.begins}
        mask = self.seeding.accepted(peer.shard, rounds)
        if keys.size:
            self.store.fold(peer.shard, mask, keys, records)
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
            self.status_due = True
            self.note("info", f"shard {self.base + self.shard} is whole again")

    def _on_tick(self) -> None:
        if not self.state:
            self.status_due = False
            if self.now_ms - self._status_at_ms >= self.config.heartbeat_ms:
                self._status_at_ms = self.now_ms
                register = m.Register(self.process, self.endpoint, self.wanted)
                self.effects.append(Send(SCHEDULER_ADDRESS, register))
            return
        self.repairs.on_tick()
        self.scrubs.on_tick()
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
        figures = dict(self._figures)
        figures["windows"] = float(self.window_number - 1)
        figures["parity_rows_corrected"] = float(self.scrubs.corrected)
        figures["classes_to_repair"] = float(len(self.repairs.incomplete))
        figures["classes_to_seed"] = float(self.seeding.incomplete())
        status = m.ShardStatus(
            self.process, self.view, self.state == UP, list(self.membership.reports.values()),
            dict(self.marks), dict(self.durable), figures, dict(self.repairs.reinitialised), self.missed(),
        )  # fmt: skip
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

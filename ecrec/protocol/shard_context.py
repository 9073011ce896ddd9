"""What the parts of a `ShardMachine` share: the shard's rows, peers and windows, and what one event makes of it.

A part gets this, and never the machine: it can neither dispatch nor reach a part that it was not given.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ecrec._native import Store
from ecrec._native import Window as WindowBuffers
from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Effect, HalfHandledError, Note, Send
from ecrec.protocol.messages import SHARD, WORKER, Address
from ecrec.protocol.peer import Peer
from ecrec.protocol.placement import Placement, TableSpec
from ecrec.protocol.queues import QueuedPull, QueuedPush, WorkerState
from ecrec.protocol.story import Story
from ecrec.protocol.transitions import SHARD as STATES
from ecrec.protocol.transitions import UNPLACED


class Observer(Protocol):
    """Told of what the machine does, for tests that keep their own record."""

    def applied(self, shard: Address, window: int, pushes: list[QueuedPush]) -> None: ...

    def reinitialised(self, shard: Address, view: int, keys: Any) -> None: ...

    def snapshot(self, shard: Address, checkpoint: int, watermarks: dict[int, int]) -> None: ...


@dataclass(slots=True)
class Unstable:
    """A closed window that some running peer has not acknowledged."""

    waiting: set[int]
    watermarks: dict[int, int]
    closed_ms: float
    """In the time that passed while this process was awake."""
    nbytes: int
    """Of its frames to all peers."""


@dataclass(slots=True)
class Counts:
    """What this process did for workers and tools, since it began."""

    pushes: int = 0
    pushed_bytes: int = 0
    """Of their frames: row ids and values."""
    refused_pushes: int = 0
    pulls: int = 0
    pulled_bytes: int = 0
    """Of the answers."""


class ShardContext:
    """One process of a shard: what it is, and what it has."""

    def __init__(self, process: str, endpoint: str) -> None:
        self.process = process
        self.endpoint = endpoint
        self.observer: Observer | None = None
        self.config = ProtocolConfig()
        self.address = Address(SHARD, -1, 0)
        self.group, self.shard, self.epoch, self.view = -1, -1, 0, -1
        self.base = 0
        self.groups = 1
        self.state = UNPLACED
        self.story = Story()
        self.now_ms = 0.0
        self.awake_ms = 0.0
        """Time that passed, less that in which this process stood still."""
        self.store: Store = None  # type: ignore[assignment]
        self.placement: Placement = None  # type: ignore[assignment]
        self.tables: list[TableSpec] = []
        self.dims: list[int] = []
        self.peers: dict[int, Peer] = {}
        self.origin = m.Origin()
        """What is known of the scheduler."""
        self.copy = b""
        """The newest copy of the scheduler's state,"""
        self.copied = 0
        """and its serial."""
        self.watermarks: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.workers: dict[int, WorkerState] = {}
        self.fenced: dict[int, int] = {}
        """Worker -> newest epoch of it that is over."""
        self.counts = Counts()
        self.worked_ms = -1e18
        """When a worker last asked for something."""
        self.pulls: list[QueuedPull] = []
        self.pulls_due = False
        """One came, or what they wait for may have come: a view, rows, a push that is applied."""
        self.window_number = 1
        self.stable = 0
        self.unstable: dict[int, Unstable] = {}
        self.unstable_bytes = 0
        self.buffers: WindowBuffers = None  # type: ignore[assignment]
        """Deltas in the open window,"""
        self.open_watermarks: dict[int, int] = {}
        """watermarks that it raises,"""
        self.open_pushes: Counter[int] = Counter()
        """and pushes in it, by worker."""
        self.open_seeds = False
        """There are seeds in the open window."""
        self.announces = False
        """The open window says to some peer that the seeding of a class begins or ends."""
        self.halted = False
        """For a succession in my group: no push is applied, and no window closed."""
        self.status_due = True
        self.on_pause: Callable[[], None] | None = None
        """Called in the middle of an event that takes long. It may call `while_busy`, nothing else of the machine."""
        self.effects: list[Effect] = []
        self.is_acting = False
        """The event has passed its checks, and the state moves."""
        self._record_sizes = np.zeros(0, np.int64)

    def checked(self) -> None:
        """The event fits; from here on the state moves, and whatever is raised ends the process."""
        self.is_acting = True

    def step(self, happening: str) -> None:
        before, self.state = self.state, STATES.after(self.state, happening)
        self.story.tell(self.now_ms, f"{before or 'without a place'} -> {self.state}: {happening}")

    def hear_origin(self, origin: m.Origin) -> None:
        """Of the generation that I know, which rises with the view that announces it (`adopted`)."""
        if origin.generation == self.origin.generation and origin.serial > self.origin.serial:
            self.origin = m.Origin(self.origin.cluster, self.origin.generation, origin.serial)

    def pause_of_store(self) -> Callable[[int], None]:
        """For `Store.on_pause`. The store keeps it, and must not keep the shard."""
        context = weakref.ref(self)

        def pause(work: int) -> None:
            alive = context()
            if alive is not None and alive.on_pause is not None:
                alive.on_pause()

        return pause

    # ------------------------------------------------------------------ effects
    def note(self, level: str, text: str) -> None:
        self.effects.append(Note(level, text))
        self.story.tell(self.now_ms, text)

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

    # ------------------------------------------------------------------ peers and rows
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

    def coded(self) -> bool:
        """Peers keep something of mine: parity, or, where rows without parity may begin again at a death, at least the
        watermarks. trap: told of them only from the first coded table on, a death in between forgets what was
        acknowledged before."""
        return self.config.reinitialise_lost or any(code.r for code in self.placement.codes)

    # ------------------------------------------------------------------ workers
    def fence_worker(self, worker: int, epoch: int) -> None:
        """Take nothing more of this life of a worker, nor of an earlier one; what is applied stays."""
        self.fenced[worker] = max(epoch, self.fenced.get(worker, 0))
        state = self.workers.get(worker)
        if state is not None and state.address.epoch <= epoch:
            state.queue.clear()
            self.pulls = [q for q in self.pulls if q.source.role != WORKER or q.source.id != worker]

    def shares_time(self) -> bool:
        """Whether a recovery leaves most of the time to workers.

        trap: a worker that waits asks for nothing. At the shard that recovers, what it waits for is here.
        """
        config = self.config
        if config.recovery_share_percent >= 100:
            return False
        asked = self.now_ms - self.worked_ms < config.foreground_ms
        return asked or bool(self.pulls) or any(worker.queue for worker in self.workers.values())

    def rows_at_once(self, rows_max: int) -> int:
        """Of a chunk of a recovery."""
        return min(rows_max, self.config.foreground_rows_max) if self.shares_time() else rows_max

    def has_open(self) -> bool:
        """Whether the open window has anything to say."""
        return bool(self.open_watermarks or self.announces or self.buffers.rows())

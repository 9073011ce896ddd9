"""Processes, and the links between them: delays, losses, repeats, and what a crash leaves on the way."""

import random
from collections import Counter, deque
from typing import Any, NamedTuple

from ecrec.protocol import events as e
from ecrec.protocol import wire
from ecrec.protocol.messages import SHARD, Address
from ecrec.protocol.node_core import NodeCore
from simulation.plan import Network

OUTAGE_GAP_MS = 5.0
"""Added to the longest outage, the time in which no other begins: heartbeats must come through in between."""

ACK_BYTES = len(wire.seal(wire.ACK_ONLY, Address(SHARD, 0, 1), Address(SHARD, 1, 1))[0])


class Process:
    """An operating-system process with one machine in it. A shard that comes back is another process."""

    def __init__(self, name: str, role: int, machine: Any, clock_ms: float) -> None:
        self.name = name
        self.role = role
        self.machine = machine
        self.clock_ms = clock_ms
        """What its monotonic clock shows at simulated time 0: hosts' clocks have nothing in common."""
        self.alive = True
        self.paused_until_ms = 0.0
        self.slow_until_ms = 0.0
        self.service_ms = 0.0
        """While it is slow, what each message costs it,"""
        self.busy_until_ms = 0.0
        """and until when it is at the last one."""
        self.handles = False
        """Its machine is in the middle of an event,"""
        self.spent_ms = 0.0
        """of which so much time has passed in pauses,"""
        self.works_until_ms = 0.0
        """and this is the end of the last one that took time."""
        self.worked_ms = 0.0
        """In all such events."""
        self.view_before = -1
        """The machine's view before the event."""
        self.behind_ms = 0.0
        """What shards say it reads so long after it came,"""
        self.behind_until_ms = 0.0
        """what came until then."""
        self.core: NodeCore = None  # type: ignore[assignment]
        """What runs around the machine, as in a real process."""
        self.links: dict[Address, Process] = {}
        """Connections that it made."""
        self.routes: dict[Address, Process] = {}
        """Where others were heard."""
        self.error: Exception | None = None
        """What its machine, or a checker in it, raised."""
        self.taken: list[tuple[e.Received, Process]] = []
        """Messages that its machine took since the last look, with their senders."""
        self.events = 0
        """Taken by its machine."""
        self.stop_after = -1
        """After so many effects of its machine it dies; below 0: it does not."""
        self.driver: Any = None
        """A worker's `Worker`."""
        self.sends_from_ms = 0.0
        """Until then it waits for stable storage: what it sends leaves it after that."""
        self.deposed = False
        """Another scheduler leads. It may still send, and no longer persist."""
        self.persisted_last = False
        """The last effect that was carried out was Persist."""
        self.address = Address(role, -1, 0)
        self.placed = False
        """It has a place."""
        self.watermarks: dict[int, int] = {}
        self.lineage_before = 0
        """Length of the shard's lineage before the machine's last event."""

    @property
    def label(self) -> str:
        """Short name in the trace: ``s2.1`` is shard 2 in epoch 1."""
        if self.role == SHARD and self.address.id >= 0 and self.address.epoch > 0:
            return f"s{self.address.id}.{self.address.epoch}"
        return self.name

    def read_ms(self, now_ms: float) -> float:
        """All that had come by then is read."""
        return now_ms - self.behind_ms if now_ms < self.behind_until_ms + self.behind_ms else now_ms


class Parcel(NamedTuple):
    """A message in a link, as bytes; what `NodeCore.arrived` takes."""

    source: Process
    route: bytes
    """Name of the sender; empty if it comes back on a connection of the receiver."""
    parts: list[bytes]
    message: Any
    """What it is; None for what streams send again, and for acknowledgements."""
    stream: bool
    """Between two shards."""
    sent: int = 0
    """Numbers all parcels of a run: what arrives after a later one has been overtaken."""

    @property
    def may_serve(self) -> bool:
        return True

    @property
    def peer(self) -> str:
        return self.source.label

    @property
    def only_acknowledges(self) -> bool:
        return self.message is None and len(self.parts[0]) == ACK_BYTES


class Link:
    """One direction between two processes: first in, first out."""

    def __init__(self, source: Process, to: Process, ideal: bool) -> None:
        self.source = source
        self.to = to
        self.ideal = ideal
        """Loses and repeats nothing."""
        self.queue: deque[Parcel] = deque()
        self.due_ms = 0.0
        self.lag_ms = 0.0
        self.slow_until_ms = 0.0
        self.slow_ms = 0.0
        self.outage_until_ms = -1.0
        self.cut_until_ms = -1.0
        """A partition: nothing goes this way until then. An ideal link keeps it, others lose it."""
        self.broken = False
        """An outage swallowed something since the last connection; a stream must send it again."""

    def delay_ms(self, now_ms: float, network: Network, rng: random.Random, counts: Counter[str], views: bool) -> float:
        """When a message that is sent now arrives."""
        delay = network.delay_min_ms + rng.random() * (network.delay_max_ms - network.delay_min_ms)
        delay += self.lag_ms
        if network.straggle_rate and rng.random() < network.straggle_rate:
            delay += rng.random() * network.straggle_max_ms
            counts["message delayed by a straggler"] += 1
        if views and network.views_lag_rate and rng.random() < network.views_lag_rate:
            delay += rng.random() * network.views_lag_max_ms
            counts["views held up"] += 1
        if now_ms < self.slow_until_ms:
            delay += self.slow_ms
        if self.ideal and now_ms < self.cut_until_ms:
            delay += self.cut_until_ms - now_ms
        self.due_ms = max(self.due_ms + 1e-6, now_ms + delay)
        return self.due_ms

    def copies(self, now_ms: float, network: Network, rng: random.Random, stream: bool) -> int:
        """How many of a message arrive: 0, 1 or 2. A stream's connection loses nothing unless it breaks."""
        if self.ideal:
            return 1
        if now_ms < max(self.outage_until_ms, self.cut_until_ms):
            self.broken = True
            return 0
        rested = now_ms > self.outage_until_ms + network.outage_max_ms + OUTAGE_GAP_MS
        if network.outage_rate and rested and rng.random() < network.outage_rate:
            self.outage_until_ms = now_ms + rng.random() * network.outage_max_ms
            self.broken = True
            return 0
        if stream:
            return 1
        if network.loss_rate and rng.random() < network.loss_rate:
            return 0
        return 2 if network.repeat_rate and rng.random() < network.repeat_rate else 1

"""The machine of a program that keeps asking the scheduler how the cluster is."""

from typing import NamedTuple

import msgspec

from ecrec.protocol.events import Effect, Event, Received, Send, Tick
from ecrec.protocol.messages import SCHEDULER_ADDRESS, Address, ClusterQuery, ClusterState, HistoryEntry

EVERY_MS = 100.0
"""As often as shards report."""


class Standing(NamedTuple):
    """What the scheduler last said of a shard."""

    epoch: int
    state: str
    endpoint: str = ""


class Seen(NamedTuple):
    """A cluster's state, not older than when it was asked for, in seconds of the monotonic clock; with all events since
    the watch began."""

    asked_at: float
    state: ClusterState


class WatchMachine:
    """Asks again and again; sans-I/O like its peers. A scheduler that restarts is silent for a while."""

    def __init__(self, address: Address, every_ms: float = EVERY_MS) -> None:
        self.address = address
        self.every_ms = every_ms
        self.seen: Seen | None = None
        self._history: list[HistoryEntry] = []
        self._request = 0
        self._asked_ms = -every_ms

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, ClusterState) and message.request == self._request:
                if self.seen is not None and self.seen.state.cluster != message.cluster:
                    self._history = []  # another cluster at the same endpoint
                self._add_history(message.history)
                state = msgspec.structs.replace(message, history=self._history)
                self.seen = Seen(self._asked_ms / 1e3, state)
        elif isinstance(event, Tick) and now_ms - self._asked_ms >= self.every_ms:
            self._request += 1
            self._asked_ms = now_ms
            return [Send(SCHEDULER_ADDRESS, ClusterQuery(self._request))]
        return []

    def _add_history(self, kept: list[HistoryEntry]) -> None:
        """Every event since this machine began. The scheduler keeps the last 1,000, and a death makes four."""
        known = set(self._history[-len(kept) :])
        self._history += [entry for entry in kept if entry not in known]

"""A thread that keeps asking the scheduler how the cluster is."""

import secrets
import threading
from types import TracebackType
from typing import NamedTuple

import msgspec

from ecrec.launch.environment import curve_keys
from ecrec.launch.kills import Standing
from ecrec.protocol.events import Effect, Event, Received, Send, Tick
from ecrec.protocol.messages import SCHEDULER, TOOL, UP, Address, ClusterQuery, ClusterState, HistoryEntry
from ecrec.transport.client_node import ClientNode

EVERY_MS = 100.0
"""As often as shards report."""

_PUMP_MS = 50.0


class Seen(NamedTuple):
    """A cluster's state, not older than when it was asked for, in seconds of the monotonic clock; with all events since
    the watch began."""

    asked_at: float
    state: ClusterState


class WatchMachine:
    """Asks again and again; sans-I/O like its peers. A scheduler that restarts is silent for a while."""

    def __init__(self) -> None:
        self.address = Address(TOOL, secrets.randbelow(1 << 31), 0)
        self.seen: Seen | None = None
        self._history: list[HistoryEntry] = []
        self._request = 0
        self._asked_ms = -EVERY_MS

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, ClusterState) and message.request == self._request:
                self._add_history(message.history)
                state = msgspec.structs.replace(message, history=self._history)
                self.seen = Seen(self._asked_ms / 1e3, state)
        elif isinstance(event, Tick) and now_ms - self._asked_ms >= EVERY_MS:
            self._request += 1
            self._asked_ms = now_ms
            return [Send(Address(SCHEDULER, 0, 0), ClusterQuery(self._request))]
        return []

    def _add_history(self, kept: list[HistoryEntry]) -> None:
        """Every event since this machine began. The scheduler keeps the last 1,000, and a death makes four."""
        known = set(self._history[-len(kept) :])
        self._history += [entry for entry in kept if entry not in known]


class ClusterWatch:
    """The latest state of a cluster; a context manager around the thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._machine = WatchMachine()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ecrec-watch", daemon=True)

    @property
    def latest(self) -> Seen | None:
        """None until the scheduler answered for the first time."""
        return self._machine.seen

    @property
    def standing(self) -> dict[int, Standing]:
        """Epoch and state of every shard; empty until known."""
        seen = self.latest
        shards = [] if seen is None else seen.state.shards
        return {shard.shard: Standing(shard.epoch, shard.state, shard.endpoint) for shard in shards}

    @property
    def all_up(self) -> bool:
        """Every shard is there and whole."""
        seen = self.latest
        if seen is None or len(seen.state.shards) < seen.state.n * seen.state.groups:
            return False
        return all(shard.state == UP for shard in seen.state.shards)

    @property
    def lost(self) -> str:
        """Why data was lost; empty if it was not."""
        seen = self.latest
        return "" if seen is None else seen.state.lost

    @property
    def fenced(self) -> dict[int, int]:
        """Worker -> newest epoch of it that is over."""
        seen = self.latest
        return {} if seen is None else seen.state.fenced

    def _run(self) -> None:
        with ClientNode(self._endpoint, self._machine, curve_keys()) as node:
            while not self._ending.is_set():
                node.pump(_PUMP_MS)

    def __enter__(self) -> "ClusterWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

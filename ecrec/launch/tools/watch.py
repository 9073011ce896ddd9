"""A thread that keeps asking the scheduler how the cluster is."""

import threading
from types import TracebackType

from ecrec.launch.environment import curve_keys
from ecrec.protocol.messages import UP
from ecrec.protocol.watch import EVERY_MS, Seen, Standing, WatchMachine
from ecrec.transport.client_node import ClientNode, tool_address

_PUMP_MS = 50.0


class ClusterWatch:
    """The latest state of a cluster; a context manager around the thread."""

    def __init__(self, endpoint: str, curve_dir: str | None = None, every_ms: float = EVERY_MS) -> None:
        self._endpoint = endpoint
        self._curve_dir = curve_dir
        self._machine = WatchMachine(tool_address(), every_ms)
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
        with ClientNode(self._endpoint, self._machine, curve_keys(self._curve_dir)) as node:
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

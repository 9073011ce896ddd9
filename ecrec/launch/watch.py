"""A thread that keeps asking the scheduler how the cluster is."""

import threading
from types import TracebackType

from ecrec.errors import ClusterError
from ecrec.launch.kills import Standing
from ecrec.launch.verify import cluster_state
from ecrec.protocol.messages import UP, ClusterState

EVERY_S = 0.05
ANSWER_S = 1.0
"""The scheduler may be restarting: the next question finds it again."""


class ClusterWatch:
    """The latest state of a cluster; a context manager around the thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._latest: ClusterState | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ecrec-watch", daemon=True)

    @property
    def latest(self) -> ClusterState | None:
        """None until the scheduler answered for the first time."""
        return self._latest

    @property
    def standing(self) -> dict[int, Standing]:
        """Epoch and state of every shard; empty until known."""
        state = self._latest
        return (
            {} if state is None else {s.shard: Standing(s.epoch, s.state, s.endpoint) for s in state.shards}
        )

    @property
    def all_up(self) -> bool:
        """Every shard is there and whole."""
        state = self._latest
        if state is None or len(state.shards) < state.n * state.groups:
            return False
        return all(shard.state == UP for shard in state.shards)

    @property
    def lost(self) -> str:
        """Why data was lost; empty if it was not."""
        return "" if self._latest is None else self._latest.lost

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            try:
                self._latest = cluster_state(self._endpoint, ANSWER_S)
            except ClusterError:
                continue

    def __enter__(self) -> "ClusterWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

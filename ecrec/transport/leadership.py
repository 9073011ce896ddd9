"""Where a scheduler keeps its state and how its members find it: what the transport asks of any coordinator."""

from typing import NamedTuple, Protocol

from ecrec.errors import ClusterError


class DeposedError(ClusterError):
    """This scheduler does not lead any more: nothing of what it wanted to do may be carried out."""


class StateStore(Protocol):
    """Carries out Persist for a scheduler's node, and knows whether it still leads."""

    @property
    def term(self) -> int:
        """Number of this leader among all that led the cluster; 0 where there can be only one."""

    def may_act(self, wait_ms: float) -> bool:
        """Whether the scheduler may act now; waits at most ``wait_ms`` for that. DeposedError: never again."""

    def save(self, state: bytes) -> None:
        """Write the state; ClusterError if that cannot be known to have happened."""

    def note(self, level: str, text: str) -> None:
        """Keep an event for people, where there is room for that."""

    def close(self) -> None: ...


class LeaderWatch(Protocol):
    """Knows the endpoint of the scheduler that leads."""

    @property
    def endpoint(self) -> str:
        """Empty until the first leader is known. May be read from any thread at any time."""

    def close(self) -> None: ...


class Location(NamedTuple):
    """What a ``zk://`` name says."""

    hosts: str
    """``HOST:PORT[,HOST:PORT...]``"""
    path: str
    """Of the znode under which everything of one cluster stands."""

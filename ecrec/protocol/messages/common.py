"""What all messages share: addresses, numbers and their bounds, the base class."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import msgspec

Frames: TypeAlias = Sequence[Any]
"""Buffers: bytes, memoryview or numpy arrays."""

SHARD, WORKER, SCHEDULER, TOOL = 0, 1, 2, 3

ROLE_NAMES = ("shard", "worker", "scheduler", "tool")

WORKERS_MAX = 1 << 16
"""Workers are numbered below this; bounds what invented ones can cost."""

NUMBER_MAX = (1 << 62) - 1
"""Of what members count up or compare. A larger one is refused where it is read: counted on, it could not be sent any
more."""


def cursor_key(worker: int) -> int:
    """Where watermarks have a worker's cursor: beside the number of its last push, and raised with it."""
    return WORKERS_MAX + worker


def pushes_of(watermarks: dict[int, int]) -> int:
    """How many pushes of all workers watermarks stand for; cursors are none. At most NUMBER_MAX, as the wire takes."""
    return min(NUMBER_MAX, sum(number for worker, number in watermarks.items() if worker < WORKERS_MAX))


Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
"""A number that members count up or compare."""

NumberOrNone = Annotated[int, msgspec.Meta(ge=-1, le=NUMBER_MAX)]
"""-1: none."""


class Address(NamedTuple):
    """One life of a member. Shards are numbered over all groups: group * n + number in the group."""

    role: int
    id: int
    epoch: int

    def __str__(self) -> str:
        return f"{ROLE_NAMES[self.role]} {self.id} (epoch {self.epoch})"


SCHEDULER_ADDRESS = Address(SCHEDULER, 0, 0)
"""As members and workers know it, whatever its term."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages."""

    FRAMES: ClassVar[int] = 0
    """Payload frames that travel with it; of a push, a pull and its answer as many as their sections ask for."""


class Origin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which history of which cluster a message belongs to, so that nobody acts on that of another one."""

    cluster: str = ""
    """Random name that the cluster got when its scheduler's state was first made."""
    generation: Number = 0
    """Counts the adoptions: a history of views ends where the state was lost, and a new one goes on from there."""
    serial: Number = 0
    """Of the newest scheduler's state that the sender knows of. A state with a lower one is older than its cluster."""

    def is_of(self, other: "Origin") -> bool:
        """Whether both are of the same cluster."""
        return self.cluster == other.cluster

"""Messages by which a lost state of the scheduler is made again: copies of it, and the census of the members."""

from typing import ClassVar

import msgspec

from ecrec.protocol.messages.common import Message, Number, Origin
from ecrec.protocol.messages.leases import CURSOR_BITS, Dataset, Leased
from ecrec.protocol.messages.members import Fenced, Views
from ecrec.protocol.messages.views import AnyView, FullView

VIEWS_TOLD_MAX = 64
"""Newest views that a member keeps for a scheduler that lost its state: more than copies of that are ever behind."""


class StateCopy(Message, frozen=True):
    """The scheduler's state, for a shard to keep: should it be lost, what members cannot tell is read from here.

    Frames: one, the encoded state, without what members know themselves.
    """

    FRAMES: ClassVar[int] = 1
    origin: Origin


class Census(Message, frozen=True):
    """A scheduler whose state is lost or older than its cluster asks a member to tell all that it knows."""

    generation: Number = 0
    """Of its state, when it asks a worker, which takes no lease of an earlier one from then on."""


class ShardCensus(Message, frozen=True):
    """Answer of a shard to `Census`. Frames: one, the newest `StateCopy` (empty: it has none)."""

    FRAMES: ClassVar[int] = 1
    process: str
    endpoint: str
    origin: Origin
    copied: Number
    """Serial of the copy."""
    start: FullView
    """What the sender was started with."""
    views: list[AnyView]
    """The newest that it took, in order."""


class HeldLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Examples first <= i < last of a data set, in the hands of the worker that says so."""

    dataset: Dataset
    lease: Number
    first: Number
    last: Number
    request: Number

    def is_done(self, cursor: int) -> bool:
        """Whether all its examples lie at or below a cursor."""
        return (self.lease << CURSOR_BITS) + self.last - self.first <= cursor


class WorkerCensus(Message, frozen=True):
    """Answer of a worker to `Census`."""

    process: str
    origin: Origin
    cursor: Number
    asked: Number
    """Number of its newest request for a split."""
    leases: list[HeldLease]
    """Those that are not done and durable, and before them those that are and may be in no copy of the state; in
    order."""
    generation: Number
    """Of the scheduler that asked."""


def is_my_scheduler(message: Views | Fenced | StateCopy | Leased, known: Origin) -> bool:
    """Whether a member that knows this much takes a message of a scheduler: one of its cluster and of no history that
    was given up; and to end a member it must not know less than that."""
    theirs = message.origin
    if not theirs.is_of(known) or theirs.generation < known.generation:
        return False
    newer = theirs.generation > known.generation or theirs.serial >= known.serial
    return newer or not isinstance(message, Fenced)

"""Views: the numbered steps of a group's membership, which the scheduler decides."""

from typing import TypeAlias

import msgspec

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages.checkpoints import CheckpointNumber
from ecrec.protocol.messages.common import Number
from ecrec.protocol.placement import TableSpec

UP, RECOVERING, DOWN = "up", "recovering", "down"

RESEEDING = "reseeding"
"""It has all its data rows, but its parity rows of re-initialised stripes are seeded anew."""

NOT_WHOLE = (RECOVERING, RESEEDING)
"""States in which rows or parity of a member are still to come."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    shard: int
    epoch: Number
    state: str
    endpoint: str
    reseeding: list[int] = []
    """Classes whose parity is seeded anew."""


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """A death that is settled and whose place is not taken again."""

    shard: int
    window: int
    watermarks: dict[Number, Number]
    view: Number
    """That settled it."""
    reinitialised: list[int]
    """Classes whose rows its replacement does not repair."""


class View(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A numbered step of a group's membership. Shards are numbered within the group."""

    number: Number


class FullView(View, frozen=True):
    """All of a group at once: the first view that a member gets, and what it gets when views between are not kept.

    To a shard it also says which one it is; to a worker or tool ``shard`` is -1.
    """

    group: int
    groups: int
    n: int
    shard: int
    epoch: Number
    """The epoch of the receiver, a shard or a worker."""
    recovering: bool
    window: Number
    """Windows go on from this one + 1."""
    watermarks: dict[Number, Number]
    members: list[Member]
    tables: list[TableSpec]
    unsettled: list[Member]
    """Members that are down and whose cut is not yet announced."""
    lost: str
    """Not empty: data was lost, and this is what."""
    config: ProtocolConfig
    reinitialised: list[int] = []
    """Classes whose data rows are not repaired, but begin at their initial records."""
    damaged: list[str] = []
    """Replicated tables (k = 1) that lost rows in all copies, ever: for workers."""
    fenced: dict[Number, Number] = {}
    """Worker -> newest epoch of it that is over."""
    cuts: list[Cut] = []
    """Of members that are down and settled; for shards."""
    checkpoint: CheckpointNumber = 0
    """The newest checkpoint that was asked for. When a shard starts none is under way."""
    succeeds: bool = False
    """The receiver has a copy of all that the incarnation before had, and is whole."""


class ShardDown(View, frozen=True):
    shard: int
    epoch: Number


class Settle(View, frozen=True):
    shard: int
    epoch: Number
    window: Number
    watermarks: dict[Number, Number] = {}
    """The watermarks at the cut: with them a lost state of the scheduler can be made again."""


class ShardUp(View, frozen=True):
    shard: int
    epoch: Number
    endpoint: str
    window: Number
    watermarks: dict[Number, Number]


class ShardWhole(View, frozen=True):
    shard: int
    epoch: Number


class Succession(View, frozen=True):
    """A process begins to copy all that a shard has, which is to leave, and would have this epoch in its place.

    It is over with the death of any member, and with `Succeeded`, `SuccessionOver` and `Adopted`.
    """

    shard: int
    epoch: Number
    endpoint: str


class SuccessionOver(View, frozen=True):
    """Nobody succeeds this shard for now: its process stays."""

    shard: int
    epoch: Number


class Succeeded(View, frozen=True):
    """The successor has the place, and all that the incarnation before had: its windows up to ``window``, which all
    members have, and all of theirs, which had halted."""

    shard: int
    epoch: Number
    endpoint: str
    window: Number
    watermarks: dict[Number, Number]


class TableAdded(View, frozen=True):
    table: TableSpec


class WorkerFenced(View, frozen=True):
    """A worker's life is over: nothing is taken from it any more, and its splits are handed on."""

    worker: Number
    epoch: Number


class DataLost(View, frozen=True):
    """More shards are gone than the code tolerates."""

    reason: str


class Reinitialise(View, frozen=True):
    """Stripes of these classes cannot be decoded: data rows of theirs that are not there become initial records, and
    their parity is seeded anew from all data members."""

    classes: list[int]
    reason: str
    damaged: list[str] = []
    """Replicated tables (k = 1) among them. A model's dense part is one, and does not work with some of it zero."""


class Configured(View, frozen=True):
    """The limits and timeouts of all members change: the scheduler was started again with others."""

    config: ProtocolConfig


class Adopted(View, frozen=True):
    """The scheduler's state was lost or is an older one, and was made again from what the members told. Views of an
    earlier generation that come after this are of a history that was given up."""

    generation: Number


class CheckpointAsked(View, frozen=True):
    """A checkpoint begins: workers name it in all later pushes, and tell the scheduler the last push before it."""

    checkpoint: CheckpointNumber


class CheckpointCut(View, frozen=True):
    """Where a checkpoint cuts: a shard that has applied just these pushes copies its rows out.

    A push that names the checkpoint, and is not among them, waits until then (docs/protocol.md, "Checkpoints").
    """

    checkpoint: CheckpointNumber
    url: str
    pushes: dict[Number, list[Number]]
    """Worker -> its last push on each shard of this group."""
    epochs: dict[Number, Number]
    """Worker -> epoch of the life that this is said of."""
    barriers: dict[Number, tuple[Number, Number]] = {}
    """Worker -> run and sequence of a later push that is in the checkpoint too, with all before it: that of another
    worker of its run is, which waits for it."""
    incremental: bool = False
    """Note which rows change from the cut on."""
    base: CheckpointNumber = 0
    """Write only what changed since the cut of this one, if that was noted; 0: all."""
    bytes_per_s: Number = 0
    """A shard copies out at most so much, though no worker asks for anything; 0: as fast as it can."""


class CheckpointOver(View, frozen=True):
    """A checkpoint, and all before it, is complete or given up: no push waits for it any more."""

    checkpoint: CheckpointNumber
    is_complete: bool = False


AnyView: TypeAlias = (
    FullView
    | ShardDown
    | Settle
    | ShardUp
    | ShardWhole
    | Succession
    | SuccessionOver
    | Succeeded
    | TableAdded
    | WorkerFenced
    | DataLost
    | Reinitialise
    | Configured
    | Adopted
    | CheckpointAsked
    | CheckpointCut
    | CheckpointOver
)

"""The messages of the protocol: small msgpack headers; row bytes travel beside them as frames.

Each message states its frames. ``keys``, ``rows`` and ``records`` are as in ``ecrec/_native.pyi``; shards in the
fields of messages between shards are numbered within their group.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import TableSpec

Frames: TypeAlias = Sequence[Any]
"""Buffers: bytes, memoryview or numpy arrays."""

SHARD, WORKER, SCHEDULER, TOOL = 0, 1, 2, 3
ROLE_NAMES = ("shard", "worker", "scheduler", "tool")


WORKERS_MAX = 1 << 16
"""Workers are numbered below this; bounds what invented ones can cost."""


CURSOR_BITS = 32
"""A cursor says how far a worker is in the splits that it leases: number of the lease << CURSOR_BITS, plus the examples
of its split that are done. Leases are numbered over all workers, and a worker takes its own in order, so that its
cursor only rises."""


def cursor_key(worker: int) -> int:
    """Where watermarks have a worker's cursor: beside the number of its last push, and raised with it."""
    return WORKERS_MAX + worker


def pushes_of(marks: dict[int, int]) -> int:
    """How many pushes of all workers watermarks stand for; cursors are none."""
    return sum(number for worker, number in marks.items() if worker < WORKERS_MAX)


Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]
"""A number that members count up or compare. A larger one is refused where it is read: counted on, it could not be
sent any more."""
NumberOrNone = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 62) - 1)]
"""-1: none."""


class Address(NamedTuple):
    """One life of a member. Shards are numbered over all groups: group * n + number in the group."""

    role: int
    id: int
    epoch: int

    def __str__(self) -> str:
        return f"{ROLE_NAMES[self.role]} {self.id} (epoch {self.epoch})"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages."""


# ------------------------------------------------------------------ between shards, in numbered streams
class Window(Message, frozen=True, gc=False):
    """Deltas of one shard. Frames: keys, records (the receiver's stripes only; may be empty)."""

    number: Number
    stable: Number
    marks: dict[Number, Number]
    """Watermarks that this window raises: worker -> push, and `cursor_key` of the worker -> its cursor."""
    begins: dict[Number, Number]
    """Classes whose seeding begins before the rows of this window: class -> round."""
    ends: list[Number]
    """Classes whose seeding ends with this window."""
    ack: Number = 0
    """Acknowledges the receiver's windows up to this one."""


class WindowAck(Message, frozen=True, gc=False):
    """Acknowledges windows up to ``number`` where no window goes the other way soon."""

    number: Number


class Stable(Message, frozen=True, gc=False):
    number: Number


class Join(Message, frozen=True, gc=False):
    """First message of a stream. The next window is ``window`` + 1."""

    window: Number
    marks: dict[Number, Number]
    ask: bool
    """The sender has just been restarted: answer with Joined."""


class Joined(Message, frozen=True, gc=False):
    """Classes that the sender, still recovering, wants seeded by the receiver: class -> round."""

    rounds: dict[Number, Number]


class Reseed(Message, frozen=True, gc=False):
    class_id: Number
    round: Number
    since: Number = 0
    """View that began this round. trap: taken before it, rows would be seeded that the view re-initialises."""


class Stripes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some stripes of a class: positions first <= p < last, or, where last is 0, the keys of the first frame."""

    class_id: Number
    first: Number
    last: Number


class Repair(Message, frozen=True, gc=False):
    """The sender asks for its data rows of some stripes. Frames: keys."""

    view: Number
    request: Number
    stripes: Stripes


class CaptureParity(Message, frozen=True, gc=False):
    """Assembler to another parity holder: capture, and ship the capture. Frames: keys."""

    view: Number
    request: Number
    stripes: Stripes
    members: list[int]
    """Data members that will send a MARK."""


class Snap(Message, frozen=True, gc=False):
    """Assembler to a data member: put a MARK in the streams to ``holders``. Frames: keys."""

    view: Number
    request: Number
    stripes: Stripes
    holders: list[int]
    with_rows: bool
    """The assembler wants the member's coded rows."""


class Mark(Message, frozen=True, gc=False):
    """Frames: keys of the stripes asked for, then keys, records: the member's coded rows, for the assembler alone."""

    view: Number
    request: Number
    stripes: Stripes


class Captured(Message, frozen=True, gc=False):
    """A parity holder's capture. Frames: keys, records."""

    view: Number
    request: Number


class Repaired(Message, frozen=True, gc=False):
    """Coded values of the receiver's lost rows; those of the stripes not named are zero.

    Frames: the keys asked for, then keys, records.
    """

    view: Number
    request: Number
    stripes: Stripes


class CorrectParity(Message, frozen=True, gc=False):
    """Some parity rows of the receiver do not fit. Frames: keys, records: what is to be XORed into them.

    That commutes with all deltas that came since the cut at which it was found, and that come.
    """

    view: Number
    request: Number
    class_id: Number


class ParityCorrected(Message, frozen=True, gc=False):
    """It is done."""

    view: Number
    request: Number


# ------------------------------------------------------------------ workers and tools
class Section(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of some tables; the frame with their ids follows in the message's frames."""

    tables: list[int]
    counts: list[int]


class Hello(Message, frozen=True, gc=False):
    """A worker's first message to an incarnation of a shard."""

    worker_epoch: Number


class Welcome(Message, frozen=True, gc=False):
    mark: Number
    durable: Number


class Push(Message, frozen=True, gc=False):
    """Gradients (or, with ``assign``, weights). Frames: rows, values of each section."""

    worker_epoch: Number
    number: Number
    barrier: Number
    """0, or how many workers' pushes of this number are applied as one sum."""
    assign: bool
    sections: list[Section]
    cursor: Number = 0
    """Of the worker with this push done; 0: the push is no part of a leased split."""


class Flush(Message, frozen=True, gc=False):
    """The worker waits for its pushes up to ``number``: they need not wait for more that merges with them."""

    number: Number


class PushAck(Message, frozen=True, gc=False):
    """Pushes up to ``durable`` are applied and on every running peer."""

    durable: Number


class PushRefused(Message, frozen=True, gc=False):
    number: Number
    reason: str


class Pull(Message, frozen=True, gc=False):
    """Frames: rows of each section. Answered when push ``after`` of this worker is applied, before the next one is."""

    request: Number
    after: Number
    records: bool
    sections: list[Section]


class Rows(Message, frozen=True, gc=False):
    """Frames: one of weights (float32) or records a section of the pull."""

    request: Number


class PullRefused(Message, frozen=True, gc=False):
    request: Number
    reason: str


class Scrub(Message, frozen=True, gc=False):
    """A tool asks the first parity holder of a class to compare all parity rows of its stripes with their data rows.

    It is done from a position on, at one cut.
    """

    request: Number
    class_id: Number
    first: Number
    rows_max: Number
    repair: bool = False
    """Parity rows that do not fit are rewritten."""


LOCATED, UNSURE = 0, 1
"""Verdicts of a scrub: the other members of the stripe agree that this one is wrong, or they cannot tell which is."""


class ScrubResult(Message, frozen=True, gc=False):
    """Frames: keys uint64[m] of stripes that do not fit, slots uint8[m] of the member that is wrong, verdicts uint8[m].

    ``last`` is where to go on, ``size`` the class's size.
    """

    request: Number
    class_id: Number
    last: Number
    size: Number
    stripes: Number
    """Touched stripes compared."""
    parity_rows: Number
    """Parity rows compared."""
    bytes_read: Number
    """Of records, on all members."""
    repaired: bool
    """Those of the parity rows named are rewritten; data rows never are."""


class ScrubBusy(Message, frozen=True, gc=False):
    request: Number
    reason: str


# ------------------------------------------------------------------ views, from the scheduler
UP, RECOVERING, DOWN = "up", "recovering", "down"
RESEEDING = "reseeding"
"""It has all its data rows, but its parity rows of re-initialised stripes are seeded anew."""
SEEDED = (RECOVERING, RESEEDING)
"""States in which a shard is seeded."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    shard: int
    epoch: Number
    state: str
    endpoint: str
    reseeding: list[int] = []
    """Classes whose parity is seeded anew."""


class View(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A numbered step of a group's membership. Shards are numbered within the group."""

    number: Number


class Start(View, frozen=True):
    """First view of a member. To a shard it says who it is; to a worker or tool ``shard`` is -1."""

    group: int
    groups: int
    n: int
    shard: int
    epoch: Number
    """The receiver's epoch, be it a shard or a worker."""
    recovering: bool
    window: Number
    """Windows go on from this one + 1."""
    marks: dict[Number, Number]
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


class ShardDown(View, frozen=True):
    shard: int
    epoch: Number


class Settle(View, frozen=True):
    shard: int
    epoch: Number
    window: Number


class ShardUp(View, frozen=True):
    shard: int
    epoch: Number
    endpoint: str
    window: Number
    marks: dict[Number, Number]


class ShardWhole(View, frozen=True):
    shard: int
    epoch: Number


class TableAdded(View, frozen=True):
    table: TableSpec


class WorkerFenced(View, frozen=True):
    """A worker's life is over: nothing is taken from it any more, and its splits are handed on."""

    worker: Number
    epoch: Number


class DataLost(View, frozen=True):
    """More shards are gone than the code can stand."""

    reason: str


class Reinitialise(View, frozen=True):
    """Stripes of these classes cannot be decoded: data rows of theirs that are not there become initial records, and
    their parity is seeded anew from all data members."""

    classes: list[int]
    reason: str
    damaged: list[str] = []
    """Replicated tables (k = 1) among them. A model's dense part is one, and does not work with some of it zero."""


AnyView: TypeAlias = (
    Start | ShardDown | Settle | ShardUp | ShardWhole | TableAdded | WorkerFenced | DataLost | Reinitialise
)


class LostRows(msgspec.Struct, frozen=True, array_like=True):
    """Rows of a table that a shard lost: ``first[i]``, ``first[i] + step``, and so on, to the end of the table."""

    shard: int
    """Over all groups."""
    table: str
    rows: int
    first: list[int]
    """Empty: those that were not yet repaired; only their number is known."""
    step: int


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """What one event cost."""

    at_ms: float
    """Milliseconds of the scheduler host's monotonic clock."""
    group: int
    view: Number
    rows: list[LostRows]
    updates: int
    """Updates (pushes to one shard) that may have been lost in part: all that the shards had applied that lost rows."""
    reinitialised: bool
    """Training went on with these rows at their initial records; else it stopped."""


# ------------------------------------------------------------------ members and the scheduler; any may be lost
class Register(Message, frozen=True):
    """A shard's process asks for a place: a given one, or (shard = -1) any that is free. Repeated until Views come."""

    process: str
    """Random name of this process."""
    endpoint: str
    shard: int


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a survivor has of a dead incarnation: its last window (-1: nothing to say) and the watermarks at it."""

    shard: int
    epoch: Number
    window: NumberOrNone
    marks: dict[Number, Number]


class ShardStatus(Message, frozen=True):
    """A shard's heartbeat. ``view`` confirms all views up to it."""

    process: str
    view: Number
    whole: bool
    reports: list[Report]
    marks: dict[Number, Number]
    durable: dict[Number, Number]
    figures: dict[str, float]
    """For people: rows touched, bytes, rows still to repair, ..."""
    reinitialised: dict[Number, dict[Number, Number]] = {}
    """View -> table -> rows that were not yet repaired and became initial records."""
    missed: list[int] = []
    """Members, by their number in the group, that have acknowledged no window of the sender for `link_timeout_ms`."""


class WorkerStatus(Message, frozen=True):
    """A worker's or tool's heartbeat: the last view it knows of each group (-1: none).

    A process that has no epoch yet sends 0 in its address; the Start views it gets name its epoch.
    """

    process: str
    views: list[NumberOrNone]
    figures: dict[str, float]
    cursor: Number = 0
    """How far its leases are done and durable; a heartbeat renews them all."""


class Views(Message, frozen=True):
    group: int
    views: list[AnyView]


class Fenced(Message, frozen=True):
    """You are not (or no longer) a member; stop."""

    reason: str


class CreateTable(Message, frozen=True):
    request: Number
    table: TableSpec


class TableReady(Message, frozen=True):
    """Every running shard has the table."""

    request: Number
    index: int


class Refused(Message, frozen=True):
    request: Number
    reason: str


class Dataset(msgspec.Struct, frozen=True, array_like=True):
    """What is to be trained on, as the scheduler knows it: examples 0 <= i < end, over all passes, in splits.

    Example i is example ``i % examples`` of pass ``i // examples``; no split goes over the end of a pass.
    """

    name: str
    examples: Number
    """Of one pass."""
    end: Number
    """Of all passes; the last one may end early."""
    split_examples: Number
    """Of a split, at most."""


class LeaseSplit(Message, frozen=True):
    """A worker asks for one more split. Repeated with the same number until it is answered."""

    request: Number
    dataset: Dataset
    cursor: Number
    """As in WorkerStatus."""


class Leased(Message, frozen=True):
    """Examples first <= i < last of the data set are the worker's, under this number."""

    request: Number
    lease: Number
    first: Number
    last: Number


class NoSplit(Message, frozen=True):
    """There is none: all examples are trained on (``finished``), or others still have the rest."""

    request: Number
    finished: bool


class ClusterQuery(Message, frozen=True):
    request: Number


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    at_ms: float
    """Milliseconds of the scheduler host's monotonic clock."""
    event: str
    """down, settled, up, whole, lost"""
    shard: int
    epoch: Number


class ShardFigures(msgspec.Struct, frozen=True):
    shard: int
    epoch: Number
    state: str
    endpoint: str
    silent_ms: float
    marks: dict[Number, Number]
    durable: dict[Number, Number]
    figures: dict[str, float]


class DatasetFigures(msgspec.Struct, frozen=True, array_like=True):
    """How far a data set is."""

    dataset: Dataset
    trained: int
    """Examples whose push is durable on all shards, each counted once."""
    repeated: int
    """Examples of dead workers' batches that some shards had and others had not, and that were leased again."""
    splits: int
    """Leases granted."""
    handed_on: int
    """Of them, those of a split that another life of a worker had begun or held."""
    deaths: int
    """Lives of workers that ended with a lease."""
    leased: int
    """Leases that are out now."""


class ClusterState(Message, frozen=True):
    """Answer to ClusterQuery; shards are numbered over all groups."""

    request: Number
    n: int
    groups: int
    views: list[int]
    shards: list[ShardFigures]
    workers: dict[int, dict[str, float]]
    tables: list[TableSpec]
    history: list[HistoryEntry]
    spares: int
    lost: str
    losses: list[Loss] = []
    """The last ones."""
    rows_reinitialised: int = 0
    """In all losses after which training went on."""
    updates_damaged: int = 0
    """Updates that these losses may have undone in part."""
    datasets: list[DatasetFigures] = []
    fenced: dict[Number, Number] = {}
    """Worker -> newest epoch of it that is over."""


AnyMessage: TypeAlias = (
    Window
    | WindowAck
    | Stable
    | Join
    | Joined
    | Reseed
    | Repair
    | CaptureParity
    | Snap
    | Mark
    | Captured
    | Repaired
    | CorrectParity
    | ParityCorrected
    | Hello
    | Welcome
    | Push
    | Flush
    | PushAck
    | PushRefused
    | Pull
    | Rows
    | PullRefused
    | Scrub
    | ScrubResult
    | ScrubBusy
    | Register
    | ShardStatus
    | WorkerStatus
    | Views
    | Fenced
    | CreateTable
    | TableReady
    | LeaseSplit
    | Leased
    | NoSplit
    | Refused
    | ClusterQuery
    | ClusterState
)
"""Everything that can travel."""

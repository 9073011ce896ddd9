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


NUMBER_MAX = (1 << 62) - 1
"""Of what members count up or compare. A larger one is refused where it is read: counted on, it could not be sent any
more."""

CURSOR_BITS = 32
"""A cursor says how far a worker is in the splits that it leases: number of the lease << CURSOR_BITS, plus the examples
of its split that are done. Leases are numbered over all workers, and a worker takes its own in order, so that its
cursor only rises."""

SPLIT_EXAMPLES_MAX = (1 << CURSOR_BITS) - 1
"""Of a split: those that are done are the lower bits of a cursor."""

LEASES_MAX = NUMBER_MAX >> CURSOR_BITS
"""Leases in a cluster's life: their numbers are the upper bits of a cursor, which travels as a `Number`."""


RUN_BITS = 32
"""Runs are numbered from the generation of the scheduler's state << RUN_BITS on, so that no state that was made again
gives a number that was given before it was lost."""


def cursor_key(worker: int) -> int:
    """Where watermarks have a worker's cursor: beside the number of its last push, and raised with it."""
    return WORKERS_MAX + worker


def pushes_of(marks: dict[int, int]) -> int:
    """How many pushes of all workers watermarks stand for; cursors are none. At most NUMBER_MAX, as the wire takes."""
    return min(NUMBER_MAX, sum(number for worker, number in marks.items() if worker < WORKERS_MAX))


VIEWS_TOLD_MAX = 64
"""Newest views that a member keeps for a scheduler that lost its state: more than copies of that are ever behind."""

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
    """The sender asks for its data rows of some stripes. Frames: keys.

    All messages of a repair name the view in which it was asked for (those of a scrub, in which it began).
    """

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
    too_long: bool = False
    """The rows are left out: so many were touched since the assembler looked that no frame holds them."""


class Captured(Message, frozen=True, gc=False):
    """A parity holder's capture. Frames: keys, records."""

    view: Number
    request: Number
    class_id: Number = 0


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
    class_id: Number = 0


class RepairWanted(Message, frozen=True, gc=False):
    """The one who asked for a repair (of an assembler) or a capture (of a parity holder) still waits for it."""

    view: Number
    request: Number
    class_id: Number


class RepairWorking(Message, frozen=True, gc=False):
    """Answer to RepairWanted: it is being worked on, or ``gone``: it will not come, ask again a little later."""

    view: Number
    request: Number
    class_id: Number
    gone: bool


class Ping(Message, frozen=True, gc=False):
    """Nothing but a sign of life; with ``asks`` it asks for one."""

    asks: bool


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
    """0, or how many workers' pushes are applied as one: those of the same `run` and `sequence`."""
    assign: bool
    sections: list[Section]
    cursor: Number = 0
    """Of the worker with this push done; 0: the push is no part of a leased split."""
    run: Number = 0
    """Of a push with a barrier: the run that the scheduler has given to the workers that take part."""
    sequence: Number = 0
    """Of a push with a barrier: the how manieth of the worker's in this run, from 1. The numbers of its pushes go on
    from its earlier lives, and differ from worker to worker."""
    tables: Number = 0
    """So many tables the worker knows of: a shard that knows of fewer lacks a view."""


class Flush(Message, frozen=True, gc=False):
    """The worker waits for its pushes up to ``number``: they need not wait for more that merges with them."""

    number: Number


class PushAck(Message, frozen=True, gc=False):
    """Pushes up to ``durable`` are applied and on every running peer."""

    durable: Number


class PushRefused(Message, frozen=True, gc=False):
    number: Number
    reason: str
    nowhere: bool = False
    """No shard applies it: all of them decide by the same pushes of a run."""


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


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """A death that is settled and whose place is not taken again."""

    shard: int
    window: int
    marks: dict[Number, Number]
    view: Number
    """That settled it."""
    reinitialised: list[int]
    """Classes whose rows its replacement does not repair."""


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
    cuts: list[Cut] = []
    """Of members that are down and settled; for shards."""


class ShardDown(View, frozen=True):
    shard: int
    epoch: Number


class Settle(View, frozen=True):
    shard: int
    epoch: Number
    window: Number
    marks: dict[Number, Number] = {}
    """The watermarks at the cut: with them a lost state of the scheduler can be made again."""


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


class Configured(View, frozen=True):
    """The limits and timeouts of all members change: the scheduler was started again with others."""

    config: ProtocolConfig


class Adopted(View, frozen=True):
    """The scheduler's state was lost or is an older one, and was made again from what the members told. Views of an
    earlier generation that come after this are of a history that was given up."""

    generation: Number


AnyView: TypeAlias = (
    Start
    | ShardDown
    | Settle
    | ShardUp
    | ShardWhole
    | TableAdded
    | WorkerFenced
    | DataLost
    | Reinitialise
    | Configured
    | Adopted
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
    reached: Number = 0
    """Number of the last `Knock` that came in at the endpoint."""


class Knock(Message, frozen=True):
    """From the scheduler, on a connection that it made, to a process without a place: whoever has this name says the
    number in its next Register. Then others reach it where it says that they do."""

    process: str
    number: Number


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
    late: dict[Number, Number] = {}
    """Member, by its number in the group -> milliseconds for which the sender has waited for it to acknowledge a
    window; from half of `link_timeout_ms` on."""
    unheard: list[int] = []
    """Members of which the sender, which has read all that came, heard nothing for `link_timeout_ms`."""
    broken: list[int] = []
    """Members whose messages the sender cannot follow."""
    prepared: Number = 0
    """Number of the last `PrepareTable` that it has done, or refuses with `refusal`."""
    refusal: str = ""
    heard: dict[Number, Number] = {}
    """Member -> milliseconds since the sender heard of its present incarnation."""
    linked: list[int] = []
    """Members to whose present incarnation the sender's connection is established."""
    severed: list[int] = []
    """Those to which it was established, and is closed."""
    origin: Origin = Origin()
    """What the sender knows of its scheduler."""
    age_ms: Number = 0
    """How long ago all this was so: in the middle of an event that takes long a shard says again what it said last."""


class WorkerStatus(Message, frozen=True):
    """A worker's or tool's heartbeat: the last view it knows of each group (-1: none).

    A process that has no epoch yet sends 0 in its address; the Start views it gets name its epoch.
    """

    process: str
    views: list[NumberOrNone]
    figures: dict[str, float]
    cursor: Number = 0
    """How far its leases are done and durable; a heartbeat renews them all."""
    run: Number = 0
    """Its run, if it has one, and how many of its barriers there are durable on all shards."""
    run_done: Number = 0
    origin: Origin = Origin()
    run_size: Number = 0
    """Workers of that run: a scheduler whose state was lost may not know them."""
    waits: bool = False
    """It waits for the cluster, and is answered (`Suspected`)."""
    unheard: dict[Number, Number] = {}
    """Shard, numbered over all groups, that is said to run -> milliseconds for which it has not answered the sender."""


class Views(Message, frozen=True):
    group: int
    views: list[AnyView]
    origin: Origin = Origin()


class Probe(Message, frozen=True):
    """The scheduler asks a member whether it still hears some others, numbered in the group: its heartbeats say so."""

    shards: list[int]


class Fenced(Message, frozen=True):
    """You are not (or no longer) a member; stop."""

    reason: str
    origin: Origin = Origin()
    """Of the scheduler that says so. A member of another cluster, or one that knows a newer state, goes on."""


def is_my_scheduler(message: "Views | Fenced | StateCopy", known: Origin) -> bool:
    """Whether a member that knows this much takes a message of a scheduler: one of its cluster and of no history that
    was given up; and to end a member it must not know less than that."""
    theirs = message.origin
    if not theirs.is_of(known) or theirs.generation < known.generation:
        return False
    newer = theirs.generation > known.generation or theirs.serial >= known.serial
    return newer or not isinstance(message, Fenced)


class Suspected(Message, frozen=True):
    """To workers and tools, with each heartbeat while it holds: whom they may wait for, and why nobody replaces it. To
    those that wait always, so that they know that the scheduler is there."""

    reasons: dict[Number, str]
    """Shard, numbered over all groups -> why it is suspected, but not declared down."""


class StateCopy(Message, frozen=True):
    """The scheduler's state, for a shard to keep: should it be lost, what members cannot tell is read from here.

    Frames: one, the encoded state, without what members know themselves.
    """

    origin: Origin


class Census(Message, frozen=True):
    """A scheduler whose state is lost or older than its cluster asks a member to tell all that it knows."""


class ShardCensus(Message, frozen=True):
    """Answer of a shard to `Census`. Frames: one, the newest `StateCopy` (empty: it has none)."""

    process: str
    endpoint: str
    origin: Origin
    copied: Number
    """Serial of the copy."""
    start: Start
    """What the sender was started with."""
    views: list[AnyView]
    """The newest that it took, in order."""


class HeldLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Examples first <= i < last of a data set, in the hands of the worker that says so."""

    dataset: "Dataset"
    lease: Number
    first: Number
    last: Number
    request: Number


class WorkerCensus(Message, frozen=True):
    """Answer of a worker to `Census`: its leases that are not done and durable, in order."""

    process: str
    origin: Origin
    cursor: Number
    asked: Number
    """Number of its newest request for a split."""
    leases: list[HeldLease]


class CreateTable(Message, frozen=True):
    request: Number
    table: TableSpec


class TableReady(Message, frozen=True):
    """Every running shard has the table."""

    request: Number
    index: int


class PrepareTable(Message, frozen=True):
    """Reserve what a table needs, without having it; what was reserved before is given back. None: that alone."""

    number: Number
    """A lower one than the last is late, and nothing is done for it."""
    table: TableSpec | None


class Unfit(Message, frozen=True):
    """A process that was given a place cannot take it, and ends."""

    process: str
    reason: str


class Leave(Message, frozen=True):
    """A member's process was told to end. Repeated until it is answered by `Fenced`: it may end."""

    process: str


class LeaveWaits(Message, frozen=True):
    """To a member that asked to leave: data would be lost with it now. It serves on."""

    reason: str


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


class JoinRun(Message, frozen=True):
    """A worker asks for a run of ``size`` workers, numbered 0 to size - 1. Repeated until all have asked for it."""

    request: Number
    size: Number
    run: Number = 0
    """The run that it leaves for it, and how many of its barriers there are durable on all shards."""
    done: Number = 0


class RunJoined(Message, frozen=True):
    """The run has begun; or, with run 0, workers that have not asked for it yet (the first few)."""

    request: Number
    run: Number
    missing: list[Number] = []


class LeaveRun(Message, frozen=True):
    """A worker is done with its run after so many barriers, all durable. Repeated until `RunOver` answers it; silence
    says the same later."""

    run: Number
    done: Number


class RunOver(Message, frozen=True):
    """A worker of the run is gone: no barrier behind ``done`` will be complete. Repeated with each heartbeat."""

    run: Number
    done: Number
    reason: str


WRITTEN, WRITE, WAIT = "written", "write", "wait"
"""Of the first values of a table: it has them; the receiver is to write them; another one does, or has yet to come."""


class InitialiseTable(Message, frozen=True):
    """A worker asks whether a table has its first values. Repeated until it has."""

    request: Number
    table: Number
    claim: bool
    """It would write them; else it waits for one that does."""
    done: bool
    """It has written them, and all is durable."""


class TableInitial(Message, frozen=True):
    request: Number
    table: Number
    state: str
    """`WRITTEN`, `WRITE` or `WAIT`."""


class ClusterQuery(Message, frozen=True):
    request: Number


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """A process without a place."""

    endpoint: str
    wanted: int
    """The shard that it was started for; -1: none."""
    is_spare: bool
    """It takes any place: because it was started so, or because another has the one that it wants."""
    is_reached: bool
    """The scheduler can connect to it; without that it gets no place."""


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    at_ms: float
    """Milliseconds of the scheduler host's monotonic clock."""
    event: str
    """down, settled, up, whole, lost"""
    shard: int
    epoch: Number
    reason: str = ""
    """Why, where that is known: of a death what spoke for it, or the last words of the process."""


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
    suspected: dict[Number, str] = {}
    """Shard -> why it is suspected, but not declared down."""
    waiting: list[Waiting] = []
    """Processes without a place; ``spares`` of them take any."""
    leaving: dict[Number, str] = {}
    """Shard whose process was told to end -> why it serves on."""
    unheard: dict[Number, dict[Number, Number]] = {}
    """Shard -> worker that does not hear it -> for how many milliseconds."""


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
    | Ping
    | RepairWanted
    | RepairWorking
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
    | Knock
    | ShardStatus
    | WorkerStatus
    | Views
    | Probe
    | Suspected
    | Fenced
    | StateCopy
    | Census
    | ShardCensus
    | WorkerCensus
    | CreateTable
    | TableReady
    | LeaseSplit
    | Leased
    | NoSplit
    | JoinRun
    | RunJoined
    | LeaveRun
    | RunOver
    | InitialiseTable
    | TableInitial
    | PrepareTable
    | Unfit
    | Leave
    | LeaveWaits
    | Refused
    | ClusterQuery
    | ClusterState
)
"""Everything that can travel."""

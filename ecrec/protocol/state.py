"""What the scheduler must remember: one blob, written by `Persist` before anything that depends on it is said.

A field that this version does not know is refused: passed over, it would be forgotten with the next write.
"""

import struct

import msgspec

from ecrec._native import crc32c
from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import DOWN
from ecrec.protocol.placement import CodeSpec, Placement, TableSpec
from ecrec.protocol.saved import StateFile
from ecrec.protocol.transitions import ASKED, CHECKPOINT, NO_CHECKPOINT, PLACE, WRITING


class Settlement(msgspec.Struct, forbid_unknown_fields=True):
    """A dead incarnation: what the survivors said, and the cut once it is decided."""

    epoch: int
    reports: dict[str, m.Report] = {}
    """``"shard:epoch"`` of the survivor -> its report."""
    window: int = -1
    watermarks: dict[int, int] = {}
    view: int = -1
    """Number of the Settle view; -1 until decided."""
    reinitialised: list[int] = []
    """Classes whose rows the replacement does not repair, because nobody can."""


class Place(msgspec.Struct, forbid_unknown_fields=True):
    """A shard of a group as the scheduler knows it."""

    epoch: int = 0
    state: str = DOWN
    process: str = ""
    endpoint: str = ""
    start: m.FullView | None = None
    """What its process was, or is to be, started with."""
    reseeding: list[int] = []
    """Classes whose parity on it is seeded anew."""
    weak_since: int = 0
    """View that took from it what it may have reported before: that it is whole."""
    losses_counted: int = 0
    """View of the last loss that it has reported its part of."""
    epochs: int = 0
    """The last epoch that any process was to have, which may have followed the one that has the place in vain."""

    @property
    def next_epoch(self) -> int:
        """trap: streams to a successor that was given up are not begun again, so its epoch is never another's."""
        return max(self.epoch, self.epochs) + 1

    def step(self, happening: str) -> None:
        self.state = PLACE.after(self.state, happening)


class Succeeding(msgspec.Struct, forbid_unknown_fields=True):
    """A process copies a shard that is to leave, and would have this epoch in its place."""

    shard: int
    epoch: int
    process: str
    endpoint: str
    view: int
    """That says so."""
    halts: bool = False
    """The group may have halted: no checkpoint begins."""


class Group(msgspec.Struct, forbid_unknown_fields=True):
    """A coding group: its view, its places and what happened since it started."""

    view: int = 0
    places: list[Place] = []
    views: list[m.AnyView] = []
    settlements: dict[int, Settlement] = {}
    table_views: list[int] = []
    """Number of the view that added each table; 0 for those of before the start."""
    lost: str = ""
    to_reinitialise: list[int] = msgspec.field(default_factory=list, name="doomed")  # as states on disk have it
    """Classes that deaths have left undecodable; they are re-initialised once all deaths are settled."""
    damaged: list[str] = []
    """Replicated tables that lost rows in all copies."""
    adopted: int = 0
    """View that began the present generation; 0 in the first one."""
    succeeding: Succeeding | None = None


# ---------------------------------------------------------------------- what the parts keep
class Lease(msgspec.Struct, forbid_unknown_fields=True):
    """Examples first <= i < last of a data set, in the hands of one life of a worker."""

    number: int
    dataset: int
    first: int
    last: int
    worker: int
    epoch: int
    request: int
    handed_on: bool
    done: int = 0
    """Examples that the worker has said are done and durable. Shards know more."""


class Fence(msgspec.Struct, forbid_unknown_fields=True):
    """A life of a worker that is over and whose splits wait to be handed on."""

    worker: int
    epoch: int
    views: list[int]
    """Number of the view that says so, by group; 0 for a group that has not started."""
    untold: bool = False
    """It had not told its leases after the state was made again: it may have had some that nobody knows."""


class DatasetState(msgspec.Struct, forbid_unknown_fields=True):
    """A data set, and what has become of its examples: next is the first that was never leased."""

    dataset: m.Dataset
    next: int = 0
    returned: list[tuple[int, int]] = []
    """first, last of what is left of dead workers' splits."""
    trained: int = 0
    repeated: int = 0
    splits: int = 0
    handed_on: int = 0
    deaths: int = 0
    restored: bool = False
    """It came from a checkpoint, and nobody has asked for it since: who asks first says anew where it ends."""


class LeaseState(msgspec.Struct, forbid_unknown_fields=True):
    """All of it that must survive a restart of the scheduler."""

    datasets: list[DatasetState] = []
    leases: list[Lease] = []
    """That are out, in order of their numbers."""
    fences: list[Fence] = []
    fenced: dict[int, int] = {}
    """Worker -> newest epoch of it that was fenced."""
    asked: dict[int, tuple[int, int]] = {}
    """Worker -> its epoch and the last request that was granted: one that comes late must not be granted twice."""
    number: int = 0
    """Of the newest lease."""
    unheard: list[int] = []
    """Workers that may hold splits that an adopted state does not list: nobody is given a split until they have told,
    or are given up."""
    known: int = 0
    """Newest lease in a state that was made again: of later ones only their workers know."""

    def is_fenced(self, worker: int, epoch: int) -> bool:
        """Whether this life of a worker is over."""
        return epoch <= self.fenced.get(worker, 0)

    def check(self, groups: int) -> None:
        """Raise ConfigurationError for a state that contradicts itself."""
        known = range(len(self.datasets))
        fine = all(lease.dataset in known and 0 <= lease.first < lease.last for lease in self.leases)
        fine = fine and 0 <= self.number <= m.LEASES_MAX
        if not fine or any(len(fence.views) != groups for fence in self.fences):
            raise ConfigurationError(
                f"scheduler state: {len(self.leases)} leases and {len(self.fences)} fences do not fit "
                f"{len(known)} data sets and {groups} group(s)"
            )


class RunMember(msgspec.Struct, forbid_unknown_fields=True):
    """One life of a worker in a run."""

    epoch: int
    request: int
    gone: bool = False
    """It has left, was started again, or was silent for too long."""


class Run(msgspec.Struct, forbid_unknown_fields=True):
    """A run, with its workers in order."""

    number: int
    members: list[RunMember]
    over: str = ""
    """Why no barrier behind `done` will be complete."""
    done: int = 0


class RunState(msgspec.Struct, forbid_unknown_fields=True):
    """All of it that must survive a restart of the scheduler."""

    runs: list[Run] = []
    number: int = 0
    """Of the newest run."""
    foreign: int = 0
    """Runs up to this one may be of a state that was lost: one that is not listed is taken up as a worker names it."""


class Claim(msgspec.Struct, forbid_unknown_fields=True):
    """One life of a worker writes a table's first values."""

    worker: int
    epoch: int
    views: list[int] = []
    """By group, the view that says that this life is over; none: it is not. What it wrote is half of the table, and
    another one begins anew when all shards have confirmed these views: no push of it can come behind that."""


class InitialState(msgspec.Struct, forbid_unknown_fields=True):
    """All of it that must survive a restart of the scheduler."""

    fresh: list[int] = []
    """Tables whose first values nobody has written to the end, or ever will: most begin with initial records."""
    claims: dict[int, Claim] = {}
    """Table -> who writes them."""
    unsure: list[int] = []
    """Tables whose writer is not known, because the scheduler's state was lost and adopted again (`--adopt`)."""

    def check(self, tables: int, groups: int) -> bool:
        """False for a state that contradicts itself."""
        known = all(0 <= table < tables for table in self.fresh) and set(self.claims) <= set(self.fresh)
        return known and all(len(claim.views) in (0, groups) for claim in self.claims.values())


class Preparing(msgspec.Struct, forbid_unknown_fields=True):
    """A table that shards are to prepare, or will be."""

    number: int
    table: TableSpec


class NewTablesState(msgspec.Struct, forbid_unknown_fields=True):
    """All of it that must survive a restart of the scheduler."""

    queue: list[Preparing] = []
    number: int = 0
    """Of the newest step: a table that is to be prepared, or that what was prepared is to be given back."""
    release: int = 0
    """Number of the last step of that kind."""


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """The last pushes of one life of a worker before a checkpoint."""

    epoch: int
    pushes: dict[int, int]
    """Shard, numbered over all groups -> number of the push."""
    run: int = 0
    sequence: int = 0
    """Of its last push with a barrier in that run."""


class SavingState(msgspec.Struct, forbid_unknown_fields=True):
    """The newest checkpoint: all of it that must survive a restart of the scheduler."""

    number: int = 0
    """Of the newest checkpoint, or of one that somebody has heard of."""
    state: str = NO_CHECKPOINT
    url: str = ""
    time_s: float = 0.0
    told: dict[int, Told] = {}
    """Workers that have told, while it is asked for; then those of the cut."""
    datasets: list[DatasetState] = []
    leases: list[Lease] = []
    fresh: list[int] = []
    """`InitialState.fresh` at the cut."""
    tables: int = 0
    """So many there were at the cut."""
    error: str = ""
    """Why it was given up."""
    complete: m.SavingFigures | None = None
    """The newest one that is complete."""
    incremental: bool = False
    base: int = 0
    """Of the one that is under way: shards need to write only what changed since this one; 0: all."""
    base_crc32c: int = 0
    bytes_per_s: int = 0
    """Of all shards together, as it was asked for; 0: no limit."""
    bases: list[m.CheckpointBase] = []
    """The newest complete one at each of the last URLs, the last one at the end."""
    restorer: int = -1
    """The worker that brings a checkpoint into this cluster; until it is done nobody else may have tables or splits."""
    restored: m.RestoredFrom | None = None
    """The checkpoint that this cluster began with."""
    has_state: bool = False
    """A user's own state is to be a part of the checkpoint,"""
    state_file: StateFile | None = None
    """and is written."""

    def step(self, happening: str) -> None:
        self.state = CHECKPOINT.after(self.state, happening)

    @property
    def is_active(self) -> bool:
        """It is under way."""
        return self.state in (ASKED, WRITING)


# ---------------------------------------------------------------------- all of it
class State(msgspec.Struct, forbid_unknown_fields=True):
    """All that must survive a restart of the scheduler."""

    n: int
    groups: list[Group]
    tables: list[TableSpec] = []
    workers: dict[int, tuple[int, str]] = {}
    """Worker -> its epoch and process."""
    history: list[m.HistoryEntry] = []
    losses: list[m.Loss] = []
    rows_reinitialised: int = 0
    """In all losses, those no longer kept included."""
    updates_damaged: int = 0
    """The same of `Loss.updates`."""
    leases: LeaseState = msgspec.field(default_factory=LeaseState)
    runs: RunState = msgspec.field(default_factory=RunState)
    initial: InitialState = msgspec.field(default_factory=InitialState)
    new_tables: NewTablesState = msgspec.field(default_factory=NewTablesState)
    saving: SavingState = msgspec.field(default_factory=SavingState)
    claims: dict[int, list[tuple[int, str]]] = {}
    """Worker -> the epochs that its last processes were given. One counts from the first message that names it."""
    cluster: str = ""
    """Random name, given when the state is made. Members of a cluster with another one are not this scheduler's."""
    generation: int = 0
    """Counts the adoptions."""
    serial: int = 0
    """Counts the states that were persisted. Members keep the highest that they heard of: a state with a lower one is
    older than its cluster."""
    config: ProtocolConfig | None = None
    """What the members were told; None in a state of before it was kept."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode
_CHECKSUM = struct.Struct("<I")


def with_checksum(body: bytes) -> bytes:
    """Bytes as they are stored: with their CRC-32C behind them."""
    return body + _CHECKSUM.pack(crc32c(body))


def without_checksum(data: bytes | memoryview) -> bytes:
    """The bytes that were stored. ConfigurationError if what is there is anything else."""
    body = bytes(data[: -_CHECKSUM.size])
    if with_checksum(body) != data:
        raise ConfigurationError(
            f"scheduler state: damaged, or not written by this version of ecrec: the checksum of its {len(data)} bytes "
            "is wrong; start with a copy that is newer than all that happened since, or without one and with --adopt, "
            "which makes the state again from what the members tell"
        )
    return body


def encode_state(state: State) -> bytes:
    """The state as it is stored."""
    return with_checksum(_encode(state))


def read_state(data: bytes | memoryview) -> State:
    """A state that was persisted. ConfigurationError for bytes that are none, or that contradict themselves."""
    body = without_checksum(data)
    try:
        state = _decode(body)
        placement = Placement(state.n)
        for table in state.tables:
            placement.add(table.code)
    except (msgspec.MsgspecError, UnicodeDecodeError, ConfigurationError) as error:
        raise ConfigurationError(f"scheduler state: not written by this version of ecrec: {error}") from error
    for number, group in enumerate(state.groups):
        tables = len(group.table_views) == len(state.tables) or not group.view
        settlements = all(0 <= shard < state.n for shard in group.settlements)
        if len(group.places) != state.n or not tables or not settlements or group.view < 0:
            raise ConfigurationError(
                f"scheduler state: group {number} has {len(group.places)} places, {len(group.table_views)} table views "
                f"and settlements of {sorted(group.settlements)}; expected {state.n}, {len(state.tables)} and shards"
            )
    if not state.initial.check(len(state.tables), len(state.groups)):
        raise ConfigurationError(f"scheduler state: first values of tables that are not there: {state.initial.fresh}")
    state.leases.check(len(state.groups))
    if state.saving.state not in (NO_CHECKPOINT, *CHECKPOINT.steps.values()):
        raise ConfigurationError(f"scheduler state: a checkpoint is {state.saving.state[:40]!r}, which is no state")
    return state


def encode_copy(state: State) -> bytes:
    """The state without what members know better or need not know: for shards to keep (`StateCopy`)."""
    groups = [
        msgspec.structs.replace(
            group,
            views=group.views[-m.VIEWS_TOLD_MAX :],
            places=[msgspec.structs.replace(place, start=None) for place in group.places],
        )
        for group in state.groups
    ]
    return encode_state(msgspec.structs.replace(state, groups=groups, history=[]))


def leave_initial(group: Group, placement: Placement, code: CodeSpec) -> None:
    """Rows of a new code on shards that are down are initial ones: there is nothing to repair, nor to wait for."""
    for shard, settlement in group.settlements.items():
        classes = [c for c in placement.data_classes(shard) if placement.code_of(c) == code]
        settlement.reinitialised = sorted({*settlement.reinitialised, *classes})


def members_of(group: Group) -> list[m.Member]:
    """The members of a group, as its views name them."""
    return [m.Member(i, p.epoch, p.state, p.endpoint, list(p.reseeding)) for i, p in enumerate(group.places)]

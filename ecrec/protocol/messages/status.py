"""What people are told of a cluster."""

import msgspec

from ecrec.protocol.messages.checkpoints import CheckpointBase, RestoredFrom, SavingFigures
from ecrec.protocol.messages.common import Message, Number
from ecrec.protocol.messages.leases import Dataset
from ecrec.protocol.placement import TableSpec


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


class ClusterQuery(Message, frozen=True):
    request: Number


class StoryQuery(Message, frozen=True):
    """A tool asks a shard or the scheduler what it went through last."""

    request: Number


class StoryEvent(msgspec.Struct, frozen=True, array_like=True):
    before_ms: float
    """Before it was asked."""
    text: str


class StoryTold(Message, frozen=True):
    """Answer to StoryQuery; the oldest event first."""

    request: Number
    process: str
    events: list[StoryEvent]


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """A process without a place."""

    endpoint: str
    wanted: int
    """The shard that it was started for; -1: none."""
    is_spare: bool
    """It takes any place: because it was started so, or because another has the one that it wants."""
    is_reached: bool
    """The scheduler can connect to it; without that it gets no place."""
    process: str = ""


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    at_ms: float
    """Milliseconds of the scheduler host's monotonic clock."""
    event: str
    """down, settled, up, whole, lost, reinitialised, handed over"""
    shard: int
    epoch: Number
    reason: str = ""
    """Why, where that is known: of a death what spoke for it, or the last words of the process."""
    since_ms: float = -1.0
    """Of ``down``: when the shard was last heard. Of ``whole``: when the shard had all rows, and lacked only parity.
    -1: not known."""


class ShardFigures(msgspec.Struct, frozen=True):
    shard: int
    epoch: Number
    state: str
    endpoint: str
    silent_ms: float
    watermarks: dict[Number, Number]
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
    saving: SavingFigures | None = None
    """The newest checkpoint."""
    saved: SavingFigures | None = None
    """The newest one that is complete."""
    cluster: str = ""
    """Its random name, which its checkpoints have."""
    restored: RestoredFrom | None = None
    """The checkpoint that it began with."""
    bases: list[CheckpointBase] = []
    """By URL, the newest ones that are complete."""
    now_ms: float = -1.0
    """The scheduler host's monotonic clock, by which ``history`` and ``losses`` are dated."""

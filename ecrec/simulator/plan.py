"""A plan: everything that is decided before a run. ``draw.py`` makes one of a seed, ``minimise.py`` makes one smaller.

Plans are data: `Plan.to_json` and `plan_from_json` keep them in files, so that a failure outlives changes of what a
seed means.
"""

from dataclasses import dataclass, replace

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import TableSpec

SINGLE, ASYNC, BARRIER = "single", "async", "barrier"

FAULTS = (
    "crash", "massacre", "pause", "stall", "slow-pair", "slow-shard", "partition", "clock", "scheduler", "worker",
    "worker-stall",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """Delays in milliseconds; rates are probabilities a message, of the lossy links (all but shard to shard) alone."""

    delay_min_ms: float
    delay_max_ms: float
    lag_rate: float
    """Share of the links that lag behind all the time: what is sent at once then arrives in very different order."""
    lag_max_ms: float
    views_lag_rate: float
    """Share of the messages with views that are held up on their way: others learn of a view much earlier."""
    views_lag_max_ms: float
    straggle_rate: float
    straggle_max_ms: float
    loss_rate: float
    repeat_rate: float
    outage_rate: float
    outage_max_ms: float
    cut_on_disconnect: bool
    """The transport drops what comes from an incarnation after Disconnect; else the machine has to."""
    streams: bool
    """Shards talk through the real streams over lossy links, not through ideal channels."""


@dataclass(frozen=True)
class Fault:
    """It strikes at ``at_ms`` after the tables are there, or at the delivery of the ``count``-th ``message`` ("any": of
    any kind), or when the ``count``-th view of that name is decided; at a Start, before the newcomer says anything.

    With ``since`` they are counted anew from each view of that name: it strikes in the middle of a recovery.
    """

    kind: str
    """One of `FAULTS`."""
    at_ms: float = 0.0
    message: str = ""
    count: int = 0
    since: str = ""
    side: str = ""
    """Whom a crash at a message hits (sender, receiver, other); of a partition, what is cut off (peers, worker,
    from-scheduler, to-scheduler); of a clock, whose it is (scheduler, member)."""
    burst: int = 1
    """Shards that crash together, as far as the code stands it."""
    lasts_ms: float = 0.0
    """How long a pause, a slow link, a partition or the scheduler's absence lasts; until a replacement process comes;
    how far a clock jumps."""
    noticed: bool = True
    """The scheduler sees the connection close; else only the heartbeats stop."""
    prefer_recovering: bool = False
    beyond: bool = False
    """It also hits where the code does not stand it."""


@dataclass(frozen=True)
class Operation:
    """What a worker does next: ``push``, ``assign`` or ``pull``, of rows[i] of table i."""

    kind: str
    rows: tuple[tuple[int, ...], ...]
    value_seed: int
    think_ms: float
    records: bool = False
    split: bool = False
    """Two sections where one would do."""


@dataclass(frozen=True)
class LeasePlan:
    """Examples of all passes, and how they are dealt out."""

    dataset: m.Dataset
    batch: int
    timeout_ms: int


@dataclass(frozen=True)
class Plan:
    """Everything that a seed decides before the run. Two runs of one plan are equal, event for event.

    A field that is added later needs a default, so that plans that were kept can still be read.
    """

    seed: int
    mode: str
    n: int
    groups: int
    tables: tuple[TableSpec, ...]
    late_tables: int
    """So many of the last tables are created in the middle of the run."""
    config: ProtocolConfig
    network: Network
    tick_ms: float
    spares: int
    named: bool
    """Every process asks for the place it had; else any process takes any place."""
    workers: int
    operations: tuple[tuple[Operation, ...], ...]
    saves_ms: float
    """For so long after the tables are there workers save two thirds of their operations for recoveries."""
    faults: tuple[Fault, ...]
    scrubs_ms: tuple[float, ...]
    """When a tool begins to scrub the running cluster, after the tables are there."""
    too_many: bool
    """More shards may be lost than the code can stand."""
    validate: bool
    """Machines check their invariants after every event."""
    leases: LeasePlan | None = None
    """Workers lease what they push; else each has operations of its own."""

    @property
    def tolerance(self) -> int:
        return min(table.code.r for table in self.tables)

    @property
    def deterministic(self) -> bool:
        """The final bytes do not depend on the schedule."""
        return self.mode != ASYNC

    def without_faults(self) -> "Plan":
        """The twin: the same cluster and workload where nothing goes wrong."""
        quiet = replace(
            self.network, lag_rate=0.0, views_lag_rate=0.0, straggle_rate=0.0, loss_rate=0.0, repeat_rate=0.0,
            outage_rate=0.0, delay_max_ms=1.0, delay_min_ms=0.5,
        )  # fmt: skip
        return replace(self, network=quiet, faults=(), saves_ms=0.0, scrubs_ms=(), too_many=False)

    @property
    def events(self) -> int:
        """How much happens in it, for people and for `minimise`: faults, and operations of the workers."""
        return len(self.faults) + sum(map(len, self.operations))

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    def describe(self) -> str:
        codes = ", ".join(
            f"{t.name} {t.rows}x{t.dim} {t.code} {t.code.generator} {t.optimizer.name}" for t in self.tables
        )
        leases = " with leases" if self.leases else ""
        return (
            f"{self.mode}, {self.groups} x {self.n} shards, {self.workers} workers{leases}, tables [{codes}], "
            f"{len(self.faults)} faults, {self.spares} spares{', more than r deaths' if self.too_many else ''}"
        )


def plan_from_json(data: bytes) -> Plan:
    """A plan that was kept. Raises msgspec.ValidationError for one of another version of the simulator."""
    return msgspec.json.decode(data, type=Plan)

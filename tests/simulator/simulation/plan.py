"""A plan: everything that is decided before a run. ``draw.py`` makes one of a seed, ``minimise.py`` makes one smaller.

Plans are data: `Plan.to_json` and `plan_from_json` keep them in files, so that a failure outlives changes of what a
seed means.
"""

from dataclasses import dataclass, field, replace

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import TableSpec

SINGLE, ASYNC, BARRIER = "single", "async", "barrier"

PAUSE = "Pause"
"""What a fault at a message names to strike in the middle of an event, in a pause of the work of a shard."""

FAULTS = (
    "crash", "massacre", "pause", "stall", "slow-pair", "slow-shard", "partition", "clock", "scheduler", "worker",
    "worker-stall", "disconnect", "deaf", "copy", "flip-parity", "depose", "old-state", "lost-state", "torn-state",
    "worker-twice", "isolate", "silence", "slow-reader", "leave", "stay", "successor",
    "stranger",
)  # fmt: skip

LOST_STATES = ("old-state", "lost-state", "torn-state")
"""Of these, faults that start a scheduler without what it had persisted last."""


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
    """The node carries out Disconnect, and drops what comes from that incarnation; else the machine has to."""
    streams: bool
    """Links between shards break too, and their streams send again; else these links lose nothing."""
    flip_rate: float = 0.0
    """Share of the messages between shards, with streams, of which a bit flips in flight."""


@dataclass(frozen=True)
class Fault:
    """It strikes at ``at_ms`` after the tables are there, or at the delivery of the ``count``-th ``message`` ("any": of
    any kind), or when the ``count``-th view of that name is decided; at a FullView, before the newcomer says anything.

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
    """Shards that crash together, as far as the code tolerates it; whose connections close together; that are silenced
    together, at least one more than the code tolerates; that are told to end together, as many as it says."""
    lasts_ms: float = 0.0
    """How long a pause, a slow link, a partition or the scheduler's absence lasts; until a replacement process comes;
    how far a clock jumps."""
    noticed: bool = True
    """The scheduler sees the connection close; else only the heartbeats stop."""
    prefer_recovering: bool = False
    beyond: bool = False
    """It also hits where the code does not tolerate it."""


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
    bulk: int = 0
    """At most so many distinct rows of each table besides, drawn from ``value_seed`` when it is done."""


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
    """More shards may be lost than the code tolerates."""
    validate: bool
    """Machines check all their invariants after every event; else after some (`cluster.VALIDATE_EVERY`)."""
    leases: LeasePlan | None = None
    """Workers lease what they push; else each has operations of its own."""
    runs: tuple[int, ...] = ()
    """With barriers: numbers of workers of runs, one after another, between which the operations are divided; none: one
    run of all."""

    initialise: bool = False
    """Workers write first values of the replicated tables, as a session does, before they do anything else."""
    tuning: dict[str, int] = field(default_factory=dict)
    """Thresholds of the native store that are not at their defaults."""
    threads: int = 1
    """Of the native store."""
    broken: str = ""
    """What stays broken when all other faults stop, while the rest must go on: ``shards`` (as many dead as the code
    stands), ``worker`` (one is dead), ``links`` (those of one shard break and lose)."""
    persist_ms: float = 0.0
    """A scheduler's state is on stable storage after so long at most."""
    refusals: bool = False
    """Workers also ask for tables and splits that the scheduler refuses, and for more pulls than shards let wait."""
    terms: bool = False
    """Schedulers stand by for each other: each has a term."""
    rates: bool = False
    """Pushes take steps at other learning rates than their tables'."""
    checkpoints_ms: tuple[float, ...] = ()
    """When workers ask for checkpoints, after the tables are there."""
    states: bool = False
    """Every second of them has a state of the worker's own."""
    increments: bool = False
    """They are to have only what changed since the last one."""
    storage_ms: float = 0.0
    """A file of a checkpoint is written after so long at most,"""
    storage_error_rate: float = 0.0
    """or is not."""
    yields: bool = False
    """A process of a worker takes no place of one that lives: one that is started again waits until the one before is
    silent for long enough."""
    pause_ms: float = 0.0
    """From one pause to the next in the long work of a shard so much time passes."""

    @property
    def tolerance(self) -> int:
        """How many shards a group can lose without rows that have parity."""
        return min((table.code.r for table in self.tables if table.code.r), default=0)

    @property
    def deterministic(self) -> bool:
        """The final bytes do not depend on the schedule."""
        if self.mode == BARRIER and any(fault.kind in ("worker", "worker-stall") for fault in self.faults):
            return False  # of the last barrier before a death some shards had all pushes, and others not
        return self.mode != ASYNC

    def worker_runs(self) -> tuple[int, ...]:
        """Numbers of workers of the runs."""
        return self.runs or (self.workers,)

    def operations_of_run(self, run: int) -> range:
        """Which operations are a run's."""
        count, runs = max(map(len, self.operations)), len(self.worker_runs())
        return range(count * run // runs, count * (run + 1) // runs)

    def without_faults(self) -> "Plan":
        """The twin: the same cluster and workload where nothing goes wrong."""
        quiet = replace(
            self.network, lag_rate=0.0, views_lag_rate=0.0, straggle_rate=0.0, loss_rate=0.0, repeat_rate=0.0,
            outage_rate=0.0, flip_rate=0.0, delay_max_ms=1.0, delay_min_ms=0.5,
        )  # fmt: skip
        return replace(self, network=quiet, faults=(), saves_ms=0.0, scrubs_ms=(), too_many=False,
            broken="", persist_ms=0.0, pause_ms=0.0, checkpoints_ms=(),
        )  # fmt: skip

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

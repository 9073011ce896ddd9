"""A worker (or tool) as a sans-I/O machine: numbered pushes, exact pulls, and shards that die.

A worker holds nothing that cannot be lost. What it does hold is every push that is not yet durable and
every pull that is not yet answered, per shard and in the order in which they were made; whenever a shard
may not have them (a new incarnation, a silence), they are sent again in that order (docs/protocol.md).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ecrec.errors import RefusedError, WireError
from ecrec.protocol import arrays, wire
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Disconnect,
    Effect,
    Event,
    Failed,
    Note,
    PullDone,
    PullFailed,
    Received,
    Send,
    Tick,
    half_handled,
)
from ecrec.protocol.leases import LEASES_AHEAD_MAX
from ecrec.protocol.messages import (
    CURSOR_BITS,
    DOWN,
    SCHEDULER,
    SCHEDULER_ADDRESS,
    SHARD,
    WAIT,
    WORKER,
    WORKERS_MAX,
    WRITTEN,
    Address,
    Adopted,
    Census,
    Configured,
    CreateTable,
    DataLost,
    Dataset,
    Fenced,
    Flush,
    Frames,
    HeldLease,
    Hello,
    InitialiseTable,
    JoinRun,
    Leased,
    LeaseSplit,
    LeaveRun,
    Message,
    NoSplit,
    Origin,
    Pull,
    PullRefused,
    Push,
    PushAck,
    PushRefused,
    Refused,
    Reinitialise,
    Rows,
    RunJoined,
    RunOver,
    Section,
    Settle,
    ShardDown,
    ShardUp,
    ShardWhole,
    Start,
    Suspected,
    TableAdded,
    TableInitial,
    TableReady,
    View,
    Views,
    Welcome,
    WorkerCensus,
    WorkerFenced,
    WorkerStatus,
    is_my_scheduler,
)
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, TABLES_MAX, TableSpec
from ecrec.protocol.requests import Requests, SectionsAndFrames

RESEND_BACKOFF_MAX = 8
"""A shard that stays silent is sent things again ever more slowly, down to once in resend_ms times this: everything at
first, then the oldest request alone, so that copies do not pile up before a shard that hangs."""

ASKS_IN_TIMEOUT = 4
"""How often a shard that says nothing is asked for a sign of life within `heartbeat_timeout_ms`."""

GROUPS_MAX = 1 << 16
"""More coding groups than there are workers for; bounds what a damaged view can cost."""


class _Kept(NamedTuple):
    """A push or pull that its shard has not answered; the message itself is made when it is sent."""

    push: int
    """Number of the push; 0 for a pull."""
    request: int
    """Request (= ticket) of the pull; 0 for a push."""
    after: int
    barrier: int
    flag: bool
    """``assign`` of a push, ``records`` of a pull."""
    sections: list[Section]
    frames: Frames
    cursor: int = 0
    run: int = 0
    sequence: int = 0
    push_bytes: int = 0
    """Of the frames of a push; 0 for a pull."""


class _Shard:
    """What the worker knows of one shard, over all its incarnations."""

    def __init__(self) -> None:
        self.epoch = -1
        self.endpoint = ""
        self.connected = False
        self.welcomed = False
        """The watermark of this worker's life is known: numbers can be given."""
        self.greeted = False
        """The present incarnation may be sent pushes and pulls."""
        self.base = 0
        """Pushes of this worker's earlier lives."""
        self.pushed = 0
        self.acked = 0
        self.kept: list[_Kept] = []
        self.quiet_ms = 0.0
        """Time without an answer to the oldest request kept."""
        self.patience = 1
        self.down_ms: float | None = None
        """Since when no incarnation runs, as far as is known here."""
        self.unheard_ms = 0.0
        """Time without any word of it, while it is asked for one."""
        self.asked_ms = 0.0
        """The same since it was last asked."""
        self.heard = False
        """It was heard since somebody waits."""

    def ask_anew(self) -> None:
        """What it said before is no sign of life; it is asked for one at once."""
        self.unheard_ms, self.asked_ms, self.heard = 0.0, float("inf"), False


class SplitLease(NamedTuple):
    """Examples first <= i < last of a data set, leased to this worker."""

    lease: int
    first: int
    last: int


class _Ticket:
    """A pull: who was asked, what came."""

    def __init__(self, shards: Sequence[int], exact: bool, of: str) -> None:
        self.shards = tuple(shards)
        self.exact = exact
        self.of = of
        """Its tables, for people."""
        self.answers: dict[int, Frames] = {}


class ClientMachine:
    """The protocol of one worker's (or tool's) process.

    ``worker`` is its number among the workers; ``process`` a random name of this life of it. Shards are
    numbered over all groups: group * n + number in the group. Tools (``role=TOOL``) pull and create tables,
    but never push, and so say no Hello and have no watermark.

    **What a refusal ends.** That of a *request* concerns the request alone: nothing of it was done, all else goes on,
    and it may be made again, also with other properties:

    - a table (`table_refusals`), a split (`split_refusal`), a run (`run_refusal`), first values (`initial_refusals`),
      refused by the scheduler;
    - a pull that a shard refuses (`PullFailed`): too many wait, or the answer cannot be sent;
    - whatever is refused here, before anything is sent (RefusedError or GradientError of the call): all that shards
      check of the content of a push or pull.

    The *session* ends (`failed`, and `Failed`) where pushes could no longer be applied exactly once and in order.
    ``failed_kind`` is then

    - ``part``: a shard refused its part of a push, which others may have applied; a later push cannot skip it. Only
      limits that change while it is in flight, and a barrier whose workers push very different rows, lead to it;
    - ``refused``: workers of a run made pushes that contradict each other, which are applied nowhere;
    - ``run``: the run is over, and a push was made whose partners will never come;
    - ``lost``: data was lost;
    - ``fenced``: another process is this worker now, or it was given up;
    - ``watermark``: pushes that were acknowledged are gone, or somebody else pushes in this worker's name.
    """

    def __init__(self, worker: int, process: str, role: int = WORKER, config: ProtocolConfig | None = None) -> None:
        self.worker = worker
        self.process = process
        self.role = role
        self.config = config or ProtocolConfig()
        """Replaced by the scheduler's."""
        self.epoch = 0
        self.n = 0
        self.groups = 0
        self.tables: dict[str, tuple[int, TableSpec]] = {}
        """Name -> (index, spec); a table may be used when `table_ready` says so."""
        self.failed = ""
        """Why the worker cannot go on; empty while it can."""
        self.failed_kind = ""
        """Which kind of failure it is; see above."""
        self._acting = False
        """The event has passed its checks, and the state moves."""
        self.table_refusals: dict[str, str] = {}
        """Name -> why the scheduler refused the table that was last asked for under it."""
        self.split_refusal = ""
        """Why it refused the split that was last asked for; empty if it did not."""
        self.run_refusal = ""
        """The same of a run."""
        self.initial_refusals: dict[int, str] = {}
        """Table -> why it would not say whether the table has its first values."""
        self.damaged: set[str] = set()
        """Replicated tables of which rows were lost in all copies, and begin anew."""
        self.figures: dict[str, float] = {}
        """Sent to the scheduler with each heartbeat, for people."""
        self.first_rows: dict[tuple[int, int], float] = {}
        """(shard, epoch) -> milliseconds at which that incarnation first answered a pull."""
        self._views: list[int] = [-1]
        self._tables_seen: list[int] = [0]
        self._started: set[int] = set()
        self._shards: dict[int, _Shard] = {}
        self._kept_bytes = 0
        """Of the pushes that shards have not acknowledged as durable."""
        self._requests = 0
        self._tickets: dict[int, _Ticket] = {}
        self._creating: dict[str, tuple[int, TableSpec]] = {}
        self._created: set[str] = set()
        self._checks: Requests | None = None
        """Made anew when a table or a limit changes."""
        self.cursor = 0
        """How far the leases are done, and durable on all shards."""
        self.finished: set[Dataset] = set()
        """Data sets whose examples are all trained on."""
        self.leases: deque[SplitLease] = deque()
        """Leases whose examples are not all pushed, in order."""
        self._newest_lease = 0
        self._leased_done = 0
        """Examples of the first of them that are pushed."""
        self.split_answers = 0
        """How often the scheduler has answered `lease`, be it with nothing."""
        self._asking: tuple[int, Dataset] | None = None
        self._asking_ms = 0.0
        self._answered = 0
        """Number of the newest request for a split that was answered."""
        self._held: deque[HeldLease] = deque()
        """Leases whose examples are not all durable, in order: what a scheduler that lost its state is told."""
        self.origin = Origin()
        """What is known of the scheduler."""
        self._pushes = 0
        self._cursors: deque[tuple[int, int]] = deque()
        """(number of pushes of this life, cursor after them), as long as they are not durable."""
        self.run = 0
        """The run in which pushes with a barrier are made; 0: none yet."""
        self.run_size = 0
        self.run_missing: list[int] = []
        """Workers that have not asked for the run that this one waits for: the first few."""
        self._run_pushes = 0
        """Pushes made in the run,"""
        self._run_done = 0
        """and those of them that are durable on all shards."""
        self._run_over: tuple[int, str] | None = None
        """How many of them can be complete at all, and why no more."""
        self._joining: tuple[int, int] | None = None
        """Request, size."""
        self._joining_ms = 0.0
        self._initial: dict[int, str] = {}
        """Table -> what the scheduler last said of its first values."""
        self._initialising: dict[int, InitialiseTable] = {}
        """Table -> the question that is repeated."""
        self._initialising_ms = 0.0
        self._barriers: deque[tuple[int, int]] = deque()
        """(number of pushes of this life, pushes of the run among them), as long as they are not durable."""
        self._leaving: LeaveRun | None = None
        self._left_run = (0, 0)
        """The run that is left for the one that is asked for."""
        self._suspected: tuple[float, dict[int, str]] = (-1e18, {})
        """When the scheduler last said whom it suspects and does not replace, and why."""
        self._asked_ms = 0.0
        self._waits = False
        self._scheduler_ms: float | None = None
        """When the scheduler was last heard."""
        self._now_ms: float | None = None
        self._heartbeat_ms: float | None = None

    # ------------------------------------------------------------------ what a session may ask
    @property
    def address(self) -> Address:
        """Own address; the epoch is 0 until the scheduler has named one."""
        return Address(self.role, self.worker, self.epoch)

    @property
    def ready(self) -> bool:
        """All groups' members are known and every shard has told its watermark."""
        return (
            0 < self.groups == len(self._started)
            and len(self._shards) == self.n * self.groups
            and all(shard.welcomed for shard in self._shards.values())
        )

    @property
    def shards(self) -> int:
        """Number of shards of all groups (0 until known)."""
        return self.n * self.groups

    @property
    def acked(self) -> dict[int, int]:
        """Highest push of this worker that each shard acknowledged as durable."""
        return {number: shard.acked for number, shard in sorted(self._shards.items())}

    @property
    def pushed(self) -> dict[int, int]:
        """Highest push sent to each shard."""
        return {number: shard.pushed for number, shard in sorted(self._shards.items())}

    @property
    def durable(self) -> bool:
        """Every push is durable on every shard."""
        return all(shard.acked >= shard.pushed for shard in self._shards.values())

    @property
    def can_push(self) -> bool:
        """False before `ready`, while too many pushes or bytes of them are unacknowledged, or an exact pull is open."""
        return not self._why_no_push()

    def epoch_of(self, shard: int) -> int:
        """Epoch of the newest incarnation heard of."""
        return self._shards[shard].epoch

    def down(self) -> dict[int, float]:
        """Shards that have no running incarnation -> for how many milliseconds that is known."""
        now_ms = self._now_ms or 0.0
        gone = ((number, shard) for number, shard in sorted(self._shards.items()) if not shard.connected)
        return {number: now_ms - (now_ms if s.down_ms is None else s.down_ms) for number, s in gone}

    def endpoint_of(self, shard: int) -> str:
        """Where its newest incarnation is, or was; empty if that is not known."""
        return self._shards[shard].endpoint if shard in self._shards else ""

    def wait(self, waits: bool) -> None:
        """Whether somebody waits: meanwhile all shards are asked for signs of life, and the scheduler answers."""
        if waits != self._waits:
            self._waits = waits
            for shard in self._shards.values():
                shard.ask_anew()

    @property
    def waits(self) -> bool:
        """Somebody waits for it."""
        return self._waits

    def unheard(self, least_ms: float) -> dict[int, float]:
        """Running shards that have been silent for at least ``least_ms`` during a wait -> for how many milliseconds."""
        running = ((number, shard) for number, shard in sorted(self._shards.items()) if shard.connected)
        return {number: s.unheard_ms for number, s in running if self._waits and s.unheard_ms >= least_ms}

    @property
    def all_heard(self) -> bool:
        """All shards run, and were heard since somebody waits."""
        return all(shard.connected and shard.heard for shard in self._shards.values())

    def unanswered(self) -> list[int]:
        """Shards that have not answered all that they were asked."""
        return [number for number, shard in sorted(self._shards.items()) if shard.kept or not shard.welcomed]

    @property
    def scheduler_silent_ms(self) -> float | None:
        """Since the scheduler was last heard; None if it never was. While nobody waits it has little to say."""
        return None if self._scheduler_ms is None else (self._now_ms or 0.0) - self._scheduler_ms

    def suspected(self) -> dict[int, str]:
        """Shards that the scheduler suspects, and does not replace because data would be lost -> why."""
        said_ms, reasons = self._suspected
        return reasons if (self._now_ms or 0.0) - said_ms <= 10 * self.config.heartbeat_ms else {}

    def table_ready(self, name: str) -> bool:
        """Every running shard has the table."""
        return name in self._created

    def creating(self, name: str) -> bool:
        """A table is asked for under this name, and the scheduler has neither made nor refused it."""
        return name in self._creating

    # ------------------------------------------------------------------ requests
    def create_table(self, spec: TableSpec) -> list[Effect]:
        """Ask for a table, repeatedly until it is there (`table_ready`) or refused (`table_refusals`).

        One that is there with an equal spec is taken. Raises RefusedError for a spec that no message can hold.
        """
        request = CreateTable(self._requests + 1, spec)
        _check_sendable(request, f"table {spec.name!r}")
        known = self._creating.get(spec.name)
        if known is not None and known[1] == spec:
            return []
        self._creating.pop(spec.name, None)
        self.table_refusals.pop(spec.name, None)
        if spec.name in self._created and self.tables[spec.name][1] == spec:
            return []
        self._requests += 1
        self._creating[spec.name] = (self._requests, spec)
        return [Send(SCHEDULER_ADDRESS, request)]

    def lease(self, dataset: Dataset) -> list[Effect]:
        """Ask for one more split, repeatedly until it is there (`leases`), refused (`split_refusal`), or there is none
        left (`finished`).

        Raises RuntimeError while an earlier split is still asked for; RefusedError for a data set that no message can
        hold, and while this worker holds as many splits as the scheduler gives to one.
        """
        if self._asking is not None:
            raise RuntimeError(f"worker {self.worker} already waits for a split of {self._asking[1].name!r}")
        held_max = self.config.pushes_in_flight_max + LEASES_AHEAD_MAX
        if len(self._held) >= held_max:
            # trap: refused by the scheduler, a late copy of the request could be granted, and nobody would know
            raise RefusedError(f"worker {self.worker} holds {held_max} splits: train on them first")
        _check_sendable(LeaseSplit(self._requests + 1, dataset, self.cursor), f"data set {dataset.name!r}")
        self._requests += 1
        self._asking, self._asking_ms, self.split_refusal = (self._requests, dataset), 0.0, ""
        return [Send(SCHEDULER_ADDRESS, LeaseSplit(*self._asking, self.cursor))]

    @property
    def examples_left(self) -> int | None:
        """Of the first lease that is not pushed to its end; None without one."""
        if not self.leases:
            return None
        return self.leases[0].last - self.leases[0].first - self._leased_done

    @property
    def asking(self) -> bool:
        """A split is asked for; the scheduler has neither given nor refused one, nor said that all are trained on."""
        return self._asking is not None

    @property
    def asked_dataset(self) -> Dataset | None:
        """Whose split is asked for; None while none is."""
        return self._asking[1] if self._asking is not None else None

    @property
    def leased_dataset(self) -> Dataset | None:
        """Whose split the first lease is that is not pushed to its end; None without one."""
        return next((held.dataset for held in self._held if self.leases and held.lease == self.leases[0].lease), None)

    def initialise(self, table: int, claim: bool) -> list[Effect]:
        """Ask whether a table has its first values, repeatedly until it has (`initial`) or it is refused
        (`initial_refusals`).

        With ``claim`` this worker may be the one that is to write them (`WRITE`); it then says `initialised`.
        """
        return self._ask_initial(table, claim, done=False)

    def initialised(self, table: int) -> list[Effect]:
        """This worker has written the first values of a table. Raises RuntimeError unless all pushes are `durable`."""
        if not self.durable:
            raise RuntimeError(f"worker {self.worker}: the first values of table {table} are not durable yet")
        return self._ask_initial(table, claim=True, done=True)

    def initial(self, table: int) -> str:
        """What the scheduler last said of a table's first values: `WRITTEN`, `WRITE` or `WAIT`."""
        return self._initial.get(table, WAIT)

    def _ask_initial(self, table: int, claim: bool, done: bool) -> list[Effect]:
        self._requests += 1
        self.initial_refusals.pop(table, None)
        asked = self._initialising[table] = InitialiseTable(self._requests, table, claim, done)
        return [Send(SCHEDULER_ADDRESS, asked)]

    def join_run(self, size: int) -> list[Effect]:
        """Ask for a run of so many workers, repeatedly until all of them have asked for it (`run`), or it is refused
        (`run_refusal`).

        A run that this worker is in is left; best when its pushes there are durable. Raises RuntimeError before
        `ready`, ValueError for a size that this worker is no part of.
        """
        if not self.ready or self.role != WORKER:
            raise RuntimeError(f"worker {self.worker} cannot join a run: the cluster is not known yet")
        if not max(1, self.worker) < size <= WORKERS_MAX:
            raise ValueError(f"worker {self.worker} in a run of {size} workers; they are numbered from 0")
        if self._joining is not None and self._joining[1] == size:
            return []
        self._requests += 1
        self._joining, self._joining_ms = (self._requests, size), 0.0
        asked = JoinRun(*self._joining, self.run, self._run_done)
        self._left_run = (self.run, self._run_done)
        self.run, self.run_size, self.run_missing, self.run_refusal = 0, size, [], ""
        self._barriers.clear()
        return [Send(SCHEDULER_ADDRESS, asked)]

    def leave_run(self) -> list[Effect]:
        """Tell the others that no push of this worker's with a barrier will follow, repeatedly until the scheduler
        knows (`leaving`). A worker that ends before that is taken for dead later."""
        if self.run:
            self._leaving, self.run = LeaveRun(self.run, self._run_done), 0
            return [Send(SCHEDULER_ADDRESS, self._leaving)]
        return []

    @property
    def leaving(self) -> bool:
        """The scheduler has not answered that this worker has left its run."""
        return self._leaving is not None

    @property
    def joining(self) -> bool:
        """A run is asked for, and others have not asked for it yet."""
        return self._joining is not None

    def push(
        self,
        by_shard: Mapping[int, SectionsAndFrames],
        *,
        barrier: int = 0,
        assign: bool = False,
        examples: int = 0,
    ) -> list[Effect]:
        """One numbered push to every shard (an empty one to those not named).

        ``examples``: so many of the first lease are done with it; without a lease they do not count.

        Frames of a shard: rows int64 and values float32 of each section. They are kept, by reference, until
        the shard acknowledges the push as durable.
        Raises RuntimeError unless `can_push`, or for a ``barrier`` of another size than that of the run that was joined
        (`join_run`); ValueError for more examples than are left of the first lease; what `check_push` raises. Then no
        shard is sent anything.
        """
        why = self._why_no_push()
        if not why and barrier > 1 and not (self.run and self.run_size == barrier):
            why = f"a barrier of {barrier} workers needs a run of so many; it is in run {self.run} of {self.run_size}"
        if why:
            raise RuntimeError(f"worker {self.worker} cannot push: {why}")
        checked = self.check_push(by_shard, barrier=barrier, assign=assign)
        cursor = self._advance_cursor(examples)
        run = sequence = 0
        if barrier > 1:
            self._run_pushes += 1
            run, sequence = self.run, self._run_pushes
            self._barriers.append((self._pushes, sequence))
        effects: list[Effect] = []
        for number, shard in sorted(self._shards.items()):
            sections, frames = checked.get(number, ([], ()))
            shard.pushed += 1
            size = arrays.frames_bytes(frames)
            kept = _Kept(shard.pushed, 0, 0, barrier, assign, sections, frames, cursor, run, sequence, size)
            effects += self._keep(number, shard, kept)
        return effects + self._check_run()

    def check_push(
        self, by_shard: Mapping[int, SectionsAndFrames], *, barrier: int = 0, assign: bool = False
    ) -> dict[int, SectionsAndFrames]:
        """What `push` would send; a section that is too long for a frame becomes several of the same push.

        Raises RefusedError for whatever a shard would refuse of it, such as deltas that are too long, an unknown table
        or a row that is not its; GradientError for a value that is infinite or not a number.
        """
        return self._requests_checks().push(by_shard, barrier, assign)

    def flush(self) -> list[Effect]:
        """Ask shards to make all pushes durable at once, as one who waits for `durable` wants it. It is only a hint."""
        return [
            Send(Address(SHARD, number, shard.epoch), Flush(shard.pushed))
            for number, shard in sorted(self._shards.items())
            if shard.greeted and shard.acked < shard.pushed
        ]

    def pull(
        self, by_shard: Mapping[int, SectionsAndFrames], *, exact: bool, records: bool = False
    ) -> tuple[int, list[Effect]]:
        """Ask shards for rows; answered with PullDone(ticket, frames by shard).

        Frames of a shard: rows int64 of each section. An exact pull sees all pushes made so far and no later
        one of this worker. **trap** (docs/protocol.md): asked again after a death it would see pushes
        made since, so no push is let out before it is answered. Others see whatever is there. When a shard refuses it,
        it ends with PullFailed(ticket, reason).
        Raises RuntimeError before `ready`; RefusedError for whatever a shard would refuse of it, such as an answer that
        is too long, before anything is asked.
        """
        if not self.ready:
            raise RuntimeError(f"worker {self.worker} cannot pull: the cluster is not known yet")
        checks = self._requests_checks()
        checks.pull(by_shard, records)
        self._requests += 1
        ticket = self._requests
        if not by_shard:
            return ticket, [PullDone(ticket, {})]
        of = checks.table_names([section for sections, _ in by_shard.values() for section in sections])
        self._tickets[ticket] = _Ticket(list(by_shard), exact, of)
        effects: list[Effect] = []
        for number, (sections, frames) in by_shard.items():
            shard = self._shards[number]
            after = shard.pushed if exact else 0
            effects += self._keep(number, shard, _Kept(0, ticket, after, 0, records, sections, frames))
        return ticket, effects

    # ------------------------------------------------------------------ events
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take an event, return what is to be done, in order; nothing any more once `failed` is set.

        Whatever a check raises at a message is raised here; nothing of the message is done then. Raises
        HalfHandledError for whatever is raised once the state has moved: this life of the worker is over.
        """
        self._acting = False
        try:
            return self._take(event, now_ms)
        except MemoryError:
            raise
        except Exception as error:
            if not self._acting:
                raise
            broken = half_handled(self.address, event, error)
            self.failed_kind, self.failed = "broken", str(broken)
            raise broken from error

    def _checked(self) -> None:
        """The event fits; from here on the state moves."""
        self._acting = True

    def _take(self, event: Event, now_ms: float) -> list[Effect]:
        if self.failed:
            return []
        if self._now_ms is None:
            self._now_ms = now_ms
        # Time in which nobody pumped (a worker computes) is no silence of the shards: it counts as one
        # heartbeat at most.
        awake_ms = min(max(now_ms - self._now_ms, 0.0), float(self.config.heartbeat_ms))
        self._now_ms = now_ms
        for shard in self._shards.values():
            shard.quiet_ms += awake_ms
            if self._waits and shard.connected:
                shard.unheard_ms += awake_ms
                shard.asked_ms += awake_ms
        self._asked_ms += awake_ms
        if isinstance(event, Tick):
            self._checked()
            return self._on_tick(now_ms)
        if isinstance(event, Received):
            if event.source.role == SCHEDULER:
                return self._on_scheduler(event.message)
            if event.source.role == SHARD:
                return self._on_shard(event, now_ms)
        return []

    def _on_tick(self, now_ms: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._heartbeat_ms is None or now_ms - self._heartbeat_ms >= self.config.heartbeat_ms:
            self._heartbeat_ms = now_ms
            effects.append(self._status())
            if self._leaving:
                effects.append(Send(SCHEDULER_ADDRESS, self._leaving))
        if self._creating and self._asked_ms >= self.config.resend_ms:
            self._asked_ms = 0.0
            effects += [Send(SCHEDULER_ADDRESS, CreateTable(*asked)) for asked in self._creating.values()]
        if self._initialising and now_ms - self._initialising_ms >= self.config.heartbeat_ms:
            self._initialising_ms = now_ms
            effects += [Send(SCHEDULER_ADDRESS, asked) for asked in self._initialising.values()]
        if self._joining and now_ms - self._joining_ms >= self.config.heartbeat_ms:
            self._joining_ms = now_ms
            effects.append(Send(SCHEDULER_ADDRESS, JoinRun(*self._joining, *self._left_run)))
        if self._asking and now_ms - self._asking_ms >= self.config.heartbeat_ms:
            self._asking_ms = now_ms
            effects.append(Send(SCHEDULER_ADDRESS, LeaseSplit(*self._asking, self.cursor)))
        for number, shard in sorted(self._shards.items()):
            asks = self._waits and self.role == WORKER and shard.greeted
            if asks and shard.asked_ms >= self.config.heartbeat_timeout_ms / ASKS_IN_TIMEOUT:
                shard.asked_ms = 0.0
                effects.append(Send(Address(SHARD, number, shard.epoch), Hello(self.epoch)))
            if shard.connected and not shard.greeted:
                if shard.quiet_ms >= self.config.heartbeat_ms:
                    effects += self._greet(number, shard)
            elif shard.kept and shard.greeted and shard.quiet_ms >= self.config.resend_ms * shard.patience:
                effects += self._resend(number, shard, oldest_alone=shard.patience > 1)
                shard.patience = min(2 * shard.patience, RESEND_BACKOFF_MAX)
        return effects

    # ------------------------------------------------------------------ from the scheduler
    def _on_scheduler(self, message: Message) -> list[Effect]:
        if isinstance(message, Census):
            return self._tell()
        if isinstance(message, Views | Fenced) and self.origin.cluster and not is_my_scheduler(message, self.origin):
            return [Note("warning", f"dropped a {type(message).__name__} of a scheduler of {message.origin}: not mine")]
        if isinstance(message, Views):
            self._check_views(message)
        elif isinstance(message, Leased):
            self._check_lease(message)
        elif isinstance(message, TableReady):
            self._check_table_ready(message)
        self._checked()
        self._scheduler_ms = self._now_ms
        if isinstance(message, Views):
            if not self._hear_origin(message):
                return []
            effects: list[Effect] = []
            epoch = self.epoch
            for view in message.views:
                effects += self._on_view(message.group, view)
                if self.failed:
                    break
            if self.epoch > epoch and self.role == WORKER and not self.failed:
                # It counts once it is named: who waits for the worker's earlier life is released then.
                effects.append(self._status())
            return effects
        if isinstance(message, TableReady):
            return self._on_table_ready(message)
        if isinstance(message, Leased | NoSplit):
            return self._on_split(message)
        if isinstance(message, TableInitial):
            asked = self._initialising.get(message.table)
            if asked is not None and asked.request == message.request:
                self._initial[message.table] = message.state
                if message.state == WRITTEN:
                    del self._initialising[message.table]
            return []
        if isinstance(message, RunJoined):
            return self._on_run_joined(message)
        if isinstance(message, RunOver):
            if self._leaving is not None and message.run == self._leaving.run:
                self._leaving = None
            if message.run == self.run and (self._run_over is None or message.done < self._run_over[0]):
                self._run_over = message.done, message.reason
            return self._check_run()
        if isinstance(message, Refused):
            self._on_refused(message)
            return []
        if isinstance(message, Suspected):
            self._suspected = self._now_ms or 0.0, message.reasons
            return []
        if isinstance(message, Fenced):
            return self._fail("fenced", f"worker {self.worker} was fenced by the scheduler: {message.reason}")
        return []

    def _on_refused(self, message: Refused) -> None:
        """The request is over, and it alone."""
        request, reason = message.request, f"the scheduler refused it: {message.reason}"
        if self._joining and request == self._joining[0]:
            self._joining, self.run_missing, self.run_refusal = None, [], reason
        elif self._asking and request == self._asking[0]:
            self._asking, self.split_refusal = None, reason
            self.split_answers += 1
        for table in [table for table, asked in self._initialising.items() if asked.request == request]:
            del self._initialising[table]
            self.initial_refusals[table] = reason
        for name in [name for name, asked in self._creating.items() if asked[0] == request]:
            del self._creating[name]
            self.table_refusals[name] = reason

    def _hear_origin(self, message: Views) -> bool:
        """Follow a scheduler whose state was made again from its first full view on; False: this is none."""
        if message.origin.generation > self.origin.generation and self._started:
            if not any(isinstance(view, Start) for view in message.views):
                return False
            # trap: views that I know may have the numbers of others there
            self._views = [-1] * len(self._views)
        self.origin = message.origin
        return True

    def _status(self) -> Send:
        status = WorkerStatus(
            self.process,
            list(self._views),
            dict(self.figures),
            self.cursor,
            self.run,
            self._run_done,
            self.origin,
            self.run_size if self.run else 0,
            self._waits,
            {number: int(ms) for number, ms in self.unheard(self.config.link_timeout_ms / 2).items()},
        )
        return Send(SCHEDULER_ADDRESS, status)

    def _tell(self) -> list[Effect]:
        """A scheduler that lost its state asks for my leases."""
        if self.role != WORKER or not self.epoch:
            return []
        census = WorkerCensus(self.process, self.origin, self.cursor, self._answered, list(self._held))
        return [Send(SCHEDULER_ADDRESS, census)]

    def _check_views(self, message: Views) -> None:
        """Raise ValueError for views that cannot be."""
        n, groups = self.n, self.groups
        for view in message.views:
            if isinstance(view, Start):
                if not self._started:
                    n, groups = view.n, view.groups
                members = sorted(member.shard for member in view.members)
                if (view.n, view.groups) != (n, groups) or not 1 <= n <= SHARDS_IN_GROUP_MAX or members != [*range(n)]:
                    raise ValueError(f"Start: {len(members)} members in {view.groups} group(s) of {view.n}")
            elif isinstance(view, ShardDown | ShardUp) and n and not 0 <= view.shard < n:
                raise ValueError(f"{type(view).__name__} of shard {view.shard}, in a group of {n}")
        known = self._started or any(isinstance(view, Start) for view in message.views)
        if known and not 0 <= message.group < groups <= GROUPS_MAX:
            raise ValueError(f"views of group {message.group}, there are {groups}")

    def _check_table_ready(self, message: TableReady) -> None:
        """Raise ValueError for a number that no table has."""
        names = [name for name, (request, _) in self._creating.items() if request == message.request]
        if names and message.index >= TABLES_MAX:
            raise ValueError(f"table {names[0]!r} has number {message.index}, at most {TABLES_MAX - 1} is possible")

    def _check_lease(self, message: Leased) -> None:
        """Raise ValueError for a lease that cannot be the next one."""
        asked = self._asking is not None and message.request == self._asking[0]
        if asked and not (self._newest_lease < message.lease and 0 <= message.first < message.last):
            raise ValueError(
                f"lease {message.lease} of examples {message.first} to {message.last}, after lease {self._newest_lease}"
            )

    def _on_table_ready(self, message: TableReady) -> list[Effect]:
        for name, (request, spec) in list(self._creating.items()):
            if request == message.request:
                del self._creating[name]
                self.tables[name] = (message.index, spec)
                self._created.add(name)
                self._checks = None
        return []

    def _on_split(self, message: Leased | NoSplit) -> list[Effect]:
        if self._asking is None or message.request != self._asking[0]:
            return []
        self.split_answers += 1
        if isinstance(message, NoSplit):
            if message.finished:
                self.finished.add(self._asking[1])
                self._asking = None
            return []
        self._answered, dataset = self._asking
        self._asking = None
        self._newest_lease = message.lease
        self.leases.append(SplitLease(message.lease, message.first, message.last))
        self._held.append(HeldLease(dataset, message.lease, message.first, message.last, message.request))
        return []

    def _on_run_joined(self, message: RunJoined) -> list[Effect]:
        if self._joining is None or message.request != self._joining[0]:
            return []
        self.run_missing = list(message.missing)
        if message.run:
            self.run, self._joining, self.run_missing = message.run, None, []
            self._run_pushes, self._run_done, self._run_over = 0, 0, None
        return []

    def _check_run(self) -> list[Effect]:
        """Fail if a push was made that will never have its partners."""
        if self._run_over is None or not self.run or self.failed:
            return []
        done, reason = self._run_over
        if self._run_pushes <= max(done, self._run_done):
            return []
        return self._fail("run", f"push {self._run_pushes} of run {self.run} is never applied: {reason}")

    def _on_view(self, group: int, view: View) -> list[Effect]:
        if isinstance(view, Start):
            if group < len(self._views) and view.number <= self._views[group]:
                return []
            return self._on_start(group, view)
        # A gap: the heartbeat shows what is known, and the scheduler sends the rest.
        if group not in self._started or view.number != self._views[group] + 1:
            return []
        self._views[group] = view.number
        if isinstance(view, ShardDown):
            number = group * self.n + view.shard
            return self._on_shard_down(number, self._shards[number], view.epoch)
        if isinstance(view, ShardUp):
            return self._on_shard_up(group * self.n + view.shard, view)
        if isinstance(view, TableAdded):
            index = self._tables_seen[group]
            self._tables_seen[group] += 1
            self.tables[view.table.name] = (index, view.table)
            self._checks = None
            return []
        if isinstance(view, DataLost):
            return self._fail("lost", f"data was lost in group {group}: {view.reason}")
        if isinstance(view, Reinitialise):
            self.damaged.update(view.damaged)
            return [Note("warning", f"group {group}: {view.reason}")]
        if isinstance(view, WorkerFenced):
            if self.role == WORKER and view.worker == self.worker and 0 < self.epoch <= view.epoch:
                return self._fail("fenced", f"epoch {self.epoch} of worker {self.worker} is over: start it again")
            return []
        if isinstance(view, Configured):
            self.config, self._checks = view.config, None
            return []
        assert isinstance(view, Settle | ShardWhole | Adopted), view
        return []

    def _on_start(self, group: int, view: Start) -> list[Effect]:
        if view.lost:
            return self._fail("lost", f"data was lost in group {group}: {view.lost}")
        if not self._started:
            self.n, self.groups, self.config = view.n, view.groups, view.config
            self._views = [-1] * view.groups
            self._tables_seen = [0] * view.groups
        effects: list[Effect] = []
        self._checks = None
        self.damaged.update(view.damaged)
        if view.epoch > self.epoch:
            self.epoch = view.epoch
            for shard in self._shards.values():
                shard.greeted = False  # the shards know this life by another epoch: Hello again
        self._started.add(group)
        self._views[group] = view.number
        self._tables_seen[group] = len(view.tables)
        for index, table in enumerate(view.tables):
            self.tables[table.name] = (index, table)
        for member in view.members:
            number = group * self.n + member.shard
            shard = self._shards.setdefault(number, _Shard())
            if member.epoch < shard.epoch:
                continue
            if member.state == DOWN:
                shard.endpoint = shard.endpoint or member.endpoint
                effects += self._on_shard_down(number, shard, member.epoch)
            elif member.epoch > shard.epoch or not shard.connected:
                effects += self._on_shard_down(number, shard, member.epoch)
                effects += self._meet(number, shard, member.epoch, member.endpoint)
        for number in range(group * self.n, (group + 1) * self.n):
            shard = self._shards.setdefault(number, _Shard())
            if shard.connected and not shard.greeted:
                effects += self._greet(number, shard)
        return effects

    def _on_shard_down(self, number: int, shard: _Shard, epoch: int) -> list[Effect]:
        if shard.down_ms is None:
            shard.down_ms = self._now_ms
        if not shard.connected:
            shard.epoch = max(shard.epoch, epoch)
            return []
        shard.connected = shard.greeted = False
        gone = Address(SHARD, number, shard.epoch)
        waiting = f"{gone} is down; {len(shard.kept)} requests wait for its replacement"
        return [Disconnect(gone), Note("warning", waiting)]

    def _on_shard_up(self, number: int, view: ShardUp) -> list[Effect]:
        shard = self._shards[number]
        effects = self._on_shard_down(number, shard, view.epoch)
        effects += self._meet(number, shard, view.epoch, view.endpoint)
        if not shard.welcomed:
            return effects + self._greet(number, shard)
        return effects + self._continue(number, shard, view.marks.get(self.worker, 0))

    def _meet(self, number: int, shard: _Shard, epoch: int, endpoint: str) -> list[Effect]:
        shard.epoch, shard.endpoint, shard.connected, shard.greeted = epoch, endpoint, True, False
        shard.down_ms = None
        shard.ask_anew()
        return [Connect(Address(SHARD, number, epoch), endpoint)]

    # ------------------------------------------------------------------ from the shards
    def _on_shard(self, event: Received, now_ms: float) -> list[Effect]:
        shard = self._shards.get(event.source.id)
        if shard is None or not shard.connected or event.source.epoch != shard.epoch:
            return []  # an answer of a life that is over says nothing of the present one
        self._checked()
        shard.unheard_ms, shard.asked_ms, shard.heard = 0.0, 0.0, True
        oldest = shard.kept[0] if shard.kept else None
        effects = self._on_answer(event, shard, now_ms)
        # Only an answer to the oldest request counts: a shard that acknowledges pushes may still never have
        # seen a pull that was lost with a connection.
        if not shard.kept or shard.kept[0] is not oldest:
            if shard.patience > 2 and shard.greeted:
                # What it answered may have been a lone copy.
                effects += self._resend(event.source.id, shard)
            shard.quiet_ms, shard.patience = 0.0, 1
        return effects

    def _on_answer(self, event: Received, shard: _Shard, now_ms: float) -> list[Effect]:
        message = event.message
        if isinstance(message, Rows):
            return self._on_rows(event.source.id, shard, message, event.frames, now_ms)
        if isinstance(message, PushAck):
            self._forget(shard, min(message.durable, shard.pushed))
            return []
        if isinstance(message, Welcome):
            return self._on_welcome(event.source.id, shard, message)
        if isinstance(message, PushRefused):
            return self._on_push_refused(event.source, shard, message)
        if isinstance(message, PullRefused):
            return self._on_pull_refused(event.source, message)
        if isinstance(message, Fenced):
            return self._fail("fenced", f"worker {self.worker} was fenced by {event.source}: {message.reason}")
        return []

    def _on_welcome(self, number: int, shard: _Shard, message: Welcome) -> list[Effect]:
        if shard.greeted:
            return []
        if shard.welcomed:
            return self._continue(number, shard, message.mark, message.durable)
        # Pushes of an earlier life of this worker that are not durable can still be undone, and numbers that
        # went on from them would then skip: wait for them (Hello is repeated until then).
        if message.durable < message.mark:
            return []
        shard.base = shard.pushed = shard.acked = message.mark
        shard.welcomed = shard.greeted = True
        return self._resend(number, shard)

    def _on_rows(self, number: int, shard: _Shard, message: Rows, frames: Frames, now_ms: float) -> list[Effect]:
        ticket = self._tickets.get(message.request)
        if ticket is None or number in ticket.answers or number not in ticket.shards:
            return []
        self.first_rows.setdefault((number, shard.epoch), now_ms)
        shard.kept = [kept for kept in shard.kept if kept.request != message.request]
        ticket.answers[number] = frames
        if len(ticket.answers) < len(ticket.shards):
            return []
        del self._tickets[message.request]
        return [PullDone(message.request, {asked: ticket.answers[asked] for asked in ticket.shards})]

    def _on_pull_refused(self, source: Address, message: PullRefused) -> list[Effect]:
        ticket = self._tickets.get(message.request)
        if ticket is None or source.id in ticket.answers or source.id not in ticket.shards:
            return []
        del self._tickets[message.request]
        for shard in self._shards.values():
            shard.kept = [kept for kept in shard.kept if kept.request != message.request]
        return [PullFailed(message.request, f"{source} refused a pull of rows of {ticket.of}: {message.reason}")]

    def _on_push_refused(self, source: Address, refusing: _Shard, message: PushRefused) -> list[Effect]:
        """Numbers of pushes only rise by one: without this one there can be no later one on that shard."""
        text = f"{source} refused push {message.number}: {message.reason}"
        if message.nowhere:
            return self._fail("refused", text)
        made = message.number - refusing.base
        others = [
            number
            for number, shard in sorted(self._shards.items())
            if shard is not refusing
            and (
                shard.acked - shard.base >= made
                or any(kept.push - shard.base == made and kept.sections for kept in shard.kept)
            )
        ]
        names = ", ".join(map(str, others))
        parts = f"shard{'s' * (len(others) > 1)} {names} may have applied their parts of it" if others else (
            "no other shard had a part of it"
        )  # fmt: skip
        return self._fail(
            "part", f"{text}; {parts}. No push can follow it: start this worker again, which goes on from what each "
            "shard has applied",
        )  # fmt: skip

    # ------------------------------------------------------------------ helpers
    def _requests_checks(self) -> Requests:
        if self._checks is None:
            ready = {index: spec for name, (index, spec) in self.tables.items() if name in self._created}
            pending = {index: name for name, (index, _) in self.tables.items() if name not in self._created}
            self._checks = Requests(self.n, self.groups, self.config, ready, pending)
        return self._checks

    def _why_no_push(self) -> str:
        if self.failed:
            return self.failed
        if self.role != WORKER:
            return "a tool has no watermark"
        if not self.ready:
            return "the cluster is not known yet"
        if any(ticket.exact for ticket in self._tickets.values()):
            return "an exact pull is not answered yet"
        limit = self.config.pushes_in_flight_max
        for number, shard in self._shards.items():
            if shard.pushed - shard.acked >= limit:
                return f"shard {number} has {limit} unacknowledged pushes"
        if self._kept_bytes >= self.config.pushes_kept_bytes_max:
            return f"{self._kept_bytes} bytes of pushes are not durable yet"
        return ""

    def _keep(self, number: int, shard: _Shard, kept: _Kept) -> list[Effect]:
        if not shard.kept:
            shard.quiet_ms, shard.patience = 0.0, 1
        shard.kept.append(kept)
        self._kept_bytes += kept.push_bytes
        return [self._send(number, shard, kept)] if shard.greeted else []

    def _send(self, number: int, shard: _Shard, kept: _Kept) -> Send:
        message: Message
        if kept.push:
            message = Push(
                self.epoch, kept.push, kept.barrier, kept.flag, kept.sections, kept.cursor, kept.run, kept.sequence,
                len(self.tables),
            )  # fmt: skip
        else:
            message = Pull(kept.request, kept.after, kept.flag, kept.sections)
        return Send(Address(SHARD, number, shard.epoch), message, kept.frames)

    def _resend(self, number: int, shard: _Shard, oldest_alone: bool = False) -> list[Effect]:
        shard.quiet_ms = 0.0
        return [self._send(number, shard, kept) for kept in (shard.kept[:1] if oldest_alone else shard.kept)]

    def _greet(self, number: int, shard: _Shard) -> list[Effect]:
        if self.role != WORKER:
            shard.welcomed = shard.greeted = True
            return self._resend(number, shard)
        shard.quiet_ms = 0.0
        return [Send(Address(SHARD, number, shard.epoch), Hello(self.epoch))]

    def _continue(self, number: int, shard: _Shard, mark: int, durable: int | None = None) -> list[Effect]:
        """Go on with an incarnation that has this watermark: forget what is covered, send the rest again."""
        who = Address(SHARD, number, shard.epoch)
        if mark < shard.acked:
            return self._fail(
                "watermark",
                f"{who} goes on from push {mark} of worker {self.worker}, but push {shard.acked} was "
                "acknowledged as durable: updates were lost",
            )
        if mark > shard.pushed:
            return self._fail(
                "watermark",
                f"{who} goes on from push {mark} of worker {self.worker}, which made only {shard.pushed}: "
                "another process pushes in its name",
            )
        self._forget(shard, mark if durable is None else min(mark, durable))
        shard.greeted, shard.patience = True, 1
        return self._resend(number, shard)

    def _forget(self, shard: _Shard, durable: int) -> None:
        if durable > shard.acked:
            shard.acked = durable
            self._kept_bytes -= sum(kept.push_bytes for kept in shard.kept if kept.push <= durable)
            shard.kept = [kept for kept in shard.kept if not 0 < kept.push <= durable]
            if self._cursors or self._barriers:
                everywhere = min(shard.acked - shard.base for shard in self._shards.values())
                while self._cursors and self._cursors[0][0] <= everywhere:
                    self.cursor = self._cursors.popleft()[1]
                self._forget_leases()
                while self._barriers and self._barriers[0][0] <= everywhere:
                    self._run_done = self._barriers.popleft()[1]

    def _forget_leases(self) -> None:
        """Those behind the durable cursor are done."""
        number, done = self.cursor >> CURSOR_BITS, self.cursor % (1 << CURSOR_BITS)
        while self._held and (self._held[0].lease, self._held[0].last - self._held[0].first) <= (number, done):
            self._held.popleft()

    def _advance_cursor(self, examples: int) -> int:
        """Take examples off the first lease; returns the cursor after them, 0 where they are of no lease."""
        if examples and self.leases:
            lease = self.leases[0]
            size, left = lease.last - lease.first, self.examples_left or 0
            if not 0 < examples <= left:
                raise ValueError(
                    f"a push of {examples} examples, but {left} are left of the split {lease.first} to {lease.last}: a "
                    "batch must not reach into the next split"
                )
            self._leased_done = done = self._leased_done + examples
            if done == size:
                self.leases.popleft()
                self._leased_done = 0
            cursor = (lease.lease << CURSOR_BITS) + done
            self._cursors.append((self._pushes + 1, cursor))
        else:
            cursor = 0
        self._pushes += 1
        return cursor

    def _fail(self, kind: str, reason: str) -> list[Effect]:
        self.failed, self.failed_kind = reason, kind
        return [Failed(reason)]


def _check_sendable(message: Message, what: str) -> None:
    """Raise RefusedError for a request of which the scheduler could not read a word, and so would not answer."""
    try:
        wire.check(message)
    except WireError as error:
        raise RefusedError(f"{what} cannot be asked for: {error}") from error

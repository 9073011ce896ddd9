"""A worker (or tool) as a sans-I/O machine: numbered pushes, exact pulls, and shards that die.

A worker holds nothing that cannot be lost. What it does hold is every push that is not yet durable and
every pull that is not yet answered, per shard and in the order in which they were made; whenever a shard
may not have them (a new incarnation, a silence), they are sent again in that order (docs/protocol.md).

This file is long because it is what a session sees, with what each call raises, and the one order in which pushes,
pulls, views and deaths act on the channels to the shards. Splits, runs and tables are parts of their own.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from ecrec.errors import RefusedError, WireError
from ecrec.protocol import arrays, wire
from ecrec.protocol.channel import RESEND_BACKOFF_MAX, Channel, Kept, WatermarkError
from ecrec.protocol.client_changes import ClientChanges
from ecrec.protocol.client_leases import ClientLeases
from ecrec.protocol.client_runs import ClientRuns
from ecrec.protocol.client_saves import ClientSaves
from ecrec.protocol.client_tables import ClientTables
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
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
from ecrec.protocol.messages import (
    DOWN,
    SCHEDULER,
    SCHEDULER_ADDRESS,
    SHARD,
    WORKER,
    WORKERS_MAX,
    Address,
    Adopted,
    AskChanges,
    Census,
    Changed,
    CheckpointAsked,
    CheckpointCut,
    CheckpointOver,
    Configured,
    CreateTable,
    DataLost,
    Dataset,
    Fenced,
    Flush,
    Frames,
    FullView,
    Hello,
    InitialiseTable,
    Leased,
    LeaseSplit,
    Message,
    NoSplit,
    Origin,
    PullRefused,
    PushAck,
    PushRefused,
    Refused,
    Reinitialise,
    Rows,
    RunJoined,
    RunOver,
    Save,
    SaveBegun,
    Settle,
    ShardDown,
    ShardUp,
    ShardWhole,
    Succeeded,
    Succession,
    SuccessionOver,
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
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, TableSpec
from ecrec.protocol.requests import Requests, SectionsAndFrames

ASKS_IN_TIMEOUT = 4
"""How often a shard that says nothing is asked for a sign of life within `heartbeat_timeout_ms`."""

GROUPS_MAX = 1 << 16
"""More coding groups than there are workers for; bounds what a damaged view can cost."""


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

    - a table (`table_refusals`), a split (`leasing.refusal`), a run (`runs.refusal`), first values
      (`initial_refusals`), refused by the scheduler;
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
    - ``taken``: another process is this worker, and lives (``yields``): this one never was;
    - ``watermark``: pushes that were acknowledged are gone, or somebody else pushes in this worker's name;
    - ``broken``: an error inside ecrec, in the middle of an event.
    """

    def __init__(
        self, worker: int, process: str, role: int = WORKER, config: ProtocolConfig | None = None, yields: bool = False
    ) -> None:
        self.yields = yields
        """It does not take the place of a process that is this worker, and lives."""
        self.worker = worker
        self.process = process
        self.role = role
        self.config = config or ProtocolConfig()
        """Replaced by the scheduler's."""
        self.epoch = 0
        self.n = 0
        self.groups = 0
        self.failed = ""
        """Why the worker cannot go on; empty while it can."""
        self.failed_kind = ""
        """Which kind of failure it is; see above."""
        self._acting = False
        """The event has passed its checks, and the state moves."""
        self.leasing = ClientLeases(worker)
        """Splits that this worker holds; `lease` asks for one."""
        self.runs = ClientRuns()
        """The run that it is in; `join_run` asks for one."""
        self.saves = ClientSaves()
        """The checkpoint that it asked for last (`save`)."""
        self.changes = ClientChanges()
        """What a reader was told of changes (`ask_changes`)."""
        self._tables = ClientTables()
        self.figures: dict[str, float] = {}
        """Sent to the scheduler with each heartbeat, for people."""
        self.first_rows: dict[tuple[int, int], float] = {}
        """(shard, epoch) -> milliseconds at which that incarnation first answered a pull."""
        self.deaths = self.recoveries = 0
        """Of shards, that this worker was told of since it joined: one that is down; one that is whole again."""
        self._views: list[int] = [-1]
        self._started: set[int] = set()
        self._shards: dict[int, Channel] = {}
        self._kept_bytes = 0
        """Of the pushes that shards have not acknowledged as durable."""
        self._requests = 0
        self._tickets: dict[int, _Ticket] = {}
        self.origin = Origin()
        self._told_generation = 0
        """Of the scheduler that my leases were told last: one before it has no say in them any more."""
        """What is known of the scheduler."""
        self._pushes = 0
        """Of this life."""
        self.checkpoint = 0
        """The newest checkpoint that it has heard of."""
        self._tells = False
        """The scheduler is told the last push to each shard before that (`Channel.before`)."""
        self._run_before = (0, 0)
        """Run, and sequence of the last push with a barrier before it."""
        self._suspected: tuple[float, dict[int, str]] = (-1e18, {})
        """When the scheduler last said whom it suspects and does not replace, and why."""
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

    def answered(self, ticket: int) -> Collection[int] | None:
        """Shards that have answered a pull; None when it is over, or was none."""
        found = self._tickets.get(ticket)
        return None if found is None else found.answers.keys()

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

    @property
    def tables(self) -> dict[str, tuple[int, TableSpec]]:
        """Name -> (index, spec); a table may be used when `table_ready` says so."""
        return self._tables.known

    @property
    def table_refusals(self) -> dict[str, str]:
        """Name -> why the scheduler refused the table that was last asked for under it."""
        return self._tables.refusals

    @property
    def initial_refusals(self) -> dict[int, str]:
        """Table -> why the scheduler would not say whether the table has its first values."""
        return self._tables.initial_refusals

    @property
    def damaged(self) -> set[str]:
        """Replicated tables of which rows were lost in all copies, and begin anew."""
        return self._tables.damaged

    def table_ready(self, name: str) -> bool:
        """Every running shard has the table."""
        return self._tables.ready(name)

    def creating(self, name: str) -> bool:
        """A table is asked for under this name, and the scheduler has neither made nor refused it."""
        return self._tables.creating(name)

    def initial(self, table: int) -> str:
        """What the scheduler last said of a table's first values: `WRITTEN`, `WRITE` or `WAIT`."""
        return self._tables.initial(table)

    # ------------------------------------------------------------------ requests
    def create_table(self, spec: TableSpec) -> list[Effect]:
        """Ask for a table, repeatedly until it is there (`table_ready`) or refused (`table_refusals`).

        One that is there with an equal spec is taken. Raises RefusedError for a spec that no message can hold.
        """
        asked = CreateTable(self._requests + 1, spec)
        _check_sendable(asked, f"table {spec.name!r}")
        effects = self._tables.create(asked)
        self._requests += len(effects)
        return effects

    def lease(self, dataset: Dataset) -> list[Effect]:
        """Ask for one more split, repeatedly until it is there (`leasing.leases`), refused (`leasing.refusal`), or
        there is none left (`leasing.finished`).

        Raises RuntimeError while an earlier split is still asked for; RefusedError for a data set that no message can
        hold, and while this worker holds as many splits as the scheduler gives to one.
        """
        self.leasing.check_ask(self.config.pushes_in_flight_max)
        asked = LeaseSplit(self._requests + 1, dataset, self.leasing.cursor)
        _check_sendable(asked, f"data set {dataset.name!r}")
        self._requests += 1
        return self.leasing.ask(asked)

    def initialise(self, table: int, claim: bool) -> list[Effect]:
        """Ask whether a table has its first values, repeatedly until it has (`initial`) or it is refused
        (`initial_refusals`).

        With ``claim`` this worker may be the one that is to write them (`WRITE`); it then says `initialised`.
        """
        return self._ask_initial(table, claim, done=False)

    def initial_failed(self, table: int, reason: str) -> list[Effect]:
        """This worker was to make the first values of a table and cannot; said until it was heard (`initial_asked`)."""
        return self._ask_initial(table, claim=False, done=False, failure=reason)

    @property
    def initial_asked(self) -> bool:
        """First values of a table are asked for, or about to be written, or a failure to make some was not heard."""
        return self._tables.initial_asked

    def initialised(self, table: int) -> list[Effect]:
        """This worker has written the first values of a table. Raises RuntimeError unless all pushes are `durable`."""
        if not self.durable:
            raise RuntimeError(f"worker {self.worker}: the first values of table {table} are not durable yet")
        return self._ask_initial(table, claim=True, done=True)

    def _ask_initial(self, table: int, claim: bool, done: bool, failure: str = "") -> list[Effect]:
        self._requests += 1
        return self._tables.ask_initial(InitialiseTable(self._requests, table, claim, done, failure))

    def join_run(self, size: int) -> list[Effect]:
        """Ask for a run of so many workers, repeatedly until all of them have asked for it (`runs.run`), or it is
        refused (`runs.refusal`).

        A run that this worker is in is left; best when its pushes there are durable. Raises RuntimeError before
        `ready`, ValueError for a size that this worker is no part of.
        """
        if not self.ready or self.role != WORKER:
            raise RuntimeError(f"worker {self.worker} cannot join a run: the cluster is not known yet")
        if not max(1, self.worker) < size <= WORKERS_MAX:
            raise ValueError(f"worker {self.worker} in a run of {size} workers; they are numbered from 0")
        if self.runs.asks_for(size):
            return []
        self._requests += 1
        return self.runs.join(self._requests, size)

    def say_goodbye(self) -> list[Effect]:
        """This worker ends. Nothing is to be done with it any more. Raises RuntimeError unless all pushes are
        `durable`."""
        if not self.durable:
            raise RuntimeError(f"worker {self.worker}: its pushes are not durable yet")
        if self.role != WORKER or not self.epoch:
            return []
        status = self._status()
        return [Send(SCHEDULER_ADDRESS, msgspec.structs.replace(status.message, leaves=True))]

    def save(
        self, url: str, time_s: float, after: int = 0, state: bytes = b"", incremental: bool = False, base: int = 0,
        base_crc32c: int = 0, bytes_per_s: int = 0,
    ) -> list[Effect]:  # fmt: skip
        """Ask for a checkpoint, repeatedly until it has begun (`saves.checkpoint`) or is refused (`saves.refusal`).

        ``time_s``: the time, in seconds since 1970; the others: as in `Save`. Raises RefusedError for a URL that no
        message can hold.
        """
        asked = Save(self._requests + 1, url, time_s, after, state, incremental, base, base_crc32c, bytes_per_s)
        _check_sendable(asked, f"a checkpoint to {url[:300]!r}")
        self._requests += 1
        return self.saves.ask(asked, self._now_ms or 0.0)

    def ask_changes(
        self, shard: int, reader: int, epoch: int, since: int, until: int, place: tuple[int, int, int]
    ) -> list[Effect]:
        """Ask a shard what changed, as in `AskChanges`; the answer is in ``changes.answers``."""
        self._requests += 1
        asked = AskChanges(self._requests, reader, epoch, since, until, place)
        return self.changes.ask(self._shards[shard], asked, self._now_ms or 0.0)

    def leave_run(self) -> list[Effect]:
        """Tell the others that no push of this worker's with a barrier will follow, repeatedly until the scheduler
        knows (`runs.leaving`). A worker that ends before that is taken for dead later."""
        return self.runs.leave()

    def push(
        self,
        by_shard: Mapping[int, SectionsAndFrames],
        *,
        barrier: int = 0,
        assign: bool = False,
        examples: int = 0,
        rates: Mapping[int, float] | None = None,
        records: bool = False,
    ) -> list[Effect]:
        """One numbered push to every shard (an empty one to those not named).

        ``examples``: so many of the first lease are done with it; without a lease they do not count. ``rates``: table
        -> learning rate of this step, where it is not the table's own. ``records``: with ``assign``, values are whole
        records, weights and state as float32 without padding, of one table.

        Frames of a shard: rows int64 and values float32 of each section. They are kept, by reference, until
        the shard acknowledges the push as durable.
        Raises RuntimeError unless `can_push`, or for a ``barrier`` of another size than that of the run that was joined
        (`join_run`); ValueError for more examples than are left of the first lease; what `check_push` raises. Then no
        shard is sent anything.
        """
        why = self._why_no_push() or self.runs.why_no_push(barrier)
        if why:
            raise RuntimeError(f"worker {self.worker} cannot push: {why}")
        rates = dict(rates or {})
        if records:
            self._requests_checks().records(by_shard)
            checked = dict(by_shard)
        else:
            checked = self.check_push(by_shard, barrier=barrier, assign=assign, rates=rates)
        cursor = self.leasing.advance(examples, self._pushes + 1)
        self._pushes += 1
        run, sequence = self.runs.push(self._pushes) if barrier > 1 else (0, 0)
        effects: list[Effect] = []
        for _, shard in sorted(self._shards.items()):
            sections, frames = checked.get(shard.number, ([], ()))
            shard.pushed += 1
            size = arrays.frames_bytes(frames)
            kept = Kept(
                shard.pushed,
                0,
                0,
                barrier,
                assign,
                sections,
                frames,
                cursor,
                run,
                sequence,
                size,
                rates,
                self.checkpoint,
                records,
            )
            effects += self._keep(shard, kept)
        return effects + self._check_run()

    def check_push(
        self,
        by_shard: Mapping[int, SectionsAndFrames],
        *,
        barrier: int = 0,
        assign: bool = False,
        rates: Mapping[int, float] | None = None,
    ) -> dict[int, SectionsAndFrames]:
        """What `push` would send; a section that is too long for a frame becomes several of the same push.

        Raises RefusedError for whatever a shard would refuse of it, such as deltas that are too long, an unknown table
        or a row that is not its; GradientError for a value that is infinite or not a number.
        """
        checks = self._requests_checks()
        checks.rates(rates or {}, assign)
        return checks.push(by_shard, barrier, assign)

    def flush(self) -> list[Effect]:
        """Ask shards to make all pushes durable at once, as one who waits for `durable` wants it. It is only a hint."""
        return [
            Send(shard.address, Flush(shard.pushed))
            for _, shard in sorted(self._shards.items())
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
            effects += self._keep(shard, Kept(0, ticket, after, 0, records, sections, frames))
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
        self._tables.quiet_ms += awake_ms
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
            effects += self.runs.on_heartbeat()
        effects += self._tables.on_tick(now_ms, self.config)
        effects += self.runs.on_tick(now_ms, self.config.heartbeat_ms)
        effects += self.leasing.on_tick(now_ms, self.config.heartbeat_ms)
        effects += self.saves.on_tick(now_ms, self.config.resend_ms)
        effects += self.changes.on_tick(self._shards, now_ms, self.config.resend_ms)
        for _, shard in sorted(self._shards.items()):
            asks = self._waits and self.role == WORKER and shard.greeted
            if asks and shard.asked_ms >= self.config.heartbeat_timeout_ms / ASKS_IN_TIMEOUT:
                shard.asked_ms = 0.0
                effects.append(Send(shard.address, Hello(self.epoch)))
            if shard.connected and not shard.greeted:
                if shard.quiet_ms >= self.config.heartbeat_ms:
                    effects += self._greet(shard)
            elif shard.kept and shard.greeted and shard.quiet_ms >= self.config.resend_ms * shard.patience:
                effects += self._resend(shard, oldest_alone=shard.patience > 1)
                shard.patience = min(2 * shard.patience, RESEND_BACKOFF_MAX)
        return effects

    # ------------------------------------------------------------------ from the scheduler
    def _on_scheduler(self, message: Message) -> list[Effect]:
        if isinstance(message, Census):
            return self._tell(message)
        if (
            isinstance(message, Views | Fenced | Leased)
            and self.origin.cluster
            and not is_my_scheduler(message, self.origin)
        ):
            return [Note("warning", f"dropped a {type(message).__name__} of a scheduler of {message.origin}: not mine")]
        if isinstance(message, Leased) and (
            message.origin.generation > self.origin.generation or message.origin.generation < self._told_generation
        ):
            # Of a scheduler whose first view was not heard yet: the split is asked for again. trap: or of the one
            # before the one that was told all that I have
            return []
        if isinstance(message, Views):
            self._check_views(message)
        elif isinstance(message, Leased):
            self.leasing.check(message)
        elif isinstance(message, TableReady):
            self._tables.check_ready(message)
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
            self._tables.on_ready(message)
        elif isinstance(message, Leased):
            self._hear_serial(message.origin)
            self.leasing.on_answer(message)
        elif isinstance(message, NoSplit):
            self.leasing.on_none(message)
        elif isinstance(message, TableInitial):
            self._tables.on_initial(message)
        elif isinstance(message, RunJoined):
            self.runs.on_joined(message)
        elif isinstance(message, RunOver):
            self.runs.on_over(message)
            return self._check_run()
        elif isinstance(message, SaveBegun):
            self.saves.on_begun(message)
        elif isinstance(message, Refused):
            self._on_refused(message)
        elif isinstance(message, Suspected):
            self._suspected = self._now_ms or 0.0, message.reasons
        elif isinstance(message, Fenced):
            if self.yields and not self.epoch:
                return self._fail("taken", message.reason)
            return self._fail("fenced", f"worker {self.worker} was fenced by the scheduler: {message.reason}")
        return []

    def _on_refused(self, message: Refused) -> None:
        """The request is over, and it alone."""
        request, reason = message.request, f"the scheduler refused it: {message.reason}"
        self.runs.on_refused(request, reason)
        self.leasing.on_refused(request, reason)
        self._tables.on_refused(request, reason)
        self.saves.on_refused(request, reason)

    def _hear_origin(self, message: Views) -> bool:
        """Follow a scheduler whose state was made again from its first full view on; False: this is none."""
        if message.origin.generation > self.origin.generation and self._started:
            if not any(isinstance(view, FullView) for view in message.views):
                return False
            # trap: views that I know may have the numbers of others there
            self._views = [-1] * len(self._views)
            self.leasing.on_adopted(message.origin.serial)
        self._hear_serial(message.origin)
        return True

    def _hear_serial(self, origin: Origin) -> None:
        if origin.generation > self.origin.generation or origin.serial > self.origin.serial:
            self.origin = origin

    def _status(self) -> Send:
        status = WorkerStatus(
            self.process,
            list(self._views),
            dict(self.figures),
            self.leasing.cursor,
            self.runs.run,
            self.runs.done,
            self.origin,
            self.runs.size if self.runs.run else 0,
            self._waits,
            {number: int(ms) for number, ms in self.unheard(self.config.link_timeout_ms / 2).items()},
            self.checkpoint,
            {number: s.before for number, s in sorted(self._shards.items()) if s.welcomed} if self._tells else {},
            self._run_before,
            yields=self.yields and not self.epoch,
        )
        return Send(SCHEDULER_ADDRESS, status)

    def _tell(self, asked: Census) -> list[Effect]:
        """A scheduler that lost its state asks for my leases."""
        if self.role != WORKER or not self.epoch:
            return []
        self._checked()
        self._told_generation = max(self._told_generation, asked.generation)
        leasing = self.leasing
        census = WorkerCensus(
            self.process, self.origin, leasing.cursor, leasing.answered, leasing.told(), asked.generation
        )
        return [Send(SCHEDULER_ADDRESS, census)]

    def _check_views(self, message: Views) -> None:
        """Raise ValueError for invalid views."""
        n, groups = self.n, self.groups
        for view in message.views:
            if isinstance(view, FullView):
                if not self._started:
                    n, groups = view.n, view.groups
                members = sorted(member.shard for member in view.members)
                if (view.n, view.groups) != (n, groups) or not 1 <= n <= SHARDS_IN_GROUP_MAX or members != [*range(n)]:
                    raise ValueError(f"FullView: {len(members)} members in {view.groups} group(s) of {view.n}")
            elif isinstance(view, ShardDown | ShardUp | Succeeded) and n and not 0 <= view.shard < n:
                raise ValueError(f"{type(view).__name__} of shard {view.shard}, in a group of {n}")
        known = self._started or any(isinstance(view, FullView) for view in message.views)
        if known and not 0 <= message.group < groups <= GROUPS_MAX:
            raise ValueError(f"views of group {message.group}, there are {groups}")

    def _check_run(self) -> list[Effect]:
        """Fail if a push was made that will never have its partners."""
        broken = self.runs.broken()
        return self._fail("run", broken) if broken and not self.failed else []

    def _on_view(self, group: int, view: View) -> list[Effect]:
        if isinstance(view, FullView):
            if group < len(self._views) and view.number <= self._views[group]:
                return []
            return self._on_start(group, view)
        # A gap: the heartbeat shows what is known, and the scheduler sends the rest.
        if group not in self._started or view.number != self._views[group] + 1:
            return []
        self._views[group] = view.number
        if isinstance(view, ShardDown):
            self.deaths += 1
            return self._shards[group * self.n + view.shard].gone(view.epoch, self._now_ms)
        if isinstance(view, ShardUp | Succeeded):
            return self._on_shard_up(group * self.n + view.shard, view)
        if isinstance(view, TableAdded):
            self._tables.added(group, view.table)
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
            self.config = view.config
            self._tables.changed()
            return []
        if isinstance(view, CheckpointAsked):
            return self._on_checkpoint(view.checkpoint)
        if isinstance(view, CheckpointCut | CheckpointOver):
            self._tells = self._tells and view.checkpoint < self.checkpoint
            return []
        if isinstance(view, ShardWhole):
            self.recoveries += 1
            return []
        assert isinstance(view, Settle | Adopted | Succession | SuccessionOver), view
        return []

    def _on_checkpoint(self, checkpoint: int) -> list[Effect]:
        """A checkpoint begins: later pushes name it, and those before it are told at once."""
        if checkpoint <= self.checkpoint or self.role != WORKER:
            return []
        self.checkpoint, self._tells = checkpoint, True
        self._run_before = self.runs.pushed
        for shard in self._shards.values():
            shard.before = shard.pushed
        return [self._status()] if self.epoch else []

    def _on_start(self, group: int, view: FullView) -> list[Effect]:
        if view.lost:
            return self._fail("lost", f"data was lost in group {group}: {view.lost}")
        if not self._started:
            self.n, self.groups, self.config = view.n, view.groups, view.config
            self._views = [-1] * view.groups
            self._tables.begin(view.groups)
        effects: list[Effect] = []
        if view.epoch > self.epoch:
            self.epoch = view.epoch
            for shard in self._shards.values():
                shard.renamed()
        effects += self._on_checkpoint(view.checkpoint)
        self._started.add(group)
        self._views[group] = view.number
        self._tables.start(group, view.tables, view.damaged)
        for member in view.members:
            number = group * self.n + member.shard
            shard = self._shards.setdefault(number, Channel(number))
            if member.epoch < shard.epoch:
                continue
            if member.state == DOWN:
                shard.endpoint = shard.endpoint or member.endpoint
                effects += shard.gone(member.epoch, self._now_ms)
            elif member.epoch > shard.epoch or not shard.connected:
                effects += shard.gone(member.epoch, self._now_ms)
                effects += shard.meet(member.epoch, member.endpoint)
        for number in range(group * self.n, (group + 1) * self.n):
            shard = self._shards.setdefault(number, Channel(number))
            if shard.connected and not shard.greeted:
                effects += self._greet(shard)
        return effects

    def _on_shard_up(self, number: int, view: ShardUp | Succeeded) -> list[Effect]:
        shard = self._shards[number]
        effects = shard.gone(view.epoch, self._now_ms) + shard.meet(view.epoch, view.endpoint)
        if not shard.welcomed:
            return effects + self._greet(shard)
        return effects + self._continue(shard, view.watermarks.get(self.worker, 0))

    # ------------------------------------------------------------------ from the shards
    def _on_shard(self, event: Received, now_ms: float) -> list[Effect]:
        shard = self._shards.get(event.source.id)
        if shard is None or not shard.connected or event.source.epoch != shard.epoch:
            return []  # an answer of a life that is over says nothing of the present one
        self._checked()
        shard.unheard_ms, shard.asked_ms, shard.heard = 0.0, 0.0, True
        oldest = shard.kept[0] if shard.kept else None
        effects = self._on_answer(event, shard, now_ms)
        if shard.answered(oldest):
            if shard.patience > 2 and shard.greeted:
                # What it answered may have been a lone copy.
                effects += self._resend(shard)
            shard.quiet_ms, shard.patience = 0.0, 1
        return effects

    def _on_answer(self, event: Received, shard: Channel, now_ms: float) -> list[Effect]:
        message = event.message
        if isinstance(message, Rows):
            return self._on_rows(shard, message, event.frames, now_ms)
        if isinstance(message, PushAck):
            self._freed(shard.forget(min(message.durable, shard.pushed)))
            return []
        if isinstance(message, Welcome):
            return self._on_welcome(shard, message)
        if isinstance(message, PushRefused):
            return self._on_push_refused(event.source, shard, message)
        if isinstance(message, PullRefused):
            return self._on_pull_refused(event.source, message)
        if isinstance(message, Changed):
            self.changes.on_answer(shard, message, event.frames)
            return []
        if isinstance(message, Fenced):
            return self._fail("fenced", f"worker {self.worker} was fenced by {event.source}: {message.reason}")
        return []

    def _on_welcome(self, shard: Channel, message: Welcome) -> list[Effect]:
        if shard.greeted:
            return []
        if shard.welcomed:
            return self._continue(shard, message.watermark, message.durable)
        # Pushes of an earlier life of this worker that are not durable can still be undone, and numbers that
        # went on from them would then skip: wait for them (Hello is repeated until then).
        if message.durable < message.watermark:
            return []
        shard.welcome(message.watermark)
        return self._resend(shard)

    def _on_rows(self, shard: Channel, message: Rows, frames: Frames, now_ms: float) -> list[Effect]:
        ticket, number = self._tickets.get(message.request), shard.number
        if ticket is None or number in ticket.answers or number not in ticket.shards:
            return []
        self.first_rows.setdefault((number, shard.epoch), now_ms)
        shard.drop_pull(message.request)
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
            shard.drop_pull(message.request)
        return [PullFailed(message.request, f"{source} refused a pull of rows of {ticket.of}: {message.reason}")]

    def _on_push_refused(self, source: Address, refusing: Channel, message: PushRefused) -> list[Effect]:
        """Numbers of pushes only rise by one: without this one there can be no later one on that shard."""
        text = f"{source} refused push {message.number}: {message.reason}"
        if message.nowhere:
            return self._fail("refused", text)
        made = message.number - refusing.base
        others = [
            number
            for number, shard in sorted(self._shards.items())
            if shard is not refusing
            and (shard.durable >= made or any(kept.push - shard.base == made and kept.sections for kept in shard.kept))
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
        return self._tables.checks(self.n, self.groups, self.config)

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

    def _keep(self, shard: Channel, kept: Kept) -> list[Effect]:
        shard.keep(kept)
        self._kept_bytes += kept.push_bytes
        return [shard.message(kept, self.epoch, len(self.tables))] if shard.greeted else []

    def _resend(self, shard: Channel, oldest_alone: bool = False) -> list[Effect]:
        shard.quiet_ms = 0.0
        tables = len(self.tables)
        return [shard.message(kept, self.epoch, tables) for kept in (shard.kept[:1] if oldest_alone else shard.kept)]

    def _greet(self, shard: Channel) -> list[Effect]:
        if self.role == WORKER:
            return shard.hello(self.epoch)
        shard.greet()
        return self._resend(shard)

    def _continue(self, shard: Channel, watermark: int, durable: int | None = None) -> list[Effect]:
        """Go on with an incarnation that has this watermark: forget what is covered, send the rest again."""
        try:
            self._freed(shard.go_on(self.worker, watermark, durable))
        except WatermarkError as error:
            return self._fail("watermark", str(error))
        return self._resend(shard)

    def _freed(self, size: int) -> None:
        """Pushes of so many bytes became durable on a shard."""
        self._kept_bytes -= size
        if self.leasing.waits or self.runs.waits:
            everywhere = min(shard.durable for shard in self._shards.values())
            self.leasing.durable(everywhere)
            self.runs.durable(everywhere)

    def _fail(self, kind: str, reason: str) -> list[Effect]:
        self.failed, self.failed_kind = reason, kind
        return [Failed(reason)]


def _check_sendable(message: Message, what: str) -> None:
    """Raise RefusedError for a request of which the scheduler could not read a word, and so would not answer."""
    try:
        wire.check(message)
    except WireError as error:
        raise RefusedError(f"{what} cannot be asked for: {error}") from error

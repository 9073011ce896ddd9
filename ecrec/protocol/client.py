"""A worker (or tool) as a sans-I/O machine: numbered pushes, exact pulls, and shards that die.

A worker holds nothing that cannot be lost. What it does hold is every push that is not yet durable and
every pull that is not yet answered, per shard and in the order in which they were made; whenever a shard
may not have them (a new incarnation, a silence), they are sent again in that order (docs/protocol.md).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Disconnect,
    Effect,
    Event,
    Failed,
    Note,
    PullDone,
    Received,
    Send,
    Tick,
)
from ecrec.protocol.messages import (
    CURSOR_BITS,
    DOWN,
    SCHEDULER,
    SHARD,
    WORKER,
    Address,
    CreateTable,
    DataLost,
    Dataset,
    Fenced,
    Flush,
    Frames,
    Hello,
    Leased,
    LeaseSplit,
    Message,
    NoSplit,
    Pull,
    PullRefused,
    Push,
    PushAck,
    PushRefused,
    Refused,
    Reinitialise,
    Rows,
    Section,
    Settle,
    ShardDown,
    ShardUp,
    ShardWhole,
    Start,
    TableAdded,
    TableReady,
    View,
    Views,
    Welcome,
    WorkerFenced,
    WorkerStatus,
)
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, TableSpec

RESEND_BACKOFF_MAX = 8
"""A shard that stays silent is sent things again ever more slowly, down to once in resend_ms times this: everything at
first, then the oldest request alone, so that copies do not pile up before a shard that hangs."""

GROUPS_MAX = 1 << 16
"""More coding groups than there are workers for; bounds what a damaged view can cost."""

_SCHEDULER = Address(SCHEDULER, 0, 0)

SectionsAndFrames = tuple[list[Section], Frames]
"""What is asked of, or sent to, one shard."""


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


class SplitLease(NamedTuple):
    """Examples first <= i < last of a data set, leased to this worker."""

    lease: int
    first: int
    last: int


class _Ticket:
    """A pull: who was asked, what came."""

    def __init__(self, shards: Sequence[int], exact: bool) -> None:
        self.shards = tuple(shards)
        self.exact = exact
        self.answers: dict[int, Frames] = {}


class ClientMachine:
    """The protocol of one worker's (or tool's) process.

    ``worker`` is its number among the workers; ``process`` a random name of this life of it. Shards are
    numbered over all groups: group * n + number in the group. Tools (``role=TOOL``) pull and create tables,
    but never push, and so say no Hello and have no watermark.
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
        """``lost`` (data), ``refused`` (a request), ``fenced`` or ``watermark`` (updates were lost)."""
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
        self._requests = 0
        self._tickets: dict[int, _Ticket] = {}
        self._creating: dict[str, tuple[int, TableSpec]] = {}
        self._created: set[str] = set()
        self.cursor = 0
        """How far the leases are done, and durable on all shards."""
        self.finished: set[str] = set()
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
        self._pushes = 0
        self._cursors: deque[tuple[int, int]] = deque()
        """(number of pushes of this life, cursor after them), as long as they are not durable."""
        self._asked_ms = 0.0
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
        """False before `ready`, while a shard has too many unacknowledged pushes or an exact pull is open."""
        return not self._why_no_push()

    def epoch_of(self, shard: int) -> int:
        """Epoch of the newest incarnation heard of."""
        return self._shards[shard].epoch

    def down(self) -> list[int]:
        """Shards that have no running incarnation."""
        return [number for number, shard in sorted(self._shards.items()) if not shard.connected]

    def table_ready(self, name: str) -> bool:
        """Every running shard has the table."""
        return name in self._created

    def validate_state(self) -> None:
        """Assert the invariants; for tests, after every event."""
        for number, shard in self._shards.items():
            assert shard.acked <= shard.pushed, (number, shard.acked, shard.pushed)
            pushes = [kept.push for kept in shard.kept if kept.push]
            assert pushes == list(range(shard.acked + 1, shard.pushed + 1)), (number, pushes)
            for kept in shard.kept:
                assert kept.push or number not in self._tickets[kept.request].answers
            assert not shard.greeted or (shard.connected and shard.welcomed), number
        for ticket in self._tickets.values():
            assert len(ticket.answers) < len(ticket.shards)
        numbers = [lease.lease for lease in self.leases]
        assert numbers == sorted(set(numbers)), numbers
        cursors = [self.cursor, *(cursor for _, cursor in self._cursors)]
        assert cursors == sorted(set(cursors)), cursors

    # ------------------------------------------------------------------ requests
    def create_table(self, spec: TableSpec) -> list[Effect]:
        """Ask for a table, repeatedly until `table_ready`; one that is there with an equal spec is taken."""
        if spec.name in self._created and self.tables[spec.name][1] == spec:
            return []
        known = self._creating.get(spec.name)
        if known is not None and known[1] == spec:
            return []
        self._created.discard(spec.name)
        self._requests += 1
        self._creating[spec.name] = (self._requests, spec)
        return [Send(_SCHEDULER, CreateTable(self._requests, spec))]

    def lease(self, dataset: Dataset) -> list[Effect]:
        """Ask for one more split, repeatedly until it is there (`leases`) or there is none left (`finished`).

        Raises RuntimeError while an earlier split is still asked for.
        """
        if self._asking is not None:
            raise RuntimeError(f"worker {self.worker} already waits for a split of {self._asking[1].name!r}")
        self._requests += 1
        self._asking, self._asking_ms = (self._requests, dataset), 0.0
        return [Send(_SCHEDULER, LeaseSplit(*self._asking, self.cursor))]

    @property
    def examples_left(self) -> int | None:
        """Of the first lease that is not pushed to its end; None without one."""
        if not self.leases:
            return None
        return self.leases[0].last - self.leases[0].first - self._leased_done

    @property
    def asking(self) -> bool:
        """A split is asked for, and the scheduler has neither given one nor said that all are trained on."""
        return self._asking is not None

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
        Raises RuntimeError unless `can_push`; ValueError for an unknown shard, or for more examples than are left of
        the first lease.
        """
        why = self._why_no_push()
        if why:
            raise RuntimeError(f"worker {self.worker} cannot push: {why}")
        self._check_shards(by_shard)
        cursor = self._advance_cursor(examples)
        effects: list[Effect] = []
        for number, shard in sorted(self._shards.items()):
            sections, frames = by_shard.get(number, ([], ()))
            shard.pushed += 1
            kept = _Kept(shard.pushed, 0, 0, barrier, assign, sections, frames, cursor)
            effects += self._keep(number, shard, kept)
        return effects

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
        made since, so no push is let out before it is answered. Others see whatever is there.
        Raises RuntimeError before `ready`.
        """
        if not self.ready:
            raise RuntimeError(f"worker {self.worker} cannot pull: the cluster is not known yet")
        self._check_shards(by_shard)
        self._requests += 1
        ticket = self._requests
        if not by_shard:
            return ticket, [PullDone(ticket, {})]
        self._tickets[ticket] = _Ticket(list(by_shard), exact)
        effects: list[Effect] = []
        for number, (sections, frames) in by_shard.items():
            shard = self._shards[number]
            after = shard.pushed if exact else 0
            effects += self._keep(number, shard, _Kept(0, ticket, after, 0, records, sections, frames))
        return ticket, effects

    # ------------------------------------------------------------------ events
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take an event, return what is to be done, in order; nothing any more once `failed` is set."""
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
        self._asked_ms += awake_ms
        if isinstance(event, Tick):
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
            status = WorkerStatus(self.process, list(self._views), dict(self.figures), self.cursor)
            effects.append(Send(_SCHEDULER, status))
        if self._creating and self._asked_ms >= self.config.resend_ms:
            self._asked_ms = 0.0
            effects += [Send(_SCHEDULER, CreateTable(*asked)) for asked in self._creating.values()]
        if self._asking and now_ms - self._asking_ms >= self.config.heartbeat_ms:
            self._asking_ms = now_ms
            effects.append(Send(_SCHEDULER, LeaseSplit(*self._asking, self.cursor)))
        for number, shard in sorted(self._shards.items()):
            if shard.connected and not shard.greeted:
                if shard.quiet_ms >= self.config.heartbeat_ms:
                    effects += self._greet(number, shard)
            elif shard.kept and shard.greeted and shard.quiet_ms >= self.config.resend_ms * shard.patience:
                effects += self._resend(number, shard, oldest_alone=shard.patience > 1)
                shard.patience = min(2 * shard.patience, RESEND_BACKOFF_MAX)
        return effects

    # ------------------------------------------------------------------ from the scheduler
    def _on_scheduler(self, message: Message) -> list[Effect]:
        if isinstance(message, Views):
            self._check_views(message)
            effects: list[Effect] = []
            for view in message.views:
                effects += self._on_view(message.group, view)
                if self.failed:
                    break
            return effects
        if isinstance(message, TableReady):
            return self._on_table_ready(message)
        if isinstance(message, Leased | NoSplit):
            return self._on_split(message)
        if isinstance(message, Refused):
            if self._asking and message.request == self._asking[0]:
                return self._fail("refused", f"the scheduler refused a split: {message.reason}")
            for name, (request, _) in self._creating.items():
                if request == message.request:
                    return self._fail("refused", f"table {name!r} was refused by the scheduler: {message.reason}")
            return []
        if isinstance(message, Fenced):
            return self._fail("fenced", f"worker {self.worker} was fenced by the scheduler: {message.reason}")
        return []

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

    def _on_table_ready(self, message: TableReady) -> list[Effect]:
        for name, (request, spec) in list(self._creating.items()):
            if request == message.request:
                del self._creating[name]
                self.tables[name] = (message.index, spec)
                self._created.add(name)
        return []

    def _on_split(self, message: Leased | NoSplit) -> list[Effect]:
        if self._asking is None or message.request != self._asking[0]:
            return []
        self.split_answers += 1
        if isinstance(message, NoSplit):
            if message.finished:
                self.finished.add(self._asking[1].name)
                self._asking = None
            return []
        if not (self._newest_lease < message.lease and 0 <= message.first < message.last):
            raise ValueError(
                f"lease {message.lease} of examples {message.first} to {message.last}, after lease {self._newest_lease}"
            )
        self._asking = None
        self._newest_lease = message.lease
        self.leases.append(SplitLease(message.lease, message.first, message.last))
        return []

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
        assert isinstance(view, Settle | ShardWhole), view
        return []

    def _on_start(self, group: int, view: Start) -> list[Effect]:
        if view.lost:
            return self._fail("lost", f"data was lost in group {group}: {view.lost}")
        if not self._started:
            self.n, self.groups, self.config = view.n, view.groups, view.config
            self._views = [-1] * view.groups
            self._tables_seen = [0] * view.groups
        effects: list[Effect] = []
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
        return [Connect(Address(SHARD, number, epoch), endpoint)]

    # ------------------------------------------------------------------ from the shards
    def _on_shard(self, event: Received, now_ms: float) -> list[Effect]:
        shard = self._shards.get(event.source.id)
        if shard is None or not shard.connected or event.source.epoch != shard.epoch:
            return []  # an answer of a life that is over says nothing of the present one
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
            return self._fail("refused", f"{event.source} refused push {message.number}: {message.reason}")
        if isinstance(message, PullRefused):
            return self._fail("refused", f"{event.source} refused pull {message.request}: {message.reason}")
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

    # ------------------------------------------------------------------ helpers
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
        return ""

    def _check_shards(self, by_shard: Mapping[int, Any]) -> None:
        for number in by_shard:
            if number not in self._shards:
                raise ValueError(f"no shard {number}: there are {len(self._shards)}")

    def _keep(self, number: int, shard: _Shard, kept: _Kept) -> list[Effect]:
        if not shard.kept:
            shard.quiet_ms, shard.patience = 0.0, 1
        shard.kept.append(kept)
        return [self._send(number, shard, kept)] if shard.greeted else []

    def _send(self, number: int, shard: _Shard, kept: _Kept) -> Send:
        message: Message
        if kept.push:
            message = Push(self.epoch, kept.push, kept.barrier, kept.flag, kept.sections, kept.cursor)
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
            shard.kept = [kept for kept in shard.kept if not 0 < kept.push <= durable]
            if self._cursors:
                everywhere = min(shard.acked - shard.base for shard in self._shards.values())
                while self._cursors and self._cursors[0][0] <= everywhere:
                    self.cursor = self._cursors.popleft()[1]

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

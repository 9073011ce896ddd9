"""The machine of the scheduler: who is a member, which tables there are (docs/protocol.md).

The scheduler decides; nothing that it says or hears is needed for a push or a pull, so training goes on while it is
down. Everything between it and the others may be lost and is said again: members repeat what they know in each
heartbeat, and the scheduler sends again the views that a heartbeat shows to be missing. A heartbeat's view confirms
all views up to it; that is how a settlement is confirmed by everybody.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connect, Disconnect, Disconnected, Effect, Event, Note, Persist, Received, Send, Tick
from ecrec.protocol.leases import Leases, LeaseState
from ecrec.protocol.loss import LOST_ROWS_MAX, describe_rows, has_data, lost_rows, undecodable
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, SCHEDULER, SEEDED, SHARD, TOOL, UP, WORKER, Address
from ecrec.protocol.placement import CodeSpec, Placement, TableSpec

VIEWS_KEPT_MAX = 10_000
"""Views kept for members that are behind; one that is farther behind is told to stop."""
HISTORY_MAX = 1_000
LOSSES_MAX = 16
"""Losses that are kept with their rows; all are counted."""
TABLE_BYTES_MAX = 1 << 46
"""Of one table, and of all on a shard: half of a process's address space. The native store has the same limit."""
FLOAT32_MAX = 3.4028234663852886e38
CANDIDATES_MAX = 4096
"""Processes that wait for a place; bounds what invented ones can cost until they are forgotten."""
CLIENTS_MAX = 1 << 17
"""Workers and tools that were heard of lately."""
CREATING_MAX = 1 << 16
"""Requests for tables that are not everywhere yet; they are repeated by whoever waits."""
TABLES_MAX = 65_535
"""Keys have 16 bits for the table."""


class Settlement(msgspec.Struct):
    """A dead incarnation: what the survivors said, and the cut once it is decided."""

    epoch: int
    reports: dict[str, m.Report] = {}
    """``"shard:epoch"`` of the survivor -> its report."""
    window: int = -1
    marks: dict[int, int] = {}
    view: int = -1
    """Number of the Settle view; -1 until decided."""
    reinitialised: list[int] = []
    """Classes whose rows the replacement does not repair, because nobody can."""


class Place(msgspec.Struct):
    """A shard of a group as the scheduler knows it."""

    epoch: int = 0
    state: str = DOWN
    process: str = ""
    endpoint: str = ""
    start: m.Start | None = None
    """What its process was, or is to be, started with."""
    reseeding: list[int] = []
    """Classes whose parity on it is seeded anew."""
    weak_since: int = 0
    """View that took from it what it may have reported before: that it is whole."""
    losses_counted: int = 0
    """View of the last loss that it has reported its part of."""


class Group(msgspec.Struct):
    """A coding group: its view, its places and what happened since it started."""

    view: int = 0
    places: list[Place] = []
    views: list[m.AnyView] = []
    settlements: dict[int, Settlement] = {}
    table_views: list[int] = []
    """Number of the view that added each table; 0 for those of before the start."""
    lost: str = ""
    doomed: list[int] = []
    """Classes that deaths have left undecodable; they are re-initialised once all deaths are settled."""
    damaged: list[str] = []
    """Replicated tables that lost rows in all copies."""


class State(msgspec.Struct):
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


@dataclass(slots=True)
class Candidate:
    """A shard's process without a place."""

    endpoint: str
    wanted: int
    heard_ms: float


@dataclass(slots=True)
class Contact:
    """What the last heartbeat of a member said, and when views were last sent to it."""

    heard_ms: float
    view: int = -1
    sent_view: int = -1
    sent_ms: float = -1e18
    status: m.ShardStatus | None = None


@dataclass(slots=True)
class Client:
    """A worker or tool that was heard of."""

    address: Address
    """Where to answer it: under epoch 0 until it knows its epoch."""
    epoch: int
    views: list[int]
    sent_views: list[int]
    sent_ms: float
    heard_ms: float
    figures: dict[str, float]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


def read_state(data: bytes) -> State:
    """A state that was persisted. ConfigurationError for bytes that are none, or that contradict themselves."""
    try:
        state = _decode(data)
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
    state.leases.check(len(state.groups))
    return state


class SchedulerMachine:
    """Membership of all groups. ``state`` is the newest one given to `Persist`, or None for a new cluster."""

    def __init__(self, n: int, groups: int, config: ProtocolConfig, state: bytes | None) -> None:
        Placement(n)
        self.config = config
        if state is None:
            self.state = State(n, [Group(places=[Place() for _ in range(n)]) for _ in range(groups)])
        else:
            self.state = read_state(state)
            if (self.state.n, len(self.state.groups)) != (n, groups):
                raise ConfigurationError(
                    f"the stored cluster has {len(self.state.groups)} group(s) of {self.state.n} shards, "
                    f"not {groups} of {n}: start with the same numbers or with another state file"
                )
        self.placement = Placement(n)
        for table in self.state.tables:
            self.placement.add(table.code)
        self.address = Address(SCHEDULER, 0, 0)
        self.now_ms = 0.0
        self._ticked_ms: float | None = None
        self.candidates: dict[str, Candidate] = {}
        self.contacts: dict[tuple[int, int], Contact] = {}
        self.clients: dict[tuple[int, int], Client] = {}
        self.creating: dict[tuple[Address, int], int] = {}
        self.effects: list[Effect] = []
        self._resumed = state is None
        self._changed = False
        self.leases = Leases(self)
        self._handlers: dict[type, Callable[[Address, Any], None]] = {
            m.Register: self._on_register,
            m.ShardStatus: self._on_shard_status,
            m.WorkerStatus: self._on_worker_status,
            m.CreateTable: self._on_create_table,
            m.LeaseSplit: self.leases.on_lease_split,
            m.ClusterQuery: self._on_query,
        }

    # ------------------------------------------------------------------ the one way in
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take one event; return what is to be done, in order. A changed state is persisted before anything is sent."""
        self.now_ms = now_ms
        self.effects = []
        if self._ticked_ms is None:
            # Before the first Tick too it may be I who stands still.
            self._ticked_ms = now_ms
        self._resume()
        if isinstance(event, Received):
            handler = self._handlers.get(type(event.message))
            if handler is None:
                kind = type(event.message).__name__
                self.effects.append(
                    Note("warning", f"{event.source}: dropped a {kind}, which a scheduler does not take")
                )
            else:
                handler(event.source, event.message)
        elif isinstance(event, Disconnected):
            self._suspect(event.address, "its connection is closed")
        elif isinstance(event, Tick):
            self._on_tick()
        for number in range(len(self.state.groups)):
            self._advance(number)
        self.leases.advance()
        self._send_views()
        effects, self.effects = self.effects, []
        if self._changed:
            self._changed = False
            effects.insert(0, Persist(_encode(self.state)))
        return effects

    def _resume(self) -> None:
        """After a restart every member has the time of a heartbeat to be heard of again."""
        if self._resumed:
            return
        self._resumed = True
        for number, group in enumerate(self.state.groups):
            for shard, place in enumerate(group.places):
                if place.state != DOWN:
                    address = self._address(number, shard)
                    self.contacts[number, shard] = Contact(self.now_ms)
                    self.effects.append(Connect(address, place.endpoint))

    def _address(self, group: int, shard: int) -> Address:
        place = self.state.groups[group].places[shard]
        return Address(SHARD, group * self.state.n + shard, place.epoch)

    def _place(self, address: Address) -> tuple[int, int, Place] | None:
        group, shard = divmod(address.id, self.state.n)
        if not 0 <= group < len(self.state.groups):
            return None
        return group, shard, self.state.groups[group].places[shard]

    # ------------------------------------------------------------------ views
    def _add_view(self, group: Group, view: m.AnyView) -> None:
        group.views.append(view)
        del group.views[:-VIEWS_KEPT_MAX]
        self._changed = True

    def changed(self) -> None:
        """The state must be persisted before anything else is said."""
        self._changed = True

    def announce_fence(self, group: Group, worker: int, epoch: int) -> int:
        """Number of the view that tells a group that a life of a worker is over; 0 for one that has not started."""
        if not group.view:
            return 0
        self._add_view(group, m.WorkerFenced(self._next_view(group), worker, epoch))
        return group.view

    def _next_view(self, group: Group) -> int:
        group.view += 1
        self._changed = True
        return group.view

    def _since(self, group: Group, view: int) -> list[m.AnyView] | None:
        """Views after the given one; None if they are no longer kept."""
        if view >= group.view:
            return []
        if not group.views or group.views[0].number > view + 1:
            return None
        return group.views[view + 1 - group.views[0].number :]

    def _send_views(self) -> None:
        """New views go out at once; views that were sent, and are not confirmed, again after a while."""
        resend_ms = self.config.view_resend_ms
        for number, group in enumerate(self.state.groups):
            if not group.view:
                continue
            for shard, place in enumerate(group.places):
                contact = self.contacts.get((number, shard))
                if place.state == DOWN or contact is None or place.start is None or contact.view >= group.view:
                    continue
                stale = self.now_ms - contact.sent_ms >= resend_ms
                base = contact.view if stale else max(contact.view, contact.sent_view)
                if base >= group.view:
                    continue
                views: list[m.AnyView] = []
                if base < place.start.number:
                    views, base = [place.start], place.start.number
                following = self._since(group, base)
                if following is None:
                    continue
                contact.sent_view, contact.sent_ms = group.view, self.now_ms
                self.effects.append(Send(self._address(number, shard), m.Views(number, views + following)))
        for client in self.clients.values():
            self._send_client_views(client)

    def _send_client_views(self, client: Client) -> None:
        stale = self.now_ms - client.sent_ms >= self.config.view_resend_ms
        for number, group in enumerate(self.state.groups):
            base = client.views[number] if stale else max(client.views[number], client.sent_views[number])
            if not group.view or base >= group.view:
                continue
            views = self._since(group, base) if base > 0 and client.address.epoch else None
            if views is None:
                views = [self._snapshot(number, client.epoch)]
            client.sent_views[number], client.sent_ms = group.view, self.now_ms
            self.effects.append(Send(client.address, m.Views(number, views)))

    def _members(self, group: Group) -> list[m.Member]:
        return [m.Member(i, p.epoch, p.state, p.endpoint, list(p.reseeding)) for i, p in enumerate(group.places)]

    def _snapshot(self, number: int, epoch: int) -> m.Start:
        """The present view for a worker or tool."""
        group = self.state.groups[number]
        return m.Start(
            group.view, number, len(self.state.groups), self.state.n, -1, epoch, False, 0, {},
            self._members(group), self.state.tables, [], group.lost, self.config, [], group.damaged,
        )  # fmt: skip

    def _remember(self, event: str, group: int, shard: int, epoch: int) -> None:
        shard += group * self.state.n
        self.state.history.append(m.HistoryEntry(self.now_ms, event, shard, epoch))
        del self.state.history[:-HISTORY_MAX]
        self.effects.append(Note("info", f"shard {shard} (epoch {epoch}): {event}"))
        self._changed = True

    # ------------------------------------------------------------------ processes that want a place
    def _on_register(self, source: Address, message: m.Register) -> None:
        if not -1 <= message.shard < self.state.n * len(self.state.groups):
            reason = (
                f"there is no shard {message.shard}: the cluster has 0 to {self.state.n * len(self.state.groups) - 1}"
            )
            self.effects.append(Send(source, m.Fenced(reason)))
            return
        for number, group in enumerate(self.state.groups):
            for shard, place in enumerate(group.places):
                if place.process == message.process and place.state != DOWN:
                    contact = self.contacts.setdefault((number, shard), Contact(self.now_ms))
                    contact.heard_ms = self.now_ms
                    return  # placed, and its Start is on its way again
                if place.endpoint == message.endpoint and place.state != DOWN:
                    self._down(number, shard, f"another process listens at {message.endpoint}")
        if message.process not in self.candidates and len(self.candidates) >= CANDIDATES_MAX:
            self.effects.append(Note("warning", f"{CANDIDATES_MAX} processes wait for a place: ignored one more"))
            return
        self.candidates[message.process] = Candidate(message.endpoint, message.shard, self.now_ms)

    def _candidate(self, shard: int) -> str | None:
        """A process for this shard (over all groups): one that wants just it, else a spare."""
        for wanted in (shard, -1):
            for process, candidate in self.candidates.items():
                if candidate.wanted == wanted:
                    return process
        return None

    def _advance(self, number: int) -> None:
        """Do what has become possible in a group: settle, start, replace, confirm tables."""
        group = self.state.groups[number]
        if not group.view:
            self._try_start(number, group)
            return
        for shard in list(group.settlements):
            self._try_settle(number, group, shard)
        if group.doomed:
            self._try_reinitialise(number, group)
        for shard in list(group.settlements):
            self._try_replace(number, group, shard)
        for (client, request), index in list(self.creating.items()):
            if self._table_ready(index):
                del self.creating[client, request]
                self.effects.append(Send(client, m.TableReady(request, index)))

    def _try_start(self, number: int, group: Group) -> None:
        """A new group starts when it has a process for every place."""
        chosen: list[str] = []
        for shard in range(self.state.n):
            wanted = number * self.state.n + shard
            process = next((p for p, c in self.candidates.items() if c.wanted == wanted and p not in chosen), None)
            chosen.append(process or "")
        spares = [p for p, c in self.candidates.items() if c.wanted == -1]
        for shard, process in enumerate(chosen):
            if not process:
                if not spares:
                    return
                chosen[shard] = spares.pop(0)
        view = self._next_view(group)
        group.table_views = [0] * len(self.state.tables)
        for place, process in zip(group.places, chosen, strict=True):
            candidate = self.candidates.pop(process)
            place.epoch, place.state, place.process, place.endpoint = 1, UP, process, candidate.endpoint
        for shard in range(self.state.n):
            self._start(number, shard, view, recovering=False, window=0, marks={})
            self._remember("up", number, shard, 1)

    def _start(
        self, number: int, shard: int, view: int, recovering: bool, window: int, marks: dict[int, int],
        reinitialised: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """Write the Start of a place and begin to talk to its process."""
        group = self.state.groups[number]
        place = group.places[shard]
        members = self._members(group)
        unsettled = [members[s] for s, settlement in group.settlements.items() if settlement.view < 0]
        place.start = m.Start(
            view, number, len(self.state.groups), self.state.n, shard, place.epoch, recovering, window, marks,
            members, list(self.state.tables), unsettled, "", self.config, list(reinitialised), [], self.leases.fenced(),
        )  # fmt: skip
        self.contacts[number, shard] = Contact(self.now_ms)
        self.effects.append(Connect(self._address(number, shard), place.endpoint))

    # ------------------------------------------------------------------ deaths
    def _suspect(self, address: Address, reason: str) -> None:
        found = self._place(address)
        if found is not None and found[2].epoch == address.epoch and found[2].state != DOWN:
            self._down(found[0], found[1], reason)

    def _down(self, number: int, shard: int, reason: str) -> None:
        group = self.state.groups[number]
        place = group.places[shard]
        self.effects.append(Note("warning", f"{self._address(number, shard)} is down: {reason}"))
        self.effects.append(Disconnect(self._address(number, shard)))
        place.state, place.reseeding = DOWN, []
        self.contacts.pop((number, shard), None)
        self._add_view(group, m.ShardDown(self._next_view(group), shard, place.epoch))
        group.settlements[shard] = Settlement(place.epoch)
        self._remember("down", number, shard, place.epoch)
        self._check_lost(number, group, shard)

    def _tolerance(self) -> int:
        """How many members of a group may be lost at a time; before there are tables, all."""
        return self.placement.tolerance() if self.state.tables else self.state.n

    def _check_lost(self, number: int, group: Group, shard: int) -> None:
        """The death of this shard may be one too many for some stripes: stop, or remember to re-initialise them."""
        lost = {c for c in self._undecodable(group) if shard in _members_of(self.placement, c)}
        if not lost or group.lost:
            return
        group.doomed = sorted(lost.union(group.doomed))
        self._changed = True
        if not self.config.reinitialise_lost:
            self._lose(number, group, "")
        elif not any(code.r for code in self.placement.codes):
            self._lose(number, group, "; it cannot go on, because without parity nobody knows what they had applied")
        elif all(place.state == DOWN for place in group.places):
            self._lose(number, group, "; it cannot go on, because nobody is left that knows what they had applied")

    def _undecodable(self, group: Group) -> set[int]:
        return undecodable(self.placement, self._members(group))

    def _lose(self, number: int, group: Group, why: str) -> None:
        """Say what is lost, and replace nobody."""
        lost, updates = self._lost(number, group, group.doomed)
        gone = [s for s, place in enumerate(group.places) if place.state != UP]
        names = ", ".join(f"{number * self.state.n + s} ({group.places[s].state})" for s in gone)
        weakest = min((self.placement.code_of(c) for c in group.doomed), key=lambda code: code.r)
        rows, tables = sum(some.rows for some in lost), len({some.table for some in lost})
        most = "up to " if any(group.places[s].state == RECOVERING for s in gone) else ""
        group.lost = (
            f"data lost: shards {names} are not whole, and code {weakest} stands {weakest.r} such shard(s) in a "
            f"stripe; {most}{rows:,} rows of {tables} table(s) are gone: {describe_rows(lost, self.state.tables)}{why}"
        )
        view = self._next_view(group)
        self._add_loss(number, view, lost, updates)
        self._add_view(group, m.DataLost(view, group.lost))
        self._remember("lost", number, gone[-1], group.places[gone[-1]].epoch)

    def _lost(
        self, number: int, group: Group, classes: Iterable[int], known: bool = False
    ) -> tuple[list[m.LostRows], int]:
        """Rows of these classes that are not there, and how many updates may be lost with them.

        Of a shard that recovers, all count: it alone knows which of them it has. With ``known`` they are left out, and
        so are rows that were re-initialised since their shard died.
        """
        rows: list[m.LostRows] = []
        updates = 0
        for shard, member in enumerate(self._members(group)):
            if has_data(member) or (known and member.state != DOWN):
                continue
            settlement = group.settlements.get(shard)
            before = settlement.reinitialised if settlement and known else []
            some = lost_rows(
                self.placement, self.state.tables, set(classes).difference(before), shard, number,
                len(self.state.groups),
            )  # fmt: skip
            rows += some
            if some:
                updates += self._applied(number, shard, settlement)
        return rows, updates

    def _applied(self, number: int, shard: int, settlement: Settlement | None) -> int:
        """Pushes that a shard had applied, as far as is known here."""
        if settlement is not None and settlement.view >= 0:
            return m.pushes_of(settlement.marks)
        if settlement is not None:
            return max((m.pushes_of(report.marks) for report in settlement.reports.values()), default=0)
        contact = self.contacts.get((number, shard))
        return m.pushes_of(contact.status.marks) if contact and contact.status else 0

    def _add_loss(
        self, number: int, view: int, rows: list[m.LostRows], updates: int, reinitialised: bool = False
    ) -> None:
        loss = m.Loss(self.now_ms, number, view, rows[:LOST_ROWS_MAX], updates, reinitialised)
        self.state.losses.append(loss)
        del self.state.losses[:-LOSSES_MAX]
        if reinitialised:
            self.state.rows_reinitialised += sum(some.rows for some in rows)
            self.state.updates_damaged += updates
        self._changed = True

    def _try_reinitialise(self, number: int, group: Group) -> None:
        """All deaths are settled and all survivors know: what is still undecodable begins anew."""
        if group.lost or not all(self._confirmed(number, group, shard) for shard in group.settlements):
            return
        # Who was recovering may have become whole since.
        lost = sorted(self._undecodable(group).intersection(group.doomed))
        group.doomed = []
        self._changed = True
        if not lost:
            return
        replicated = {table.name for table in self.state.tables if table.code.k == 1}
        damaged = sorted(replicated.intersection(some.table for some in self._lost(number, group, lost)[0]))
        group.damaged = sorted({*group.damaged, *damaged})
        rows, updates = self._lost(number, group, lost, known=True)
        view = self._next_view(group)
        for shard, place in enumerate(group.places):
            if place.state == DOWN:
                settlement = group.settlements[shard]
                data = set(self.placement.data_classes(shard)).intersection(lost)
                settlement.reinitialised = sorted(data.union(settlement.reinitialised))
                if any(some.shard == number * self.state.n + shard for some in rows):
                    self._remember("reinitialised", number, shard, place.epoch)
                continue
            place.weak_since = view
            parity = set(self.placement.parity_classes(shard)).intersection(lost)
            if parity and place.state in (UP, RESEEDING):
                place.state = RESEEDING
                place.reseeding = sorted(parity.union(place.reseeding))
        if rows:
            self._add_loss(number, view, rows, updates, reinitialised=True)
        count = sum(some.rows for some in rows)
        reason = (
            f"more deaths than the code stands: {count:,} rows begin again at their initial records, and up to "
            f"{updates:,} updates are lost in part: {describe_rows(rows, self.state.tables)}"
        )
        self.effects.append(Note("warning", reason))
        self._add_view(group, m.Reinitialise(view, lost, reason, damaged))

    def _confirmed(self, number: int, group: Group, shard: int) -> bool:
        """The death of this shard is settled, and every running one has confirmed it."""
        view = group.settlements[shard].view
        if view < 0:
            return False
        for survivor, place in enumerate(group.places):
            contact = self.contacts.get((number, survivor))
            if place.state != DOWN and (contact is None or contact.view < view):
                return False
        return True

    def _try_settle(self, number: int, group: Group, shard: int) -> None:
        """Every running shard has reported: the shortest report is the cut, and brings its watermarks."""
        settlement = group.settlements[shard]
        if settlement.view >= 0 or group.lost:
            return
        reports = []
        for survivor, place in enumerate(group.places):
            if place.state == DOWN:
                continue
            report = settlement.reports.get(f"{survivor}:{place.epoch}")
            if report is None:
                return
            if report.window >= 0:
                reports.append(report)
        if reports:
            cut = min(reports, key=lambda report: report.window)
            settlement.window, settlement.marks = cut.window, cut.marks
        elif group.doomed or self.state.losses:
            # Those who knew it are dead themselves: what it acknowledged cannot be told any more.
            group.doomed = group.doomed or self.placement.data_classes(shard)
            self._lose(number, group, f"; nobody is left that knows what shard {number * self.state.n + shard} applied")
            return
        else:  # nobody had heard of it: it goes on from where it started
            start = group.places[shard].start
            settlement.window, settlement.marks = (start.window, start.marks) if start else (0, {})
        settlement.view = self._next_view(group)
        self._add_view(group, m.Settle(settlement.view, shard, settlement.epoch, settlement.window))
        self._remember("settled", number, shard, settlement.epoch)

    def _try_replace(self, number: int, group: Group, shard: int) -> None:
        """All have confirmed the settlement: start a process that waits for a place, if there is one."""
        settlement = group.settlements[shard]
        if group.lost or group.doomed or not self._confirmed(number, group, shard):
            return
        process = self._candidate(number * self.state.n + shard)
        if process is None:
            return
        candidate = self.candidates.pop(process)
        del group.settlements[shard]
        place = group.places[shard]
        place.epoch, place.state = place.epoch + 1, RECOVERING
        place.process, place.endpoint = process, candidate.endpoint
        place.weak_since = place.losses_counted = 0
        view = self._next_view(group)
        self._start(number, shard, view, True, settlement.window, settlement.marks, settlement.reinitialised)
        up = m.ShardUp(view, shard, place.epoch, place.endpoint, settlement.window, settlement.marks)
        self._add_view(group, up)
        self._remember("up", number, shard, place.epoch)

    # ------------------------------------------------------------------ heartbeats
    def _on_shard_status(self, source: Address, status: m.ShardStatus) -> None:
        found = self._place(source)
        if found is None:
            return
        number, shard, place = found
        if place.epoch != source.epoch or place.state == DOWN or place.process != status.process:
            self.effects.append(
                Send(source, m.Fenced(f"{source} was declared dead; its place is, or will be, another's"))
            )
            return
        contact = self.contacts.setdefault((number, shard), Contact(self.now_ms))
        group = self.state.groups[number]
        # A view that was never decided confirms nothing.
        contact.view = max(contact.view, min(status.view, group.view))
        contact.heard_ms, contact.status = self.now_ms, status
        for report in status.reports:
            settlement = group.settlements.get(report.shard)
            key = f"{shard}:{place.epoch}"
            if (
                settlement
                and settlement.epoch == report.epoch
                and settlement.view < 0
                and key not in settlement.reports
            ):
                settlement.reports[key] = report
                self._changed = True
        for view, tables in status.reinitialised.items():
            if view > place.losses_counted:
                self._count_loss(number, shard, place, view, tables, status)
        if status.whole and place.state in SEEDED and status.view >= place.weak_since:
            place.state, place.reseeding = UP, []
            self._add_view(group, m.ShardWhole(self._next_view(group), shard, place.epoch))
            self._remember("whole", number, shard, place.epoch)

    def _count_loss(
        self, number: int, shard: int, place: Place, view: int, tables: dict[int, int], status: m.ShardStatus
    ) -> None:
        """A shard that recovered when rows were re-initialised says how many of its own are among them."""
        place.losses_counted = view
        known = len(self.state.tables)
        rows = [
            m.LostRows(number * self.state.n + shard, self.state.tables[table].name, count, [], 0)
            for table, count in tables.items()
            if 0 <= table < known and count > 0
        ]
        self._add_loss(number, view, rows, m.pushes_of(status.marks), reinitialised=True)
        self._remember("reinitialised", number, shard, place.epoch)
        self.effects.append(Note("warning", f"re-initialised too: {describe_rows(rows, self.state.tables)}"))

    def _on_worker_status(self, source: Address, status: m.WorkerStatus) -> None:
        epoch = 1
        if source.role == WORKER and not 0 <= source.id < m.WORKERS_MAX:
            reason = f"there is no worker {source.id}: they are 0 to {m.WORKERS_MAX - 1}"
            self.effects.append(Send(source, m.Fenced(reason)))
            return
        if len(self.clients) >= CLIENTS_MAX and (source.role, source.id) not in self.clients:
            return
        if source.role == WORKER:
            known, process = self.state.workers.get(source.id, (0, ""))
            if process != status.process:
                if source.epoch:
                    reason = f"worker {source.id} has been started again (epoch {known})"
                    self.effects.append(Send(source, m.Fenced(reason)))
                    return
                self.leases.fence(source.id, known, "it has been started again")
                known += 1
                self.state.workers[source.id] = known, status.process
                self._changed = True
            elif self.leases.is_fenced(source.id, known):
                reason = f"epoch {known} of worker {source.id} is over, and its splits are another's: start it again"
                self.effects.append(Send(source, m.Fenced(reason)))
                return
            epoch = known
            if source.epoch == epoch:
                self.leases.heard(source, epoch, status.cursor)
        elif source.role != TOOL:
            return
        groups = len(self.state.groups)
        views = list(status.views[:groups]) + [-1] * (groups - len(status.views))
        key = (source.role, source.id)
        client = self.clients.get(key)
        # Two lives of a worker that both have yet to hear of their epoch have the same address.
        if client is None or client.address != source or client.epoch != epoch:
            client = self.clients[key] = Client(source, epoch, views, [-1] * groups, -1e18, self.now_ms, {})
        client.views, client.heard_ms, client.figures = views, self.now_ms, status.figures

    def _on_tick(self) -> None:
        timeout_ms = self.config.heartbeat_timeout_ms
        assert self._ticked_ms is not None  # `handle` has seen to it
        pause_ms = self.now_ms - self._ticked_ms
        self._ticked_ms = self.now_ms
        stood_still = pause_ms > timeout_ms / 2
        self.leases.on_tick(pause_ms if stood_still else 0.0)
        if stood_still:
            # it was I, or the whole machine, that stood still: what was silent meanwhile says nothing
            for contact in self.contacts.values():
                contact.heard_ms += pause_ms
        for number, group in enumerate(self.state.groups):
            silent = {
                shard: self.now_ms - contact.heard_ms
                for (place_group, shard), contact in self.contacts.items()
                if place_group == number and self.now_ms - contact.heard_ms > timeout_ms
            }
            weak = {shard for shard, place in enumerate(group.places) if place.state != UP} if group.view else set()
            patience_ms = timeout_ms
            if len(weak | silent.keys()) > self._tolerance():
                patience_ms = max(timeout_ms, self.config.heartbeat_timeout_many_ms)
            for shard, silent_ms in silent.items():
                if silent_ms > patience_ms:
                    self._down(number, shard, f"silent for {silent_ms:.0f} ms, {patience_ms} are allowed")
            self._part_those_cut_off(number, group, silent.keys())
        for process, candidate in list(self.candidates.items()):
            if self.now_ms - candidate.heard_ms > timeout_ms:
                del self.candidates[process]
        for key, client in list(self.clients.items()):
            if self.now_ms - client.heard_ms > 10 * timeout_ms:
                del self.clients[key]

    def _part_those_cut_off(self, number: int, group: Group, silent: Collection[int]) -> None:
        """Replace one of two members that do not reach each other, unless data would be lost by it.

        Not for a member that is silent here too: it is that one which is dead, and given up in its own time.
        """
        accusations = set()
        for shard, place in enumerate(group.places):
            contact = self.contacts.get((number, shard))
            if place.state == DOWN or shard in silent or contact is None or contact.status is None:
                continue
            for other in set(contact.status.missed).difference(silent):
                accused = group.places[other] if 0 <= other < self.state.n and other != shard else None
                # What it says of an incarnation before this one counts no more.
                if accused and accused.state != DOWN and accused.start and contact.status.view >= accused.start.number:
                    accusations.add((shard, other))
        whole = {shard for shard, place in enumerate(group.places) if place.state == UP}
        victim = cut_off(accusations, whole)
        if victim is None or group.lost or self.state.n - len(whole - {victim}) > self._tolerance():
            return
        others = sorted({a if b == victim else b for a, b in accusations if victim in (a, b)})
        names = ", ".join(str(number * self.state.n + shard) for shard in others)
        reason = f"it and shard(s) {names} have not heard each other for {self.config.link_timeout_ms} ms"
        self._down(number, victim, reason)

    # ------------------------------------------------------------------ tables
    def _on_create_table(self, source: Address, message: m.CreateTable) -> None:
        spec = message.table
        tables = self.state.tables
        known = next((i for i, table in enumerate(tables) if table.name == spec.name), None)
        if known is not None and tables[known] != spec:
            differences = _differences(tables[known], spec)
            reason = f"table {spec.name!r} exists with other properties: {differences}"
            self.effects.append(Send(source, m.Refused(message.request, reason)))
            return
        if known is None:
            try:
                self._check_table(spec)
            except ConfigurationError as error:
                self.effects.append(Send(source, m.Refused(message.request, str(error))))
                return
            known = len(tables)
            tables.append(spec)
            new_code = spec.code not in self.placement.codes
            self.placement.add(spec.code)
            for group in self.state.groups:
                if new_code:
                    self._leave_initial(group, spec.code)
                number = 0
                if group.view:
                    number = self._next_view(group)
                    self._add_view(group, m.TableAdded(number, spec))
                group.table_views.append(number)
            self._changed = True
        if self._table_ready(known):
            self.effects.append(Send(source, m.TableReady(message.request, known)))
        elif len(self.creating) < CREATING_MAX:
            self.creating[source, message.request] = known

    def _leave_initial(self, group: Group, code: CodeSpec) -> None:
        """Rows of a new code on shards that are down are initial ones: there is nothing to repair, nor to wait for."""
        for shard, settlement in group.settlements.items():
            classes = [c for c in self.placement.data_classes(shard) if self.placement.code_of(c) == code]
            settlement.reinitialised = sorted({*settlement.reinitialised, *classes})

    def _check_table(self, spec: TableSpec) -> None:
        """Raise ConfigurationError for a table that no shard could hold."""
        if len(self.state.tables) >= TABLES_MAX:
            raise ConfigurationError(f"table {spec.name!r}: there are {TABLES_MAX} tables already")
        if not spec.name or len(spec.name) > 256:
            raise ConfigurationError(f"table name {spec.name[:300]!r}: expected 1 to 256 characters")
        if not 1 <= spec.rows < 2**47:
            raise ConfigurationError(f"table {spec.name!r}: {spec.rows} rows; expected 1 to 2**47")
        if not 1 <= spec.dim <= 65_536:
            raise ConfigurationError(f"table {spec.name!r}: dimension {spec.dim}; expected 1 to 65536")
        try:
            spec.optimizer.check()
        except ConfigurationError as error:
            raise ConfigurationError(f"table {spec.name!r}: {error}") from error
        # A shard reserves address space for at most all rows of its group, state and parity included.
        largest = max(spec_bytes(spec), sum(map(spec_bytes, [*self.state.tables, spec])) / len(self.state.groups))
        if largest > TABLE_BYTES_MAX:
            raise ConfigurationError(
                f"table {spec.name!r}: with it a shard could need {largest:.3g} bytes of address space, "
                f"{TABLE_BYTES_MAX} are possible"
            )
        numbers = [*spec.optimizer.hyper, spec.init_scale, spec.init_state]
        if any(not abs(number) <= FLOAT32_MAX for number in numbers) or not 0 <= spec.init_seed < 2**64:
            raise ConfigurationError(
                f"table {spec.name!r}: hyper-parameters, scale and state {numbers}, seed {spec.init_seed}; expected "
                "finite float32 numbers and a seed from 0 to 2**64 - 1"
            )
        if spec.code.generator not in ("cauchy", "isal-cauchy"):
            raise ConfigurationError(f"table {spec.name!r}: generator {spec.code.generator!r} is unknown")
        if spec.init not in ("zeros", "uniform"):
            raise ConfigurationError(f"table {spec.name!r}: init {spec.init!r}; expected zeros or uniform")
        self.placement.check(spec.code)

    def _table_ready(self, index: int) -> bool:
        """Every running shard has confirmed the view that added the table."""
        for number, group in enumerate(self.state.groups):
            if not group.view:
                return False
            for shard, place in enumerate(group.places):
                contact = self.contacts.get((number, shard))
                if place.state != DOWN and (contact is None or contact.view < max(1, group.table_views[index])):
                    return False
        return True

    # ------------------------------------------------------------------ for people
    def _on_query(self, source: Address, message: m.ClusterQuery) -> None:
        shards = []
        for number, group in enumerate(self.state.groups):
            for shard, place in enumerate(group.places):
                contact = self.contacts.get((number, shard))
                status = contact.status if contact else None
                shards.append(
                    m.ShardFigures(
                        number * self.state.n + shard,
                        place.epoch,
                        place.state,
                        place.endpoint,
                        self.now_ms - contact.heard_ms if contact else -1.0,
                        status.marks if status else {},
                        status.durable if status else {},
                        status.figures if status else {},
                    )
                )
        workers = {c.address.id: c.figures for c in self.clients.values() if c.address.role == WORKER}
        state = m.ClusterState(
            message.request, self.state.n, len(self.state.groups), [g.view for g in self.state.groups], shards, workers,
            self.state.tables, self.state.history, len(self.candidates), "; ".join(_nonempty(self.state.groups)),
            self.state.losses, self.state.rows_reinitialised, self.state.updates_damaged,
            self.leases.figures(), self.leases.fenced(),
        )  # fmt: skip
        self.effects.append(Send(source, state))


def cut_off(accusations: set[tuple[int, int]], whole: set[int]) -> int | None:
    """Whom to replace, given who has not heard whom (accuser, accused), and who is whole; None if nobody is missed.

    The one with whom most have lost touch; among equals rather one that is not whole, then the one that more accuse.
    """
    if not accusations:
        return None

    def rank(shard: int) -> tuple[int, bool, int, int]:
        partners = {a if b == shard else b for a, b in accusations if shard in (a, b)}
        accusers = sum(accused == shard for _, accused in accusations)
        return len(partners), shard not in whole, accusers, shard

    return max({shard for pair in accusations for shard in pair}, key=rank)


def spec_bytes(spec: TableSpec) -> float:
    """Most bytes that all rows of a table can have, optimizer state and padding included."""
    return spec.rows * (4.0 * (spec.dim + spec.optimizer.state_floats(spec.dim)) + 16)


def _nonempty(groups: Iterable[Group]) -> list[str]:
    return [group.lost for group in groups if group.lost]


def _members_of(placement: Placement, class_id: int) -> tuple[int, ...]:
    stripe = placement.classes[class_id]
    return stripe.data + stripe.parity


def _differences(ours: TableSpec, theirs: TableSpec) -> str:
    pairs = ((name, getattr(ours, name), getattr(theirs, name)) for name in TableSpec.__struct_fields__)
    return ", ".join(f"{name} is {a}, not {b}" for name, a, b in pairs if a != b)

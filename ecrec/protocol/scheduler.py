"""The machine of the scheduler: who is a member, which tables there are (docs/protocol.md).

The scheduler decides; nothing that it says or hears is needed for a push or a pull, so training goes on while it is
down. Everything between it and the others may be lost and is said again: members repeat what they know in each
heartbeat, and the scheduler sends again the views that a heartbeat shows to be missing.

`SchedulerMachine` takes the events and says in which order its parts act. Each part has one conversation, owns what it
knows of it, and shares the persisted state with the others (``context.py``).
"""

from collections.abc import Callable
from typing import Any

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission
from ecrec.protocol.announcer import Announcer
from ecrec.protocol.answers import cluster_state
from ecrec.protocol.checkpoints import Checkpoints
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.context import Context
from ecrec.protocol.deaths import Deaths
from ecrec.protocol.drains import Drains
from ecrec.protocol.events import (
    Effect,
    Event,
    FileWritten,
    HalfHandledError,
    Link,
    Persist,
    Received,
    Stop,
    Tick,
    half_handled,
)
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.losses import Losses
from ecrec.protocol.members import Members
from ecrec.protocol.messages import DOWN, NOT_WHOLE, SHARD, TOOL, WORKER, Address
from ecrec.protocol.placement import Placement
from ecrec.protocol.rebuilding import Rebuilding, Rebuilt
from ecrec.protocol.runs import Runs
from ecrec.protocol.settlement import Settlements
from ecrec.protocol.state import Group, Place, State, encode_state, read_state
from ecrec.protocol.successions import Successions
from ecrec.protocol.tables import Tables
from ecrec.protocol.transitions import BECAME_WHOLE
from ecrec.protocol.workers import Workers

CLIENTS = (WORKER, TOOL)
SPEAKERS = {
    m.Register: (SHARD,),
    m.ShardStatus: (SHARD,),
    m.ShardCensus: (SHARD,),
    m.Unfit: (SHARD,),
    m.Leave: (SHARD,),
    m.Handover: (SHARD,),
    m.WorkerCensus: (WORKER,),
    m.ClusterQuery: (WORKER, TOOL, SHARD),
    m.StoryQuery: (WORKER, TOOL),
}
"""Message -> roles that may send it; all others are the clients'."""
NOT_IN_A_RESTORE = (m.CreateTable, m.LeaseSplit, m.InitialiseTable, m.JoinRun, m.Save)
"""What nobody is given before a restore is done."""
HEARD_OF_THOSE_AHEAD = (m.WorkerStatus, m.ClusterQuery, m.StoryQuery)
"""What is taken of a worker or tool that knows a newer state."""
RESTORING = (
    "a checkpoint is being brought into this cluster: wait until that is done; after an interrupted one, start anew"
)


class SchedulerMachine:
    """Membership of all groups. ``state`` is the newest one given to `Persist`, or None for a new cluster.

    ``cluster``: a random name, which a new cluster gets. ``adopt``: a state that turns out to be older than the living
    cluster, or none of it, is made again from what its members tell; else the machine stops.
    """

    def __init__(
        self, n: int, groups: int, config: ProtocolConfig, state: bytes | None, cluster: str = "", adopt: bool = False
    ) -> None:
        self.config = config
        self.context = Context(config, _first_state(n, groups, state, cluster))
        self.rebuilding = Rebuilding(self.context, is_new=state is None, may_adopt=adopt)
        self._ticked_ms: float | None = None
        self._first_ms: float | None = None
        """When it began to listen."""
        self._resumed = state is None
        self._owed: list[Effect] = []
        """What follows from a restart, and was not handed out because the first message was refused."""
        self._copy_to: list[Address] = []
        """Shards that are sent a copy of the state as soon as what is decided now is persisted."""
        self.members = Members(self.context)
        self.admission = Admission(self.context, self.members)
        self.drains = Drains(self.context, self.admission)
        self._make_parts()
        self._handlers: dict[type, Callable[[Address, Any, m.Frames], None]] = {
            m.Register: self._on_register,
            m.ShardStatus: self._on_shard_status,
            m.WorkerStatus: self._on_worker_status,
            m.CreateTable: self._on_create_table,
            m.Unfit: self._on_unfit,
            m.Leave: self._on_leave,
            m.Handover: self._on_handover,
            m.Drain: self._on_drain,
            m.LeaseSplit: self._on_lease_split,
            m.InitialiseTable: self._on_initialise,
            m.JoinRun: self._on_join_run,
            m.LeaveRun: self._on_leave_run,
            m.Save: self._on_save,
            m.Restore: self._on_restore,
            m.ClusterQuery: self._on_query,
            m.StoryQuery: self._on_story_query,
            m.ShardCensus: self._on_shard_census,
            m.WorkerCensus: self._on_worker_census,
        }

    def _make_parts(self) -> None:
        """Make all that follows from the state."""
        context, members = self.context, self.members
        self.announcer = Announcer(context, members)
        self.losses = Losses(context, members, self.announcer)
        self.settlements = Settlements(context, members, self.announcer, self.admission, self.losses)
        self.successions = Successions(context, members, self.announcer, self.admission, self.settlements)
        self.deaths = Deaths(context, members, self.announcer, self.losses, self.admission, self.successions)
        self.tables = Tables(context, members, self.announcer)
        self.leases = Leases(context, self.announcer)
        self.runs = Runs(context)
        self.initial = InitialValues(context, self.announcer, self.leases)
        self.checkpoints = Checkpoints(context, members, self.announcer, self.leases, self.initial)
        self.workers = Workers(context, self.leases, self.runs, self.initial, self.checkpoints)

    @property
    def address(self) -> Address:
        return self.context.address

    @property
    def state(self) -> State:
        return self.context.state

    # ------------------------------------------------------------------ the one way in
    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        """Take one event; return what is to be done, in order. A changed state is persisted before anything is sent.

        Whatever a check raises at a message is raised here; nothing of the message is done then. Raises
        HalfHandledError for whatever is raised once the state has moved: the process must end, and the next one goes
        on with the state that was persisted last.
        """
        context = self.context
        context.now_ms = now_ms
        context.effects, self._owed = self._owed, []
        try:
            context.is_acting = True
            self._resume()
            owed = len(context.effects)
            context.is_acting = False
            self._take(event)
        except MemoryError:
            raise
        except Exception as error:
            if not context.is_acting and not isinstance(error, HalfHandledError):
                self._owed, context.effects = context.effects[:owed], []
                raise
            raise half_handled(self.address, event, error, context.story.last(now_ms)) from error
        effects, context.effects = context.effects, []
        return effects

    def _take(self, event: Event) -> None:
        context = self.context
        context.serial_before = context.state.serial
        if self._ticked_ms is None:
            # Before the first Tick too it may be I who stands still.
            self._ticked_ms = context.now_ms
        if isinstance(event, Tick):
            context.checked()
            self._on_tick(context.now_ms - self._ticked_ms)
            self._ticked_ms = context.now_ms
        elif isinstance(event, Link):
            context.checked()  # trap: also while the state is in doubt, for nobody says it again
            if not self.rebuilding.keeps(event):  # else the parts that judge it are made again with the state
                self.deaths.on_link(event)
        elif not self.rebuilding.hears(event):  # all but this is said again
            if isinstance(event, Received) and isinstance(event.message, m.WorkerStatus):
                self.rebuilding.serves(event.source, event.message.origin)
        elif isinstance(event, Received):
            self._on_received(event)
        elif isinstance(event, FileWritten):
            context.checked()
            self.checkpoints.on_written(event)
        context.checked()
        if self.rebuilding.is_over and not any(isinstance(effect, Stop) for effect in context.effects):
            self._advance()
        if context.is_changed:
            context.state.serial = context.next_origin.serial
        for shard in self._copy_to:
            self.announcer.send_copy(shard)
        self._copy_to.clear()
        if context.is_changed:
            context.is_changed = False
            context.effects.insert(0, Persist(encode_state(context.state)))

    def _advance(self) -> None:
        """Do what has become possible."""
        self.tables.advance()
        for number in self.settlements.by_risk():
            started = self.state.groups[number].view > 0
            if not started and self._listens():
                continue
            self.settlements.advance(number, self.leases.fenced)
        self.tables.answer()
        self.leases.advance(self.members)
        self.initial.advance(self.members)
        self.checkpoints.advance(self.workers.clients.values())
        self.announcer.send(self.workers.clients.values())

    def _listens(self) -> bool:
        """It has no group yet, and may yet hear of a cluster that lives."""
        if self._first_ms is None:
            self._first_ms = self.context.now_ms
        formed = any(group.view for group in self.state.groups)
        return not formed and self.context.now_ms - self._first_ms < self.config.form_after_ms

    def _resume(self) -> None:
        """After a restart every member has the time of a heartbeat to be heard of again."""
        if self._resumed:
            return
        self._resumed = True
        self.members.meet_all()
        self.rebuilding.verify(set(self.members.contacts))
        if self.rebuilding.is_over:
            self.announcer.configure()

    def _on_tick(self, pause_ms: float) -> None:
        """``pause_ms``: since the last one. After a long pause it was I, or the whole machine, that stood still: what
        was silent meanwhile says nothing."""
        stood_still_ms = pause_ms if pause_ms > self.config.heartbeat_timeout_ms / 2 else 0.0
        self.members.stood_still(stood_still_ms)
        self.rebuilding.stood_still(stood_still_ms)
        if not self.rebuilding.is_over:
            self._on_tick_in_doubt()
            return
        self.leases.on_tick(stood_still_ms)
        self.runs.on_tick(stood_still_ms)
        self.initial.on_tick(stood_still_ms)
        self.checkpoints.on_tick(stood_still_ms)
        self.deaths.on_tick(stood_still_ms, self.tables.preparing.waits_for, self.workers.unheard())
        for shard, reason in self.deaths.blocking().items():
            self.tables.refuse_all(f"shard {shard} is in the way: {reason}")
        self.admission.on_tick()
        self.workers.on_tick(stood_still_ms)

    def _on_tick_in_doubt(self) -> None:
        rebuilt = self.rebuilding.on_tick()
        if rebuilt is not None:
            self._adopt(rebuilt)
        elif self.rebuilding.is_over:
            self.announcer.configure()

    def _adopt(self, rebuilt: Rebuilt) -> None:
        """Go on with a state that was made again, as the next generation."""
        context = self.context
        context.begin_with(rebuilt.state)
        context.changed()
        self._make_parts()
        self.leases.adopted()
        self.members.meet_all()
        state = context.state
        for (number, shard), contact in self.members.contacts.items():
            start = state.groups[number].places[shard].start
            told = rebuilt.told.get(number * state.n + shard)
            # What it was started with it has.
            contact.view = told.view if told is not None else start.number if start else -1
            # What it tells of views that the state was not made with confirms nothing.
            contact.view = min(contact.view, state.groups[number].view)
        for number, group in enumerate(state.groups):
            if not group.view:
                continue
            group.adopted = self.announcer.next_view(group)
            self.announcer.add(group, m.Adopted(group.adopted, state.generation))
            for table in state.tables[len(group.table_views) :]:
                added = self.announcer.next_view(group)
                self.announcer.add(group, m.TableAdded(added, table))
                group.table_views.append(added)
            for shard in list(group.settlements):
                self.losses.check(number, group, shard)
        for event in self.rebuilding.take_links():
            self.deaths.on_link(event)
        self.announcer.configure()
        self.checkpoints.adopted()
        names = ", ".join(str(told.address) for told in rebuilt.told.values())
        context.note("warning", f"adopted cluster {state.cluster!r} as {names} told it")

    # ------------------------------------------------------------------ messages
    def _on_received(self, event: Received) -> None:
        handler = self._handlers.get(kind := type(event.message))
        if self.rebuilding.is_ahead(event.source) and kind not in HEARD_OF_THOSE_AHEAD:
            return
        restorer = self.state.saving.restorer
        if kind in NOT_IN_A_RESTORE and restorer >= 0 and (event.source.role, event.source.id) != (WORKER, restorer):
            # trap: who trains on a half of a checkpoint would never know
            self.context.checked()
            self.context.send(event.source, m.Refused(event.message.request, RESTORING))  # type: ignore[attr-defined]
            return
        if handler is not None and event.source.role not in SPEAKERS.get(kind, CLIENTS):
            text = f"{event.source}: dropped a {kind.__name__}, which is not for it to say"
            self.context.note("warning", text)
        elif handler is None:
            text = f"{event.source}: dropped a {kind.__name__}, which a scheduler does not take"
            self.context.note("warning", text)
        else:
            handler(event.source, event.message, event.frames)

    def _on_register(self, source: Address, message: m.Register, frames: m.Frames) -> None:
        if message.predecessor:
            self.context.checked()
            self.deaths.on_ended(message.predecessor, message.ended)
        self.admission.on_register(source, message, self.deaths.suspicions)
        self.successions.on_register(source, message)
        self.drains.on_register(source, message.process)

    def _on_shard_status(self, source: Address, status: m.ShardStatus, frames: m.Frames) -> None:
        context = self.context
        if not self.rebuilding.belongs(source, status, self.members.any_heard):
            return
        found = context.place_of(source)
        if found is None:
            return
        number, shard, place = found
        group = context.state.groups[number]
        stranger = self._is_over(source, status, group, place)
        if stranger:
            context.fence_off(source, stranger)
            return
        reporter = f"{shard}:{place.epoch}"
        reports = self.settlements.awaited(group, reporter, status.reports)
        losses = {
            view: self.losses.rows_of(number, shard, tables)
            for view, tables in status.reinitialised.items()
            if place.losses_counted < view <= group.view
        }
        context.checked()
        if not place.process:
            place.process = status.process  # it had not told anything when the state was made again
            context.changed()
        contact = self.members.seen(number, shard)
        contact.view, contact.status = max(contact.view, status.view), status
        if contact.repaired_ms < 0 and place.state in NOT_WHOLE and not status.figures.get("classes_to_repair", 1.0):
            contact.repaired_ms = context.now_ms
        if self.rebuilding.verified((number, shard)):
            self.announcer.configure()
        self.leases.raise_number(status.watermarks, not self.rebuilding.may_grant)
        self.tables.preparing.heard(status.prepared)
        self.checkpoints.heard_shard(status)
        self.settlements.take(group, reporter, reports)
        for view, rows in sorted(losses.items()):
            self.losses.count(number, shard, place, view, rows, status)
        if status.whole and place.state in NOT_WHOLE and status.view >= place.weak_since:
            place.step(BECAME_WHOLE)
            place.reseeding = []
            self.announcer.add(group, m.ShardWhole(self.announcer.next_view(group), shard, place.epoch))
            context.remember("whole", number, shard, place.epoch, since_ms=contact.repaired_ms)
        self._copy_to.append(source)

    def _is_over(self, source: Address, status: m.ShardStatus, group: Group, place: Place) -> str:
        """Why a shard is not the member that has its place; empty if it is."""
        known = place.process in ("", status.process)
        if place.epoch != source.epoch or place.state == DOWN or not known:
            return f"{source} was declared dead; its place is, or will be, another's"
        if status.origin.generation < self.state.generation and status.view >= group.adopted:
            # trap: its views of these numbers are others, and confirm nothing
            return f"{source} has followed a scheduler whose views were given up"
        return ""

    def _on_shard_census(self, source: Address, census: m.ShardCensus, frames: m.Frames) -> None:
        rebuilt = self.rebuilding.on_census(source, census, frames)
        if rebuilt is not None:
            self._adopt(rebuilt)

    def _on_unfit(self, source: Address, message: m.Unfit, frames: m.Frames) -> None:
        self.context.checked()
        self.deaths.on_unfit(message)

    def _on_leave(self, source: Address, message: m.Leave, frames: m.Frames) -> None:
        self.context.checked()
        self.deaths.departures.on_leave(source, message)
        found = self.context.place_of(source)
        if message.stays and found is not None and found[2].process == message.process:
            self.successions.stayed(found[0], found[1])

    def _on_handover(self, source: Address, message: m.Handover, frames: m.Frames) -> None:
        self.context.checked()
        if self.successions.on_handover(source, message, self.leases.fenced):
            number = source.id // self.state.n
            self.deaths.suspicions[number].forget(source.id % self.state.n)
            if self.state.saving.is_active:
                self.checkpoints.give_up(f"shard {source.id} is another process now")

    def _on_drain(self, source: Address, message: m.Drain, frames: m.Frames) -> None:
        self.context.checked()
        self.drains.on_drain(source, message)

    def _on_worker_status(self, source: Address, status: m.WorkerStatus, frames: m.Frames) -> None:
        if not self.rebuilding.serves(source, status.origin):
            return
        is_taken = self.workers.on_status(source, status)
        self.rebuilding.meet(source)
        if is_taken:
            suspected = self.deaths.suspected()
            if suspected or status.waits:
                self.context.send(source, m.Suspected(suspected))

    def _on_worker_census(self, source: Address, census: m.WorkerCensus, frames: m.Frames) -> None:
        self.workers.on_census(source, census)

    def _on_save(self, source: Address, message: m.Save, frames: m.Frames) -> None:
        self.context.checked()
        self.checkpoints.on_save(source, message, self.workers.clients.values())

    def _on_restore(self, source: Address, message: m.Restore, frames: m.Frames) -> None:
        refusal = self.leases.restore_refusal(message.datasets)
        saving = self.context.state.saving
        is_new = not self.state.tables or message.into_tables or saving.restorer == message.worker
        if not refusal and message.begins and not is_new:
            refusal = "this cluster has tables already: restore into one that was just started"
        self.context.checked()
        if refusal:
            self.context.send(source, m.Refused(message.request, refusal))
            return
        if message.begins:
            saving.restorer = message.worker
            self.context.changed()
            self.context.send(source, m.Restored(message.request))
            return
        saving.restorer = -1
        if message.url:
            saving.restored = m.RestoredFrom(message.url[: m.URL_CHARACTERS_MAX], message.checkpoint)
        self.context.changed()
        self.leases.restore(message.datasets)
        known, _ = self.context.state.workers.get(message.worker, (0, ""))
        if known == message.worker_epoch > 0 and not self.leases.state.is_fenced(message.worker, known):
            self.leases.end(message.worker, known)
        self.workers.forget(WORKER, message.worker)
        self.context.send(source, m.Restored(message.request))

    def _on_create_table(self, source: Address, message: m.CreateTable, frames: m.Frames) -> None:
        self.tables.on_create(source, message)

    def _on_lease_split(self, source: Address, message: m.LeaseSplit, frames: m.Frames) -> None:
        self.context.checked()
        self.workers.confirm(source)
        self.leases.on_lease_split(source, message, self.rebuilding.has_met(source), self.rebuilding.may_grant)

    def _on_initialise(self, source: Address, message: m.InitialiseTable, frames: m.Frames) -> None:
        self.context.checked()
        self.workers.confirm(source)
        self.initial.on_initialise(source, message)

    def _on_join_run(self, source: Address, message: m.JoinRun, frames: m.Frames) -> None:
        self.context.checked()
        self.workers.confirm(source)
        self.runs.on_join(source, message)

    def _on_leave_run(self, source: Address, message: m.LeaveRun, frames: m.Frames) -> None:
        self.context.checked()
        self.runs.on_leave(source, message)

    def _on_story_query(self, source: Address, message: m.StoryQuery, frames: m.Frames) -> None:
        context = self.context
        context.send(source, m.StoryTold(message.request, "scheduler", context.story.events(context.now_ms)))

    def cluster_state(self, request: int = 0) -> m.ClusterState:
        """What people are told."""
        return cluster_state(
            request, self.context, self.members, self.workers.clients.values(),
            self.admission, self.leases, self.deaths.suspected(),
            self.deaths.departures.waiting(), self.workers.unheard(), self.checkpoints.figures(),
        )  # fmt: skip

    def _on_query(self, source: Address, message: m.ClusterQuery, frames: m.Frames) -> None:
        self.context.send(source, self.cluster_state(message.request))


def _first_state(n: int, groups: int, stored: bytes | None, cluster: str) -> State:
    """The state to begin with. Raises ConfigurationError for a stored one that does not fit."""
    Placement(n)
    if stored is None:
        state = State(n, [Group(places=[Place() for _ in range(n)]) for _ in range(groups)])
        state.cluster = cluster
        return state
    state = read_state(stored)
    state.cluster = state.cluster or cluster
    if (state.n, len(state.groups)) != (n, groups):
        raise ConfigurationError(
            f"the stored cluster has {len(state.groups)} group(s) of {state.n} shards, "
            f"not {groups} of {n}: start with the same numbers or with another state file"
        )
    return state

"""Injected bugs: for each trap of docs/protocol.md, machines that fall into it, by patching the shipped ones.

This file is long because it is a list.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol import settlement
from ecrec.protocol.arrays import NO_KEYS, NO_RECORDS
from ecrec.protocol.captures import Captures
from ecrec.protocol.checkpoints import Checkpoints
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.deaths import Deaths
from ecrec.protocol.events import Persist
from ecrec.protocol.handover import Handover
from ecrec.protocol.heartbeats import Heartbeats
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.losses import Losses
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import DOWN, RECOVERING, UP
from ecrec.protocol.peer import Peer
from ecrec.protocol.peer_windows import PeerWindows
from ecrec.protocol.pushes import Pushes
from ecrec.protocol.requests import Requests
from ecrec.protocol.saver import Base, Saver
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.seeding import ALL_CLASSES, Seeding
from ecrec.protocol.settlement import Settlements
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.shard_workers import ShardWorkers
from ecrec.protocol.stream import InStream
from ecrec.protocol.suspicion import Suspicions
from ecrec.protocol.transitions import ENDING, LEVEL, TOLD
from ecrec.protocol.windows import Windows

Make = Callable[[], AbstractContextManager[Any]]


class Mutation(NamedTuple):
    trap: str
    """As docs/protocol.md and `simulation.coverage.TRAPS` name it; empty: it has no name, and is not counted."""
    make: Make
    seed: int | None
    """One that catches it; if none does any more, because the protocol or the drawing changed, others are tried."""
    hangs: bool = False
    """That the cluster never comes to rest is how it shows; else a cluster that only hangs does not count."""
    scenario: str = ""
    """Where no seed is known that catches it: a test of tests/unit/protocol/test_rare_schedules.py that does."""


MUTATIONS: dict[str, Mutation] = {}


def mutation(trap: str, seed: int | None = None, hangs: bool = False, scenario: str = "") -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        MUTATIONS[make.__name__] = Mutation(trap, make, seed, hangs, scenario)
        return make

    return register


# ------------------------------------------------------------------ pushes, pulls, windows
@mutation("push-again", 1)
def a_push_that_comes_again_is_applied_again() -> AbstractContextManager[Any]:
    real = Pushes.on_push

    def on_push(self: Pushes, source: Any, push: m.Push, frames: Any) -> None:
        watermarks = self.context.watermarks
        if 0 < push.number == watermarks.get(source.id, 0):
            watermarks[source.id] -= 1
        real(self, source, push, frames)

    return mock.patch.object(Pushes, "on_push", on_push)


@mutation("stable-before-durable", 4)
def pushes_are_acknowledged_when_applied() -> AbstractContextManager[Any]:
    real = Pushes._apply

    def apply(self: Pushes, batch: Any) -> bool:
        done = real(self, batch)
        if done:
            for push in batch:
                self.context.reply(push.source, m.PushAck(push.number))
        return done

    return mock.patch.object(Pushes, "_apply", apply)


@mutation("stable-before-durable", 5)
def a_window_is_stable_when_one_peer_has_it() -> AbstractContextManager[Any]:
    def acknowledged(self: Windows, peer: Peer, number: int) -> None:
        done = [unstable for window, unstable in self.context.unstable.items() if window <= number and unstable.waiting]
        for unstable in done:
            unstable.waiting.clear()
        if done:
            self.settle()

    return mock.patch.object(Windows, "acknowledged", acknowledged)


@mutation("half-done", 4)
def a_busy_shard_tells_of_the_event_that_it_is_in() -> AbstractContextManager[Any]:
    real = ShardMachine.while_busy

    def while_busy(self: ShardMachine, now_ms: float) -> list[Any]:
        return [
            e._replace(message=msgspec.structs.replace(e.message, view=self.view, watermarks=dict(self.watermarks)))
            if isinstance(e.message, m.ShardStatus)
            else e
            for e in real(self, now_ms)
        ]

    return mock.patch.object(ShardMachine, "while_busy", while_busy)


@mutation("", 1999)
def a_busy_shard_says_nothing() -> AbstractContextManager[Any]:
    return mock.patch.object(ShardMachine, "while_busy", lambda self, now_ms: [])


@mutation("", scenario="test_an_earlier_life_of_a_worker_is_not_told_what_a_later_one_made_durable")
def an_older_life_of_a_worker_is_told_what_a_newer_one_made_durable() -> AbstractContextManager[Any]:
    """By number alone: it takes the newer life's push for its own."""
    real = ShardWorkers.known

    def known(self: ShardWorkers, source: Any) -> Any:
        context = self.context
        worker = context.workers.get(source.id) if source.role == m.WORKER else None
        if worker is not None and 0 < source.epoch < worker.address.epoch:
            context.checked()
            context.reply(source, m.PushAck(context.durable.get(source.id, 0)))
            return None
        return real(self, source)

    return mock.patch.object(ShardWorkers, "known", known)


@mutation("pull-again", 27)
def pushes_go_on_while_an_exact_pull_waits() -> AbstractContextManager[Any]:
    def why_no_push(self: ClientMachine) -> str:
        full = any(s.pushed - s.acked >= self.config.pushes_in_flight_max for s in self._shards.values())
        return self.failed or ("" if self.ready and not full else "not now")

    return mock.patch.object(ClientMachine, "_why_no_push", why_no_push)


@mutation("", 1)
def a_push_is_sent_unchecked() -> AbstractContextManager[Any]:
    """One shard then refuses its part, and the others apply theirs."""
    return mock.patch.object(Requests, "push", lambda self, by_shard, barrier, assign: dict(by_shard))


@mutation("", scenario="test_pushes_that_were_acknowledged_before_the_first_coded_table_are_known_after_a_death")
def a_peer_without_parity_is_not_told_of_watermarks() -> AbstractContextManager[Any]:
    """Without a coded table nothing is sent: what was acknowledged before the first one is forgotten at a death."""
    return mock.patch.object(ShardContext, "coded", lambda self: any(code.r for code in self.placement.codes))


@mutation("", 94)
def a_stream_goes_on_behind_a_hole() -> AbstractContextManager[Any]:
    def take(self: InStream, sequence: int) -> bool:
        self.ack_due = True
        if sequence <= self.ack:
            return False
        self.ack = sequence
        return True

    return mock.patch.object(InStream, "take", take)


@mutation("", 12)
def a_message_that_comes_twice_is_taken_twice() -> AbstractContextManager[Any]:
    def take(self: InStream, sequence: int) -> bool:
        self.ack_due = True
        if sequence > self.ack + 1:
            return False
        self.ack = max(self.ack, sequence)
        return True

    return mock.patch.object(InStream, "take", take)


# ------------------------------------------------------------------ a death
@mutation("undone-beyond-the-cut", 5)
def nothing_is_undone_beyond_the_cut() -> AbstractContextManager[Any]:
    real = Membership._on_settle

    def on_settle(self: Membership, view: m.Settle) -> None:
        real(self, m.Settle(view.number, view.shard, view.epoch, 1 << 60))

    return mock.patch.object(Membership, "_on_settle", on_settle)


@mutation("reports-differ", 5)
def the_longest_report_is_the_cut() -> AbstractContextManager[Any]:
    def longest(*some: Any, **by: Any) -> Any:
        reports = len(some) == 1 and all(isinstance(one, m.Report) for one in some[0])
        return max(*some, **by) if reports else min(*some, **by)

    return mock.patch.object(settlement, "min", longest, create=True)


@mutation("watermarks-with-report", 1)
def watermarks_are_not_those_of_the_reported_window() -> AbstractContextManager[Any]:
    return mock.patch.object(Peer, "watermarks_received", lambda self: dict(self.watermarks))


@mutation("reporter-dies", 107)
def a_report_of_a_survivor_that_died_still_counts() -> AbstractContextManager[Any]:
    """Its windows died with it; a cut below those of all others is one that nobody can go back to."""
    real = Settlements._try_settle

    def try_settle(self: Settlements, number: int, group: Any, shard: int) -> None:
        reports = group.settlements[shard].reports
        alive = [f"{s}:{p.epoch}" for s, p in enumerate(group.places) if p.state != DOWN]
        dead = [r for key, r in reports.items() if key not in alive and r.window >= 0]
        if dead and all(key in reports for key in alive):
            for key in alive:
                reports[key] = dead[0]
        real(self, number, group, shard)

    return mock.patch.object(Settlements, "_try_settle", try_settle)


@mutation("nothing-heard", scenario="test_a_member_that_heard_nothing_of_a_replacement_reports_its_first_cut")
def an_incarnation_that_was_not_heard_of_is_not_reported() -> AbstractContextManager[Any]:
    real = Membership._on_up

    def on_up(self: Membership, view: m.ShardUp) -> None:
        real(self, view)
        if view.shard != self.context.shard:
            self.context.peers[view.shard].received = None

    return mock.patch.object(Membership, "_on_up", on_up)


@mutation("younger-reporter", 60)
def a_shard_younger_than_the_dead_reports_too() -> AbstractContextManager[Any]:
    real = Membership._place

    def place(self: Membership, start: m.FullView, origin: m.Origin) -> bool:
        placed = real(self, start, origin)
        for shard, report in list(self.reports.items()):
            self.reports[shard] = m.Report(report.shard, report.epoch, 0, {})
        return placed

    return _without_patience_of_shards(mock.patch.object(Membership, "_place", place))


@mutation("settle-confirmed", 4)
def a_replacement_starts_before_the_settlement_is_confirmed() -> AbstractContextManager[Any]:
    real = Settlements._try_replace

    def try_replace(self: Settlements, number: int, group: Any, shard: int, fenced: Any) -> None:
        settled = group.settlements[shard].view
        contacts = [c for (g, _), c in self.members.contacts.items() if g == number]
        views = [contact.view for contact in contacts]
        for contact in contacts:
            contact.view = max(contact.view, settled)
        real(self, number, group, shard, fenced)
        for contact, view in zip(contacts, views, strict=True):
            contact.view = view

    return mock.patch.object(Settlements, "_try_replace", try_replace)


@mutation("fenced", 17)
def what_a_dead_incarnation_sent_is_still_taken() -> AbstractContextManager[Any]:
    real = ShardMachine._on_shard

    def on_shard(self: ShardMachine, event: Any) -> None:
        peer = self.peers.get(event.source.id - self.context.base) if self.state else None
        is_dead = peer is not None and not peer.running and event.source.epoch == peer.epoch
        if peer is not None and is_dead:
            peer.state = UP
        real(self, event)
        if peer is not None and is_dead:
            peer.state = DOWN

    return mock.patch.object(ShardMachine, "_on_shard", on_shard)


@mutation("too-many", 55)
def more_deaths_than_the_code_stands_go_unsaid() -> AbstractContextManager[Any]:
    return mock.patch.object(Losses, "check", lambda self, number, group, shard: None)


@mutation("", 14)
def a_closed_connection_is_a_death_whatever_is_lost() -> AbstractContextManager[Any]:
    return mock.patch.object(Deaths, "_tolerates", lambda self, group, shards, uncoded: True)


@mutation("", 1)
def peers_are_not_asked_about_a_closed_connection() -> AbstractContextManager[Any]:
    real = Suspicions._is_dead

    def is_dead(self: Suspicions, sign: Any, signs: Any, words: Any, now_ms: float) -> str:
        charge = self._closed.get(sign.shard)
        return charge.reason if charge is not None else real(self, sign, signs, words, now_ms)

    return mock.patch.object(Suspicions, "_is_dead", is_dead)


# ------------------------------------------------------------------ repair
@mutation("recovering-markers", 47)
def a_recovering_member_sends_no_marker() -> AbstractContextManager[Any]:
    real = Captures._members

    def members(self: Captures, class_id: int) -> list[Peer]:
        return [peer for peer in real(self, class_id) if peer.state != RECOVERING]

    return mock.patch.object(Captures, "_members", members)


@mutation("repair-in-one-view", 56)
def a_repair_outlives_its_view() -> AbstractContextManager[Any]:
    """The replacement asks again; what others have of its first request stays."""
    return mock.patch.object(Captures, "forget", lambda self, classes: None)


@mutation("old-view-dropped", 56, hangs=True)
def repair_messages_of_an_earlier_view_are_taken() -> AbstractContextManager[Any]:
    """They stand in the way of a request of the same number, which is then never answered, or answered wrongly."""
    return mock.patch.object(Membership, "is_over", lambda self, view, message: False)


@mutation("no-repair-unsettled", scenario="test_no_row_is_repaired_between_a_death_and_its_cut")
def lost_rows_are_repaired_while_parities_differ() -> AbstractContextManager[Any]:
    return mock.patch.object(ShardContext, "settled", True)


@mutation("held-behind-view", 253)
def only_the_message_that_came_before_its_view_is_held() -> AbstractContextManager[Any]:
    real = ShardMachine._on_shard

    def on_shard(self: ShardMachine, event: Any) -> None:
        peer = self.peers.get(event.source.id - self.context.base) if self.state else None
        view = getattr(event.message, "view", -1)
        if peer is None or not peer.held or event.source.epoch != peer.epoch or view > self.view:
            real(self, event)
            return
        held, peer.held = peer.held, []
        real(self, event)
        peer.held = held + peer.held

    return mock.patch.object(ShardMachine, "_on_shard", on_shard)


# ------------------------------------------------------------------ seeding
@mutation("seed-stable", 64)
def a_seed_counts_before_it_is_stable() -> AbstractContextManager[Any]:
    real = PeerWindows.on_window

    def on_window(self: PeerWindows, peer: Peer, window: m.Window, frames: Any) -> None:
        real(self, peer, window, frames)
        for class_id in self.seeding.accepted_ends(peer, window.ends):
            self.seeding.seeded(class_id, peer.shard)

    return mock.patch.object(PeerWindows, "on_window", on_window)


@mutation("seed-starts-over", 374)
def seeding_does_not_start_over() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "start_over", lambda self: None)


@mutation("wiped-not-undone", 16)
def the_end_of_a_seed_survives_the_wipe() -> AbstractContextManager[Any]:
    real = Seeding.start_over

    def start_over(self: Seeding) -> None:
        undo = [(u, u.ends) for peer in self.context.peers.values() for u in peer.undo]
        real(self)
        for one, ends in undo:
            one.ends = ends

    return mock.patch.object(Seeding, "start_over", start_over)


@mutation("old-round-skipped", 7)
def rows_of_an_old_round_count() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "accepted", lambda self, shard, rounds: ALL_CLASSES)


@mutation("round-once", scenario="test_a_round_of_seeding_that_is_heard_of_twice_is_seeded_once")
def a_round_that_is_heard_of_twice_is_seeded_twice() -> AbstractContextManager[Any]:
    real = Seeding.on_reseed

    def on_reseed(self: Seeding, peer: Peer, message: m.Reseed, frames: Any) -> None:
        peer.seeding.pop(message.class_id, None)
        real(self, peer, message, frames)

    return mock.patch.object(Seeding, "on_reseed", on_reseed)


@mutation("joined-before-push", 61)
def a_restarted_member_does_not_wait_for_joined() -> AbstractContextManager[Any]:
    real = Membership.join

    def join(self: Membership, peer: Peer, restarted: bool) -> None:
        real(self, peer, restarted)
        if peer.is_joined_blind:
            peer.step_stream(TOLD)

    return mock.patch.object(Membership, "join", join)


# ------------------------------------------------------------------ the scheduler
@mutation("", 1)
def two_workers_write_the_first_values_of_a_table() -> AbstractContextManager[Any]:
    def answer(self: InitialValues, table: int, source: Any) -> str:
        return m.WRITE if table in self.state.fresh else m.WRITTEN

    return mock.patch.object(InitialValues, "_answer", answer)


@mutation("", 64)
def first_values_are_claimed_again_once_they_are_written() -> AbstractContextManager[Any]:
    real = InitialValues.on_initialise

    def on_initialise(self: InitialValues, source: Any, message: Any) -> None:
        fresh = list(self.state.fresh)
        real(self, source, message)
        self.state.fresh[:] = fresh

    return mock.patch.object(InitialValues, "on_initialise", on_initialise)


@mutation("persist-first", 44)
def the_scheduler_sends_before_it_persists() -> AbstractContextManager[Any]:
    real = SchedulerMachine.handle

    def handle(self: SchedulerMachine, event: Any, now_ms: float) -> Any:
        effects = real(self, event, now_ms)
        return effects[1:] + effects[:1] if effects and isinstance(effects[0], Persist) else effects

    return mock.patch.object(SchedulerMachine, "handle", handle)


@mutation("", 2)
def silence_alone_declares_data_lost() -> AbstractContextManager[Any]:
    """As if somebody always missed who is silent here, though nobody is heard."""

    def doubt(self: Suspicions, shard: int, *rest: Any) -> str:
        self._missed.setdefault(shard, -1e18)
        return ""

    return mock.patch.object(Suspicions, "_doubt", doubt)


@mutation("", 2)
def of_those_that_fall_silent_together_the_first_is_judged_alone() -> AbstractContextManager[Any]:
    return mock.patch.object(Suspicions, "_shaky", lambda self, *known: set())


@mutation("", 278)
def who_acknowledges_late_counts_as_cut_off() -> AbstractContextManager[Any]:
    return mock.patch.object(Heartbeats, "unheard", lambda self: [peer.shard for peer in self.context.others()])


# ------------------------------------------------------------------ checkpoints
@mutation("", 15)
def pushes_behind_a_cut_are_applied_before_it() -> AbstractContextManager[Any]:
    return mock.patch.object(Saver, "holds", lambda self, push: False)


@mutation("", 201)
def a_shard_cuts_when_it_hears_of_the_cut() -> AbstractContextManager[Any]:
    return mock.patch.object(Saver, "_is_reached", lambda self, cut: True)


@mutation("", 108)
def a_checkpoint_goes_on_in_a_recovery() -> AbstractContextManager[Any]:
    return mock.patch.object(Checkpoints, "_disturbed", lambda self: "")


@mutation("", 0)
def a_manifest_is_written_when_the_first_shard_is_done() -> AbstractContextManager[Any]:
    real = Checkpoints._saved

    def saved(self: Checkpoints) -> dict[int, m.Saved]:
        found = real(self)
        total = len(self.context.state.groups) * self.context.state.n
        done = [each for each in found.values() if each.index_bytes]
        return dict.fromkeys(range(total), done[0]) if done else found

    return mock.patch.object(Checkpoints, "_saved", saved)


@mutation("", scenario="test_a_manifest_waits_for_a_users_state_that_is_written_slowly")
def a_manifest_does_not_wait_for_a_users_state() -> AbstractContextManager[Any]:
    return mock.patch.object(Checkpoints, "_lacks_state", lambda self: False)


@mutation("", 6, hangs=True)
def a_checkpoint_that_is_given_up_is_not_announced() -> AbstractContextManager[Any]:
    silent = mock.patch.object(Checkpoints, "_announce_end", lambda self, is_complete=False: self.context.changed())
    return _without_patience_of_shards(silent)


@mutation("", 2631)
def what_changed_before_an_abandoned_checkpoint_is_forgotten() -> AbstractContextManager[Any]:
    real = Saver.on_over

    def on_over(self: Saver, view: m.CheckpointOver) -> None:
        cut = self._cut
        if cut is not None and cut.checkpoint == view.checkpoint and cut.url in self._bases and self._mark:
            self._bases[cut.url] = self._bases[cut.url]._replace(mark=self._mark)
            self._mark = 0
        real(self, view)

    return mock.patch.object(Saver, "on_over", on_over)


@mutation("", 345)
def a_replacement_writes_what_changed_since_it_started() -> AbstractContextManager[Any]:
    real = Saver._take_snapshot

    def take_snapshot(self: Saver, cut: m.CheckpointCut) -> None:
        if cut.base and cut.url not in self._bases:
            self._bases[cut.url] = Base(cut.base, self.context.store.mark_changes())
        real(self, cut)

    return mock.patch.object(Saver, "_take_snapshot", take_snapshot)


@contextmanager
def _without_patience_of_shards(other: AbstractContextManager[Any]) -> Iterator[None]:
    """With another mistake, one that it would hide: shards hold pushes for a checkpoint for ever."""
    with mock.patch.object(Saver, "_is_too_late", lambda self, stamp: False), other:
        yield


# ------------------------------------------------------------------ successions
@mutation("halted-windows", 22)
def a_shard_does_not_wait_until_its_group_has_halted() -> AbstractContextManager[Any]:
    return mock.patch.object(Handover, "_has_halted", lambda self: not self.context.unstable)


@mutation("halted-stable", scenario="test_a_member_has_halted_when_all_have_its_windows")
def a_member_has_halted_before_its_windows_are_stable() -> AbstractContextManager[Any]:
    def say(self: Handover) -> None:
        context, peer = self.context, self._halts_for
        if peer is not None and self.succession is not None:
            self._halts_for = None
            context.send(peer, m.Halted(self.succession.number, context.window_number - 1))

    return mock.patch.object(Handover, "_say_halted", say)


class _Nothing:
    """As a `Copying` of which nothing is left."""

    rows = nbytes = 0

    def take(self, bytes_max: int) -> tuple[Any, Any]:
        return NO_KEYS, NO_RECORDS

    def close(self) -> None: ...


@mutation("left-behind", 4)
def what_is_left_when_the_group_halts_is_not_copied() -> AbstractContextManager[Any]:
    real = Handover.on_halt_now

    def on_halt_now(self: Handover, message: m.HaltNow) -> None:
        copying = self._copying
        real(self, message)
        if self.context.halted and copying is not None:
            copying.close()
            self._copying = _Nothing()  # type: ignore[assignment]

    return mock.patch.object(Handover, "on_halt_now", on_halt_now)


@mutation("late-halt", scenario="test_a_halt_that_comes_late_halts_nobody")
def a_halt_of_a_succession_that_is_over_counts() -> AbstractContextManager[Any]:
    return mock.patch.object(Handover, "_is_current", lambda self, since, shard: True)


@mutation("successor-reports", scenario="test_a_successor_that_heard_nothing_of_a_member_reports_what_it_was_given")
def a_successor_reports_nothing_of_a_member_that_it_has_not_heard() -> AbstractContextManager[Any]:
    real = Membership._on_down

    def on_down(self: Membership, view: m.ShardDown) -> None:
        real(self, view)
        peer = self.context.peers.get(view.shard)
        if peer is not None and self.start is not None and self.start.succeeds and peer.heard_ms is None:
            self.reports[view.shard] = m.Report(view.shard, view.epoch, -1, {})

    return mock.patch.object(Membership, "_on_down", on_down)


@mutation("", 3)
def a_process_takes_a_place_before_it_has_everything() -> AbstractContextManager[Any]:
    real = Handover._tell

    def tell(self: Handover) -> None:
        state = self.state
        if state == ENDING:
            self.state = LEVEL
        real(self)
        self.state = state

    real_end = Handover._end

    def end(self: Handover) -> None:
        real_end(self)
        self._tell()

    return _both(mock.patch.object(Handover, "_tell", tell), mock.patch.object(Handover, "_end", end))


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield

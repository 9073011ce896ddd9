"""Injected bugs: for each trap of docs/protocol.md, machines that fall into it, by patching the shipped ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

from ecrec.protocol import messages as m
from ecrec.protocol import scheduler
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Persist
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import DOWN, RECOVERING
from ecrec.protocol.peer import Peer
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.seeding import ALL_CLASSES, Seeding
from ecrec.protocol.shard import ShardMachine

Make = Callable[[], AbstractContextManager[Any]]


class Mutation(NamedTuple):
    trap: str
    """As docs/protocol.md and `ecrec.simulator.coverage.TRAPS` name it."""
    make: Make
    seed: int
    """One that catches it; if none does any more, because the protocol or the drawing changed, others are tried."""


MUTATIONS: dict[str, Mutation] = {}


def mutation(trap: str, seed: int) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        MUTATIONS[make.__name__] = Mutation(trap, make, seed)
        return make

    return register


# ------------------------------------------------------------------ pushes, pulls, windows
@mutation("push-again", 0)
def a_push_that_comes_again_is_applied_again() -> AbstractContextManager[Any]:
    real = ShardMachine._on_push

    def on_push(self: ShardMachine, source: Any, push: m.Push, frames: Any) -> None:
        if 0 < push.number == self.marks.get(source.id, 0):
            self.marks[source.id] -= 1
        real(self, source, push, frames)

    return mock.patch.object(ShardMachine, "_on_push", on_push)


@mutation("stable-before-durable", 1)
def pushes_are_acknowledged_when_applied() -> AbstractContextManager[Any]:
    real = ShardMachine._apply

    def apply(self: ShardMachine, batch: Any) -> bool:
        done = real(self, batch)
        if done:
            for push in batch:
                self.reply(push.source, m.PushAck(push.number))
        return done

    return mock.patch.object(ShardMachine, "_apply", apply)


@mutation("stable-before-durable", 12)
def a_window_is_stable_when_one_peer_has_it() -> AbstractContextManager[Any]:
    def acknowledged(self: ShardMachine, peer: Peer, number: int) -> None:
        done = [unstable for window, unstable in self.unstable.items() if window <= number and unstable.waiting]
        for unstable in done:
            unstable.waiting.clear()
        if done:
            self.settle_windows()

    return mock.patch.object(ShardMachine, "_acknowledged", acknowledged)


@mutation("pull-again", 2)
def pushes_go_on_while_an_exact_pull_waits() -> AbstractContextManager[Any]:
    def why_no_push(self: ClientMachine) -> str:
        full = any(s.pushed - s.acked >= self.config.pushes_in_flight_max for s in self._shards.values())
        return self.failed or ("" if self.ready and not full else "not now")

    return mock.patch.object(ClientMachine, "_why_no_push", why_no_push)


# ------------------------------------------------------------------ a death
@mutation("undone-beyond-the-cut", 47)
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

    return mock.patch.object(scheduler, "min", longest, create=True)


@mutation("marks-with-report", 1)
def watermarks_are_not_those_of_the_reported_window() -> AbstractContextManager[Any]:
    return mock.patch.object(Peer, "marks_received", lambda self: dict(self.marks))


@mutation("reporter-dies", 284)
def a_report_of_a_survivor_that_died_still_counts() -> AbstractContextManager[Any]:
    """Its windows died with it; a cut below those of all others is one that nobody can go back to."""
    real = SchedulerMachine._try_settle

    def try_settle(self: SchedulerMachine, number: int, group: Any, shard: int) -> None:
        settlement = group.settlements[shard]
        alive = [f"{s}:{p.epoch}" for s, p in enumerate(group.places) if p.state != DOWN]
        dead = [r for key, r in settlement.reports.items() if key not in alive and r.window >= 0]
        if dead and all(key in settlement.reports for key in alive):
            for key in alive:
                settlement.reports[key] = dead[0]
        real(self, number, group, shard)

    return mock.patch.object(SchedulerMachine, "_try_settle", try_settle)


@mutation("nothing-heard", 833)
def an_incarnation_that_was_not_heard_of_is_not_reported() -> AbstractContextManager[Any]:
    real = Membership._on_up

    def on_up(self: Membership, view: m.ShardUp) -> None:
        real(self, view)
        if view.shard != self.machine.shard:
            self.machine.peers[view.shard].received = None

    return mock.patch.object(Membership, "_on_up", on_up)


@mutation("younger-reporter", 25)
def a_shard_younger_than_the_dead_reports_too() -> AbstractContextManager[Any]:
    real = Membership._place

    def place(self: Membership, start: m.Start) -> None:
        real(self, start)
        for shard, report in list(self.reports.items()):
            self.reports[shard] = m.Report(report.shard, report.epoch, 0, {})

    return mock.patch.object(Membership, "_place", place)


@mutation("settle-confirmed", 0)
def a_replacement_starts_before_the_settlement_is_confirmed() -> AbstractContextManager[Any]:
    real = SchedulerMachine._try_replace

    def try_replace(self: SchedulerMachine, number: int, group: Any, shard: int) -> None:
        settlement = group.settlements[shard]
        contacts = [c for (g, _), c in self.contacts.items() if g == number]
        views = [contact.view for contact in contacts]
        for contact in contacts:
            contact.view = max(contact.view, settlement.view)
        real(self, number, group, shard)
        for contact, view in zip(contacts, views, strict=True):
            contact.view = view

    return mock.patch.object(SchedulerMachine, "_try_replace", try_replace)


@mutation("fenced", 80)
def what_a_dead_incarnation_sent_is_still_taken() -> AbstractContextManager[Any]:
    real = ShardMachine._on_shard

    def on_shard(self: ShardMachine, event: Any) -> None:
        peer = self.peers.get(event.source.id - self.base) if self.state else None
        settling = peer is not None and peer.settling and event.source.epoch == peer.epoch
        if peer is not None and settling:
            peer.settling = False
        real(self, event)
        if peer is not None and settling:
            peer.settling = True

    return mock.patch.object(ShardMachine, "_on_shard", on_shard)


@mutation("too-many", 55)
def more_deaths_than_the_code_stands_go_unsaid() -> AbstractContextManager[Any]:
    return mock.patch.object(SchedulerMachine, "_check_lost", lambda self, number, group, shard: None)


# ------------------------------------------------------------------ repair
@mutation("recovering-marks", 30)
def a_recovering_member_does_not_mark() -> AbstractContextManager[Any]:
    real = Repairs._members

    def members(self: Repairs, class_id: int) -> list[Peer]:
        return [peer for peer in real(self, class_id) if peer.state != RECOVERING]

    return mock.patch.object(Repairs, "_members", members)


@mutation("repair-in-one-view", 3)
def a_repair_outlives_its_view() -> AbstractContextManager[Any]:
    return mock.patch.object(Repairs, "forget_all", lambda self: None)


@mutation("old-view-dropped", 57)
def repair_messages_of_an_earlier_view_are_taken() -> AbstractContextManager[Any]:
    real = ShardMachine._on_shard

    def on_shard(self: ShardMachine, event: Any) -> None:
        view = getattr(event.message, "view", None)
        if self.state and view is not None and view < self.view:
            peer = self.peers.get(event.source.id - self.base)
            if peer is not None and peer.epoch == event.source.epoch and not peer.settling and not peer.held:
                self._from_shards[type(event.message)](peer, event.message, event.frames)
                return
        real(self, event)

    return mock.patch.object(ShardMachine, "_on_shard", on_shard)


@mutation("no-repair-unsettled", 718)
def lost_rows_are_repaired_while_parities_differ() -> AbstractContextManager[Any]:
    return mock.patch.object(ShardMachine, "settled", True)


@mutation("held-behind-view", 125)
def only_the_message_that_came_before_its_view_is_held() -> AbstractContextManager[Any]:
    real = ShardMachine._on_shard

    def on_shard(self: ShardMachine, event: Any) -> None:
        peer = self.peers.get(event.source.id - self.base) if self.state else None
        view = getattr(event.message, "view", -1)
        if peer is None or not peer.held or event.source.epoch != peer.epoch or view > self.view:
            real(self, event)
            return
        held, peer.held = peer.held, []
        real(self, event)
        peer.held = held + peer.held

    return mock.patch.object(ShardMachine, "_on_shard", on_shard)


# ------------------------------------------------------------------ seeding
@mutation("seed-stable", 149)
def a_seed_counts_before_it_is_stable() -> AbstractContextManager[Any]:
    real = ShardMachine._on_window

    def on_window(self: ShardMachine, peer: Peer, window: m.Window, frames: Any) -> None:
        real(self, peer, window, frames)
        for class_id in self.seeding.accepted_ends(peer, window.ends):
            self.seeding.seeded(class_id, peer.shard)

    return mock.patch.object(ShardMachine, "_on_window", on_window)


@mutation("seed-starts-over", 32)
def seeding_does_not_start_over() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "start_over", lambda self: None)


@mutation("wiped-not-undone", 80)
def the_end_of_a_seed_survives_the_wipe() -> AbstractContextManager[Any]:
    real = Seeding.start_over

    def start_over(self: Seeding) -> None:
        undo = [(u, u.ends) for peer in self.machine.peers.values() for u in peer.undo]
        real(self)
        for one, ends in undo:
            one.ends = ends

    return mock.patch.object(Seeding, "start_over", start_over)


@mutation("old-round-skipped", 10)
def rows_of_an_old_round_count() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "accepted", lambda self, shard, rounds: ALL_CLASSES)


@mutation("round-once", 737)
def a_round_that_is_heard_of_twice_is_seeded_twice() -> AbstractContextManager[Any]:
    real = Seeding.on_reseed

    def on_reseed(self: Seeding, peer: Peer, message: m.Reseed, frames: Any) -> None:
        peer.seeding.pop(message.class_id, None)
        real(self, peer, message, frames)

    return mock.patch.object(Seeding, "on_reseed", on_reseed)


@mutation("joined-before-push", 43)
def a_restarted_member_does_not_wait_for_joined() -> AbstractContextManager[Any]:
    real = Membership.join

    def join(self: Membership, peer: Peer, restarted: bool) -> None:
        real(self, peer, restarted)
        peer.awaits_joined = False

    return mock.patch.object(Membership, "join", join)


# ------------------------------------------------------------------ the scheduler
@mutation("persist-first", 72)
def the_scheduler_sends_before_it_persists() -> AbstractContextManager[Any]:
    real = SchedulerMachine.handle

    def handle(self: SchedulerMachine, event: Any, now_ms: float) -> Any:
        effects = real(self, event, now_ms)
        return effects[1:] + effects[:1] if effects and isinstance(effects[0], Persist) else effects

    return mock.patch.object(SchedulerMachine, "handle", handle)

"""The simulator finds bugs: each trap of docs/protocol.md, put back into the shipped machines, is caught.

Most are caught within a few tens of seeds, some only by schedules with several deaths in the middle of recoveries.
``python -m tests.simulator.test_mutations NAME`` prints all seeds that catch a mutation.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest

from ecrec.protocol import messages as m
from ecrec.protocol import scheduler
from ecrec.protocol.events import Persist
from ecrec.protocol.membership import Membership
from ecrec.protocol.messages import RECOVERING
from ecrec.protocol.peer import Peer
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.seeding import Seeding
from ecrec.protocol.shard import ShardMachine
from ecrec.simulator.draw import draw
from ecrec.simulator.plan import Plan
from ecrec.simulator.run import CORRECTNESS, CRASH, run_seed

Mutation = Callable[[], AbstractContextManager[Any]]

ANY, STORMS, TOO_RARE = "any", "storms", "too rare"
"""Which seeds are tried: all in turn, those of storms alone, or none, because it would take hundreds of them."""

MUTATIONS: dict[str, tuple[Mutation, str]] = {}


def mutation(where: str) -> Callable[[Mutation], Mutation]:
    def register(make: Mutation) -> Mutation:
        MUTATIONS[make.__name__] = make, where
        return make

    return register


def is_storm(plan: Plan) -> bool:
    """Several deaths in the middle of recoveries, which the code stands, with messages in very different order."""
    deaths = sum(fault.again and fault.kind == "crash" for fault in plan.faults)
    return deaths > 1 and plan.tolerance > 1 and plan.network.lag_rate >= 0.3 and plan.n <= 5


@mutation(ANY)
def nothing_is_undone_beyond_the_cut() -> AbstractContextManager[Any]:
    real = Membership._on_settle

    def on_settle(self: Membership, view: m.Settle) -> None:
        real(self, m.Settle(view.number, view.shard, view.epoch, 1 << 60))

    return mock.patch.object(Membership, "_on_settle", on_settle)


@mutation(ANY)
def the_longest_report_is_the_cut() -> AbstractContextManager[Any]:
    return mock.patch.object(scheduler, "min", lambda some, key: max(some, key=key), create=True)


@mutation(ANY)
def watermarks_are_not_those_of_the_reported_window() -> AbstractContextManager[Any]:
    return mock.patch.object(Peer, "marks_received", lambda self: dict(self.marks))


@mutation(ANY)
def pushes_are_acknowledged_when_applied() -> AbstractContextManager[Any]:
    real = ShardMachine._apply

    def apply(self: ShardMachine, batch: Any) -> bool:
        done = real(self, batch)
        if done:
            for push in batch:
                self.reply(push.source, m.PushAck(push.number))
        return done

    return mock.patch.object(ShardMachine, "_apply", apply)


@mutation(ANY)
def a_push_that_comes_again_is_applied_again() -> AbstractContextManager[Any]:
    real = ShardMachine._on_push

    def on_push(self: ShardMachine, source: Any, push: m.Push, frames: Any) -> None:
        if 0 < push.number == self.marks.get(source.id, 0):
            self.marks[source.id] -= 1
        real(self, source, push, frames)

    return mock.patch.object(ShardMachine, "_on_push", on_push)


@mutation(ANY)
def a_repair_outlives_its_view() -> AbstractContextManager[Any]:
    return mock.patch.object(Repairs, "forget_all", lambda self: None)


@mutation(STORMS)
def a_recovering_member_does_not_mark() -> AbstractContextManager[Any]:
    real = Repairs._members

    def members(self: Repairs, class_id: int) -> list[Peer]:
        return [peer for peer in real(self, class_id) if peer.state != RECOVERING]

    return mock.patch.object(Repairs, "_members", members)


@mutation(STORMS)
def a_seed_counts_before_it_is_stable() -> AbstractContextManager[Any]:
    real = ShardMachine._on_window

    def on_window(self: ShardMachine, peer: Peer, window: m.Window, frames: Any) -> None:
        real(self, peer, window, frames)
        for class_id in self.seeding.accepted_ends(peer, window.ends):
            self.seeding.seeded(class_id, peer.shard)

    return mock.patch.object(ShardMachine, "_on_window", on_window)


@mutation(STORMS)
def seeding_does_not_start_over() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "start_over", lambda self: None)


@mutation(TOO_RARE)
def a_restarted_member_does_not_wait_for_joined() -> AbstractContextManager[Any]:
    real = Membership.join

    def join(self: Membership, peer: Peer, restarted: bool) -> None:
        real(self, peer, restarted)
        peer.awaits_joined = False

    return mock.patch.object(Membership, "join", join)


@mutation(ANY)
def the_scheduler_sends_before_it_persists() -> AbstractContextManager[Any]:
    real = SchedulerMachine.handle

    def handle(self: SchedulerMachine, event: Any, now_ms: float) -> Any:
        effects = real(self, event, now_ms)
        return effects[1:] + effects[:1] if effects and isinstance(effects[0], Persist) else effects

    return mock.patch.object(SchedulerMachine, "handle", handle)


def catching(name: str, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Seeds that catch a mutation, and what is said of it."""
    make, _ = MUTATIONS[name]
    with make():
        for outcome in map(run_seed, seeds):
            if outcome.code in (CORRECTNESS, CRASH):
                yield outcome.seed, outcome.text


@pytest.mark.parametrize("name", [name for name, (_, where) in MUTATIONS.items() if where != TOO_RARE])
def test_a_known_trap_is_caught(name: str) -> None:
    where = MUTATIONS[name][1]
    seeds = (seed for seed in itertools.count() if where == ANY or is_storm(draw(seed)))
    caught = next(catching(name, itertools.islice(seeds, 400)), None)
    assert caught is not None, f"400 schedules do not catch it: {name}"
    assert run_seed(caught[0]).code == 0, "without the mutation the seed must pass"


if __name__ == "__main__":
    for found, text in catching(sys.argv[1], range(5000)):
        print(found, text.splitlines()[0][:120], flush=True)

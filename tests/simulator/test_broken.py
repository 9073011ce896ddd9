"""What stays broken while the rest goes on, damaged parity, deposed schedulers, two living processes of one worker.

Each comes with a mistake in the shipped machines that only such schedules show, or with the count of what happened.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from simulation.cluster import Cluster
from simulation.draw import draw
from simulation.plan import Plan
from simulation.run import CORRECTNESS, LIVENESS, run_seed

from ecrec.protocol import messages as m
from ecrec.protocol.membership import Membership
from ecrec.protocol.shard_workers import ShardWorkers

Wanted = Callable[[Plan], bool]


def strikes(kind: str) -> Wanted:
    return lambda plan: any(fault.kind == kind for fault in plan.faults)


def broken(what: str) -> Wanted:
    return lambda plan: plan.broken == what


def seeds(wanted: Wanted, count: int) -> Iterator[int]:
    return itertools.islice((seed for seed in range(5000) if wanted(draw(seed))), count)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (broken("shards"), "stays broken while the rest goes on: shards"),
        (broken("worker"), "stays broken while the rest goes on: worker"),
        (broken("links"), "stays broken while the rest goes on: links"),
        (strikes("flip-parity"), "damaged parity row"),
        (strikes("depose"), "deposed scheduler that goes on sending"),
        (strikes("worker-twice"), "two living processes of a worker"),
        (lambda plan: plan.persist_ms > 0, "slow stable storage of the scheduler"),
    ],
)
def test_the_rest_goes_on(wanted: Wanted, name: str) -> None:
    reached = 0
    for seed in seeds(wanted, 6):
        outcome = run_seed(seed)
        assert outcome.code == 0, outcome.report()
        reached += outcome.coverage.faults[name]
    assert reached > 0


def survivors_wait_for_a_dead_shard_until_it_is_replaced() -> AbstractContextManager[Any]:
    real = Membership._on_down

    def on_down(self: Membership, view: m.ShardDown) -> None:
        waited = [window for window, one in self.context.unstable.items() if view.shard in one.waiting]
        real(self, view)
        for window in waited:
            if window in self.context.unstable:
                self.context.unstable[window].waiting.add(view.shard)

    return mock.patch.object(Membership, "_on_down", on_down)


def an_older_life_of_a_worker_is_heard() -> AbstractContextManager[Any]:
    real = ShardWorkers.known

    def known(self: ShardWorkers, source: Any) -> Any:
        state = self.context.workers.get(source.id)
        return state if state is not None and source.epoch < state.address.epoch else real(self, source)

    return mock.patch.object(ShardWorkers, "known", known)


@pytest.mark.parametrize(
    ("mutation", "wanted", "code", "known"),
    [
        (survivors_wait_for_a_dead_shard_until_it_is_replaced, broken("shards"), LIVENESS, 2623),
        (an_older_life_of_a_worker_is_heard, strikes("worker-twice"), CORRECTNESS, 1128),
    ],
)
def test_a_mistake_is_caught(
    mutation: Callable[[], AbstractContextManager[Any]], wanted: Wanted, code: int, known: int
) -> None:
    """By what a run comes to: the invariants of the machines, which would notice some sooner, are not asked.

    ``known``: a seed that catches it, or did before what seeds mean changed.
    """
    for seed in itertools.chain([known], seeds(wanted, 100)):
        with mutation(), mock.patch.object(Cluster, "_validate", lambda self, process: None):
            outcome = run_seed(seed)
        if outcome.code == code:
            return
    raise AssertionError("100 schedules do not catch it")

"""Workers that lease their data, die and come back: who was trained on what, counted from the lineages.

Each way in which a split could be handed on wrongly is put into the shipped machines, and shown to be caught.
``python tests/simulator/test_leases.py SEEDS`` runs many schedules and prints what happened in them.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from simulation.cluster import Cluster
from simulation.draw import draw
from simulation.run import run_seed
from simulation.story import Story

from ecrec.protocol import leases
from ecrec.protocol.leases import Leases
from ecrec.protocol.members import Members
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.state import Fence

SEEDS = int(os.environ.get("ECREC_LEASE_SEEDS", "48"))
CHUNK = 24


def with_leases() -> Iterator[int]:
    """Seeds in which workers lease splits and die."""
    for seed in itertools.count(0, 2):
        plan = draw(seed)
        if plan.leases is not None and any(fault.kind.startswith("worker") for fault in plan.faults):
            yield seed


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_example_is_trained_on_and_the_repeated_ones_are_counted(first: int) -> None:
    for seed in itertools.islice(with_leases(), first, first + CHUNK):
        outcome = run_seed(seed)
        assert outcome.code == 0, outcome.report()


def shards_do_not_know_who_is_fenced() -> AbstractContextManager[Any]:
    return mock.patch.object(ShardContext, "fence_worker", lambda self, worker, epoch: None)


def the_split_goes_on_where_some_shard_is() -> AbstractContextManager[Any]:
    real = Leases._hand_on

    def hand_on(self: Leases, fence: Fence, everywhere: int, somewhere: int) -> None:
        real(self, fence, somewhere, somewhere)

    return mock.patch.object(Leases, "_hand_on", hand_on)


def the_split_is_handed_on_before_the_shards_know() -> AbstractContextManager[Any]:
    real = Leases._cursors

    def cursors(self: Leases, fence: Fence, members: Members) -> list[int] | None:
        return real(self, Fence(fence.worker, fence.epoch, [0] * len(fence.views)), members)

    return mock.patch.object(Leases, "_cursors", cursors)


def a_new_life_gets_a_split_before_the_last_one_of_the_old_is_settled() -> AbstractContextManager[Any]:
    real = Leases.on_lease_split

    def on_lease_split(self: Leases, source: Any, message: Any) -> None:
        fences, self.state.fences = self.state.fences, []
        real(self, source, message)
        self.state.fences += fences

    return mock.patch.object(Leases, "on_lease_split", on_lease_split)


def a_request_that_comes_late_is_granted_again() -> AbstractContextManager[Any]:
    real = Leases.on_lease_split

    def on_lease_split(self: Leases, source: Any, message: Any) -> None:
        self.state.asked.pop(source.id, None)
        real(self, source, message)

    return mock.patch.object(Leases, "on_lease_split", on_lease_split)


def what_is_counted_ends_with_the_oldest_lease() -> AbstractContextManager[Any]:
    real = leases.trained_of

    def done(lease: Any, cursor: int) -> int:
        return real(lease, cursor) if cursor >> 32 == lease.number else 0

    return mock.patch.object(leases, "trained_of", done)


@pytest.mark.parametrize(
    ("mutation", "first"),
    [
        (shards_do_not_know_who_is_fenced, 0),
        (the_split_goes_on_where_some_shard_is, 0),
        (the_split_is_handed_on_before_the_shards_know, 65),
        (a_new_life_gets_a_split_before_the_last_one_of_the_old_is_settled, 35),
        (a_request_that_comes_late_is_granted_again, 0),
        (what_is_counted_ends_with_the_oldest_lease, 0),
    ],
)
def test_a_split_handed_on_wrongly_is_caught(mutation: Callable[[], AbstractContextManager[Any]], first: int) -> None:
    """``first``: schedules that are known not to catch it are left out; it takes a hundred of them at the most."""
    caught = None
    for seed in itertools.islice(with_leases(), first, first + 400):
        with mutation():
            outcome = run_seed(seed)
        if outcome.code:
            caught = seed
            break
    assert caught is not None, "400 schedules do not catch it"
    assert run_seed(caught).code == 0, "without the mutation the seed must pass"


def main(count: int) -> None:
    """Run schedules and print what their schedulers counted; each was compared with the lineages of the shards."""
    begin = time.monotonic()
    trained = repeated = handed_on = deaths = shards = 0
    for seed in itertools.islice(with_leases(), count):
        cluster = Cluster(draw(seed), Story())
        cluster.run()
        for figures in cluster.scheduler.machine.leases.figures() if cluster.scheduler else []:
            trained += figures.trained
            repeated += figures.repeated
            handed_on += figures.handed_on
            deaths += figures.deaths
        shards += cluster.faults.deaths
    print(
        f"{count} schedules in {time.monotonic() - begin:.0f} s: {deaths} deaths of workers with splits, {shards} of "
        f"shards; {trained} examples trained on, {handed_on} splits handed on, {repeated} examples repeated"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))

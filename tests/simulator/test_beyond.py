"""More deaths than the code tolerates, often in the middle of what follows such deaths: rows are as their lineage says,
or were re-initialised, and are counted. Mistakes in it, put into the shipped machines, are caught.

``python tests/simulator/test_beyond.py SCHEDULES`` plays more of them, and says how they went.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from simulation.draw import draw
from simulation.run import Outcome, Totals, run_seed

from ecrec.protocol import messages as m
from ecrec.protocol.repair import Repairs
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.seeding import Seeding

SCHEDULES = 60


def outcomes(goes_on: bool, count: int) -> Iterator[Outcome]:
    """Schedules with more deaths than the code tolerates, which stop, or go on, when data is lost."""
    plans = (plan for plan in map(draw, itertools.count()) if plan.too_many)
    wanted = (plan.seed for plan in plans if plan.config.reinitialise_lost == goes_on)
    return map(run_seed, itertools.islice(wanted, count))


@pytest.mark.parametrize(("goes_on", "count"), [(True, SCHEDULES), (False, SCHEDULES // 3)])
def test_no_schedule_of_too_many_deaths_breaks_a_promise(goes_on: bool, count: int) -> None:
    totals = Totals()
    for outcome in outcomes(goes_on, count):
        totals.add(outcome)
        assert outcome.code == 0, outcome.report()
    assert totals.lost > 0
    assert (totals.reinitialised > count // 4) == goes_on


def parity_of_whole_shards_outlives_re_initialised_rows() -> AbstractContextManager[Any]:
    return mock.patch.object(Seeding, "reinitialise", lambda self, lost: None)


def it_was_whole_counts_after_rows_are_re_initialised() -> AbstractContextManager[Any]:
    real = SchedulerMachine._on_shard_status

    def on_shard_status(self: SchedulerMachine, source: Any, status: m.ShardStatus, frames: Any) -> None:
        for group in self.state.groups:
            for place in group.places:
                place.weak_since = 0
        real(self, source, status, frames)

    return mock.patch.object(SchedulerMachine, "_on_shard_status", on_shard_status)


def seeds_are_asked_for_before_rows_are_re_initialised() -> AbstractContextManager[Any]:
    real = Seeding._ask
    return mock.patch.object(Seeding, "_ask", lambda self, class_id, since=0: real(self, class_id))


def the_replacement_waits_for_rows_that_nobody_has() -> AbstractContextManager[Any]:
    real = Repairs.begin
    return mock.patch.object(Repairs, "begin", lambda self, reinitialised: real(self, set()))


@pytest.mark.parametrize(
    "mutation",
    [
        parity_of_whole_shards_outlives_re_initialised_rows,
        it_was_whole_counts_after_rows_are_re_initialised,
        seeds_are_asked_for_before_rows_are_re_initialised,
        the_replacement_waits_for_rows_that_nobody_has,
    ],
)
def test_a_mistake_in_it_is_caught(mutation: Callable[[], AbstractContextManager[Any]]) -> None:
    """A shard that waits for ever counts too: that is what some of these mistakes lead to."""
    caught = None
    with mutation():
        for outcome in outcomes(True, 400):
            if outcome.code:
                caught = outcome.seed
                break
    assert caught is not None, "400 schedules do not catch it"
    assert run_seed(caught).code == 0, "without the mutation the seed must pass"


if __name__ == "__main__":
    sums = Totals()
    for one in outcomes(True, int(sys.argv[1])):
        sums.add(one)
        if one.code:
            print(one.report(), flush=True)
    print(sums.line())

"""More deaths than the code stands, often in the middle of what follows such deaths: rows are as their lineage says, or
were re-initialised, and are counted.

``python tests/simulator/test_beyond.py SCHEDULES`` plays more of them, and says how they went.
"""

import itertools
import sys
from collections.abc import Iterator

import pytest

from ecrec.simulator.plan import draw
from ecrec.simulator.run import Outcome, Totals, run_seed

SCHEDULES = 60


def outcomes(goes_on: bool, count: int) -> Iterator[Outcome]:
    """Schedules with more deaths than the code stands, which stop, or go on, when data is lost."""
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


if __name__ == "__main__":
    sums = Totals()
    for one in outcomes(True, int(sys.argv[1])):
        sums.add(one)
        if one.code:
            print(one.report(), flush=True)
    print(sums.line())

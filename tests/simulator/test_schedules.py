"""Whole clusters of the shipped machines under drawn schedules of faults."""

import pytest
from simulation.run import run_seed

SEEDS = 75
"""While working; .ci/run tries 2,000, and ``python tests/simulator/simulate.py --nightly`` 20,000."""
CHUNK = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_schedule_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed)
        assert outcome.code == 0, outcome.report()

"""Large tables and pushes: schedules take the paths of the store that only production took before."""

from simulation.coverage import CLOSED_FULL, KEY_TWICE, LARGE_WINDOW, MANY_REPAIRS, SEED_UNINDEXED, Coverage
from simulation.draw import draw
from simulation.plan import plan_from_json
from simulation.run import run_seed

WANTED = {KEY_TWICE, LARGE_WINDOW, SEED_UNINDEXED, CLOSED_FULL, MANY_REPAIRS}
SEEDED_INTO = (10, 25, 50)
"""Large schedules in which a recovering shard is seeded out of a window with far more rows than its index has room for.
The index that doubles once hangs in each of them."""


def test_large_schedules_take_the_paths_of_large_pushes() -> None:
    seen = Coverage()
    for seed in (*SEEDED_INTO, *range(40)):
        outcome = run_seed(seed, large=True)
        assert outcome.code == 0, outcome.report()
        seen.add(outcome.coverage)
        if (+seen.sizes).keys() >= WANTED:
            return
    raise AssertionError(f"never reached: {WANTED - (+seen.sizes).keys()}")


def test_a_large_plan_is_the_same_after_a_file() -> None:
    plan = draw(10, large=True)
    assert plan_from_json(plan.to_json()) == plan
    assert max(operation.bulk for some in plan.operations for operation in some) >= 100

"""The simulator finds bugs: each trap of docs/protocol.md, put back into the shipped machines, is caught.

A plan that catches it, made smaller, is kept in ``kept/``; replaying it is the quick test. With
ECREC_SIMULATOR_SEARCH=1 the seeds are searched instead, as for a bug that nobody knows.
``python tests/simulator/test_mutations.py NAME...`` searches, and keeps what it finds.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import MUTATIONS

from ecrec.simulator.coverage import TRAPS
from ecrec.simulator.draw import draw
from ecrec.simulator.minimise import Kept, minimise
from ecrec.simulator.run import CORRECTNESS, CRASH, SEEDS_CI, Outcome, run_plan, run_seed

KEPT = Path(__file__).parent / "kept"
SEARCH = os.environ.get("ECREC_SIMULATOR_SEARCH") == "1"
PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_every_trap_of_the_protocol_has_a_mutation_and_is_counted() -> None:
    named = set(re.findall(r"\*\*trap\*\*\s+`([a-z-]+)`", PROTOCOL.read_text()))
    assert named == {mutation.trap for mutation in MUTATIONS.values()} == set(TRAPS)


def catching(name: str) -> Iterator[Outcome]:
    """Outcomes of the seeds that catch a mutation, in order."""
    for seed in range(SEEDS_CI):
        with MUTATIONS[name].make():
            outcome = run_seed(seed)
        if outcome.code in (CORRECTNESS, CRASH):
            assert not outcome.where.startswith("mutations."), f"the mutation itself raises: {outcome.text}"
            yield outcome


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_known_trap_is_caught(name: str) -> None:
    path = KEPT / f"{name}.json"
    if path.exists() and not SEARCH:
        plan = Kept.read(path).plan
        with MUTATIONS[name].make():
            caught = run_plan(plan).code == Kept.read(path).code
        if caught:
            assert run_plan(plan).code == 0, "without the mutation the plan must pass"
            return
    # The protocol has changed since the plan was kept, or nothing may be taken for granted.
    outcome = next(catching(name), None)
    assert outcome is not None, f"{SEEDS_CI} schedules do not catch it: {name}"
    assert run_seed(outcome.seed).code == 0, "without the mutation the seed must pass"


def keep(name: str) -> None:
    """Find the first seed that catches a mutation, and keep its plan, made smaller."""
    outcome = next(catching(name), None)
    if outcome is None:
        print(f"{name}: not caught within {SEEDS_CI} seeds", flush=True)
        return
    about = f"{name}: seed {outcome.seed}, made smaller"
    with MUTATIONS[name].make():
        kept = minimise(draw(outcome.seed), about)
    assert kept is not None
    without = run_plan(kept.plan).code
    print(f"{about}: {kept.where}, {kept.plan.events} of {draw(outcome.seed).events} events; without it {without}")
    kept.write(KEPT / f"{name}.json")


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        keep(chosen)

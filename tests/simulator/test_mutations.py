"""The simulator finds bugs: each trap of docs/protocol.md, put back into the shipped machines, is caught.

A seed that catches it is known and tried first; of a few there is a scenario instead, because the simulator draws their
schedules too rarely. With ECREC_SIMULATOR_SEARCH=1 all seeds are tried in turn, as for a bug that nobody knows;
``python tests/simulator/test_mutations.py NAME...`` says which seed is the first.
"""

import importlib
import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from mutations import MUTATIONS
from simulation.coverage import TRAPS
from simulation.run import CORRECTNESS, CRASH, LIVENESS, SEEDS_SEARCH, Outcome, run_seed

OTHERS = 30
"""Seeds that are tried when the known one catches its mutation no more, because the protocol or the drawing changed."""
SEARCH = os.environ.get("ECREC_SIMULATOR_SEARCH") == "1"
PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
SCENARIOS = Path(__file__).parents[1] / "unit" / "protocol"


def test_every_trap_of_the_protocol_has_a_mutation_and_is_counted() -> None:
    named = set(re.findall(r"\*\*trap\*\*\s+`([a-z-]+)`", PROTOCOL.read_text()))
    assert named == {mutation.trap for mutation in MUTATIONS.values()} - {""} == set(TRAPS)


def first_catching(name: str, seeds: Iterable[int]) -> Outcome | None:
    """The first of these seeds that catches a mutation. A cluster that only hangs counts where that is how it shows."""
    for seed in seeds:
        with MUTATIONS[name].make():
            outcome = run_seed(seed)
        if outcome.code == LIVENESS and MUTATIONS[name].hangs:
            return outcome
        if outcome.code in (CORRECTNESS, CRASH):
            assert not outcome.where.startswith("mutations."), f"the mutation itself raises: {outcome.text}"
            return outcome
    return None


@pytest.mark.parametrize("name", [name for name, each in MUTATIONS.items() if SEARCH or each.seed is not None])
def test_a_known_trap_is_caught(name: str) -> None:
    known = [seed for seed in [MUTATIONS[name].seed] if seed is not None]
    outcome = first_catching(name, range(SEEDS_SEARCH) if SEARCH else itertools.chain(known, range(OTHERS)))
    assert outcome is not None, f"not caught; which seed does: python tests/simulator/test_mutations.py {name}"
    assert run_seed(outcome.seed).code == 0, "without the mutation the seed must pass"


@pytest.mark.parametrize("name", [name for name, each in MUTATIONS.items() if each.scenario])
def test_a_trap_that_is_drawn_too_rarely_is_caught_by_its_scenario(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCENARIOS))
    scenario = getattr(importlib.import_module("test_rare_schedules"), MUTATIONS[name].scenario)
    with MUTATIONS[name].make(), pytest.raises(AssertionError):
        scenario()
    scenario()


def test_each_mistake_has_a_seed_or_a_scenario() -> None:
    assert all((each.seed is None) == bool(each.scenario) for each in MUTATIONS.values())


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MUTATIONS:
        found = first_catching(chosen, range(SEEDS_SEARCH))
        print(chosen, found and f"{found.seed}: {found.where}", flush=True)

"""Schedules reach what they are meant to reach; the report says how often."""

import os
from collections import Counter

import pytest
from simulate import main
from simulation.coverage import TRAPS, Coverage, sizes, transitions
from simulation.run import COVERAGE, SEEDS_CI, run_many

RARE = {
    "seed-stable",
    "persist-first",
    "shard up: Joined",
    "a death, while a shard recovers: seeds here, data missing",
    "damaged parity row",
    "shard up: CorrectParity",
    "shard up: ParityCorrected",
    "stays broken while the rest goes on: shards",
    "stays broken while the rest goes on: worker",
    "stays broken while the rest goes on: links",
    *sizes(),
}
"""Reached by fewer than 40 of 2,000 schedules; .ci/run asks its own for all of it (``--require-coverage``)."""


@pytest.mark.skipif(
    os.environ.get("ECREC_LONG_FAULTS") != "1",
    reason="three minutes; .ci/run asks its 2,000 schedules for all of it (simulate.py --coverage --require-coverage)",
)
def test_every_fault_every_trap_and_every_transition_is_reached() -> None:
    seen = Coverage()
    for outcome in run_many(range(SEEDS_CI)):
        assert outcome.code == 0, outcome.report()
        seen.add(outcome.coverage)
        if RARE.issuperset(seen.missing()):
            return
    raise AssertionError(f"{SEEDS_CI} schedules never reach: {'; '.join(seen.missing())}")


def test_the_report_names_what_was_never_reached() -> None:
    seen = Coverage(traps=Counter({"fenced": 3}))
    report = seen.report().splitlines()
    assert f"situations of traps: 1 of {len(TRAPS)}" in report
    assert any(line.split()[:2] == ["3", "fenced:"] for line in report)
    assert any(line.split()[:2] == ["never", "seed-stable:"] for line in report)
    assert "fenced" not in seen.missing() and "seed-stable" in seen.missing()


def test_transitions_are_read_from_the_machines() -> None:
    names = transitions()
    assert len(set(names)) == len(names)
    assert {"shard up: Window", "shard recovering: Window", "shard up: Scrub", "scheduler: ShardStatus"} <= set(names)


def test_missing_coverage_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--require-coverage", "--coverage"]) == COVERAGE
    out = capsys.readouterr().out
    assert "never reached:" in out and "situations of traps:" in out

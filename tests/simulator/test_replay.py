"""A seed decides everything, and a failure can be seen again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulate import main
from simulation.draw import draw
from simulation.run import CORRECTNESS, CRASH, run_many, run_seed

from ecrec.protocol.membership import Membership


def first_with(deaths: int, lost: bool = False) -> int:
    """A seed with so many deaths."""
    return next(o.seed for o in map(run_seed, range(200)) if o.deaths >= deaths and o.lost == lost)


def test_a_seed_gives_the_same_events_twice() -> None:
    for seed in range(12):
        assert draw(seed) == draw(seed)
        assert run_seed(seed).digest == run_seed(seed).digest != ""


def test_a_seed_gives_the_same_events_in_another_process() -> None:
    """Nothing depends on the hash seed of the interpreter, on memory addresses, or on time."""
    seed = first_with(deaths=3)
    program = f"from simulation.run import run_seed; print(run_seed({seed}).digest)"
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == run_seed(seed).digest


def test_seeds_differ() -> None:
    digests = [outcome.digest for outcome in run_many(range(6))]
    assert len(set(digests)) == 6


@pytest.mark.skipif(
    os.environ.get("ECREC_LONG_FAULTS") != "1",
    reason="a minute; .ci/run asks its schedules for more (simulate.py --coverage --require-coverage)",
)
def test_schedules_contain_what_they_should() -> None:
    """Deaths, several at once, recoveries cut short, and losses that are announced: all within a few seeds."""
    outcomes = list(run_many(range(60)))
    assert sum(o.deaths for o in outcomes) > 60
    assert any(o.lost for o in outcomes)
    assert sum(o.pushes for o in outcomes) > 1000
    assert sum(o.pulls for o in outcomes) > 60


def test_a_failure_is_reported_with_its_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_settle(self: Membership, view: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Membership, "_on_settle", on_settle)
    seed = first_failing()
    assert main(["--first", str(seed), "--seeds", "1"]) == CRASH
    report = capsys.readouterr().out
    assert f"--replay {seed}" in report and "a mistake" in report and "Settle(" in report


def test_replay_prints_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--replay", "0", "--trace"]) == 0
    out = capsys.readouterr().out
    assert "Push(" in out and "seed 0: fine" in out


def first_failing() -> int:
    return next(o.seed for o in map(run_seed, range(200)) if o.code)


def test_exit_code_names_the_gravest_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulation.record import Record
    from simulation.story import ViolationError

    def check(self: Record, *arguments: object) -> None:
        raise ViolationError("found")

    monkeypatch.setattr(Record, "check_data", check)
    assert main(["--seeds", "3"]) == CORRECTNESS

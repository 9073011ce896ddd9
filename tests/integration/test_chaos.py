"""`ecrec train --chaos-kill-every`: servers killed at moments that nobody chose, and the model of a run without kills.

The run of minutes needs ECREC_LONG_FAULTS=1.
"""

import os

import pytest
from runs import SMALL

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"


def check(trainer, options, every, least_kills, timeout_s=120):
    calm = trainer.run(*SMALL, *options, timeout_s=timeout_s)
    assert calm.code == 0, calm.story
    chaos = trainer.run(*SMALL, *options, "--chaos-kill-every", every, timeout_s=timeout_s)
    assert chaos.code == 0, chaos.story
    report = chaos.report
    assert len(report["kills"]) >= least_kills, chaos.story
    assert report["deaths"] == len(report["kills"]), chaos.story
    assert all(kill["whole_s"] is not None for kill in report["kills"]), chaos.story
    assert report["lost_updates"] == 0, chaos.story
    assert report["updates_acknowledged"] > 0, chaos.story
    assert report["parity_ok"] is True, chaos.story
    assert report["model_digest"] == calm.report["model_digest"], chaos.story
    assert report["auc"] == calm.report["auc"]
    print(f"{len(report['kills'])} kills in {report['seconds']:.0f} s, {report['updates_acknowledged']} updates")


def test_random_kills_change_nothing(trainer):
    check(trainer, ("--steps", "300"), "600ms", least_kills=1)


@pytest.mark.skipif(not LONG, reason="takes minutes: ECREC_LONG_FAULTS=1")
@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "1200", "--code", "3+2", "--transport", "tcp"),
        ("--steps", "1600", "--workers", "2", "--sync", "--optimizer", "adam"),
    ],
    ids=["3+2 over tcp", "two workers in step"],
)
def test_random_kills_for_minutes_change_nothing(trainer, options):
    check(trainer, options, "1s", least_kills=5, timeout_s=240)


def test_chaos_without_parity_is_refused(trainer):
    finished = trainer.run(*SMALL, "--code", "4+0", "--chaos-kill-every", "1s")
    assert finished.code == 2, finished.story
    assert "--chaos-kill-every: code 4+0 tolerates no death" in finished.err


def test_training_ends_after_so_many_seconds(trainer):
    finished = trainer.run(*SMALL, "--steps", "100000", "--epochs", "100000", "--seconds", "2")
    assert finished.code == 0, finished.story
    assert 10 < finished.report["steps"] < 100_000
    assert 1.5 < finished.report["seconds"] < 10
    assert finished.report["lost_updates"] == 0
    assert finished.report["parity_ok"] is True

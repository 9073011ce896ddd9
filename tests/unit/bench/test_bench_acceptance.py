"""What bench/acceptance.py and bench/running.py conclude from a report, without running anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))

from bench.acceptance import AUC_MIN, failures, table
from bench.running import Heard, steady_throughput


def kill(**changed: Any) -> dict[str, Any]:
    times = {"detect_s": 0.2, "first_row_s": 0.4, "whole_s": 0.8, "longest_pause_s": 0.7}
    speeds = {"throughput_before": 9000.0, "throughput_during": 500.0, "throughput_after": None}
    return {"shard": 2, "step": 20, **times, **speeds, **changed}


def report(*kills: dict[str, Any], **changed: Any) -> dict[str, Any]:
    good = {"parity_ok": True, "lost_updates": 0, "auc": 0.76, "logloss": 0.49, "model_digest": "ab" * 32}
    return {**good, "kills": list(kills), **changed}


def test_a_good_run_has_no_failures() -> None:
    assert failures(report(), report(kill()), 1, AUC_MIN) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parity_ok": False}, "parity_ok is False"),
        ({"parity_ok": None}, "parity_ok is None"),
        ({"lost_updates": 2}, "lost_updates is 2"),
        ({"auc": 0.745}, "the AUC is 0.745"),
        ({"auc": None}, "the AUC is None"),
        ({"model_digest": "cd" * 32}, "the digests differ"),
    ],
)
def test_a_bad_run_is_named(changed: dict[str, Any], said: str) -> None:
    (found,) = failures(report(), report(kill(), **changed), 1, AUC_MIN)
    assert said in found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"first_row_s": 1.0}, "first_row_s is 1.0"),
        ({"first_row_s": None}, "first_row_s is None"),
        ({"longest_pause_s": 1.21}, "paused for 1.21 s, expected at most 1.20 s"),
        ({"detect_s": None}, "never noticed"),
    ],
)
def test_a_bad_recovery_is_named(changed: dict[str, Any], said: str) -> None:
    (found,) = failures(report(), report(kill(**changed)), 1, AUC_MIN)
    assert said in found


def test_a_kill_that_was_not_done_is_named() -> None:
    assert failures(report(), report(kill()), 2, AUC_MIN) == ["1 of 2 kills were done"]


def test_the_auc_may_be_left_out_and_two_deaths_at_once_may_take_as_long_as_the_later_notice() -> None:
    together = report(kill(longest_pause_s=1.4), kill(shard=3, detect_s=0.5, longest_pause_s=1.4))
    assert failures(report(auc=0.6), {**together, "auc": 0.6}, 2, None) == []


def test_the_table_has_a_line_for_each_kill_and_one_without() -> None:
    lines = table("name", report(kill(), kill(shard=3)))
    assert len(lines) == 2
    assert len(lines[0]) == len(lines[1])
    assert len(table("name", report())) == 1


def test_throughput_is_that_of_the_steps_after_the_warm_up() -> None:
    steps = [Heard(at, 100, 0.5) for at in (0.0, 5.0, 6.0, 7.0, 9.0)]
    assert steady_throughput(steps, 2) == (75.0, 4.0)


@pytest.mark.parametrize("warm_up", [0, 5])
def test_a_warm_up_that_leaves_nothing_to_measure_is_refused(warm_up: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        steady_throughput([Heard(float(i), 1, 0.0) for i in range(5)], warm_up)

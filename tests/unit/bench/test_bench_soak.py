"""What bench/soak.py concludes from samples and a report, without running anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))

from bench.soak import Sample, Series, failures, look, series_of, steady_growth, trend

MB = 1e6
STEADY = {"server": 0.0}


def report(**changed: Any) -> dict[str, Any]:
    kills = [{"shard": 1, "whole_s": 0.4}] * 30
    return {"lost_updates": 0, "parity_ok": True, "kills": kills, "deaths": 30, **changed}


def test_the_servers_are_summed() -> None:
    samples = [
        Sample(0.0, {"server": {1: 3, 2: 5}, "worker": {9: 7}}),
        Sample(1.0, {"server": {1: 4}, "worker": {9: 8}}),
    ]
    assert series_of(samples) == [Series("server", 2, [8.0, 4.0]), Series("worker", 1, [7.0, 8.0])]


def test_growth_between_kills_is_told_from_what_a_recovery_leaves() -> None:
    """Two servers; after 10 s one is replaced, and the survivor keeps 40 MB from then on."""

    def samples(leak: float) -> list[Sample]:
        found = []
        for second in range(20):
            kept, other = (0, 2) if second < 10 else (40, 3)
            settling = 5 if second in (10, 11, 12) else 0
            resident = {1: int((70 + kept + settling + leak * second) * MB), other: int((70 + leak * second) * MB)}
            found.append(Sample(float(second), {"server": resident, "worker": {9: int(300 * MB)}}))
        return found

    assert steady_growth(samples(0.0)) == {"server": 0.0, "worker": 0.0}
    leaks = steady_growth(samples(0.1))
    assert leaks == {"server": pytest.approx(6 * MB, rel=1e-3), "worker": 0.0}
    assert failures(report(), [], leaks, 600, 20) == ["servers grow by 6.0 MB a minute while nobody dies"]


def test_growth_between_kills_that_nobody_could_see_is_said() -> None:
    dying = [Sample(float(second), {"server": {second // 3: 70}}) for second in range(30)]
    assert steady_growth(dying) == {}
    (text,) = failures(report(), [], {"worker": 0.0}, 600, 20)
    assert "growth between kills is not known" in text


def test_a_leak_is_told_from_what_moves() -> None:
    moves = Series("server", 1, [300 * MB + (i % 7) * 3 * MB for i in range(300)])
    leaks = Series("worker", 1, [300 * MB + i * 0.2 * MB for i in range(300)])
    assert not trend(moves).grows
    assert trend(leaks).grows
    assert failures(report(), [trend(moves), trend(leaks)], STEADY, 600, 20) == ["worker grows: 309.9 to 349.9 MB"]


def test_servers_may_each_keep_what_a_recovery_needed() -> None:
    """Six servers, of which kills made young and old ones: 469 to 585 MB is no leak, 700 is."""
    values = [469 * MB] * 12 + [494 * MB] * 12 + [585 * MB] * 12
    assert not trend(Series("server", 6, values)).grows
    assert trend(Series("worker", 6, values)).grows
    assert trend(Series("server", 6, [*values[:24], *[700 * MB] * 12])).grows


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 samples after the warm-up"):
        trend(Series("server", 1, [1.0, 2.0]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lost_updates": 3}, "lost_updates is 3"),
        ({"parity_ok": False}, "parity_ok is False"),
        ({"kills": [], "deaths": 0}, "0 kills, expected at least 15"),
        ({"deaths": 31}, "somebody died who was not killed"),
        ({"kills": [{"shard": 2, "whole_s": None}] * 30}, "never became whole again"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], said: str) -> None:
    (text,) = failures(report(**changed), [], STEADY, 600, 20)
    assert said in text


def test_a_good_soak_has_no_failures() -> None:
    assert failures(report(), [], STEADY, 600, 20) == []


def test_processes_are_seen() -> None:
    assert look()["launcher"][os.getpid()] > 1 << 20

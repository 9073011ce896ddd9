"""What bench/soak.py concludes from samples and a report, without running anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[3]))

from bench.soak import Sample, Series, failures, look, series_of, trend

MB = 1e6


def report(**changed: Any) -> dict[str, Any]:
    kills = [{"shard": 1, "whole_s": 0.4}] * 30
    return {"lost_updates": 0, "parity_ok": True, "kills": kills, "deaths": 30, **changed}


def test_the_servers_are_summed_and_the_largest_is_kept() -> None:
    samples = [Sample(0.0, {"server": [3, 5], "worker": [7]}), Sample(1.0, {"server": [4], "worker": [8]})]
    assert series_of(samples) == [
        Series("server", 2, [8.0, 4.0]),
        Series("worker", 1, [7.0, 8.0]),
        Series("largest server", 1, [5.0, 4.0]),
    ]


def test_a_leak_is_told_from_what_moves() -> None:
    moves = Series("server", 1, [300 * MB + (i % 7) * 3 * MB for i in range(300)])
    leaks = Series("worker", 1, [300 * MB + i * 0.2 * MB for i in range(300)])
    assert not trend(moves).grows
    assert trend(leaks).grows
    assert failures(report(), [trend(moves), trend(leaks)], 600, 20) == ["worker grows: 309.9 to 349.9 MB"]


def test_servers_may_each_move_a_little() -> None:
    """Six servers, of which kills made young and old ones: 469 to 518 MB is no leak, twice that is."""
    values = [469 * MB] * 12 + [494 * MB] * 12 + [518 * MB] * 12
    assert not trend(Series("server", 6, values)).grows
    assert trend(Series("server", 6, [*values[:24], *[567 * MB] * 12])).grows


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
    (text,) = failures(report(**changed), [], 600, 20)
    assert said in text


def test_a_good_soak_has_no_failures() -> None:
    assert failures(report(), [], 600, 20) == []


def test_processes_are_seen() -> None:
    assert look()["launcher"][0] > 1 << 20

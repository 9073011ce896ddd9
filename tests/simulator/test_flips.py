"""Bits that flip between shards: every one is noticed, and everything ends right; without the check it would not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from simulation.draw import draw
from simulation.flips import FLIPPED
from simulation.plan import Plan
from simulation.run import CORRECTNESS, run_plan

from ecrec.protocol import wire

SCHEDULES = 6


def flipping() -> Iterator[Plan]:
    """Schedules with real streams, of which one message in twenty is damaged."""
    found = 0
    for seed in range(1000):
        plan = draw(seed)
        if found < SCHEDULES and plan.network.streams and not plan.too_many:
            found += 1
            yield replace(plan, network=replace(plan.network, flip_rate=0.05))


def test_damaged_messages_come_again() -> None:
    flips = 0
    for plan in flipping():
        outcome = run_plan(plan)
        assert outcome.code == 0, outcome.text
        flips += outcome.coverage.faults[FLIPPED]
    assert flips > 20


def test_a_bit_that_nobody_looks_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_check_checksum", lambda *_: None)
    outcomes = [run_plan(plan) for plan in flipping()]
    assert any(outcome.code == CORRECTNESS and "went unseen" in outcome.text for outcome in outcomes)

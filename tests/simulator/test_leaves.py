"""Servers that are told to end: mistakes in what the scheduler answers are caught."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from simulation import variations
from simulation.draw import draw
from simulation.run import run_seed

from ecrec.protocol.departures import Departures

SEEDS_MAX = 60


def everybody_is_let_go_at_once() -> AbstractContextManager[Any]:
    real = Departures.grant

    def grant(self: Departures, number: int, group: Any, doubted: Any, tolerates: Any) -> int | None:
        return real(self, number, group, doubted, lambda shards: True)

    return mock.patch.object(Departures, "grant", grant)


def nobody_is_let_go() -> AbstractContextManager[Any]:
    return mock.patch.object(Departures, "grant", lambda *_: None)


@pytest.mark.parametrize("mutation", [everybody_is_let_go_at_once, nobody_is_let_go])
def test_a_mistake_in_it_is_caught(mutation: Callable[[], AbstractContextManager[Any]]) -> None:
    leaves = (seed for seed in itertools.count() if any(fault.kind == "leave" for fault in draw(seed).faults))
    with mutation():
        assert any(run_seed(seed).code for seed in itertools.islice(leaves, SEEDS_MAX))


def test_what_an_old_seed_means_otherwise_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves are the last faults of a plan but for strangers, and drawn apart."""
    monkeypatch.setattr("simulation.draw.draw_strangers", lambda _, plan: plan)
    for seed in range(100):
        faults = draw(seed).faults
        first = next((i for i, fault in enumerate(faults) if fault.kind == "leave"), len(faults))
        with mock.patch.object(variations, "draw_successions", lambda _, plan: plan):
            before = draw(seed).faults
        with mock.patch.object(variations, "draw_leaves", lambda _, plan: plan):
            assert faults[: len(before)] == before and draw(seed).faults[:first] == faults[:first]

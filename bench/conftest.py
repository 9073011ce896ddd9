"""The cases of ``ecrec bench`` for pytest-benchmark: ``pytest bench``.

Each side of a case is a test, and the sides of a case are a group, which does the same number of calls in each round.
The results were compared before. ``extra_info`` has the rate and its unit, also with ``--benchmark-json``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ecrec.launch.tools.bench import local_shards, set_up_process

set_up_process()  # before anything loads torch

from ecrec.bench.harness import Case, Selection, calls_for  # noqa: E402
from ecrec.bench.suites import names, suite  # noqa: E402

OURS = "ours"
ROUNDS = 7

Sides = dict[str, list[str]]


class Exactly(Selection):
    """Wants one case."""

    def wants(self, case: str) -> bool:
        return self.wanted == case


class OpenCase:
    """The case at work; one at a time, for it may hold much memory and processes."""

    def __init__(self) -> None:
        self._cases: Iterator[Case] = iter(())
        self.at: tuple[str, str] | None = None
        self.case: Case | None = None
        self.calls = 0
        self.selection = Selection("")

    def open(self, suite_name: str, name: str) -> None:
        """Make it and compare the results of its sides, if it is not the one that is open."""
        if self.at == (suite_name, name):
            return
        self.close()
        self.at = suite_name, name
        self.selection = Exactly(suite_name, name, local_shards)
        self._cases = suite(suite_name)(self.selection)
        self.case = next(self._cases, None)
        if self.case is not None:
            self.case.check()
            self.calls = calls_for(self.case.ours, self.case.round_seconds)

    def close(self) -> None:
        self.case, self.at = None, None
        for _ in self._cases:  # to its end, where it stops what it started
            raise AssertionError("more than one case of a name")


@pytest.fixture(scope="session")
def open_case() -> Iterator[OpenCase]:
    """Closed at the end."""
    opened = OpenCase()
    yield opened
    opened.close()


def sides_of(suite_name: str, sides: Sides) -> list[object]:
    """Parameters (case, side): of each case that begins with a key, ours and its peers."""
    found = [
        (case, side)
        for case in names(suite_name)
        for begin, peers in sides.items()
        if case.startswith(begin)
        for side in (OURS, *peers)
    ]
    return [pytest.param(case, side, id=f"{case}: {side}") for case, side in found]


@pytest.fixture
def run_side(open_case: OpenCase, benchmark: Any) -> Callable[[str, str, str], None]:
    """Measures one side of a case; skips where the peer is missing, and says what to install."""

    def run(suite_name: str, name: str, side: str) -> None:
        open_case.open(suite_name, name)
        missing = "; ".join(f"{line.what}: {line.reason}" for line in open_case.selection.skipped)
        if open_case.case is None:
            pytest.skip(missing)
        work = {OURS: open_case.case.ours, **open_case.case.peers}.get(side)
        if work is None:
            pytest.skip(missing)
        benchmark.group = name
        benchmark.pedantic(work, args=(open_case.calls,), rounds=ROUNDS, warmup_rounds=1)
        rate = open_case.case.work * open_case.calls / benchmark.stats.stats.median
        benchmark.extra_info.update(calls=open_case.calls, unit=open_case.case.unit, rate=rate)

    return run

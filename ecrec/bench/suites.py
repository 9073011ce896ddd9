"""The suites by name, and the run over them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.live import Live

from ecrec.bench.harness import ROUNDS_MIN, Measurement, ResultsDifferError, Selection, Skipped, Suite, machine, measure
from ecrec.bench.report import WIDTH_MIN, add_lines, describe_machine, describe_skip, empty_table
from ecrec.errors import ConfigurationError

SUITES = ("kernels", "store", "batch", "rpc")

StartCluster = Callable[[int, str], AbstractContextManager[str]]


def suite(name: str) -> Suite:
    """Its function ``cases``. Raises ConfigurationError for a name that is none."""
    if name not in SUITES:
        raise ConfigurationError(f"suite {name!r}: expected one of {', '.join(SUITES)}")
    cases: Suite = importlib.import_module(f"ecrec.bench.{name}").cases
    return cases


class _Listing(Selection):
    """Asked for nothing, it remembers what there was to ask for."""

    def __init__(self, suite: str) -> None:
        super().__init__(suite)
        self.names: list[str] = []

    def wants(self, case: str) -> bool:
        self.names.append(case)
        return False


def names(name: str) -> list[str]:
    """Names of the cases of a suite that can be run here; none is made."""
    listing = _Listing(name)
    for _ in suite(name)(listing):
        raise AssertionError(f"{name}: a case was made that was not wanted")
    return listing.names


class Outcome(NamedTuple):
    """What a run measured, what it could not, and where a peer came to another result."""

    lines: list[Measurement]
    skipped: list[Skipped]
    failed: list[str]


def run(
    names: Sequence[str], wanted: str, rounds: int, start_cluster: StartCluster | None, console: Console
) -> Outcome:
    """Measure all cases whose name contains ``wanted``, of these suites (none: of all), and print tables.

    Raises ConfigurationError for too few rounds or a suite that there is not.
    """
    if rounds < ROUNDS_MIN:
        raise ConfigurationError(f"--rounds is {rounds}, expected at least {ROUNDS_MIN}")
    found = [(name, suite(name)) for name in names or SUITES]
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_MIN)
    console.print(describe_machine(machine()), soft_wrap=True, highlight=False, markup=False)
    outcome = Outcome([], [], [])
    for name, cases in found:
        _run_suite(Selection(name, wanted, start_cluster), cases, rounds, console, outcome)
    return outcome


def _run_suite(selection: Selection, cases: Suite, rounds: int, console: Console, outcome: Outcome) -> None:
    table = empty_table(selection.suite)
    failed: list[str] = []
    live = Live(table, console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    try:
        with live or nullcontext():
            for case in cases(selection):
                if not case.peers:
                    continue
                try:
                    lines = measure(case, selection.suite, rounds)
                except ResultsDifferError as error:
                    failed.append(str(error))
                    continue
                add_lines(table, lines)
                outcome.lines.extend(lines)
                if live is not None:
                    live.refresh()
    finally:
        # Also of a run that is interrupted: what it has measured stands.
        if table.rows:
            console.print(table)
    for text in [*map(describe_skip, selection.skipped), *(f"FAILED: {text}" for text in failed)]:
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    outcome.skipped.extend(selection.skipped)
    outcome.failed.extend(failed)

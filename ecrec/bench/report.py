"""What a run says: a table that grows while it is measured, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ecrec.bench.harness import Measurement, Skipped

COLUMNS = ("case", "unit", "ours", "peer", "", "ratio", "min..max", "result")
WIDTH_MIN = 150
"""Characters that a line needs; files and pipes get so many."""


def empty_table(suite: str) -> Table:
    """For one suite."""
    table = Table(title=suite, title_justify="left", expand=False)
    for column in COLUMNS:
        table.add_column(
            column, justify="right" if column in ("ours", "peer", "ratio", "min..max") else "left", no_wrap=True
        )
    return table


def add_lines(table: Table, lines: Sequence[Measurement]) -> None:
    """Of one case: a line for each peer; what they have in common is said once."""
    for i, line in enumerate(lines):
        first = i == 0
        table.add_row(
            line.case if first else "",
            line.unit if first else "",
            f"{line.ours:.2f}" if first else "",
            f"{line.peer:.2f}",
            line.peer_name,
            f"{line.ratio:.2f}",
            f"{line.ratio_min:.2f}..{line.ratio_max:.2f}",
            line.result if first else "",
        )


def describe_machine(machine: dict[str, Any]) -> str:
    """One line."""
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    native = f"kernel {machine['kernel']}, prefetch into {machine['prefetch']}"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {native}; {versions}"


def describe_skip(line: Skipped) -> str:
    return f"SKIPPED: {line.suite}: {line.what}: {line.reason}"


def as_json(lines: Sequence[Measurement], machine: dict[str, Any]) -> str:
    """A list of the measurements, the machine and the versions beside each."""
    return json.dumps([{**asdict(line), **machine} for line in lines], indent=1) + "\n"


def write_json(path: str, lines: Sequence[Measurement], machine: dict[str, Any]) -> None:
    Path(path).write_text(as_json(lines, machine))

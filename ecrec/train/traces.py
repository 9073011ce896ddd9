"""The trace of a run (``--trace``): those of all its workers, dead ones too, in one file."""

import os
from pathlib import Path
from typing import Any

import msgspec

DIRECTORY = "traces"
"""Below the run directory; in it a directory for each cluster of the run."""

FILE = "trace.json"
"""There a worker writes its own; `ecrec.training.observed_files.own_file` gives it a name."""


class Traces:
    """Where the workers of a run write their traces, and what is made of these."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = (run_dir / DIRECTORY).absolute()

    def of_life(self, number: int) -> Path:
        """What the workers of the run's cluster of this number are told."""
        return self._directory / str(number) / FILE

    def write(self, to: Path) -> str:
        """Write the events of all workers, in order of time, as one JSON object; returns why that failed."""
        events = [event for file in sorted(self._directory.glob("*/*.json")) for event in read_events(file)]
        events.sort(key=lambda event: event.get("ts", 0.0))
        whole = to.with_name(f".{to.name}.{os.getpid()}")
        try:
            whole.write_bytes(msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": events}))
            whole.replace(to)
        except OSError as error:
            whole.unlink(missing_ok=True)
            return f"--trace {to}: cannot be written: {error.strerror}; training does not depend on it"
        return ""


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events of a trace that a worker wrote; without what was cut short when it died."""
    events: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n"):
        try:
            event = msgspec.json.decode(line.rstrip(b","))
        except msgspec.DecodeError:
            continue  # the brackets around all, or a last line that is no whole one
        if isinstance(event, dict):
            events.append(event)
    return events

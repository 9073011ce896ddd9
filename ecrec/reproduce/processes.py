"""Processor time of processes, as Linux tells it."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_UTIME = 11
"""Of /proc/PID/stat, counted behind the name, which may have spaces."""


class ProcessorTime:
    """Of a group of processes that come and go: what those took that are gone counts too, as it was last seen."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def of(self, pids: Iterable[int]) -> float:
        """Seconds of these and all that were asked for before, their threads included."""
        ticks = os.sysconf("SC_CLK_TCK")
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._seen[pid] = (int(words[_UTIME]) + int(words[_UTIME + 1])) / ticks
        return sum(self._seen.values())

"""Pushes and pulls that wait at a shard, and what it knows of the workers that sent them."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecrec.protocol import arrays
from ecrec.protocol import messages as m
from ecrec.protocol.messages import Address
from ecrec.protocol.wanted import Wanted


@dataclass(slots=True)
class SectionArrays:
    """A section of a push or pull as arrays: int32[m], int64[m], int64[N] and float32 values (a push)."""

    tables: Any
    counts: Any
    rows: Any
    values: Any = None


@dataclass(slots=True, eq=False)
class QueuedPush:
    worker: int
    number: int
    push: m.Push
    frames: m.Frames
    source: Address
    wanted: Wanted | None = None
    """Its rows that were lost when it was first looked at."""

    @property
    def nbytes(self) -> int:
        return arrays.frames_bytes(self.frames)


@dataclass(slots=True, eq=False)
class QueuedPull:
    source: Address
    pull: m.Pull
    sections: list[SectionArrays]
    wanted: Wanted | None = None
    """Its rows that were lost when it was first looked at."""

    @property
    def nbytes(self) -> int:
        return sum(section.rows.nbytes for section in self.sections)


class PushQueue(deque[QueuedPush]):
    """A worker's pushes in order, not yet applied, and their bytes."""

    __slots__ = ("nbytes",)

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def append(self, push: QueuedPush) -> None:
        super().append(push)
        self.nbytes += push.nbytes

    def popleft(self) -> QueuedPush:
        push = super().popleft()
        self.nbytes -= push.nbytes
        return push

    def clear(self) -> None:
        super().clear()
        self.nbytes = 0


@dataclass(slots=True)
class WorkerState:
    """What a shard knows of a worker."""

    address: Address
    queue: PushQueue = field(default_factory=PushQueue)
    flush: int = 0
    """It waits for its pushes up to this one."""


def sections_of(sections: list[m.Section], frames: m.Frames, values: bool) -> list[SectionArrays]:
    """Arrays of a message's sections. ValueError if the frames do not fit them."""
    each = 2 if values else 1
    if len(frames) != each * len(sections):
        raise ValueError(f"{len(sections)} sections need {each * len(sections)} frames, but {len(frames)} came")
    out = []
    for i, section in enumerate(sections):
        rows = arrays.array(frames[each * i], np.int64, f"row ids of section {i}")
        tables, counts = np.array(section.tables, np.int32), np.array(section.counts, np.int64)
        total = sum(section.counts)
        if len(tables) != len(counts) or min(section.counts, default=0) < 0 or total != len(rows):
            raise ValueError(
                f"section {i}: {len(tables)} tables, {len(counts)} counts with sum {total}, {len(rows)} row ids"
            )
        data = arrays.array(frames[each * i + 1], np.float32, f"values of section {i}") if values else None
        out.append(SectionArrays(tables, counts, rows, data))
    return out

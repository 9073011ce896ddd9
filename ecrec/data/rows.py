"""Rows as all formats give them, and what a file of rows is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

MISSING_TOKEN = -1
"""Stands for a missing token in arrays of tokens; real tokens are in [0, 2**32)."""

HOT_MAX = 4096
"""Values that a row has of one feature; MLPerf's have at most 100."""

PIECE_ROWS = 4096
"""Rows that formats without lines parse at once."""

Marks = Sequence[tuple[int, int]]
"""(row, byte) of places in a file at which a line begins, ascending: where reading may begin."""


def transform_integers(integers: NDArray[Any]) -> NDArray[np.float32]:
    """log(1 + max(x, 0)) of each integer, float32; a missing integer comes as 0 and stays 0."""
    logs: NDArray[np.float32] = np.log1p(np.maximum(integers, 0).astype(np.float32))
    return logs


class Layout(NamedTuple):
    """What the columns of a file are. ``hot``: ids of each row for each sparse feature; their sum is H."""

    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    hot: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """n rows: labels float32[n]; dense float32[n, D], already transformed; tokens int64[H, n], feature-major,
    `MISSING_TOKEN` where there is none."""

    labels: NDArray[np.float32]
    dense: NDArray[np.float32]
    tokens: NDArray[np.int64]


class Piece(NamedTuple):
    """Rows [first, stop) of a file: those that can be read, with their numbers, int64[n], ascending; and what is wrong
    with the others, by number. ``share``: of the file that has been read, at most 1."""

    rows: Rows
    numbers: NDArray[np.int64]
    wrong: dict[int, str]
    first: int
    stop: int
    share: float


class Counted(NamedTuple):
    """Rows of a file, and places in it."""

    rows: int
    marks: tuple[tuple[int, int], ...] = ()


class RowFile(Protocol):
    """A file of rows, in whatever format. It is opened anew by each call."""

    @property
    def name(self) -> str:
        """Its path or URL."""
        ...

    @property
    def layout(self) -> Layout:
        """What its columns are."""
        ...

    def where(self, row: int) -> str:
        """For people: file and place of a row, by its number."""
        ...

    def count(self, is_over: Callable[[], bool] = lambda: False) -> Counted:
        """How many rows it has, bad ones too, without parsing them. It ends early once ``is_over()``."""
        ...

    def pieces(
        self, first: int = 0, stop: int | None = None, marks: Marks = (), skip: Callable[[], int] = lambda: 0
    ) -> Iterator[Piece]:
        """Rows [first, stop), in order and without a gap, as far as there are any; but those before ``skip()``, which
        may grow meanwhile, are left out where that saves work. Rows before are not parsed, and not read where the
        format, or ``marks``, says where they lie. Raises DataError where the file cannot be read on."""
        ...

"""Ids of files as they are: a token is the row of its table. A row with any other is a bad row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ecrec.data.ids import Ids, Tokens
from ecrec.data.rows import MISSING_TOKEN, Counted, Layout, Marks, Piece, RowFile, Rows


class PlainIds:
    """id = token, for files whose ids are already rows of tables: those that MLPerf's preprocessing writes.

    rows: of every table, or a number for each of F features; at least 1. A token that is none of them, or missing,
    makes a bad row. hot: as of `HashedIds`. Raises ValueError for impossible numbers.
    """

    def __init__(self, rows: int | tuple[int, ...], hot: tuple[int, ...] = ()) -> None:
        self._rows = rows
        hot = hot or (1,) * (1 if isinstance(rows, int) else len(rows))
        self.rows_per_table = (rows,) * len(hot) if isinstance(rows, int) else tuple(rows)
        if len(self.rows_per_table) != len(hot) or min(self.rows_per_table) < 1:
            raise ValueError(f"rows is {rows}, expected a number of at least 1, or {len(hot)} of them")
        self._bounds = np.repeat(np.array(self.rows_per_table, np.int64), np.array(hot))[:, None]
        self._features = np.repeat(np.arange(len(hot)), np.array(hot))

    def of(self, hot: tuple[int, ...]) -> PlainIds:
        """The same for other features. Raises ValueError where ``rows`` was given for each one of others."""
        return PlainIds(self._rows, hot)

    def __call__(self, tokens: Tokens) -> Ids:
        """The ids of these tokens, int64[H, n]: themselves."""
        return tokens

    def outside(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Which tokens, bool[H, n], are rows of no table."""
        found: NDArray[np.bool_] = (tokens < 0) | (tokens >= self._bounds)
        return found

    def why(self, column: int, token: int, layout: Layout) -> str:
        """What is wrong with a token of this column of H."""
        feature = int(self._features[column])
        expected = f"expected an id from 0 to {self.rows_per_table[feature] - 1}"
        if token == MISSING_TOKEN:
            return f"found no {layout.sparse[feature]}, {expected}; ids that are taken as they are cannot be missing"
        signed = f" ({token - (1 << 32)} as int32)" if token >> 31 else ""
        return f"found {layout.sparse[feature]} = {token}{signed}, {expected}; the table has no more rows"


class PlainIdFile:
    """A `RowFile` in which rows with ids outside of their tables are bad."""

    def __init__(self, file: RowFile, ids: PlainIds) -> None:
        self._file = file
        self._ids = ids.of(file.layout.hot)

    @property
    def name(self) -> str:
        """Of the file."""
        return self._file.name

    @property
    def layout(self) -> Layout:
        """Of the file."""
        return self._file.layout

    def where(self, row: int) -> str:
        """Of the file."""
        return self._file.where(row)

    def count(self, is_over: Callable[[], bool] = lambda: False) -> Counted:
        """Of the file."""
        return self._file.count(is_over)

    def pieces(
        self, first: int = 0, stop: int | None = None, marks: Marks = (), skip: Callable[[], int] = lambda: 0
    ) -> Iterator[Piece]:
        """Of the file."""
        for piece in self._file.pieces(first, stop, marks, skip):
            outside = self._ids.outside(piece.rows.tokens)
            bad = np.asarray(outside.any(axis=0))
            yield self._without(piece, outside, bad) if bad.any() else piece

    def _without(self, piece: Piece, outside: NDArray[np.bool_], bad: NDArray[np.bool_]) -> Piece:
        labels, dense, tokens = piece.rows.labels, piece.rows.dense, piece.rows.tokens
        wrong = dict(piece.wrong)
        for i in np.flatnonzero(bad).tolist():
            column = int(np.flatnonzero(outside[:, i])[0])
            row = int(piece.numbers[i])
            wrong[row] = f"{self.where(row)}: {self._ids.why(column, int(tokens[column, i]), self.layout)}"
        rows = Rows(labels[~bad], dense[~bad], np.ascontiguousarray(tokens[:, ~bad]))
        return piece._replace(rows=rows, numbers=piece.numbers[~bad], wrong=dict(sorted(wrong.items())))

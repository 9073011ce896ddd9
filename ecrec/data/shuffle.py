"""The rows of a source in another order: shuffled in windows, by a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ecrec.data.batch import Batch, BatchSource, batch_ranges, range_batches, steps_of
from ecrec.data.ids import mix64

WINDOW_ROWS_MAX = 1 << 24
"""Of Criteo's rows these are 4.4 GB, and all of a window is in memory."""


def order_of(rows: int, window: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """In which order the rows of a window come: int64[rows], a permutation.

    A function of the arguments alone, the same on every machine and in every release: a run that goes on from a
    checkpoint depends on it. ``window``: its number.
    """
    key = mix64(mix64(np.array([seed], np.uint64)) + np.uint64(epoch))
    key = mix64(key + np.uint64(window))
    return np.argsort(mix64(mix64(np.arange(rows, dtype=np.uint64)) ^ key), kind="stable")


class ShuffledSource:
    """Another `BatchSource`, whose training rows come in another order in each epoch: each window of ``window`` rows is
    shuffled by itself, with ``seed``.

    Row i is then the row that comes i-th, so ranges of rows mean what they did: all of them together have every
    row once, and a range has the same rows for every reader at any time. A window is read as a whole and kept until
    another one is needed; read ranges that end where windows end, and each is read once. Rows that are skipped as bad
    count as the last ones of their window.
    Raises ValueError for a window below 1 or above `WINDOW_ROWS_MAX`, or a seed out of range.
    """

    def __init__(self, source: BatchSource, window: int, seed: int) -> None:
        if not 1 <= window <= WINDOW_ROWS_MAX:
            raise ValueError(f"window is {window}, expected 1 to {WINDOW_ROWS_MAX} rows")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed is {seed}, expected a number from 0 to 2**63 - 1")
        self.source = source
        self._window, self._seed = window, seed
        self._held: tuple[tuple[int, int], Batch] | None = None
        """((epoch, window), its rows in their new order)."""

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Of the source."""
        return self.source.dense_features

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Of the source."""
        return self.source.sparse_features

    @property
    def hot(self) -> tuple[int, ...]:
        """Of the source."""
        return self.source.hot

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Of the source."""
        return self.source.rows_per_table

    @property
    def train_rows(self) -> int:
        """Of the source."""
        return self.source.train_rows

    @property
    def test_rows(self) -> int:
        """Of the source."""
        return self.source.test_rows

    def train_batches(
        self, batch_size: int, *, epochs: int = 1, steps: int | None = None, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of the training part; see `ecrec.data.batch.batch_ranges`."""
        ranges = batch_ranges(self.train_rows, batch_size, epochs=epochs, steps=steps, first_step=first_step)
        for step, (start, stop) in enumerate(ranges, first_step):
            yield self._rows(start, stop, step // steps_of(self.train_rows, batch_size))

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        """Rows [first, last) of the training part, as they come in this epoch, in batches."""
        for start, stop in range_batches(first, last, self.train_rows, batch_size):
            yield self._rows(start, stop, epoch)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Of the source, in its order."""
        return self.source.test_batches(batch_size)

    def _rows(self, start: int, stop: int, epoch: int) -> Batch:
        pieces = []
        while start < stop:
            number, low = divmod(start, self._window)
            high = min(self._window, low + stop - start)
            pieces.append(_cut(self._shuffled(number, epoch), low, high))
            start += high - low
        return pieces[0] if len(pieces) == 1 else Batch.joined(pieces)

    def _shuffled(self, number: int, epoch: int) -> Batch:
        if self._held is None or self._held[0] != (epoch, number):
            self._held = None  # so that there are not two in memory
            first = number * self._window
            last = min(first + self._window, self.train_rows)
            (batch,) = self.source.train_range(first, last, last - first, epoch)
            order = order_of(len(batch), number, epoch, self._seed)
            taken = replace(batch, labels=batch.labels[order], dense=batch.dense[order], ids=batch.ids[:, order])
            self._held = (epoch, number), taken
        return self._held[1]


def _cut(window: Batch, low: int, high: int) -> Batch:
    """Rows [low, high) of it; those behind its end are skipped ones."""
    there = len(window)
    cut = window.rows(min(low, there), min(high, there))
    return replace(cut, skipped=high - low - len(cut))

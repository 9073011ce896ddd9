"""A batch of click-log rows as numpy arrays, and the interface that every source of batches has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ecrec.errors import DataError


@dataclass(frozen=True)
class Batch:
    """B rows of D dense and F sparse features; how many there are, and their names, the source says.

    labels: float32[B], 0 or 1. dense: float32[B, D], already transformed. ids: int64[H, B], feature-major: the ids of
    feature 0, one or more columns as `BatchSource.hot` says, then those of feature 1, and so on. Where each row has one
    id of each feature, H is F, `ids[f]` is the column of feature f and `ids.reshape(-1)` is the `values()` of a
    KeyedJaggedTensor whose lengths are all 1. skipped: rows of the range that the batch was asked for which are not
    among the B, because they cannot be read.
    """

    labels: NDArray[np.float32]
    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows [start, stop) of this batch; `ids` is a contiguous copy, the rest are views."""
        return Batch(self.labels[start:stop], self.dense[start:stop], np.ascontiguousarray(self.ids[:, start:stop]))

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """The rows of all of them, one after the other."""
        return cls(
            np.concatenate([each.labels for each in batches]),
            np.concatenate([each.dense for each in batches]),
            np.concatenate([each.ids for each in batches], axis=1),
            sum(each.skipped for each in batches),
        )

    def shard(self, worker: int, workers: int) -> Batch:
        """The contiguous slice of worker `worker` of `workers`; the slices are disjoint and cover the batch.

        Sizes differ by at most one row, and depend on nothing but B and W. Raises ValueError unless
        0 <= worker < workers.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} is not one of {workers} workers")
        size = len(self)
        return self.rows(size * worker // workers, size * (worker + 1) // workers)


class BatchSource(Protocol):
    """What training needs of its data: files, generated rows and shuffled ones are such."""

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the D columns of `Batch.dense`."""
        ...

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the F sparse features."""
        ...

    @property
    def hot(self) -> tuple[int, ...]:
        """Ids that each row has of each sparse feature, F numbers; their sum is H, the rows of `Batch.ids`."""
        ...

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of the embedding table of each sparse feature; every id of feature f is in [0, rows_per_table[f])."""
        ...

    @property
    def train_rows(self) -> int:
        """Rows of the training part."""
        ...

    @property
    def test_rows(self) -> int:
        """Rows of the test part."""
        ...

    def train_batches(
        self, batch_size: int, *, epochs: int = 1, steps: int | None = None, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of the training part, in row order; see `batch_ranges` for which rows each one has."""
        ...

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        """Rows [first, last) of the training part, in batches of ``batch_size``; the last one may be short. ``epoch``:
        number of the pass, from 0; a source may have another order in each."""
        ...

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of the test part, in row order, each row once."""
        ...


def batch_ranges(
    rows: int, batch_size: int, *, epochs: int = 1, steps: int | None = None, first_step: int = 0
) -> Iterator[tuple[int, int]]:
    """The row range [start, stop) of each step, from `first_step` on.

    Every epoch goes once through all rows in order; its last batch is short where batch_size does not divide
    `rows`. With `steps`, that many steps in all (counting those before `first_step`) and as many epochs as it
    takes; `epochs` is then ignored. The range of a step depends on nothing but these arguments, so that a run
    started again at step s reads the same batches.

    Raises ValueError for arguments that are out of range, DataError if there are steps to make but no rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    if epochs < 0 or first_step < 0 or (steps is not None and steps < 0):
        raise ValueError(f"epochs {epochs}, steps {steps} and first_step {first_step} must not be negative")
    steps_per_epoch = steps_of(rows, batch_size)
    total = epochs * steps_per_epoch if steps is None else steps
    if total > 0 and rows == 0:
        raise DataError(f"{total} steps were asked for, but this part of the data has no rows")
    for step in range(first_step, total):
        start = step % steps_per_epoch * batch_size
        yield start, min(start + batch_size, rows)


def steps_of(rows: int, batch_size: int) -> int:
    """Batches of one pass."""
    return -(-rows // batch_size)


def examples_of_steps(rows: int, batch_size: int, *, epochs: int = 1, steps: int | None = None) -> int:
    """How many rows, over all epochs, the batches of `batch_ranges` have together. Raises as that does."""
    if steps is None:
        return max(0, epochs) * rows
    if steps > 0 and rows == 0:
        raise DataError(f"{steps} steps were asked for, but this part of the data has no rows")
    whole, rest = divmod(steps, max(1, steps_of(rows, batch_size)))
    return whole * rows + min(rest * batch_size, rows)


def range_batches(first: int, last: int, rows: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """[first, last), a range of ``rows`` rows, in pieces of at most ``batch_size``. ValueError where it is none."""
    if batch_size < 1 or not 0 <= first <= last <= rows:
        raise ValueError(f"rows {first} to {last} of {rows} in batches of {batch_size}: there are none such")
    for start in range(first, last, batch_size):
        yield start, min(start + batch_size, last)

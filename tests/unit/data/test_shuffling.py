"""Rows shuffled in windows: each once, whatever splits they are read in and whoever reads them, and the same again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import whole_rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ecrec.data import Batch, FileDataset, HashedIds, ShuffledSource, SyntheticDataset, SyntheticOptions
from ecrec.data.batch import batch_ranges, range_batches
from ecrec.data.shuffle import WINDOW_ROWS_MAX, order_of


class Numbered:
    """Row i has the id i; some rows are bad."""

    dense_features, sparse_features, hot, test_rows = (), ("row",), (1,), 3

    def __init__(self, rows: int, bad: Sequence[int] = ()) -> None:
        self.train_rows = rows
        self.rows_per_table = (rows,)
        self._bad = np.array(sorted(bad), np.int64)
        self.ranges: list[tuple[int, int]] = []

    def _batch(self, first: int, last: int) -> Batch:
        rows = np.setdiff1d(np.arange(first, last), self._bad)
        return Batch(
            np.zeros(len(rows), np.float32), np.empty((len(rows), 0), np.float32), rows[None], last - first - len(rows)
        )

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        self.ranges.append((first, last))
        return (self._batch(a, b) for a, b in range_batches(first, last, self.train_rows, batch_size))

    def train_batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        return (self._batch(a, b) for a, b in batch_ranges(self.train_rows, batch_size, **options))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        return iter([self._batch(self.train_rows, self.train_rows + self.test_rows)])


def read(source: Any, first: int, last: int, batch: int, epoch: int = 0) -> list[int]:
    return [row for each in source.train_range(first, last, batch, epoch) for row in each.ids[0].tolist()]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rows=st.integers(1, 200), window=st.integers(1, 250), seed=st.integers(0, 2**63 - 1))
def test_every_row_comes_once_for_any_splits_and_workers(data: Any, rows: int, window: int, seed: int) -> None:
    bad = data.draw(st.lists(st.integers(0, rows - 1), max_size=5, unique=True))
    workers = data.draw(st.integers(1, 4))
    split, batch = data.draw(st.integers(1, rows)), data.draw(st.integers(1, 64))
    epoch = data.draw(st.integers(0, 3))
    sources = [ShuffledSource(Numbered(rows, bad), window, seed) for _ in range(workers)]
    found, skipped = [], 0
    for first in range(0, rows, split):
        worker = data.draw(st.integers(0, workers - 1))
        last = min(first + split, rows)
        batches = list(sources[worker].train_range(first, last, batch, epoch))
        assert sum(len(each) + each.skipped for each in batches) == last - first
        assert all(len(each) + each.skipped == batch for each in batches[:-1])
        skipped += sum(each.skipped for each in batches)
        found += [row for each in batches for row in each.ids[0].tolist()]
    assert sorted(found) == sorted(set(range(rows)) - set(bad)) and skipped == len(bad)
    alone = ShuffledSource(Numbered(rows, bad), window, seed)
    assert read(alone, 0, rows, rows, epoch) == found, "the order is one, however it is cut"
    windows = [row // window for row in found]
    assert windows == sorted(windows), "no row leaves its window"


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 150), cursor=st.integers(0, 150), window=st.integers(1, 90), batch=st.integers(1, 40))
def test_a_run_that_goes_on_from_a_cursor_gets_the_rows_that_are_left(
    rows: int, cursor: int, window: int, batch: int
) -> None:
    cursor = min(cursor, rows)
    whole = read(ShuffledSource(Numbered(rows), window, 5), 0, rows, rows, 2)
    assert read(ShuffledSource(Numbered(rows), window, 5), cursor, rows, batch, 2) == whole[cursor:]
    steps = list(ShuffledSource(Numbered(rows), window, 5).train_batches(batch, epochs=3))
    at = cursor % len(steps)
    rest = ShuffledSource(Numbered(rows), window, 5).train_batches(batch, epochs=3, first_step=at)
    assert [each.ids.tolist() for each in rest] == [each.ids.tolist() for each in steps[at:]]


def test_the_order_is_this_one_in_every_release_and_another_in_each_pass_window_and_seed() -> None:
    assert order_of(8, window=3, epoch=1, seed=7).tolist() == ORDER
    orders = [order_of(50, *each).tolist() for each in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    source = ShuffledSource(Numbered(50), 50, 1)
    assert len({tuple(read(source, 0, 50, 50, epoch)) for epoch in range(3)}) == 3


ORDER = [7, 2, 3, 4, 6, 1, 5, 0]


def test_ranges_of_whole_windows_read_each_of_them_once() -> None:
    numbered = Numbered(100)
    source = ShuffledSource(numbered, 20, 1)
    for first in (20, 80, 0):
        list(source.train_range(first, first + 20, 7))
    assert numbered.ranges == [(20, 40), (80, 100), (0, 20)]
    assert [each.ids.tolist() for each in source.test_batches(9)] == [[[100, 101, 102]]]


def test_files_and_generated_rows_are_shuffled_alike(tmp_path: Path) -> None:
    options = SyntheticOptions(rows=300)
    generated = SyntheticDataset(options)
    path = tmp_path / "rows.tsv"
    generated.write_tsv(path)
    ids = HashedIds(generated.rows_per_table)
    for cache_rows_max in (0, 300):
        file = ShuffledSource(FileDataset([path], ids, cache_rows_max=cache_rows_max), 64, 3)
        for ours, theirs in zip(
            file.train_batches(50, epochs=2), ShuffledSource(generated, 64, 3).train_batches(50, epochs=2), strict=True
        ):
            assert np.array_equal(ours.labels, theirs.labels) and np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.dense, theirs.dense)
            assert ours.ids.flags.c_contiguous


def test_windows_and_seeds_that_cannot_be_are_refused() -> None:
    for window in (0, WINDOW_ROWS_MAX + 1):
        with pytest.raises(ValueError, match="expected 1 to"):
            ShuffledSource(Numbered(3), window, 1)
    with pytest.raises(ValueError, match="seed is -1"):
        ShuffledSource(Numbered(3), 3, -1)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 120), min_size=1, max_size=6),
    kind=st.sampled_from(["tsv", "bin", "parquet"]),
    data=st.data(),
)
def test_every_row_of_several_files_comes_once_for_any_splits(
    cuts: list[int], kind: str, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two files, and splits of them in any order."""
    files = FILES.setdefault(kind, [])
    if not files:
        folder = tmp_path_factory.mktemp(kind)
        files += [write(folder / str(i), kind, whole_rows(60, seed=i)) for i in range(2)]
    source = FileDataset(files, HashedIds(1 << 30), train_fraction=1.0, cache_rows_max=0)
    whole = next(source.train_range(0, 120, 120)).ids
    ends = sorted({0, 120, *cuts})
    splits = data.draw(st.permutations(list(itertools.pairwise(ends))))
    batch = data.draw(st.integers(1, 50))
    for first, last in splits:
        found = np.concatenate([each.ids for each in source.train_range(first, last, batch)], axis=1)
        assert np.array_equal(found, whole[:, first:last])


FILES: dict[str, list[Path]] = {}

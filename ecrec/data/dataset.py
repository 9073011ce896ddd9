"""The rows of files of any format as training and test batches: in memory when few, streaming otherwise.

The first `train_fraction` of the rows, in file order, is the training part, the rest the test part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecrec.data.batch import Batch, batch_ranges, range_batches
from ecrec.data.columns import Columns
from ecrec.data.formats import Files, names_of, open_rows
from ecrec.data.ids import HashedIds, IdMapping, VocabularyIds, VocabularyTables
from ecrec.data.plain_ids import PlainIds
from ecrec.data.rows import Layout, Marks, Piece, RowFile
from ecrec.errors import DataError
from ecrec.urls import shown

CACHE_BYTES_MAX = 264_000_000
"""Rows are kept in memory by default where all of them take no more; a million of Criteo's, at 264 bytes each."""

STOP, SKIP = "stop", "skip"
BAD_ROWS = (STOP, SKIP)
"""What becomes of a row that cannot be read: an error, or it is left out and counted."""

BAD_ROWS_MAX = 100_000
"""So many bad rows are left out; more are an error: it is another kind of file."""


class BadRows:
    """What becomes of rows that cannot be read, and which there were so far.

    ``policy``: one of `BAD_ROWS`.
    """

    def __init__(self, policy: str = STOP) -> None:
        if policy not in BAD_ROWS:
            raise ValueError(f"bad rows: {policy!r}, expected one of {', '.join(BAD_ROWS)}")
        self.policy = policy
        self.found: dict[int, str] = {}
        """Number of the row, over all files, counted with the bad ones -> file, place, and what is wrong."""

    def meet(self, wrong: dict[int, str], before: int) -> None:
        """Rows of a file, of which so many rows are ``before``. Raises DataError for the first one, or, where they are
        skipped, for more than `BAD_ROWS_MAX`."""
        if wrong and self.policy == STOP:
            raise DataError(next(iter(wrong.values())))
        self.found.update((before + number, why) for number, why in wrong.items())
        if len(self.found) > BAD_ROWS_MAX:
            raise DataError(
                f"more than {BAD_ROWS_MAX} bad rows were skipped, is this another kind of file? The last one is "
                f"{next(reversed(self.found.values()))}"
            )


class Skip:
    """Rows before ``row``, over all files, are not wanted any more."""

    def __init__(self) -> None:
        self.row = 0


def read_pieces(
    files: Sequence[RowFile],
    first_row: int = 0,
    stop_row: int | None = None,
    bad: BadRows | None = None,
    rows_of_files: Sequence[int] | None = None,
    marks_of_files: Sequence[Marks] | None = None,
    skip: Skip | None = None,
) -> Iterator[Piece]:
    """Rows [first_row, stop_row) of the files one after the other, in pieces of any size, with their numbers over all
    files.

    ``bad``: what becomes of rows that cannot be read; None: an error. ``rows_of_files``: as they were counted; files
    before `first_row` are then not opened. ``marks_of_files``: found when they were. ``skip``: rows before are left out
    where that saves work. Raises DataError for a file that cannot be read, or has other rows than were counted.
    """
    bad = BadRows() if bad is None else bad
    skip = Skip() if skip is None else skip
    before = 0
    for number, file in enumerate(files):
        counted = None if rows_of_files is None else rows_of_files[number]
        if counted is not None and before + counted <= max(first_row, skip.row):
            before += counted
            continue
        first = max(0, first_row - before)
        stop = None if stop_row is None else stop_row - before
        if stop is not None and stop <= 0:
            return
        at = 0
        marks = () if marks_of_files is None else marks_of_files[number]
        for rows, numbers, wrong, begin, end, share in file.pieces(first, stop, marks, partial(_behind, skip, before)):
            if counted is not None and end > counted:
                raise _changed(file, end, counted)
            bad.meet(wrong, before)
            at = end
            yield Piece(rows, numbers + before, wrong, begin + before, end + before, share)
        if counted is None:
            counted = at or file.count().rows
        wanted = counted if stop is None else min(stop, counted)
        if at < wanted and first < wanted and skip.row - before < wanted:
            raise _changed(file, at or file.count().rows, counted)
        before += counted


def _behind(skip: Skip, before: int) -> int:
    return skip.row - before


def _changed(file: RowFile, rows: int, counted: int) -> DataError:
    return DataError(
        f"{shown(file.name)}: found {rows} rows, {'fewer' if rows < counted else 'more'} rows than when they were "
        f"counted ({counted}), expected unchanged files"
    )


class FileDataset:
    """The rows of files as training and test batches; a `BatchSource`.

    files: one or more paths or URLs, of any format of `open_rows`, read in this order as if they were one; see
    `names_of` for ``*`` in them. columns: which column of CSV and Parquet files is what; None: these are Criteo's. ids:
    how tokens become ids; a `VocabularyIds` is built here, from the training part. train_fraction: in [0, 1]; the
    training part is the first floor(fraction * rows) rows. cache_rows_max: up to so many rows are parsed once and kept,
    more are read from the files again for each epoch; None: as many as take `CACHE_BYTES_MAX`. rows_of_files: rows of
    each file, where somebody has counted them (`RowFile.count`); otherwise opening counts them, which reads all of a
    file of lines. marks_of_files: what was noted of places in them. bad_rows: ``"stop"``: a row that cannot be read is
    an error; ``"skip"``: it is left out of its batch (`Batch.skipped`) and kept in `bad`. It counts as a row in
    all numbers of rows.

    For a vocabulary the training part is read once more. Raises DataError for files that cannot be read, that have
    different columns, no rows or others than were counted, or, as soon as it is met, a bad row; ConfigurationError
    where a package is missing, or plain ids cannot be had from these columns; ValueError for a fraction out of range,
    another ``bad_rows``, or ids of other features.
    """

    def __init__(
        self,
        files: Files,
        ids: HashedIds | PlainIds | VocabularyIds,
        *,
        columns: Columns | None = None,
        train_fraction: float = 0.8,
        cache_rows_max: int | None = None,
        rows_of_files: Sequence[int] | None = None,
        marks_of_files: Sequence[Marks] | None = None,
        bad_rows: str = STOP,
    ) -> None:
        if not 0.0 <= train_fraction <= 1.0:
            raise ValueError(f"train_fraction is {train_fraction}, expected a value from 0 to 1")
        self.bad = BadRows(bad_rows)
        """Rows that were left out so far."""
        plain = ids if isinstance(ids, PlainIds) else None
        if plain is not None and columns is not None:
            columns.check_plain_ids()
        self._files = [open_rows(name, columns, plain) for name in names_of(files)]
        if rows_of_files is None:
            counted = [file.count() for file in self._files]
            rows_of_files, marks_of_files = [each.rows for each in counted], [each.marks for each in counted]
        elif len(rows_of_files) != len(self._files):
            raise ValueError(f"rows_of_files has {len(rows_of_files)} numbers for {len(self._files)} files")
        self._rows_of_files, self._marks_of_files = list(rows_of_files), marks_of_files
        rows = sum(self._rows_of_files)
        if rows == 0:
            names = ", ".join(shown(file.name) for file in self._files) or "no file"
            raise DataError(f"{names}: found no rows, expected at least one")
        self._layout = _layout_of(self._files)
        # The small term keeps 0.29 * 100 = 28.999999999999996 from losing a row.
        self._train_rows = int(rows * train_fraction + 1e-9)
        self._test_rows = rows - self._train_rows
        hot = self._layout.hot
        self._mapping: IdMapping = (
            VocabularyTables.build(ids, (piece.rows.tokens for piece in self._pieces(0, self._train_rows)), hot)
            if isinstance(ids, VocabularyIds)
            else ids.of(hot)
        )
        self._cache: _Rows | None = None
        self._reader: _Reader | None = None
        """Of `train_range`: splits mostly come in order, and a zipped file cannot be entered in the middle."""
        if cache_rows_max is None:
            cache_rows_max = CACHE_BYTES_MAX // (4 + 4 * len(self._layout.dense) + 8 * sum(hot))
        if rows <= cache_rows_max:
            self._cache = _Rows.of([self._to_rows(piece) for piece in self._pieces(0, rows)])

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the numbers."""
        return self._layout.dense

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the tokens."""
        return self._layout.sparse

    @property
    def hot(self) -> tuple[int, ...]:
        """Ids that a row has of each sparse feature."""
        return self._layout.hot

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of the embedding table of each token."""
        return self._mapping.rows_per_table

    @property
    def train_rows(self) -> int:
        """Rows of the training part."""
        return self._train_rows

    @property
    def test_rows(self) -> int:
        """Rows of the test part."""
        return self._test_rows

    @property
    def cached(self) -> bool:
        """Whether the rows are kept in memory."""
        return self._cache is not None

    def train_batches(
        self, batch_size: int, *, epochs: int = 1, steps: int | None = None, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of the training part, in row order; see `ecrec.data.batch.batch_ranges`."""
        ranges = batch_ranges(self._train_rows, batch_size, epochs=epochs, steps=steps, first_step=first_step)
        return self._read(ranges, self._train_rows)

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        """Rows [first, last) of the training part, in batches; they are the same in each epoch.

        Where the rows are not kept in memory, a range behind the one before is read on from there; any other
        opens the files again. Raises ValueError for rows that are not there.
        """
        for start, stop in range_batches(first, last, self._train_rows, batch_size):
            if self._cache is not None:
                yield self._cache.cut(start, stop)
                continue
            if self._reader is None or not self._reader.reaches(start):
                self._reader = self._read_from(start, self._train_rows)
            yield self._reader.rows(start, stop)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of the test part, in row order, each row once."""
        shift = self._train_rows
        ranges = ((shift + a, shift + b) for a, b in batch_ranges(self._test_rows, batch_size))
        return self._read(ranges, shift + self._test_rows)

    def _read(self, ranges: Iterator[tuple[int, int]], stop_row: int) -> Iterator[Batch]:
        if self._cache is not None:
            for start, stop in ranges:
                yield self._cache.cut(start, stop)
            return
        reader: _Reader | None = None
        for start, stop in ranges:
            # Ranges run on without a gap inside an epoch; a new epoch opens the files again.
            if reader is None or not reader.reaches(start):
                reader = self._read_from(start, stop_row)
            yield reader.rows(start, stop)

    def _read_from(self, start: int, stop: int) -> _Reader:
        skip = Skip()
        return _Reader((self._to_rows(piece) for piece in self._pieces(start, stop, skip)), start, skip)

    def _pieces(self, start: int, stop: int, skip: Skip | None = None) -> Iterator[Piece]:
        """Raises DataError for files that have become shorter or longer since they were counted."""
        return read_pieces(self._files, start, stop, self.bad, self._rows_of_files, self._marks_of_files, skip)

    def _to_rows(self, piece: Piece) -> _Rows:
        rows = piece.rows
        return _Rows(Batch(rows.labels, rows.dense, self._mapping(rows.tokens)), piece.numbers, piece.first, piece.stop)


def _layout_of(files: Sequence[RowFile]) -> Layout:
    """Of all of them. Raises DataError where they differ."""
    layout = files[0].layout
    for file in files:
        if file.layout != layout:
            raise DataError(
                f"{shown(file.name)}: found {_described(file.layout)}, and {shown(files[0].name)} has "
                f"{_described(layout)}, expected the same features in all files"
            )
    return layout


def _described(layout: Layout) -> str:
    several = f" of {sum(layout.hot)} ids" if sum(layout.hot) > len(layout.hot) else ""
    return f"{len(layout.dense)} dense and {len(layout.sparse)} sparse features{several}"


class _Rows(NamedTuple):
    """Rows [first, stop) of the files, without the bad ones. ``numbers``: of those of the batch, int64[B],
    ascending."""

    batch: Batch
    numbers: NDArray[np.int64]
    first: int
    stop: int

    @classmethod
    def of(cls, pieces: Sequence[_Rows]) -> _Rows:
        """One behind the other."""
        if len(pieces) == 1:
            return pieces[0]
        batch = Batch.joined([piece.batch for piece in pieces])
        return cls(batch, np.concatenate([piece.numbers for piece in pieces]), pieces[0].first, pieces[-1].stop)

    def cut(self, start: int, stop: int) -> Batch:
        """Those of rows [start, stop), which lie in first..stop."""
        low, high = np.searchsorted(self.numbers, (start, stop)).tolist()
        return replace(self.batch.rows(low, high), skipped=stop - start - (high - low))

    def part(self, start: int) -> _Rows:
        """Those from row ``start`` on."""
        low = int(np.searchsorted(self.numbers, start))
        return _Rows(self.batch.rows(low, len(self.batch)), self.numbers[low:], max(start, self.first), self.stop)


class _Reader:
    """Reads rows of the files once, forwards. ``pieces``: from row ``start`` on, without a gap but for rows before what
    ``skip`` says."""

    def __init__(self, pieces: Iterator[_Rows], start: int, skip: Skip) -> None:
        self._pieces = pieces
        self._skip = skip
        self._held: _Rows | None = None
        self._start = start

    def reaches(self, start: int) -> bool:
        """Rows from ``start`` on are not behind."""
        return start >= self._start

    def rows(self, start: int, stop: int) -> Batch:
        """Rows [start, stop)."""
        held = self._held
        if held is None or held.stop < stop:
            pieces = [] if held is None or held.stop <= start else [held.part(start)]
            end = self._start if held is None else held.stop
            self._skip.row = max(start, end)
            while end < stop:
                piece = next(self._pieces)
                end = piece.stop
                if end > start:
                    pieces.append(piece.part(start) if piece.first < start else piece)
            self._held = held = _Rows.of(pieces)
            self._start = start
        return held.cut(start, stop)

"""Criteo's native files as batches: plain or gzip, several files, in memory when small, streaming otherwise.

What becomes of a field:

- an integer x becomes log(1 + max(x, 0)), so that 0 and every negative value (Criteo has -1, -2 and -3)
  become 0; a missing integer becomes 0 too;
- a token becomes an id of its feature's embedding table, by `HashedIds` or `VocabularyIds`.

The first `train_fraction` of the rows, in file order, is the training part, the rest the test part.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecrec.data.batch import Batch, batch_ranges, range_batches
from ecrec.data.criteo_format import DENSE_FEATURES, SPARSE_FEATURES, RawRows, parse_block, parse_good_lines
from ecrec.data.ids import HashedIds, IdMapping, VocabularyIds, VocabularyTables
from ecrec.errors import DataError

BLOCK_BYTES = 1 << 20
"""Bytes parsed at once: large enough to drown NumPy's cost per call, small enough for the cache."""

LINE_BYTES_MAX = 1 << 16
"""Longest line; a real one has about 240 bytes. Keeps a file that is no text from being read whole."""

CACHE_ROWS_MAX = 1_000_000
"""Rows kept in memory by default, at 264 bytes each."""

STOP, SKIP = "stop", "skip"
BAD_ROWS = (STOP, SKIP)
"""What becomes of a line that is no row: an error, or it is left out and counted."""

BAD_ROWS_MAX = 100_000
"""So many bad rows are left out; more are an error: it is another kind of file."""

_GZIP_MAGIC = b"\x1f\x8b"

Files = Sequence[str | os.PathLike[str]]


def line_blocks(path: str | os.PathLike[str]) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines of one file, each with the number of its first line (from 1).

    Plain text or gzip: the first two bytes decide, not the name. A newline is added to a last line that
    lacks one. Raises DataError if the file cannot be read, is damaged or truncated gzip, or has a line of
    more than LINE_BYTES_MAX bytes.
    """
    name = os.fspath(path)
    line_number = 1
    rest = b""
    chunks = _chunks(path)
    while True:
        try:
            chunk = next(chunks, b"")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{name}, after line {line_number - 1}: found damaged or truncated gzip data ({error}), "
                "expected a complete file"
            ) from error
        except OSError as error:
            raise DataError(
                f"{name}, after line {line_number - 1}: cannot be read: {error.strerror or error}"
            ) from error
        if not chunk:
            break
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            rest += chunk
        else:
            block, rest = rest + chunk[:end], chunk[end:]
            yield block, line_number
            line_number += block.count(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise DataError(
                f"{name}, line {line_number}: found a line of more than {LINE_BYTES_MAX} bytes, expected "
                "Criteo rows; is this another kind of file?"
            )
    if rest:
        yield rest + b"\n", line_number


def _chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as raw:
        zipped = raw.peek(2)[:2] == _GZIP_MAGIC
        stream: gzip.GzipFile | io.BufferedReader = gzip.GzipFile(fileobj=raw) if zipped else raw
        # read1 hands over what came before the damage of a truncated file, so that its line can be named.
        while chunk := stream.read1(BLOCK_BYTES):
            yield chunk


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise DataError unless it is a file that can be read again and again, and begins with a row of Criteo's."""
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise DataError(
                f"{name}: is a pipe or a device, and the rows are read more than once: write them to a file"
            )
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    block, line_number = next(line_blocks(path), (b"", 1))
    if not block:
        raise DataError(f"{name}: the file is empty")
    parse_block(block[: block.index(b"\n") + 1], name, line_number)


def count_rows(path: str | os.PathLike[str], is_over: Callable[[], bool] = lambda: False) -> int:
    """Lines of a file, without parsing them; raises DataError as `line_blocks` does. It ends early when ``is_over``
    says that nobody wants to know any more."""
    rows = 0
    for block, _ in line_blocks(path):
        if is_over():
            break
        rows += block.count(b"\n")
    return rows


class BadRows:
    """What becomes of lines that are no rows, and which there were so far.

    ``policy``: one of `BAD_ROWS`.
    """

    def __init__(self, policy: str = STOP) -> None:
        if policy not in BAD_ROWS:
            raise ValueError(f"bad rows: {policy!r}, expected one of {', '.join(BAD_ROWS)}")
        self.policy = policy
        self.found: dict[int, str] = {}
        """Number of the row, over all files, counted with the bad ones -> file, line, and what is wrong."""

    def parse(self, block: bytes, path: str, first_line: int, first_row: int) -> tuple[RawRows, NDArray[np.int64]]:
        """The rows of a block, and their numbers over all files. Raises DataError for a line that is none, or, where
        they are skipped, for more than `BAD_ROWS_MAX`."""
        if self.policy == STOP:
            rows = parse_block(block, path, first_line)
            return rows, np.arange(first_row, first_row + len(rows))
        rows, numbers, wrong = parse_good_lines(block, path, first_line)
        self.found.update((first_row + number, why) for number, why in wrong.items())
        if len(self.found) > BAD_ROWS_MAX:
            raise DataError(
                f"more than {BAD_ROWS_MAX} bad rows were skipped, is this another kind of file? The last one is "
                f"{next(reversed(self.found.values()))}"
            )
        return rows, numbers + first_row


class Piece(NamedTuple):
    """Parsed rows among [first, stop) of all files: those that are not bad, with their numbers, int64[n]."""

    rows: RawRows
    numbers: NDArray[np.int64]
    first: int
    stop: int


def read_raw(files: Files, first_row: int = 0, stop_row: int | None = None) -> Iterator[RawRows]:
    """Rows [first_row, stop_row) of the files one after the other, parsed, in pieces of any size.

    Lines before `first_row` are skipped without being parsed. Raises DataError for a malformed line or a file
    that cannot be read.
    """
    return (piece.rows for piece in read_pieces(files, first_row, stop_row))


def read_pieces(
    files: Files,
    first_row: int = 0,
    stop_row: int | None = None,
    bad: BadRows | None = None,
    rows_of_files: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """As `read_raw`, with the numbers of the rows. ``bad``: what becomes of malformed lines; None: an error.
    ``rows_of_files``: as they were counted; files before `first_row` are then not opened."""
    bad = BadRows() if bad is None else bad
    row = 0
    for number, path in enumerate(files):
        if rows_of_files is not None and row + rows_of_files[number] <= first_row:
            row += rows_of_files[number]
            continue
        begin = row
        for block, line_number in line_blocks(path):
            rows = block.count(b"\n")
            skip = max(0, first_row - row)
            keep = rows if stop_row is None else min(rows, stop_row - row)
            row += rows
            if keep <= 0:
                return
            if skip >= keep:
                continue
            start = _line_offset(block, skip)
            stop = len(block) if keep == rows else _line_offset(block, keep)
            first = row - rows + skip
            good, numbers = bad.parse(block[start:stop], os.fspath(path), line_number + skip, first)
            yield Piece(good, numbers, first, row - rows + keep)
        counted = row - begin if rows_of_files is None else rows_of_files[number]
        if row - begin < counted or (row - begin > counted and number + 1 < len(files)):
            fewer = "fewer" if row - begin < counted else "more"
            raise DataError(
                f"{os.fspath(path)}: found {row - begin} rows, {fewer} rows than when they were counted ({counted}), "
                "expected unchanged files"
            )


def _line_offset(block: bytes, line: int) -> int:
    if line == 0:
        return 0
    newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return int(newlines[line - 1]) + 1


def transform_integers(integers: NDArray[np.int64]) -> NDArray[np.float32]:
    """log(1 + max(x, 0)) of each integer, float32; a missing integer comes as 0 and stays 0."""
    return np.log1p(np.maximum(integers, 0).astype(np.float32))


class CriteoDataset:
    """The rows of Criteo files as training and test batches; a `BatchSource`.

    files: one or more paths, read in this order as if they were one. ids: how tokens become ids; a
    `VocabularyIds` is built here, from the training part. train_fraction: in [0, 1]; the training part is
    the first floor(fraction * rows) rows. cache_rows_max: up to so many rows are parsed once and kept, more
    are read from the files again for each epoch. rows_of_files: rows of each file, where somebody has counted them
    (`count_rows`); otherwise opening reads all files once to count them. bad_rows: ``"stop"``: a malformed line is an
    error; ``"skip"``: it is left out of its batch (`Batch.skipped`) and kept in `bad`. It counts as a row in
    all numbers of rows.

    For a vocabulary the training part is read once more. Raises DataError for files that cannot be read, that have no
    rows or others than were counted, or, as soon as it is met, a malformed line; ValueError for a fraction out of range
    or another ``bad_rows``.
    """

    def __init__(
        self,
        files: Files,
        ids: HashedIds | VocabularyIds,
        *,
        train_fraction: float = 0.8,
        cache_rows_max: int = CACHE_ROWS_MAX,
        rows_of_files: Sequence[int] | None = None,
        bad_rows: str = STOP,
    ) -> None:
        if not 0.0 <= train_fraction <= 1.0:
            raise ValueError(f"train_fraction is {train_fraction}, expected a value from 0 to 1")
        self._files = [Path(path) for path in files]
        self.bad = BadRows(bad_rows)
        """Lines that were left out so far."""
        if rows_of_files is None:
            rows_of_files = [count_rows(path) for path in self._files]
        elif len(rows_of_files) != len(self._files):
            raise ValueError(f"rows_of_files has {len(rows_of_files)} numbers for {len(self._files)} files")
        self._rows_of_files = list(rows_of_files)
        rows = sum(self._rows_of_files)
        if rows == 0:
            names = ", ".join(map(str, self._files)) or "no file"
            raise DataError(f"{names}: found no rows, expected at least one")
        # The small term keeps 0.29 * 100 = 28.999999999999996 from losing a row.
        self._train_rows = int(rows * train_fraction + 1e-9)
        self._test_rows = rows - self._train_rows
        self._mapping: IdMapping = (
            VocabularyTables.build(ids, (piece.rows.tokens for piece in self._pieces(0, self._train_rows)))
            if isinstance(ids, VocabularyIds)
            else ids
        )
        self._cache: _Rows | None = None
        self._reader: _Reader | None = None
        """Of `train_range`: splits mostly come in order, and a zipped file cannot be entered in the middle."""
        if rows <= cache_rows_max:
            self._cache = _Rows.of([self._to_rows(piece) for piece in self._pieces(0, rows)])

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the integers."""
        return DENSE_FEATURES

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the tokens."""
        return SPARSE_FEATURES

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

    def train_range(self, first: int, last: int, batch_size: int) -> Iterator[Batch]:
        """Rows [first, last) of the training part, in batches.

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
        return _Reader((self._to_rows(piece) for piece in self._pieces(start, stop)), start)

    def _pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Raises DataError for files that have become shorter or longer since they were counted."""
        yield from read_pieces(self._files, start, stop, self.bad, self._rows_of_files)

    def _to_rows(self, piece: Piece) -> _Rows:
        raw = piece.rows
        batch = Batch(raw.labels, transform_integers(raw.integers), self._mapping(raw.tokens))
        return _Rows(batch, piece.numbers, piece.first, piece.stop)


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
        batch = Batch(
            np.concatenate([piece.batch.labels for piece in pieces]),
            np.concatenate([piece.batch.dense for piece in pieces]),
            np.concatenate([piece.batch.ids for piece in pieces], axis=1),
        )
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
    """Reads rows of the files once, forwards. ``pieces``: from row ``start`` on, without a gap."""

    def __init__(self, pieces: Iterator[_Rows], start: int) -> None:
        self._pieces = pieces
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
            while end < stop:
                piece = next(self._pieces)
                end = piece.stop
                if end > start:
                    pieces.append(piece.part(start) if piece.first < start else piece)
            self._held = held = _Rows.of(pieces)
            self._start = start
        return held.cut(start, stop)


def write_rows(stream: io.BufferedIOBase | BinaryIO, raw: RawRows) -> None:
    """Write rows in Criteo's native format; `parse_block` reads them back as they were."""
    integers = np.where(raw.integers_missing, "", raw.integers.astype(str))
    lines = []
    for label, row_integers, row_tokens in zip(
        raw.labels.astype(int).tolist(), integers.tolist(), raw.tokens.T.tolist(), strict=True
    ):
        tokens = ["" if token < 0 else f"{token:08x}" for token in row_tokens]
        lines.append("\t".join([str(label), *row_integers, *tokens]))
    if lines:
        stream.write(("\n".join(lines) + "\n").encode("ascii"))

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
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ecrec.data.batch import Batch, batch_ranges, range_batches
from ecrec.data.criteo_format import RawRows, parse_block
from ecrec.data.ids import HashedIds, IdMapping, VocabularyIds, VocabularyTables
from ecrec.errors import DataError

BLOCK_BYTES = 1 << 20
"""Bytes parsed at once: large enough to drown NumPy's cost per call, small enough for the cache."""

LINE_BYTES_MAX = 1 << 16
"""Longest line; a real one has about 240 bytes. Keeps a file that is no text from being read whole."""

CACHE_ROWS_MAX = 1_000_000
"""Rows kept in memory by default, at 264 bytes each."""

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


def count_rows(files: Files) -> int:
    """Lines of all files together, without parsing them; raises DataError as `line_blocks` does."""
    return sum(block.count(b"\n") for path in files for block, _ in line_blocks(path))


def read_raw(files: Files, first_row: int = 0, stop_row: int | None = None) -> Iterator[RawRows]:
    """Rows [first_row, stop_row) of the files one after the other, parsed, in pieces of any size.

    Lines before `first_row` are skipped without being parsed. Raises DataError for a malformed line or a file
    that cannot be read.
    """
    row = 0
    for path in files:
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
            yield parse_block(block[start:stop], os.fspath(path), line_number + skip)


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
    are read from the files again for each epoch.

    Opening reads all files once to count their rows, and the training part once more for a vocabulary. Raises
    DataError for files that cannot be read, that have no rows, or, as soon as it is met, a malformed line;
    ValueError for a fraction out of range.
    """

    def __init__(
        self,
        files: Files,
        ids: HashedIds | VocabularyIds,
        *,
        train_fraction: float = 0.8,
        cache_rows_max: int = CACHE_ROWS_MAX,
    ) -> None:
        if not 0.0 <= train_fraction <= 1.0:
            raise ValueError(f"train_fraction is {train_fraction}, expected a value from 0 to 1")
        self._files = [Path(path) for path in files]
        rows = count_rows(self._files)
        if rows == 0:
            names = ", ".join(map(str, self._files)) or "no file"
            raise DataError(f"{names}: found no rows, expected at least one")
        # The small term keeps 0.29 * 100 = 28.999999999999996 from losing a row.
        self._train_rows = int(rows * train_fraction + 1e-9)
        self._test_rows = rows - self._train_rows
        self._mapping: IdMapping = (
            VocabularyTables.build(ids, (raw.tokens for raw in read_raw(self._files, 0, self._train_rows)))
            if isinstance(ids, VocabularyIds)
            else ids
        )
        self._cache: Batch | None = None
        self._reader: _Reader | None = None
        """Of `train_range`: splits mostly come in order, and a zipped file cannot be entered in the middle."""
        if rows <= cache_rows_max:
            self._cache = _concatenate([self._to_batch(raw) for raw in read_raw(self._files)])

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of each of the 26 embedding tables."""
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
                yield self._cache.rows(start, stop)
                continue
            if self._reader is None or not self._reader.reaches(start):
                self._reader = _Reader(self._files, self._to_batch, start, self._train_rows)
            yield self._reader.rows(start, stop)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of the test part, in row order, each row once."""
        shift = self._train_rows
        ranges = ((shift + a, shift + b) for a, b in batch_ranges(self._test_rows, batch_size))
        return self._read(ranges, shift + self._test_rows)

    def _read(self, ranges: Iterator[tuple[int, int]], stop_row: int) -> Iterator[Batch]:
        if self._cache is not None:
            for start, stop in ranges:
                yield self._cache.rows(start, stop)
            return
        reader: _Reader | None = None
        for start, stop in ranges:
            # Ranges run on without a gap inside an epoch; a new epoch opens the files again.
            if reader is None or not reader.reaches(start):
                reader = _Reader(self._files, self._to_batch, start, stop_row)
            yield reader.rows(start, stop)

    def _to_batch(self, raw: RawRows) -> Batch:
        return Batch(raw.labels, transform_integers(raw.integers), self._mapping(raw.tokens))


class _Reader:
    """Reads rows [start, stop) of the files once, forwards."""

    def __init__(self, files: Sequence[Path], convert: Callable[[RawRows], Batch], start: int, stop: int) -> None:
        self._files = files
        self._convert = convert
        self._stream = read_raw(files, start, stop)
        self._held: Batch | None = None
        self._held_start = start

    def reaches(self, start: int) -> bool:
        """Rows from ``start`` on are not behind."""
        return start >= self._held_start

    def rows(self, start: int, stop: int) -> Batch:
        """Rows [start, stop)."""
        held_stop = self._held_start + (0 if self._held is None else len(self._held))
        if self._held is None or held_stop < stop:
            pieces = []
            if self._held is not None and start < held_stop:
                pieces.append(self._held.rows(start - self._held_start, len(self._held)))
            while held_stop < stop:
                raw = self._next_piece()
                if held_stop + len(raw) > start:
                    piece = self._convert(raw)
                    pieces.append(piece.rows(max(0, start - held_stop), len(piece)))
                held_stop += len(raw)
            self._held, self._held_start = _concatenate(pieces), start
        return self._held.rows(start - self._held_start, stop - self._held_start)

    def _next_piece(self) -> RawRows:
        for piece in self._stream:
            return piece
        names = ", ".join(map(str, self._files))
        raise DataError(f"{names}: found fewer rows than when they were counted, expected unchanged files")


def _concatenate(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(
        np.concatenate([batch.labels for batch in batches]),
        np.concatenate([batch.dense for batch in batches]),
        np.concatenate([batch.ids for batch in batches], axis=1),
    )


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

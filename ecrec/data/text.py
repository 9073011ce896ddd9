"""Files of lines: plain or gzip, in blocks of whole lines, counted without being parsed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecrec.data.opened import open_file, size_of
from ecrec.data.rows import Counted, Layout, Marks, Piece, Rows
from ecrec.errors import ConfigurationError, DataError
from ecrec.urls import reason_of, shown

BLOCK_BYTES = 1 << 20
"""Bytes parsed at once: large enough to drown NumPy's cost per call, small enough for the cache."""

LINE_BYTES_MAX = 1 << 16
"""Longest line; a real one has about 240 bytes. Keeps a file that is no text from being read whole."""

MARK_BYTES = 1 << 28
"""While a file is counted, a place is noted each time that so many bytes have passed: 0.1 s of reading."""

GZIP_MAGIC = b"\x1f\x8b"


class Parsed(NamedTuple):
    """Rows of a block, with their numbers in it, int64[n]; and what is wrong with its other lines, by number."""

    rows: Rows
    numbers: NDArray[np.int64]
    wrong: dict[int, str]


Parse = Callable[[bytes, str, int], Parsed]
"""(block of whole lines, name of its file, number of its first line) -> its rows."""


class Block(NamedTuple):
    """Whole lines of a file."""

    lines: bytes
    first_line: int
    """Number of the first one, from 1."""
    share: float
    """Of the file that has been read, at most 1."""


def line_blocks(path: str, byte: int = 0, line_number: int = 1) -> Iterator[Block]:
    """Blocks of whole lines of one file.

    Plain text or gzip: the first two bytes decide, not the name. A newline is added to a last line that
    lacks one. ``byte``: of a plain file, where line ``line_number`` begins. Raises DataError if the file cannot be
    read, is damaged or truncated gzip, or has a line of more than LINE_BYTES_MAX bytes.
    """
    name = shown(path)
    rest = b""
    chunks = _chunks(path, byte)
    while True:
        try:
            chunk, share = next(chunks, (b"", 1.0))
        except (DataError, ConfigurationError):
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{name}, after line {line_number - 1}: found damaged or truncated gzip data ({error}), "
                "expected a complete file"
            ) from error
        except Exception as error:  # each file system of fsspec has its own
            raise DataError(f"{name}, after line {line_number - 1}: cannot be read: {reason_of(error)}") from error
        if not chunk:
            break
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            rest += chunk
        else:
            block, rest = rest + chunk[:end], chunk[end:]
            yield Block(block, line_number, share)
            line_number += block.count(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise DataError(
                f"{name}, line {line_number}: found a line of more than {LINE_BYTES_MAX} bytes, expected "
                "rows, a line each; is this another kind of file?"
            )
    if rest:
        yield Block(rest + b"\n", line_number, 1.0)


def _chunks(path: str, byte: int) -> Iterator[tuple[bytes, float]]:
    with open_file(path) as raw:
        size = max(1, size_of(raw))
        zipped = is_zipped(raw)
        raw.seek(byte)
        # read1 hands over what came before the damage of a truncated file, so that its line can be named.
        stream = gzip.GzipFile(fileobj=raw) if zipped else None
        while chunk := raw.read(BLOCK_BYTES) if stream is None else stream.read1(BLOCK_BYTES):
            yield chunk, min(1.0, raw.tell() / size)


def is_zipped(stream: BinaryIO) -> bool:
    """It is gzip, by its first two bytes; it is at its beginning afterwards."""
    magic = stream.read(2)
    stream.seek(0, io.SEEK_SET)
    return magic == GZIP_MAGIC


class TextFile:
    """Rows that are lines; a `RowFile`. ``parse``: what becomes of a block of them. ``header``: lines before the
    first row."""

    def __init__(self, name: str, layout: Layout, parse: Parse, header: int = 0) -> None:
        self.name = name
        self.layout = layout
        self._parse = parse
        self._header = header

    def where(self, row: int) -> str:
        """The header is line 1."""
        return f"{shown(self.name)}, line {row + self._header + 1}"

    def count(self, is_over: Callable[[], bool] = lambda: False) -> Counted:
        """Reads the whole file. Marks are of a plain file: a zipped one cannot be entered in the middle."""
        with open_file(self.name) as raw:
            zipped = is_zipped(raw)
        lines = read = 0
        marks: list[tuple[int, int]] = []
        for block, _, _ in line_blocks(self.name):
            if is_over():
                break
            if not zipped and lines >= self._header and read >= (marks[-1][1] if marks else 0) + MARK_BYTES:
                marks.append((lines - self._header, read))
            lines += block.count(b"\n")
            read += len(block)
        return Counted(max(0, lines - self._header), tuple(marks))

    def pieces(
        self, first: int = 0, stop: int | None = None, marks: Marks = (), skip: Callable[[], int] = lambda: 0
    ) -> Iterator[Piece]:
        """Numbers of lines in error messages count the header."""
        row, byte, stepped = -self._header, 0, True
        while stepped:
            row, byte = max(((row, byte) for row, byte in marks if row <= max(first, skip())), default=(row, byte))
            stepped = False
            for block, line_number, share in line_blocks(self.name, byte, row + self._header + 1):
                wanted = max(first, skip())
                if any(row < mark <= wanted for mark, _ in marks):
                    stepped = True  # reading goes on there
                    break
                rows = block.count(b"\n")
                low = max(0, wanted - row)
                keep = rows if stop is None else min(rows, stop - row)
                begin, row = row, row + rows
                if keep <= 0:
                    return
                if low >= keep:
                    continue
                cut = block[_line_offset(block, low) : len(block) if keep == rows else _line_offset(block, keep)]
                good = self._parse(cut, shown(self.name), line_number + low)
                at = begin + low
                wrong = {at + number: why for number, why in good.wrong.items()}
                yield Piece(good.rows, good.numbers + at, wrong, at, begin + keep, share)


def _line_offset(block: bytes, line: int) -> int:
    if line == 0:
        return 0
    newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return int(newlines[line - 1]) + 1

"""Which format a file has: its first bytes decide, and its name must not say otherwise."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

from ecrec.data.arrays import ArrayFile, open_bin, open_npy, open_npz
from ecrec.data.columns import CRITEO, Columns
from ecrec.data.criteo import criteo_file
from ecrec.data.csv_format import csv_file
from ecrec.data.opened import expand, open_file, part_names, read_error
from ecrec.data.parquet_format import ParquetFile
from ecrec.data.plain_ids import PlainIdFile, PlainIds
from ecrec.data.rows import RowFile
from ecrec.data.text import GZIP_MAGIC, TextFile
from ecrec.errors import ConfigurationError, DataError
from ecrec.urls import shown, without_query

HEAD_BYTES = 512

Files = Sequence[str | os.PathLike[str]]

NPY, ZIP, PARQUET, TEXT = "an array of NumPy (.npy)", "a zip archive (.npz)", "a Parquet file", "text"
BINARY = "no text, but data of no format that is known here (docs/data.md has those that are read)"
GZIP = "gzip"

_MAGIC = (
    (b"\x93NUMPY", NPY),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"PAR1", PARQUET),
    (b"PARE", "an encrypted Parquet file"),
    (GZIP_MAGIC, GZIP),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ\x00", "compressed by xz: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"Obj\x01", "an Avro file: write it as Parquet"),
    (b"ORC", "an ORC file: write it as Parquet"),
    (b"ARROW1", "an Arrow or Feather file: write it as Parquet"),
    (b"SQLite format 3\0", "a database of SQLite: write a table as Parquet or CSV"),
    (b"\x04\x22\x4d\x18", "compressed by lz4: unpack it"),
    (b"\xff\x06\0\0sNaPpY", "compressed by snappy: unpack it"),
    (b"\x1f\x9d", "compressed by compress (.Z): unpack it"),
    (b"Rar!\x1a", "a rar archive: unpack it"),
    (b"\xff\xfe", "text in UTF-16: write it in UTF-8"),
    (b"\xfe\xff", "text in UTF-16: write it in UTF-8"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n", "an HDF5 file: write it as Parquet"),
    (b"\x80\x02", "a pickle, which is never read: save arrays with np.save"),
    (b"\x80\x03", "a pickle, which is never read: save arrays with np.save"),
    (b"\x80\x04", "a pickle, which is never read: save arrays with np.save"),
    (b"\x80\x05", "a pickle, which is never read: save arrays with np.save"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error")
_JSON = (b'{"', b"[{", b'{ "', b"[[")
_BY_NAME = {".npy": NPY, ".npz": ZIP, ".parquet": PARQUET, ".pq": PARQUET}
_RECORDS = (".tfrecord", ".tfrecords")
_READ = (NPY, ZIP, PARQUET, TEXT, GZIP)


def names_of(files: Files) -> list[str]:
    """The files that are meant, in the order in which they are read; see `ecrec.data.opened.expand`."""
    return expand([os.fspath(path) for path in files])


def open_rows(name: str, columns: Columns | None = None, plain: PlainIds | None = None) -> RowFile:
    """A file of rows in any format, by its first bytes: Criteo's lines, or a CSV file where ``columns`` says which
    column is what; Parquet; arrays. With ``plain`` ids that are rows of no table are wrong.

    Raises DataError, which says what it is, for any other; ConfigurationError for ``columns`` where there are none, or
    a package that is missing.
    """
    file = _open(name, columns)
    return file if plain is None else PlainIdFile(file, plain)


def _open(name: str, columns: Columns | None) -> RowFile:
    kind = _kind(name)
    if columns is not None and kind not in (PARQUET, TEXT, GZIP):
        raise ConfigurationError(f"--columns: {shown(name)} has no names of columns; leave it out")
    if kind == PARQUET:
        return ParquetFile(name, columns or CRITEO)
    if kind == NPY:
        return open_npy(name)
    if kind == ZIP:
        return open_npy(name) if part_names(name) is not None else ArrayFile(name, open_npz)
    if kind == ".bin":
        return ArrayFile(name, open_bin)
    return criteo_file(name) if columns is None else csv_file(name, columns)


def _kind(name: str) -> str:
    with open_file(name) as stream:
        try:
            head = stream.read(HEAD_BYTES)
        except Exception as error:  # each file system of fsspec has its own
            raise read_error(name, error) from error
    found = _found(head)
    lower = without_query(name).lower()
    by_name = next((kind for end, kind in _BY_NAME.items() if lower.endswith(end)), None)
    if by_name is None and lower.endswith(_RECORDS):
        raise DataError(f"{shown(name)}: TFRecord files are converted once, to Parquet: see docs/data.md")
    if lower.endswith(".bin") and (found in (TEXT, BINARY) or not head):
        return ".bin"
    if found == BINARY and by_name is not None:
        found = TEXT  # what it begins with says more
    if found not in _READ:
        raise DataError(f"{shown(name)}: is {found}")
    if found == GZIP and by_name is None and not lower.endswith(".bin"):
        inside = _found(_unzipped(head))
        if inside != TEXT:
            advice = "" if "unpack" in inside or "write it" in inside else ": only text is read from gzip, unpack it"
            raise DataError(f"{shown(name)}: is compressed by gzip, and inside of that it is {inside}{advice}")
    expected = by_name or ("int32 rows" if lower.endswith(".bin") else None)
    if expected is not None and expected != found:
        is_text = "no such file: it begins with " + repr(head[:16]) if head else "empty"
        what = {GZIP: "compressed by gzip: unpack it", TEXT: is_text}.get(found, found + ": rename it")
        raise DataError(f"{shown(name)}: its name says {expected}, and it is {what}")
    return found


def _unzipped(head: bytes) -> bytes:
    """What the beginning of a gzip file has, as far as it goes; damage is found when it is read."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _found(head: bytes) -> str:
    """What begins so."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:20].lower()
    if start.startswith(_PAGES):
        return "a page of HTML or XML: the download answered with an error or a login, get the file again"
    if start.startswith(_JSON):
        return "JSON: write it as Parquet or CSV"
    if b"\0" in head:
        return BINARY
    return TEXT


def check_file(name: str, columns: Columns | None = None, plain: PlainIds | None = None) -> None:
    """Raise DataError unless it is a file that can be read again and again, and begins with a row."""
    file = open_rows(name, columns, plain)
    piece = next(file.pieces(0, 1), None)
    if piece is None:
        with open_file(name) as stream:
            is_empty = not stream.read(1)
        raise DataError(f"{shown(name)}: {'the file is empty' if is_empty else 'found no rows, expected at least one'}")
    for why in piece.wrong.values():
        raise DataError(why)


__all__ = ["Files", "TextFile", "check_file", "names_of", "open_rows"]

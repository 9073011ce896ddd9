"""Rows in arrays of NumPy, and in arrays without a header: MLPerf's preprocessed files.

- ``.bin``: int32 rows of 40: label, 13 integers, 26 tokens, as facebookresearch/dlrm writes them;
- ``.npy``: the same rows as an array;
- ``X_labels.npy``, ``X_dense.npy`` and ``X_sparse.npy``, or ``X_sparse_multi_hot.npz``, as TorchRec's DLRM reads them;
- ``.npz`` with ``y``, ``X_int`` and ``X_cat``.

Only the bytes of the rows that are wanted are read, but for a compressed ``.npz``, which cannot be entered in the
middle.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ecrec.data.columns import int_tokens
from ecrec.data.criteo_format import DENSE_FEATURES, FIELDS, INTEGERS, SPARSE_FEATURES, TOKENS
from ecrec.data.opened import DENSE, LABELS, MULTI_HOT, SPARSE, open_file, part_names, read_error, size_of
from ecrec.data.rows import HOT_MAX, PIECE_ROWS, Counted, Layout, Marks, Piece, Rows, transform_integers
from ecrec.errors import DataError
from ecrec.urls import printable, reason_of, shown

HEADER_BYTES_MAX = 10_000
"""Of a .npy; one of plain numbers has about 100."""
FEATURES_MAX = 10_000
_FLOAT_LIKE = 0x30000000
"""No count in the first row is so large, and as an integer every float from 1e-9 on is."""


class Part(Protocol):
    """A two-dimensional array in a file."""

    rows: int
    width: int
    dtype: np.dtype[Any]

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """[stop - first, width]."""
        ...


class Stored:
    """``rows`` of ``width`` values each, from byte ``begin`` of a stream on."""

    def __init__(self, name: str, stream: BinaryIO, begin: int, dtype: np.dtype[Any], rows: int, width: int) -> None:
        self._name, self._stream, self._begin = name, stream, begin
        self.dtype, self.rows, self.width = dtype, rows, width

    def read(self, first: int, stop: int) -> NDArray[Any]:
        row_bytes = self.width * self.dtype.itemsize
        into = np.empty((stop - first) * row_bytes, np.uint8)
        try:
            self._stream.seek(self._begin + first * row_bytes)
            _fill(self._stream, into)
        except Exception as error:  # each file system of fsspec has its own
            raise read_error(self._name, error) from error
        return into.view(self.dtype).reshape(stop - first, self.width)


class Deflated:
    """The same in a compressed member of a zip archive: what is before is read, too."""

    def __init__(
        self, name: str, archive: zipfile.ZipFile, member: str, begin: int, dtype: np.dtype[Any], rows: int, width: int
    ) -> None:
        self._name, self._archive, self._member, self._begin = name, archive, member, begin
        self.dtype, self.rows, self.width = dtype, rows, width
        self._stream: Any = None

    def read(self, first: int, stop: int) -> NDArray[Any]:
        row_bytes = self.width * self.dtype.itemsize
        into = np.empty((stop - first) * row_bytes, np.uint8)
        try:
            if self._stream is None:
                self._stream = self._archive.open(self._member)
            self._stream.seek(self._begin + first * row_bytes)  # reads on to there, or begins anew
            _fill(self._stream, into)
        except Exception as error:
            raise DataError(f"{self._name}: {self._member}: damaged or truncated: {reason_of(error)}") from error
        return into.view(self.dtype).reshape(stop - first, self.width)


def _fill(stream: Any, into: NDArray[np.uint8]) -> None:
    view, done = into.data, 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise EOFError(f"the file ended {len(view) - done} bytes too early")
        done += count


class Arrays(NamedTuple):
    """The parts of an open file. ``sparse``: side by side they are all features."""

    labels: Part
    dense: Part
    sparse: list[Part]


class Slice:
    """Columns [low, high) of a part. Slices of one part read it once for the same rows."""

    def __init__(self, part: Part, low: int, high: int, kept: dict[tuple[int, int], NDArray[Any]]) -> None:
        self._part, self._low, self._kept = part, low, kept
        self.rows, self.width, self.dtype = part.rows, high - low, part.dtype

    def read(self, first: int, stop: int) -> NDArray[Any]:
        if (first, stop) not in self._kept:
            self._kept.clear()
            self._kept[first, stop] = self._part.read(first, stop)
        return self._kept[first, stop][:, self._low : self._low + self.width]


class ArrayFile:
    """Rows in arrays; a `RowFile`. ``open_parts`` opens them, and is asked each time. Raises DataError for arrays that
    are no rows."""

    def __init__(self, name: str, open_parts: Callable[[str, ExitStack], Arrays]) -> None:
        self.name = name
        self._open_parts = open_parts
        with self._open() as arrays:
            self._rows = arrays.labels.rows
            self.layout = _layout(shown(name), arrays)

    @contextmanager
    def _open(self) -> Iterator[Arrays]:
        with ExitStack() as stack:
            yield self._open_parts(self.name, stack)

    def where(self, row: int) -> str:
        """Rows are numbered from 1."""
        return f"{shown(self.name)}, row {row + 1}"

    def count(self, is_over: Callable[[], bool] = lambda: False) -> Counted:
        """From the header, or the size of the file."""
        return Counted(self._rows)

    def pieces(
        self, first: int = 0, stop: int | None = None, marks: Marks = (), skip: Callable[[], int] = lambda: 0
    ) -> Iterator[Piece]:
        """Rows are read from where they lie."""
        with self._open() as arrays:
            rows = arrays.labels.rows
            stop = rows if stop is None else min(stop, rows)
            begin = max(first, skip())
            while begin < stop:
                end = min(begin + PIECE_ROWS, stop)
                yield self._piece(arrays, begin, end)
                begin = max(end, skip())

    def _piece(self, arrays: Arrays, first: int, stop: int) -> Piece:
        labels = arrays.labels.read(first, stop)[:, 0]
        numbers = arrays.dense.read(first, stop)
        ids = [part.read(first, stop) for part in arrays.sparse]
        found = [int_tokens(each) for each in ids]
        tokens = np.ascontiguousarray(np.concatenate([each for each, _ in found], axis=1).T)
        dense = transform_integers(numbers) if numbers.dtype.kind in "iu" else numbers.astype(np.float32)
        bad_labels = (labels != 0) & (labels != 1)
        bad_dense = np.asarray(~np.isfinite(dense).all(axis=1))
        bad_tokens = np.logical_or.reduce([bad.any(axis=1) for _, bad in found])
        good = ~(bad_labels | bad_dense | bad_tokens)
        wrong = {}
        for i in np.flatnonzero(~good).tolist():
            if bad_labels[i]:
                why = f"found label {labels[i]}, expected 0 or 1{_as_float(labels[i])}"
            elif bad_dense[i]:
                column = int(np.flatnonzero(~np.isfinite(dense[i]))[0])
                why = f"found {self.layout.dense[column]} = {dense[i, column]}, expected a finite number"
            else:
                why = self._wide([each[i] for each in ids], [bad[i] for _, bad in found])
            wrong[first + i] = f"{self.where(first + i)}: {why}"
        if wrong:
            labels, dense, tokens = labels[good], dense[good], np.ascontiguousarray(tokens[:, good])
        rows = Rows(labels.astype(np.float32), dense, tokens)
        return Piece(rows, np.flatnonzero(good) + first, wrong, first, stop, stop / self._rows)

    def _wide(self, ids: list[NDArray[Any]], bad: list[NDArray[np.bool_]]) -> str:
        """Which id of a row has too many bits."""
        place = int(np.flatnonzero(np.concatenate(bad))[0])
        name = np.repeat(self.layout.sparse, self.layout.hot)[place]
        return f"found {name} = {np.concatenate(ids)[place]}, expected an id of 32 bits"


def _as_float(label: Any) -> str:
    """What an integer would be that is none."""
    if not isinstance(label, np.int32) or abs(int(label)) < _FLOAT_LIKE:
        return ""
    return f"; it is the float {label.view(np.float32)}: is this a file of floats?"


def _layout(name: str, arrays: Arrays) -> Layout:
    """Raises DataError unless the arrays are labels, numbers and ids of the same rows."""
    sizes = {"labels": arrays.labels.rows, "dense": arrays.dense.rows}
    sizes |= {f"sparse {i}": part.rows for i, part in enumerate(arrays.sparse)}
    if len(set(sizes.values())) > 1:
        shorter = ", ".join(f"{what} {rows}" for what, rows in list(sizes.items())[:5])
        raise DataError(f"{name}: found different numbers of rows ({shorter}), expected one")
    if arrays.labels.width != 1 or arrays.labels.dtype.kind not in "iufb":
        raise DataError(
            f"{name}: found labels of shape [n, {arrays.labels.width}] and type {arrays.labels.dtype}, expected one "
            "number a row"
        )
    if arrays.dense.dtype.kind not in "iuf":
        raise DataError(f"{name}: found dense features of type {arrays.dense.dtype}, expected integers or floats")
    for part in arrays.sparse:
        if part.dtype.kind not in "iu":
            raise DataError(f"{name}: found sparse features of type {part.dtype}, expected integers")
    several = len(arrays.sparse) > 1
    hot = tuple(part.width for part in arrays.sparse) if several else (1,) * arrays.sparse[0].width
    if not 1 <= len(hot) <= FEATURES_MAX or not 0 <= arrays.dense.width <= FEATURES_MAX:
        raise DataError(f"{name}: found {arrays.dense.width} dense and {len(hot)} sparse features")
    if min(hot) < 1 or max(hot) > HOT_MAX:
        raise DataError(f"{name}: found {min(hot)} to {max(hot)} ids a feature, expected 1 to {HOT_MAX}")
    return Layout(_names(DENSE_FEATURES, arrays.dense.width), _names(SPARSE_FEATURES, len(hot)), hot)


def _names(known: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(f"{known[0][0]}{i}" for i in range(1, count + 1))


# ---------------------------------------------------------------------- the formats
def open_bin(name: str, stack: ExitStack) -> Arrays:
    """int32 rows without a header."""
    stream = stack.enter_context(open_file(name))
    size, row_bytes = size_of(stream), 4 * FIELDS
    if size == 0 or size % row_bytes:
        raise DataError(
            f"{shown(name)}: found {size} bytes, expected a multiple of {row_bytes}: rows of {FIELDS} int32, which are "
            f"the label, {INTEGERS} integers and {TOKENS} ids. Is it cut off, or of another layout?"
        )
    whole = Stored(shown(name), stream, 0, np.dtype("<i4"), size // row_bytes, FIELDS)
    first = whole.read(0, 1)[0, 1 : 1 + INTEGERS]
    if np.count_nonzero(np.abs(first.astype(np.int64)) >= _FLOAT_LIKE) > INTEGERS // 2:
        raise DataError(
            f"{shown(name)}: found {first.view(np.float32)[:3].tolist()}... in the first row, if read as floats: "
            "expected integers; are these dense features of float32?"
        )
    return _rows_of(whole)


def open_npy_rows(name: str, stack: ExitStack) -> Arrays:
    """Rows of label, integers and ids as one array of integers."""
    whole = _open_npy(name, stack)
    if whole.width != FIELDS or whole.dtype.kind not in "iu":
        raise DataError(
            f"{shown(name)}: found an array of shape [{whole.rows}, {whole.width}] and type {whole.dtype}, expected "
            f"integers [n, {FIELDS}]: the label, {INTEGERS} integers and {TOKENS} ids. Arrays apart are named "
            f"X_{LABELS}, X_{DENSE} and X_{SPARSE}"
        )
    return _rows_of(whole)


def _rows_of(whole: Part) -> Arrays:
    kept: dict[tuple[int, int], NDArray[Any]] = {}
    dense = Slice(whole, 1, 1 + INTEGERS, kept)
    return Arrays(Slice(whole, 0, 1, kept), dense, [Slice(whole, 1 + INTEGERS, FIELDS, kept)])


def open_apart(name: str, stack: ExitStack) -> Arrays:
    """Labels, dense and sparse features, each in a file; ``name`` is that of the last ones."""
    names = part_names(name)
    assert names is not None
    labels, dense = _open_npy(names[LABELS], stack), _open_npy(names[DENSE], stack)
    if MULTI_HOT not in names:
        return Arrays(labels, dense, [_open_npy(name, stack)])
    archive = _Archive(name, stack)
    members = {str(i) for i in range(len(archive.members))}
    if archive.members != members:
        found = printable(", ".join(sorted(archive.members)[:5]))
        raise DataError(f"{shown(name)}: found arrays {found}, expected 0, 1, ...: one for each sparse feature")
    return Arrays(labels, dense, [archive.part(str(i)) for i in range(len(members))])


def open_npz(name: str, stack: ExitStack) -> Arrays:
    """``y``, ``X_int`` and ``X_cat`` in one archive."""
    archive = _Archive(name, stack)
    lacking = [key for key in ("y", "X_int", "X_cat") if key not in archive.members]
    if lacking:
        found = printable(", ".join(sorted(archive.members)[:10]))
        raise DataError(
            f"{shown(name)}: found no array {', '.join(lacking)}; there are: {found}. Ids of several a feature are in "
            f"X_{MULTI_HOT}, beside X_{LABELS} and X_{DENSE}"
        )
    return Arrays(archive.part("y"), archive.part("X_int"), [archive.part("X_cat")])


class _Header(NamedTuple):
    begin: int
    dtype: np.dtype[Any]
    rows: int
    width: int

    @property
    def nbytes(self) -> int:
        """Of file and header together."""
        return self.begin + self.rows * self.width * self.dtype.itemsize


def _open_npy(name: str, stack: ExitStack) -> Stored:
    stream = stack.enter_context(open_file(name))
    size = size_of(stream)
    head = _header(shown(name), stream)
    if head.nbytes > size:
        raise DataError(
            f"{shown(name)}: found {size} bytes, expected {head.nbytes} for {head.rows} rows of {head.width}: it is "
            "cut off"
        )
    return Stored(shown(name), stream, head.begin, head.dtype, head.rows, head.width)


def _header(name: str, stream: Any) -> _Header:
    """Of a .npy; the stream is behind it then. Nothing of the array is allocated."""
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        length = int.from_bytes(stream.read(2 * version[0]), "little")
        if length > HEADER_BYTES_MAX:
            raise ValueError(f"a header of {length} bytes, expected at most {HEADER_BYTES_MAX}")
        stream.seek(-2 * version[0], io.SEEK_CUR)
        shape, is_fortran, dtype = read(stream, max_header_size=HEADER_BYTES_MAX)
    except KeyError as error:
        raise DataError(f"{name}: an array of NumPy in a version of the format that is not read") from error
    except Exception as error:  # the header is a literal of Python, and NumPy lets through what its parser raises
        raise DataError(f"{name}: no array of NumPy: {reason_of(error)[:200]}") from error
    if dtype.hasobject or dtype.names is not None or dtype.itemsize == 0:
        raise DataError(f"{name}: found an array of type {str(dtype)[:100]}, expected numbers")
    if len(shape) not in (1, 2) or min(shape) < 0 or (is_fortran and len(shape) == 2 and min(shape) > 1):
        order = " in Fortran's order (save np.ascontiguousarray of it)" if is_fortran else ""
        raise DataError(f"{name}: found an array of shape {shape}{order}, expected rows")
    return _Header(stream.tell(), dtype, shape[0], shape[1] if len(shape) == 2 else 1)


class _Archive:
    """A .npz."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self._name = shown(name)
        self._stream = stack.enter_context(open_file(name))
        try:
            self._zip = stack.enter_context(zipfile.ZipFile(self._stream))
        except Exception as error:  # of zipfile, struct, and the file system
            raise DataError(f"{self._name}: damaged or truncated .npz: {reason_of(error)}") from error
        self.members = {each.removesuffix(".npy") for each in self._zip.namelist()}

    def part(self, key: str) -> Part:
        """The array of this name."""
        name = f"{self._name}: {key}"
        try:
            member = self._zip.getinfo(f"{key}.npy")
            with self._zip.open(member) as stream:
                head = _header(name, stream)
        except DataError:
            raise
        except Exception as error:  # zipfile lets through what is wrong with a name, or with a password
            raise DataError(f"{name}: damaged, truncated or encrypted: {reason_of(error)}") from error
        if head.nbytes > member.file_size:
            raise DataError(f"{name}: found {member.file_size} bytes, expected {head.nbytes}: it is cut off")
        if member.compress_type != zipfile.ZIP_STORED:
            return Deflated(self._name, self._zip, member.filename, head.begin, head.dtype, head.rows, head.width)
        # The names before the bytes of a member may differ in length from those at the end of the archive.
        self._stream.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", self._stream.read(4))
        begin = member.header_offset + 30 + sum(lengths) + head.begin
        return Stored(name, self._stream, begin, head.dtype, head.rows, head.width)


def open_npy(name: str) -> ArrayFile:
    """A .npy as rows: one array of all, or several that belong together."""
    if part_names(name) is not None:
        return ArrayFile(name, open_apart)
    return ArrayFile(name, open_npy_rows)

"""Files of data under paths and URLs: which ones are meant, in which order, and opened to be read from anywhere."""

from __future__ import annotations

import glob
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, cast

from ecrec.errors import ConfigurationError, DataError
from ecrec.urls import file_system, is_url, local_path, reason_of, shown, without_query

_WILD = re.compile(r"[*?\[]")
_PART = re.compile(r"(?P<prefix>(?:.*/)?(?:[^/]*_)?)(?P<role>labels\.npy|dense\.npy|sparse\.npy|sparse_multi_hot\.npz)")

EXTRA = "data"
"""Of ecrec: it has fsspec."""

LABELS, DENSE, SPARSE, MULTI_HOT = "labels.npy", "dense.npy", "sparse.npy", "sparse_multi_hot.npz"
"""How the names end of the arrays that are one file of rows together."""


def absolute(name: str) -> str:
    """A name that means the same in another working directory."""
    return name if is_url(name) else os.path.abspath(local_path(name))


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorts ``day_10`` behind ``day_9``."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isascii() and part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def expand(names: Sequence[str]) -> list[str]:
    """The files that are meant, in the order in which they are read.

    A name with ``*``, ``?`` or ``[`` stands for all files that it fits, in numeric order (``day_2`` before ``day_10``);
    everything else stands for itself, and so does the query of a URL. Of arrays that belong together
    (``day_0_labels.npy``, ``day_0_dense.npy``, ``day_0_sparse.npy``) each stands for all; the one of the sparse
    features is returned for them. Raises DataError for a name that nothing fits, ConfigurationError where a package is
    missing.
    """
    found: list[str] = []
    for name in names:
        if _WILD.search(without_query(name)) and (is_url(name) or not os.path.exists(local_path(name))):
            fitting = sorted(_glob(name), key=natural_key)
            if not fitting:
                raise DataError(f"{shown(name)}: no file fits, expected at least one")
            found += fitting
        else:
            found.append(name)
    return _joined(found)


def _joined(names: list[str]) -> list[str]:
    """Names of arrays that belong together become that of the sparse features, once."""
    given = set(names)
    joined: dict[str, None] = {}
    prefixes: dict[str, str] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match is None:
            joined[name] = None
            continue
        prefix, role = match["prefix"], match["role"]
        if role in (SPARSE, MULTI_HOT):
            ids = name
        else:
            candidates = [prefix + SPARSE, prefix + MULTI_HOT]
            there = [each for each in candidates if each in given] or [each for each in candidates if exists(each)]
            if len(there) != 1:
                which = "neither is there" if not there else "both are there: name the one to read"
                raise DataError(f"{shown(name)}: its rows are completed by {SPARSE} or {MULTI_HOT}; {which}")
            ids = there[0]
        if prefixes.setdefault(prefix, ids) != ids:
            raise DataError(f"{shown(prefixes[prefix])} and {shown(ids)} are of the same rows: name the one to read")
        joined[ids] = None
    return list(joined) if prefixes else names


def part_names(name: str) -> dict[str, str] | None:
    """``labels.npy`` and so on -> the names of the arrays that belong to one of the sparse features; None for another
    name."""
    match = _PART.fullmatch(name)
    if match is None or match["role"] not in (SPARSE, MULTI_HOT):
        return None
    return {LABELS: match["prefix"] + LABELS, DENSE: match["prefix"] + DENSE, match["role"]: name}


def exists(name: str) -> bool:
    """There is such a file. Raises as `open_file`."""
    if not is_url(name):
        return os.path.exists(local_path(name))
    system, path = file_system(name, EXTRA)
    with _errors(name):
        return bool(system.exists(path))


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """A file that can be read from any place; closed afterwards.

    Paths and ``file://`` are local, everything else with a scheme goes through fsspec. Raises DataError for a file that
    is not there, is a directory or a pipe, or cannot be opened; ConfigurationError where a package is missing.
    """
    stream = _open(name)
    try:
        yield stream
    finally:
        stream.close()


def size_of(stream: BinaryIO) -> int:
    """Bytes of an open file; it is at its beginning afterwards."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


def read_error(name: str, error: Exception) -> DataError:
    """For people: a file that was opened cannot be read."""
    return DataError(f"{shown(name)}: cannot be read: {reason_of(error)}")


def _open(name: str) -> BinaryIO:
    if is_url(name):
        system, path = file_system(name, EXTRA)
        with _errors(name):
            if system.isdir(path):
                raise IsADirectoryError
            return cast(BinaryIO, system.open(path, "rb"))
    path = local_path(name)
    with _errors(name):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise DataError(
                f"{name}: is a pipe or a device, and the rows are read more than once: write them to a file"
            )
        return open(path, "rb")


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except (DataError, ConfigurationError):
        raise
    except IsADirectoryError as error:
        raise DataError(
            f"{shown(name)}: is a directory, expected a file; all files in it are '{shown(name).rstrip('/')}/*'"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{shown(name)}: No such file; it cannot be read") from error
    except Exception as error:  # each file system of fsspec has its own
        raise read_error(name, error) from error


def _glob(name: str) -> list[str]:
    if not is_url(name):
        return [each for each in glob.glob(local_path(name), recursive=True) if not os.path.isdir(each)]
    system, path = file_system(name, EXTRA)
    with _errors(name):
        return [system.unstrip_protocol(each) for each in system.glob(path) if not system.isdir(each)]

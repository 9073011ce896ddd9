"""What the formats of `export` share: what they are told, and whole tables that are filled in through memory maps."""

import contextlib
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecrec.checkpoint.checking import Progress
from ecrec.checkpoint.reading import Checkpoint
from ecrec.checkpoint.rows import DTYPES, Columns, initial_blocks
from ecrec.errors import CheckpointError
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.saved import Column, columns_of

TABLE = "{table}"
"""In a pattern of names: the name of the table."""

SCRATCH = "scratch"
"""A folder in that of the output, for files that are removed at the end."""


class Job(NamedTuple):
    """What the formats are told."""

    checkpoint: Checkpoint
    specs: list[TableSpec]
    folder: Path
    """Where to write; it becomes the output."""
    with_state: bool
    names: str
    """What the weights of a table are called, with ``{table}`` in place of its name."""
    done: "Done"

    def name(self, spec: TableSpec) -> str:
        return self.names.replace(TABLE, spec.name)

    def columns(self, spec: TableSpec) -> list[Column]:
        """Weights, and state if it is wanted."""
        return wanted_columns(spec, self.with_state)

    def tensor_name(self, spec: TableSpec, column: Column) -> str:
        """``clicks.weight``, and of its state ``clicks.weight.sum``."""
        return tensor_name(self.names, spec, column)


def wanted_columns(spec: TableSpec, with_state: bool) -> list[Column]:
    columns = columns_of(spec.dim, spec.optimizer)
    return columns if with_state else columns[:1]


def tensor_name(names: str, spec: TableSpec, column: Column) -> str:
    name = names.replace(TABLE, spec.name)
    return name if column.name == "weights" else f"{name}.{column.name}"


class Done:
    """How far an export is, in bytes that were filled in or written."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, nbytes: int) -> None:
        self._done = min(self._done + nbytes, self._total)
        self._progress(self._done, self._total)


@contextlib.contextmanager
def mapped(path: Path, nbytes: int) -> Iterator[mmap.mmap]:
    """A new file of this size, in memory. All its blocks are there before anything is written: a disk that is full is
    an error here, and would end the process later."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise CheckpointError(
                f"{path}: it needs {nbytes:,} bytes, and {free:,} are free: {error.strerror}"
            ) from error
        memory = mmap.mmap(descriptor, nbytes)
    finally:
        os.close(descriptor)
    yield memory
    # Not closed: arrays may still look at it. It goes with the last of them.
    memory.flush()


def arrays_in(memory: mmap.mmap, offsets: Sequence[int], columns: Sequence[Column], rows: int) -> Columns:
    """Arrays of a whole table in a memory map, one for each column."""
    found: Columns = {}
    for offset, column in zip(offsets, columns, strict=True):
        array: Any = np.frombuffer(memory, DTYPES[column.dtype], rows * max(1, column.width), offset)
        found[column.name] = array.reshape(rows, column.width) if column.width else array
    return found


def fill(job: Job, spec: TableSpec, arrays: Columns) -> None:
    """Write all rows of a table: their initial values, then what is in the checkpoint."""
    for first, block in initial_blocks(spec, with_state=len(arrays) > 1):
        for name, array in arrays.items():
            array[first : first + len(block[name])] = block[name]
        job.done.add(sum(block[name].nbytes for name in arrays))
    for rows, columns in job.checkpoint.rows(spec.name):
        for name, array in arrays.items():
            array[rows] = columns[name]
        job.done.add(sum(columns[name].nbytes for name in arrays))

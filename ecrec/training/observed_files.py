"""Files to which a running training adds what it measures: lines of JSON, TensorBoard's events, a trace.

None of them ends the training: one that cannot be written, because a disk is full, is told once, and tried again with
the next piece.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ecrec._native import crc32c
from ecrec.errors import ConfigurationError

Warn = Callable[[str], None]

CRC_MASK = 0xA282EAD8
"""Checksums of TFRecord files are rotated and raised by this."""

TENSORBOARD_MISSING = 'TensorBoard is missing: pip install "ecrec[tensorboard]"'

TRACE_BEGINS, TRACE_BETWEEN, TRACE_ENDS = b"[\n", b",\n", b"\n]\n"
"""A trace has an event a line. One without its end, of a process that was killed, is still a trace."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a metrics file: what a worker measured since its line before. docs/training.md says what each is."""

    time_s: float
    worker: int
    epoch: int
    step: int
    seconds: float
    examples_per_s: float
    waiting: float
    loss: float | None
    auc: float | None
    logloss: float | None
    normalized_entropy: float | None
    window_examples: int
    steps: int
    examples: int
    waited_s: float
    deaths: int
    recoveries: int


SCALARS = {
    "training/loss": "loss",
    "training/auc": "auc",
    "training/logloss": "logloss",
    "training/normalized_entropy": "normalized_entropy",
    "speed/examples_per_s": "examples_per_s",
    "speed/waiting": "waiting",
    "speed/waited_s": "waited_s",
    "cluster/deaths": "deaths",
    "cluster/recoveries": "recoveries",
}
"""Tag in TensorBoard -> field of a line."""


class Appended:
    """A file to which pieces are added, each in one write, as a whole or not at all.

    ``shared``: other processes add lines to it too, which do not mix on a local file system; one that was cut short, by
    a full disk or a SIGKILL, is ended before the next. Else what was cut short is taken off again. ``anew``: what was
    in it is gone. Raises ConfigurationError, naming ``option``, if it cannot be opened.
    """

    def __init__(self, option: str, path: Path, warn: Warn, *, shared: bool = False, anew: bool = False) -> None:
        self._path, self._warn, self._shared = path, warn, shared
        self._has_warned = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if anew else 0)
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise ConfigurationError(f"{option} {path}: cannot be written: {error.strerror}") from error
        self._size = os.fstat(self._file).st_size
        self._torn = shared and self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"

    def append(self, data: bytes) -> bool:
        """Add it; False if that failed, of which is warned the first time."""
        data = b"\n" * self._torn + data
        written = 0
        try:
            written = os.write(self._file, data)
            if written < len(data):
                written += os.write(self._file, data[written:])  # says why
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._cut(written)
            if not self._has_warned:
                self._has_warned = True
                self._warn(f"{self._path}: {error.strerror}; what cannot be written is left out, and training goes on")
            return False
        self._torn = False
        self._size += written
        return True

    def _cut(self, written: int) -> None:
        if self._shared:
            self._torn = self._torn or written > 0
        elif written:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)

    def close(self) -> None:
        os.close(self._file)


class JsonLines:
    """``--metrics``: `Line` after `Line`, of all workers that name the file. It is gone on with."""

    def __init__(self, path: Path, warn: Warn) -> None:
        self._file = Appended("--metrics", path, warn, shared=True)

    def write(self, line: Line) -> None:
        self._file.append(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()


class EventFiles:
    """``--tensorboard``: the scalars of one worker in a directory of its own, which is a run of TensorBoard.

    Each process makes a file. Its first event has TensorBoard drop what earlier files have at ``first_step`` or later:
    a run that went back repeats these steps. Raises ConfigurationError where TensorBoard's package is missing, or the
    file cannot be made.
    """

    def __init__(self, directory: Path, first_step: int, warn: Warn) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
        except ImportError as error:
            raise ConfigurationError(f"--tensorboard {directory}: {TENSORBOARD_MISSING} ({error})") from error
        self._event, self._summary = Event, Summary
        now_ns = time.time_ns()
        # TensorBoard reads the files of a run in the order of their names.
        name = f"events.out.tfevents.{now_ns // 10**9:010d}.{now_ns % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended("--tensorboard", directory / name, warn)
        begins = SessionLog(status=SessionLog.START)
        self._begins = _record(Event(wall_time=now_ns / 1e9, file_version="brain.Event:2").SerializeToString())
        self._begins += _record(Event(wall_time=now_ns / 1e9, step=first_step, session_log=begins).SerializeToString())

    def write(self, line: Line) -> None:
        tags = ((tag, getattr(line, field)) for tag, field in SCALARS.items())
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in tags if value is not None]
        event = self._event(wall_time=line.time_s, step=line.step, summary=self._summary(value=values))
        # A file without its first record is none: it comes with the first that can be written.
        if self._file.append(self._begins + _record(event.SerializeToString())):
            self._begins = b""

    def close(self) -> None:
        self._file.close()


class TraceFile:
    """``--trace``: events of one process, as an array of JSON that is whole once it is closed."""

    def __init__(self, path: Path, warn: Warn) -> None:
        self._file = Appended("--trace", path, warn, anew=True)
        self._before = TRACE_BEGINS

    def write(self, events: Sequence[bytes]) -> None:
        if events and self._file.append(self._before + TRACE_BETWEEN.join(events)):
            self._before = TRACE_BETWEEN

    def close(self) -> None:
        self._file.append(TRACE_ENDS if self._before == TRACE_BETWEEN else TRACE_BEGINS + TRACE_ENDS)
        self._file.close()


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + CRC_MASK) & 0xFFFFFFFF)


def own_file(path: Path, rank: int, world_size: int, epoch: int) -> Path:
    """Where a worker's trace is: ``path`` of an only worker in its first life, else with rank and life in its name."""
    parts = [path.stem, *([str(rank)] if world_size > 1 else []), *([f"life{epoch}"] if epoch > 1 else [])]
    return path.with_name(".".join(parts) + path.suffix)

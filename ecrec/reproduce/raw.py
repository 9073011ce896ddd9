"""Raw results: one file of JSON lines a run, which says what was run, and on what machine.

The first line describes the run (``kind`` "run"). Then come a line for each worker and second ("second"), for the
servers once a second ("servers"), and for each event ("event"), in the order in which they were known. The last line
is "end". A file appears under its name when it is complete; until then, and for ever if the run failed, it has another.

Times ``t`` are seconds from when the clock of the run started: what comes before is below 0.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import msgspec

from ecrec.errors import DataError
from ecrec.reproduce.plan import Run

VERSION = 1
SUFFIX, PARTIAL, FAILED = ".jsonl", ".jsonl.partial", ".failed.jsonl"
KINDS = ("run", "second", "servers", "event", "end", "failed")
LINE_BYTES_MAX = 1 << 20


class Record(NamedTuple):
    """A complete run, as it was written."""

    run: Run
    name: str
    machine: dict[str, Any]
    versions: dict[str, str]
    seconds: list[dict[str, Any]]
    servers: list[dict[str, Any]]
    events: list[dict[str, Any]]
    end: dict[str, Any]

    def of(self, event: str) -> list[dict[str, Any]]:
        """Its events of this name."""
        return [each for each in self.events if each["event"] == event]


class RawWriter:
    """Writes the lines of one run. A context manager: the file gets its name at the end, if `end` was written."""

    def __init__(self, path: Path, run: Run, machine: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        self._path = path
        self._partial = path.with_name(path.name.removesuffix(SUFFIX) + PARTIAL)
        self._file: TextIO = self._partial.open("w")
        self._ended = False
        self.line("run", version=VERSION, run=msgspec.to_builtins(run), machine=dict(machine), versions=dict(versions))

    def line(self, kind: str, **fields: Any) -> None:
        """Write one; at once, so that an interrupted run can be looked at."""
        self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._file.flush()

    def end(self, **fields: Any) -> None:
        """The last line."""
        self.line("end", **fields)
        self._ended = True

    def __enter__(self) -> "RawWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._ended:
            self._partial.replace(self._path)


def is_complete(path: Path) -> bool:
    """The run was done: its file has its name, which it gets at the end."""
    return path.is_file()


def read(path: Path) -> Record:
    """A complete file. Raises DataError, with file and line, for one that is not as it was written."""
    first: dict[str, Any] | None = None
    lists: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
            kind = entry.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{where}: expected a JSON object with a kind: {error}") from error
        if kind not in KINDS or (kind == "run") != (number == 1) or lists["end"]:
            raise DataError(f"{where}: {kind!r} cannot stand here; expected run first, end last, one of {KINDS}")
        if number == 1:
            first = entry
        lists[kind].append(entry)
    if first is None or not lists["end"]:
        raise DataError(f"{path}: it has no end: the run was interrupted; remove the file, and run it again")
    if first.get("version") != VERSION:
        raise DataError(f"{path}: it is of version {first.get('version')}, and this ecrec reads {VERSION}")
    try:
        run = msgspec.convert(first["run"], Run)
        _check(lists)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not as it was written: {error}") from error
    return Record(
        run, path.name.removesuffix(SUFFIX), first["machine"], first["versions"], lists["second"], lists["servers"],
        lists["event"], lists["end"][0],
    )  # fmt: skip


NUMBERS = {
    "second": ("t", "worker", "steps", "examples", "loss", "waited_s", "longest_s"),
    "servers": ("t", "data_bytes", "parity_bytes", "resident_bytes"),
    "event": ("t",),
    "end": ("t", "position", "examples"),
}
"""Fields that lines of a kind must have, as numbers."""


def _check(lists: Mapping[str, list[dict[str, Any]]]) -> None:
    for kind, names in NUMBERS.items():
        for entry in lists[kind]:
            for name in names:
                if isinstance(entry[name], bool) or not isinstance(entry[name], int | float):
                    raise TypeError(f"{kind}: {name} is {entry[name]!r}, expected a number")
    for entry in lists["event"]:
        if not isinstance(entry["event"], str):
            raise TypeError(f"event: {entry['event']!r} is no name")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open() as file:
            while line := file.readline(LINE_BYTES_MAX):
                if not line.endswith("\n"):
                    raise DataError(f"{path}: its last line is cut short, or longer than {LINE_BYTES_MAX} bytes")
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def fail(path: Path, reason: str) -> Path:
    """What there is of a run that failed gets a name that says so, and the reason as its last line."""
    partial = path.with_name(path.name.removesuffix(SUFFIX) + PARTIAL)
    failed = path.with_name(path.name.removesuffix(SUFFIX) + FAILED)
    with partial.open("a") as file:
        file.write(json.dumps({"kind": "failed", "reason": reason}) + "\n")
    partial.replace(failed)
    return failed


def forget_failure(path: Path) -> None:
    """Before it is run again."""
    with contextlib.suppress(FileNotFoundError):
        path.with_name(path.name.removesuffix(SUFFIX) + FAILED).unlink()

"""Checkpoints, read without a cluster: what there are, their manifests, and the rows of their tables.

All bytes may be hostile: a length is compared with that of the file before memory is allocated for it (``parts.py``, of
parts).
"""

import enum
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ecrec._native import crc32c
from ecrec.checkpoint.files import Folder
from ecrec.checkpoint.parts import PartOf, PartReader
from ecrec.checkpoint.rows import F32, I64, Columns, RowsSeen, initial_blocks
from ecrec.checkpoint.rules import (
    FILE_BYTES_MAX,
    check_base,
    check_index,
    check_manifest,
)
from ecrec.checkpoint.user_state import Tensor
from ecrec.checkpoint.user_state import decode as decode_state
from ecrec.errors import CheckpointError, CheckpointVersionError, ConfigurationError, FileMissingError
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.saved import (
    MANIFEST,
    STATE,
    Manifest,
    ShardIndex,
    checkpoint_folder,
    checkpoint_number,
    decode,
)

DENSE_BYTES_MAX = 8 << 30
"""A larger table is not brought into memory by a call that does not say so."""


# ---------------------------------------------------------------------- which there are
class State(enum.Enum):
    """What a checkpoint is worth, as far as its manifest says."""

    COMPLETE = "complete"
    UNFINISHED = "unfinished"
    """It has no manifest: it is being written, or its writer was killed."""
    DAMAGED = "damaged"
    """Its manifest is damaged, or not that of this checkpoint."""
    OTHER_VERSION = "another version"
    """Its manifest is of a version of the format that this ecrec does not read."""
    BASE_LOST = "lacks its base"
    """It has only what changed since another checkpoint, which is not there, or not complete, or another one now."""
    UNREADABLE = "cannot be read"
    """Its manifest could not be read, this time."""


class Info(NamedTuple):
    """A checkpoint, as its manifest describes it. Zeros where there is none that can be read."""

    number: int
    state: State
    problem: str = ""
    """Why it is not complete."""
    time_s: float = 0.0
    """Of the cut, seconds since 1970."""
    seconds: float = 0.0
    """That it took to write."""
    nbytes: int = 0
    rows: int = 0
    tables: int = 0
    cluster: str = ""
    """Random name of the cluster that wrote it."""
    base: int = 0
    """It has only what changed since this checkpoint; 0: everything. Size and rows are those that it has itself."""

    @property
    def is_complete(self) -> bool:
        return self.state is State.COMPLETE


def checkpoints(url: str) -> list[Info]:
    """The checkpoints at a URL, by number; none if there is no such folder. Only their manifests are read.

    Raises ConfigurationError for a bad URL, CheckpointError if the folder cannot be listed.
    """
    return _found(Folder(url))


def _found(folder: Folder) -> list[Info]:
    try:
        names = [entry.name for entry in folder.list() if entry.is_folder]
    except FileMissingError:
        return []
    numbers = sorted(number for name in names if (number := checkpoint_number(name)) is not None)
    found: dict[int, Info] = {}
    checksums: dict[int, int] = {}
    for number in numbers:  # a base has a lower number
        info, manifest, checksums[number] = _info(folder.within(checkpoint_folder(number)), number)
        if manifest is not None and manifest.base:
            base = found.get(manifest.base)
            problem = "it is not there"
            if base is not None and not base.is_complete:
                problem = f"that is {base.state.value}"
            elif base is not None:
                problem = "" if checksums[base.number] == manifest.base_crc32c else "that is another one now"
            if problem:
                problem = f"it has what changed since checkpoint {manifest.base}, and {problem}"
                info = info._replace(state=State.BASE_LOST, problem=problem)
        found[number] = info
    return list(found.values())


def _info(folder: Folder, number: int) -> tuple[Info, Manifest | None, int]:
    """What is known of it by itself; its manifest, if that can be read, and the checksum of all of the manifest."""
    try:
        data = folder.read(MANIFEST, FILE_BYTES_MAX)
    except FileMissingError:
        problem = "it has no manifest: it is being written, or its writer was killed"
        return Info(number, State.UNFINISHED, problem), None, 0
    except CheckpointError as error:
        return Info(number, State.UNREADABLE, str(error)), None, 0
    try:
        manifest = _decoded(data, folder, number)
    except CheckpointVersionError as error:
        return Info(number, State.OTHER_VERSION, str(error)), None, 0
    except CheckpointError as error:
        return Info(number, State.DAMAGED, str(error)), None, 0
    nbytes = len(data) + sum(index.nbytes + index.part_bytes for index in manifest.indexes)
    nbytes += manifest.state.nbytes if manifest.state is not None else 0
    rows = sum(index.rows for index in manifest.indexes)
    info = Info(
        number, State.COMPLETE, "", manifest.time_s, manifest.seconds, nbytes, rows, len(manifest.tables),
        manifest.cluster, manifest.base,
    )  # fmt: skip
    return info, manifest, crc32c(data)


def _decoded(data: bytes, folder: Folder, number: int | None) -> Manifest:
    name = folder.path(MANIFEST)
    manifest = decode(data, Manifest, name)
    check_manifest(manifest, name)
    if number is not None and manifest.checkpoint != number:
        raise CheckpointError(
            f"{name}: it is the manifest of checkpoint {manifest.checkpoint}, and lies in the folder of {number}"
        )
    return manifest


def open_checkpoint(url: str, number: int | None = None) -> "Checkpoint":
    """A complete checkpoint at a URL: the one of that number, or the newest; or the one whose folder the URL names.

    One that has only what changed since another one is opened together with its bases.

    Raises ConfigurationError for a bad URL, FileMissingError if there is none, or none of that number, CheckpointError
    if it is not complete, or a base of it is not there or not complete. That all its files are whole is known when they
    are read (`checking.check`).
    """
    folder = Folder(url)
    if folder.exists(MANIFEST):
        own = checkpoint_number(folder.url.rpartition("/")[2])
        data = folder.read(MANIFEST, FILE_BYTES_MAX)
        manifest = _decoded(data, folder, own)
        if number is not None and number != manifest.checkpoint:
            raise CheckpointError(f"{folder}: it is checkpoint {manifest.checkpoint}, and {number} was asked for")
        bases = _bases(Folder(_parent(url)), manifest) if manifest.base else []
        return Checkpoint(folder, manifest, crc32c(data), bases=bases)
    found = _found(folder)
    if number is None:
        complete = [info for info in found if info.is_complete]
        if not found:
            raise FileMissingError(f"{folder}: there is no checkpoint: expected folders such as {checkpoint_folder(1)}")
        if not complete:
            raise CheckpointError(_none_of(folder, found))
        chosen = complete[-1]
    else:
        named = [info for info in found if info.number == number]
        if not named:
            there = ", ".join(str(info.number) for info in found[-20:]) or "none"
            raise FileMissingError(f"{folder}: there is no checkpoint {number}; there are {there}")
        chosen = named[0]
        if not chosen.is_complete:
            raise CheckpointError(
                f"{folder}: checkpoint {number} is {chosen.state.value}: {chosen.problem}. `ecrec checkpoints list` "
                "shows those that are complete"
            )
    inside = folder.within(checkpoint_folder(chosen.number))
    data = inside.read(MANIFEST, FILE_BYTES_MAX)
    manifest = _decoded(data, inside, chosen.number)
    newer = [info for info in found if info.number > chosen.number]
    return Checkpoint(inside, manifest, crc32c(data), newer, _bases(folder, manifest))


def _parent(url: str) -> str:
    """The URL of the folder that a folder lies in."""
    return url.rstrip("/").rpartition("/")[0] if "://" in url else os.path.dirname(os.path.abspath(url))


def _bases(folder: Folder, manifest: Manifest) -> "list[Checkpoint]":
    """The checkpoints that one builds on, the newest first; ``folder`` has all of them."""
    bases: list[Checkpoint] = []
    while manifest.base:
        inside = folder.within(checkpoint_folder(manifest.base))
        why = f"checkpoint {manifest.checkpoint} has only what changed since checkpoint {manifest.base}"
        try:
            data = inside.read(MANIFEST, FILE_BYTES_MAX)
            base = _decoded(data, inside, manifest.base)
        except FileMissingError as error:
            raise CheckpointError(f"{inside}: it is not there, or not complete; {why}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {why}") from error
        if crc32c(data) != manifest.base_crc32c:
            raise CheckpointError(f"{inside}: it is another checkpoint than it was; {why}")
        check_base(base, manifest, inside.path(MANIFEST))
        bases.append(Checkpoint(inside, base, manifest.base_crc32c))
        manifest = base
    return bases


def _none_of(folder: Folder, found: list[Info]) -> str:
    last = found[-1]
    return (
        f"{folder}: none of its {len(found)} checkpoints is complete. The newest, {last.number}, is "
        f"{last.state.value}: {last.problem}"
    )


# ---------------------------------------------------------------------- one of them
class Checkpoint:
    """A checkpoint that has a manifest. Made by `open_checkpoint`."""

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        crc32c: int = 0,
        newer: list[Info] | None = None,
        bases: "list[Checkpoint] | None" = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.crc32c = crc32c
        """Of all of the manifest."""
        self.newer = newer or []
        """Those with higher numbers, passed over because they are not complete, or another one was asked for."""
        self.bases = bases or []
        """Those whose rows it has too, where they did not change since, the newest first. They have no bases here."""
        self._numbers = {spec.name: number for number, spec in enumerate(manifest.tables)}
        self._indexes: dict[int, ShardIndex] = {}
        self._rows: dict[int, Counter[int]] = {}
        """By shard and number of the table."""
        self._parts: dict[int, dict[int, list[PartOf]]] = {}
        """By shard and number of the table."""

    def spec(self, table: str) -> TableSpec:
        """What a table is. Raises ConfigurationError for a name that it does not have."""
        return self.manifest.tables[self._number(table)]

    def _number(self, table: str) -> int:
        if table in self._numbers:
            return self._numbers[table]
        names = ", ".join(repr(spec.name) for spec in self.manifest.tables[:20]) or "none"
        raise ConfigurationError(f"{self.folder}: there is no table {table!r}; it has {names}")

    def index(self, shard: int) -> ShardIndex:
        """What a shard wrote. Raises CheckpointError for an index that is damaged."""
        if shard not in self._indexes:
            entry = self.manifest.indexes[shard]
            name = self.folder.path(entry.name)
            data = self.folder.read(entry.name, entry.nbytes)
            if len(data) != entry.nbytes:
                raise CheckpointError(f"{name}: it has {len(data)} bytes, expected {entry.nbytes}: it was cut short")
            if (found := crc32c(data)) != entry.crc32c:
                raise CheckpointError(f"{name}: damaged: its CRC-32C is {found:08x}, expected {entry.crc32c:08x}")
            index = decode(data, ShardIndex, name)
            check_index(index, entry, self.manifest, name)
            self._indexes[shard] = index
            self._rows[shard] = Counter()
            for part in index.parts:
                self._rows[shard][part.table] += part.rows
        return self._indexes[shard]

    def state_bytes(self) -> bytes | None:
        """The file of a user's own state (`user_state.decode`); None: nobody has given one. Raises CheckpointError."""
        entry = self.manifest.state
        if entry is None:
            return None
        data, name = self.folder.read(STATE, entry.nbytes), self.folder.path(STATE)
        if len(data) != entry.nbytes:
            raise CheckpointError(f"{name}: it has {len(data)} bytes, expected {entry.nbytes}: it was cut short")
        if (found := crc32c(data)) != entry.crc32c:
            raise CheckpointError(f"{name}: damaged: its CRC-32C is {found:08x}, expected {entry.crc32c:08x}")
        return data

    def state(self, make: Callable[[Tensor], Any] = lambda tensor: tensor.array) -> dict[str, Any] | None:
        """A user's own state; None: nobody has given one. ``make``: of `user_state.decode`."""
        data = self.state_bytes()
        return None if data is None else decode_state(data, self.folder.path(STATE), make)

    def links(self, shard: int) -> "list[Checkpoint]":
        """This one and the bases that have rows of a shard, the newest first: a row is in the first one that has it."""
        found = []
        for link in [self, *self.bases]:
            found.append(link)
            if not link.manifest.indexes[shard].base:
                break
        return found

    def own_parts(self, number: int, shard: int) -> list[PartOf]:
        """The parts that a shard wrote of this checkpoint itself, with rows of the table of that number."""
        if shard not in self._parts:
            by_table: dict[int, list[PartOf]] = defaultdict(list)
            for part in self.index(shard).parts:
                by_table[part.table].append(PartOf(shard, part))
            self._parts[shard] = by_table
        return list(self._parts[shard].get(number, ()))

    def touched_rows(self, table: str) -> int:
        """How many rows of a table are in the checkpoint; all others have their initial values."""
        number = self._number(table)
        return sum(self._touched_on(number, shard) for shard in range(len(self.manifest.indexes)))

    def _touched_on(self, number: int, shard: int) -> int:
        touched = self.index(shard).touched
        return touched[number] if number < len(touched) else self._rows[shard][number]

    def rows(self, table: str) -> Iterator[tuple[I64, Columns]]:
        """The rows of a table that were ever touched, some at a time, in no order: their numbers, and their values.

        Arrays are for reading only, and stay valid. Memory stays bounded. Raises CheckpointError for a part that is
        damaged, a row that cannot be in it, and one that was there before.
        """
        for shard in range(len(self.manifest.indexes)):
            yield from self.rows_on(table, shard)

    def rows_on(self, table: str, shard: int) -> Iterator[tuple[I64, Columns]]:
        """As `rows`, of those that lay on one shard."""
        number, links = self._number(table), self.links(shard)
        newer, found = self.rows_in_links(number, links, shard), 0
        for link in links:
            own = link.rows_seen(number, shard)
            for part in link.own_parts(number, shard):
                for rows, columns in link.rows_of(part, own):
                    if newer is not None and not (fresh := newer.add_new(rows)).all():
                        rows = rows[fresh]
                        columns = {name: array[fresh] for name, array in columns.items()}
                    found += len(rows)
                    if len(rows):
                        yield rows, columns
        self.check_found(number, shard, found)

    def rows_in_links(self, number: int, links: "list[Checkpoint]", shard: int) -> "RowsSeen | None":
        """What tells which rows of a table newer links of a shard have; None: there is one link."""
        if len(links) == 1:
            return None
        expected = sum(link._rows_of(number, shard) for link in links)
        return RowsSeen(self.manifest.tables[number], self.manifest, shard, expected)

    def check_found(self, number: int, shard: int, found: int) -> None:
        """Raise CheckpointError if a shard's links together have fewer rows of a table than were touched, or more."""
        expected = self._touched_on(number, shard)
        if found != expected:
            raise CheckpointError(
                f"{self.folder.path(self.manifest.indexes[shard].name)}: it says that {expected} rows of table "
                f"{self.manifest.tables[number].name!r} were trained, and its parts and those of its bases have {found}"
            )

    def rows_seen(self, number: int, shard: int) -> "RowsSeen | None":
        """What checks that no row of a table is twice in the parts that a shard wrote of this checkpoint itself; None:
        there are none."""
        rows = self._rows_of(number, shard)
        return RowsSeen(self.manifest.tables[number], self.manifest, shard, rows) if rows else None

    def _rows_of(self, number: int, shard: int) -> int:
        self.index(shard)
        return self._rows[shard][number]

    def rows_of(self, part: PartOf, seen: "RowsSeen | None" = None) -> Iterator[tuple[I64, Columns]]:
        """The rows of one part, as `rows` gives them; with ``seen`` of its shard, none that was there before."""
        reader = PartReader(self.folder, self.manifest, part)
        for rows, columns in reader.chunks():
            reader.check_rows(rows, seen)
            yield rows, columns

    def dense(self, table: str, bytes_max: int = DENSE_BYTES_MAX) -> F32:
        """The weights of all rows, float32[rows, dim]. Raises ConfigurationError for a table of more than ``bytes_max``
        bytes of them, otherwise as `rows`."""
        spec = self.spec(table)
        size = 4 * spec.rows * spec.dim
        if size > bytes_max:
            raise ConfigurationError(
                f"table {table!r} has {size / 1e9:.1f} GB of weights, and at most {bytes_max / 1e9:.1f} GB are brought "
                "into memory: read it with Checkpoint.rows(), or `ecrec export` it"
            )
        try:
            out = np.empty((spec.rows, spec.dim), np.float32)
        except MemoryError as error:
            raise ConfigurationError(
                f"table {table!r}: there is no memory for its {size / 1e9:.1f} GB of weights"
            ) from error
        for first, block in initial_blocks(spec):
            out[first : first + len(block["weights"])] = block["weights"]
        for rows, columns in self.rows(table):
            out[rows] = columns["weights"]
        return out

"""Parts of a checkpoint: files with rows of one table, read step by step.

All bytes may be hostile: a length is compared with that of the file before memory is allocated for it, and no row is
handed out before the checksum of its part was right.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ecrec._native import crc32c
from ecrec.checkpoint.files import File, Folder
from ecrec.checkpoint.rows import CHUNK_BYTES, DTYPES, I64, Columns, RowsSeen, shards_of_rows
from ecrec.checkpoint.rules import HEADER_BYTES_MAX, check_header
from ecrec.errors import CheckpointError
from ecrec.protocol.saved import Column, Manifest, Part, columns_of

PART_BYTES_IN_MEMORY = 64 << 20
"""A larger part is read twice, in chunks: once for its checksum, and once for its rows."""


class PartOf(NamedTuple):
    """A part and the shard that wrote it, numbered over all groups."""

    shard: int
    part: Part

    @property
    def name(self) -> str:
        """In the folder of the checkpoint."""
        return f"shard-{self.shard:05d}/{self.part.name}"


class PartReader:
    """The steps in which a part is read. Each raises CheckpointError, which names the file."""

    def __init__(self, folder: Folder, manifest: Manifest, each: PartOf) -> None:
        self._folder, self._each = folder, each
        self._manifest = manifest
        self.spec = manifest.tables[each.part.table]
        self.path = folder.path(each.name)

    def chunks(self) -> Iterator[tuple[I64, Columns]]:
        """The part, some rows at a time, when its length, its checksum and its header are right."""
        part = self._each.part
        with self._folder.open(self._each.name) as file:
            self.check_length(file)
            if part.nbytes <= PART_BYTES_IN_MEMORY:
                whole = np.empty(part.nbytes, np.uint8).data
                file.read_into(0, whole)
                self.check_checksum(crc32c(whole))
                tensors = self._tensors(file)
                yield from self._chunks(tensors, lambda offset, nbytes: whole[offset : offset + nbytes])
            else:
                yield from self._chunks_of_large(file)

    def check_length(self, file: File) -> None:
        if file.nbytes != self._each.part.nbytes:
            raise CheckpointError(
                f"{self.path}: it has {file.nbytes} bytes, expected {self._each.part.nbytes}: "
                + ("it was cut short" if file.nbytes < self._each.part.nbytes else "it was written to later")
            )

    def check_checksum(self, found: int) -> None:
        expected = self._each.part.crc32c
        if found != expected:
            raise CheckpointError(f"{self.path}: damaged: its CRC-32C is {found:08x}, expected {expected:08x}")

    def check_rows(self, rows: I64, seen: "RowsSeen | None" = None) -> None:
        """Every row is one of its table's, lies on the shard, and was not seen before."""
        spec, shard = self.spec, self._each.shard
        bad = rows.view(np.uint64) >= np.uint64(spec.rows)  # below 0 is very large without a sign
        if bad.any():
            row = rows[int(bad.argmax())]
            raise CheckpointError(
                f"{self.path}: it has row {row} of table {spec.name!r}, whose rows are 0 to {spec.rows - 1}"
            )
        bad = shards_of_rows(spec, self._manifest.shards, self._manifest.groups, rows) != shard
        if bad.any():
            row = rows[int(bad.argmax())]
            raise CheckpointError(
                f"{self.path}: it has row {row} of table {spec.name!r}, which does not lie on shard {shard}"
            )
        if seen is not None and (twice := seen.add(rows)) is not None:
            raise CheckpointError(
                f"{self.path}: it has row {twice} of table {spec.name!r}, which is twice in the parts of shard {shard}"
            )

    def _tensors(self, file: File) -> dict[str, tuple[Column, int]]:
        """What each tensor is, and where it begins in the file."""
        part = self._each.part
        if part.nbytes < 8:
            raise CheckpointError(f"{self.path}: it has {part.nbytes} bytes, and is no safetensors file")
        beginning = bytearray(8)
        file.read_into(0, memoryview(beginning))
        size = int.from_bytes(beginning, "little")
        if size > min(HEADER_BYTES_MAX, part.nbytes - 8):
            raise CheckpointError(
                f"{self.path}: its header says that it has {size} bytes; expected at most "
                f"{min(HEADER_BYTES_MAX, part.nbytes - 8)}"
            )
        header = bytearray(size)
        file.read_into(8, memoryview(header))
        tensors = check_header(bytes(header), self.spec, part.rows, self.path)
        data_bytes = sum(part.rows * column.nbytes for column, _ in tensors.values())
        if 8 + size + data_bytes != part.nbytes:
            raise CheckpointError(
                f"{self.path}: it has {part.nbytes} bytes; its header and tensors have {8 + size + data_bytes}"
            )
        return {name: (column, 8 + size + begin) for name, (column, begin) in tensors.items()}

    def _chunks(self, tensors: dict[str, tuple[Column, int]], read: Any) -> Iterator[tuple[I64, Columns]]:
        """``read(offset, nbytes)`` gives a buffer of the file."""
        for first, last in _ranges(self._each.part.rows, tensors):
            arrays: Columns = {}
            for name, (column, begin) in tensors.items():
                data = read(begin + first * column.nbytes, (last - first) * column.nbytes)
                array = np.frombuffer(data, DTYPES[column.dtype])
                if column.width:
                    array = array.reshape(last - first, column.width)
                # Only a row of an odd number of floats before them can put float64 numbers where none may be.
                array = array if array.flags.aligned else array.copy()
                array.flags.writeable = False
                arrays[name] = array
            yield arrays.pop("rows"), {column.name: arrays[column.name] for column in self._columns()}

    def _columns(self) -> list[Column]:
        return columns_of(self.spec.dim, self.spec.optimizer)

    def _chunks_of_large(self, file: File) -> Iterator[tuple[I64, Columns]]:
        # The second reading is compared with the first by checksums of its pieces: the file may change in between.
        tensors = self._tensors(file)
        begin = min(offset for _, offset in tensors.values())
        total = crc32c(_read(file, 0, begin))
        pieces: dict[int, int] = {}
        for column, offset in sorted(tensors.values(), key=lambda each: each[1]):
            for first, last in _ranges(self._each.part.rows, tensors):
                data = _read(file, offset + first * column.nbytes, (last - first) * column.nbytes)
                total = crc32c(data, total)
                pieces[offset + first * column.nbytes] = crc32c(data)
        self.check_checksum(total)

        def read(offset: int, nbytes: int) -> memoryview:
            data = _read(file, offset, nbytes)
            if crc32c(data) != pieces[offset]:
                raise CheckpointError(f"{self.path}: it was changed while it was read")
            return data

        yield from self._chunks(tensors, read)


def _read(file: File, offset: int, nbytes: int) -> memoryview:
    data = np.empty(nbytes, np.uint8).data
    file.read_into(offset, data)
    return data


def _ranges(rows: int, tensors: dict[str, tuple[Column, int]]) -> Iterator[tuple[int, int]]:
    """The rows first <= i < last of a part that are handed out together."""
    step = max(1, CHUNK_BYTES // sum(column.nbytes for column, _ in tensors.values()))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)

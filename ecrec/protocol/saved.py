"""The files of a checkpoint: a manifest, an index for each shard, and parts with rows (docs/checkpoints.md).

```
URL/checkpoint-000012/manifest.json                        written last: without it there is no checkpoint
URL/checkpoint-000012/state.safetensors                    a user's own state, if there is one
URL/checkpoint-000012/shard-00003/index.json               which parts a shard wrote
URL/checkpoint-000012/shard-00003/part-000017.safetensors  rows of one table
```

A manifest has the length and CRC-32C of each index, an index those of each part. The last field of a manifest is the
CRC-32C of all bytes before that field. A part is a safetensors file with ``rows`` int64[m], ``weights`` float32[m, dim]
and one tensor for each part of the optimizer's state (`columns_of`).

A checkpoint may have only what changed since another one, its *base*, at the same URL: shard by shard, since a shard
that was replaced meanwhile does not know what changed.
"""

import struct
from typing import NamedTuple, TypeVar

import msgspec

from ecrec._native import crc32c
from ecrec.errors import CheckpointError, CheckpointVersionError
from ecrec.protocol.placement import OPTIMIZERS, OptimizerSpec, TableSpec

VERSION, VERSION_OF_INCREMENTS = 1, 2
"""Who reads only the first one would take an increment for all."""
MANIFEST, INDEX = "manifest.json", "index.json"
STATE = "state.safetensors"
"""A user's own state, in the folder of the checkpoint, where somebody has given one."""
STATE_BYTES_MAX = 64 << 20
"""Of it. It travels to the scheduler in one message, which writes it."""

_CHECKSUM = b',\n "crc32c": '
"""How the last field of a manifest begins. No other field of the outermost object can look the same."""


def checkpoint_folder(number: int) -> str:
    """The folder of a checkpoint in the folder of all checkpoints."""
    return f"checkpoint-{number:06d}"


def checkpoint_number(name: str) -> int | None:
    """The number of the checkpoint whose folder has this name; None: it is no checkpoint's folder."""
    digits = name.removeprefix("checkpoint-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        return None
    return int(digits) if name == checkpoint_folder(int(digits)) else None


def shard_folder(shard: int) -> str:
    """What a shard wrote, in the folder of the checkpoint. Shards are numbered over all groups."""
    return f"shard-{shard:05d}"


def index_name(shard: int) -> str:
    """The index of a shard, in the folder of the checkpoint."""
    return f"{shard_folder(shard)}/{INDEX}"


def part_name(number: int) -> str:
    """A part, in the folder of its shard."""
    return f"part-{number:06d}.safetensors"


class Column(NamedTuple):
    """A tensor of a part, one entry a row."""

    name: str
    dtype: str
    """As safetensors names it."""
    width: int
    """Numbers of a row; 0: one, and the tensor has one dimension."""
    nbytes: int
    """Of a row."""


def columns_of(dim: int, optimizer: OptimizerSpec) -> list[Column]:
    """The tensors of a part, without ``rows``, in the order in which a record has them.

    ``sum`` is of squares of gradients; ``bias_corrections`` are the two ``1 - beta**t`` of Adam, of which t, the steps
    of the row, follows.
    Raises KeyError for an optimizer that there is not (`OptimizerSpec.check`).
    """
    columns = [Column("weights", "F32", dim, 4 * dim)]
    for part in OPTIMIZERS[optimizer.name].state:
        if part.doubles:
            columns.append(Column(part.name, "F64", part.doubles, 8 * part.doubles))
        else:
            columns.append(Column(part.name, "F32", dim * part.per_weight, 4 * part.floats_of(dim)))
    return columns


def part_header(table: str, rows: int, columns: list[Column]) -> bytes:
    """What a part begins with: the length of its JSON header, and that header. Its tensors follow: ``rows``, and the
    columns in order, each as a whole, without gaps."""
    entries: dict[str, object] = {"__metadata__": {"table": table, "format": f"ecrec {VERSION}"}}
    offset = 0
    for name, dtype, width, nbytes in [Column("rows", "I64", 0, 8), *columns]:
        shape = [rows, width] if width else [rows]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + rows * nbytes]}
        offset += rows * nbytes
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return struct.pack("<Q", len(text)) + text


# ---------------------------------------------------------------------- what the files say
class Part(msgspec.Struct):
    """A file with rows of one table of one shard."""

    name: str
    """In the folder of the shard."""
    table: int
    """Index of the table in `Manifest.tables`."""
    rows: int
    nbytes: int
    crc32c: int


class ShardIndex(msgspec.Struct):
    """What one shard wrote."""

    version: int
    checkpoint: int
    shard: int
    """Numbered over all groups."""
    watermarks: dict[int, int]
    """The watermarks at the cut: worker -> its last push that is in the checkpoint; and by `cursor_key` how far its
    split was trained on."""
    parts: list[Part]
    base: int = 0
    """The parts have only rows that changed since this checkpoint; 0: all that were ever touched."""
    touched: list[int] = []
    """By table, how many rows were ever touched: so many are in the parts and in those of the bases together. Tables
    that came after the shard's cut are missing."""


class IndexFile(msgspec.Struct):
    """The index of a shard, as the manifest knows it."""

    shard: int
    name: str
    """Relative to the checkpoint's folder."""
    nbytes: int
    crc32c: int
    rows: int
    """Of all its parts."""
    part_bytes: int
    """Of all its parts."""
    base: int = 0
    """As in the index."""


class StateFile(msgspec.Struct):
    """A user's own state, as the manifest knows it."""

    nbytes: int
    crc32c: int


class SavedLease(msgspec.Struct):
    """Examples first <= i < last of a data set that were in the hands of a worker at the cut."""

    number: int
    worker: int
    first: int
    last: int
    done: int
    """Examples of it that were done and durable, at least; the watermarks of the shards may know of more."""


class SavedDataset(msgspec.Struct):
    """A data set and what had become of its examples at the cut."""

    name: str
    examples: int
    end: int
    split_examples: int
    next: int
    """First example that was never given to a worker."""
    returned: list[tuple[int, int]]
    """first, last of what dead workers gave back."""
    leases: list[SavedLease]
    trained: int
    repeated: int


class Manifest(msgspec.Struct):
    """What a checkpoint is. It is complete if its manifest is there."""

    version: int
    checkpoint: int
    cluster: str
    """Random name of the cluster that wrote it."""
    ecrec: str
    """Version of ecrec that wrote it."""
    time_s: float
    """Of the cut, seconds since 1970."""
    seconds: float
    """From the request to the manifest."""
    shards: int
    """In each group."""
    groups: int
    tables: list[TableSpec]
    indexes: list[IndexFile]
    datasets: list[SavedDataset]
    workers: list[int]
    """That trained, and were there at the cut."""
    fresh: list[int] = []
    """Tables whose first values nobody had written to the end; most begin with initial records, and nobody does."""
    state: StateFile | None = None
    """The file `STATE`, if there is one."""
    base: int = 0
    """The checkpoint at the same URL that some of its shards need; 0: it has everything itself."""
    base_crc32c: int = 0
    """CRC-32C of the manifest of that one."""


def version_of(base: int) -> int:
    """The version of the format of a manifest or an index with this base; 0: none."""
    return VERSION_OF_INCREMENTS if base else VERSION


Kind = TypeVar("Kind", Manifest, ShardIndex)


def encode(saved: Manifest | ShardIndex) -> bytes:
    """The bytes of a manifest or an index: JSON. That of a manifest ends with its own checksum."""
    text = msgspec.json.format(msgspec.json.encode(saved), indent=1)
    if isinstance(saved, Manifest):
        text = with_checksum(text)
    return text


def with_checksum(text: bytes) -> bytes:
    """A manifest with its checksum as the last field; ``text`` is its JSON without it."""
    body = text.removesuffix(b"\n}")
    return body + _ending(body)


def _ending(body: bytes) -> bytes:
    return _CHECKSUM + b"%d\n}" % crc32c(body)


def decode(data: bytes, kind: type[Kind], name: str) -> Kind:
    """Read a manifest or an index; ``name`` is the file's, for errors. Its values are not checked (`rules`).

    Raises CheckpointVersionError for one of another version, CheckpointError for one that is damaged.
    """
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("version")
        if version is None or msgspec.json.decode(version) not in (VERSION, VERSION_OF_INCREMENTS):
            said = "no version" if version is None else f"version {bytes(version).decode(errors='replace')[:40]}"
            raise CheckpointVersionError(
                f"{name}: it has {said} of the format, and this ecrec reads {VERSION} and {VERSION_OF_INCREMENTS}: "
                "read it with the ecrec that wrote it, or a newer one"
            )
        if kind is Manifest:
            body, found, tail = data.rpartition(_CHECKSUM)
            if found + tail != _ending(body):
                raise CheckpointError(f"{name}: damaged: its checksum, the last field, does not fit what is before it")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name}: damaged, or no file of a checkpoint: {error}") from error

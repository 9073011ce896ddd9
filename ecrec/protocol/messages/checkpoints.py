"""Messages by which a checkpoint is asked for, and by which shards say what they have written of it."""

from typing import Annotated

import msgspec

from ecrec.protocol.messages.common import Message, Number
from ecrec.protocol.messages.leases import Dataset

URL_CHARACTERS_MAX = 2048

CHECKPOINTS_MAX = 1 << 40
"""Checkpoints are numbered up to this. A higher number is not read: it would be taken for one that was asked for."""
CheckpointNumber = Annotated[int, msgspec.Meta(ge=0, le=CHECKPOINTS_MAX)]


class Save(Message, frozen=True):
    """A worker or tool asks for a checkpoint. Repeated until it is answered, by `SaveBegun` or `Refused`."""

    request: Number
    url: str
    time_s: float
    """Of the sender's clock, seconds since 1970: nobody else here has one."""
    after: CheckpointNumber = 0
    """The new one gets a higher number: there are checkpoints up to this one at the URL, maybe of other clusters."""
    state: bytes = b""
    """The sender's own state, as the file that becomes a part of the checkpoint; empty: none."""
    incremental: bool = False
    """Shards are to note what changes from its cut on, so that a later one may have only that."""
    base: CheckpointNumber = 0
    """It needs to have only what changed since this one, which was found whole at the URL; 0: it has all."""
    base_crc32c: Number = 0
    """CRC-32C of the manifest of that one."""
    bytes_per_s: Number = 0
    """All shards together write at most so much, though no worker asks for anything; 0: as fast as they can."""


class CheckpointBase(msgspec.Struct, frozen=True, array_like=True):
    """A complete checkpoint, of which the next one at its URL may have only the changes."""

    checkpoint: CheckpointNumber
    url: str
    crc32c: Number
    """Of its manifest."""


BASES_MAX = 4
"""URLs for which a cluster knows such a checkpoint; a shard keeps a mark for each (`Store.mark_changes`)."""


class SaveBegun(Message, frozen=True):
    request: Number
    checkpoint: CheckpointNumber
    """Its number; how it goes on stands in `ClusterState.saving`."""


class RestoredDataset(msgspec.Struct, frozen=True, array_like=True):
    """A data set, and which of its examples are trained on."""

    dataset: Dataset
    next: Number
    """First example that was never given to a worker."""
    returned: list[tuple[Number, Number]]
    """first, last of those before it that are not trained on."""
    trained: Number
    repeated: Number


class Restore(Message, frozen=True):
    """To a cluster that has no data sets yet: go on with these. Repeated until it is answered."""

    request: Number
    datasets: list[RestoredDataset]
    worker: Number
    worker_epoch: Number
    """The life of a worker that brought the rows, which is over."""
    begins: bool = False
    """It is going to bring them: until it is done, nobody else is given tables, splits or runs."""
    into_tables: bool = False
    """The cluster has tables that are to get them; without it, it has none."""
    url: str = ""
    """Where the checkpoint is, and its number: for those who look for their own state in it."""
    checkpoint: CheckpointNumber = 0


class Restored(Message, frozen=True):
    request: Number


class RestoredFrom(msgspec.Struct, frozen=True, array_like=True):
    """The checkpoint that a cluster began with."""

    url: str
    checkpoint: CheckpointNumber


class Saved(msgspec.Struct, frozen=True, array_like=True):
    """What a shard has written of a checkpoint, in its heartbeats."""

    checkpoint: CheckpointNumber
    rows: Number
    nbytes: Number
    """Of its parts, those that are written."""
    index_bytes: Number = 0
    """Of its index; 0 until that is written, which is the last thing."""
    index_crc32c: Number = 0
    error: str = ""
    """Why it cannot go on."""
    base: CheckpointNumber = 0
    """Its parts have what changed since this checkpoint; 0: all of its rows."""


class SavingFigures(msgspec.Struct, frozen=True, array_like=True):
    """The checkpoint that is being written, or how the last one ended."""

    checkpoint: Number
    url: str
    state: str
    """As in `transitions.CHECKPOINT`."""
    shards_done: int = 0
    rows: int = 0
    nbytes: int = 0
    error: str = ""
    """Why it was given up."""
    base: Number = 0
    """It has what changed since this checkpoint, at least on one shard; 0: everything."""

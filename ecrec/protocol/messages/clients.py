"""Messages between a shard and its clients (workers and tools): pushes, pulls, scrubs."""

from typing import ClassVar

import msgspec

from ecrec.protocol.messages.checkpoints import CheckpointNumber
from ecrec.protocol.messages.common import Message, Number


class Section(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of some tables; the frame with their ids follows in the message's frames."""

    tables: list[int]
    counts: list[int]


class Hello(Message, frozen=True, gc=False):
    """A worker's first message to an incarnation of a shard."""

    worker_epoch: Number


class Welcome(Message, frozen=True, gc=False):
    watermark: Number
    durable: Number


class Push(Message, frozen=True, gc=False):
    """Gradients (or, with ``assign``, weights). Frames: rows, values of each section."""

    worker_epoch: Number
    number: Number
    barrier: Number
    """0, or how many workers' pushes are applied as one: those of the same `run` and `sequence`."""
    assign: bool
    sections: list[Section]
    cursor: Number = 0
    """Of the worker with this push done; 0: the push is no part of a leased split."""
    run: Number = 0
    """Of a push with a barrier: the run that the scheduler has given to the workers that take part."""
    sequence: Number = 0
    """Of a push with a barrier: its position among the worker's pushes with a barrier in this run, from 1. The numbers
    of its pushes go on from its earlier lives, and differ from worker to worker."""
    tables: Number = 0
    """So many tables the worker knows of: a shard that knows of fewer lacks a view."""
    rates: dict[Number, float] = {}
    """Table -> learning rate of this step, where it is not the table's own. The same for all shards."""
    checkpoint: CheckpointNumber = 0
    """The newest checkpoint that the worker had heard of when it made the push, which is not in it."""
    records: bool = False
    """With ``assign``: values are whole records, weights and optimizer state, of one table."""


class Flush(Message, frozen=True, gc=False):
    """The worker waits for its pushes up to ``number``: they need not wait for more that merges with them."""

    number: Number


class PushAck(Message, frozen=True, gc=False):
    """Pushes up to ``durable`` are applied and on every running peer."""

    durable: Number


class PushRefused(Message, frozen=True, gc=False):
    number: Number
    reason: str
    nowhere: bool = False
    """No shard applies it: all of them decide by the same pushes of a run."""


class Pull(Message, frozen=True, gc=False):
    """Frames: rows of each section. Answered when push ``after`` of this worker is applied, before the next one is."""

    request: Number
    after: Number
    records: bool
    sections: list[Section]


class Rows(Message, frozen=True, gc=False):
    """Frames: one of weights (float32) or records a section of the pull."""

    request: Number


class PullRefused(Message, frozen=True, gc=False):
    request: Number
    reason: str


class AskChanges(Message, frozen=True, gc=False):
    """A tool asks a shard for rows that changed since it last asked, or for all; some at a time."""

    request: Number
    reader: Number
    """Who reads, over all its processes: a shard keeps the marks of `changes_readers_max` readers."""
    epoch: Number
    """Of the incarnation that has set the marks."""
    since: Number
    """Mark up to which it has all changes; 0: it has nothing."""
    until: Number = 0
    """Mark of the answer that this one goes on with; 0: it begins."""
    place: tuple[Number, Number, Number] = (0, 0, 0)
    """Where it goes on."""


class Changed(Message, frozen=True, gc=False):
    """Frames: row ids int64[m] of one table, weights float32[m, dim]. All of them are durable."""

    FRAMES: ClassVar[int] = 2
    request: Number
    until: Number
    """Mark: all that changed before it has been sent with the last answer; 0: ask again, from the beginning."""
    table: Number = 0
    place: tuple[Number, Number, Number] = (0, 0, 0)
    is_last: bool = False
    is_all: bool = False
    """All rows that were ever touched are sent: what changed is not known, and all others have their initial values."""
    reason: str = ""
    """Why all of them are, or why it is to ask again."""


class Scrub(Message, frozen=True, gc=False):
    """A tool asks the first parity holder of a class to compare all parity rows of its stripes with their data rows.

    It is done from a position on, at one cut.
    """

    request: Number
    class_id: Number
    first: Number
    rows_max: Number
    repair: bool = False
    """Parity rows that do not fit are rewritten."""


LOCATED, UNSURE = 0, 1
"""Verdicts of a scrub: the other members of the stripe agree that this one is wrong, or they cannot tell which is."""


class ScrubResult(Message, frozen=True, gc=False):
    """Frames: keys uint64[m] of stripes that do not fit, slots uint8[m] of the member that is wrong, verdicts uint8[m].

    ``last`` is where to go on, ``size`` the class's size.
    """

    FRAMES: ClassVar[int] = 3
    request: Number
    class_id: Number
    last: Number
    size: Number
    stripes: Number
    """Touched stripes compared."""
    parity_rows: Number
    """Parity rows compared."""
    bytes_read: Number
    """Of records, on all members."""
    repaired: bool
    """Those of the parity rows named are rewritten; data rows never are."""


class ScrubBusy(Message, frozen=True, gc=False):
    request: Number
    reason: str
    bytes_read: Number = 0
    """Were read in vain, on all members."""

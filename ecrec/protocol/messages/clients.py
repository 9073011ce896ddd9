"""Messages between a shard and its clients (workers and tools): pushes, pulls, scrubs."""

import msgspec

from ecrec.protocol.messages.common import Message, Number


class Section(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Rows of some tables; the frame with their ids follows in the message's frames."""

    tables: list[int]
    counts: list[int]


class Hello(Message, frozen=True, gc=False):
    """A worker's first message to an incarnation of a shard."""

    worker_epoch: Number


class Welcome(Message, frozen=True, gc=False):
    mark: Number
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
    """Of a push with a barrier: the how manieth of the worker's in this run, from 1. The numbers of its pushes go on
    from its earlier lives, and differ from worker to worker."""
    tables: Number = 0
    """So many tables the worker knows of: a shard that knows of fewer lacks a view."""


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

"""Messages by which a worker leases splits of a data set."""

import msgspec

from ecrec.protocol.messages.common import NUMBER_MAX, Message, Number, Origin

CURSOR_BITS = 32
"""A cursor says how far a worker is in the splits that it leases: number of the lease << CURSOR_BITS, plus the examples
of its split that are done. Leases are numbered over all workers, and a worker takes its own in order, so that its
cursor only rises."""

SPLIT_EXAMPLES_MAX = (1 << CURSOR_BITS) - 1
"""Of a split: those that are done are the lower bits of a cursor."""

LEASES_MAX = NUMBER_MAX >> CURSOR_BITS
"""Leases in a cluster's life: their numbers are the upper bits of a cursor, which travels as a `Number`."""


class Dataset(msgspec.Struct, frozen=True, array_like=True):
    """What is to be trained on, as the scheduler knows it: examples 0 <= i < end, over all passes, in splits.

    Example i is example ``i % examples`` of pass ``i // examples``; no split goes over the end of a pass.
    """

    name: str
    examples: Number
    """Of one pass."""
    end: Number
    """Of all passes; the last one may end early."""
    split_examples: Number
    """Of a split, at most."""


class LeaseSplit(Message, frozen=True):
    """A worker asks for one more split. Repeated with the same number until it is answered."""

    request: Number
    dataset: Dataset
    cursor: Number
    """As in WorkerStatus."""


class Leased(Message, frozen=True):
    """Examples first <= i < last of the data set are the worker's, under this number."""

    request: Number
    lease: Number
    first: Number
    last: Number
    origin: Origin
    """With the serial of a state that knows of the lease."""
    copied: Number
    """Every shard that runs keeps a copy of a state of this serial or a later one: what that knows of, the worker need
    not be able to tell again."""


class NoSplit(Message, frozen=True):
    """There is none: all examples are trained on (``finished``), or others still have the rest."""

    request: Number
    finished: bool

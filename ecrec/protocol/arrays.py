"""Frames of a message as arrays, without a copy where the bytes lie aligned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.ma
from numpy.typing import DTypeLike

NO_KEYS = np.empty(0, np.uint64)
NO_RECORDS = np.empty(0, np.uint8)


def array(frame: Any, dtype: DTypeLike, what: str) -> Any:
    """The frame as a one-dimensional array. ValueError if its length is not a multiple of the item's.

    ZeroMQ aligns the body of a large message, but not that of one that shared a packet; those few bytes are copied.
    """
    view = memoryview(frame)
    size = np.dtype(dtype).itemsize
    if view.nbytes % size:
        raise ValueError(f"{what}: {view.nbytes} bytes are not a multiple of {size}")
    values = np.frombuffer(view, dtype)
    return values if values.flags.aligned else values.copy()


def keys(frame: Any) -> Any:
    """uint64 keys of stripes (``ecrec/_native.pyi``)."""
    return array(frame, np.uint64, "keys")


def records(frame: Any) -> Any:
    """Bytes of records."""
    return array(frame, np.uint8, "records")


def frame_bytes(frame: Any) -> int:
    """Bytes of a frame of a message."""
    return frame.nbytes if isinstance(frame, np.ndarray) else memoryview(frame).nbytes


def frames_bytes(frames: Sequence[Any]) -> int:
    """Bytes of all frames of a message."""
    return sum(map(frame_bytes, frames))

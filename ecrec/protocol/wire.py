"""Messages as bytes, and bytes as messages; nothing else knows the layout.

Frame 0 is a fixed preamble, the length of each payload frame, and the message as msgpack; frames 1.. are the
payload, untouched. All integers are little-endian::

    4s   magic: b"ECR" and the wire version as one character
    u8   role of the source         u8   role of the destination
    u16  number of payload frames
    i32  id of the source           i32  id of the destination
    i64  epoch of the source        i64  epoch of the destination
    u64  sequence number in the stream between two shards, 0 outside of streams
    u64  cumulative acknowledgement of the stream in the other direction
    u32  checksum
    u64  length of each payload frame

Between two shards no bit may flip unseen: it would be folded into parity, or acknowledged. The checksum is CRC-32C of
everything behind it (lengths, message, payload), then of the preamble before it; 1 where that is 0. Messages from or to
anybody else carry 0: what a worker pushes or pulls is not behind a second copy that must agree with it. TCP's own
checksum has 16 bits, and memory of the network's devices is behind none.

A frame 0 without a message (and without payload) carries an acknowledgement only; with a sequence number it asks for
everything from that number on, because something before it was damaged or lost. A first frame ``b"ECR!"`` and
UTF-8 text is a refusal, which every wire version can read.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ecrec._native import crc32c
from ecrec.errors import WireError
from ecrec.protocol.messages import (
    ROLE_NAMES,
    SHARD,
    Address,
    AnyMessage,
    Frames,
    Message,
    Pull,
    Push,
    Rows,
)

WIRE_VERSION = 2
MAGIC = b"ECR" + str(WIRE_VERSION).encode()
REFUSAL = b"ECR!"

FRAME_BYTES_MAX = (1 << 31) - 1
"""Of any frame. A window may exceed `ProtocolConfig.window_bytes_max` by the deltas of one push."""

REQUEST_BYTES_MAX = 224 << 20
"""Of a frame from a worker or tool: its deltas, up to eight times as long (rows of one weight, with the state of Adam),
must fit a window."""

CHECKED_BYTES_MAX = 16 << 20
"""Of a frame that are read for its checksum in one go: 1 to 5 ms."""

FRAMES_MAX = 4096
"""Payload frames of a message: two for each section of a push."""

_PREAMBLE = struct.Struct("<4sBBHiiqqQQ")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _PREAMBLE.size + _CHECKSUM.size
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class RefusedByPeerError(WireError):
    """The peer cannot read our messages, and says why."""


class WireVersionError(WireError):
    """The sender speaks another wire version; it deserves a refusal."""


@dataclass(slots=True)
class Packed:
    """A message without its addresses: can be sent to many, and again. Its frames must not change."""

    body: bytes
    frames: list[Any]
    _checksum: int | None = field(default=None, compare=False)

    def checksum(self, pause: Callable[[], None] | None = None) -> int:
        """CRC-32C of the body and all frames, which are read once, however often the message is sent.

        ``pause()`` is called now and then, if that takes long.
        """
        if self._checksum is None:
            self._checksum = _checksum_of(self.body, self.frames, pause)
        return self._checksum


class Envelope(NamedTuple):
    """What arrived. ``message`` is None where only an acknowledgement travelled."""

    source: Address
    to: Address
    sequence: int
    ack: int
    message: Message | None
    frames: list[Any]


def pack(message: Message, frames: Frames = ()) -> Packed:
    """Check and encode a message; the frames are kept by reference, never copied.

    Raises WireError for the wrong number of frames, a frame that is too long or not contiguous, or a field that
    cannot be encoded.
    """
    _check_frame_count(message, len(frames))
    flat = [_flat(index, frame) for index, frame in enumerate(frames, 1)]
    for index, frame in enumerate(flat, 1):
        if len(frame) > FRAME_BYTES_MAX:
            raise WireError(
                f"{type(message).__name__}: frame {index} has {len(frame)} bytes, at most {FRAME_BYTES_MAX} can be sent"
            )
    lengths = struct.pack(f"<{len(flat)}Q", *map(len, flat))
    try:
        return Packed(lengths + _ENCODER.encode(message), flat)
    except (TypeError, OverflowError, ValueError) as error:
        raise WireError(f"{type(message).__name__}: cannot be encoded: {error}") from error


def check(message: Message) -> None:
    """Raise WireError for a message that nobody could read: a field of another type, or out of its range."""
    try:
        _DECODER.decode(_ENCODER.encode(message))
    except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise WireError(f"{type(message).__name__}: {error}") from error


ACK_ONLY = Packed(b"", [])


def seal(packed: Packed, source: Address, to: Address, sequence: int = 0, ack: int = 0) -> list[Any]:
    """The frames to send. Raises WireError for an address that does not fit the preamble."""
    try:
        preamble = _PREAMBLE.pack(
            MAGIC, source.role, to.role, len(packed.frames), source.id, to.id, source.epoch, to.epoch, sequence, ack
        )
    except struct.error as error:
        raise WireError(f"{source} to {to}: {error}") from error
    checksum = _sealed_checksum(preamble, packed.checksum()) if source.role == to.role == SHARD else 0
    return [preamble + _CHECKSUM.pack(checksum) + packed.body, *packed.frames]


def encode(
    message: Message, frames: Frames, source: Address, to: Address, sequence: int = 0, ack: int = 0
) -> list[Any]:
    """`pack` and `seal` in one."""
    return seal(pack(message, frames), source, to, sequence, ack)


def refusal(reason: str) -> list[Any]:
    """What a sender of another wire version is answered."""
    return [REFUSAL + reason.encode()]


def decode(parts: Sequence[Any], pause: Callable[[], None] | None = None) -> Envelope:
    """Read what arrived; payload frames are passed through as they are. ``pause()``: see `Packed.checksum`.

    Raises WireError that says what was wrong: not ours, another wire version (WireVersionError), a refusal
    (RefusedByPeerError), truncated, damaged between two shards, an unknown message, wrong types, a wrong number or
    length of frames.
    """
    head = memoryview(parts[0]) if parts else memoryview(b"")
    _check_magic(head)
    if len(head) < _HEAD_BYTES:
        raise WireError(f"truncated: a preamble has {_HEAD_BYTES} bytes, {len(head)} arrived")
    (
        _, source_role, to_role, count, source_id, to_id, source_epoch, to_epoch, sequence, ack,
    ) = _PREAMBLE.unpack_from(head)  # fmt: skip
    for role in (source_role, to_role):
        if role >= len(ROLE_NAMES):
            raise WireError(f"address with unknown role {role}")
    source = Address(source_role, source_id, source_epoch)
    to = Address(to_role, to_id, to_epoch)
    frames = list(parts[1:])
    body_start = _check_lengths(head, count, frames, source)
    _check_checksum(head, frames, source, to, pause)
    if body_start == len(head):
        if frames:
            raise WireError(f"from {source}: {len(frames)} frames without a message")
        return Envelope(source, to, sequence, ack, None, frames)
    try:
        message = _DECODER.decode(head[body_start:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise WireError(f"from {source}: not a message of wire version {WIRE_VERSION}: {error}") from error
    _check_frame_count(message, len(frames))
    return Envelope(source, to, sequence, ack, message, frames)


def _check_magic(head: memoryview) -> None:
    magic = bytes(head[:4])
    if magic == MAGIC:
        return
    if magic == REFUSAL:
        raise RefusedByPeerError(bytes(head[4:1028]).decode(errors="replace"))
    if len(magic) == 4 and magic.startswith(b"ECR") and magic[3:].isdigit():
        theirs = int(magic[3:])
        age = "older" if theirs < WIRE_VERSION else "newer"
        raise WireVersionError(
            f"wire version {theirs} is {age} than ours, {WIRE_VERSION}: run the same ecrec on all machines"
        )
    raise WireError(f"not an ecrec message: it begins with {magic!r}, expected {MAGIC!r}")


def _checksum_of(body: Any, frames: Sequence[Any], pause: Callable[[], None] | None) -> int:
    checksum = crc32c(body)
    for frame in frames:
        if len(frame) <= CHECKED_BYTES_MAX:
            checksum = crc32c(frame, checksum)
            continue
        view = memoryview(frame)
        for begin in range(0, len(view), CHECKED_BYTES_MAX):
            checksum = crc32c(view[begin : begin + CHECKED_BYTES_MAX], checksum)
            if pause is not None:
                pause()
    return checksum


def _sealed_checksum(preamble: Any, checksum: int) -> int:
    """That of a packed message, with its preamble; never 0, which says that there is none."""
    return crc32c(preamble, checksum) or 1


def _check_checksum(
    head: memoryview, frames: list[Any], source: Address, to: Address, pause: Callable[[], None] | None
) -> None:
    (announced,) = _CHECKSUM.unpack_from(head, _PREAMBLE.size)
    if not source.role == to.role == SHARD:
        if announced:
            raise WireError(f"from {source} to {to}: damaged: a checksum, which only messages between shards have")
        return
    found = _sealed_checksum(head[: _PREAMBLE.size], _checksum_of(head[_HEAD_BYTES:], frames, pause))
    if found != announced:
        raise WireError(
            f"from {source}: damaged on its way: checksum {found:#010x}, expected {announced:#010x}; it will be sent "
            "again. If it happens more often, look at the memory and network of both machines"
        )


def _check_lengths(head: memoryview, count: int, frames: list[Any], source: Address) -> int:
    """Check the payload against the preamble; return where the message begins."""
    if count > FRAMES_MAX:
        raise WireError(f"from {source}: {count} frames announced, at most {FRAMES_MAX} are taken")
    if count != len(frames):
        raise WireError(f"from {source}: {count} frames announced, {len(frames)} arrived")
    body_start = _HEAD_BYTES + 8 * count
    if len(head) < body_start:
        raise WireError(f"from {source}: truncated: the lengths of {count} frames are missing")
    limit = FRAME_BYTES_MAX if source.role == SHARD else REQUEST_BYTES_MAX
    lengths = struct.unpack_from(f"<{count}Q", head, _HEAD_BYTES)
    for index, (announced, frame) in enumerate(zip(lengths, frames, strict=True), 1):
        if announced != len(frame):
            raise WireError(f"from {source}: frame {index}: {announced} bytes announced, {len(frame)} arrived")
        if announced > limit:
            raise WireError(f"from {source}: frame {index} has {announced} bytes, at most {limit} are taken")
    return body_start


def _check_frame_count(message: Message, count: int) -> None:
    if isinstance(message, Rows):
        return
    if isinstance(message, Push):
        expected = 2 * len(message.sections)
    elif isinstance(message, Pull):
        expected = len(message.sections)
    else:
        expected = message.FRAMES
    if count != expected:
        raise WireError(f"{type(message).__name__} has {expected} frames, not {count}")


def _flat(index: int, frame: Any) -> Any:
    """The bytes of a buffer, without a copy; len() of the result is its length in bytes."""
    if isinstance(frame, bytes):
        return frame
    if isinstance(frame, np.ndarray):
        if not frame.flags.c_contiguous:
            raise WireError(f"frame {index} is not contiguous")
        return frame.reshape(-1).view(np.uint8)
    view = memoryview(frame)
    if not view.c_contiguous:
        raise WireError(f"frame {index} is not contiguous")
    return view.cast("B") if view.nbytes else b""

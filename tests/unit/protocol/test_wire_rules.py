"""The limits of the wire, each the largest that is sent or taken, and what is told from what."""

from typing import Any

import numpy as np
import pytest

from ecrec.errors import WireError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.messages import SHARD, TOOL, WORKER, Address

PEER, ME = Address(SHARD, 1, 1), Address(SHARD, 2, 1)
WHO, TOOL_ADDRESS = Address(WORKER, 5, 1), Address(TOOL, 6, 1)
HEAD_BYTES = 52


def rows(*sizes: int, source: Address = PEER) -> list[Any]:
    """A message with payload frames of these sizes, as it is sent."""
    return wire.encode(m.Rows(1), [bytes(size) for size in sizes], source, ME)


def test_a_frame_is_as_long_as_may_be_sent_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 5)
    assert len(wire.pack(m.Rows(1), [bytes(5), bytes(4)]).frames) == 2
    with pytest.raises(WireError, match="Rows: frame 2 has 6 bytes, at most 5 can be sent"):
        wire.pack(m.Rows(1), [bytes(5), bytes(6)])


@pytest.mark.parametrize("source", [PEER, WHO, TOOL_ADDRESS])
def test_a_frame_is_as_long_as_its_sender_may_send_and_no_longer(
    source: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of shards other ones than of workers and tools."""
    taken, not_taken = rows(8, source=source), rows(9, source=source)
    limits = {"FRAME_BYTES_MAX": 8, "REQUEST_BYTES_MAX": 99}
    for name, limit in limits.items() if source == PEER else zip(limits, (99, 8), strict=True):
        monkeypatch.setattr(wire, name, limit)
    assert len(wire.decode(taken).frames[0]) == 8
    with pytest.raises(WireError, match="frame 1 has 9 bytes, at most 8 are taken"):
        wire.decode(not_taken)


def test_a_message_has_as_many_frames_as_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    two, three = rows(1, 1), rows(1, 1, 1)
    monkeypatch.setattr(wire, "FRAMES_MAX", 2)
    assert len(wire.decode(two).frames) == 2
    with pytest.raises(WireError, match="3 frames announced, at most 2 are taken"):
        wire.decode(three)


@pytest.mark.parametrize("size", [HEAD_BYTES - 1, HEAD_BYTES - 4, 4])
def test_a_preamble_that_is_cut_short_is_said_to_be(size: int) -> None:
    (head,) = wire.seal(wire.ACK_ONLY, WHO, ME)
    assert len(head) == HEAD_BYTES and wire.decode([head]).message is None
    with pytest.raises(WireError, match=f"truncated: a preamble has {HEAD_BYTES} bytes, {size} arrived"):
        wire.decode([head[:size]])


def test_frames_without_a_message_are_refused() -> None:
    head, frame = rows(3, source=WHO)
    with pytest.raises(WireError, match="1 frames without a message"):
        wire.decode([head[: HEAD_BYTES + 8], frame])


@pytest.mark.parametrize(
    ("magic", "is_version"),
    [
        (b"ECR9", True),
        (b"ECR1", True),
        (b"ABC9", False),
        (b"ECRx", False),
        (b"ECR", False),
        (b"", False),
        (b"9", False),
    ],
)
def test_another_version_is_told_from_what_is_none_of_ours(magic: bytes, is_version: bool) -> None:
    with pytest.raises(WireError) as raised:
        wire.decode([magic + bytes(60) if len(magic) == 4 else magic])
    assert isinstance(raised.value, wire.WireVersionError) == is_version
    assert ("run the same ecrec on all machines" in str(raised.value)) == is_version


@pytest.mark.parametrize("frame", [np.zeros((4, 4))[:, 1], memoryview(b"abcdef")[::2]])
def test_a_frame_that_is_not_contiguous_is_not_sent(frame: Any) -> None:
    with pytest.raises(WireError, match="frame 1 is not contiguous"):
        wire.pack(m.Rows(1), [frame])


@pytest.mark.parametrize("frame", [b"abcd", bytearray(b"abcd"), np.array([1.5], np.float32), np.zeros((0, 3)), b""])
def test_any_buffer_is_a_frame_of_its_bytes(frame: Any) -> None:
    (_, sent) = wire.encode(m.Rows(1), [frame], PEER, ME)
    assert bytes(memoryview(sent)) == bytes(memoryview(frame).cast("B") if memoryview(frame).nbytes else b"")

import contextlib
import struct
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecrec._native import crc32c_by_table
from ecrec.errors import WireError
from ecrec.protocol import messages as m
from ecrec.protocol import wire

SOURCE = m.Address(m.SHARD, 1, 3)
TO = m.Address(m.SHARD, 2, 1)
TYPES = get_args(m.AnyMessage)
CHECKSUM_AT = 48
PREAMBLE_BYTES = 52


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that fields of messages have."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, meta = args
        numbers = st.integers if kind is int else st.floats
        return numbers(min_value=meta.ge, max_value=meta.le)
    if origin in (Union, UnionType):
        return st.one_of([values(arg) for arg in args])
    if origin is list:
        return st.lists(values(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if origin is tuple and args[-1] is not Ellipsis:
        return st.tuples(*(values(arg) for arg in args))
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        fields = {
            name: values(field)
            for name, field in get_type_hints(hint, include_extras=True).items()
            if name in hint.__struct_fields__
        }
        return st.builds(hint, **fields)
    return {
        int: st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=8),
        type(None): st.none(),
    }[hint]


def frames_of(message: m.Message) -> list[bytes]:
    """As many frames as the message has."""
    if isinstance(message, m.Push):
        count = 2 * len(message.sections)
    elif isinstance(message, m.Pull | m.Rows):
        count = len(getattr(message, "sections", [1, 2]))
    else:
        count = message.FRAMES
    return [bytes([i]) * (10 * i) for i in range(count)]


def resealed(parts: list[bytes]) -> list[bytes]:
    """The parts with the checksum that they must have between shards, whatever else is wrong with them."""
    head = bytes(parts[0]) if parts else b""
    if len(head) < PREAMBLE_BYTES or head[:4] != wire.MAGIC or not head[4] == head[5] == m.SHARD:
        return parts
    checksum = crc32c_by_table(head[PREAMBLE_BYTES:])
    for frame in parts[1:]:
        checksum = crc32c_by_table(frame, checksum)
    checksum = crc32c_by_table(head[:CHECKSUM_AT], checksum) or 1
    return [head[:CHECKSUM_AT] + struct.pack("<I", checksum) + head[PREAMBLE_BYTES:], *parts[1:]]


def encoded(message: m.Message | None = None, frames: m.Frames = ()) -> list[Any]:
    return wire.encode(message or m.WindowAck(7), frames, SOURCE, TO, 5, 4)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_message_comes_back_as_it_was(kind: type[m.Message]) -> None:
    @given(values(kind))
    def check(message: m.Message) -> None:
        frames = frames_of(message)
        envelope = wire.decode(wire.encode(message, frames, SOURCE, TO, 2**40, 2**41))
        assert envelope == wire.Envelope(SOURCE, TO, 2**40, 2**41, message, frames)

    check()


def test_every_message_is_covered_by_the_union() -> None:
    def leaves(kind: type) -> set[type]:
        return {leaf for child in kind.__subclasses__() for leaf in (leaves(child) or {child})}

    assert {kind for kind in leaves(m.Message) if kind.__module__.startswith(f"{m.__name__}.")} == set(TYPES)


def test_frames_are_sent_by_reference_and_come_back_untouched() -> None:
    keys = np.arange(4, dtype=np.uint64)
    records = np.arange(24, dtype=np.uint8).reshape(4, 6)
    parts = encoded(m.Window(1, 0, {}, {}, []), [keys, records])
    assert np.shares_memory(parts[1], keys)
    assert np.shares_memory(parts[2], records)
    envelope = wire.decode(parts)
    assert envelope.frames[0] is parts[1]
    assert bytes(envelope.frames[1]) == records.tobytes()


@pytest.mark.parametrize("empty", [b"", np.zeros((0, 8), np.float32), memoryview(b"")])
def test_an_empty_frame_is_a_frame(empty: Any) -> None:
    envelope = wire.decode(encoded(m.Window(1, 0, {}, {}, []), [empty, empty]))
    assert [len(frame) for frame in envelope.frames] == [0, 0]


def test_lengths_are_bytes_whatever_the_dtype() -> None:
    envelope = wire.decode(encoded(m.Captured(1, 1), [np.arange(5), memoryview(np.arange(6.0))]))
    assert [len(frame) for frame in envelope.frames] == [40, 48]


def test_an_acknowledgement_travels_alone() -> None:
    envelope = wire.decode(wire.seal(wire.ACK_ONLY, SOURCE, TO, 0, 9))
    assert envelope == wire.Envelope(SOURCE, TO, 0, 9, None, [])


# ------------------------------------------------------------------ what cannot be sent
def test_a_wrong_number_of_frames_is_not_sent() -> None:
    with pytest.raises(WireError, match="Window has 2 frames, not 1"):
        encoded(m.Window(1, 0, {}, {}, []), [b""])
    section = m.Section([0], [1])
    with pytest.raises(WireError, match="Push has 4 frames, not 2"):
        encoded(m.Push(1, 1, 0, False, [section, section]), [b"", b""])


def test_a_strided_frame_is_not_sent() -> None:
    with pytest.raises(WireError, match="frame 2 is not contiguous"):
        encoded(m.Window(1, 0, {}, {}, []), [b"", np.arange(10)[::2]])


def test_a_field_out_of_range_is_not_sent() -> None:
    with pytest.raises(WireError, match="WindowAck: cannot be encoded"):
        encoded(m.WindowAck(2**70))
    with pytest.raises(WireError, match="epoch"):
        wire.encode(m.WindowAck(1), (), SOURCE, m.Address(m.SHARD, 2**40, 1))


# ------------------------------------------------------------------ what cannot be read
def test_no_frame_at_all() -> None:
    with pytest.raises(WireError, match="not an ecrec message"):
        wire.decode([])


@pytest.mark.parametrize("head", [b"", b"E", b"GET / HTTP/1.1", b"ECRx" + bytes(60), bytes(60)])
def test_bytes_that_are_not_ours(head: bytes) -> None:
    with pytest.raises(WireError, match="not an ecrec message: it begins with"):
        wire.decode([head])


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (1, "older"), (9, "newer")])
def test_another_wire_version_is_named(version: int, age: str) -> None:
    with pytest.raises(wire.WireVersionError, match=f"wire version {version} is {age} than ours, 2"):
        wire.decode([b"ECR" + str(version).encode()])


def test_a_refusal_is_read_by_every_version() -> None:
    with pytest.raises(wire.RefusedByPeerError, match="too old"):
        wire.decode(wire.refusal("too old"))


def test_every_truncation_is_noticed() -> None:
    head = encoded(m.Window(1, 0, {1: 2}, {}, [3]), [b"abc", b"defg"])[0]
    for size in range(len(head)):
        with pytest.raises(WireError):
            wire.decode([head[:size], b"abc", b"defg"])


def test_bytes_after_the_message_are_noticed() -> None:
    with pytest.raises(WireError, match="trailing"):
        wire.decode(resealed([encoded()[0] + b"\0"]))


def test_a_frame_too_few_or_too_many() -> None:
    parts = encoded(m.Window(1, 0, {}, {}, []), [b"abc", b"defg"])
    with pytest.raises(WireError, match="2 frames announced, 1 arrived"):
        wire.decode(parts[:2])
    with pytest.raises(WireError, match="2 frames announced, 3 arrived"):
        wire.decode([*parts, b""])


def test_a_frame_of_another_length() -> None:
    parts = encoded(m.Window(1, 0, {}, {}, []), [b"abc", b"defg"])
    with pytest.raises(WireError, match="frame 2: 4 bytes announced, 5 arrived"):
        wire.decode([parts[0], b"abc", b"defgh"])


def test_frames_that_a_message_does_not_have() -> None:
    lengths = struct.pack("<Q", 3)
    head = bytearray(encoded()[0])
    struct.pack_into("<H", head, 6, 1)
    with pytest.raises(WireError, match="WindowAck has 0 frames, not 1"):
        wire.decode(resealed([bytes(head[:PREAMBLE_BYTES]) + lengths + bytes(head[PREAMBLE_BYTES:]), b"abc"]))


def test_a_frame_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = m.Address(m.WORKER, 0, 1)
    parts = wire.encode(m.Push(1, 1, 0, False, [m.Section([0], [1])]), [b"12345678", b"1234"], worker, TO)
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 7)
    with pytest.raises(WireError, match=r"worker 0 .* frame 1 has 8 bytes, at most 7 are taken"):
        wire.decode(parts)
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 7)
    with pytest.raises(WireError, match="frame 1 has 8 bytes, at most 7 can be sent"):
        encoded(m.Captured(1, 1), [b"12345678", b""])


def test_more_frames_than_any_message_has() -> None:
    head = bytearray(encoded()[0])
    struct.pack_into("<H", head, 6, 65535)
    with pytest.raises(WireError, match="65535 frames announced, at most 4096"):
        wire.decode([bytes(head)])


def test_an_unknown_role() -> None:
    head = bytearray(encoded()[0])
    head[4] = 200
    with pytest.raises(WireError, match="unknown role 200"):
        wire.decode([bytes(head)])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (["NoSuchMessage", 1], "NoSuchMessage"),
        (["WindowAck", "one"], "Expected `int`, got `str`"),
        (["WindowAck"], "at least length 2"),
        (["Stable", 1.5], "Expected `int`, got `float`"),
        ({"type": "Stable"}, "Expected `array`"),
        (None, "Expected `array`"),
        (["Views", 0, [["NoSuchView", 1]]], "NoSuchView"),
        (["Join", 1, {"a": 1}, True], "Expected `int`, got `str`"),
    ],
)
def test_a_message_that_is_none(body: Any, reason: str) -> None:
    head = encoded()[0][:PREAMBLE_BYTES] + msgspec.msgpack.encode(body)
    with pytest.raises(WireError, match=reason):
        wire.decode(resealed([head]))


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_arbitrary_bytes_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.decode(parts)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_arbitrary_bytes_in_place_of_a_message_are_read_or_refused(body: bytes, frames: int) -> None:
    with contextlib.suppress(WireError):
        wire.decode(resealed([encoded()[0][:PREAMBLE_BYTES] + body, *[b""] * frames]))


@given(st.data())
def test_any_changed_byte_is_read_or_refused(data: Any) -> None:
    parts = encoded(m.Window(1, 0, {1: 2}, {3: 4}, [3]), [b"abc", b"defg"])
    head = bytearray(parts[0])
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        wire.decode(resealed([bytes(head), *parts[1:]]))


# ------------------------------------------------------------------ what is damaged between shards
WINDOW = m.Window(1, 0, {1: 2}, {3: 4}, [3])


@pytest.mark.parametrize(
    "parts",
    [encoded(WINDOW, [b"keys", b"records" * 9]), encoded(), wire.seal(wire.ACK_ONLY, SOURCE, TO, 0, 9)],
    ids=["window", "no payload", "acknowledgement only"],
)
def test_every_flipped_bit_is_noticed(parts: list[Any]) -> None:
    for index, part in enumerate(parts):
        for bit in range(8 * len(part)):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(WireError):
                wire.decode([*parts[:index], bytes(flipped), *parts[index + 1 :]])


@pytest.mark.parametrize(("part", "at"), [(0, 16), (0, 36), (0, 50), (0, 53), (0, 80), (1, 0), (2, 5)])
def test_damage_says_whose_message_it_was(part: int, at: int) -> None:
    parts = [bytearray(each) for each in encoded(WINDOW, [b"keys", b"records" * 9])]
    if at == 53:  # two lengths that change each other
        parts[0][52:54], parts[1], parts[2] = b"\5\0", parts[1] + b"r", parts[2][1:]
        parts[0][60] -= 1
    else:
        parts[part][at] ^= 0x10
    with pytest.raises(WireError, match=r"from shard 1 \(epoch .*damaged on its way: checksum 0x"):
        wire.decode(parts)


def test_only_messages_between_shards_have_a_checksum() -> None:
    worker, scheduler = m.Address(m.WORKER, 0, 1), m.Address(m.SCHEDULER, 0, 0)
    for source, to in [(worker, TO), (SOURCE, worker), (SOURCE, scheduler), (scheduler, TO)]:
        packed = wire.pack(m.WindowAck(7))
        head = wire.seal(packed, source, to)[0]
        assert head[CHECKSUM_AT:PREAMBLE_BYTES] == bytes(4) and packed._checksum is None
        assert wire.decode([head]).message == m.WindowAck(7)
        with pytest.raises(WireError, match=r"damaged: a checksum, which only messages between shards have"):
            wire.decode([head[:CHECKSUM_AT] + b"\1\0\0\0" + head[PREAMBLE_BYTES:]])


def test_the_payload_is_read_once_however_often_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = wire.pack(WINDOW, [b"keys", b"records"])
    first = wire.seal(packed, SOURCE, TO, 1, 0)
    sizes: list[int] = []
    monkeypatch.setattr(wire, "crc32c", lambda data, value=0: sizes.append(len(data)) or crc32c_by_table(data, value))
    again = wire.seal(packed, SOURCE, TO, 1, 7)
    assert sizes == [CHECKSUM_AT]
    assert wire.decode(again).ack == 7 and wire.decode(first).ack == 0


def test_a_checksum_is_never_the_number_that_says_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "crc32c", lambda data, value=0: 0)
    parts = encoded()
    assert parts[0][CHECKSUM_AT:PREAMBLE_BYTES] == b"\1\0\0\0"
    assert wire.decode(parts).message == m.WindowAck(7)

"""Cases as bytes, and their mutations.

A case for a machine, the form that the corpus and the coverage-guided fuzzer use::

    u8  scene's moment
    then messages: u8 source, u8 frames, u32 length of the msgpack, the msgpack, and for each frame u32 length, bytes

What is cut short is read as far as it goes, so that every string of bytes is a case.
"""

import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from ecrec.protocol.events import Received

MESSAGES_MAX = 8
NUMBERS = [-1, 0, 1, 2, 3, 5, 7, 64, 255, 2**31 - 1, 2**31, 2**32, 2**47, 2**48, 2**62, 2**63 - 1, -(2**63), 2**64 - 1]
STRANGE = [
    None,
    True,
    False,
    1.5,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    b"",
    [],
    {},
    [0],
    {0: 0},
    {"a": []},
    [[]],
]


class Sent(NamedTuple):
    """A message of a case."""

    source: int
    body: bytes
    frames: list[bytes]


class Case(NamedTuple):
    moment: int
    sent: list[Sent]


def read_case(data: bytes) -> Case:
    """The case that any bytes are."""
    moment = data[0] if data else 0
    sent: list[Sent] = []
    at = 1

    def take(size: int) -> bytes:
        nonlocal at
        piece = data[at : at + size]
        at += size
        return piece

    def length() -> int:
        return int.from_bytes(take(4), "little")

    while at < len(data) and len(sent) < MESSAGES_MAX:
        source, count = (take(1) or b"\0")[0], (take(1) or b"\0")[0]
        body = take(length())
        sent.append(Sent(source, body, [take(length()) for _ in range(count) if at <= len(data)]))
    return Case(moment, sent)


def write_case(case: Case) -> bytes:
    """`read_case` of the result is the case."""
    out = [bytes([case.moment])]
    for source, body, frames in case.sent:
        out.append(struct.pack("<BBI", source, len(frames), len(body)) + body)
        out += [struct.pack("<I", len(frame)) + frame for frame in frames]
    return b"".join(out)


def sent_of(event: Received, source: int) -> Sent:
    """A message as it was sent."""
    return Sent(source, msgspec.msgpack.encode(event.message), [bytes(frame) for frame in event.frames])


# ------------------------------------------------------------------ mutations
def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or overwrite some bytes."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        where = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[where % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[where:]
        elif kind == 2:
            out[where:where] = rng.randbytes(rng.choice([1, 2, 4, 8]))
        elif kind == 3:
            out[where : where + 8] = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)
        elif kind == 4:
            out[where:where] = out[where : where + rng.choice([1, 8, 64])]
        else:
            del out[where : where + rng.choice([1, 4, 8])]
    return bytes(out)


def deep(levels: int) -> bytes:
    """Msgpack of lists in lists."""
    return b"\x91" * levels + b"\x90"


def mutate_body(body: bytes, rng: random.Random) -> bytes:
    """Change the message as msgpack: another value, type, size or depth somewhere; sometimes just bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(body, rng)
    if rng.random() < 0.03:
        return body[:-1] + deep(rng.choice([10, 1000, 60_000]))
    if rng.random() < 0.05:  # an array or map that announces more than there is
        return body + rng.choice([b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
    try:
        tree = msgspec.msgpack.decode(body)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            tree = _mutate_tree(tree, rng)
        return msgspec.msgpack.encode(tree)
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, RecursionError):
        return mutate_bytes(body, rng)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, dict) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _mutate_tree(tree: Any, rng: random.Random) -> Any:
    path = rng.choice([place for place in _places(tree) if place and place != (0,)] or [()])
    return _replaced(tree, path, rng)


def _replaced(tree: Any, path: Sequence[Any], rng: random.Random) -> Any:
    if path:
        changed = list(tree) if isinstance(tree, list) else dict(tree)
        changed[path[0]] = _replaced(tree[path[0]], path[1:], rng)
        return changed
    if isinstance(tree, bool):
        return rng.choice([not tree, 2, None])
    if isinstance(tree, int) and rng.random() < 0.9:
        return rng.choice([*NUMBERS, tree + 1, tree - 1, tree ^ 1 << rng.randrange(48)])
    if isinstance(tree, list) and tree and rng.random() < 0.7:
        kept = list(tree)
        at = rng.randrange(len(kept))
        return rng.choice([kept * 2, kept[:at], kept[at + 1 :], [*kept, kept[at]], kept[::-1], kept * 300])
    if isinstance(tree, dict) and rng.random() < 0.7:
        return {**tree, rng.choice(NUMBERS): rng.choice(NUMBERS)}
    return rng.choice([*NUMBERS, *STRANGE])


def mutate_case(case: Case, rng: random.Random, others: Sequence[Sent], moments: int) -> Case:
    """Change one message or its frames or source, the moment, or which messages there are."""
    sent = list(case.sent)
    kind = rng.randrange(10)
    at = rng.randrange(len(sent)) if sent else 0
    if kind == 0 or not sent:
        sent[at:at] = [rng.choice(others)]
        return Case(case.moment, sent[:MESSAGES_MAX])
    if kind == 1:
        return case._replace(moment=rng.randrange(moments))
    one = sent[at]
    if kind == 2:
        one = one._replace(source=rng.randrange(16))
    elif kind < 6 and one.frames:
        frames = list(one.frames)
        which = rng.randrange(len(frames))
        frames[which] = mutate_bytes(frames[which], rng)
        if rng.random() < 0.1:
            frames = rng.choice([frames[:-1], [*frames, b""], frames[::-1]])
        one = one._replace(frames=frames)
    else:
        one = one._replace(body=mutate_body(one.body, rng))
    sent[at] = one
    return Case(case.moment, sent)

"""A bit of a frame between two shards flips in flight: the receiver must notice, drop it, and get it again."""

import random
from collections.abc import Sequence
from typing import Any

from ecrec.errors import WireError
from ecrec.protocol import wire
from simulation.network import Parcel
from simulation.story import ViolationError

FLIPPED = "bit flipped in flight"
"""What it is counted as."""


class Flips:
    """Decides, by dice of its own, which messages are damaged, and how."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._rng = random.Random(f"flipped bits {seed}")

    @property
    def strike(self) -> bool:
        """Some messages are damaged."""
        return self._rate > 0

    def damaged(self, parcel: Parcel) -> list[bytes] | None:
        """The message with a bit that flipped, if one does. Raises ViolationError if that would go unseen."""
        if not self._rate or self._rng.random() >= self._rate:
            return None
        damaged = self._flipped(parcel.parts)
        try:
            wire.decode(damaged)
        except WireError:
            return damaged
        raise ViolationError(f"a flipped bit in a message of {parcel.source.label} went unseen")

    def _flipped(self, parts: Sequence[Any]) -> list[bytes]:
        """A copy of the frames in which one bit of all is another."""
        copies = [bytearray(part) for part in parts]
        bit = self._rng.randrange(8 * sum(map(len, copies)))
        for copy in copies:
            if bit < 8 * len(copy):
                copy[bit // 8] ^= 1 << bit % 8
                break
            bit -= 8 * len(copy)
        return [bytes(copy) for copy in copies]

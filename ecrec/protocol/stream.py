"""Gap-free streams over a transport that may lose, repeat and delay: go-back-N, one stream a direction.

A stream joins two incarnations of shards. Messages are numbered from 1. The sender keeps each until it is
acknowledged; acknowledgements are cumulative and ride on every message that goes the other way. The receiver takes
the next number and nothing else. Over one connection ZeroMQ keeps the order and loses nothing, so a gap means that a
connection broke: everything after it is on its way again, and buffering it would not pay.

What is kept is bounded by the protocol: of a peer that acknowledges nothing, no window becomes stable, and there are at
most `windows_in_flight_max` of them but for those that close at their size limit, or for a MARKER, before workers stop
at `pushes_in_flight_max`. Copies are bounded here: to a peer that hangs all is sent again once, then the oldest alone.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from ecrec.protocol.messages import Address

Item = TypeVar("Item")

RESEND_MS = 500.0
"""Without progress for this long, everything not acknowledged is sent again. A broken connection is noticed sooner by
other means; this is for what nobody noticed."""

ASKED_MS = 100.0
"""A message that arrives damaged again and again is sent again at most this often."""

RESEND_MS_MAX = 8000.0
"""The wait doubles up to this, so that a slow peer is not buried under copies of what it has not read yet."""

UNKNOWN_INCARNATIONS_MAX = 1024
"""Incarnations that sent something before the machine heard of them; bounds what invented ones can cost."""


@dataclass(slots=True)
class Numbered(Generic[Item]):
    sequence: int
    item: Item


class OutStream(Generic[Item]):
    """The sending end."""

    def __init__(self) -> None:
        self._kept: deque[Numbered[Item]] = deque()
        self._next = 1
        self._progress_ms = 0.0
        self._wait_ms = RESEND_MS
        self._probing = False
        """All was sent again in vain: the oldest is, until there is progress."""
        self._asked = 0
        self._asked_ms = 0.0
        """Number from which on the receiver asked for everything last."""

    def append(self, item: Item, now_ms: float) -> int:
        """Keep an item and return its number."""
        if not self._kept:
            self._progress_ms = now_ms
        sequence = self._next
        self._next += 1
        self._kept.append(Numbered(sequence, item))
        return sequence

    def acknowledge(self, ack: int, now_ms: float) -> None:
        """Forget everything up to ``ack``. One of a number never sent is ignored."""
        if ack >= self._next or not self._kept or ack < self._kept[0].sequence:
            return
        while self._kept and self._kept[0].sequence <= ack:
            self._kept.popleft()
        self._progress_ms = now_ms
        # What was taken may have been a lone copy: then the others are wanted at once.
        self._wait_ms = 0.0 if self._probing and self._kept else RESEND_MS
        self._probing = False

    def due(self, now_ms: float) -> list[Numbered[Item]]:
        """What must be sent again because nothing was acknowledged for too long.

        That is everything at first, then the oldest alone: copies must not pile up before a peer that hangs.
        """
        if not self._kept or now_ms - self._progress_ms < self._wait_ms:
            return []
        if self._wait_ms > RESEND_MS:
            self._probing = True
        self._wait_ms = min(2 * max(self._wait_ms, RESEND_MS), RESEND_MS_MAX)
        self._progress_ms = now_ms
        return [self._kept[0]] if self._probing else list(self._kept)

    def reconnected(self, now_ms: float) -> list[Numbered[Item]]:
        """What must be sent again on a new connection."""
        self._progress_ms = now_ms
        self._wait_ms, self._probing = RESEND_MS, False
        return list(self._kept)

    def asked(self, sequence: int, now_ms: float) -> list[Numbered[Item]]:
        """What must be sent again because the receiver lacks this number: all at first, then it alone, each `ASKED_MS`.

        What follows it is sent again once it is acknowledged: a receiver that gets nothing whole is not buried.
        """
        if sequence < self._asked or not self._kept or self._kept[0].sequence != sequence:
            return []
        if sequence > self._asked:
            self._asked, self._asked_ms = sequence, now_ms
            return self.reconnected(now_ms)
        if now_ms - self._asked_ms < ASKED_MS:
            return []
        self._asked_ms, self._probing = now_ms, True
        return [self._kept[0]]

    @property
    def unacknowledged(self) -> int:
        return len(self._kept)


class InStream:
    """The receiving end."""

    def __init__(self) -> None:
        self.ack = 0
        """The last number taken."""
        self.ack_due = False
        """Something arrived since an acknowledgement was last sent."""
        self.ack_overdue = False
        """It was due when acknowledgements were last looked for, and nothing has taken it along since."""

    def take(self, sequence: int) -> bool:
        """Whether the message is the next one; a duplicate, and what follows a gap, must be dropped."""
        self.ack_due = True
        if sequence != self.ack + 1:
            return False
        self.ack = sequence
        return True

    def acknowledged(self) -> int:
        """The number to put on a message that goes the other way now."""
        self.ack_due = self.ack_overdue = False
        return self.ack


class Streams(Generic[Item]):
    """All streams of one shard's incarnation, by the peer's incarnation.

    What is known of epochs comes from the shard's own machine (`connected`, `fenced`), never from what a message
    claims: messages of an epoch that is newer than known pass, those of an older one do not.
    """

    def __init__(self) -> None:
        self._out: dict[Address, OutStream[Item]] = {}
        self._in: dict[Address, InStream] = {}
        self._epochs: dict[int, int] = {}

    def reset(self) -> None:
        """The shard itself has become another incarnation."""
        self._out.clear()
        self._in.clear()

    def connected(self, peer: Address) -> None:
        """The machine knows this incarnation of a peer; older ones are gone."""
        self._raise_epoch(peer.id, peer.epoch)

    def fenced(self, peer: Address) -> None:
        """The machine wants nothing more to do with this incarnation."""
        self._raise_epoch(peer.id, peer.epoch + 1)

    def _raise_epoch(self, shard: int, epoch: int) -> None:
        if epoch <= self._epochs.get(shard, 0):
            return
        self._epochs[shard] = epoch
        for streams in (self._out, self._in):
            for old in [peer for peer in streams if peer.id == shard and peer.epoch < epoch]:
                del streams[old]

    def is_old(self, peer: Address) -> bool:
        return peer.epoch < self._epochs.get(peer.id, 0)

    def out(self, peer: Address) -> OutStream[Item]:
        return self._out.setdefault(peer, OutStream())

    def take(self, peer: Address, sequence: int) -> bool:
        """Whether a message from ``peer`` is to be handed on: not of an old incarnation, and the next one."""
        stream = self._in.get(peer)
        if stream is None:
            known = peer.epoch == self._epochs.get(peer.id, 0)
            if self.is_old(peer) or (not known and len(self._in) >= UNKNOWN_INCARNATIONS_MAX):
                return False
            stream = self._in[peer] = InStream()
        return stream.take(sequence)

    def lacks(self, peer: Address, sequence: int) -> bool:
        """Whether a message that was not taken comes behind a gap."""
        stream = self._in.get(peer)
        return stream is not None and sequence > stream.ack + 1 and not self.is_old(peer)

    def asked(self, peer: Address, sequence: int, now_ms: float) -> list[Numbered[Item]]:
        """What must be sent again because ``peer`` lacks everything from this number on."""
        stream = self._out.get(peer)
        return stream.asked(sequence, now_ms) if stream else []

    def acknowledge(self, peer: Address, ack: int, now_ms: float) -> None:
        stream = self._out.get(peer)
        if stream is not None:
            stream.acknowledge(ack, now_ms)

    def reconnected(self, peer: Address, now_ms: float) -> list[Numbered[Item]]:
        """What must be sent again because the connection to ``peer`` is a new one."""
        stream = self._out.get(peer)
        return stream.reconnected(now_ms) if stream else []

    def ack_for(self, peer: Address) -> int:
        """The acknowledgement to put on a message that goes to ``peer`` now."""
        stream = self._in.get(peer)
        return stream.acknowledged() if stream else 0

    def acks_due(self) -> list[Address]:
        """Peers that sent something before the last call and got nothing since: what goes their way soon is as good."""
        overdue = [peer for peer, stream in self._in.items() if stream.ack_overdue]
        for stream in self._in.values():
            stream.ack_overdue = stream.ack_due
        return overdue

    def resends_due(self, now_ms: float) -> list[tuple[Address, list[Numbered[Item]]]]:
        due = ((peer, stream.due(now_ms)) for peer, stream in self._out.items())
        return [(peer, numbered) for peer, numbered in due if numbered]

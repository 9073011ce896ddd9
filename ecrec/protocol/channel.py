"""A worker's conversation with one shard, over all its incarnations: what was asked, what is not answered.

A part of the `ClientMachine`. Pushes and pulls are kept in the order in which they were made, until they are durable or
answered; whenever the shard may not have them (a new incarnation, a silence), they are sent again in that order.
"""

from typing import NamedTuple

from ecrec.protocol.events import Connect, Disconnect, Effect, Note, Send
from ecrec.protocol.messages import SHARD, Address, Frames, Hello, Message, Pull, Push, Section
from ecrec.protocol.transitions import CHANNEL, FOUND, GREETED, LEFT_BEHIND, MET, REMET, UNREACHED, WELCOME

RESEND_BACKOFF_MAX = 8
"""A shard that stays silent is sent things again ever more slowly, down to once in resend_ms times this: everything at
first, then the oldest request alone, so that copies do not pile up before a shard that hangs."""


class Kept(NamedTuple):
    """A push or pull that its shard has not answered; the message itself is made when it is sent."""

    push: int
    """Number of the push; 0 for a pull."""
    request: int
    """Request (= ticket) of the pull; 0 for a push."""
    after: int
    barrier: int
    flag: bool
    """``assign`` of a push, ``records`` of a pull."""
    sections: list[Section]
    frames: Frames
    cursor: int = 0
    run: int = 0
    sequence: int = 0
    push_bytes: int = 0
    """Of the frames of a push; 0 for a pull."""
    rates: dict[int, float] | None = None
    """Of a push; never changed."""
    checkpoint: int = 0
    """Of a push: the newest one that was known when it was made."""
    records: bool = False
    """Of a push: `Push.records`."""


class WatermarkError(Exception):
    """The shard's watermark does not fit the pushes that were made and acknowledged."""


class Channel:
    """What the worker knows of one shard."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.epoch = -1
        self.endpoint = ""
        self.state = UNREACHED
        """As in `transitions.CHANNEL`."""
        self.welcomed = False
        """The watermark of this worker's life is known: numbers can be given."""
        self.base = 0
        """Pushes of this worker's earlier lives."""
        self.pushed = 0
        self.acked = 0
        self.before = 0
        """The last push before the newest checkpoint that was heard of."""
        self.kept: list[Kept] = []
        self.quiet_ms = 0.0
        """Time without an answer to the oldest request kept."""
        self.patience = 1
        self.down_ms: float | None = None
        """Since when no incarnation runs, as far as is known here."""
        self.unheard_ms = 0.0
        """Time without any word of it, while it is asked for one."""
        self.asked_ms = 0.0
        """The same since it was last asked."""
        self.heard = False
        """It was heard since somebody waits."""

    def step(self, happening: str) -> None:
        self.state = CHANNEL.after(self.state, happening)

    @property
    def address(self) -> Address:
        return Address(SHARD, self.number, self.epoch)

    @property
    def connected(self) -> bool:
        """An incarnation runs."""
        return self.state in (MET, GREETED)

    @property
    def greeted(self) -> bool:
        """It may be sent pushes and pulls."""
        return self.state == GREETED

    @property
    def durable(self) -> int:
        """Pushes of this life that are."""
        return self.acked - self.base

    # ------------------------------------------------------------------ incarnations
    def gone(self, epoch: int, now_ms: float | None) -> list[Effect]:
        """The incarnation before the one with this epoch, or this one itself, does not run any more."""
        if self.down_ms is None:
            self.down_ms = now_ms
        if not self.connected:
            self.epoch = max(self.epoch, epoch)
            return []
        self.step(LEFT_BEHIND)
        waiting = f"{self.address} is down; {len(self.kept)} requests wait for its replacement"
        return [Disconnect(self.address), Note("warning", waiting)]

    def meet(self, epoch: int, endpoint: str) -> list[Effect]:
        """An incarnation runs; it is connected, and not greeted yet."""
        self.step(FOUND)
        self.epoch, self.endpoint, self.down_ms = epoch, endpoint, None
        self.ask_anew()
        return [Connect(self.address, endpoint)]

    def renamed(self) -> None:
        """It knows this life of the worker by another epoch: Hello again."""
        if self.greeted:
            self.step(REMET)

    def hello(self, worker_epoch: int) -> list[Effect]:
        """A worker says who it is, and learns its watermark from the answer."""
        self.quiet_ms = 0.0
        return [Send(self.address, Hello(worker_epoch))]

    def welcome(self, watermark: int) -> None:
        """The watermark of this life's first push."""
        self.base = self.pushed = self.acked = self.before = watermark
        self.welcomed = True
        self.step(WELCOME)

    def greet(self) -> None:
        """Of a tool, which has no watermark."""
        self.welcomed = True
        self.step(WELCOME)

    def go_on(self, worker: int, watermark: int, durable: int | None = None) -> int:
        """Go on with an incarnation that has this watermark; returns the bytes of pushes that are kept no more.

        Raises WatermarkError if it does not fit.
        """
        if watermark < self.acked:
            raise WatermarkError(
                f"{self.address} goes on from push {watermark} of worker {worker}, but push {self.acked} was "
                "acknowledged as durable: updates were lost"
            )
        if watermark > self.pushed:
            raise WatermarkError(
                f"{self.address} goes on from push {watermark} of worker {worker}, which made only {self.pushed}: "
                "another process pushes in its name"
            )
        freed = self.forget(watermark if durable is None else min(watermark, durable))
        self.step(WELCOME)
        self.patience = 1
        return freed

    def ask_anew(self) -> None:
        """What it said before is no sign of life; it is asked for one at once."""
        self.unheard_ms, self.asked_ms, self.heard = 0.0, float("inf"), False

    # ------------------------------------------------------------------ what was asked
    def keep(self, kept: Kept) -> None:
        if not self.kept:
            self.quiet_ms, self.patience = 0.0, 1
        self.kept.append(kept)

    def message(self, kept: Kept, worker_epoch: int, tables: int) -> Send:
        """What is kept, as it is sent. ``tables``: so many are known."""
        message: Message
        if kept.push:
            message = Push(
                worker_epoch, kept.push, kept.barrier, kept.flag, kept.sections, kept.cursor, kept.run, kept.sequence,
                tables, kept.rates or {}, kept.checkpoint, kept.records,
            )  # fmt: skip
        else:
            message = Pull(kept.request, kept.after, kept.flag, kept.sections)
        return Send(self.address, message, kept.frames)

    def answered(self, oldest: Kept | None) -> bool:
        """Whether the oldest request before has been answered: a shard that acknowledges pushes may still never have
        seen a pull that was lost with a connection."""
        return not self.kept or self.kept[0] is not oldest

    def forget(self, durable: int) -> int:
        """Pushes up to this number are durable; returns their bytes."""
        if durable <= self.acked:
            return 0
        self.acked = durable
        freed = sum(kept.push_bytes for kept in self.kept if kept.push <= durable)
        self.kept = [kept for kept in self.kept if not 0 < kept.push <= durable]
        return freed

    def drop_pull(self, request: int) -> None:
        """It is answered, or given up."""
        self.kept = [kept for kept in self.kept if kept.request != request]

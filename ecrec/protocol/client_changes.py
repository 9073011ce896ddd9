"""What changed at the shards, as a reader asks for it: one question to each shard at a time.

A part of the `ClientMachine`.
"""

from typing import NamedTuple

from ecrec.protocol.channel import Channel
from ecrec.protocol.events import Effect, Send
from ecrec.protocol.messages import AskChanges, Changed, Frames, Message


class ChangedAt(NamedTuple):
    """An answer, and the incarnation that gave it."""

    epoch: int
    message: Changed
    frames: Frames


class ClientChanges:
    """The part of a `ClientMachine` that asks for changes."""

    def __init__(self) -> None:
        self.answers: dict[int, ChangedAt] = {}
        """Shard -> what it has answered, until the caller takes it out."""
        self._asked: dict[int, tuple[AskChanges, float]] = {}
        """Shard -> the question without an answer, and when it was last sent."""

    def ask(self, shard: Channel, message: AskChanges, now_ms: float) -> list[Effect]:
        """Ask a shard, instead of what it was asked before; again until it, or its replacement, has answered."""
        self.answers.pop(shard.number, None)
        self._asked[shard.number] = message, now_ms
        return [Send(shard.address, message)] if shard.connected else []

    def on_tick(self, shards: dict[int, Channel], now_ms: float, again_ms: float) -> list[Effect]:
        effects: list[Effect] = []
        for number, (message, asked_ms) in self._asked.items():
            shard = shards[number]
            if now_ms - asked_ms >= again_ms and shard.connected:
                self._asked[number] = message, now_ms
                effects.append(Send(shard.address, message))
        return effects

    def on_answer(self, shard: Channel, message: Message, frames: Frames) -> None:
        asked = self._asked.get(shard.number)
        if isinstance(message, Changed) and asked is not None and asked[0].request == message.request:
            del self._asked[shard.number]
            self.answers[shard.number] = ChangedAt(shard.epoch, message, frames)

"""A checkpoint that a worker or tool asks for.

A part of the `ClientMachine`.
"""

from ecrec.protocol.events import Effect, Send
from ecrec.protocol.messages import SCHEDULER_ADDRESS, Save, SaveBegun


class ClientSaves:
    """The part of a `ClientMachine` that asks for checkpoints."""

    def __init__(self) -> None:
        self.checkpoint = 0
        """Number of the one that was asked for last; 0 until it has begun."""
        self.refusal = ""
        """Why it was refused; empty if it was not."""
        self._asked: Save | None = None
        self._asked_ms = 0.0

    @property
    def asking(self) -> bool:
        """One is asked for, and has neither begun nor been refused."""
        return self._asked is not None

    def ask(self, asked: Save, now_ms: float) -> list[Effect]:
        """Ask for one, instead of what was asked for before."""
        self._asked, self._asked_ms, self.checkpoint, self.refusal = asked, now_ms, 0, ""
        return [Send(SCHEDULER_ADDRESS, asked)]

    def on_tick(self, now_ms: float, again_ms: float) -> list[Effect]:
        """Ask again if there was no answer for ``again_ms``."""
        if self._asked is None or now_ms - self._asked_ms < again_ms:
            return []
        self._asked_ms = now_ms
        return [Send(SCHEDULER_ADDRESS, self._asked)]

    def on_begun(self, message: SaveBegun) -> None:
        if self._asked is not None and message.request == self._asked.request:
            self._asked, self.checkpoint = None, message.checkpoint

    def on_refused(self, request: int, reason: str) -> None:
        if self._asked is not None and request == self._asked.request:
            self._asked, self.refusal = None, reason

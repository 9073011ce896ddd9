"""A shard whose process was told to end: it asks the scheduler to let it go, and serves on until then.

A part of the `ShardMachine`. What the scheduler decides is ``departures.py``'s.
"""

from ecrec.protocol import messages as m
from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.events import FENCED, LEFT, LEFT_EARLY, Effect, Note, Send, Stop
from ecrec.protocol.messages import SCHEDULER_ADDRESS

SAID_MS = 10_000.0
"""How often the log says again why the process has not ended."""


class Departure:
    """The orderly end of a process. ``timeout_ms``: the longest time that it waits to be let go."""

    def __init__(self, process: str, timeout_ms: float = NEVER_MS) -> None:
        self._process = process
        self._timeout_ms = timeout_ms
        self._since_ms: float | None = None
        """When the process was told to end."""
        self._asked_ms = -NEVER_MS
        self._answered_ms = 0.0
        self._said_ms = -NEVER_MS
        self._reason = ""
        self.off_host = False
        """The successor is to be on another host."""

    @property
    def is_asked(self) -> bool:
        return self._since_ms is not None

    def begin(self, who: str, is_placed: bool, now_ms: float) -> list[Effect]:
        """The process was told to end; ``who`` is its name for people."""
        if not is_placed:
            return [Stop("it was told to end, and holds no place", LEFT)]
        if self._since_ms is not None:
            return []
        self._since_ms = self._asked_ms = self._answered_ms = now_ms
        self._reason, self._said_ms = "", -NEVER_MS
        text = f"told to end: {who} asks the scheduler whether data would be lost, and serves until it is let go"
        return [Note("info", text), self._ask()]

    def _ask(self) -> Send:
        return Send(SCHEDULER_ADDRESS, m.Leave(self._process, off_host=self.off_host))

    def stay(self) -> list[Effect]:
        """The process was told that it need not end after all."""
        if self._since_ms is None:
            return []
        self._since_ms = None
        return [
            Note("info", "told that it need not end: it stays"),
            Send(SCHEDULER_ADDRESS, m.Leave(self._process, stays=True)),
        ]

    def answered(self, answer: m.LeaveWaits, now_ms: float) -> None:
        """The scheduler lets it wait."""
        self._answered_ms, self._reason = now_ms, answer.reason

    def ended(self, reason: str) -> Stop:
        """The cluster goes on without this process."""
        return Stop(reason, LEFT if self.is_asked else FENCED)

    def on_tick(self, config: ProtocolConfig, now_ms: float) -> list[Effect]:
        """Ask again, say why it waits, or give up waiting."""
        if self._since_ms is None:
            return []
        waited_ms, why = now_ms - self._since_ms, self._why(config, now_ms)
        if waited_ms > self._timeout_ms:
            text = f"told to end {waited_ms / 1e3:.0f} s ago, ends at --leave-timeout-ms; data may be lost: {why}"
            return [Stop(text, LEFT_EARLY)]
        effects: list[Effect] = []
        if now_ms - self._asked_ms >= config.heartbeat_ms:
            self._asked_ms = now_ms
            effects.append(self._ask())
        if why and now_ms - self._said_ms >= SAID_MS:
            self._said_ms = now_ms
            text = f"told to end {waited_ms / 1e3:.0f} s ago, serves on: {why} (a second signal ends it at once)"
            effects.append(Note("info", text))
        return effects

    def _why(self, config: ProtocolConfig, now_ms: float) -> str:
        silent_ms = now_ms - self._answered_ms
        if silent_ms > config.heartbeat_timeout_ms:
            return f"the scheduler has not answered for {silent_ms / 1e3:.0f} s"
        return self._reason

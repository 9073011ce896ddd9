"""A process that no scheduler has answered yet: what it says of that, and when it gives up."""

import logging
import math

from ecrec.protocol.events import NO_SCHEDULER, Stop

log = logging.getLogger(__name__)

FIRST_SAID_MS = 2000.0
SAID_MS = 5000.0
"""It is said after the first time, and then again whenever the second has passed."""


class SchedulerWait:
    """The wait for the first answer. ``endpoint``: as it was given; ``timeout_ms``: how long, 0: without a limit."""

    def __init__(self, endpoint: str, timeout_ms: float) -> None:
        self.endpoint = endpoint
        self._timeout_ms = timeout_ms or math.inf
        self._since_ms: float | None = None
        self._said_ms = 0.0

    def look(self, trouble: str, now_ms: float) -> Stop | None:
        """Nobody has answered up to now; ``trouble``: why, as far as it is known. A Stop when it takes too long."""
        if self._since_ms is None:
            self._since_ms, self._said_ms = now_ms, now_ms - SAID_MS + FIRST_SAID_MS
        waited_ms = now_ms - self._since_ms
        text = f"no scheduler has answered at {self.endpoint} for {waited_ms / 1e3:.0f} s: {trouble}"
        if waited_ms >= self._timeout_ms:
            return Stop(f"{text}; given up after --scheduler-timeout-ms {self._timeout_ms:.0f}", NO_SCHEDULER)
        if now_ms - self._said_ms >= SAID_MS:
            self._said_ms = now_ms
            log.warning("%s", text)
        return None

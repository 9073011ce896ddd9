"""Warnings about bad messages, and how little of them the log must bear."""

import logging

log = logging.getLogger(__name__)

COMPLAINT_MS = 1000.0
"""At most one line in the log for each kind of bad message in this time."""

COMPLAINTS_MAX = 256
"""Kinds of complaints told apart; bounds what invented senders can cost."""


class Complaints:
    """Warnings about bad messages, so limited that a flood of them does not fill the log."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def add(self, kind: str, text: str, now_ms: float) -> None:
        """Log ``text`` unless one of the same kind was logged just now; say how many were not."""
        logged_ms, kept_back = self._seen.get(kind, (-COMPLAINT_MS, 0))
        if now_ms - logged_ms < COMPLAINT_MS:
            self._seen[kind] = (logged_ms, kept_back + 1)
            return
        more = f" (and {kept_back} more like it)" if kept_back else ""
        log.warning("%s%s", text, more)
        if len(self._seen) >= COMPLAINTS_MAX:
            self._seen.clear()
        self._seen[kind] = (now_ms, 0)

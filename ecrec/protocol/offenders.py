"""Bad messages: who sent too many."""

from collections import OrderedDict

OFFENCES_MAX = 16
"""Bad messages of one connection within OFFENCE_SPAN_MS after which it is ignored. A sender of another version, or one
with a defect, is told by then."""

OFFENCE_SPAN_MS = 10_000.0

IGNORE_MS = 30_000.0
"""How long nothing that comes on such a connection is looked at."""

OFFENDERS_MAX = 1024
"""Connections remembered; the one whose last bad message is oldest is forgotten first."""


class Offenders:
    """Connections that sent bad messages, by route. ZeroMQ cannot close one connection of many: it is ignored."""

    def __init__(self) -> None:
        self._offences: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """Route -> begin of the span, bad messages in it."""
        self._ignored: OrderedDict[bytes, float] = OrderedDict()
        """Route -> until when."""

    def add(self, route: bytes, now_ms: float) -> bool:
        """Count a bad message; whether the connection is ignored from now on."""
        begin_ms, count = self._offences.pop(route, (now_ms, 0))
        if now_ms - begin_ms > OFFENCE_SPAN_MS:
            begin_ms, count = now_ms, 0
        if count + 1 < OFFENCES_MAX:
            self._offences[route] = begin_ms, count + 1
            if len(self._offences) > OFFENDERS_MAX:
                self._offences.popitem(last=False)
            return False
        self._ignored[route] = now_ms + IGNORE_MS
        if len(self._ignored) > OFFENDERS_MAX:
            self._ignored.popitem(last=False)
        return True

    def ignores(self, route: bytes, now_ms: float) -> bool:
        """Whether what comes on the connection is dropped unseen."""
        until_ms = self._ignored.get(route)
        if until_ms is None:
            return False
        if now_ms < until_ms:
            return True
        del self._ignored[route]
        return False

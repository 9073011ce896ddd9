"""The connections of an inbox: how many there are, and which are to go so that peers find room.

Every connection takes a descriptor, and a process has a limit of them. Whoever takes them all keeps a server from
connecting to the replacement of a dead one, in the moment in which that counts. So some are kept for what the server
itself opens, and of connections beyond the rest those go first that never said anything.
"""

import contextlib
import resource
import socket

UNSPOKEN_MS = 2000.0
"""A connection has the time to say something before it may be closed for another one's sake; all of ours do at once."""

KEPT_MAX = 512
"""Descriptors that are kept for files and for connections that this process makes: four for each peer."""


def connections_max(limit: int | None = None) -> int:
    """Connections that an inbox takes: what the limit on descriptors leaves, at least half of it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    return 1 << 20 if limit == resource.RLIM_INFINITY else max(limit // 2, limit - KEPT_MAX)


def raise_descriptor_limit() -> int:
    """Take as many descriptors as this user may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Visitors:
    """Who is connected, by the descriptor of the connection."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._since_ms: dict[int, float] = {}
        """Of those that never spoke."""
        self._spoke: set[int] = set()

    def __len__(self) -> int:
        return len(self._since_ms) + len(self._spoke)

    def speaks(self, descriptor: int) -> None:
        if self._since_ms.pop(descriptor, None) is not None:
            self._spoke.add(descriptor)

    def leaves(self, descriptor: int) -> None:
        self._since_ms.pop(descriptor, None)
        self._spoke.discard(descriptor)

    def comes(self, descriptor: int, now_ms: float) -> int | None:
        """Take a new connection in; return the one that is to be closed for it, maybe itself."""
        self._spoke.discard(descriptor)
        self._since_ms[descriptor] = now_ms
        if len(self) <= self.most:
            return None
        oldest = next(iter(self._since_ms))
        return oldest if now_ms - self._since_ms[oldest] >= UNSPOKEN_MS else descriptor


def end(descriptor: int, endpoint: str) -> None:
    """End a connection of the inbox at ``endpoint``: ZeroMQ finds it closed. Another that has its number by now stays.

    Takes no descriptor: there may be none left.
    """
    with contextlib.suppress(OSError):
        connection = socket.socket(fileno=descriptor)
        try:
            if _is_at(connection, endpoint):
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()


def _is_at(connection: socket.socket, endpoint: str) -> bool:
    name = connection.getsockname()
    if connection.family == socket.AF_UNIX:
        return endpoint == f"ipc://{name}"
    return endpoint.endswith(f":{name[1]}")

"""Answers ZeroMQ's question whether a key may connect (ZAP, RFC 27), in a thread of its own.

ZeroMQ takes nothing from a connection before it has the answer. Given by the loop of a busy server, it would come later
than `reconnect_grace_ms`, and a connection that was reset for a moment would look like a death.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from ecrec.transport.curve import Visitor

ENDPOINT, DOMAIN = "inproc://zeromq.zap.01", b"ecrec"
AS_SERVER, AS_CLIENT = "server ", "client "
"""Prefixes of the user id that the answer gives a connection, before the name of its key."""

REFUSALS_MAX = 1000
"""Refusals that wait to be told of; the oldest go."""


class Doorkeeper:
    """The thread. It ends when the context is terminated.

    ``visitor(key)`` says whose a public key is, or None for one that is not allowed; it is called by the thread alone.
    """

    def __init__(self, context: "zmq.Context[Any]", visitor: Callable[[bytes], Visitor | None]) -> None:
        self._visitor = visitor
        self._refusals: deque[str] = deque(maxlen=REFUSALS_MAX)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="ecrec-zap", daemon=True)
        self._thread.start()

    def refusals(self) -> list[str]:
        """Why connections were refused since the last call."""
        found = []
        while self._refusals:
            found.append(self._refusals.popleft())
        return found

    def join(self) -> None:
        """Wait for the end of the thread; the context is terminated."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._answer(self._socket.recv_multipart())
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close(linger=0)

    def _answer(self, question: list[bytes]) -> None:
        version, request, _, host, _, mechanism, *credentials = question
        visitor, key = None, b""
        try:
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
            visitor = self._visitor(key)
        except Exception as error:  # whatever is wrong with the directory: nobody is let in, and the thread goes on
            self._refusals.append(f"keys cannot be looked up: {type(error).__name__}: {error}")
        if visitor is None:
            where = host.decode(errors="replace") or "this machine"
            self._refusals.append(f"refused a connection from {where}: key {key.decode()!r} is not allowed")
            self._socket.send_multipart([version, request, b"400", b"this key is not allowed", b"", b""])
        else:
            user = (AS_SERVER if visitor.server else AS_CLIENT) + visitor.name
            self._socket.send_multipart([version, request, b"200", b"OK", user.encode(), b""])

"""Waiting for several ZeroMQ sockets: one system call for all of them, where `zmq.Poller` makes two for each."""

import select
from collections.abc import Callable
from typing import Any

import zmq


class Poller:
    """Tells which sockets may have something to receive.

    ZeroMQ writes to a socket's descriptor when there is news for it, and any call on the socket may take that news in:
    what was received from until it had nothing is silent until there is more, but one that was sent on must be looked
    at again (`look_again`).
    """

    def __init__(self) -> None:
        self._descriptors = select.poll()
        self._receivers: dict[Any, Callable[[], bool]] = {}
        self._by_descriptor: dict[int, Any] = {}
        self._again: dict[Any, None] = {}

    def register(self, socket: Any, receive: Callable[[], bool]) -> None:
        """``receive()`` takes what the socket has, and says whether it left something."""
        descriptor = socket.getsockopt(zmq.FD)
        self._receivers[socket] = receive
        self._by_descriptor[descriptor] = socket
        self._descriptors.register(descriptor, select.POLLIN)
        self.look_again(socket)

    def register_descriptor(self, descriptor: int, receive: Callable[[], bool]) -> None:
        """Of no socket: ``receive()`` is called while it can be read."""
        self._receivers[descriptor] = receive
        self._by_descriptor[descriptor] = descriptor
        self._descriptors.register(descriptor, select.POLLIN)

    def unregister(self, socket: Any) -> None:
        """Before it is closed."""
        descriptor = socket.getsockopt(zmq.FD)
        self._descriptors.unregister(descriptor)
        del self._by_descriptor[descriptor], self._receivers[socket]
        self._again.pop(socket, None)

    def look_again(self, socket: Any) -> None:
        """Something was sent on it."""
        self._again[socket] = None

    @property
    def drained(self) -> bool:
        """Nothing was left in a socket that was received from, and none was sent on since."""
        return not self._again

    def receive(self) -> None:
        """From the sockets that must be looked at again, once."""
        again, self._again = self._again, {}
        for socket in again:
            self._receive(socket)

    def wait(self, timeout_ms: int) -> None:
        """At most this long for any socket, and receive from all that have something."""
        for descriptor, _ in self._descriptors.poll(0 if self._again else timeout_ms):
            # An earlier one of these may have closed it.
            if (socket := self._by_descriptor.get(descriptor)) is not None:
                self._receive(socket)

    def _receive(self, socket: Any) -> None:
        receive = self._receivers.get(socket)
        if receive is not None and receive():
            self.look_again(socket)

"""A TCP proxy whose connections a test cuts."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

DEADLINE_S = 10.0


class Forwarder:
    """Passes TCP connections on to an endpoint until they are cut."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._swallowing: set[int] = set()
        self._refusing = False
        self._closed = False
        self.passed_bytes = 0
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._refusing or self._closed:
                    here.close()
                    continue
                try:
                    there = socket.create_connection(self._target)
                except OSError:
                    here.close()
                    continue
                self._pairs.append((here, there))
                self._ends += [here, there]
            self._start(self._copy, here, there)
            self._start(self._copy, there, here)

    def _copy(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            port = source.getpeername()[1]
            while data := source.recv(1 << 14):
                if port in self._swallowing:
                    continue
                to.sendall(data)
                self.passed_bytes += len(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, refuse: bool = False) -> None:
        """Break all connections, losing what is on its way; with ``refuse`` let no new ones through."""
        with self._lock:
            self._refusing = refuse
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def swallow(self, ports: set[int]) -> None:
        """Pass on nothing more of what comes from these ports; the connections stay."""
        self._swallowing = ports

    def close(self) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut(refuse=True)
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()
        self._listener.close()

"""Names of hosts, looked up beside the loop.

ZeroMQ looks a name up in its only I/O thread, again at each attempt to connect: one name that no name server answers
for silences all connections of the process for seconds. So ZeroMQ is given addresses alone, and names are looked up by
threads that nobody waits for.
"""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

THREADS_MAX = 32
"""Look-ups at a time: one that no name server answers takes its thread for half a minute, and others must not wait for
it."""

FIRST_WAIT_S = 0.005
"""How long a first look-up is waited for: one out of a file or a cache on this machine is there by then, and nothing
that is sent at once is dropped."""


def look_up(host: str) -> tuple[str, ...]:
    """Addresses of a host, those of IPv4 first. Raises OSError or UnicodeError; takes as long as it takes."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # A server listens at 0.0.0.0 more often than at [::].
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Addresses of hosts, as far as they are known. ``look_up``: what finds them, in a thread."""

    def __init__(self, look_up: Callable[[str], tuple[str, ...]] = look_up) -> None:
        self._look_up = look_up
        self._lock = threading.Condition()
        self._known: dict[str, tuple[str, ...]] = {}
        self._tried: set[str] = set()
        self._under_way: set[str] = set()
        self._queue: deque[str] = deque()
        self._threads = 0
        self._ended: dict[str, str] = {}
        self._closed = False
        self._readable, self._write = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """Readable when a look-up has ended."""
        return self._readable

    def addresses(self, host: str) -> tuple[str, ...]:
        """What is known; if nothing, a look-up begins. Empty: not yet. Waits `FIRST_WAIT_S`, once a host."""
        with self._lock:
            if host not in self._known and host not in self._under_way:
                first = host not in self._tried
                self._begin(host)
                if first:
                    deadline_s = time.monotonic() + FIRST_WAIT_S
                    while host in self._under_way and (left_s := deadline_s - time.monotonic()) > 0:
                        self._lock.wait(left_s)
            return self._known.get(host, ())

    def renew(self, host: str) -> None:
        """Look a name up again: the host may have moved. What is known stays until there is an answer."""
        with self._lock:
            if host not in self._under_way:
                self._begin(host)

    def ended(self) -> dict[str, str]:
        """Hosts whose look-up has ended since the last call -> what is wrong with it, empty if it was found."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 1 << 12)
        with self._lock:
            ended, self._ended = self._ended, {}
        return ended

    def close(self) -> None:
        """Threads that still look something up end when they have."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.clear()
                os.close(self._readable)
                os.close(self._write)

    def _begin(self, host: str) -> None:
        self._tried.add(host)
        self._under_way.add(host)
        self._queue.append(host)
        if self._threads < THREADS_MAX:
            try:
                threading.Thread(target=self._serve, name="ecrec-names", daemon=True).start()
                self._threads += 1
            except RuntimeError as error:  # no more threads for this user: another look-up is tried later
                if self._threads == 0:
                    self._queue.remove(host)
                    self._under_way.discard(host)
                    self._tell(host, str(error))

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                host = self._queue.popleft()
            wrong = ""
            found: tuple[str, ...] = ()
            try:
                found = self._look_up(host)
            except (OSError, UnicodeError) as error:
                wrong = getattr(error, "strerror", None) or str(error)
            with self._lock:
                self._under_way.discard(host)
                if found:
                    self._known[host] = found
                self._tell(host, wrong)
                self._lock.notify_all()

    def _tell(self, host: str, wrong: str) -> None:
        if self._closed:
            return
        self._ended[host] = wrong
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

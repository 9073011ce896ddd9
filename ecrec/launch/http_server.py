"""A small HTTP server for probes and scrapers: one thread, answers that are made on request, bounded in all it takes.

It reads a request line, and the headers for those who ask about them (``guard``). Whatever comes, a connection costs at
most `REQUEST_BYTES_MAX` and `REQUEST_S`, and no more than `CONNECTIONS_MAX` are open: a new one ends the oldest, so
that a probe is answered while somebody holds connections open.
"""

import contextlib
import errno
import logging
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ecrec.errors import ConfigurationError
from ecrec.transport.endpoints import is_host

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 8192
REQUEST_S = 5.0
"""The time-out of a connection, from its first byte to the last of the answer."""
CONNECTIONS_MAX = 64
_READ_BYTES = 4096
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_PAUSE_S = 0.05
"""Without a descriptor for a connection that came, it is tried again after this time."""

_REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.[01]\r?")
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Response(NamedTuple):
    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    """More of them."""


class Request(NamedTuple):
    """What the guard of a server sees."""

    path: str
    headers: Mapping[str, str]
    """By name in lower case; of one that comes twice, both, with a comma between them."""


Guard = Callable[[Request], Response | None]
"""Why a request is not answered; None if it is."""


def text(status: int, body: str) -> Response:
    return Response(status, f"{body}\n".encode())


def parse_address(option: str, address: str, offset: int = 0) -> tuple[str, int]:
    """``HOST:PORT`` -> both, addresses of IPv6 without their brackets. ``offset``: added to a port that is not 0.

    Raises ConfigurationError, naming the option.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    fine = is_host(plain) and bracketed == (":" in plain) and port.isascii() and port.isdigit() and len(port) <= 5
    number = int(port) + (offset if int(port) else 0) if fine else -1
    if not 0 <= number <= 65535:
        raise ConfigurationError(
            f"{option} {address!r}: expected HOST:PORT, such as 127.0.0.1:9090, 0.0.0.0:9090 or [::]:9090"
        )
    return plain, number


class _Connection:
    def __init__(self, connection: socket.socket, until_s: float) -> None:
        self.socket = connection
        self.until_s = until_s
        self.read = bytearray()
        self.answer = b""


class HttpServer:
    """Answers GET and HEAD; a context manager around its thread. ``routes``: path -> what makes the answer, there.
    ``guard``: is asked before each answer."""

    def __init__(
        self,
        option: str,
        address: tuple[str, int],
        routes: Mapping[str, Callable[[], Response]],
        guard: Guard = lambda request: None,
    ) -> None:
        """Listens at once. Raises ConfigurationError, naming the option, where it cannot."""
        self._routes = routes
        self._guard = guard
        host, port = address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, _, _, _, where = found[0]
            both = host == "::" and socket.has_dualstack_ipv6()
            self._listener = socket.create_server(where[:2], family=family, dualstack_ipv6=both)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"{option} {host}:{port}: cannot listen there: {getattr(error, 'strerror', None) or error}; expected "
                "an address of this machine and a free port (0 takes any)"
            ) from error
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._wake_read, self._wake = os.pipe()
        self._open: dict[socket.socket, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="ecrec-http", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """In a child of `os.fork`, which has no such thread, nothing happens."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            return
        os.write(self._wake, b"\0")
        self._thread.join()
        os.close(self._wake)

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            for each in list(self._open.values()):
                self._end(each)
            self._selector.close()
            self._listener.close()
            os.close(self._wake_read)

    def _step(self) -> bool:
        soonest = min((each.until_s for each in self._open.values()), default=None)
        wait_s = None if soonest is None else max(0.0, soonest - time.monotonic())
        for key, _ in self._selector.select(wait_s):
            if key.fileobj == self._wake_read:
                return False
            if key.fileobj is self._listener:
                self._accept()
            elif (connection := self._open.get(key.data)) is not None:
                self._serve(connection)
        now = time.monotonic()
        for each in [each for each in self._open.values() if each.until_s <= now]:
            self._end(each)
        return True

    def _accept(self) -> None:
        try:
            taken, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                time.sleep(_PAUSE_S)
            return
        if len(self._open) >= CONNECTIONS_MAX:
            self._end(next(iter(self._open.values())))
        taken.setblocking(False)
        self._open[taken] = _Connection(taken, time.monotonic() + REQUEST_S)
        self._selector.register(taken, selectors.EVENT_READ, taken)

    def _serve(self, each: _Connection) -> None:
        try:
            if not each.answer:
                self._read(each)
            else:
                each.answer = each.answer[each.socket.send(each.answer) :]
                if not each.answer:
                    self._end(each)
        except BlockingIOError:
            pass
        except OSError:
            self._end(each)

    def _read(self, each: _Connection) -> None:
        data = each.socket.recv(_READ_BYTES)
        if not data:
            self._end(each)
            return
        each.read += data
        if b"\n\r\n" in each.read or b"\n\n" in each.read:
            each.answer = self._answer(bytes(each.read))
        elif len(each.read) > REQUEST_BYTES_MAX:
            each.answer = _encode(text(431, f"a request has at most {REQUEST_BYTES_MAX} bytes"))
        else:
            return
        self._selector.modify(each.socket, selectors.EVENT_WRITE, each.socket)

    def _answer(self, read: bytes) -> bytes:
        line, _, rest = read.partition(b"\n")
        request = _REQUEST.fullmatch(line)
        if request is None:
            return _encode(text(400, "expected a request of HTTP/1.1"))
        method, target = request[1].decode(), request[2].decode().partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _encode(text(405, "expected GET"))
        make = self._routes.get(target)
        if make is None:
            return _encode(text(404, f"there are {', '.join(self._routes)}"))
        try:
            response = self._guard(Request(target, _headers(rest))) or make()
        except Exception as error:
            log.warning("%s could not be answered: %r", target, error)
            response = text(500, f"an error inside ecrec: {error!r}")
        return _encode(response, with_body=method == "GET")

    def _end(self, each: _Connection) -> None:
        if self._open.pop(each.socket, None) is not None:
            self._selector.unregister(each.socket)
            with contextlib.suppress(OSError):
                each.socket.shutdown(socket.SHUT_WR)
            each.socket.close()


def _headers(read: bytes) -> dict[str, str]:
    """The lines up to the first empty one."""
    found: dict[str, str] = {}
    for line in read.decode("latin-1").split("\n"):
        if not line.strip():
            break
        name, _, value = line.partition(":")
        name = name.strip().lower()
        found[name] = f"{found[name]},{value.strip()}" if name in found else value.strip()
    return found


def _encode(response: Response, with_body: bool = True) -> bytes:
    status, body, kind, headers = response
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    return head.encode() + (body if with_body else b"")

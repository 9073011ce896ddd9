"""The sockets of one node: an inbox, and one outgoing connection for each incarnation it talks to.

* A node that others connect to (scheduler, shard) binds one ROUTER, its *inbox*.
* To send to a node with an inbox, a DEALER is connected to it; answers may come back on the same connection.
* To those without an inbox (workers, tools, processes without a place) answers go out of the ROUTER, to the
  connection on which they were last heard.

With keys (``curve.py``) every connection is encrypted and both ends have proven who they are. The inbox then answers
ZeroMQ's question whether a key is allowed (ZAP) in `Links.poll`, like any other message; without an answer ZeroMQ takes
nothing from a connection.

Copies of a payload frame on its way (without keys): none in user space. ZeroMQ sends out of the sender's memory (only
frames below 64 KiB are copied, which is cheaper than to track them), the kernel copies into and out of its socket
buffers, and ZeroMQ reads a large frame straight into the memory that `Arrived.parts` gives out (but for the first
8 KiB, which pass through its read buffer). Small frames are copied once more, to give them aligned memory.

Sockets are pyzmq's; messages pass them in one native call each (`ecrec._native.send_frames`, ``receive_frames``).
"""

import contextlib
import ctypes
import errno
import ipaddress
import math
import os
import socket as sockets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import zmq
from zmq.backend.cython import _zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from ecrec._native import receive_frames, release_sent, send_frames, use_zmq
from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import Address
from ecrec.protocol.wire import FRAME_BYTES_MAX
from ecrec.transport.curve import CurveKeys
from ecrec.transport.poller import Poller

RECONNECT_MS = 20
"""Constant, so that a connection that broke is back, or known to be gone, within `reconnect_grace_ms`."""

DRAIN_MAX = 64
"""Messages taken from one socket before the others, and the clock, have their turn."""

ROUTES_MAX = 4096
"""Remembered connections of those without an inbox; the one not heard of for longest goes first."""

QUEUED_MESSAGES_MAX = 1000
"""High-water mark of each connection, at either end. What the protocol has in flight to one node is far below it; what
comes to it is repeated by its sender: heartbeats to a scheduler that is away, copies for a peer that hangs, answers to
one who asks and does not read."""

COPY_BELOW_BYTES = 1 << 16
"""Frames below this are copied: ZeroMQ may put them anywhere in its read buffer, and keeps all of that alive."""

IPC_SEND_BUFFER_BYTES = 4 << 20
"""The kernel sizes buffers of TCP by need, but those of sockets of the file system are 208 KiB: a push of 3 MB would
be 15 rounds of a writer and a reader that wake each other, in four times the time. Cut to net.core.wmem_max."""

CURVE_OVERHEAD_BYTES = 1024
"""More than what encryption adds to a frame."""

ZAP_ENDPOINT, ZAP_DOMAIN = "inproc://zeromq.zap.01", b"ecrec"
_AS_SERVER, _AS_CLIENT = "server ", "client "
"""Prefixes of the user id that the answer to ZAP gives a connection, before the name of its key."""

IPC_PATH_BYTES_MAX = 107
"""What a socket address of the operating system has room for."""


def check_endpoint(endpoint: str, port_min: int = 1) -> None:
    """Raise ConfigurationError for what is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``, saying why.

    ZeroMQ would take port 99999 for 34463, and cut a path off.
    """
    scheme, separator, rest = endpoint.partition("://")
    if scheme == "tcp" and separator:
        host, _, port = rest.rpartition(":")
        if host and port.isascii() and port.isdigit() and port_min <= int(port) <= 65535:
            return
    elif scheme == "ipc" and separator and rest:
        if len(rest.encode()) <= IPC_PATH_BYTES_MAX:
            return
        raise ConfigurationError(f"endpoint {endpoint!r}: its path has more than {IPC_PATH_BYTES_MAX} bytes")
    raise ConfigurationError(
        f"endpoint {endpoint!r}: expected tcp://HOST:PORT with a port from {port_min} to 65535, or ipc://PATH"
    )


def is_ipc(endpoint: str) -> bool:
    """Whether it is a socket of the file system."""
    return endpoint.startswith("ipc://")


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach what is bound there."""
    if is_ipc(endpoint):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Arrived(NamedTuple):
    """A message: ``parts[0]`` is a buffer, the payload uint8 arrays in memory that is aligned for every number."""

    route: bytes
    """Where an answer goes; empty if it came on an outgoing connection."""
    parts: list[Any]
    may_serve: bool = True
    """False on a connection whose key is not a server's: no shard or scheduler speaks there."""
    user: str = ""
    """Of its key; empty without keys."""
    host: str = ""
    """Where it comes from; empty if that is this machine's file system."""

    @property
    def peer(self) -> str:
        """Who sent it, for people: the name of its key and its host, as far as they are known."""
        if not self.route:
            return "a server"
        return " ".join(["connection", self.route.hex(), *filter(None, (self.user, self.host))])


class Linked(NamedTuple):
    """A watched connection was made; ``again`` if not for the first time: what was on its way may be lost."""

    address: Address
    again: bool


class Unlinked(NamedTuple):
    """A watched connection broke."""

    address: Address


class Denied(NamedTuple):
    """Somebody could not connect to the inbox."""

    reason: str


Happening: TypeAlias = Arrived | Linked | Unlinked | Denied


class _Link:
    """One outgoing connection, and what ZeroMQ tells of it where it is watched."""

    def __init__(self, context: "zmq.Context[Any]", endpoint: str, watched: bool, keys: CurveKeys | None) -> None:
        server_key = keys.server_key(endpoint) if keys else b""
        self.endpoint = endpoint
        self.watched = watched
        self.links = 0
        self.up = False
        """It stands, as far as ZeroMQ has told; only of a watched one."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.handle = self.socket.underlying
        self.monitor: zmq.Socket[bytes] | None = None
        _configure(self.socket, keys)
        if keys:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED if watched else 0
        if is_ipc(endpoint):
            events |= zmq.EVENT_CONNECTED
        try:
            if events:
                self.monitor = self.socket.get_monitor_socket(events)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"cannot connect to {endpoint!r}: {error}") from error

    def close(self) -> None:
        if self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
        self.socket.close(linger=0)


class Links:
    """All sockets of a node.

    ``bind`` is ``tcp://HOST:PORT`` (port 0: any free one), ``ipc://PATH``, or None. Without ``keys`` whoever reaches
    the inbox may speak there, so it is bound where other machines reach it only with ``plain_network``.
    """

    def __init__(self, bind: str | None = None, keys: CurveKeys | None = None, plain_network: bool = False) -> None:
        self._keys = keys
        self._plain_network = plain_network
        self._zap: zmq.Socket[bytes] | None = None
        self._inbox_monitor: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = Poller()
        self._happened: list[Happening] = []
        self._links: dict[Address, _Link] = {}
        self._routes: OrderedDict[Address, bytes] = OrderedDict()
        self._inbox: zmq.Socket[bytes] | None = None
        self.endpoint = ""
        """Where the inbox is, with its real port; empty without one."""
        if bind is not None:
            try:
                self._bind(bind)
            except ConfigurationError:
                self.close()
                raise

    def _bind(self, bind: str) -> None:
        check_endpoint(bind, port_min=0)
        if self._keys is None and not self._plain_network and not is_loopback(bind):
            raise ConfigurationError(
                f"{bind} can be reached from other machines, and without keys whoever reaches it may do anything: give "
                "--curve-dir DIR (made by `ecrec keygen`), listen at tcp://127.0.0.1:PORT, or, on a network where "
                "everybody is trusted, give --allow-plain-network"
            )
        inbox = self._inbox = self._context.socket(zmq.ROUTER)
        _configure(inbox, self._keys)
        inbox.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._keys:
            inbox.setsockopt(zmq.CURVE_SERVER, 1)
            # With a domain, a connection that nobody answers for is refused.
            inbox.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            self._zap = self._context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(ZAP_ENDPOINT)
            self._poller.register(self._zap, self._admit)
        accepted = zmq.EVENT_ACCEPTED if is_ipc(bind) else 0
        self._inbox_monitor = inbox.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | accepted
        )
        self._poller.register(self._inbox_monitor, self._hear_of_inbox)
        try:
            inbox.bind(bind)
        except zmq.ZMQError as error:
            raise ConfigurationError(
                f"cannot listen at {bind!r}: {error}; expected tcp://HOST:PORT with an address of this machine "
                "and a free port (0 takes any), or ipc://PATH in a directory that exists"
            ) from error
        self.endpoint = inbox.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        self._poller.register(inbox, partial(self._receive, inbox, routed=True))

    # ------------------------------------------------------------------ connections
    def connect(self, address: Address, endpoint: str, watched: bool = False) -> bool:
        """Open the connection to an incarnation; at another endpoint than before, in place of the old one.

        Returns, at once, whether the connection is a new one. What is sent waits until the peer is there.
        ConfigurationError for an endpoint that cannot be one.
        """
        old = self._links.get(address)
        if old is not None and old.endpoint == endpoint:
            return False
        check_endpoint(endpoint)
        self._open(address, endpoint, watched, again=False)
        return True

    def _open(self, address: Address, endpoint: str, watched: bool, again: bool) -> None:
        """Open a connection, in place of the one there is.

        ``again``: ZeroMQ gave the old one up, as it does when a handshake fails (no ZeroMQ there, or not with these
        keys), and would block the next message for ever; or its queue is full.
        """
        self.disconnect(address)
        link = self._links[address] = _Link(self._context, endpoint, watched, self._keys)
        link.links = int(again)
        self._poller.register(link.socket, partial(self._receive, link.socket, routed=False))
        if link.monitor is not None:
            self._poller.register(link.monitor, partial(self._hear_of, address, link))

    def is_connected(self, address: Address) -> bool:
        """Whether `connect` was called for the incarnation, and `disconnect` was not since."""
        return address in self._links

    def disconnect(self, address: Address) -> None:
        """Close the connection, dropping what was not sent yet; nothing happens if there is none."""
        link = self._links.pop(address, None)
        if link is None:
            return
        self._poller.unregister(link.socket)
        if link.monitor is not None:
            self._poller.unregister(link.monitor)
        link.close()

    def remember(self, address: Address, route: bytes) -> None:
        """Answers to ``address`` go where it was last heard."""
        if not route:
            return
        self._routes[address] = route
        self._routes.move_to_end(address)
        if len(self._routes) > ROUTES_MAX:
            self._routes.popitem(last=False)

    # ------------------------------------------------------------------ messages
    def send(self, to: Address, parts: Sequence[Any]) -> bool:
        """Send to an incarnation: by its connection, else to where it was heard.

        False: there is no way to it, or too much waits for it already. What is not to get lost is sent again by whoever
        keeps it. A connection that does not stand, or of which that is not known, drops what waits, so that what is
        newest arrives.
        """
        link = self._links.get(to)
        if link is not None:
            error = send_frames(link.handle, None, parts)
            self._poller.look_again(link.socket)
            if error not in (0, errno.EAGAIN):
                raise zmq.ZMQError(error)
            if error and not link.up:
                self._open(to, link.endpoint, link.watched, again=True)
            return not error
        route = self._routes.get(to)
        if route is not None and self.answer(route, parts):
            return True
        self._routes.pop(to, None)
        return False

    def answer(self, route: bytes, parts: Sequence[Any]) -> bool:
        """Send to a connection of the inbox. False if it is gone, or does not read what waits for it."""
        if self._inbox is None or not route:
            return False
        error = send_frames(self._inbox.underlying, route, parts)
        self._poller.look_again(self._inbox)
        if error not in (0, errno.EHOSTUNREACH, errno.EAGAIN):
            raise zmq.ZMQError(error)
        return not error

    def poll(self, timeout_ms: float) -> list[Happening]:
        """Wait for something to happen, at most ``timeout_ms``; return some of it."""
        self._poller.receive()
        self._poller.wait(0 if self._happened else max(0, math.ceil(timeout_ms)))
        happened, self._happened = self._happened, []
        return happened

    def _admit(self) -> bool:
        """Answer whether keys may connect (RFC 27)."""
        assert self._keys and self._zap
        while self._zap.poll(0):
            version, request, _, host, _, mechanism, *credentials = self._zap.recv_multipart()
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
            visitor = self._keys.visitor(key)
            if visitor is None:
                self._zap.send_multipart([version, request, b"400", b"this key is not allowed", b"", b""])
                where = host.decode(errors="replace") or "this machine"
                self._happened.append(Denied(f"refused a connection from {where}: key {key.decode()!r} is not allowed"))
            else:
                user = (_AS_SERVER if visitor.server else _AS_CLIENT) + visitor.name
                self._zap.send_multipart([version, request, b"200", b"OK", user.encode(), b""])
        return False

    def _hear_of_inbox(self) -> bool:
        assert self._inbox_monitor is not None
        for event in _events(self._inbox_monitor):
            if event["event"] == zmq.EVENT_ACCEPTED:
                _widen(event["value"])
                continue
            expected = "CURVE encryption" if self._keys else "ZeroMQ without encryption"
            where = event["endpoint"].decode(errors="replace")
            self._happened.append(Denied(f"refused a connection at {where}: it does not speak {expected}"))
        return False

    def _hear_of(self, address: Address, link: _Link) -> bool:
        assert link.monitor is not None
        for event in _events(link.monitor):
            if event["event"] == zmq.EVENT_CONNECTED:
                _widen(event["value"])
                continue
            link.up = event["event"] != zmq.EVENT_DISCONNECTED
            if not link.up:
                self._happened.append(Unlinked(address))
            else:
                self._happened.append(Linked(address, link.links > 0))
                link.links += 1
        return False

    def _receive(self, socket: Any, routed: bool) -> bool:
        handle = socket.underlying
        for _ in range(DRAIN_MAX):
            message = receive_frames(handle, routed)
            if message is None:
                return False
            route, parts, user, host = message
            may_serve = self._zap is None or not route or user.startswith(_AS_SERVER)
            self._happened.append(Arrived(route, parts, may_serve, user, host))
        return True

    def close(self) -> None:
        """Close everything; what was not sent is dropped."""
        for address in list(self._links):
            self.disconnect(address)
        if self._inbox is not None:
            if self._inbox_monitor is not None:
                self._inbox.disable_monitor()
                self._inbox_monitor.close(linger=0)
                self._inbox_monitor = None
            self._inbox.close(linger=0)
            self._inbox = None
        if self._zap is not None:
            self._zap.close(linger=0)
            self._zap = None
        self._context.term()
        release_sent()


def _zmq_functions() -> dict[str, int]:
    """Addresses of functions of the libzmq that pyzmq uses, whether it is its own or the system's."""
    library = ctypes.CDLL(_zmq.__file__)
    names = ["msg_init", "msg_init_size", "msg_init_data", "msg_send", "msg_recv", "msg_close", "msg_data", "msg_size"]
    found = [f"zmq_{name}" for name in (*names, "msg_more", "msg_gets", "errno")]
    return {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in found}


use_zmq(_zmq_functions(), COPY_BELOW_BYTES)


def _events(monitor: Any) -> Iterator[dict[str, Any]]:
    while monitor.poll(0):
        yield dict(recv_monitor_message(monitor, zmq.NOBLOCK))


def _widen(descriptor: int) -> None:
    """Give a connection of the file system a larger buffer. It may be closed by now, and the number another's."""
    with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family == sockets.AF_UNIX:
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, IPC_SEND_BUFFER_BYTES)


def _configure(socket: "zmq.Socket[bytes]", keys: CurveKeys | None) -> None:
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX + (CURVE_OVERHEAD_BYTES if keys else 0))
    if keys:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)

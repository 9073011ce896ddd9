"""One ZeroMQ connection as a node uses it: how its socket is set up, and what ZeroMQ tells of it."""

import contextlib
import ctypes
import errno
import math
import socket as sockets
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.backend.cython import _zmq
from zmq.utils.monitor import recv_monitor_message

from ecrec._native import use_zmq
from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import SCHEDULER, Address
from ecrec.protocol.wire import FRAME_BYTES_MAX, FRAMES_MAX
from ecrec.transport.curve import CurveKeys
from ecrec.transport.endpoints import is_address, parse

RECONNECT_MS = 20
"""Constant, so that a connection that broke is back, or known to be gone, within `reconnect_grace_ms`."""

UNACKNOWLEDGED_MS = 15_000
"""A connection is given up when the other host's kernel acknowledged nothing for this long: it lost its power, or
moved. By itself TCP would wait for a quarter of an hour."""

QUEUED_MESSAGES_MAX = 1000
"""High-water mark of each connection, at either end. What the protocol has in flight to one node is far below it; what
comes to it is repeated by its sender: heartbeats to a scheduler that is away, copies for a peer that hangs, answers to
one who asks and does not read."""

COPY_BELOW_BYTES = 1 << 16
"""Frames below this are copied: ZeroMQ may put them anywhere in its read buffer, and keeps all of that alive."""

FRAMES_TAKEN_MAX = FRAMES_MAX + 2
"""Of a message that arrives; of one with more the rest is dropped. One too many, so that it is refused."""

IPC_SEND_BUFFER_BYTES = 4 << 20
"""The kernel sizes buffers of TCP by need, but those of sockets of the file system are 208 KiB: a push of 3 MB would
be 15 rounds of a writer and a reader that wake each other, in four times the time. Cut to net.core.wmem_max."""

CURVE_OVERHEAD_BYTES = 1024
"""More than what encryption adds to a frame."""

RENEW_MS = 500.0
"""A name is looked up again after this time while a connection does not stand."""

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

TROUBLES = {
    zmq.EVENT_CLOSED: "nothing accepts connections there",
    zmq.EVENT_CONNECTED: "who listens there does not speak ZeroMQ, or not with these keys",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "who listens there does not answer; is it ecrec-scheduler",
}
"""What ZeroMQ has told last of a connection -> what is wrong with it if no scheduler answers."""
TROUBLES |= {
    event: "the connection is refused: look at the keys of both ends (--curve-dir)"
    for event in (
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )
}  # fmt: skip

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Link:
    """One outgoing connection, and what ZeroMQ tells of it where it is watched, or its host has a name."""

    def __init__(
        self, context: "zmq.Context[Any]", address: Address, endpoint: str, watched: bool, keys: CurveKeys | None
    ) -> None:
        server_key = keys.server_key(endpoint) if keys else b""
        self.address = address
        self.endpoint = endpoint
        self.watched = watched
        self.links = 0
        self.up = False
        """It stands, as far as ZeroMQ has told; only of one with a monitor."""
        self.is_explained = address.role == SCHEDULER
        """It is watched for what goes wrong with it, so that a process without a scheduler can say why."""
        self.trouble = TROUBLES[zmq.EVENT_CLOSED] if self.is_explained else "it does not answer"
        where = parse(endpoint)
        self.port = where.port
        self.name = "" if where.path or is_address(where.host) else where.host
        """Of the host, where it has to be looked up."""
        self.tried: tuple[str, ...] = ()
        """Addresses of the host in the order in which they are tried."""
        self.renew_ms, self.renew_at_ms, self.rotate_at_ms = RENEW_MS, math.inf, math.inf
        self.connected = False
        """ZeroMQ knows where to connect to."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.handle = self.socket.underlying
        self.monitor: zmq.Socket[bytes] | None = None
        configure(self.socket, keys)
        if keys:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        watches = watched or self.name or self.is_explained
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED if watches else 0
        if self.is_explained:
            events |= zmq.EVENT_CONNECTED | zmq.EVENT_CLOSED | HANDSHAKE_FAILED
        if where.path:
            events |= zmq.EVENT_CONNECTED
        try:
            if events:
                self.monitor = self.socket.get_monitor_socket(events)
            if not self.name:
                self.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            if error.errno in NO_DESCRIPTORS:
                raise
            raise ConfigurationError(f"cannot connect to {endpoint!r}: {error}") from error

    def connect(self, endpoint: str) -> None:
        """Where the host is, as an address."""
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.connect(endpoint)
        self.connected = True

    def close(self) -> None:
        if self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.monitor = None
        self.socket.close(linger=0)


def zmq_functions() -> dict[str, int]:
    """Addresses of functions of the libzmq that pyzmq uses, whether it is its own or the system's."""
    library = ctypes.CDLL(_zmq.__file__)
    names = ["msg_init", "msg_init_size", "msg_init_data", "msg_send", "msg_recv", "msg_close", "msg_data", "msg_size"]
    found = [f"zmq_{name}" for name in (*names, "msg_more", "msg_gets", "errno")]
    return {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in found}


use_zmq(zmq_functions(), COPY_BELOW_BYTES, FRAMES_TAKEN_MAX)


def events(monitor: Any) -> Iterator[dict[str, Any]]:
    """What a monitor has told and nobody has read."""
    while monitor.poll(0):
        yield dict(recv_monitor_message(monitor, zmq.NOBLOCK))


def widen(descriptor: int) -> None:
    """Give a connection of the file system a larger buffer. It may be closed by now, and the number another's."""
    with contextlib.suppress(OSError):
        connection = sockets.socket(fileno=descriptor)
        try:
            if connection.family == sockets.AF_UNIX:
                connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, IPC_SEND_BUFFER_BYTES)
        finally:
            connection.detach()


def configure(socket: "zmq.Socket[bytes]", keys: CurveKeys | None) -> None:
    """What every socket of a node has: limits, time-outs, and the keys of the node."""
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS)
    socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES_MAX)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX + (CURVE_OVERHEAD_BYTES if keys else 0))
    if keys:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)

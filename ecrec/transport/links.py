"""The sockets of one node: an inbox, and one outgoing connection for each incarnation it talks to.

* A node that others connect to (scheduler, shard) binds one ROUTER, its *inbox*.
* To send to a node with an inbox, a DEALER is connected to it; answers may come back on the same connection.
* To those without an inbox (workers, tools, processes without a place) answers go out of the ROUTER, to the
  connection on which they were last heard.

With keys (``curve.py``) every connection is encrypted and both ends have proven who they are. A thread (``zap.py``)
then answers ZeroMQ's question whether a key is allowed.

Copies of a payload frame on its way (without keys): none in user space. ZeroMQ sends out of the sender's memory (only
frames below 64 KiB are copied, which is cheaper than to track them), the kernel copies into and out of its socket
buffers, and ZeroMQ reads a large frame straight into the memory that `Arrived.parts` gives out (but for the first
8 KiB, which pass through its read buffer). Small frames are copied once more, to give them aligned memory.

Sockets are pyzmq's; messages pass them in one native call each (`ecrec._native.send_frames`, ``receive_frames``).
"""

import errno
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import zmq

from ecrec._native import receive_frames, release_sent, send_frames
from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import Address
from ecrec.transport import zap
from ecrec.transport.curve import CurveKeys
from ecrec.transport.endpoints import is_ipc, is_loopback, parse, tcp
from ecrec.transport.link import NO_DESCRIPTORS, RENEW_MS, TROUBLES, Link, configure, events, widen
from ecrec.transport.names import Names
from ecrec.transport.poller import Poller
from ecrec.transport.visitors import Visitors, connections_max, end

HANDSHAKE_MS = 5000
"""A connection that does not speak ZeroMQ is closed after this time."""

DRAIN_MAX = 64
"""Messages taken from one socket before the others, and the clock, have their turn."""

ROUTES_MAX = 4096
"""Remembered connections of those without an inbox; the one not heard of for longest goes first."""

RENEW_MS_MAX = 30_000.0
"""A name is looked up again after `RENEW_MS` while a connection does not stand, then after twice as long each time: its
host may have moved."""

FOLLOW_MS = 50.0
"""How often connections that do not stand are looked at."""

ROTATE_MS = 250.0
"""A host with several addresses is tried at the next one when a connection does not stand after this time."""


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
    """Somebody could not connect to the inbox, or a host's name is not known."""

    reason: str


Happening: TypeAlias = Arrived | Linked | Unlinked | Denied


class Links:
    """All sockets of a node.

    ``bind`` is ``tcp://HOST:PORT`` (port 0: any free one), ``ipc://PATH``, or None. Without ``keys`` whoever reaches
    the inbox may speak there, so it is bound where other machines reach it only with ``plain_network``.
    """

    def __init__(self, bind: str | None = None, keys: CurveKeys | None = None, plain_network: bool = False) -> None:
        self._keys = keys
        self._plain_network = plain_network
        self._doorkeeper: zap.Doorkeeper | None = None
        self._inbox_monitor: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = Poller()
        self._happened: list[Happening] = []
        self.drained = True
        """The last `poll` returned all that there was."""
        self._links: dict[Address, Link] = {}
        self._visitors = Visitors(connections_max())
        self._named: dict[Address, Link] = {}
        """Those whose hosts have names."""
        self._unmade: dict[Address, tuple[str, bool]] = {}
        """Those for which there was no descriptor: endpoint, watched."""
        self._names = Names()
        self._unknown: dict[str, str] = {}
        """Host -> what was wrong when its name was looked up last."""
        self._follow_at_ms = 0.0
        self._poller.register_descriptor(self._names.fileno(), self._hear_of_names)
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
        host = parse(bind, port_min=0).host
        if self._keys is None and not self._plain_network and not is_loopback(bind):
            raise ConfigurationError(
                f"{bind} can be reached from other machines, and without keys anyone who reaches it may do anything: "
                "give --curve-dir DIR (made by `ecrec keygen`), listen at tcp://127.0.0.1:PORT, or, on a network where "
                "everybody is trusted, give --allow-plain-network"
            )
        inbox = self._inbox = self._context.socket(zmq.ROUTER)
        configure(inbox, self._keys)
        inbox.setsockopt(zmq.ROUTER_MANDATORY, 1)
        inbox.setsockopt(zmq.IPV6, int(":" in host))
        if self._keys:
            inbox.setsockopt(zmq.CURVE_SERVER, 1)
            # With a domain, a connection that nobody answers for is refused.
            inbox.setsockopt(zmq.ZAP_DOMAIN, zap.DOMAIN)
            self._doorkeeper = zap.Doorkeeper(self._context, self._keys.visitor)
        inbox.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._inbox_monitor = inbox.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_ACCEPTED
            | zmq.EVENT_DISCONNECTED
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
        if (old is not None and old.endpoint == endpoint) or self._unmade.get(address, (None,))[0] == endpoint:
            return False
        parse(endpoint)
        self._open(address, endpoint, watched, again=False)
        return True

    def _open(self, address: Address, endpoint: str, watched: bool, again: bool, at: tuple[str, ...] = ()) -> None:
        """Open a connection, in place of the one there is. ``at``: addresses of its host, in the order to be tried.

        ``again``: ZeroMQ gave the old one up, as it does when a handshake fails (no ZeroMQ there, or not with these
        keys), and would block the next message for ever; or its queue is full; or its host has another address.
        """
        old = self._links.get(address)
        self.disconnect(address)
        try:
            link = self._links[address] = Link(self._context, address, endpoint, watched, self._keys)
        except zmq.ZMQError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
            self._unmade[address] = endpoint, watched
            self._happened.append(Denied(f"no connection to {address} at {endpoint} yet: {error}; trying again"))
            return
        link.links = int(again)
        same = old if old is not None and old.endpoint == endpoint else None
        if same is not None:
            link.trouble = same.trouble  # until it has its own
        if link.name:
            self._named[address] = link
            if same is not None:
                link.renew_ms, link.renew_at_ms, at = same.renew_ms, same.renew_at_ms, at or same.tried
            self._place(link, at or self._names.addresses(link.name))
        self._poller.register(link.socket, partial(self._receive, link.socket, routed=False))
        if link.monitor is not None:
            self._poller.register(link.monitor, partial(self._hear_of, link))

    # ------------------------------------------------------------------ names of hosts
    def _place(self, link: Link, at: tuple[str, ...]) -> None:
        """Connect where the host is, or wait until that is known: what is sent until then is dropped."""
        now_ms = _now_ms()
        if not at:
            # What a stream had to send is sent again when it stands.
            link.links = max(1, link.links)
        else:
            link.tried = at
            link.rotate_at_ms = now_ms + ROTATE_MS if len(at) > 1 else math.inf
            try:
                link.connect(tcp(at[0], link.port))
            except zmq.ZMQError as error:
                self._happened.append(Denied(f"cannot connect to {link.name!r} at {at[0]}: {error}"))
        if link.renew_at_ms == math.inf:
            link.renew_at_ms = now_ms + link.renew_ms

    def _hear_of_names(self) -> bool:
        for host, wrong in self._names.ended().items():
            self._unknown.pop(host, None)
            if wrong:
                self._unknown[host] = wrong
                self._happened.append(Denied(f"the host name {host!r} is not known: {wrong}; looking it up again"))
                continue
            found = self._names.addresses(host)
            for link in [link for link in self._named.values() if link.name == host and not link.up]:
                if not link.connected or set(found) != set(link.tried):
                    self._open(link.address, link.endpoint, link.watched, again=True, at=found)
        return False

    def _follow(self) -> None:
        """Hosts whose connections do not stand may have moved, or be reached at another of their addresses.

        And connections for which there was no descriptor are made when there is one.
        """
        now_ms = _now_ms()
        for address, (endpoint, watched) in list(self._unmade.items()):
            self._open(address, endpoint, watched, again=True)
        self._follow_at_ms = now_ms + FOLLOW_MS
        for link in list(self._named.values()):
            if link.up:
                continue
            if now_ms >= link.renew_at_ms:
                link.renew_ms = min(2 * link.renew_ms, RENEW_MS_MAX)
                link.renew_at_ms = now_ms + link.renew_ms
                self._names.renew(link.name)
            if now_ms >= link.rotate_at_ms:
                at = (*link.tried[1:], link.tried[0])
                self._open(link.address, link.endpoint, link.watched, again=True, at=at)

    def is_connected(self, address: Address) -> bool:
        """Whether `connect` was called for the incarnation, and `disconnect` was not since."""
        return address in self._links or address in self._unmade

    def trouble(self, address: Address) -> str:
        """Why a scheduler at this address does not answer, as far as that can be seen from here."""
        link = self._links.get(address)
        if address in self._unmade:
            return "no descriptor is left for a connection (ulimit -n)"
        if link is None:
            return "no endpoint of it is known"
        if link.name and link.name in self._unknown:
            return f"the host name {link.name!r} is not known: {self._unknown[link.name]}"
        if link.name and not link.tried:
            return f"the host name {link.name!r} is being looked up"
        return link.trouble

    def disconnect(self, address: Address) -> None:
        """Close the connection, dropping what was not sent yet; nothing happens if there is none."""
        link = self._links.pop(address, None)
        self._named.pop(address, None)
        self._unmade.pop(address, None)
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
        if (link is not None and not link.connected) or to in self._unmade:
            return False
        if link is not None:
            error = send_frames(link.handle, None, parts)
            self._poller.look_again(link.socket)
            if error < 0:
                # Of a message that was sent in part nothing arrives when its connection ends.
                self._open(to, link.endpoint, link.watched, again=True)
                return False
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
        if error < 0:
            # The inbox drops what is left of a message whose receiver went; nothing else is known to end here.
            raise zmq.ZMQError(-error, "the inbox took a message in part")
        if error not in (0, errno.EHOSTUNREACH, errno.EAGAIN):
            raise zmq.ZMQError(error)
        return not error

    def poll(self, timeout_ms: float) -> list[Happening]:
        """Wait for something to happen, at most ``timeout_ms``; return some of it."""
        if (self._named or self._unmade) and _now_ms() >= self._follow_at_ms:
            self._follow()
        self._poller.receive()
        self._poller.wait(0 if self._happened else max(0, math.ceil(timeout_ms)))
        self.drained = self._poller.drained
        happened, self._happened = self._happened, []
        if self._doorkeeper is not None:
            happened += map(Denied, self._doorkeeper.refusals())
        return happened

    def _hear_of_inbox(self) -> bool:
        assert self._inbox_monitor is not None
        for event in islice(events(self._inbox_monitor), DRAIN_MAX):
            kind, number = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._admit(number)
                continue
            if kind == zmq.EVENT_DISCONNECTED:
                self._visitors.leaves(number)
                continue
            expected = "CURVE encryption" if self._keys else "ZeroMQ without encryption"
            where = event["endpoint"].decode(errors="replace")
            self._happened.append(Denied(f"refused a connection at {where}: it does not speak {expected}"))
        return bool(self._inbox_monitor.poll(0))

    def _admit(self, descriptor: int) -> None:
        """A connection came; one more than there is room for costs one that never spoke, or is not taken."""
        victim = self._visitors.comes(descriptor, _now_ms())
        if is_ipc(self.endpoint):
            widen(descriptor)
        if victim is None:
            return
        end(victim, self.endpoint)
        self._visitors.leaves(victim)
        which = "the newest is refused" if victim == descriptor else "one that never spoke is closed"
        self._happened.append(
            Denied(
                f"{self._visitors.most} connections are open, as many as the limit on descriptors leaves (ulimit -n): "
                f"{which}"
            )
        )

    def _hear_of(self, link: Link) -> bool:
        assert link.monitor is not None
        for event in events(link.monitor):
            link.trouble = TROUBLES.get(event["event"], link.trouble)
            if event["event"] == zmq.EVENT_CONNECTED:
                widen(event["value"])
            if event["event"] not in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED):
                continue
            link.up = event["event"] != zmq.EVENT_DISCONNECTED
            again = link.links > 0
            link.links += link.up
            if link.name:
                now_ms = _now_ms()
                link.renew_ms, link.renew_at_ms = RENEW_MS, now_ms + RENEW_MS
                link.rotate_at_ms = now_ms + ROTATE_MS if len(link.tried) > 1 else math.inf
            if link.watched:
                self._happened.append(Linked(link.address, again) if link.up else Unlinked(link.address))
        return False

    def _receive(self, socket: Any, routed: bool) -> bool:
        handle = socket.underlying
        for _ in range(DRAIN_MAX):
            message = receive_frames(handle, routed)
            if message is None:
                return False
            route, parts, user, host, descriptor = message
            if descriptor >= 0:
                self._visitors.speaks(descriptor)
            may_serve = self._doorkeeper is None or not route or user.startswith(zap.AS_SERVER)
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
        self._names.close()
        self._context.term()
        if self._doorkeeper is not None:
            self._doorkeeper.join()
        release_sent()


def _now_ms() -> float:
    return time.monotonic() * 1e3

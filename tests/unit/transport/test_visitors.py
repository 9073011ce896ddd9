"""Connections of an inbox are bounded, and peers find room whoever else is there."""

import errno
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from ecrec.protocol.messages import SHARD, Address
from ecrec.transport import links as links_module
from ecrec.transport.links import Arrived, Denied, Linked, Links
from ecrec.transport.visitors import UNSPOKEN_MS, Visitors, connections_max

DEADLINE_S = 20.0
PEER = Address(SHARD, 1, 1)


def test_those_that_never_spoke_go_first() -> None:
    visitors = Visitors(3)
    assert [visitors.comes(number, 0.0) for number in (5, 6, 7)] == [None] * 3
    visitors.speaks(5)
    assert visitors.comes(8, UNSPOKEN_MS - 1) == 8, "all others may yet say something"
    visitors.leaves(8)
    assert visitors.comes(8, UNSPOKEN_MS) == 6
    visitors.leaves(6)
    visitors.speaks(7)
    visitors.speaks(8)
    assert visitors.comes(9, 10 * UNSPOKEN_MS) == 9, "nobody is closed for one that did not speak yet"
    visitors.leaves(9)
    visitors.leaves(5)
    assert visitors.comes(5, 11 * UNSPOKEN_MS) is None, "the number is another's now"
    assert len(visitors) == 3


def test_half_of_the_descriptors_or_512_are_kept() -> None:
    assert [connections_max(limit) for limit in (64, 256, 1024, 4096)] == [32, 128, 512, 3584]
    assert connections_max(resource.RLIM_INFINITY) > 1 << 16


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Links]]:
    made: list[Links] = []
    monkeypatch.setattr(links_module, "connections_max", lambda: 4)

    def make(bind: str | None = None) -> Links:
        made.append(Links(bind))
        return made[-1]

    yield make
    for each in made:
        each.close()


def polled_until(links: Links, condition: Callable[[list[object]], bool], others: tuple[Links, ...] = ()) -> None:
    seen: list[object] = []
    deadline = time.monotonic() + DEADLINE_S
    while not condition(seen):
        assert time.monotonic() < deadline, seen
        seen += links.poll(10)
        for other in others:
            other.poll(0)


@pytest.mark.parametrize("speaks_zeromq", [False, True])
def test_idle_connections_keep_no_peer_out(node, monkeypatch: pytest.MonkeyPatch, speaks_zeromq: bool) -> None:
    monkeypatch.setattr("ecrec.transport.visitors.UNSPOKEN_MS", 1.0)
    inbox = node("tcp://127.0.0.1:0")
    port = int(inbox.endpoint.rpartition(":")[2])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    idle: list[socket.socket | zmq.Socket[bytes]] = []
    try:
        for _ in range(12):
            if speaks_zeromq:
                dealer = context.socket(zmq.DEALER)
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(inbox.endpoint)
                idle.append(dealer)
            else:
                idle.append(socket.create_connection(("127.0.0.1", port)))
        polled_until(inbox, lambda seen: any("ulimit -n" in getattr(each, "reason", "") for each in seen))
        peers = [node() for _ in range(3)]
        for peer in peers:
            peer.connect(PEER, inbox.endpoint, watched=True)
        heard = set()
        deadline = time.monotonic() + DEADLINE_S
        while len(heard) < 3:
            assert time.monotonic() < deadline, heard
            for number, peer in enumerate(peers):
                peer.send(PEER, [b"%d" % number])
                peer.poll(0)
            heard |= {bytes(each.parts[0]) for each in inbox.poll(10) if isinstance(each, Arrived)}
        assert len(inbox._visitors) <= 5
    finally:
        for one in idle:
            one.close()
        context.term()


def test_a_connection_without_a_descriptor_is_made_when_there_is_one(node, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, sender = node("tcp://127.0.0.1:0"), node()
    make, refusals = sender._context.socket, iter(range(2))

    def socket_of(kind: int) -> object:
        if next(refusals, None) is not None:
            raise zmq.ZMQError(errno.EMFILE)
        return make(kind)

    monkeypatch.setattr(sender._context, "socket", socket_of)
    assert sender.connect(PEER, inbox.endpoint, watched=True)
    assert sender.is_connected(PEER) and not sender.connect(PEER, inbox.endpoint, watched=True)
    assert not sender.send(PEER, [b"dropped"])
    seen: list[object] = []

    def made(happened: list[object]) -> bool:
        seen[:] = happened
        return Linked(PEER, again=True) in happened

    polled_until(sender, made, (inbox,))
    assert any(isinstance(each, Denied) and "trying again" in each.reason for each in seen)
    sender.disconnect(PEER)
    assert not sender.is_connected(PEER)


def test_what_has_the_number_of_a_connection_by_now_is_left_alone(node) -> None:
    inbox = node("tcp://127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as mine:
        other, _ = server.accept()
        links_module.end(mine.fileno(), inbox.endpoint)
        links_module.end(1 << 20, inbox.endpoint)
        other.sendall(b"still there")
        assert mine.recv(100) == b"still there"
        other.close()

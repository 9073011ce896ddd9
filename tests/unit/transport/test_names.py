"""Names of hosts are looked up beside the loop, and hosts may move."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from ecrec.protocol.messages import SHARD, Address
from ecrec.transport import links as links_module
from ecrec.transport.links import Arrived, Denied, Happening, Linked, Links, Unlinked
from ecrec.transport.names import THREADS_MAX, Names, look_up

DEADLINE_S = 20.0
PEER = Address(SHARD, 1, 1)


class Table:
    """A name server that can be changed, and does not answer for names that are mute."""

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[str, ...]] = {}
        self.mute: set[str] = set()
        self.asked: list[str] = []
        self.over = threading.Event()

    def look_up(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        if host in self.mute:
            self.over.wait(60)
        if host not in self.hosts:
            raise OSError(None, "Name or service not known")
        return self.hosts[host]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    made = Table()
    monkeypatch.setattr(links_module, "Names", lambda: Names(made.look_up))
    yield made
    made.over.set()


@pytest.fixture
def node() -> Iterator[Callable[..., Links]]:
    made: list[Links] = []

    def make(bind: str | None = None) -> Links:
        made.append(Links(bind, plain_network=True))
        return made[-1]

    yield make
    for each in made:
        each.close()


def port_of(links: Links) -> str:
    return links.endpoint.rpartition(":")[2]


def until(links: Links, *kinds: type, others: tuple[Links, ...] = ()) -> Happening:
    """Poll until one of these happens."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for happening in links.poll(10):
            if isinstance(happening, kinds):
                return happening
        for other in others:
            other.poll(0)
    raise AssertionError(f"no {kinds}")


def arrives(sender: Links, receiver: Links) -> None:
    """What the one sends again and again comes to the other."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        sender.send(PEER, [b"hello"])
        sender.poll(10)
        if any(isinstance(happening, Arrived) for happening in receiver.poll(10)):
            return
    raise AssertionError("nothing arrived")


def test_a_name_that_is_known_at_once_drops_nothing(node, table: Table) -> None:
    receiver, sender = node("tcp://127.0.0.1:0"), node()
    table.hosts["near"] = ("127.0.0.1",)
    assert sender.connect(PEER, f"tcp://near:{port_of(receiver)}", watched=True)
    assert sender.send(PEER, [b"first"])
    assert isinstance(until(receiver, Arrived), Arrived)
    assert until(sender, Linked) == Linked(PEER, again=False)


def test_a_name_that_nobody_answers_holds_nobody_up(node, table: Table) -> None:
    receiver, sender = node("tcp://127.0.0.1:0"), node()
    table.mute.update(f"gone-{i}" for i in range(THREADS_MAX - 1))
    before = time.monotonic()
    for i in range(THREADS_MAX - 1):
        sender.connect(Address(SHARD, 100 + i, 1), f"tcp://gone-{i}:7000", watched=True)
        assert not sender.send(Address(SHARD, 100 + i, 1), [b"dropped"])
    table.hosts["near"] = ("127.0.0.1",)
    sender.connect(PEER, f"tcp://near:{port_of(receiver)}", watched=True)
    arrives(sender, receiver)
    assert time.monotonic() - before < DEADLINE_S / 2, "a look-up takes 60 s"
    assert all(sender.is_connected(Address(SHARD, 100 + i, 1)) for i in range(THREADS_MAX - 1))


def test_a_name_that_is_known_later_is_connected_again(node, table: Table) -> None:
    receiver, sender = node("tcp://127.0.0.1:0"), node()
    sender.connect(PEER, f"tcp://late:{port_of(receiver)}", watched=True)
    assert not sender.send(PEER, [b"dropped"])
    denied = until(sender, Denied)
    assert isinstance(denied, Denied) and "'late' is not known: Name or service not known" in denied.reason
    table.hosts["late"] = ("127.0.0.1",)
    # What was sent before was dropped: a stream is to send it again.
    assert until(sender, Linked, others=(receiver,)) == Linked(PEER, again=True)


def test_a_host_that_moved_is_found_again(node, table: Table) -> None:
    first, second, sender = node("tcp://127.0.0.1:0"), None, node()
    port = port_of(first)
    table.hosts["moves"] = ("127.0.0.1",)
    sender.connect(PEER, f"tcp://moves:{port}", watched=True)
    until(sender, Linked, others=(first,))
    first.close()
    until(sender, Unlinked)
    second = node(f"tcp://127.0.0.2:{port}")
    table.hosts["moves"] = ("127.0.0.2",)
    assert until(sender, Linked, others=(second,)) == Linked(PEER, again=True)
    arrives(sender, second)


class Clock:
    """A second for the names, as fast as they can be polled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 1e6
        monkeypatch.setattr(links_module, "_now_ms", lambda: self.now_ms)

    def a_second(self, links: Links) -> None:
        for _ in range(100):
            self.now_ms += 10
            links.send(PEER, [b"x"])
            links.poll(0)


def test_one_that_stands_is_not_looked_up_again(node, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, sender = node("tcp://127.0.0.1:0"), node()
    table.hosts["near"] = ("127.0.0.1",)
    sender.connect(PEER, f"tcp://near:{port_of(receiver)}", watched=True)
    until(sender, Linked, others=(receiver,))
    asked = len(table.asked)
    Clock(monkeypatch).a_second(sender)
    assert len(table.asked) == asked


def test_look_ups_of_one_who_is_away_become_rare(node, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sender = node()
    sender.connect(PEER, "tcp://away:1", watched=True)
    counts = []
    for _ in range(40):
        before = len(table.asked)
        clock.a_second(sender)
        deadline = time.monotonic() + DEADLINE_S
        while sender._names._under_way:
            assert time.monotonic() < deadline
        counts.append(len(table.asked) - before)
    # After 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 seconds, and not each 20 ms.
    assert sum(counts) <= 7 and counts[0] >= 1 and sum(counts[8:]) == 2


def test_the_address_that_answers_is_found_among_several(node, table: Table) -> None:
    receiver, sender = node("tcp://127.0.0.3:0"), node()
    table.hosts["several"] = ("127.0.0.1", "::1", "127.0.0.3")
    sender.connect(PEER, f"tcp://several:{port_of(receiver)}")
    arrives(sender, receiver)


def test_connections_of_ipv6(node) -> None:
    if not socket.has_ipv6 or not _has_loopback_of_ipv6():
        pytest.skip("this machine has no IPv6")
    receiver, sender = node("tcp://[::1]:0"), node()
    assert receiver.endpoint.startswith("tcp://[::1]:")
    sender.connect(PEER, receiver.endpoint, watched=True)
    arrives(sender, receiver)
    both = node("tcp://[::]:0")
    for host in ("[::1]", "127.0.0.1"):
        another = node()
        another.connect(PEER, f"tcp://{host}:{port_of(both)}")
        arrives(another, both)


def _has_loopback_of_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_look_up_that_ends_after_the_end_does_no_harm(table: Table) -> None:
    names = Names(table.look_up)
    table.mute.add("mute")
    assert names.addresses("mute") == ()
    names.close()
    names.close()
    table.over.set()
    deadline = time.monotonic() + DEADLINE_S
    while any(thread.name == "ecrec-names" for thread in threading.enumerate()):
        assert time.monotonic() < deadline


def test_without_threads_the_name_is_tried_later(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    table.hosts["near"] = ("127.0.0.1",)
    names = Names(table.look_up)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert names.addresses("near") == ()
        assert names.ended() == {"near": "can't start new thread"}
    deadline = time.monotonic() + DEADLINE_S
    while names.addresses("near") != ("127.0.0.1",):
        assert time.monotonic() < deadline
    names.close()


def test_what_the_system_knows() -> None:
    assert "127.0.0.1" in look_up("localhost")
    assert look_up("127.0.0.1") == ("127.0.0.1",)
    with pytest.raises((OSError, UnicodeError)):
        look_up("a" * 64)
    assert zmq.zmq_version_info() >= (4, 2), "TCP_MAXRT"

"""What a process does around its machine, without sockets: two cores joined by a wire that can damage and lose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from ecrec.errors import ClusterError
from ecrec.protocol import messages as m
from ecrec.protocol import node_core, wire
from ecrec.protocol.events import (
    Connect,
    Disconnected,
    Event,
    HalfHandledError,
    Persist,
    Received,
    Send,
    Tick,
)
from ecrec.protocol.node_core import ASK_MS, HELD_MS, NodeCore
from ecrec.protocol.offenders import OFFENCES_MAX
from ecrec.protocol.stream import RESEND_MS

A, B = m.Address(m.SHARD, 0, 1), m.Address(m.SHARD, 1, 1)
SCHEDULER, WORKER, TOOL = m.Address(m.SCHEDULER, 0, 0), m.Address(m.WORKER, 0, 1), m.Address(m.TOOL, 5, 0)


class Message(NamedTuple):
    route: bytes
    parts: list[Any]
    may_serve: bool = True
    peer: str = "somebody"


class FakeMachine:
    def __init__(self, address: m.Address) -> None:
        self.address = address
        self.events: list[Event] = []
        self.on: Callable[[Event], Any] = lambda event: []

    def handle(self, event: Event, now_ms: float) -> Any:
        self.events.append(event)
        return self.on(event)

    @property
    def numbers(self) -> list[int]:
        return [e.message.number for e in self.events if isinstance(e, Received)]  # type: ignore[attr-defined]


class FakePort:
    """Keeps what goes out, in order."""

    def __init__(self) -> None:
        self.connected: dict[m.Address, str] = {}
        self.sent: list[tuple[m.Address, list[Any]]] = []
        self.answered: list[tuple[bytes, list[Any]]] = []
        self.complaints: list[str] = []
        self.notes: list[str] = []
        self.persisted: list[bytes] = []
        self.reachable = True

    def connect(self, address: m.Address, endpoint: str, watched: bool) -> bool:
        new = self.connected.get(address) != endpoint
        self.connected[address] = endpoint
        return new

    def disconnect(self, address: m.Address) -> None:
        self.connected.pop(address, None)

    def is_connected(self, address: m.Address) -> bool:
        return address in self.connected

    def remember(self, address: m.Address, route: bytes) -> None: ...

    def send(self, to: m.Address, parts: Any) -> bool:
        self.sent.append((to, [bytes(part) for part in parts]))
        return self.reachable

    def answer(self, route: bytes, parts: Any) -> bool:
        self.answered.append((route, list(parts)))
        return True

    def persist(self, state: bytes) -> None:
        if state == b"full":
            raise ClusterError("no room")
        self.persisted.append(state)

    def note(self, level: str, text: str) -> None:
        self.notes.append(text)

    def complain(self, kind: str, text: str, now_ms: float) -> None:
        self.complaints.append(text)

    def take(self) -> list[list[Any]]:
        sent, self.sent = self.sent, []
        return [parts for _, parts in sent]


def core(address: m.Address, **options: Any) -> tuple[NodeCore, FakeMachine, FakePort]:
    machine, port = FakeMachine(address), FakePort()
    return NodeCore(machine, port, **options), machine, port


def pair() -> tuple[NodeCore, FakePort, NodeCore, FakeMachine, FakePort]:
    """A, which is connected to B, and B, which is connected to A."""
    a, _, port_a = core(A)
    b, machine_b, port_b = core(B)
    a.perform([Connect(B, "b")], 0.0)
    b.perform([Connect(A, "a")], 0.0)
    return a, port_a, b, machine_b, port_b


def pass_on(port: FakePort, to: NodeCore, now_ms: float) -> None:
    for parts in port.take():
        to.arrived(Message(b"route", parts), now_ms)


def windows(first: int, last: int) -> list[Send]:
    return [Send(B, m.WindowAck(number)) for number in range(first, last)]


# ------------------------------------------------------------------ errors of the machine
def fails(error: Exception) -> Callable[[Event], Any]:
    def on(event: Event) -> Any:
        raise error

    return on


@pytest.mark.parametrize("error", [RuntimeError("no"), AssertionError(), KeyError(3), OSError(2, "x")])
@pytest.mark.parametrize("source", [B, SCHEDULER])
def test_an_error_at_a_message_of_a_server_ends_the_process(source: m.Address, error: Exception) -> None:
    """Its effects are lost and its state may have moved; of a stream it would be a hole."""
    a, machine, _ = core(A)
    machine.on = fails(error)
    with pytest.raises(HalfHandledError, match=f"while handling a WindowAck from .*{type(error).__name__}"):
        a.arrived(Message(b"r", wire.encode(m.WindowAck(1), (), source, A, 1)), 0.0)


@pytest.mark.parametrize("source", [B, SCHEDULER])
def test_what_a_shards_check_refuses_is_said_and_ends_nothing(source: m.Address) -> None:
    """A shard raises these before anything has moved, and takes nothing more of that peer's stream."""
    a, machine, port = core(A)
    machine.on = fails(ValueError("7 rows"))
    a.arrived(Message(b"r", wire.encode(m.WindowAck(1), (), source, A, 1)), 0.0)
    assert any("could not be handled: ValueError: 7 rows" in text for text in port.complaints)


@pytest.mark.parametrize("error", [ValueError("7 rows"), KeyError(3), RuntimeError("no")])
def test_what_a_schedulers_check_refuses_is_said_and_ends_nothing(error: Exception) -> None:
    """Nothing has moved, and nothing is a hole: whoever it is of, all that is said to a scheduler is said again."""
    scheduler, machine, port = core(SCHEDULER)
    machine.on = fails(error)
    for source in (A, WORKER):
        scheduler.arrived(Message(b"r", wire.encode(m.ClusterQuery(1), (), source, SCHEDULER)), 0.0)
    assert len([text for text in port.complaints if "could not be handled" in text]) == 2
    machine.on = fails(HalfHandledError("it stopped in the middle"))
    with pytest.raises(HalfHandledError):
        scheduler.arrived(Message(b"r", wire.encode(m.ClusterQuery(1), (), A, SCHEDULER)), 0.0)


def test_an_error_at_a_tick_ends_the_process() -> None:
    a, machine, _ = core(A)
    machine.on = fails(ValueError("7 rows"))
    with pytest.raises(HalfHandledError, match="while handling a Tick: ValueError: 7 rows"):
        a.tick(0.0)


@pytest.mark.parametrize("source", [WORKER, TOOL])
def test_what_a_worker_or_tool_asks_for_is_refused_and_counted(source: m.Address) -> None:
    a, machine, port = core(A)
    machine.on = fails(IndexError("row 12 of table 3"))
    for _ in range(OFFENCES_MAX):
        a.arrived(Message(b"r", wire.encode(m.Hello(1), (), source, A)), 0.0)
    assert "could not be handled: IndexError: row 12 of table 3" in port.complaints[0]
    assert "is ignored for 30 s after 16 bad messages" in port.complaints[-1]
    machine.on = fails(HalfHandledError("the window is half written"))
    with pytest.raises(HalfHandledError, match="half written"):
        a.arrived(Message(b"another", wire.encode(m.Hello(1), (), source, A)), 0.0)


def test_a_worker_outlives_what_a_server_says_wrongly() -> None:
    worker, machine, port = core(WORKER)
    machine.on = fails(ValueError("views of group 7, there are 2"))
    worker.arrived(Message(b"", wire.encode(m.Views(7, []), (), SCHEDULER, WORKER)), 0.0)
    assert "views of group 7" in port.complaints[0]


# ------------------------------------------------------------------ what cannot be sent
def test_what_cannot_be_sent_to_a_shard_ends_the_process() -> None:
    a, port, _, _, _ = pair()
    with pytest.raises(HalfHandledError, match=r"a Captured cannot be sent to shard 1 .*Captured has 2 frames, not 1"):
        a.perform([Send(B, m.Captured(0, 1), (b"",))], 0.0)
    assert port.take() == []


def test_an_answer_that_cannot_be_sent_is_a_refusal() -> None:
    a, _, port = core(A)
    a.perform([Send(WORKER, m.Rows(9), (np.zeros((4, 4))[:, 1],))], 0.0)
    (parts,) = port.take()
    answer = wire.decode(parts).message
    assert isinstance(answer, m.PullRefused) and answer.request == 9 and "not contiguous" in answer.reason


# ------------------------------------------------------------------ damage on the way
def damaged(parts: list[Any]) -> list[Any]:
    """Such that it cannot be decoded."""
    return [parts[0][:-1]]


def test_a_damaged_frame_is_sent_again_at_once() -> None:
    """Not only after half a second of silence; and it was not taken from its stream."""
    a, port_a, b, machine_b, port_b = pair()
    a.perform(windows(0, 3), 0.0)
    first, second, third = port_a.take()
    b.arrived(Message(b"route", first), 1.0)
    b.arrived(Message(b"route", damaged(second)), 2.0)
    assert machine_b.numbers == [0]
    pass_on(port_b, a, 3.0)
    b.arrived(Message(b"route", third), 3.0)
    pass_on(port_a, b, 4.0)
    assert machine_b.numbers == [0, 1, 2]
    assert b.streams.ack_for(A) == 3
    assert OFFENCES_MAX > 1 and not any("ignored" in text for text in (*port_a.complaints, *port_b.complaints))


def test_a_gap_is_asked_for_once_each_number_and_not_more_often_than_so() -> None:
    a, port_a, b, machine_b, port_b = pair()
    a.perform(windows(0, 50), 0.0)
    for parts in port_a.take()[1:]:
        b.arrived(Message(b"route", parts), 1.0)
    assert machine_b.numbers == []
    assert len(port_b.sent) == 1
    asked = port_b.take()
    for _ in range(3):
        a.arrived(Message(b"route", asked[0]), 2.0)
    assert len(port_a.sent) == 50
    pass_on(port_a, b, 2.0 + ASK_MS)
    assert machine_b.numbers == list(range(50))


def test_a_gap_that_stays_is_filled_when_the_peer_was_silent_for_long() -> None:
    a, port_a, b, machine_b, port_b = pair()
    a.perform(windows(0, 3), 0.0)
    port_a.take()
    a.tick(RESEND_MS)
    pass_on(port_a, b, RESEND_MS)
    assert machine_b.numbers == [0, 1, 2]
    del port_b


def test_a_peer_with_many_damaged_frames_is_not_ignored() -> None:
    a, port_a, b, machine_b, port_b = pair()
    for number in range(3 * OFFENCES_MAX):
        a.perform(windows(number, number + 1), number * 100.0)
        (parts,) = port_a.take()
        if number:
            b.arrived(Message(b"route", damaged(parts)), number * 100.0)
            pass_on(port_b, a, number * 100.0)
            pass_on(port_a, b, number * 100.0 + 1)
        else:
            b.arrived(Message(b"route", parts), 0.0)
    assert machine_b.numbers == list(range(3 * OFFENCES_MAX))


# ------------------------------------------------------------------ order, places, terms
def test_nothing_is_done_after_a_failed_persist() -> None:
    scheduler, _, port = core(SCHEDULER, grace_ms=100.0)
    with pytest.raises(ClusterError, match="no room"):
        scheduler.perform([Persist(b"good"), Persist(b"full"), Send(A, m.Views(0, []))], 0.0)
    assert port.persisted == [b"good"] and not port.sent


def test_messages_wait_for_a_process_that_is_being_placed_but_not_for_ever() -> None:
    spare, machine, _ = core(m.Address(m.SHARD, -1, 0))
    spare.arrived(Message(b"r", wire.encode(m.WindowAck(1), (), A, B, 1)), 0.0)
    spare.arrived(Message(b"w", wire.encode(m.Hello(1), (), WORKER, B)), HELD_MS)
    spare.tick(HELD_MS)
    assert machine.events == [Tick()] and len(spare.held) == 1

    def place(event: Event) -> Any:
        machine.address = B
        return []

    machine.on = place
    spare.arrived(Message(b"s", wire.encode(m.Views(0, []), (), SCHEDULER, B)), HELD_MS)
    assert [type(e.message) for e in machine.events[1:]] == [m.Views, m.Hello]  # type: ignore[union-attr]


def test_messages_that_wait_for_a_place_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_core, "HELD_BYTES_MAX", 1000)
    spare, _, _ = core(m.Address(m.SHARD, -1, 0))
    parts = wire.encode(m.Window(1, 0, {}, {}, []), (b"", bytes(300)), A, B, 1)
    size = sum(memoryview(part).nbytes for part in parts)
    for number in range(8):
        spare.arrived(Message(b"r", parts), 10.0 * number)
    assert len(spare.held) == -(-1000 // size) and spare.held_bytes == len(spare.held) * size
    spare.tick(HELD_MS)
    assert spare.held_bytes == len(spare.held) * size
    spare.tick(HELD_MS + 100.0)
    assert not spare.held and not spare.held_bytes


def test_a_deposed_scheduler_is_not_heard() -> None:
    a, machine, port = core(A)
    old, new = (core(SCHEDULER, grace_ms=100.0, term=term) for term in (1, 2))
    for scheduler, number in ((old, 1), (new, 2), (old, 3), (new, 4)):
        scheduler[0].perform([Send(A, m.Views(number, []))], 0.0)
        (parts,) = scheduler[2].take()
        a.arrived(Message(b"s", parts), 0.0)
    assert [e.message.group for e in machine.events if isinstance(e, Received)] == [1, 2, 4]  # type: ignore[attr-defined]
    assert {e.source for e in machine.events if isinstance(e, Received)} == {SCHEDULER}
    assert "epoch 2 leads" in port.complaints[0]


def test_a_connection_that_stays_closed_for_the_grace_is_reported_once() -> None:
    scheduler, machine, _ = core(SCHEDULER, grace_ms=100.0)
    scheduler.perform([Connect(A, "a"), Connect(B, "b")], 0.0)
    scheduler.unlinked(A, 10.0)
    scheduler.unlinked(B, 10.0)
    scheduler.linked(B, again=True, now_ms=50.0)
    for now_ms in (60.0, 109.0, 110.0, 300.0):
        scheduler.tick(now_ms)
    assert [e for e in machine.events if isinstance(e, Disconnected)] == [Disconnected(A)]

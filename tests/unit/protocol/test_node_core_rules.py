"""A node around its machine, one rule at a time: what ends the process, who may speak, what is sent again and when."""

from typing import Any

import pytest
from test_node_core import SCHEDULER, TOOL, WORKER, A, B, Message, core, damaged, fails, pair, pass_on, windows

from ecrec.protocol import messages as m
from ecrec.protocol import node_core, wire
from ecrec.protocol.events import Connect, Connection, Disconnect, Disconnected, HalfHandledError, Received, Send, Tick
from ecrec.protocol.node_core import ACKS_MS, ASK_MS
from ecrec.protocol.offenders import IGNORE_MS, OFFENCE_SPAN_MS, OFFENCES_MAX, OFFENDERS_MAX, Offenders
from ecrec.protocol.stream import ASKED_MS, Numbered, OutStream

SPARE = m.Address(m.SHARD, -1, 0)
OLD = A._replace(epoch=1)
NEW = A._replace(epoch=2)


# ------------------------------------------------------------------ what ends the process
@pytest.mark.parametrize("error", [MemoryError("no room"), HalfHandledError("it stopped in the middle")])
def test_want_of_memory_and_what_stopped_in_the_middle_are_raised_as_they_are(error: Exception) -> None:
    a, machine, _ = core(A)
    machine.on = fails(error)
    calls: list[Any] = [
        lambda: a.tick(0.0),
        lambda: a.handle(Tick(), 0.0),
        lambda: a.arrived(Message(b"r", wire.encode(m.WindowAck(1), (), B, A, 1)), 0.0),
        lambda: a.while_busy(0.0),
    ]
    machine.while_busy = fails(error)  # type: ignore[attr-defined]
    for call in calls:
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


def test_any_other_error_in_a_pause_ends_the_process_too() -> None:
    a, machine, _ = core(A)
    machine.while_busy = fails(ValueError("7 rows"))  # type: ignore[attr-defined]
    with pytest.raises(HalfHandledError, match="while handling a pause: ValueError: 7 rows"):
        a.while_busy(0.0)


def test_only_what_is_missing_in_a_stream_ends_the_process() -> None:
    """What a scheduler or worker cannot send to a shard is said, and said again by whoever needs it."""
    wrong = Send(B, m.Captured(0, 1), (b"",))
    for address in (SCHEDULER, WORKER):
        one, _, port = core(address)
        one.perform([wrong], 0.0)
        assert port.take() == [] and "not sent to shard 1" in port.notes[-1]
    a, _, _ = core(A)
    with pytest.raises(HalfHandledError):
        a.perform([wrong], 0.0)


# ------------------------------------------------------------------ who may speak
@pytest.mark.parametrize(
    ("source", "may_serve", "is_heard"),
    [(B, True, True), (B, False, False), (SCHEDULER, True, True), (SCHEDULER, False, False), (WORKER, False, True),
     (TOOL, False, True), (WORKER, True, True)],
)  # fmt: skip
def test_who_has_no_servers_key_is_no_server(source: m.Address, may_serve: bool, is_heard: bool) -> None:
    a, machine, port = core(A)
    a.arrived(Message(b"r", wire.encode(m.Hello(1), (), source, A, int(source == B)), may_serve), 0.0)
    assert bool(machine.events) == is_heard
    assert any("its key is not a server's" in text for text in port.complaints) != is_heard


def test_a_lone_acknowledgement_is_no_message() -> None:
    """Also of a shard to a process that keeps no streams."""
    scheduler, machine, _ = core(SCHEDULER)
    scheduler.arrived(Message(b"r", wire.seal(wire.ACK_ONLY, A, SCHEDULER, 0, 3)), 0.0)
    assert machine.events == []


def test_connections_of_peers_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_core, "PEER_ROUTES_MAX", 2)
    a, machine, _ = core(A)
    for number in range(1, 6):
        a.arrived(Message(b"route %d" % number, wire.encode(m.WindowAck(number), (), B, A, number)), 0.0)
        assert 1 <= len(a._peer_routes) <= 2
    assert machine.numbers == [1, 2, 3, 4, 5]
    for number in range(6, 9):
        a._ask_again(m.Address(m.SHARD, number, 1), 0.0)
        assert 1 <= len(a._asked_ms) <= 2


# ------------------------------------------------------------------ what is asked again
def test_a_peer_is_asked_again_after_a_while_and_an_old_incarnation_is_not() -> None:
    b, _, port = core(B)
    b.perform([Connect(NEW, "a")], 0.0)
    for now_ms, asked in ((0.0, 1), (ASK_MS - 1.0, 0), (ASK_MS, 1), (2 * ASK_MS - 1.0, 0), (2 * ASK_MS, 1)):
        b._ask_again(NEW, now_ms)
        assert len(port.take()) == asked, now_ms
    b._ask_again(OLD, 9_000.0)
    assert port.take() == []


def test_a_damaged_frame_of_an_incarnation_that_is_over_is_not_asked_for_again() -> None:
    a, port_a, b, _, port_b = pair()
    a.perform(windows(0, 2), 0.0)
    first, second = port_a.take()
    b.arrived(Message(b"route", first), 0.0)
    b.perform([Disconnect(A), Connect(NEW, "new")], 0.0)
    port_b.take()
    b.arrived(Message(b"route", damaged(second)), 500.0)
    assert port_b.take() == []


def test_streams_are_acknowledged_at_the_second_look_and_looked_at_from_time_to_time() -> None:
    a, port_a, b, _, port_b = pair()
    b.tick(0.0)
    a.perform(windows(0, 1), 0.0)
    pass_on(port_a, b, 1.0)
    sent = []
    for now_ms in (20.0, ACKS_MS - 1.0, ACKS_MS, 2 * ACKS_MS - 1.0, 2 * ACKS_MS, 9 * ACKS_MS):
        b.tick(now_ms)
        sent += [now_ms] * len(port_b.take())
    assert sent == [2 * ACKS_MS]


# ------------------------------------------------------------------ streams and incarnations
def test_a_process_that_gets_a_place_begins_all_its_streams_anew() -> None:
    """What was counted of it before was another incarnation's."""
    spare, machine, port = core(SPARE)
    spare.perform([Connect(A, "a")], 0.0)
    spare.streams.out(A).append(wire.pack(m.WindowAck(1), ()), 0.0)
    assert spare.streams.take(A, 1)

    def place(event: Any) -> Any:
        machine.address = B
        return []

    machine.on = place
    spare.arrived(Message(b"s", wire.encode(m.Views(0, []), (), SCHEDULER, B)), 0.0)
    assert spare.address == B and spare.streams.ack_for(A) == 0
    spare.perform([Send(A, m.WindowAck(7))], 0.0)
    assert [wire.decode(parts).sequence for parts in port.take()] == [1]


def test_nothing_is_kept_for_an_incarnation_that_is_over() -> None:
    a, _, port = core(A)
    a.perform([Connect(B, "b"), Disconnect(B)], 0.0)
    a.perform([Send(B, m.WindowAck(1))], 0.0)
    assert port.take() == [] and a.streams.out(B).unacknowledged == 0
    newer = B._replace(epoch=2)
    a.perform([Connect(newer, "b"), Send(newer, m.WindowAck(1))], 0.0)
    assert len(port.take()) == 1


def test_what_is_to_be_sent_again_waits_for_a_connection() -> None:
    a, _, port = core(A)
    a.perform([Send(B, m.WindowAck(1)), Send(B, m.WindowAck(2))], 0.0)
    a.tick(60_000.0)
    assert port.take() == []
    a.perform([Connect(B, "b")], 60_000.0)
    assert [wire.decode(parts).sequence for parts in port.take()] == [1, 2]


def test_a_connection_that_is_made_anew_or_ended_is_not_one_that_stays_closed() -> None:
    for effect in (Connect(A, "another"), Disconnect(A)):
        scheduler, machine, _ = core(SCHEDULER, grace_ms=100.0)
        scheduler.perform([Connect(A, "a")], 0.0)
        scheduler.unlinked(A, 10.0)
        scheduler.perform([effect], 20.0)
        scheduler.tick(500.0)
        assert Disconnected(A) not in machine.events
    scheduler, machine, _ = core(SCHEDULER, grace_ms=100.0)
    scheduler.perform([Connect(A, "a")], 0.0)
    scheduler.unlinked(A, 10.0)
    scheduler.perform([Connect(A, "a")], 20.0)  # the same one
    scheduler.tick(500.0)
    assert machine.events == [Connection(A, up=False), Disconnected(A), Tick()]


def test_messages_to_another_life_are_not_taken() -> None:
    a, machine, _ = core(NEW)
    for to in (OLD, B, NEW):
        a.arrived(Message(b"r", wire.encode(m.Hello(1), (), WORKER, to)), 0.0)
    assert len([event for event in machine.events if isinstance(event, Received)]) == 1 and not a.held


# ------------------------------------------------------------------ what a receiver lacks
def numbers(found: list[Numbered[str]]) -> str:
    return "".join(each.item for each in found)


def test_what_a_receiver_lacks_is_sent_all_at_first_and_then_the_oldest_alone_from_time_to_time() -> None:
    out: OutStream[str] = OutStream()
    assert out.asked(1, 0.0) == [], "nothing is kept"
    for item in "abc":
        out.append(item, 0.0)
    assert out.asked(2, 0.0) == [], "it has the first one, or it would ask for that"
    assert numbers(out.asked(1, 10.0)) == "abc"
    assert out.asked(1, 9.0 + ASKED_MS) == []
    assert numbers(out.asked(1, 10.0 + ASKED_MS)) == "a"
    assert out.asked(1, 9.0 + 2 * ASKED_MS) == []
    assert numbers(out.asked(1, 10.0 + 2 * ASKED_MS)) == "a"
    out.acknowledge(1, 500.0)
    assert out.asked(1, 1_000.0) == [], "a late copy of an earlier question"
    assert numbers(out.asked(2, 1_000.0)) == "bc"
    out.acknowledge(3, 2_000.0)
    assert out.asked(2, 3_000.0) == [] and out.asked(3, 3_000.0) == [] and out.asked(4, 3_000.0) == []


# ------------------------------------------------------------------ bad messages
def test_a_connection_is_ignored_after_so_many_bad_messages_for_a_while() -> None:
    offenders = Offenders()
    assert [offenders.add(b"r", 0.0) for _ in range(OFFENCES_MAX)] == [False] * (OFFENCES_MAX - 1) + [True]
    assert not offenders.ignores(b"another", 0.0)
    assert offenders.ignores(b"r", IGNORE_MS - 0.5) and not offenders.ignores(b"r", IGNORE_MS)
    assert not offenders.ignores(b"r", 0.0), "it was forgotten"
    assert not offenders.add(b"r", IGNORE_MS), "and is counted anew"


@pytest.mark.parametrize("after_ms", [0.0, 1.0])
def test_bad_messages_count_within_a_span(after_ms: float) -> None:
    offenders = Offenders()
    for _ in range(OFFENCES_MAX - 1):
        assert not offenders.add(b"r", 0.0)
    assert offenders.add(b"r", OFFENCE_SPAN_MS + after_ms) == (after_ms == 0.0)


def test_so_many_connections_are_remembered_and_the_oldest_is_forgotten() -> None:
    offenders = Offenders()
    routes = [b"%d" % i for i in range(OFFENDERS_MAX + 1)]
    for route in routes:
        for _ in range(OFFENCES_MAX):
            offenders.add(route, 0.0)
    assert [offenders.ignores(routes[i], 1.0) for i in (0, 1, OFFENDERS_MAX)] == [False, True, True]
    offenders = Offenders()
    for route in routes:
        offenders.add(route, 0.0)
    assert routes[0] not in offenders._offences and len(offenders._offences) == OFFENDERS_MAX

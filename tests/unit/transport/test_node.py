import logging
import random
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from fakes import pump
from hypothesis import given, settings
from hypothesis import strategies as st

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol import offenders as offenders_module
from ecrec.protocol import wire
from ecrec.protocol.events import (
    Connect,
    Disconnect,
    Disconnected,
    Failed,
    HalfHandledError,
    Note,
    Persist,
    PullDone,
    Send,
    Stop,
    Tick,
)
from ecrec.protocol.offenders import OFFENCES_MAX
from ecrec.transport import link as link_module
from ecrec.transport import links as links_module
from ecrec.transport.links import Arrived, Links
from ecrec.transport.offenders import Complaints
from ecrec.transport.persistence import StateFile

SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
A = m.Address(m.SHARD, 0, 1)
B = m.Address(m.SHARD, 1, 1)
WORKER = m.Address(m.WORKER, 0, 1)


def numbers(machine) -> list[int]:
    return [event.message.number for event in machine.received]


def join(node_a, node_b, endpoint_a: str = "", endpoint_b: str = "") -> None:
    node_a.perform([Connect(node_b.machine.address, endpoint_b or node_b.links.endpoint)])
    node_b.perform([Connect(node_a.machine.address, endpoint_a or node_a.links.endpoint)])


# ------------------------------------------------------------------ between shards
def test_shards_send_in_order_both_ways(node, bind) -> None:
    (a, machine_a), (b, machine_b) = node(A, bind()), node(B, bind())
    join(a, b)
    for number in range(100):
        a.perform([Send(B, m.WindowAck(number))])
        b.perform([Send(A, m.Stable(number))])
    pump([a, b], lambda: len(machine_a.events) == len(machine_b.events) == 100)
    assert numbers(machine_a) == numbers(machine_b) == list(range(100))
    assert machine_a.received[0].source == B
    pump([a, b], lambda: not a.core.streams.out(B).unacknowledged and not b.core.streams.out(A).unacknowledged)


def test_a_one_way_stream_is_acknowledged_on_ticks(node) -> None:
    (a, _), (b, machine_b) = node(A), node(B)
    join(a, b)
    a.perform([Send(B, m.WindowAck(1))])
    pump([a, b], lambda: not a.core.streams.out(B).unacknowledged)
    assert len(machine_b.events) == 1


def test_an_acknowledgement_finds_its_way_before_the_receiver_connects(node) -> None:
    (a, _), (b, _) = node(A), node(B)
    a.perform([Connect(B, b.links.endpoint), Send(B, m.WindowAck(1))])
    pump([a, b], lambda: not a.core.streams.out(B).unacknowledged)


def test_what_is_sent_before_connect_is_sent_on_connect(node) -> None:
    (a, _), (b, machine_b) = node(A), node(B)
    a.perform([Send(B, m.WindowAck(1)), Send(B, m.WindowAck(2))])
    a.step(1)
    a.perform([Connect(B, b.links.endpoint), Send(B, m.WindowAck(3))])
    pump([a, b], lambda: len(machine_b.events) == 3)
    assert numbers(machine_b) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_has_no_gap_when_connections_are_cut_in_the_middle(node, forwarder, seed) -> None:
    """Payloads larger than the sockets' buffers, so that a cut always loses something."""
    rng = random.Random(seed)
    (a, machine_a), (b, machine_b) = node(A), node(B)
    to_b, to_a = forwarder(b.links.endpoint), forwarder(a.links.endpoint)
    join(a, b, to_a.endpoint, to_b.endpoint)
    count = 120
    payloads = [np.full(rng.choice([10, 1000, 300_000]), number % 251, np.uint8) for number in range(count)]
    cuts = sorted(rng.sample(range(count), 4))
    for number, payload in enumerate(payloads):
        a.perform([Send(B, m.Captured(0, number), (payload, b""))])
        b.perform([Send(A, m.Stable(number))])
        if number in cuts:
            a.step(1)
            rng.choice([to_a, to_b]).cut()
        if number % 10 == 0:
            a.step(0)
            b.step(0)
    pump([a, b], lambda: len(machine_a.events) == len(machine_b.events) == count)
    assert numbers(machine_a) == list(range(count))
    assert [event.message.request for event in machine_b.received] == list(range(count))
    assert all(np.array_equal(e.frames[0], p) for e, p in zip(machine_b.received, payloads, strict=True))
    pump([a, b], lambda: not a.core.streams.out(B).unacknowledged and not b.core.streams.out(A).unacknowledged)


def test_a_reopened_connection_sends_what_was_not_acknowledged(node, bind) -> None:
    (a, _), (b, machine_b) = node(A, bind()), node(B, bind())
    join(a, b)
    for number in range(50):
        a.perform([Send(B, m.WindowAck(number))])
        if number % 10 == 5:
            a.links.disconnect(B)
            a.perform([Connect(B, b.links.endpoint)])
        b.step(0)
    pump([a, b], lambda: len(machine_b.events) == 50)
    assert numbers(machine_b) == list(range(50))


def test_a_fenced_incarnation_is_not_heard_and_gets_nothing(node) -> None:
    (a, _), (b, machine_b) = node(A), node(B)
    join(a, b)
    b.perform([Disconnect(A)])
    a.perform([Send(B, m.WindowAck(1))])
    newer = A._replace(epoch=2)
    (c, _) = node(newer)
    c.perform([Connect(B, b.links.endpoint), Send(B, m.WindowAck(2))])
    pump([a, b, c], lambda: len(machine_b.events) == 1)
    assert machine_b.received[0].source == newer
    b.perform([Send(A, m.WindowAck(3))])
    assert not b.links.is_connected(A)


def test_a_message_for_another_incarnation_is_dropped(node) -> None:
    (a, _), (b, machine_b) = node(A), node(B)
    older = B._replace(epoch=0)
    a.perform([Connect(older, b.links.endpoint), Send(older, m.WindowAck(1))])
    a.perform([Connect(B, b.links.endpoint), Send(B, m.WindowAck(2))])
    pump([a, b], lambda: len(machine_b.events) == 1)
    assert numbers(machine_b) == [2]


def test_messages_wait_for_a_process_that_is_being_placed(node) -> None:
    """A peer, or a worker, may hear of a new incarnation before that has heard of itself."""
    (a, _), (spare, machine) = node(A), node(m.Address(m.SHARD, -1, 0))
    worker, _ = node(WORKER, None)
    scheduler, _ = node(SCHEDULER, grace_ms=150)
    a.perform([Connect(B, spare.links.endpoint), Send(B, m.WindowAck(1)), Send(B, m.WindowAck(2))])
    worker.perform([Connect(B, spare.links.endpoint), Send(B, m.Hello(1))])
    pump([a, worker, spare], lambda: len(spare.core.held) == 3)
    assert machine.events == []

    def place(event):
        machine.address = B
        return [Connect(A, a.links.endpoint)]

    machine.on_received = place
    scheduler.perform([Connect(B, spare.links.endpoint), Send(B, m.Views(0, []))])
    pump([scheduler, spare], lambda: len(machine.events) == 4)
    kinds = [type(event.message) for event in machine.received]
    assert kinds[0] is m.Views
    assert sorted(kinds[1:], key=str) == [m.Hello, m.WindowAck, m.WindowAck]
    assert [e.message.number for e in machine.received if e.source == A] == [1, 2]


# ------------------------------------------------------------------ workers and the scheduler
def test_a_worker_gets_its_answer_on_its_own_connection(node, bind) -> None:
    shard, machine = node(A, bind())
    worker, worker_machine = node(WORKER, None)
    rows = np.arange(50_000, dtype=np.float32)
    machine.on_received = lambda event: [Send(event.source, m.Rows(event.message.request), (rows,))]
    pull = m.Pull(9, 0, False, [m.Section([0], [1])])
    worker.perform([Connect(A, shard.links.endpoint), Send(A, pull, (b"12345678",))])
    pump([shard, worker], lambda: worker_machine.events)
    answer = worker_machine.received[0]
    assert (answer.source, answer.message) == (A, m.Rows(9))
    assert np.array_equal(answer.frames[0].view(np.float32), rows)


def test_the_newest_connection_of_an_address_gets_the_answers(node) -> None:
    shard, machine = node(A)
    (old, old_machine), (new, new_machine) = node(WORKER, None), node(WORKER, None)
    for each in (old, new):
        each.perform([Connect(A, shard.links.endpoint), Send(A, m.Hello(1))])
        before = len(machine.events)
        pump([each, shard], lambda before=before: len(machine.events) > before)
    shard.perform([Send(WORKER, m.PushAck(3))])
    pump([old, new, shard], lambda: new_machine.events)
    assert old_machine.events == []


def test_an_answer_to_one_who_is_gone_is_dropped(node) -> None:
    (shard, machine), (worker, _) = node(A), node(WORKER, None)
    worker.perform([Connect(A, shard.links.endpoint), Send(A, m.Hello(1))])
    pump([worker, shard], lambda: machine.events)
    worker.perform([Disconnect(A)])
    pump([shard], lambda: not shard.links.send(WORKER, wire.encode(m.PushAck(1), (), A, WORKER)))
    shard.perform([Send(WORKER, m.PushAck(3)), Send(m.Address(m.WORKER, 77, 1), m.PushAck(3))])


def test_a_fenced_shard_can_still_be_told_so(node) -> None:
    scheduler, machine = node(SCHEDULER, grace_ms=150)
    shard, shard_machine = node(A, scheduler_endpoint=scheduler.links.endpoint)
    scheduler.perform([Connect(A, shard.links.endpoint), Disconnect(A)])
    machine.on_received = lambda event: [Send(event.source, m.Fenced("gone"))]
    shard.perform([Send(SCHEDULER, m.ShardStatus("p", 1, True, [], {}, {}, {}))])
    pump([scheduler, shard], lambda: shard_machine.events)
    assert shard_machine.received[0].message == m.Fenced("gone")


def test_a_closed_connection_is_noticed_after_the_grace(node, bind) -> None:
    scheduler, machine = node(SCHEDULER, bind(), grace_ms=100)
    shard, shard_machine = node(A, bind())
    scheduler.perform([Connect(A, shard.links.endpoint), Send(A, m.Views(0, []))])
    pump([scheduler, shard], lambda: shard_machine.events)
    shard.close()
    start = time.monotonic()
    pump([scheduler], lambda: Disconnected(A) in machine.others)
    assert time.monotonic() - start >= 0.1
    assert machine.others.count(Disconnected(A)) == 1


def test_a_connection_that_comes_back_within_the_grace_is_no_death(node, forwarder) -> None:
    scheduler, machine = node(SCHEDULER, grace_ms=5000)
    shard, shard_machine = node(A)
    path = forwarder(shard.links.endpoint)
    scheduler.perform([Connect(A, path.endpoint), Send(A, m.Views(0, []))])
    pump([scheduler, shard], lambda: shard_machine.events)
    path.cut()
    pump([scheduler, shard], lambda: scheduler.core.closed_ms)
    pump([scheduler, shard], lambda: not scheduler.core.closed_ms)
    scheduler.perform([Send(A, m.Views(1, []))])
    pump([scheduler, shard], lambda: len(shard_machine.events) == 2)
    assert Disconnected(A) not in machine.others


def test_results_come_out_of_step(node) -> None:
    worker, _ = node(WORKER, None)
    done, failed = PullDone(1, {}), Failed("x")
    worker.perform([done, Note("info", "text"), failed])
    assert worker.step(1000) == [done, failed]
    assert worker.step(0) == []


def test_ticks_come_without_messages(node) -> None:
    shard, machine = node(A, tick_ms=5)
    pump([shard], lambda: machine.others.count(Tick()) >= 3)


def test_a_tick_comes_when_the_machine_wants_one_and_the_next_a_whole_tick_later(node, monkeypatch) -> None:
    shard, machine = node(A, tick_ms=50.0)
    now_ms, waited_ms = 0.0, []
    monkeypatch.setattr("ecrec.transport.node._now_ms", lambda: now_ms)
    monkeypatch.setattr(shard.links, "poll", lambda timeout_ms: waited_ms.append(timeout_ms) or [])

    def ticks_at(at_ms: float) -> int:
        nonlocal now_ms
        now_ms = at_ms
        shard.step(1000.0)
        return len(machine.others)

    assert ticks_at(1000.0) == 1
    machine.deadline_ms = 1030.0
    assert [ticks_at(1020.0), ticks_at(1030.0)] == [1, 2]
    machine.deadline_ms = 2000.0
    assert [ticks_at(1060.0), ticks_at(1080.0)] == [2, 3]
    assert waited_ms == [0.0, 10.0, 0.0, 20.0, 0.0]


def test_messages_that_piled_up_are_read_before_a_late_tick(node, monkeypatch) -> None:
    """Else a scheduler that was stopped for a while would take everybody for silent."""
    scheduler, machine = node(SCHEDULER, grace_ms=150)
    parts = wire.encode(m.ShardStatus("p", 1, True, [], {}, {}, {}), (), A, SCHEDULER)
    batches = [[Arrived(b"", parts)] * 64 for _ in range(5)]
    monkeypatch.setattr(scheduler.links, "poll", lambda timeout_ms: batches.pop() if batches else [])
    while len(machine.events) < 5 * 64:
        assert machine.others == []
        scheduler.step(5)
    assert machine.others == []
    scheduler.step(5)
    assert machine.others == [Tick()]


def test_a_machine_hears_up_to_when_all_that_came_was_read(node, monkeypatch) -> None:
    """What waits in a socket is no silence of who sent it."""
    shard, machine = node(A)
    read: list[float] = []
    machine.read_until = read.append
    parts = wire.encode(m.Hello(1), (), WORKER, A)
    monkeypatch.setattr(shard.links, "poll", lambda timeout_ms: [Arrived(b"", parts)])
    shard.links.drained = False
    shard.step(5)
    assert machine.events and not read
    shard.links.drained = True
    begin_ms = time.monotonic() * 1e3
    shard.step(5)
    assert begin_ms <= read[-1] <= time.monotonic() * 1e3


def test_a_poll_says_whether_it_left_something(node, monkeypatch) -> None:
    (a, _), (b, _) = node(A), node(B)
    monkeypatch.setattr(links_module, "DRAIN_MAX", 1)
    join(a, b)
    a.perform([Send(B, m.WindowAck(number)) for number in range(10)])
    left: list[bool] = []
    end = time.monotonic() + 10.0
    while len(left) < 10 and time.monotonic() < end:
        a.step(1)
        if any(isinstance(happening, Arrived) for happening in b.links.poll(1)):
            left.append(not b.links.drained)
    assert left == [True] * 10
    pump([b], lambda: b.links.drained)


def test_a_flood_of_messages_does_not_keep_ticks_away(node) -> None:
    shard, machine = node(A, tick_ms=5)
    worker, _ = node(WORKER, None)
    worker.perform([Connect(A, shard.links.endpoint)])

    def slow(event):
        worker.perform([Send(A, m.Hello(1))])
        end = time.monotonic() + 0.01
        while time.monotonic() < end:
            pass
        return []

    machine.on_received = slow
    worker.perform([Send(A, m.Hello(1))] * 5)
    pump([shard], lambda: machine.events)
    start, ticks = time.monotonic(), len(machine.others)
    while len(machine.others) < ticks + 3:
        shard.step(5)
    assert time.monotonic() - start < 2.0


def test_stop_ends_the_loop(node) -> None:
    shard, machine = node(A)
    worker, _ = node(WORKER, None)
    machine.on_received = lambda event: [Stop("enough")]
    worker.perform([Connect(A, shard.links.endpoint), Send(A, m.Hello(1))])
    pump([worker, shard], lambda: shard.stopped)
    shard.run()
    assert shard.stopped == "enough"


def test_nothing_is_sent_after_a_failed_persist(node, tmp_path: Path) -> None:
    state_file = StateFile(str(tmp_path / "state"))
    scheduler, _ = node(SCHEDULER, grace_ms=150, state_store=state_file)
    shard, machine = node(A)
    scheduler.perform([Persist(b"good"), Connect(A, shard.links.endpoint)])
    state_file._connection.execute("PRAGMA max_page_count=1")
    with pytest.raises(ClusterError, match="cannot be written"):
        scheduler.perform([Persist(bytes(10_000_000)), Send(A, m.Views(0, []))])
    assert state_file.load() == b"good"
    scheduler.perform([Send(A, m.Views(1, []))])
    pump([scheduler, shard], lambda: machine.events)
    assert machine.received[0].message == m.Views(1, [])


# ------------------------------------------------------------------ payload
@pytest.mark.parametrize("size", [1, 7, 33, 34, 1000, 8191, 8192, 9000, 65535, 65536, 100_001, 5_000_000])
def test_payload_arrives_whole_and_aligned(node, bind, size: int) -> None:
    (a, _), (b, machine) = node(A, bind()), node(B, bind())
    a.perform([Connect(B, b.links.endpoint)])
    payload = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    for number in range(3):
        a.perform([Send(B, m.Captured(0, number), (payload, payload[: size // 3]))])
    pump([a, b], lambda: len(machine.events) == 3)
    for event in machine.received:
        assert np.array_equal(event.frames[0], payload)
        assert np.array_equal(event.frames[1], payload[: size // 3])
        assert all(frame.ctypes.data % 8 == 0 for frame in event.frames)


# ------------------------------------------------------------------ hostile and broken senders
@pytest.fixture
def raw():
    """A bare DEALER, to send anything."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        yield dealer


def serves(shard, machine, dealer) -> None:
    """The shard still takes a good message, after all that was sent before it."""
    before, good = len(machine.events), m.Hello(77)
    dealer.send_multipart(wire.encode(good, (), WORKER, A))
    pump([shard], lambda: any(event.message == good for event in machine.received[before:]))


HOSTILE = [
    [b""],
    [b"", b""],
    [b"ECR1"],
    [b"ECR2"],
    [b"ECR!you are refused"],
    [b"ECR!\xff\xfe"],
    [b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}\x94."],
    [wire.encode(m.Hello(1), (), WORKER, A)[0][:-1]],
    [wire.encode(m.Hello(1), (), WORKER, A)[0], b"more"],
    [wire.encode(m.Hello(1), (), WORKER, A)[0][:52] + b"\xdd\xff\xff\xff\xff"],
    wire.encode(m.WindowAck(1), (), B, A),
    wire.encode(m.WindowAck(1), (), B, A, 2**64 - 1, 2**64 - 1),
    wire.encode(m.WindowAck(1), (), m.Address(m.SHARD, -(2**31), -(2**63)), A, 1, 1),
    wire.encode(m.Hello(1), (), WORKER, B),
    wire.encode(m.Hello(1), (), WORKER, m.Address(m.SHARD, 0, 99)),
    [b"x"] * 1000,
]


@pytest.mark.parametrize("parts", HOSTILE, ids=range(len(HOSTILE)))
def test_a_bad_message_is_dropped_and_the_shard_serves(node, raw, parts) -> None:
    shard, machine = node(A)
    raw.connect(shard.links.endpoint)
    raw.send_multipart(parts)
    serves(shard, machine, raw)
    assert len(machine.events) == 1


def test_arbitrary_frames_do_no_harm(node, raw, monkeypatch) -> None:
    monkeypatch.setattr(offenders_module, "OFFENCES_MAX", 1_000_000)
    shard, machine = node(A)
    raw.connect(shard.links.endpoint)
    good = wire.encode(m.Hello(1), (), WORKER, A)[0]

    @settings(max_examples=50)
    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(0, len(good)))
    def check(parts, kept) -> None:
        raw.send_multipart([good[:kept] + parts[0], *parts[1:]])
        serves(shard, machine, raw)
        machine.events.clear()

    check()


def test_bytes_that_are_not_zeromq_do_no_harm(node, raw) -> None:
    shard, machine = node(A)
    host, port = shard.links.endpoint.removeprefix("tcp://").split(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" * 50, b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data)
        shard.step(1)
    raw.connect(shard.links.endpoint)
    serves(shard, machine, raw)


def test_a_frame_beyond_the_limit_closes_the_connection_and_no_more(node, raw, monkeypatch) -> None:
    monkeypatch.setattr(link_module, "FRAME_BYTES_MAX", 100_000)
    shard, machine = node(A)
    with zmq.Context() as context, context.socket(zmq.DEALER) as attacker:
        attacker.setsockopt(zmq.LINGER, 0)
        attacker.connect(shard.links.endpoint)
        attacker.send_multipart([b"x" * 200_000])
        raw.connect(shard.links.endpoint)
        serves(shard, machine, raw)


def test_another_wire_version_is_answered_with_a_refusal(node, raw) -> None:
    shard, machine = node(A)
    raw.connect(shard.links.endpoint)
    raw.send_multipart([b"ECR0 whatever it was"])
    pump([shard], lambda: bool(raw.poll(1)))
    with pytest.raises(wire.RefusedByPeerError, match="wire version 0 is older than ours"):
        wire.decode(raw.recv_multipart())
    serves(shard, machine, raw)


def test_a_refused_worker_is_told_why(node) -> None:
    worker, _ = node(WORKER, None)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        other.setsockopt(zmq.LINGER, 0)
        port = other.bind_to_random_port("tcp://127.0.0.1")
        worker.perform([Connect(A, f"tcp://127.0.0.1:{port}"), Send(A, m.Hello(1))])
        route = other.recv_multipart()[0]
        other.send_multipart([route, *wire.refusal("we speak version 2")])
        results = []
        pump([], lambda: bool(results.extend(worker.step(5)) or results))
    assert "we speak version 2" in results[0].reason


def test_a_message_that_a_machine_cannot_handle_kills_nobody(node, raw, caplog) -> None:
    shard, machine = node(A)
    raw.connect(shard.links.endpoint)

    def fail(event):
        raise IndexError("row 12 of table 3 does not exist")

    machine.on_received = fail
    serves(shard, machine, raw)
    assert "a Hello from worker 0 (epoch 1) could not be handled: IndexError: row 12 of table 3" in caplog.text
    machine.on_received = lambda event: []
    serves(shard, machine, raw)


def test_a_machine_without_memory_ends_with_its_process(node, raw) -> None:
    """It may have stopped in the middle of a push: a death, which the code tolerates, is better than a wrong row."""
    shard, machine = node(A)

    def fail(event):
        raise MemoryError("no room for the deltas")

    machine.on_received = fail
    raw.connect(shard.links.endpoint)
    raw.send_multipart(wire.encode(m.WindowAck(1), (), WORKER, A))
    with pytest.raises(MemoryError, match="no room"):
        pump([shard], lambda: False)


def test_a_message_that_cannot_be_sent_to_a_shard_ends_the_process(node) -> None:
    """Left out it would be a hole in a stream that is promised to have none."""
    (a, _), (b, _) = node(A), node(B)
    expected = r"a Captured cannot be sent to shard 1 \(epoch 1\): Captured has 2 frames, not 1"
    with pytest.raises(HalfHandledError, match=expected):
        a.perform([Connect(B, b.links.endpoint), Send(B, m.Captured(0, 1), (b"",)), Send(B, m.WindowAck(1))])


def test_an_address_that_cannot_be_ends_the_process(node) -> None:
    shard, _ = node(A)
    with pytest.raises(HalfHandledError, match="cannot be sent to shard 1"):
        shard.perform([Send(m.Address(m.SHARD, 1, 2**63), m.WindowAck(1))])


def test_what_speaks_no_zeromq_blocks_nobody(node, raw) -> None:
    """ZeroMQ gives such a connection up, and would wait for ever with the next message to it."""
    shard, machine = node(A)
    with socket.create_server(("127.0.0.1", 0)) as web:
        endpoint = f"tcp://127.0.0.1:{web.getsockname()[1]}"
        shard.perform([Connect(B, endpoint), Send(B, m.WindowAck(1))])
        connection, _ = web.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
            raw.connect(shard.links.endpoint)
            for _ in range(5):
                shard.perform([Send(B, m.WindowAck(2))])
                serves(shard, machine, raw)


def test_a_peer_that_speaks_again_gets_everything(node) -> None:
    """What was sent while it did not is sent again, in order."""
    (a, _), (b, machine) = node(A), node(B)
    a.perform([Connect(B, b.links.endpoint), Send(B, m.WindowAck(1))])
    a.links._open(B, b.links.endpoint, True, again=True)
    a.perform([Send(B, m.WindowAck(2))])
    pump([a, b], lambda: len(machine.events) == 2)
    assert numbers(machine) == [1, 2]


def test_a_connection_that_keeps_sending_bad_messages_is_ignored_for_a_while(node, raw, caplog) -> None:
    shard, machine = node(A)
    raw.connect(shard.links.endpoint)
    for _ in range(OFFENCES_MAX):
        raw.send_multipart([b"GET / HTTP/1.1"])
    raw.send_multipart(wire.encode(m.Hello(1), (), WORKER, A))
    pump([shard], lambda: "is ignored for 30 s after 16 bad messages, the last: not an ecrec message" in caplog.text)
    with zmq.Context() as context, context.socket(zmq.DEALER) as other:
        other.setsockopt(zmq.LINGER, 0)
        other.connect(shard.links.endpoint)
        serves(shard, machine, other)
    assert len(machine.events) == 1


def test_bad_messages_now_and_then_are_borne() -> None:
    offenders = offenders_module.Offenders()
    spread_ms = offenders_module.OFFENCE_SPAN_MS / (OFFENCES_MAX - 2)
    assert not any(offenders.add(b"r", i * spread_ms) for i in range(100))
    assert not offenders.ignores(b"r", 1e9)


def test_an_ignored_connection_is_heard_again_and_others_all_the_time() -> None:
    offenders = offenders_module.Offenders()
    assert [offenders.add(b"r", 5.0) for _ in range(OFFENCES_MAX)] == [False] * (OFFENCES_MAX - 1) + [True]
    assert offenders.ignores(b"r", 6.0)
    assert not offenders.ignores(b"other", 6.0)
    assert not offenders.ignores(b"r", 5.0 + offenders_module.IGNORE_MS)


def test_offenders_are_forgotten_before_they_fill_the_memory() -> None:
    offenders = offenders_module.Offenders()
    for i in range(3 * offenders_module.OFFENDERS_MAX):
        for _ in range(1 + i % 2 * OFFENCES_MAX):
            offenders.add(b"%d" % i, 0.0)
    assert len(offenders._offences) <= offenders_module.OFFENDERS_MAX
    assert len(offenders._ignored) <= offenders_module.OFFENDERS_MAX


def test_a_connect_to_what_is_no_endpoint_kills_nobody(node, caplog) -> None:
    shard, _ = node(A)
    shard.perform([Connect(B, "nonsense")])
    assert "endpoint 'nonsense': expected" in caplog.text
    assert not shard.links.is_connected(B)


@pytest.mark.parametrize("bad", ["tcp://no.such.host.invalid:1", "tcp://192.0.2.1:1", "ipc:///no/such/dir/x"])
def test_a_bind_that_cannot_be_says_so(bad: str) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot listen at '{bad}': .*; expected tcp"):
        Links(bad, plain_network=True)


@pytest.mark.parametrize(
    "bad", ["", "nonsense", "tcp://", "tcp://h", "tcp://h:99999", "tcp://h:-1", "ipc://", "udp://h:1"]
)
def test_what_is_no_endpoint_is_refused(bad: str) -> None:
    with pytest.raises(ConfigurationError, match=f"endpoint '{bad}': expected tcp://HOST:PORT"):
        Links(bad)


def test_a_path_that_would_be_cut_off_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="more than 107 bytes"):
        Links("ipc:///" + "x" * 107)


def test_a_peer_cannot_fill_the_log_through_the_machine(node, raw, caplog) -> None:
    shard, machine = node(A)
    machine.on_received = lambda event: [Note("warning", f"{event.source}: dropped a WindowAck")]
    raw.connect(shard.links.endpoint)
    for number in range(50):
        raw.send_multipart(wire.encode(m.WindowAck(number), (), WORKER, A))
    pump([shard], lambda: len(machine.events) == 50)
    assert 1 <= caplog.text.count("dropped a WindowAck") <= 3


def test_complaints_of_one_kind_are_limited(caplog) -> None:
    complaints = Complaints()
    with caplog.at_level(logging.WARNING):
        for i in range(100):
            complaints.add("a", f"bad {i}", i * 20.0)
        complaints.add("b", "worse", 0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["bad 0", "bad 50 (and 49 more like it)", "worse"]

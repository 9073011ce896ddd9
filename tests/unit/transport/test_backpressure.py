"""Queues of the transport are bounded: towards who is away, who hangs, and who does not read."""

import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import zmq
from fakes import pump

from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.events import Connect, Send
from ecrec.transport import link as link_module

SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
A = m.Address(m.SHARD, 0, 1)
B = m.Address(m.SHARD, 1, 1)
TOOL = m.Address(m.TOOL, 5, 0)

LIMIT = 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "QUEUED_MESSAGES_MAX", LIMIT)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ecrec") as directory:
        yield f"ipc://{directory}/late"


def status(number: int) -> m.ShardStatus:
    return m.ShardStatus("p", number, True, [], {}, {}, {})


def test_heartbeats_to_a_scheduler_that_is_away_do_not_pile_up(node, few, path: str) -> None:
    shard, _ = node(A, scheduler_endpoint=path)
    for number in range(50 * LIMIT):
        shard.perform([Send(SCHEDULER, status(number))])
    scheduler, machine = node(SCHEDULER, path)
    pump([shard, scheduler], lambda: bool(machine.received))
    last = 50 * LIMIT
    shard.perform([Send(SCHEDULER, status(last))])
    pump([shard, scheduler], lambda: machine.received[-1].message.view == last)
    assert len(machine.received) <= LIMIT + 1
    assert machine.received[0].message.view >= 49 * LIMIT, "the newest are kept"


def test_a_stream_to_a_peer_that_hangs_is_whole_when_it_goes_on(node, few) -> None:
    """Far more than the queues and the sockets' buffers take is sent while the peer reads nothing."""
    (a, _), (b, machine_b) = node(A), node(B)
    a.perform([Connect(B, b.links.endpoint), Send(B, m.Captured(0, 0), (b"", b""))])
    pump([a, b], lambda: len(machine_b.received) == 1)
    payload = np.zeros(1_000_000, np.uint8)
    count = 3 * LIMIT
    for number in range(1, count):
        a.perform([Send(B, m.Captured(0, number), (payload, b""))])
        a.step(0)
    # Its queue gets full once the thread of ZeroMQ has moved what the socket's buffers take.
    pump([a], lambda: not a.links._links[B].socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
    pump([a, b], lambda: len(machine_b.received) == count, deadline_s=20.0)
    assert [event.message.request for event in machine_b.received] == list(range(count))
    assert a.links.is_connected(B)


def test_answers_to_a_tool_that_does_not_read_are_dropped(node, few) -> None:
    """A tool that asks and never reads: the server neither waits for it nor keeps what it would get."""
    shard, machine = node(A)
    payload = np.zeros(1_000_000, np.uint8)
    machine.on_received = lambda event: [Send(event.source, m.Rows(event.message.request), (payload,))]
    context = zmq.Context()
    tool = context.socket(zmq.DEALER)
    tool.setsockopt(zmq.LINGER, 0)
    tool.setsockopt(zmq.RCVHWM, 1)
    tool.setsockopt(zmq.RCVTIMEO, 200)
    try:
        tool.connect(shard.links.endpoint)
        asked = 10 * LIMIT
        for request in range(asked):
            tool.send_multipart(wire.encode(m.Pull(request, 0, False, []), (), TOOL, A))
        pump([shard], lambda: len(machine.received) == asked)
        answers = 0
        while True:
            try:
                tool.recv_multipart()
            except zmq.Again:
                break
            answers += 1
        # Besides the queue there are the sockets' buffers, a few megabytes.
        assert LIMIT <= answers < asked / 2
    finally:
        tool.close()
        context.term()


def test_a_flood_waits_in_the_senders_sockets(node, few) -> None:
    """What one connection sends and nobody has read yet is bounded too: the sender waits."""
    shard, machine = node(A)
    context = zmq.Context()
    tool = context.socket(zmq.DEALER)
    tool.setsockopt(zmq.LINGER, 0)
    tool.setsockopt(zmq.SNDHWM, 1)
    tool.setsockopt(zmq.SNDTIMEO, 300)
    big = np.zeros(1_000_000, np.uint8)
    try:
        tool.connect(shard.links.endpoint)
        sent = 0
        with pytest.raises(zmq.Again):
            while sent < 20 * LIMIT:
                tool.send_multipart([*wire.encode(m.Captured(0, sent), (big, b""), TOOL, A)])
                sent += 1
        assert LIMIT <= sent < 5 * LIMIT
        pump([shard], lambda: len(machine.received) == sent)
    finally:
        tool.close()
        context.term()


def test_what_a_machine_has_no_room_for_stays_with_the_peer(node) -> None:
    """A shard that lacks a view takes no more than so much from a peer that has it, and then all of it, in order."""
    (a, _), (b, machine_b) = node(A), node(B)
    machine_b.takes_from = lambda source: len(machine_b.received) < 10
    a.perform([Connect(B, b.links.endpoint)])
    for number in range(30):
        a.perform([Send(B, m.WindowAck(number))])
    pump([a, b], lambda: a.core.streams.out(B).unacknowledged == 20)
    machine_b.takes_from = lambda source: True
    pump([a, b], lambda: len(machine_b.received) == 30)
    assert [event.message.number for event in machine_b.received] == list(range(30))

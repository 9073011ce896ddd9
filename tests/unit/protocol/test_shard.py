"""A shard's dispatch: what it takes from whom, what it holds, and how it counts time."""

from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connection, HalfHandledError, Note, Received, Send, Tick
from ecrec.protocol.messages import SCHEDULER_ADDRESS, Address
from ecrec.protocol.shard import PINGS_MAX, ShardMachine
from ecrec.protocol.transitions import LINKED

HEARTBEAT_MS = ProtocolConfig().heartbeat_ms


@pytest.fixture
def cluster() -> Cluster:
    """Three shards with a table."""
    made = Cluster(3)
    made.create(table(code="2+1"))
    made.drain()
    return made


def peer(shard: int, epoch: int = 1) -> Address:
    return Address(m.SHARD, shard, epoch)


def sent(effects: list[Any], kind: type) -> list[Address]:
    """To whom messages of a kind are sent."""
    return [effect.to for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


# ------------------------------------------------------------------ time
def test_a_process_that_stood_still_counts_a_heartbeat_of_it_and_time_does_not_go_back() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    machine.handle(Tick(), 0.0)
    began = machine.context.awake_ms
    machine.handle(Tick(), 10.0)
    assert machine.context.awake_ms == began + 10.0
    machine.handle(Tick(), 60_000.0)
    assert machine.context.awake_ms == began + 10.0 + HEARTBEAT_MS
    machine.handle(Tick(), 50_000.0)
    assert machine.context.awake_ms == began + 10.0 + HEARTBEAT_MS


def test_silence_counts_up_to_what_was_read(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.read_until(machine.context.now_ms - 100.0)
    assert machine.heartbeats.listened_ms == machine.context.awake_ms - 100.0
    machine.read_until(machine.context.now_ms + 100.0)
    assert machine.heartbeats.listened_ms == machine.context.awake_ms


def test_in_a_long_event_a_sign_of_life_goes_out_once_a_heartbeat(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.handle(Tick(), cluster.now_ms + HEARTBEAT_MS)
    said_ms = cluster.now_ms + HEARTBEAT_MS
    assert machine.while_busy(said_ms + HEARTBEAT_MS - 1) == []
    assert sent(machine.while_busy(said_ms + HEARTBEAT_MS), m.ShardStatus)
    assert machine.while_busy(said_ms + 2 * HEARTBEAT_MS - 1) == []
    assert sent(machine.while_busy(said_ms + 2 * HEARTBEAT_MS), m.ShardStatus)


def test_what_a_refused_event_would_have_sent_is_not_sent_with_the_next_one(cluster: Cluster) -> None:
    machine = cluster.shard(0)

    def refuses(peer: Any, message: m.Ping, frames: m.Frames) -> None:
        machine.context.send(peer, m.Ping(asks=False))
        raise ValueError("refused")

    machine._from_shards[m.Ping] = refuses
    with pytest.raises(ValueError, match="refused"):
        machine.handle(Received(peer(1), m.Ping(asks=True)), cluster.now_ms)
    assert sent(machine.handle(Tick(), cluster.now_ms), m.Ping) == []


# ------------------------------------------------------------------ peers
def test_of_a_peer_that_sent_what_does_not_fit_the_next_incarnation_is_heard(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.peers[1].broken = True
    assert not machine.takes_from(peer(1)) and machine.takes_from(peer(1, 2)) and machine.takes_from(peer(2))


def test_a_connection_of_another_incarnation_or_of_no_peer_says_nothing(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.peers[1].link = LINKED
    for address in (peer(1, 2), peer(7)):
        machine.handle(Connection(address, up=False), cluster.now_ms)
    assert machine.peers[1].linked and not machine.peers[1].severed
    machine.handle(Connection(peer(1), up=False), cluster.now_ms)
    assert machine.peers[1].severed and not machine.peers[1].linked


@pytest.mark.parametrize(("source", "message"), [
    (peer(0), m.Ping(asks=True)), (peer(7), m.Ping(asks=True)), (peer(1), m.Hello(1)),
])  # fmt: skip
def test_what_is_not_of_a_peer_or_not_for_it_is_dropped_with_a_note(
    cluster: Cluster, source: Address, message: m.Message
) -> None:
    effects = cluster.shard(0).handle(Received(source, message), cluster.now_ms)
    assert [type(effect) for effect in effects] == [Note] and "dropped" in effects[0].text
    assert not cluster.shard(0).peers[1].broken


def test_a_probe_asks_members_that_run_and_no_others(cluster: Cluster) -> None:
    machine, now_ms = cluster.shard(0), cluster.now_ms + 10 * HEARTBEAT_MS
    probe = Received(SCHEDULER_ADDRESS, m.Probe([0, 1, 2, 7]))
    assert sent(machine.handle(probe, now_ms), m.Ping) == [peer(1), peer(2)]
    cluster.kill(2)
    cluster.declared(2)
    cluster.run()
    assert sent(machine.handle(probe, now_ms + cluster.config.link_timeout_ms), m.Ping) == [peer(1)]


def test_a_peer_that_answers_no_probe_is_asked_less_often_and_not_for_ever(cluster: Cluster) -> None:
    machine, now_ms = cluster.shard(0), cluster.now_ms + 10 * HEARTBEAT_MS
    probe = Received(SCHEDULER_ADDRESS, m.Probe([1]))
    assert sent(machine.handle(probe, now_ms), m.Ping) == [peer(1)]
    assert sent(machine.handle(probe, now_ms + 0.5 * HEARTBEAT_MS), m.Ping) == [], "it was asked just now"
    asked = 1
    for _ in range(2 * PINGS_MAX):
        now_ms += cluster.config.link_timeout_ms
        asked += len(sent(machine.handle(probe, now_ms), m.Ping))
    assert asked == PINGS_MAX
    machine.handle(Received(peer(1), m.Ping(asks=False)), now_ms)
    assert sent(machine.handle(probe, now_ms), m.Ping) == [], "it was heard just now"
    assert sent(machine.handle(probe, now_ms + HEARTBEAT_MS), m.Ping) == [peer(1)]


# ------------------------------------------------------------------ what waits for a view
def test_behind_a_message_that_waits_for_a_view_all_of_its_sender_wait(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    ahead = m.Reseed(0, 0, machine.view + 1)
    machine.handle(Received(peer(1), ahead), cluster.now_ms)
    assert [event.message for event in machine.peers[1].held] == [ahead]
    assert sent(machine.handle(Received(peer(1), m.Ping(asks=True)), cluster.now_ms), m.Ping) == []
    assert len(machine.peers[1].held) == 2
    assert sent(machine.handle(Received(peer(2), m.Ping(asks=True)), cluster.now_ms), m.Ping) == [peer(2)]


def test_an_incarnation_that_no_view_has_told_of_waits_and_one_that_is_over_is_dropped(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.peers[1].epoch = 3
    ping = m.Ping(asks=True)
    assert sent(machine.handle(Received(peer(1, 4), ping), cluster.now_ms), m.Ping) == []
    assert [event.source.epoch for event in machine.peers[1].held] == [4]
    assert sent(machine.handle(Received(peer(1, 3), ping), cluster.now_ms), m.Ping) == [peer(1, 3)], "it still runs"
    assert sent(machine.handle(Received(peer(1, 2), ping), cluster.now_ms), m.Ping) == []
    assert len(machine.peers[1].held) == 1


# ------------------------------------------------------------------ pushes and pulls
SOMEBODY = Address(m.WORKER, 5, 1)
TOOL = Address(m.TOOL, 1, 1)


def push(number: int, rows: list[int], source: Address = SOMEBODY, **fields: Any) -> Received:
    """A push of ones to rows of the first table, a section for each list of rows."""
    sections = [m.Section([0], [len(rows)])]
    frames = [np.array(rows, np.int64).tobytes(), np.ones(4 * len(rows), np.float32).tobytes()]
    made = m.Push(source.epoch, number, fields.pop("barrier", 0), False, sections, tables=1, **fields)
    return Received(source, made, frames)


def pull(request: int, rows: list[int], source: Address = SOMEBODY, after: int = 0) -> Received:
    made = m.Pull(request, after, False, [m.Section([0], [len(rows)])])
    return Received(source, made, [np.array(rows, np.int64).tobytes()])


def answers(machine: ShardMachine, event: Received, now_ms: float) -> list[m.Message]:
    """What the sender of an event is told at once."""
    effects = machine.handle(event, now_ms)
    return [each.message for each in effects if isinstance(each, Send) and each.to == event.source]


def own_rows(cluster: Cluster, shard: int, count: int) -> list[int]:
    return [int(row) for row in cluster.by_shard(table(code="2+1"), range(40))[shard][:count]]


def test_only_workers_push(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    assert answers(machine, push(1, rows, source=TOOL), cluster.now_ms) == []
    assert answers(machine, Received(TOOL, m.Hello(1)), cluster.now_ms) == []
    assert TOOL.id not in machine.context.workers and TOOL.id not in machine.watermarks


@pytest.mark.parametrize(
    ("number", "answer"), [(m.WORKERS_MAX - 1, m.Welcome), (m.WORKERS_MAX, m.Fenced), (-1, m.Fenced)]
)
def test_workers_are_numbered_up_to_the_limit(cluster: Cluster, number: int, answer: type) -> None:
    (said,) = answers(cluster.shard(0), Received(Address(m.WORKER, number, 1), m.Hello(1)), cluster.now_ms)
    assert isinstance(said, answer)


def test_a_push_with_a_bad_row_in_a_later_section_is_applied_in_no_part(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    before = cluster.read(table(code="2+1"))
    sections = [m.Section([0], [1]), m.Section([0], [1])]
    ones = np.ones(4, np.float32).tobytes()
    frames = [np.array(rows[:1], np.int64).tobytes(), ones, np.array([10**6], np.int64).tobytes(), ones]
    (said,) = answers(machine, Received(SOMEBODY, m.Push(1, 1, 0, False, sections, tables=1), frames), cluster.now_ms)
    assert isinstance(said, m.PushRefused)
    assert cluster.read(table(code="2+1")).tobytes() == before.tobytes()


@pytest.mark.parametrize(("limit", "fits"), [(80, True), (79, False)])
def test_a_push_whose_deltas_fill_a_frame_is_taken_and_a_larger_one_refused(
    cluster: Cluster, limit: int, fits: bool
) -> None:
    machine = cluster.shard(0)
    machine.context.config = msgspec.structs.replace(machine.config, frame_bytes_max=limit)
    said = answers(machine, push(1, own_rows(cluster, 0, 5)), cluster.now_ms)
    assert [type(message) for message in said] == ([] if fits else [m.PushRefused])
    assert machine.watermarks.get(SOMEBODY.id, 0) == fits


@pytest.mark.parametrize(("limit", "answer"), [(80, m.Rows), (79, m.PullRefused)])
def test_an_answer_that_fills_the_limit_is_sent_and_a_larger_one_refused(
    cluster: Cluster, limit: int, answer: type
) -> None:
    machine = cluster.shard(0)
    machine.context.config = msgspec.structs.replace(machine.config, answer_bytes_max=limit)
    (said,) = answers(machine, pull(1, own_rows(cluster, 0, 5)), cluster.now_ms)
    assert isinstance(said, answer)


def test_a_cursor_rises_up_to_the_largest_number_and_is_refused_where_it_does_not_rise(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 1)
    assert answers(machine, push(1, rows, cursor=7), cluster.now_ms) == []
    (said,) = answers(machine, push(2, rows, cursor=7), cluster.now_ms)
    assert isinstance(said, m.PushRefused) and "only rises" in said.reason
    assert answers(machine, push(2, rows, cursor=m.NUMBER_MAX), cluster.now_ms) == []
    assert machine.watermarks[m.cursor_key(SOMEBODY.id)] == m.NUMBER_MAX


def test_pulls_of_two_with_the_same_number_both_wait_and_one_that_is_asked_again_waits_once(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 1)
    other = Address(m.WORKER, 6, 1)
    for source in (SOMEBODY, other, SOMEBODY):
        assert answers(machine, pull(3, rows, source, after=1), cluster.now_ms) == []
    assert [queued.source for queued in machine.context.pulls] == [SOMEBODY, other]


def test_a_life_of_a_worker_that_is_over_reads_nothing_and_a_tool_reads(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 1)
    machine.context.fence_worker(SOMEBODY.id, 1)
    assert [type(message) for message in answers(machine, pull(1, rows), cluster.now_ms)] == [m.Fenced]
    assert [type(message) for message in answers(machine, pull(1, rows, TOOL), cluster.now_ms)] == [m.Rows]
    assert not machine.context.pulls


# ------------------------------------------------------------------ what it says and when
def test_how_long_ago_a_peer_was_heard_counts_up_to_what_was_read(cluster: Cluster) -> None:
    machine, now_ms = cluster.shard(0), cluster.now_ms + 10 * HEARTBEAT_MS
    machine.peers[1].heard_ms, machine.peers[2].heard_ms = now_ms - 500.0, now_ms
    heard = []
    for read_ms in (now_ms - 100.0, now_ms + 100.0):
        machine.read_until(read_ms)
        machine.context.status_due = True
        effects = machine.handle(Tick(), now_ms)
        heard += [e.message.heard for e in effects if isinstance(e, Send) and isinstance(e.message, m.ShardStatus)]
    assert heard == [{1: 400, 2: 0}, {1: 500, 2: 0}]


def test_a_tick_is_wanted_when_a_pause_of_the_recovery_ends_unless_it_has_ended(cluster: Cluster) -> None:
    cluster.kill(1)
    cluster.declared(1)
    cluster.blocked.add((cluster.shards[0], cluster.next_process))
    machine = cluster.replace(1)
    heartbeat_ms = machine.heartbeats.said_ms + HEARTBEAT_MS
    machine.repairs.share.resume_ms = machine.context.now_ms + 1.0
    assert machine.deadline_ms == machine.context.now_ms + 1.0
    machine.repairs.share.resume_ms = machine.context.now_ms - 1.0
    assert machine.deadline_ms == min(heartbeat_ms, machine.windows.deadline_ms)


def test_a_replacement_that_is_whole_uses_huge_pages_and_nobody_while_a_push_waits(cluster: Cluster) -> None:
    cluster.kill(1)
    cluster.declared(1)
    machine = cluster.replace(1)
    cluster.drain()
    machine.handle(Tick(), cluster.now_ms)
    due_ms = machine._huge_pages_due_ms
    assert due_ms > cluster.now_ms
    rows = own_rows(cluster, 1, 1)
    machine.handle(push(1, rows, barrier=6, run=1, sequence=1), due_ms)
    assert machine.context.workers[SOMEBODY.id].queue
    machine.handle(Tick(), due_ms)
    assert machine._huge_pages_due_ms == due_ms


def test_a_status_names_the_connections_that_are_there_and_those_that_broke(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.handle(Connection(peer(1), up=True), cluster.now_ms)
    machine.handle(Connection(peer(2), up=True), cluster.now_ms)
    effects = machine.handle(Connection(peer(2), up=False), cluster.now_ms)
    (status,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.ShardStatus)]
    assert (status.linked, status.severed) == ([1], [2])
    busy = machine.while_busy(cluster.now_ms + HEARTBEAT_MS)
    assert sent(busy, m.Ping) == [peer(1)], "who is connected is told in the middle of an event too"


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
def test_a_frame_that_no_wire_takes_ends_the_process_also_if_it_is_one_of_several(
    cluster: Cluster, size: int, fits: bool
) -> None:
    machine = cluster.shard(0)
    machine.context.config = msgspec.structs.replace(machine.config, frame_bytes_max=100)
    frames = [b"short", bytes(size), b""]
    if fits:
        machine.context.send(machine.peers[1], m.Ping(asks=False), frames)
    else:
        with pytest.raises(HalfHandledError, match="101 bytes, and 100 can be sent"):
            machine.context.send(machine.peers[1], m.Ping(asks=False), frames)


def test_of_a_life_that_is_over_nothing_waits_and_of_others_all(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 1)
    other = Address(m.WORKER, 6, 1)
    for source in (SOMEBODY, other):
        machine.handle(push(1, rows, source, barrier=7, run=1, sequence=1), cluster.now_ms)
        machine.handle(pull(3, rows, source, after=2), cluster.now_ms)
    machine.context.fence_worker(SOMEBODY.id, 1)
    assert [len(machine.context.workers[worker.id].queue) for worker in (SOMEBODY, other)] == [0, 1]
    assert [queued.source for queued in machine.context.pulls] == [other]
    machine.context.fence_worker(other.id, 0)
    assert [queued.source for queued in machine.context.pulls] == [other] and machine.context.workers[other.id].queue

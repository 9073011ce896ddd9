"""Limits that protect memory and frames count bytes: rows may be wide, and no frame may be too long to be sent."""

from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from hypothesis import given
from hypothesis import strategies as st

from ecrec._native import Store
from ecrec.errors import RefusedError
from ecrec.protocol import arrays, wire
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Effect, HalfHandledError, Received, Send
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.table_memory import add_table

LIMIT = 16 << 10
CONFIG = ProtocolConfig(
    frame_bytes_max=LIMIT, window_bytes_max=8 << 10, seed_bytes_max=4 << 10, repair_bytes_max=4 << 10,
    scrub_bytes_max=4 << 10,
)  # fmt: skip
WIDE = table("wide", rows=120, dim=256, code="3+2")
"""Records of 1 KiB."""


class Measured(Cluster):
    """Keeps the longest frame of each kind of message between shards."""

    def __init__(self, n: int, config: ProtocolConfig) -> None:
        self.longest: dict[str, int] = {}
        self.count: dict[str, int] = {}
        super().__init__(n, config)

    def send(self, name: str, machine: Any, effect: Send) -> None:
        kind = type(effect.message).__name__
        if effect.to.role == m.SHARD and getattr(machine, "address", WORKER).role == m.SHARD:
            longest = max(map(arrays.frame_bytes, effect.frames), default=0)
            self.longest[kind] = max(longest, self.longest.get(kind, 0))
            self.count[kind] = self.count.get(kind, 0) + 1
        super().send(name, machine, effect)


WORKER = m.Address(m.WORKER, 0, 1)


def filled(config: ProtocolConfig = CONFIG) -> Measured:
    cluster = Measured(5, config)
    cluster.create(WIDE)
    for first in range(0, WIDE.rows, 6):
        cluster.push(WIDE, {row: 1.0 + row for row in range(first, first + 6)})
        cluster.settle_down(lambda: cluster.client.can_push)
    cluster.drain()
    return cluster


def test_no_frame_is_too_long_when_wide_rows_are_repaired_and_seeded() -> None:
    cluster = filled()
    before = cluster.read(WIDE)
    cluster.longest.clear()
    cluster.count.clear()
    for shard in (2, 3):
        cluster.kill(shard)
    for shard in (2, 3):
        cluster.replace(shard)
    cluster.drain()
    assert (cluster.read(WIDE) == before).all()
    cluster.scrub()
    assert max(cluster.longest.values()) <= LIMIT
    for kind in ("Repaired", "Marker", "Captured"):
        assert 1024 < cluster.longest[kind] <= CONFIG.repair_bytes_max, kind
    assert 1024 < cluster.longest["Window"] <= CONFIG.seed_bytes_max


def test_rows_that_a_pull_waits_for_are_asked_for_in_pieces_of_few_bytes() -> None:
    """At most so many pieces at a time, however many rows it waits for."""
    config = msgspec.structs.replace(CONFIG, repairs_wanted_max=2, repairs_in_flight_max=1)
    cluster = filled(config)
    before = cluster.read(WIDE)
    cluster.kill(2)
    to_new = {(cluster.shards[shard], cluster.next_process) for shard in range(5)}
    cluster.blocked |= to_new
    machine = cluster.replace(2)
    ticket = cluster.pull(WIDE, range(WIDE.rows))
    cluster.run()
    cluster.blocked -= to_new
    most = 0
    while ticket not in cluster.done:
        moved = cluster.deliver()
        asked = [len(a.keys) for a in machine.repairs.asked.values() if not a.background]
        assert all(count <= CONFIG.repair_bytes_max // 1024 for count in asked)
        most = max(most, len(asked))
        if not moved:
            cluster.tick()
    assert most == 2
    cluster.drain()
    assert (cluster.read(WIDE) == before).all()


def test_a_scrub_covers_no_more_than_a_server_allows() -> None:
    cluster = filled()
    leader = cluster.shard(3)
    tool = m.Address(m.TOOL, 1, 1)
    cluster.where[tool] = "tool"
    for rows_max in (2**40, 1):
        effects = leader.handle(Received(tool, m.Scrub(rows_max, 0, 0, rows_max)), cluster.now_ms)
        cluster.carry_out(cluster.shards[3], leader, effects)
        cluster.settle_down(lambda: bool(cluster.tool_answers))
        (answer, _) = cluster.tool_answers.pop()
        assert isinstance(answer, m.ScrubResult)
        assert answer.stripes == min(rows_max, CONFIG.scrub_bytes_max // 1024)
        assert answer.last < answer.size


# ------------------------------------------------------------------ pushes and windows
def test_a_push_whose_deltas_no_frame_can_hold_is_refused_with_the_numbers() -> None:
    cluster = filled()
    number = {s: cluster.shard(s).watermarks.get(0, 0) for s in range(5)}
    with pytest.raises(RefusedError, match=r"table 'wide'.* 24,576 bytes .* 16,384 can be sent"):
        cluster.push(WIDE, {row: 1.0 for row in range(WIDE.rows)})
    # A shard refuses it too, of a client that does not look.
    rows = cluster.by_shard(WIDE, range(WIDE.rows))[0]
    push = m.Push(cluster.client.epoch, number[0] + 1, 0, False, [m.Section([0], [len(rows)])])
    frames = (rows, np.ones(len(rows) * WIDE.dim, np.float32))
    effects = cluster.shard(0).handle(Received(cluster.client.address, push, frames), cluster.now_ms)
    (refusal,) = [e.message.reason for e in effects if isinstance(e, Send) and isinstance(e.message, m.PushRefused)]
    assert "would have up to 24576 bytes" in refusal and "16384" in refusal
    cluster.run()
    assert {s: cluster.shard(s).watermarks.get(0, 0) for s in range(5)} == number
    assert not cluster.stopped


def test_a_window_closes_before_a_push_that_would_make_it_too_long() -> None:
    """`window_bytes_max` closes it only after the push that exceeds it."""
    config = msgspec.structs.replace(
        CONFIG, window_bytes_max=1 << 20, windows_in_flight_max=1, window_interval_ms=1000.0
    )
    cluster = filled(config)
    cluster.longest.clear()
    cluster.blocked |= {(a, b) for a in cluster.shards.values() for b in cluster.shards.values()}
    for step in range(4):
        cluster.push(
            WIDE, {row: 1.0 + step for row in range(step * 25, step * 25 + 50 if step < 2 else step * 25 + 20)}
        )
        cluster.run()
    cluster.blocked.clear()
    cluster.drain()
    assert not cluster.failed and not cluster.stopped
    assert LIMIT // 4 < cluster.longest["Window"] <= LIMIT
    cluster.scrub()


@given(st.sampled_from([*OPTIMIZERS]), st.integers(1, 65_536))
def test_deltas_have_at_most_eight_times_the_bytes_of_their_push(optimizer: str, dim: int) -> None:
    """So that a section of a push, which is a frame from a worker, fits a window with whatever else is in it."""
    hyper = tuple(0.5 for _ in OPTIMIZERS[optimizer].hyper)
    spec = TableSpec("t", 8, dim, CodeSpec(1, 1), OptimizerSpec(optimizer, hyper), "zeros")
    store = Store(0, 2)
    add_table(store, spec, recovered=True)
    assert 2 * 8 <= store.record_bytes(0) <= 8 * 4 * dim


def test_a_section_of_a_push_always_fits_a_window() -> None:
    config = ProtocolConfig()
    assert config.frame_bytes_max == wire.FRAME_BYTES_MAX
    others = config.window_bytes_max + config.seed_bytes_max
    assert 8 * wire.REQUEST_BYTES_MAX + others <= wire.FRAME_BYTES_MAX


def test_a_message_that_cannot_be_sent_ends_the_process() -> None:
    """Left out it would be a hole in a stream that has none."""
    machine = filled().shard(0)
    keys = np.zeros(LIMIT // 8 + 1, np.uint64)
    text = "a Marker for shard 1 has a frame of 16392 bytes, and 16384 can be sent"
    with pytest.raises(HalfHandledError, match=text):
        machine.context.send(machine.peers[1], m.Marker(1, 1, m.Stripes(0, 0, 0)), (keys, keys[:0], keys[:0]))


def test_no_push_is_applied_while_too_many_bytes_wait_for_a_peer() -> None:
    """Windows close at their size whatever is in flight: for a peer that hangs they would grow with every push."""
    config = msgspec.structs.replace(CONFIG, window_bytes_max=2 << 10, unstable_bytes_max=20 << 10)
    cluster = filled(config)
    hung = cluster.shards[4]
    cluster.blocked |= {(a, hung) for a in cluster.shards.values()}
    for step in range(30):
        if cluster.client.can_push:
            cluster.push(WIDE, {row: 1.0 + step for row in range(25)})
        cluster.run()
    # One window more than the limit at most, of one push.
    most = max(cluster.shard(s).context.unstable_bytes for s in range(5))
    assert 20 << 10 <= most <= (20 << 10) + 4 * LIMIT
    assert any(w.queue for s in range(5) for w in cluster.shard(s).context.workers.values())
    cluster.blocked.clear()
    cluster.drain()
    assert {cluster.shard(s).context.unstable_bytes for s in range(5)} == {0}
    cluster.scrub()


# ------------------------------------------------------------------ what waits
def push_of(number: int, barrier: int, rows: int) -> Received:
    ids = np.zeros(rows, np.int64)
    section = m.Section([0], [rows])
    push = m.Push(1, number, barrier, False, [section], run=1, sequence=number)
    return Received(WORKER_1, push, (ids, np.zeros(rows * 256, np.float32)))


WORKER_1 = m.Address(m.WORKER, 1, 1)


def test_pushes_that_wait_are_bounded_by_bytes_but_for_the_next_one() -> None:
    cluster = filled(msgspec.structs.replace(CONFIG, push_queue_bytes_max=10_000))
    machine = cluster.shard(0)
    for number in range(1, 30):
        machine.handle(push_of(number, 2, 4), cluster.now_ms)
    assert [p.number for p in machine.context.workers[1].queue] == [1, 2, 3]


def test_pushes_of_all_workers_together_are_bounded_by_bytes_but_for_the_next_one_of_each() -> None:
    """A shard that waits for a settlement would otherwise hold `push_queue_bytes_max` of each worker."""
    config = msgspec.structs.replace(CONFIG, push_queue_bytes_max=10_000, push_queues_bytes_max=8_000)
    cluster = filled(config)
    machine = cluster.shard(0)
    for number in range(1, 5):
        for worker in (1, 2, 3):
            received = push_of(number, 4, 4)
            source = m.Address(m.WORKER, worker, 1)
            machine.handle(received._replace(source=source), cluster.now_ms)
    queued = {worker: [p.number for p in machine.context.workers[worker].queue] for worker in (1, 2, 3)}
    assert queued == {1: [1], 2: [1], 3: [1]}
    assert sum(state.queue.nbytes for state in machine.context.workers.values()) == 3 * (4 * 8 + 4 * 256 * 4)
    assert config.push_queues_bytes_max < 2 * (4 * 8 + 4 * 256 * 4), (
        "the third worker's first one came beyond the limit"
    )


def requests_refused(effects: list[Effect]) -> list[int]:
    return [e.message.request for e in effects if isinstance(e, Send) and isinstance(e.message, m.PullRefused)]


def test_pulls_that_wait_are_bounded_by_bytes_but_for_the_first_one() -> None:
    cluster = filled(msgspec.structs.replace(CONFIG, pulls_waiting_bytes_max=1000))
    machine = cluster.shard(0)
    effects: list[Effect] = []
    for request, rows in ((1, 500), (2, 1), (2, 1)):
        pull = m.Pull(request, 2**40, False, [m.Section([0], [rows])])
        effects += machine.handle(Received(WORKER_1, pull, (np.zeros(rows, np.int64),)), cluster.now_ms)
    assert [q.pull.request for q in machine.context.pulls] == [1]
    assert requests_refused(effects) == [2, 2]


def test_messages_that_wait_for_a_view_are_bounded_by_bytes_and_it_is_said() -> None:
    cluster = filled(msgspec.structs.replace(CONFIG, held_bytes_max=1000))
    machine, newer = cluster.shard(0), m.Address(m.SHARD, 1, 2)
    effects: list[Effect] = []
    taken = 0
    while machine.takes_from(newer):
        effects += machine.handle(Received(newer, m.Window(taken, 0, {}, {}, []), (b"", bytes(300))), cluster.now_ms)
        taken += 1
    assert taken == 4
    notes = [e.text for e in effects if not isinstance(e, Send) and "wait for the next one" in getattr(e, "text", "")]
    assert len(notes) == 1
    down = m.Views(0, [m.ShardDown(machine.view + 1, 1, 1)])
    machine.handle(Received(m.Address(m.SCHEDULER, 0, 0), down), cluster.now_ms)
    up = m.Views(0, [m.Settle(machine.view + 1, 1, 1, 0), m.ShardUp(machine.view + 2, 1, 2, "x", 0, {})])
    machine.handle(Received(m.Address(m.SCHEDULER, 0, 0), up), cluster.now_ms)
    assert (machine.peers[1].held, machine.peers[1].held_bytes) == ([], 0)


def test_messages_to_a_process_without_a_place_are_bounded_by_bytes() -> None:
    unplaced, peer = ShardMachine("p", "tcp://x:1"), m.Address(m.SHARD, 1, 1)
    unplaced.context.config = msgspec.structs.replace(CONFIG, unplaced_bytes_max=1000)
    taken = 0
    while unplaced.takes_from(peer):
        unplaced.handle(Received(peer, m.Window(taken, 0, {}, {}, []), (b"", bytes(300))), 0.0)
        taken += 1
    unplaced.handle(Received(peer, m.Window(taken, 0, {}, {}, []), (b"", bytes(300))), 0.0)
    assert taken == len(unplaced.early) == 4 and unplaced.early_bytes == 1200


def test_pushes_that_a_worker_keeps_are_bounded_by_bytes_but_for_the_next_one() -> None:
    cluster = filled(msgspec.structs.replace(CONFIG, pushes_kept_bytes_max=20_000))
    worker, made = cluster.client, 0
    assert worker.durable
    while worker.can_push:
        cluster.push(WIDE, dict.fromkeys(range(8), 1.0))
        made += 1
    assert made == 3, "8 rows of 8 bytes, and of 1,024 bytes of gradients"
    with pytest.raises(RuntimeError, match="24768 bytes of pushes are not durable yet"):
        worker.push({})
    cluster.settle_down(lambda: worker.durable)
    cluster.push(WIDE, dict.fromkeys(range(30), 1.0))
    assert not worker.can_push
    cluster.drain()
    assert worker.can_push

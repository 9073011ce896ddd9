"""A whole group of machines: pushes, deaths, repair, seeding."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec._native import Store
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnected, Received, Tick
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    SHARD,
    TOOL,
    UP,
    WORKER,
    Address,
    Pull,
    Register,
    Scrub,
    ScrubResult,
    Section,
)
from ecrec.protocol.scheduler import SchedulerMachine


def expected(steps: list[dict[int, float]], initial: np.ndarray) -> np.ndarray:
    """Plain SGD in numpy."""
    weights = initial.copy()
    for step in steps:
        for row, gradient in step.items():
            weights[row] -= np.float32(0.5) * np.float32(gradient)
    return weights


@pytest.mark.parametrize(
    ("n", "code"), [(5, "4+1"), (5, "3+2"), (5, "1+1"), (3, "1+2"), (4, "4+0"), (6, "3+2"), (2, "1+1")]
)
def test_pushes_are_applied_and_parity_follows(n: int, code: str) -> None:
    cluster, spec = Cluster(n), table(code=code)
    cluster.create(spec)
    initial = cluster.read(spec)
    steps = [{r: 0.25 * (r + s) for r in range(s, spec.rows, 3)} for s in range(4)]
    for step in steps:
        cluster.push(spec, step)
        cluster.run()
    cluster.drain()
    assert cluster.read(spec).tobytes() == expected(steps, initial).tobytes()
    cluster.scrub()


@pytest.mark.parametrize(("n", "code", "dead"), [
    (5, "4+1", [2]), (5, "3+2", [1, 3]), (5, "3+2", [0]), (5, "1+1", [4]), (3, "1+2", [0, 2]), (6, "3+2", [5, 0]),
])  # fmt: skip
def test_after_deaths_nothing_is_lost(n: int, code: str, dead: list[int]) -> None:
    cluster, spec = Cluster(n), table(code=code, rows=100)
    cluster.create(spec)
    initial = cluster.read(spec)
    steps = [{r: 0.25 * (r + s) for r in range(s, spec.rows, 3)} for s in range(8)]
    for step in steps[:3]:
        cluster.push(spec, step)
        cluster.run()
    cluster.push(spec, steps[3])
    cluster.deliver()
    for shard in dead:
        cluster.kill(shard, keep=1)
    for shard in dead:
        assert cluster.replace(shard).state in (RECOVERING, UP)
    for step in steps[4:]:
        cluster.settle_down(lambda: cluster.client.can_push)
        cluster.push(spec, step)
    cluster.drain()
    assert not cluster.failed
    assert cluster.read(spec).tobytes() == expected(steps, initial).tobytes()
    cluster.scrub()


def test_the_same_shard_dies_again_while_it_recovers() -> None:
    cluster, spec = Cluster(5), table(rows=200)
    cluster.create(spec)
    initial = cluster.read(spec)
    steps = [{r: 0.5 * (r + s) for r in range(s, spec.rows, 2)} for s in range(6)]
    for i, step in enumerate(steps):
        cluster.settle_down(lambda: cluster.client.can_push)
        cluster.push(spec, step)
        if i % 2:
            cluster.kill(2)
            cluster.shards[2] = cluster.start(2)
            cluster.tick()
            cluster.deliver()
    cluster.drain()
    assert cluster.read(spec).tobytes() == expected(steps, initial).tobytes()
    cluster.scrub()
    assert cluster.shard(2).epoch == 4


def test_a_pull_of_lost_rows_is_answered_by_the_replacement_before_the_sweep_is_done() -> None:
    config = ProtocolConfig(repair_rows_max=1, repairs_in_flight_max=1)
    cluster, spec = Cluster(5, config), table(rows=400)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    before = cluster.read(spec)
    cluster.kill(1)
    cluster.replace(1)
    row = next(r for r in range(200, spec.rows) if (r // 4 + r % 4) % 5 == 1)
    ticket = cluster.pull(spec, [row])
    cluster.settle_down(lambda: ticket in cluster.done)
    assert np.frombuffer(cluster.done[ticket][1][0], np.float32).tobytes() == before[row].tobytes()
    cluster.drain()
    assert cluster.read(spec).tobytes() == before.tobytes()


def test_an_exact_pull_waits_for_the_push_that_it_names() -> None:
    cluster, spec = Cluster(3), table(code="2+1")
    cluster.create(spec)
    initial = cluster.read(spec)
    cluster.push(spec, {0: 1.0})
    ticket = cluster.pull(spec, [0])
    assert not cluster.client.can_push
    cluster.run()
    assert cluster.client.can_push
    assert np.frombuffer(cluster.done[ticket][0][0], np.float32).tobytes() == (initial[0] - np.float32(0.5)).tobytes()


def test_a_refused_push_changes_nothing_and_names_the_row() -> None:
    cluster, spec = Cluster(3), table(code="2+1")
    cluster.create(spec)
    before = cluster.read(spec)
    cluster.push(spec, {0: 1.0, 2: float("nan"), 3: 1.0})
    cluster.tick()
    cluster.run()
    assert any("row 2" in reason and "finite" in reason for reason in cluster.failed), cluster.failed
    holder = cluster.shard((2 // 2 + 2 % 2) % 3)
    assert holder.marks == {}
    out = np.empty(16, np.uint8)
    holder.store.gather(np.array([0], np.int32), np.array([1], np.int64), np.array([2], np.int64), out)
    assert out.tobytes() == before[2].tobytes()


def test_more_deaths_than_the_code_stands_are_announced() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.kill(0)
    cluster.kill(3)
    cluster.settle_down(lambda: bool(cluster.failed))
    assert "data lost" in cluster.failed[0]
    assert "0 (down), 3 (down)" in cluster.failed[0]
    assert "'t'" in cluster.failed[0] or " t" in cluster.failed[0]


def test_a_table_added_while_a_shard_recovers_is_whole() -> None:
    config = ProtocolConfig(repair_rows_max=1, seed_rows_max=1)
    cluster, spec = Cluster(5, config), table(rows=300)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.kill(4)
    cluster.blocked.add((cluster.shards[0], cluster.next_process))
    cluster.replace(4)
    other, dense = table("u", rows=100, dim=3), table("dense", rows=20, dim=8, code="1+1")
    cluster.create(other)
    cluster.create(dense)
    assert cluster.shard(4).state == RECOVERING
    cluster.push(other, dict.fromkeys(range(other.rows), 2.0))
    cluster.run()
    cluster.blocked.clear()
    cluster.drain()
    cluster.push(dense, dict.fromkeys(range(dense.rows), 2.0))
    cluster.drain()
    cluster.scrub()


def test_a_scheduler_restarted_from_its_state_goes_on() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.machines["scheduler"] = cluster.scheduler = SchedulerMachine(5, 1, cluster.config, cluster.state)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    assert [p.epoch for p in cluster.scheduler.state.groups[0].places] == [1] * 5
    cluster.kill(2)
    cluster.machines["scheduler"] = cluster.scheduler = SchedulerMachine(5, 1, cluster.config, cluster.state)
    cluster.replace(2)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    assert [p.epoch for p in cluster.scheduler.state.groups[0].places] == [1, 1, 2, 1, 1]
    cluster.scrub()


def test_a_fenced_shard_stops() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    zombie = cluster.shard(3)
    cluster.give("scheduler", Disconnected(zombie.address))
    cluster.replace(3)
    cluster.settle_down(lambda: zombie.process in cluster.stopped)
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.scrub()


def test_a_scrub_finds_a_wrong_parity_byte() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    holder = cluster.shard(4)
    # a delta that no data row has: stripe 0 of table 0 has its parity on shard 4
    wrong = np.zeros(holder.store.record_bytes(0), np.uint8)
    wrong[3] = 1
    holder.store.fold(0, 2**64 - 1, np.array([0], np.uint64), wrong)
    tool = Address(TOOL, 7, 1)
    cluster.give(cluster.shards[4], Received(tool, Scrub(1, 0, 0, 100)))
    cluster.run()
    result, frames = cluster.tool_answers[-1]
    assert isinstance(result, ScrubResult)
    assert (result.last, result.size) == (2, 2)
    assert np.frombuffer(frames[0], np.uint64).tolist() == [0]


def test_a_pause_of_the_whole_machine_kills_nobody() -> None:
    cluster = Cluster(5)
    cluster.now_ms += 10_000
    cluster.give("scheduler", Tick())
    for _ in range(10):
        cluster.tick()
        cluster.run()
    assert [p.epoch for p in cluster.scheduler.state.groups[0].places] == [1] * 5


def test_a_silent_shard_is_down_after_the_timeout() -> None:
    cluster = Cluster(5)
    cluster.machines.pop(cluster.shards[3])
    while cluster.scheduler.state.groups[0].places[3].state == UP:
        cluster.tick()
        cluster.run()
        assert cluster.now_ms < 2_000


def test_another_process_at_the_endpoint_means_that_the_old_one_is_dead() -> None:
    cluster = Cluster(5)
    machine = cluster.shard(1)
    cluster.give("scheduler", Received(Address(SHARD, -1, 0), Register("new", machine.endpoint, 1)))
    assert cluster.scheduler.state.groups[0].places[1].state == DOWN


def test_an_answer_too_large_for_a_message_is_refused() -> None:
    cluster, spec = Cluster(3, ProtocolConfig(answer_bytes_max=100)), table(code="2+1")
    cluster.create(spec)
    cluster.pull(spec, range(spec.rows))
    cluster.settle_down(lambda: bool(cluster.failed))
    assert "100 can be sent" in cluster.failed[0]


def test_many_silent_shards_are_given_more_time() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    muted = [cluster.shards[i] for i in (1, 2, 3)]
    cluster.blocked |= {(name, "scheduler") for name in muted}
    while cluster.now_ms < cluster.config.heartbeat_timeout_many_ms - 500:
        cluster.tick()
        cluster.run()
    assert [p.epoch for p in cluster.scheduler.state.groups[0].places] == [1] * 5
    assert all(p.state == UP for p in cluster.scheduler.state.groups[0].places)
    cluster.blocked.clear()
    cluster.blocked.add((muted[0], "scheduler"))
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[1].state != UP)


class WatchedStore:
    """A store that keeps what it is asked to do for huge pages."""

    def __init__(self, store: Store) -> None:
        self.extents: list[int] = []
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def use_huge_pages(self, extents: int) -> None:
        self.extents.append(extents)
        self._store.use_huge_pages(extents)


def test_huge_pages_are_made_now_and_then_while_nobody_waits() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    machine, extents = cluster.shard(1), cluster.config.huge_pages_extents
    machine.store = watched = WatchedStore(machine.store)
    cluster.tick(20)
    cluster.tick(5)
    assert watched.extents == [extents]
    cluster.tick(15)
    assert watched.extents == [extents] * 2
    waits = Pull(1, 1, False, [Section([0], [1])])
    row = np.array([1], np.int64)
    cluster.give(cluster.shards[1], Received(Address(WORKER, 0, cluster.client.epoch), waits, (row.view(np.uint8),)))
    assert machine.pulls
    cluster.tick(100)
    assert watched.extents == [extents] * 2
    machine.pulls.clear()
    cluster.tick(20)
    assert watched.extents == [extents] * 3
    cluster.kill(4)
    cluster.settle_down(lambda: machine.peers[4].state == DOWN)
    watched.extents.clear()
    cluster.tick(100)
    assert not watched.extents
    cluster.replace(4)
    cluster.settle_down(lambda: machine.peers[4].state == UP)
    cluster.tick(20)
    assert watched.extents

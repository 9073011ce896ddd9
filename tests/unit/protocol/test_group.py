"""A whole group of machines: pushes, deaths, repair, seeding."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec._native import Store
from ecrec.errors import GradientError, RefusedError
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnected, Received, Send, Tick
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    UP,
    WORKER,
    Address,
    Flush,
    Pull,
    PullRefused,
    Push,
    PushRefused,
    Section,
    ShardStatus,
)
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.suspicion import cut_off


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
            cluster.declared(2)
            cluster.shards[2] = cluster.start(2)
            cluster.tick()
            cluster.deliver()
    cluster.drain()
    assert cluster.read(spec).tobytes() == expected(steps, initial).tobytes()
    cluster.scrub()
    assert cluster.shard(2).context.epoch == 4


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
    with pytest.raises(GradientError, match="table 't', row 2, column 0 is nan"):
        cluster.push(spec, {0: 1.0, 2: float("nan"), 3: 1.0})
    holder = cluster.shard((2 // 2 + 2 % 2) % 3)
    push, frames = Push(1, 1, 0, False, [Section([0], [1])]), (np.array([2]), np.full(4, np.nan, np.float32))
    effects = holder.handle(Received(Address(WORKER, 0, 1), push, frames), cluster.now_ms)
    (reason,) = [e.message.reason for e in effects if isinstance(e, Send) and isinstance(e.message, PushRefused)]
    assert "row 2" in reason and "finite" in reason
    assert holder.watermarks == {}
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
    cluster.blocked.add((cluster.shards[3], "scheduler"))
    cluster.give("scheduler", Disconnected(zombie.address))
    cluster.declared(3)
    cluster.blocked.clear()
    cluster.replace(3)
    cluster.settle_down(lambda: zombie.process in cluster.stopped)
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.scrub()


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


def test_an_answer_too_large_for_a_message_is_refused() -> None:
    cluster, spec = Cluster(3, ProtocolConfig(answer_bytes_max=100)), table(code="2+1")
    cluster.create(spec)
    with pytest.raises(RefusedError, match="100 can be sent"):
        cluster.pull(spec, range(spec.rows))
    rows = cluster.by_shard(spec, range(spec.rows))[0]
    pull = Pull(1, 0, False, [Section([0], [len(rows)])])
    effects = cluster.shard(0).handle(Received(cluster.client.address, pull, (rows,)), cluster.now_ms)
    (reason,) = [e.message.reason for e in effects if isinstance(e, Send) and isinstance(e.message, PullRefused)]
    assert "100 can be sent" in reason


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


def cut(cluster: Cluster, *pairs: tuple[int, int]) -> None:
    """Nothing goes between these shards any more, in either direction."""
    for a, b in pairs:
        cluster.blocked |= {(cluster.shards[a], cluster.shards[b]), (cluster.shards[b], cluster.shards[a])}


def test_of_two_members_that_do_not_reach_each_other_one_is_replaced() -> None:
    """Both are heard by the scheduler, but no push would ever be durable again."""
    cluster, spec = Cluster(5), table(rows=100)
    cluster.create(spec)
    initial = cluster.read(spec)
    steps = [{r: 0.25 * (r + s) for r in range(s, spec.rows, 3)} for s in range(8)]
    for step in steps[:2]:
        cluster.push(spec, step)
        cluster.run()
    cut(cluster, (1, 3))
    for step in steps[2:6]:
        cluster.push(spec, step)
        cluster.tick()
    begin_ms = cluster.now_ms
    cluster.settle_down(lambda: any(p.state == DOWN for p in cluster.scheduler.state.groups[0].places))
    assert begin_ms + cluster.config.link_timeout_ms / 2 < cluster.now_ms
    (dead,) = [s for s, p in enumerate(cluster.scheduler.state.groups[0].places) if p.state == DOWN]
    assert dead in (1, 3)
    cluster.settle_down(lambda: cluster.shards[dead] in cluster.stopped)  # it hears that it is dead, and ends
    cluster.replace(dead)
    for step in steps[6:]:
        cluster.settle_down(lambda: cluster.client.can_push)
        cluster.push(spec, step)
    cluster.drain()
    assert cluster.read(spec).tobytes() == expected(steps, initial).tobytes()
    cluster.scrub()


def test_the_one_whose_network_is_gone_is_replaced_not_those_who_miss_it() -> None:
    cluster, spec = Cluster(5), table(rows=100)
    cluster.create(spec)
    cut(cluster, (1, 0), (1, 2), (1, 4))
    cluster.push(spec, dict.fromkeys(range(100), 0.25))
    cluster.settle_down(lambda: any(p.state == DOWN for p in cluster.scheduler.state.groups[0].places))
    assert [p.state for p in cluster.scheduler.state.groups[0].places] == [UP, DOWN, UP, UP, UP]


def test_a_cut_network_that_would_cost_data_kills_nobody() -> None:
    """One is gone already, and r = 1: who is left waits until the network is back."""
    cluster, spec = Cluster(5), table(rows=100)
    cluster.create(spec)
    cluster.kill(0)
    cut(cluster, (1, 3))
    cluster.push(spec, dict.fromkeys(range(100), 0.25))
    for _ in range(500):
        cluster.tick()
        cluster.run()
    assert [p.state for p in cluster.scheduler.state.groups[0].places] == [DOWN, UP, UP, UP, UP]
    cluster.blocked.clear()
    cluster.replace(0)
    cluster.drain()
    cluster.scrub()


def test_who_misses_a_dead_one_is_not_replaced_in_its_stead() -> None:
    """None of 1+2 would be whole: the scheduler waits with the third, which who recovers has not heard for long."""
    cluster, spec = Cluster(3), table(rows=100, code="1+2")
    cluster.create(spec)
    cluster.kill(0)
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[0].state == DOWN)
    config = cluster.config
    assert config.heartbeat_timeout_ms < config.link_timeout_ms < config.heartbeat_timeout_many_ms
    recovers = cluster.scheduler.state.groups[0].places[1]
    recovers.state, recovers.weak_since = RECOVERING, 1 << 30
    cluster.machines.pop(cluster.shards[2])
    cluster.push(spec, dict.fromkeys(range(100), 0.25))
    begin_ms = cluster.now_ms
    while cluster.now_ms < begin_ms + config.link_timeout_ms + 10 * config.heartbeat_ms / 2:
        cluster.tick()
        cluster.run()
    assert [*cluster.shard(1).windows.late()] == [2] and 2 in cluster.shard(1).heartbeats.unheard()
    assert [p.state for p in cluster.scheduler.state.groups[0].places] == [DOWN, RECOVERING, UP]


def test_a_member_that_stood_still_accuses_nobody() -> None:
    """Time in which it did nothing is not time in which it waited."""
    cluster, spec = Cluster(5), table(rows=100)
    cluster.create(spec)
    cut(cluster, (1, 3))
    cluster.push(spec, dict.fromkeys(range(100), 0.25))
    machine = cluster.shard(1)
    cluster.settle_down(lambda: 1 in machine.context.unstable and machine.context.unstable[1].waiting == {3})
    machine.handle(Tick(), cluster.now_ms + 10 * cluster.config.link_timeout_ms)
    assert machine.windows.late() == {} and machine.heartbeats.unheard() == []
    cluster.now_ms += 10 * cluster.config.link_timeout_ms
    cluster.settle_down(lambda: [*machine.windows.late()] == [3] and machine.heartbeats.unheard() == [3])


@pytest.mark.parametrize(("accusations", "whole", "victim"), [
    ({(1, 3), (3, 1)}, {0, 1, 2, 3, 4}, 3),
    ({(3, 1)}, {0, 1, 2, 3, 4}, 1),
    ({(1, 3), (3, 1)}, {0, 2, 3, 4}, 1),
    ({(1, 0), (1, 2), (1, 4)}, {0, 1, 2, 3, 4}, 1),
    ({(0, 1), (2, 1), (1, 2)}, {0, 1, 2, 3, 4}, 1),
    (set(), {0, 1}, None),
])  # fmt: skip
def test_who_is_taken_out_when_members_miss_each_other(accusations, whole, victim) -> None:
    assert cut_off(accusations, whole) == victim


class WatchedStore:
    """A store that keeps what it is asked to do for huge pages."""

    def __init__(self, store: Store) -> None:
        self.extents: list[int] = []
        self.goes_on = True
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def use_huge_pages(self, extents: int) -> bool:
        self.extents.append(extents)
        self._store.use_huge_pages(extents)
        return self.goes_on


def test_huge_pages_are_made_now_and_then_while_nobody_waits() -> None:
    cluster, spec = Cluster(5), table()
    cluster.create(spec)
    machine, extents = cluster.shard(1), cluster.config.huge_pages_extents
    machine.context.store = watched = WatchedStore(machine.store)
    cluster.tick(50)
    cluster.tick(20)
    assert watched.extents == [extents]
    cluster.tick(30)
    assert watched.extents == [extents] * 2
    waits = Pull(1, 1, False, [Section([0], [1])])
    row = np.array([1], np.int64)
    cluster.give(cluster.shards[1], Received(Address(WORKER, 0, cluster.client.epoch), waits, (row.view(np.uint8),)))
    assert machine.context.pulls
    cluster.tick(100)
    assert watched.extents == [extents] * 2
    machine.context.pulls.clear()
    watched.goes_on = False
    cluster.tick(50)
    assert watched.extents == [extents] * 3
    cluster.tick(cluster.config.huge_pages_pause_ms - 1.0)
    assert watched.extents == [extents] * 3, "all was looked at, and nothing was to be done"
    watched.goes_on = True
    cluster.tick(1.0)
    assert watched.extents == [extents] * 4
    cluster.kill(4)
    cluster.settle_down(lambda: machine.peers[4].state == DOWN)
    watched.extents.clear()
    cluster.tick(100)
    assert not watched.extents
    cluster.replace(4)
    cluster.settle_down(lambda: machine.peers[4].state == UP)
    cluster.tick(50)
    assert watched.extents


def test_acknowledgements_ride_on_windows_while_pushes_come() -> None:
    cluster, t = Cluster(5), table()
    cluster.create(t)
    cluster.drain()
    sent: Counter[str] = Counter()
    send = cluster.send

    def counted(name, machine, effect) -> None:
        sent[type(effect.message).__name__] += 1
        send(name, machine, effect)

    cluster.send = counted  # type: ignore[method-assign]
    for _ in range(50):
        cluster.push(t, {row: 0.5 for row in range(t.rows)})
        cluster.run()
        cluster.tick()
    assert sent["Window"] >= 50
    assert 20 * sent["WindowAck"] <= sent["Window"], "they went alone though windows went the same way"
    cluster.tick(ProtocolConfig().window_interval_ms)
    cluster.run()
    cluster.tick(ProtocolConfig().ack_delay_ms)
    cluster.run()
    assert cluster.client.acked == cluster.client.pushed, "nothing more comes that could take an acknowledgement along"


def test_a_worker_that_waits_need_not_wait_for_the_next_window() -> None:
    cluster, t = Cluster(5), table()
    cluster.create(t)
    cluster.drain()
    for _ in range(3):
        cluster.push(t, dict.fromkeys(range(t.rows), 0.5))
        cluster.run()
    assert not cluster.client.durable
    cluster.carry_out("worker-0", cluster.client, cluster.client.flush())
    cluster.run()
    cluster.tick(ProtocolConfig().ack_delay_ms)
    cluster.run()
    assert cluster.client.durable
    assert cluster.client.flush() == []


def test_a_flush_is_of_the_pushes_before_it() -> None:
    cluster, t = Cluster(5), table()
    cluster.create(t)
    cluster.drain()
    shard = cluster.shard(0)
    flush = Received(cluster.client.address, Flush(cluster.client.pushed[0] + 1), ())
    shard.handle(flush, cluster.now_ms)
    first = shard.context.window_number
    for _ in range(3):  # the first goes out at once, after a pause; the next, after the flush, waits for its time
        cluster.push(t, dict.fromkeys(range(t.rows), 0.5))
        cluster.run()
    assert shard.context.window_number == first + 1
    assert shard.context.open_pushes == {0: 2}


def test_a_fast_worker_need_not_wait_for_the_time_of_a_window() -> None:
    cluster, t = Cluster(5), table()
    cluster.create(t)
    cluster.drain()
    for _ in range(4 * ProtocolConfig().pushes_in_flight_max):
        assert cluster.client.can_push
        cluster.push(t, dict.fromkeys(range(t.rows), 0.5))
        cluster.run()
        cluster.tick(2.0)
    shard = cluster.shard(0)
    assert shard.context.window_number - 1 <= 4 * 64 / ProtocolConfig().window_pushes_max + 3, "windows of few pushes"


def test_a_shard_wants_a_tick_for_its_next_heartbeat() -> None:
    cluster = Cluster(2)
    shard = cluster.shard(0)
    cluster.settle_down(lambda: shard.state == UP)
    told_ms = cluster.now_ms
    cluster.tick(0.0)
    while shard.deadline_ms <= cluster.now_ms:
        cluster.tick(1.0)
        told_ms = cluster.now_ms
    assert shard.deadline_ms <= told_ms + cluster.config.heartbeat_ms
    cluster.now_ms = shard.deadline_ms
    status = [e for e in shard.handle(Tick(), cluster.now_ms) if isinstance(getattr(e, "message", None), ShardStatus)]
    assert len(status) == 1
    assert shard.deadline_ms == cluster.now_ms + cluster.config.heartbeat_ms

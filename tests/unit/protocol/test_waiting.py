"""A worker that waits: it knows who does not answer it, and the scheduler hears of that, and ends nobody for it."""

from cluster import Cluster
from doubts import epochs, formed, pass_time, states

from ecrec.protocol import messages as m
from ecrec.protocol.events import Received, Send, Tick
from ecrec.protocol.messages import DOWN, TOOL, UP, WORKER, Address


def cut_off(cluster: Cluster, shard: int) -> None:
    """The worker and a shard do not reach each other; everybody else does."""
    name = cluster.shards[shard]
    cluster.blocked |= {("worker-0", name), (name, "worker-0")}


def unheard(cluster: Cluster) -> dict[int, dict[int, int]]:
    """What `ecrec status` says."""
    cluster.give("scheduler", Received(Address(TOOL, 9, 0), m.ClusterQuery(1)))
    cluster.run()
    state = cluster.tool_answers[-1][0]
    assert isinstance(state, m.ClusterState)
    return state.unheard


def test_a_shard_that_only_this_worker_does_not_reach_is_known_and_shown_and_stays() -> None:
    cluster, spec = formed()
    cut_off(cluster, 2)
    cluster.push(spec, {0: 1.0})
    cluster.client.wait(True)
    pings = cluster.shard(2).peers[0].pinged_ms
    pass_time(cluster, 6_000.0)
    assert list(cluster.client.unheard(cluster.config.heartbeat_timeout_ms)) == [2]
    assert cluster.client.unheard(0.0)[2] > 5_000.0
    assert [*unheard(cluster)] == [2] and unheard(cluster)[2][0] > 5_000
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5 and not cluster.stopped
    assert cluster.shard(2).peers[0].pinged_ms >= pings and cluster.shard(0).peers[2].heard_ms is not None
    assert cluster.client.endpoint_of(2) == cluster.shard(2).endpoint
    cluster.blocked.clear()
    pass_time(cluster, 1_000.0)
    assert not cluster.client.unheard(cluster.config.heartbeat_timeout_ms) and not unheard(cluster)
    cluster.drain()


def test_its_peers_are_asked_about_a_shard_that_a_worker_does_not_hear() -> None:
    cluster, _ = formed()
    status = m.WorkerStatus("worker-0", [99], {}, waits=True, unheard={2: 5000, 77: 1})
    asked: list[Address] = []
    cluster.scheduler.handle(Received(cluster.client.address, status), cluster.now_ms)
    for _ in range(3):
        effects = cluster.scheduler.handle(Tick(), cluster.now_ms)
        asked += [e.to for e in effects if isinstance(e, Send) and e.message == m.Probe([2])]
    assert sorted(each.id for each in asked) == [0, 1, 2, 3, 4], "each once in view_resend_ms"
    assert unheard(cluster) == {2: {0: 5000}}


def test_words_of_workers_end_nobody() -> None:
    cluster, _ = formed()
    for worker in range(20):
        status = m.WorkerStatus(f"w{worker}", [], {}, unheard=dict.fromkeys(range(5), m.NUMBER_MAX))
        for source in (Address(WORKER, worker, 0), Address(TOOL, worker, 0)):
            cluster.give("scheduler", Received(source, status))
    pass_time(cluster, 5_000.0)
    assert states(cluster) == [UP] * 5 and not cluster.stopped and not cluster.scheduler.state.groups[0].lost


def test_one_that_only_waits_for_a_recovery_is_heard() -> None:
    """Nothing is durable while a shard is down, and nobody answers a push: that is no silence."""
    cluster, spec = formed()
    cluster.kill(1)
    cluster.declared(1)
    cluster.push(spec, dict.fromkeys(range(20), 1.0))
    cluster.client.wait(True)
    pass_time(cluster, 10_000.0)
    assert states(cluster)[1] == DOWN
    assert list(cluster.client.down()) == [1] and 9_000.0 < cluster.client.down()[1] < 12_000.0
    assert not cluster.client.unheard(cluster.config.heartbeat_timeout_ms) and not unheard(cluster)
    assert (cluster.client.scheduler_silent_ms or 0.0) < cluster.config.heartbeat_timeout_ms
    cluster.replace(1)
    cluster.drain()
    assert cluster.client.down() == {}


def test_who_does_not_wait_asks_for_nothing() -> None:
    cluster, _ = formed()
    cluster.client.wait(True)
    cluster.client.wait(False)
    cut_off(cluster, 2)
    pass_time(cluster, 6_000.0)
    assert not cluster.client.unheard(0.0) and not unheard(cluster)


def test_a_scheduler_that_is_away_is_silent_for_the_one_who_waits() -> None:
    cluster, _ = formed()
    cluster.client.wait(True)
    pass_time(cluster, 500.0)
    assert (cluster.client.scheduler_silent_ms or 0.0) < 300.0
    cluster.machines.pop("scheduler")
    pass_time(cluster, 5_000.0)
    assert (cluster.client.scheduler_silent_ms or 0.0) > 4_500.0

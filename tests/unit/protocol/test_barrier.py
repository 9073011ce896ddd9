"""Pushes of a barrier are applied as one, and only those of one run, kind and size."""

import numpy as np
import pytest
from cluster import Cluster, table
from workers import add_worker, do, push, start_run

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send
from ecrec.protocol.messages import (
    RECOVERING,
    RUN_BITS,
    WORKER,
    Address,
    JoinRun,
    Push,
    PushRefused,
    RunJoined,
    Section,
)
from ecrec.protocol.runs import Runs
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.state import RunState

OTHER = Address(WORKER, 1, 5)


def start_to_recover(cluster: Cluster, shard: int) -> ShardMachine:
    """A replacement that can serve and has hardly begun to repair."""
    cluster.shards[shard] = cluster.start(shard)
    replacement = cluster.shard(shard)
    for _ in range(1000):
        if replacement.state == RECOVERING and not any(p.is_joined_blind for p in replacement.peers.values()):
            return replacement
        if not cluster.deliver():
            cluster.tick()
    raise AssertionError("the replacement was not placed")


def barrier_of(run: int, sequence: int, number: int, size: int = 2, assign: bool = False) -> Push:
    return Push(5, number, size, assign, [], 0, run, sequence)


def test_a_barrier_waits_for_the_push_of_the_other_worker_not_for_an_earlier_one() -> None:
    config = ProtocolConfig(repair_rows_max=1, repairs_in_flight_max=1)
    cluster, spec = Cluster(5, config), table(rows=400)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.kill(1)
    replacement = start_to_recover(cluster, 1)
    cluster.blocked |= {(cluster.shards[peer], cluster.shards[1]) for peer in (0, 2, 3, 4)}

    own = Received(Address(WORKER, 0, 1), barrier_of(9, 1, 2), ())
    cluster.give(cluster.shards[1], own)
    lost = next(r for r in range(390, spec.rows) if (r // 4 + r % 4) % 5 == 1)
    gradient = np.ones(spec.dim, np.float32)
    early = Push(5, 1, 0, False, [Section([0], [1])])
    cluster.give(cluster.shards[1], Received(OTHER, early, (np.array([lost], np.int64), gradient)))
    assert (replacement.watermarks.get(0), replacement.watermarks.get(1)) == (1, None)

    cluster.blocked.clear()
    cluster.settle_down(lambda: replacement.watermarks.get(1) == 1)
    assert replacement.watermarks[0] == 1
    cluster.give(cluster.shards[1], Received(OTHER, barrier_of(9, 1, 2), ()))
    assert (replacement.watermarks[0], replacement.watermarks[1]) == (2, 2)


def test_pushes_of_one_barrier_need_not_have_one_number() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first = cluster.client
    for _ in range(3):  # an earlier run, of one worker
        cluster.push(spec, {0: 1.0})
    cluster.drain()
    second = add_worker(cluster, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 1.0, 7: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 2.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    assert (first.pushed[0], second.pushed[0]) == (4, 1)
    assert {first.failed, second.failed} == {""}

    third = add_worker(cluster, 2)  # and then one of three
    first, second = add_worker(cluster, 0, 1), add_worker(cluster, 1, 1)
    start_run(cluster, first, second, third)
    for machine in (third, second, first):
        push(cluster, machine, spec, {3: 1.0}, barrier=3)
    cluster.settle_down(lambda: all(machine.durable for machine in (first, second, third)))
    assert cluster.shard(0).watermarks == {0: 5, 1: 2, 2: 1}


def test_a_plain_gradient_of_another_run_is_never_written_as_weights() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    before = cluster.read(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 42.0}, barrier=2, assign=True)
    push(cluster, second, spec, {1: 1.0})  # of the same number, and no part of the barrier
    cluster.settle_down(lambda: second.durable)
    assert cluster.shard(0).watermarks.get(0, 0) == 0
    push(cluster, second, spec, {}, barrier=2, assign=True)
    cluster.settle_down(lambda: first.durable and second.durable)
    after = cluster.read(spec)
    assert np.all(after[0] == 42.0)
    np.testing.assert_allclose(after[1], before[1] - 0.5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_workers_that_disagree_about_the_kind_are_told_at_once_and_nothing_is_applied(order: tuple[int, ...]) -> None:
    """Whatever order the pushes come in on a shard, and for a third worker, too."""
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    workers = [cluster.client, add_worker(cluster, 1), add_worker(cluster, 2)]
    start_run(cluster, *workers)
    before = cluster.read(spec)
    for i in order:
        push(cluster, workers[i], spec, {0: 1.0, 1: 1.0, 2: 1.0, 5: 1.0}, barrier=3, assign=i == 1)
        for _ in range(2 * i):
            cluster.deliver()
    begin_ms = cluster.now_ms
    cluster.settle_down(lambda: all(machine.failed for machine in workers))
    assert cluster.now_ms - begin_ms < 3 * cluster.config.resend_ms
    for machine in workers:
        assert machine.failed_kind == "refused"
        for part in ("barrier 1 of worker", "worker 1 (its push 1) sets weights", "steps with gradients", "run 1"):
            assert part in machine.failed
    assert all(sum(cluster.shard(s).watermarks.values()) == 0 for s in range(3))
    reader = add_worker(cluster, 3)
    cluster.client = reader
    cluster.machines["worker-0"] = reader
    np.testing.assert_array_equal(cluster.read(spec), before)


def test_a_disagreement_is_the_same_on_a_replacement_that_hears_of_one_push_alone() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    cluster.kill(1)
    push(cluster, first, spec, {0: 1.0, 1: 1.0, 2: 1.0}, barrier=2, assign=True)
    push(cluster, second, spec, {0: 1.0, 1: 1.0, 2: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.failed and second.failed)
    cluster.replace(1)
    cluster.settle_down(cluster.whole)
    assert [sum(cluster.shard(s).watermarks.values()) for s in range(3)] == [0, 0, 0]


def test_runs_of_two_sizes_are_refused_with_both_workers_names() -> None:
    cluster = Cluster(3)
    first, second = cluster.client, add_worker(cluster, 1)
    do(cluster, first, first.join_run(2))
    do(cluster, second, second.join_run(3))
    cluster.settle_down(lambda: first.runs.refusal and second.runs.refusal)
    assert cluster.now_ms < 5 * cluster.config.heartbeat_timeout_ms
    for machine in (first, second):
        assert "worker 0" in machine.runs.refusal and "worker 1" in machine.runs.refusal
        assert "2 workers" in machine.runs.refusal and "3 workers" in machine.runs.refusal
        assert not machine.failed


def test_a_worker_that_is_too_many_for_a_run_that_goes_on_is_refused() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second, third = cluster.client, add_worker(cluster, 1), add_worker(cluster, 2)
    start_run(cluster, first, second)
    do(cluster, third, third.join_run(3))
    cluster.settle_down(lambda: third.runs.refusal)
    assert "worker 2 asks for a run of 3 workers, but worker 0 is in run 1 of 2 workers" in third.runs.refusal
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)


def test_what_is_left_of_an_earlier_run_does_not_refuse_a_new_one() -> None:
    """Three began to start and were killed; then there are two, of which one comes first."""
    cluster = Cluster(3)
    first, second, third = cluster.client, add_worker(cluster, 1), add_worker(cluster, 2)
    for machine in (second, third):
        do(cluster, machine, machine.join_run(3))
    cluster.settle_down(lambda: first.ready)
    del cluster.machines[second.process], cluster.machines[third.process]
    do(cluster, first, first.join_run(2))
    for _ in range(100):
        cluster.tick()
        cluster.run()
    second = add_worker(cluster, 1, 1)
    do(cluster, second, second.join_run(2))
    cluster.settle_down(lambda: first.runs.run > 0 and first.runs.run == second.runs.run)


@pytest.mark.parametrize("again", [True, False])
def test_a_worker_that_dies_in_a_barrier_ends_the_run_for_the_others(again: bool) -> None:
    cluster, spec = Cluster(3, ProtocolConfig(lease_timeout_ms=2000)), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    begin_ms = cluster.now_ms
    del cluster.machines[second.process]
    if again:
        second = add_worker(cluster, 1, 1)
        do(cluster, second, second.join_run(2))
    cluster.settle_down(lambda: first.failed)
    assert cluster.now_ms - begin_ms < 3000
    assert first.failed_kind == "run"
    assert "worker 1 (epoch 1)" in first.failed
    assert ("started again" if again else "silent for") in first.failed
    # all of them started again go on
    second = add_worker(cluster, 1, 2)
    first = add_worker(cluster, 0, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    assert cluster.shard(0).watermarks == {0: 2, 1: 2}


def test_workers_that_were_given_up_and_come_back_are_told() -> None:
    """Both stood still for longer than is allowed, so that nobody is left in the run."""
    cluster, spec = Cluster(3, ProtocolConfig(lease_timeout_ms=1000)), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    away = [cluster.machines.pop(machine.process) for machine in (first, second)]
    for _ in range(100):
        cluster.tick()
        cluster.run()
    assert not cluster.scheduler.state.runs.runs
    for machine in away:
        cluster.machines[machine.process] = machine
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.failed)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.failed and second.failed)
    assert {first.failed_kind, second.failed_kind} <= {"run", "refused"}


def test_a_worker_that_has_left_does_not_end_what_is_complete() -> None:
    cluster, spec = Cluster(3, ProtocolConfig(lease_timeout_ms=1000)), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: second.durable)
    do(cluster, second, second.leave_run())
    assert second.runs.leaving
    cluster.channels[second.process, "scheduler"].clear()  # lost, and said again
    cluster.settle_down(lambda: not second.runs.leaving)
    del cluster.machines[second.process]
    for _ in range(100):
        cluster.tick()
        cluster.run()
    assert first.durable and not first.failed
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    assert "push 2 of run 1 is never applied: worker 1 (epoch 1) has left run 1" in first.failed


def test_a_run_outlives_the_scheduler() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    state = cluster.state
    machine = type(cluster.scheduler)(3, 1, cluster.config, state)
    cluster.scheduler = cluster.machines["scheduler"] = machine
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    add_worker(cluster, 1, 1)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.failed)
    assert "started again" in first.failed


def lose_runs(cluster: Cluster) -> None:
    """As after an adoption of which no copy knows the runs."""
    before = 1 << RUN_BITS
    cluster.scheduler.state.runs = RunState(number=before, foreign=before)
    cluster.scheduler.workers.runs = cluster.scheduler.runs = Runs(cluster.scheduler.context)


def pass_ms(cluster: Cluster, ms: float) -> None:
    until_ms = cluster.now_ms + ms
    while cluster.now_ms < until_ms:
        cluster.tick()
        cluster.run()


def test_a_run_of_a_state_that_was_lost_goes_on() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    lose_runs(cluster)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    pass_ms(cluster, 1000.0)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    (run,) = cluster.scheduler.state.runs.runs
    assert (run.number, [member.epoch for member in run.members]) == (1, [1, 1])
    start_run(cluster, first, second)
    assert first.runs.run == (1 << RUN_BITS) + 1, "no number is given twice"


@pytest.mark.parametrize("heard", [True, False])
def test_a_run_of_a_state_that_was_lost_ends_with_the_worker_that_dies(heard: bool) -> None:
    """Whether the scheduler has heard of it since or not."""
    cluster, spec = Cluster(3, ProtocolConfig(lease_timeout_ms=2000)), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    push(cluster, second, spec, {0: 1.0}, barrier=2)
    cluster.settle_down(lambda: first.durable and second.durable)
    if not heard:
        del cluster.machines[second.process]
    cluster.run()
    lose_runs(cluster)
    pass_ms(cluster, 500.0)
    cluster.machines.pop(second.process, None)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    pass_ms(cluster, 1000.0)
    assert not first.failed, "it may only be slow"
    pass_ms(cluster, 1500.0)
    assert first.failed_kind == "run" and "worker 1 " in first.failed and "was silent" in first.failed


def test_a_run_of_a_state_that_was_lost_ends_when_a_worker_is_started_again() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    lose_runs(cluster)
    add_worker(cluster, 1, 1)
    push(cluster, first, spec, {0: 1.0}, barrier=2)
    pass_ms(cluster, 500.0)
    assert first.failed_kind == "run" and "worker 1 " in first.failed


def test_a_run_that_nobody_began_is_not_taken_up() -> None:
    cluster = Cluster(3)
    cluster.client.runs.run, cluster.client.runs.size = 7, 2
    pass_ms(cluster, 300.0)
    assert cluster.scheduler.state.runs == RunState()


def test_what_waits_for_ever_is_bounded_and_in_nobodys_way() -> None:
    cluster, spec = Cluster(3), table(rows=12, code="2+1")
    cluster.create(spec)
    other = add_worker(cluster, 1)
    name, limit = cluster.shards[0], cluster.config.pushes_in_flight_max
    stuck = Address(WORKER, 9, 1)
    for number in range(1, 3 * limit):
        cluster.give(name, Received(stuck, barrier_of(77, number, number, size=10), ()))
    assert len(cluster.shard(0).context.workers[9].queue) == limit
    for _ in range(3):
        push(cluster, other, spec, {0: 1.0})
    cluster.settle_down(lambda: other.durable)


@pytest.mark.parametrize("fields", [(0, 1, 2), (1, 0, 2), (1, 1, 1 << 40), (1, 1, 2)])
def test_a_barrier_that_cannot_be_is_refused_when_it_comes(fields: tuple[int, int, int]) -> None:
    cluster = Cluster(3)
    run, sequence, size = fields
    effects = cluster.shard(0).handle(
        Received(Address(WORKER, 5, 1), barrier_of(run, sequence, 1, size), ()), cluster.now_ms
    )
    (answer,) = [e.message for e in effects if isinstance(e, Send) and e.to.role == WORKER]
    assert isinstance(answer, PushRefused)
    assert f"run {run}, sequence {sequence}" in answer.reason


def test_a_request_for_a_run_is_granted_once() -> None:
    cluster = Cluster(3)
    first, second = cluster.client, add_worker(cluster, 1)
    start_run(cluster, first, second)
    asked = Received(first.address, JoinRun(first._requests, 2))
    answers = [e.message for e in cluster.scheduler.handle(asked, cluster.now_ms) if isinstance(e, Send)]
    assert RunJoined(first._requests, 1) in answers
    assert cluster.scheduler.state.runs.number == 1

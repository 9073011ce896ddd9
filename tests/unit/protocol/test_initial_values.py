"""First values of a table are written once, by one worker, whoever dies meanwhile."""

import numpy as np
import pytest
from cluster import Cluster, table
from parts import Parts, worker
from workers import add_worker, do, push

from ecrec.errors import ConfigurationError
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Tick
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import WAIT, WRITE, WRITTEN, InitialiseTable, Refused, TableInitial
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import read_state

SPEC = table("dense", rows=6, code="1+1")
TIMEOUT_MS = 2000


def cluster_with_table(spec: TableSpec = SPEC) -> Cluster:
    cluster = Cluster(3, ProtocolConfig(lease_timeout_ms=TIMEOUT_MS))
    cluster.create(spec)
    return cluster


def ask(cluster: Cluster, machine: ClientMachine, claim: bool = True) -> str:
    """What a worker hears after some time."""
    do(cluster, machine, machine.initialise(0, claim))
    for _ in range(20):
        cluster.run()
        cluster.tick()
    return machine.initial(0)


def write(cluster: Cluster, machine: ClientMachine, value: float, spec: TableSpec = SPEC) -> None:
    push(cluster, machine, spec, dict.fromkeys(range(spec.rows), value), assign=True)
    cluster.settle_down(lambda: machine.durable)


def finish(cluster: Cluster, machine: ClientMachine) -> None:
    do(cluster, machine, machine.initialised(0))
    cluster.settle_down(lambda: machine.initial(0) == WRITTEN)


def test_of_two_workers_at_once_one_writes_and_the_other_waits_for_it() -> None:
    cluster = cluster_with_table()
    first, second = cluster.client, add_worker(cluster, 1)
    do(cluster, first, first.initialise(0, True))
    do(cluster, second, second.initialise(0, True))
    for _ in range(20):
        cluster.run()
        cluster.tick()
    assert sorted([first.initial(0), second.initial(0)]) == [WAIT, WRITE]
    writer, other = (first, second) if first.initial(0) == WRITE else (second, first)
    write(cluster, writer, 3.0)
    assert other.initial(0) == WAIT
    finish(cluster, writer)
    cluster.settle_down(lambda: other.initial(0) == WRITTEN)
    assert ask(cluster, add_worker(cluster, 0, 1)) == WRITTEN  # started again


def test_a_worker_that_would_not_write_waits_for_one_that_does() -> None:
    cluster = cluster_with_table()
    second = add_worker(cluster, 1)
    assert ask(cluster, second, claim=False) == WAIT
    assert not cluster.scheduler.state.initial.claims
    assert ask(cluster, cluster.client) == WRITE


@pytest.mark.parametrize("code", ["1+1", "2+1"])
@pytest.mark.parametrize("other", [True, False])
def test_what_a_dead_worker_wrote_in_part_does_not_count(other: bool, code: str) -> None:
    """It is done again by another one, or by the next life of the same; a late push of the old one changes nothing."""
    spec = table("dense", rows=6, code=code)
    cluster = cluster_with_table(spec)
    first = cluster.client
    assert ask(cluster, first) == WRITE
    late = (first.process, cluster.shards[2])
    cluster.blocked.add(late)  # a push that is still in the network when all of this is over
    push(cluster, first, spec, dict.fromkeys(range(6), 7.0), assign=True)
    cluster.run()
    del cluster.machines[first.process]
    second = add_worker(cluster, 1) if other else add_worker(cluster, 0, 1)
    do(cluster, second, second.initialise(0, True))
    cluster.settle_down(lambda: second.initial(0) == WRITE)
    assert cluster.scheduler.state.leases.is_fenced(0, 1)
    write(cluster, second, 3.0, spec)
    finish(cluster, second)
    push(cluster, second, spec, {0: 2.0})
    cluster.settle_down(lambda: second.durable)
    cluster.blocked.clear()
    cluster.run()
    cluster.client = cluster.machines["worker-0"] = second
    values = cluster.read(spec)
    assert np.all(values[1:] == 3.0) and np.all(values[0] == 2.0)


def test_a_claim_is_not_handed_on_before_all_shards_have_confirmed_the_end_of_the_old_one() -> None:
    cluster = cluster_with_table()
    assert ask(cluster, cluster.client) == WRITE
    cluster.blocked.add(("scheduler", cluster.shards[1]))
    second = add_worker(cluster, 0, 1)
    assert ask(cluster, second) == WAIT
    cluster.blocked.clear()
    cluster.settle_down(lambda: second.initial(0) == WRITE)


def test_it_survives_the_deaths_of_the_scheduler_and_of_shards() -> None:
    cluster = cluster_with_table()
    first = cluster.client
    assert ask(cluster, first) == WRITE
    write(cluster, first, 3.0)
    cluster.scheduler = cluster.machines["scheduler"] = SchedulerMachine(3, 1, cluster.config, cluster.state)
    assert first.initial(0) == WRITE
    finish(cluster, first)
    cluster.scheduler = cluster.machines["scheduler"] = SchedulerMachine(3, 1, cluster.config, cluster.state)
    cluster.kill(1)
    cluster.replace(1)
    cluster.settle_down(cluster.whole)
    assert ask(cluster, add_worker(cluster, 0, 1)) == WRITTEN
    assert ask(cluster, add_worker(cluster, 4)) == WRITTEN


def test_a_table_that_the_state_does_not_list_counts_as_written() -> None:
    """A state that was rebuilt must not have trained weights overwritten."""
    cluster = cluster_with_table()
    cluster.scheduler.state.initial.fresh.clear()
    assert ask(cluster, cluster.client) == WRITTEN


def test_a_worker_says_that_it_is_done_only_when_all_is_durable() -> None:
    cluster = cluster_with_table()
    assert ask(cluster, cluster.client) == WRITE
    push(cluster, cluster.client, SPEC, {0: 1.0}, assign=True)
    with pytest.raises(RuntimeError, match="not durable"):
        cluster.client.initialised(0)


def test_an_unknown_table_is_refused() -> None:
    cluster = cluster_with_table()
    do(cluster, cluster.client, cluster.client.initialise(7, True))
    cluster.settle_down(lambda: 7 in cluster.client.initial_refusals)
    assert "there is no table 7" in cluster.client.initial_refusals[7]


def test_a_state_with_first_values_of_no_table_is_refused() -> None:
    cluster = cluster_with_table()
    cluster.scheduler.state.initial.fresh.append(5)
    cluster.scheduler.context.changed()
    cluster.give("scheduler", Tick())
    with pytest.raises(ConfigurationError, match="first values"):
        read_state(cluster.state)


def failed_worker_0() -> tuple[Cluster, ClientMachine]:
    """Worker 0 could not make the first values for which another worker waits."""
    cluster = cluster_with_table()
    other = add_worker(cluster, 1)
    assert ask(cluster, other, claim=False) == WAIT
    do(cluster, cluster.client, cluster.client.initial_failed(0, "out of paint"))
    cluster.settle_down(lambda: not cluster.client.initial_asked)
    return cluster, other


def test_those_that_wait_for_a_worker_that_cannot_make_first_values_are_told() -> None:
    cluster, other = failed_worker_0()
    cluster.settle_down(lambda: 0 in other.initial_refusals)
    assert other.initial_refusals[0].endswith("worker 0 could not make them: out of paint")
    assert not cluster.scheduler.state.initial.claims and cluster.scheduler.state.initial.fresh == [0]
    late = add_worker(cluster, 2)
    ask(cluster, late, claim=False)
    assert 0 in late.initial_refusals


def test_a_worker_that_can_make_them_after_all_is_waited_for_again() -> None:
    cluster, other = failed_worker_0()
    assert ask(cluster, cluster.client) == WRITE
    assert ask(cluster, other, claim=False) == WAIT and 0 not in other.initial_refusals
    do(cluster, cluster.client, cluster.client.initial_failed(0, "a copy that comes late"))
    assert ask(cluster, cluster.client) == WRITE
    write(cluster, cluster.client, 3.0)
    finish(cluster, cluster.client)
    cluster.settle_down(lambda: other.initial(0) == WRITTEN)


def test_a_failure_is_over_with_its_worker_or_its_time() -> None:
    cluster, other = failed_worker_0()
    add_worker(cluster, 0, 1)  # started again: it may do better
    cluster.settle_down(lambda: not cluster.scheduler.initial._failures)
    assert ask(cluster, other, claim=False) == WAIT and 0 not in other.initial_refusals

    cluster, other = failed_worker_0()
    cluster.tick(TIMEOUT_MS + 100)
    assert not cluster.scheduler.initial._failures


def test_a_failure_to_make_what_was_written_long_ago_says_nothing() -> None:
    cluster = cluster_with_table()
    assert ask(cluster, cluster.client) == WRITE
    write(cluster, cluster.client, 3.0)
    finish(cluster, cluster.client)
    other = add_worker(cluster, 1)
    do(cluster, other, other.initial_failed(0, "never mind"))
    cluster.settle_down(lambda: not other.initial_asked)
    assert ask(cluster, other) == WRITTEN


def table_of(*lives: int) -> tuple[Parts, InitialValues]:
    """Nobody has written the only table yet; so many workers are in these lives."""
    parts = Parts(workers=dict(enumerate(lives)))
    parts.state.tables, parts.state.initial.fresh = [SPEC], [0]
    return parts, InitialValues(parts.context, parts.announcer, Leases(parts.context, parts.announcer))


def test_who_waits_is_told_of_a_failure_once_and_nothing_else_and_not_while_another_one_writes() -> None:
    parts, initial = table_of(1, 1, 1)
    initial.on_initialise(worker(0), InitialiseTable(1, 0, False, False, "out of paint"))
    assert parts.sent() == [TableInitial(1, 0, WAIT)]
    initial.on_initialise(worker(1), InitialiseTable(2, 0, False, False))
    assert parts.sent() == [Refused(2, "worker 0 could not make them: out of paint")]
    initial.on_initialise(worker(1), InitialiseTable(3, 0, True, False))
    assert parts.sent() == [TableInitial(3, 0, WRITE)]
    initial.on_initialise(worker(0), InitialiseTable(1, 0, False, False, "out of paint"))
    initial.on_initialise(worker(2), InitialiseTable(4, 0, False, False))
    assert parts.sent() == [TableInitial(1, 0, WAIT), TableInitial(4, 0, WAIT)], "worker 1 writes them"


def test_a_failure_of_a_life_that_is_over_is_told_nobody() -> None:
    parts, initial = table_of(1, 1, 1)
    for number in (0, 1):
        initial.on_initialise(worker(number), InitialiseTable(1, 0, False, False, f"worker {number} says"))
    for number, answer in ((0, Refused), (1, TableInitial)):
        parts.sent()
        initial.ended(number, 1)
        initial.on_initialise(worker(2), InitialiseTable(2, 0, False, False))
        assert [type(message) for message in parts.sent()] == [answer], "that of worker 1 is the last that was heard"

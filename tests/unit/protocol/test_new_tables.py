"""A table is prepared on all shards before any has it; one that does not fit is refused, and everybody lives on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table
from workers import add_worker, do

from ecrec.protocol import membership
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Disconnected, Received, Send
from ecrec.protocol.membership import Membership
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import read_state

SMALL = table("small", rows=12, code="2+1")
BIG = table("big", rows=5000, code="2+1")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Shards that have no room for more than a thousand rows."""
    shards: set[int] = set()
    asked: list[int] = []

    def within(method: Callable[..., Any]) -> Callable[..., Any]:
        def inner(self: Membership, message: Any, *more: Any) -> Any:
            asked.append(self.context.shard if self.context.state else message.shard)
            return method(self, message, *more)

        return inner

    def limited(store: Any, spec: TableSpec, recovered: bool) -> None:
        if asked[-1] in shards and spec.rows > 1000:
            raise RuntimeError("cannot reserve 123456 bytes of address space")
        add_table(store, spec, recovered)

    add_table = membership.add_table
    monkeypatch.setattr(membership, "add_table", limited)
    for name in ("on_prepare", "_place"):
        monkeypatch.setattr(Membership, name, within(getattr(Membership, name)))
    return shards


def reserved(cluster: Cluster) -> list[bool]:
    return [cluster.shard(s).membership._reserved is not None for s in range(cluster.n)]


def refused(cluster: Cluster, machine: ClientMachine, spec: TableSpec) -> str:
    do(cluster, machine, machine.create_table(spec))
    cluster.settle_down(lambda: not machine.creating(spec.name))
    assert not machine.failed
    return machine.table_refusals[spec.name]


def test_a_table_that_one_shard_cannot_hold_is_refused_with_the_numbers(full: set[int]) -> None:
    cluster = Cluster(3)
    cluster.create(SMALL)
    cluster.push(SMALL, {0: 1.0})
    full.add(1)
    reason = refused(cluster, add_worker(cluster, 1), BIG)
    for part in ("table 'big'", "shard 1", "5,000 rows of 4 floats with code 2+1", "123456 bytes"):
        assert part in reason
    cluster.settle_down(lambda: not any(reserved(cluster)))  # given back by those that had room, too
    assert not cluster.stopped
    assert [spec.name for spec in cluster.scheduler.state.tables] == ["small"]
    cluster.push(SMALL, {0: 1.0})
    cluster.drain()
    cluster.create(table("other", rows=900, code="2+1"))
    full.clear()
    cluster.create(BIG)
    assert [spec.name for spec in cluster.shard(1).context.tables] == ["small", "other", "big"]


def test_tables_asked_for_at_once_have_one_order_and_a_refusal_leaves_no_gap(full: set[int]) -> None:
    cluster = Cluster(3)
    full.add(2)
    workers = [cluster.client, add_worker(cluster, 1), add_worker(cluster, 2)]
    specs = [SMALL, BIG, table("third", rows=30, dim=3, code="1+1")]
    for machine, spec in zip(workers, specs, strict=True):
        do(cluster, machine, machine.create_table(spec))
    cluster.settle_down(lambda: workers[0].table_ready("small") and workers[2].table_ready("third"))
    assert "big" in workers[1].table_refusals and not cluster.stopped
    for shard in range(3):
        assert [spec.name for spec in cluster.shard(shard).context.tables] == ["small", "third"]
        assert cluster.shard(shard).context.dims == [4, 3]
    assert workers[2].tables["third"][0] == 1


def test_nothing_is_announced_before_all_have_prepared_and_messages_may_be_lost() -> None:
    cluster = Cluster(3)
    late = ("scheduler", cluster.shards[1])
    cluster.blocked.add(late)
    do(cluster, cluster.client, cluster.client.create_table(SMALL))
    for _ in range(20):
        cluster.run()
        cluster.tick()
    assert reserved(cluster) == [True, False, True]
    assert not cluster.scheduler.state.tables
    cluster.channels[late].clear()  # all that was said meanwhile is lost
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("small"))
    assert not any(reserved(cluster))


def test_a_shard_that_dies_meanwhile_is_not_waited_for_and_its_replacement_has_the_table() -> None:
    cluster = Cluster(3)
    cluster.create(SMALL)
    cluster.push(SMALL, dict.fromkeys(range(12), 1.0))
    cluster.drain()
    cluster.blocked.add(("scheduler", cluster.shards[1]))
    machine = add_worker(cluster, 1)
    do(cluster, machine, machine.create_table(BIG))
    for _ in range(10):
        cluster.run()
        cluster.tick()
    cluster.shards[1], old = cluster.start(1), cluster.shards[1]  # its replacement comes before it is all decided
    cluster.give("scheduler", _gone(cluster, old))
    cluster.settle_down(lambda: machine.table_ready("big"))
    cluster.settle_down(cluster.whole)
    cluster.scrub()
    assert [spec.name for spec in cluster.shard(1).context.tables] == ["small", "big"]
    assert not cluster.stopped


def _gone(cluster: Cluster, name: str) -> Any:
    return Disconnected(cluster.machines.pop(name).address)


def test_the_scheduler_may_die_between_preparing_and_announcing() -> None:
    cluster = Cluster(3)
    cluster.blocked.add((cluster.shards[1], "scheduler"))
    do(cluster, cluster.client, cluster.client.create_table(SMALL))
    for _ in range(10):
        cluster.run()
        cluster.tick()
    assert all(reserved(cluster)) and not cluster.scheduler.state.tables
    machine = SchedulerMachine(3, 1, cluster.config, cluster.state)
    cluster.scheduler = cluster.machines["scheduler"] = machine
    assert read_state(cluster.state).new_tables.queue[0].table == SMALL
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("small"))
    assert [spec.name for spec in machine.state.tables] == ["small"]
    assert not any(reserved(cluster))


def test_what_was_prepared_for_a_state_that_was_lost_is_given_back() -> None:
    cluster = Cluster(3)
    do(cluster, cluster.client, cluster.client.create_table(SMALL))
    cluster.blocked.add((cluster.shards[1], "scheduler"))
    for _ in range(10):
        cluster.run()
        cluster.tick()
    cluster.scheduler.state.new_tables = type(cluster.scheduler.state.new_tables)()
    cluster.scheduler.tables.creating.clear()
    cluster.client._tables._creating.clear()
    cluster.blocked.clear()
    cluster.settle_down(lambda: not any(reserved(cluster)))
    cluster.create(table("other", rows=20, code="2+1"))


def test_a_late_message_prepares_nothing() -> None:
    cluster = Cluster(3)
    shard = cluster.shard(0)
    for number, spec in ((5, None), (4, SMALL)):
        shard.handle(Received(m.Address(m.SCHEDULER, 0, 0), m.PrepareTable(number, spec)), cluster.now_ms)
    assert shard.membership.prepared == 5
    assert shard.membership._reserved is None


def test_a_second_request_with_other_properties_is_refused_while_the_first_is_prepared() -> None:
    cluster = Cluster(3)
    cluster.blocked.add(("scheduler", cluster.shards[1]))
    do(cluster, cluster.client, cluster.client.create_table(SMALL))
    cluster.run()
    other = m.CreateTable(1, table("small", rows=13, code="2+1"))
    effects = cluster.scheduler.handle(Received(m.Address(m.TOOL, 3, 0), other), cluster.now_ms)
    (answer,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.Refused)]
    assert "rows is 12, not 13" in answer.reason


def test_a_replacement_that_cannot_hold_the_tables_says_so_and_another_one_takes_the_place(full: set[int]) -> None:
    cluster = Cluster(3)
    cluster.create(BIG)
    cluster.push(BIG, dict.fromkeys(range(100), 1.0))
    cluster.drain()
    before = cluster.read(BIG)
    full.add(1)
    cluster.kill(1)
    unfit = cluster.start(1)
    cluster.settle_down(lambda: unfit in cluster.stopped)
    begin_ms = cluster.now_ms
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[1].state == m.DOWN)
    assert cluster.now_ms - begin_ms < 100.0  # not after its silence
    assert "cannot hold the tables of shard 1: cannot reserve 123456 bytes" in cluster.stopped[unfit]
    assert any("cannot hold the tables" in entry.reason for entry in cluster.scheduler.state.history)
    full.clear()
    cluster.replace(1)
    cluster.settle_down(cluster.whole)
    np.testing.assert_array_equal(cluster.read(BIG), before)

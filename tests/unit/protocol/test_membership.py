"""Views: which are taken, in which order, and whose running repairs and scrubs they end."""

from typing import Any

import msgspec
import pytest
from cluster import SGD, Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, Received, Send, Stop
from ecrec.protocol.messages import SCHEDULER_ADDRESS, Address
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, CodeSpec, TableSpec
from ecrec.protocol.shard import ShardMachine

TOOL = Address(m.TOOL, 1, 1)


@pytest.fixture
def cluster() -> Cluster:
    """Five shards with a table of one code, in which each class has three members."""
    made = Cluster(5)
    made.create(table(code="2+1"))
    made.drain()
    return made


def take(machine: ShardMachine, cluster: Cluster, *views: Any, generation: int | None = None) -> list[Any]:
    origin = machine.context.origin
    if generation is not None:
        origin = m.Origin(origin.cluster, generation, origin.serial)
    return machine.handle(Received(SCHEDULER_ADDRESS, m.Views(0, list(views), origin)), cluster.now_ms)


def fenced(machine: ShardMachine, ahead: int, worker: int = 3) -> m.WorkerFenced:
    return m.WorkerFenced(machine.view + ahead, worker, 1)


# ------------------------------------------------------------------ which are taken
def test_a_view_that_is_known_is_passed_over_and_the_new_one_behind_it_taken(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    view = machine.view
    take(machine, cluster, fenced(machine, 0, 3), fenced(machine, 1, 4))
    assert machine.view == view + 1 and machine.context.fenced == {4: 1}


def test_nothing_is_taken_behind_a_gap(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    view = machine.view
    take(machine, cluster, fenced(machine, 1, 3), fenced(machine, 3, 4), fenced(machine, 2, 5))
    assert machine.view == view + 1 and machine.context.fenced == {3: 1}


def test_without_a_place_only_a_start_is_taken() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    view = machine.view
    effects = machine.handle(Received(SCHEDULER_ADDRESS, m.Views(0, [fenced(machine, 1)])), 0.0)
    assert (
        machine.view == view and not machine.context.fenced and not any(isinstance(effect, Stop) for effect in effects)
    )


def test_a_view_of_a_member_says_nothing_to_one_without_a_place() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    for event in (
        m.Views(0, [m.ShardDown(machine.view + 1, 2, 1)]), m.PrepareTable(1, table(code="2+1")), m.Census(),
    ):  # fmt: skip
        assert machine.handle(Received(SCHEDULER_ADDRESS, event), 0.0) == []


def test_what_came_before_the_start_is_taken_with_it() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    machine.handle(Received(Address(m.SHARD, 1, 1), m.Ping(asks=True)), 0.0)
    effects = machine.handle(Received(SCHEDULER_ADDRESS, m.Views(0, [start(3)])), 0.0)
    assert [e.to for e in effects if isinstance(e, Send) and isinstance(e.message, m.Ping)] == [Address(m.SHARD, 1, 1)]


def test_a_table_is_prepared_once_for_each_number(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    number = machine.membership.prepared + 1
    too_large = TableSpec("large", 2**60, 4096, CodeSpec.parse("2+1"), SGD, "uniform", 1, 0.1, 0.0)
    for spec, refused in ((too_large, True), (table("u", code="2+1"), True)):
        machine.handle(Received(SCHEDULER_ADDRESS, m.PrepareTable(number, spec)), cluster.now_ms)
        assert bool(machine.membership.refusal) == refused
    machine.handle(Received(SCHEDULER_ADDRESS, m.PrepareTable(number + 1, table("u", code="2+1"))), cluster.now_ms)
    assert not machine.membership.refusal


def test_a_settled_death_is_reported_no_more(cluster: Cluster) -> None:
    cluster.kill(2)
    cluster.declared(2)
    cluster.replace(2)
    cluster.drain()
    assert not cluster.shard(0).membership.reports


def test_of_a_history_that_replaced_mine_only_what_begins_with_its_adoption_is_taken(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    view, newer = machine.view, machine.context.origin.generation + 1
    take(machine, cluster, fenced(machine, 1), generation=newer)
    take(machine, cluster, m.Adopted(view + 2, newer), generation=newer)
    take(machine, cluster, m.Adopted(view, newer), fenced(machine, 1), generation=newer)
    assert machine.view == view and not machine.context.fenced
    take(machine, cluster, fenced(machine, 0, 7), m.Adopted(view + 1, newer), fenced(machine, 2), generation=newer)
    assert machine.view == view + 2 and machine.context.fenced == {3: 1} and machine.context.origin.generation == newer


def test_a_shard_that_is_told_that_it_is_down_takes_no_later_view(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    view = machine.view
    effects = take(machine, cluster, m.ShardDown(view + 1, 0, 1), fenced(machine, 2))
    assert [type(effect) for effect in effects if isinstance(effect, Stop)] == [Stop]
    assert machine.view == view + 1 and not machine.context.fenced


def test_what_waited_for_a_view_is_taken_when_it_comes(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    source = cluster.shard(1).address
    machine.handle(Received(source, m.Reseed(0, 0, machine.view + 1)), cluster.now_ms)
    machine.handle(Received(source, m.Ping(asks=True)), cluster.now_ms)
    assert len(machine.peers[1].held) == 2
    with_reseed_dropped = machine.peers[1].held.pop(0)
    assert isinstance(with_reseed_dropped.message, m.Reseed)
    effects = take(machine, cluster, fenced(machine, 1))
    assert [e.to for e in effects if isinstance(e, Send) and isinstance(e.message, m.Ping)] == [source]


# ------------------------------------------------------------------ which cannot be
def start(n: int, shard: int = 0, window: int = 0, members: int | None = None) -> m.FullView:
    listed = [m.Member(i, 1, m.UP, f"inproc://{i}") for i in range(n if members is None else members)]
    return m.FullView(1, 0, 1, n, shard, 1, False, window, {}, listed, [], [], "", ProtocolConfig())


@pytest.mark.parametrize(("view", "fits"), [
    (start(1), True), (start(SHARDS_IN_GROUP_MAX), True), (start(0), False), (start(SHARDS_IN_GROUP_MAX + 1), False),
    (start(3, window=-1), False), (start(3, members=2), False), (start(3, shard=3), False), (start(3, shard=2), True),
    (start(3, shard=-1), False),
])  # fmt: skip
def test_a_start_that_cannot_be_is_refused(view: m.FullView, fits: bool) -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    event = Received(SCHEDULER_ADDRESS, m.Views(0, [view]))
    if fits:
        machine.handle(event, 0.0)
        assert machine.placement.n == view.n
    else:
        with pytest.raises(BAD_CONTENT):
            machine.handle(event, 0.0)
        assert not machine.state


@pytest.mark.parametrize(("classes", "fits"), [([0, 4], True), ([5], False), ([-1], False)])
def test_a_class_that_there_is_not_is_not_reinitialised(cluster: Cluster, classes: list[int], fits: bool) -> None:
    machine = cluster.shard(0)
    view = m.Reinitialise(machine.view + 1, classes, "lost", [])
    if fits:
        take(machine, cluster, view)
        assert machine.view == view.number
    else:
        with pytest.raises(BAD_CONTENT):
            take(machine, cluster, view)
        assert machine.view == view.number - 1


@pytest.mark.parametrize("shard", [-1, 5])
def test_a_view_of_a_member_that_there_is_not_is_refused(cluster: Cluster, shard: int) -> None:
    machine = cluster.shard(0)
    for view in (m.ShardDown(machine.view + 1, shard, 1), m.ShardWhole(machine.view + 1, shard, 1)):
        with pytest.raises(BAD_CONTENT):
            take(machine, cluster, view)


def test_a_start_for_one_that_has_a_place_changes_nothing(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    store, view = machine.store, machine.view
    take(machine, cluster, start(0), fenced(machine, 1))
    assert machine.store is store and machine.view == view + 1
    take(machine, cluster, msgspec.structs.replace(start(3), number=machine.view + 1))
    assert machine.store is store and machine.view == view + 1


@pytest.mark.parametrize("over", [m.ShardDown, m.ShardWhole])
def test_only_the_holders_of_lost_parity_seed_it_anew_until_they_are_whole_or_down(
    cluster: Cluster, over: type
) -> None:
    machine = cluster.shard(0)
    stripe = machine.placement.classes[0]
    (holder,) = stripe.parity
    take(machine, cluster, m.Reinitialise(machine.view + 1, [0], "lost"))
    seeded = {shard: peer.reseeding for shard, peer in machine.peers.items() if peer.state == m.RESEEDING}
    assert seeded == {holder: {0}} and holder != machine.shard
    take(machine, cluster, over(machine.view + 1, holder, 1))
    assert not machine.peers[holder].reseeding


# ------------------------------------------------------------------ whose repairs and scrubs end
def scrubbed(cluster: Cluster, machine: ShardMachine) -> list[int]:
    """Classes of which scrubs that this shard leads wait for answers."""
    for class_id in machine.placement.parity_classes(machine.shard):
        machine.handle(Received(TOOL, m.Scrub(class_id + 1, class_id, 0, 10)), cluster.now_ms)
    return sorted(running.class_id for running in machine.scrubs.running.values())


def test_a_view_ends_the_scrubs_and_repairs_of_the_classes_that_it_concerns_and_no_others(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    (class_id,) = scrubbed(cluster, machine)
    assert machine.captures.assemblies or machine.scrubs.running
    stripe = machine.placement.classes[class_id]
    stranger = next(shard for shard in range(5) if shard not in stripe.data + stripe.parity)
    concerned = stripe.data[0]
    take(machine, cluster, fenced(machine, 1))
    take(machine, cluster, m.Configured(machine.view + 1, machine.config))
    other = TableSpec("other", 40, 4, CodeSpec.parse("3+2"), SGD, "uniform", 1, 0.1, 0.0)
    take(machine, cluster, m.TableAdded(machine.view + 1, other))
    take(machine, cluster, m.ShardDown(machine.view + 1, stranger, 1))
    assert [running.class_id for running in machine.scrubs.running.values()] == [class_id]
    take(machine, cluster, m.ShardDown(machine.view + 1, concerned, 1))
    assert not machine.scrubs.running and not machine.captures.assemblies


def test_a_table_of_a_code_ends_its_scrubs_because_its_stripes_become_more(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    assert scrubbed(cluster, machine)
    take(machine, cluster, m.TableAdded(machine.view + 1, table("u", code="2+1")))
    assert not machine.scrubs.running

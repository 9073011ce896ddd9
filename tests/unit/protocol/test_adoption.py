"""A scheduler whose state is lost, old or another cluster's acts on nothing; told to, it makes the state again."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import OUTDATED, Failed, Note, Received, Send, Stop
from ecrec.protocol.messages import SCHEDULER, SHARD, UP, Address, Dataset
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.scheduler import SchedulerMachine

SPEC = table(code="3+2")
DATA = Dataset("d", 40, 40, 4)
TIMEOUT_MS = 3000


class Living(Cluster):
    """Five shards that are called something, a table with pushes in it."""

    def __init__(self, n: int = 5, spec: TableSpec = SPEC) -> None:
        self.stops: list[Stop] = []
        self.notes: list[str] = []
        super().__init__(n, ProtocolConfig(lease_timeout_ms=TIMEOUT_MS), cluster="ours")
        self.create(spec)
        self.push(spec, {row: 1.0 for row in range(40)})
        self.drain()
        self.pass_ms(2 * self.config.state_copy_ms)

    def carry_out(self, name: str, machine: Any, effects: list[Any]) -> None:
        self.stops += [effect for effect in effects if isinstance(effect, Stop)]
        self.notes += [effect.text for effect in effects if isinstance(effect, Note)]
        super().carry_out(name, machine, effects)

    def pass_ms(self, ms: float) -> None:
        until = self.now_ms + ms
        while self.now_ms < until:
            self.tick()
            self.run()

    def scheduler_starts(
        self, state: bytes | None, adopt: bool = False, cluster: str = "new", config: ProtocolConfig | None = None
    ) -> None:
        """The scheduler dies, and another one starts with this state. What was sent to or by the old one is lost."""
        for key, queue in self.channels.items():
            if "scheduler" in key:
                queue.clear()
        self.scheduler = SchedulerMachine(self.n, 1, config or self.config, state, cluster, adopt)
        self.machines["scheduler"] = self.scheduler

    def die(self, shard: int, keep: int = 0) -> None:
        """It dies and another one takes its place."""
        self.kill(shard, keep)
        self.replace(shard)

    def check(self) -> None:
        """Everything goes on: pushes, deaths, tables; nothing is lost."""
        before = self.read(SPEC)
        self.push(SPEC, {row: 1.0 for row in range(40)})
        self.drain()
        self.die(1)
        self.drain()
        self.create(table("later", code="4+1"))
        after = self.read(SPEC)
        assert np.array_equal(after, before - 0.5)
        self.scrub()
        assert not self.failed


@pytest.fixture
def living() -> Living:
    return Living()


def fenced(effects: list[Any]) -> list[str]:
    return [e.message.reason for e in effects if isinstance(e, Send) and isinstance(e.message, m.Fenced)]


# ---------------------------------------------------------------------- it refuses
def test_a_new_state_beside_a_living_cluster_is_refused(living: Living) -> None:
    living.scheduler_starts(None)
    living.pass_ms(3 * living.config.heartbeat_ms)
    assert "scheduler" in living.stopped and "cluster 'ours'" in living.stopped["scheduler"]
    assert living.stops[0].kind == OUTDATED and "--adopt" in living.stops[0].reason
    assert len(living.stopped) == 1, "no member was ended"
    living.push(SPEC, {3: 1.0})
    living.settle_down(lambda: living.client.durable)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_state_from_before_deaths_is_refused(living: Living, deaths: int) -> None:
    old = living.state
    for shard in range(deaths):
        living.die(shard)
        living.drain()
    living.scheduler_starts(old)
    living.pass_ms(3 * living.config.heartbeat_ms)
    assert "is older than its cluster" in living.stopped["scheduler"]
    assert list(living.stopped) == ["scheduler"]


def test_a_state_is_older_although_no_view_has_changed_since(living: Living) -> None:
    """Leases change the state, and no view."""
    old = living.state
    living.carry_out("worker-0", living.client, living.client.lease(DATA))
    living.settle_down(lambda: bool(living.client.leasing.leases))
    living.pass_ms(2 * living.config.state_copy_ms)
    living.scheduler_starts(old)
    living.pass_ms(3 * living.config.heartbeat_ms)
    assert "is older than its cluster" in living.stopped["scheduler"]


def test_the_newest_state_is_taken(living: Living) -> None:
    living.die(2)
    living.drain()
    living.scheduler_starts(living.state)
    living.pass_ms(2000)
    assert not living.stopped
    living.check()


def test_a_stray_of_another_cluster_does_not_end_a_scheduler_that_hears_its_own(living: Living) -> None:
    stray = m.ShardStatus("stray", 99, True, [], {}, {}, {}, origin=m.Origin("theirs", 3, 500))
    effects = living.scheduler.handle(Received(Address(SHARD, 2, 7), stray), living.now_ms)
    assert not any(isinstance(effect, Stop) for effect in effects) and not fenced(effects)
    assert any(isinstance(effect, Note) and "'theirs'" in effect.text for effect in effects)
    living.check()


def test_a_member_is_not_ended_by_a_scheduler_that_knows_less(living: Living) -> None:
    machine = living.shard(2)
    known = machine.context.origin
    assert known.cluster == "ours" and known.serial > 0
    for who, serial in ((machine, known.serial), (living.client, living.client.origin.serial)):
        for origin in (m.Origin("theirs", 9, 9999), m.Origin("ours", 0, serial - 1), m.Origin()):
            effects = who.handle(Received(Address(SCHEDULER, 0, 0), m.Fenced("go", origin)), living.now_ms)
            assert not any(isinstance(effect, Stop | Failed) for effect in effects), origin
            assert any(isinstance(effect, Note) and "not mine" in effect.text for effect in effects)
    effects = machine.handle(Received(Address(SCHEDULER, 0, 0), m.Fenced("go", known)), living.now_ms)
    assert any(isinstance(effect, Stop) for effect in effects)


def test_views_of_another_cluster_are_not_taken(living: Living) -> None:
    machine = living.shard(2)
    down = m.ShardDown(machine.view + 1, 0, 1)
    machine.handle(Received(Address(SCHEDULER, 0, 0), m.Views(0, [down], m.Origin("theirs", 5, 10**6))), living.now_ms)
    assert machine.peers[0].state == UP and machine.view == down.number - 1


# ---------------------------------------------------------------------- it adopts
def test_a_lost_state_is_adopted(living: Living) -> None:
    living.die(3)
    living.drain()
    living.pass_ms(2 * living.config.state_copy_ms)
    before = living.scheduler.state
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.rebuilding.adoption is None and living.scheduler.state.generation == 1)
    after = living.scheduler.state
    assert after.cluster == "ours" and after.serial > before.serial
    assert after.tables == before.tables
    assert [(p.epoch, p.state, p.process, p.endpoint) for p in after.groups[0].places] == [
        (p.epoch, p.state, p.process, p.endpoint) for p in before.groups[0].places
    ]
    living.pass_ms(2000)
    assert not living.stopped, "all members live"
    assert {living.shard(i).context.origin.generation for i in range(5)} == {1} == {living.client.origin.generation}
    living.check()


def test_no_split_is_trained_on_again_that_was_granted_after_the_last_copy_and_is_done(living: Living) -> None:
    for shard in range(5):  # no copy comes
        living.blocked.add(("scheduler", living.shards[shard]))
    trained = []
    for _ in range(3):
        trained.append(lease(living, living.client))
        train(living, living.client, DATA.split_examples)
    living.drain()
    assert living.client.durable and not living.client.leasing.held
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    client = living.client
    while DATA not in client.leasing.finished:
        if client.leasing.leases:
            trained.append(client.leasing.leases[0][1:])
            train(living, client, DATA.split_examples)
            living.drain()
        living.carry_out("worker-0", client, client.lease(DATA))
        living.settle_down(lambda: not client.leasing.asking)
    assert trained == sorted(set(trained)), "none twice"
    (figures,) = living.scheduler.leases.figures()
    assert (figures.trained, figures.repeated) == (DATA.end, 0)


def test_a_lease_of_a_scheduler_of_another_history_is_not_taken(living: Living) -> None:
    client, known = living.client, living.client.origin
    (ask,) = client.lease(DATA)
    source = Address(SCHEDULER, 0, 0)
    for generation, cluster in ((known.generation + 1, "ours"), (known.generation, "theirs")):
        origin = m.Origin(cluster, generation, known.serial + 9)
        client.handle(Received(source, m.Leased(ask.message.request, 1, 0, 4, origin, 0)), living.now_ms)
        assert not client.leasing.held and client.leasing.asking and client.origin == known
    origin = m.Origin("ours", known.generation, known.serial + 9)
    client.handle(Received(source, m.Leased(ask.message.request, 1, 0, 4, origin, 0)), living.now_ms)
    assert client.leasing.held and client.origin == origin, "a scheduler that knows less is behind"


def test_an_old_state_is_brought_up(living: Living) -> None:
    old = living.state
    living.die(0)
    living.die(1)
    living.drain()
    living.create(table("more", code="2+1"))
    living.scheduler_starts(old, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.pass_ms(2000)
    assert not living.stopped and [t.name for t in living.scheduler.state.tables] == ["t", "more"]
    living.check()


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("step", ["down", "settled", "up", "whole"])
def test_a_state_lost_in_the_middle_of_a_recovery_is_adopted(living: Living, step: str, copies: bool) -> None:
    """Also where no member has a copy of the state: then views and starts must do."""
    living.push(SPEC, {row: 1.0 for row in range(40)})
    living.kill(2)
    if step in ("settled", "up", "whole"):
        living.settle_down(lambda: all(s.view >= 0 for s in living.scheduler.state.groups[0].settlements.values()))
    if step in ("up", "whole"):
        living.replace(2)
    if step == "whole":
        living.drain()
    if not copies:
        for shard in range(5):
            if living.shards[shard] in living.machines:
                living.shard(shard).context.copy = b""
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    if step in ("down", "settled"):
        living.replace(2)
    living.drain()
    assert not living.stopped
    living.check()


def test_members_that_heard_different_views_end_with_the_same(living: Living) -> None:
    """The scheduler's last views reached one member alone."""
    for name in list(living.machines):
        if name != living.shards[4]:
            living.blocked.add(("scheduler", name))
    living.kill(2)
    living.settle_down(lambda: living.shard(4).view == living.scheduler.state.groups[0].view)
    living.scheduler_starts(None, adopt=True)
    living.blocked.clear()
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.replace(2)
    living.drain()
    assert not living.stopped
    living.check()


def test_a_member_that_followed_the_old_scheduler_on_is_ended(living: Living) -> None:
    """Its views have the numbers of others: they confirm nothing."""
    living.blocked |= {(living.shards[4], "scheduler"), ("scheduler", living.shards[4])}
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    machine = living.shard(4)
    view = living.scheduler.state.groups[0].adopted
    ahead = m.Views(
        0, [m.WorkerFenced(number, 9, 1) for number in range(machine.view + 1, view + 3)], machine.context.origin
    )
    machine.handle(Received(Address(SCHEDULER, 0, 0), ahead), living.now_ms)
    assert machine.view >= view and machine.context.origin.generation == 0
    living.channels["scheduler", living.shards[4]].clear()
    living.blocked.clear()
    living.settle_down(lambda: living.shards[4] in living.stopped)
    assert "given up" in living.stopped[living.shards[4]]
    living.replace(4)
    living.drain()
    living.check()


def test_a_scheduler_of_before_ends_when_another_has_adopted_its_cluster(living: Living) -> None:
    old = living.scheduler
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.pass_ms(500)
    first = living.shard(0)
    status = m.ShardStatus(first.process, first.view, True, [], {}, {}, {}, origin=first.context.origin)
    effects = old.handle(Received(living.shard(0).address, status), living.now_ms)
    assert any(isinstance(effect, Stop) and effect.kind == OUTDATED for effect in effects) and not fenced(effects)


def test_other_numbers_than_the_clusters_are_refused(living: Living) -> None:
    living.scheduler = living.machines["scheduler"] = SchedulerMachine(4, 1, living.config, None, "new", True)
    living.pass_ms(500)
    assert "1 group(s) of 5 shards" in living.stopped["scheduler"]


# ---------------------------------------------------------------------- workers and their leases
def train(living: Living, client: ClientMachine, examples: int) -> None:
    living.settle_down(lambda: client.can_push)
    living.carry_out(client.process, client, client.push({}, examples=examples))


def lease(living: Living, client: ClientMachine) -> tuple[int, int] | None:
    held = len(client.leasing.leases)
    living.carry_out(client.process, client, client.lease(DATA))
    living.settle_down(lambda: not client.leasing.asking or bool(client.failed))
    assert not client.failed, client.failed
    return (
        (client.leasing.leases[-1].first, client.leasing.leases[-1].last) if len(client.leasing.leases) > held else None
    )


@pytest.mark.parametrize("copied", [True, False])
def test_each_example_is_leased_once_although_the_state_was_lost(living: Living, copied: bool) -> None:
    client = living.client
    first = lease(living, client)
    train(living, client, 4)
    second = lease(living, client)
    train(living, client, 2)
    living.pass_ms(2 * living.config.state_copy_ms if copied else 0)
    living.scheduler_starts(None, adopt=True)
    seen = [first, second]
    train(living, client, 2)
    while (split := lease(living, client)) is not None:
        seen.append(split)
        train(living, client, split[1] - split[0])
    assert [s for s in seen if s] == [(i, i + 4) for i in range(0, 40, 4)]
    living.settle_down(lambda: client.durable)
    living.pass_ms(500)
    (figures,) = living.scheduler.leases.figures()
    if copied:
        assert (figures.trained, figures.repeated, figures.leased) == (40, 0, 0)
    assert not living.stopped and not living.failed


def test_a_worker_that_tells_nothing_is_given_up_and_its_examples_are_trained_on_again(living: Living) -> None:
    other = ClientMachine(1, "worker-1")
    living.machines["worker-1"] = other
    living.settle_down(lambda: other.ready)
    assert lease(living, living.client) == (0, 4)
    living.pass_ms(2 * living.config.state_copy_ms)
    for shard in range(5):  # what follows is in no copy
        living.blocked.add(("scheduler", living.shards[shard]))
    assert lease(living, other) == (4, 8)
    train(living, other, 3)
    living.settle_down(lambda: other.durable)
    del living.machines["worker-1"]
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    train(living, living.client, 4)
    assert lease(living, living.client) == (4, 8), "after the time of a lease"
    (figures,) = living.scheduler.leases.figures()
    assert figures.repeated == 3
    assert any("3 examples are trained on again" in note for note in living.notes)
    assert living.scheduler.state.leases.number > 2 and living.client.leasing.leases[0].lease > 2, (
        "no number is given twice"
    )


def test_a_worker_that_was_started_again_meanwhile_goes_on(living: Living) -> None:
    assert lease(living, living.client) == (0, 4)
    living.pass_ms(2 * living.config.state_copy_ms)
    living.scheduler_starts(None, adopt=True)
    del living.machines["worker-0"]
    living.client = living.machines["worker-0-again"] = ClientMachine(0, "worker-0-again")
    living.settle_down(lambda: living.client.ready)
    assert living.client.epoch == 2
    living.carry_out("worker-0-again", living.client, living.client.lease(DATA))
    living.settle_down(lambda: bool(living.client.leasing.leases))
    assert (living.client.leasing.leases[0].first, living.client.leasing.leases[0].last) == (0, 4)


def test_claims_of_a_worker_that_contradict_the_state_fence_it(living: Living) -> None:
    other = ClientMachine(1, "worker-1")
    living.machines["worker-1"] = other
    living.settle_down(lambda: other.ready)
    assert lease(living, living.client) == (0, 4)
    assert lease(living, other) == (4, 8)
    living.pass_ms(2 * living.config.state_copy_ms)
    liar = other.leasing.held[0]
    other.leasing.held[0] = m.HeldLease(liar.dataset, liar.lease + 5, 2, 6, liar.request + 1)
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: bool(living.failed))
    assert "another's, or trained on" in living.failed[0]
    train(living, living.client, 4)
    assert lease(living, living.client) == (4, 8)


# ---------------------------------------------------------------------- timings
def test_other_timings_are_told_to_all_members(living: Living) -> None:
    slower = ProtocolConfig(lease_timeout_ms=TIMEOUT_MS, heartbeat_ms=200, heartbeat_timeout_ms=3000)
    living.scheduler_starts(living.state, config=slower)
    living.pass_ms(1000)
    assert [living.shard(i).config for i in range(5)] == [slower] * 5
    assert living.client.config == slower and living.scheduler.state.config == slower
    assert any("heartbeat_timeout_ms is 800, not 3000" in note for note in living.notes)
    living.check()


def test_the_copy_is_not_kept_by_another_cluster(living: Living) -> None:
    machine = living.shard(1)
    kept = machine.context.copy
    assert kept
    for origin in (m.Origin("theirs", 9, 10**6), m.Origin("ours", 0, 0)):
        machine.handle(Received(Address(SCHEDULER, 0, 0), m.StateCopy(origin), (b"junk",)), living.now_ms)
        assert machine.context.copy == kept


def test_members_that_died_unseen_are_declared_down_and_not_the_one_that_misses_them() -> None:
    """The living one has not heard the dead for long; it must not be taken for the one that is cut off."""
    spec = table(code="1+2")
    living = Living(3, spec)
    del living.machines["scheduler"]
    for shard in (0, 1):
        del living.machines[living.shards[shard]]
    for queue in living.channels.values():
        queue.clear()
    living.push(spec, {row: 1.0 for row in range(40)})
    living.pass_ms(living.config.link_timeout_ms + 1000)
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    for shard in (0, 1):
        living.replace(shard)
    living.drain()
    assert [place.epoch for place in living.scheduler.state.groups[0].places] == [2, 2, 1]
    living.scrub()


def test_pushes_wait_for_no_checkpoint_that_was_asked_for_after_the_state_was_copied(living: Living) -> None:
    tool = m.Address(m.TOOL, 7, 0)
    living.where[tool] = "tool"
    living.give("scheduler", Received(tool, m.Save(1, "sim://storage", 1.0)))
    living.run()
    assert living.client.checkpoint == 1
    for name in living.shards.values():
        context = living.machines[name].context
        context.copy, context.copied = b"", 0  # none was sent since
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.pass_ms(1000)
    living.check()


def test_first_values_of_a_table_that_the_copies_did_not_know_are_not_taken_for_written(living: Living) -> None:
    living.scheduler.announcer.send_copy = lambda shard: None  # type: ignore[method-assign]
    living.create(table("dense", rows=10, code="1+2"))
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.rebuilding.is_over and living.scheduler.state.generation == 1)
    assert [each.name for each in living.scheduler.state.tables] == [SPEC.name, "dense"]
    # Nobody knows whether they were written: zeros must not pass for them.
    assert 1 in living.scheduler.state.initial.unsure
    living.carry_out("worker-0", living.client, living.client.initialise(1, True))
    living.pass_ms(1000)
    assert living.client.initial(1) != m.WRITTEN


def test_a_scheduler_that_has_heard_no_shard_yet_gives_no_split(living: Living) -> None:
    other = ClientMachine(1, "worker-1")
    living.machines["worker-1"] = other
    living.settle_down(lambda: other.ready)
    old = living.state
    assert lease(living, living.client) is not None
    living.pass_ms(1500)
    living.scheduler_starts(old)
    answers = []
    for effect in other.lease(DATA):
        if isinstance(effect, Send):
            answers += living.scheduler.handle(Received(other.address, effect.message), living.now_ms)
    assert not [each for each in answers if isinstance(each, Send)]
    living.pass_ms(3 * living.config.heartbeat_ms)
    assert "is older than its cluster" in living.stopped["scheduler"]

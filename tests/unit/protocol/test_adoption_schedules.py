"""Splits of workers in the moments around a loss of the scheduler's state: messages that are late or lost, copies that
know less or more, schedulers that are started again; nothing is trained on twice or left out, and nobody is ended."""

import pytest
from test_adoption import DATA, Living, lease, train

from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Persist, Received, Send
from ecrec.protocol.messages import SCHEDULER, WORKER, Address, Census, Origin
from ecrec.protocol.state import read_state

SOURCE = Address(SCHEDULER, 0, 0)


@pytest.fixture
def living() -> Living:
    return Living()


def no_copies(living: Living) -> None:
    """No copy of the state comes to a shard any more."""
    for name in living.shards.values():
        living.blocked.add(("scheduler", name))


def adopts(living: Living, generation: int = 1) -> None:
    """All are heard again, by a scheduler that has no state."""
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == generation)


def finish(living: Living, *clients: ClientMachine) -> list[tuple[int, int]]:
    """All train to the end; the splits that they got."""
    got = []
    for _ in range(400):
        for client in clients:
            assert not client.failed, client.failed
            if client.leasing.leases:
                got.append(client.leasing.leases[0][1:])
                train(living, client, client.leasing.examples_left)
                living.settle_down(lambda c=client: c.durable)
            elif not client.leasing.asking and DATA not in client.leasing.finished:
                living.carry_out(client.process, client, client.lease(DATA))
        living.pass_ms(100)
        if all(DATA in client.leasing.finished for client in clients):
            return got
    raise AssertionError(f"training does not end: {living.scheduler.state.leases}")


def another(living: Living, number: int = 1, name: str = "worker-1") -> ClientMachine:
    other = ClientMachine(number, name)
    living.machines[name] = other
    living.settle_down(lambda: other.ready)
    return other


# ---------------------------------------------------------------------- a state that was made again
def test_a_worker_whose_older_lease_is_in_the_copy_and_that_finished_a_newer_one_is_not_fenced(living: Living) -> None:
    client = living.client
    assert lease(living, client) == (0, 4)
    living.pass_ms(2 * living.config.state_copy_ms)  # every copy knows lease 1
    no_copies(living)
    train(living, client, 4)
    assert lease(living, client) == (4, 8)
    train(living, client, 4)
    living.settle_down(lambda: client.durable)
    assert not client.leasing.held
    adopts(living)
    living.pass_ms(2000)
    assert not client.failed, client.failed
    assert finish(living, client) == [(i, i + 4) for i in range(8, 40, 4)]
    (figures,) = living.scheduler.leases.figures()
    assert (figures.trained, figures.repeated) == (40, 0)


def test_a_request_that_comes_before_the_census_does_not_fence(living: Living) -> None:
    client = living.client
    assert lease(living, client) == (0, 4)
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    train(living, client, 4)
    assert lease(living, client) == (4, 8)
    train(living, client, 2)
    living.settle_down(lambda: client.durable)
    asked = client.lease(DATA)  # the scheduler dies before it gets this message
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.blocked.add(("worker-0", "scheduler"))
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.blocked.clear()
    living.give("scheduler", Received(client.address, asked[0].message))
    living.pass_ms(2000)
    assert not client.failed, client.failed


def test_a_split_that_was_granted_and_not_heard_of_is_not_lost(living: Living) -> None:
    client = living.client
    living.blocked.add(("scheduler", "worker-0"))
    living.carry_out(client.process, client, client.lease(DATA))
    living.pass_ms(3 * living.config.state_copy_ms)
    assert [x.first for x in living.scheduler.state.leases.leases] == [0]
    assert not client.leasing.leases
    adopts(living)
    living.settle_down(lambda: not client.leasing.asking)
    assert finish(living, client) == [(i, i + 4) for i in range(0, 40, 4)]


def test_a_late_lease_of_the_old_scheduler_after_the_census(living: Living) -> None:
    client, other = living.client, another(living)
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    old = living.scheduler
    (ask,) = client.lease(DATA)
    late = [
        effect
        for effect in old.handle(Received(client.address, ask.message), living.now_ms)
        if isinstance(effect, Send) and isinstance(effect.message, m.Leased)
    ]
    assert late
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: 0 in living.scheduler.workers._told)
    assert client.origin.generation == 0
    client.handle(Received(SOURCE, late[0].message), living.now_ms)  # of the old one
    living.pass_ms(1000)
    mine = [(held.first, held.last) for held in client.leasing.held]
    theirs = lease(living, other)
    assert theirs not in mine, "both train on it"


def test_a_scheduler_that_is_started_again_right_after_it_adopted_does_not_fence(living: Living) -> None:
    client = living.client
    no_copies(living)
    for _ in range(3):
        lease(living, client)
        train(living, client, 4)
    living.settle_down(lambda: client.durable)
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: 0 in living.scheduler.workers._told)
    assert client.origin.generation == 0, "it has told, and was not told yet"
    living.scheduler_starts(living.state)
    living.pass_ms(3000)
    assert not client.failed, client.failed
    assert finish(living, client) == [(i, i + 4) for i in range(12, 40, 4)]


def test_a_late_answer_to_a_census_does_not_fence(living: Living) -> None:
    client = living.client
    no_copies(living)
    assert lease(living, client) == (0, 4)
    (late,) = client._tell(Census(0))
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: client.origin.generation == 1)
    train(living, client, 4)
    living.settle_down(lambda: client.durable)
    living.pass_ms(500)
    living.scheduler_starts(living.state)  # it does not know any more who has told
    living.pass_ms(300)
    living.give("scheduler", Received(client.address, late.message))
    living.pass_ms(500)
    assert not client.failed, client.failed


def test_a_worker_that_came_after_the_last_copy(living: Living) -> None:
    client = living.client
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    other = another(living)
    theirs = lease(living, other)
    train(living, other, 2)
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    # its heartbeat is some hundred milliseconds late
    living.blocked.add(("worker-1", "scheduler"))
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.pass_ms(300)
    living.carry_out(client.process, client, client.lease(DATA))
    living.pass_ms(300)
    living.blocked.clear()
    living.pass_ms(2000)
    mine = [(held.first, held.last) for held in client.leasing.held]
    assert not other.failed, other.failed
    assert theirs not in mine, "both train on it"


def test_numbers_of_leases_of_a_worker_nobody_knows(living: Living) -> None:
    """It was new, trained, and died with the scheduler; its next life goes on."""
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    other = another(living)
    for _ in range(3):
        lease(living, other)
        train(living, other, 4)
    living.settle_down(lambda: other.durable)
    del living.machines["worker-1"]
    adopts(living)
    living.pass_ms(1000)
    again = ClientMachine(1, "worker-1-again")
    living.machines["worker-1-again"] = again
    living.settle_down(lambda: again.ready)
    lease(living, again)
    train(living, again, 4)
    living.pass_ms(1000)
    assert not again.failed, again.failed
    assert not living.failed


def test_a_life_of_which_the_copy_knows_only_the_one_before(living: Living) -> None:
    client = living.client
    assert lease(living, client) == (0, 4)
    train(living, client, 2)
    living.settle_down(lambda: client.durable)
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    del living.machines["worker-0"]
    again = living.machines["worker-0-again"] = living.client = ClientMachine(0, "worker-0-again")
    # it is told its epoch; the scheduler dies before it has named it
    for _ in range(100):
        for key in list(living.channels):
            while living.channels[key] and key not in living.blocked and again.epoch < 2:
                event = living.channels[key].popleft()
                if key == ("worker-0-again", "scheduler") and event.source.epoch == 2:
                    continue
                living.give(key[1], event)
        if again.epoch == 2:
            break
        living.tick()
    assert again.epoch == 2 and living.scheduler.state.workers[0][0] == 1
    adopts(living)
    living.pass_ms(2 * living.config.lease_timeout_ms)
    got = finish(living, again)
    assert got[0] == (2, 4)


def test_a_copy_of_the_new_generation_of_before_the_worker_had_told(living: Living) -> None:
    client = living.client
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    for _ in range(2):
        lease(living, client)
        train(living, client, 4)
    living.settle_down(lambda: client.durable)
    granted = client.origin.serial
    living.blocked.clear()
    living.blocked.add(("worker-0", "scheduler"))
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.pass_ms(2 * living.config.state_copy_ms)
    copied = min(living.shard(i).context.copied for i in range(5))
    assert copied >= granted - 1, "copies of the new generation, with serials like those of the old one"
    living.blocked.clear()
    no_copies(living)
    living.settle_down(lambda: client.origin.generation == 1)
    lease(living, client)
    train(living, client, 4)
    living.settle_down(lambda: client.durable)
    adopts(living, generation=2)
    assert not client.failed, client.failed
    assert finish(living, client) == [(i, i + 4) for i in range(12, 40, 4)]


def test_an_answer_to_the_census_of_an_earlier_adoption_is_none_to_the_next(living: Living) -> None:
    client, other = living.client, another(living)
    living.pass_ms(2 * living.config.state_copy_ms)
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    for _ in range(400):  # what it answers is repeated, and one of the answers is late
        late = [e for e in living.channels["worker-0", "scheduler"] if isinstance(e.message, m.WorkerCensus)]
        if late:
            break
        living.deliver() or living.tick()
    living.settle_down(lambda: client.origin.generation == 1 and other.origin.generation == 1)
    living.pass_ms(2 * living.config.state_copy_ms)
    no_copies(living)
    mine = lease(living, client)
    assert mine is not None
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.blocked.add(("worker-0", "scheduler"))
    living.settle_down(lambda: living.scheduler.state.generation == 2)
    living.blocked.clear()
    living.give("scheduler", late[0])
    living.pass_ms(1500)
    assert lease(living, other) != mine, "both train on it"


# ---------------------------------------------------------------------- a state that is a little older
def test_a_request_of_a_worker_that_knows_more_than_an_older_state_ends_nobody(living: Living) -> None:
    """It comes before its next heartbeat, and says no origin: only a cursor that the state cannot explain."""
    client = living.client
    assert lease(living, client) == (0, 4)
    old = living.state
    no_copies(living)
    train(living, client, 4)
    assert lease(living, client) == (4, 8)
    train(living, client, 4)
    living.settle_down(lambda: client.durable)
    (asked,) = client.lease(DATA)
    living.blocked.clear()
    living.scheduler_starts(old)
    living.blocked.add(("worker-0", "scheduler"))
    living.pass_ms(150)  # all shards were heard
    living.give("scheduler", Received(client.address, asked.message))
    living.blocked.clear()
    living.pass_ms(1000)
    assert not client.failed, client.failed


def test_an_older_state_that_has_come_to_the_same_serial(living: Living) -> None:
    """What the worker knows is not newer by number any more: another one came first, and that was persisted."""
    client = living.client
    living.pass_ms(2 * living.config.state_copy_ms)
    old = living.state
    no_copies(living)
    assert lease(living, client) == (0, 4)
    living.blocked.clear()
    living.scheduler_starts(old)
    living.blocked.add(("worker-0", "scheduler"))
    other = living.machines["worker-1"] = ClientMachine(1, "worker-1")
    living.settle_down(lambda: living.scheduler.state.serial >= client.origin.serial)
    living.blocked.clear()
    living.settle_down(lambda: other.ready)
    living.carry_out("worker-1", other, other.lease(DATA))
    living.pass_ms(3000)
    assert (0, 4) not in [(held.first, held.last) for held in other.leasing.held], "both train on it"


def test_a_worker_that_an_older_state_does_not_know(living: Living) -> None:
    """The state is older by a moment: in that a worker came and was granted a split. No shard knows."""
    client = living.client
    living.pass_ms(2 * living.config.state_copy_ms)
    old = living.state
    no_copies(living)
    other = another(living)
    theirs = lease(living, other)
    living.blocked.clear()
    living.scheduler_starts(old)
    living.blocked.add(("worker-1", "scheduler"))  # its heartbeat comes a little later
    living.pass_ms(150)
    living.carry_out(client.process, client, client.lease(DATA))
    living.pass_ms(150)
    living.blocked.clear()
    living.pass_ms(2000)
    assert theirs not in [(held.first, held.last) for held in client.leasing.held], "both train on it"


def test_a_copy_of_the_history_before_that_comes_after_the_census_ends_nobody(living: Living) -> None:
    """The old scheduler sent it just before it died, or it lives a moment longer than the new one's start."""
    machine = living.shard(4)
    late = m.StateCopy(Origin("ours", 0, machine.context.origin.serial + 1000))
    kept = machine.context.copy
    living.blocked |= {(living.shards[4], "scheduler"), ("scheduler", living.shards[4])}
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    assert machine.context.origin.generation == 0
    living.scheduler_starts(living.state)
    machine.handle(Received(Address(SCHEDULER, 0, 0), late, [kept]), living.now_ms)
    living.channels["scheduler", living.shards[4]].clear()
    living.blocked.clear()
    living.pass_ms(3000)
    assert not living.stopped, living.stopped
    assert machine.context.origin.generation == 1
    living.pass_ms(2000)
    assert machine.context.copied <= living.scheduler.state.serial, "it keeps that of a history that was given up"


def test_a_hostile_worker_cannot_end_a_scheduler_that_may_adopt(living: Living) -> None:
    """Its state is the newest one; all shards are silent for some seconds (their hosts sleep, a switch is down)."""
    living.scheduler_starts(living.state, adopt=True)
    living.pass_ms(1500)
    for name in living.shards.values():
        living.blocked.add((name, "scheduler"))
    origin = living.scheduler.context.origin
    lie = m.WorkerStatus("liar", [], {}, origin=Origin(origin.cluster, origin.generation, origin.serial + 1))
    living.give("scheduler", Received(Address(WORKER, 77, 1), lie))
    living.pass_ms(living.config.adopt_timeout_ms + 500)
    assert "scheduler" not in living.stopped, living.stopped


def test_views_say_the_serial_of_the_state_that_knows_of_them(living: Living) -> None:
    """An epoch that a worker is told stands in the state that is persisted before, not in the one before that."""
    told = living.scheduler.handle(Received(Address(WORKER, 5, 0), m.WorkerStatus("new", [], {})), living.now_ms)
    (persisted,) = [effect.state for effect in told if isinstance(effect, Persist)]
    views = [e.message for e in told if isinstance(e, Send) and isinstance(e.message, m.Views)]
    assert views and {view.origin.serial for view in views} == {read_state(persisted).serial}


def test_a_worker_whose_epoch_an_older_state_does_not_know_is_not_ended(living: Living) -> None:
    living.pass_ms(2 * living.config.state_copy_ms)
    old = living.state
    other = living.machines["worker-1"] = ClientMachine(1, "worker-1")
    living.settle_down(lambda: other.epoch == 1)
    living.scheduler_starts(old)
    living.pass_ms(2000)
    assert not other.failed, other.failed

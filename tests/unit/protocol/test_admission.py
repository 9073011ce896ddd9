"""Who gets a place: a process that others reach, the one that was started for it first, and then whoever waits."""

from typing import Any

import pytest
from cluster import Cluster, register_at, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connect, Connection, Disconnect, Received, Send, Tick
from ecrec.protocol.messages import DOWN, SHARD, UP, Address, ClusterState
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import Settlement

SPEC = table(code="4+1")
NOBODY = Address(SHARD, -1, 0)


def scheduler() -> SchedulerMachine:
    return SchedulerMachine(5, 1, ProtocolConfig(form_after_ms=0), None)


def asks(machine: SchedulerMachine, process: str, wanted: int = -1, reached: int = 0, now_ms: float = 0.0) -> list[Any]:
    return machine.handle(Received(NOBODY, m.Register(process, f"inproc://{process}", wanted, reached)), now_ms)


def sent(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def waiting(machine: SchedulerMachine) -> ClusterState:
    (answer,) = sent(
        machine.handle(Received(Address(m.TOOL, 9, 0), m.ClusterQuery(1)), machine.context.now_ms), ClusterState
    )
    return answer


# ------------------------------------------------------------------ reached where it says
def test_a_process_gets_a_place_when_it_was_reached_at_its_endpoint() -> None:
    machine = scheduler()
    effects = asks(machine, "a")
    (connect,) = [effect for effect in effects if isinstance(effect, Connect)]
    assert connect.endpoint == "inproc://a" and connect.address.id < -1
    (knock,) = sent(effects, m.Knock)
    assert knock.process == "a"
    state = waiting(machine)
    assert state.spares == 0 and [(e.is_reached, e.is_spare) for e in state.waiting] == [(False, True)]
    effects = asks(machine, "a", reached=knock.number)
    assert [effect.address for effect in effects if isinstance(effect, Disconnect)] == [connect.address]
    state = waiting(machine)
    assert state.spares == 1 and [(e.is_reached, e.is_spare) for e in state.waiting] == [(True, True)]


def test_a_wrong_number_is_no_proof_and_the_knock_comes_again() -> None:
    machine = scheduler()
    (knock,) = sent(asks(machine, "a"), m.Knock)
    assert sent(asks(machine, "a", reached=knock.number + 1, now_ms=100.0), m.Knock) == [knock]
    assert not machine.admission.candidates["a"].is_reached


def test_one_that_is_not_reached_is_told_to_end_and_why() -> None:
    machine = scheduler()
    now_ms = 0.0
    while not (fenced := sent(asks(machine, "a", now_ms=now_ms), m.Fenced)):
        now_ms += 100.0
        assert now_ms < 10_000.0
    assert now_ms > machine.config.reach_timeout_ms
    assert "cannot reach it at inproc://a" in fenced[0].reason and "--advertise HOST" in fenced[0].reason
    assert machine.admission.candidates == {}


def test_one_that_is_not_reached_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = scheduler()
    for shard in range(4):
        register_at(machine, f"p{shard}", f"inproc://p{shard}", shard)
    asks(machine, "hidden", wanted=4)
    assert not machine.state.groups[0].view
    register_at(machine, "good", "inproc://good", -1)
    assert machine.state.groups[0].view
    assert machine.state.groups[0].places[4].process == "good"


def test_a_process_that_is_reached_under_anothers_name_is_not_the_one() -> None:
    """Two processes name one endpoint: the knock reaches the one that listens, which has another name."""
    cluster = Cluster(5)
    newcomer = cluster.start(-1)
    machine = cluster.machines[newcomer]
    effects = machine.handle(Received(Address(m.SCHEDULER, 0, 0), m.Knock("somebody else", 7)), cluster.now_ms)
    assert sent(effects, m.Register) == []
    effects = machine.handle(Received(Address(m.SCHEDULER, 0, 0), m.Knock(newcomer, 7)), cluster.now_ms)
    assert [register.reached for register in sent(effects, m.Register)] == [7]


def test_the_connection_is_given_up_with_the_process() -> None:
    machine = scheduler()
    (connect,) = [effect for effect in asks(machine, "a") if isinstance(effect, Connect)]
    effects = machine.handle(Tick(), 100.0) + machine.handle(Tick(), 2_000.0) + machine.handle(Tick(), 2_050.0)
    assert Disconnect(connect.address) in effects
    # Its connection may still be made, or break, later.
    machine.handle(Connection(connect.address, up=True), 2_100.0)
    machine.handle(Connection(connect.address, up=False), 2_100.0)


# ------------------------------------------------------------------ and again while it recovers
def test_a_replacement_that_no_member_reaches_gives_its_place_to_another() -> None:
    """A port that is open to the scheduler alone: it is heard, confirms its views, and nobody can send it anything."""
    cluster = Cluster(5, ProtocolConfig(link_timeout_ms=60_000))
    cluster.create(SPEC)
    cluster.push(SPEC, dict.fromkeys(range(40), 1.0))
    cluster.drain()
    cluster.kill(1)
    cluster.declared(1)
    hidden = cluster.start(-1)
    members = [name for shard, name in cluster.shards.items() if shard != 1]
    cluster.blocked.update((name, hidden) for name in members)
    cluster.blocked.update((name, name) for name in members)  # where they hear of connections
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[1].process == hidden)
    good = cluster.start(-1)
    cluster.settle_down(lambda: hidden in cluster.stopped)
    assert "no other member has reached it at inproc://" in cluster.stopped[hidden]
    assert "--advertise" in cluster.stopped[hidden]
    cluster.blocked.clear()
    cluster.shards[1] = good
    cluster.settle_down(cluster.whole)
    assert cluster.scheduler.state.groups[0].places[1].process == good
    assert (cluster.read(SPEC) == cluster.read(SPEC)).all()
    cluster.scrub()


# ------------------------------------------------------------------ the place that it was started for is a wish
def formed() -> SchedulerMachine:
    machine = scheduler()
    for shard in range(5):
        register_at(machine, f"p{shard}", f"inproc://p{shard}", shard)
    assert [place.process for place in machine.state.groups[0].places] == [f"p{i}" for i in range(5)]
    return machine


def test_a_server_whose_place_is_anothers_is_a_spare() -> None:
    machine = formed()
    register_at(machine, "old", "inproc://old", 2)
    state = waiting(machine)
    assert state.spares == 1
    assert [(e.wanted, e.is_spare) for e in state.waiting] == [(2, True)]
    assert machine.admission.choose(3, spares=1) == "old"
    register_at(machine, "spare", "inproc://spare", -1)
    assert machine.admission.choose(3, spares=2) == "spare", "one that was started as a spare is taken first"
    assert machine.admission.choose(2, spares=2) == "old", "for its own place it is the first"


def test_a_server_waits_for_its_own_place_while_that_is_down() -> None:
    machine = formed()
    machine.state.groups[0].places[2].state = DOWN
    machine.state.groups[0].settlements[2] = Settlement(1)
    machine.members.forget(0, 2)
    register_at(machine, "late", "inproc://late", 2)
    assert machine.admission.spares == 0
    assert machine.admission.choose(3, spares=1) is None
    assert machine.admission.choose(2, spares=0) == "late"


def test_two_that_were_started_for_one_place_fill_two() -> None:
    machine = scheduler()
    for shard in (0, 1, 2, 2):
        register_at(
            machine, f"p{len(machine.admission.candidates)}", f"inproc://{len(machine.admission.candidates)}", shard
        )
    assert not machine.state.groups[0].view
    register_at(machine, "last", "inproc://last", 4)
    places = machine.state.groups[0].places
    assert [place.process for place in places] == ["p0", "p1", "p2", "p3", "last"]
    assert all(place.state == UP for place in places)


def test_a_late_server_finds_its_place_taken_and_serves_where_one_dies() -> None:
    cluster = Cluster(5)
    cluster.create(SPEC)
    cluster.push(SPEC, dict.fromkeys(range(40), 1.0))
    late = cluster.start(0)
    cluster.kill(3)
    cluster.settle_down(lambda: cluster.machines[late].state != "")
    cluster.shards[3] = late
    cluster.drain()
    assert cluster.scheduler.state.groups[0].places[3].process == late
    cluster.scrub()


@pytest.mark.parametrize(("wanted", "fits"), [(-2, False), (-1, True), (0, True), (4, True), (5, False)])
def test_a_process_that_asks_for_a_place_that_there_is_not_is_told_so_and_does_not_wait(
    wanted: int, fits: bool
) -> None:
    machine = scheduler()
    told = sent(asks(machine, "new", wanted), m.Fenced)
    assert ("new" in machine.admission.candidates) == fits == (not told)
    assert fits or "there is no shard" in told[0].reason

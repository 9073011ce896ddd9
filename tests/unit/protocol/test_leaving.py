"""Servers that are told to end: the scheduler lets them go when nothing is lost with them, and not before."""

from typing import Any

import pytest
from cluster import Cluster
from doubts import epochs, formed, mute, pass_time, states, suspected
from parts import Parts

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission, Candidate
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.departure import SAID_MS, Departure
from ecrec.protocol.drains import Drains
from ecrec.protocol.events import LEFT, LEFT_EARLY, Effect, Note, Received, Send, Stop, Tick, ToldToEnd
from ecrec.protocol.messages import DOWN, RECOVERING, SCHEDULER, SHARD, TOOL, UP, WORKER, Address
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine


def tell_to_end(cluster: Cluster, *shards: int) -> list[str]:
    """SIGTERM to the processes of these shards, which are named."""
    names = [cluster.shards[shard] for shard in shards]
    for name in names:
        cluster.give(name, ToldToEnd())
    return names


def leaving(cluster: Cluster) -> dict[int, str]:
    """What `ecrec status` says."""
    cluster.give("scheduler", Received(Address(TOOL, 9, 0), m.ClusterQuery(1)))
    cluster.run()
    state = cluster.tool_answers[-1][0]
    assert isinstance(state, m.ClusterState)
    return state.leaving


def check(cluster: Cluster, spec: Any, value: float) -> None:
    """Nothing is lost: every row has had a gradient of so much in all."""
    cluster.drain()
    assert not cluster.scheduler.state.groups[0].lost and not cluster.failed
    cluster.scrub()
    before = cluster.read(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), value))
    cluster.drain()
    assert (cluster.read(spec) == before - 0.5 * value).all()


def begin_recovery(cluster: Cluster, *silent: int) -> None:
    """Shard 0 dies, and its replacement cannot become whole: it does not hear these peers."""
    cluster.kill(0)
    cluster.declared(0)
    newcomer = cluster.shards[0] = cluster.start(0)
    cluster.blocked |= {(cluster.shards[peer], newcomer) for peer in silent}
    cluster.settle_down(lambda: cluster.machines[newcomer].state != "")


def ended(cluster: Cluster, name: str) -> bool:
    return name in cluster.stopped


def test_one_without_a_spare_is_let_go_at_once_and_is_replaced_without_a_time_out() -> None:
    cluster, spec = formed()
    pass_time(cluster, 200.0)
    begin_ms = cluster.now_ms
    (name,) = tell_to_end(cluster, 2)
    cluster.settle_down(lambda: ended(cluster, name))
    assert cluster.now_ms - begin_ms <= 3 * cluster.config.heartbeat_ms < cluster.config.heartbeat_timeout_ms
    downs = [entry for entry in cluster.scheduler.state.history if entry.event == "down"]
    assert [(entry.shard, entry.reason) for entry in downs] == [(2, "it was told to end")]
    cluster.replace(2)
    cluster.settle_down(lambda: cluster.whole())
    assert epochs(cluster) == [1, 1, 2, 1, 1]
    check(cluster, spec, 1.0)


def test_the_second_one_waits_until_the_replacement_of_the_first_is_whole() -> None:
    cluster, spec = formed()
    first, second = tell_to_end(cluster, 1, 3)
    cluster.settle_down(lambda: ended(cluster, first))
    pass_time(cluster, 20_000.0)  # nobody replaces it
    assert states(cluster) == [UP, DOWN, UP, UP, UP] and not ended(cluster, second)
    assert leaving(cluster) == {3: "data would be lost with it: shard 1 is down"}
    cluster.push(spec, {0: 1.0})  # it serves
    cluster.settle_down(lambda: cluster.client.pushed[3] == cluster.client.acked[3])
    cluster.replace(1)
    whole_ms = []
    while not ended(cluster, second):
        cluster.tick()
        cluster.run()
        if states(cluster)[1] == UP and not whole_ms:
            whole_ms.append(cluster.now_ms)
        assert whole_ms or states(cluster)[3] == UP
    assert whole_ms and cluster.now_ms - whole_ms[0] <= 3 * cluster.config.heartbeat_ms
    cluster.replace(3)
    check(cluster, spec, 2.0)


def test_as_many_as_the_code_tolerates_are_let_go_together() -> None:
    cluster, _ = formed(code="3+2")
    names = tell_to_end(cluster, 0, 2, 4)
    pass_time(cluster, 2_000.0)
    assert [ended(cluster, name) for name in names].count(True) == 2 and states(cluster).count(DOWN) == 2
    assert not cluster.scheduler.state.groups[0].lost


def test_one_waits_for_a_death_that_is_not_declared_yet() -> None:
    """A process that died a moment before is missed by nobody: its last heartbeat is fresh."""
    cluster, spec = formed()
    cluster.machines.pop(cluster.shards[1])  # no connection tells of it
    (name,) = tell_to_end(cluster, 3)
    pass_time(cluster, 10 * cluster.config.heartbeat_timeout_ms)
    assert states(cluster)[3] == UP and not ended(cluster, name) and states(cluster)[1] == DOWN
    cluster.replace(1)
    cluster.settle_down(lambda: ended(cluster, name))
    cluster.replace(3)
    check(cluster, spec, 1.0)


def test_one_that_asks_during_a_recovery_waits_for_its_end() -> None:
    cluster, spec = formed()
    begin_recovery(cluster, 1, 2, 3)
    (name,) = tell_to_end(cluster, 4)
    pass_time(cluster, 1_000.0)
    assert states(cluster)[0] == RECOVERING and not ended(cluster, name)
    assert leaving(cluster) == {4: "data would be lost with it: shard 0 is recovering"}
    cluster.blocked.clear()
    cluster.settle_down(lambda: ended(cluster, name))
    assert states(cluster)[0] == UP
    cluster.replace(4)
    check(cluster, spec, 1.0)


def test_a_replacement_that_recovers_may_leave_and_is_replaced_again() -> None:
    cluster, spec = formed()
    begin_recovery(cluster, 1)
    assert states(cluster)[0] == RECOVERING
    (name,) = tell_to_end(cluster, 0)
    cluster.settle_down(lambda: ended(cluster, name))
    cluster.blocked.clear()
    cluster.replace(0)
    check(cluster, spec, 1.0)
    assert epochs(cluster) == [3, 1, 1, 1, 1]


def restart_scheduler(cluster: Cluster) -> None:
    cluster.scheduler = SchedulerMachine(cluster.n, 1, cluster.config, cluster.state)
    cluster.machines["scheduler"] = cluster.scheduler
    for key in [key for key in cluster.channels if "scheduler" in key]:
        cluster.channels[key].clear()


def test_a_scheduler_that_was_started_again_lets_nobody_go_before_it_has_heard_the_others() -> None:
    cluster, spec = formed()
    cluster.machines.pop("scheduler")
    cluster.machines.pop(cluster.shards[1])  # dies while nobody looks
    (name,) = tell_to_end(cluster, 3)
    pass_time(cluster, 2 * SAID_MS)
    assert not ended(cluster, name)
    restart_scheduler(cluster)
    pass_time(cluster, 10 * cluster.config.heartbeat_timeout_ms)
    assert not ended(cluster, name) and states(cluster) == [UP, DOWN, UP, UP, UP]
    cluster.replace(1)
    cluster.settle_down(lambda: ended(cluster, name))
    cluster.replace(3)
    check(cluster, spec, 1.0)


def test_the_answer_that_a_scheduler_owes_is_given_by_the_next_one() -> None:
    """It dies when it has persisted the decision, and has told nobody."""
    cluster, spec = formed()
    (name,) = tell_to_end(cluster, 2)
    cluster.blocked |= {("scheduler", each) for each in (*cluster.shards.values(), "worker-0")}
    cluster.declared(2)
    cluster.machines.pop("scheduler")
    cluster.blocked.clear()
    restart_scheduler(cluster)
    cluster.settle_down(lambda: ended(cluster, name))
    cluster.replace(2)
    check(cluster, spec, 1.0)


def test_one_that_is_suspected_keeps_others_from_leaving() -> None:
    cluster, _ = formed()
    (name,) = tell_to_end(cluster, 3)
    mute(cluster, 1)
    pass_time(cluster, 300.0)
    if not ended(cluster, name):
        assert "shard 1" in leaving(cluster)[3]
    assert states(cluster).count(DOWN) <= 1 and not suspected(cluster).get(3)


def test_one_that_lost_its_scheduler_waits_and_says_so() -> None:
    cluster, _ = formed()
    machine = cluster.shard(2)
    effects = machine.handle(ToldToEnd(), cluster.now_ms)
    assert [e.message for e in effects if isinstance(e, Send)] == [m.Leave(machine.process)]
    notes: list[str] = []
    begin_ms = cluster.now_ms
    while cluster.now_ms < begin_ms + 3 * SAID_MS:
        cluster.now_ms += 20.0
        effects = machine.handle(Tick(), cluster.now_ms)
        notes += [e.text for e in effects if isinstance(e, Note)]
        assert not any(isinstance(e, Stop) for e in effects)
    assert 2 <= len(notes) <= 4 and all("the scheduler has not answered for" in note for note in notes)


def stop_of(effects: list[Effect]) -> Stop | None:
    return next((e for e in effects if isinstance(e, Stop)), None)


def test_what_a_process_says_when_it_may_not_leave_in_time() -> None:
    cluster, _ = formed()
    machine = cluster.shard(2)
    machine.departure._timeout_ms = 5_000.0
    machine.handle(ToldToEnd(), cluster.now_ms)
    scheduler = Address(SCHEDULER, 0, 0)
    stop, ms = None, 0.0
    while stop is None and ms < 6_000.0:
        ms += 20.0
        if ms % 100.0 == 0.0:
            machine.handle(Received(scheduler, m.LeaveWaits("shard 1 is down")), cluster.now_ms + ms)
        stop = stop_of(machine.handle(Tick(), cluster.now_ms + ms))
    assert stop is not None and stop.kind == LEFT_EARLY and 5_000.0 < ms < 5_100.0
    assert "data may be lost" in stop.reason and "shard 1 is down" in stop.reason


def test_a_process_without_a_place_ends_at_once() -> None:
    stop = stop_of(ShardMachine("spare", "tcp://x:1").handle(ToldToEnd(), 0.0))
    assert stop is not None and stop.kind == LEFT


def test_a_table_without_parity_keeps_its_servers_and_the_reason_says_so() -> None:
    cluster, _ = formed(code="4+0")
    (name,) = tell_to_end(cluster, 2)
    pass_time(cluster, 2_000.0)
    assert not ended(cluster, name) and "no parity" in leaving(cluster)[2]


def test_without_tables_there_is_nothing_to_lose() -> None:
    cluster = Cluster(3)
    names = tell_to_end(cluster, 0, 1)
    cluster.settle_down(lambda: all(ended(cluster, name) for name in names))


@pytest.mark.parametrize(
    ("source", "process"),
    [
        (Address(SHARD, 2, 1), "somebody"),
        (Address(SHARD, 2, 2), ""),
        (Address(SHARD, 2, 0), ""),
        (Address(SHARD, 99, 1), ""),
        (Address(SHARD, -1, 0), ""),
        (Address(WORKER, 2, 1), ""),
        (Address(TOOL, 2, 1), ""),
    ],
)
def test_nobody_but_the_member_may_say_that_it_leaves(source: Address, process: str) -> None:
    cluster, _ = formed()
    effects = cluster.scheduler.handle(
        Received(source, m.Leave(process or cluster.shard(2).process)), cluster.now_ms
    )  # fmt: skip
    assert not [e for e in effects if isinstance(e, Send) and e.to.role == SHARD]
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 5 and leaving(cluster) == {} and not cluster.stopped


def test_who_may_not_say_that_it_leaves_may_not_say_that_it_stays() -> None:
    cluster, _ = formed()
    cluster.kill(1)
    cluster.declared(1)
    tell_to_end(cluster, 2)
    pass_time(cluster, 100.0)
    process = cluster.shard(2).process
    for source, name in ((Address(SHARD, 2, 1), "somebody"), (Address(SHARD, 3, 1), process)):
        cluster.give("scheduler", Received(source, m.Leave(name, stays=True)))
        assert list(leaving(cluster)) == [2]
    for _ in range(2):
        cluster.give("scheduler", Received(Address(SHARD, 2, 1), m.Leave(process, stays=True)))
        assert leaving(cluster) == {}


def test_a_word_that_it_stays_says_nothing_to_a_process_that_was_not_told_to_end() -> None:
    departure = Departure("p")
    assert departure.stay() == []
    departure.begin("shard 2", True, 0.0)
    note, said = departure.stay()
    assert isinstance(note, Note) and isinstance(said, Send) and said.message == m.Leave("p", stays=True)
    assert departure.stay() == [] and not departure.is_asked


# ------------------------------------------------------------------ somebody asks that a process ends
@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"shard": 2, "epoch": 1}, ""),
        ({"shard": 2, "epoch": 2}, "shard 2 (epoch 2) is not here any more"),
        ({"shard": 1, "epoch": 1}, "shard 1 (epoch 1) is not here any more"),  # it is down
        ({"shard": 9, "epoch": 1}, "there is no shard 9"),
        ({"process": "spare"}, ""),
        ({"process": "p2"}, "no process p2 waits for a place"),
    ],
)
def test_only_an_incarnation_that_runs_or_a_process_that_waits_is_told_to_end(fields: Any, refusal: str) -> None:
    parts, drains = who_is_told()
    parts.state.groups[0].places[1].state = DOWN
    drains.on_drain(Address(TOOL, 9, 0), m.Drain(5, **fields))
    answer = parts.sent()[-1]
    assert answer == (m.Refused(5, refusal) if refusal else m.Draining(5))


def who_is_told() -> tuple[Parts, Drains]:
    parts = Parts(n=3)
    admission = Admission(parts.context, parts.members)
    admission.candidates["spare"] = Candidate("inproc://spare", -1, 0.0, 0.0, 1, True)
    return parts, Drains(parts.context, admission)


def test_a_member_is_told_where_its_successor_is_to_be_and_whether_it_stays() -> None:
    for fields in ({}, {"stays": True}, {"off_host": True}):
        parts, drains = who_is_told()
        drains.on_drain(Address(TOOL, 9, 0), m.Drain(5, 2, 1, **fields))
        assert parts.sent() == [m.ToldToLeave("p2", **fields), m.Draining(5)]


def test_a_process_without_a_place_is_told_once_when_it_is_heard_and_what_was_said_last() -> None:
    parts, drains = who_is_told()
    for stays in (False, True):
        drains.on_drain(Address(TOOL, 9, 0), m.Drain(5, process="spare", stays=stays))
    parts.sent()
    for told in ([m.ToldToLeave("spare", True)], []):
        drains.on_register(Address(SHARD, -1, 0), "spare")
        assert parts.sent() == told


def test_nothing_is_kept_for_processes_that_are_gone() -> None:
    """One of that name would be told to end for somebody else's sake."""
    parts, drains = who_is_told()
    drains.on_drain(Address(TOOL, 9, 0), m.Drain(5, process="spare"))
    candidates = drains.admission.candidates
    candidates["another"] = candidates.pop("spare")
    drains.on_drain(Address(TOOL, 9, 0), m.Drain(6, process="another"))
    parts.sent()
    drains.on_register(Address(SHARD, -1, 0), "spare")
    assert parts.sent() == []


def test_an_earlier_life_that_asks_is_told_that_it_is_over() -> None:
    cluster, _ = formed()
    ghost = cluster.shard(2)
    cluster.machines.pop(cluster.shards[2])
    cluster.declared(2)
    cluster.replace(2)
    cluster.drain()
    effects = cluster.scheduler.handle(Received(ghost.address, m.Leave(ghost.process)), cluster.now_ms)
    assert [(e.to, type(e.message)) for e in effects if isinstance(e, Send)] == [(ghost.address, m.Fenced)]
    ghost.handle(ToldToEnd(), cluster.now_ms)
    fenced = next(e.message for e in effects if isinstance(e, Send))
    stop = stop_of(ghost.handle(Received(Address(SCHEDULER, 0, 0), fenced), cluster.now_ms))
    assert stop is not None and stop.kind == LEFT
    pass_time(cluster, 500.0)
    assert states(cluster) == [UP] * 5 and leaving(cluster) == {}


def test_one_that_asked_and_died_is_forgotten() -> None:
    cluster, _ = formed(config=ProtocolConfig())
    cluster.kill(1)
    cluster.declared(1)
    tell_to_end(cluster, 3)
    pass_time(cluster, 500.0)
    assert list(leaving(cluster)) == [3]
    cluster.replace(1)
    cluster.settle_down(lambda: cluster.stopped.keys() >= {cluster.shards[3]})
    cluster.replace(3)
    cluster.drain()
    assert leaving(cluster) == {}


def test_an_answer_that_nobody_asked_for_says_nothing() -> None:
    cluster, _ = formed()
    machine = cluster.shard(2)
    answer = Received(Address(SCHEDULER, 0, 0), m.LeaveWaits("never"))
    assert not [e for e in machine.handle(answer, cluster.now_ms) if isinstance(e, Note | Stop)]
    assert not [e for e in machine.handle(Tick(), cluster.now_ms + 20.0) if isinstance(e, Note | Stop)]


def test_where_data_is_lost_already_nobody_waits() -> None:
    cluster, _ = formed()
    cluster.kill(1)
    cluster.kill(3)
    cluster.declared(1, 3)
    assert cluster.scheduler.state.groups[0].lost
    (name,) = tell_to_end(cluster, 2)
    cluster.settle_down(lambda: ended(cluster, name))
    assert "has lost data" in cluster.stopped[name]


def test_one_that_leaves_without_a_spare_says_who_waits_for_it() -> None:
    cluster, spec = formed()
    (name,) = tell_to_end(cluster, 2)
    cluster.settle_down(lambda: ended(cluster, name))
    assert "no spare waits: workers that need its rows wait until another server is started" in cluster.stopped[name]
    cluster.replace(2)
    check(cluster, spec, 1.0)

"""What a scheduler that makes its state again does with members that are strange, damaged or hostile."""

import copy
from functools import cache
from typing import Any

import msgspec
import pytest
from cluster import table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adoption import DATA, SPEC, Living, fenced, lease, train
from test_wire import values

from ecrec.errors import ConfigurationError
from ecrec.protocol import invariants
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import OUTDATED, Effect, Note, Received, Send, Stop, Tick
from ecrec.protocol.messages import SHARD, Address
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import State, encode_state, read_state, with_checksum, without_checksum

HUGE = m.NUMBER_MAX


@pytest.fixture
def living() -> Living:
    return Living()


def stopped(effects: list[Effect]) -> str:
    return next((effect.reason for effect in effects if isinstance(effect, Stop)), "")


# ---------------------------------------------------------------------- copies that nobody can read
def test_a_state_with_a_field_that_this_version_does_not_know_is_refused() -> None:
    """Passed over, it would be forgotten with the next write, without a word."""
    later = msgspec.msgpack.decode(without_checksum(encode_state(State(3, []))))
    for place in (later, later["leases"]):
        place["of_a_later_version"] = 1
        with pytest.raises(ConfigurationError, match=r"not written by this version.*of_a_later_version"):
            read_state(with_checksum(msgspec.msgpack.encode(later)))
        del place["of_a_later_version"]
    assert read_state(with_checksum(msgspec.msgpack.encode(later))) == State(3, [])


def test_an_adoption_ends_with_the_reason_when_no_copy_can_be_read(living: Living) -> None:
    for shard in range(5):
        living.shard(shard).context.copy = b"of another version"
    living.scheduler_starts(None, adopt=True)
    living.pass_ms(living.config.adopt_timeout_ms + 1000)
    assert "no member's copy of the state can be read: shard 0" in living.stopped["scheduler"]
    assert "not written by this version" in living.stopped["scheduler"] and living.stops[-1].kind == OUTDATED
    assert list(living.stopped) == ["scheduler"], "no member was ended"


def test_one_copy_that_can_be_read_is_enough(living: Living) -> None:
    assert lease(living, living.client) == (0, 4)
    living.pass_ms(2 * living.config.state_copy_ms)
    for shard in range(1, 5):
        living.shard(shard).context.copy = b"junk"
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    assert any("left out the copy of the state that shard 3" in note for note in living.notes)
    assert [held.first for held in living.scheduler.state.leases.leases] == [0]
    living.check()


def test_an_adoption_ends_with_the_reason_when_no_answer_can_be_used(living: Living) -> None:
    for shard in range(5):
        membership = living.shard(shard).membership
        assert membership.start is not None
        membership.start = msgspec.structs.replace(membership.start, members=[])
    living.scheduler_starts(None, adopt=True)
    living.pass_ms(living.config.adopt_timeout_ms - 500)
    assert not living.stopped
    living.pass_ms(1500)
    assert "tells what cannot be: members [] in a group of 5" in living.stopped["scheduler"]


def test_an_adoption_ends_when_nobody_answers(living: Living) -> None:
    living.scheduler_starts(None, adopt=True)
    status = m.ShardStatus("p", 9, True, [], {}, {}, {}, origin=m.Origin("ours", 0, 9))
    living.scheduler.handle(Received(Address(SHARD, 0, 1), status), living.now_ms)
    effects = living.scheduler.handle(Tick(), living.now_ms + living.config.adopt_timeout_ms + 1)
    assert "no member that was heard has answered" in stopped(effects)


# ---------------------------------------------------------------------- members of another cluster
def stray(living: Living, shard: int, cluster: str = "theirs", n: int = 5) -> tuple[m.ShardStatus, m.ShardCensus]:
    """Heartbeat and census of a process of another cluster, which has the same place there."""
    start = living.shard(shard).membership.start
    assert start is not None
    members = [m.Member(i, 1, m.UP, f"tcp://theirs:{i}") for i in range(n)]
    start = msgspec.structs.replace(start, n=n, members=members, epoch=1, recovering=False, unsettled=[], cuts=[])
    origin = m.Origin(cluster, 3, 500)
    status = m.ShardStatus("stray", 99, True, [], {}, {}, {}, origin=origin)
    return status, m.ShardCensus("stray", "tcp://theirs:9", origin, 0, start, [])


@pytest.mark.parametrize("n", [5, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_stray_of_another_cluster_does_not_stop_an_adoption(living: Living, first: bool, n: int) -> None:
    """Be it heard before all others, of the same size or not; nor does it afterwards, before the others are heard."""
    status, census = stray(living, 2, n=n)
    address = Address(SHARD, 2, 1)
    living.scheduler_starts(None, adopt=True)
    heard = [Received(address, status), Received(address, census, (b"",))]
    if first:
        for event in heard:
            living.give("scheduler", event)
    else:
        living.blocked.add((living.shards[4], "scheduler"))
        living.pass_ms(3 * living.config.heartbeat_ms)
        for event in heard:
            living.give("scheduler", event)
        living.blocked.clear()
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    living.give("scheduler", Received(address, status))
    assert living.scheduler.rebuilding.adoption is None
    assert living.scheduler.state.cluster == "ours" and living.scheduler.state.generation == 1
    assert any("'theirs'" in note and "wrong scheduler" in note for note in living.notes)
    living.pass_ms(500)
    assert not living.stopped
    living.check()


def test_a_tie_of_two_clusters_names_both() -> None:
    living = Living(3, table(code="1+2"))
    living.blocked |= {(living.shards[shard], "scheduler") for shard in (1, 2)}
    status, census = stray(living, 2, n=3)
    living.scheduler_starts(None, adopt=True)
    for message in (status, census):
        living.give("scheduler", Received(Address(SHARD, 2, 1), message, (b"",)))
    living.pass_ms(living.config.adopt_timeout_ms + 500)
    assert "as many members are of cluster 'ours' as of 'theirs'" in living.stopped["scheduler"]


def test_a_stray_that_is_heard_first_after_a_restart_does_not_end_the_scheduler(living: Living) -> None:
    living.scheduler_starts(living.state)
    status, _ = stray(living, 2)
    living.give("scheduler", Received(Address(SHARD, 2, 7), status))
    living.pass_ms(2000)
    assert not living.stopped
    living.check()


def test_a_state_of_another_cluster_is_refused_when_nobody_of_its_own_is_heard(living: Living) -> None:
    other = Living()
    state = msgspec.structs.replace(read_state(other.state), cluster="theirs")
    living.scheduler_starts(encode_state(state))
    living.pass_ms(living.config.heartbeat_timeout_ms + 500)
    assert list(living.stopped) == ["scheduler"] and "is of 'theirs'" in living.stopped["scheduler"]
    assert read_state(living.state).cluster == "ours", "nothing was written"


# ---------------------------------------------------------------------- damaged and hostile ones
class Answers(Living):
    """Keeps what members answer to a Census."""

    def __init__(self) -> None:
        self.told: dict[Address, tuple[m.ShardStatus, m.ShardCensus, m.Frames]] = {}
        super().__init__()

    def give(self, name: str, event: Any) -> None:
        message = getattr(event, "message", None)
        if isinstance(message, m.ShardCensus):
            status = next(c.status for c in [self.heard[event.source]])
            self.told[event.source] = status, message, event.frames
        elif isinstance(message, m.ShardStatus):
            self.heard[event.source] = _Heard(message)
        super().give(name, event)

    @property
    def heard(self) -> dict[Address, Any]:
        return self.__dict__.setdefault("_heard", {})


class _Heard:
    def __init__(self, status: m.ShardStatus) -> None:
        self.status = status


@cache
def answers(step: str) -> dict[Address, tuple[m.ShardStatus, m.ShardCensus, m.Frames]]:
    """Of five members; one is down, or has been replaced."""
    living = Answers()
    assert lease(living, living.client) == (0, 4)
    if step != "whole":
        living.kill(2)
        living.declared(2)
        living.pass_ms(200)
    if step == "replaced":
        living.replace(2)
        living.pass_ms(200)
    living.pass_ms(2 * living.config.state_copy_ms)
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: living.scheduler.state.generation == 1)
    return living.told


def adopts(told: dict[Address, tuple[m.ShardStatus, m.ShardCensus, m.Frames]]) -> tuple[SchedulerMachine, list[Effect]]:
    """A scheduler without a state to which all tell these, and its effects until it has decided."""
    machine = SchedulerMachine(5, 1, ProtocolConfig(), None, "new", adopt=True)
    effects: list[Effect] = []
    for source, (status, _, _) in told.items():
        effects += machine.handle(Received(source, status), 0.0)
    for source, (_, census, frames) in told.items():
        if machine.rebuilding.adoption is not None and not stopped(effects):
            effects += machine.handle(Received(source, census, frames), 0.0)
    if not stopped(effects):
        effects += machine.handle(Tick(), machine.config.adopt_timeout_ms + 1.0)
    return machine, effects


def check_adopted(machine: SchedulerMachine) -> None:
    invariants.check(machine)
    assert read_state(encode_state(machine.state)) == machine.state
    for at_ms in (6000.0, 6001.0, 9000.0):
        machine.handle(Tick(), at_ms)
        invariants.check(machine)
    assert machine.state.generation < HUGE and machine.state.serial < HUGE


STEPS = ("whole", "down", "replaced")


@pytest.mark.parametrize("step", STEPS)
def test_true_answers_are_adopted(step: str) -> None:
    machine, effects = adopts(answers(step))
    assert not stopped(effects) and machine.state.generation == 1
    assert not any("dropped" in effect.text for effect in effects if isinstance(effect, Note))
    check_adopted(machine)


def member(start: m.FullView, which: int, **fields: Any) -> list[m.Member]:
    return [msgspec.structs.replace(e, **fields) if e.shard == which else e for e in start.members]


WRONG: dict[str, Any] = {
    "no members": lambda s: {"members": []},
    "a member too many": lambda s: {"members": [*s.members, s.members[0]]},
    "a member twice": lambda s: {"members": [*s.members[:4], s.members[0]]},
    "a member out of range": lambda s: {"members": member(s, 3, shard=77)},
    "a negative member": lambda s: {"members": member(s, 3, shard=-1)},
    "an epoch of none": lambda s: {"members": member(s, 3, epoch=0)},
    "a huge epoch": lambda s: {"members": member(s, 3, epoch=HUGE)},
    "another epoch of its own": lambda s: {"members": member(s, s.shard, epoch=s.epoch + 1)},
    "it is down itself": lambda s: {"members": member(s, s.shard, state=m.DOWN)},
    "no state": lambda s: {"members": member(s, 3, state="asleep")},
    "classes that are not there": lambda s: {"members": member(s, 3, state=m.RESEEDING, reseeding=[999, -1])},
    "another shard": lambda s: {"shard": 3},
    "another group": lambda s: {"group": 1},
    "another epoch": lambda s: {"epoch": 9},
    "a view of none": lambda s: {"number": 0},
    "a huge view": lambda s: {"number": HUGE},
    "a huge window": lambda s: {"window": HUGE},
    "one unsettled that runs": lambda s: {"unsettled": [s.members[3]]},
    "one cut that runs": lambda s: {"cuts": [m.Cut(3, 1, {}, 1, [])]},
    "a negative cut": lambda s: {"members": member(s, 3, state=m.DOWN), "cuts": [m.Cut(3, -5, {}, 1, [])]},
    "a cut of a later view": lambda s: {"members": member(s, 3, state=m.DOWN), "cuts": [m.Cut(3, 1, {}, 9999, [])]},
    "classes re-initialised that are not there": lambda s: {"reinitialised": [-3]},
    "a table twice": lambda s: {"tables": [SPEC, SPEC]},
    "a table that cannot be": lambda s: {"tables": [msgspec.structs.replace(SPEC, rows=-1)]},
    "a code that cannot be": lambda s: {"tables": [table(code="9+9")]},
    "a fence of no worker": lambda s: {"fenced": {1 << 20: 1}},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_census_that_cannot_be_is_dropped_and_its_member_named(what: str) -> None:
    told = dict(answers("whole"))
    source = sorted(told)[1]
    status, census, frames = told[source]
    wrong = msgspec.structs.replace(census.start, **WRONG[what](census.start))
    told[source] = status, msgspec.structs.replace(census, start=wrong), frames
    machine, effects = adopts(told)
    notes = [effect.text for effect in effects if isinstance(effect, Note)]
    assert any(f"dropped what {source} tells" in note for note in notes), notes
    assert not stopped(effects) and machine.state.generation == 1
    assert machine.state.tables == [SPEC] and not fenced(effects)
    check_adopted(machine)


VIEWS: dict[str, Any] = {
    "a gap": lambda v: [m.WorkerFenced(v + 2, 1, 1)],
    "a start": lambda v: [m.FullView(v + 1, 0, 1, 5, 1, 1, False, 0, {}, [], [], [], "", ProtocolConfig())],
    "a shard out of range": lambda v: [m.ShardDown(v + 1, 17, 1)],
    "a negative shard": lambda v: [m.ShardWhole(v + 1, -2, 1)],
    "a huge window": lambda v: [m.ShardDown(v + 1, 3, 1), m.Settle(v + 2, 3, 1, HUGE)],
    "a later generation": lambda v: [m.Adopted(v + 1, 7)],
    "a fence of no worker": lambda v: [m.WorkerFenced(v + 1, 1 << 30, 1)],
    "a death of another epoch": lambda v: [m.ShardDown(v + 1, 3, 4)],
    "a cut of one that runs": lambda v: [m.Settle(v + 1, 3, 1, 4)],
    "a replacement of one that runs": lambda v: [m.ShardUp(v + 1, 3, 2, "tcp://x:1", 1, {})],
    "a replacement before the cut": lambda v: [m.ShardDown(v + 1, 3, 1), m.ShardUp(v + 2, 3, 2, "tcp://x:1", 1, {})],
    "one whole that was": lambda v: [m.ShardWhole(v + 1, 3, 1)],
    "classes that are not there": lambda v: [m.Reinitialise(v + 1, [4711], "so")],
    "a table twice": lambda v: [m.TableAdded(v + 1, SPEC)],
    "a table that cannot be": lambda v: [m.TableAdded(v + 1, msgspec.structs.replace(SPEC, name="x", dim=0))],
}


@pytest.mark.parametrize("what", VIEWS)
def test_views_that_cannot_be_are_dropped_and_their_member_named(what: str) -> None:
    """Behind those that all others tell, so that nobody contradicts them."""
    told = dict(answers("whole"))
    source = sorted(told)[1]
    status, census, frames = told[source]
    view = census.views[-1].number
    told[source] = status, msgspec.structs.replace(census, views=[*census.views, *VIEWS[what](view)]), frames
    machine, effects = adopts(told)
    notes = [effect.text for effect in effects if isinstance(effect, Note)]
    assert any(f"dropped what {source} tells" in note for note in notes), (stopped(effects), notes)
    assert not stopped(effects) and machine.state.generation == 1
    check_adopted(machine)


def test_two_members_with_one_process_are_not_both_believed() -> None:
    told = dict(answers("whole"))
    first, second = sorted(told)[:2]
    status, census, frames = told[second]
    told[second] = status, msgspec.structs.replace(census, process=told[first][1].process), frames
    machine, effects = adopts(told)
    assert not stopped(effects) and machine.state.generation == 1
    assert any("dropped what shard" in effect.text for effect in effects if isinstance(effect, Note))
    check_adopted(machine)


COPIES: dict[str, Any] = {
    "a place of no epoch": lambda s: setattr(s.groups[0].places[1], "epoch", 0),
    "a place down that is not settled": lambda s: setattr(s.groups[0].places[1], "state", m.DOWN),
    "classes that are not there": lambda s: setattr(s.groups[0], "to_reinitialise", [999]),
    "a view of none": lambda s: setattr(s.groups[0], "view", HUGE),
    "a huge serial": lambda s: setattr(s, "serial", HUGE),
    "a lease out of its data set": lambda s: setattr(s.leases.leases[0], "last", 1 << 40),
    "examples in two hands": lambda s: s.leases.datasets[0].returned.append((0, 4)),
    "a negative count": lambda s: setattr(s.leases.datasets[0], "trained", -4),
    "a run of none": lambda s: setattr(s.runs, "number", -1),
    "a worker of none": lambda s: s.workers.update({-1: (1, "p")}),
    "first values of no table": lambda s: s.initial.unsure.append(77),
    "a table twice": lambda s: (s.tables.append(s.tables[0]), s.groups[0].table_views.append(1)),
}


@pytest.mark.parametrize("what", COPIES)
def test_a_copy_that_cannot_be_is_left_out_and_its_member_named(what: str) -> None:
    told = dict(answers("whole"))
    source = sorted(told)[1]
    status, census, frames = told[source]
    state: State = read_state(bytes(frames[0]))
    state.serial += 1  # it is the newest
    COPIES[what](state)
    told[source] = status, census, (encode_state(state),)
    machine, effects = adopts(told)
    notes = [effect.text for effect in effects if isinstance(effect, Note)]
    assert any(f"left out the copy of the state that {source} keeps" in note for note in notes), notes
    assert not stopped(effects) and machine.state.generation == 1
    check_adopted(machine)


@pytest.mark.parametrize("request_", [
    m.JoinRun(1, 1), m.LeaseSplit(1, m.Dataset("d", 4, 4, 4), 0), m.InitialiseTable(1, 0, True, False),
])  # fmt: skip
def test_a_life_of_a_worker_that_no_copy_knows_is_not_fenced_for_a_request_that_comes_before_its_heartbeat(
    request_: m.Message,
) -> None:
    machine, _ = adopts(answers("whole"))
    worker = Address(m.WORKER, 0, 1 + machine.state.workers.get(0, (0, ""))[0])
    now_ms = machine.context.now_ms
    assert not machine.handle(Received(worker, request_), now_ms), "it is asked again"
    theirs = msgspec.structs.replace(machine.context.origin, generation=machine.state.generation - 1)
    effects = machine.handle(Received(worker, m.WorkerStatus("newer", [-1], {}, origin=theirs)), now_ms)
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    assert [message for message in sent if not isinstance(message, m.Views)] == [m.Census(machine.state.generation)]
    assert 0 in machine.state.leases.unheard, "it may hold splits"
    effects = machine.handle(Received(worker, request_), now_ms)
    assert not [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, m.Fenced)]
    older = Address(m.WORKER, 0, worker.epoch - 1)
    effects = machine.handle(Received(older, request_), now_ms)
    assert "no longer, a worker that may" in str(effects)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_some_members_tell_the_state_can_be_or_is_refused_with_a_reason(data: Any) -> None:
    told = dict(answers(data.draw(st.sampled_from(STEPS))))
    for source in data.draw(st.sets(st.sampled_from(sorted(told)), min_size=1, max_size=2)):
        status, census, frames = told[source]
        told[source] = status, drawn(data, census), frames if data.draw(st.booleans()) else (drawn_copy(data, frames),)
    machine, effects = adopts(told)
    if not stopped(effects):
        assert machine.rebuilding.adoption is None
        check_adopted(machine)


def drawn(data: Any, thing: Any, depth: int = 0) -> Any:
    """The struct with one field changed, at any depth."""
    name = data.draw(st.sampled_from(thing.__struct_fields__))
    value = getattr(thing, name)
    if isinstance(value, msgspec.Struct) and depth < 3 and data.draw(st.integers(0, 3)):
        return msgspec.structs.replace(thing, **{name: drawn(data, value, depth + 1)})
    if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct) and data.draw(st.integers(0, 3)):
        at = data.draw(st.integers(0, len(value) - 1))
        how = data.draw(st.sampled_from(["change", "change", "drop", "twice"]))
        rest = {"drop": [], "twice": [value[at], value[at]]}.get(how)
        inner = [drawn(data, value[at], depth + 1)] if rest is None else rest
        return msgspec.structs.replace(thing, **{name: [*value[:at], *inner, *value[at + 1 :]]})
    return msgspec.structs.replace(thing, **{name: getattr(data.draw(values(type(thing))), name)})


def drawn_copy(data: Any, frames: m.Frames) -> bytes:
    """A copy with some value changed, in the form in which it is written."""
    tree = msgspec.msgpack.decode(without_checksum(frames[0]))
    node: Any = tree
    for _ in range(12):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key]:
            node = node[key]
            continue
        node[key] = data.draw(st.sampled_from([-1, 0, 1, 7, 2**40, HUGE, HUGE + 1, "up", "down", "", None, True]))
        break
    return with_checksum(msgspec.msgpack.encode(tree))


# ---------------------------------------------------------------------- workers
WORKER = {
    "a huge lease": {"lease": HUGE},
    "a data set that cannot be": {"dataset": m.Dataset("e", 0, 7, 4)},
    "a data set of too many splits before it": {
        "dataset": m.Dataset("e", 1 << 40, 1 << 40, 1 << 13), "first": 1 << 39, "last": (1 << 39) + (1 << 13),
    },
    "examples outside of the data set": {"first": 400, "last": 404},
    "no examples": {"first": 8, "last": 8},
    "a split that nobody cuts so": {"first": 5, "last": 9},
}  # fmt: skip


@pytest.mark.parametrize("what", WORKER)
def test_a_worker_that_tells_what_cannot_be_is_fenced(living: Living, what: str) -> None:
    other = ClientMachine(1, "worker-1")
    living.machines["worker-1"] = other
    living.settle_down(lambda: other.ready)
    for shard in range(5):  # what follows is in no copy
        living.blocked.add(("scheduler", living.shards[shard]))
    assert lease(living, living.client) == (0, 4)
    assert lease(living, other) == (4, 8)
    liar = other.leasing.held[0]
    other.leasing.held[0] = msgspec.structs.replace(liar, **WORKER[what])
    living.blocked.clear()
    living.scheduler_starts(None, adopt=True)
    living.settle_down(lambda: bool(living.failed), ticks=1500)
    assert "it tells of lease" in living.failed[0]
    assert read_state(encode_state(living.scheduler.state)) == living.scheduler.state
    train(living, living.client, 4)
    assert lease(living, living.client) == (4, 8)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_a_worker_tells_leaves_a_state_that_can_be(data: Any) -> None:
    machine, _ = adopts(answers("whole"))
    state = machine.state
    epoch, process = state.workers[0]
    status = m.WorkerStatus(process, [1], {}, origin=m.Origin("ours", 0, 1))
    source = Address(m.WORKER, 0, epoch)
    effects = machine.handle(Received(source, status), 5001.0)
    assert any(isinstance(effect, Send) and isinstance(effect.message, m.Census) for effect in effects)
    held = m.HeldLease(DATA, 1, 0, 4, 1)
    tells = m.WorkerCensus(process, m.Origin("ours", 0, 1), 0, 1, [held, m.HeldLease(DATA, 2, 4, 8, 2)], 1)
    census = drawn(data, tells)
    census = msgspec.structs.replace(census, process=process, origin=tells.origin)
    machine.handle(Received(source, census), 5002.0)
    invariants.check(machine)
    assert read_state(encode_state(state)) == copy.deepcopy(state)
    machine.handle(Tick(), 5003.0)
    invariants.check(machine)

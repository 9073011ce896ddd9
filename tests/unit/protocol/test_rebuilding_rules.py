"""A scheduler that doubts its state, one rule at a time: whom it hears, what shows that it is outdated, when it ends;
and what it makes of heartbeats, and of a state that was made again."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import pytest
from cluster import register_at, table

from ecrec.protocol import messages as m
from ecrec.protocol.adoption import Adoption, Told
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.context import Context
from ecrec.protocol.events import (
    OUTDATED,
    Connection,
    Disconnected,
    HalfHandledError,
    Note,
    Received,
    Send,
    Stop,
    Tick,
)
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    SHARD,
    TOOL,
    UP,
    Address,
    Census,
    Fenced,
    FullView,
    Origin,
    ShardCensus,
    ShardStatus,
    StateCopy,
)
from ecrec.protocol.rebuilding import AHEAD_MAX, Rebuilding, Rebuilt
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import Group, Place, Settlement, State, encode_state

CONFIG = ProtocolConfig()
TIMEOUT_MS, ADOPT_MS, FORM_MS = CONFIG.heartbeat_timeout_ms, CONFIG.adopt_timeout_ms, CONFIG.form_after_ms
N = 3


def shard(number: int, epoch: int = 1) -> Address:
    return Address(SHARD, number, epoch)


def started(number: int, groups: int = 1) -> FullView:
    members = [m.Member(i, 1, UP, f"inproc://{i}") for i in range(N)]
    return FullView(1, 0, groups, N, number, 1, False, 0, {}, members, [], [], "", CONFIG)


def state_of(groups: int = 1, **fields: Any) -> State:
    """Of cluster "ours": generation 2, serial 5, a group that has begun and has view 4."""
    places = [[Place(1, UP, f"p{g}.{i}", f"inproc://{g}.{i}") for i in range(N)] for g in range(groups)]
    some = [Group(4, each, [m.WorkerFenced(4, 9, 1)]) for each in places]
    for group in some:
        for number, place in enumerate(group.places):
            place.start = started(number, groups)
    state = State(N, some, cluster="ours", generation=2, serial=5, config=CONFIG)
    return msgspec.structs.replace(state, **fields)


# ------------------------------------------------------------------ what shows that a state is outdated
class Doubt:
    """The part of a scheduler that doubts its state, as if after a restart."""

    def __init__(self, may_adopt: bool = False, is_new: bool = False) -> None:
        self.context = Context(CONFIG, state_of())
        self.rebuilding = Rebuilding(self.context, is_new, may_adopt)

    def hears(self, source: Address, origin: Origin, view: int = 4, hears_own: bool = True) -> bool:
        status = ShardStatus("p", view, True, [], {}, {}, {}, origin=origin)
        return self.rebuilding.belongs(source, status, hears_own)

    def ends(self) -> str:
        effects, self.context.effects = self.context.effects, []
        return next((effect.reason for effect in effects if isinstance(effect, Stop)), "")


@pytest.mark.parametrize(
    ("source", "origin", "view", "why"),
    [
        (shard(0), Origin("ours", 2, 5), 4, ""),
        (shard(0), Origin("ours", 2, 6), 4, "knows state 2.6, this is 2.5"),
        (shard(0), Origin("ours", 3, 0), 4, "knows state 3.0, this is 2.5"),
        (shard(0), Origin("ours", 2, 5), 5, "has taken view 5, this state ends with 4"),
        (shard(0), Origin("ours", 2, 0), 5, "has taken view 5"),
        (shard(0, 2), Origin("ours", 2, 5), 4, "is newer than the newest that this state knows (epoch 1)"),
        # of an earlier generation: its views have the numbers of others
        (shard(0), Origin("ours", 1, 99), 9, ""),
        (shard(0, 2), Origin("ours", 1, 5), 4, ""),
        # no shard of this cluster
        (shard(9), Origin("ours", 2, 5), 9, ""),
    ],
)
def test_a_heartbeat_that_knows_more_than_the_state_shows_that_it_is_too_old(
    source: Address, origin: Origin, view: int, why: str
) -> None:
    doubt = Doubt()
    assert doubt.hears(source, origin, view) == (not why)
    reason = doubt.ends()
    assert why in reason and bool(reason) == bool(why)
    if why:
        assert "the scheduler's state is older than its cluster" in reason and "--adopt" in reason


@pytest.mark.parametrize("epoch", [0, -1])
def test_what_no_life_of_a_shard_says_shows_nothing(epoch: int) -> None:
    doubt = Doubt()
    assert not doubt.hears(shard(0, epoch), Origin("ours", 9, 9)) and not doubt.ends()
    assert doubt.hears(shard(0, 1), Origin("ours", 2, 5))


@pytest.mark.parametrize(
    ("hears_own", "adopted", "unverified", "ends"),
    [
        (False, False, False, True),
        (True, False, False, False),
        (False, True, False, False),
        (False, False, True, False),
    ],
)
def test_a_member_of_another_cluster_ends_a_scheduler_that_hears_nobody_of_its_own(
    hears_own: bool, adopted: bool, unverified: bool, ends: bool
) -> None:
    doubt = Doubt()
    doubt.rebuilding._has_adopted = adopted
    doubt.rebuilding.unverified = {(0, 0)} if unverified else set()
    assert not doubt.hears(shard(0), Origin("theirs", 9, 9), hears_own=hears_own)
    assert bool(doubt.ends()) == ends


def test_who_belongs_to_the_cluster_is_no_stranger() -> None:
    doubt = Doubt()
    assert doubt.hears(shard(0), Origin("ours", 2, 5), hears_own=False) and not doubt.ends()


@pytest.mark.parametrize("heard_own", [False, True])
def test_after_a_restart_members_have_the_time_of_a_heartbeat_to_be_heard(heard_own: bool) -> None:
    """Then a stranger counts, if nobody of its own was heard."""
    doubt = Doubt()
    doubt.context.now_ms = 1_000.0
    doubt.rebuilding.verify({(0, 0), (0, 1)})
    assert not doubt.rebuilding.is_over
    doubt.hears(shard(0), Origin("theirs", 9, 9), hears_own=False)
    assert not doubt.ends()
    if heard_own:
        assert not doubt.rebuilding.verified((0, 0)), "another one is waited for"
    for late_ms, over in ((-1.0, False), (0.0, heard_own)):
        doubt.context.now_ms = 1_300.0 + TIMEOUT_MS + late_ms
        doubt.rebuilding.stood_still(300.0 if late_ms else 0.0)
        assert doubt.rebuilding.on_tick() is None
        assert doubt.rebuilding.is_over == over
        assert bool(doubt.ends()) == (late_ms == 0.0 and not heard_own)


def test_when_all_were_heard_the_state_is_known_to_be_the_newest() -> None:
    doubt = Doubt()
    doubt.rebuilding.verify({(0, 0), (0, 1)})
    assert [doubt.rebuilding.verified((0, number)) for number in (0, 0, 1, 1)] == [False, False, True, False]
    assert doubt.rebuilding.is_over


# ------------------------------------------------------------------ splits that only workers know of
def test_after_a_restart_no_split_is_granted_before_workers_had_the_time_of_a_heartbeat() -> None:
    """Also those that the state does not know."""
    doubt = Doubt()
    doubt.context.now_ms = 1_000.0
    doubt.rebuilding.verify(set())
    assert not doubt.rebuilding.may_grant
    doubt.rebuilding.stood_still(300.0)
    doubt.context.now_ms = 1_300.0 + TIMEOUT_MS - 1.0
    assert not doubt.rebuilding.may_grant
    doubt.context.now_ms += 1.0
    assert doubt.rebuilding.may_grant


def test_the_same_is_so_after_an_adoption() -> None:
    doubt = adopting()
    doubt.context.now_ms = 2_000.0
    for number in range(N):
        doubt.hears(shard(number), Origin("ours", 9, 9))
        rebuilt = tells(doubt, number)
    assert rebuilt is not None and not doubt.rebuilding.may_grant
    doubt.context.begin_with(rebuilt.state)
    one = Address(m.WORKER, 3, 1)
    assert doubt.rebuilding.serves(one, Origin("ours", 9, 99)) and not doubt.rebuilding.has_met(one)
    doubt.context.now_ms = 2_000.0 + TIMEOUT_MS
    assert doubt.rebuilding.may_grant


@pytest.mark.parametrize(
    ("source", "stops"),
    [
        (Address(m.WORKER, 3, 1), True),
        (Address(TOOL, 3, 1), False),
        (Address(m.WORKER, 3, 0), False),  # a process that cannot hold a split
        (Address(m.WORKER, m.WORKERS_MAX, 1), False),
        (Address(m.WORKER, -3, 1), False),
    ],
)
@pytest.mark.parametrize("may_adopt", [True, False])
def test_where_a_worker_knows_more_than_the_state_nobody_is_granted_a_split_any_more(
    source: Address, stops: bool, may_adopt: bool
) -> None:
    """Also when the state has come to be as new: what was granted in between is not in it. For the word of a worker
    nothing ends, and nothing is made again."""
    doubt = Doubt(may_adopt=may_adopt)
    doubt.rebuilding.verify(set())
    assert not doubt.rebuilding.serves(source, Origin("ours", 2, 6))
    assert not doubt.ends() and doubt.rebuilding.adoption is None
    doubt.context.now_ms = 9 * TIMEOUT_MS
    assert doubt.rebuilding.may_grant == (not stops)
    doubt.context.state.serial = 60
    doubt.context.effects.clear()
    assert not doubt.rebuilding.serves(source, Origin("ours", 2, 6)), (
        "it was not heard before, and knows more than I did"
    )
    assert doubt.rebuilding.may_grant == (not stops)
    said = [effect.text for effect in doubt.context.effects if isinstance(effect, Note)]
    assert any("no split is granted" in text for text in said) == stops
    doubt.context.effects.clear()
    doubt.rebuilding.serves(source, Origin("ours", 2, 5))
    said = [effect.text for effect in doubt.context.effects if isinstance(effect, Note)]
    assert not any("no split is granted" in text for text in said), "not with each heartbeat"


def test_one_that_was_heard_may_know_what_was_persisted_since_and_no_more() -> None:
    doubt = Doubt()
    doubt.rebuilding.verify(set())
    one, other = Address(m.WORKER, 3, 1), Address(m.WORKER, 4, 1)
    assert doubt.rebuilding.serves(one, Origin("ours", 2, 5))
    doubt.rebuilding.meet(one)
    doubt.context.state.serial = 8
    assert doubt.rebuilding.serves(one, Origin("ours", 2, 8)) and doubt.rebuilding.has_met(one)
    assert not doubt.rebuilding.serves(other, Origin("ours", 2, 6)) and not doubt.rebuilding.has_met(other)


@pytest.mark.parametrize(
    ("event", "unverified", "adopting"),
    [
        (Received(shard(0), ShardStatus("p", 1, True, [], {}, {}, {})), True, True),
        (Received(shard(0), m.Register("p", "x", 1)), True, True),
        (Received(shard(0), ShardCensus("p", "x", Origin(), 0, started(0), [])), False, True),
        (Received(Address(TOOL, 0, 0), m.ClusterQuery(1)), True, False),
        (Received(Address(TOOL, 0, 0), m.StoryQuery(1)), True, True),
        (Received(Address(TOOL, 0, 0), m.CreateTable(1, table())), False, False),
        (Disconnected(shard(0)), False, False),
        (Connection(shard(0), up=True), False, False),
    ],
)
def test_while_it_doubts_it_hears_only_what_tells_it_more(event: Any, unverified: bool, adopting: bool) -> None:
    doubt = Doubt(may_adopt=True)
    assert doubt.rebuilding.hears(event)
    doubt.rebuilding.unverified = {(0, 0)}
    assert doubt.rebuilding.hears(event) == unverified
    doubt.hears(shard(0), Origin("ours", 9, 9))
    assert doubt.rebuilding.hears(event) == adopting


# ------------------------------------------------------------------ it is made again
def adopting() -> Doubt:
    """Shard 0 has shown that the state is too old, and was asked."""
    doubt = Doubt(may_adopt=True)
    doubt.rebuilding.unverified = {(0, 1)}
    assert not doubt.hears(shard(0), Origin("ours", 9, 9))
    assert doubt.rebuilding.adoption is not None and not doubt.rebuilding.unverified
    assert asked(doubt) == {0}
    return doubt


def asked(doubt: Doubt) -> set[int]:
    effects, doubt.context.effects = doubt.context.effects, []
    assert not any(isinstance(effect, Stop) for effect in effects)
    return {effect.to.id for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Census)}


def tells(doubt: Doubt, number: int) -> Rebuilt | None:
    census = ShardCensus(f"p{number}", f"inproc://{number}", Origin("ours", 9, 9), 0, started(number), [])
    return doubt.rebuilding.on_census(shard(number), census, [])


def test_while_a_state_is_made_again_members_are_asked_and_nothing_else_is_made_of_their_heartbeats() -> None:
    doubt = adopting()
    assert not doubt.hears(shard(1), Origin("ours", 2, 5)) and asked(doubt) == {1}
    assert not doubt.hears(shard(2), Origin("theirs", 2, 5)) and asked(doubt) == {2}
    assert not doubt.hears(shard(1), Origin("ours", 2, 5)) and asked(doubt) == set()


def test_a_census_that_nobody_waits_for_is_nothing() -> None:
    assert tells(Doubt(), 0) is None


def test_the_state_is_made_as_soon_as_all_have_told() -> None:
    doubt = adopting()
    for number in range(N):
        doubt.hears(shard(number), Origin("ours", 9, 9))
        rebuilt = tells(doubt, number)
        assert (rebuilt is not None) == (number == N - 1)
    assert rebuilt is not None and rebuilt.told.keys() == {0, 1, 2} and rebuilt.state.generation == 10
    assert doubt.rebuilding.adoption is None and doubt.rebuilding.is_over
    assert not doubt.hears(shard(0), Origin("theirs", 9, 9), hears_own=False) and not doubt.ends(), "its own have told"


@pytest.mark.parametrize("told", [0, 2])
def test_the_state_is_made_of_what_was_told_when_the_time_is_over_and_not_before(told: int) -> None:
    doubt = adopting()
    for number in range(told):
        doubt.hears(shard(number), Origin("ours", 9, 9))
        tells(doubt, number)
    doubt.context.now_ms = ADOPT_MS - 1.0
    assert doubt.rebuilding.on_tick() is None and not doubt.ends()
    doubt.context.now_ms = ADOPT_MS
    rebuilt = doubt.rebuilding.on_tick()
    reason = doubt.ends()
    if told:
        assert rebuilt is not None and rebuilt.told.keys() == {0, 1} and not reason
    else:
        assert rebuilt is None and "the state cannot be made again: no member that was heard has answered" in reason


# ------------------------------------------------------------------ the scheduler around it
def scheduler_of(state: State | None = None, now_ms: float = 0.0, **limits: Any) -> SchedulerMachine:
    """One that goes on with a state, and has heard all of its members."""
    state = state or state_of()
    config = ProtocolConfig(**limits)
    scheduler = SchedulerMachine(N, len(state.groups), config, encode_state(state), "ours")
    for number in range(N * len(state.groups)):
        beats(scheduler, number, now_ms=now_ms)
    assert scheduler.rebuilding.is_over
    return scheduler


def beats(
    scheduler: SchedulerMachine, number: int, epoch: int = 1, now_ms: float = 0.0, process: str = "", **more: Any
) -> list[Any]:
    group, own = divmod(number, N)
    fields: dict[str, Any] = {"view": 4, "whole": True, "origin": Origin("ours", 2, 5), **more}
    status = ShardStatus(
        process or f"p{group}.{own}", fields.pop("view"), fields.pop("whole"), [], {}, {}, {}, **fields
    )
    return scheduler.handle(Received(shard(number, epoch), status), now_ms)


def messages(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


@pytest.mark.parametrize(
    ("epoch", "process", "state", "is_over"),
    [(1, "", UP, False), (1, "another", UP, True), (1, "", DOWN, True), (0, "", UP, False)],
)
def test_a_heartbeat_counts_if_it_is_of_the_process_that_has_the_place(
    epoch: int, process: str, state: str, is_over: bool
) -> None:
    scheduler = scheduler_of()
    place = scheduler.state.groups[0].places[1]
    place.epoch = max(place.epoch, epoch)
    if state == DOWN:
        place.state = DOWN
        scheduler.state.groups[0].settlements[1] = Settlement(1)
        scheduler.members.forget(0, 1)
    effects = beats(scheduler, 1, epoch, process=process)
    assert bool(messages(effects, Fenced)) == is_over


def test_a_life_before_the_present_one_is_told_that_it_is_over() -> None:
    state = state_of()
    state.groups[0].places[1].epoch = 2
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state), "ours")
    effects = beats(scheduler, 1, epoch=1)
    assert "was declared dead" in messages(effects, Fenced)[0].reason
    assert not messages(beats(scheduler, 1, epoch=2), Fenced)


def test_a_process_that_was_not_known_when_the_state_was_made_again_is_the_one_that_says_so() -> None:
    scheduler = scheduler_of()
    scheduler.state.groups[0].places[1].process = ""
    assert not messages(beats(scheduler, 1, process="it"), Fenced)
    assert scheduler.state.groups[0].places[1].process == "it"
    assert messages(beats(scheduler, 1, process="another"), Fenced)


@pytest.mark.parametrize(("generation", "view", "is_over"), [(1, 2, False), (1, 3, True), (1, 4, True), (2, 4, False)])
def test_a_member_that_has_taken_views_of_a_history_that_was_given_up_is_ended(
    generation: int, view: int, is_over: bool
) -> None:
    state = state_of()
    state.groups[0].adopted = 3
    scheduler = scheduler_of(state)
    effects = beats(scheduler, 1, view=view, origin=Origin("ours", generation, 5))
    assert bool(messages(effects, Fenced)) == is_over


def test_a_heartbeat_of_a_shard_that_is_not_there_is_nothing() -> None:
    scheduler = scheduler_of()
    for number in (N, 99, -1):
        assert messages(beats(scheduler, number, process="x"), m.Message) == []


def test_losses_that_a_member_counts_are_taken_once_and_only_of_views_that_there_are() -> None:
    state = state_of(tables=[table(code="2+1")])
    state.groups[0].table_views = [1]
    state.groups[0].places[1].losses_counted = 2
    scheduler = scheduler_of(state)
    beats(scheduler, 1, reinitialised={2: {0: 1}, 3: {0: 2}, 4: {0: 4}, 5: {0: 8}})
    assert scheduler.state.rows_reinitialised == 6 and scheduler.state.groups[0].places[1].losses_counted == 4
    beats(scheduler, 1, reinitialised={3: {0: 2}, 4: {0: 4}})
    assert scheduler.state.rows_reinitialised == 6


@pytest.mark.parametrize(
    ("state", "whole", "view", "is_news"),
    [(RECOVERING, True, 4, True), (RECOVERING, False, 4, False), (UP, True, 4, False), (RECOVERING, True, 2, False)],
)
def test_a_member_is_whole_when_it_says_so_of_the_view_that_took_that_from_it(
    state: str, whole: bool, view: int, is_news: bool
) -> None:
    kept = state_of()
    kept.groups[0].places[1].state, kept.groups[0].places[1].weak_since = state, 3
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(kept), "ours")
    for number in (0, 2):
        beats(scheduler, number)
    beats(scheduler, 1, whole=whole, view=view)
    assert (scheduler.state.groups[0].places[1].state == UP) == (is_news or state == UP)
    assert any(isinstance(view, m.ShardWhole) for view in scheduler.state.groups[0].views) == is_news


def test_a_shard_that_was_heard_is_sent_the_state_once() -> None:
    scheduler = scheduler_of()
    scheduler.state.serial = 9
    effects = beats(scheduler, 1, now_ms=10_000.0, origin=Origin("ours", 2, 5))
    assert len(messages(effects, StateCopy)) == 1
    later = scheduler.handle(Tick(), 10_000.0 + CONFIG.state_copy_ms)
    assert messages(later, StateCopy) == [], "not one that says nothing"


# ------------------------------------------------------------------ groups begin
def test_a_new_scheduler_listens_before_it_makes_a_cluster_of_those_that_wait() -> None:
    """Members of a cluster that lives may be heard by then."""
    scheduler = SchedulerMachine(1, 1, CONFIG, None, "new")
    register_at(scheduler, "p", "inproc://p", -1, 0.0)
    for now_ms, begun in ((0.0, False), (FORM_MS - 1.0, False), (FORM_MS, True)):
        register_at(scheduler, "p", "inproc://p", -1, now_ms)
        assert bool(scheduler.state.groups[0].view) == begun, now_ms


def test_a_group_begins_at_once_where_another_one_has() -> None:
    state = state_of(groups=2)
    state.groups[1] = Group(places=[Place() for _ in range(N)])
    scheduler = SchedulerMachine(N, 2, CONFIG, encode_state(state), "ours")
    for number in range(N):
        beats(scheduler, number)
    for i in range(N):
        register_at(scheduler, f"new{i}", f"inproc://new{i}", -1, 1.0)
    assert scheduler.state.groups[1].view


def test_requests_for_tables_are_answered_while_a_group_has_not_begun() -> None:
    state = state_of(tables=[table(code="2+1")])
    state.groups[0].table_views = [1]
    scheduler = scheduler_of(state)
    asks = Received(Address(TOOL, 1, 0), m.CreateTable(1, table(code="2+1")))
    assert messages(scheduler.handle(asks, 0.0), m.TableReady) == [m.TableReady(1, 0)]
    scheduler.members.contacts[0, 1].view = 0
    assert messages(scheduler.handle(asks, 0.0), m.TableReady) == []
    assert messages(beats(scheduler, 1), m.TableReady) == [m.TableReady(1, 0)]


def test_requests_for_tables_are_refused_when_they_have_waited_for_a_suspect_for_too_long() -> None:
    scheduler = scheduler_of(blocked_timeout_ms=10)
    scheduler.handle(Received(Address(TOOL, 1, 0), m.CreateTable(1, table(code="2+1"))), 0.0)
    with mock.patch.object(scheduler.deaths, "blocking", return_value={1: "silent for 9 s"}):
        (refused,) = messages(scheduler.handle(Tick(), 20.0), m.Refused)
    assert "shard 1 is in the way: silent for 9 s" in refused.reason


def test_nothing_is_decided_while_the_state_is_in_doubt() -> None:
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state_of()), "ours")
    with mock.patch.object(scheduler.deaths, "on_tick", side_effect=AssertionError):
        for now_ms in (0.0, 200.0, 400.0, 600.0, TIMEOUT_MS - 1.0):
            scheduler.handle(Tick(), now_ms)
            assert not scheduler.rebuilding.is_over
        scheduler.handle(Tick(), TIMEOUT_MS)
    assert scheduler.rebuilding.is_over, "and from the next tick on"


@pytest.mark.parametrize("broken", [Disconnected(shard(1)), Connection(shard(1), up=False)])
def test_a_connection_that_ends_while_the_state_is_in_doubt_is_not_forgotten(broken: Any) -> None:
    """Nobody says it again: taken for silence, the death would be noticed seconds later."""
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state_of()), "ours")
    scheduler.handle(broken, 0.0)
    assert not scheduler.rebuilding.is_over
    now_ms = 0.0
    while scheduler.state.groups[0].places[1].state == UP and now_ms < 3 * TIMEOUT_MS:
        now_ms += 50.0
        for number in (0, 2):
            beats(scheduler, number, now_ms=now_ms)
        scheduler.handle(Tick(), now_ms)
    silent = SchedulerMachine(N, 1, CONFIG, encode_state(state_of()), "ours")
    until_ms = 0.0
    while silent.state.groups[0].places[1].state == UP:
        until_ms += 50.0
        for number in (0, 2):
            beats(silent, number, now_ms=until_ms)
        silent.handle(Tick(), until_ms)
    assert scheduler.state.groups[0].places[1].state == DOWN and now_ms < until_ms


def test_a_connection_that_ends_while_a_state_is_made_again_is_judged_with_the_new_state() -> None:
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state_of()), "ours", adopt=True)
    scheduler.handle(Tick(), 0.0)
    beats(scheduler, 0, origin=Origin("ours", 2, 9))
    assert scheduler.rebuilding.adoption is not None
    strangers = [Disconnected(Address(TOOL, 1, 1)), Disconnected(shard(N)), Disconnected(shard(-1))]
    for event in (Disconnected(shard(1)), Connection(shard(1, 0), up=True), *strangers):
        scheduler.handle(event, 1.0)
    scheduler.rebuilding.adoption = None  # all have told
    with mock.patch("ecrec.protocol.deaths.Deaths.on_disconnected") as heard:
        scheduler._adopt(Rebuilt(state_of(), {}))
    heard.assert_called_once_with(shard(1))


@pytest.mark.parametrize("role", [m.WORKER, TOOL])
@pytest.mark.parametrize(
    ("origin", "is_ahead"),
    [
        (Origin("ours", 2, 6), True),
        (Origin("ours", 3, 0), True),
        (Origin("ours", 2, 5), False),
        (Origin("ours", 1, 99), False),
        (Origin("theirs", 9, 9), False),
        (Origin(), False),
    ],
)
@pytest.mark.parametrize("in_doubt", [True, False])
def test_a_worker_that_knows_more_than_the_state_is_given_nothing(
    role: int, origin: Origin, is_ahead: bool, in_doubt: bool
) -> None:
    """Else it would be granted splits that others have, where no shard is heard that could tell."""
    state = state_of(workers={7: (1, "p")})
    scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state), "ours") if in_doubt else scheduler_of(state)
    one = Address(role, 7, 1)
    effects = scheduler.handle(Received(one, m.WorkerStatus("p", [4], {}, 0, origin=origin)), 1.0)
    assert not any(isinstance(effect, Stop) for effect in effects)
    notes = [effect.text for effect in effects if isinstance(effect, Note) and "it is given nothing" in effect.text]
    assert bool(notes) == is_ahead
    for now_ms in range(0, int(TIMEOUT_MS) + 2, 100):
        scheduler.handle(Tick(), float(now_ms))
    scheduler.handle(Tick(), TIMEOUT_MS + 1.0)
    assert scheduler.rebuilding.is_over
    created = m.CreateTable(5, table("t", code="2+1"))
    scheduler.handle(Received(one, created), TIMEOUT_MS + 2.0)
    assert bool(scheduler.tables.preparing.tables()) == (not is_ahead)
    query = scheduler.handle(Received(one, m.ClusterQuery(6)), TIMEOUT_MS + 3.0)
    assert messages(query, m.ClusterState), "people may look"
    behind = m.WorkerStatus("p", [4], {}, 0, origin=Origin("ours", 2, 5))
    scheduler.handle(Received(one, behind), TIMEOUT_MS + 4.0)
    assert not scheduler.rebuilding.is_ahead(one)


def test_while_a_state_is_made_again_nobody_is_ahead_of_it() -> None:
    """The state that is made may know more."""
    doubt = adopting()
    one = Address(m.WORKER, 7, 1)
    assert doubt.rebuilding.serves(one, Origin("ours", 9, 9)) and not doubt.rebuilding.is_ahead(one)
    assert not doubt.context.effects


def test_of_invented_workers_no_more_are_kept_than_there_is_room_for() -> None:
    doubt = Doubt()
    for number in range(AHEAD_MAX + 5):
        assert not doubt.rebuilding.serves(Address(m.WORKER, number, 1), Origin("ours", 9, 9))
    assert doubt.rebuilding.is_ahead(Address(m.WORKER, AHEAD_MAX - 1, 1))
    assert not doubt.rebuilding.is_ahead(Address(m.WORKER, AHEAD_MAX, 1))


# ------------------------------------------------------------------ the next generation
def adopts(state: State, views: dict[int, int]) -> SchedulerMachine:
    """A scheduler goes on with a state that was made again of what these shards told, with the views they have."""
    scheduler = SchedulerMachine(N, len(state.groups), CONFIG, None, "new")
    told = {
        number: Told(
            shard(number),
            ShardCensus("p", "x", Origin(), 0, started(number), [m.WorkerFenced(v, 9, 1) for v in range(2, view + 1)]),
            None,
        )
        for number, view in views.items()
    }
    scheduler._adopt(Rebuilt(state, told))
    return scheduler


def test_members_have_confirmed_what_they_told_and_nothing_that_the_state_was_not_made_with() -> None:
    state = state_of()
    scheduler = adopts(state, {0: 3, 1: 9})
    assert [scheduler.members.contacts[0, number].view for number in range(N)] == [3, 4, 1]
    assert scheduler.state.groups[0].views[-1] == m.Adopted(5, 2) and scheduler.state.groups[0].adopted == 5


def test_a_group_that_has_not_begun_has_nothing_to_adopt() -> None:
    state = state_of(groups=2)
    state.groups[1] = Group(places=[Place() for _ in range(N)])
    scheduler = adopts(state, {0: 4, 1: 4, 2: 4})
    assert scheduler.state.groups[1].view == 0 and scheduler.state.groups[1].views == []


def test_groups_are_told_the_tables_that_others_have_and_deaths_that_lost_data_are_found() -> None:
    state = state_of(groups=2, tables=[table(code="2+1")])
    state.groups[0].table_views = [1]
    for number in (0, 1):
        state.groups[0].places[number].state = DOWN
        state.groups[0].settlements[number] = Settlement(1, {}, 4, {}, 1)
    scheduler = adopts(state, {2: 4, 3: 4, 4: 4, 5: 4})
    assert scheduler.state.groups[1].views[-1] == m.TableAdded(6, table(code="2+1"))
    assert scheduler.state.groups[1].table_views == [6] and scheduler.state.groups[0].table_views == [1]
    assert "data lost: shards 0 (down), 1 (down)" in scheduler.state.groups[0].lost


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize("error", [MemoryError(), HalfHandledError("in the middle"), ValueError("so")])
@pytest.mark.parametrize("acting", [True, False])
def test_an_error_refuses_a_message_only_where_nothing_has_moved(error: Exception, acting: bool) -> None:
    scheduler = scheduler_of()

    def fails(source: Address, message: Any, frames: Any) -> None:
        if acting:
            scheduler.context.checked()
        raise error

    scheduler._handlers[m.ClusterQuery] = fails
    with pytest.raises((MemoryError, HalfHandledError, ValueError)) as raised:
        scheduler.handle(Received(Address(TOOL, 0, 0), m.ClusterQuery(1)), 0.0)
    if isinstance(error, MemoryError) or (isinstance(error, ValueError) and not acting):
        assert raised.value is error
    else:
        assert isinstance(raised.value, HalfHandledError)


ENDS: list[tuple[str, Callable[[SchedulerMachine], Any], Any]] = [
    ("a tick", lambda s: (s.deaths, "on_tick"), Tick()),
    ("a connection that closed", lambda s: (s.deaths, "on_disconnected"), Disconnected(shard(1))),
    ("a connection that broke", lambda s: (s.deaths, "on_connection"), Connection(shard(1), up=False)),
    ("what is decided", lambda s: (s.tables, "advance"), Received(Address(TOOL, 0, 0), m.ClusterQuery(1))),
    ("a heartbeat", lambda s: (s.leases, "raise_number"), "beats"),
    ("one that leaves", lambda s: (s.deaths.departures, "on_leave"), Received(shard(1), m.Leave("p0.1"))),
    ("one that ends", lambda s: (s.deaths, "on_unfit"), Received(shard(1), m.Unfit("p0.1", "so"))),
    ("a split", lambda s: (s.workers, "confirm"),
     Received(Address(m.WORKER, 1, 1), m.LeaseSplit(1, m.Dataset("d", 1, 1, 1), 0))),
    ("first values", lambda s: (s.workers, "confirm"),
     Received(Address(m.WORKER, 1, 1), m.InitialiseTable(1, 0, True, False))),
    ("a run", lambda s: (s.workers, "confirm"), Received(Address(m.WORKER, 1, 1), m.JoinRun(1, 2))),
    ("a run that is left", lambda s: (s.runs, "on_leave"), Received(Address(m.WORKER, 1, 1), m.LeaveRun(1, 2))),
    ("a worker's heartbeat", lambda s: (s.workers, "confirm"),
     Received(Address(m.WORKER, 1, 0), m.WorkerStatus("w", [], {}, origin=Origin("ours", 2, 5)))),
    ("a process that registers", lambda s: (s.admission, "_is_taken"),
     Received(shard(-1, 0), m.Register("new", "inproc://new", -1))),
    ("a table", lambda s: (s.tables.preparing, "add"),
     Received(Address(TOOL, 1, 0), m.CreateTable(1, table(code="2+1")))),
    ("a table that cannot be", lambda s: (s.tables.preparing, "refuse"),
     Received(Address(TOOL, 1, 0), m.CreateTable(1, table(code="9+9")))),
]  # fmt: skip


@pytest.mark.parametrize(("what", "part", "event"), ENDS, ids=[what for what, _, _ in ENDS])
def test_what_fails_once_the_state_moves_ends_the_process(what: str, part: Any, event: Any) -> None:
    """Each has passed its checks then; an error there must not look like a refusal of the message."""
    scheduler = scheduler_of()
    target, name = part(scheduler)
    with mock.patch.object(target, name, side_effect=ValueError("so")), pytest.raises(HalfHandledError, match="so"):
        if event == "beats":
            beats(scheduler, 1)
        else:
            scheduler.handle(event, 0.0)


@pytest.mark.parametrize("second", [table(code="2+1", dim=8), table(code="9+9")])
def test_a_refusal_that_fails_ends_the_process_and_so_does_that_of_a_copy(second: Any) -> None:
    for copies in (0, 1):
        scheduler = scheduler_of()
        scheduler.handle(Received(Address(TOOL, 1, 0), m.CreateTable(1, table(code="2+1"))), 0.0)
        asks = Received(Address(TOOL, 1, 0), m.CreateTable(2, second))
        for _ in range(copies):
            assert messages(scheduler.handle(asks, 0.0), m.Refused)
        broken = mock.patch.object(scheduler.tables.preparing, "refuse", side_effect=ValueError("so"))
        with broken, pytest.raises(HalfHandledError, match="so"):
            scheduler.handle(asks, 0.0)


def test_what_fails_while_a_state_is_made_again_ends_the_process() -> None:
    for adopting in (False, True):
        scheduler = SchedulerMachine(N, 1, CONFIG, encode_state(state_of()), "ours", adopt=True)
        if adopting:
            beats(scheduler, 0, origin=Origin("ours", 9, 9))
        broken = mock.patch.object(Adoption, "asks", side_effect=ValueError("so"))
        with broken, pytest.raises(HalfHandledError, match="so"):
            beats(scheduler, 1, origin=Origin("ours", 9, 9))
    census = ShardCensus("p0", "x", Origin("ours", 9, 9), 0, started(0), [])
    broken = mock.patch.object(Adoption, "take", side_effect=ValueError("so"))
    with broken, pytest.raises(HalfHandledError, match="so"):
        scheduler.handle(Received(shard(0), census, [b""]), 0.0)


def test_splits_that_a_worker_tells_of_and_that_fail_end_the_process() -> None:
    state = state_of()
    state.workers, state.claims = {1: (1, "w")}, {1: [(1, "w")]}
    scheduler = scheduler_of(state)
    told = m.WorkerCensus("w", Origin("ours", 1, 9), 0, 0, [], 2)
    broken = mock.patch.object(scheduler.leases, "adopt", side_effect=ValueError("so"))
    with broken, pytest.raises(HalfHandledError, match="so"):
        scheduler.handle(Received(Address(m.WORKER, 1, 1), told), 0.0)


def test_a_scheduler_that_ends_as_outdated_says_so_with_its_exit_code() -> None:
    doubt = Doubt()
    doubt.hears(shard(0), Origin("ours", 9, 9))
    (stop,) = [effect for effect in doubt.context.effects if isinstance(effect, Stop)]
    assert stop.kind == OUTDATED

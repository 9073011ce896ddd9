"""What the scheduler gathers of members before it judges them, and whom it asks and lets go, one rule at a time."""

from typing import Any

import pytest
from cluster import table
from parts import Parts

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission, Candidate
from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.deaths import DIED_MAX, Deaths
from ecrec.protocol.events import Connection, Disconnect, Note, Send
from ecrec.protocol.losses import Losses
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    RESEEDING,
    SHARD,
    UP,
    Address,
    Fenced,
    FullView,
    Leave,
    LeaveWaits,
    Origin,
    Probe,
)
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.settlement import Settlements
from ecrec.protocol.state import Place, Settlement
from ecrec.protocol.successions import Successions

CONFIG = ProtocolConfig()
TIMEOUT_MS, REACH_MS, RESEND_MS = CONFIG.heartbeat_timeout_ms, CONFIG.reach_timeout_ms, CONFIG.view_resend_ms
N = 4


def shard(number: int, epoch: int = 1) -> Address:
    return Address(SHARD, number, epoch)


def started(number: int = 1) -> FullView:
    return FullView(number, 0, 1, N, 0, 1, False, 0, {}, [], [], [], "", CONFIG)


class Scheduler(Parts):
    """A group of four, each of which has told something; a test gives it tables."""

    def __init__(self, *codes: str, n: int = N, groups: int = 1, **limits: Any) -> None:
        super().__init__(n=n, groups=groups, **limits)
        self.group = self.state.groups[0]
        for number, group in enumerate(self.state.groups):
            for place in group.places:
                place.start = started()
            for other in range(n):
                self.tells(other, group=number)
        for code in codes:
            self.add_table(table(code, code=code))
        self.losses = Losses(self.context, self.members, self.announcer)
        self.admission = Admission(self.context, self.members)
        settlements = Settlements(self.context, self.members, self.announcer, self.admission, self.losses)
        successions = Successions(self.context, self.members, self.announcer, self.admission, settlements)
        self.deaths = Deaths(self.context, self.members, self.announcer, self.losses, self.admission, successions)

    def add_table(self, spec: TableSpec) -> None:
        self.state.tables.append(spec)
        self.context.placement.add(spec.code)

    def tells(self, number: int, group: int = 0, **more: Any) -> None:
        fields: dict[str, Any] = {
            "view": 1, "heard": {}, "linked": [], "late": {}, "unheard": [], "broken": [], "severed": [],
            "prepared": 0, "age_ms": 0, "origin": Origin(),
        }  # fmt: skip
        self.says(group, number, **{**fields, **more})
        self.members.contacts[group, number].heard_ms = self.context.now_ms

    def signs(self, waits: bool = False) -> dict[int, Any]:
        return {sign.shard: sign for sign in self.deaths._signs(0, self.group, lambda prepared: waits)}

    def words(self) -> dict[tuple[int, int], Any]:
        return {(word.speaker, word.about): word for word in self.deaths._words(0, self.group)}

    def tick(self, now_ms: float, *, all_heard: bool = True, **more: Any) -> None:
        self.context.now_ms = now_ms
        if all_heard:
            for contact in self.members.contacts.values():
                contact.heard_ms = now_ms
        self.deaths.on_tick(more.get("stood_still_ms", 0.0), lambda prepared: False, more.get("unheard", {}))

    def probes(self) -> dict[int, list[int]]:
        """Whom is asked about whom, since the last time."""
        effects, self.context.effects = self.context.effects, []
        return {e.to.id: e.message.shards for e in effects if isinstance(e, Send) and isinstance(e.message, Probe)}

    def states(self) -> list[str]:
        return [place.state for place in self.group.places]


# ------------------------------------------------------------------ last words
def reasons(scheduler: Scheduler) -> list[tuple[int, str]]:
    return [(entry.shard, entry.reason) for entry in scheduler.state.history if entry.event == "down"]


def test_a_process_of_which_somebody_says_that_it_has_ended_is_down_and_why_is_kept() -> None:
    scheduler = Scheduler("3+1")
    scheduler.group.places[1].process = "p1"
    scheduler.deaths.on_ended("somebody", "ended with exit code 1")
    scheduler.deaths.on_ended("", "ended")
    assert DOWN not in scheduler.states()
    for _ in range(2):  # its successor says it until it has a place
        scheduler.deaths.on_ended("p1", "was ended by SIGKILL")
    assert scheduler.states() == [UP, DOWN, UP, UP]
    assert reasons(scheduler) == [(1, "its process was ended by SIGKILL")]


def test_how_a_process_ended_is_added_to_what_was_seen_of_its_death() -> None:
    scheduler = Scheduler("3+1", groups=2)
    place = scheduler.state.groups[1].places[2]
    place.process = "p6"
    scheduler.deaths._down(1, 2, "its connection is closed")
    place.process, place.epoch, place.state = "another", 2, UP  # a spare was faster
    for _ in range(2):
        scheduler.deaths.on_ended("p6", "was ended by SIGKILL")
    assert reasons(scheduler) == [(6, "its connection is closed; its process was ended by SIGKILL")]
    assert scheduler.context.is_changed and place.state == UP


def test_of_many_deaths_the_last_ones_may_be_described() -> None:
    scheduler = Scheduler("1+3")
    place = scheduler.group.places[0]
    for number in range(DIED_MAX + 1):
        place.process, place.state, place.epoch = f"one {number}", UP, number
        scheduler.deaths._down(0, 0, "gone")
    for number in (0, 1, DIED_MAX):
        scheduler.deaths.on_ended(f"one {number}", "burnt")
    assert [text for _, text in reasons(scheduler) if "burnt" in text] == ["gone; its process burnt"] * 2


# ------------------------------------------------------------------ signs
def test_of_members_that_are_down_or_were_never_met_there_are_no_signs_and_no_words() -> None:
    scheduler = Scheduler()
    scheduler.group.places[1].state = DOWN
    scheduler.members.forget(0, 2)
    assert scheduler.signs().keys() == {0, 3}
    assert scheduler.words().keys() == {(0, 2), (0, 3), (3, 0), (3, 2)}
    scheduler.members.contacts[0, 3].status = None
    assert scheduler.words().keys() == {(0, 2), (0, 3)}, "one that has told nothing says nothing"
    scheduler.group.places[2].start = None
    assert scheduler.words().keys() == {(0, 3)}, "of one that was not started nobody knows"
    assert not scheduler.signs()[3].met and scheduler.signs()[0].met


@pytest.mark.parametrize(
    ("status", "field", "value"),
    [
        ({}, "complains", False),
        ({"late": {1: 9}}, "complains", True),
        ({"broken": [1]}, "complains", True),
        ({"prepared": 7}, "prepared", 7),
        ({"origin": Origin("", 0, 4)}, "lags", True),
        ({"origin": Origin("", 0, 5)}, "lags", False),
    ],
)
def test_what_a_member_tells_is_a_sign(status: dict[str, Any], field: str, value: Any) -> None:
    scheduler = Scheduler()
    scheduler.announcer._copied[0, 0] = 5, 0.0
    scheduler.tells(0, **{"origin": Origin("", 0, 9), **status})
    assert getattr(scheduler.signs()[0], field) == value


def test_after_a_loss_nobody_complains_and_a_table_waits_for_those_that_were_heard() -> None:
    scheduler = Scheduler()
    scheduler.tells(0, late={1: 9})
    scheduler.members.contacts[0, 1].status = None
    signs = scheduler.signs(waits=True)
    assert signs[0].complains and signs[0].unprepared and not signs[1].unprepared
    scheduler.group.lost = "all"
    assert not scheduler.signs()[0].complains


def test_a_member_can_catch_up_while_the_views_behind_its_own_or_its_start_are_kept() -> None:
    scheduler = Scheduler()
    scheduler.group.view, scheduler.group.views = 9, [m.WorkerFenced(v, 1, 1) for v in (7, 8, 9)]
    for view, start, outrun in ((5, 1, True), (6, 1, False), (9, 1, False), (2, 6, False), (2, None, True)):
        scheduler.members.contacts[0, 0].view = view
        scheduler.group.places[0].start = None if start is None else started(start)
        assert scheduler.signs()[0].outrun == outrun, (view, start)


def test_what_a_member_says_of_an_incarnation_that_it_does_not_know_is_no_news_of_it() -> None:
    scheduler = Scheduler()
    scheduler.group.places[1].start = started(5)
    said = {"heard": {1: 40}, "linked": [1], "severed": [1]}
    for view, knows in ((4, False), (5, True)):
        scheduler.tells(0, view=view, **said)
        word = scheduler.words()[0, 1]
        assert (word.knows, word.linked, word.severed) == (knows, knows, knows)
        assert word.heard_ms == (40.0 if knows else NEVER_MS)


def test_what_a_busy_member_says_again_is_as_old_as_when_it_was_true() -> None:
    scheduler = Scheduler()
    scheduler.tells(0, age_ms=300)
    scheduler.context.now_ms = 70.0
    assert scheduler.words()[0, 1].age_ms == 370.0 and scheduler.words()[1, 0].age_ms == 70.0


# ------------------------------------------------------------------ what is lost
@pytest.mark.parametrize(
    ("codes", "state", "down", "again", "uncoded", "is_tolerated"),
    [
        ([], {}, {0, 1, 2, 3}, False, True, True),  # there are no tables
        (["2+1"], {}, {1}, False, True, True),
        (["2+1"], {}, {0, 1}, False, True, False),
        (["2+1"], {0: DOWN}, {1}, False, True, False),
        (["2+1"], {0: DOWN, 1: DOWN}, {0, 1}, False, True, False),
        (["1+1"], {0: DOWN, 1: DOWN}, {2, 3}, False, True, False),
        (["2+0"], {}, {1}, False, True, False),
        (["2+0"], {}, {1}, False, False, False),  # all that there is
        (["2+0"], {}, {1}, True, True, False),
        (["2+1", "2+0"], {}, {1}, False, True, False),
        (["2+1", "2+0"], {}, {1}, False, False, True),
        (["2+1", "2+0"], {}, {1}, True, True, True),  # they may begin again
        (["2+1", "2+0"], {}, {0, 1}, True, True, False),
    ],
)
def test_deaths_are_tolerated_if_every_stripe_that_they_are_in_can_be_decoded(
    codes: list[str], state: dict[int, str], down: set[int], again: bool, uncoded: bool, is_tolerated: bool
) -> None:
    scheduler = Scheduler(*codes, reinitialise_lost=again)
    for number, what in state.items():
        scheduler.group.places[number].state = what
    assert scheduler.deaths._tolerates(scheduler.group, down, uncoded) == is_tolerated


def test_what_was_lost_before_holds_nobody_that_is_not_in_its_stripes() -> None:
    """Stripes of a 1+1 code lie on two shards next to each other: those of shards 1 and 2 are lost."""
    scheduler = Scheduler("1+1", n=5)
    for number in (1, 2):
        scheduler.group.places[number].state = DOWN
    assert scheduler.losses.undecodable(scheduler.group)
    tolerated = [scheduler.deaths._tolerates(scheduler.group, {number}, True) for number in range(5)]
    assert tolerated == [False, False, False, False, True]


# ------------------------------------------------------------------ closed connections
def test_a_closed_connection_speaks_against_the_incarnation_that_has_the_place_alone() -> None:
    for address, speaks in ((shard(1), True), (shard(1, 2), False), (shard(9), False), (shard(2), False)):
        scheduler = Scheduler()
        scheduler.group.places[2].state = DOWN
        scheduler.deaths.on_disconnected(address)
        assert bool(scheduler.deaths.suspicions[0]._closed) == speaks, address


def test_a_connection_that_breaks_or_is_made_is_that_of_the_incarnation_that_has_the_place() -> None:
    for address, counts in ((shard(1), True), (shard(1, 2), False), (shard(9), False)):
        scheduler = Scheduler()
        known = scheduler.deaths.suspicions[0]
        scheduler.deaths.on_connection(Connection(address, up=False))
        assert bool(known._open_ms) == counts
        known.broke(1, 0.0)
        scheduler.deaths.on_connection(Connection(address, up=True))
        assert bool(known._open_ms) != counts


# ------------------------------------------------------------------ who is declared down
def test_of_a_group_that_has_not_begun_nobody_is_judged() -> None:
    scheduler = Scheduler()
    scheduler.group.view = 0
    scheduler.tick(10 * TIMEOUT_MS, all_heard=False)
    assert scheduler.states() == [UP] * N and not scheduler.probes()


def test_a_death_is_a_view_and_what_was_known_of_the_incarnation_is_forgotten() -> None:
    scheduler = Scheduler("2+1")
    scheduler.group.places[1].state, scheduler.group.places[1].reseeding = RESEEDING, [1]
    scheduler.deaths.suspicions[0].closed(1, 0.0)
    scheduler.context.now_ms = TIMEOUT_MS + 1.0
    for number in (0, 2, 3):
        scheduler.members.contacts[0, number].heard_ms = TIMEOUT_MS
    scheduler.tick(TIMEOUT_MS + 1.0, all_heard=False)
    place = scheduler.group.places[1]
    assert (place.state, place.reseeding) == (DOWN, []) and scheduler.group.settlements == {1: Settlement(1)}
    assert scheduler.group.views == [m.ShardDown(2, 1, 1)] and (0, 1) not in scheduler.members.contacts
    assert scheduler.deaths.suspicions[0]._closed == {} and Disconnect(shard(1)) in scheduler.context.effects


def test_one_that_says_that_it_ends_is_down_at_once_and_no_other() -> None:
    scheduler = Scheduler("2+1", groups=2)
    scheduler.deaths.on_unfit(m.Unfit("p2", "no memory"))
    assert scheduler.states() == [UP, UP, DOWN, UP]
    scheduler.deaths.on_unfit(m.Unfit("p2", "again"))
    assert scheduler.group.view == 2, "it is down once"


def test_the_scheduler_asks_the_members_about_suspects_but_those_it_has_declared_down() -> None:
    scheduler = Scheduler("2+1")
    scheduler.context.now_ms = TIMEOUT_MS + 1.0
    for number in (0, 3):
        scheduler.members.contacts[0, number].heard_ms = TIMEOUT_MS
    scheduler.tick(TIMEOUT_MS + 1.0, all_heard=False)
    assert scheduler.states() == [UP] * N and scheduler.deaths.suspected().keys() == {1, 2}
    assert scheduler.probes() == {number: [1, 2] for number in range(N)}


# ------------------------------------------------------------------ what workers do not hear
def test_members_are_asked_about_a_shard_that_a_worker_does_not_hear_from_time_to_time() -> None:
    scheduler = Scheduler(groups=2)
    scheduler.group.places[3].state = DOWN
    unheard = {1: {7: 900}, 6: {7: 900}, 3: {7: 900}}
    scheduler.tick(1_000.0, unheard=unheard)
    assert scheduler.probes() == {number: [1] if number < 4 else [2] for number in (0, 1, 2, 4, 5, 6, 7)}
    scheduler.tick(999.0 + RESEND_MS, unheard=unheard)
    assert scheduler.probes() == {}
    scheduler.tick(1_000.0 + RESEND_MS, unheard=unheard)
    assert scheduler.probes()
    scheduler.tick(9_000.0)
    assert scheduler.probes() == {}
    scheduler.tick(9_000.0, unheard={3: {7: 900}})
    assert scheduler.probes() == {}, "that one is down"


def test_people_are_told_once_of_a_worker_that_does_not_hear_a_shard() -> None:
    scheduler = Scheduler()
    told = []
    for unheard in ({1: {7: 900}}, {1: {7: 950}}, {1: {7: 990, 8: 100}}, {}, {1: {7: 100}}):
        scheduler.tick(scheduler.context.now_ms + 20.0, unheard=unheard)
        notes = [effect.text for effect in scheduler.context.effects if isinstance(effect, Note)]
        told.append([text.split(" has not")[0] for text in notes if "has not heard" in text])
        scheduler.context.effects.clear()
    assert told == [["worker 7"], [], ["worker 8"], [], ["worker 7"]]


# ------------------------------------------------------------------ a replacement that nobody reaches
def replacement(scheduler: Scheduler) -> Place:
    place = scheduler.group.places[1]
    place.state, place.epoch, place.start = RECOVERING, 2, started(1)
    return place


def unreached(scheduler: Scheduler, after_ms: float = REACH_MS + 1.0) -> bool:
    """Whether shard 1 is declared down by then, and no other."""
    scheduler.tick(0.0)
    for number in range(N):
        if (0, number) in scheduler.members.contacts:
            scheduler.members.contacts[0, number].heard_ms = after_ms
    scheduler.tick(after_ms, all_heard=False)
    assert DOWN not in [state for number, state in enumerate(scheduler.states()) if number != 1]
    return scheduler.states()[1] == DOWN


def test_a_replacement_that_no_other_member_is_connected_to_is_replaced_after_the_timeout() -> None:
    scheduler = Scheduler("2+1")
    replacement(scheduler)
    assert not unreached(scheduler, REACH_MS)
    scheduler = Scheduler("2+1")
    replacement(scheduler)
    assert unreached(scheduler)
    (fenced,) = [e.message for e in scheduler.context.effects if isinstance(e, Send) and isinstance(e.message, Fenced)]
    assert "no other member has reached it at inproc://p1 for 5000 ms" in fenced.reason


@pytest.mark.parametrize(
    "why", ["it is up", "it was not started", "it was not heard", "one is connected", "nobody knows it", "data is lost"]
)
def test_a_replacement_is_not_given_up_as_unreached_if(why: str) -> None:
    scheduler = Scheduler("2+1")
    place = replacement(scheduler)
    if why == "it is up":
        place.state = UP
    elif why == "it was not started":
        place.start = None
    elif why == "it was not heard":
        scheduler.members.contacts[0, 1].status = None
    elif why == "one is connected":
        scheduler.tells(3, linked=[1])
    elif why == "nobody knows it":
        for number in (0, 2, 3):
            scheduler.tells(number, view=0)
    else:
        scheduler.group.places[0].state = RECOVERING
        for number in (1, 2, 3):
            scheduler.tells(number, linked=[0])
    assert not unreached(scheduler)


def test_a_replacement_that_is_reached_for_a_moment_has_the_whole_time_again() -> None:
    scheduler = Scheduler("2+1")
    replacement(scheduler)
    for now_ms, linked in ((0.0, []), (REACH_MS, []), (REACH_MS + 20.0, [1]), (REACH_MS + 40.0, [])):
        scheduler.context.now_ms = now_ms
        scheduler.tells(3, linked=linked)
        scheduler.tick(now_ms)
    scheduler.tick(2 * REACH_MS + 40.0)
    assert scheduler.states() == [UP, RECOVERING, UP, UP]
    scheduler.tick(2 * REACH_MS + 41.0)
    assert scheduler.states() == [UP, DOWN, UP, UP]


# ------------------------------------------------------------------ who is told to end
def leaves(scheduler: Scheduler, number: int = 1, epoch: int = 1, process: str = "p1") -> list[Any]:
    scheduler.deaths.departures.on_leave(shard(number, epoch), Leave(process))
    return scheduler.sent()


@pytest.mark.parametrize(
    ("number", "epoch", "process", "state", "answer", "is_kept"),
    [
        (1, 2, "p1", UP, None, True),
        (1, 1, "p1", UP, Fenced, False),
        (1, 1, "old", UP, Fenced, False),
        (1, 2, "p1", DOWN, Fenced, False),
        (1, 3, "p1", UP, None, False),
        (1, 3, "p1", DOWN, None, False),
        (1, 2, "other", UP, None, False),  # an answer would reach the member
        (1, 0, "p1", UP, None, False),
        (9, 1, "p1", UP, None, False),
        (-1, 1, "p1", UP, None, False),
    ],
)
def test_only_the_member_itself_may_say_that_it_leaves(
    number: int, epoch: int, process: str, state: str, answer: Any, is_kept: bool
) -> None:
    scheduler = Scheduler("2+1")
    scheduler.group.places[1].epoch, scheduler.group.places[1].state = 2, state
    assert [type(message) for message in leaves(scheduler, number, epoch, process)] == ([answer] if answer else [])
    assert bool(scheduler.deaths.departures.waiting()) == is_kept


def test_a_first_life_may_leave_like_any_other() -> None:
    scheduler = Scheduler("2+1")
    assert leaves(scheduler) == [] and scheduler.deaths.departures.waiting().keys() == {1}


def granted(
    scheduler: Scheduler, doubted: dict[int, str] | None = None, may: bool = True, group: int = 0
) -> int | None:
    departures = scheduler.deaths.departures
    return departures.grant(group, scheduler.state.groups[group], doubted or {}, lambda shards: may)


def heard(scheduler: Scheduler, now_ms: float, *but: int) -> None:
    scheduler.context.now_ms = now_ms
    for (_, number), contact in scheduler.members.contacts.items():
        if number not in but:
            contact.heard_ms = now_ms


def test_one_may_leave_when_all_others_were_heard_after_it_was_found_that_nothing_is_lost() -> None:
    scheduler = Scheduler("2+1")
    leaves(scheduler)
    heard(scheduler, 100.0)
    assert granted(scheduler) is None, "one that died just now is missed by nobody yet"
    heard(scheduler, 200.0, 1, 3)
    assert granted(scheduler) is None
    heard(scheduler, 210.0, 1)
    assert granted(scheduler) == 1
    assert scheduler.deaths.departures.waiting() == {}


def test_members_without_rows_of_their_own_and_those_in_doubt_are_not_waited_for() -> None:
    scheduler = Scheduler("2+1")
    scheduler.group.places[0].state = RECOVERING
    leaves(scheduler)
    granted(scheduler, {3: "is suspected"})
    heard(scheduler, 100.0, 0, 3)
    assert granted(scheduler, {3: "is suspected"}) == 1


@pytest.mark.parametrize("what", ["data would be lost", "the scheduler stood still"])
def test_the_question_is_asked_anew_after(what: str) -> None:
    scheduler = Scheduler("2+1")
    leaves(scheduler)
    granted(scheduler)
    heard(scheduler, 100.0)
    if what == "data would be lost":
        assert granted(scheduler, may=False) is None
    else:
        scheduler.deaths.departures.stood_still()
    assert granted(scheduler) is None
    heard(scheduler, 101.0)
    assert granted(scheduler) == 1


def test_a_member_that_waits_is_told_why_when_it_asks_again() -> None:
    scheduler = Scheduler("2+1")
    assert leaves(scheduler) == []
    scheduler.group.places[2].state = RECOVERING
    assert granted(scheduler, {3: "was not heard"}, may=False) is None
    (waits,) = leaves(scheduler)
    assert waits == LeaveWaits("data would be lost with it: shard 2 is recovering, shard 3 was not heard")
    scheduler.group.places[2].state = UP
    assert granted(scheduler, may=False) is None
    (waits,) = leaves(scheduler)
    assert waits == LeaveWaits("data would be lost with it: a table has no parity (r = 0)")
    granted(scheduler)
    assert leaves(scheduler) == []


@pytest.mark.parametrize(
    ("how", "is_kept"),
    [("at the timeout", True), ("after it", False), ("it is down", False), ("it was replaced", False)],
)
def test_a_request_is_kept_while_it_is_repeated_by_the_same_life(how: str, is_kept: bool) -> None:
    scheduler = Scheduler("2+1")
    leaves(scheduler)
    granted(scheduler)
    now_ms = TIMEOUT_MS + (1.0 if how == "after it" else 0.0)
    heard(scheduler, now_ms, *([3] if how == "at the timeout" else []))
    if how == "it is down":
        scheduler.group.places[1].state = DOWN
    elif how == "it was replaced":
        scheduler.group.places[1].epoch = 2
    assert granted(scheduler) is None
    assert bool(scheduler.deaths.departures.waiting()) == is_kept


def test_of_a_cluster_that_has_lost_data_everybody_may_leave_once() -> None:
    scheduler = Scheduler("2+1")
    leaves(scheduler)
    scheduler.group.lost = "all"
    assert granted(scheduler, {2: "is dead"}, may=False) == 1
    assert granted(scheduler) is None


def test_requests_of_one_group_are_not_granted_in_another_one() -> None:
    scheduler = Scheduler("2+1", groups=2)
    leaves(scheduler)
    granted(scheduler, group=1)
    heard(scheduler, 100.0)
    assert granted(scheduler, group=1) is None


def test_the_first_that_asked_is_the_first_that_leaves_and_one_that_cannot_holds_up_no_other() -> None:
    scheduler = Scheduler("2+1")
    leaves(scheduler, 2, 1, "p2")
    scheduler.context.now_ms = 10.0
    leaves(scheduler, 1, 1, "p1")
    granted(scheduler)
    heard(scheduler, 100.0)
    assert [granted(scheduler), granted(scheduler)] == [2, 1]


@pytest.mark.parametrize(("codes", "spare", "lost", "then"), [
    (["2+1"], False, "", "no spare waits"), (["2+1"], False, "all", "does not go on"),
    ([], True, "", "a spare takes its place"),
])  # fmt: skip
def test_one_that_is_let_go_is_told_what_follows_and_is_down(
    codes: list[str], spare: bool, lost: str, then: str
) -> None:
    scheduler = Scheduler(*codes)
    scheduler.group.lost = lost
    if spare:
        scheduler.admission.candidates["s"] = Candidate("inproc://s", -1, 0.0, 0.0, 1, True)
    leaves(scheduler)
    for now_ms in (20.0, 40.0):
        scheduler.tick(now_ms)
    assert scheduler.states() == [UP, DOWN, UP, UP]
    (fenced,) = [e.message for e in scheduler.context.effects if isinstance(e, Send) and isinstance(e.message, Fenced)]
    assert then in fenced.reason


def test_of_two_that_leave_at_once_the_second_is_asked_about_anew() -> None:
    """With the first one down the second one's rows have no parity left."""
    scheduler = Scheduler("2+1")
    leaves(scheduler, 1)
    leaves(scheduler, 2, process="p2")
    for now_ms in (20.0, 40.0, 60.0):
        scheduler.tick(now_ms)
    assert scheduler.states() == [UP, DOWN, UP, UP]

"""Losses and settlements, one rule at a time: what counts as lost, what begins again, who gets the next spare."""

from collections.abc import Mapping

import msgspec
import pytest
from cluster import table
from parts import Parts, worker

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission, Candidate
from ecrec.protocol.announcer import Client
from ecrec.protocol.answers import cluster_state
from ecrec.protocol.leases import Leases
from ecrec.protocol.loss import describe_places, lost_rows, margin
from ecrec.protocol.losses import LOSSES_MAX, Losses
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, TOOL, UP, Address, LostRows, Member, Report
from ecrec.protocol.placement import Placement, TableSpec
from ecrec.protocol.settlement import Settlements
from ecrec.protocol.state import Place, Settlement

N = 4
BIG = m.NUMBER_MAX


class Scheduler(Parts):
    """A group of four; a test says who is not up, and what is known of the dead."""

    def __init__(self, *tables: TableSpec, groups: int = 1, again: bool = True) -> None:
        super().__init__(n=N, groups=groups, reinitialise_lost=again)
        self.group = self.state.groups[0]
        for spec in tables:
            self.state.tables.append(spec)
            self.context.placement.add(spec.code)
        self.losses = Losses(self.context, self.members, self.announcer)
        self.admission = Admission(self.context, self.members)
        self.settlements = Settlements(self.context, self.members, self.announcer, self.admission, self.losses)

    def are(self, states: Mapping[int, str], group: int = 0, view: int = 1) -> None:
        """Members that are not up; those that are down are settled by this view."""
        some = self.state.groups[group]
        for shard, state in states.items():
            some.places[shard].state = state
            if state == DOWN:
                some.settlements[shard] = Settlement(1, {}, 5, {0: 7, m.cursor_key(0): 99}, view)
                self.members.forget(group, shard)

    def check(self, shard: int) -> None:
        self.losses.check(0, self.group, shard)


CODED, PLAIN, COPIES = table("coded", code="2+1"), table("plain", code="2+0"), table("copies", code="1+2", rows=8)


# ------------------------------------------------------------------ a death too many
def test_a_death_dooms_the_classes_that_it_leaves_undecodable_and_no_others() -> None:
    scheduler = Scheduler(CODED)
    scheduler.are({0: DOWN})
    scheduler.check(0)
    assert scheduler.group.to_reinitialise == [] and not scheduler.changed()
    scheduler.are({1: DOWN})
    lost = sorted(scheduler.losses.undecodable(scheduler.group))
    assert lost
    scheduler.check(3)
    held = [c for c in lost if 3 in (s := scheduler.context.placement.classes[c]).data + s.parity]
    assert scheduler.group.to_reinitialise == held and len(held) < len(lost)
    scheduler.check(1)
    assert scheduler.group.to_reinitialise == lost and scheduler.changed() and not scheduler.group.lost


def test_a_group_that_has_lost_data_loses_nothing_more() -> None:
    scheduler = Scheduler(CODED)
    scheduler.are({0: DOWN, 1: DOWN})
    scheduler.group.lost = "so"
    scheduler.check(1)
    assert scheduler.group.to_reinitialise == [] and not scheduler.changed()


@pytest.mark.parametrize(
    ("spec", "down", "again", "why"),
    [
        (CODED, {0, 1}, True, None),
        (CODED, {0, 1}, False, "data lost: shards 0 (down), 1 (down) are not whole, and code 2+1 tolerates 1 such"),
        (PLAIN, {0}, True, "it cannot go on, because without parity nobody knows what they had applied"),
        (CODED, {0, 1, 2, 3}, True, "it cannot go on, because nobody is left that knows what they had applied"),
    ],
)
def test_training_stops_where_it_cannot_or_must_not_go_on(
    spec: TableSpec, down: set[int], again: bool, why: str | None
) -> None:
    scheduler = Scheduler(spec, again=again)
    scheduler.are(dict.fromkeys(down, DOWN))
    scheduler.check(0)
    if why is None:
        assert scheduler.group.lost == "" and scheduler.group.views == []
    else:
        assert why in scheduler.group.lost and scheduler.group.views == [m.DataLost(2, scheduler.group.lost)]


def test_what_is_lost_names_the_weakest_code_and_members_that_are_not_up() -> None:
    scheduler = Scheduler(CODED, COPIES, again=False)
    scheduler.are({0: DOWN, 1: RECOVERING, 2: DOWN})
    scheduler.check(0)
    assert "shards 0 (down), 1 (recovering), 2 (down) are not whole, and code 2+1" in scheduler.group.lost
    assert "up to " in scheduler.group.lost, "of one that recovers some rows are there"


# ------------------------------------------------------------------ what is counted
def test_pushes_that_may_be_lost_are_those_of_the_cut_or_of_the_longest_report_or_of_the_last_heartbeat() -> None:
    scheduler = Scheduler(CODED)
    applied = scheduler.losses._applied
    assert applied(0, 0, Settlement(1, {}, 5, {0: 7, 1: 2}, 3)) == 9
    assert applied(0, 0, Settlement(1, {}, 5, {0: 7}, 0)) == 7
    reports = {"1:1": Report(0, 1, 5, {0: 3}), "2:1": Report(0, 1, 6, {0: 4, m.cursor_key(0): 99})}
    assert applied(0, 0, Settlement(1, reports, -1, {0: 99}, -1)) == 4
    assert applied(0, 0, Settlement(1)) == 0
    assert applied(0, 0, None) == 0, "it was never heard"
    scheduler.says(0, 0, watermarks={0: 5})
    assert applied(0, 0, None) == 5


def rows(scheduler: Scheduler, known: bool) -> dict[int, int]:
    found, _ = scheduler.losses._lost(0, scheduler.group, range(len(scheduler.context.placement.classes)), known)
    out: dict[int, int] = {}
    for some in found:
        out[some.shard] = out.get(some.shard, 0) + some.rows
    return out


def test_rows_of_members_that_have_them_are_not_lost_and_of_those_that_recover_only_they_know() -> None:
    scheduler = Scheduler(CODED)
    scheduler.are({0: DOWN, 1: RECOVERING, 2: RESEEDING})
    assert rows(scheduler, known=False).keys() == {0, 1}
    assert rows(scheduler, known=True).keys() == {0}
    before = rows(scheduler, known=True)[0]
    scheduler.group.settlements[0].reinitialised = scheduler.context.placement.data_classes(0)[:1]
    assert rows(scheduler, known=False)[0] == before > rows(scheduler, known=True)[0] > 0, "those began again before"


def test_sums_of_what_members_count_are_bounded_as_the_wire_is() -> None:
    scheduler = Scheduler(CODED)
    for _ in range(2):
        scheduler.losses._add_loss(0, 1, [LostRows(0, "coded", BIG, [], 0)], 3 * BIG, reinitialised=True)
    assert (scheduler.state.rows_reinitialised, scheduler.state.updates_damaged) == (BIG, BIG)
    assert scheduler.state.losses[-1].updates == BIG
    scheduler = Scheduler(CODED)
    scheduler.losses._add_loss(0, 1, [LostRows(0, "coded", 5, [], 0)], 3, reinitialised=True)
    scheduler.losses._add_loss(0, 1, [LostRows(0, "coded", 6, [], 0)], 4)
    assert (scheduler.state.rows_reinitialised, scheduler.state.updates_damaged) == (5, 3)
    assert [loss.updates for loss in scheduler.state.losses] == [3, 4]


def test_only_so_many_losses_are_kept_with_their_rows() -> None:
    scheduler = Scheduler(CODED)
    for view in range(LOSSES_MAX + 3):
        scheduler.losses._add_loss(0, view, [], 0)
    assert [loss.view for loss in scheduler.state.losses] == list(range(3, LOSSES_MAX + 3))


def test_counts_of_a_member_that_cannot_be_are_left_out() -> None:
    scheduler = Scheduler(CODED, COPIES)
    told = scheduler.losses.rows_of(0, 3, {0: CODED.rows, 1: COPIES.rows + 1, 2: 1, 9: 1})
    assert told == [LostRows(3, "coded", CODED.rows, [], 0)]
    assert scheduler.losses.rows_of(0, 3, {0: 0, 1: 1}) == [LostRows(3, "copies", 1, [], 0)]


# ------------------------------------------------------------------ rows that begin again
def doomed(states: Mapping[int, str], *tables: TableSpec) -> Scheduler:
    scheduler = Scheduler(*(tables or (CODED,)))
    scheduler.are(states)
    scheduler.group.to_reinitialise = sorted(scheduler.losses.undecodable(scheduler.group))
    assert scheduler.group.to_reinitialise
    return scheduler


def begins(scheduler: Scheduler) -> bool:
    scheduler.losses.try_reinitialise(0, scheduler.group)
    return any(isinstance(view, m.Reinitialise) for view in scheduler.group.views)


@pytest.mark.parametrize("why", ["data is lost", "one is not settled", "one has not confirmed"])
def test_rows_begin_again_when_all_deaths_are_settled_and_all_have_confirmed_that(why: str) -> None:
    scheduler = doomed({0: DOWN, 1: DOWN})
    if why == "data is lost":
        scheduler.group.lost = "so"
    elif why == "one is not settled":
        scheduler.group.settlements[1].view = -1
    else:
        scheduler.members.contacts[0, 3].view = 0
    assert not begins(scheduler) and scheduler.group.to_reinitialise
    if why == "data is lost":
        scheduler.group.lost = ""
    scheduler.group.settlements[1].view = scheduler.members.contacts[0, 3].view = 1
    assert begins(scheduler) and scheduler.group.to_reinitialise == []


def test_what_can_be_decoded_again_does_not_begin_again() -> None:
    """Who was recovering has become whole since."""
    scheduler = doomed({0: DOWN, 1: RECOVERING})
    scheduler.group.places[1].state = UP
    assert not begins(scheduler) and scheduler.group.to_reinitialise == [] and scheduler.changed()


def test_rows_that_begin_again_are_told_to_all_and_their_parity_is_seeded_anew() -> None:
    scheduler = doomed({0: DOWN, 1: DOWN}, CODED, COPIES)
    lost, placement = list(scheduler.group.to_reinitialise), scheduler.context.placement
    scheduler.group.places[2].weak_since = 0
    assert begins(scheduler)
    (view,) = scheduler.group.views
    assert isinstance(view, m.Reinitialise) and view.classes == lost and view.damaged == []
    for number in (0, 1):
        assert scheduler.group.settlements[number].reinitialised == sorted(
            set(placement.data_classes(number)).intersection(lost)
        )
        assert scheduler.group.places[number] == msgspec.structs.replace(scheduler.group.places[number], weak_since=0)
    for number in (2, 3):
        place, parity = scheduler.group.places[number], set(placement.parity_classes(number)).intersection(lost)
        assert place.weak_since == view.number
        assert (place.state, place.reseeding) == ((RESEEDING, sorted(parity)) if parity else (UP, []))
    assert {entry.event for entry in scheduler.state.history} == {"reinitialised"}
    assert scheduler.state.rows_reinitialised == sum(some.rows for some in scheduler.state.losses[-1].rows)


def test_replicated_tables_that_lost_rows_in_all_copies_are_damaged_and_no_other_table_is() -> None:
    scheduler = doomed({0: DOWN, 1: DOWN, 2: DOWN}, CODED, COPIES)
    assert begins(scheduler)
    assert scheduler.group.views[-1].damaged == ["copies"] == scheduler.group.damaged  # type: ignore[union-attr]


def test_a_replacement_that_recovers_keeps_recovering_when_rows_begin_again() -> None:
    scheduler = doomed({0: DOWN, 1: RECOVERING})
    assert begins(scheduler)
    assert scheduler.group.places[1].state == RECOVERING and scheduler.group.places[1].weak_since == 2


# ------------------------------------------------------------------ the arithmetic
def members(**states: str) -> list[Member]:
    return [Member(i, 1, states.get(f"s{i}", UP), "") for i in range(N)]


def test_the_margin_is_that_of_the_weakest_stripe_with_parity() -> None:
    placement = Placement(N)
    assert margin(placement, members()) == 0
    placement.add(PLAIN.code)
    assert margin(placement, members(s0=DOWN)) == 0, "rows without parity are nobody's hope"
    placement.add(COPIES.code)
    assert margin(placement, members()) == 2
    placement.add(CODED.code)
    assert margin(placement, members()) == 1
    assert margin(placement, members(s0=DOWN)) == 0 and margin(placement, members(s0=DOWN, s1=DOWN)) == -1


def test_the_rows_of_a_shard_that_are_lost_are_counted_to_the_last() -> None:
    placement = Placement(N)
    placement.add(CODED.code)
    for groups in (1, 2):
        for size in (1, 2, 7, 40):
            spec = msgspec.structs.replace(CODED, rows=size)
            found: dict[tuple[int, int], int] = {}
            for row in range(size):
                stripe, slot = divmod(row, 2)
                group, local = stripe % groups, stripe // groups
                key = group, (local + slot) % N
                found[key] = found.get(key, 0) + 1
            for group in range(groups):
                for shard in range(N):
                    lost = lost_rows(placement, [spec], range(N), shard, group, groups)
                    assert sum(some.rows for some in lost) == found.get((group, shard), 0), (groups, size, group, shard)


def test_rows_that_a_member_counted_are_described_without_places() -> None:
    assert describe_places(LostRows(3, "t", 1200, [], 0)) == "1,200 not yet recovered on shard 3"
    assert describe_places(LostRows(3, "t", 5, [1, 2], 8)) == "every 8th from 1, 2 on shard 3"


# ------------------------------------------------------------------ settlements
def test_a_report_is_awaited_once_from_each_survivor_until_the_cut_is_decided() -> None:
    scheduler = Scheduler(CODED)
    scheduler.group.settlements = {0: Settlement(3), 1: Settlement(2, {}, 4, {}, 9), 2: Settlement(1, {"3:1": None})}  # type: ignore[dict-item]
    fine, decided, again = Report(0, 3, 5, {}), Report(1, 2, 5, {}), Report(2, 1, 5, {})
    strange = [Report(0, 2, 5, {}), Report(0, 4, 5, {}), Report(3, 1, 5, {}), Report(9, 1, 5, {})]
    assert scheduler.settlements.awaited(scheduler.group, "3:1", [fine, decided, again, *strange]) == [fine]
    assert scheduler.settlements.awaited(scheduler.group, "3:2", [again]) == [again], "that is another incarnation"


def groups_at_risk(*states: Mapping[int, str]) -> Scheduler:
    """Groups with these members that are not up."""
    scheduler = Scheduler(COPIES, groups=len(states))
    for number, some in enumerate(states):
        scheduler.are(some, group=number)
    return scheduler


@pytest.mark.parametrize(
    ("states", "order"),
    [
        ([{}, {}], [0, 1]),
        ([{}, {0: DOWN}], [1, 0]),
        ([{0: DOWN}, {0: DOWN, 1: DOWN}], [1, 0]),
        ([{0: DOWN}, {}, {0: DOWN, 1: DOWN}, {}], [2, 0, 1, 3]),
        ([{0: DOWN, 1: DOWN}, {0: DOWN}], [0, 1]),
        ([{0: RECOVERING}, {1: DOWN}], [1, 0]),
    ],
)
def test_groups_that_fewer_deaths_can_harm_come_first_and_every_group_comes_once(
    states: list[dict[int, str]], order: list[int]
) -> None:
    assert groups_at_risk(*states).settlements.by_risk() == order


@pytest.mark.parametrize(
    ("states", "lost", "left"),
    [
        ([{0: DOWN}, {}], "", 3),
        ([{0: DOWN}, {0: DOWN}], "", 3),  # at the same risk
        ([{0: DOWN}, {0: DOWN, 1: DOWN}], "", 1),
        ([{0: DOWN}, {0: DOWN, 1: DOWN}], "all", 3),  # of that one nobody is replaced
        ([{0: DOWN}, {0: RECOVERING, 1: RECOVERING}], "", 3),  # it waits for nobody
        ([{0: DOWN, 1: DOWN}, {0: DOWN}], "", 3),
    ],
)
def test_spares_are_left_for_groups_at_more_risk(states: list[dict[int, str]], lost: str, left: int) -> None:
    scheduler = groups_at_risk(*states)
    scheduler.state.groups[1].lost = lost
    for i in range(3):
        scheduler.admission.candidates[f"s{i}"] = Candidate(f"inproc://s{i}", -1, 0.0, 0.0, 1, True)
    assert scheduler.settlements._spares_for(0) == left


@pytest.mark.parametrize("why", ["data is lost", "rows are to begin again", "one has not confirmed", ""])
def test_a_place_is_taken_when_its_death_is_confirmed_and_nothing_is_lost_or_still_to_begin_again(why: str) -> None:
    scheduler = Scheduler(CODED)
    scheduler.are({0: DOWN, 1: DOWN})
    scheduler.group.view = 1
    scheduler.admission.candidates["s"] = Candidate("inproc://s", -1, 0.0, 0.0, 1, True)
    if why == "data is lost":
        scheduler.group.lost = "so"
    elif why == "rows are to begin again":
        scheduler.group.to_reinitialise = [0]
        scheduler.group.settlements[1].view = -1  # not settled yet: what begins again is not decided
    elif why:
        scheduler.members.contacts[0, 3].view = 0
    scheduler.settlements.advance(0, dict)
    place = scheduler.group.places[0]
    assert (place.state, place.process) == ((DOWN, "p0") if why else (RECOVERING, "s"))
    assert (0 in scheduler.group.settlements) == bool(why)


# ------------------------------------------------------------------ what members confirm
def test_a_view_is_confirmed_when_every_running_member_has_taken_it() -> None:
    scheduler = Scheduler(CODED)
    confirm = scheduler.members.confirm
    for contact in scheduler.members.contacts.values():
        contact.view = 5
    assert confirm(0, 5) and confirm(0, 4) and not confirm(0, 6)
    scheduler.members.contacts[0, 2].view = 4
    assert not confirm(0, 5) and confirm(0, 4)
    scheduler.members.forget(0, 2)
    assert not confirm(0, 4), "one that was not met has confirmed nothing"
    scheduler.group.places[2].state = DOWN
    assert confirm(0, 5)


def test_what_was_heard_before_the_scheduler_stood_still_is_that_much_younger_and_of_no_future() -> None:
    scheduler = Scheduler(CODED)
    scheduler.context.now_ms = 1_000.0
    scheduler.members.contacts[0, 0].heard_ms = 900.0
    scheduler.members.stood_still(500.0)
    assert [scheduler.members.contacts[0, shard].heard_ms for shard in (0, 1)] == [1_000.0, 500.0]


def test_a_scheduler_that_begins_anew_knows_those_that_are_not_down_and_no_others() -> None:
    scheduler = Scheduler(CODED)
    scheduler.group.places[2].state = DOWN
    scheduler.members.meet_all()
    assert scheduler.members.contacts.keys() == {(0, 0), (0, 1), (0, 3)}
    assert all(contact.view == -1 for contact in scheduler.members.contacts.values())


# ------------------------------------------------------------------ what people are told
def test_the_state_of_the_cluster_has_workers_and_no_tools_and_what_each_group_lost() -> None:
    scheduler = Scheduler(CODED, groups=3)
    scheduler.state.groups[0].lost, scheduler.state.groups[2].lost = "one", "two"
    clients = [
        Client(worker(4), 1, [], [], [], 0.0, {"steps": 3.0}),
        Client(Address(TOOL, 5, 1), 1, [], [], [], 0.0, {"steps": 4.0}),
    ]
    leases = Leases(scheduler.context, scheduler.announcer)
    told = cluster_state(
        7, scheduler.context, scheduler.members, clients, scheduler.admission, leases, {}, {}, {}, None
    )
    assert told.workers == {4: {"steps": 3.0}} and told.lost == "one; two"
    scheduler.state.groups[0].places[1] = Place()
    assert len(told.shards) == 12 and told.request == 7

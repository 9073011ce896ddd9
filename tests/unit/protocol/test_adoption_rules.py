"""What makes a lost state again, one rule at a time: who is asked, what is kept, what is waited for, what fits."""

from typing import Any
from unittest import mock

import msgspec
import pytest
from cluster import table

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.adoption import ASKED_MAX, Adoption, HistoriesError, _group_of, replay
from ecrec.protocol.census import COUNT_MAX, check_census, check_state
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    RESEEDING,
    SHARD,
    UP,
    WORKER,
    Address,
    Cut,
    Fenced,
    FullView,
    Member,
    Origin,
    ShardCensus,
    StateCopy,
    Views,
)
from ecrec.protocol.state import (
    DatasetState,
    Fence,
    Group,
    Lease,
    Place,
    Settlement,
    State,
    Succeeding,
    encode_state,
    read_state,
)

N = 3
SPEC = table(code="2+1")
AGAIN_MS = 200.0
OURS, OTHER = Origin("ours", 0, 5), Origin("theirs", 0, 9)


def started(shard: int = 0, n: int = N, groups: int = 1, **fields: Any) -> FullView:
    """What a shard of a healthy group was started with."""
    epoch, recovering = fields.get("epoch", 1), fields.get("recovering", False)
    members = [Member(i, 1, UP, f"inproc://{i}") for i in range(n)]
    members[shard] = Member(shard, epoch, RECOVERING if recovering else UP, f"inproc://{shard}")
    start = FullView(1, 0, groups, n, shard, 1, False, 0, {}, members, [SPEC], [], "", ProtocolConfig())
    return msgspec.structs.replace(start, **fields)


def tells(start: FullView, *views: m.AnyView, origin: Origin = OURS) -> ShardCensus:
    return ShardCensus(f"p{start.group}.{start.shard}", f"inproc://{start.shard}", origin, 0, start, [*views])


def copied(n: int = N, groups: int = 1, **fields: Any) -> State:
    """The state of a healthy cluster, of which nobody has died yet."""
    some = [Group(1, [Place(1, UP, f"p{g}.{i}", "") for i in range(n)], table_views=[0]) for g in range(groups)]
    for group in some:
        group.views = [m.TableAdded(1, SPEC)]
        group.table_views = [1]
    return msgspec.structs.replace(State(n, some, [SPEC], cluster="ours", serial=4, config=ProtocolConfig()), **fields)


class Scheduler:
    """A scheduler that makes its state again."""

    def __init__(self, groups: int = 1) -> None:
        self.adoption = Adoption(N, groups, 0.0)

    def hears(self, census: ShardCensus, copy: State | bytes | None = None, epoch: int = 0) -> str:
        """It asks a shard, which tells; returns what is wrong with that."""
        start = census.start
        source = Address(SHARD, start.group * N + start.shard, epoch or start.epoch)
        self.adoption.asks(source, census.origin.cluster, AGAIN_MS, 0.0)
        raw = encode_state(copy) if isinstance(copy, State) else copy or b""
        return self.adoption.take(source, census, [raw])


# ------------------------------------------------------------------ who is asked
def shard(number: int, epoch: int = 1) -> Address:
    return Address(SHARD, number, epoch)


def test_a_member_is_asked_again_after_a_while_until_it_has_told() -> None:
    adoption = Adoption(N, 1, 0.0)
    assert [adoption.asks(shard(0), "ours", AGAIN_MS, ms) for ms in (0.0, 199.0, 200.0, 399.0, 400.0)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert adoption.asks(shard(0), "theirs", AGAIN_MS, 400.0) and adoption.asks(shard(1), "ours", AGAIN_MS, 400.0)
    assert adoption.take(shard(0), tells(started()), []) == ""
    assert not adoption.asks(shard(0), "ours", AGAIN_MS, 9_000.0)


@pytest.mark.parametrize(("epoch", "is_asked"), [(1, False), (2, False), (3, True)])
def test_of_a_shard_that_has_told_only_a_newer_incarnation_is_asked(epoch: int, is_asked: bool) -> None:
    scheduler = Scheduler()
    assert scheduler.hears(tells(started(epoch=2, recovering=True, number=4))) == ""
    assert scheduler.adoption.asks(shard(0, epoch), "ours", AGAIN_MS, 1_000.0) == is_asked


@pytest.mark.parametrize("address", [Address(WORKER, 0, 1), shard(-1), shard(N)])
def test_who_is_no_shard_of_the_cluster_is_not_asked(address: Address) -> None:
    assert not Adoption(N, 1, 0.0).asks(address, "ours", AGAIN_MS, 0.0)


def test_so_many_are_asked_and_no_more_and_those_still_again() -> None:
    adoption = Adoption(N, 1, 0.0)
    asked = [adoption.asks(shard(0, 1 + i), "ours", AGAIN_MS, 0.0) for i in range(ASKED_MAX + 2)]
    assert sum(asked) == ASKED_MAX and asked[-3:] == [True, False, False]
    assert adoption.asks(shard(0, ASKED_MAX), "ours", AGAIN_MS, 300.0)


def test_what_somebody_tells_who_was_not_asked_is_not_kept() -> None:
    adoption = Adoption(N, 1, 0.0)
    assert "was not asked" in adoption.take(shard(0), tells(started()), [])
    adoption.asks(shard(0), "theirs", AGAIN_MS, 0.0)
    assert "was not asked" in adoption.take(shard(0), tells(started()), [])
    assert adoption.told == {} and adoption.cluster is None


def test_what_an_older_incarnation_tells_later_is_not_kept() -> None:
    scheduler = Scheduler()
    scheduler.adoption.asks(shard(0, 1), "ours", AGAIN_MS, 0.0)
    scheduler.hears(tells(started(epoch=2, recovering=True, number=4)))
    scheduler.adoption.take(shard(0, 1), tells(started()), [])
    assert scheduler.adoption.told[0].address.epoch == 2


# ------------------------------------------------------------------ what is kept
def test_a_member_of_a_cluster_of_other_numbers_is_named_and_not_kept() -> None:
    for start in (started(n=4), started(groups=2)):
        scheduler = Scheduler()
        assert "is of cluster 'ours', of " in scheduler.hears(tells(start))
        assert scheduler.adoption.told == {}


def test_a_copy_of_the_state_of_other_numbers_is_left_out_and_the_member_is_kept() -> None:
    for copy in (copied(n=4), copied(groups=2), copied(serial=m.NUMBER_MAX), b"junk"):
        scheduler = Scheduler()
        assert "left out the copy of the state that shard 0 " in scheduler.hears(tells(started()), copy)
        assert scheduler.adoption.told[0].copy is None
    scheduler = Scheduler()
    assert scheduler.hears(tells(started()), copied()) == "" and scheduler.adoption.told[0].copy == copied()


def test_the_cluster_that_most_name_is_adopted_and_the_others_are_named() -> None:
    scheduler = Scheduler()
    assert scheduler.adoption.cluster is None
    scheduler.hears(tells(started(0)))
    scheduler.hears(tells(started(1), origin=OTHER))
    assert scheduler.adoption.cluster is None and scheduler.adoption.told == {}, "as many name each"
    scheduler.hears(tells(started(2)))
    assert scheduler.adoption.cluster == "ours" and scheduler.adoption.told.keys() == {0, 2}
    assert scheduler.adoption.strays() == ["shard 1 of cluster 'theirs'"]


def test_it_is_decided_when_all_that_run_have_told_or_most_are_of_another_size() -> None:
    scheduler = Scheduler()
    assert not scheduler.adoption.is_decided
    for number in range(N):
        assert not scheduler.adoption.is_decided
        scheduler.hears(tells(started(number)))
    assert scheduler.adoption.is_decided
    scheduler = Scheduler(groups=2)
    for number in range(4):
        assert not scheduler.adoption.is_decided, "half of six members are not most"
        scheduler.adoption.asks(shard(number), "ours", AGAIN_MS, 0.0)
        scheduler.adoption.take(shard(number), tells(started(n=4)), [])
    assert scheduler.adoption.is_decided


# ------------------------------------------------------------------ what is waited for
def test_members_that_run_as_the_newest_one_knows_are_waited_for() -> None:
    """One that has died since, and was not replaced, is not; a replacement is, and not its life before."""
    scheduler = Scheduler()
    scheduler.hears(tells(started(0)))
    assert scheduler.adoption.waits_for() == ["shard 1 (epoch 1)", "shard 2 (epoch 1)"]
    scheduler.hears(tells(started(1), m.ShardDown(2, 2, 1)))
    assert scheduler.adoption.waits_for() == []
    scheduler = Scheduler()
    scheduler.hears(tells(started(1), m.ShardDown(2, 2, 1), m.Settle(3, 2, 1, 0), m.ShardUp(4, 2, 2, "x", 0, {})))
    scheduler.hears(tells(started(0)))
    assert scheduler.adoption.waits_for() == ["shard 2 (epoch 2)"]
    scheduler.hears(tells(started(2)))
    assert scheduler.adoption.waits_for() == ["shard 2 (epoch 2)"], "that is the life before"
    scheduler.hears(tells(started(2, epoch=2, recovering=True, number=4)))
    assert scheduler.adoption.waits_for() == []


def test_a_group_of_which_nobody_has_told_is_waited_for_if_it_had_begun() -> None:
    for begun in (True, False):
        scheduler = Scheduler(groups=2)
        state = copied(groups=2)
        if not begun:
            state.groups[1] = Group(places=[Place() for _ in range(N)])
        for number in range(N):
            assert scheduler.hears(tells(started(number, groups=2)), state) == ""
        assert scheduler.adoption.waits_for() == (["a shard of group 1"] if begun else [])


def test_members_of_an_earlier_generation_are_not_asked_for_the_state() -> None:
    """They have followed a history that was given up."""
    scheduler = Scheduler()
    scheduler.hears(tells(started(0), m.ShardDown(2, 2, 1), origin=Origin("ours", 1, 9)))
    scheduler.hears(tells(started(1), m.ShardDown(2, 0, 1), m.ShardDown(3, 2, 1), origin=Origin("ours", 2, 3)))
    assert scheduler.adoption.waits_for() == []
    state, _, _ = scheduler.adoption.state(None)
    assert state.generation == 3 and state.serial == 10
    assert [place.state for place in state.groups[0].places] == [DOWN, UP, DOWN]


# ------------------------------------------------------------------ the state
def made(*told: ShardCensus, copy: State | None = None, stored: State | None = None) -> tuple[State, str]:
    scheduler = Scheduler()
    for census in told:
        assert scheduler.hears(census, copy) == ""
    state, _, left_out = scheduler.adoption.state(stored)
    return state, left_out


def test_the_newest_copy_is_the_base_and_the_stored_state_is_one_of_them_if_it_is_of_the_cluster() -> None:
    for stored in (9, 2):
        old = copied(serial=stored)
        old.runs.number = 9
        new = copied(serial=4)
        new.runs.number = 5
        state, _ = made(*(tells(started(i)) for i in range(N)), copy=new, stored=old)
        assert state.runs.number == 1 << m.RUN_BITS and state.serial == max(stored, 5) + 1
    strange = copied(serial=99, cluster="theirs")
    strange.groups[0].lost = "all of it"
    state, _ = made(*(tells(started(i)) for i in range(N)), copy=copied(), stored=strange)
    assert state.groups[0].lost == "" and state.serial == 6


def test_members_that_have_followed_different_schedulers_are_an_error_whoever_is_right() -> None:
    with pytest.raises(HistoriesError, match=r"view 2 of group 0 is ShardDown.*followed different schedulers"):
        made(tells(started(0), m.ShardDown(2, 1, 1)), tells(started(2), m.ShardDown(2, 0, 1)), tells(started(1)))


def test_a_member_that_contradicts_all_others_is_left_out_and_named() -> None:
    for wrong in range(N):
        told = [tells(started(i)) for i in range(N)]
        told[wrong] = tells(started(wrong), m.ShardWhole(2, 1, 1))
        state, left_out = made(*told)
        assert state.generation == 1 and state.groups[0].view == 1
        assert left_out.startswith(f"dropped what shard {wrong} (epoch 1) tells: view 2, ShardWhole")


def test_of_two_that_contradict_each_other_none_is_left_out() -> None:
    with pytest.raises(ConfigurationError, match=r"ShardWhole.*cannot follow those before it"):
        made(tells(started(0), m.ShardWhole(2, 1, 1)), tells(started(1)))


def test_where_leaving_one_out_is_not_enough_the_reason_is_that_of_all() -> None:
    wrong = m.ShardWhole(2, 1, 1)
    with pytest.raises(ConfigurationError, match=r"ShardWhole.*cannot follow those before it"):
        made(*(tells(started(i), wrong) for i in range(N)))


def test_what_the_members_tell_and_nobody_thought_of_is_an_error_with_its_reason() -> None:
    """Not one that ends the scheduler with no word about where it came from."""
    broken = mock.patch.object(Adoption, "_make", side_effect=KeyError("nothing there"))
    with broken, pytest.raises(ConfigurationError, match="does not fit: KeyError: 'nothing there'"):
        made(*(tells(started(i)) for i in range(2)))


def test_a_group_that_had_begun_and_of_which_nobody_answers_is_an_error() -> None:
    scheduler = Scheduler(groups=2)
    for number in range(N):
        scheduler.hears(tells(started(number, groups=2)), copied(groups=2))
    with pytest.raises(ConfigurationError, match="no shard of group 1 has answered: all that it held is lost"):
        scheduler.adoption.state(None)


def test_what_a_copy_is_too_old_for_the_youngest_member_was_started_with() -> None:
    up = m.ShardUp(9, 2, 2, "inproc://2", 7, {0: 3})
    told = [tells(started(i), up) for i in range(2)]
    replacement = started(2, epoch=2, recovering=True, number=9, window=7, watermarks={0: 3})
    state, _ = made(*told, tells(replacement), copy=copied())
    assert state.groups[0].view == 9 and state.groups[0].places[2].state == RECOVERING


def test_a_succession_that_was_under_way_is_not_gone_on_with() -> None:
    """Who follows the state that is made has heard that it is over; the two would wait for each other."""
    copy = copied()
    copy.groups[0].succeeding = Succeeding(2, 2, "spare", "inproc://spare", 1)
    state, _ = made(*(tells(started(i)) for i in range(N)), copy=copy)
    assert state.groups[0].succeeding is None


def test_the_successor_itself_may_be_the_first_that_has_heard_that_it_has_the_place() -> None:
    succession = m.Succession(2, 2, 5, "inproc://spare")
    told = [tells(started(i), succession) for i in range(2)]
    state, _ = made(*told, tells(started(2, epoch=5, number=3, succeeds=True)), copy=copied())
    place = state.groups[0].places[2]
    assert (place.epoch, place.state, place.process) == (5, UP, "p0.2") and state.groups[0].view == 3


def test_views_that_nobody_knows_any_more_are_an_error_with_their_numbers() -> None:
    down = [m.ShardDown(8, 2, 1)]
    with pytest.raises(ConfigurationError, match="views 2 to 7 of group 0 are not known to any member"):
        made(*(tells(started(i), *down) for i in range(2)), copy=copied())


def test_a_shard_that_is_down_keeps_no_process_of_those_that_told() -> None:
    """It may have told before it heard that it was declared down."""
    told = [tells(started(0), m.ShardDown(2, 2, 1)), tells(started(1)), tells(started(2))]
    state, _ = made(*told, copy=copied())
    place = state.groups[0].places[2]
    assert place.state == DOWN and place.start is None
    assert state.groups[0].places[0].start == started(0)


def test_the_first_that_has_heard_of_a_replacement_may_be_the_replacement_itself() -> None:
    """It was started by the view that says so."""
    up = started(2, epoch=2, recovering=True, number=4, window=7, watermarks={0: 3})
    told = [tells(started(i), m.ShardDown(2, 2, 1), m.Settle(3, 2, 1, 7, {0: 3})) for i in range(2)]
    state, _ = made(*told, tells(up), copy=copied())
    place = state.groups[0].places[2]
    assert (place.epoch, place.state, place.process) == (2, RECOVERING, "p0.2") and not state.groups[0].settlements
    assert state.groups[0].view == 4


# ------------------------------------------------------------------ views, read as changes
def test_a_table_that_two_groups_know_differently_or_that_cannot_be_is_an_error() -> None:
    state = copied(groups=2)
    more = table("more", code="1+1")
    replay(state, 0, m.TableAdded(2, more))
    with pytest.raises(ConfigurationError, match="table 1 is 'more' in one group and 'another' in another"):
        replay(state, 1, m.TableAdded(2, msgspec.structs.replace(more, name="another")))
    for wrong in (msgspec.structs.replace(more, name="third", dim=0), more):
        with pytest.raises(ConfigurationError):
            replay(copied() if wrong.dim == 0 else state, 0, m.TableAdded(3, wrong))


def test_a_fence_is_replayed_for_the_life_that_holds_a_split_and_raises_what_is_over() -> None:
    state = copied(groups=2)
    state.leases.datasets = [DatasetState(m.Dataset("d", 9, 9, 3), next=9)]
    state.leases.leases = [Lease(1, 0, 0, 3, 5, 1, 1, False), Lease(2, 0, 3, 6, 6, 2, 1, False)]
    state.leases.fenced = {5: 3}
    state.leases.fences = [Fence(6, 2, [2, 0])]
    replay(state, 0, m.WorkerFenced(3, 5, 1))
    assert state.leases.fenced == {5: 3}, "a later life was over already"
    replay(state, 1, m.WorkerFenced(2, 7, 4))
    replay(state, 1, m.WorkerFenced(3, 6, 2))
    assert state.leases.fenced == {5: 3, 6: 2, 7: 4}
    assert [(f.worker, f.epoch, f.views) for f in state.leases.fences] == [(6, 2, [2, 3]), (5, 1, [3, 0])]


def test_what_happens_to_a_place_takes_from_it_what_it_was_before() -> None:
    """What it seeds anew with its state; what it was started with, with its process."""
    for view in (m.ShardDown(2, 2, 1), m.ShardWhole(2, 2, 1)):
        state = copied()
        state.groups[0].places[2] = Place(1, RESEEDING, "p", "", None, [0, 1])
        replay(state, 0, view)
        assert state.groups[0].places[2].reseeding == []
    state = copied()
    state.groups[0].places[2] = Place(1, DOWN, "p", "old", started(2), [], 5, 6)
    state.groups[0].settlements[2] = Settlement(1, {}, 4, {}, 1)
    replay(state, 0, m.ShardUp(2, 2, 2, "new", 4, {}))
    assert state.groups[0].places[2] == Place(2, RECOVERING, "", "new") and not state.groups[0].settlements


def test_a_successor_has_the_place_and_is_another_process() -> None:
    state = copied()
    state.groups[0].places[2] = Place(1, UP, "p", "old", started(2), epochs=7)
    for number, epoch, newest in ((2, 5, 7), (3, 9, 9)):
        replay(state, 0, m.Succession(number, 2, epoch, "new"))
        place = state.groups[0].places[2]
        assert (place.epoch, place.process, place.epochs) == (1, "p", newest), "it only copies"
        assert place.next_epoch == newest + 1, "never that of one that was given up"
    replay(state, 0, m.Succeeded(4, 2, 9, "new", 4, {}))
    assert state.groups[0].places[2] == Place(9, UP, "", "new", epochs=9)


def test_the_newest_checkpoint_that_anybody_has_heard_of_is_known() -> None:
    """Groups are brought up one behind the other. One of a number that was taken would stop nobody."""
    state = copied(groups=2)
    state.saving.number = 3
    for number, view, newest in (
        (0, m.CheckpointAsked(2, 5), 5), (1, m.CheckpointOver(2, 4), 5), (1, m.CheckpointOver(3, 6), 6),
    ):  # fmt: skip
        replay(state, number, view)
        assert state.saving.number == newest


def test_generations_only_rise() -> None:
    """Groups are brought up one behind the other: the views of one may be of an adoption before the other's last."""
    state = copied(groups=2)
    for number, generation in ((0, 4), (1, 3)):
        replay(state, number, m.Adopted(2, generation))
    assert state.generation == 4 and [group.adopted for group in state.groups] == [2, 2]


def test_rows_that_begin_again_are_not_repaired_where_they_are_down_and_seeded_anew_where_they_are_parity() -> None:
    """Of three shards; class g has its data on shards g and g + 1, and its parity on g + 2."""
    state = copied()
    group = state.groups[0]
    group.to_reinitialise, group.damaged = [0, 1], ["before"]
    group.places[1] = Place(1, DOWN, "", "")
    group.settlements[1] = Settlement(1, reinitialised=[1])
    group.places[2] = Place(1, RECOVERING, "", "")
    replay(state, 0, m.Reinitialise(2, [0, 1], "so", ["more"]))
    assert group.to_reinitialise == [] and group.damaged == ["before", "more"]
    assert group.settlements[1].reinitialised == [0, 1]
    assert (group.places[1].state, group.places[1].weak_since, group.places[1].reseeding) == (DOWN, 0, [])
    assert (group.places[0].state, group.places[0].weak_since, group.places[0].reseeding) == (RESEEDING, 2, [1])
    assert (group.places[2].state, group.places[2].weak_since, group.places[2].reseeding) == (RECOVERING, 2, [])
    with pytest.raises(ConfigurationError, match="cannot follow those before it"):
        replay(state, 0, m.Reinitialise(3, [3], "so"))


def test_a_group_of_which_no_copy_tells_is_as_the_youngest_member_was_started() -> None:
    members = [Member(0, 1, UP, "a"), Member(1, 2, DOWN, ""), Member(2, 4, DOWN, "")]
    start = started(0, number=9, members=members, unsettled=[members[1]], cuts=[Cut(2, 5, {0: 1}, 7, [])],
                    fenced={0: 2, 1: 3, 2: 1})  # fmt: skip
    state = copied()
    state.leases.fenced = {0: 4}
    state.workers = {1: (5, "five"), 2: (1, "one")}
    group = _group_of(state, start)
    assert group.settlements == {1: Settlement(2), 2: Settlement(4, {}, 5, {0: 1}, 7)}
    assert state.leases.fenced == {0: 4, 1: 3, 2: 1}
    assert state.workers == {0: (2, ""), 1: (5, "five"), 2: (1, "one")}
    with pytest.raises(ConfigurationError, match="nobody that answered knows the cut of shard 1"):
        _group_of(state, msgspec.structs.replace(start, unsettled=[]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.groups[0].places.pop(), "group 0 has 2 places"),
        (lambda s: s.groups[0].table_views.clear(), "0 table views"),
        (lambda s: s.groups[0].settlements.update({3: Settlement(1)}), r"settlements of \[3\]"),
        (lambda s: s.groups[0].settlements.update({-1: Settlement(1)}), r"settlements of \[-1\]"),
        (lambda s: setattr(s.groups[0], "view", -1), "group 0 has 3 places"),
        (lambda s: s.tables.append(table("wide", code="9+1")), "not written by this version of ecrec: code 9.1"),
        (lambda s: setattr(s.leases, "number", -1), "0 leases and 0 fences do not fit"),
    ],
)
def test_a_state_that_contradicts_itself_is_not_read(change: Any, why: str) -> None:
    state = copied()
    assert read_state(encode_state(state)) == state
    change(state)
    with pytest.raises(ConfigurationError, match=why):
        read_state(encode_state(state))


def test_the_state_that_is_made_can_be_read_again() -> None:
    state, _ = made(*(tells(started(i)) for i in range(N)), copy=copied())
    assert read_state(encode_state(state)) == state


# ------------------------------------------------------------------ what a member tells is checked for itself
def test_what_healthy_members_tell_is_taken() -> None:
    check_census(N, 1, shard(0), tells(started()))
    check_census(N, 1, shard(0), tells(started(), m.ShardDown(2, 1, 1), m.Settle(3, 1, 1, 4)))
    members = [Member(0, 1, UP, "a"), Member(1, 1, DOWN, ""), Member(2, 4, RESEEDING, "c", [1])]
    check_census(N, 1, shard(0), tells(started(members=members, cuts=[Cut(1, 0, {}, 1, [0, 2])], reinitialised=[2])))


COUNT = COUNT_MAX + 1


@pytest.mark.parametrize(
    ("census", "why"),
    [
        (tells(started(epoch=2)), "it was started as shard 0 of group 0, epoch 2"),
        (tells(started(number=0)), "it was started by view 0"),
        (tells(started(number=COUNT)), f"it was started by view {COUNT}"),
        (tells(started(window=COUNT)), f"it was started with window {COUNT}"),
        (tells(started(), origin=Origin("ours", 0, COUNT)), f"it knows state 0.{COUNT}"),
        (tells(started(), origin=Origin("ours", COUNT, 0)), f"it knows state {COUNT}.0"),
        (tells(started(), origin=Origin("ours", 1 << 29, 0)), f"it knows generation {1 << 29}"),
        (tells(started(tables=[msgspec.structs.replace(SPEC, rows=-1)])), "table 't': -1 rows"),
        (tells(started(tables=[SPEC, SPEC])), "two tables 't'"),
        (tells(started(members=[Member(i, 1, UP, "") for i in (0, 1, 1)])), "members .* in a group of 3"),
        (tells(started(members=[Member(i, 1, "asleep" if i else UP, "") for i in range(N)])), "shard 1 is 'asleep'"),
        (tells(started(members=[Member(i, i ^ 1, UP, "") for i in range(N)])), "shard 1 is 'up' in epoch 0"),
        (tells(started(members=[Member(i, 1, UP, "", [i][:i]) for i in range(N)])), r"shard 1 is up, .* \[1\]"),
        (
            tells(started(members=[Member(i, 1, RESEEDING if i else UP, "", [9][:i]) for i in range(N)])),
            r"classes \[9\], there are 3",
        ),
        (tells(started(reinitialised=[3])), r"classes \[3\], there are 3"),
        (tells(started(reinitialised=[-1])), r"classes \[-1\], there are 3"),
        (
            tells(started(members=[Member(0, 1, UP, ""), Member(1, 1, DOWN, ""), Member(2, 1, UP, "")],
                          cuts=[Cut(1, 0, {}, 1, [3])])),
            r"classes \[3\], there are 3",
        ),
        (tells(started(), m.ShardDown(3, 1, 1), m.ShardDown(5, 2, 1)), "views"),
        (tells(started(number=4), m.ShardDown(4, 1, 1)), "views"),
        (tells(started(), m.ShardDown(2, N, 1)), f"a ShardDown of shard {N}"),
        (tells(started(), m.ShardDown(2, 1, COUNT)), "a ShardDown of shard 1"),
        (tells(started(), m.Settle(2, 1, 1, COUNT)), "a Settle with window"),
        (tells(started(), m.WorkerFenced(2, m.WORKERS_MAX, 1)), "a fence of worker"),
        (tells(started(), m.Adopted(2, 1)), "generation 1 is newer than its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(census: ShardCensus, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        check_census(N, 1, shard(0), census)


def with_leases() -> State:
    """Two data sets, of each of which a worker holds the only split."""
    state = copied()
    state.leases.number = 2
    for index, name in enumerate("de"):
        state.leases.datasets.append(DatasetState(m.Dataset(name, 9, 9, 3), next=3))
        state.leases.leases.append(Lease(index + 1, index, 0, 3, index, 1, 1, False))
    return state


def test_a_state_that_can_be_is_taken() -> None:
    check_state(with_leases())
    state = copied(groups=2)
    state.groups[1] = Group(places=[Place(process="p0.0") for _ in range(N)])
    check_state(state)  # what is written of places that are down is of processes before
    state.groups[0].settlements[2] = Settlement(1, {}, 4, {}, 1, [0, 2])
    state.groups[0].places[2] = Place(1, DOWN, "p0.0")
    check_state(state)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: setattr(s.groups[0].places[1], "reseeding", [0]), "shard 1 is up, and reseeds"),
        (lambda s: setattr(s.groups[0].places[1], "epoch", 0), "shard 1 is 'up' in epoch 0"),
        (lambda s: setattr(s.groups[0].places[1], "process", "p0.0"), "a process has two places"),
        (lambda s: s.groups[0].settlements.update({1: Settlement(1)}), "are down"),
        (lambda s: s.groups[0].to_reinitialise.append(3), "classes"),
        (lambda s: setattr(s.groups[0], "view", 0), "it has not started, and has views"),
        (lambda s: s.leases.datasets[1].returned.append((0, 3)), "data set 'e'"),
        (lambda s: setattr(s.leases.leases[1], "dataset", 0), "data set 'd'"),
    ],
)
def test_a_state_that_no_scheduler_could_have_come_to_is_refused_with_the_reason(change: Any, why: str) -> None:
    state = with_leases()
    change(state)
    with pytest.raises(ConfigurationError, match=why):
        check_state(state)


def test_classes_of_a_settlement_that_are_not_there_are_refused() -> None:
    state = copied()
    state.groups[0].places[2] = Place(1, DOWN, "p")
    state.groups[0].settlements[2] = Settlement(1, {}, 4, {}, 1, [3])
    with pytest.raises(ConfigurationError, match=r"classes \[3\], there are 3"):
        check_state(state)


@pytest.mark.parametrize(
    ("origin", "views", "fenced"),
    [
        (Origin("ours", 2, 5), True, True),
        (Origin("ours", 2, 6), True, True),
        (Origin("ours", 3, 1), True, True),
        (Origin("ours", 2, 4), True, False),  # it knows less: it ends nobody
        (Origin("ours", 1, 9), False, False),
        (Origin("ours", 0, 9), False, False),
        (Origin("theirs", 2, 5), False, False),
    ],
)
def test_a_member_takes_views_of_no_earlier_history_and_is_ended_by_nobody_who_knows_less(
    origin: Origin, views: bool, fenced: bool
) -> None:
    known = Origin("ours", 2, 5)
    assert m.is_my_scheduler(Views(0, [], origin), known) == views
    assert m.is_my_scheduler(StateCopy(origin), known) == views
    assert m.is_my_scheduler(Fenced("go", origin), known) == fenced

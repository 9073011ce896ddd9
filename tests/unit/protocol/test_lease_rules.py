"""Leases, one rule at a time: who is fenced, when a split is handed on, what a worker's word is taken for."""

from typing import Any

import pytest
from parts import Parts, worker

from ecrec.protocol import messages as m
from ecrec.protocol.leases import TOLD_MAX, UNTOLD_MAX, Leases
from ecrec.protocol.messages import CURSOR_BITS, DOWN, Dataset, HeldLease, WorkerCensus
from ecrec.protocol.state import DatasetState, Fence, Lease

DATA = Dataset("d", 100, 100, 10)
TIMEOUT_MS = 15_000


def cursor(lease: int, done: int) -> int:
    return lease << CURSOR_BITS | done


class Scheduler(Parts):
    """Leases of workers 0 and 1, which are in their first life."""

    def __init__(self, **more: Any) -> None:
        super().__init__(workers={0: 1, 1: 1}, **more)
        self.leases = Leases(self.context, self.announcer)
        self.of = self.state.leases

    def lease(self, number: int, request: int = 1, at: int = 0, epoch: int = 1) -> Any:
        """The answer to a worker that asks for a split, and says how far it is."""
        self.leases.on_lease_split(worker(number, epoch), m.LeaseSplit(request, DATA, at))
        (answer,) = self.sent()
        return answer

    def held(self, number: int, epoch: int = 1) -> list[tuple[int, int]]:
        return [(lease.first, lease.last) for lease in self.leases.held(number, epoch)]

    def fences(self) -> list[tuple[int, int]]:
        return [(fence.worker, fence.epoch) for fence in self.of.fences]

    def tells(self, number: int, *held: HeldLease, at: int = 0, asked: int = 7) -> bool:
        """A worker tells what it holds, after the state was made again."""
        return self.leases.adopt(worker(number), WorkerCensus(f"w{number}", m.Origin(), at, asked, list(held), 0))


def holds(lease: int, first: int, last: int, dataset: Dataset = DATA, request: int = 3) -> HeldLease:
    return HeldLease(dataset, lease, first, last, request)


# ------------------------------------------------------------------ what a lease says
def test_a_lease_says_which_state_knows_of_it_and_what_every_shard_keeps_a_copy_of() -> None:
    scheduler = Scheduler(groups=3)
    scheduler.state.serial = scheduler.context.serial_before = 8
    for group, number, copied in ((0, 0, 9), (0, 1, 7), (1, 0, 6), (1, 1, 2), (2, 0, 7), (2, 1, 8)):
        scheduler.says(group, number, copied=copied)
    scheduler.state.groups[1].places[1].state = DOWN
    answer = scheduler.lease(0)
    assert (answer.origin.serial, answer.copied) == (9, 6), "what it changes is persisted before it is said"
    scheduler.context.is_changed = False
    scheduler.state.serial = 11
    scheduler.members.contacts[2, 0].status = None
    again = scheduler.lease(0)
    assert (again.lease, again.origin.serial, again.copied) == (answer.lease, 11, 0)


# ------------------------------------------------------------------ who is fenced
def test_only_a_life_that_holds_a_split_or_may_hold_one_is_fenced_and_only_once() -> None:
    scheduler = Scheduler()
    scheduler.leases.fence(0, 1, "it holds nothing")
    assert scheduler.fences() == [] and scheduler.state.groups[0].view == 1
    scheduler.lease(0)
    scheduler.leases.fence(1, 1, "it may hold one", may_hold=True)
    scheduler.leases.fence(0, 1, "it holds one")
    assert scheduler.fences() == [(1, 1), (0, 1)] and scheduler.of.fenced == {0: 1, 1: 1}
    for number, may_hold in ((0, False), (1, True)):
        scheduler.leases.fence(number, 1, "again", may_hold=may_hold)
    assert scheduler.fences() == [(1, 1), (0, 1)] and scheduler.state.groups[0].view == 3


def test_shards_that_start_hear_of_every_life_that_is_over_and_of_no_other() -> None:
    scheduler = Scheduler()
    scheduler.state.workers = {0: (1, "a"), 1: (4, "b"), 2: (3, "c"), 3: (1, "d")}
    scheduler.of.fenced = {2: 3, 1: 2, 3: 1}
    assert scheduler.leases.fenced() == {1: 3, 2: 3, 3: 1}


@pytest.mark.parametrize("pause_ms", [0.0, 500.0])
def test_a_silent_worker_is_fenced_when_the_timeout_is_over_and_not_at_it(pause_ms: float) -> None:
    scheduler = Scheduler()
    scheduler.lease(0)
    scheduler.context.now_ms = TIMEOUT_MS + pause_ms
    scheduler.leases.on_tick(pause_ms)
    assert scheduler.fences() == []
    scheduler.context.now_ms += 1.0
    scheduler.leases.on_tick(0.0)
    assert scheduler.fences() == [(0, 1)]


def test_a_worker_that_has_not_told_its_splits_is_fenced_after_the_timeout_in_the_life_that_is_known() -> None:
    scheduler = Scheduler()
    scheduler.state.workers = {0: (1, "a"), 1: (4, "b"), 2: (3, "c")}
    scheduler.of.fenced = {2: 3}
    scheduler.leases.adopted()
    assert scheduler.of.unheard == [0, 1], "a life that is over has nothing to tell"
    scheduler.leases.on_tick(0.0)
    scheduler.context.now_ms = TIMEOUT_MS + 200.0
    scheduler.leases.on_tick(200.0)
    assert scheduler.fences() == []
    scheduler.context.now_ms += 1.0
    scheduler.leases.on_tick(0.0)
    assert scheduler.fences() == [(0, 1), (1, 4)] and scheduler.of.unheard == []
    assert all(fence.untold for fence in scheduler.of.fences)


def test_a_worker_that_is_to_tell_again_has_the_whole_time_again() -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    scheduler.leases.on_tick(0.0)
    scheduler.context.now_ms = TIMEOUT_MS - 100.0
    assert scheduler.tells(0) and scheduler.tells(1)
    scheduler.leases.adopted()
    for _ in range(2):
        scheduler.leases.on_tick(0.0)
        assert scheduler.fences() == []
        scheduler.context.now_ms += TIMEOUT_MS


def test_nothing_is_kept_of_lives_that_hold_no_split() -> None:
    scheduler = Scheduler()
    for epoch in range(1, 4):
        scheduler.state.workers[0] = (epoch, "a")
        lease = scheduler.lease(0, 1, epoch=epoch)
        assert scheduler.leases.heard(worker(0, epoch), epoch, cursor(lease.lease, 10))
        scheduler.leases.on_tick(0.0)
    assert scheduler.leases._held == {} and scheduler.leases._heard_ms == {}


# ------------------------------------------------------------------ what a worker says of how far it is
@pytest.mark.parametrize(
    ("said", "is_taken"),
    [
        (cursor(1, 0), True),
        (cursor(1, 10), True),
        (cursor(1, 11), False),
        (cursor(2, 10), True),
        (cursor(2, 11), False),
        (cursor(3, 0), False),
        (cursor(0, 77), True),  # of a lease before those that it holds
        (-1, False),
    ],
)
def test_a_cursor_that_cannot_be_fences_the_worker(said: int, is_taken: bool) -> None:
    scheduler = Scheduler()
    for request in (1, 2):
        scheduler.lease(0, request)
    assert scheduler.leases.heard(worker(0), 1, said) == is_taken
    assert scheduler.fences() == ([] if is_taken else [(0, 1)])
    assert [type(message) for message in scheduler.sent()] == ([] if is_taken else [m.Fenced])


def test_a_worker_that_asks_with_a_cursor_that_cannot_be_gets_no_split() -> None:
    scheduler = Scheduler()
    scheduler.lease(0)
    answer = scheduler.lease(0, 2, at=cursor(1, 11))
    assert isinstance(answer, m.Fenced) and scheduler.fences() == [(0, 1)] and scheduler.held(0) == [(0, 10)]


def test_a_heartbeat_that_was_held_up_takes_nothing_back_and_leaves_later_splits_alone() -> None:
    scheduler = Scheduler()
    for request in (1, 2, 3):
        scheduler.lease(0, request)
    for at, trained in ((cursor(1, 4), 4), (cursor(1, 3), 4), (cursor(2, 1), 11), (cursor(1, 10), 11)):
        assert scheduler.leases.heard(worker(0), 1, at)
        assert scheduler.leases.figures()[0].trained == trained
    assert scheduler.held(0) == [(10, 20), (20, 30)]


# ------------------------------------------------------------------ a split is handed on
def fenced(somewhere: int = 0, **more: Any) -> Scheduler:
    """Worker 0 holds the first split, and is fenced; all shards have confirmed it, and one has more of its pushes."""
    scheduler = Scheduler(**more)
    scheduler.lease(0)
    scheduler.leases.fence(0, 1, "silent")
    for group in range(len(scheduler.state.groups)):
        for shard in range(2):
            watermarks = {m.cursor_key(0): somewhere} if shard else {}
            scheduler.says(group, shard, watermarks=watermarks, durable=dict(watermarks)).view = 2
    return scheduler


def test_a_split_is_handed_on_when_every_shard_has_confirmed_the_fence_and_all_it_has_is_durable() -> None:
    scheduler = fenced(cursor(1, 6), groups=2)
    scheduler.leases.advance(scheduler.members)
    assert scheduler.fences() == [] and scheduler.held(0) == []
    (figures,) = scheduler.leases.figures()
    assert (figures.trained, figures.repeated, figures.deaths) == (0, 6, 1)
    assert (answer := scheduler.lease(1)) and (answer.first, answer.last) == (0, 10)


@pytest.mark.parametrize(
    "lacks", ["is down", "was never heard", "has told nothing", "has not confirmed", "has what is not durable"]
)
def test_no_split_is_handed_on_while_one_shard_may_still_change_what_it_has(lacks: str) -> None:
    scheduler = fenced(cursor(1, 6), groups=2)
    contact = scheduler.members.contacts[1, 1]
    if lacks == "is down":
        scheduler.state.groups[1].places[1].state = DOWN
    elif lacks == "was never heard":
        del scheduler.members.contacts[1, 1]
    elif lacks == "has told nothing":
        contact.status = None
    elif lacks == "has not confirmed":
        contact.view = 1
    else:
        scheduler.says(1, 1, watermarks={m.cursor_key(0): cursor(1, 6)}, durable={m.cursor_key(0): cursor(1, 5)})
    scheduler.leases.advance(scheduler.members)
    assert scheduler.fences() == [(0, 1)] and scheduler.held(0) == [(0, 10)]


@pytest.mark.parametrize(
    ("done", "everywhere", "somewhere", "trained", "repeated", "rest"),
    [
        (0, cursor(1, 3), cursor(1, 6), 3, 3, (3, 10)),
        (4, cursor(1, 3), cursor(1, 6), 4, 2, (4, 10)),  # its heartbeat knew more: it was durable everywhere
        (0, cursor(1, 10), cursor(1, 10), 10, 0, None),
        (0, cursor(2, 1), cursor(2, 1), 10, 0, None),
        (0, cursor(0, 9), cursor(1, 10), 0, 10, (0, 10)),
        (9, cursor(1, 3), cursor(1, 3), 9, 0, (9, 10)),
    ],
)
def test_what_is_handed_on_begins_with_the_first_example_that_some_shard_lacks(
    done: int, everywhere: int, somewhere: int, trained: int, repeated: int, rest: tuple[int, int] | None
) -> None:
    scheduler = fenced()
    scheduler.of.leases[0].done = done
    for shard, at in enumerate((everywhere, somewhere)):
        watermarks = {m.cursor_key(0): at}
        scheduler.says(0, shard, watermarks=watermarks, durable=watermarks)
    scheduler.leases.advance(scheduler.members)
    (dataset,) = scheduler.of.datasets
    assert (dataset.trained, dataset.repeated, dataset.returned) == (trained, repeated, [rest] if rest else [])


@pytest.mark.parametrize(
    ("untold", "known", "held", "somewhere", "counted"),
    [
        (True, 5, 1, cursor(6, 4), 4),
        (False, 5, 1, cursor(6, 4), 0),  # it had told all
        (True, 5, 1, cursor(6, 0), 0),
        (True, 5, 1, cursor(5, 4), 0),  # of the state as it was copied: not unknown, but done
        (True, 0, 1, cursor(1, 4), 0),  # it is known, and handed on with what is repeated of it
    ],
)
def test_examples_of_a_split_that_nobody_alive_knows_are_counted_as_repeated(
    untold: bool, known: int, held: int, somewhere: int, counted: int
) -> None:
    scheduler = Scheduler()
    scheduler.of.datasets = [DatasetState(DATA, next=90)]
    scheduler.of.known = known
    fence = Fence(0, 1, [1], untold)
    lease = Lease(held, 0, 0, 10, 0, 1, 1, False)
    scheduler.leases._count_unknown(fence, [lease], somewhere)
    assert scheduler.of.datasets[0].repeated == counted
    assert len(scheduler.context.effects) == (counted > 0), "and people are told"


# ------------------------------------------------------------------ a state that was made again
@pytest.mark.parametrize(
    ("held", "is_taken"),
    [
        (holds(1, 0, 10), True),
        (holds(0, 0, 10), False),
        (holds(1, 90, 100), True),
        (holds(1, 0, 0), False),
        (holds(1, 10, 0), False),
        (holds(1, 0, 9), True),  # the rest may be what another one has trained on
        (holds(1, 0, 11), False),
        (holds(1, 5, 15), False),  # no beginning of a split
        (holds(1, 100, 110), False),  # behind the end
        (holds(1, 99, 100, Dataset("one", 1, 100, 1)), True),
        (holds(1, 100, 101, Dataset("one", 1, 100, 1)), False),
        (holds(1, 99, 101, Dataset("one", 1, 100, 1)), False),
        (holds(1, 0, 10, Dataset("d", 100, 100, 0)), False),
    ],
)
def test_a_split_that_a_worker_tells_of_and_that_cannot_be_fences_it(held: HeldLease, is_taken: bool) -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    assert scheduler.tells(0, held) == is_taken
    assert scheduler.fences() == ([] if is_taken else [(0, 1)])
    assert scheduler.held(0) == ([(held.first, held.last)] if is_taken else [])
    if not is_taken:
        (fenced,) = scheduler.sent()
        assert f"it tells of lease {held.lease} of {held.dataset.name!r}: " in fenced.reason


def test_splits_that_are_done_and_were_in_no_copy_are_not_given_again() -> None:
    scheduler = Scheduler()
    scheduler.lease(0)
    scheduler.leases.heard(worker(0), 1, cursor(1, 10))
    scheduler.leases.adopted()
    done = holds(1, 0, 10, request=1), holds(3, 20, 30), holds(4, 30, 40)
    assert scheduler.tells(0, *done, holds(6, 50, 60), at=cursor(4, 10))
    assert scheduler.tells(1)
    (dataset,) = scheduler.of.datasets
    assert (dataset.trained, dataset.splits, dataset.next) == (30, 4, 60), "the first one was counted before"
    assert dataset.returned == [(10, 20), (40, 50)] and scheduler.held(0) == [(50, 60)]
    answers = [scheduler.lease(1, request) for request in (8, 9, 10)]
    assert [(answer.lease, answer.first) for answer in answers] == [(7, 10), (8, 40), (9, 60)]


def test_of_what_a_worker_was_granted_up_to_the_last_request_that_the_state_knows_the_state_knows_more() -> None:
    """Leases that the state has, or has counted as done, are skipped when a worker tells them, or tells them again."""
    scheduler = Scheduler()
    scheduler.lease(0, request=4)
    scheduler.leases.heard(worker(0), 1, cursor(1, 10))
    for _ in range(2):
        scheduler.leases.adopted()
        told = holds(1, 0, 10, request=4), holds(2, 10, 20, request=5)
        assert scheduler.tells(0, *told, at=cursor(2, 10), asked=5) and scheduler.tells(1, asked=0)
        assert (scheduler.of.datasets[0].trained, scheduler.held(0), scheduler.fences()) == (20, [], [])
    assert not scheduler.tells(0, holds(2, 10, 20, request=6), at=cursor(2, 9), asked=6)


def test_a_split_that_was_granted_and_not_heard_of_is_granted_again() -> None:
    scheduler = Scheduler()
    granted = scheduler.lease(0, request=4)
    scheduler.leases.adopted()
    assert scheduler.tells(0, asked=3) and scheduler.tells(1, asked=0)
    again = scheduler.lease(0, request=4)
    assert (again.lease, again.first) == (granted.lease, granted.first) == (1, 0)


def test_the_rest_of_a_split_of_a_dead_worker_that_nobody_knows_is_taken_from_who_got_it() -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    assert scheduler.tells(0, holds(2, 4, 7), holds(3, 14, 20), at=cursor(2, 3))
    (dataset,) = scheduler.of.datasets
    assert dataset.returned == [(0, 4), (7, 10), (10, 14)] and dataset.trained == 3


def test_of_two_adoptions_in_a_row_the_second_knows_what_was_told_to_the_first() -> None:
    """The copy of the second one knows the number of a lease that is newer than those that worker 0 has not told."""
    scheduler = Scheduler()
    scheduler.leases.adopted()
    assert scheduler.tells(1, holds(3, 20, 30), at=cursor(3, 10))
    scheduler.leases.adopted()
    assert scheduler.tells(0, holds(1, 0, 10), holds(2, 10, 20, request=4), at=cursor(2, 10))
    assert scheduler.tells(1, holds(3, 20, 30), at=cursor(3, 10))
    (dataset,) = scheduler.of.datasets
    assert dataset.trained == 30 and dataset.returned == []


def test_a_lease_of_anothers_number_is_not_taken_for_ones_own() -> None:
    scheduler = Scheduler()
    scheduler.lease(0)
    scheduler.leases.adopted()
    assert not scheduler.tells(1, holds(1, 0, 10)), "it goes on to train on the examples of worker 0"


def test_what_one_worker_can_invent_is_bounded_over_all_that_it_tells() -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    far = Dataset("far", 1 << 28, 1 << 28, 1)
    told = [holds(1 + i, (i + 1) << 15, ((i + 1) << 15) + 1, far, request=i + 1) for i in range(4)]
    assert not scheduler.tells(0, *told)
    assert len(scheduler.of.datasets[0].returned) <= UNTOLD_MAX + 1


@pytest.mark.parametrize("splits", [TOLD_MAX, TOLD_MAX + 1])
def test_a_worker_that_tells_of_more_splits_than_it_can_have_is_fenced(splits: int) -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    data = Dataset("long", 1 << 20, 1 << 20, 1)
    told = [holds(number, number, number + 1, data) for number in range(1, splits + 1)]
    assert scheduler.tells(0, *told, at=cursor(splits, 0)) == (splits == TOLD_MAX)
    assert len(scheduler.held(0)) == (splits == TOLD_MAX)


@pytest.mark.parametrize("number", [m.LEASES_MAX // 2, m.LEASES_MAX // 2 + 1])
def test_numbers_of_leases_that_are_kept_for_what_is_handed_on_are_no_workers_to_tell_of(number: int) -> None:
    scheduler = Scheduler()
    scheduler.of.datasets = [DatasetState(DATA)]
    scheduler.leases.adopted()
    assert scheduler.tells(0, holds(number, 0, 10)) == (number == m.LEASES_MAX // 2)
    assert scheduler.of.number == (number if number == m.LEASES_MAX // 2 else 0)


def test_what_is_left_of_a_split_that_was_returned_can_be_told_of_and_the_rest_stays() -> None:
    for first, last, rest in (
        (3, 10, []),
        (3, 7, [(7, 10)]),
        (5, 10, [(3, 5)]),
        (5, 7, [(3, 5), (7, 10)]),
    ):
        scheduler = Scheduler()
        scheduler.of.datasets = [DatasetState(DATA, next=20, returned=[(3, 10)])]
        scheduler.leases.adopted()
        assert scheduler.tells(0, holds(1, first, last))
        assert scheduler.of.datasets[0].returned == rest
    for first, last in ((2, 10), (3, 11), (2, 9), (4, 11), (0, 3), (10, 20), (5, 5)):
        scheduler = Scheduler()
        scheduler.of.datasets = [DatasetState(DATA, next=20, returned=[(3, 10)])]
        scheduler.leases.adopted()
        assert not scheduler.tells(0, holds(1, first, last)), (first, last)
        assert scheduler.of.datasets[0].returned == [(3, 10)], (first, last)


def test_splits_between_what_is_known_and_what_is_told_wait_for_whoever_has_them() -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    assert scheduler.tells(0, holds(4, 30, 40))
    assert scheduler.of.datasets[0].returned == [(0, 10), (10, 20), (20, 30)] and scheduler.of.number == 4
    assert isinstance(scheduler.lease(0, 8), m.NoSplit), "not before all have told"
    assert scheduler.tells(1, holds(2, 10, 20))
    assert (answer := scheduler.lease(1, 8)) and (answer.lease, answer.first, answer.last) == (5, 0, 10)


@pytest.mark.parametrize("splits", [UNTOLD_MAX, UNTOLD_MAX + 1])
def test_a_worker_cannot_invent_that_more_was_granted_than_can_have_been(splits: int) -> None:
    scheduler = Scheduler()
    scheduler.leases.adopted()
    data = Dataset("long", 1 << 20, 1 << 20, 2)
    assert scheduler.tells(0, holds(1, 2 * splits, 2 * splits + 2, data)) == (splits == UNTOLD_MAX)
    assert len(scheduler.of.datasets[0].returned) == (splits if splits == UNTOLD_MAX else 0)


def test_a_worker_that_contradicts_what_is_known_is_fenced_though_it_holds_nothing_that_is_known() -> None:
    """It may hold more: what it had is handed on when all shards have confirmed the fence."""
    scheduler = Scheduler()
    scheduler.of.datasets = [DatasetState(DATA, next=20)]
    scheduler.leases.adopted()
    assert not scheduler.tells(0, holds(1, 0, 10))
    assert [(fence.worker, fence.untold) for fence in scheduler.of.fences] == [(0, True)]
    assert scheduler.of.unheard == [1]


def test_numbers_of_leases_that_shards_have_heard_of_are_not_given_again() -> None:
    scheduler = Scheduler()
    scheduler.leases.raise_number({m.cursor_key(0): cursor(9, 3)}, False)
    assert scheduler.of.number == 0, "nothing is unknown"
    scheduler.leases.raise_number({m.cursor_key(0): cursor(2, 3)}, True)
    assert scheduler.of.number == 2, "nobody that is known need have had it"
    scheduler.of.number = 0
    scheduler.leases.adopted()
    scheduler.changed()
    scheduler.leases.raise_number({0: cursor(99, 1), 5: 1 << 60}, False)
    assert scheduler.of.number == 0 and not scheduler.changed(), "numbers of pushes are no cursors"
    scheduler.leases.raise_number({m.cursor_key(0): cursor(9, 3), m.cursor_key(1): cursor(4, 0), 0: 1 << 60}, False)
    assert scheduler.of.number == 9 and scheduler.changed()
    scheduler.leases.raise_number({m.cursor_key(0): cursor(8, 3)}, True)
    assert scheduler.of.number == 9 and not scheduler.changed()


# ------------------------------------------------------------------ for people
def test_the_figures_of_a_data_set_are_its_own() -> None:
    scheduler = Scheduler()
    scheduler.lease(0)
    other = Dataset("other", 50, 50, 5)
    scheduler.leases.on_lease_split(worker(1), m.LeaseSplit(1, other, 0))
    scheduler.leases.heard(worker(0), 1, cursor(1, 4))
    scheduler.leases.heard(worker(1), 1, cursor(2, 3))
    assert [(f.dataset.name, f.trained, f.leased) for f in scheduler.leases.figures()] == [("d", 4, 1), ("other", 3, 1)]


# ------------------------------------------------------------------ a life that ends
def test_shards_are_told_of_every_life_that_ends_and_splits_wait_only_for_one_that_holds_some() -> None:
    scheduler = Scheduler(groups=2)
    scheduler.lease(0)
    for number, waits in ((0, [(0, 1)]), (1, [(0, 1)])):
        scheduler.changed()
        scheduler.leases.end(number, 1)
        assert scheduler.fences() == waits and scheduler.of.is_fenced(number, 1) and scheduler.changed()
        told = [group.views[-1] for group in scheduler.state.groups]
        assert told == [m.WorkerFenced(2 + number, number, 1)] * 2


# ------------------------------------------------------------------ a checkpoint that is restored
def restored(name: str = "d", next: int = 60, returned: Any = ((10, 20),), **more: Any) -> m.RestoredDataset:
    trained = more.get("trained", next - sum(last - first for first, last in returned))
    return m.RestoredDataset(Dataset(name, 100, more.get("end", 100), 10), next, list(returned), trained, 5)


@pytest.mark.parametrize(
    ("datasets", "why"),
    [
        ([], ""),
        ([restored(), restored("e", 0, ())], ""),
        ([restored("a"), restored("a", 0, ())], "two of the data sets have one name"),
        ([restored(), restored("")], "expected 1 to 256 characters"),
        ([restored(returned=[(10, 20), (0, 10), (50, 60)])], ""),
        ([restored(returned=[(10, 20), (19, 30)])], "data set 'd': what is left of it does not fit 100 examples"),
        ([restored(returned=[(20, 30), (10, 21)])], "data set 'd': what is left of it does not fit 100 examples"),
        ([restored(returned=[(50, 61)])], "data set 'd': what is left of it does not fit 100 examples"),
        ([restored(returned=[(10, 10)])], "data set 'd': what is left of it does not fit 100 examples"),
        ([restored(next=100)], ""),
        ([restored(trained=49)], "49 examples trained and 10 to be handed on are not the 60 that were leased"),
        ([restored(trained=51)], "51 examples trained and 10 to be handed on are not the 60 that were leased"),
        ([restored(next=101)], "data set 'd': what is left of it does not fit 100 examples"),
    ],
)
def test_data_sets_of_a_checkpoint_with_which_nobody_could_go_on_are_refused(datasets: Any, why: str) -> None:
    refusal = Scheduler().leases.restore_refusal(datasets)
    assert why in refusal and bool(refusal) == bool(why)


def test_who_asks_again_for_what_was_restored_changes_nothing_and_is_not_refused() -> None:
    scheduler, some = Scheduler(), [restored(next=100, returned=())]
    scheduler.leases.restore(some)
    assert scheduler.changed() and scheduler.of.datasets[0].restored
    assert scheduler.lease(0) == m.NoSplit(1, True)
    scheduler.changed()
    assert scheduler.leases.restore_refusal(some) == ""
    scheduler.leases.restore(some)
    assert not scheduler.changed() and not scheduler.of.datasets[0].restored, "a worker has asked for it since"
    assert "this cluster has data sets of its own ('d')" in scheduler.leases.restore_refusal([restored()])
    assert "this cluster has data sets of its own ('d')" in scheduler.leases.restore_refusal([])


def test_where_a_restored_data_set_ends_is_said_anew_by_who_asks_first_if_it_can_be() -> None:
    scheduler = Scheduler()
    scheduler.leases.restore([restored(next=60, returned=())])

    def asked(request: int, end: int, split: int = 10) -> Any:
        scheduler.leases.on_lease_split(worker(0), m.LeaseSplit(request, Dataset("d", 100, end, split), 0))
        (answer,) = scheduler.sent()
        return answer

    assert "0 examples a split" in asked(1, 300, split=0).reason
    assert "exists as" in asked(2, 59).reason, "more is trained on already"
    assert scheduler.of.datasets[0].restored and scheduler.of.datasets[0].dataset.end == 100
    first = asked(3, 300, split=20)
    assert (first.first, first.last) == (60, 80) and scheduler.of.datasets[0].dataset.end == 300
    assert "exists as" in asked(4, 400, split=20).reason, "the first one has said it"

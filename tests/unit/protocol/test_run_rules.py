"""Runs, one rule at a time: who may join, what two workers may contradict, how a run ends, what is taken up again."""

from typing import Any

import pytest
from parts import Parts, worker

from ecrec.protocol import messages as m
from ecrec.protocol.messages import JoinRun, LeaveRun, RunJoined, RunOver, WorkerStatus
from ecrec.protocol.runs import MISSING_NAMED_MAX, RUNS_MAX, Runs
from ecrec.protocol.state import Run, RunMember

PATIENCE_MS, TIMEOUT_MS = 800, 15_000


class Scheduler(Parts):
    """Runs of workers 0 to 9, which are in their first life."""

    def __init__(self, *begun: Run, foreign: int = 0) -> None:
        super().__init__(workers=dict.fromkeys(range(10), 1))
        self.state.runs.runs = list(begun)
        self.state.runs.number = max((run.number for run in begun), default=0)
        self.state.runs.foreign = foreign
        self.runs = Runs(self.context)

    def joins(self, number: int, size: int, request: int = 1, epoch: int = 1, run: int = 0, done: int = 0) -> Any:
        """What is said to a worker that asks for a run, the last thing if it is several."""
        self.runs.on_join(worker(number, epoch), JoinRun(request, size, run, done))
        said = self.sent()
        return said[-1] if said else None

    def beats(self, number: int, run: int = 0, done: int = 0, size: int = 0, epoch: int = 1) -> Any:
        """What is said to a worker's heartbeat."""
        status = WorkerStatus(f"w{number}", [1], {}, run=run, run_done=done, run_size=size)
        self.runs.heard(worker(number, epoch), epoch, status)
        said = self.sent()
        return said[-1] if said else None

    def both(self, *sizes: int) -> int:
        """Workers 0 and 1 begin a run of two."""
        self.joins(0, 2)
        return self.joins(1, 2).run

    def going(self) -> list[int]:
        """Numbers of the runs that are kept."""
        return [run.number for run in self.state.runs.runs]


def run_of(number: int, size: int = 2, epoch: int = 1) -> Run:
    return Run(number, [RunMember(epoch, 1) for _ in range(size)])


# ------------------------------------------------------------------ workers ask
@pytest.mark.parametrize(
    ("number", "size", "is_taken"),
    [(0, 1, False), (0, 2, True), (1, 2, True), (2, 2, False), (0, m.WORKERS_MAX, True), (0, m.WORKERS_MAX + 1, False)],
)
def test_a_run_has_two_workers_or_more_and_those_of_the_lowest_numbers(number: int, size: int, is_taken: bool) -> None:
    answer = Scheduler().joins(number, size)
    assert isinstance(answer, RunJoined if is_taken else m.Refused)


def test_a_worker_that_waits_hears_the_first_few_that_have_not_asked() -> None:
    scheduler = Scheduler()
    scheduler.joins(1, 3)
    assert scheduler.joins(0, 3) == RunJoined(1, 0, [2])
    assert scheduler.joins(2, 30) == RunJoined(1, 0, [0, 1, *range(3, 3 + MISSING_NAMED_MAX - 2)])


def test_when_all_have_asked_the_run_begins_and_a_copy_of_the_request_is_granted_again() -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    assert run == 1 and scheduler.going() == [1] and scheduler.changed()
    assert scheduler.joins(0, 2) == RunJoined(1, 1)
    assert scheduler.joins(0, 2, request=0) is None, "an older request is nothing"
    assert scheduler.going() == [1] and not scheduler.changed()


def test_another_life_of_a_worker_joins_anew_and_ends_the_run_of_the_one_before() -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    scheduler.state.workers[1] = (2, "again")
    assert scheduler.joins(1, 2, request=1, epoch=2) == RunJoined(1, 0, [0])
    assert "worker 1 (epoch 1) has left run 1" in scheduler.beats(0, run).reason


def test_an_older_request_and_one_that_is_not_what_it_was_change_nothing() -> None:
    scheduler = Scheduler()
    scheduler.joins(0, 2, request=5)
    assert scheduler.joins(0, 2, request=4) is None
    assert scheduler.joins(0, 3, request=4) is None and scheduler.joins(0, 3, request=5) is None
    assert scheduler.joins(1, 2) == RunJoined(1, 1)
    assert scheduler.state.runs.runs[0].members == [RunMember(1, 5), RunMember(1, 1)]


def test_a_newer_request_takes_the_place_of_the_one_before() -> None:
    scheduler = Scheduler()
    scheduler.joins(0, 3, request=1)
    scheduler.joins(0, 2, request=2)
    assert scheduler.joins(1, 3) == RunJoined(1, 0, [0, 2]), "it does not wait for three any more"
    assert scheduler.joins(1, 2, request=2) == RunJoined(2, 1)


def test_who_is_in_a_run_and_asks_for_another_one_has_left_it() -> None:
    scheduler = Scheduler()
    scheduler.both()
    scheduler.beats(1, 1, 4, 2)
    assert scheduler.joins(1, 3, request=2) == RunJoined(2, 0, [0, 2])
    over = scheduler.beats(0, 1, 5, 2)
    assert isinstance(over, RunOver) and over.done == 4 and "has left run 1" in over.reason
    scheduler = Scheduler()
    scheduler.both()
    assert scheduler.joins(1, 3, request=2, run=1, done=6) == RunJoined(2, 0, [0, 2])
    assert scheduler.beats(0, 1, 5, 2).done == 6, "it says itself how far it was"


def test_so_many_runs_go_on_and_no_more() -> None:
    for already, refused in ((RUNS_MAX - 1, False), (RUNS_MAX, True)):
        scheduler = Scheduler()
        scheduler.state.runs.runs = [run_of(i + 1, 2) for i in range(already)]
        scheduler.state.runs.number = already
        scheduler.joins(0, 2)
        answer = scheduler.joins(1, 2)
        assert len(scheduler.going()) == RUNS_MAX
        if refused:
            assert isinstance(answer, m.Refused) and f"{RUNS_MAX} runs go on already" in answer.reason
            assert isinstance(scheduler.joins(0, 2), m.Refused), "and the other one too: it does not wait"
        else:
            assert answer == RunJoined(1, RUNS_MAX)


def test_a_copy_of_a_request_that_was_refused_is_refused_and_a_newer_one_or_another_life_is_not() -> None:
    scheduler = Scheduler()
    scheduler.state.runs.runs = [run_of(i + 1, 2) for i in range(RUNS_MAX)]
    scheduler.joins(0, 2, request=5)
    scheduler.joins(1, 2, request=5)
    scheduler.state.runs.runs = []
    for request, refused in ((4, True), (5, True), (6, False)):
        assert isinstance(scheduler.joins(0, 2, request), m.Refused) == refused
    scheduler.state.workers[1] = (2, "again")
    assert isinstance(scheduler.joins(1, 2, 5, epoch=2), RunJoined)


# ------------------------------------------------------------------ workers contradict each other
@pytest.mark.parametrize(
    ("first_ms", "second_ms", "asks_ms", "refused"),
    [
        (0.0, 0.0, PATIENCE_MS, False),
        (0.0, 0.0, PATIENCE_MS + 1.0, True),
        (0.0, 500.0, PATIENCE_MS + 1.0, False),
        (500.0, 0.0, PATIENCE_MS + 1.0, False),
        (0.0, 500.0, 501.0 + PATIENCE_MS, True),
    ],
)
def test_requests_of_two_sizes_are_refused_when_both_have_lasted(
    first_ms: float, second_ms: float, asks_ms: float, refused: bool
) -> None:
    scheduler = Scheduler()
    for at_ms, number, size in sorted(((first_ms, 0, 2), (second_ms, 1, 3))):
        scheduler.context.now_ms = at_ms
        scheduler.joins(number, size)
    scheduler.context.now_ms = asks_ms
    assert isinstance(scheduler.joins(1, 3), RunJoined)  # it waits still
    answer = scheduler.joins(0, 2)
    assert isinstance(answer, m.Refused) == refused
    if refused:
        assert "worker 0 asks for a run of 2 workers, but worker 1 waits for one of 3" in answer.reason
        assert isinstance(scheduler.joins(1, 3), m.Refused), "it would wait for ever"


@pytest.mark.parametrize(("number", "other", "refused"), [(0, 1, True), (0, 2, False), (2, 1, True), (3, 4, False)])
def test_a_worker_that_is_none_of_a_run_contradicts_nobody_in_it(number: int, other: int, refused: bool) -> None:
    """Of a run of two, or of four that worker 3 asks for; the other one asks for a run of five."""
    scheduler = Scheduler()
    size = {0: 2, 2: 3, 3: 4}[number]
    scheduler.joins(other, 5)
    scheduler.joins(number, size)
    scheduler.context.now_ms = PATIENCE_MS + 1.0
    scheduler.joins(other, 5)
    assert isinstance(scheduler.joins(number, size), m.Refused) == refused


def test_a_worker_that_the_other_one_does_not_want_is_refused_alone() -> None:
    scheduler = Scheduler()
    scheduler.joins(0, 2)
    scheduler.joins(2, 3)
    scheduler.context.now_ms = PATIENCE_MS + 1.0
    scheduler.joins(0, 2)
    assert isinstance(scheduler.joins(2, 3), m.Refused)
    assert isinstance(scheduler.joins(0, 2), RunJoined), "worker 2 is none of its run"


@pytest.mark.parametrize(
    ("number", "size", "heard_ms", "over", "refused"),
    [
        (2, 3, PATIENCE_MS + 1.0, "", True),
        (2, 3, PATIENCE_MS, "", False),  # not for long enough
        (2, 3, PATIENCE_MS + 1.0, "it has ended", False),
        (3, 4, PATIENCE_MS + 1.0, "", True),
    ],
)
def test_a_worker_too_many_for_a_run_that_goes_on_is_refused(
    number: int, size: int, heard_ms: float, over: str, refused: bool
) -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    scheduler.state.runs.runs[0].over = over
    scheduler.joins(number, size)
    scheduler.context.now_ms = heard_ms
    scheduler.beats(0, run)
    answer = scheduler.joins(number, size)
    assert isinstance(answer, m.Refused) == refused
    if refused:
        assert "but worker 0 is in run 1 of 2 workers, which goes on" in answer.reason


def test_a_run_of_other_workers_or_of_the_same_size_contradicts_nobody() -> None:
    """One of three that its worker 2 alone is left in, and one of two that worker 0 has left."""
    for left, size in ((2, 2), (1, 3)):
        scheduler = Scheduler()
        for number in range(3):
            scheduler.joins(number, 3)
        for number in set(range(3)) - {left}:
            scheduler.runs.on_leave(worker(number), LeaveRun(1, 0))
        (run,) = scheduler.state.runs.runs
        run.over = ""
        asks = 0
        scheduler.joins(asks, size, request=2)
        scheduler.context.now_ms = 2 * PATIENCE_MS
        scheduler.beats(left, 1)
        assert isinstance(scheduler.joins(asks, size, request=2), RunJoined)


# ------------------------------------------------------------------ runs end
@pytest.mark.parametrize("how", ["leaves", "is silent", "is over", "asks for another one"])
def test_a_run_is_over_with_the_first_that_ends_and_the_others_hear_how_far_that_one_was(how: str) -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    assert scheduler.beats(1, run, 3, 2) is None and scheduler.beats(1, run, 2, 2) is None
    if how == "leaves":
        scheduler.runs.on_leave(worker(1), LeaveRun(run, 3))
    elif how == "is over":
        scheduler.runs.ended(1, "was started again")
    elif how == "is silent":
        for now_ms in (100.0, TIMEOUT_MS):
            scheduler.context.now_ms = now_ms
            scheduler.beats(0, run, 4, 2)
            scheduler.runs.on_tick(0.0)
            assert not scheduler.state.runs.runs[0].over
        scheduler.context.now_ms = TIMEOUT_MS + 100.0
        scheduler.runs.on_tick(0.0)
    else:
        scheduler.joins(1, 3, request=2)
    over = scheduler.beats(0, run, 4, 2)
    assert isinstance(over, RunOver) and (over.run, over.done) == (run, 3)
    assert scheduler.beats(0, run, 4, 2) == over, "and again, until it has heard it"


def test_a_worker_that_leaves_a_run_is_told_so_and_one_that_is_in_another_one_ends_nothing() -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    for number, epoch, left in ((1, 1, run + 1), (1, 2, run), (5, 1, run)):
        scheduler.runs.on_leave(worker(number, epoch), LeaveRun(left, 3))
        (answer,) = scheduler.sent()
        assert isinstance(answer, RunOver) and answer.run == left
        assert not scheduler.state.runs.runs[0].over
    scheduler.runs.on_leave(worker(1), LeaveRun(run, 3))
    assert "worker 1 (epoch 1) has left run 1, 3 of its barriers" in scheduler.state.runs.runs[0].over


def test_what_counts_is_the_worker_that_was_least_far() -> None:
    scheduler = Scheduler()
    for number in range(3):
        scheduler.joins(number, 3)
    for number, left, done in ((0, 5, 5), (1, 5, 5), (2, 4, 4)):
        scheduler.runs.on_leave(worker(number), LeaveRun(1, left))
        if number < 2:
            assert scheduler.state.runs.runs[0].done == done and "worker 0 " in scheduler.state.runs.runs[0].over
    assert scheduler.going() == [], "with the last of its workers nobody is left to be told"


def test_a_worker_that_was_given_up_and_lives_hears_of_its_own_run() -> None:
    scheduler = Scheduler(run_of(3, 3), run_of(4, 3))
    for run, number in ((3, 2), (4, 1)):
        scheduler.runs._of = {0: scheduler.state.runs.runs[run - 3], number: scheduler.state.runs.runs[run - 3]}
        scheduler.runs.ended(0, f"ended run {run}")
    scheduler.runs._of.clear()
    for run in (3, 4):
        assert f"ended run {run}" in scheduler.beats(1, run, 0, 3).reason
    assert "all of its workers were given up" in scheduler.beats(1, 5, 0, 3).reason
    assert scheduler.beats(1) is None, "it is in none, and says so"


def test_a_restarted_scheduler_knows_who_is_in_a_run_and_who_has_left_it() -> None:
    run = run_of(1, 3)
    run.members[1].gone = True
    run.over = "worker 1 has left"
    other = run_of(2)
    other.members[0].gone = True
    scheduler = Scheduler(run, other)
    assert scheduler.beats(0, 1).reason == "worker 1 has left"
    assert scheduler.runs._of == {0: run, 2: run, 1: other}


def test_an_asking_worker_that_ends_is_waited_for_by_nobody() -> None:
    scheduler = Scheduler()
    scheduler.joins(0, 2)
    scheduler.runs.ended(0, "was started again")
    assert scheduler.joins(1, 2) == RunJoined(1, 0, [0])
    scheduler.context.now_ms = TIMEOUT_MS + 1.0
    scheduler.runs.on_tick(0.0)
    assert scheduler.joins(0, 2, request=2) == RunJoined(2, 0, [1]), "it was silent for too long"


def test_a_pause_of_the_scheduler_is_nobodys_silence() -> None:
    scheduler = Scheduler()
    run = scheduler.both()
    scheduler.context.now_ms = TIMEOUT_MS + 500.0
    scheduler.runs.on_tick(500.0)
    assert scheduler.going() == [run] and not scheduler.state.runs.runs[0].over
    scheduler.context.now_ms += 100.0
    scheduler.runs.on_tick(0.0)
    assert scheduler.going() == [], "both have ended"


def test_nothing_is_kept_of_workers_that_are_in_no_run_and_ask_for_none() -> None:
    scheduler = Scheduler()
    scheduler.both()
    scheduler.joins(3, 5)
    scheduler.runs.on_leave(worker(0), LeaveRun(1, 7))
    scheduler.runs.on_leave(worker(1), LeaveRun(1, 7))
    scheduler.runs.ended(3, "was started again")
    scheduler.runs.on_tick(0.0)
    assert not (scheduler.runs._heard_ms or scheduler.runs._done or scheduler.runs._asking or scheduler.runs._by_size)


# ------------------------------------------------------------------ a state that was made again
@pytest.mark.parametrize(
    ("number", "size", "run", "is_taken"),
    [
        (0, 2, 1, True),
        (0, 2, 9, True),  # the newest that may have begun
        (0, 2, 10, False),
        (0, 2, 0, False),
        (0, 1, 9, False),
        (1, 2, 9, True),
        (2, 2, 9, False),
        (0, m.WORKERS_MAX, 9, True),
        (0, m.WORKERS_MAX + 1, 9, False),
    ],
)
def test_a_run_that_a_worker_names_is_taken_up_if_it_can_be(number: int, size: int, run: int, is_taken: bool) -> None:
    scheduler = Scheduler(foreign=9)
    scheduler.beats(number, run, 4, size)
    assert scheduler.going() == ([run] if is_taken else [])
    if is_taken:
        assert len(scheduler.state.runs.runs[0].members) == size and scheduler.changed()


def test_a_run_that_is_known_is_not_taken_up_again_nor_one_too_many() -> None:
    scheduler = Scheduler(run_of(3), foreign=9)
    scheduler.beats(0, 3, 4, 2)
    assert scheduler.going() == [3]
    for already in (RUNS_MAX - 1, RUNS_MAX):
        scheduler = Scheduler(foreign=2 * RUNS_MAX)
        scheduler.state.runs.runs = [run_of(i + 1) for i in range(already)]
        scheduler.beats(0, RUNS_MAX + 1, 4, 2)
        assert len(scheduler.going()) == RUNS_MAX


def test_of_two_runs_that_a_worker_was_in_the_newer_one_goes_on() -> None:
    """Whichever is named first: workers 0 and 1 of a run of three are in one of two by now."""
    for order in ((4, 5), (5, 4)):
        scheduler = Scheduler(foreign=9)
        for number in order:
            if number == 4:
                scheduler.beats(2, 4, 2, 3)
            else:
                scheduler.beats(0, 5, 2, 2)
        older, newer = sorted(scheduler.state.runs.runs, key=lambda run: run.number)
        assert (older.number, newer.number) == (4, 5)
        assert "worker" in older.over and "run 5" in older.over and not newer.over
        assert [member.gone for member in older.members] == [True, True, False]
        assert [member.gone for member in newer.members] == [False, False]
        assert scheduler.beats(2, 4, 2, 3).reason == older.over and scheduler.beats(1, 5, 2, 2) is None


def test_a_worker_that_never_heard_that_its_run_began_is_let_in_if_it_is_its_first_life() -> None:
    """An earlier life may have pushed: its pushes would be waited for."""
    for epoch, size, run, joins in ((1, 2, 0, True), (2, 2, 0, False), (1, 3, 0, False), (1, 2, 7, False)):
        scheduler = Scheduler(foreign=9)
        scheduler.state.workers[1] = (epoch, "w1")
        scheduler.beats(0, 4, 0, 2)
        assert scheduler.changed()
        answer = scheduler.joins(1, size, request=3, epoch=epoch, run=run)
        assert (answer == RunJoined(3, 4)) == joins, (epoch, size, run)
        assert bool(scheduler.state.runs.runs[0].over) != joins
        assert scheduler.changed()


def test_a_heartbeat_of_a_worker_that_is_in_no_run_ends_one_that_was_taken_up_unless_it_may_yet_ask() -> None:
    for epoch, named, over in ((1, 0, False), (2, 0, True), (1, 4, False), (2, 4, False)):
        scheduler = Scheduler(foreign=9)
        scheduler.state.workers[1] = (epoch, "w1")
        scheduler.beats(0, 4, 3, 2)
        scheduler.changed()
        scheduler.beats(1, named, 3, 2, epoch=epoch)
        (run,) = scheduler.state.runs.runs
        assert bool(run.over) == over, (epoch, named)
        assert run.members[1].epoch == (epoch if named else 0)
        assert scheduler.changed() == (over or named == 4)


def test_a_run_that_was_taken_up_ends_with_one_that_is_not_heard_for_the_timeout() -> None:
    scheduler = Scheduler(foreign=9)
    scheduler.context.now_ms = 50_000.0
    scheduler.beats(0, 4, 3, 2)
    for now_ms in (50_100.0, 50_000.0 + TIMEOUT_MS):
        scheduler.context.now_ms = now_ms
        scheduler.beats(0, 4, 3, 2)
        scheduler.runs.on_tick(0.0)
        assert not scheduler.state.runs.runs[0].over
    scheduler.context.now_ms = 50_101.0 + TIMEOUT_MS
    scheduler.runs.on_tick(0.0)
    assert "worker 1 " in scheduler.state.runs.runs[0].over and scheduler.beats(0, 4, 3, 2).done == 0

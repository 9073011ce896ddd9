"""Pushes of a barrier, one rule at a time: which can never be applied, which contradict each other; and what a shard
and its clients check of requests and learning rates."""

from typing import Any

import numpy as np
import pytest

from ecrec.protocol.barriers import BROKEN_RUNS_MAX, Barriers, DisagreementError
from ecrec.protocol.messages import WORKER, WORKERS_MAX, Address, Push, Section
from ecrec.protocol.placement import OptimizerSpec
from ecrec.protocol.queues import QueuedPush, WorkerState, sections_of


def pushed(worker: int, barrier: int = 2, run: int = 7, sequence: int = 1, number: int = 3, **more: Any) -> QueuedPush:
    push = Push(
        1, number, barrier, more.get("assign", False), [], 0, run, sequence, 0, more.get("rates", {}),
        records=more.get("records", False),
    )  # fmt: skip
    return QueuedPush(worker, number, push, (), Address(WORKER, worker, 1))


def heads(*queued: QueuedPush) -> dict[int, WorkerState]:
    states = {each.worker: WorkerState(each.source) for each in queued}
    for each in queued:
        states[each.worker].queue.append(each)
    states[99] = WorkerState(Address(WORKER, 99, 1))  # one that waits with nothing
    return states


def batch(*queued: QueuedPush) -> list[int] | None:
    """Workers whose pushes are applied together with the first one."""
    found = Barriers().batch(queued[0], heads(*queued))
    return None if found is None else [each.worker for each in found]


# ------------------------------------------------------------------ which can never be applied
@pytest.mark.parametrize(
    ("worker", "barrier", "run", "sequence", "can"),
    [
        (5, 0, 0, 0, True),  # no barrier
        (5, 1, 0, 0, True),
        (1, 2, 7, 1, True),
        (2, 2, 7, 1, False),
        (1, 2, 0, 1, False),
        (1, 2, 7, 0, False),
        (0, WORKERS_MAX, 7, 1, True),
        (0, WORKERS_MAX + 1, 7, 1, False),
    ],
)
def test_a_barrier_that_can_never_be_complete_is_refused(
    worker: int, barrier: int, run: int, sequence: int, can: bool
) -> None:
    refusal = Barriers().refusal(worker, pushed(worker, barrier, run, sequence).push)
    assert (refusal == "") == can
    if not can:
        assert f"run {run}, sequence {sequence}, from worker {worker}" in refusal


# ------------------------------------------------------------------ which are applied together
@pytest.mark.parametrize(
    ("queued", "together"),
    [
        ([pushed(0, 1, 0, 0), pushed(1)], [0]),
        ([pushed(0, 0, 0, 0), pushed(1, 0, 0, 0)], [0]),
        ([pushed(0), pushed(1)], [0, 1]),
        ([pushed(1), pushed(0)], [0, 1]),
        ([pushed(0)], None),
        ([pushed(0), pushed(1, run=8)], None),
        ([pushed(0), pushed(1, 1, 7, 1)], None),  # names the run, and is no part of it
        ([pushed(0), pushed(1), pushed(2, 1, 7, 1)], [0, 1]),
        ([pushed(0, 3), pushed(1, 3)], None),
        ([pushed(0, 3), pushed(2, 3), pushed(1, 3)], [0, 1, 2]),
        ([pushed(0, 2), pushed(2, 3)], None),  # worker 2 waits for this one, and this one not for it
        ([pushed(0, 2), pushed(2, 2)], None),  # cannot be: refused before
    ],
)
def test_a_barrier_is_applied_when_the_pushes_of_all_its_workers_are_here(
    queued: list[QueuedPush], together: list[int] | None
) -> None:
    assert batch(*queued) == together


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (pushed(1, assign=True), "barrier 1 of worker 0 (its push 3) steps with gradients, that of worker 1"),
        (
            pushed(1, assign=True, records=True),
            "barrier 1 of worker 0 (its push 3) steps with gradients, that of worker 1 (its push 3) sets whole records",
        ),
        (pushed(1, 3), "barrier size of worker 0 (its push 3) 2, that of worker 1 (its push 3) 3"),
        (
            pushed(1, sequence=2),
            "barrier of worker 0 (its push 3) is number 1, that of worker 1 (its push 3) is number 2",
        ),
        (pushed(1, rates={4: 0.5}), "learning rate of table 4 of worker 0 (its push 3) is its own, that of worker 1"),
    ],
)
def test_pushes_that_wait_for_each_other_and_differ_break_their_run(other: QueuedPush, what: str) -> None:
    barriers = Barriers()
    for queued in ((pushed(0), other), (other, pushed(0))):
        with pytest.raises(DisagreementError, match="nothing of it was applied") as raised:
            barriers.batch(queued[0], heads(*queued))
        assert what in raised.value.reason and {each.worker for each in raised.value.pushes} == {0, 1}
    assert what in barriers.refusal(2, pushed(2, 3).push), "a third one that comes later is told"
    assert barriers.refusal(2, pushed(2, 3, run=8).push) == ""
    assert barriers.refusal(2, pushed(2, 1).push) == "", "it is part of no barrier"


def test_weights_and_whole_records_are_not_set_in_one_barrier() -> None:
    """Both assign, and have values of different lengths."""
    some = [pushed(0, assign=True), pushed(1, assign=True, records=True)]
    with pytest.raises(DisagreementError, match=r"sets weights, that of worker 1 .* sets whole records"):
        batch(*some)


def test_of_learning_rates_the_first_that_differs_is_named() -> None:
    rates = ({1: 0.1, 4: 0.5, 6: 1.0}, {1: 0.1, 4: 0.25, 6: 2.0})
    with pytest.raises(DisagreementError) as raised:
        batch(pushed(0, rates=rates[0]), pushed(1, rates=rates[1]))
    assert "learning rate of table 4 of worker 0 (its push 3) is 0.5, that of worker 1 (its push 3) is 0.25" in str(
        raised.value
    )
    assert "table 1 " not in str(raised.value) and "table 6" not in str(raised.value)
    assert batch(pushed(0, rates=rates[0]), pushed(1, rates=rates[0])) == [0, 1]


def test_only_so_many_broken_runs_are_remembered_and_those_the_newest() -> None:
    barriers = Barriers()
    for run in range(1, BROKEN_RUNS_MAX + 3):
        with pytest.raises(DisagreementError):
            barriers.batch(pushed(0, run=run), heads(pushed(0, run=run), pushed(1, run=run, assign=True)))
    told = [bool(barriers.refusal(0, pushed(0, run=run).push)) for run in (1, 2, 3, BROKEN_RUNS_MAX + 2)]
    assert told == [False, False, True, True]


# ------------------------------------------------------------------ what a shard takes
def rows(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("section", "count", "fits"),
    [
        (Section([0, 1], [1, 2]), 3, True),
        (Section([0, 1], [0, 3]), 3, True),
        (Section([], []), 0, True),
        (Section([0, 1], [3]), 3, False),
        (Section([0], [1, 2]), 3, False),
        (Section([0, 1], [-1, 4]), 3, False),
        (Section([0, 1], [4, -1]), 3, False),
        (Section([0, 1], [1, 1]), 3, False),
        (Section([0, 1], [2, 2]), 3, False),
    ],
)
def test_a_section_has_a_count_for_each_table_and_as_many_rows_as_they_add_up_to(
    section: Section, count: int, fits: bool
) -> None:
    frames = [rows(*range(count))]
    if fits:
        (found,) = sections_of([section], frames, values=False)
        assert found.rows.tolist() == list(range(count)) and found.counts.tolist() == section.counts
    else:
        with pytest.raises(ValueError, match="section 0: "):
            sections_of([section], frames, values=False)


@pytest.mark.parametrize(("values", "frames", "fits"), [
    (False, 1, True), (False, 2, False), (False, 0, False), (True, 2, True), (True, 1, False), (True, 4, False),
])  # fmt: skip
def test_a_section_has_row_ids_and_in_a_push_values(values: bool, frames: int, fits: bool) -> None:
    given = [rows(5), np.zeros(4, np.float32), rows(5), np.zeros(4, np.float32)][:frames]
    if fits:
        assert len(sections_of([Section([0], [1])], given, values)) == 1
    else:
        with pytest.raises(ValueError, match="1 sections need"):
            sections_of([Section([0], [1])], given, values)


# ------------------------------------------------------------------ learning rates
@pytest.mark.parametrize(
    ("optimizer", "rate", "why"),
    [
        (OptimizerSpec("sgd", (0.1,)), 0.0, ""),
        (OptimizerSpec("sgd", (0.1,)), -0.5, "expected a finite number of at least 0"),
        (OptimizerSpec("sgd", (0.1,)), float("nan"), "expected a finite number of at least 0"),
        (OptimizerSpec("sgd", (0.1,)), float("inf"), "expected a finite number of at least 0"),
        (OptimizerSpec("sgd", (0.1,)), 1e300, "expected a finite number of at least 0"),
        (OptimizerSpec("sgd", (0.1,)), 3.4e38, ""),
        (OptimizerSpec("ftrl", (0.1, 1.0, 0.0, 0.0)), 0.0, "expected a finite number above 0"),
        (OptimizerSpec("ftrl", (0.1, 1.0, 0.0, 0.0)), 1e-60, "expected a finite number above 0"),
        (OptimizerSpec("ftrl", (0.1, 1.0, 0.0, 0.0)), 0.5, ""),
        (OptimizerSpec("ftrl", (0.1, 1.0, 0.0, 0.0)), -0.5, "expected a finite number above 0"),
        (OptimizerSpec("sgd", (0.1,), 0.5, True), 1.5, ""),
        (OptimizerSpec("sgd", (0.1,), 0.5, True), 2.0, "times the decoupled weight decay 0.5: expected less than 1"),
        (OptimizerSpec("sgd", (0.1,), 0.5, True), 0.25, ""),
        (OptimizerSpec("sgd", (0.1,), 0.5, False), 2.0, ""),
    ],
)
def test_a_learning_rate_with_which_no_step_can_be_taken_is_refused(
    optimizer: OptimizerSpec, rate: float, why: str
) -> None:
    found = optimizer.rate_error(rate)
    assert why in found and bool(found) == bool(why)

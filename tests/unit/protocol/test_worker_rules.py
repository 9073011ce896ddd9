"""Heartbeats of workers and tools, one rule at a time: who is answered, which life counts, what is told again."""

from typing import Any

import pytest
from parts import Parts, worker

from ecrec.protocol import messages as m
from ecrec.protocol import workers as workers_module
from ecrec.protocol.announcer import forget_ms
from ecrec.protocol.checkpoints import Checkpoints
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.context import HISTORY_MAX, differences
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import (
    SHARD,
    TOOL,
    WORKER,
    Address,
    Dataset,
    Fenced,
    HeldLease,
    Origin,
    WorkerCensus,
    WorkerStatus,
)
from ecrec.protocol.runs import Runs
from ecrec.protocol.state import Claim, DatasetState, Fence
from ecrec.protocol.workers import CLAIMS_MAX, Workers

TIMEOUT_MS = ProtocolConfig().heartbeat_timeout_ms
DATA = Dataset("d", 100, 100, 10)


class Scheduler(Parts):
    """Of cluster "ours", which no worker has been heard of yet."""

    def __init__(self, generation: int = 0, groups: int = 1) -> None:
        super().__init__(n=3, groups=groups)
        self.state.cluster, self.state.generation = "ours", generation
        self.leases = Leases(self.context, self.announcer)
        self.runs = Runs(self.context)
        self.initial = InitialValues(self.context, self.announcer, self.leases)
        checkpoints = Checkpoints(self.context, self.members, self.announcer, self.leases, self.initial)
        self.workers = Workers(self.context, self.leases, self.runs, self.initial, checkpoints)

    def beats(self, source: Address, process: str = "", **more: Any) -> bool:
        more.setdefault("origin", Origin("ours", self.state.generation, 1))
        views = more.pop("views", [1])
        status = WorkerStatus(process or f"w{source.id}", views, {}, **more)
        return self.workers.on_status(source, status)

    def begins(self, number: int, process: str = "") -> Address:
        """A process of a worker asks for its epoch, and uses it."""
        assert self.beats(worker(number, 0), process)
        address = worker(number, self.workers.clients[WORKER, number].epoch)
        assert self.beats(address, process)
        return address

    def fenced(self) -> list[str]:
        return [message.reason for message in self.sent() if isinstance(message, Fenced)]


def test_a_worker_that_says_that_it_ends_is_sent_nothing_and_its_splits_are_given_on() -> None:
    scheduler = Scheduler()
    one, other = scheduler.begins(0), scheduler.begins(1)
    scheduler.leases.on_lease_split(one, m.LeaseSplit(1, DATA, 0))
    assert not scheduler.beats(one, leaves=True)
    assert scheduler.workers.clients.keys() == {(WORKER, 1)}
    assert [(fence.worker, fence.epoch) for fence in scheduler.leases.state.fences] == [(0, 1)]
    assert not scheduler.beats(other, leaves=True) and not scheduler.workers.clients
    assert len(scheduler.leases.state.fences) == 1, "it held none"


# ------------------------------------------------------------------ who is answered
@pytest.mark.parametrize(
    ("source", "is_answered", "is_told"),
    [
        (worker(0, 0), True, False),
        (worker(m.WORKERS_MAX - 1, 0), True, False),
        (worker(m.WORKERS_MAX, 0), False, True),
        (worker(-1, 0), False, True),
        (Address(TOOL, 0, 0), True, False),
        (Address(TOOL, m.WORKERS_MAX + 7, 0), True, False),
        (Address(SHARD, 0, 1), False, False),
    ],
)
def test_workers_have_numbers_and_tools_have_any(source: Address, is_answered: bool, is_told: bool) -> None:
    scheduler = Scheduler()
    assert scheduler.beats(source) == is_answered
    assert bool(scheduler.fenced()) == is_told
    assert scheduler.workers.clients.keys() == ({(source.role, source.id)} if is_answered else set())


@pytest.mark.parametrize(
    ("origin", "is_answered"), [(Origin(), True), (Origin("ours"), True), (Origin("theirs"), False)]
)
def test_a_worker_of_another_cluster_is_not_answered(origin: Origin, is_answered: bool) -> None:
    scheduler = Scheduler()
    assert scheduler.beats(worker(0, 0), origin=origin) == is_answered and not scheduler.fenced()


def test_so_many_are_heard_and_no_more_and_those_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "CLIENTS_MAX", 2)
    scheduler = Scheduler()
    assert [scheduler.beats(Address(TOOL, i, 0)) for i in (0, 1, 2, 1)] == [True, True, False, True]


def test_who_is_silent_for_long_is_forgotten() -> None:
    scheduler = Scheduler()
    scheduler.beats(Address(TOOL, 0, 0))
    scheduler.context.now_ms = forget_ms(scheduler.context.config)
    scheduler.workers.on_tick(0.0)
    assert scheduler.workers.clients
    scheduler.context.now_ms += 1.0
    scheduler.workers.on_tick(0.0)
    assert not scheduler.workers.clients


def test_what_a_client_tells_is_kept_and_views_of_groups_that_are_not_there_are_not() -> None:
    scheduler = Scheduler(groups=2)
    scheduler.beats(Address(TOOL, 0, 0), views=[7])
    client = scheduler.workers.clients[TOOL, 0]
    assert client.views == [7, -1]
    client.sent_views = [5, 5]
    scheduler.beats(Address(TOOL, 0, 0), views=[7, 8, 9])
    assert client.views == [7, 8] and scheduler.workers.clients[TOOL, 0] is client
    scheduler.beats(Address(TOOL, 0, 1))
    assert scheduler.workers.clients[TOOL, 0] is not client, "another life is told all views again"


def test_what_a_worker_does_not_hear_counts_while_it_is_heard_itself() -> None:
    scheduler = Scheduler(groups=2)
    address = scheduler.begins(4)
    scheduler.beats(address, unheard={2: 900, 5: 400, 6: 300, 99: 1})
    scheduler.beats(Address(TOOL, 0, 0), unheard={2: 900})
    scheduler.context.now_ms = TIMEOUT_MS
    assert scheduler.workers.unheard() == {2: {4: 900}, 5: {4: 400}}, "of shards 0 to 5; tools are no workers"
    scheduler.context.now_ms += 1.0
    assert scheduler.workers.unheard() == {}


# ------------------------------------------------------------------ which life counts
def test_a_process_gets_one_epoch_and_a_new_one_the_next() -> None:
    scheduler = Scheduler()
    for _ in range(2):
        assert scheduler.beats(worker(0, 0), "one") and scheduler.workers.clients[WORKER, 0].epoch == 1
    assert scheduler.beats(worker(0, 0), "two") and scheduler.workers.clients[WORKER, 0].epoch == 2
    assert scheduler.state.workers == {}, "none of them has named its epoch"
    assert scheduler.beats(worker(0, 1), "one") and scheduler.state.workers == {0: (1, "one")}
    assert scheduler.beats(worker(0, 2), "two") and scheduler.state.workers == {0: (2, "two")}
    for epoch in (0, 1):
        assert not scheduler.beats(worker(0, epoch), "one")
        assert scheduler.fenced() == ["worker 0 has been started again (epoch 2)"]


def test_a_process_that_names_an_epoch_that_it_was_not_given_is_no_life_of_a_worker() -> None:
    scheduler = Scheduler()
    scheduler.begins(0, "one")
    assert not scheduler.beats(worker(0, 7), "stranger") and scheduler.fenced()
    assert scheduler.state.workers == {0: (1, "one")}
    assert scheduler.state.claims == {0: [(1, "one")]}


def test_a_life_that_was_fenced_is_told_so() -> None:
    scheduler = Scheduler()
    address = scheduler.begins(0)
    scheduler.state.leases.fenced[0] = 1
    assert not scheduler.beats(address)
    (reason,) = scheduler.fenced()
    assert "epoch 1 of worker 0 is over, and its splits are another's" in reason


def test_the_process_that_lives_is_remembered_however_many_say_that_they_do() -> None:
    scheduler = Scheduler()
    address = scheduler.begins(0, "living")
    for i in range(3 * CLAIMS_MAX):
        assert scheduler.beats(worker(0, 0), f"late {i}")
        assert scheduler.workers.clients[WORKER, 0].epoch == 2 + i, "no epoch is given twice"
    claims = scheduler.state.claims[0]
    assert len(claims) == CLAIMS_MAX and claims[0] == (1, "living") and claims == sorted(set(claims))
    assert scheduler.beats(address, "living") and scheduler.state.workers[0] == (1, "living")


def test_a_life_that_is_followed_by_another_is_over_for_leases_runs_and_first_values() -> None:
    scheduler = Scheduler()
    first, second = scheduler.begins(0, "one"), scheduler.begins(1)
    scheduler.leases.on_lease_split(first, m.LeaseSplit(1, DATA, 0))
    for address in (first, second):
        scheduler.runs.on_join(address, m.JoinRun(2, 2))
    scheduler.beats(worker(0, 0), "two")
    assert not (scheduler.state.leases.fences or scheduler.state.runs.runs[0].over)
    scheduler.beats(worker(0, 2), "two")
    assert [(fence.worker, fence.epoch, fence.untold) for fence in scheduler.state.leases.fences] == [(0, 1, False)]
    assert "worker 0 (epoch 1) has been started again" in scheduler.state.runs.runs[0].over
    scheduler.workers.confirm(Address(TOOL, 0, 3))
    assert scheduler.state.workers[0] == (2, "two")
    scheduler = Scheduler()
    scheduler.begins(0, "one")
    scheduler.state.initial.fresh, scheduler.state.initial.claims = [0], {0: Claim(0, 1)}
    scheduler.begins(0, "two")
    assert scheduler.state.initial.claims[0].views


@pytest.mark.parametrize(
    ("epoch", "generation", "may", "is_told"),
    [
        (3, 0, True, False),
        (2, 0, False, True),
        (4, 0, False, True),
        (4, 1, False, False),  # the state was made again: nobody may have known this life
        (3, 1, True, False),
        (2, 1, False, True),
        (0, 0, False, True),
    ],
)
def test_a_request_counts_if_it_is_of_the_workers_present_life(
    epoch: int, generation: int, may: bool, is_told: bool
) -> None:
    scheduler = Scheduler(generation)
    scheduler.state.workers[0] = (3, "w0")
    assert scheduler.context.is_of_worker(worker(0, epoch), "do this") == may
    assert bool(scheduler.fenced()) == is_told
    assert not scheduler.context.is_of_worker(Address(TOOL, 0, epoch), "do this")
    assert not scheduler.context.is_of_worker(worker(1, 0), "do this"), "a worker that nobody knows has no life 0"
    scheduler.state.leases.fenced[0] = 3
    assert not scheduler.context.is_of_worker(worker(0, 3), "do this")


def test_an_epoch_one_above_the_known_one_is_of_a_life_that_is_not_known_either() -> None:
    scheduler = Scheduler(generation=1)
    scheduler.state.workers[0] = (3, "w0")
    for epoch in (4, 5):
        assert not scheduler.context.is_of_worker(worker(0, epoch), "do this") and not scheduler.fenced()


# ------------------------------------------------------------------ a state that was made again
OLD = Origin("ours", 1, 9)


def adopted() -> Scheduler:
    """Worker 0 was there before, in its second life."""
    scheduler = Scheduler(generation=2)
    scheduler.state.workers[0] = (2, "w0")
    scheduler.state.claims[0] = [(2, "w0")]
    scheduler.state.leases.datasets = [DatasetState(DATA)]
    scheduler.leases.adopted()
    return scheduler


def census(process: str = "w0", origin: Origin = OLD, *held: HeldLease, generation: int = 2) -> WorkerCensus:
    return WorkerCensus(process, origin, 0, 5, list(held), generation)


def test_a_worker_of_the_history_before_is_asked_for_its_splits_until_it_has_told() -> None:
    scheduler = adopted()
    for _ in range(2):
        assert not scheduler.beats(worker(0, 2), origin=OLD)
        assert scheduler.sent() == [m.Census(2)]
    scheduler.workers.on_census(worker(0, 2), census())
    assert scheduler.state.leases.unheard == []
    assert scheduler.beats(worker(0, 2), origin=OLD, views=[7])
    assert scheduler.workers.clients[WORKER, 0].views == [-1], "the views that it knows are of the history before"
    assert scheduler.beats(worker(0, 2), views=[7])
    assert scheduler.workers.clients[WORKER, 0].views == [7]


def test_tools_and_processes_without_an_epoch_are_not_asked_for_splits() -> None:
    scheduler = adopted()
    assert scheduler.beats(Address(TOOL, 3, 1), origin=OLD, views=[7])
    assert scheduler.workers.clients[TOOL, 3].views == [-1]
    assert scheduler.beats(worker(1, 0), origin=OLD)
    assert scheduler.sent() == []


@pytest.mark.parametrize(
    ("epoch", "process", "known", "is_asked"),
    [
        (2, "w0", (2, "w0"), True),
        (3, "w0", (3, "w0"), True),  # nobody knew that life
        (1, "w0", (2, "w0"), False),
        (2, "other", (2, "w0"), False),
    ],
)
def test_a_life_that_nobody_knew_counts_and_an_earlier_one_does_not(
    epoch: int, process: str, known: tuple[int, str], is_asked: bool
) -> None:
    scheduler = adopted()
    scheduler.beats(worker(0, epoch), process, origin=OLD)
    assert scheduler.state.workers[0] == known
    assert (m.Census(2) in scheduler.sent()) == is_asked


def test_a_life_of_which_only_the_epoch_was_known_is_the_process_that_says_so() -> None:
    scheduler = adopted()
    scheduler.state.workers[0] = (2, "")
    scheduler.beats(worker(0, 2), "it", origin=OLD)
    assert scheduler.state.workers[0] == (2, "it") and scheduler.state.claims[0] == [(2, "it")]


@pytest.mark.parametrize(
    ("source", "told", "is_taken"),
    [
        (worker(0, 2), census(), True),
        (worker(0, 1), census(), False),
        (worker(0, 2), census("other"), False),
        (worker(0, 2), census(origin=Origin("ours", 2, 9)), False),
        (worker(0, 2), census(origin=Origin("theirs", 1, 9)), False),
        (worker(1, 2), census(), False),
    ],
)
def test_only_the_present_life_tells_its_splits(source: Address, told: WorkerCensus, is_taken: bool) -> None:
    scheduler = adopted()
    scheduler.workers.on_census(source, told)
    assert (scheduler.state.leases.unheard == []) == is_taken
    assert (scheduler.state.leases.asked == {0: (2, 5)}) == is_taken


def test_splits_are_told_once_and_not_before_those_of_the_dead_are_given_back() -> None:
    scheduler = adopted()
    scheduler.state.leases.fences = [Fence(9, 1, [1])]
    held = HeldLease(DATA, 1, 0, 10, 1)
    scheduler.workers.on_census(worker(0, 2), census("w0", OLD, held))
    assert scheduler.leases.held(0, 2) == []
    scheduler.state.leases.fences = []
    scheduler.workers.on_census(worker(0, 2), census("w0", OLD, held))
    assert [lease.number for lease in scheduler.leases.held(0, 2)] == [1]
    scheduler.workers.on_census(worker(0, 2), census("w0", OLD, HeldLease(DATA, 2, 10, 20, 2)))
    assert [lease.number for lease in scheduler.leases.held(0, 2)] == [1]


# ------------------------------------------------------------------ what parts share
def test_addresses_of_shards_that_are_not_there_have_no_place() -> None:
    for groups in (1, 2):
        context = Scheduler(groups=groups).context
        found = [context.place_of(Address(SHARD, shard, 1)) for shard in (-1, 0, 3 * groups - 1, 3 * groups)]
        assert [some and some[:2] for some in found] == [None, (0, 0), (groups - 1, 2), None]


def test_the_history_is_bounded() -> None:
    context = Scheduler().context
    for epoch in range(HISTORY_MAX + 3):
        context.remember("up", 0, 1, epoch)
    assert len(context.state.history) == HISTORY_MAX and context.state.history[0].epoch == 3


def test_only_what_differs_is_named() -> None:
    assert differences(ProtocolConfig(), ProtocolConfig(heartbeat_ms=7)) == "heartbeat_ms is 100, not 7"

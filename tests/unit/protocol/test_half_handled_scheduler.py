"""The scheduler and workers: whatever is raised at an event has changed nothing, or ends the process."""

import copy
from functools import cache, partial
from typing import Any

import pytest
from cluster import Cluster, table, written
from hypothesis import given, settings
from hypothesis import strategies as st
from injection import Injection, held, places
from test_wire import frames_of, values
from workers import add_worker, do, push, start_run

from ecrec.protocol import invariants
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Connection,
    Disconnected,
    Effect,
    Event,
    Failed,
    HalfHandledError,
    Received,
    Stop,
    Tick,
)
from ecrec.protocol.scheduler import SchedulerMachine

SPEC = table(rows=60, code="3+2")
DENSE = table("dense", rows=6, code="1+1")
DATA = m.Dataset("d", 40, 40, 4)
PLACES_MAX = 30
"""Places of each event in which an exception is injected, from the first line to the last."""
PASSING = frozenset(
    {
        "now_ms",
        "effects",
        "_owed",
        "_acting",
        "is_acting",
        "_now_ms",
        "_asked_ms",
        "quiet_ms",
        "_ticked_ms",
        "serial_before",
    }
)
"""What moves with the time, and what an event leaves to the one that is raised from it."""


class Recorder(Cluster):
    """Keeps the scheduler and the workers as they were before the first event of each kind."""

    def __init__(self, n: int) -> None:
        self.cases: dict[str, tuple[Any, Event, float]] = {}
        super().__init__(n, ProtocolConfig(lease_timeout_ms=3000), cluster="ours")

    def give(self, name: str, event: Event) -> None:
        machine = self.machines.get(name)
        if isinstance(machine, SchedulerMachine | ClientMachine):
            kind = f"{'scheduler' if name == 'scheduler' else 'worker'}: {kind_of(event)}"
            if kind not in self.cases:
                self.cases[kind] = copy.deepcopy(machine), event, self.now_ms
        super().give(name, event)


def kind_of(event: Event) -> str:
    if not isinstance(event, Received):
        return type(event).__name__
    message = event.message
    if isinstance(message, m.Views):
        return f"view {type(message.views[0]).__name__}"
    name = type(message).__name__
    if isinstance(message, m.ShardStatus) and message.reports:
        return f"{name} with reports"
    return name


@cache
def cases() -> dict[str, tuple[Any, Event, float]]:
    """Tables, leases, a run, first values, a death, and a scheduler that adopts, as the scheduler and workers took
    them."""
    run = Recorder(5)
    run.create(SPEC)
    run.create(DENSE)
    run.push(SPEC, {row: 1.0 for row in range(SPEC.rows)})
    run.read(SPEC)
    first, second = run.client, add_worker(run, 1)
    do(run, first, first.initialise(1, claim=True))
    run.settle_down(lambda: first.initial(1) == m.WRITE)
    push(run, first, DENSE, dict.fromkeys(range(DENSE.rows), 1.0), assign=True)
    run.settle_down(lambda: first.durable)
    do(run, first, first.initialised(1))
    run.settle_down(lambda: first.initial(1) == m.WRITTEN)
    for worker in (first, second):
        do(run, worker, worker.lease(DATA))
    run.settle_down(lambda: bool(first.leasing.leases and second.leasing.leases))
    start_run(run, first, second)
    do(run, second, second.leave_run())
    run.settle_down(lambda: not second.runs.leaving)
    run.where[m.Address(m.TOOL, 1, 1)] = "tool"
    run.give("scheduler", Received(m.Address(m.TOOL, 1, 1), m.ClusterQuery(1)))
    run.give("scheduler", Received(m.Address(m.TOOL, 1, 1), m.StoryQuery(1)))
    run.give("scheduler", Received(m.Address(m.TOOL, 1, 1), m.Save(2, "sim://storage", 1.0, state=b"a user's own")))
    for _ in range(20):
        run.tick()
        run.run()
        files, run.files = run.files, []
        for name, effect in files:
            run.give(name, written(effect))
    run.give("scheduler", Received(m.Address(m.TOOL, 1, 1), m.Restore(3, [], 5, 1)))
    run.give("scheduler", Connection(run.shard(0).address, up=False))
    run.give("scheduler", Connection(run.shard(0).address, up=True))
    run.kill(2)
    run.declared(2)
    run.replace(2)
    run.drain()
    for _ in range(60):
        run.tick()
        run.run()
    run.machines["scheduler"] = run.scheduler = SchedulerMachine(5, 1, run.config, None, "new", True)
    run.settle_down(lambda: run.scheduler.state.generation == 1)
    for _ in range(60):
        run.tick()
        run.run()
    run.give("scheduler", Received(run.shard(3).address, m.Leave(run.shard(3).process)))
    run.give("scheduler", Received(run.shard(3).address, m.Handover(run.shard(3).process, 1)))
    run.give("scheduler", Received(m.Address(m.TOOL, 1, 1), m.Drain(4, 3, run.shard(3).address.epoch)))
    failing = run.shard(1)
    run.give("scheduler", Received(failing.address, m.Unfit(failing.process, "no memory")))
    assert not run.failed
    return run.cases


KINDS = (
    "scheduler: Tick", "scheduler: Disconnected", "scheduler: Connection", "scheduler: Register",
    "scheduler: ShardStatus", "scheduler: ShardStatus with reports", "scheduler: WorkerStatus",
    "scheduler: CreateTable", "scheduler: LeaseSplit", "scheduler: InitialiseTable", "scheduler: JoinRun",
    "scheduler: LeaveRun", "scheduler: ClusterQuery", "scheduler: StoryQuery", "scheduler: Unfit", "scheduler: Leave",
    "scheduler: Handover", "scheduler: Drain", "scheduler: FileWritten",
    "scheduler: ShardCensus", "scheduler: WorkerCensus", "scheduler: Save", "scheduler: Restore",
    "worker: Tick", "worker: view FullView", "worker: view ShardDown", "worker: view Settle", "worker: view ShardUp",
    "worker: view TableAdded", "worker: Welcome", "worker: PushAck", "worker: Rows", "worker: TableReady",
    "worker: Leased", "worker: TableInitial", "worker: RunJoined", "worker: RunOver", "worker: Census",
)  # fmt: skip


def test_all_that_a_scheduler_takes_is_among_the_cases() -> None:
    machine = SchedulerMachine(1, 1, ProtocolConfig(), None)
    there = {type(event.message) for _, event, _ in cases().values() if isinstance(event, Received)}
    assert set(machine._handlers) <= there
    assert {kind for kind in cases() if kind.startswith("scheduler")} == {k for k in KINDS if k.startswith("scheduler")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_the_middle_of_an_event_changes_nothing_or_ends_the_process(kind: str) -> None:
    kept, event, now_ms = cases()[kind]
    for place in places(partial(copy.deepcopy(kept).handle, event, now_ms), PLACES_MAX):
        for error in (ValueError("injected"), RuntimeError("injected")):
            machine = copy.deepcopy(kept)
            before = held(machine, PASSING)
            injection = Injection(place, error)
            try:
                injection.during(partial(machine.handle, event, now_ms))
            except HalfHandledError as half:
                assert "injected" in str(half)
                assert isinstance(machine, SchedulerMachine) or "injected" in machine.failed
                continue
            except (ValueError, RuntimeError):
                assert held(machine, PASSING) == before, f"{injection.where}: it was refused, and something moved"
                invariants.check(machine)
                continue
            raise AssertionError(f"{injection.where}: the error was swallowed")


def test_a_broken_worker_does_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = copy.deepcopy(cases()["worker: view ShardDown"][0])
    monkeypatch.setattr(machine, "_on_tick", lambda now_ms: 1 / 0)
    with pytest.raises(HalfHandledError, match="in the middle of a Tick: ZeroDivisionError"):
        machine.handle(Tick(), 1e6)
    assert machine.failed_kind == "broken"
    assert machine.handle(Tick(), 2e6) == []


def test_what_follows_from_a_restart_outlives_a_first_message_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The members must be connected to, whatever a worker says first."""
    cluster = Cluster(5)
    machine = SchedulerMachine(5, 1, cluster.config, cluster.state)

    def raises(*arguments: Any) -> None:
        raise ValueError("no")

    monkeypatch.setitem(machine._handlers, m.ClusterQuery, raises)
    with pytest.raises(ValueError, match="no"):
        machine.handle(Received(m.Address(m.WORKER, 0, 1), m.ClusterQuery(1)), cluster.now_ms)
    effects = machine.handle(Tick(), cluster.now_ms)
    assert [type(effect) for effect in effects[:5]] == [Connect] * 5


# ---------------------------------------------------------------------- with whatever is in a message
ADDRESSES = st.builds(
    m.Address,
    st.sampled_from([m.SHARD, m.WORKER, m.TOOL]),
    st.sampled_from([-1, 0, 1, 2, 4, 5, 70_000]),
    st.sampled_from([0, 1, 2, 2**62, 2**63 - 1]),
)
MOMENTS = ("scheduler: LeaveRun", "scheduler: ShardStatus with reports", "scheduler: ShardCensus", "scheduler: Unfit")
"""A scheduler with leases and a run, one in a settlement, one that adopts, and one that has."""


def mutated(data: Any, message: Any) -> Any:
    """The message with one or two of its fields replaced by any value of their types."""
    kind = type(message)
    other = data.draw(values(kind))
    names = data.draw(st.sets(st.sampled_from(kind.__struct_fields__), min_size=1, max_size=2))
    fields = {name: getattr(other if name in names else message, name) for name in kind.__struct_fields__}
    return kind(**fields)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("scheduler") and "Status with" not in kind])
def test_hostile_fields_change_nothing_or_leave_a_state_that_can_be(kind: str) -> None:
    """Of whomever and in whatever state: what is refused changed nothing, and nothing ends the scheduler."""
    _, event, _ = cases()[kind]
    if not isinstance(event, Received):
        return

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def check(data: Any) -> None:
        kept, _, now_ms = cases()[data.draw(st.sampled_from(MOMENTS))]
        machine = copy.deepcopy(kept)
        machine.handle(Tick(), now_ms)
        for _ in range(3):
            if data.draw(st.booleans()):
                message = mutated(data, event.message)
            else:
                message = data.draw(values(type(event.message)))
            source = data.draw(st.just(event.source) | ADDRESSES)
            frames = [data.draw(st.sampled_from([b"", b"junk"])) for _ in frames_of(message)]
            before = held(machine, PASSING)
            try:
                effects = machine.handle(Received(source, message, frames), now_ms)
            except (ValueError, IndexError, OverflowError, TypeError, KeyError):
                assert held(machine, PASSING) == before
                continue
            if stops(effects):
                assert source.role == m.SHARD, "a client's message ended it"
                return
            invariants.check(machine)
            machine.handle(Tick(), now_ms)
            invariants.check(machine)

    check()


def stops(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Stop | Failed) for effect in effects)


def test_a_disconnection_of_whatever_ends_nothing() -> None:
    machine = copy.deepcopy(cases()["scheduler: Unfit"][0])
    for number in (-1, 0, 5, 70_000):
        for event in (Disconnected(m.Address(m.SHARD, number, 1)), Connection(m.Address(m.SHARD, number, 7), False)):
            assert not stops(machine.handle(event, 1e6))

"""Whatever is raised in the middle of an event changed nothing, or ends the process: nothing goes on half done."""

import sys
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import Cluster, table, written
from doubts import link_all, pass_time
from injection import Injection, held, places

from ecrec._native import Capture
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Event, HalfHandledError, Note, Received, Tick, ToldToEnd
from ecrec.protocol.shard import ShardMachine

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

from targets import _shard_fingerprint as fingerprint

SPEC = table(rows=60, code="3+2")
SURVIVOR, DEAD, LEAVER = 3, 2, 2
SLOW = ProtocolConfig(succession_bytes=64, succession_left_bytes_max=64, window_interval_ms=0.0)
"""A succession takes some messages."""
HEARD = frozenset({
    "now_ms", "awake_ms", "worked_ms", "heard_ms", "heard_awake_ms", "pings", "broken", "status_due", "effects",
    "is_acting",
})  # fmt: skip
"""What a message that is refused changes too: its sender was heard."""
PLACES_MAX = 40
"""Places of each event in which an exception is injected, from the first line to the last."""


class Recorder(Cluster):
    """Keeps what each process was told."""

    def __init__(self, config: ProtocolConfig | None = None) -> None:
        self.events: dict[str, list[tuple[Event, float]]] = {}
        super().__init__(5, config)

    def give(self, name: str, event: Event) -> None:
        self.events.setdefault(name, []).append((event, self.now_ms))
        super().give(name, event)


class Case(NamedTuple):
    """The first event of its kind that a shard's process was given, and those before it."""

    process: str
    wanted: int
    before: tuple[tuple[Event, float], ...]
    event: Event
    now_ms: float

    def machine(self) -> ShardMachine:
        machine = ShardMachine(self.process, f"inproc://{self.process}", self.wanted)
        for event, now_ms in self.before:
            machine.handle(event, now_ms)
        return machine


@cache
def cases() -> dict[str, Case]:
    """By kind of event: a death, a recovery, pushes, pulls and a scrub, as a survivor and the replacement took them."""
    run = Recorder()
    run.create(SPEC)
    run.push(SPEC, {row: 1.0 + row for row in range(SPEC.rows)})
    run.run()
    run.pull(SPEC, range(SPEC.rows))
    run.drain()
    tool = m.Address(m.TOOL, 1, 1)
    run.where[tool] = "tool"
    run.give(run.shards[SURVIVOR], Received(tool, m.Scrub(1, 0, 0, 10)))
    run.drain()
    run.kill(DEAD)
    run.replace(DEAD)
    run.push(SPEC, {row: 2.0 for row in range(0, SPEC.rows, 2)})
    run.drain()
    run.tick(1000.0)
    tell = m.Address(m.SCHEDULER, 0, 0)
    run.give(run.shards[SURVIVOR], Received(tell, m.Probe([0, 1])))
    run.give(run.shards[SURVIVOR], Received(tell, m.StateCopy(run.shard(SURVIVOR).context.origin), (b"copy",)))
    run.give(run.shards[SURVIVOR], Received(run.client.address, m.Flush(1)))
    run.drain()
    return firsts(run, {run.shards[shard]: shard for shard in (SURVIVOR, DEAD, 0, 4)})


def firsts(run: Recorder, processes: dict[str, int]) -> dict[str, Case]:
    """The first event of each kind that any of the processes was given; what each wanted to be."""
    found: dict[str, Case] = {}
    for process, wanted in processes.items():
        events = run.events[process]
        for at, (event, now_ms) in enumerate(events):
            found.setdefault(kind_of(event), Case(process, wanted, tuple(events[:at]), event, now_ms))
    return found


@cache
def rare_cases() -> dict[str, Case]:
    """A checkpoint, a reader of changes, a damaged parity row, and a shard that hands its place over: as the shard that
    leaves, its successor, and a member took them."""
    run = Recorder(SLOW)
    run.create(SPEC)
    run.push(SPEC, {row: 1.0 + row for row in range(SPEC.rows)})
    run.drain()
    link_all(run)
    spare = run.start(-1)
    pass_time(run, 200.0)
    tool, tell = m.Address(m.TOOL, 1, 1), m.Address(m.SCHEDULER, 0, 0)
    run.where[tool] = "tool"
    leaver, member = run.shards[LEAVER], run.shards[SURVIVOR]
    run.give(leaver, Received(tool, m.AskChanges(1, 77, 0, 0)))
    run.give("scheduler", Received(tool, m.Save(2, "sim://storage", 1.0)))
    for _ in range(3):
        pass_time(run, 100.0)
        files, run.files = run.files, []
        for name, effect in files:
            run.give(name, written(effect))
    run.push(SPEC, {0: 1.0, 7: 2.0})
    run.drain()
    leading, damaged = (run.shards[shard] for shard in run.shard(0).placement.classes[0].parity)
    store = run.machines[damaged].store
    keys, records = Capture(store, 0, 0, store.class_size(0)).take()
    records[5] ^= 4
    store.put(keys, records)
    run.give(leading, Received(tool, m.Scrub(3, 0, 0, 10, repair=True)))
    run.give(member, Received(tool, m.StoryQuery(4)))
    peer, view = run.shard(0), run.shard(0).view  # words on a repair that ended meanwhile
    run.give(member, Received(peer.address, m.RepairWanted(view, 9, 0)))
    run.give(member, Received(peer.address, m.RepairWorking(view, 9, 0, True)))
    run.drain()
    run.give(leaver, Received(tell, m.ToldToLeave(leaver)))
    pushed = 0
    while leaver not in run.stopped:
        run.tick()
        run.push(SPEC, {pushed % SPEC.rows: 1.0})
        pushed += 1
        run.run()
    for process in (leading, damaged):
        run.give(process, ToldToEnd())
        run.give(process, Received(tell, m.LeaveWaits("nobody else is there")))
        run.give(process, Received(tell, m.ToldToLeave(process, stays=True)))
    return firsts(run, {leaver: LEAVER, spare: -1, member: SURVIVOR, leading: SURVIVOR, damaged: 4})


def kind_of(event: Event) -> str:
    if not isinstance(event, Received):
        return type(event).__name__
    message = event.message
    return type(message.views[0]).__name__ if isinstance(message, m.Views) else type(message).__name__


KINDS = (
    "Tick", "FullView", "ShardDown", "Settle", "ShardUp", "ShardWhole", "TableAdded", "Window", "WindowAck", "Stable",
    "Join", "Reseed", "Repair", "CaptureParity", "Snap", "Marker", "Captured", "Repaired", "Hello", "Push", "Pull",
    "Scrub", "PrepareTable", "StateCopy", "Probe", "Ping", "Flush",
)  # fmt: skip


RARE_KINDS = (
    "AskChanges", "CheckpointAsked", "CheckpointCut", "CheckpointOver", "FileWritten", "Connection", "StoryQuery",
    "CorrectParity", "ParityCorrected", "RepairWanted", "RepairWorking", "ToldToLeave", "ToldToEnd", "LeaveWaits",
    "Knock", "Succession", "Succeed", "Copy", "CopyEnd", "Copied", "HaltNow", "Halt", "Halted", "Succeeded", "Fenced",
)  # fmt: skip


def everything(machine: ShardMachine) -> object:
    """All that must not have moved when an event was refused."""
    return fingerprint(machine), held(machine, without=HEARD)


def test_all_that_a_shard_takes_is_among_the_cases() -> None:
    machine = cases()["Tick"].machine()
    there = {
        type(case.event.message)
        for case in (*cases().values(), *rare_cases().values())
        if isinstance(case.event, Received)
    }
    assert {*machine._from_shards, *machine._from_clients} - there == set()


@pytest.mark.parametrize("kind", [*KINDS, *RARE_KINDS])
def test_an_error_in_the_middle_of_an_event_changes_nothing_or_ends_the_process(kind: str) -> None:
    case = rare_cases()[kind] if kind in RARE_KINDS else cases()[kind]
    counted = case.machine()
    for place in places(lambda: counted.handle(case.event, case.now_ms), PLACES_MAX):
        for error in (ValueError("injected"), RuntimeError("injected")):
            machine = case.machine()
            before = everything(machine)
            injection = Injection(place, error)
            try:
                effects = injection.during(partial(machine.handle, case.event, case.now_ms))
            except HalfHandledError as half:
                assert "injected" in str(half)
                continue
            except (ValueError, RuntimeError):
                assert everything(machine) == before, f"{injection.where}: it was refused, and something moved"
                continue
            # A refusal says so, of a successor its next word; the message that brought it is done all the same.
            said = [e for e in effects if "injected" in str(e)] or "injected" in machine.successor._refusal
            assert said, f"{injection.where}: the error was swallowed: {effects}"
            assert not any(isinstance(e, Note) and e.level == "info" for e in effects if "injected" in str(e))


def test_a_tick_that_raises_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = cases()["Tick"].machine()
    monkeypatch.setattr(machine.repairs, "on_tick", lambda: 1 / 0)
    machine.context.state = m.UP
    with pytest.raises(HalfHandledError, match="in the middle of a Tick: ZeroDivisionError"):
        machine.handle(Tick(), 1e6)

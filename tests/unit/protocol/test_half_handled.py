"""Whatever is raised in the middle of an event changed nothing, or ends the process: nothing goes on half done."""

import sys
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import Cluster, table
from injection import Injection, held, places

from ecrec.protocol import messages as m
from ecrec.protocol.events import Event, HalfHandledError, Note, Received, Tick
from ecrec.protocol.shard import ShardMachine

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

from targets import _shard_fingerprint as fingerprint

SPEC = table(rows=60, code="3+2")
SURVIVOR, DEAD = 3, 2
HEARD = frozenset({
    "now_ms", "awake_ms", "worked_ms", "heard_ms", "heard_awake_ms", "pings", "broken", "status_due", "effects",
    "is_acting",
})  # fmt: skip
"""What a message that is refused changes too: its sender was heard."""
PLACES_MAX = 40
"""Places of each event in which an exception is injected, from the first line to the last."""


class Recorder(Cluster):
    """Keeps what each process was told."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[Event, float]]] = {}
        super().__init__(5)

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
    found: dict[str, Case] = {}
    for shard in (SURVIVOR, DEAD, 0, 4):
        process = run.shards[shard]
        events = run.events[process]
        for at, (event, now_ms) in enumerate(events):
            found.setdefault(kind_of(event), Case(process, shard, tuple(events[:at]), event, now_ms))
    return found


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


def everything(machine: ShardMachine) -> object:
    """All that must not have moved when an event was refused."""
    return fingerprint(machine), held(machine, without=HEARD)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_the_middle_of_an_event_changes_nothing_or_ends_the_process(kind: str) -> None:
    case = cases()[kind]
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
            # A refusal says so; the message that brought it is done all the same.
            said = [e for e in effects if "injected" in str(e)]
            assert said, f"{injection.where}: the error was swallowed: {effects}"
            assert not any(isinstance(e, Note) and e.level == "info" for e in said)


def test_a_tick_that_raises_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = cases()["Tick"].machine()
    monkeypatch.setattr(machine.repairs, "on_tick", lambda: 1 / 0)
    machine.context.state = m.UP
    with pytest.raises(HalfHandledError, match="in the middle of a Tick: ZeroDivisionError"):
        machine.handle(Tick(), 1e6)

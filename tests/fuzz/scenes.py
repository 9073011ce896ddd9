"""Machines in the middle of things, for hostile input: one short run of a whole group, stopped at several moments.

A shard at a moment is made by giving a new machine the same events again; the scheduler and the client are copies.
"""

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "protocol"))

from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.events import Event, Received
from ecrec.protocol.shard import ShardMachine

MOMENTS = 6
SPEC = table(rows=60, code="3+2")
SURVIVOR, DEAD = 1, 2

SOURCES = (
    m.Address(m.WORKER, 0, 1),
    m.Address(m.WORKER, 77, 1),
    m.Address(m.TOOL, 5, 1),
    m.Address(m.SCHEDULER, 0, 0),
    *(m.Address(m.SHARD, shard, 1) for shard in range(5)),
    m.Address(m.SHARD, DEAD, 2),
    m.Address(m.SHARD, -1, 0),
    m.Address(m.SHARD, 99, 1),
    m.Address(m.WORKER, 0, 0),
)


class Scene(NamedTuple):
    """A machine at each of its moments, and what it was told in the run."""

    moments: tuple[Callable[[], Any], ...]
    told: tuple[Received, ...]


class _Recorder(Cluster):
    """Keeps what each process was told, and copies of the machines without rows."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[Event, float]]] = {}
        self.copies: dict[str, list[Any]] = {"scheduler": [], "worker-0": []}
        super().__init__(5)

    def give(self, name: str, event: Event) -> None:
        if name in self.copies:
            self.copies[name].append(copy.deepcopy(self.machines[name]))
        self.events.setdefault(name, []).append((event, self.now_ms))
        super().give(name, event)


@cache
def scenes() -> dict[str, Scene]:
    """Scenes by name: a shard that survives, one that replaces a dead one, the scheduler, a worker."""
    run = _Recorder()
    run.create(SPEC)
    steps = [{row: 0.5 * (row + step) for row in range(step, SPEC.rows, 3)} for step in range(5)]
    for step in steps[:2]:
        run.push(SPEC, step)
        run.run()
    run.pull(SPEC, range(0, SPEC.rows, 7), exact=False)
    run.push(SPEC, steps[2])
    run.deliver()
    run.kill(DEAD, keep=1)
    run.replace(DEAD)
    for step in steps[3:]:
        run.settle_down(lambda: run.client.can_push)
        run.push(SPEC, step)
    run.drain()
    return {
        "survivor": _shard(run, run.shards[SURVIVOR], SURVIVOR),
        "replacement": _shard(run, run.shards[DEAD], DEAD),
        "scheduler": _copied(run, "scheduler"),
        "client": _copied(run, "worker-0"),
    }


def _told(events: list[tuple[Event, float]]) -> tuple[Received, ...]:
    """What is told apart by its type and source, at most three times each."""
    seen: dict[Any, int] = {}
    told = []
    for event, _ in events:
        if isinstance(event, Received):
            kind = (type(event.message), event.source.role)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= 3:
                told.append(event)
    return tuple(told)


def _spread(count: int) -> list[int]:
    return [round(count * (i + 1) / MOMENTS) for i in range(MOMENTS - 1)] + [count]


def _shard(run: _Recorder, process: str, wanted: int) -> Scene:
    events = run.events[process]

    def at(moment: int) -> Callable[[], ShardMachine]:
        def make() -> ShardMachine:
            machine = ShardMachine(process, f"inproc://{process}", wanted)
            for event, now_ms in events[:moment]:
                machine.handle(event, now_ms)
            return machine

        return make

    unplaced = 1
    return Scene(tuple(at(moment) for moment in [unplaced, *_spread(len(events))]), _told(events))


def _copied(run: _Recorder, name: str) -> Scene:
    copies = [*run.copies[name], run.machines[name]]

    def at(moment: int) -> Callable[[], Any]:
        return lambda: copy.deepcopy(copies[moment])

    return Scene(tuple(at(moment) for moment in [0, *_spread(len(copies) - 1)]), _told(run.events[name]))

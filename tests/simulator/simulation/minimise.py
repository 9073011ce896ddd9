"""Make a failing plan smaller: delta debugging over its events, then simpler circumstances.

Source: Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, IEEE TSE 28(2), 2002 (ddmin). A
smaller plan counts if the same check fails: it may be another cause, so the outcome is looked at, not only run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from simulation.plan import BARRIER, Operation, Plan
from simulation.run import Outcome, run_plan

RUNS_MAX = 1500
"""Plans tried before the smallest so far is taken: a minute or two."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Kept:
    """A plan that failed, and how; a file of it is a regression test (tests/simulator/kept)."""

    about: str
    code: int
    where: str
    text: str
    digest: str
    """Trace hash of the failure; another version of the protocol has another one."""
    plan: Plan

    @classmethod
    def read(cls, path: Path) -> "Kept":
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def minimise(
    plan: Plan, about: str, say: Callable[[str], None] = lambda text: None, runs_max: int = RUNS_MAX
) -> Kept | None:
    """The smallest plan found that fails like this one; None if it does not fail."""
    first = run_plan(plan)
    if not first.code:
        return None
    search = _Search(plan, first, runs_max)
    before = -1
    while before != search.size(search.plan) and search.runs < runs_max:
        before = search.size(search.plan)
        search.plan = search.fewer_events()
        search.simpler()
        say(f"{search.plan.events} events of {plan.events} after {search.runs} runs")
    last = search.outcome
    return Kept(about, last.code, last.where, last.text.strip().splitlines()[-1], last.digest, search.plan)


class _Search:
    def __init__(self, plan: Plan, outcome: Outcome, runs_max: int) -> None:
        self.plan = plan
        self.outcome = outcome
        """How the smallest plan so far fails."""
        self.runs = 0
        self.runs_max = runs_max

    @staticmethod
    def size(plan: Plan) -> int:
        return len(plan.to_json())

    def fails(self, plan: Plan) -> bool:
        """Whether the plan fails like the first one; if so it is the smallest so far."""
        if self.runs >= self.runs_max:
            return False
        self.runs += 1
        outcome = run_plan(plan)
        if (outcome.code, outcome.where) != (self.outcome.code, self.outcome.where):
            return False
        self.plan, self.outcome = plan, outcome
        return True

    def fewer_events(self) -> Plan:
        """Fewer faults, scrubs, operations, and rows in them."""
        plan = self.plan
        faults = ddmin(plan.faults, lambda some: self.fails(replace(plan, faults=tuple(some))))
        plan = replace(plan, faults=tuple(faults))
        scrubs = ddmin(plan.scrubs_ms, lambda some: self.fails(replace(plan, scrubs_ms=tuple(some))))
        plan = replace(plan, scrubs_ms=tuple(scrubs))
        operations = ddmin(list(_operations(plan)), lambda some: self.fails(_with_operations(plan, some)))
        plan = _with_operations(plan, operations)
        rows = [
            (w, i, t, row)
            for w, some in enumerate(plan.operations)
            for i, operation in enumerate(some)
            for t, table_rows in enumerate(operation.rows)
            for row in dict.fromkeys(table_rows)
        ]
        kept = ddmin(rows, lambda some: self.fails(_with_rows(plan, some)))
        return _with_rows(plan, kept)

    def simpler(self) -> None:
        """Calm what is not needed, one thing after the other."""
        for change in _simplifications(self.plan):
            plan = change(self.plan)
            if plan != self.plan:
                self.fails(plan)


def ddmin(items: Sequence[Item], fails: Callable[[list[Item]], bool]) -> list[Item]:
    """A subset that still fails and of which no chunk that was tried can be left out; ``fails(items)`` is known."""
    some, parts = list(items), 2
    if some and fails([]):
        return []
    while len(some) > 1:
        size = -(-len(some) // parts)
        for begin in range(0, len(some), size):
            rest = some[:begin] + some[begin + size :]
            if rest and fails(rest):
                some, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(some))
    return some


def _operations(plan: Plan) -> Iterator[tuple[int, int]]:
    """(worker, number) of what can be left out by itself; all workers of a barrier take part in each (worker -1)."""
    if plan.mode == BARRIER:
        yield from ((-1, i) for i in range(len(plan.operations[0])))
    else:
        yield from ((w, i) for w, some in enumerate(plan.operations) for i in range(len(some)))


def _with_operations(plan: Plan, kept: Sequence[tuple[int, int]]) -> Plan:
    chosen = set(kept)
    operations = tuple(
        tuple(op for i, op in enumerate(some) if (w, i) in chosen or (-1, i) in chosen)
        for w, some in enumerate(plan.operations)
    )
    return replace(plan, operations=operations)


def _with_rows(plan: Plan, kept: Sequence[tuple[int, int, int, int]]) -> Plan:
    chosen = set(kept)

    def less(w: int, i: int, operation: Operation) -> Operation:
        rows = tuple(tuple(row for row in some if (w, i, t, row) in chosen) for t, some in enumerate(operation.rows))
        return replace(operation, rows=rows)

    operations = tuple(
        tuple(less(w, i, operation) for i, operation in enumerate(some)) for w, some in enumerate(plan.operations)
    )
    return replace(plan, operations=operations)


def _simplifications(plan: Plan) -> Iterator[Callable[[Plan], Plan]]:
    for name in ("lag_rate", "views_lag_rate", "straggle_rate", "loss_rate", "repeat_rate", "outage_rate", "flip_rate"):
        yield lambda p, name=name: replace(p, network=replace(p.network, **{name: 0.0}))  # type: ignore[misc]
    yield lambda p: replace(p, network=replace(p.network, streams=False))
    yield lambda p: replace(p, network=replace(p.network, delay_max_ms=1.0))
    yield lambda p: replace(p, spares=0)
    yield lambda p: replace(p, late_tables=0)
    for index, fault in enumerate(plan.faults):
        calmer = (("burst", 1), ("noticed", True), ("prefer_recovering", False), ("lasts_ms", 0.0))
        for name, value in calmer:

            def calm(p: Plan, i: int = index, old: object = fault, name: str = name, value: object = value) -> Plan:
                if i >= len(p.faults):
                    return p
                fault = replace(p.faults[i], **{name: value})  # type: ignore[arg-type]
                return replace(p, faults=(*p.faults[:i], fault, *p.faults[i + 1 :]))

            yield calm

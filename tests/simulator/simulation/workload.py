"""The workers: what they push and pull, and an oracle of what a deterministic run must give."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ecrec import _native
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Connect, Effect, Event, PullDone, PullFailed, Received, Send, Tick
from ecrec.protocol.messages import SCHEDULER, SHARD, TOOL, Address
from ecrec.protocol.placement import Placement, TableSpec
from simulation.plan import BARRIER, LOST_STATES, Operation, Plan
from simulation.record import Record
from simulation.refusals import refused_table, try_refused
from simulation.rows import Applied, Layout, RowsOf, add_table, apply_entry, gather, sections_of
from simulation.story import ViolationError

FLUSH_EVERY = 5
"""One push of so many is followed by a Flush."""


class Oracle:
    """What a fault-free run of a deterministic plan does to every shard, computed without any machine.

    Pulls are exact: after push q of their worker, before the next. Their answers are worked out as the pushes are made.
    """

    def __init__(self, plan: Plan, layout: Layout) -> None:
        self.plan = plan
        self.layout = layout
        self.dims = [table.dim for table in plan.tables]
        self.stores: dict[int, Any] = {}
        self.done: dict[int, int] = defaultdict(int)
        self._made: dict[tuple[int, int], dict[int, Applied]] = defaultdict(dict)
        self._asked: dict[tuple[int, int], list[tuple[Any, list[RowsOf], bool]]] = defaultdict(list)
        self._answers: dict[tuple[int, int, int], list[bytes]] = {}

    def store(self, shard: int) -> Any:
        if shard not in self.stores:
            self.stores[shard] = _native.Store(shard % self.plan.n, self.plan.n, shard // self.plan.n, self.plan.groups)
            for table in self.plan.tables:
                add_table(self.stores[shard], table)
        return self.stores[shard]

    def pushed(self, shard: int, worker: int, number: int, push: m.Push, frames: Sequence[Any]) -> None:
        """A worker made a push. It counts once all workers of its barrier have made theirs.

        ``number`` is that of the push among all that are applied, those of a barrier as one.
        """
        batch = self._made[shard, number]
        batch[worker] = Applied(worker, number, push, frames)
        if len(batch) == max(1, push.barrier):
            apply_entry(self.store(shard), [batch[w] for w in sorted(batch)], self.plan.tables)
            self.done[shard] = number
            for ticket, sections, records in self._asked.pop((shard, number), []):
                self._answers[ticket] = gather(self.store(shard), sections, records)

    def asked(self, shard: int, worker: int, ticket: int, after: int, sections: list[RowsOf], records: bool) -> None:
        if self.done[shard] == after:
            self._answers[worker, ticket, shard] = gather(self.store(shard), sections, records)
        else:
            self._asked[shard, after].append(((worker, ticket, shard), sections, records))

    def expected(self, worker: int, ticket: int, shard: int) -> list[bytes]:
        return self._answers.pop((worker, ticket, shard))

    def records(self, shard: int) -> bytes:
        """All rows of a shard, in the plan's order of tables."""
        return gather(self.store(shard), [self.layout.rows_on(shard, self.plan.tables)], True)[0]


class Worker:
    """One worker's driver: creates the tables, then does its operations one after the other."""

    def __init__(self, plan: Plan, number: int, machine: ClientMachine, record: Record, oracle: Oracle | None) -> None:
        self.plan = plan
        self.number = number
        self.machine = machine
        self.record = record
        self.oracle = oracle
        self.operations = plan.operations[number]
        self.next = 0
        self.busy_until_ms = 0.0
        self.open_pulls: dict[int, tuple[dict[int, Any], bool]] = {}
        self.pulls_done = 0
        self.tables_refused: dict[str, TableSpec] = {}
        """Asked for by this life, and to be refused."""
        self.finished = False
        self._loses_states = any(fault.kind in LOST_STATES for fault in plan.faults)
        """Whether these are written, nobody may know afterwards: a script would name its module anew."""
        self._asked: set[int] = set()
        """Tables of whose first values this life has asked,"""
        self._wrote: set[int] = set()
        """that it has written,"""
        self._said: set[int] = set()
        """and said so."""
        self.run = 0
        """The present one of the plan's runs,"""
        self.steps = 0
        """and how many pushes, those of a barrier as one, all runs have made before the next one of this worker."""
        self._in_vain = (-1, "")
        """Operation and life for which a request was made in vain."""
        self.initialising = False
        """It waits until tables have their first values, be it for its own pushes of them."""

    def restart(self, machine: ClientMachine) -> None:
        """Another process does what is left. Operations that the old one had begun are done or lost."""
        self.machine = machine
        self.open_pulls.clear()
        self.tables_refused = {}
        self._asked, self._wrote, self._said = set(), set(), set()

    @property
    def end(self) -> int:
        """The operation before which the present run ends."""
        return self.plan.operations_of_run(self.run).stop if self.plan.runs else len(self.operations)

    @property
    def takes_part(self) -> bool:
        """In the present run."""
        return self.number < self.plan.worker_runs()[self.run]

    @property
    def run_done(self) -> bool:
        """It has done all of the present run, and all is durable."""
        if not self.takes_part:
            return True
        return self.next >= self.end and self.machine.durable and not self.open_pulls

    def take_over(self, other: "Worker") -> None:
        """Another process of this worker, of which this one has heard nothing, is over: what it did is done or lost."""
        self.run, self.steps, self.next = other.run, other.steps, max(self.next, other.next)

    def begin_run(self, run: int, steps: int) -> None:
        """What the others did in between counts for this worker too."""
        self.run, self.steps = run, steps
        self.next = max(self.next, self.plan.operations_of_run(run).start)

    def waits_for(self) -> str:
        """For people: what this worker lacks."""
        machine = self.machine
        if machine.failed:
            return f"failed: {machine.failed}"
        if not machine.ready:
            return "the cluster is not ready"
        behind = {s: (machine.acked[s], p) for s, p in machine.pushed.items() if machine.acked[s] < p}
        tables = [t.name for t in self.plan.tables if not machine.table_ready(t.name)]
        return (
            f"{self.next} of {len(self.operations)} operations; tables not ready {tables}; "
            f"(acked, pushed) by shard {behind}; open pulls {[(t, sorted(s)) for t, (s, _) in self.open_pulls.items()]}"
        )

    def _initialise(self) -> list[Effect] | None:
        """Write first values, or wait for the one that writes them; None: all tables have them."""
        machine = self.machine
        for i, table in enumerate(self.plan.tables if self.plan.initialise else ()):
            index = self._index(i)
            state = machine.initial(index)
            if table.code.k != 1 or state == m.WRITTEN:
                continue
            if self._loses_states and "nobody knows whether it has them" in machine.initial_refusals.get(index, ""):
                continue
            if index not in self._asked:
                self._asked.add(index)
                return machine.initialise(index, claim=True)
            if state == m.WAIT or not (machine.can_push and machine.durable):
                return []
            if index not in self._wrote:
                self._wrote.add(index)
                rows = tuple(tuple(range(t.rows)) if t is table else () for t in self.plan.tables)
                return self._push(Operation("assign", rows, i, 0.0), first_values=index) + machine.flush()
            if index not in self._said:
                self._said.add(index)
                return machine.initialised(index)
            return []
        return None

    def advance(self, now_ms: float, saves: bool) -> list[Effect]:
        """Do what can be done now; with ``saves`` the last two thirds of the operations are not for now."""
        effects: list[Effect] = []
        machine = self.machine
        while not self.finished and not machine.failed and machine.ready and now_ms >= self.busy_until_ms:
            late = len(self.plan.tables) - self.plan.late_tables
            wanted = self.plan.tables if self.next >= len(self.operations) // 3 else self.plan.tables[:late]
            missing = [t for t in wanted if not machine.table_ready(t.name)]
            for table in missing:
                effects += machine.create_table(table)
            if missing:
                break
            first_values = self._initialise()
            self.initialising = first_values is not None
            if first_values is not None:
                effects += first_values
                break
            if saves and len(self.operations) // 3 <= self.next < len(self.operations):
                break
            if not self.takes_part or self.next >= self.end:
                # The launcher (`Cluster`) begins the next run when all are done with this one.
                if self.run_done:
                    effects += machine.leave_run()
                    self.finished = self.run == len(self.plan.worker_runs()) - 1
                break
            operation = self.operations[self.next]
            effects += self._ask_in_vain(operation)
            if operation.kind == "pull":
                effects += self._pull(operation)
            elif self.plan.mode == BARRIER and not machine.runs.run:
                if not machine.runs.joining:
                    effects += machine.join_run(self.plan.worker_runs()[self.run])
                break
            elif machine.can_push:
                effects += self._push(operation)
            else:
                break
            self.next += 1
            self.busy_until_ms = now_ms + operation.think_ms
        return effects

    def took(self, effect: PullDone) -> None:
        """A pull is answered: compare."""
        shards, exact = self.open_pulls.pop(effect.ticket)
        self.pulls_done += 1
        if set(effect.answers) != set(shards):
            raise ViolationError(f"worker {self.number}: pull of {sorted(shards)} answered by {sorted(effect.answers)}")
        if self.oracle is None or not exact or self.record.set_back:
            return
        for shard, frames in effect.answers.items():
            expected = self.oracle.expected(self.number, effect.ticket, shard)
            if [bytes(f) for f in frames] != expected:
                raise ViolationError(
                    f"worker {self.number}: exact pull {effect.ticket} from shard {shard} gave other rows than a run "
                    "without faults", [shard],
                )  # fmt: skip

    def refused(self, effect: PullFailed) -> None:
        """A shard refused a pull, which is over."""
        del self.open_pulls[effect.ticket]
        self.record.refused["pull refused by a shard"] += 1

    def _ask_in_vain(self, operation: Operation) -> list[Effect]:
        """Make what is to be refused, now and then; look whether what was asked for in vain before is."""
        machine, push = self.machine, operation.kind != "pull"
        for name, spec in list(self.tables_refused.items()):
            if not machine.creating(name):
                del self.tables_refused[name]
                if name not in machine.table_refusals or machine.tables.get(name, (0, None))[1] == spec:
                    raise ViolationError(f"worker {self.number}: the scheduler made {spec}")
                self.record.refused["refused table"] += 1
        # Not twice, where the operation itself has to wait.
        if self._in_vain != (self.next, machine.process):
            self._in_vain = (self.next, machine.process)
            parts = self._split(self._usable(operation), self._index, push)
            if item := try_refused(machine, parts, operation.value_seed, push):
                self.record.refused[item] += 1
            if self.plan.refusals:
                ready = [spec for name, (_, spec) in machine.tables.items() if machine.table_ready(name)]
                table = refused_table(ready, operation.value_seed)
                if table is not None and table.name not in self.tables_refused:
                    self.tables_refused[table.name] = table
                    return machine.create_table(table)
        return []

    # ------------------------------------------------------------------ operations
    def _split(
        self, operation: Operation, index: Callable[[int], int], values: bool
    ) -> dict[int, tuple[list[m.Section], list[Any]]]:
        """Sections and frames by shard, with the tables numbered by ``index``."""
        rng = random.Random(operation.value_seed)
        by_shard: dict[int, dict[int, tuple[list[int], list[float]]]] = defaultdict(dict)
        for i, rows in enumerate(operation.rows):
            table = self.plan.tables[i]
            for row in rows:
                shard = self.record.layout.shard_of(table, row)
                some, floats = by_shard[shard].setdefault(i, ([], []))
                some.append(row)
                if values:
                    floats += [rng.uniform(-1.0, 1.0) for _ in range(table.dim)]
        if operation.bulk:
            self._add_bulk(operation, values, by_shard)
        out: dict[int, tuple[list[m.Section], list[Any]]] = {}
        for shard, tables in by_shard.items():
            parts = [[i] for i in sorted(tables)] if operation.split else [sorted(tables)]
            sections, frames = [], []
            for part in parts:
                sections.append(m.Section([index(i) for i in part], [len(tables[i][0]) for i in part]))
                frames.append(np.array([row for i in part for row in tables[i][0]], np.int64))
                if values:
                    frames.append(np.array([x for i in part for x in tables[i][1]], np.float32))
            out[shard] = (sections, frames)
        return out

    def _add_bulk(
        self, operation: Operation, values: bool, by_shard: dict[int, dict[int, tuple[list[int], list[float]]]]
    ) -> None:
        """Many distinct rows of each table, some of them out of a part of it that is pushed to again and again."""
        rng = np.random.Generator(np.random.PCG64(operation.value_seed))
        for i, table in enumerate(self._tables_for(operation)):
            span = table.rows if rng.random() < 0.6 else min(table.rows, 2 * operation.bulk)
            rows = rng.permutation(np.unique(rng.integers(0, span, operation.bulk)))
            floats = rng.uniform(-1.0, 1.0, (len(rows), table.dim))
            shards = self.record.layout.shards_of(table, rows)
            for shard in np.unique(shards).tolist():
                here = shards == shard
                some, more = by_shard[shard].setdefault(i, ([], []))
                some += rows[here].tolist()
                if values:
                    more += floats[here].reshape(-1).tolist()

    def _tables_for(self, operation: Operation) -> tuple[TableSpec, ...]:
        """Tables that an operation may name: those that are created late only after a third of the operations."""
        late = len(self.plan.tables) - self.plan.late_tables
        return self.plan.tables if self.next >= len(self.operations) // 3 else self.plan.tables[:late]

    def _index(self, i: int) -> int:
        table = self.plan.tables[i]
        known = self.machine.tables.get(table.name)
        # A table that is created late has no index yet; then the operation has no rows of it either.
        return known[0] if known else -1

    def _usable(self, operation: Operation) -> Operation:
        """The operation without the rows of tables that are not there yet."""
        late = len(self.plan.tables) - self.plan.late_tables
        if self.next >= len(self.operations) // 3:
            return operation
        rows = tuple(rows if i < late else () for i, rows in enumerate(operation.rows))
        return replace(operation, rows=rows)

    def _push(self, operation: Operation, examples: int = 0, first_values: int = -1) -> list[Effect]:
        """``first_values``: of this table alone, by this worker alone."""
        machine, assign = self.machine, operation.kind == "assign"
        barrier = self.plan.worker_runs()[self.run] if self.plan.mode == BARRIER and first_values < 0 else 0
        operation = self._usable(operation) if first_values < 0 else operation
        by_shard = self._split(operation, self._index, True)
        done = range(0)
        if examples:
            first = machine.leasing.leases[0].last - (machine.leasing.examples_left or 0)
            done = range(first, first + examples)
        rates = {} if assign else self._rates(operation)
        known = {self._index(table): rate for table, rate in rates.items()}
        effects = machine.push(by_shard, barrier=barrier, assign=assign, examples=examples, rates=known)
        if operation.value_seed % FLUSH_EVERY == 0:
            effects += machine.flush()
        self.steps += 1
        ours = self._split(operation, lambda i: i, True) if self.oracle is not None else {}
        for shard, number in machine.pushed.items():
            sections, frames = by_shard.get(shard, ([], []))
            self.record.made(self.number, machine.epoch, shard, number, frames, done)
            if first_values >= 0:
                self.record.first_values[self.number, machine.epoch, shard, number] = first_values
            if self.oracle is not None:
                # The oracle numbers the tables as the plan does: the order of creation is the schedule's.
                sections, frames = ours.get(shard, ([], []))
                push = m.Push(machine.epoch, number, barrier, assign, sections, rates=rates)
                self.oracle.pushed(shard, self.number, self.steps, push, frames)
        return effects

    def _rates(self, operation: Operation) -> dict[int, float]:
        """Plan's number of a table -> learning rate of its step; in a barrier the same for all workers."""
        if not self.plan.rates:
            return {}
        rng = random.Random(f"rates {self.plan.seed} {self.next}")
        usable = [i for i, table in enumerate(self.plan.tables) if self.machine.table_ready(table.name)]
        if self.plan.mode == BARRIER:
            usable = [i for i in usable if i < len(self.plan.tables) - self.plan.late_tables]
        own = {i: self.plan.tables[i].optimizer.hyper[0] for i in usable}
        return {i: rate * rng.choice((0.5, 1.0, 2.0, 1e-3)) for i, rate in own.items() if rng.random() < 0.7}

    def _pull(self, operation: Operation) -> list[Effect]:
        operation = self._usable(operation)
        exact = self.plan.deterministic or operation.value_seed % 2 == 0
        by_shard = self._split(operation, self._index, False)
        ticket, effects = self.machine.pull(by_shard, exact=exact, records=operation.records)
        self.open_pulls[ticket] = (dict(by_shard), exact)
        if self.oracle is not None:
            ours = self._split(operation, lambda i: i, False)
            for shard, (sections, frames) in ours.items():
                rows = sections_of(sections, frames, False)
                self.oracle.asked(shard, self.number, ticket, self.steps, rows, operation.records)
        return effects


class ScrubTool:
    """A tool that scrubs a class after the other while everything goes on: parity is right at every consistent cut.

    It asks as `ecrec verify` does: the scheduler who the shards are, a shard for its next chunk. What nobody answers is
    given up; there will be another scrub. Half of the questions ask to correct what does not fit.
    """

    ASK_AGAIN_MS = 100.0
    CHUNKS_MAX = 64
    """A class is asked about in about so many pieces at most: of a large one, single rows would take minutes."""

    def __init__(self, plan: Plan, flipped: set[int], damage_left: Callable[[], bool]) -> None:
        """``flipped``: keys of the stripes of which a parity row was damaged. It scrubs while some damage is left."""
        self.flipped = flipped
        self.damage_left = damage_left
        self.address = Address(TOOL, 0, 0)
        self.chunks = 0
        """Answers with nothing unknown in them."""
        self.busy = 0
        self._rng = random.Random(plan.seed * 2 + 3)
        self._rows_max = self._rng.choice((1, 3, 4096))
        self._todo: list[tuple[Address, int, int, int]] = []
        """(shard, class, first position, most rows)"""
        self._request = 0
        self._wants_state = False
        self._stopped = False
        self._asked_ms = 0.0

    def begin(self) -> None:
        self._wants_state = True

    def stop(self) -> None:
        """No further question: the run comes to its end."""
        self._wants_state = False
        self._todo.clear()
        self._stopped = not self.damage_left()

    def handle(self, event: Event, now_ms: float) -> list[Effect]:
        if isinstance(event, Tick):
            if not self._todo and self.damage_left() and now_ms - self._asked_ms > self.ASK_AGAIN_MS:
                self._wants_state = True
            if self._wants_state and now_ms - self._asked_ms > self.ASK_AGAIN_MS:
                self._request += 1
                self._asked_ms = now_ms
                return [Send(Address(SCHEDULER, 0, 0), m.ClusterQuery(self._request))]
        elif isinstance(event, Received):
            return self._on_message(event)
        return []

    def _on_message(self, event: Received) -> list[Effect]:
        message = event.message
        if isinstance(message, m.ClusterState) and self._wants_state:
            self._wants_state = False
            return self._on_state(message)
        if isinstance(message, m.ScrubBusy) and message.request == self._request:
            self.busy += 1
            return self._next()
        if isinstance(message, m.ScrubResult) and message.request == self._request:
            bad = np.frombuffer(event.frames[0], np.uint64)
            known = self.flipped.issuperset(bad.tolist())
            if not known:
                raise ViolationError(
                    f"{event.source} finds {len(bad)} parity rows of class {message.class_id} that do not fit the data "
                    "at one cut", [event.source.id], bad.tolist(),
                )  # fmt: skip
            self.chunks += 1
            if message.last < message.size and not self._stopped:
                rows_max = max(self._rows_max, -(-message.size // self.CHUNKS_MAX))
                self._todo.append((event.source, message.class_id, message.last, rows_max))
            return self._next()
        return []

    def _on_state(self, state: m.ClusterState) -> list[Effect]:
        placement = Placement(state.n)
        for table in state.tables:
            placement.add(table.code)
        shards = [figures for figures in state.shards if figures.state != m.DOWN]  # a recovering one says it is busy
        self._todo = [
            (Address(SHARD, figures.shard, figures.epoch), class_id, 0, self._rows_max)
            for figures in shards
            for class_id in placement.parity_classes(figures.shard % state.n)
            if placement.classes[class_id].parity[0] == figures.shard % state.n
        ]
        self._rng.shuffle(self._todo)
        meet: list[Effect] = [Connect(Address(SHARD, f.shard, f.epoch), f.endpoint) for f in shards]
        return meet + self._next()

    def _next(self) -> list[Effect]:
        if not self._todo:
            return []
        shard, class_id, first, rows_max = self._todo.pop()
        self._request += 1
        return [Send(shard, m.Scrub(self._request, class_id, first, rows_max, self._rng.random() < 0.5))]

"""Workers that lease what they train on, and the checker of who trained on what.

The checker reads the lineage of the shards, not what the scheduler counted: every example must have been applied on
every shard, and what the scheduler says was repeated must be what lives of workers applied more often than once.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ecrec.protocol import messages as m
from ecrec.protocol.events import Effect
from simulation.plan import Fault, LeasePlan, Operation, Plan
from simulation.record import Record
from simulation.story import ViolationError
from simulation.workload import Worker

NAME = "examples"

SPLIT_IN_VAIN_EVERY = 5


def draw_leases(seed: int, plan: Plan) -> Plan:
    """The plan with leases, and workers that die; drawn apart, so that the rest of a seed stays what it was."""
    rng = random.Random(seed * 2 + 3)
    heartbeat_ms = plan.config.heartbeat_ms
    batch = rng.randint(1, 4)
    examples = rng.randint(5, 40) * batch
    dataset = m.Dataset(NAME, examples, int(examples * rng.choice((1, 1, 1.5, 2))), batch * rng.randint(1, 6))
    leases = LeasePlan(dataset, batch, rng.choice((15, 30, 60)) * heartbeat_ms)
    horizon_ms = 50.0 + dataset.end / batch / plan.workers * 25.0
    faults = list(plan.faults)
    for _ in range(rng.choice((0, 1, 2, 3, 5))):
        aimed = rng.random() < 0.6
        faults.append(
            Fault(
                "worker" if rng.random() < 0.7 else "worker-stall",
                at_ms=rng.random() * horizon_ms,
                message=rng.choice(("Push", "PushAck", "Leased", "LeaseSplit", "Hello", "Window")) if aimed else "",
                count=rng.choice((1, 2, 5, 10, 20, 50)) if aimed else 0,
                side=rng.choice(("sender", "receiver", "other")),
                lasts_ms=rng.random() * rng.choice((20.0, 200.0, 3.0 * leases.timeout_ms)),
            )
        )
    config = msgspec.structs.replace(plan.config, lease_timeout_ms=leases.timeout_ms)
    return replace(plan, config=config, leases=leases, faults=tuple(faults))


class LeasingWorker(Worker):
    """Leases splits and pushes their batches, with the rows of the plan's operations in turn; its pulls in between."""

    _split_in_vain = -1
    """Operation before which a split was last asked for that is to be refused."""

    def advance(self, now_ms: float, saves: bool) -> list[Effect]:
        """Do what can be done now; with ``saves`` all but a third of its operations are not for now."""
        leases = self.plan.leases
        assert leases is not None
        effects: list[Effect] = []
        machine, leasing = self.machine, self.machine.leasing
        while not self.finished and not machine.failed and machine.ready and now_ms >= self.busy_until_ms:
            missing = [t for t in self.plan.tables if not machine.table_ready(t.name)]
            for table in missing:
                effects += machine.create_table(table)
            if missing:
                break
            first_values = self._initialise()
            self.initialising = first_values is not None
            if first_values is not None:
                effects += first_values
                break
            effects += self._ask_for_split_in_vain(leases.dataset)
            if leases.dataset not in leasing.finished and not leasing.asking and len(leasing.leases) < 2:
                effects += machine.lease(leases.dataset)
            if not leasing.leases:
                self.finished = leases.dataset in leasing.finished and machine.durable and not self.open_pulls
                break
            if saves and self.next >= len(self.operations) // 3:
                break
            operation = self.operations[self.next % len(self.operations)]
            kind = operation.kind if self.next % 2 else "push"
            effects += self._ask_in_vain(replace(operation, kind=kind))
            if kind == "pull":
                effects += self._pull(operation)
            elif not machine.can_push:
                break
            elif kind == "assign":
                effects += self._push(operation)
            else:
                effects += self._push(replace(operation, kind=kind), min(leases.batch, leasing.examples_left or 0))
            self.next += 1
            self.busy_until_ms = now_ms + operation.think_ms
        return effects

    def _ask_for_split_in_vain(self, dataset: m.Dataset) -> list[Effect]:
        """Under the same name, with other numbers; behind a first split, as the scheduler takes what it hears first."""
        machine, leasing = self.machine, self.machine.leasing
        if leasing.refusal:
            self.record.refused["refused split"] += 1
            leasing.refusal = ""
        wanted = self.plan.refusals and self.next % SPLIT_IN_VAIN_EVERY == 0 and self.next != self._split_in_vain
        if not wanted or leasing.asking or not leasing.leases or len(leasing.leases) > 1:
            return []
        self._split_in_vain = self.next
        return machine.lease(m.Dataset(dataset.name, dataset.examples, dataset.end, dataset.split_examples + 1))

    def waits_for(self) -> str:
        leasing = self.machine.leasing
        held = [tuple(lease) for lease in leasing.leases]
        asking = f"asking {leasing.asking}, leases {held}, cursor {leasing.cursor}, finished {bool(leasing.finished)}"
        return f"{super().waits_for()}; {asking}"

    def _usable(self, operation: Operation) -> Operation:
        return operation


def check_examples(plan: Plan, record: Record, figures: Sequence[m.DatasetFigures]) -> None:
    """Every example on every shard; those more often than once as often as the scheduler counted."""
    assert plan.leases is not None
    end = plan.leases.dataset.end
    if not end:
        return
    lives: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for shard in range(plan.n * plan.groups):
        times = [0] * end
        for entry in record.lineage[shard]:
            for p in entry.pushes:
                for example in record.examples.get((p.worker, p.push.worker_epoch, shard, p.number), ()):
                    times[example] += 1
                    lives[example].add((p.worker, p.push.worker_epoch))
        if 0 in times:
            missing = [i for i, count in enumerate(times) if not count]
            raise ViolationError(f"examples {missing} were never applied on shard {shard}", [shard])
        for example, count in enumerate(times):
            if count > len(lives[example]):
                raise ViolationError(f"one life of a worker applied example {example} twice on shard {shard}", [shard])
    repeated = {example: sorted(some) for example, some in lives.items() if len(some) > 1}
    times_repeated = sum(len(some) - 1 for some in repeated.values())
    (figure,) = figures
    # Of splits that were granted after the last copy of a state that was lost, dead workers tell nothing.
    repeated_as_counted = figure.repeated == times_repeated or record.adopted
    if figure.trained != end or not repeated_as_counted:
        raise ViolationError(
            f"the scheduler counts {figure.trained} of {end} examples trained on and {figure.repeated} repeated; the "
            f"lineages have {times_repeated} repeated: {repeated}"
        )

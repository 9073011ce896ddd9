"""Scenarios with several workers on a `Cluster`: each has a machine, and may die and be started again."""

from typing import Any

import numpy as np
from cluster import Cluster

from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import TableSpec


def add_worker(cluster: Cluster, number: int, life: int = 0) -> ClientMachine:
    """A worker's process, which may use all tables; the one of the same number that lives is forgotten, not told."""
    for name, machine in list(cluster.machines.items()):
        if isinstance(machine, ClientMachine) and machine.worker == number:
            del cluster.machines[name]
    machine = ClientMachine(number, f"worker-{number}-{life}")
    cluster.machines[machine.process] = machine
    cluster.settle_down(lambda: machine.ready)
    for spec in cluster.scheduler.state.tables:
        do(cluster, machine, machine.create_table(spec))
    cluster.settle_down(lambda: not any(machine.creating(spec.name) for spec in cluster.scheduler.state.tables))
    return machine


def do(cluster: Cluster, machine: ClientMachine, effects: Any) -> None:
    """Carry out what a worker's machine wants done."""
    cluster.carry_out(machine.process, machine, effects)


def start_run(cluster: Cluster, *machines: ClientMachine) -> None:
    """All join a run of so many."""
    for machine in machines:
        do(cluster, machine, machine.join_run(len(machines)))
    cluster.settle_down(lambda: all(machine.runs.run for machine in machines))


def push(
    cluster: Cluster, machine: ClientMachine, spec: TableSpec, rows: dict[int, float], barrier: int = 0,
    assign: bool = False,
) -> None:  # fmt: skip
    """Push one value (the same for all columns) for each row."""
    index = machine.tables[spec.name][0]
    parts = {}
    for shard, some in cluster.by_shard(spec, sorted(rows)).items():
        values = np.repeat(np.array([rows[int(i)] for i in some], np.float32), spec.dim)
        parts[shard] = [Section([index], [len(some)])], (some, values)
    do(cluster, machine, machine.push(parts, barrier=barrier, assign=assign))

"""Requests that must be refused, made by the workers between their operations.

Nothing of them may be done anywhere. Pushes and pulls that are refused before anything is sent leave no trace in a
schedule, and are made in every one. What the scheduler refuses costs messages, and is asked for in some plans alone.
"""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from ecrec.errors import GradientError, RefusedError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.placement import TableSpec
from simulation.story import ViolationError

REFUSED = (
    "refused push: value that is not finite", "refused push: row of another shard", "refused push: row of no table",
    "refused push: unknown table", "refused push: too large", "refused pull: row of another shard",
    "refused pull: row of no table", "refused pull: unknown table", "pull refused by a shard", "refused table",
    "refused split",
)  # fmt: skip
"""Coverage items."""

RATE = 0.1
"""Share of the operations before which one is made."""

Parts = dict[int, tuple[list[m.Section], list[Any]]]


def _not_finite(parts: Parts, shard: int, shards: int) -> None:
    values = parts[shard][1][1] = parts[shard][1][1].copy()
    values[-1] = np.inf


def _elsewhere(parts: Parts, shard: int, shards: int) -> None:
    parts[(shard + 1) % shards] = parts[shard]


def _no_row(parts: Parts, shard: int, shards: int) -> None:
    rows = parts[shard][1][0] = parts[shard][1][0].copy()
    rows[-1] += 1 << 40


def _no_table(parts: Parts, shard: int, shards: int) -> None:
    section = parts[shard][0][0]
    parts[shard][0][0] = m.Section([1 << 20 for _ in section.tables], section.counts)


def _too_large(parts: Parts, shard: int, shards: int) -> None:
    sections, frames = parts[shard]
    times = wire.FRAMES_MAX // len(frames) + 1
    parts[shard] = (sections * times, frames * times)


PUSHES: dict[str, Callable[[Parts, int, int], None]] = {
    "value that is not finite": _not_finite,
    "row of another shard": _elsewhere,
    "row of no table": _no_row,
    "unknown table": _no_table,
    "too large": _too_large,
}
PULLS = {name: PUSHES[name] for name in ("row of another shard", "row of no table", "unknown table")}


def try_refused(machine: ClientMachine, parts: Parts, seed: int, push: bool) -> str:
    """Perhaps make a push or pull of these rows that only one shard would refuse; returns the coverage item.

    Raises ViolationError unless it is refused as a whole.
    """
    rng = random.Random(f"refused {seed}")
    if rng.random() >= RATE or not (machine.can_push if push else machine.ready):
        return ""
    shards = [shard for shard, (_, frames) in parts.items() if frames and all(len(frame) for frame in frames)]
    if not shards:
        return ""
    name = rng.choice(list(PUSHES if push else PULLS))
    PUSHES[name](parts, rng.choice(shards), machine.shards)
    item = f"refused {'push' if push else 'pull'}: {name}"
    before = machine.pushed, machine.acked, machine.can_push, machine.leasing.examples_left
    try:
        if push:
            machine.push(parts)
        else:
            machine.pull(parts, exact=True)
    except (RefusedError, GradientError):
        if before != (machine.pushed, machine.acked, machine.can_push, machine.leasing.examples_left):
            raise ViolationError(f"worker {machine.worker}: something of a {item} was done") from None
        return item
    raise ViolationError(f"worker {machine.worker}: a {item} was let out")


def refused_table(tables: list[TableSpec], seed: int) -> TableSpec | None:
    """A table that the scheduler will not make; now and then None."""
    rng = random.Random(f"refused table {seed}")
    if rng.random() >= RATE or not tables:
        return None
    table = rng.choice(tables)
    if rng.random() < 0.5:
        return msgspec.structs.replace(table, dim=table.dim + 1)
    return msgspec.structs.replace(table, name=f"huge {seed % 3}", rows=1 << 46)

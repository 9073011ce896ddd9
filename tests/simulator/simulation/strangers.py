"""Somebody who belongs to nothing sends what servers must not take: they stay, change nothing, and ignore him."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.messages import SCHEDULER, SHARD, Address
from simulation.network import Process
from simulation.plan import Fault, Plan

STRANGERS_EVERY = 3
ROUTE = b"a stranger "
OTHER_VERSION = b"ECR" + str(wire.WIRE_VERSION + 1).encode()


class Strange(NamedTuple):
    """Bytes that arrive; what `NodeCore.arrived` takes."""

    route: bytes
    parts: list[bytes]

    @property
    def may_serve(self) -> bool:
        return False

    @property
    def peer(self) -> str:
        return self.route.decode()


def is_strange(route: bytes) -> bool:
    return route.startswith(ROUTE)


def messages(to: Process, number: int) -> Iterator[Strange]:
    """Nothing, garbage, halves of messages, those of another version, and orders of servers without a server's key."""
    route = ROUTE + str(number).encode()
    origin = to.machine.context.origin
    address = to.address if to.role == SHARD else Address(SCHEDULER, 0, 0)
    orders = [
        (Address(SCHEDULER, 0, 1 << 20), m.Fenced("end", origin)),
        (Address(SHARD, max(address.id, 0), address.epoch + 1), m.Ping(asks=True)),
    ]
    sealed = [[bytes(part) for part in wire.seal(wire.pack(order), source, address)] for source, order in orders]
    for parts in (
        [], [b""], [b"GET / HTTP/1.1\r\n\r\n"], [wire.MAGIC], [OTHER_VERSION + bytes(60)], [wire.REFUSAL[:2]],
        [sealed[0][0][: len(sealed[0][0]) // 2], *sealed[0][1:]], *sealed,
    ):  # fmt: skip
        yield Strange(route, parts)


def draw_strangers(seed: int, plan: Plan) -> Plan:
    """With one or two strangers; other draws stay as they were."""
    if seed % STRANGERS_EVERY:
        return plan
    rng = random.Random(f"strangers {seed}")
    horizon_ms = max((fault.at_ms for fault in plan.faults), default=500.0) + 100.0
    more = tuple(
        Fault("stranger", at_ms=rng.random() * horizon_ms, count=rng.randrange(1 << 16), burst=rng.choice((1, 4)))
        for _ in range(rng.choice((1, 2)))
    )
    return replace(plan, faults=plan.faults + more)

"""Servers that are told to end in the middle of a plan, and what can go wrong meanwhile; drawn apart."""

import random
from dataclasses import replace

import msgspec

from simulation.plan import Fault, Plan


def draw_successions(seed: int, plan: Plan) -> Plan:
    """The plan with servers that leave while a spare waits, and what can go wrong meanwhile. Drawn apart."""
    rng = random.Random(f"successions 482 {seed}")  # seeds that catch rare mistakes stay as they were
    damaged = any(fault.kind == "flip-parity" for fault in plan.faults)
    if rng.random() > 0.3 or plan.named or damaged or plan.too_many or plan.broken or not plan.tolerance:
        return plan
    heartbeat_ms = plan.config.heartbeat_ms
    copy_bytes = rng.choice((1, 100, 1000, 4 << 20))
    if (rows := sum(table.rows for table in plan.tables)) > 1000:
        copy_bytes = max(copy_bytes, rows // 20)  # a few hundred copies, not thousands
    config = msgspec.structs.replace(
        plan.config, hand_over=1, succession_bytes=copy_bytes, succession_copies_in_flight_max=rng.choice((1, 2, 4)),
        # A group that halts with thousands of copies to go is given up each time, and begins again.
        succession_left_bytes_max=min(rng.choice((1, 100, 1000, 8 << 20)), 20 * copy_bytes),
        succession_passes_max=rng.choice((1, 2, 4)),
        succession_halt_timeout_ms=rng.choice((20, 40, 80)) * heartbeat_ms, succession_again_ms=2 * heartbeat_ms,
        succession_tries_max=random.Random(f"tries {seed}").choice((1, 3, 1000, 1000, 1000)),
    )  # fmt: skip
    leaves = [
        Fault(
            "leave", at_ms=rng.random() * 400.0, burst=rng.choice((1, 1, 1, 2, plan.tolerance + 1)),
            side=rng.choice(("", "drain")), lasts_ms=rng.random() * 100.0,
        )
        for _ in range(rng.randint(1, 3))
    ]  # fmt: skip
    steps = (
        "Succession",
        "Copy",
        "Copied",
        "Handover",
        "HaltNow",
        "Halt",
        "Halted",
        "CopyEnd",
        "Succeeded",
        "FullView",
    )
    faults: list[Fault] = []
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        message = rng.choice(steps)
        kind = rng.choice(("crash", "crash", "successor", "successor", "scheduler", "stay", "leave"))
        faults.append(Fault(
            kind, message=message, count=rng.choice((1, 1, 2, 3)), since=rng.choice(("", "Succession", "Succeeded")),
            side=rng.choice(("sender", "receiver", "other")) if kind == "crash" else "",
            lasts_ms=rng.random() * 150.0, noticed=rng.random() < 0.7,
        ))  # fmt: skip
    spares = plan.spares + rng.choice((1, 1, 2))
    return replace(plan, config=config, spares=spares, faults=(*plan.faults, *leaves, *faults))


def draw_leaves(seed: int, plan: Plan) -> Plan:
    """The plan with servers that are told to end, some more at once than the code tolerates. Drawn apart."""
    rng = random.Random(f"leaves {seed}")
    damaged = any(fault.kind == "flip-parity" for fault in plan.faults)
    # One that holds rows without parity is never let go.
    coded = all(table.code.r for table in plan.tables)
    if rng.random() > 0.25 or not coded or damaged or plan.too_many or plan.broken:
        return plan
    leaves = [
        Fault(
            "leave", at_ms=rng.random() * 600.0, message=message, burst=rng.choice((1, 1, 2, plan.tolerance + 1)),
            count=rng.choice((1, 1, 2)) if message else 0, prefer_recovering=rng.random() < 0.3,
            lasts_ms=rng.random() * 100.0,
        )
        for message in rng.sample(("", "", "ShardDown", "Settle", "ShardUp"), rng.randint(1, 3))
    ]  # fmt: skip
    config = msgspec.structs.replace(plan.config, hand_over=0)  # others: `draw_successions`
    return replace(plan, config=config, faults=(*plan.faults, *leaves))

"""What one seed means: the cluster, its tables, the network, the faults and the workload, all drawn before the run."""

import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import (
    CLASSES_MAX,
    SHARDS_IN_GROUP_MAX,
    CodeSpec,
    OptimizerSpec,
    Placement,
    TableSpec,
)
from ecrec.simulator import tuning
from ecrec.simulator.leases import draw_leases
from ecrec.simulator.plan import ASYNC, BARRIER, PAUSE, SINGLE, Fault, Network, Operation, Plan

WATCHED = (
    "Window", "WindowAck", "Stable", "Join", "Joined", "Reseed", "Repair", "CaptureParity", "Snap", "Mark", "Captured",
    "Repaired", "ShardDown", "Settle", "ShardUp", "ShardStatus", "Views", "Push", "Flush", "PushAck", "Pull", "Rows",
    "Hello", "Welcome", "any", "any",
)  # fmt: skip
"""Messages at whose delivery, and views at whose decision, a crash may be aimed: the rare ones of recovery are where
the traps are."""

LATE_VIEWS_EVERY = 16
"""One seed of so many is drawn for members that hear of a replacement late, while two shards of a wide code recover and
all others are pushed to: what comes before its view then carries rows."""

CUT_OFF_EVERY = 32
"""One seed of so many has two shards that do not reach each other, so long that one of them is replaced."""

DOUBTS_EVERY, DOUBTS = 8, (1, 4)
"""Two seeds of so many close connections to shards that live, or have processes that register under their endpoints."""

DEAF_EVERY = 32
"""One seed of so many has a shard that hears nothing of the scheduler until it is replaced."""

SILENT_EVERY = 32
ISOLATED, SILENCED, SLOW_READER = 2, 14, 22
"""One seed of so many has a scheduler that hears nobody, one has more living shards silenced at once than the code
tolerates, and one a living shard that acknowledges late. No living shard is declared down for it."""

STATES_EVERY = 16
"""One seed of so many has a scheduler that is started with an older state, or with none."""

REFUSALS_EVERY = 11
"""One seed of so many has workers that ask for what the scheduler or a shard refuses."""

UNCODED_EVERY = 32
"""One seed of so many has rows without parity next to coded ones; they begin again at each death."""
LARGE_EVERY = 29
"""One seed of so many has tables of thousands of rows, and pushes of hundreds and thousands: `_draw_large`."""

WIDE_EVERY = 61
"""One seed of so many has a group of 8 to 16 shards."""

MANY_CODES_EVERY = 59
"""One seed of so many has as many codes as its group can hold, and so up to 64 classes."""

FLIPPED_EVERY = 53
"""One seed of so many has parity rows in which a bit turns over."""

WIDE_CODES = ((4, 2), (5, 1), (6, 2), (6, 3), (8, 1), (8, 2), (10, 2), (12, 4), (13, 3))

DRAWN_APART = {"fold_batch_rows_threads", "pause_bytes", "unindexed_bytes_max"}
"""Thresholds of the store that came later: the rest of a seed stays what it was."""

OPTIMIZERS = (
    OptimizerSpec("sgd", (0.125,)),
    OptimizerSpec("momentum", (0.1, 0.9)),
    OptimizerSpec("nesterov", (0.1, 0.9)),
    OptimizerSpec("adagrad", (0.1, 1e-8)),
    OptimizerSpec("rowwise-adagrad", (0.1, 1e-8)),
    OptimizerSpec("adam", (0.01, 0.9, 0.999, 1e-8)),
    OptimizerSpec("ftrl", (0.1, 1.0, 0.001, 0.001)),
)

CODES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (2, 3), (3, 3))


def _draw_config(rng: random.Random, storm: bool, eager: bool) -> ProtocolConfig:
    heartbeat_ms = rng.choice((20, 40, 60))
    rows = (1, 1, 2, 3) if storm else (1, 2, 3, 8, 4096)
    # Now and then data rows come back long after all parity rows are seeded.
    seeds_first = storm and rng.random() < 0.2
    return ProtocolConfig(
        window_interval_ms=rng.choice((0.0, 0.0, 5.0, 50.0)),
        window_pushes_max=rng.choice((1, 3, 20)),
        windows_in_flight_max=rng.choice((1, 2, 2, 2, 3, 4)),
        window_bytes_max=rng.choice((64, 256, 4096, 64 << 20)),
        heartbeat_ms=heartbeat_ms,
        heartbeat_timeout_ms=12 * heartbeat_ms,
        heartbeat_timeout_many_ms=60 * heartbeat_ms,
        isolated_timeout_ms=120 * heartbeat_ms,
        reconnect_grace_ms=rng.choice((5, 30, 100)),
        view_resend_ms=rng.choice((20, 60, 150)),
        repair_timeout_ms=rng.choice((50, 200, 1000)),
        repair_rows_max=1 if seeds_first else rng.choice(rows),
        repairs_in_flight_max=1 if seeds_first else rng.choice((1, 2, 4)),
        seed_rows_max=4096 if seeds_first else rng.choice(rows),
        pushes_in_flight_max=64 if eager else rng.choice((4, 8, 16, 32) if storm else (1, 2, 4, 8)),
        resend_ms=rng.choice((60, 150, 400)),
    )


def _draw_network(rng: random.Random, config: ProtocolConfig, storm: bool) -> Network:
    slow = rng.choice((1.0, 5.0, 20.0))
    lossy = rng.random() < (0.3 if storm else 0.6)
    return Network(
        delay_min_ms=0.05,
        delay_max_ms=slow,
        lag_rate=rng.choice((0.1, 0.3, 0.5) if storm else (0.0, 0.0, 0.2)),
        lag_max_ms=rng.choice((0.1, 0.2)) * config.heartbeat_timeout_ms,
        views_lag_rate=rng.choice((0.1, 0.4, 0.7) if storm else (0.0, 0.1, 0.4)),
        views_lag_max_ms=rng.choice((0.1, 0.3)) * config.heartbeat_timeout_ms,
        straggle_rate=rng.choice((0.0, 0.01, 0.1)),
        # Heartbeats must still arrive in time: what is lost and late together stays below the timeout.
        straggle_max_ms=min(60.0, config.heartbeat_timeout_ms / 10),
        loss_rate=rng.choice((0.0, 0.01, 0.1)) if lossy else 0.0,
        repeat_rate=rng.choice((0.0, 0.02, 0.1)) if lossy else 0.0,
        outage_rate=rng.choice((0.0, 0.002, 0.01)) if lossy else 0.0,
        outage_max_ms=config.heartbeat_timeout_ms / 6,
        cut_on_disconnect=rng.random() < 0.5,
        streams=rng.random() < 0.5,
    )


def _draw_table(rng: random.Random, index: int, code: CodeSpec, rows: int) -> TableSpec:
    dim = rng.randint(1, 4)
    optimizer = rng.choice(
        (
            OptimizerSpec("sgd", (0.125,)),
            OptimizerSpec("adagrad", (0.1, 1e-8)),
            OptimizerSpec("rowwise-adagrad", (0.1, 1e-8)),
        )
    )
    uniform = rng.random() < 0.7
    return TableSpec(
        name=f"t{index}",
        rows=rows,
        dim=dim,
        code=code,
        optimizer=optimizer,
        init="uniform" if uniform else "zeros",
        init_seed=rng.randrange(1 << 31),
        init_scale=0.25 if uniform else 0.0,
        init_state=rng.choice((0.0, 0.5)),
    )


def _draw_tables(rng: random.Random, n: int, storm: bool, late_views: bool) -> tuple[TableSpec, ...]:
    codes = [code for code in CODES if sum(code) <= n and (not storm or code[1] > 1)]
    # Parities are solved together where two rows of a stripe are lost; that others of it go on needs a third. And some
    # traps snap only where a third shard dies beside two.
    hard = [code for code in codes if (code[0] > 2 and code[1] > 1) or code[1] > 2]
    k, r = rng.choice(hard if storm and hard and rng.random() < 0.7 else codes)
    if late_views:
        k, r = rng.choice([code for code in codes if code[0] > 2])
    generator = rng.choice(("cauchy", "cauchy", "isal-cauchy"))
    tables = [_draw_table(rng, 0, CodeSpec(k, r, generator), rng.randint(max(1, n * k // 2), 4 * n * k))]
    if rng.random() < 0.7 and 1 + r <= n:  # the dense part: replicated
        tables.append(_draw_table(rng, len(tables), CodeSpec(1, r, generator), rng.randint(1, 2 * n)))
    if rng.random() < 0.4:
        tables.append(_draw_table(rng, len(tables), CodeSpec(k, r, generator), rng.randint(1, 3 * n * k)))
    if rng.random() < 0.2:  # a code of its own, so that classes of several codes live side by side
        k, r = rng.choice([code for code in codes if code[1] >= r])
        tables.append(_draw_table(rng, len(tables), CodeSpec(k, r, "cauchy"), rng.randint(1, 3 * n)))
    if rng.random() < 0.5:
        tables = tables[1:] + tables[:1]
    return tuple(tables)


def _draw_wide_tables(seed: int, n: int) -> tuple[TableSpec, ...]:
    """Of a group that is larger than most."""
    rng = random.Random(f"wide tables {seed}")
    k, r = rng.choice([code for code in WIDE_CODES if sum(code) <= n])
    tables = [_draw_table(rng, 0, CodeSpec(k, r), rng.randint(n * k // 2, 2 * n * k))]
    if rng.random() < 0.7:
        tables.append(_draw_table(rng, 1, CodeSpec(1, r), rng.randint(1, 2 * n)))
    return tuple(tables)


def _draw_operations(
    rng: random.Random, tables: tuple[TableSpec, ...], count: int, exact: bool, eager: bool, think_ms: float
) -> tuple[Operation, ...]:
    hot = [[rng.randrange(table.rows) for _ in range(4)] for table in tables]
    operations = []
    for _ in range(count):
        kind = "push" if eager or rng.random() < 0.7 else ("assign" if rng.random() < 0.15 else "pull")
        rows = tuple(
            tuple(
                rng.choice(hot[i]) if rng.random() < 0.3 else rng.randrange(table.rows)
                for _ in range(rng.choice((1, 2, 4) if eager else (0, 1, 2, 4)))
            )
            for i, table in enumerate(tables)
        )
        if exact and kind == "pull":
            rows = tuple(tuple(dict.fromkeys(some)) for some in rows)
        operations.append(
            Operation(
                kind, rows, rng.randrange(1 << 31), rng.random() * think_ms, rng.random() < 0.3, rng.random() < 0.2
            )
        )
    return tuple(operations)


def _draw_flips(seed: int, plan: Plan) -> Plan:
    """Bits flip in some of the schedules with streams; what else is drawn does not depend on it."""
    rng = random.Random(f"flips {seed}")
    if not plan.network.streams or rng.random() >= 0.2:
        return plan
    return replace(plan, network=replace(plan.network, flip_rate=rng.choice((0.001, 0.005, 0.02))))


def _draw_storm(rng: random.Random, tolerance: int, horizon_ms: float, timeout_ms: float) -> list[Fault]:
    """A death early on, and others in the middle of the recoveries: that is where the traps are."""
    burst = tolerance if rng.random() < 0.4 else rng.randint(1, tolerance)
    triple = tolerance > 2 and rng.random() < 0.5
    first = Fault(
        "crash", at_ms=rng.random() * horizon_ms / 4, burst=rng.randint(1, 2) if triple else burst,
        lasts_ms=rng.random() * 20.0, noticed=rng.random() < 0.9,
    )  # fmt: skip
    faults = [first]
    if triple:
        # Two more die while the first comes back, and it is not well heard of.
        faults += [
            Fault("crash", message=rng.choice(("Join", "Reseed", "Window", "ShardStatus")), since="ShardUp",
                  count=rng.choice((1, 2, 4, 8, 16, 32)), side="other", burst=rng.randint(1, 2), noticed=True,
                  lasts_ms=rng.random() * 20.0),
            Fault("partition", message="Start", since="ShardUp", count=1, side="peers",
                  lasts_ms=(0.5 + rng.random()) * timeout_ms),
        ]  # fmt: skip
    for _ in range(rng.randint(1, 2 if triple else 5)):
        busy = rng.random() < 0.3
        faults.append(
            Fault(
                "crash",
                message=rng.choice(("Window", "WindowAck", "Push") if busy else WATCHED),
                count=rng.randint(1, rng.choice((10, 40, 150))) if busy else rng.choice((1, 1, 2, 3, 4, 6, 8, 12, 20)),
                since=rng.choice(("ShardUp", "ShardUp", "ShardDown")),
                side="other" if busy else rng.choice(("sender", "receiver", "other")),
                burst=rng.choice((1, 1, 2)),
                lasts_ms=rng.random() * rng.choice((5.0, 50.0)),
                noticed=rng.random() < 0.8,
                prefer_recovering=busy or rng.random() < 0.3,
            )
        )
    for _ in range(rng.choice((0, 1, 2, 3))):
        # Somebody hears of a view long after the others: their messages come before it.
        faults.append(
            Fault(
                "partition", message=rng.choice(("ShardUp", "ShardUp", "Settle", "ShardDown", "ShardWhole")),
                count=rng.choice((1, 1, 2, 3)), since=rng.choice(("", "ShardUp", "ShardDown")),
                side="from-scheduler", lasts_ms=rng.random() * timeout_ms,
            )
        )  # fmt: skip
    for _ in range(rng.choice((0, 1, 1, 2))):
        # Or of what a member sends, be it one that has just come up: what it sends to others overtakes it by far.
        faults.append(
            Fault(
                "partition", message=rng.choice(("Start", "Start", "Joined", "Reseed", "Repair", "Snap", "Mark")),
                count=rng.choice((1, 2, 3, 5)), since="ShardUp", side="peers", lasts_ms=rng.random() * timeout_ms,
            )
        )  # fmt: skip
    if rng.random() < 0.4:
        message, count = rng.choice(("ShardStatus", "Views", "Register")), rng.choice((1, 2, 4, 8, 16))
        lasts_ms = rng.random() * rng.choice((10.0, 100.0, 500.0))
        faults.append(Fault("scheduler", message=message, count=count, since="ShardUp", lasts_ms=lasts_ms))
    return faults


def _draw_faults(rng: random.Random, config: ProtocolConfig, tolerance: int, horizon_ms: float) -> list[Fault]:
    timeout_ms = config.heartbeat_timeout_ms
    faults: list[Fault] = []
    crashes = rng.choice((0, 1, 1, 2, 2, 3, 4, 6)) if tolerance else 0
    for _ in range(crashes):
        aimed = rng.random() < 0.6
        burst = rng.randint(1, tolerance)
        faults.append(
            Fault(
                "crash",
                at_ms=rng.random() * horizon_ms,
                message=rng.choice(WATCHED) if aimed else "",
                count=rng.choice((1, 2, 3, 5, 10, 20, 50)) if aimed else 0,
                side=rng.choice(("sender", "receiver", "other")),
                burst=burst if rng.random() < 0.5 else 1,
                lasts_ms=rng.choice((0.0, 20.0, 100.0, 500.0)) * rng.random(),
                noticed=rng.random() < 0.7,
                prefer_recovering=rng.random() < 0.5,
            )
        )
    for _ in range(rng.choice((0, 0, 1, 2))):
        aimed = rng.random() < 0.5
        faults.append(
            Fault(
                "scheduler",
                at_ms=rng.random() * horizon_ms,
                message=rng.choice(("ShardStatus", "Views", "Register")) if aimed else "",
                count=rng.choice((1, 3, 10, 30)) if aimed else 0,
                lasts_ms=rng.random() * rng.choice((10.0, 100.0, 1000.0)),
            )
        )
    for _ in range(rng.choice((0, 1, 3))):
        faults.append(Fault("slow-pair", at_ms=rng.random() * horizon_ms, lasts_ms=rng.random() * 400.0))
    for _ in range(rng.choice((0, 1, 2))):
        faults.append(Fault("pause", at_ms=rng.random() * horizon_ms, lasts_ms=rng.random() * timeout_ms / 10))
    if tolerance and rng.random() < 0.25:  # so long that it is taken for dead, and comes back a ghost
        faults.append(Fault("stall", at_ms=rng.random() * horizon_ms, lasts_ms=timeout_ms * (1.5 + 2 * rng.random())))
    return faults


def _draw_troubles(rng: random.Random, timeout_ms: float, tolerance: int, horizon_ms: float) -> list[Fault]:
    """Slow shards, partitions and clocks that jump; any may fall into a recovery."""
    faults: list[Fault] = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        message = rng.choice(("", "Join", "Repair"))
        faults.append(
            Fault(
                "slow-shard", at_ms=rng.random() * horizon_ms, message=message, count=rng.choice((1, 2, 4)),
                since="ShardUp" if message else "", lasts_ms=rng.random() * timeout_ms / 2,
            )
        )  # fmt: skip
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        side = rng.choice(("peers", "peers", "worker", "from-scheduler", "to-scheduler" if tolerance else "peers"))
        # Who cannot be heard for so long is taken for dead, and works on; all others are waited for.
        lasts_ms = timeout_ms * ((1.5 + 2 * rng.random()) if side == "to-scheduler" else 2 * rng.random())
        faults.append(Fault("partition", at_ms=rng.random() * horizon_ms, side=side, lasts_ms=lasts_ms))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        # A jump of the scheduler's clock that looks like a silence of some members, and no more, is one.
        far = rng.random() < 0.5
        jump_ms = timeout_ms * (0.6 + 4 * rng.random() if far else 0.1 * rng.random())
        side = rng.choice(("scheduler", "member"))
        faults.append(Fault("clock", at_ms=rng.random() * horizon_ms, side=side, lasts_ms=jump_ms))
    return faults


def _draw_beyond(rng: random.Random, horizon_ms: float) -> list[Fault]:
    """Deaths that the code does not stand, some in the middle of what follows such deaths."""
    faults = []
    for _ in range(rng.randint(0, 4)):
        aimed = rng.random() < 0.7
        faults.append(
            Fault(
                "crash",
                at_ms=rng.random() * horizon_ms,
                message=rng.choice(WATCHED) if aimed else "",
                count=rng.choice((1, 2, 4, 8, 20)) if aimed else 0,
                since="ShardUp" if aimed and rng.random() < 0.7 else "",
                side=rng.choice(("sender", "receiver", "other")),
                burst=rng.choice((1, 1, 2)),
                lasts_ms=rng.random() * rng.choice((5.0, 50.0)),
                noticed=rng.random() < 0.8,
                prefer_recovering=rng.random() < 0.3,
                beyond=True,
            )
        )
    return faults


def _draw_cut_off(seed: int, plan: Plan) -> Plan:
    """The plan with two members that do not reach each other for longer than the scheduler waits with that.

    Drawn apart, so that the rest of a seed stays what it was; without links that are slow, which look the same.
    """
    rng = random.Random(f"cut off {seed}")
    link_ms = plan.config.heartbeat_timeout_ms * (1 + rng.random())
    faults = [
        Fault("partition", at_ms=rng.random() * 300.0, side="peers", lasts_ms=link_ms * (2 + 3 * rng.random()))
        for _ in range(rng.randint(1, 2))
    ]
    kinds = ("crash", "scheduler", "worker", "worker-stall", "massacre")
    kept = [fault for fault in plan.faults if fault.kind in kinds][: rng.choice((1, 2, 4))]
    calm = replace(
        plan.network, lag_rate=0.0, views_lag_rate=0.0, straggle_rate=0.0, loss_rate=0.0, outage_rate=0.0,
        flip_rate=0.0,
    )  # fmt: skip
    config = msgspec.structs.replace(plan.config, link_timeout_ms=int(link_ms))
    return replace(plan, config=config, network=calm, faults=(*faults, *kept))


def _draw_silent(seed: int, plan: Plan) -> Plan:
    """The plan with silence that is no death, in a network that is calm, next to deaths that the code tolerates."""
    rng = random.Random(f"silent {seed}")
    config = msgspec.structs.replace(plan.config, reinitialise_lost=False)
    timeout_ms = config.heartbeat_timeout_ms
    at_ms = [rng.random() * 600.0 for _ in range(rng.randint(1, 2))]
    if seed % SILENT_EVERY == ISOLATED:
        lasts_ms = config.heartbeat_timeout_many_ms * (1.1 + rng.random())
        faults = [Fault("isolate", at_ms=at_ms[0], lasts_ms=lasts_ms, side=rng.choice(("both", "to-scheduler")))]
    elif seed % SILENT_EVERY == SILENCED:
        faults = [
            Fault("silence", at_ms=at, burst=rng.randint(1, plan.n), lasts_ms=timeout_ms * (1.2 + 1.3 * rng.random()))
            for at in at_ms
        ]
    else:
        config = msgspec.structs.replace(config, link_timeout_ms=int(timeout_ms * (1 + rng.random())))
        faults = [Fault("slow-reader", at_ms=at_ms[0], lasts_ms=config.link_timeout_ms * (1 + 2 * rng.random()))]
    kinds = ("crash", "scheduler", "worker")
    kept = [fault for fault in plan.faults if fault.kind in kinds and not fault.beyond][: rng.choice((0, 1, 2, 4))]
    calm = replace(
        plan.network, lag_rate=0.0, views_lag_rate=0.0, straggle_rate=0.0, loss_rate=0.0, outage_rate=0.0,
        flip_rate=0.0,
    )  # fmt: skip
    return replace(plan, config=config, network=calm, faults=(*faults, *kept), too_many=False)


def _draw_doubts(seed: int, plan: Plan) -> Plan:
    """The plan with false reasons to take shards for dead. Drawn apart: the rest of a seed stays what it was."""
    rng = random.Random(f"doubts {seed}")
    more = [
        Fault("disconnect", at_ms=rng.random() * 1000.0, burst=rng.randint(1, plan.n)) for _ in range(rng.randint(1, 4))
    ]
    more += [Fault("copy", at_ms=rng.random() * 1000.0) for _ in range(rng.randint(0, 2))]
    return replace(plan, faults=(*plan.faults, *more))


def _draw_deaf(seed: int, plan: Plan) -> Plan:
    """The plan with a member that is heard and confirms no view, and few kept views, in a network that is calm."""
    rng = random.Random(f"deaf {seed}")
    view_ms = plan.config.heartbeat_timeout_ms * (1 + rng.random())
    # It misses a view at once where it is struck as one is decided.
    message = rng.choice(("ShardUp", "ShardWhole", "ShardWhole", "Settle"))
    faults = [
        Fault("crash", at_ms=rng.random() * 200.0, lasts_ms=rng.random() * 20.0),
        Fault("deaf", message=message, count=1, lasts_ms=view_ms * (4 + 3 * rng.random())),
    ]
    late = plan.late_tables
    if len(plan.tables) > 1:  # a table that waits for it
        late, faults = max(1, late), [replace(faults[1], at_ms=rng.random() * 20.0, message="", count=0)]
    kept = [fault for fault in plan.faults if fault.kind in ("scheduler", "worker", "worker-stall")][:2]
    calm = replace(
        plan.network, lag_rate=0.0, views_lag_rate=0.0, straggle_rate=0.0, loss_rate=0.0, outage_rate=0.0,
    )  # fmt: skip
    config = msgspec.structs.replace(plan.config, view_timeout_ms=int(view_ms), views_kept_max=rng.choice((16, 10_000)))
    faults += kept
    return replace(plan, config=config, network=calm, faults=tuple(faults), too_many=False, late_tables=late)


def _draw_uncoded(seed: int, plan: Plan) -> Plan:
    """The plan with a table without parity as its first or second, and deaths, each of which costs rows of it."""
    rng = random.Random(f"uncoded {seed}")
    code = CodeSpec(rng.randint(1, plan.n), 0)
    extra = _draw_table(rng, len(plan.tables), code, rng.randint(1, 4 * plan.n))
    at = rng.randint(0, 1)
    tables = (*plan.tables[:at], extra, *plan.tables[at:])
    operations = tuple(
        tuple(
            replace(o, rows=(*o.rows[:at], tuple(rng.randrange(extra.rows) for _ in range(rng.choice((0, 1, 2)))),
                             *o.rows[at:]))
            if o.kind != "pull" else replace(o, rows=(*o.rows[:at], (), *o.rows[at:]))
            for o in own
        )
        for own in plan.operations
    )  # fmt: skip
    faults = [
        Fault("crash", at_ms=rng.random() * 500.0, lasts_ms=rng.random() * 50.0, noticed=rng.random() < 0.7)
        for _ in range(rng.randint(1, 3))
    ]
    config = msgspec.structs.replace(plan.config, reinitialise_lost=True)
    return replace(plan, tables=tables, late_tables=rng.randint(0, len(tables) - 1), config=config, too_many=True,
                   operations=operations, faults=tuple(faults))  # fmt: skip


def _draw_runs(seed: int, plan: Plan) -> Plan:
    """The plan with runs one after another, or with workers that die in a barrier; drawn apart."""
    rng = random.Random(f"runs {seed}")
    runs: tuple[int, ...] = ()
    faults, config = list(plan.faults), plan.config
    if rng.random() < 0.4:
        runs = tuple(rng.choice((2, plan.workers)) for _ in range(rng.randint(2, 3)))
    if rng.random() < 0.4:
        config = msgspec.structs.replace(config, lease_timeout_ms=rng.choice((15, 30, 60)) * config.heartbeat_ms)
        for _ in range(rng.randint(1, 3)):
            aimed = rng.random() < 0.6
            faults.append(
                Fault(
                    "worker" if rng.random() < 0.7 else "worker-stall",
                    at_ms=rng.random() * 400.0,
                    message=rng.choice(("Push", "PushAck", "JoinRun", "RunJoined", "Window")) if aimed else "",
                    count=rng.choice((1, 2, 5, 10, 20)) if aimed else 0,
                    lasts_ms=rng.random() * rng.choice((20.0, 200.0, 3.0 * config.lease_timeout_ms)),
                )
            )
    return replace(plan, runs=runs, faults=tuple(faults), config=config)


def _draw_bytes(seed: int, plan: Plan) -> Plan:
    """The plan with limits of bytes that its small rows reach. Drawn apart, so that the rest of a seed stays."""
    rng = random.Random(f"bytes {seed}")
    if rng.random() < 0.3 or any(op.bulk for some in plan.operations for op in some):
        return plan
    records = [4 * (table.dim + table.optimizer.state_floats(table.dim)) + 16 for table in plan.tables]
    most = max(sum(len(rows) * size for rows, size in zip(op.rows, records, strict=True))
               for some in plan.operations for op in some)  # fmt: skip
    largest = max(records) + most * (plan.workers if plan.mode == BARRIER else 1)
    few = (1, 64, 256, 4096)
    config = msgspec.structs.replace(
        plan.config,
        frame_bytes_max=largest * rng.choice((1, 2, 10)), unstable_bytes_max=largest * rng.choice((1, 4, 20)),
        seed_bytes_max=rng.choice(few), repair_bytes_max=rng.choice(few), scrub_bytes_max=rng.choice(few),
        repairs_wanted_max=rng.choice((1, 2, 64)), push_queue_bytes_max=largest * rng.choice((1, 4, 100)),
        captures_bytes_max=rng.choice((1 << 14, 1 << 20)), held_bytes_max=largest * rng.choice((1, 10, 100)),
        repair_timeout_ms=rng.choice((10, plan.config.repair_timeout_ms)),
    )  # fmt: skip
    return replace(plan, config=config)


def _draw_codes(rng: random.Random, n: int, r_min: int) -> list[CodeSpec]:
    """As many codes as a group can hold next to the three that a plan may have already."""
    pairs = [(k, r) for k in range(1, n) for r in range(max(r_min, 1), n - k + 1)]
    codes = [CodeSpec(k, r, generator) for k, r in pairs for generator in ("cauchy", "isal-cauchy")]
    rng.shuffle(codes)
    return codes[: CLASSES_MAX // n - 3]


def _draw_rare(seed: int, plan: Plan) -> Plan:
    """What few seeds have: all optimizers, wide rows, three groups, many codes, a table without parity.

    Drawn apart, so that the rest of a seed stays what it was.
    """
    rng = random.Random(f"rare {seed}")
    tables = list(plan.tables)
    if rng.random() < 0.4:
        tables = [msgspec.structs.replace(table, optimizer=rng.choice(OPTIMIZERS)) for table in tables]
    if rng.random() < 0.03:
        tables = [msgspec.structs.replace(table, dim=rng.choice((5, 8, 16, 33, 64))) for table in tables]
    operations = plan.operations
    if seed % MANY_CODES_EVERY == MANY_CODES_EVERY - 9 and plan.tolerance:
        known = {table.code for table in tables}
        more = [code for code in _draw_codes(rng, plan.n, plan.tolerance) if code not in known]
        tables += [_draw_table(rng, len(tables) + i, code, rng.randint(1, 3 * plan.n)) for i, code in enumerate(more)]
        operations = _with_bulk(rng, operations, (1, 2, 4))
    groups = 3 if plan.groups == 2 and rng.random() < 0.5 else plan.groups
    return replace(plan, tables=tuple(tables), operations=operations, groups=groups)


def _with_bulk(
    rng: random.Random, operations: tuple[tuple[Operation, ...], ...], sizes: Sequence[int], share: float = 1.0
) -> tuple[tuple[Operation, ...], ...]:
    """Operations with many rows more; those of one number have equally many, for barriers."""
    bulk = [rng.choice(sizes) if rng.random() < share else 0 for _ in range(max(map(len, operations), default=0))]
    return tuple(tuple(replace(op, bulk=bulk[i]) for i, op in enumerate(some)) for some in operations)


def _draw_large(seed: int, plan: Plan) -> Plan:
    """The plan with tables of thousands of rows, and pushes of hundreds and thousands, as production has them."""
    rng = random.Random(f"large {seed}")
    rows = rng.choice((500, 2_000, 2_000, 8_000))
    tables = tuple(
        msgspec.structs.replace(table, rows=max(table.rows, rng.randint(rows // 4, rows))) for table in plan.tables
    )
    most = rng.choice((100, 400, 1500, 3000, 3000))
    # The first ones are small: what they size, the later ones, which may meet a recovery, outgrow by far.
    early = _with_bulk(rng, plan.operations, (8 * plan.n, 24 * plan.n))
    late = _with_bulk(rng, plan.operations, (most // 8, most // 2, most), rng.choice((0.5, 1.0)))
    operations = tuple(
        some[: len(some) // 3] + others[len(some) // 3 :] for some, others in zip(early, late, strict=True)
    )
    config = msgspec.structs.replace(
        plan.config,
        window_bytes_max=rng.choice((4096, 64 << 10, 1 << 20, 64 << 20)),
        pushes_in_flight_max=rng.choice((8, 32, 64)),
        repair_rows_max=rng.choice((16, 64, 256, 4096)),
        seed_rows_max=rng.choice((16, 64, 256, 4096)),
        repair_timeout_ms=max(200, plan.config.repair_timeout_ms),
    )
    return replace(plan, tables=tables, operations=operations, config=config, threads=rng.choice((1, 1, 2, 3)))


def _draw_tuning(seed: int) -> tuple[dict[str, int], int]:
    """Thresholds of the native store, each at its default or far below, and its threads. Powers of two stay such."""
    rng = random.Random(f"tuning {seed}")
    if rng.random() < 0.5:
        return {}, 1
    before = tuning.defaults()
    small = {
        name: max(min(2, value), value >> rng.randint(1, max(1, value.bit_length() - 1)))
        for name, value in before.items()
        if name not in DRAWN_APART and rng.random() < 0.6
    }
    apart = random.Random(f"tuning apart {seed}")
    if apart.random() < 0.6:
        small["fold_batch_rows_threads"] = apart.choice((1, 2, 16, 128))
    if apart.random() < 0.6:
        small["unindexed_bytes_max"] = apart.choice((0, 0, 256, 1024, 4096))
    return {name: value for name, value in small.items() if value != before[name]}, rng.choice((1,) * 9 + (2,))


def _draw_pauses(seed: int, plan: Plan) -> Plan:
    """The plan with shards whose work has pauses and takes its time, and some that die in one. Drawn apart."""
    rng = random.Random(f"pauses {seed}")
    if rng.random() < 0.5:
        return plan
    plan = replace(plan, tuning={**plan.tuning, "pause_bytes": rng.choice((256, 4096, 4096, 1 << 16))})
    config = plan.config
    # Where a slow member is replaced sooner than by default, no work takes long.
    patient = config.link_timeout_ms == ProtocolConfig().link_timeout_ms and not config.view_timeout_ms
    if patient and rng.random() < 0.7:
        plan = replace(plan, pause_ms=rng.choice((0.1, 1.0, 5.0)))
    if any(fault.kind == "crash" for fault in plan.faults) and rng.random() < 0.5:
        since = rng.choice(("", "ShardDown", "ShardUp"))
        count = rng.choice((1, 2, 3, 5, 10, 30, 100))
        fault = Fault(
            "crash", message=PAUSE, count=count, since=since, side="receiver", lasts_ms=rng.random() * 50.0,
            noticed=rng.random() < 0.7,
        )  # fmt: skip
        plan = replace(plan, faults=(*plan.faults, fault))
    return plan


def _draw_broken(seed: int, plan: Plan) -> Plan:
    """The plan with something that stays broken, slow stable storage, or schedulers that stand by. Drawn apart."""
    rng = random.Random(f"broken {seed}")
    possible = ["links"] * (plan.network.loss_rate > 0 or plan.network.outage_rate > 0)
    possible += ["shards"] * (plan.mode != BARRIER and plan.tolerance > 0 and not plan.spares and not plan.too_many)
    possible += ["worker"] * (plan.mode == ASYNC and plan.workers > 1 and not plan.too_many)
    if possible and rng.random() < 0.1:
        plan = replace(plan, broken=rng.choice(possible))
    if rng.random() < 0.06:
        plan = replace(plan, persist_ms=rng.choice((2.0, 10.0, 40.0)))
    if rng.random() < 0.06:
        depose = [
            Fault("depose", at_ms=rng.random() * 500.0, lasts_ms=rng.random() * 2 * plan.config.heartbeat_timeout_ms)
            for _ in range(rng.randint(1, 3))
        ]
        plan = replace(plan, terms=True, faults=(*plan.faults, *depose))
    if plan.mode == ASYNC and rng.random() < 0.12:
        twice = [
            Fault("worker-twice", at_ms=rng.random() * 300.0, message=rng.choice(("", "Push", "PushAck")),
                  count=rng.choice((1, 5, 20)))
            for _ in range(rng.randint(1, 2))
        ]  # fmt: skip
        plan = replace(plan, faults=(*plan.faults, *twice))
    if seed % FLIPPED_EVERY == FLIPPED_EVERY - 4 and plan.tolerance and not plan.too_many:
        # A repair out of a damaged row gives wrong data: until a scrub has found it nobody may die.
        harmless = tuple(f for f in plan.faults if f.kind in ("pause", "slow-pair", "slow-shard", "scheduler"))
        flips = tuple(Fault("flip-parity", at_ms=rng.random() * 400.0) for _ in range(rng.randint(1, 3)))
        plan = replace(plan, faults=(*harmless, *flips), broken="")
    return plan


def _draw_states(seed: int, plan: Plan) -> Plan:
    """The plan with schedulers that are started with an older state, or without one. Drawn apart."""
    rng = random.Random(f"states {seed}")
    faults = tuple(
        Fault(rng.choice(("old-state", "lost-state")), at_ms=rng.random() * 800.0, lasts_ms=rng.random() * 100.0)
        for _ in range(rng.randint(1, 2))
    )
    return replace(plan, faults=(*plan.faults, *faults))


def _draw_leaves(seed: int, plan: Plan) -> Plan:
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
    return replace(plan, faults=(*plan.faults, *leaves))


def _draw_refusals(seed: int, plan: Plan) -> Plan:
    """The plan with tables and splits that are refused, and little room for pulls that wait. Drawn apart."""
    rng = random.Random(f"refusals {seed}")
    config = msgspec.structs.replace(plan.config, pulls_waiting_bytes_max=rng.choice((1, 32, 128)))
    return replace(plan, refusals=True, config=config)


def _draw_share(seed: int, plan: Plan) -> Plan:
    """The plan with how much of the time a recovery takes from workers. Drawn apart."""
    rng = random.Random(f"share {seed}")
    if rng.random() < 0.4:
        return plan
    config = msgspec.structs.replace(
        plan.config, recovery_share_percent=rng.choice((1, 10, 50, 100)), recovery_pause_max_ms=rng.choice((1.0, 30.0)),
        foreground_ms=rng.choice((0.0, 20.0, 1000.0)), foreground_rows_max=rng.choice((1, 2, 4096)),
        foreground_repairs_max=rng.choice((1, 2)),
    )  # fmt: skip
    return replace(plan, config=config)


def draw(seed: int, large: bool = False) -> Plan:
    """The plan of a seed; ``large``: with large tables and pushes, as one seed of `LARGE_EVERY` has anyway.

    Does not look at anything but the seed, and at which thresholds the native store has.
    """
    rng = random.Random(seed)
    late_views = seed % LATE_VIEWS_EVERY == LATE_VIEWS_EVERY - 3
    storm = rng.random() < 0.6 or late_views
    n = rng.choice((3, 4, 5, 5, 6) if storm else (2, 3, 3, 4, 4, 5, 5, 6, 7))
    groups = 2 if n <= 4 and rng.random() < 0.12 else 1
    if late_views:
        n, groups = rng.choice((5, 6)), 1
    wide = seed % WIDE_EVERY == WIDE_EVERY - 5
    if wide:
        n, groups = random.Random(f"wide {seed}").randint(8, SHARDS_IN_GROUP_MAX), 1
    tables = _draw_tables(rng, n, storm, late_views)
    if wide:
        tables = _draw_wide_tables(seed, n)
    if not storm and rng.random() < 0.03:
        tables = tuple(msgspec.structs.replace(table, code=CodeSpec(table.code.k, 0)) for table in tables)
    placement = Placement(n)
    for table in tables:
        placement.add(table.code)
    # Workers that wait for nothing, be it a pull or an acknowledgement, go on through every recovery. Else they soon
    # stand still in one, and there are no deltas for which it matters where a MARK stands in the stream.
    eager = storm and (rng.random() < 0.4 or late_views)
    config = _draw_config(rng, storm, eager)
    mode = rng.choice((SINGLE, ASYNC, ASYNC, BARRIER) if storm else (SINGLE, SINGLE, ASYNC, ASYNC, BARRIER))
    workers = 1 if mode == SINGLE else rng.randint(2, 3)
    # In a storm the workers go on pushing while shards recover, instead of having it all in flight before.
    think_ms = rng.choice((10.0, 30.0, 80.0) if storm else (0.5, 5.0, 30.0))
    network = _draw_network(rng, config, storm)
    count = max(4, rng.randint(*((60, 180) if storm else (30, 100))) // (n * groups * workers))
    if mode == BARRIER:  # the kinds must agree: a barrier takes one push of every worker
        kinds = _draw_operations(rng, tables, count, True, eager, think_ms)
        operations = tuple(
            tuple(
                Operation(shared.kind, own.rows, own.value_seed, own.think_ms, own.records, own.split)
                for shared, own in zip(kinds, _draw_operations(rng, tables, count, True, eager, think_ms), strict=True)
            )
            for _ in range(workers)
        )
    else:
        operations = tuple(
            _draw_operations(rng, tables, count, mode == SINGLE, eager, think_ms) for _ in range(workers)
        )
    tolerance = min(table.code.r for table in tables)
    horizon_ms = 100.0 + count * (think_ms + 4 * network.delay_max_ms) * 1.5
    faults = (
        _draw_storm(rng, tolerance, horizon_ms, config.heartbeat_timeout_ms) if storm and rng.random() < 0.8 else []
    )
    if not faults or rng.random() < 0.3:
        faults += _draw_faults(rng, config, tolerance, horizon_ms)
    faults += _draw_troubles(rng, config.heartbeat_timeout_ms, tolerance, horizon_ms)
    if late_views:
        timeout_ms = config.heartbeat_timeout_ms
        faults = [Fault("crash", at_ms=rng.random() * horizon_ms / 4, burst=2, lasts_ms=rng.random() * 20.0)] + [
            Fault("partition", message="ShardUp", count=count, side="from-scheduler", lasts_ms=timeout_ms / count)
            for count in (1, 2)
        ] + faults[: rng.randint(0, 3)]  # fmt: skip
    too_many = rng.random() < 0.04
    if too_many:
        faults.append(Fault("massacre", at_ms=rng.random() * horizon_ms, lasts_ms=rng.random() * 100.0))
    if too_many and (more := random.Random(f"beyond {seed}")).random() < 0.7:
        config = msgspec.structs.replace(config, reinitialise_lost=True)
        faults += _draw_beyond(more, horizon_ms)
    if mode == ASYNC and rng.random() < 0.2:  # only there, because the pushes it had in flight die with it
        faults.append(Fault("worker", at_ms=rng.random() * horizon_ms, lasts_ms=rng.random() * 100.0))
    spares = rng.choice((0, 0, 1, 2))
    plan = Plan(
        seed=seed,
        mode=mode,
        n=n,
        groups=groups,
        tables=tables,
        late_tables=rng.randint(0, len(tables) - 1) if rng.random() < 0.4 else 0,
        config=config,
        network=network,
        tick_ms=rng.choice((10.0, 20.0, 30.0)),
        spares=spares,
        named=not spares and rng.random() < 0.5,
        workers=workers,
        operations=operations,
        saves_ms=rng.choice((1.0, 2.0)) * horizon_ms if eager or (storm and rng.random() < 0.3) else 0.0,
        faults=tuple(faults),
        scrubs_ms=tuple(rng.random() * horizon_ms * 2 for _ in range(rng.choice((0, 1, 3)))),
        too_many=too_many,
        validate=seed % 4 == 0,
    )
    plan = _draw_flips(seed, plan)
    if mode == ASYNC and seed % 2 == 0:
        plan = draw_leases(seed, plan)
    thresholds, threads = _draw_tuning(seed)
    plan = replace(_draw_rare(seed, plan), tuning=thresholds, threads=threads)
    plan = _draw_broken(seed, plan)
    if large or seed % LARGE_EVERY == LARGE_EVERY - 2:
        plan = _draw_large(seed, plan)
    plan = _draw_bytes(seed, plan)
    if mode == BARRIER:
        plan = _draw_runs(seed, plan)
    # A repair out of a damaged row gives wrong data: where parity is damaged nobody may die.
    if plan.tolerance and not any(fault.kind == "flip-parity" for fault in plan.faults):
        if seed % UNCODED_EVERY == 10:
            plan = replace(_draw_uncoded(seed, plan), broken="")
        elif seed % DEAF_EVERY == 18:
            plan = replace(_draw_deaf(seed, plan), broken="")
        elif seed % CUT_OFF_EVERY == CUT_OFF_EVERY - 6:
            plan = replace(_draw_cut_off(seed, plan), broken="")
        elif seed % SILENT_EVERY in (ISOLATED, SILENCED, SLOW_READER):
            plan = replace(_draw_silent(seed, plan), broken="")
        elif seed % DOUBTS_EVERY in DOUBTS:
            plan = _draw_doubts(seed, plan)
    if seed % STATES_EVERY == 5 and not plan.terms and not plan.too_many:
        plan = _draw_states(seed, plan)
    replicated = any(table.code.k == 1 for table in plan.tables)
    alone = mode != BARRIER or not plan.deterministic
    late = plan.too_many or plan.late_tables or seed % STATES_EVERY == 5
    if replicated and alone and not late and random.Random(f"first {seed}").random() < 0.4:
        plan = replace(plan, initialise=True)
    if seed % REFUSALS_EVERY == 3:
        plan = _draw_refusals(seed, plan)
    return _draw_leaves(seed, _draw_share(seed, _draw_pauses(seed, plan)))

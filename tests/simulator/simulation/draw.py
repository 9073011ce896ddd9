"""What one seed means: the cluster, its tables, the network, the faults and the workload, all drawn before the run."""

import random

import msgspec

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import (
    SHARDS_IN_GROUP_MAX,
    CodeSpec,
    Placement,
    TableSpec,
)
from simulation.draw_tables import draw_tables, draw_wide_tables
from simulation.plan import ASYNC, BARRIER, SINGLE, Fault, Network, Operation, Plan
from simulation.strangers import draw_strangers
from simulation.variations import vary

WATCHED = (
    "Window", "WindowAck", "Stable", "Join", "Joined", "Reseed", "Repair", "CaptureParity", "Snap", "Marker",
    "Captured", "Repaired", "ShardDown", "Settle", "ShardUp", "ShardStatus", "Views", "Push", "Flush", "PushAck",
    "Pull", "Rows", "Hello", "Welcome", "any", "any",
)  # fmt: skip
"""Messages at whose delivery, and views at whose decision, a crash may be aimed: the rare ones of recovery are where
the traps are."""

LATE_VIEWS_EVERY = 16
"""One seed of so many is drawn for members that hear of a replacement late, while two shards of a wide code recover and
all others are pushed to: what comes before its view then carries rows."""


WIDE_EVERY = 61
"""One seed of so many has a group of 8 to 16 shards."""


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
        foreground_ms=200.0,  # long against the times of a run; `_draw_share` has others
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
            Fault("partition", message="FullView", since="ShardUp", count=1, side="peers",
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
                "partition",
                message=rng.choice(("FullView", "FullView", "Joined", "Reseed", "Repair", "Snap", "Marker")),
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
    """Deaths that the code does not tolerate, some in the middle of what follows such deaths."""
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


def draw(seed: int, large: bool = False) -> Plan:
    """The plan of a seed; ``large``: with large tables and pushes, as one seed of `variations.LARGE_EVERY` has anyway.

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
    tables = draw_tables(rng, n, storm, late_views)
    if wide:
        tables = draw_wide_tables(seed, n)
    if not storm and rng.random() < 0.03:
        tables = tuple(msgspec.structs.replace(table, code=CodeSpec(table.code.k, 0)) for table in tables)
    placement = Placement(n)
    for table in tables:
        placement.add(table.code)
    # Workers that wait for nothing, be it a pull or an acknowledgement, go on through every recovery. Else they soon
    # stand still in one, and there are no deltas for which it matters where a MARKER stands in the stream.
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
    return draw_strangers(seed, vary(plan, large))

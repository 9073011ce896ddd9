"""What a seed adds to a plan: each variation is drawn by itself, so that a new one leaves all others as they were."""

import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import (
    CLASSES_MAX,
    CodeSpec,
    OptimizerSpec,
)
from ecrec.protocol.placement import OPTIMIZERS as KINDS
from simulation import tuning
from simulation.draw_leaves import draw_leaves, draw_successions
from simulation.draw_tables import draw_table
from simulation.leases import draw_leases
from simulation.plan import ASYNC, BARRIER, PAUSE, Fault, Operation, Plan

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
"""One seed of so many has a scheduler that is started with an older state, a damaged one, or none."""

REFUSALS_EVERY = 11
"""One seed of so many has workers that ask for what the scheduler or a shard refuses."""

CHECKPOINTS_EVERY = 3
"""One seed of so many has checkpoints,"""
INCREMENTS_EVERY = 9
"""and one of so many increments, too."""

RATES_EVERY = 13
"""One seed of so many has pushes that take steps at learning rates of their own."""

UNCODED_EVERY = 32
"""One seed of so many has rows without parity next to coded ones; they begin again at each death."""

LARGE_EVERY = 29
"""One seed of so many has tables of thousands of rows, and pushes of hundreds and thousands: `_draw_large`."""

MANY_CODES_EVERY = 59
"""One seed of so many has as many codes as its group can hold, and so up to 64 classes."""

FLIPPED_EVERY = 53
"""One seed of so many has parity rows in which a bit turns over."""

DRAWN_APART = {"fold_batch_rows_threads", "pause_bytes", "unindexed_bytes_max"}
"""Thresholds of the store that came later: the rest of a seed stays what it was."""

_HYPER = {
    "sgd": (0.125,),
    "adagrad": (0.1, 1e-8),
    "rowwise-adagrad": (0.1, 1e-8),
    "adam": (0.01, 0.9, 0.999, 1e-8),
    "ftrl": (0.1, 1.0, 0.001, 0.001),
}
OPTIMIZERS = tuple(
    OptimizerSpec(name, _HYPER.get(name, (0.1, *(0.9,) * (len(kind.hyper) - 1)))) for name, kind in KINDS.items()
)


def _draw_flips(seed: int, plan: Plan) -> Plan:
    """Bits flip in some of the schedules with streams; what else is drawn does not depend on it."""
    rng = random.Random(f"flips {seed}")
    if not plan.network.streams or rng.random() >= 0.2:
        return plan
    return replace(plan, network=replace(plan.network, flip_rate=rng.choice((0.001, 0.005, 0.02))))


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
    extra = draw_table(rng, len(plan.tables), code, rng.randint(1, 4 * plan.n))
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
        push_queues_bytes_max=largest * random.Random(f"queues {plan.seed}").choice((1, 2, 100)),
        scrub_wrong_bytes_max=random.Random(f"scrub {plan.seed}").choice(few),
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
        tables += [draw_table(rng, len(tables) + i, code, rng.randint(1, 3 * plan.n)) for i, code in enumerate(more)]
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


def _draw_checkpoints(seed: int, plan: Plan) -> Plan:
    """The plan with checkpoints, in one seed of `CHECKPOINTS_EVERY`; drawn apart."""
    if seed % CHECKPOINTS_EVERY:
        return plan
    rng = random.Random(f"checkpoints {seed}")
    span_ms = rng.choice((50.0, 200.0, 1000.0))
    heartbeat_ms = plan.config.heartbeat_ms
    config = msgspec.structs.replace(
        plan.config,
        checkpoint_part_bytes=rng.choice((1, 64, 300, 4096, 1 << 20)),
        checkpoint_parts_in_flight_max=rng.choice((1, 2, 4)),
        checkpoint_bytes_per_s=rng.choice((1 << 10, 1 << 14, 1 << 30)),
        checkpoint_kept_bytes_max=rng.choice((1, 256, 4096, 1 << 20)),
        checkpoint_told_timeout_ms=rng.choice((2, 10, 40)) * heartbeat_ms,
        checkpoint_cut_timeout_ms=rng.choice((5, 20, 60)) * heartbeat_ms,
        checkpoint_stall_timeout_ms=rng.choice((10, 50)) * heartbeat_ms,
    )
    at_ms = [rng.random() * span_ms for _ in range(rng.randint(1, 4))]
    storage_ms, error_rate = rng.choice((0.1, 5.0, 50.0)), rng.choice((0.0, 0.0, 0.02, 0.2))
    increments = seed % INCREMENTS_EVERY == CHECKPOINTS_EVERY
    if increments:  # one after another, so that there are chains of them
        at_ms = [rng.random() * 1000.0 for _ in range(rng.randint(3, 9))]
        storage_ms = min(storage_ms, 5.0)
    return replace(
        plan, config=config, checkpoints_ms=tuple(sorted(at_ms)), storage_ms=storage_ms, storage_error_rate=error_rate,
        increments=increments,
        states=random.Random(f"states {seed}").random() < 0.5,
    )  # fmt: skip


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
    """The plan with schedulers that are started with an older state, a damaged one, or none. Drawn apart."""
    rng, torn = random.Random(f"states {seed}"), random.Random(f"torn {seed}")
    faults = tuple(
        Fault(rng.choice(("old-state", "lost-state")), at_ms=rng.random() * 800.0, lasts_ms=rng.random() * 100.0)
        for _ in range(rng.randint(1, 2))
    )
    faults = tuple(replace(fault, kind="torn-state") if torn.random() < 0.3 else fault for fault in faults)
    return replace(plan, faults=(*plan.faults, *faults))


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


def _draw_yields(rng: random.Random, plan: Plan) -> Plan:
    """The plan with workers that take no place of one that lives."""
    heartbeat_ms = plan.config.heartbeat_ms
    config = msgspec.structs.replace(
        plan.config, worker_place_kept_ms=rng.choice((6, 12)) * heartbeat_ms,
        worker_place_taken_ms=rng.choice((1, 3)) * heartbeat_ms,
    )  # fmt: skip
    return replace(plan, yields=True, config=config)


def vary(plan: Plan, large: bool) -> Plan:
    """The plan with what its seed adds; ``large``: with large tables and pushes whatever the seed says."""
    seed, mode = plan.seed, plan.mode
    plan = _draw_flips(seed, plan)
    # What shards can tell nobody again, splits and first values, is lost with some of the states that are lost.
    states_and_splits = seed % (2 * STATES_EVERY) == STATES_EVERY + 5
    states_and_first_values = seed % (2 * STATES_EVERY) == 5
    if mode == ASYNC and (seed % 2 == 0 or states_and_splits):
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
    late = plan.too_many or plan.late_tables or (seed % STATES_EVERY == 5 and not states_and_first_values)
    if replicated and alone and not late and random.Random(f"first {seed}").random() < 0.4:
        plan = replace(plan, initialise=True)
    if seed % REFUSALS_EVERY == 3:
        plan = _draw_refusals(seed, plan)
    workers = any(fault.kind in ("worker", "worker-twice") for fault in plan.faults)
    if workers and (rng := random.Random(f"yields {seed}")).random() < 0.3:
        plan = _draw_yields(rng, plan)
    plan = replace(plan, rates=seed % RATES_EVERY == RATES_EVERY - 2)
    plan = draw_leaves(seed, _draw_share(seed, _draw_pauses(seed, plan)))
    return _draw_checkpoints(seed, draw_successions(seed, plan))

"""What servers show over HTTP of themselves: a shard, and the scheduler of the whole cluster (docs/operations.md)."""

import time
from collections.abc import Callable, Iterator

from ecrec.launch.dashboard.feed import Feed
from ecrec.launch.redundancy import redundancy
from ecrec.launch.watched import COUNTER, GAUGE, Metric, Snapshot, counter, gauge
from ecrec.protocol.messages import DOWN, NOT_WHOLE, RECOVERING, RESEEDING, UP, ClusterState, HistoryEntry
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

NO_SCHEDULER = "no scheduler has answered yet"

_OF_STORE = {
    "data_rows_touched": "Rows of this shard that were touched.",
    "parity_rows_touched": "Parity rows of this shard that were touched.",
    "data_bytes_touched": "Bytes of the pages of touched rows.",
    "parity_bytes_touched": "Bytes of the pages of touched parity rows.",
    "resident_bytes": "Resident memory of the process, as its last heartbeat had it.",
    "classes_to_repair": "Classes of stripes of which rows are still to be repaired.",
    "classes_to_seed": "Classes of stripes of which parity is still to be seeded.",
}
"""Figures of a heartbeat -> what they are."""

_COUNTED_BY_WORKERS = (
    ("steps", "ecrec_worker_steps_total", "Steps of the worker."),
    ("examples", "ecrec_worker_examples_total", "Examples of the worker."),
    ("bytes_pulled", "ecrec_worker_pulled_bytes_total", "Bytes of rows that the worker pulled."),
    ("bytes_pushed", "ecrec_worker_pushed_bytes_total", "Bytes of row ids and gradients that the worker pushed."),
    ("waited_s", "ecrec_worker_waited_seconds_total", "Seconds of the worker's waiting for the cluster."),
)
_REPORTED_BY_WORKERS = (
    ("loss", "The loss that the worker reported last."),
    ("auc", "The AUC that the worker reported last."),
    ("normalized_entropy", "The normalized entropy that the worker reported last."),
)
_OF_RECOVERY = (
    ("repair_done", "ecrec_shard_rows_repaired_ratio", "Of a shard that recovers: the part of its rows that is here."),
    ("seed_done", "ecrec_shard_parity_seeded_ratio", "Of a shard that recovers: the part of its parity that is here."),
)


def of_shard(machine: ShardMachine) -> Snapshot:
    """Of a server with a place, or a spare."""
    context = machine.context
    counts, figures = context.counts, machine.heartbeats.figures
    metrics = [
        Metric(GAUGE, "ecrec_shard", "The place that this process has; -1: none.", [({}, float(machine.address.id))]),
        gauge("ecrec_epoch", "Which life of the shard this process is; 0: it has no place.", context.epoch),
        Metric(
            GAUGE,
            "ecrec_state",
            "1 for the state that this process is in.",
            [({"state": name}, float(name == _state(machine))) for name in ("spare", UP, RECOVERING, RESEEDING)],
        ),
        gauge("ecrec_view", "Number of the last view that it has followed.", max(0, context.view)),
        counter("ecrec_pushes_total", "Pushes applied.", counts.pushes),
        counter("ecrec_pushed_bytes_total", "Bytes of row ids and values of pushes applied.", counts.pushed_bytes),
        counter("ecrec_pushes_refused_total", "Pushes refused.", counts.refused_pushes),
        counter("ecrec_pulls_total", "Pulls answered.", counts.pulls),
        counter("ecrec_pulled_bytes_total", "Bytes of rows in answers.", counts.pulled_bytes),
        counter("ecrec_windows_total", "Windows of deltas closed.", max(0, context.window_number - 1)),
        gauge("ecrec_unstable_bytes", "Bytes of windows that a peer has not acknowledged.", context.unstable_bytes),
        gauge("ecrec_pulls_waiting", "Pulls that wait for a push or for rows.", len(context.pulls)),
        counter(
            "ecrec_parity_rows_corrected_total", "Parity rows that `ecrec verify` rewrote.", machine.scrubs.corrected
        ),
        *(gauge(f"ecrec_{name}", help, figures[name]) for name, help in _OF_STORE.items() if name in figures),
    ]
    return Snapshot(_not_ready(machine), metrics)


def _state(machine: ShardMachine) -> str:
    return machine.state or "spare"


def _not_ready(machine: ShardMachine) -> str:
    if machine.state in NOT_WHOLE:
        left = machine.heartbeats.figures
        repair, seed = left.get("classes_to_repair", 0), left.get("classes_to_seed", 0)
        return f"{machine.address} is {machine.state}: {repair:.0f} classes to repair, {seed:.0f} to seed"
    return "" if machine.state or machine.heartbeats.is_known else NO_SCHEDULER


def of_scheduler(feed: Feed) -> Callable[[SchedulerMachine], Snapshot]:
    """Ready as soon as it leads: members must reach it to become a cluster. The ``feed`` of the live page gets the same
    state."""

    def look(machine: SchedulerMachine) -> Snapshot:
        state = machine.cluster_state()
        feed.take(state, time.time())
        return Snapshot("", list(of_cluster(state)))

    return look


def of_cluster(state: ClusterState) -> Iterator[Metric]:
    """What a scheduler shows of its cluster."""
    shards = state.shards
    names = (UP, RECOVERING, RESEEDING, DOWN)
    counted = {name: sum(shard.state == name for shard in shards) for name in names}
    yield Metric(
        GAUGE, "ecrec_shards", "Shards by state.", [({"state": name}, count) for name, count in counted.items()]
    )
    yield Metric(
        GAUGE,
        "ecrec_shard_up",
        "1: the shard is whole.",
        [({"shard": str(shard.shard)}, float(shard.state == UP)) for shard in shards],
    )
    yield Metric(
        GAUGE,
        "ecrec_shard_epoch",
        "Which life of the shard it is.",
        [({"shard": str(shard.shard)}, shard.epoch) for shard in shards],
    )
    yield Metric(
        GAUGE,
        "ecrec_shard_silent_seconds",
        "Since the last heartbeat of the shard.",
        [({"shard": str(shard.shard)}, shard.silent_ms / 1e3) for shard in shards if shard.silent_ms >= 0],
    )
    replaced = sum(max(0, shard.epoch - 1) for shard in shards)
    yield counter("ecrec_replacements_total", "Places that were given anew, after a death or a leave.", replaced)
    if (took_s := _last_recovery_s(state.history)) is not None:
        yield gauge("ecrec_last_recovery_seconds", "From the last death of a shard until it was whole again.", took_s)
    yield gauge("ecrec_spares", "Servers that wait for a place.", state.spares)
    yield gauge("ecrec_suspected_shards", "Shards that are suspected, not declared down.", len(state.suspected))
    yield gauge("ecrec_leaving_shards", "Shards that were told to end and serve on.", len(state.leaving))
    yield Metric(
        GAUGE,
        "ecrec_deaths_tolerated",
        "How many more shards the coding group can lose without losing data.",
        [({"group": str(number)}, left) for number, left in enumerate(redundancy(state)) if left is not None],
    )
    yield gauge("ecrec_data_lost", "1: data was lost, and training has stopped.", float(bool(state.lost)))
    yield counter("ecrec_rows_reinitialised_total", "Lost rows with which training went on.", state.rows_reinitialised)
    yield counter("ecrec_updates_damaged_total", "Updates that losses may have undone.", state.updates_damaged)
    yield gauge("ecrec_tables", "Tables.", len(state.tables))
    yield gauge("ecrec_rows", "Rows of all tables.", sum(table.rows for table in state.tables))
    yield gauge("ecrec_workers", "Workers that are heard of.", len(state.workers))
    workers = sorted(state.workers.items())
    for name, metric, what in _COUNTED_BY_WORKERS:
        grown = [({"worker": str(worker)}, figures.get(name, 0.0)) for worker, figures in workers]
        yield Metric(COUNTER, metric, what, grown)
    for name, what in _REPORTED_BY_WORKERS:
        told = [({"worker": str(worker)}, figures[name]) for worker, figures in workers if name in figures]
        yield Metric(GAUGE, f"ecrec_worker_{name}", what, told)
    for name, metric, what in _OF_RECOVERY:
        parts = [({"shard": str(each.shard)}, each.figures[name]) for each in shards if name in each.figures]
        yield Metric(GAUGE, metric, what, parts)
    yield Metric(
        COUNTER,
        "ecrec_examples_trained_total",
        "Examples of a data set whose push is durable on all shards.",
        [({"dataset": data.dataset.name}, data.trained) for data in state.datasets],
    )
    if state.saved is not None:
        yield gauge("ecrec_checkpoint", "Number of the newest complete checkpoint.", state.saved.checkpoint)


def _last_recovery_s(history: list[HistoryEntry]) -> float | None:
    """Of the newest entry ``whole`` that follows a ``down`` of the same shard."""
    for number in reversed(range(len(history))):
        if history[number].event != "whole":
            continue
        for before in reversed(history[:number]):
            if before.shard == history[number].shard and before.event == "down":
                return (history[number].at_ms - before.at_ms) / 1e3
    return None

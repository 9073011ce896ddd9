"""The report of a training run, computed from what was recorded."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ecrec.launch.groups import Groups
from ecrec.protocol.loss import describe_rows
from ecrec.protocol.messages import ClusterState, DatasetFigures, HistoryEntry

CALM_S_MIN = 0.25
"""A shorter span between two disturbances has no throughput worth the name."""

THROUGHPUT_SPAN_S = 5.0
"""Throughput before and after a kill is that of at most so many seconds: the run as it was just then."""


class Step(NamedTuple):
    """A worker finished a step of so many examples, at a time in seconds of the monotonic clock."""

    at: float
    worker: int
    examples: int
    skipped: int = 0
    """Rows of the data that it left out."""


class FirstRow(NamedTuple):
    """A worker got its first rows from an incarnation of a shard."""

    at: float
    shard: int
    epoch: int


class KillDone(NamedTuple):
    """SIGKILL was sent to a shard's process."""

    at: float
    shard: int
    step: int


class Times(NamedTuple):
    """What followed a kill, in seconds of the monotonic clock; None is what never came."""

    down: float | None
    first_row: float | None
    whole: float | None


def times_of(kill: KillDone, history: Sequence[HistoryEntry], first_rows: Iterable[FirstRow]) -> Times:
    """The death that the kill caused, the first rows of a later incarnation, and when one of them was
    whole."""

    def first(event: str, epoch: int) -> HistoryEntry | None:
        return next(
            (
                entry
                for entry in history
                if entry.event == event
                and entry.shard == kill.shard
                and entry.epoch >= epoch
                and entry.at_ms / 1e3 >= kill.at
            ),
            None,
        )

    down = first("down", 0)
    if down is None:
        return Times(None, None, None)
    whole = first("whole", down.epoch + 1)
    answers = [row.at for row in first_rows if row.shard == kill.shard and row.epoch > down.epoch]
    return Times(down.at_ms / 1e3, min(answers, default=None), whole.at_ms / 1e3 if whole else None)


def throughput(steps: Sequence[Step], begin: float, end: float) -> float | None:
    """Examples a second of the steps finished in begin < at <= end; None for an empty span."""
    if end <= begin:
        return None
    return sum(step.examples for step in steps if begin < step.at <= end) / (end - begin)


def _calm(steps: Sequence[Step], begin: float, end: float) -> float | None:
    return throughput(steps, begin, end) if end - begin >= CALM_S_MIN else None


def longest_pause_s(steps: Sequence[Step], begin: float, end: float) -> float | None:
    """Longest time between two steps of the same worker that overlaps begin..end; None without steps."""
    longest = None
    for worker in {step.worker for step in steps}:
        times = sorted(step.at for step in steps if step.worker == worker)
        for before, after in itertools.pairwise(times):
            if after > begin and before < end:
                longest = max(longest or 0.0, after - before)
    return longest


def kill_entries(
    kills: Sequence[KillDone],
    steps: Sequence[Step],
    history: Sequence[HistoryEntry],
    first_rows: Sequence[FirstRow],
) -> list[dict[str, Any]]:
    """One entry a kill; times in seconds, throughputs in examples a second.

    ``detect_s`` is from the kill until the scheduler declared the shard down, ``first_row_s`` from then until
    a worker got rows from the replacement, ``whole_s`` from the kill until the group could lose r shards
    again. ``throughput_during`` spans the kills of a step until all of them are whole (or the last step,
    where training ended before); before and after are the undisturbed spans next to it, None where there is
    none.
    """
    if steps:
        begin, end = min(step.at for step in steps), max(step.at for step in steps)
    else:
        begin = end = 0.0
    disturbances: dict[int, Disturbance] = {}
    for kill in kills:
        whole = times_of(kill, history, first_rows).whole
        known = disturbances.get(kill.step, Disturbance(kill.at, kill.at))
        disturbances[kill.step] = Disturbance(
            min(known.begin, kill.at), max(known.end, math.inf if whole is None else whole)
        )
    return [
        {
            "shard": kill.shard,
            "step": kill.step,
            **_durations(kill, times_of(kill, history, first_rows)),
            **_throughputs(steps, disturbances[kill.step], list(disturbances.values()), begin, end),
        }
        for kill in kills
    ]


class Disturbance(NamedTuple):
    """From the first kill of a step until all its shards are whole (infinite: never)."""

    begin: float
    end: float


def _durations(kill: KillDone, times: Times) -> dict[str, float | None]:
    return {
        "detect_s": _between(kill.at, times.down),
        "first_row_s": _between(times.down, times.first_row),
        "whole_s": _between(kill.at, times.whole),
    }


def _throughputs(
    steps: Sequence[Step], this: Disturbance, all_of_them: Sequence[Disturbance], begin: float, end: float
) -> dict[str, float | None]:
    others = [other for other in all_of_them if other is not this]
    calm_from = max([begin] + [other.end for other in others if other.begin < this.begin])
    calm_to = min([end] + [other.begin for other in others if other.begin >= this.begin])
    return {
        "throughput_before": _calm(steps, max(calm_from, this.begin - THROUGHPUT_SPAN_S), this.begin),
        "throughput_during": throughput(steps, this.begin, min(this.end, end)),
        "throughput_after": _calm(steps, this.end, min(calm_to, this.end + THROUGHPUT_SPAN_S)),
        "longest_pause_s": longest_pause_s(steps, this.begin, min(this.end, end)),
    }


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def lost_updates(acked: Mapping[int, Mapping[int, int]], watermarks: Mapping[int, Mapping[int, int]]) -> int:
    """Pushes that workers were told are durable and that shards do not have.

    ``acked``: worker -> shard -> last push acknowledged. ``watermarks``: shard -> worker -> last push
    applied.
    """
    return sum(
        max(0, push - watermarks.get(shard, {}).get(worker, 0))
        for worker, shards in acked.items()
        for shard, push in shards.items()
    )


def loss_entries(state: ClusterState) -> list[dict[str, Any]]:
    """One entry for each time that more shards died than the code tolerates: which rows, how many updates with them."""
    sizes = {table.name: table.rows for table in state.tables}
    return [
        {
            "at_s": loss.at_ms / 1e3,
            "group": loss.group,
            "view": loss.view,
            "rows": sum(some.rows for some in loss.rows),
            "updates": loss.updates,
            "reinitialised": loss.reinitialised,
            "lost": [
                {
                    "table": some.table,
                    "of": sizes[some.table],
                    "shard": some.shard,
                    "rows": some.rows,
                    "first": some.first,
                    "step": some.step,
                }
                for some in loss.rows
            ],
            "text": (
                f"more servers died than the code tolerates: {sum(some.rows for some in loss.rows):,} rows were lost, "
                f"and up to {loss.updates:,} updates in part: {describe_rows(loss.rows, state.tables)}"
            ),
        }
        for loss in state.losses
    ]


def group_entries(
    groups: Groups, kills: Sequence[KillDone], history: Sequence[HistoryEntry], state: ClusterState
) -> list[dict[str, Any]]:
    """One entry for each coding group: its shards (numbered over all groups), view, kills, deaths, losses."""
    deaths = [groups.of(entry.shard) for entry in history if entry.event == "down"]
    return [
        {
            "group": group,
            "shards": list(groups.members(group)),
            "view": state.views[group],
            "kills": sum(groups.of(kill.shard) == group for kill in kills),
            "deaths": deaths.count(group),
            "losses": sum(loss.group == group for loss in state.losses),
        }
        for group in range(groups.count)
    ]


def data_figures(datasets: Sequence[DatasetFigures], pushed: int) -> dict[str, int]:
    """What the scheduler counted of the data; ``pushed`` examples, where the workers had no leases.

    ``examples_repeated`` is exact: examples of batches that were on their way when their worker died, which some shards
    had applied and others had not, and which another worker trained on again.
    """
    return {
        "examples_trained": sum(d.trained for d in datasets) if datasets else pushed,
        "examples_repeated": sum(d.repeated for d in datasets),
        "splits": sum(d.splits for d in datasets),
        "splits_handed_on": sum(d.handed_on for d in datasets),
    }

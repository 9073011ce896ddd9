"""What the live page shows: the cluster's state in the words of people, and how it was in the last minutes.

The document is described in docs/operations.md. Whoever changes the meaning of a field, or takes one away, raises
`VERSION`.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from ecrec.launch.dashboard.deaths import own_clock, stories
from ecrec.launch.redundancy import redundancy
from ecrec.protocol.messages import UP, ClusterState, ShardFigures
from ecrec.urls import shown

VERSION = 1
EVERY_S = 1.0
"""A point of the series, and a look of the page."""
SPAN_S = 600.0
"""Of the series: a recovery takes seconds to minutes, and a page that is opened after it still shows it."""
EARLY_SHARE = 0.8
"""A state that comes so much of `EVERY_S` after the last point is a point of its own: no clock is even."""
RATE_S = 5.0
"""Rates are those of so many seconds: steps may take seconds, and are counted when they end."""
CLOCK_JUMP_S = 1.0
"""A difference of two clocks that moves by more has another reason than how long an answer took."""
DEATHS_MAX = 20
EVENTS_MAX = 40
WORKERS_MAX = 200
TABLES_MAX = 200
"""Of those that the document lists, it has so many at most, and says how many there are."""

DIGITS = 6
"""Behind the point of each number of the series: a loss and an AUC have no more that say anything."""

SERIES = ("examples_per_s", "loss", "auc", "pulled_bytes_per_s", "pushed_bytes_per_s", "shards_up")
_COUNTERS = {"examples": "examples_per_s", "bytes_pulled": "pulled_bytes_per_s", "bytes_pushed": "pushed_bytes_per_s"}
"""Figure of a worker that only grows -> its rate."""
_SHOWN = ("loss", "auc", "normalized_entropy")
"""Figures of a worker that are shown as they are; of all workers, as their mean."""


class _Counted(NamedTuple):
    at_s: float
    counts: tuple[float, ...]


class _Rates:
    """How fast the counters of each worker grow. One that begins anew is another life of it, and counted from zero."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[_Counted]] = {}

    def take(self, workers: dict[int, dict[str, float]], now_s: float) -> None:
        for worker, figures in workers.items():
            counts = tuple(figures.get(name, 0.0) for name in _COUNTERS)
            seen = self._seen.setdefault(worker, deque())
            if seen and now_s <= seen[-1].at_s:
                seen.clear()  # the clock was set back
            seen.append(_Counted(now_s, counts))
            while len(seen) > 2 and seen[1].at_s <= now_s - RATE_S:
                seen.popleft()
        for worker in [w for w, seen in self._seen.items() if seen[-1].at_s < now_s - SPAN_S]:
            del self._seen[worker]

    def of(self, worker: int) -> dict[str, float | None]:
        """None until it was seen twice."""
        seen = list(self._seen.get(worker, ()))
        if len(seen) < 2:
            return dict.fromkeys(_COUNTERS.values())
        span_s = seen[-1].at_s - seen[0].at_s
        grown = [0.0] * len(_COUNTERS)
        for before, after in itertools.pairwise(seen):
            is_new = any(b < a for a, b in zip(before.counts, after.counts, strict=True))
            for index, count in enumerate(after.counts):
                grown[index] += count if is_new else count - before.counts[index]
        return {name: count / span_s for name, count in zip(_COUNTERS.values(), grown, strict=True)}


class _Taken(NamedTuple):
    """What was known when the last state was taken; nobody changes it."""

    state: ClusterState
    heard_s: float
    offset_s: float
    """Added to seconds of the scheduler's clock, it gives seconds since 1970."""
    rates: dict[int, dict[str, float | None]]
    """Worker -> its rates, when the last point was made."""
    now: dict[str, float | None]
    """Of all workers together, then."""


class Feed:
    """The state that was taken last, and the series; `take` and `document` may be called by different threads.

    A scheduler calls `take` in its loop: it waits for no one who reads.
    """

    def __init__(self, source: str) -> None:
        """``source``: whom the page hears, for people: ``the scheduler at this address``, or an endpoint."""
        self.source = source
        self._lock = threading.Lock()
        """Held for as long as it takes to append to the series, or to copy them."""
        self._taken: _Taken | None = None
        self._rates = _Rates()
        self._points: deque[tuple[float, ...]] = deque()
        """Each with its time, and a number for each of `SERIES`, NaN where that is not known."""

    def take(self, state: ClusterState, now_s: float) -> None:
        """A state that was told just now, in seconds since 1970."""
        before = self._taken
        # trap: these lists are the scheduler's own, which its loop changes while another thread makes a document
        state = msgspec.structs.replace(state, history=list(state.history), tables=list(state.tables))
        offset_s = now_s - state.now_ms / 1e3
        if before is not None and abs(offset_s - before.offset_s) <= CLOCK_JUMP_S:
            # An answer is late by what its way took, and never early.
            offset_s = min(offset_s, before.offset_s)
        at_s = self._points[-1][0] if self._points else -math.inf
        if before is not None and at_s <= now_s < at_s + EVERY_S * EARLY_SHARE:
            self._taken = before._replace(state=state, heard_s=now_s, offset_s=offset_s)
            return
        self._rates.take(state.workers, now_s)
        rates = {worker: self._rates.of(worker) for worker in state.workers}
        now = _of_all(state, rates)
        with self._lock:
            if now_s < at_s:
                self._points.clear()  # the clock was set back
            self._points.append((round(now_s, DIGITS), *(_number(now[name]) for name in SERIES)))
            while self._points[0][0] < now_s - SPAN_S:
                self._points.popleft()
        self._taken = _Taken(state, now_s, offset_s, rates, now)

    def document(self, now_s: float) -> dict[str, Any]:
        """All that the page shows, for JSON. What is not known is None, or NaN in the series."""
        taken = self._taken
        out: dict[str, Any] = {
            "version": VERSION,
            "at": now_s,
            "every_s": EVERY_S,
            "source": self.source,
            "heard_at": None if taken is None else taken.heard_s,
        }
        if taken is None:
            return {**out, "verdict": {"kind": "unknown", "text": "The scheduler has not answered yet."}}
        with self._lock:
            points = list(self._points)
        series = dict(zip(("at", *SERIES), map(list, zip(*points, strict=True)), strict=True))
        return {**out, **_cluster(taken), "now": taken.now, "series": series}


# ------------------------------------------------------------------ parts of the document
def _cluster(taken: _Taken) -> dict[str, Any]:
    state = taken.state
    left = redundancy(state)
    shards = sorted(state.shards, key=lambda shard: shard.shard)
    told = stories(state.history, state.n, state.now_ms, taken.offset_s)
    workers = sorted(state.workers)
    waiting = [each for each in state.waiting if each.is_spare]
    return {
        "cluster": state.cluster,
        "verdict": verdict(state, left),
        "lost": state.lost,
        "rows_reinitialised": state.rows_reinitialised,
        "updates_damaged": state.updates_damaged,
        "groups": [
            {
                "group": group,
                "shards": [each.shard for each in shards if each.shard // state.n == group],
                "tolerates": left[group],
                "view": state.views[group],
            }
            for group in range(state.groups)
        ],
        "shards": [_shard(state, each) for each in shards],
        "spares": [{"endpoint": each.endpoint, "reached": each.is_reached} for each in waiting],
        "workers": [_worker(taken, worker) for worker in workers[:WORKERS_MAX]],
        "workers_count": len(workers),
        "tables": [
            {
                "name": each.name, "rows": each.rows, "dim": each.dim, "code": str(each.code),
                "optimizer": each.optimizer.name,
            }
            for each in state.tables[:TABLES_MAX]
        ],
        "tables_count": len(state.tables),
        "datasets": [
            {"name": each.dataset.name, "trained": each.trained, "end": each.dataset.end, "repeated": each.repeated}
            for each in state.datasets
        ],
        "checkpoint": _checkpoint(state),
        "deaths": told[-DEATHS_MAX:],
        "deaths_count": len(told),
        "events": _events(taken),
    }  # fmt: skip


def _shard(state: ClusterState, each: ShardFigures) -> dict[str, Any]:
    figures = each.figures
    doubt = state.suspected.get(each.shard, "")
    return {
        "shard": each.shard,
        "group": each.shard // state.n,
        "state": each.state,
        "epoch": each.epoch,
        "endpoint": each.endpoint,
        "heard_s": each.silent_ms / 1e3 if each.silent_ms >= 0 else None,
        "rows": figures.get("data_rows_touched"),
        "memory_bytes": _sum(figures.get("data_bytes_touched"), figures.get("parity_bytes_touched")),
        "resident_bytes": figures.get("resident_bytes"),
        "rows_repaired": figures.get("repair_done"),
        "parity_seeded": figures.get("seed_done"),
        "suspected": doubt,
        "leaving": state.leaving.get(each.shard, ""),
        "unheard_by": sorted(state.unheard.get(each.shard, {})),
    }


def _worker(taken: _Taken, worker: int) -> dict[str, Any]:
    figures = taken.state.workers[worker]
    counted = {name: figures.get(name) for name in ("steps", "examples", "waited_s", "longest_pause_s")}
    return {"worker": worker, **counted, **_shown(figures), **taken.rates.get(worker, {})}


def _checkpoint(state: ClusterState) -> dict[str, Any] | None:
    saving = state.saving
    if saving is None:
        return None
    return {"checkpoint": saving.checkpoint, "url": shown(saving.url), "state": saving.state, "error": saving.error}


def _events(taken: _Taken) -> list[dict[str, Any]]:
    state = taken.state
    first = own_clock(state.history, state.now_ms)
    last = max(0, len(state.history) - EVENTS_MAX)
    return [
        {
            "at": entry.at_ms / 1e3 + taken.offset_s if number >= first else None,
            "event": entry.event, "shard": entry.shard, "epoch": entry.epoch, "reason": entry.reason,
        }
        for number, entry in enumerate(state.history[last:], last)
    ]  # fmt: skip


def _of_all(state: ClusterState, rates: dict[int, dict[str, float | None]]) -> dict[str, float | None]:
    """Of all workers together: the sum of rates, the mean of the rest. None where nobody says."""
    figures = [_shown(each) for each in state.workers.values()]
    out = {name: _sum(*(each[name] for each in rates.values())) for name in _COUNTERS.values()}
    out |= {name: _mean(each[name] for each in figures) for name in _SHOWN}
    out["shards_up"] = float(sum(each.state == UP for each in state.shards))
    return out


def verdict(state: ClusterState, left: Sequence[int | None]) -> dict[str, str]:
    """How the cluster is, in one sentence that changes only when that does. ``kind``: lost, reduced, forming, whole."""
    of_all = state.groups * state.n
    not_up = sorted((each for each in state.shards if each.state != UP), key=lambda each: each.shard)
    if state.lost:
        return {"kind": "lost", "text": f"Data is lost, and training has stopped: {state.lost}."}
    if all(each.epoch == 0 for each in state.shards):
        waiting = len(state.waiting)
        servers = f"{waiting} of {of_all} servers {'is' if waiting == 1 else 'are'} there"
        return {"kind": "forming", "text": f"The cluster waits for its servers: {servers}."}
    weak = sorted({each.shard // state.n for each in not_up})
    if not_up:
        who = ", ".join(f"ps {each.shard} is {each.state}" for each in not_up[:4])
        more = f", and {len(not_up) - 4} more are not whole" if len(not_up) > 4 else ""
        goes_on = " Training goes on." if state.workers else ""
        return {"kind": "reduced", "text": f"{who}{more}.{goes_on}{_risk(state.groups, weak, left)}"}
    if state.rows_reinitialised:
        rows = f"{state.rows_reinitialised:,} rows were lost before, and began anew"
        return {"kind": "reduced", "text": f"All {of_all} servers are whole. {rows}."}
    if state.suspected:
        who = ", ".join(f"ps {shard}" for shard in sorted(state.suspected))
        return {"kind": "reduced", "text": f"All {of_all} servers are whole; {who} is suspected, not declared down."}
    return {"kind": "whole", "text": f"All {of_all} servers are whole."}


def _risk(groups: int, weak: Sequence[int], left: Sequence[int | None]) -> str:
    """What another death would do in the groups that are not whole."""
    known = [(group, more) for group in weak if (more := left[group]) is not None]
    if not known:
        return ""
    worst = min(more for _, more in known)
    where = "" if groups == 1 else f" in group {', '.join(str(group) for group, more in known if more == worst)}"
    if worst < 0:
        return f" More servers{where} are missing than the code tolerates."
    return f" Another death{where} would lose data." if worst == 0 else " Another death is tolerated."


def _shown(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: figures[name] if math.isfinite(figures.get(name, math.nan)) else None for name in _SHOWN}


def _number(value: float | None) -> float:
    return math.nan if value is None else round(value, DIGITS)


def _sum(*values: float | None) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None

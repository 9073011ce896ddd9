"""Training at full load while servers are killed all the time: nothing is lost, and no process grows.

    python bench/soak.py --seconds 600 --kill-every 20 --report soak.json
    python bench/soak.py --seconds 60 --kill-every 10 --warm-up 20

Runs ``ecrec train`` with --chaos-kill-every, and looks at the resident memory of all its processes each second. After
the warm-up, in which rows are touched for the first time and allocators come to what they keep, two things are looked
at. The time is cut in three, and for each role the median of the last third must not be far above that of the first.
Scheduler, worker and launcher are one process each, which lives all the time. Of the parameter servers, spares
included, the sum is compared: one that lives keeps some MB of each recovery it took part in, up to a bound, and its
replacement starts small. What they leak would be hidden by that, so while the same processes live and no recovery is
near, no server may grow by more than a little a minute.

Exit code 1 if something grows, an update is lost, parity does not fit, or there were fewer kills than time for them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import add_run_options, describe, train, training_options, write_json

EVERY_S = 1.0
GROWTH_MAX = 0.05
"""A role may grow by so large a part, first third to last: what sampling a cluster in motion leaves open."""
GROWTH_BYTES_MAX = 8 << 20
"""And by so many bytes a process."""
RECOVERY_BYTES = 32 << 20
"""By so many instead a parameter server, whatever it holds: the allocators of one that took part in a recovery keep 10
to 45 MB that a new one has not, and kills change the mixture of those that did and those that did not yet."""
STEADY_GROWTH_MAX = 4 << 20
"""Bytes a minute by which a server may grow while nobody dies. (A worker moves by more, up and down, in seconds.)"""
SETTLING_S = 3.0
"""For so many seconds after a change of processes, what a recovery allocates and frees does not count as growth."""

SERVER = "server"
ROLES = {
    "ecrec.launch.servers.scheduler": "scheduler",
    "ecrec.launch.servers.ps": SERVER,
    "ecrec.launch.worker": "worker",
}
LAUNCHER = "launcher"
ROWS = 5_000
"""Buckets a table where --rows is not given: few enough that all are touched within the warm-up."""


class Sample(NamedTuple):
    """Resident bytes of all processes at a time, by role and process id."""

    at: float
    resident: dict[str, dict[int, int]]

    @property
    def processes(self) -> frozenset[int]:
        return frozenset(pid for role in self.resident.values() for pid in role)


class Series(NamedTuple):
    """One figure over time: name, the most processes it is the sum of, and a value of each sample."""

    name: str
    processes: int
    values: list[float]


class Trend(NamedTuple):
    """Medians of the thirds of a series, in bytes, and its largest value."""

    name: str
    processes: int
    thirds: tuple[float, float, float]
    largest: float

    @property
    def grows(self) -> bool:
        allowed = RECOVERY_BYTES if self.name == SERVER else GROWTH_BYTES_MAX
        return self.thirds[2] > self.thirds[0] * (1 + GROWTH_MAX) + self.processes * allowed


class Sampler:
    """A thread that looks at this process and all its descendants."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-sampler", daemon=True)

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            self.samples.append(Sample(time.monotonic(), look()))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()


def look() -> dict[str, dict[int, int]]:
    """Resident bytes of this process and its descendants, by role and process id."""
    me = psutil.Process()
    resident: dict[str, dict[int, int]] = {LAUNCHER: {me.pid: me.memory_info().rss}}
    for process in me.children(recursive=True):
        try:
            words, rss = process.cmdline(), process.memory_info().rss
        except psutil.Error:
            continue
        role = next((ROLES[word] for word in words if word in ROLES), None)
        if role is not None and rss:
            resident.setdefault(role, {})[process.pid] = rss
    return resident


def series_of(samples: Sequence[Sample]) -> list[Series]:
    """Of each role the sum."""
    roles = sorted({role for sample in samples for role in sample.resident})
    found = []
    for role in roles:
        resident = [sample.resident.get(role, {}) for sample in samples]
        found.append(Series(role, max(map(len, resident)), [float(sum(each.values())) for each in resident]))
    return found


def steady_growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Bytes a minute by which a process of each role grew while the same processes lived, from SETTLING_S after the
    last change of them: the median over all processes and spans. A role of which there was no such span is missing."""
    rates: dict[str, list[float]] = {}
    for _, group in itertools.groupby(samples, key=lambda sample: sample.processes):
        span = list(group)
        span = [sample for sample in span if sample.at >= span[0].at + SETTLING_S]
        if len(span) < 2:
            continue
        first, last = span[0], span[-1]
        for role, resident in first.resident.items():
            for pid, rss in resident.items():
                rates.setdefault(role, []).append((last.resident[role][pid] - rss) / (last.at - first.at) * 60)
    return {role: statistics.median(each) for role, each in rates.items()}


def trend(series: Series) -> Trend:
    """Raises ValueError for fewer than three values."""
    values = series.values
    if len(values) < 3:
        raise ValueError(f"{series.name}: {len(values)} samples after the warm-up, expected at least 3")
    cuts = [len(values) * i // 3 for i in range(4)]
    first, second, third = (statistics.median(values[a:b]) for a, b in itertools.pairwise(cuts))
    return Trend(series.name, series.processes, (first, second, third), max(values))


def failures(
    report: dict[str, Any], trends: Sequence[Trend], steady: dict[str, float], seconds: float, kill_every_s: float
) -> list[str]:
    """What is not as it must be."""
    found = [f"{t.name} grows: {_mb(t.thirds[0])} to {_mb(t.thirds[2])} MB" for t in trends if t.grows]
    if SERVER not in steady:
        found.append(f"no span without a death longer than {SETTLING_S:.0f} s: growth between kills is not known")
    elif steady[SERVER] > STEADY_GROWTH_MAX:
        found.append(f"servers grow by {_mb(steady[SERVER])} MB a minute while nobody dies")
    if report["lost_updates"] != 0:
        found.append(f"lost_updates is {report['lost_updates']}")
    if report["parity_ok"] is not True:
        found.append(f"parity_ok is {report['parity_ok']}")
    never = [kill["shard"] for kill in report["kills"] if kill["whole_s"] is None]
    if never:
        found.append(f"shards {never} never became whole again")
    # Each kill waits for a whole cluster, and that for a process that starts.
    least = int(seconds / (2 * kill_every_s))
    if len(report["kills"]) < least:
        found.append(f"{len(report['kills'])} kills, expected at least {least}")
    if report["deaths"] != len(report["kills"]):
        found.append(f"{report['deaths']} deaths of {len(report['kills'])} kills: somebody died who was not killed")
    return found


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if args.rows is None:
        args.rows = ROWS
    options = training_options(
        args, code=args.code, seed=args.seed, seconds=args.seconds, epochs=1_000_000, chaos_kill_every_s=args.kill_every
    )
    with Sampler() as sampler:
        begin = time.monotonic()
        recorded = train(options)
    steps = recorded.steps
    first = steps[0].at if steps else begin
    last = steps[-1].at if steps else begin
    kept = [sample for sample in sampler.samples if first + args.warm_up <= sample.at <= last]
    trends = [trend(series) for series in series_of(kept)]
    steady = steady_growth(kept)
    report = recorded.report
    kills = report["kills"]
    whole_s = [kill["whole_s"] for kill in kills if kill["whole_s"] is not None]
    print(f"{'resident MB':<16}{'first third':>12}{'second':>9}{'last':>9}{'largest':>9}{'a process, a minute':>21}")
    for t in trends:
        growth = f"{steady[t.name] / 1e6:+.2f}" if t.name in steady else "?"
        first_third, second, third = map(_mb, t.thirds)
        print(f"{t.name:<16}{first_third:>12}{second:>9}{third:>9}{_mb(t.largest):>9}{growth:>21}")
    print(
        f"{last - first:.0f} s, {report['steps']} steps, {report['examples_per_s']:.0f} examples/s, {len(kills)} kills"
    )
    if whole_s:
        print(f"whole again after {statistics.median(whole_s):.2f} s (median; at most {max(whole_s):.2f} s)")
    print(
        f"{report['updates_acknowledged']} updates acknowledged, {report['lost_updates']} lost; "
        f"{report['stripes_scrubbed']} stripes compared, parity_ok {report['parity_ok']}"
    )
    print(describe(report))
    wrong = failures(report, trends, steady, args.seconds, args.kill_every)
    for text in wrong:
        print(f"FAILED: {text}")
    write_json(
        args.report,
        {
            "trends": [t._asdict() for t in trends],
            "steady_growth_bytes_a_minute": steady,
            "samples": [{"at": round(s.at - first, 2), "resident": s.resident} for s in sampler.samples],
            "warm_up_s": args.warm_up,
            "failures": wrong,
            "report": report,
        },
    )
    return 1 if wrong else 0


def _mb(value: float) -> str:
    return f"{value / 1e6:.1f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds from one kill to the next")
    parser.add_argument("--warm-up", type=float, default=120.0, help="seconds whose samples do not count")
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

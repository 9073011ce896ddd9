"""How a case is measured: the results are compared, then all sides take turns, each in turn the first.

A *side* is ours or a peer: ``run(calls)`` does the work of the case so many times and returns the seconds that it took.
What is not the work (making arrays, a forward pass) stays outside of the seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.errors import EcrecError

ROUNDS_MIN = 7
ROUND_SECONDS_MIN = 0.02
"""A round of a side lasts at least this long: some thousand ticks of the clock, and many calls of what is short."""

VERSIONS_OF = ("numpy", "torch", "pyeclib", "fbgemm-gpu-cpu", "pyzmq", "ray", "redis", "tensorflow-cpu")
"""Distributions whose versions stand in the result, those that are installed."""

Run = Callable[[int], float]
PeerT = TypeVar("PeerT")


class PeerMissingError(EcrecError):
    """What is needed to run the peer is not installed; the text says what."""


def import_peer(module: str) -> Any:
    """The module. Raises PeerMissingError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerMissingError(f'{module} is not installed: pip install "ecrec[bench]" ({error})') from error


class ResultsDifferError(EcrecError):
    """Ours and a peer did not come to the same result."""


@dataclass(frozen=True)
class Case:
    """Some work, and who does it. ``work`` is in units a call; a rate is work over seconds.

    ``check()`` has every side do the work once, compares what they wrote, and returns a hash of it (and how far apart
    they are, where only rounding may differ); it raises `ResultsDifferError`.
    """

    name: str
    unit: str
    work: float
    ours: Run
    peers: Mapping[str, Run]
    check: Callable[[], str]
    round_seconds: float = ROUND_SECONDS_MIN


class Skipped(NamedTuple):
    """A peer, or a part of a suite, that was not measured, and why."""

    suite: str
    what: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """Ours against one peer in one case. ``ratio`` > 1: ours is faster. It is that of the medians over the rounds;
    ``ratio_min`` and ``ratio_max`` are the extremes of the rounds' own ratios.
    """

    suite: str
    case: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    ratio_min: float
    ratio_max: float
    result: str


@dataclass
class Selection:
    """What a suite is asked for, and what it could not do."""

    suite: str
    wanted: str = ""
    """Part of the name of a case."""
    start_cluster: Callable[[int, str], AbstractContextManager[str]] | None = None
    """Starts a scheduler and so many shards as programs, on "tcp" or "ipc"; gives the scheduler's endpoint."""
    skipped: list[Skipped] = field(default_factory=list)

    def wants(self, case: str) -> bool:
        return self.wanted in case

    def skip(self, what: str, reason: str) -> None:
        line = Skipped(self.suite, what, reason)
        if line not in self.skipped:
            self.skipped.append(line)

    def find(self, name: str, load: Callable[[], PeerT]) -> PeerT | None:
        """The peer, or None and a line that says what is missing."""
        try:
            return load()
        except PeerMissingError as reason:
            self.skip(name, str(reason))
            return None


Suite = Callable[[Selection], Iterator[Case]]
"""Makes its cases one at a time, those that are wanted: each may hold much memory."""


def take_turns(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each side ("" is ours) in each round."""
    sides: dict[str, Run] = {"": case.ours, **case.peers}
    return in_turns(sides, {name: calls_for(run, case.round_seconds) for name, run in sides.items()}, rounds)


def in_turns(sides: Mapping[str, Run], calls: Mapping[str, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each side in each round of so many calls. The order turns around from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sides if turn % 2 == 0 else reversed(list(sides)):
            seconds[name].append(sides[name](calls[name]) / calls[name])
    return seconds


def calls_for(run: Run, round_seconds: float) -> int:
    """How many calls make a round of about so many seconds, from rounds that grow until they last half of it."""
    calls = 1
    while (seconds := run(calls)) < round_seconds / 2:
        calls *= 2
    return math.ceil(calls * min(1.0, round_seconds / seconds)) if seconds > round_seconds else calls * 2


def compare(case: Case, suite: str, seconds: Mapping[str, Sequence[float]], result: str) -> list[Measurement]:
    """One measurement for each peer, from the seconds that `take_turns` returns."""
    ours = seconds[""]
    median = statistics.median(ours)
    lines = []
    for name, theirs in seconds.items():
        if name == "":
            continue
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        peer = statistics.median(theirs)
        lines.append(
            Measurement(
                suite, case.name, case.unit, case.work / median, case.work / peer, name,
                peer / median, min(ratios), max(ratios), result,
            )
        )  # fmt: skip
    return lines


def measure(case: Case, suite: str, rounds: int) -> list[Measurement]:
    """Compare the results, then time all sides. Raises ResultsDifferError."""
    result = case.check()
    return compare(case, suite, take_turns(case, rounds), result)


# ------------------------------------------------------------------ what cases are made of
def repeated(*steps: Callable[[], object], clock: Callable[[], float] = time.process_time) -> Run:
    """Calls the steps one after the other, each call another one, so that not all of them finds its rows in the cache.

    The clock is that of the processor time of all threads of this process: what other processes do beside it costs
    no side anything but cache, and a side that used a second thread would pay for it. Give ``time.perf_counter`` where
    waiting is part of the work.
    """
    turn = 0

    def run(calls: int) -> float:
        nonlocal turn
        start = clock()
        for _ in range(calls):
            steps[turn]()
            turn = (turn + 1) % len(steps)
        return clock() - start

    return run


def threaded(count: int, *steps: Callable[[], object]) -> Run:
    """As `repeated`, with bulk operations divided over so many threads, by wall-clock time."""
    run = repeated(*steps, clock=time.perf_counter)

    def run_threaded(calls: int) -> float:
        _native.use_threads(count)
        try:
            return run(calls)
        finally:
            _native.use_threads(1)

    return run_threaded


def digest_of(*arrays: NDArray[Any]) -> str:
    """16 hex digits of SHA-256 over all bytes."""
    parts = (hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest() for array in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def check_equal(case: str, peer: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Raises ResultsDifferError unless both are equal, bit for bit."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ResultsDifferError(
            f"{case}: ours is {ours.dtype}{list(ours.shape)}, that of {peer} {theirs.dtype}{list(theirs.shape)}"
        )
    if ours.tobytes() != theirs.tobytes():
        differ = int((ours != theirs).sum())
        raise ResultsDifferError(f"{case}: {differ} of {ours.size} values differ from those of {peer}")


def check_close(case: str, peer: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> float:
    """The largest difference. Raises ResultsDifferError if it is more than ``tolerance``, or a value is no number."""
    if ours.shape != theirs.shape:
        raise ResultsDifferError(f"{case}: the result has shape {ours.shape}, that of {peer} {theirs.shape}")
    apart = float(np.abs(ours - theirs).max())
    if not apart <= tolerance:
        raise ResultsDifferError(f"{case}: {apart:.2g} away from {peer}, expected at most {tolerance:.2g}")
    return apart


def result_of(digest: str, apart: float) -> str:
    """What a check returns where rounding may differ."""
    return f"{digest} +-{apart:.0e}" if apart else digest


# ------------------------------------------------------------------ the machine
def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def machine() -> dict[str, Any]:
    """What stands beside the results: CPU, cores, system, kernel in use, versions."""
    versions = {"ecrec": _native.__version__, "python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "kernel": _native.kernel(),
        "prefetch": _native.prefetch(),
    }

"""What the scripts of bench/ have in common: a training run in this process that keeps every step, and its options."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ecrec.train.options import (
    DENSE_LEARNING_RATES,
    LEARNING_RATES,
    TRANSPORTS,
    TrainOptions,
    check_options,
    parse_sizes,
)
from ecrec.train.progress import QuietProgress
from ecrec.train.run import run_training

_TRAINING_OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"nargs": "+", "help": "Criteo files, plain or gzip; without, generated rows"},
    "shards": {"type": int, "help": "of all coding groups"},
    "groups": {"type": int, "help": "coding groups"},
    "batch": {"type": int},
    "dim": {"type": int},
    "rows": {"type": int, "help": "hash buckets a table"},
    "optimizer": {"choices": list(LEARNING_RATES)},
    "lr": {"type": float},
    "dense_optimizer": {"choices": list(DENSE_LEARNING_RATES)},
    "dense_lr": {"type": float},
    "bottom_mlp": {"help": "hidden layers, for example 512,256"},
    "top_mlp": {"help": "hidden layers"},
    "prefetch": {"type": int},
    "transport": {"choices": list(TRANSPORTS)},
    "heartbeat_timeout_ms": {"type": int},
}


class Heard(NamedTuple):
    """The launcher heard of a step: when, in seconds of the monotonic clock; the examples that all workers finished
    since the step before; the mean loss of worker 0's batch, before its update."""

    at: float
    examples: int
    loss: float


class Recorded(NamedTuple):
    """A run: its report, its steps in order, and the processor seconds of all its processes, start and end included."""

    report: dict[str, Any]
    steps: list[Heard]
    cpu_s: float

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]


class _Recorder(QuietProgress):
    def __init__(self) -> None:
        self.steps: list[Heard] = []

    def step(self, step: int, examples: int, loss: float) -> None:
        self.steps.append(Heard(time.monotonic(), examples, loss))


def train(options: TrainOptions) -> Recorded:
    """What ``ecrec train`` does with these options, without the output.

    Raises ConfigurationError for options that cannot be, and what `run_training` raises.
    """
    for warning in check_options(options):
        print(f"warning: {warning}", flush=True)
    recorder = _Recorder()
    cpu_before = _children_cpu_s()
    report = run_training(options, lambda: recorder)
    return Recorded(report, recorder.steps, _children_cpu_s() - cpu_before)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def steady_throughput(steps: Sequence[Heard], warm_up: int) -> tuple[float, float]:
    """(examples a second, seconds) of the steps after the first ``warm_up``.

    Raises ValueError unless at least one step is left, and one before it to begin at.
    """
    if not 1 <= warm_up < len(steps):
        raise ValueError(f"warm_up is {warm_up} of {len(steps)} steps, expected at least 1 and fewer than there are")
    seconds = steps[-1].at - steps[warm_up - 1].at
    return sum(step.examples for step in steps[warm_up:]) / seconds, seconds


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Those of a script that kills servers: code, seed, report, and `add_training_options`."""
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", help="write the results to this JSON file")
    add_training_options(parser)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Options that are handed on to the run; those not given have the defaults of ``ecrec train``."""
    group = parser.add_argument_group("training, as of ecrec train")
    for name, settings in _TRAINING_OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", **settings)


def training_options(args: argparse.Namespace, **others: Any) -> TrainOptions:
    """The options of `add_training_options` that were given, and others.

    Raises ConfigurationError for layer sizes that are none.
    """
    given = {name: getattr(args, name) for name in _TRAINING_OPTIONS if getattr(args, name) is not None}
    for name in ("bottom_mlp", "top_mlp"):
        if name in given:
            given[name] = parse_sizes(f"--{name.replace('_', '-')}", given[name])
    if "data" in given:
        given["data"] = tuple(given["data"])
    return TrainOptions(**{**given, **others})


def describe(report: dict[str, Any]) -> str:
    """A line that names the machine and the versions of a run."""
    machine = report["machine"]
    versions = " ".join(f"{name} {version}" for name, version in report["versions"].items())
    memory_gib = machine["memory_bytes"] / 2**30
    return f"{machine['cpu']}, {machine['cores']} cores, {memory_gib:.0f} GiB, {machine['system']}; {versions}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest. Raises ValueError for none."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_json(path: str | None, content: dict[str, Any]) -> None:
    """Write to the file, if one is named."""
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=1) + "\n")

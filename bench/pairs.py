"""Two ways to train, in pairs of runs, now one first and now the other: what the second one costs."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.running import Recorded, add_training_options, describe, spread, steady_throughput, write_json
from ecrec.data import SyntheticDataset, SyntheticOptions

GENERATED_ROWS = 100_000


class Compared(NamedTuple):
    """What all pairs gave."""

    ratio: float
    """Median of the second way's examples a second over the first one's."""
    digests: set[str]
    """Of the models that were trained."""


@contextmanager
def generated(args: argparse.Namespace) -> Iterator[Path]:
    """A temporary directory. Without ``args.data`` it has a file of generated rows, which becomes that: making rows in
    the runs would take more time than all that is measured."""
    with tempfile.TemporaryDirectory(prefix="ecrec-bench-") as directory:
        if not args.data:
            file = Path(directory) / "generated.tsv"
            SyntheticDataset(SyntheticOptions(rows=GENERATED_ROWS, seed=args.seed)).write_tsv(file)
            args.data = [str(file)]
        yield Path(directory)


def steps_for(args: argparse.Namespace, train: Callable[[int], Recorded]) -> int:
    """Steps that take --seconds after the warm-up, from a short run."""
    warm_up: int = args.warm_up
    _, seconds = steady_throughput(train(2 * warm_up).steps, warm_up)
    return warm_up + math.ceil(float(args.seconds) / seconds * warm_up)


def compare(
    args: argparse.Namespace, steps: int, ways: tuple[str, str], train: Callable[[str, int], Recorded], title: str
) -> Compared:
    """Run ``train(way, pair)`` for both ways, ``--pairs`` times; print and write what each pair gave."""
    without, with_it = ways
    print(f"{'pair':>4} {'first':>6} {without:>9} {with_it:>9} {'ratio':>7} {'cpu ratio':>9}", flush=True)
    pairs: list[dict[str, Any]] = []
    digests = set()
    report: dict[str, Any] = {}
    for pair in range(args.pairs):
        order = ways if pair % 2 == 0 else ways[::-1]
        found: dict[str, dict[str, float]] = {}
        for way in order:
            run = train(way, pair)
            speed, seconds = steady_throughput(run.steps, args.warm_up)
            found[way] = {"examples_per_s": speed, "seconds": seconds, "cpu_s": run.cpu_s}
            report = run.report
            digests.add(report["model_digest"])
        ratio = found[with_it]["examples_per_s"] / found[without]["examples_per_s"]
        cpu_ratio = found[with_it]["cpu_s"] / found[without]["cpu_s"]
        print(
            f"{pair + 1:4d} {order[0]:>6} {found[without]['examples_per_s']:9.0f} "
            f"{found[with_it]['examples_per_s']:9.0f} {ratio:7.3f} {cpu_ratio:9.3f}",
            flush=True,
        )
        pairs.append({"first": order[0], **found, "ratio": ratio, "cpu_ratio": cpu_ratio})
    ratios = spread([pair["ratio"] for pair in pairs])
    cpu_ratios = spread([pair["cpu_ratio"] for pair in pairs])
    print(f"examples/s, {title}: {_text(ratios)}; processor time: {_text(cpu_ratios)}")
    print(f"model digest {' and '.join(sorted(digests))}")
    print(describe(report))
    write_json(
        args.report,
        {
            "ratio": ratios,
            "cpu_ratio": cpu_ratios,
            "steps": steps,
            "warm_up": args.warm_up,
            "pairs": pairs,
            "model_digests": sorted(digests),
            "config": report["config"],
            "machine": report["machine"],
            "versions": report["versions"],
        },
    )
    return Compared(ratios["median"], digests)


def is_enough(args: argparse.Namespace, ratio: float) -> bool:
    """Whether the median ratio is at least --ratio-min; says so if not."""
    if ratio < args.ratio_min:
        print(f"FAILED: the median ratio is {ratio:.3f}, expected at least {args.ratio_min}")
    return bool(ratio >= args.ratio_min)


def _text(values: dict[str, float]) -> str:
    return f"median {values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def pairs_parser(description: str | None, pairs: int) -> argparse.ArgumentParser:
    """The options of both."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run after its warm-up")
    parser.add_argument("--steps", type=int, help="of each run, instead of --seconds; warm-up included")
    parser.add_argument("--warm-up", type=int, default=40, help="first steps that are not counted")
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--ratio-min", type=float, default=0.0, help="exit code 1 for a median ratio below this")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", help="write the results to this JSON file")
    add_training_options(parser)
    return parser

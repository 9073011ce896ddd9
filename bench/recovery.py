"""What the death of a server costs: how long until it is noticed, until its rows are served and until all is whole
again, and how fast training goes before, during and after.

    python bench/recovery.py --runs 3 --deaths 3 --report recovery.json

Each run trains on generated rows (or --data) and kills --deaths servers, --every steps apart, each a different one. An
undisturbed run with the same options comes first: its digest must be that of every run with deaths. The last column,
examples lost, is what training would have done at the throughput before the kill, less what it did, until all was
whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import add_run_options, describe, spread, train, training_options, write_json

FIGURES = (
    "detect_s",
    "first_row_s",
    "whole_s",
    "longest_pause_s",
    "throughput_before",
    "throughput_during",
    "throughput_after",
    "examples_lost",
)


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run, print; 1 if a digest differs, parity does not fit, or an update was lost."""
    args = _parser().parse_args(arguments)
    shards = args.shards or 5
    steps = args.warm_up + args.every * args.deaths + args.after
    calm = train(training_options(args, code=args.code, seed=args.seed, steps=steps))
    print(f"undisturbed: {calm.report['examples_per_s']:.0f} examples/s, {steps} steps a run", flush=True)
    print(" ".join(["run", "shard", " step", *(f"{_short(name):>9}" for name in FIGURES)]), flush=True)
    deaths: list[dict[str, Any]] = []
    wrong: list[str] = []
    for run in range(args.runs):
        plan = kill_plan(run, args.deaths, shards, args.warm_up, args.every)
        report = train(training_options(args, code=args.code, seed=args.seed, steps=steps, kills=plan)).report
        wrong += [f"run {run + 1}: {text}" for text in differences(calm.report, report)]
        for kill in report["kills"]:
            death = {"run": run + 1, **kill, "examples_lost": examples_lost(kill)}
            deaths.append(death)
            figures = " ".join(f"{_number(death[name]):>9}" for name in FIGURES)
            print(f"{death['run']:3d} {death['shard']:5d} {death['step']:5d} {figures}", flush=True)
    summary = summarize(deaths)
    for name, values in summary.items():
        print(f"{name}: median {values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})")
    print(f"model digest {calm.report['model_digest']}")
    print(describe(calm.report))
    for text in wrong:
        print(f"FAILED: {text}")
    write_json(
        args.report,
        {
            "summary": summary,
            "deaths": deaths,
            "undisturbed_examples_per_s": calm.report["examples_per_s"],
            "failures": wrong,
            "model_digest": calm.report["model_digest"],
            "config": calm.report["config"],
            "machine": calm.report["machine"],
            "versions": calm.report["versions"],
        },
    )
    return 1 if wrong else 0


def kill_plan(run: int, kills: int, shards: int, warm_up: int, every: int) -> tuple[str, ...]:
    """Kills of one run: shards in turn, going on where the run before ended."""
    return tuple(f"ps:{(run * kills + i) % shards}@{warm_up + i * every}" for i in range(kills))


def differences(calm: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """What is not as it must be in a run with deaths."""
    found = []
    if report["model_digest"] != calm["model_digest"]:
        found.append("the model differs from that of the undisturbed run")
    if report["parity_ok"] is not True:
        found.append(f"parity_ok is {report['parity_ok']}")
    if report["lost_updates"] != 0:
        found.append(f"lost_updates is {report['lost_updates']}")
    if report["kills_not_done"]:
        found.append(f"not done: {', '.join(report['kills_not_done'])}; give more steps")
    return found


def examples_lost(kill: dict[str, Any]) -> float | None:
    """Examples that training did less than it would have, from the kill until all was whole; None if unknown."""
    before, during, whole_s = kill["throughput_before"], kill["throughput_during"], kill["whole_s"]
    if before is None or during is None or whole_s is None:
        return None
    return float((before - during) * whole_s)


def summarize(deaths: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median, smallest and largest of each figure, over the deaths that have it."""
    return {
        name: spread(values)
        for name in FIGURES
        if (values := [death[name] for death in deaths if death[name] is not None])
    }


def _short(name: str) -> str:
    return name.replace("throughput_", "").replace("longest_", "").replace("examples_", "ex ").replace("_", " ")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--deaths", type=int, default=3, help="deaths in each run")
    parser.add_argument("--warm-up", type=int, default=60, help="steps before the first death")
    parser.add_argument("--every", type=int, default=60, help="steps from one death to the next")
    parser.add_argument("--after", type=int, default=0, help="further steps after the last one's span")
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

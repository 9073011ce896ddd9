"""What observing a training run costs: examples a second with everything on against everything off.

    python bench/observation.py --pairs 7 --seconds 15 --workers 2 --report observation.json

"On" is `--metrics`, `--tensorboard` and `--trace` with a trace of all steps (up to 10,000), in the temporary directory.
The two take turns, first one ahead, then the other. A first run, not counted, finds how many steps take the wished
time. A throughput spans the steps after the warm-up. With one worker, equal digests prove that both trained the same
model. A ratio of 1 is no cost; the goal is a median of at least 0.99.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import (
    Recorded,
    add_training_options,
    describe,
    spread,
    steady_throughput,
    train,
    training_options,
    write_json,
)
from ecrec.data import SyntheticDataset, SyntheticOptions

GENERATED_ROWS = 100_000
OFF, ON = "off", "on"
TRACE_STEPS = 10_000


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the pairs, print them; 1 if the digests differ or the ratio is below --ratio-min."""
    args = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ecrec-bench-") as directory:
        if not args.data:  # read from a file: making rows would take more time than all that is measured
            file = Path(directory) / "generated.tsv"
            SyntheticDataset(SyntheticOptions(rows=GENERATED_ROWS, seed=args.seed)).write_tsv(file)
            args.data = [str(file)]
        return _run(args, Path(directory))


def _run(args: argparse.Namespace, directory: Path) -> int:
    steps = args.steps or _steps_for(args)
    print(f"{steps} steps a run, of which {args.warm_up} are warm-up; {args.workers} workers", flush=True)
    print(f"{'pair':>4} {'first':>6} {OFF:>9} {ON:>9} {'ratio':>7} {'cpu ratio':>9}", flush=True)
    pairs: list[dict[str, Any]] = []
    digests = set()
    report: dict[str, Any] = {}
    for pair in range(args.pairs):
        order = (OFF, ON) if pair % 2 == 0 else (ON, OFF)
        found: dict[str, dict[str, float]] = {}
        for side in order:
            files = {} if side == OFF else _files(directory / str(pair))
            run = _train(args, steps, files)
            speed, seconds = steady_throughput(run.steps, args.warm_up)
            found[side] = {"examples_per_s": speed, "seconds": seconds, "cpu_s": run.cpu_s}
            if files:
                _check_written(files, args.workers)
            report = run.report
            digests.add(report["model_digest"])
        ratio = found[ON]["examples_per_s"] / found[OFF]["examples_per_s"]
        cpu_ratio = found[ON]["cpu_s"] / found[OFF]["cpu_s"]
        print(
            f"{pair + 1:4d} {order[0]:>6} {found[OFF]['examples_per_s']:9.0f} {found[ON]['examples_per_s']:9.0f} "
            f"{ratio:7.3f} {cpu_ratio:9.3f}",
            flush=True,
        )
        pairs.append({"first": order[0], **found, "ratio": ratio, "cpu_ratio": cpu_ratio})
    ratios = spread([pair["ratio"] for pair in pairs])
    cpu_ratios = spread([pair["cpu_ratio"] for pair in pairs])
    print(f"examples/s, on against off: {_text(ratios)}; processor time: {_text(cpu_ratios)}")
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
    if args.workers == 1 and len(digests) != 1:
        print("FAILED: what is observed trained another model")
        return 1
    if ratios["median"] < args.ratio_min:
        print(f"FAILED: the median ratio is {ratios['median']:.3f}, expected at least {args.ratio_min}")
        return 1
    return 0


def _train(args: argparse.Namespace, steps: int, files: dict[str, Any]) -> Recorded:
    options = training_options(
        args, code=args.code, seed=args.seed, steps=steps, workers=args.workers, test_fraction=0.0, **files
    )
    return train(options)


def _files(directory: Path) -> dict[str, Any]:
    directory.mkdir()
    names = {"metrics": "metrics.jsonl", "tensorboard": "board", "trace": "trace.json"}
    return {**{name: str(directory / file) for name, file in names.items()}, "trace_steps": TRACE_STEPS}


def _check_written(files: dict[str, Any], workers: int) -> None:
    """Raise RuntimeError unless every worker is in every file: else what was measured is not what is claimed."""
    lines = [json.loads(line) for line in Path(files["metrics"]).read_text().splitlines()]
    events = json.loads(Path(files["trace"]).read_text())["traceEvents"]
    found = (
        len({line["worker"] for line in lines}),
        len(list(Path(files["tensorboard"]).glob("worker-*/events*"))),
        len({event["pid"] for event in events if event["name"] == "step"}),
    )
    if found != (workers,) * 3:
        raise RuntimeError(f"workers in metrics, TensorBoard and trace: {found}, expected {workers} in each")


def _steps_for(args: argparse.Namespace) -> int:
    """Steps that take --seconds after the warm-up, from a short run."""
    warm_up: int = args.warm_up
    _, seconds = steady_throughput(_train(args, 2 * warm_up, {}).steps, warm_up)
    return warm_up + math.ceil(float(args.seconds) / seconds * warm_up)


def _text(values: dict[str, float]) -> str:
    return f"median {values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run after its warm-up")
    parser.add_argument("--steps", type=int, help="of each run, instead of --seconds; warm-up included")
    parser.add_argument("--warm-up", type=int, default=40, help="first steps that are not counted")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--ratio-min", type=float, default=0.0, help="exit code 1 for a median ratio below this")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", help="write the results to this JSON file")
    add_training_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What keeping parity costs while nothing dies: examples a second with --code 4+1 against --code 4+0.

    python bench/steady_state.py --pairs 5 --seconds 15 --report steady.json

The two take turns, first one ahead, then the other. Both train on the same generated rows, read from a file so that
making them takes no time in the run, and the dense part is small (--top-mlp 64), so that the servers matter. A first
run of each, not counted, finds how many steps take the wished time. A throughput spans the steps after the warm-up.
Equal digests prove that both trained the same model.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import (
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


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the pairs, print them; 1 if the digests differ or the ratio is below --ratio-min."""
    args = _parser().parse_args(arguments)
    if args.data:
        return _run(args)
    with tempfile.TemporaryDirectory(prefix="ecrec-bench-") as directory:
        file = Path(directory) / "generated.tsv"
        SyntheticDataset(SyntheticOptions(rows=GENERATED_ROWS, seed=args.seed)).write_tsv(file)
        args.data = [str(file)]
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    codes = (args.without, args.code)
    steps = args.steps or max(_steps_for(args, code) for code in codes)
    print(f"{steps} steps a run, of which {args.warm_up} are warm-up", flush=True)
    print(f"{'pair':>4} {'first':>6} {args.without:>9} {args.code:>9} {'ratio':>7} {'cpu ratio':>9}", flush=True)
    pairs: list[dict[str, Any]] = []
    digests = set()
    report: dict[str, Any] = {}
    for pair in range(args.pairs):
        order = codes if pair % 2 == 0 else codes[::-1]
        found: dict[str, dict[str, float]] = {}
        for code in order:
            run = train(training_options(args, code=code, seed=args.seed, steps=steps, test_fraction=0.0))
            speed, seconds = steady_throughput(run.steps, args.warm_up)
            found[code] = {"examples_per_s": speed, "seconds": seconds, "cpu_s": run.cpu_s}
            report = run.report
            digests.add(report["model_digest"])
        without, coded = found[args.without], found[args.code]
        ratio = coded["examples_per_s"] / without["examples_per_s"]
        cpu_ratio = coded["cpu_s"] / without["cpu_s"]
        print(
            f"{pair + 1:4d} {order[0]:>6} {without['examples_per_s']:9.0f} {coded['examples_per_s']:9.0f} "
            f"{ratio:7.3f} {cpu_ratio:9.3f}",
            flush=True,
        )
        pairs.append({"first": order[0], **found, "ratio": ratio, "cpu_ratio": cpu_ratio})
    ratios = spread([pair["ratio"] for pair in pairs])
    cpu_ratios = spread([pair["cpu_ratio"] for pair in pairs])
    print(f"examples/s, {args.code} against {args.without}: {_text(ratios)}; processor time: {_text(cpu_ratios)}")
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
    if len(digests) != 1:
        print("FAILED: the two codes trained different models")
        return 1
    if ratios["median"] < args.ratio_min:
        print(f"FAILED: the median ratio is {ratios['median']:.3f}, expected at least {args.ratio_min}")
        return 1
    return 0


def _steps_for(args: argparse.Namespace, code: str) -> int:
    """Steps that take --seconds after the warm-up, from a short run."""
    warm_up: int = args.warm_up
    run = train(training_options(args, code=code, seed=args.seed, steps=2 * warm_up, test_fraction=0.0))
    _, seconds = steady_throughput(run.steps, warm_up)
    return warm_up + math.ceil(float(args.seconds) / seconds * warm_up)


def _text(values: dict[str, float]) -> str:
    return f"median {values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run after its warm-up")
    parser.add_argument("--steps", type=int, help="of each run, instead of --seconds; warm-up included")
    parser.add_argument("--warm-up", type=int, default=40, help="first steps that are not counted")
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--without", default="4+0", help="the code that it is compared with")
    parser.add_argument("--ratio-min", type=float, default=0.0, help="exit code 1 for a median ratio below this")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--report", help="write the results to this JSON file")
    add_training_options(parser)
    parser.set_defaults(top_mlp="64")
    return parser


if __name__ == "__main__":
    sys.exit(main())

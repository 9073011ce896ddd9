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
import sys
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.pairs import compare, generated, is_enough, pairs_parser, steps_for
from bench.running import Recorded, train, training_options

OFF, ON = "off", "on"
TRACE_STEPS = 10_000


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the pairs, print them; 1 if the digests differ or the ratio is below --ratio-min."""
    args = _parser().parse_args(arguments)
    with generated(args) as directory:
        return _run(args, directory)


def _run(args: argparse.Namespace, directory: Path) -> int:
    steps = args.steps or steps_for(args, lambda steps: _train(args, steps, {}))
    print(f"{steps} steps a run, of which {args.warm_up} are warm-up; {args.workers} workers", flush=True)

    def run(way: str, pair: int) -> Recorded:
        files = {} if way == OFF else _files(directory / str(pair))
        done = _train(args, steps, files)
        if files:
            _check_written(files, args.workers)
        return done

    compared = compare(args, steps, (OFF, ON), run, "on against off")
    if args.workers == 1 and len(compared.digests) != 1:
        print("FAILED: what is observed trained another model")
        return 1
    return 0 if is_enough(args, compared.ratio) else 1


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


def _parser() -> argparse.ArgumentParser:
    parser = pairs_parser(__doc__, pairs=7)
    parser.add_argument("--workers", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())

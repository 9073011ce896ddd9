"""What keeping parity costs while nothing dies: examples a second with --code 4+1 against --code 4+0.

    python bench/steady_state.py --pairs 5 --seconds 15 --report steady.json

The two take turns, first one ahead, then the other. Both train on the same generated rows, read from a file so that
making them takes no time in the run, and the dense part is small (--top-mlp 64), so that the servers matter. A first
run of each, not counted, finds how many steps take the wished time. A throughput spans the steps after the warm-up.
Equal digests prove that both trained the same model.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.pairs import compare, generated, is_enough, pairs_parser, steps_for
from bench.running import Recorded, train, training_options


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run the pairs, print them; 1 if the digests differ or the ratio is below --ratio-min."""
    args = _parser().parse_args(arguments)
    with generated(args):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    def run(code: str, steps: int) -> Recorded:
        return train(training_options(args, code=code, seed=args.seed, steps=steps, test_fraction=0.0))

    codes = (args.without, args.code)
    steps = args.steps or max(steps_for(args, partial(run, code)) for code in codes)
    print(f"{steps} steps a run, of which {args.warm_up} are warm-up", flush=True)
    title = f"{args.code} against {args.without}"
    compared = compare(args, steps, codes, lambda code, _: run(code, steps), title)
    if len(compared.digests) != 1:
        print("FAILED: the two codes trained different models")
        return 1
    return 0 if is_enough(args, compared.ratio) else 1


def _parser() -> argparse.ArgumentParser:
    parser = pairs_parser(__doc__, pairs=5)
    parser.add_argument("--without", default="4+0", help="the code that it is compared with")
    parser.set_defaults(top_mlp="64")
    return parser


if __name__ == "__main__":
    sys.exit(main())

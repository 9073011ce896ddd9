"""Coverage-guided fuzzing with atheris (libFuzzer); for minutes and more. Needs ``pip install atheris``.

    python tests/fuzz/fuzz_coverage.py TARGET [--seconds 60] [--seed 1] [--corpus DIR] [--counts FILE]

Starts from the corpus in the repository and from ``seeds.py``, mutates messages as such, and keeps what reaches new
code in DIR (a temporary one by default). An input that breaks a promise is written to the working directory, and
the program ends with 77. In FILE are two int64: inputs and bytes so far.
"""

import argparse
import gc
import logging
import random
import resource
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS / "unit" / "protocol"), str(TESTS / "simulator")]

import atheris  # noqa: E402
import numpy as np  # noqa: E402
import seeds  # noqa: E402
import targets  # noqa: E402
from fuzz_random import DATA_BYTES  # noqa: E402

SECONDS_MAX = 10
"""For one input; more is a hang."""
CASE_BYTES_MAX = 1 << 17


def instrument() -> None:
    """Count the edges of all functions of ecrec. Not at import: that finds nothing in an editable installation."""
    functions = [found for found in gc.get_objects() if isinstance(found, types.FunctionType)]
    for function in functions:
        if (function.__module__ or "").partition(".")[0] == "ecrec":
            atheris.instrument_func(function)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=list(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 (the default): another one each time")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--counts", type=Path)
    args = parser.parse_args()
    logging.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    with tempfile.TemporaryDirectory() as scratch:
        corpus = args.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(seeds.seeds(args.target)):
            (corpus / f"seed-{i}").write_bytes(data)

        def mutate(data: bytes, size_max: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.3:
                return bytes(atheris.Mutate(data, size_max))
            return seeds.mutated(args.target, data, rng)[:size_max]

        instrument()
        target = targets.TARGETS[args.target]
        # A file, because the fuzzer ends the process when its time is over.
        counts = np.memmap(args.counts or Path(scratch) / "counts", np.int64, "w+", shape=(2,))

        def counted(data: bytes) -> None:
            counts[0] += 1
            counts[1] += len(data)
            target(data)

        options: dict[str, Any] = {} if args.target == "criteo" else {"custom_mutator": mutate}
        kept = Path(__file__).parent / "corpus" / args.target
        limits = [
            f"-seed={args.seed}",
            f"-max_total_time={args.seconds}",
            f"-timeout={SECONDS_MAX}",
            f"-max_len={CASE_BYTES_MAX}",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, "-rss_limit_mb=4096", str(corpus), *([str(kept)] if kept.is_dir() else [])],
            counted,
            **options,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()

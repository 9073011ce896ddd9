"""Mutate valid inputs for a while and keep the first that breaks a promise.

python tests/fuzz/fuzz_random.py [TARGET ...] [--seconds 60] [--seed 0]
"""

import argparse
import logging
import random
import resource
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS / "unit" / "protocol"), str(TESTS / "simulator")]

from seeds import mutated, seeds  # noqa: E402
from targets import TARGETS  # noqa: E402

ADDRESS_SPACE_BYTES = 64 << 40
"""Tables reserve address space without touching it; what is touched is bounded by DATA_BYTES."""
DATA_BYTES = 4 << 30


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    broken = 0
    for name in args.targets:
        rng = random.Random(f"{args.seed} {name}")
        found: dict[str, bytes] = {}
        runs = size = 0
        end = time.monotonic() + args.seconds
        while time.monotonic() < end:
            data = mutated(name, rng.choice(seeds(name)), rng)
            runs, size = runs + 1, size + len(data)
            begin = time.monotonic()
            try:
                TARGETS[name](data)
                assert time.monotonic() - begin < 10, "it hangs"
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} at {where.filename}:{where.lineno}"
                if what not in found:
                    found[what] = data
                    traceback.print_exc()
        broken += len(found)
        print(f"{name}: {runs} inputs, {size} bytes, {len(found)} broken promises", flush=True)
        for what, data in found.items():
            print(f"  {what}: {data.hex()}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

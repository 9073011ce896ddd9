"""What this machine's memory gives one core: the floors that bench/LIMITS.md compares with.

numpy fills, reads and copies arrays from the size of a second-level cache to far more than a last-level cache, and
takes random rows out of 1 GiB, as many as a batch has. Medians and extremes of the rounds, in GB/s; a copy counts its
bytes twice, read and written; what a write reads first is not counted.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import numpy as np

from ecrec.bench.harness import Run, machine, repeated
from ecrec.bench.report import describe_machine

MIB = 1 << 20
SIZES = (1 * MIB, 8 * MIB, 32 * MIB, 512 * MIB)
ROUND_BYTES = 512 * MIB
"""Smaller arrays are gone through again."""
TABLE_BYTES = 1 << 30
ROW_BYTES = (256, 512, 1024)
ROWS = 30_000


def report(what: str, run: Run, repeats: int, moved: int, rounds: int) -> None:
    """One line: GB/s of ``repeats`` calls of ``run`` that move ``moved`` bytes each."""
    run(repeats)
    figures = [repeats * moved / run(repeats) / 1e9 for _ in range(rounds)]
    print(f"{what:34} {statistics.median(figures):6.1f} GB/s ({min(figures):.1f} to {max(figures):.1f})", flush=True)


def measure_streams(size: int, rounds: int) -> None:
    """Fill, read and copy, in order."""
    a, b = np.ones(size // 8, np.int64), np.ones(size // 8, np.int64)
    repeats = ROUND_BYTES // size
    name = f"{size // MIB} MiB"
    report(f"fill {name}", repeated(partial(a.fill, 3)), repeats, size, rounds)
    report(f"read {name}", repeated(a.sum), repeats, size, rounds)
    report(f"copy {name}", repeated(partial(np.copyto, b, a)), repeats, 2 * size, rounds)


def measure_rows(row_bytes: int, rounds: int) -> None:
    """Random rows of a table into one array that is used again."""
    table = np.ones((TABLE_BYTES // row_bytes, row_bytes // 8), np.int64)
    out = np.ones((ROWS, row_bytes // 8), np.int64)
    rng = np.random.default_rng(7)
    batches = [rng.choice(len(table), ROWS, replace=False) for _ in range(8)]
    takes = repeated(*(partial(np.take, table, batch, axis=0, out=out, mode="clip") for batch in batches))
    report(f"take {ROWS} rows of {row_bytes} B", takes, len(batches), 2 * out.nbytes, rounds)


def main() -> None:
    """Print the machine, then a line for each measurement."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(describe_machine(machine()))
    for size in SIZES:
        measure_streams(size, options.rounds)
    for row_bytes in ROW_BYTES:
        measure_rows(row_bytes, options.rounds)


if __name__ == "__main__":
    main()

"""How many bytes of deltas are zero, and what a lossless packing of them would save.

A delta is the XOR of a record before and after a step: where a float changes little, its upper bytes are equal, and the
delta's are zero. Packed, a delta would be a bit for each byte and the bytes that are not zero. Rows get one step after
the other with random gradients; ``size`` is that of the packed delta over the delta's.
"""

from __future__ import annotations

import argparse

import numpy as np

from ecrec import _native

ROWS = 2000
STEPS = (1, 2, 8, 64)


def zero_shares(optimizer: str, hyper: list[float], dim: int) -> dict[int, float]:
    """Share of zero bytes in the deltas of the steps of STEPS; shard 0 of five, 4+1."""
    store = _native.Store(0, 5)
    store.add_table(20 * ROWS, dim, 4, 1, "cauchy", optimizer, hyper, "uniform", 1, 0.01, 0.0)
    ids = np.arange(20 * ROWS)
    rows = ids[(ids // 4 + ids % 4) % 5 == 0][:ROWS]
    window = _native.Window(store)
    for peer in range(1, 5):
        for class_id in range(5):
            window.set_limit(peer, class_id, _native.Window.UNLIMITED)
    rng = np.random.default_rng(7)
    shares = {}
    for step in range(1, max(STEPS) + 1):
        gradients = rng.standard_normal(ROWS * dim, np.float32) * np.float32(1e-2)
        store.apply(np.array([0], np.int32), np.array([ROWS]), rows, gradients, window)
        records = np.concatenate([window.buffer(peer).take()[1] for peer in range(1, 5)])
        if step in STEPS:
            shares[step] = float((records == 0).mean())
    return shares


def main() -> None:
    """Print a line for each optimizer and step."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    for optimizer, hyper in (("adagrad", [0.02, 1e-8]), ("rowwise-adagrad", [0.02, 1e-8]), ("sgd", [0.02])):
        for step, share in zero_shares(optimizer, hyper, options.dim).items():
            print(f"{optimizer:16} step {step:3}: {100 * share:5.1f} % zero bytes, packed size {1 - share + 1 / 8:.2f}")


if __name__ == "__main__":
    main()

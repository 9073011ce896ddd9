"""Adam's bias correction by the steps of a row, as on the servers, and by those of its table, as torch's SparseAdam.

    python bench/adam_steps.py [--steps N] [--seed N]

Prints how large the first step of a row is, where its table has been stepped t times, and trains one DLRM on generated
data both ways, in one process and with nothing else different, for several learning rates: AUC and normalized entropy
of the test part.
"""

import argparse
import math
import platform
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecrec.data import Batch, SyntheticDataset, SyntheticOptions
from ecrec.training.dlrm import DLRM
from ecrec.training.metrics import auc, normalized_entropy

BETAS, EPS = (0.9, 0.999), 1e-8
BATCH, DIM = 512, 16
RATES = (0.0003, 0.001, 0.003, 0.01)


def correction(t: Tensor) -> Tensor:
    """What the learning rate is multiplied by at step t."""
    corrected: Tensor = (1 - BETAS[1] ** t).sqrt() / (1 - BETAS[0] ** t)
    return corrected


def first_step(t: float) -> float:
    """First step of a row in learning rates, where t is its table's step: m = (1 - beta1) g, v = (1 - beta2) g^2."""
    m, v = 1 - BETAS[0], 1 - BETAS[1]
    return float(correction(torch.tensor(t, dtype=torch.float64))) * m / math.sqrt(v)


class SparseAdam:
    """Steps of the rows that have a gradient, counted by row or for the whole table."""

    def __init__(self, weights: Tensor, lr: float, by_row: bool) -> None:
        self.weights, self.lr, self.by_row = weights, lr, by_row
        self.m, self.v = torch.zeros_like(weights), torch.zeros_like(weights)
        self.t = torch.zeros(len(weights), 1)

    def step(self, rows: Tensor, gradient: Tensor) -> None:
        if self.by_row:
            self.t[rows] += 1
        else:
            self.t += 1
        self.m[rows] += (1 - BETAS[0]) * (gradient - self.m[rows])
        self.v[rows] += (1 - BETAS[1]) * (gradient**2 - self.v[rows])
        self.weights[rows] -= self.lr * correction(self.t[rows]) * self.m[rows] / (self.v[rows].sqrt() + EPS)


def train(data: SyntheticDataset, lr: float, by_row: bool, steps: int, seed: int) -> tuple[float, float]:
    """(AUC, normalized entropy) of the test part."""
    torch.manual_seed(seed)
    sizes = np.array(data.rows_per_table)
    first = torch.from_numpy(np.cumsum(sizes) - sizes)[:, None]
    weights = torch.empty(int(sizes.sum()), DIM).uniform_(-0.01, 0.01)
    model = DLRM(len(data.dense_features), len(sizes), DIM, (64,), (64,))
    sparse = SparseAdam(weights, lr, by_row)
    dense = torch.optim.Adagrad(model.parameters(), lr=0.005)

    def predict(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        rows, inverse = torch.unique(first + torch.from_numpy(batch.ids), return_inverse=True)
        values = weights[rows].requires_grad_()
        pooled = values[inverse].transpose(0, 1).reshape(len(batch), -1)
        logits: Tensor = model(torch.from_numpy(batch.dense), pooled)
        return logits, rows, values

    for batch in data.train_batches(BATCH, steps=steps):
        logits, rows, values = predict(batch)
        dense.zero_grad()
        binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels)).backward()  # type: ignore[no-untyped-call]
        dense.step()
        assert values.grad is not None
        with torch.no_grad():
            sparse.step(rows, values.grad)
    with torch.no_grad():
        tested = [(batch.labels, predict(batch)[0].numpy()) for batch in data.test_batches(BATCH)]
    labels, scores = (np.concatenate(part) for part in zip(*tested, strict=True))
    return auc(labels, scores), normalized_entropy(labels, scores)


def main(say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=200_000, help="of the data")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    say(f"{platform.platform()}, torch {torch.__version__}, {args.rows} rows, {args.steps} steps of {BATCH}")
    say("first step of a row whose table has been stepped t times, in learning rates (by row it is 1.00 always):")
    say(", ".join(f"t = {t:,}: {first_step(t):.2f}" for t in (1, 10, 100, 1000, 10_000)))
    data = SyntheticDataset(SyntheticOptions(rows=args.rows, seed=args.seed, rows_per_table=20_000))
    say("learning rate: AUC, normalized entropy by steps of the row | of the table")
    for lr in RATES:
        by_row, by_table = (train(data, lr, by_row, args.steps, args.seed) for by_row in (True, False))
        say(f"{lr}: {by_row[0]:.4f}, {by_row[1]:.4f} | {by_table[0]:.4f}, {by_table[1]:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

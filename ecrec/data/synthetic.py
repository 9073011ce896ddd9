"""Criteo-like rows from a seed: as many as wanted, any batch without the ones before it, and something to
learn.

Every row is a function of (seed, row number) alone: its random numbers are `mix64` of a counter. So batch b
is the same however it is reached, on every machine.

- Ids: the rank of a feature's value follows a Zipf-like law over its cardinality, by inverting the continuous
  power law; cardinalities are those of Criteo's display-advertising challenge, capped.
- Integers: rounded log-normal, some missing.
- Labels: Bernoulli of a hidden logistic model with a weight for each value of some features (a hash of the
  value, so nothing is stored), for the logarithm of some integers, and for a few pairs of features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecrec.data.batch import Batch, batch_ranges, range_batches
from ecrec.data.criteo import write_rows
from ecrec.data.criteo_format import DENSE_FEATURES, INTEGERS, SPARSE_FEATURES, TOKENS, RawRows
from ecrec.data.ids import HashedIds, mix64
from ecrec.data.rows import MISSING_TOKEN, transform_integers

CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Values of C1..C26 in the 45,840,617 rows of the challenge's training file, as the DLRM paper's code counts
them."""

_MISSING_TOKENS = (
    *(0.0, 0.0, 0.035, 0.035, 0.0, 0.12, 0.0, 0.0, 0.0, 0.0, 0.0, 0.035, 0.0),
    *(0.0, 0.0, 0.035, 0.0, 0.0, 0.44, 0.44, 0.035, 0.76, 0.0, 0.035, 0.44, 0.44),
)
_MISSING_INTEGERS = (0.45, 0.0, 0.21, 0.21, 0.03, 0.22, 0.04, 0.0, 0.04, 0.45, 0.04, 0.76, 0.21)
_LOG_MEANS = (0.8, 2.0, 2.0, 1.6, 7.8, 3.4, 1.9, 2.2, 3.9, 0.5, 1.0, 0.4, 1.7)
_LOG_DEVIATIONS = (1.0, 1.8, 1.3, 0.9, 2.0, 1.5, 1.3, 0.9, 1.3, 0.4, 0.8, 0.7, 0.9)

_SIGNAL_TOKENS = (0, 1, 4, 5, 7, 8, 13, 16, 21, 22)
_SIGNAL_PAIRS = ((5, 8), (13, 16))
_SIGNAL_INTEGERS = ((0, 0.5), (1, -0.25), (5, -0.2), (6, 0.3), (10, 0.3))
_TOKEN_WEIGHT, _PAIR_WEIGHT = 0.55, 0.6
_BIAS = -2.2

_ROW_BITS = 40
_DRAWS = 128
"""Random numbers a row may use: fewer than 2**(64 - _ROW_BITS) streams are needed, so counters never meet."""


@dataclass(frozen=True)
class SyntheticOptions:
    """rows: in all. train_fraction: of them. seed: any integer from 0 to 2**63 - 1. rows_per_table: cap for
    the cardinality of each feature, ids being hashed into min(cap, cardinality + 2) rows. exponent: of the
    Zipf law; larger is more skewed."""

    rows: int = 100_000
    train_fraction: float = 0.8
    seed: int = 7
    rows_per_table: int = 50_000
    exponent: float = 1.1


class SyntheticDataset:
    """Generated Criteo-like rows; a `BatchSource`.

    Raises ValueError for options out of range.
    """

    def __init__(self, options: SyntheticOptions | None = None) -> None:
        self.options = options = options or SyntheticOptions()
        if not 0 <= options.rows < 1 << _ROW_BITS:
            raise ValueError(f"rows is {options.rows}, expected a number from 0 to {(1 << _ROW_BITS) - 1}")
        if not 0.0 <= options.train_fraction <= 1.0:
            raise ValueError(f"train_fraction is {options.train_fraction}, expected a value from 0 to 1")
        if not 0 <= options.seed < 1 << 63:
            raise ValueError(f"seed is {options.seed}, expected a number from 0 to 2**63 - 1")
        if options.rows_per_table < 2:
            raise ValueError(f"rows_per_table is {options.rows_per_table}, expected at least 2")
        if not 0.0 < options.exponent < 10.0 or options.exponent == 1.0:
            raise ValueError(f"exponent is {options.exponent}, expected above 0, below 10 and not exactly 1")
        self._train_rows = int(options.rows * options.train_fraction + 1e-9)
        self._cardinalities = np.minimum(CARDINALITIES, options.rows_per_table)[:, None].astype(np.float64)
        self._ids = HashedIds(tuple(min(options.rows_per_table, values + 2) for values in CARDINALITIES))
        self._key = mix64(np.array([options.seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the integers."""
        return DENSE_FEATURES

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the tokens."""
        return SPARSE_FEATURES

    @property
    def hot(self) -> tuple[int, ...]:
        """One id for each token."""
        return (1,) * TOKENS

    @property
    def rows_per_table(self) -> tuple[int, ...]:
        """Rows of the embedding table of each token."""
        return self._ids.rows_per_table

    @property
    def train_rows(self) -> int:
        """Rows of the training part, the first ones."""
        return self._train_rows

    @property
    def test_rows(self) -> int:
        """Rows of the test part."""
        return self.options.rows - self._train_rows

    def train_batches(
        self, batch_size: int, *, epochs: int = 1, steps: int | None = None, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of the training part, in row order; see `ecrec.data.batch.batch_ranges`."""
        ranges = batch_ranges(self._train_rows, batch_size, epochs=epochs, steps=steps, first_step=first_step)
        return (self.batch(start, stop) for start, stop in ranges)

    def train_range(self, first: int, last: int, batch_size: int, epoch: int = 0) -> Iterator[Batch]:
        """Rows [first, last) of the training part, in batches. Raises ValueError for rows that are not
        there."""
        return (self.batch(start, stop) for start, stop in range_batches(first, last, self._train_rows, batch_size))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of the test part, in row order, each row once."""
        shift = self._train_rows
        return (self.batch(shift + a, shift + b) for a, b in batch_ranges(self.test_rows, batch_size))

    def batch(self, start: int, stop: int) -> Batch:
        """Rows [start, stop) as a batch."""
        raw = self.raw(start, stop)
        return Batch(raw.labels, transform_integers(raw.integers), self._ids(raw.tokens))

    def raw(self, start: int, stop: int) -> RawRows:
        """Rows [start, stop) as the fields of Criteo's format."""
        rows = np.arange(start, stop, dtype=np.uint64)
        ranks = self._ranks(rows)
        features = np.arange(1, TOKENS + 1, dtype=np.uint64)[:, None] << np.uint64(_ROW_BITS)
        tokens = (mix64(ranks | features) >> np.uint64(32)).astype(np.int64)
        missing_tokens = self._uniform(rows, 32, TOKENS) < np.array(_MISSING_TOKENS)[:, None]
        tokens[missing_tokens] = MISSING_TOKEN

        normal = self._normal(rows, 64)
        logs = np.array(_LOG_MEANS)[:, None] + np.array(_LOG_DEVIATIONS)[:, None] * normal
        # The floor of exp(x) less one half leaves a fair share of zeros; the cap keeps 8 digits as Criteo
        # has.
        integers = np.floor(np.exp(np.minimum(logs, 18.0)) - 0.5).astype(np.int64)
        np.maximum(integers, 0, out=integers)
        missing_integers = self._uniform(rows, 96, INTEGERS) < np.array(_MISSING_INTEGERS)[:, None]
        integers[missing_integers] = 0

        probability = 1.0 / (1.0 + np.exp(-self._logits(tokens, integers)))
        labels = (self._uniform(rows, 120, 1)[0] < probability).astype(np.float32)
        return RawRows(labels, np.ascontiguousarray(integers.T), np.ascontiguousarray(missing_integers.T), tokens)

    def write_tsv(self, path: str | os.PathLike[str], block_rows: int = 8192) -> None:
        """Write all rows in Criteo's native format, plain."""
        with open(path, "wb") as stream:
            for start in range(0, self.options.rows, block_rows):
                write_rows(stream, self.raw(start, min(start + block_rows, self.options.rows)))

    def _uniform(self, rows: NDArray[np.uint64], first_draw: int, draws: int) -> NDArray[np.float64]:
        """Draws [first_draw, first_draw + draws) of each row: float64[draws, n] in [0, 1), 53 random bits."""
        draw = np.arange(first_draw, first_draw + draws, dtype=np.uint64)[:, None]
        assert first_draw + draws <= _DRAWS
        counters = (rows | (draw << np.uint64(_ROW_BITS))) ^ self._key
        return _unit_interval(counters)

    def _normal(self, rows: NDArray[np.uint64], first_draw: int) -> NDArray[np.float64]:
        """Standard normal numbers, float64[INTEGERS, n], by Box and Muller."""
        uniform = self._uniform(rows, first_draw, 2 * INTEGERS)
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:INTEGERS]))
        return radius * np.cos(2.0 * np.pi * uniform[INTEGERS:])

    def _ranks(self, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Zipf-like ranks from 0, uint64[26, n]: the floor of a number with density x**-exponent on [1,
        values + 1)."""
        power = 1.0 - self.options.exponent
        top = (self._cardinalities + 1.0) ** power
        uniform = self._uniform(rows, 0, TOKENS)
        ranks = (1.0 + uniform * (top - 1.0)) ** (1.0 / power)
        # Rounding may reach the open end of the interval.
        return (np.minimum(ranks, self._cardinalities) - 1.0).astype(np.uint64)

    def _logits(self, tokens: NDArray[np.int64], integers: NDArray[np.int64]) -> NDArray[np.float64]:
        logits = np.full(tokens.shape[1], _BIAS)
        for feature in _SIGNAL_TOKENS:
            logits += _TOKEN_WEIGHT * self._hidden_weight(tokens[feature], feature)
        for a, b in _SIGNAL_PAIRS:
            product = self._hidden_weight(tokens[a], 32 + a) * self._hidden_weight(tokens[b], 32 + b)
            logits += _PAIR_WEIGHT * product
        for feature, weight in _SIGNAL_INTEGERS:
            logits += weight * (np.log1p(integers[feature]) - _LOG_MEANS[feature] * 0.8)
        return logits

    def _hidden_weight(self, tokens: NDArray[np.int64], salt: int) -> NDArray[np.float64]:
        """A weight for each token, uniform with mean 0 and variance 1, the same for every row that has it."""
        salted = tokens.view(np.uint64) ^ (self._key + np.uint64(salt << _ROW_BITS))
        return (_unit_interval(salted) - 0.5) * math.sqrt(12.0)


def _unit_interval(counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    uniform: NDArray[np.float64] = (mix64(mix64(counters)) >> np.uint64(11)) / 2.0**53
    return uniform

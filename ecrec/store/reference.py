"""The store written down plainly: one record at a time, numpy float32, every rounding as in the compiled one.

`ReferenceStore` holds the tables of a whole cluster; what one shard has is what `Table.shard_of` says. A
record is uint8[record_bytes]: dim float32 weights, then the optimizer's float32 state, then zeros up to a
multiple of 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ecrec.codec import reference as codec

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

KEY_STRIPE_BITS: Final = 48
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = 0xFFFFFFFFFFFFFFFF
_LANES: Final = 16


def _finalise(x: int) -> int:
    """SplitMix64's finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def initial_uniform(dim: int, seed: int, row: int, scale: float) -> F32:
    """float32[dim] in [-scale, scale) from a counter-based generator of (seed, row, column)."""
    golden = 0x9E3779B97F4A7C15
    key = _finalise((_finalise((seed + golden) & _MASK64) + row * golden) & _MASK64)
    low, high = key & _MASK32, key >> 32
    unit = np.float32(scale) / np.float32(1 << 23)
    weights = np.empty(dim, dtype=np.float32)
    for column in range(dim):
        x = (column * 0x9E3779B9 + low) & _MASK32
        x ^= x >> 17
        x = (x * 0xED5AD4BB + high) & _MASK32
        x ^= x >> 11
        x = (x * 0xAC4C1B51) & _MASK32
        x ^= x >> 15
        x = (x * 0x31848BAB) & _MASK32
        x ^= x >> 14
        weights[column] = np.float32((x >> 8) - (1 << 23)) * unit
    return weights


def mean_square(gradient: F32) -> np.float32:
    """Mean of the squares, summed in 16 lanes that are then added pairwise: 8, 4, 2, 1."""
    squares = gradient * gradient
    lanes = np.zeros(_LANES, dtype=np.float32)
    for i, square in enumerate(squares):
        lanes[i % _LANES] += square
    width = _LANES // 2
    while width:
        lanes[:width] += lanes[width : 2 * width]
        width //= 2
    mean: np.float32 = lanes[0] / np.float32(len(gradient))
    return mean


@dataclass(frozen=True)
class Table:
    """A table of a cluster of ``groups`` groups of ``shards`` shards; the rest as in `Store.add_table`."""

    rows: int
    dim: int
    k: int
    r: int
    generator: str = "cauchy"
    optimizer: str = "sgd"
    hyper: tuple[float, ...] = (0.1,)
    init: str = "uniform"
    init_seed: int = 0
    init_scale: float = 0.01
    init_state: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False
    max_gradient: float = 0.0
    shards: int = 1
    groups: int = 1

    @property
    def state_floats(self) -> int:
        dim = self.dim
        sizes = {"sgd": 0, "momentum": dim, "nesterov": dim, "adagrad": dim, "rowwise-adagrad": 1}
        sizes |= {"adam": 2 * dim + 4, "rmsprop": dim, "ftrl": 2 * dim}
        return sizes[self.optimizer]

    @property
    def record_bytes(self) -> int:
        return -(-4 * (self.dim + self.state_floats) // 16) * 16

    def stripe_of(self, row: int) -> tuple[int, int]:
        """(group, stripe of the group) of a row."""
        stripe = row // self.k
        return stripe % self.groups, stripe // self.groups

    def shard_of(self, row: int) -> tuple[int, int]:
        """(group, shard of the group) that has a row."""
        group, stripe = self.stripe_of(row)
        return group, (stripe + row % self.k) % self.shards

    def parity_shards(self, stripe: int) -> list[int]:
        return [(stripe + self.k + i) % self.shards for i in range(self.r)]

    def stripes(self, group: int) -> int:
        """Number of stripes of a group."""
        return len(range(group, -(-self.rows // self.k), self.groups))

    def rows_of_stripe(self, group: int, stripe: int) -> list[int | None]:
        """Global row of each data slot; ``None`` where the last stripe is short."""
        first = (stripe * self.groups + group) * self.k
        return [row if row < self.rows else None for row in range(first, first + self.k)]

    def initial_record(self, row: int) -> U8:
        record = np.zeros(self.record_bytes // 4, dtype=np.float32)
        if self.init == "uniform":
            record[: self.dim] = initial_uniform(self.dim, self.init_seed, row, self.init_scale)
        if self.optimizer in ("adagrad", "rowwise-adagrad"):
            record[self.dim : self.dim + self.state_floats] = self.init_state
        elif self.optimizer == "ftrl":
            record[self.dim : 2 * self.dim] = self.init_state
        return record.view(np.uint8)

    def stepped(self, record: U8, gradient: F32) -> U8:
        """The record after an optimizer step.

        Formulas as torch's (SGD, Adagrad, SparseAdam, RMSprop), FBGEMM's (row-wise Adagrad), and McMahan et al. 2013,
        algorithm 1 (FTRL-Proximal).
        """
        new = record.copy().view(np.float32)
        weights = new[: self.dim]
        state = new[self.dim : self.dim + self.state_floats]
        lr = np.float32(self.hyper[0])
        if self.max_gradient:
            gradient = np.clip(gradient, -np.float32(self.max_gradient), np.float32(self.max_gradient))
        if self.decoupled:
            weights *= np.float32(1.0 - self.hyper[0] * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient + np.float32(self.weight_decay) * weights
        if self.optimizer == "sgd":
            weights -= lr * gradient
        elif self.optimizer in ("momentum", "nesterov"):
            momentum = np.float32(self.hyper[1])
            state[:] = momentum * state + gradient
            weights -= lr * (gradient + momentum * state if self.optimizer == "nesterov" else state)
        elif self.optimizer == "adam":
            self._adam(weights, state, gradient)
        elif self.optimizer == "rmsprop":
            state += (gradient * gradient - state) * np.float32(1.0 - self.hyper[1])
            weights -= lr * (gradient / (np.sqrt(state) + np.float32(self.hyper[2])))
        elif self.optimizer == "ftrl":
            self._ftrl(weights, state, gradient)
        elif self.optimizer == "adagrad":
            state += gradient * gradient
            weights -= lr * gradient / (np.sqrt(state) + np.float32(self.hyper[1]))
        else:
            state += mean_square(gradient)
            weights -= lr / (np.sqrt(state) + np.float32(self.hyper[1])) * gradient
        stepped: U8 = new.view(np.uint8)
        return stepped

    def _adam(self, weights: F32, state: F32, gradient: F32) -> None:
        """State: m, v, and as two float64 the corrections of their bias, 1 - beta^t for the t steps of this row."""
        lr, beta1, beta2, eps = self.hyper
        m, v = state[: self.dim], state[self.dim : 2 * self.dim]
        m += (gradient - m) * np.float32(1.0 - beta1)
        v += (gradient * gradient - v) * np.float32(1.0 - beta2)
        corrections = np.frombuffer(state[2 * self.dim :].tobytes(), dtype=np.float64)
        corrections = corrections + (1.0 - corrections) * np.array([1.0 - beta1, 1.0 - beta2])
        state[2 * self.dim :] = np.frombuffer(corrections.tobytes(), dtype=np.float32)
        step = np.float32(lr * np.sqrt(corrections[1]) / corrections[0])
        weights -= step * (m / (np.sqrt(v) + np.float32(eps)))

    def _ftrl(self, weights: F32, state: F32, gradient: F32) -> None:
        """State: n, z."""
        lr, beta, l1, l2 = (np.float32(number) for number in self.hyper)
        n, z = state[: self.dim], state[self.dim :]
        before = np.sqrt(n)
        n += gradient * gradient
        root = np.sqrt(n)
        z += gradient - (root - before) / lr * weights
        excess = np.abs(z) - l1
        shrunk = -np.copysign(excess, z) / ((beta + root) / lr + l2)
        weights[:] = np.where(excess > 0, shrunk, np.float32(0.0))


class ReferenceStore:
    """All rows of all shards."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = list(tables)
        self._records: dict[tuple[int, int], U8] = {}

    def touched(self, table: int, row: int) -> bool:
        return (table, row) in self._records

    def record(self, table: int, row: int) -> U8:
        """uint8[record_bytes], a copy."""
        record = self._records.get((table, row))
        return self.tables[table].initial_record(row) if record is None else record.copy()

    def weights(self, table: int, row: int) -> F32:
        return self.record(table, row).view(np.float32)[: self.tables[table].dim]

    def apply(self, table: int, row: int, gradient: F32, rate: float | None = None) -> U8:
        """One optimizer step, at another learning rate than the table's if one is given; returns the delta, old record
        XOR new."""
        old = self.record(table, row)
        shape = self.tables[table]
        if rate is not None:
            shape = replace(shape, hyper=(rate, *shape.hyper[1:]))
        self._records[table, row] = new = shape.stepped(old, gradient)
        delta: U8 = old ^ new
        return delta

    def assign(self, table: int, row: int, weights: F32) -> U8:
        """Set the weights, keep the state; returns the delta."""
        old = self.record(table, row)
        self._records[table, row] = new = old.copy()
        new.view(np.float32)[: self.tables[table].dim] = weights
        delta: U8 = old ^ new
        return delta

    def coded(self, table: int, row: int | None) -> U8:
        """Coded value: record XOR initial record; zeros for ``None``, a row that does not exist."""
        if row is None:
            return np.zeros(self.tables[table].record_bytes, dtype=np.uint8)
        coded: U8 = self.record(table, row) ^ self.tables[table].initial_record(row)
        return coded

    def parity(self, table: int, group: int, stripe: int) -> U8:
        """uint8[r, record_bytes]: the parity rows of a stripe."""
        shape = self.tables[table]
        data = np.stack([self.coded(table, row) for row in shape.rows_of_stripe(group, stripe)])
        return codec.encode(shape.k, shape.r, shape.generator, data)

"""Where rows, parities and replicas live: arithmetic only, no directory (docs/protocol.md)."""

import math
import struct
from typing import Final, NamedTuple

import msgspec

from ecrec._native import optimizers
from ecrec.errors import ConfigurationError

SHARDS_IN_GROUP_MAX = 16
CLASSES_MAX = 64
"""The native store keeps a set of classes in 64 bits."""

TABLES_MAX = 65_535
"""Keys have 16 bits for the table."""
RECORD_ALIGNMENT = 16
"""Bytes to a multiple of which the native store pads a record."""


_FLOAT = struct.Struct("f")


class CodeSpec(msgspec.Struct, frozen=True, array_like=True):
    """A (k, r) code: k data and r parity rows a stripe; k = 1 is replication; r = 0 is no fault tolerance."""

    k: int
    r: int
    generator: str = "cauchy"

    @classmethod
    def parse(cls, text: str) -> "CodeSpec":
        """``"4+1"`` -> CodeSpec(4, 1). Raises ConfigurationError for anything that is not ``k+r``, k >= 1, r >= 0."""
        if not isinstance(text, str):
            raise ConfigurationError(f"code {text!r:.100}: expected a text, K+R, for example '4+1'")
        k, plus, r = text.partition("+")
        if not plus or not k.isascii() or not k.isdigit() or not r.isascii() or not r.isdigit() or int(k) < 1:
            raise ConfigurationError(f"code {text!r}: expected K+R with K >= 1 and R >= 0, for example 4+1")
        return cls(int(k), int(r))

    @classmethod
    def of(cls, given: "CodeSpec | str") -> "CodeSpec":
        """One of these, or its text. Raises ConfigurationError for anything else."""
        return given if isinstance(given, CodeSpec) else cls.parse(given)

    def __str__(self) -> str:
        return f"{self.k}+{self.r}"


class StatePart(NamedTuple):
    """A part of what an optimizer keeps of a row: a float32 for each weight, and so many numbers besides."""

    name: str
    per_weight: bool
    floats: int
    doubles: int

    def floats_of(self, dim: int) -> int:
        """float32 numbers in the record of a row of ``dim`` weights; a float64 is two."""
        return self.per_weight * dim + self.floats + 2 * self.doubles


class OptimizerKind(NamedTuple):
    """What a fused optimizer is told, in this order, and what a record holds for it behind the weights."""

    hyper: tuple[str, ...]
    state: tuple[StatePart, ...]
    divides_by_rate: bool
    """A learning rate of zero is none."""
    table_rate: float
    """Learning rate of tables where none is given (``ecrec train``)."""
    dense_rate: float
    """The same of a dense part; 0: it is not offered there."""


OPTIMIZERS: Final = {
    name: OptimizerKind(hyper, tuple(StatePart(*part) for part in state), divides, *rates)
    for name, (hyper, state, divides, rates) in optimizers().items()
}
"""The native store's optimizers by name."""


class OptimizerSpec(msgspec.Struct, frozen=True, array_like=True):
    """A fused optimizer: its name in `OPTIMIZERS` and its hyper-parameters in that order."""

    name: str
    hyper: tuple[float, ...]
    weight_decay: float = 0.0
    """Before a step: g += weight_decay * w; ``decoupled``: w *= 1 - lr * weight_decay."""
    decoupled: bool = False
    max_gradient: float = 0.0
    """Before that: each number of a gradient is cut off to [-max_gradient, max_gradient]; 0: it is not."""

    def check(self) -> None:
        """Raise ConfigurationError for an unknown name or another number of hyper-parameters; not for their values."""
        kind = OPTIMIZERS.get(self.name)
        if kind is None:
            raise ConfigurationError(f"optimizer {self.name[:300]!r}: expected one of {', '.join(OPTIMIZERS)}")
        if len(self.hyper) != len(kind.hyper):
            raise ConfigurationError(
                f"optimizer {self.name!r} with {len(self.hyper)} hyper-parameters; expected {', '.join(kind.hyper)}"
            )

    def rate_error(self, rate: float) -> str:
        """Why no step can be taken at this learning rate; empty if one can. As the native store decides."""
        divides = OPTIMIZERS[self.name].divides_by_rate
        try:
            (rounded,) = _FLOAT.unpack(_FLOAT.pack(rate))
        except OverflowError:
            rounded = math.inf
        if not math.isfinite(rounded) or rounded < 0 or (divides and rounded == 0):
            return f"learning rate {rate}: expected a finite number {'above' if divides else 'of at least'} 0"
        if self.decoupled and rate * self.weight_decay >= 1:
            return f"learning rate {rate} times the decoupled weight decay {self.weight_decay}: expected less than 1"
        return ""

    def state_floats(self, dim: int) -> int:
        """Floats of state in the record of a row of ``dim`` weights."""
        return sum(part.floats_of(dim) for part in OPTIMIZERS[self.name].state)


DRAWN: Final = "drawn by the servers"
"""First values that no worker writes: each row's, when it is first asked for."""


class TableSpec(msgspec.Struct, frozen=True, array_like=True):
    """Everything that a shard needs to know to hold a table; equal on all shards of all groups."""

    name: str
    rows: int
    dim: int
    code: CodeSpec
    optimizer: OptimizerSpec
    init: str
    """``"zeros"`` or ``"uniform"`` in [-init_scale, init_scale)."""
    init_seed: int = 0
    init_scale: float = 0.0
    init_state: float = 0.0
    is_module: bool = False
    """Its rows are the parameters of a replicated module: never coded with k > 1, whatever other tables are."""
    pooling: str = ""
    """This field, ``features`` and ``first_values`` say what workers make of the table. The cluster only compares them:
    workers that disagree about one of them would train different models."""
    features: str = ""
    first_values: str = ""

    @property
    def is_written(self) -> bool:
        """A worker writes its first values."""
        return self.is_module or self.first_values not in ("", DRAWN)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record: weights and optimizer state in float32, padded to `RECORD_ALIGNMENT`."""
        floats = self.dim + self.optimizer.state_floats(self.dim)
        return -(-4 * floats // RECORD_ALIGNMENT) * RECORD_ALIGNMENT


class Stripe(NamedTuple):
    """A class of stripes: all have the same members. Shards are numbered within their group."""

    class_id: int
    data: tuple[int, ...]
    parity: tuple[int, ...]


class Placement:
    """The classes of one coding group of ``n`` shards. Codes are numbered in order of their first table."""

    def __init__(self, n: int) -> None:
        if not 1 <= n <= SHARDS_IN_GROUP_MAX:
            raise ConfigurationError(f"a coding group has 1 to {SHARDS_IN_GROUP_MAX} shards, not {n}")
        self.n = n
        self.codes: list[CodeSpec] = []
        self.classes: list[Stripe] = []

    def check(self, code: CodeSpec) -> None:
        """Raise ConfigurationError if the group cannot hold stripes of this code."""
        if code.k < 1 or code.r < 0 or code.k + code.r > self.n:
            raise ConfigurationError(
                f"code {code}: a stripe needs k + r = {code.k + code.r} different shards (k >= 1, r >= 0), "
                f"but a coding group has {self.n}"
            )
        if code not in self.codes and (len(self.codes) + 1) * self.n > CLASSES_MAX:
            raise ConfigurationError(
                f"code {code}: a group of {self.n} shards can hold {CLASSES_MAX // self.n} different codes, "
                f"and has {', '.join(map(str, self.codes))}"
            )

    def add(self, code: CodeSpec) -> None:
        """Number a code (known ones keep their number)."""
        if code in self.codes:
            return
        self.check(code)
        base = len(self.codes) * self.n
        self.codes.append(code)
        for c in range(self.n):
            members = [(c + slot) % self.n for slot in range(code.k + code.r)]
            self.classes.append(Stripe(base + c, tuple(members[: code.k]), tuple(members[code.k :])))

    def code_of(self, class_id: int) -> CodeSpec:
        return self.codes[class_id // self.n]

    def data_classes(self, shard: int) -> list[int]:
        """Classes of which the shard holds a data row."""
        return [s.class_id for s in self.classes if shard in s.data]

    def parity_classes(self, shard: int) -> list[int]:
        """Classes of which the shard holds a parity row."""
        return [s.class_id for s in self.classes if shard in s.parity]

    def tolerance(self) -> int:
        """How many shards may be lost at the same time: the smallest r of all codes (0 without tables)."""
        return min((code.r for code in self.codes), default=0)


def shards_of(placement: Placement, class_id: int) -> tuple[int, ...]:
    """The members of the stripes of a class."""
    stripe = placement.classes[class_id]
    return stripe.data + stripe.parity

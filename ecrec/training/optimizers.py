"""Fused optimizers: a shard applies them to the rows whose gradients it is sent.

Names and defaults follow ``torch.optim`` and TorchRec's fused optimizers. The formulas are the native store's
(``src/cpp/store``); g is the sum of a row's gradients over the batch, s its state.
"""

import math
from dataclasses import dataclass

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import OptimizerSpec


@dataclass(frozen=True)
class SGD:
    """w -= lr * g. No state. Raises ConfigurationError for an lr that is not positive and finite."""

    lr: float

    def __post_init__(self) -> None:
        _check_positive("SGD", "lr", self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        return OptimizerSpec("sgd", (float(self.lr),), 0)

    @property
    def init_state(self) -> float:
        return 0.0

    @property
    def elementwise(self) -> bool:
        return True


@dataclass(frozen=True)
class Adagrad:
    """s += g * g; w -= lr * g / (sqrt(s) + eps), element by element, as ``torch.optim.Adagrad``.

    Raises ConfigurationError for an lr or eps that is not positive and finite, or a negative accumulator.
    """

    lr: float
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("Adagrad", "lr", self.lr)
        _check_positive("Adagrad", "eps", self.eps)
        _check_not_negative("Adagrad", "initial_accumulator_value", self.initial_accumulator_value)

    @property
    def spec(self) -> OptimizerSpec:
        return OptimizerSpec("adagrad", (float(self.lr), float(self.eps)), -1)

    @property
    def init_state(self) -> float:
        return float(self.initial_accumulator_value)

    @property
    def elementwise(self) -> bool:
        return True


@dataclass(frozen=True)
class RowWiseAdagrad:
    """s += mean(g * g) over the row; w -= lr * g / (sqrt(s) + eps): one float of state a row, as TorchRec's.

    Raises ConfigurationError for an lr or eps that is not positive and finite, or a negative accumulator.
    """

    lr: float
    eps: float = 1e-8
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("RowWiseAdagrad", "lr", self.lr)
        _check_positive("RowWiseAdagrad", "eps", self.eps)
        _check_not_negative("RowWiseAdagrad", "initial_accumulator_value", self.initial_accumulator_value)

    @property
    def spec(self) -> OptimizerSpec:
        return OptimizerSpec("rowwise-adagrad", (float(self.lr), float(self.eps)), 1)

    @property
    def init_state(self) -> float:
        return float(self.initial_accumulator_value)

    @property
    def elementwise(self) -> bool:
        return False


Optimizer = SGD | Adagrad | RowWiseAdagrad

_BY_NAME = {"sgd": SGD, "adagrad": Adagrad, "rowwise-adagrad": RowWiseAdagrad}


def optimizer(name: str, lr: float) -> Optimizer:
    """The optimizer of that name (``sgd``, ``adagrad``, ``rowwise-adagrad``) with its defaults.

    Raises ConfigurationError for an unknown name or a bad lr.
    """
    if name not in _BY_NAME:
        raise ConfigurationError(f"optimizer {name!r}: expected one of {', '.join(_BY_NAME)}")
    made: Optimizer = _BY_NAME[name](lr)
    return made


def _check_positive(optimizer_name: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{optimizer_name}: {name} is {value}, expected a positive number")


def _check_not_negative(optimizer_name: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(f"{optimizer_name}: {name} is {value}, expected at least 0")

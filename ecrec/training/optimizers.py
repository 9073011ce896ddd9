"""Fused optimizers: a shard applies them to the rows whose gradients it is sent.

Names and defaults follow ``torch.optim`` and TorchRec's fused optimizers. The formulas are the native store's
(``src/cpp/kernels/optimizers.inl``); g is the sum of a row's gradients over the batch. State lies in the row's record,
so it is coded and recovered with the weights. Only rows that a batch uses advance, momentum and decay included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import OptimizerSpec

__all__ = ["FTRL", "SGD", "Adagrad", "Adam", "Optimizer", "RMSprop", "RowWiseAdagrad"]
"""What `ecrec.training` shows of it."""


class Fused:
    """What is the same for all optimizers, but where one says otherwise."""

    elementwise: ClassVar[bool] = True
    """Its state is that of single weights, so that a row may be cut anywhere. What it keeps by row, such as a count of
    steps, is the same for all rows that take each step together."""

    @property
    def init_state(self) -> float:
        """What the state begins with."""
        return 0.0


class Accumulating(Fused):
    """One whose state begins with an ``initial_accumulator_value``."""

    initial_accumulator_value: float

    @property
    def init_state(self) -> float:
        return float(self.initial_accumulator_value)


@dataclass(frozen=True, kw_only=True)
class Adjustments:
    """What an optimizer does before each step of a row, as torch and FBGEMM do.

    ``max_gradient``: each number of the gradient is cut off to [-max_gradient, max_gradient], as
    ``torch.nn.utils.clip_grad_value_``. Then, with ``weight_decay``, g += weight_decay * w, or, with
    ``decoupled_weight_decay``, w *= 1 - lr * weight_decay, as ``torch.optim.AdamW``. Torch lets all rows decay at each
    step of the optimizer; here, as in FBGEMM, a row decays in the batches that have it.
    """

    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    max_gradient: float | None = None

    def _spec(self, name: str, lr: float, *hyper: float) -> OptimizerSpec:
        return OptimizerSpec(
            name,
            (float(lr), *map(float, hyper)),
            weight_decay=float(self.weight_decay),
            decoupled=bool(self.decoupled_weight_decay),
            max_gradient=0.0 if self.max_gradient is None else float(self.max_gradient),
        )

    def _check_adjustments(self, lr: float) -> None:
        kind = type(self).__name__
        _check_not_negative(kind, "weight_decay", self.weight_decay)
        if self.max_gradient is not None:
            _check_positive(kind, "max_gradient", self.max_gradient)
        if self.decoupled_weight_decay and not 0 < lr * self.weight_decay < 1:
            raise ConfigurationError(
                f"{kind}: decoupled_weight_decay with lr * weight_decay = {lr * self.weight_decay}, expected more than "
                "0 and less than 1"
            )


@dataclass(frozen=True)
class SGD(Adjustments, Fused):
    """w -= lr * g; with momentum b = momentum * b + g; w -= lr * b, with nesterov w -= lr * (g + momentum * b).

    As ``torch.optim.SGD`` without dampening, for the rows of the batch: no b moves a row without gradient.
    No state without momentum. Raises ConfigurationError for an lr that is not positive and finite, a momentum that is
    not finite or negative, and nesterov without momentum.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_positive("SGD", "lr", self.lr)
        _check_not_negative("SGD", "momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ConfigurationError("SGD: nesterov needs a momentum, and momentum is 0")
        self._check_adjustments(self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        if self.momentum == 0:
            return self._spec("sgd", self.lr)
        return self._spec("nesterov" if self.nesterov else "momentum", self.lr, self.momentum)


@dataclass(frozen=True)
class Adagrad(Adjustments, Accumulating):
    """s += g * g; w -= lr * g / (sqrt(s) + eps), state s, element by element, as ``torch.optim.Adagrad``.

    Raises ConfigurationError for an lr or eps that is not positive and finite, or a negative accumulator.
    """

    lr: float
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("Adagrad", "lr", self.lr)
        _check_positive("Adagrad", "eps", self.eps)
        _check_not_negative("Adagrad", "initial_accumulator_value", self.initial_accumulator_value)
        self._check_adjustments(self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        return self._spec("adagrad", self.lr, self.eps)


@dataclass(frozen=True)
class RowWiseAdagrad(Adjustments, Accumulating):
    """s += mean(g * g) over the row; w -= lr * g / (sqrt(s) + eps): one float of state a row, as TorchRec's.

    Raises ConfigurationError for an lr or eps that is not positive and finite, or a negative accumulator.
    """

    elementwise: ClassVar[bool] = False

    lr: float
    eps: float = 1e-8
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("RowWiseAdagrad", "lr", self.lr)
        _check_positive("RowWiseAdagrad", "eps", self.eps)
        _check_not_negative("RowWiseAdagrad", "initial_accumulator_value", self.initial_accumulator_value)
        self._check_adjustments(self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        return self._spec("rowwise-adagrad", self.lr, self.eps)


@dataclass(frozen=True)
class Adam(Adjustments, Fused):
    """m += (1 - beta1) * (g - m); v += (1 - beta2) * (g * g - v); w -= step * m / (sqrt(v) + eps), where
    step = lr * sqrt(1 - beta2^t) / (1 - beta1^t).

    The rule of ``torch.optim.SparseAdam``, but for t: there it counts the steps of the whole parameter, here the steps
    of the row, and is part of the row's state. Both are equal if every row is in every batch; docs/training.md has
    figures of where they are not. m and v have taken in as many gradients as their row has had, which is what the
    correction is for: SparseAdam's first step of a row seen late is (1 - beta1) / sqrt(1 - beta2) * lr, three times lr
    with the default betas; here every row's first step is lr.

    State: 8 bytes a weight and 16 a row. Raises ConfigurationError for an lr or eps that is not positive and finite,
    and betas that are not two numbers from 0 to below 1.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_positive("Adam", "lr", self.lr)
        _check_positive("Adam", "eps", self.eps)
        try:
            fit = len(self.betas) == 2 and all(0 <= float(beta) < 1 for beta in self.betas)
        except (TypeError, ValueError):
            fit = False
        if not fit:
            raise ConfigurationError(f"Adam: betas are {self.betas!r:.100}, expected two numbers from 0 to below 1")
        self._check_adjustments(self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        return self._spec("adam", self.lr, *self.betas, self.eps)


@dataclass(frozen=True)
class RMSprop(Adjustments, Fused):
    """v += (1 - alpha) * (g * g - v); w -= lr * g / (sqrt(v) + eps), state v, element by element.

    As ``torch.optim.RMSprop`` without momentum and not centered, for the rows of the batch: v of the others does not
    decay. Raises ConfigurationError for an lr or eps that is not positive and finite, and an alpha that is not from 0
    to below 1.
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_positive("RMSprop", "lr", self.lr)
        _check_positive("RMSprop", "eps", self.eps)
        _check_not_negative("RMSprop", "alpha", self.alpha)
        if self.alpha >= 1:
            raise ConfigurationError(f"RMSprop: alpha is {self.alpha}, expected a number from 0 to below 1")
        self._check_adjustments(self.lr)

    @property
    def spec(self) -> OptimizerSpec:
        return self._spec("rmsprop", self.lr, self.alpha, self.eps)


@dataclass(frozen=True)
class FTRL(Accumulating):
    """FTRL-Proximal (McMahan et al., Ad Click Prediction, KDD 2013, algorithm 1), element by element.

    n' = n + g * g; z += g - (sqrt(n') - sqrt(n)) / lr * w; w = 0 if |z| <= l1, else
    w = -(z - sign(z) * l1) / ((beta + sqrt(n')) / lr + l2); state n and z.

    As TensorFlow's with learning_rate_power = -0.5, whose l2 is half of this one. The weights are a function of n and z
    alone: initial values count only in the gradients until a row's first step, which comes close to forgetting them.
    Raises ConfigurationError for an lr that is not positive and finite, and anything else negative or not finite.
    """

    lr: float
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("FTRL", "lr", self.lr)
        for name in ("beta", "l1", "l2", "initial_accumulator_value"):
            _check_not_negative("FTRL", name, getattr(self, name))

    @property
    def spec(self) -> OptimizerSpec:
        return OptimizerSpec("ftrl", (float(self.lr), float(self.beta), float(self.l1), float(self.l2)))


Optimizer = SGD | Adagrad | RowWiseAdagrad | Adam | RMSprop | FTRL


def check_optimizer(given: object, whose: str = "") -> None:
    """Raise ConfigurationError for what is none of these; ``whose`` is for people."""
    if not isinstance(given, Optimizer):
        names = ", ".join(each.__name__ for each in get_args(Optimizer))
        raise ConfigurationError(
            f"optimizer {whose + ' ' if whose else ''}is {given!r:.100}, expected one of ecrec.training's ({names}): "
            "the servers apply it"
        )


def by_table(tables: Sequence[str], given: Optimizer | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """The optimizer of each table: one for all, or a mapping with all their names. Raises ConfigurationError for names
    that are unknown or missing, and for what is no optimizer."""
    if not isinstance(given, Mapping):
        check_optimizer(given)
        return dict.fromkeys(tables, given)
    unknown = [str(name) for name in given if name not in tables]
    missing = [name for name in tables if name not in given]
    if unknown or missing:
        wrong = [f"names {', '.join(unknown)}"] * bool(unknown) + [f"lacks {', '.join(missing)}"] * bool(missing)
        raise ConfigurationError(f"optimizer {' and '.join(wrong)}; the tables are {', '.join(tables)}")
    for name, each in given.items():
        check_optimizer(each, f"of table {name!r}")
    return {name: given[name] for name in tables}


MOMENTUM = 0.9
"""Of ``momentum`` and ``nesterov`` by name."""

_BY_NAME: dict[str, Callable[[float], Optimizer]] = {
    "sgd": SGD,
    "momentum": lambda lr: SGD(lr, MOMENTUM),
    "nesterov": lambda lr: SGD(lr, MOMENTUM, nesterov=True),
    "adagrad": Adagrad,
    "rowwise-adagrad": RowWiseAdagrad,
    "adam": Adam,
    "rmsprop": RMSprop,
    "ftrl": FTRL,
}


def optimizer(name: str, lr: float) -> Optimizer:
    """The optimizer of that name (one of `placement.OPTIMIZERS`) with its defaults, and a momentum of `MOMENTUM`.

    Raises ConfigurationError for an unknown name or a bad lr.
    """
    if name not in _BY_NAME:
        raise ConfigurationError(f"optimizer {name!r}: expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name](lr)


def _check_positive(optimizer_name: str, name: str, value: float) -> None:
    if not _single(optimizer_name, name, value) > 0:
        raise ConfigurationError(f"{optimizer_name}: {name} is {value}, expected a positive number{_AS_FLOAT32}")


def _check_not_negative(optimizer_name: str, name: str, value: float) -> None:
    if not _single(optimizer_name, name, value) >= 0:
        raise ConfigurationError(f"{optimizer_name}: {name} is {value}, expected at least 0")


_AS_FLOAT32 = "; the servers keep it as float32, of 1e-45 to 3e38"


def _single(optimizer_name: str, name: str, value: float) -> float:
    """The number as the servers reckon with it. Raises ConfigurationError for what is none, or not finite then."""
    given: object = value
    try:
        if isinstance(given, str):
            raise TypeError
        with np.errstate(over="ignore"):
            single = float(np.float32(float(value)))
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"{optimizer_name}: {name} is {value!r:.100}, expected a number") from None
    if not math.isfinite(single):
        raise ConfigurationError(f"{optimizer_name}: {name} is {value}, expected a finite number{_AS_FLOAT32}")
    return single

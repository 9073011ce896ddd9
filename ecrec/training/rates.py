"""Learning rates that change while training goes on: `ShardOptimizer`, which torch's schedulers drive."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import OPTIMIZERS, TableSpec


class Pushes(Protocol):
    """What it needs of a session."""

    def push(self, examples: int = 0) -> None: ...

    def discard(self) -> None: ...

    def gradient_of(self, index: int) -> Any: ...


class _OnTheServers(torch.nn.Parameter):
    """What stands for a table in the groups. Its gradient is what the next push sends of that table: who changes it in
    place (a GradScaler, clip_grad_norm_) changes that."""

    source: tuple[Pushes, int]
    """The session, and the table's index."""

    @property
    def grad(self) -> Any:
        session, index = self.source
        return session.gradient_of(index)

    @grad.setter
    def grad(self, value: Any) -> None:
        raise ConfigurationError(
            "session.optimizer: a gradient of a table can be changed in place, and not be replaced; "
            "Session.discard() gives a step up"
        )


def _stand_in(session: Pushes, index: int) -> _OnTheServers:
    made = _OnTheServers(torch.empty(0, device="meta"))
    made.source = session, index
    return made


NO_EFFECT = frozenset(
    ("weight_decay", "nesterov", "dampening", "betas", "amsgrad", "maximize", "lr_decay", "initial_accumulator_value",
     "centered", "max_gradient")
).union(*(kind.hyper[1:] for kind in OPTIMIZERS.values()))  # fmt: skip
"""What torch's optimizers have in a group besides ``lr``, and these."""


class ShardOptimizer(torch.optim.Optimizer):
    """The optimizers that the shards apply, as ``torch.optim.lr_scheduler`` sees them; `Session.optimizer` makes it.

    ``param_groups``: one for each table and replicated module of the session, with its ``name`` and ``lr``. What ``lr``
    is when a step is pushed is the learning rate of that step, on every shard and also after deaths: it travels in the
    push. Workers that push in sync must agree on it. Other hyper-parameters are those that a table was made with.

    A ``torch.amp.GradScaler`` works on it: ``scaler.step(session.optimizer)`` unscales what it pushes, and gives a step
    up in which a gradient is not finite.
    """

    _step_supports_amp_scaling = True
    """A GradScaler leaves to `step` what to do with its scale, and whether to skip."""

    grad_scale: Any
    found_inf: Any

    def __init__(self, session: Pushes, tables: Mapping[int, TableSpec]) -> None:
        """``tables``: index -> spec. Raises ConfigurationError without any."""
        if not tables:
            raise ConfigurationError("session.optimizer: make the model's tables and replicated modules first")
        self._session = session
        self.has_emptied = False
        """`zero_grad` was called since the last push."""
        self._tables = dict(tables)
        groups = [
            {"params": [_stand_in(session, index)], "name": spec.name, "lr": spec.optimizer.hyper[0]}
            for index, spec in self._tables.items()
        ]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None, *, examples: int = 0) -> Any:
        """`Session.push` of that many examples, after ``closure()`` if one is given, whose value is returned.

        Called by ``GradScaler.step``, which has looked for gradients that are not finite: it divides all by the scale,
        or gives the step up; its examples count then, too.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, is_infinite = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaled: list[tuple[Tensor, Tensor]] = []
        try:
            if is_infinite is not None and float(is_infinite):
                self._session.discard()
                if examples:
                    self._session.push(examples)
                return loss
            if scale is not None:
                scaled = self._divide(float(scale))
            self._session.push(examples)
        except BaseException:
            # trap: the step may be made again. The scaler would take what it left here for another scale.
            with torch.no_grad():
                for gradient, before in scaled:
                    gradient.copy_(before)
            for name in ("grad_scale", "found_inf"):
                self.__dict__.pop(name, None)
            raise
        return loss

    def _divide(self, scale: float) -> list[tuple[Tensor, Tensor]]:
        """Divide all gradients; each with what it was."""
        scaled = []
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        scaled.append((parameter.grad, parameter.grad.clone()))
                        parameter.grad.mul_(1.0 / scale)
        return scaled

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`Session.discard`: gradients that were not pushed are forgotten."""
        self._session.discard()
        self.has_emptied = True

    def remember(self) -> Callable[[], str]:
        """What brings the groups of now back, and says what was changed in them, for people; empty if nothing was."""
        groups = [(group, dict(group), _value(group.get("lr"))) for group in self.param_groups]

        def restore() -> str:
            found = []
            if [id(group) for group in self.param_groups] != [id(group) for group, _, _ in groups]:
                found.append("param_groups of session.optimizer were replaced")
                self.param_groups = [group for group, _, _ in groups]
            for group, before, rate in groups:
                changed = [key for key in {**before, **group} if group.get(key) is not before.get(key)]
                if not changed and _value(group.get("lr")) == rate:
                    continue
                found.append(f"{(changed or ['lr'])[0]} of {before.get('name')!r} in session.optimizer was changed")
                group.clear()
                group.update(before)
                if isinstance(before.get("lr"), Tensor):
                    before["lr"].fill_(rate)
            return ", ".join(found)

        return restore

    def pushed(self) -> None:
        """A push was made, by `step` or not: torch's schedulers warn where they think that none was."""
        self._opt_called = True
        self.has_emptied = False

    def rates(self) -> dict[int, float]:
        """Table -> learning rate of the next step, where it is not the table's own.

        Raises ConfigurationError for one at which no step can be taken, and for groups that are not the tables'.
        """
        groups = self.param_groups
        if [group.get("name") for group in groups] != [spec.name for spec in self._tables.values()]:
            raise ConfigurationError("session.optimizer: its param_groups were changed; only lr may be")
        for group in groups:
            if others := sorted(NO_EFFECT & group.keys()):
                raise ConfigurationError(
                    f"session.optimizer: {', '.join(others)} of {group['name']!r} would have no effect: servers take "
                    "it from the optimizer that the table was made with; only lr may change"
                )
        found = {}
        for (index, spec), group in zip(self._tables.items(), groups, strict=True):
            rate = _value(group.get("lr"))
            if not isinstance(rate, float):
                raise ConfigurationError(f"session.optimizer: lr of {spec.name!r} is {rate!r:.100}, expected a number")
            if error := spec.optimizer.rate_error(rate):
                raise ConfigurationError(f"session.optimizer: table {spec.name!r}: {error}")
            if rate != spec.optimizer.hyper[0]:
                found[index] = rate
        return found


def _value(rate: Any) -> Any:
    """A learning rate as a float; what is no number as it is."""
    try:
        return float(rate) if not isinstance(rate, str) else rate
    except (TypeError, ValueError, RuntimeError):
        return rate

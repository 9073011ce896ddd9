"""The gradients of a replicated module's parameters between two pushes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ecrec.errors import GradientError
from ecrec.training.parameter_rows import ParameterRows
from ecrec.training.parts import F32, TAKEN_AWAY, Share, WaitingGradients


class DenseGradients:
    """Those that the parameters have when a push takes them, as ``optimizer.step()`` would."""

    def __init__(self, name: str, rows: ParameterRows) -> None:
        self._name, self._rows = name, rows
        self._taken: F32 = rows.buffer()
        self._views = list(rows.views(self._taken))
        self._reached: set[int] = set()
        """Parameters that a backward pass has reached since the last push."""
        self._flat: Tensor | None = None
        self._flat_views: list[Tensor] = []
        """Gradients as `as_one` gave them, and what parameters had then."""

    def watch(self) -> None:
        """Notice from now on which parameters a backward pass reaches."""
        for i, parameter in enumerate(self._rows.parameters):
            trained = parameter.requires_grad
            parameter.requires_grad_(True)  # torch refuses the hook otherwise; it may be trained later
            parameter.register_post_accumulate_grad_hook(_Reached(self._reached, i))  # type: ignore[no-untyped-call]
            parameter.requires_grad_(trained)

    @property
    def wait(self) -> bool:
        """A parameter that is trained has one."""
        return any(p.requires_grad and p.grad is not None for p in self._rows.parameters)

    def check(self) -> None:
        """Raise GradientError for those that were taken away, or are of another type or shape."""
        parameters, names = self._rows.parameters, self._rows.names
        having = {i for i, p in enumerate(parameters) if p.grad is not None}
        if taken := sorted(self._reached - having):
            raise GradientError(
                f"replicated module {self._name!r}: the gradient of {self._rows.named(taken)} was {TAKEN_AWAY}"
            )
        for i in having:
            grad = parameters[i].grad
            assert grad is not None
            if grad.dtype != torch.float32 or grad.device.type != "cpu" or grad.shape != parameters[i].shape:
                raise GradientError(
                    f"replicated module {self._name!r}: the gradient of {names[i]} is {grad.dtype} "
                    f"{tuple(grad.shape)} on {grad.device}; expected torch.float32 {tuple(parameters[i].shape)} on cpu"
                )

    def waiting(self) -> list[WaitingGradients]:
        """Those of all parameters that are trained, in place."""
        out = []
        for parameter in self._rows.parameters:
            if parameter.grad is not None and parameter.requires_grad:
                if parameter.grad.layout != torch.strided:
                    parameter.grad = parameter.grad.to_dense()
                out.append(WaitingGradients(parameter.grad.detach().numpy(), by_row=False))
        return out

    def as_one(self) -> Tensor | None:
        """Of all parameters that are trained and have one, as one flat tensor; None without any. What is changed in it
        counts: gradients become views of it."""
        having = [p for p in self._rows.parameters if p.grad is not None and p.requires_grad]
        if not having:
            return None
        if self._flat is None or not _are(self._flat_views, [p.grad for p in having]):
            grads = [
                p.grad.to_dense() if p.grad.layout != torch.strided else p.grad for p in having if p.grad is not None
            ]
            self._flat = torch.cat([grad.detach().reshape(-1) for grad in grads])
            sizes = [grad.numel() for grad in grads]
            self._flat_views = [part.view_as(g) for part, g in zip(torch.split(self._flat, sizes), grads, strict=True)]
            for parameter, view in zip(having, self._flat_views, strict=True):
                parameter.grad = view
        return self._flat

    def take(self, index: int) -> dict[int, Share]:
        """Those since the last call, as rows of the table of this index; empty if there are none."""
        touched = np.zeros(len(self._rows.parameters), np.bool_)
        for i, (parameter, view) in enumerate(zip(self._rows.parameters, self._views, strict=True)):
            if parameter.grad is not None and parameter.requires_grad:
                grad = parameter.grad
                view.copy_(grad.to_dense() if grad.layout != torch.strided else grad)
                touched[i] = True
        self.forget()
        if not touched.any():
            return {}
        return self._rows.shares(index, self._taken, None if touched.all() else touched)

    def forget(self) -> None:
        """There are none."""
        for parameter in self._rows.parameters:
            parameter.grad = None
        self._reached.clear()
        self._flat, self._flat_views = None, []


class _Reached:
    """A hook of a parameter: a backward pass has reached it."""

    def __init__(self, reached: set[int], index: int) -> None:
        self.reached, self.index = reached, index

    def __call__(self, parameter: Tensor) -> None:
        self.reached.add(self.index)


def _are(some: Sequence[Tensor], others: Sequence[Tensor | None]) -> bool:
    """They are the same objects."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))

"""The dense part of a model: its parameters are replicated on r + 1 shards, which apply the optimizer (code k = 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.optimizers import Optimizer
from ecrec.training.parts import F32, I64, Share

if TYPE_CHECKING:
    from ecrec.training.session import Session

ROW_FLOATS = 1024
"""Floats in a row of the table: 4 KiB, so that even a small model is spread over the shards."""


class ReplicatedModule:
    """All parameters of a module, one after the other, as the rows of one table.

    The parameters become views of one flat buffer: a pull replaces their values, and ``backward()`` gathers their
    gradients in a second one. Buffers (running means and the like) are not replicated. When the constructor returns,
    the module has the values of the shards on all workers: what was trained under this name before, else those of rank
    0. It must be made by all of them.

    ``code``: 1+r; default r is that of `Session.default_code`. ``name``: of the table.
    Raises ConfigurationError for a module without parameters, parameters that are not float32 on the CPU, another k
    than 1, or an optimizer that is not elementwise.
    """

    def __init__(
        self,
        session: Session,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        code: CodeSpec | str | None = None,
        name: str = "dense",
        row_floats: int = ROW_FLOATS,
    ) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if code is None:
            code = CodeSpec(1, session.default_code().r)
        elif isinstance(code, str):
            code = CodeSpec.parse(code)
        _check(module, parameters, optimizer, code)
        self.module = module
        self.name = name
        self._session = session
        self._parameters = parameters
        size = sum(p.numel() for p in parameters)
        rows = -(-size // row_floats)
        self.spec = TableSpec(name, rows, row_floats, code, optimizer.spec, "zeros", init_state=optimizer.init_state)
        self._index = session.create_tables([self.spec])[0]
        self._rows = replica_rows(rows, session.machine.n, session.machine.groups)
        self._values: F32 = np.zeros((rows, row_floats), np.float32)
        self._gradients: F32 = np.zeros((rows, row_floats), np.float32)
        self._dirty = False
        self._gradient_views = list(self._views(self._gradients))
        for parameter, value, gradient in zip(parameters, self._views(self._values), self._gradient_views, strict=True):
            value.copy_(parameter.data)
            parameter.data = value
            parameter.grad = gradient
            parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
        self._initialize()
        session.register(self)

    @property
    def fetch_shares(self) -> dict[int, Share]:
        """All rows, by shard."""
        return {shard: Share(Section([self._index], [len(rows)]), rows) for shard, rows in self._rows.items()}

    def pull(self) -> None:
        """Set the parameters to what the shards have now."""
        fetch = self.plan(None)
        self._session.fetch(fetch, exact=True)
        self.offer(None, fetch)

    # ------------------------------------------------------------------ as a part of a session
    def plan(self, features: Any) -> _DenseRows:
        """All rows, whatever the batch."""
        return _DenseRows(self.fetch_shares)

    def offer(self, features: Any, fetch: _DenseRows) -> None:
        """A step begins: only now may the parameters change."""
        for shard, frame in fetch.answers.items():
            values = np.frombuffer(frame, np.float32).reshape(-1, self._values.shape[1])
            self._values[self._rows[shard]] = values

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of all parameters since the last call; empty if no backward pass reached one."""
        if not self._dirty:
            return {}
        self._dirty = False
        for parameter, view in zip(self._parameters, self._gradient_views, strict=True):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
            parameter.grad = view
        shares = self._shares(self._gradients)
        self._gradients.fill(0.0)
        return shares

    # ------------------------------------------------------------------ helpers
    def _on_gradient(self, parameter: Tensor) -> None:
        self._dirty = True

    def _views(self, buffer: F32) -> Iterator[Tensor]:
        flat = torch.from_numpy(buffer).view(-1)
        begin = 0
        for parameter in self._parameters:
            yield flat[begin : begin + parameter.numel()].view(parameter.shape)
            begin += parameter.numel()

    def _shares(self, buffer: F32) -> dict[int, Share]:
        # A copy: the frames of a push are kept until it is durable, and the buffer is used again before that.
        return {
            shard: Share(share.section, share.rows, buffer[share.rows].reshape(-1))
            for shard, share in self.fetch_shares.items()
        }

    def _initialize(self) -> None:
        """Rank 0 writes its values, unless the table ever had any; then all pull them."""
        self._session.initialise(self.name, lambda: self._shares(self._values))
        self.pull()


class _DenseRows:
    """One pull of all rows; the answers are kept until the step begins."""

    def __init__(self, shares: dict[int, Share]) -> None:
        self.shares = shares
        self.answers: Mapping[int, Any] = {}

    def fill(self, answers: Mapping[int, Any]) -> None:
        self.answers = answers


def replica_rows(rows: int, n: int, groups: int) -> dict[int, I64]:
    """Rows of a table with k = 1 by the shard that answers for them (numbered over all groups)."""
    stripe = np.arange(rows, dtype=np.int64)
    shard = stripe % groups * n + stripe // groups % n
    return {int(s): np.flatnonzero(shard == s).astype(np.int64) for s in np.unique(shard)}


def _check(module: nn.Module, parameters: list[nn.Parameter], optimizer: Optimizer, code: CodeSpec) -> None:
    if not parameters:
        raise ConfigurationError(f"{type(module).__name__} has no parameters to replicate")
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (parameter.dtype != torch.float32 or parameter.device.type != "cpu"):
            raise ConfigurationError(
                f"parameter {name} is {parameter.dtype} on {parameter.device}; expected torch.float32 on cpu"
            )
    if code.k != 1:
        raise ConfigurationError(f"code {code}: replication is k = 1, for example 1+{max(code.r, 1)}")
    if not optimizer.elementwise:
        raise ConfigurationError(
            f"{type(optimizer).__name__} keeps its state by row, and a row of a replicated module is cut anywhere; "
            "use another optimizer"
        )

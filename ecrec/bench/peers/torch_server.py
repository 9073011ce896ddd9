"""The embedding table of the peers that have PyTorch on their server: index_select and Adagrad."""

from __future__ import annotations

from typing import Any

from ecrec.bench.peers import torch_cpu


class Table:
    """float32[rows, dim] of zeros with Adagrad's sums; the rows of a call are distinct.

    ``s += g * g; w -= lr * g / (sqrt(s) + eps)`` on gathered copies, in place, which are then written back: fewer
    passes over memory than ``torch.optim.Adagrad`` with sparse gradients, which sorts the rows first, and faster than
    weights and sums in one tensor, ``index_add_`` or indexing.
    """

    def __init__(self, rows: int, dim: int, lr: float, eps: float) -> None:
        self._torch = torch_cpu.load()
        # Written to, so that there is memory behind all rows, as in a table that has been trained for a while.
        self._weights = self._torch.empty(rows, dim).fill_(0.0)
        self._sums = self._torch.empty(rows, dim).fill_(0.0)
        self._lr, self._eps = lr, eps

    def pull(self, ids: Any) -> Any:
        return self._weights.index_select(0, ids)

    def push(self, ids: Any, gradients: Any) -> None:
        sums = self._sums.index_select(0, ids).addcmul_(gradients, gradients)
        self._sums.index_copy_(0, ids, sums)
        weights = self._weights.index_select(0, ids)
        self._weights.index_copy_(0, ids, weights.addcdiv_(gradients, sums.sqrt_().add_(self._eps), value=-self._lr))

"""The DLRM in one process of plain PyTorch: what ecrec's distributed training is compared with.

Independent of ecrec's own model and optimizers on purpose: autograd's own interaction, nn.EmbeddingBag,
torch.optim, and row-wise Adagrad written out. It shares only the reader and the metrics with ecrec.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecrec.data import Batch
from ecrec.training.metrics import auc, log_loss


@dataclass(frozen=True)
class InitialValues:
    """Where training starts: `tables`, one float32[rows, D] for each feature; `dense`, a float32 array for
    each tensor of the dense part, by the names "bottom.<layer>.weight", "top.<layer>.bias" and so on."""

    tables: Sequence[NDArray[np.float32]]
    dense: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TorchOptions:
    """sparse_optimizer: "sgd", "adagrad" or "rowwise-adagrad"; dense_optimizer: "sgd" or "adagrad".
    sparse_eps, dense_eps: of the Adagrads. staleness: steps by which every update comes late; 1 is a pipeline
    that reads the rows of batch t + 1 before the update of batch t."""

    sparse_optimizer: str = "rowwise-adagrad"
    sparse_lr: float = 0.02
    dense_optimizer: str = "adagrad"
    dense_lr: float = 0.005
    sparse_eps: float = 1e-8
    dense_eps: float = 1e-10
    bottom_mlp: tuple[int, ...] = (256,)
    top_mlp: tuple[int, ...] = (256,)
    staleness: int = 0


@dataclass(frozen=True)
class TorchResult:
    """auc and logloss: of the test part. loss: of each training batch, before its update. seconds: of
    training."""

    auc: float
    logloss: float
    loss: list[float]
    examples: int
    seconds: float


class PlainDLRM(nn.Module):
    """Bottom MLP, dot interaction, top MLP, written with nothing but PyTorch's own operations."""

    def __init__(self, dim: int, bottom_mlp: Sequence[int], top_mlp: Sequence[int]) -> None:
        super().__init__()
        self.bottom = nn.Sequential(*_layers([13, *bottom_mlp, dim]))
        self.top = nn.Sequential(*_layers([dim + 27 * 26 // 2, *top_mlp, 1])[:-1])

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Logits [B] of dense [B, 13] and pooled [B, 26, D]."""
        bottom = self.bottom(dense)
        vectors = torch.cat((bottom[:, None, :], pooled), dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        i, j = torch.tril_indices(27, 27, offset=-1)
        logits: Tensor = self.top(torch.cat((bottom, products[:, i, j]), dim=1))
        return logits.squeeze(1)


def random_initial_values(
    rows_per_table: Sequence[int], dim: int, options: TorchOptions, seed: int, scale: float = 0.01
) -> InitialValues:
    """Tables uniform in [-scale, scale), the dense part as nn.Linear has it; one seed, one result."""
    tables = [
        np.random.default_rng([seed, table]).uniform(-scale, scale, (rows, dim)).astype(np.float32)
        for table, rows in enumerate(rows_per_table)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PlainDLRM(dim, options.bottom_mlp, options.top_mlp)
    return InitialValues(tables, {name: value.numpy() for name, value in model.state_dict().items()})


def train(
    initial: InitialValues,
    options: TorchOptions,
    train_batches: Iterable[Batch],
    test_batches: Iterable[Batch],
) -> TorchResult:
    """Train on the batches in their order, then score the test batches.

    The loss is the mean over a batch of the binary cross-entropy. Raises ValueError for an optimizer of
    another name, or initial values that do not fit the options.
    """
    tables, model = _build(initial, options)
    optimizers = [_sparse_optimizer(tables, options), _dense_optimizer(model, options)]
    parameters = [*tables.parameters(), *model.parameters()]
    waiting: deque[tuple[Tensor, ...]] = deque()

    def apply_oldest() -> None:
        for parameter, grad in zip(parameters, waiting.popleft(), strict=True):
            parameter.grad = grad
        # PyTorch warns unless one says whether its own sparse gradients are to be checked.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()

    losses: list[float] = []
    examples = 0
    start = time.perf_counter()
    for batch in train_batches:
        loss = nn.functional.binary_cross_entropy_with_logits(
            _logits(tables, model, batch), torch.from_numpy(batch.labels)
        )
        waiting.append(torch.autograd.grad(loss, parameters))
        losses.append(loss.item())
        examples += len(batch)
        if len(waiting) > options.staleness:
            apply_oldest()
    while waiting:
        apply_oldest()
    seconds = time.perf_counter() - start

    labels: list[NDArray[np.float32]] = []
    logits: list[NDArray[np.float32]] = []
    with torch.no_grad():
        for batch in test_batches:
            labels.append(batch.labels)
            logits.append(_logits(tables, model, batch).numpy())
    label, logit = np.concatenate(labels), np.concatenate(logits)
    return TorchResult(auc(label, logit), log_loss(label, logit), losses, examples, seconds)


class RowWiseAdagrad(torch.optim.Optimizer):
    """One accumulator a row: m += mean(g^2); w -= lr * g / (sqrt(m) + eps). For sparse gradients of [rows,
    D]."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["m"] = torch.zeros(parameter.shape[0])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters have."""
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = parameter.grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                m = self.state[parameter]["m"]
                m[rows] += values.square().mean(dim=1)
                parameter[rows] -= group["lr"] * values / (m[rows].sqrt() + group["eps"])[:, None]


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers


def _build(initial: InitialValues, options: TorchOptions) -> tuple[nn.ModuleList, PlainDLRM]:
    # Copies: the optimizers write in place, and the caller keeps its arrays for the next run.
    tables = nn.ModuleList(
        nn.EmbeddingBag.from_pretrained(torch.from_numpy(table.copy()), freeze=False, mode="sum", sparse=True)
        for table in initial.tables
    )
    model = PlainDLRM(initial.tables[0].shape[1], options.bottom_mlp, options.top_mlp)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in initial.dense.items()})
    except RuntimeError as error:
        raise ValueError(f"the initial values do not fit the options: {error}") from error
    return tables, model


def _sparse_optimizer(tables: nn.ModuleList, options: TorchOptions) -> torch.optim.Optimizer:
    parameters = tables.parameters()
    if options.sparse_optimizer == "rowwise-adagrad":
        return RowWiseAdagrad(parameters, options.sparse_lr, options.sparse_eps)
    return _torch_optimizer(parameters, options.sparse_optimizer, options.sparse_lr, options.sparse_eps)


def _dense_optimizer(model: PlainDLRM, options: TorchOptions) -> torch.optim.Optimizer:
    return _torch_optimizer(model.parameters(), options.dense_optimizer, options.dense_lr, options.dense_eps)


def _torch_optimizer(parameters: Iterable[nn.Parameter], name: str, lr: float, eps: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, eps=eps)
    raise ValueError(f"optimizer is {name!r}, expected sgd or adagrad (or rowwise-adagrad for the tables)")


def _logits(tables: nn.ModuleList, model: PlainDLRM, batch: Batch) -> Tensor:
    ids = torch.from_numpy(batch.ids)
    pooled = torch.stack([table(column[:, None]) for table, column in zip(tables, ids, strict=True)], dim=1)
    logits: Tensor = model(torch.from_numpy(batch.dense), pooled)
    return logits

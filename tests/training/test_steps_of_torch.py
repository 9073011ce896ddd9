"""Steps of whole collections: N steps on the shards are N steps of torch, of the formula, or of FBGEMM, to rounding.

Bags of 0 to 4 ids, with duplicates, of features that share tables; sums and means, with weights of ids and without.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from pooled_by_torch import FEATURES, TABLES, bag_configs, batch, pooled, sequence_configs, tables_of  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ecrec.training import (  # noqa: E402
    SGD,
    Adagrad,
    Adam,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    KeyedJaggedTensor,
    Optimizer,
    PoolingType,
    RowWiseAdagrad,
)

STEPS = 8


class RowWiseAdagradByHand:
    """s += mean(g * g) of a row; w -= lr * g / (sqrt(s) + eps)."""

    def __init__(self, parameters: list[Tensor], lr: float, eps: float = 1e-8) -> None:
        self.parameters, self.lr, self.eps = parameters, lr, eps
        self.sums = [torch.zeros(len(parameter), 1) for parameter in parameters]

    def step(self) -> None:
        for parameter, s in zip(self.parameters, self.sums, strict=True):
            assert parameter.grad is not None
            s += (parameter.grad**2).mean(dim=1, keepdim=True)
            parameter.data -= self.lr * parameter.grad / (s.sqrt() + self.eps)


class AdamByHand:
    """SparseAdam, which leaves rows without a gradient alone, with the steps of each row in place of the table's."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.parameters, self.lr = parameters, lr
        self.m, self.v = ([torch.zeros_like(each) for each in parameters] for _ in range(2))
        self.t = [torch.zeros(len(each), 1) for each in parameters]

    def step(self) -> None:
        for parameter, m, v, t in zip(self.parameters, self.m, self.v, self.t, strict=True):
            grad = parameter.grad
            assert grad is not None
            has = (grad != 0).any(dim=1, keepdim=True)
            t += has
            m.copy_(torch.where(has, 0.9 * m + 0.1 * grad, m))
            v.copy_(torch.where(has, 0.999 * v + 0.001 * grad**2, v))
            step = self.lr * (1 - 0.999**t).sqrt() / (1 - 0.9**t)
            parameter.data -= torch.where(has, step * m / (v.sqrt() + 1e-8), torch.zeros(()))


RULES: dict[str, tuple[Optimizer, Callable[[list[Tensor]], Any]]] = {
    "SGD": (SGD(lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    "Adagrad": (Adagrad(lr=0.3), lambda p: torch.optim.Adagrad(p, lr=0.3)),
    "RowWiseAdagrad": (RowWiseAdagrad(lr=0.3), lambda p: RowWiseAdagradByHand(p, lr=0.3)),
    "Adam": (Adam(lr=0.03), lambda p: AdamByHand(p, lr=0.03)),
}


def check_steps(tables: Any, stepper: Callable[[list[Tensor]], Any], loss: Any, expected_loss: Any) -> None:
    expected = tables_of(tables)
    optimizer = stepper(list(expected.values()))
    for seed in range(STEPS):
        loss(seed).backward()
        tables._session.push()
        for weight in expected.values():
            weight.grad = None
        expected_loss(expected, seed).backward()
        optimizer.step()
    for name, weight in tables_of(tables).items():
        torch.testing.assert_close(
            weight, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_steps_of_bags(rule: str, weighted: bool) -> None:
    ours, theirs = RULES[rule]
    sparse = EmbeddingBagCollection(InProcessCluster(3).session(code="2+1"), bag_configs(), ours, weighted)
    torch.manual_seed(0)
    slopes = torch.randn(STEPS, 7, sparse.dim)

    def loss(seed: int) -> Tensor:
        return (sparse(batch(seed, weighted=weighted)).values().sigmoid() * slopes[seed]).sum()

    def expected(tables: dict[str, Tensor], seed: int) -> Tensor:
        features = batch(seed, weighted=weighted)
        return (pooled(tables, features, features.weights_or_none()).sigmoid() * slopes[seed]).sum()

    check_steps(sparse, theirs, loss, expected)


@pytest.mark.parametrize("rule", RULES)
def test_steps_of_sequences(rule: str) -> None:
    ours, theirs = RULES[rule]
    sparse = EmbeddingCollection(InProcessCluster(3).session(code="2+1"), sequence_configs(), ours)

    def loss(seed: int) -> Tensor:
        out = sparse(batch(seed))
        return sum(((i + part.values().sigmoid()) ** 2).sum() for i, part in enumerate(out.values()))

    def expected(tables: dict[str, Tensor], seed: int) -> Tensor:
        features, out = batch(seed), []
        for name, (_, _, names, _) in TABLES.items():
            out += [nn.functional.embedding(features[feature].values(), tables[name]) for feature in names]
        return sum(((i + rows.sigmoid()) ** 2).sum() for i, rows in enumerate(out))

    check_steps(sparse, theirs, loss, expected)


def test_adam_is_sparse_adam_where_every_row_is_in_every_batch() -> None:
    session = InProcessCluster(3).session(code="2+1")
    sparse = EmbeddingBagCollection(session, [EmbeddingBagConfig(6, 4, "t")], Adam(lr=0.03))
    every = KeyedJaggedTensor(["t"], torch.tensor([0, 1, 1, 2, 3, 4, 5]), lengths=torch.tensor([3, 0, 4]))
    table = tables_of(sparse)["t"]
    optimizer = torch.optim.SparseAdam([table], lr=0.03)
    for _ in range(STEPS):
        (sparse(every).values() ** 2).sum().backward()
        session.push()
        optimizer.zero_grad()
        rows = nn.functional.embedding(every.values(), table, sparse=True)
        sum((part.sum(dim=0) ** 2).sum() for part in rows.split([3, 4])).backward()
        optimizer.step()
    torch.testing.assert_close(tables_of(sparse)["t"], table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "weighted"), [(PoolingType.SUM, False), (PoolingType.SUM, True), (PoolingType.MEAN, False)]
)
@pytest.mark.parametrize("rule", ["SGD", "Adagrad", "RowWiseAdagrad"])
def test_steps_of_fbgemm(rule: str, pooling: PoolingType, weighted: bool) -> None:
    """What TorchRec's sharded collections train with. Not a weighted mean: the backward pass of FBGEMM 1.8 on the CPU
    does not divide by the number of ids, as its forward pass does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names every operator of GPUs that it does not have
        try:
            from fbgemm_gpu import split_embedding_configs as configs
            from fbgemm_gpu import split_table_batched_embeddings_ops_training as training
        except (ImportError, OSError) as error:
            pytest.skip(f"fbgemm-gpu-cpu is not installed, or does not fit this torch: {error}")
        kind = {"SGD": "EXACT_SGD", "Adagrad": "EXACT_ADAGRAD", "RowWiseAdagrad": "EXACT_ROWWISE_ADAGRAD"}[rule]
        theirs = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(20, 8, training.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
            feature_table_map=[0] * len(FEATURES),
            optimizer=getattr(configs.EmbOptimType, kind),
            learning_rate=0.3,
            eps=1e-8,
            pooling_mode=getattr(training.PoolingMode, pooling.name),
        )
    ours: Optimizer = {
        "SGD": SGD(0.3),
        "Adagrad": Adagrad(0.3, eps=1e-8),
        "RowWiseAdagrad": RowWiseAdagrad(0.3, eps=1e-8),
    }[rule]
    config = EmbeddingBagConfig(20, 8, "t", feature_names=list(FEATURES), pooling=pooling)
    sparse = EmbeddingBagCollection(InProcessCluster(3).session(code="2+1"), [config], ours, weighted)
    (table,) = theirs.split_embedding_weights()
    table.data.copy_(tables_of(sparse)["t"].data)
    for seed in range(STEPS):
        features = batch(seed, weighted=weighted)
        out = sparse(features).values()
        expected = theirs(features.values() % 20, features.offsets(), features.weights_or_none())
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        slopes = torch.randn_like(expected)
        (out.sigmoid() * slopes).sum().backward()
        sparse._session.push()
        (expected.sigmoid() * slopes).sum().backward()
    torch.testing.assert_close(tables_of(sparse)["t"].data, table.data, rtol=1e-4, atol=1e-5)

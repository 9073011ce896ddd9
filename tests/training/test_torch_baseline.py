"""The plain PyTorch baseline of bench/, against ecrec's own model and against the formulas."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.baselines.torch_dlrm import (  # noqa: E402
    PlainDLRM,
    RowWiseAdagrad,
    TorchOptions,
    random_initial_values,
    train,
)
from ecrec.data import SyntheticDataset, SyntheticOptions  # noqa: E402
from ecrec.training.dlrm import DLRM  # noqa: E402

DATA = SyntheticDataset(SyntheticOptions(rows=2000, rows_per_table=300))
SMALL = {"bottom_mlp": (16,), "top_mlp": (16,)}


def test_the_baseline_and_ecrec_have_the_same_model() -> None:
    plain = PlainDLRM(8, (16,), (32, 16))
    model = DLRM(13, 26, 8, (16,), (32, 16))
    model.load_state_dict(plain.state_dict())
    dense, pooled = torch.rand(6, 13), torch.rand(6, 26, 8)
    expected = plain(dense, pooled)
    got = model(dense, pooled)
    torch.testing.assert_close(got, expected)
    for a, b in zip(
        torch.autograd.grad(got.sum(), list(model.parameters())),
        torch.autograd.grad(expected.sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_row_wise_adagrad_is_its_formula_and_sums_the_gradients_of_one_row() -> None:
    table = torch.nn.EmbeddingBag(5, 4, mode="sum", sparse=True)
    weight = table.weight.detach().double().numpy().copy()
    m = np.zeros(5)
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.1, eps=1e-8)
    slopes = torch.randn(3, 4)
    for ids in ([1, 3, 1], [1, 4, 4]):
        (grad,) = torch.autograd.grad((table(torch.tensor(ids)[:, None]) * slopes).sum(), list(table.parameters()))
        table.weight.grad = grad
        optimizer.step()
        summed = np.zeros((5, 4))
        np.add.at(summed, ids, slopes.double().numpy())
        for row in set(ids):
            m[row] += np.mean(summed[row] ** 2)
            weight[row] -= 0.1 * summed[row] / (np.sqrt(m[row]) + 1e-8)
    np.testing.assert_allclose(table.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise-adagrad"])
def test_staleness_delays_every_update_by_that_many_steps(optimizer: str) -> None:
    losses = {}
    for staleness in (0, 1, 2):
        options = TorchOptions(sparse_optimizer=optimizer, staleness=staleness, **SMALL)
        initial = random_initial_values(DATA.rows_per_table, 8, options, seed=1)
        # The same batch again and again: the loss changes only when an update has arrived.
        batches = [next(DATA.train_batches(256))] * 4
        losses[staleness] = train(initial, options, batches, DATA.test_batches(400)).loss
    assert losses[0][0] > losses[0][1] > losses[0][2]
    assert losses[1][0] == losses[1][1] > losses[1][2]
    assert losses[2][0] == losses[2][1] == losses[2][2] > losses[2][3]
    assert losses[1][2] == losses[0][1] == losses[2][3]


def test_training_leaves_the_initial_values_alone_and_repeats() -> None:
    options = TorchOptions(**SMALL)
    initial = random_initial_values(DATA.rows_per_table, 8, options, seed=1)
    first, second = (train(initial, options, DATA.train_batches(256), DATA.test_batches(400)) for _ in range(2))
    assert first.loss == second.loss
    assert first.auc == second.auc
    assert first.examples == 1600
    other = TorchOptions(bottom_mlp=(8,), top_mlp=(16,))
    with pytest.raises(ValueError, match="do not fit"):
        train(initial, other, [], [])
    with pytest.raises(ValueError, match="expected sgd or adagrad"):
        train(initial, TorchOptions(sparse_optimizer="adam", **SMALL), [], [])

"""The fused optimizers against torch's own, to rounding, and FTRL against its paper in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ecrec._native import Store  # noqa: E402
from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec, TableSpec  # noqa: E402
from ecrec.protocol.table_memory import add_table  # noqa: E402
from ecrec.training import FTRL, SGD, Adagrad, Adam, Optimizer, RMSprop, RowWiseAdagrad  # noqa: E402
from ecrec.training.optimizers import optimizer  # noqa: E402

ROWS, DIM, STEPS = 13, 7, 50

NOT_SPARSE: list[tuple[Optimizer, Callable[[Any], Any]]] = [
    (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    (SGD(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (SGD(0.1, 0.9, nesterov=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    (Adagrad(0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    (Adagrad(0.1, 1e-3, 0.5), lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3, initial_accumulator_value=0.5)),
    (Adam(0.1, eps=1e-20), lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-20)),
    (RMSprop(eps=1e-20), lambda p: torch.optim.RMSprop(p, eps=1e-20)),
    (RMSprop(0.1, 0.8, 1e-3), lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.8, eps=1e-3)),
    (RMSprop(0.1, weight_decay=0.3), lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.3)),
    (SGD(0.1, weight_decay=0.3), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3)),
    (SGD(0.1, 0.9, weight_decay=0.3), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3)),
    (Adagrad(0.1, weight_decay=0.3), lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.3)),
    (Adam(0.1, eps=1e-20, weight_decay=0.3), lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-20, weight_decay=0.3)),
    (
        Adam(0.1, eps=1e-20, weight_decay=0.3, decoupled_weight_decay=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-20, weight_decay=0.3),
    ),
]


class Table:
    """A table of one shard and its rows."""

    def __init__(self, made: Optimizer, init: str = "uniform") -> None:
        self.spec = TableSpec(
            "t", ROWS, DIM, CodeSpec(1, 0), made.spec, init, init_seed=3, init_scale=0.5, init_state=made.init_state
        )
        self.store = Store(0, 1)
        add_table(self.store, self.spec, recovered=True)

    def step(self, rows: list[int], gradients: torch.Tensor) -> None:
        listed = (np.array([0], np.int32), np.array([len(rows)], np.int64), np.array(rows, np.int64))
        self.store.apply(*listed, gradients.reshape(-1).numpy(), None)

    def weights(self) -> torch.Tensor:
        out = np.empty(4 * ROWS * DIM, np.uint8)
        self.store.gather(np.array([0], np.int32), np.array([ROWS], np.int64), np.arange(ROWS), out)
        return torch.from_numpy(out.view(np.float32).reshape(ROWS, DIM))


def gradients(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, DIM, generator=generator) * 10.0 ** (i % 5 - 3) for i in range(STEPS)]


@pytest.mark.parametrize("case", range(len(NOT_SPARSE)))
def test_with_every_row_in_every_batch_a_step_is_the_step_of_torch(case: int) -> None:
    made, theirs = NOT_SPARSE[case]
    table = Table(made)
    weight = torch.nn.Parameter(table.weights())
    stepper = theirs([weight])
    for gradient in gradients(case):
        table.step(list(range(ROWS)), gradient)
        weight.grad = gradient
        stepper.step()
        torch.testing.assert_close(table.weights(), weight.detach(), rtol=1e-4, atol=1e-6)


def test_a_gradient_is_cut_off_by_value_before_the_weights_decay() -> None:
    table = Table(SGD(0.1, max_gradient=0.5, weight_decay=0.3))
    weight = torch.nn.Parameter(table.weights())
    stepper = torch.optim.SGD([weight], lr=0.1, weight_decay=0.3)
    for gradient in gradients(21):
        table.step(list(range(ROWS)), gradient)
        weight.grad = gradient.clone()
        torch.nn.utils.clip_grad_value_([weight], 0.5)
        stepper.step()
        torch.testing.assert_close(table.weights(), weight.detach(), rtol=1e-4, atol=1e-6)


def test_row_wise_adagrad_decays_as_its_formula_and_only_rows_of_the_batch() -> None:
    made = RowWiseAdagrad(0.1, weight_decay=0.3, max_gradient=2.0)
    table = Table(made)
    weights, sums = table.weights(), torch.zeros(ROWS, 1)
    rng = np.random.default_rng(8)
    for gradient in gradients(22):
        rows = sorted(rng.choice(ROWS, size=4, replace=False).tolist())
        table.step(rows, gradient[rows])
        given = gradient[rows].clamp(-2.0, 2.0) + 0.3 * weights[rows]
        sums[rows] += (given**2).mean(dim=1, keepdim=True)
        weights[rows] -= 0.1 * given / (sums[rows].sqrt() + made.eps)
        torch.testing.assert_close(table.weights(), weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SGD(0.1, weight_decay=-1.0), "SGD: weight_decay is -1.0, expected at least 0"),
        (lambda: Adagrad(0.1, max_gradient=0.0), "Adagrad: max_gradient is 0.0, expected a positive number"),
        (lambda: RowWiseAdagrad(0.1, max_gradient=float("inf")), "RowWiseAdagrad: max_gradient is inf"),
        (lambda: Adam(0.1, decoupled_weight_decay=True), r"lr \* weight_decay = 0.0, expected more than 0"),
        (lambda: Adam(2.0, weight_decay=1.0, decoupled_weight_decay=True), r"lr \* weight_decay = 2.0"),
    ],
)
def test_adjustments_that_cannot_be_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_adam_is_sparse_adam_when_every_row_is_in_every_batch() -> None:
    table = Table(Adam(0.1, (0.8, 0.99), 1e-4))
    weight = torch.nn.Parameter(table.weights())
    stepper = torch.optim.SparseAdam([weight], lr=0.1, betas=(0.8, 0.99), eps=1e-4)
    for gradient in gradients(11):
        table.step(list(range(ROWS)), gradient)
        weight.grad = torch.sparse_coo_tensor(torch.arange(ROWS)[None], gradient, check_invariants=True)
        stepper.step()
        torch.testing.assert_close(table.weights(), weight.detach(), rtol=1e-5, atol=1e-6)


def test_adam_counts_the_steps_of_each_row() -> None:
    """A row is where SparseAdam has it when no other row is there to count steps for it."""
    made = Adam(0.1)
    table = Table(made)
    weights = [torch.nn.Parameter(row.clone()) for row in table.weights()]
    steppers = [torch.optim.SparseAdam([weight], lr=0.1) for weight in weights]
    rng = np.random.default_rng(5)
    for gradient in gradients(12):
        rows = sorted(rng.choice(ROWS, size=4, replace=False).tolist())
        table.step(rows, gradient[rows])
        for row in rows:
            weights[row].grad = gradient[row].to_sparse()
            steppers[row].step()
    expected = torch.stack([weight.detach() for weight in weights])
    torch.testing.assert_close(table.weights(), expected, rtol=1e-5, atol=1e-6)


def test_rmsprop_steps_a_row_as_torch_does_when_it_is_in_the_batch_and_adds_up_its_duplicates() -> None:
    """Torch's parameter of one row, stepped in the batches with it; gradients of a row that comes twice are added."""
    made = RMSprop(0.05, 0.9, 1e-6, weight_decay=0.01)
    table = Table(made)
    weights = [torch.nn.Parameter(row.clone()) for row in table.weights()]
    steppers = [torch.optim.RMSprop([w], lr=0.05, alpha=0.9, eps=1e-6, weight_decay=0.01) for w in weights]
    rng = np.random.default_rng(5)
    for gradient in gradients(14):
        drawn = torch.from_numpy(rng.choice(ROWS, size=8))
        summed = torch.zeros(ROWS, DIM).index_add_(0, drawn, gradient[:8])
        rows = sorted(set(drawn.tolist()))
        table.step(rows, summed[rows])
        for row in rows:
            weights[row].grad = summed[row]
            steppers[row].step()
        torch.testing.assert_close(table.weights(), torch.stack([w.detach() for w in weights]), rtol=1e-4, atol=1e-6)


def test_the_correction_of_adam_ends_at_one() -> None:
    """After many steps with the same gradient, a step is the learning rate to rounding."""
    table = Table(Adam(1e-3), init="zeros")
    gradient = torch.full((ROWS, DIM), 0.25)
    for _ in range(200):
        table.step([4] * 100, gradient[:1].expand(100, DIM).contiguous())
    out = np.empty(table.store.record_bytes(0), np.uint8)
    table.store.gather(np.array([0], np.int32), np.array([1], np.int64), np.array([4]), out, records=True)
    corrections = out[12 * DIM : 12 * DIM + 16].view(np.float64)
    np.testing.assert_allclose(corrections, 1 - np.array([0.9, 0.999]) ** 20_000, rtol=1e-12)
    assert table.weights()[4, 0].item() == pytest.approx(-20.0, rel=1e-4)


@pytest.mark.parametrize("made", [FTRL(0.5), FTRL(0.5, 0.1, 0.5, 0.2, 0.1), FTRL(0.1, beta=0.0)])
def test_ftrl_is_that_of_its_paper(made: FTRL) -> None:
    table = Table(made)
    w = table.weights().double().numpy()
    n, z = np.full_like(w, made.initial_accumulator_value), np.zeros_like(w)
    zeros = 0
    rng = np.random.default_rng(6)
    for gradient in gradients(13):
        rows = sorted(rng.choice(ROWS, size=4, replace=False).tolist())
        table.step(rows, gradient[rows])
        g = gradient.double().numpy()[rows]
        sigma = (np.sqrt(n[rows] + g**2) - np.sqrt(n[rows])) / made.lr
        z[rows] += g - sigma * w[rows]
        n[rows] += g**2
        proximal = -(z[rows] - np.sign(z[rows]) * made.l1) / ((made.beta + np.sqrt(n[rows])) / made.lr + made.l2)
        w[rows] = np.where(np.abs(z[rows]) <= made.l1, 0.0, proximal)
        zeros += int((w[rows] == 0).sum())
        np.testing.assert_allclose(table.weights().numpy(), w, rtol=1e-4, atol=1e-5)
    assert (zeros > 0) == (made.l1 > 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_that_is_not_in_the_batch_stays_and_records_have_the_stores_size(name: str) -> None:
    made = optimizer(name, 0.1)
    table = Table(made)
    assert table.spec.optimizer.name == name
    assert table.spec.optimizer.hyper[0] == 0.1
    table.spec.optimizer.check()
    assert table.spec.record_bytes == table.store.record_bytes(0)
    table.step(list(range(ROWS)), torch.ones(ROWS, DIM))
    before = table.weights()
    table.step([3], torch.ones(1, DIM))
    changed = (table.weights() != before).any(dim=1)
    assert changed.tolist() == [row == 3 for row in range(ROWS)]


@pytest.mark.parametrize("make", get_args(Optimizer))
@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf")])
def test_optimizers_check_their_learning_rate(make: type, lr: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{make.__name__}: lr is"):
        make(lr=lr)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SGD(0.1, momentum=-0.1), "SGD: momentum is -0.1"),
        (lambda: SGD(0.1, momentum=float("nan")), "SGD: momentum is nan"),
        (lambda: SGD(0.1, nesterov=True), "SGD: nesterov needs a momentum"),
        (lambda: Adagrad(0.1, eps=0.0), "Adagrad: eps is 0.0"),
        (lambda: Adam(eps=0.0), "Adam: eps is 0.0"),
        (lambda: Adam(betas=(0.9, 1.0)), r"Adam: betas are \(0.9, 1.0\)"),
        (lambda: Adam(betas=(float("nan"), 0.9)), "Adam: betas are"),
        (lambda: Adam(betas=(0.9,)), "Adam: betas are"),
        (lambda: Adam(betas=("a", 0.9)), "Adam: betas are"),  # type: ignore[arg-type]
        (lambda: Adam(betas=0.9), "Adam: betas are 0.9"),  # type: ignore[arg-type]
        (lambda: SGD("0.1"), "SGD: lr is '0.1', expected a number"),  # type: ignore[arg-type]
        (lambda: SGD(None), "SGD: lr is None, expected a number"),  # type: ignore[arg-type]
        (lambda: SGD(1e-50), "SGD: lr is 1e-50, expected a positive number; the servers keep it as float32"),
        (lambda: SGD(1e39), r"SGD: lr is 1e\+39, expected a finite number; the servers keep it as float32"),
        (lambda: RMSprop(eps=0.0), "RMSprop: eps is 0.0"),
        (lambda: RMSprop(alpha=-0.1), "RMSprop: alpha is -0.1"),
        (lambda: RMSprop(alpha=1.0), "RMSprop: alpha is 1.0, expected a number from 0 to below 1"),
        (lambda: RMSprop(alpha=None), "RMSprop: alpha is None, expected a number"),  # type: ignore[arg-type]
        (lambda: Adagrad(0.1, eps=1e-60), "Adagrad: eps is 1e-60, expected a positive number"),
        (lambda: Adagrad(0.1, max_gradient=1e-60), "Adagrad: max_gradient is 1e-60, expected a positive number"),
        (lambda: FTRL(0.1, l1=-1.0), "FTRL: l1 is -1.0"),
        (lambda: FTRL(0.1, initial_accumulator_value=float("inf")), "FTRL: initial_accumulator_value is inf"),
        (lambda: optimizer("lion", 0.1), "optimizer 'lion': expected one of sgd, .*ftrl"),
    ],
)
def test_what_cannot_be_is_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()

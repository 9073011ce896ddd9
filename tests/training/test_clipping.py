"""Clipping by norm: what torch's clip_grad_norm_ does to the gradients of plain tables, and by row."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ecrec.errors import ConfigurationError, GradientError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Session,
)

DIMS = {"a": 4, "b": 2}
ROWS = 12
FEATURES = KeyedJaggedTensor(["a", "b"], torch.tensor([1, 1, 5, 7, 2, 2, 3]), lengths=torch.tensor([2, 1, 1, 1, 0, 2]))
MORE = KeyedJaggedTensor(["a", "b"], torch.tensor([5, 8, 1, 2, 2, 11]), lengths=torch.ones(6, dtype=torch.int64))


class Model(nn.Module):
    """On the shards, and the same model of plain torch beside it."""

    def __init__(self, session: Session, **options: Any) -> None:
        super().__init__()
        configs = [EmbeddingBagConfig(ROWS, dim, name, init_scale=0.1) for name, dim in DIMS.items()]
        self.tables = EmbeddingBagCollection(session, configs, SGD(lr=1.0), **options)
        self.over = nn.Linear(6, 1)
        session.replicate(self.over, SGD(lr=1.0))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        out: Tensor = self.over(self.tables(features).values())
        return out


class Plain(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        state = model.tables.state_dict()
        self.bags = nn.ModuleDict(
            {
                name: nn.EmbeddingBag.from_pretrained(state[f"embedding_bags.{name}.weight"], False, mode="sum")
                for name in DIMS
            }
        )
        self.over = nn.Linear(6, 1)
        self.over.load_state_dict(model.over.state_dict())

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        pooled = [bag(features[name].values(), features[name].offsets()[:-1]) for name, bag in self.bags.items()]
        out: Tensor = self.over(torch.cat(pooled, dim=1))
        return out

    def step(self) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.data -= parameter.grad
                parameter.grad = None


def same(model: Model, plain: Plain) -> None:
    state = model.tables.state_dict()
    for name, bag in plain.bags.items():
        torch.testing.assert_close(state[f"embedding_bags.{name}.weight"], bag.weight.detach(), rtol=1e-5, atol=1e-6)
    for name, value in model.over.state_dict().items():
        torch.testing.assert_close(value, plain.over.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def session() -> Session:
    return InProcessCluster(3).session(code="2+1")


def loss(model: nn.Module, features: KeyedJaggedTensor, factor: float = 3.0) -> Tensor:
    out: Tensor = factor * model(features).pow(2).sum() + model(features).sum()
    return out


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_the_norm_of_all_is_that_of_torch(session: Session, max_norm: float) -> None:
    model = Model(session)
    plain = Plain(model)
    for batches in ([FEATURES], [FEATURES, MORE], [MORE]):  # of two backward passes, too
        for features in batches:
            loss(model, features).backward()
            loss(plain, features).backward()
        expected = nn.utils.clip_grad_norm_(list(plain.parameters()), max_norm)
        assert session.clip_gradients(max_norm) == pytest.approx(float(expected), rel=1e-5)
        session.push(3)
        plain.step()
        same(model, plain)


def test_clipping_by_row_scales_each_row_of_a_table_alone(session: Session) -> None:
    model = Model(session)
    plain = Plain(model)
    for features in (FEATURES, MORE):
        loss(model, features).backward()
        loss(plain, features).backward()
    session.clip_gradients(row_norm=0.7)
    session.push(3)
    for bag in plain.bags.values():
        for row in bag.weight.grad:
            row *= min(1.0, 0.7 / (float(row.norm()) + 1e-6))
    plain.step()
    same(model, plain)


def test_rows_are_clipped_before_all(session: Session) -> None:
    model = Model(session)
    plain = Plain(model)
    loss(model, FEATURES).backward()
    loss(plain, FEATURES).backward()
    session.clip_gradients(0.9, row_norm=0.7)
    session.push(3)
    for bag in plain.bags.values():
        for row in bag.weight.grad:
            row *= min(1.0, 0.7 / (float(row.norm()) + 1e-6))
    nn.utils.clip_grad_norm_(list(plain.parameters()), 0.9)
    plain.step()
    same(model, plain)


def test_a_frozen_table_has_no_norm(session: Session) -> None:
    model = Model(session)
    plain = Plain(model)
    model.tables.embedding_bags["a"].requires_grad_(False)
    plain.bags["a"].requires_grad_(False)
    loss(model, FEATURES).backward()
    loss(plain, FEATURES).backward()
    expected = nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], 0.5)
    assert session.clip_gradients(0.5) == pytest.approx(float(expected), rel=1e-5)
    session.push(3)
    plain.step()
    same(model, plain)


def test_without_gradients_the_norm_is_zero_and_the_step_empty(session: Session) -> None:
    Model(session)
    assert session.clip_gradients(1.0) == 0.0
    session.push(0)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf"), "1", True])
def test_what_is_no_norm_is_refused(session: Session, norm: Any) -> None:
    for options in ({"max_norm": norm}, {"row_norm": norm}):
        with pytest.raises(ConfigurationError, match=r"_norm is .*, expected a positive, finite number"):
            session.clip_gradients(**options)
    with pytest.raises(ConfigurationError, match="give max_norm, of all gradients together, or row_norm"):
        session.clip_gradients()


def test_the_norm_of_a_sum_that_only_the_servers_know_is_refused() -> None:
    session = InProcessCluster(3).session(code="2+1", rank=0, world_size=2, sync=True)
    with pytest.raises(ConfigurationError, match="clip_gradients with sync=True: the servers sum"):
        session.clip_gradients(1.0)


def test_a_gradient_that_is_not_finite_is_named_by_the_push(session: Session) -> None:
    model = Model(session)
    loss(model, FEATURES, float("inf")).backward()
    assert not np.isfinite(session.clip_gradients(1.0, row_norm=1.0))
    with pytest.raises(GradientError, match=r"is (nan|inf|-inf)"):
        session.push(3)


def test_gradients_that_are_taken_as_zero_have_no_norm() -> None:
    session = InProcessCluster(3).session(code="2+1", nonfinite="zero")
    model = Model(session)
    model.over(torch.ones(1, 6)).sum().backward()
    model.over.bias.grad[0] = float("nan")
    assert session.clip_gradients(1.0) == pytest.approx(6**0.5)
    session.push(1)
    assert session.figures.nonfinite_gradients == 1


def test_gradients_that_were_taken_away_are_an_error(session: Session) -> None:
    model = Model(session)
    loss(model, FEATURES).backward()
    model.zero_grad()
    with pytest.raises(GradientError, match="set to None after the backward pass"):
        session.clip_gradients(1.0)

"""Ways to use a replicated module wrongly: each is right, or an error that says what to do."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError, DivergedError, GradientError, RefusedError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    Adam,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    ReplicatedModule,
    Session,
)


@pytest.fixture
def cluster() -> InProcessCluster:
    return InProcessCluster(3)


@pytest.fixture
def session(cluster: InProcessCluster) -> Iterator[Session]:
    with cluster.session(code="2+1") as session:
        yield session


def table(name: str = "t") -> EmbeddingBagConfig:
    return EmbeddingBagConfig(10, 4, name, feature_names=["f"])


class Heads(nn.Module):
    """A trunk with two heads, of which a step may use one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 3)
        self.left = nn.Linear(3, 1)
        self.right = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, left: bool = True) -> torch.Tensor:
        head = self.left if left else self.right
        out: torch.Tensor = head(torch.tanh(self.trunk(x)))
        return out


X = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compared(
    session: Session, ours: Any, theirs: Callable[[Any], torch.optim.Optimizer], steps: Callable[[Any, int], None]
) -> None:
    """``steps(module, step)`` leaves gradients; after each the replicated module is as torch's own."""
    torch.manual_seed(3)
    module = Heads()
    plain = copy.deepcopy(module)
    dense = session.replicate(module, ours)
    optimizer = theirs(plain.parameters())
    for step in range(6):
        optimizer.zero_grad()
        steps(plain, step)
        optimizer.step()
        steps(module, step)
        session.push()
    dense.pull()
    for got, expected in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


MOMENTUM = SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
ADAM = Adam(lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)


# ------------------------------------------------------------------ what a push takes
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_a_head_without_a_gradient_is_not_stepped(session: Session, optimizer: Any) -> None:
    compared(session, *optimizer, lambda module, step: module(X, left=step % 3 == 0).sum().backward())


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_gradients_set_by_hand_are_taken(session: Session, optimizer: Any) -> None:
    def steps(module: nn.Module, step: int) -> None:
        parameters = list(module.parameters())
        grads = torch.autograd.grad(module(X).sum(), parameters, allow_unused=True)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad

    compared(session, *optimizer, steps)


def test_gradients_changed_in_place_are_taken_as_they_are(session: Session) -> None:
    def steps(module: nn.Module, step: int) -> None:
        (100 * module(X).sum()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)

    compared(session, *MOMENTUM, steps)


def test_several_backward_passes_are_one_step(session: Session) -> None:
    def steps(module: nn.Module, step: int) -> None:
        for part in X:
            module(part[None]).sum().backward()

    compared(session, *MOMENTUM, steps)


def test_zero_grad_before_the_backward_pass_does_no_harm(session: Session) -> None:
    def steps(module: nn.Module, step: int) -> None:
        module.zero_grad(set_to_none=step % 2 == 0)
        module(X).sum().backward()

    compared(session, SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1), steps)


def test_zero_grad_after_the_backward_pass_is_an_error(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=1.0))
    before = values(module)
    module(X).sum().backward()
    module.zero_grad()
    with pytest.raises(GradientError, match=r"gradient of trunk.weight, .* was set to None after the backward pass"):
        session.push()
    session.discard()
    session.push()
    assert module(X) is not None and equal(values(module), before)


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
def test_a_frozen_parameter_stands_still_and_trains_when_it_is_unfrozen(session: Session, optimizer: Any) -> None:
    def steps(module: Heads, step: int) -> None:
        module.trunk.requires_grad_(step not in (0, 3))
        module(X).sum().backward()

    compared(session, *optimizer, steps)


def test_a_step_that_is_given_up_leaves_no_gradient(session: Session) -> None:
    module = Heads()
    dense = session.replicate(module, SGD(lr=1.0))
    before = values(module)
    module(X).sum().backward()
    session.discard()
    session.push()
    dense.pull()
    assert equal(values(module), before)


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=1.0))
    module(X).sum().backward()
    assert module.left.weight.grad is not None
    module.left.weight.grad[0, 2] = float("nan")
    with pytest.raises(GradientError, match=r"is nan.*: that is parameter left.weight\[0, 2\] of .*'dense'"):
        session.push()
    module(X).sum().backward()
    session.push()


def test_gradients_of_another_type_are_an_error(session: Session) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    module(X).sum().backward()
    assert module.weight.grad is not None
    module.weight.grad = None
    with pytest.raises(GradientError, match="weight was set to None"):
        session.push()
    session.discard()


# ------------------------------------------------------------------ what a forward pass sees
def test_the_module_is_pulled_when_it_is_called_after_a_push(session: Session) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    session.replicate(module, SGD(lr=1.0))
    seen = []
    for _ in range(4):
        module(torch.ones(1, 1)).sum().backward()
        seen.append(module.weight.item())
        session.push()
    assert seen == [1.0, 0.0, -1.0, -2.0]


def test_prefetch_without_parts_pulls_all_of_them(session: Session) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    session.replicate(module, SGD(lr=1.0))
    seen = []
    for _ in session.prefetch(range(3)):
        seen.append(module.weight.item())
        module(torch.ones(1, 1)).sum().backward()
        session.push()
    assert seen == [1.0, 0.0, -1.0], "the default is exact: no batch is a step late"


def test_gradients_of_parameters_that_nobody_pulled_are_an_error(session: Session) -> None:
    module = Heads()
    dense = session.replicate(module, SGD(lr=1.0))
    module(X).sum().backward()
    session.push()
    nn.functional.linear(X, module.trunk.weight).sum().backward()  # no module is called
    with pytest.raises(GradientError, match=r"not pulled since the last push\. .* call the module"):
        session.push()
    session.discard()
    dense.pull()
    nn.functional.linear(X, module.trunk.weight).sum().backward()
    session.push()


def test_a_part_of_the_module_is_pulled_when_it_is_called_after_a_push(session: Session) -> None:
    """As the tower of a model of two, which is evaluated alone."""
    module = Heads()
    expected = copy.deepcopy(module)
    session.replicate(module, SGD(lr=0.1))
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for step in range(4):
        for each in (module, expected):
            each.left(torch.tanh(each.trunk(X))).sum().backward()
        session.push()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            part, same = (module.left, expected.left) if step % 2 else (module.trunk, expected.trunk)
            example = torch.ones(2, part.in_features)
            torch.testing.assert_close(part(example), same(example))


def test_a_part_pulls_once_in_a_pass(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=0.1))
    module(X).sum().backward()
    session.push()
    pulled = session.figures.bytes_pulled
    module.trunk(X)
    once = session.figures.bytes_pulled - pulled
    module.left(module.trunk(X))
    assert once > 0 and session.figures.bytes_pulled == pulled + once


def test_a_backward_pass_through_parameters_that_were_pulled_since_is_an_error(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=1.0))
    first = module(X).sum()
    module(X).sum().backward()
    session.push()
    module(X)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_weights_that_are_not_finite_are_named_when_they_are_pulled_and_at_the_end(cluster: InProcessCluster) -> None:
    """A script that only pushes must not end well with a model of infinities."""
    text = r"parameter weight\[0, 0\] of the replicated module 'dense' is -inf"
    session = cluster.session(code="2+1")
    module = nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=3e38))
    (10 * module(X).sum()).backward()
    session.push()
    with pytest.raises(DivergedError, match=text):
        dense.pull()
    with pytest.raises(DivergedError, match=text):
        session.close()
    assert session.closed


# ------------------------------------------------------------------ one step behind
def pushed_behind(session: Session) -> tuple[nn.Module, ReplicatedModule, torch.Tensor]:
    """In the second step of ``depth=1``: the module has the parameters of before the first push; and those after it."""
    module = nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=1.0))
    for step, _ in enumerate(session.prefetch(range(3), dense, depth=1)):
        if step == 1:
            break
        before = module.weight.detach().clone()
        module(X).sum().backward()
        session.push()
    assert torch.equal(module.weight, before), "that is what depth says"
    return module, dense, before - X.sum(0)


def test_what_is_saved_in_a_step_that_is_behind_has_the_last_push(session: Session) -> None:
    module, _, expected = pushed_behind(session)
    assert torch.allclose(module.state_dict()["weight"], expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: torch.save(module, io.BytesIO())])
def test_a_copy_of_a_step_that_is_behind_is_an_error(session: Session, copied: Any) -> None:
    module, dense, expected = pushed_behind(session)
    with pytest.raises(ConfigurationError, match="older than the last push: pull"):
        copied(module)
    dense.pull()
    assert torch.allclose(copy.deepcopy(module).weight, expected)


def test_a_change_in_a_step_that_is_behind_would_undo_the_last_push(session: Session) -> None:
    module, dense, _ = pushed_behind(session)
    with torch.no_grad():
        module.bias.zero_()
    with pytest.raises(ConfigurationError, match="older than the last push, which this would undo"):
        dense.assign()
    dense.pull(undo=True)


def test_at_the_end_the_module_has_the_last_push(cluster: InProcessCluster) -> None:
    with cluster.session(code="2+1") as session:
        module, _, expected = pushed_behind(session)
    assert torch.allclose(module.weight, expected)


# ------------------------------------------------------------------ several workers
def test_weights_are_written_by_one_worker_alone(cluster: InProcessCluster) -> None:
    """Each of them would undo what the others have pushed meanwhile."""
    session = cluster.session(rank=1, world_size=2)
    other = cluster.session(rank=0, world_size=2)
    module = nn.Linear(2, 1)
    in_threads([lambda: other.replicate(nn.Linear(2, 1), SGD(lr=1.0)), lambda: session.replicate(module, SGD(lr=1.0))])
    dense = ReplicatedModule.of(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
    with pytest.raises(ConfigurationError, match=r"worker 1 of 2 would write weights .*worker 0 alone does it"):
        dense.assign()
    dense.pull(undo=True)
    in_threads([session.close, other.close])


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.over = nn.Linear(2, 1)
        self.register_buffer("scale", torch.tensor(scale))


def test_workers_whose_constant_buffers_differ_are_refused(cluster: InProcessCluster) -> None:
    """They would train different models."""
    first, second = (cluster.session(rank=rank, world_size=2) for rank in range(2))
    first.replicate(Scaled(2.0), SGD(lr=1.0))
    reader = cluster.session(read_only=True)
    for session in (second, reader):
        with pytest.raises(RefusedError, match="other values in buffers that no training changes"):
            session.replicate(Scaled(3.0), SGD(lr=1.0))
        session.replicate(Scaled(2.0), SGD(lr=1.0))
    in_threads([first.close, second.close])
    reader.close()


# ------------------------------------------------------------------ habits of torch
def test_gradients_that_an_optimizer_forgot_before_the_push_are_an_error(session: Session) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    optimizer = session.optimizer
    optimizer.zero_grad()  # where it belongs
    module(X).sum().backward()
    optimizer.step()
    module(X).sum().backward()
    optimizer.zero_grad()
    with pytest.raises(GradientError, match=r"nothing to push: session\.optimizer\.zero_grad\(\) was called"):
        session.push()
    module(X).sum().backward()
    session.push()
    assert session.figures.steps == 2


@pytest.mark.parametrize("name", ["weight_decay", "momentum", "eps"])
def test_what_has_no_effect_in_a_group_of_the_optimizer_is_an_error(session: Session, name: str) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    session.optimizer.param_groups[0][name] = 0.1
    module(X).sum().backward()
    with pytest.raises(ConfigurationError, match=f"{name} of 'dense' would have no effect"):
        session.push()
    del session.optimizer.param_groups[0][name]
    session.push()


# ------------------------------------------------------------------ changes behind its back
@pytest.mark.parametrize("change", [lambda m: m.double(), lambda m: m.bfloat16(), lambda m: m.half()])
def test_a_module_that_is_converted_is_an_error(session: Session, change: Any) -> None:
    module = nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=1.0))
    change(module)
    for call in (session.push, dense.pull, dense.assign):
        with pytest.raises(ConfigurationError, match=r"parameter weight was moved or converted \(torch\.\w+ on cpu\)"):
            call()


def trains_on(session: Session, module: nn.Module, expected: list[torch.Tensor]) -> None:
    """It has these values, and a step of one moves each bias by the number of examples."""
    assert equal(values(module), expected)
    module(X).sum().backward()
    session.push()
    ReplicatedModule.of(module).pull()
    bias = [value for name, value in module.named_parameters() if name.endswith("bias")][-1]
    assert torch.equal(bias, expected[-1] - len(X))


class Twice(nn.Module):
    """With a buffer, and one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor([0.5, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.tanh(self.first(x * self.scale)))
        return out


@pytest.mark.parametrize(
    "there_and_back",
    [
        (lambda m: m.double(), lambda m: m.float()),
        (lambda m: m.to(torch.float64), lambda m: m.to(torch.float32)),
        (lambda m: m.share_memory(), lambda m: m),
        (lambda m: setattr(m.first.weight, "data", m.first.weight.data.clone()), lambda m: m),
    ],
    ids=["double", "to", "shared", "data"],
)
@pytest.mark.parametrize("noticed", [False, True])
def test_a_conversion_that_was_undone_costs_nothing(session: Session, there_and_back: Any, noticed: bool) -> None:
    module = Twice()
    session.replicate(module, SGD(lr=1.0))
    before = values(module)
    there_and_back[0](module)
    if noticed and module.first.weight.dtype == torch.float64:
        with pytest.raises(ConfigurationError, match=r"convert it back \(module\.float\(\)\), or .*pull\(undo=True\)"):
            session.push()
    there_and_back[1](module)
    trains_on(session, module, before)


@pytest.mark.parametrize("way", ["undo", "assign"])
def test_a_conversion_that_lost_bits_is_a_change(session: Session, way: str) -> None:
    module = Twice()
    dense = session.replicate(module, SGD(lr=1.0), buffers="local")
    before = values(module)
    module.half().float()
    rounded = values(module)
    assert not equal(before, rounded)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"was changed here.*assign\(\) writes.*pull\(undo=True\) gives"):
            session.push()
    if way == "undo":
        dense.pull(undo=True)
    else:
        dense.assign()
    trains_on(session, module, before if way == "undo" else rounded)


def transposed(module: Twice) -> None:
    module.first.weight.data = module.first.weight.data.t()


def other_parameter(module: Twice) -> None:
    module.first.weight = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.double(),
        lambda m: m.to("meta"),
        lambda m: nn.init.zeros_(m.first.weight),
        lambda m: setattr(m.first.weight, "data", torch.ones(3)),
        transposed,
        other_parameter,
    ],
    ids=["double", "meta", "zeros", "shape", "transposed", "replaced"],
)
def test_a_change_can_be_given_up(session: Session, change: Any) -> None:
    module = Twice()
    dense = session.replicate(module, SGD(lr=1.0), buffers="local")
    before = values(module)
    scale = module.scale
    change(module)
    with pytest.raises(ConfigurationError, match=r"ReplicatedModule\.pull\(undo=True\)"):
        session.push()
    dense.pull(undo=True)
    module.scale = scale
    assert module.first.weight is module.second.weight
    trains_on(session, module, before)


def test_a_constant_buffer_that_was_changed_and_back_is_none(session: Session) -> None:
    module = Twice()
    session.replicate(module, SGD(lr=1.0))
    before = values(module)
    module.scale.mul_(2.0)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"buffer scale was changed.*Give it the values of before again"):
            session.push()
    module.scale.mul_(0.5)
    trains_on(session, module, before)
    module.scale = module.scale.clone()
    session.push()
    module.scale[0] = float("nan")
    with pytest.raises(ConfigurationError, match="buffer scale was changed"):
        session.push()


def test_a_module_on_another_device_is_an_error(session: Session) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    module.to("meta")
    with pytest.raises(
        ConfigurationError, match=r"parameter weight was (moved or converted|replaced)|one was replaced"
    ):
        session.push()


def test_layers_that_are_added_or_replaced_are_an_error(session: Session) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    session.replicate(module, SGD(lr=1.0))
    module.append(nn.Linear(2, 1))
    with pytest.raises(ConfigurationError, match="change a module before it is replicated"):
        session.push()
    del module[1]
    session.push()
    module[0] = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match="one was replaced"):
        session.push()


def test_load_state_dict_is_an_error_until_it_is_written(session: Session) -> None:
    module, other = Heads(), Heads()
    dense = session.replicate(module, SGD(lr=1.0))
    module.load_state_dict(other.state_dict())
    for call in (dense.pull, session.push):
        with pytest.raises(ConfigurationError, match=r"was changed here \(load_state_dict.*assign\(\)"):
            call()
    dense.assign()
    dense.pull()
    assert equal(values(module), values(other))
    module(X).sum().backward()
    session.push()


def test_an_optimizer_of_torch_beside_it_is_an_error(session: Session) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(X).sum().backward()
    optimizer.step()
    with pytest.raises(ConfigurationError, match="the step of an optimizer"):
        session.push()


def test_weights_that_are_clamped_in_place_are_an_error(session: Session) -> None:
    module = nn.Linear(2, 1)
    session.replicate(module, SGD(lr=1.0))
    with torch.no_grad():
        module.weight.clamp_(-0.1, 0.1)
    with pytest.raises(ConfigurationError, match="parameter weight was changed here"):
        module(X)
        session.push()


def test_values_that_are_not_finite_cannot_be_written(session: Session) -> None:
    module = nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=1.0))
    with torch.no_grad():
        module.weight[0, 1] = float("inf")
    with pytest.raises(GradientError, match=r"the weight of table 'dense'.*is inf.*parameter weight\[0, 1\]"):
        dense.assign()


# ------------------------------------------------------------------ names and shapes
def test_two_modules_of_one_name_are_refused(session: Session) -> None:
    first = session.replicate(nn.Linear(2, 1), SGD(lr=1.0))
    before = values(first.module)
    second = nn.Linear(2, 1)
    with pytest.raises(ConfigurationError, match="table 'dense': this session has a table of that name already"):
        session.replicate(second, SGD(lr=1.0))
    second.weight.data.add_(1.0)  # it was left as it was
    session.replicate(second, SGD(lr=1.0), name="second")
    first.pull()
    assert equal(values(first.module), before)


def test_another_module_under_a_name_of_the_cluster_is_refused(cluster: InProcessCluster) -> None:
    with cluster.session() as session:
        session.replicate(nn.Linear(2, 3), SGD(lr=1.0))
    with cluster.session() as again:
        for other in (nn.Linear(3, 2), nn.Linear(2, 3, bias=False), nn.Sequential(nn.Linear(2, 3))):
            with pytest.raises(RefusedError, match=r"'dense' on this cluster is another module.*give another name="):
                again.replicate(other, SGD(lr=1.0))
        again.replicate(nn.Linear(2, 3), SGD(lr=1.0))


def test_a_name_that_cannot_be_is_refused_for_that(session: Session) -> None:
    with pytest.raises(RefusedError) as refused:
        session.replicate(nn.Linear(2, 1), SGD(lr=1.0), name="")
    assert "another module" not in str(refused.value)


@pytest.mark.parametrize("name", [7, None, ["dense"]])
def test_a_name_that_is_no_string_is_refused(session: Session, name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"replicate: the name is .*, expected a string"):
        session.replicate(nn.Linear(2, 1), SGD(lr=1.0), name=name)


def test_other_parameters_for_one_call_need_those_of_the_module_pulled(session: Session) -> None:
    module = Heads()
    dense = session.replicate(module, SGD(lr=1.0))
    given = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    module(X).sum().backward()
    session.push()
    with pytest.raises(ConfigurationError, match=r"before torch\.func\.functional_call, pull\(\)"):
        torch.func.functional_call(module, given, (X,))
    dense.pull()
    assert torch.equal(torch.func.functional_call(module, given, (X,)), torch.zeros(2, 1))


def test_the_name_of_a_module_that_is_gone_is_free(session: Session) -> None:
    session.replicate(nn.Linear(2, 1), SGD(lr=1.0))
    session.replicate(nn.Linear(2, 1), SGD(lr=1.0))


def test_a_module_without_a_shape_is_refused(session: Session) -> None:
    with pytest.raises(ConfigurationError, match="has no shape yet: run the module once"):
        session.replicate(nn.LazyLinear(3), SGD(lr=1.0))


def test_the_part_need_not_be_kept(session: Session) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    session.replicate(module, SGD(lr=1.0))  # nobody holds what it returns
    for _ in range(2):
        module(torch.ones(1, 1)).sum().backward()
        session.push()
    with torch.no_grad():
        module(torch.ones(1, 1))
    assert module.weight.item() == -1.0


def test_embedding_tables_inside_are_left_to_their_collection(session: Session) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = EmbeddingBagCollection(session, [table()], SGD(lr=1.0))
            self.over = nn.Linear(4, 1)

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            out: torch.Tensor = self.over(self.tables(features).values())
            return out

    model = Model()
    dense = session.replicate(model, SGD(lr=1.0))
    assert list(dense.describe("dense", row, 0).split()[1] for row in range(2)) == ["over.weight[0,", "over.bias[0]"]
    features = KeyedJaggedTensor.from_ids(["f"], torch.tensor([[1, 2]]))
    first = model(features)
    first.sum().backward()
    session.push()
    assert not torch.equal(model(features), first)


# ------------------------------------------------------------------ copies
def test_a_copy_is_plain_torch(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=1.0))
    plain = copy.deepcopy(module)
    module(X).sum().backward()
    session.push()
    module(X)
    assert not equal(values(module), values(plain))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    plain(X).sum().backward()
    optimizer.step()
    plain(X)
    session.push()


def test_a_module_that_is_saved_whole_is_plain_torch_when_it_is_loaded(session: Session) -> None:
    module = nn.Sequential(nn.Linear(2, 1))
    session.replicate(module, SGD(lr=1.0))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert equal(values(loaded), values(module))
    loaded(X).sum().backward()


def test_a_session_cannot_be_copied_or_saved(session: Session) -> None:
    tables = EmbeddingBagCollection(session, [table()], SGD(lr=1.0))
    for thing in (session, tables, nn.Sequential(tables)):
        with pytest.raises(ConfigurationError, match="its rows are on the servers"):
            copy.deepcopy(thing)
        with pytest.raises(ConfigurationError, match="its rows are on the servers"):
            torch.save(thing, io.BytesIO())


def test_the_part_itself_says_what_it_is(session: Session) -> None:
    dense = session.replicate(nn.Linear(2, 1), SGD(lr=1.0))
    assert isinstance(dense, ReplicatedModule) and dense.name == "dense"
    with pytest.raises(ConfigurationError, match="cannot be copied or saved"):
        copy.deepcopy(dense)


# ------------------------------------------------------------------ older than the last push
def clamped(module: nn.Module, low: float, high: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(low, high)


def test_values_that_are_older_than_a_push_cannot_be_written(session: Session) -> None:
    """As plain torch: step, then clamp what the step has made of it."""
    module = Heads()
    plain = copy.deepcopy(module)
    dense = session.replicate(module, SGD(lr=0.1))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        for each in (module, plain):
            each(X).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        session.push()
        clamped(module, -0.1, 0.1)
        with pytest.raises(ConfigurationError, match="older than the last push, which this would undo"):
            dense.assign()
        dense.pull(undo=True)
        for each in (module, plain):
            clamped(each, -0.1, 0.1)
        dense.assign()
        for got, expected in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got, expected)


def test_a_state_dict_has_the_last_push_and_a_part_that_is_loaded_keeps_it(session: Session) -> None:
    module = Heads()
    plain = copy.deepcopy(module)
    dense = session.replicate(module, SGD(lr=0.1))
    for each in (module, plain):
        each(X).sum().backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    session.push()
    for key, value in module.trunk.state_dict().items():
        torch.testing.assert_close(value, plain.trunk.state_dict()[key])
    module(X).sum().backward()
    session.push()
    module.load_state_dict({"left.bias": torch.tensor([7.0])}, strict=False)
    dense.assign()
    expected = {**module.state_dict()}
    dense.pull()
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
    assert module.left.bias.item() == 7.0 and not torch.equal(module.trunk.weight, plain.trunk.weight)


def test_a_closed_session_leaves_the_trained_model(cluster: InProcessCluster) -> None:
    module = Heads()
    plain = copy.deepcopy(module)
    with cluster.session() as session:
        session.replicate(module, SGD(lr=0.1))
        for each in (module, plain):
            each(X).sum().backward()
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
        session.push()
    torch.testing.assert_close(module(X), plain(X))
    torch.testing.assert_close(copy.deepcopy(module)(X), plain(X))


def test_a_copy_that_would_be_older_than_the_last_push_is_an_error(session: Session) -> None:
    module = Heads()
    dense = session.replicate(module, SGD(lr=0.1))
    module(X).sum().backward()
    session.push()
    for copied in (lambda: copy.deepcopy(module), lambda: torch.save(module, io.BytesIO())):
        with pytest.raises(ConfigurationError, match=r"older than the last push: pull\(\) before"):
            copied()
    dense.pull()
    assert equal(values(copy.deepcopy(module)), values(module))


def test_changes_of_data_are_seen_too(session: Session) -> None:
    """They do not count as changes for autograd."""
    module = Heads()
    dense = session.replicate(module, SGD(lr=0.1))
    module(X).sum().backward()
    session.push()
    module.trunk.weight.data.clamp_(-0.01, 0.01)
    for call in (lambda: module(X), dense.pull):
        with pytest.raises(ConfigurationError, match="a parameter was changed here"):
            call()


def test_stale_gradients_are_not_made_fresh_by_a_pull(session: Session) -> None:
    module = Heads()
    dense = session.replicate(module, SGD(lr=0.1))
    module(X).sum().backward()
    session.push()
    nn.functional.linear(X, module.trunk.weight).sum().backward()  # no module is called
    with pytest.raises(GradientError, match="gradients of parameters that are older than the last push"):
        dense.pull()
    session.discard()
    dense.pull()


def test_hooks_that_were_there_before_see_the_parameters_of_now(session: Session) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    seen = []
    module.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight.item()))
    session.replicate(module, SGD(lr=1.0))
    for _ in range(3):
        module(torch.ones(1, 1)).sum().backward()
        session.push()
    assert seen == [1.0, 0.0, -1.0]


def test_losses_of_several_batches_may_be_one_backward_pass(session: Session) -> None:
    """A pull that brings nothing new changes nothing."""
    module = Heads()
    plain = copy.deepcopy(module)
    dense = session.replicate(module, SGD(lr=0.1))
    sum(module(X[i : i + 1]).sum() for i in session.prefetch(range(2))).backward()
    dense.pull()
    session.push()
    plain(X).sum().backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    torch.testing.assert_close(module(X), plain(X))


def test_a_parameter_of_two_modules_is_refused(session: Session) -> None:
    inner = nn.Linear(2, 2)
    session.replicate(inner, SGD(lr=1.0))
    for outer in (inner, nn.Sequential(inner, nn.Linear(2, 1))):
        with pytest.raises(
            ConfigurationError, match=r"parameter .*weight of .* is replicated already, as part of 'dense'"
        ):
            session.replicate(outer, SGD(lr=1.0), name="outer")


@pytest.mark.parametrize("optimizer", [None, "sgd", 0.1])
def test_another_optimizer_is_refused(session: Session, optimizer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expected one of ecrec.training's"):
        session.replicate(nn.Linear(2, 1), optimizer)
    with pytest.raises(ConfigurationError, match=r"expected one of ecrec.training's"):
        EmbeddingBagCollection(session, [table()], optimizer)


def test_a_failure_leaves_the_name_free(session: Session) -> None:
    with pytest.raises(RefusedError) as kept:
        EmbeddingBagCollection(session, [EmbeddingBagConfig(1 << 46, 4, "t", feature_names=["f"])], SGD(lr=1.0))
    assert kept.value.__traceback__ is not None
    EmbeddingBagCollection(session, [table()], SGD(lr=1.0))


def test_evaluation_may_be_in_inference_mode(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, [table()], SGD(lr=1.0))
    over = nn.Linear(4, 1)
    session.replicate(over, SGD(lr=1.0))
    features = KeyedJaggedTensor.from_ids(["f"], torch.tensor([[1, 2]]))
    over(sparse(features).values()).sum().backward()
    session.push()
    with torch.no_grad():
        expected = over(sparse(features).values())
    with torch.inference_mode():
        made_here = KeyedJaggedTensor.from_ids(["f"], torch.tensor([[1, 2]]))
        assert torch.equal(over(sparse(made_here).values()), expected)
    over(sparse(features).values()).sum().backward()
    session.push()


@pytest.mark.filterwarnings("ignore")  # torch's, of its own compiler
def test_a_compiled_model_trains_as_one_that_is_not(session: Session) -> None:
    class Model(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.tables = EmbeddingBagCollection(session, [table(name)], SGD(lr=1.0))
            self.over = nn.Linear(4, 1)
            session.replicate(self.over, SGD(lr=0.1), name=f"over {name}")

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            out: torch.Tensor = torch.sigmoid(self.over(self.tables(features).values()))
            return out

    features = KeyedJaggedTensor.from_ids(["f"], torch.tensor([[1, 2]]))
    plain, model = Model("a"), Model("b")
    plain.tables.load_state_dict({"embedding_bags.a.weight": model.tables.state_dict()["embedding_bags.b.weight"]})
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        losses = [each(features).sum() for each in (plain, compiled)]
        assert losses[0].item() == losses[1].item()
        sum(losses).backward()
        session.push()


@pytest.mark.filterwarnings("ignore")  # torch's, of its own compiler
def test_a_part_that_is_compiled_alone_is_pulled(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=0.1))
    trunk = torch.compile(module.trunk, backend="eager")
    for _ in range(3):
        module(X).sum().backward()
        session.push()
        with torch.no_grad():
            found = trunk(X)
            assert torch.equal(found, module.trunk(X))


@pytest.mark.filterwarnings("ignore")
def test_the_layers_of_a_compiled_module_are_one_graph(session: Session) -> None:
    module = Heads()
    session.replicate(module, SGD(lr=0.1))
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=backend)
    for _ in range(3):
        compiled(X).sum().backward()
        session.push()
    assert len(graphs) == 1, "the trunk, the tanh and the head"


@pytest.mark.parametrize("part", ["0", ""])
def test_a_parameter_that_is_frozen_before_stands_still_until_it_is_unfrozen(session: Session, part: str) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    module.get_submodule(part).requires_grad_(False)
    before = module[0].weight.detach().clone()
    session.replicate(module, SGD(lr=0.1))
    assert not module[0].weight.requires_grad
    example = torch.ones(1, 3)
    for trains in (False, True):
        module[0].requires_grad_(trains)
        module[1].requires_grad_(True)
        module(example).sum().backward()
        session.push()
        module(example)
        assert torch.equal(module[0].weight, before) is not trains
    module(example).sum().backward()
    module[0].weight.grad = None
    with pytest.raises(GradientError, match=r"the gradient of 0\.weight was set to None"):
        session.push()


def test_a_module_of_inference_mode_is_refused(session: Session) -> None:
    with torch.inference_mode():
        module = nn.Linear(3, 1)
    with pytest.raises(ConfigurationError, match=r"parameter weight of Linear was made in torch.inference_mode"):
        session.replicate(module, SGD(lr=0.1))


def test_parameters_of_others_with_running_statistics_that_are_not_are_said(
    cluster: InProcessCluster, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    with cluster.session(code="2+1") as session:
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        session.replicate(module, SGD(lr=0.1), buffers="local")
        module(X).pow(2).sum().backward()
        session.push()
    assert not caplog.messages, "they belong together"
    reader = cluster.session(read_only=True)
    evaluated = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    reader.replicate(evaluated, SGD(lr=0.1), buffers="local")
    assert any("the running statistics of 1 are not" in message for message in caplog.messages)
    evaluated.load_state_dict(dict(module.named_buffers()), strict=False)
    with torch.no_grad():
        assert torch.equal(evaluated.eval()(X), module.eval()(X))


def test_what_is_no_module_is_refused(session: Session) -> None:
    given: Any = [torch.ones(1)]
    with pytest.raises(ConfigurationError, match=r"what is replicated is \[tensor.*, expected a torch.nn.Module"):
        session.replicate(given, SGD(lr=0.1))

"""Learning rates that change: torch's schedulers drive `Session.optimizer`; a push is a step at the rates of then."""

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ecrec.errors import ConfigurationError, RefusedError  # noqa: E402
from ecrec.training import (  # noqa: E402
    FTRL,
    SGD,
    Adagrad,
    Adam,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Optimizer,
    ReplicatedModule,
    Session,
)

ROWS, DIM, STEPS = 12, 3, 9
MADE: list[tuple[Optimizer, Any]] = [
    (SGD(lr=0.5), lambda p: torch.optim.SGD(p, lr=0.5)),
    (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (Adagrad(lr=0.3), lambda p: torch.optim.Adagrad(p, lr=0.3)),
    (Adam(lr=0.1, eps=1e-12), lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-12)),
    (
        Adam(lr=0.1, eps=1e-12, weight_decay=0.3, decoupled_weight_decay=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-12, weight_decay=0.3),
    ),
]
SCHEDULERS = [
    lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4)),
    lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
]
EVERY_ROW = KeyedJaggedTensor.from_ids(["t"], torch.arange(ROWS).reshape(1, ROWS))


class Model(nn.Module):
    def __init__(self, session: Session, sparse: Optimizer, dense: Optimizer, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tables = EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "t", init_scale=0.5)], sparse)
        self.over = nn.Linear(DIM, 1)
        session.replicate(self.over, dense)

    def forward(self, features: KeyedJaggedTensor = EVERY_ROW) -> Tensor:
        out: Tensor = self.over(self.tables(features).values()).sigmoid()
        return out


def loss_of(out: Tensor, step: int) -> Tensor:
    return ((out - torch.linspace(0, 1, ROWS)[:, None] * (step % 3)) ** 2).sum()


def weights_of(model: Model) -> Tensor:
    return model.tables(EVERY_ROW).values().detach().clone()


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made[0]).__name__)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["warm-up", "cosine", "step"])
def test_steps_follow_torchs_schedulers_also_over_a_death(made: tuple[Optimizer, Any], scheduler: Any) -> None:
    """All rows are in each batch, so that torch's dense optimizers do the same."""
    cluster = InProcessCluster(3)
    session = cluster.session(code="2+1")
    model = Model(session, made[0], made[0])
    table = nn.Parameter(weights_of(model))
    over = nn.Linear(DIM, 1)
    over.load_state_dict(model.over.state_dict())
    theirs = made[1]([table, *over.parameters()])
    ours = session.optimizer
    schedulers = [scheduler(theirs), scheduler(ours)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(STEPS):
            loss_of(model(), step).backward()  # type: ignore[no-untyped-call]
            session.push()
            theirs.zero_grad()
            loss_of(over(table).sigmoid(), step).backward()  # type: ignore[no-untyped-call]
            theirs.step()
            for each in schedulers:
                each.step()
            if step == 4:
                cluster.kill(1)
    assert {group["lr"] for group in ours.param_groups} == {theirs.param_groups[0]["lr"]}
    torch.testing.assert_close(weights_of(model), table.detach(), rtol=2e-5, atol=2e-6)
    ReplicatedModule.of(model.over).pull()
    torch.testing.assert_close(model.over.weight.detach(), over.weight.detach(), rtol=2e-5, atol=2e-6)


def test_a_loop_that_is_written_for_torch_works_as_it_stands() -> None:
    session = InProcessCluster(3).session(code="2+1")
    model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
    optimizer = session.optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    assert [group["name"] for group in optimizer.param_groups] == ["t", "dense"]
    before = loss_of(model(), 1).item()
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of(model(), 1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    assert loss_of(model(), 1).item() < before
    assert session.figures.steps == 4 and scheduler.get_last_lr() == [0.5 / 16] * 2


def test_a_learning_rate_of_zero_changes_no_weight_and_the_own_one_is_not_sent() -> None:
    session = InProcessCluster(3).session(code="2+1")
    model = Model(session, SGD(lr=0.5), Adagrad(lr=0.5))
    before = weights_of(model)
    assert session.optimizer.rates() == {}
    for group in session.optimizer.param_groups:
        group["lr"] = 0.0
    loss_of(model(), 1).backward()  # type: ignore[no-untyped-call]
    session.push()
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize(("sparse", "rate", "says"), [
    (SGD(lr=0.5), float("nan"), "table 't': learning rate nan: expected a finite number of at least 0"),
    (SGD(lr=0.5), float("inf"), "expected a finite number of at least 0"),
    (SGD(lr=0.5), 1e39, "expected a finite number of at least 0"),
    (SGD(lr=0.5), -0.1, "expected a finite number of at least 0"),
    (FTRL(lr=0.5), 0.0, "expected a finite number above 0"),
    (Adam(lr=0.1, weight_decay=0.5, decoupled_weight_decay=True), 2.0, "expected less than 1"),
])  # fmt: skip
def test_a_rate_at_which_no_step_can_be_taken_is_an_error_and_the_gradients_stay(
    sparse: Optimizer, rate: float, says: str
) -> None:
    session = InProcessCluster(3).session(code="2+1")
    model = Model(session, sparse, SGD(lr=0.5))
    before = weights_of(model)
    (group, _) = session.optimizer.param_groups
    own, group["lr"] = group["lr"], rate
    loss_of(model(), 1).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigurationError, match=says):
        session.push()
    assert session.figures.steps == 0
    group["lr"] = own
    session.push()
    assert not torch.equal(weights_of(model), before)


@pytest.mark.parametrize("rate", ["fast", None, [0.1], torch.ones(2)])
def test_a_rate_that_is_no_number_is_named(rate: Any) -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = Model(session, SGD(lr=1.0), SGD(lr=1.0))
        session.optimizer.param_groups[1]["lr"] = rate
        loss_of(model(), 1).backward()
        with pytest.raises(ConfigurationError, match=r"session\.optimizer: lr of 'dense' is .*, expected a number"):
            session.push()
        session.optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
        session.push()


def test_parts_are_made_before_the_optimizer_and_its_groups_stay() -> None:
    session = InProcessCluster(3).session(code="2+1")
    with pytest.raises(ConfigurationError, match="make the model's tables and replicated modules first"):
        _ = session.optimizer
    Model(session, SGD(lr=0.5), SGD(lr=0.5))
    optimizer = session.optimizer
    with pytest.raises(ConfigurationError, match=r"tables late: session\.optimizer does not have them"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "late")], SGD(lr=0.5))
    optimizer.param_groups.pop()
    with pytest.raises(ConfigurationError, match="its param_groups were changed"):
        session.push()


def test_what_a_scheduler_did_can_be_saved_and_gone_on_with() -> None:
    session = InProcessCluster(3).session(code="2+1")
    Model(session, SGD(lr=0.5), SGD(lr=0.5))
    session.optimizer.param_groups[0]["lr"] = 0.125
    saved = session.optimizer.state_dict()
    other = InProcessCluster(3).session(code="2+1")
    Model(other, SGD(lr=0.5), SGD(lr=0.5))
    other.optimizer.load_state_dict(saved)
    assert list(other.optimizer.rates().values()) == [0.125]


def test_workers_in_sync_agree_on_the_rate_or_both_are_told() -> None:
    cluster = InProcessCluster(3)

    def run(rank: int, rate: float) -> str:
        session = cluster.session(code="2+1", rank=rank, world_size=2, sync=True)
        model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
        for lr in (0.25, rate):
            for group in session.optimizer.param_groups:
                group["lr"] = lr
            loss_of(model(), 1).backward()  # type: ignore[no-untyped-call]
            try:
                session.push()
                session.barrier()
            except RefusedError as error:
                return str(error)
        return ""

    said = in_threads([lambda: run(0, 0.25), lambda: run(1, 0.125)])
    assert all("learning rate of table 0 of worker 0" in each and "is 0.125" in each for each in said), said


def test_a_push_with_rates_that_shards_would_refuse_is_refused_before_it_is_sent() -> None:
    session = InProcessCluster(3).session(code="2+1")
    Model(session, SGD(lr=0.5), SGD(lr=0.5))
    machine = session.machine
    for rates, assign, says in (
        ({0: -1.0}, False, "table 't': learning rate"), ({9: 0.5}, False, "learning rate of table 9"),
        ({0: 0.5}, True, "sets weights takes no learning rates"),
    ):  # fmt: skip
        with pytest.raises(RefusedError, match=says):
            machine.push({}, rates=rates, assign=assign)


def scaled(scales: bool, init: float = 2.0**14, unscales: bool = False) -> tuple[list[float], str]:
    """Weights and digest after some steps, with or without a GradScaler."""
    with InProcessCluster(3).session(code="2+1") as session:
        model = Model(session, Adam(lr=0.1), SGD(lr=0.5, momentum=0.9))
        optimizer = session.optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=init, growth_interval=2, enabled=scales)
        losses = []
        for step in range(4):
            for micro in range(2):
                loss = loss_of(model(), step + micro)
                scaler.scale(loss).backward()
            if unscales:
                scaler.unscale_(optimizer)
            scaler.step(optimizer, examples=5)
            scaler.update()
            losses.append(loss.item())
        assert session.figures.steps == 4 and session.figures.examples == 20
        assert not scales or scaler.get_scale() == 4 * init
        return losses, session.model_digest()


@pytest.mark.parametrize("unscales", [False, True])
def test_a_grad_scaler_steps_as_if_the_loss_had_not_been_scaled(unscales: bool) -> None:
    """The scale is a power of two, so that even the last bit is the same."""
    assert scaled(True, unscales=unscales) == scaled(False)


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("where", ["tables", "over"])
def test_a_grad_scaler_gives_a_step_up_in_which_a_gradient_is_infinite(unscales: bool, where: str) -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
        optimizer, scaler = session.optimizer, torch.amp.GradScaler("cpu", init_scale=8.0)
        before = session.model_digest()
        scaler.scale(loss_of(model(), 1)).backward()
        if where == "tables":
            (model.tables(EVERY_ROW).values() * float("inf")).sum().backward()
        else:
            model.over.weight.grad[0, 0] = float("inf")  # type: ignore[index]
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert session.model_digest() == before and session.figures.steps == 0
        assert scaler.get_scale() == 4.0 and model.over.weight.grad is None
        # Without zero_grad, as nothing of that step is left.
        scaler.scale(loss_of(model(), 1)).backward()
        scaler.step(optimizer)
        after = session.model_digest()
        assert after != before and session.figures.steps == 1
    with InProcessCluster(3).session(code="2+1") as session:
        model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
        loss_of(model(), 1).backward()
        session.push()
        assert session.model_digest() == after


def test_the_examples_of_a_step_that_a_scaler_gives_up_count_in_their_split() -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
        optimizer, scaler = session.optimizer, torch.amp.GradScaler("cpu", init_scale=8.0)
        done = 0
        for split in session.lease_splits("clicks", 20, split_examples=10):
            for first in range(split.first, split.last, 5):
                scaler.scale(loss_of(model(), 1)).backward()
                if first == 5:
                    model.over.weight.grad[0, 0] = float("nan")  # type: ignore[index]
                scaler.step(optimizer, examples=5)
                scaler.update()
                done += 5
        assert done == 20


@pytest.mark.parametrize("again", ["the same step", "a new one", "without the scaler"])
def test_a_step_of_a_scaler_that_is_refused_leaves_nothing_of_its_scale(again: str) -> None:
    """The refused step can be made again, or given up: neither it nor the next one is of another size."""
    moved = []
    for refused in (True, False):
        with InProcessCluster(3).session(code="2+1") as session:
            model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
            optimizer, scaler = session.optimizer, torch.amp.GradScaler("cpu", init_scale=1024.0)
            splits = iter(session.lease_splits("x", 8, split_examples=4))
            next(splits)
            scaler.scale(loss_of(model(), 1)).backward()
            if refused:
                before = [parameter.grad.clone() for parameter in model.over.parameters()]
                with pytest.raises(ConfigurationError):
                    scaler.step(optimizer, examples=5)  # 4 are left
                after = [parameter.grad for parameter in model.over.parameters()]
                assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            if again == "the same step":
                scaler.step(optimizer, examples=4)
            else:
                session.discard()
                loss = loss_of(model(), 1)
                (scaler.scale(loss) if again == "a new one" else loss).backward()
                if again == "a new one":
                    scaler.step(optimizer, examples=4)
                else:
                    optimizer.step(examples=4)
            moved.append(session.model_digest())
    assert moved[0] == moved[1]


def test_clipping_the_optimizers_parameters_clips_what_is_pushed() -> None:
    digests = []
    for clips in (True, False):
        with InProcessCluster(3).session(code="2+1") as session:
            model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
            parameters = [parameter for group in session.optimizer.param_groups for parameter in group["params"]]
            (2 * loss_of(model(), 1)).backward()
            if clips:
                nn.utils.clip_grad_value_(parameters, 0.25)
            for parameter in parameters:
                assert clips is bool(parameter.grad.abs().max() <= 0.25)
            assert session.clip_gradients(0.5) > 0.5
            assert float(nn.utils.clip_grad_norm_(parameters, 10.0)) == pytest.approx(0.5, rel=1e-4)
            session.push()
            digests.append(session.model_digest())
    assert digests[0] != digests[1]


def test_a_backward_pass_after_a_look_at_the_gradients_adds_to_them() -> None:
    digests = []
    for looks in (True, False):
        with InProcessCluster(3).session(code="2+1") as session:
            model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
            parameters = [parameter for group in session.optimizer.param_groups for parameter in group["params"]]
            for step in range(3):
                loss_of(model(), step).backward()
                for parameter in parameters if looks else []:
                    parameter.grad.mul_(1.0)
            session.push()
            digests.append(session.model_digest())
    assert digests[0] == digests[1]


def test_gradients_of_the_optimizer_are_none_without_a_pass_and_cannot_be_replaced() -> None:
    session = InProcessCluster(3).session(code="2+1")
    model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
    parameter = session.optimizer.param_groups[0]["params"][0]
    assert parameter.grad is None
    loss_of(model(), 1).backward()
    assert parameter.grad.shape == (ROWS * DIM,)
    with pytest.raises(ConfigurationError, match="can be changed in place, and not be replaced"):
        parameter.grad = None
    session.discard()
    assert parameter.grad is None


def test_a_grad_scaler_in_sync_is_told_that_one_worker_alone_would_skip() -> None:
    cluster = InProcessCluster(3)

    def run(rank: int) -> str:
        session = cluster.session(code="2+1", rank=rank, world_size=2, sync=True)
        model = Model(session, SGD(lr=0.5), SGD(lr=0.5))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(loss_of(model(), 1)).backward()
        with pytest.raises(ConfigurationError, match=r"would skip the step of one worker alone: scale no loss"):
            scaler.step(session.optimizer)
        session.discard()
        return "told"

    assert in_threads([lambda: run(0), lambda: run(1)]) == ["told", "told"]

"""`Session.evaluate` reads one state of the model, pushes nothing, and the training goes on as if it had not been.

What needs several free workers and a checkpoint is in ``tests/integration/test_evaluation_processes.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError, FileMissingError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    Adagrad,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    ReplicatedModule,
    Session,
)

DIM = 4
Batch = tuple[KeyedJaggedTensor, torch.Tensor]


class Model(nn.Module):
    """Bags, dropout, and a dense part."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        config = EmbeddingBagConfig(30, DIM, "t", feature_names=["a"])
        self.bags = EmbeddingBagCollection(session, [config], Adagrad(lr=0.5), seed=3)
        generator = torch.Generator().manual_seed(7)
        self.dense = nn.Sequential(nn.Linear(DIM, 6), nn.Dropout(0.5), nn.Linear(6, 1))
        with torch.no_grad():
            for parameter in self.dense.parameters():
                parameter.uniform_(-0.4, 0.4, generator=generator)
        self.part = session.replicate(self.dense, SGD(lr=0.5))

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        out: torch.Tensor = self.dense(self.bags(features).values()).squeeze(1)
        return out


def batches(count: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    ids = [torch.from_numpy(rng.integers(0, 30, (1, 8))) for _ in range(count)]
    return [(KeyedJaggedTensor.from_ids(["a"], each), (each[0] % 2).float()) for each in ids]


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def trained(between: Any, depth: int, exact: bool = True) -> tuple[list[float], str]:
    """Losses and digest of a run, with ``between`` done in the middle of each step."""
    torch.manual_seed(1)
    losses = []
    with InProcessCluster(3).session(code="2+1", exact=exact) as session:
        model = Model(session)
        for batch in session.prefetch(batches(6), features=lambda batch: batch[0], depth=depth):
            between(session, model)
            loss = loss_of(model, batch)
            between(session, model)
            loss.backward()
            between(session, model)
            session.push(8)
            losses.append(loss.item())
        session.flush()
        return losses, session.model_digest()


# ------------------------------------------------------------------ what it returns, and what it leaves
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_training_goes_on_to_the_bit_as_if_nothing_had_been_evaluated(depth: int) -> None:
    def evaluates(session: Session, model: Model) -> None:
        dense = model.dense[0].weight
        before = dense.data_ptr(), dense.grad
        session.evaluate(model, batches(2, seed=5), lambda batch: loss_of(model, batch).item())
        assert model.training and model.dense[1].training and model.dense[0].weight is dense
        assert (dense.data_ptr(), dense.grad) == before
        assert torch.is_grad_enabled()

    assert trained(evaluates, depth) == trained(lambda session, model: None, depth)


@pytest.mark.parametrize("exact", [True, False])
def test_it_sees_the_last_push_where_the_step_that_goes_on_has_older_rows_and_parameters(exact: bool) -> None:
    """``depth=2`` trains on values of two steps ago; an evaluation does not."""
    found, expected = [], []
    with InProcessCluster(3).session(code="2+1", exact=exact) as session:
        model = Model(session)
        same = batches(1, seed=3)[0]
        for batch in session.prefetch([same] * 6, features=lambda batch: batch[0], depth=2):
            loss_of(model, batch).backward()
            session.push(8)
            found.append(session.evaluate(model, [same], lambda batch: loss_of(model, batch).item())[0])
            session.flush()
            rows = torch.from_numpy(model.bags.state_dict()["embedding_bags.t.weight"].numpy().copy())
            plain = nn.Sequential(nn.Linear(DIM, 6), nn.Linear(6, 1))
            plain.load_state_dict(
                {name.replace("2.", "1."): value.clone() for name, value in model.dense.state_dict().items()}
            )
            logits = plain(rows[same[0].values()]).squeeze(1)
            expected.append(nn.functional.binary_cross_entropy_with_logits(logits, same[1]).item())
    assert found == expected
    assert len(set(found)) == 6


def test_an_evaluation_gives_what_predict_returns_and_by_default_the_model(session: Session) -> None:
    model = Model(session)
    features = [batch[0] for batch in batches(3)]
    outputs = session.evaluate(model, features)
    assert [tuple(each.shape) for each in outputs] == [(8,)] * 3 and not outputs[0].requires_grad
    assert session.evaluate(model, iter(features), lambda batch: batch.stride()) == [8, 8, 8]
    assert session.evaluate(model, []) == []
    assert all(torch.equal(a, b) for a, b in zip(outputs, session.evaluate(model, features), strict=True)), "no dropout"
    assert session.figures.steps == 0


def test_modes_of_single_modules_are_restored_also_after_an_error(session: Session) -> None:
    model = Model(session)
    model.dense[0].eval()
    other = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    session.replicate(other, SGD(lr=0.1), name="other")

    def predict(batch: Batch) -> None:
        assert not any(part.training for module in (model, other) for part in module.modules())
        raise KeyError("of the script")

    with pytest.raises(KeyError, match="of the script"):
        session.evaluate(model, batches(1), predict)
    assert [part.training for part in model.dense] == [False, True, True]
    assert model.training and other.training and other[1].training and torch.is_grad_enabled()
    loss_of(model, batches(1)[0]).backward()
    session.push()
    assert len(session.evaluate(model, [batches(1)[0][0]])) == 1


def test_an_evaluation_goes_on_over_the_death_of_a_shard() -> None:
    cluster = InProcessCluster(3)
    with cluster.session(code="2+1") as session:
        model = Model(session)
        for batch in batches(3):
            loss_of(model, batch).backward()
            session.push(8)
        expected = session.evaluate(model, [batch[0] for batch in batches(4, seed=9)])

        def reader() -> Iterator[KeyedJaggedTensor]:
            for number, batch in enumerate(batches(4, seed=9)):
                if number == 2:
                    cluster.kill(1)
                yield batch[0]

        found = session.evaluate(model, reader())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------ several workers
def test_a_worker_in_sync_evaluates_the_state_after_its_last_push_while_others_wait_to_push() -> None:
    """Worker 1 has sent its next push long before the evaluation of worker 0 ends: it is not applied before that."""
    cluster = InProcessCluster(3)
    data = [batch for batch in batches(8)]

    def worker(rank: int) -> list[list[float]]:
        found = []
        with cluster.session(code="2+1", rank=rank, world_size=2, sync=True) as session:
            model = Model(session)
            for step, batch in enumerate(data):
                loss_of(model, batch).backward()
                session.push(8)
                if rank == 0 or step == 3:
                    found.append(session.evaluate(model, [data[0][0]] * 6, lambda batch: float(model(batch).sum())))
        return found

    torch.manual_seed(0)
    first, second = in_threads([lambda: worker(0), lambda: worker(1)])
    assert len(first) == 8 and all(len(set(read)) == 1 for read in [*first, *second])
    assert len({read[0] for read in first}) == 8
    assert second[0] == first[3], "at the same push both read the same"


def test_free_workers_and_readers_are_told_that_no_one_state_is_read(session: Session) -> None:
    cluster = InProcessCluster(3)
    with cluster.session(code="2+1", rank=0, world_size=2) as free:
        config = EmbeddingBagConfig(30, DIM, "t", feature_names=["a"])
        bags = EmbeddingBagCollection(free, [config], SGD(lr=1.0))
        with pytest.raises(
            ConfigurationError, match=r"one of 2 free workers.*session\.save\(url\).*checkpoint=url.*consistent=False"
        ):
            free.evaluate(bags, [batches(1)[0][0]])
        assert len(free.evaluate(bags, [batches(1)[0][0]], consistent=False)) == 1
    with cluster.session(read_only=True) as reader:
        bags = EmbeddingBagCollection(reader, [config], SGD(lr=1.0))
        with pytest.raises(ConfigurationError, match=r"a session that only reads, and.*checkpoint=url"):
            reader.evaluate(bags, [batches(1)[0][0]])
        assert len(reader.evaluate(bags, [batches(1)[0][0]], consistent=False)) == 1


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("what", "does"),
    [
        ("push", lambda session, model: session.push()),
        ("discard", lambda session, model: session.discard()),
        ("discard", lambda session, model: session.optimizer.zero_grad()),
        ("push", lambda session, model: session.optimizer.step()),
        ("evaluate", lambda session, model: session.evaluate(model, [])),
        ("prefetch", lambda session, model: list(session.prefetch(batches(1), features=lambda batch: batch[0]))),
        ("assign", lambda session, model: model.bags.load_state_dict(model.bags.state_dict())),
        ("barrier", lambda session, model: session.barrier()),
        ("close", lambda session, model: session.close()),
        ("clip_gradients", lambda session, model: session.clip_gradients(1.0)),
        ("pull of the replicated module 'dense'", lambda session, model: model.part.pull()),
        ("making tables other", lambda session, model: session.replicate(nn.Linear(1, 1), SGD(lr=1.0), name="other")),
        ("lease_splits", lambda session, model: next(session.lease_splits("d", 10, split_examples=5))),
    ],
)
def test_what_would_change_the_model_is_refused_inside(session: Session, what: str, does: Any) -> None:
    model = Model(session)
    session.optimizer  # noqa: B018
    batch = batches(1)[0]
    loss_of(model, batch).backward()
    with pytest.raises(ConfigurationError, match=f"{what} inside Session.evaluate, which changes nothing"):
        session.evaluate(model, [batch], lambda batch: does(session, model))
    session.push(8)
    assert session.figures.steps == 1


def test_batches_that_are_prefetched_for_training_are_no_reader(session: Session) -> None:
    model = Model(session)
    steps = session.prefetch(batches(3), features=lambda batch: batch[0])
    next(steps)
    with pytest.raises(ConfigurationError, match=r"a step of Session\.prefetch inside Session\.evaluate"):
        session.evaluate(model, steps, lambda batch: model(batch[0]))


def test_a_pass_with_gradients_is_refused_inside(session: Session) -> None:
    model = Model(session)
    graph = loss_of(model, batches(1)[0])

    def with_gradients(batch: Batch) -> None:
        with torch.enable_grad():
            model.bags(batch[0])

    def dense_with_gradients(batch: Batch) -> None:
        with torch.enable_grad():
            model.dense(torch.zeros(1, DIM))

    for predict, words in (
        (with_gradients, "EmbeddingBagCollection of t is called inside Session.evaluate with gradients enabled"),
        (dense_with_gradients, "replicated module 'dense' is called inside Session.evaluate with gradients enabled"),
        (lambda batch: graph.backward(), "a backward pass to the tables t inside Session.evaluate"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            session.evaluate(model, batches(1), predict)


def test_parameters_that_are_changed_inside_are_an_error_and_are_those_of_before(session: Session) -> None:
    model = Model(session)
    before = model.dense[0].weight.clone()

    def change(batch: Batch) -> None:
        with torch.no_grad():
            model.dense[0].weight += 1.0

    with pytest.raises(ConfigurationError, match=r"'dense': a parameter was changed inside Session\.evaluate"):
        session.evaluate(model, batches(1), change)
    assert torch.equal(model.dense[0].weight, before)
    loss_of(model, batches(1)[0]).backward()
    session.push()


def test_parameters_that_wait_for_assign_are_an_error_before_anything_is_read(session: Session) -> None:
    model = Model(session)
    with torch.no_grad():
        model.dense[0].weight.zero_()
    with pytest.raises(ConfigurationError, match=r"changed here.*assign\(\)"):
        session.evaluate(model, batches(1), lambda batch: model(batch[0]))
    model.part.assign()
    session.evaluate(model, batches(1), lambda batch: model(batch[0]))
    assert ReplicatedModule.of(model.dense) is model.part


def test_arguments_that_cannot_be(session: Session, tmp_path: Path) -> None:
    model = Model(session)
    with InProcessCluster(3).session(code="2+1") as other:
        of_other = Model(other)
        for given in (of_other, of_other.dense):
            with pytest.raises(ConfigurationError, match="tables or replicated parameters of another session"):
                session.evaluate(given, [])
    for arguments, words in (
        (("model", []), r"the model is 'model', expected a torch\.nn\.Module"),
        ((model, [], "auc"), "evaluate: predict is 'auc', expected a function of a batch"),
        ((model, None), "evaluate: the batches are None, expected an iterable of them, such as a DataLoader"),
        ((model, "test.csv"), "evaluate: the batches are 'test.csv', expected an iterable"),
        ((model, lambda: batches(1)), r"evaluate: the batches are <function.*expected an iterable.*what it returns"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            session.evaluate(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="number=3 is that of a checkpoint"):
        session.evaluate(model, [], number=3)
    with pytest.raises(ConfigurationError, match="a checkpoint is consistent"):
        session.evaluate(model, [], checkpoint=str(tmp_path), consistent=False)
    with pytest.raises(FileMissingError, match="there is no checkpoint"):
        session.evaluate(model, [], checkpoint=str(tmp_path))
    assert session.evaluate(model, []) == []


def test_a_worker_that_does_not_know_how_many_there_are_promises_no_one_state() -> None:
    """`ecrec.connect(rank=0)` without world_size: another worker may push between two batches."""
    with InProcessCluster(3).session(code="2+1") as session:
        model = nn.Linear(3, 1)
        session.replicate(model, SGD(lr=0.1))
        session.knows_world_size = False
        with pytest.raises(ConfigurationError, match=r"nobody has said how many.*world_size to ecrec\.connect"):
            session.evaluate(model, [torch.ones(1, 3)])
        assert len(session.evaluate(model, [torch.ones(1, 3)], consistent=False)) == 1
        session.knows_world_size = True
        assert len(session.evaluate(model, [torch.ones(1, 3)])) == 1


@pytest.mark.parametrize("habit", ["train", "train and back", "buffer"])
def test_a_model_that_is_set_into_training_mode_inside_is_an_error_and_as_before(habit: str) -> None:
    with InProcessCluster(3).session(code="2+1") as session:
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        session.replicate(model, SGD(lr=0.1), buffers="local")
        before = {name: value.clone() for name, value in model.state_dict().items()}

        def predict(x: torch.Tensor) -> torch.Tensor:
            if habit.startswith("train"):
                model.train()
            else:
                model[1].running_mean.add_(1.0)
            out = model(x)
            if habit == "train and back":
                model.eval()
            return out

        with pytest.raises(ConfigurationError, match="which changes nothing: leave the mode"):
            session.evaluate(model, [torch.ones(4, 3)], predict)
        assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert len(session.evaluate(model, [torch.ones(4, 3)])) == 1


def with_a_gradient(session: Session) -> Model:
    """In the middle of a step, with a layer that is not replicated, and learning rates."""
    model = Model(session)
    model.own = nn.Linear(2, 2)
    model.own.register_buffer("scale", torch.ones(2))
    session.optimizer.param_groups[0]["lr"] = 0.25
    loss_of(model, batches(1)[0]).backward()
    model.own(torch.ones(1, 2)).sum().backward()
    return model


def in_place(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.add_(1.0)


CHANGES = {
    "gradient None": (lambda s, m: m.dense.zero_grad(), "the gradient of weight was replaced"),
    "gradient zero": (lambda s, m: m.dense.zero_grad(set_to_none=False), "the gradient of weight was changed"),
    "gradient data": (lambda s, m: m.dense[0].weight.grad.data.mul_(2.0), "the gradient of weight was changed"),
    "gradient new": (lambda s, m: setattr(m.dense[0].bias, "grad", torch.ones(6)), "the gradient of bias was replaced"),
    "gradient of a table": (lambda s, m: m.bags.zero_grad(), "the gradient of weight was replaced"),
    "gradient of its own": (lambda s, m: m.own.zero_grad(), "the gradient of weight was replaced"),
    "frozen": (lambda s, m: m.requires_grad_(False), "requires_grad of weight was changed"),
    "frozen table": (lambda s, m: m.bags.requires_grad_(False), "requires_grad of weight was changed"),
    "rate": (lambda s, m: s.optimizer.param_groups[1].update(lr=9.0), "lr of 'dense' in session.optimizer was changed"),
    "setting": (
        lambda s, m: s.optimizer.param_groups[0].update(eps=9.0),
        "eps of 't' in session.optimizer was changed",
    ),
    "rates loaded": (
        lambda s, m: s.optimizer.load_state_dict(s.optimizer.state_dict()),
        "param_groups of session.optimizer were replaced",
    ),
    "value of its own": (lambda s, m: in_place(m.own.weight), "weight was changed"),
    "conversion": (lambda s, m: m.own.double(), "weight was changed"),
    "parameter": (lambda s, m: setattr(m.own, "bias", None), "bias of Linear was replaced"),
    "buffer": (lambda s, m: setattr(m.own, "scale", torch.zeros(2)), "scale of Linear was replaced"),
    "layer": (lambda s, m: setattr(m, "own", nn.Linear(2, 2)), "own of Model was replaced"),
    "mode": (lambda s, m: m.dense[1].train(), "the mode of Dropout was changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_inside_is_an_error_and_as_before(session: Session, change: str) -> None:
    def state(model: Model) -> list[Any]:
        tensors = [*model.dense.parameters(), *model.own.parameters(), *model.own.buffers()]
        found: list[Any] = [each.tolist() for each in tensors]
        found += [None if each.grad is None else each.grad.tolist() for each in tensors]
        found += [(name, id(each), each.requires_grad, id(each.grad)) for name, each in model.named_parameters()]
        found += [(name, each.training) for name, each in model.named_modules()]
        return [*found, *({**group, "params": None} for group in session.optimizer.param_groups)]

    does, words = CHANGES[change]
    model = with_a_gradient(session)
    before = state(model)
    with pytest.raises(ConfigurationError, match=rf"{words}.* inside Session\.evaluate, which changes nothing"):
        session.evaluate(model, batches(1), lambda batch: does(session, model))
    assert state(model) == before
    with pytest.raises(KeyError):
        session.evaluate(model, batches(1), lambda batch: (does(session, model), {}["of the script"]))
    assert state(model) == before
    session.push(8)
    assert model.dense[0].weight.grad is None


def test_buffers_that_a_forward_pass_makes_for_itself_stay(session: Session) -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "places"):
                self.register_buffer("places", torch.arange(3.0), persistent=False)
            return x + self.places

    assert len(session.evaluate(Positions(), [torch.ones(3)] * 2)) == 2


def test_the_optimizer_is_not_made_inside(session: Session) -> None:
    model = Model(session)
    with pytest.raises(ConfigurationError, match=r"session\.optimizer, which is made when .* inside Session\.evaluate"):
        session.evaluate(model, batches(1), lambda batch: session.optimizer)
    assert session.optimizer.param_groups


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (
            lambda model, batch: (model(each) for each in [batch[0]]),
            "predict returned a generator, which would run when",
        ),
        (lambda model, batch: model.dense[0].weight, r"predict returned a parameter .*\(6, 4\) itself.*detach\(\)"),
        (lambda model, batch: dict(model.dense.named_parameters()), "predict returned a parameter"),
        (lambda model, batch: (1, [model.dense[2].bias]), "predict returned a parameter"),
    ],
)
def test_a_result_that_is_another_one_afterwards_is_an_error(session: Session, predict: Any, words: str) -> None:
    model = Model(session)
    with pytest.raises(ConfigurationError, match=words):
        session.evaluate(model, batches(1), lambda batch: predict(model, batch))


def test_parameters_that_are_evaluated_can_be_returned(session: Session) -> None:
    model = Model(session)
    loss_of(model, batches(1)[0]).backward()
    session.push(8)
    before = model.dense[0].weight.detach().clone()
    found, state = session.evaluate(
        model, batches(1), lambda batch: (model.dense[0].weight.detach(), model.dense.state_dict())
    )[0]
    assert torch.equal(model.dense[0].weight, before), "of training"
    model.part.pull()
    assert torch.equal(found, model.dense[0].weight) and torch.equal(state["0.weight"], found)
    assert not torch.equal(found, before)

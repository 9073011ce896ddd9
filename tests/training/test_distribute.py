"""One line puts a model on the shards. TorchRec's own models are in tests/torchrec; here is what needs none of it."""

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import ecrec  # noqa: E402
from ecrec.errors import ConfigurationError, GradientError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    ReplicatedModule,
    Session,
    distribute,
)


class Model(nn.Module):
    def __init__(self, session: Session) -> None:
        super().__init__()
        tables = [EmbeddingBagConfig(20, 4, "t", init_scale=0.0)]
        self.tables = EmbeddingBagCollection(session, tables, SGD(lr=1.0))
        self.over = nn.Linear(4, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        out: Tensor = self.over(self.tables(features).values())
        return out


FEATURES = KeyedJaggedTensor.from_ids(["t"], torch.tensor([[1, 2]]))


@pytest.fixture
def session() -> Session:
    return InProcessCluster(3).session(code="2+1")


def test_ecrec_has_it() -> None:
    assert ecrec.distribute is distribute


def test_collections_of_ecrecs_stay_and_the_rest_is_replicated(session: Session) -> None:
    model = Model(session)
    before = model.tables
    assert distribute(model, session, dense=SGD(lr=0.5), dense_code="1+2", name="rest") is model
    assert model.tables is before
    part = ReplicatedModule.of(model)
    assert (part.name, str(part.spec.code)) == ("rest", "1+2")
    for _ in range(2):
        model(FEATURES).sum().backward()
        session.push(2)
    part.pull()
    assert model.over.bias.grad is None and session.figures.steps == 2


def test_what_a_module_is_replicated_by_is_found_or_said(session: Session) -> None:
    model = Model(session)
    with pytest.raises(ConfigurationError, match="Model is not replicated as a whole: 0 replicated modules"):
        ReplicatedModule.of(model)
    session.replicate(model.over, SGD(lr=0.5))
    assert ReplicatedModule.of(model.over) is ReplicatedModule.of(model)
    model.other = nn.Linear(1, 1)
    with pytest.raises(ConfigurationError, match="1 replicated modules have parameters of it"):
        ReplicatedModule.of(model)


def test_a_model_is_distributed_once(session: Session) -> None:
    model = distribute(Model(session), session, dense=SGD(lr=0.5))
    with pytest.raises(ConfigurationError, match="is replicated already, as part of 'dense'"):
        distribute(model, session, dense=SGD(lr=0.5), name="again")
    with pytest.raises(ConfigurationError, match="no collections and no parameters that are not on the servers"):
        distribute(model.tables, session, sparse=SGD(lr=0.5))


def test_several_workers_distribute_the_same_model() -> None:
    cluster = InProcessCluster(3)

    def work(rank: int) -> Any:
        with cluster.session(code="2+1", rank=rank, world_size=2, sync=True) as session:
            torch.manual_seed(rank)
            model = distribute(Model(session), session, dense=SGD(lr=0.5))
            for features in session.prefetch([FEATURES] * 3):
                model(features).mean().backward()
                session.push(2)
            return {name: value.clone() for name, value in model.state_dict().items()}

    first, second = in_threads([lambda: work(0), lambda: work(1)])
    assert all(torch.equal(first[name], second[name]) for name in first)


class Deep(nn.Module):
    """Dense layers before and after the tables, a buffer, and tables in two collections."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.under = nn.Linear(3, 4)
        self.register_buffer("shift", torch.zeros(4))
        self.first = EmbeddingBagCollection(session, [EmbeddingBagConfig(20, 4, "t", init_scale=0.0)], SGD(lr=1.0))
        self.second = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 4, "u", init_scale=0.0)], SGD(lr=1.0))
        self.over = nn.Linear(4, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        pooled = self.first(features).values() + self.second(features).values()
        out: Tensor = self.over(self.under(dense) + pooled + self.shift)
        return out


BOTH = KeyedJaggedTensor.from_ids(["t", "u"], torch.tensor([[1, 2], [3, 4]]))
SECOND = "second.embedding_bags.u.weight"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({SECOND: torch.ones(8, 4)}, RuntimeError, r"table 'u' is \(9, 4\) on the servers"),
        ({SECOND: torch.full((9, 4), torch.nan)}, GradientError, "table 'u', row 0, column 0 is nan"),
        ({"over.weight": torch.ones(2, 2)}, RuntimeError, "size mismatch for over.weight"),
        ({"over.weight": None}, RuntimeError, "Missing key.*over.weight"),
        ({SECOND: None}, RuntimeError, f"Missing key.*{SECOND}"),
        ({"more": torch.ones(1)}, RuntimeError, "Unexpected key.*more"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing_of_a_distributed_model(
    session: Session, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = distribute(Deep(session), session, dense=SGD(lr=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(error, match=words):
        model.load_state_dict(state)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    model(torch.ones(2, 3), BOTH).sum().backward()
    session.push(2)  # the model is as if nobody had tried


def test_a_state_that_fits_is_loaded_as_a_whole(session: Session) -> None:
    model = distribute(Deep(session), session, dense=SGD(lr=0.5))
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    ReplicatedModule.of(model).assign()
    del state["over.bias"]
    assert model.load_state_dict({**state, SECOND: torch.zeros(9, 4)}, strict=False).missing_keys == ["over.bias"]
    ReplicatedModule.of(model).assign()
    after = model.state_dict()
    assert not after.pop(SECOND).any() and after.pop("over.bias") is not None
    assert all(torch.equal(value, state[name]) for name, value in after.items())
    model(torch.ones(2, 3), BOTH).sum().backward()
    session.push(2)


def test_other_tensors_cannot_take_the_place_of_parameters(session: Session) -> None:
    model = distribute(Deep(session), session, dense=SGD(lr=0.5))
    state = model.state_dict()
    for part in (model, model.over, model.first, model.first.embedding_bags):
        own = {name: value for name, value in part.state_dict().items()}
        with pytest.raises(ConfigurationError, match=r"load_state_dict\(assign=True\).*leave assign out"):
            part.load_state_dict(own, assign=True)
    model(torch.ones(2, 3), BOTH).sum().backward()
    session.push(2)
    assert list(state) == list(model.state_dict())


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, lambda model: model.to("meta")])
def test_a_distributed_model_is_converted_as_a_whole_or_not_at_all(session: Session, change: Any) -> None:
    model = distribute(Deep(session), session, dense=SGD(lr=0.5))
    with pytest.raises(ConfigurationError, match=r"Deep is on the servers, and stays torch\.float32 on cpu here"):
        change(model)
    assert model.float().cpu().to(torch.float32) is model
    model(torch.ones(2, 3), BOTH).sum().backward()
    session.push(2)
    model.over.double()
    with pytest.raises(ConfigurationError, match=r"parameter over.weight was moved or converted \(torch.float64"):
        model(torch.ones(2, 3), BOTH)


def test_a_copy_of_what_was_dense_is_plain_torch(session: Session) -> None:
    model = distribute(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), session, dense=SGD(lr=0.5))
    model(torch.ones(1, 2)).sum().backward()
    session.push(1)
    state = model.state_dict()
    plain = copy.deepcopy(model).double()
    plain.load_state_dict(state, assign=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).double()
    assert torch.equal(loaded(torch.ones(1, 2).double()), plain.double()(torch.ones(1, 2).double()))
    session.close()
    assert model.double()[0].weight.dtype == torch.float64


# ------------------------------------------------------------------ buffers
def test_layers_that_learn_running_statistics_are_refused_unless_each_worker_has_its_own(session: Session) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigurationError, match=r"'dense': 1 learns running statistics, .*buffers=\"local\""):
        distribute(model, session, dense=SGD(lr=0.5))
    with pytest.raises(ConfigurationError, match="buffers is 'some', expected 'constant' or 'local'"):
        distribute(model, session, dense=SGD(lr=0.5), buffers="some")
    distribute(model, session, dense=SGD(lr=0.5), buffers="local")
    for _ in range(2):
        model(torch.rand(4, 2)).pow(2).sum().backward()
        session.push(4)
    assert int(model[1].num_batches_tracked) == 2


def test_running_statistics_that_stand_still_are_taken(session: Session) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval())
    distribute(model, session, dense=SGD(lr=0.5))
    model(torch.rand(4, 2)).pow(2).sum().backward()
    session.push(4)
    model.train()
    model(torch.rand(4, 2)).pow(2).sum().backward()
    with pytest.raises(ConfigurationError, match="'dense': 1 learns running statistics"):
        session.push(4)


class Counting(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(2, 1), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("in_place", [True, False])
def test_a_buffer_that_training_changes_is_named(session: Session, in_place: bool) -> None:
    model = distribute(Counting(in_place), session, dense=SGD(lr=0.5))
    model(torch.rand(4, 2)).sum().backward()
    with pytest.raises(ConfigurationError, match="buffer calls was changed since the last push, and servers keep no"):
        session.push(4)
    session.discard()
    model.load_state_dict({**model.state_dict(), "calls": torch.tensor(7.0)})
    ReplicatedModule.of(model).assign()
    model.layer(torch.rand(4, 2)).sum().backward()
    session.push(4)


@pytest.mark.parametrize(
    "options", [{"code": "2+1"}, {"seed": 3}, {"replicated_rows_max": 10}, {"sparse": SGD(lr=1.0)}]
)
def test_options_of_tables_are_refused_where_none_are_made(session: Session, options: dict[str, Any]) -> None:
    """Collections of ecrec's are made with their own."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}= would have no effect: the model has"):
        distribute(Model(session), session, dense=SGD(lr=0.5), **options)


def test_each_table_of_a_collection_may_have_its_optimizer(session: Session) -> None:
    configs = [EmbeddingBagConfig(20, 4, name, init_scale=0.0) for name in "ab"]
    for given, words in (
        ({"a": SGD(lr=1.0)}, "optimizer lacks b; the tables are a, b"),
        ({"a": SGD(lr=1.0), "b": SGD(lr=1.0), "c": SGD(lr=1.0)}, "optimizer names c; the tables are a, b"),
        ({"a": SGD(lr=1.0), "b": 3}, "optimizer of table 'b' is 3, expected one of"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            EmbeddingBagCollection(session, configs, given)  # type: ignore[arg-type]
    sparse = EmbeddingBagCollection(session, configs, {"b": SGD(lr=2.0), "a": SGD(lr=1.0)})
    features = KeyedJaggedTensor.from_ids(["a", "b"], torch.tensor([[1], [1]]))
    sparse(features).values().sum().backward()
    session.push(1)
    assert sparse(features).values().tolist() == [[-1.0] * 4 + [-2.0] * 4]


@pytest.mark.parametrize("code", [3, (3, 1), 2.5, b"2+1"])
def test_a_code_that_is_none_says_what_one_is(code: Any) -> None:
    cluster = InProcessCluster(3)
    session = cluster.session()
    config = EmbeddingBagConfig(20, 4, "t")
    words = r"code .*: expected a text, K\+R, for example '4\+1'"
    for call in (
        lambda: cluster.session(code=code),
        lambda: EmbeddingBagCollection(session, [config], SGD(lr=1.0), code=code),
        lambda: EmbeddingBagCollection(session, [config], SGD(lr=1.0), table_codes={"t": code}),
        lambda: session.replicate(nn.Linear(2, 2), SGD(lr=1.0), code=code),
        lambda: ecrec.local_cluster(shards=3, code=code).__enter__(),
        lambda: ecrec.connect("tcp://127.0.0.1:1", code=code),
    ):
        with pytest.raises(ConfigurationError, match=words):
            call()

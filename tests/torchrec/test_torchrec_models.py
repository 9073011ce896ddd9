"""TorchRec's models, unchanged, on the shards after one line: every step is that of torch in this process."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from in_process import InProcessCluster
from torch import Tensor, nn
from torchrec_package import (
    DLRM,
    DLRM_DCN,
    MLP,
    DLRM_Projection,
    DLRMTrain,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
    SimpleDeepFMNN,
    batch,
)

import ecrec
from ecrec.training import SGD, Adagrad, ReplicatedModule, Session

DIM, DENSE, STEPS = 8, 5, 5


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def collection(**options: Any) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(num_embeddings=40, embedding_dim=DIM, name="users", feature_names=["user"]),
        EmbeddingBagConfig(
            num_embeddings=25, embedding_dim=DIM, name="goods", feature_names=["item", "seen"], pooling=PoolingType.MEAN
        ),
        EmbeddingBagConfig(num_embeddings=7, embedding_dim=DIM, name="days", feature_names=["day"]),
    ]
    return EmbeddingBagCollection(tables=configs, **options)


class TwoTower(nn.Module):
    """As torchrec's example of retrieval."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.ebc = tables
        self.query, self.candidate = MLP(DIM, [6, 4]), MLP(DIM, [6, 4])

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        pooled = self.ebc(features)
        query, candidate = self.query(pooled["user"]), self.candidate(pooled["item"])
        return (query * candidate).sum(dim=1) + dense.sum(dim=1)


class TwoCollections(nn.Module):
    """Pooled bags with weights, and sequences whose rows are summed."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        bags = [EmbeddingBagConfig(num_embeddings=40, embedding_dim=DIM, name="users", feature_names=["user", "seen"])]
        lists = [
            EmbeddingConfig(num_embeddings=40, embedding_dim=DIM, name="words", feature_names=["item", "seen"]),
            EmbeddingConfig(num_embeddings=25, embedding_dim=DIM, name="seen", feature_names=["seen"]),
        ]
        self.bags = EmbeddingBagCollection(tables=bags, is_weighted=True, device=device)
        self.lists = EmbeddingCollection(tables=lists, need_indices=True, device=device)
        self.over = nn.Linear(DIM * 5, 1)

    def forward(self, dense: Tensor, features: tuple[KeyedJaggedTensor, KeyedJaggedTensor]) -> Tensor:
        weighted, plain = features
        parts = [self.bags(weighted).values()]
        sequences = self.lists(plain)
        assert list(sequences) == ["item", "seen@words", "seen@seen"]
        for part in sequences.values():
            assert part.weights().dtype == torch.int64
            parts.append(part.to_padded_dense(3).sum(dim=1))
        out: Tensor = self.over(torch.cat(parts, dim=1)).squeeze(1)
        return out + dense.sum(dim=1)


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "DLRM": lambda tables: DLRM(tables, DENSE, [6, DIM], [5, 1]),
    "DLRM_DCN": lambda tables: DLRM_DCN(tables, DENSE, [6, DIM], [5, 1], dcn_num_layers=2, dcn_low_rank_dim=4),
    "DLRM_Projection": lambda tables: DLRM_Projection(tables, DENSE, [6, DIM], [5, 1], [4 * DIM], [4 * DIM]),
    "SimpleDeepFMNN": lambda tables: SimpleDeepFMNN(DENSE, tables, hidden_layer_size=6, deep_fm_dimension=4),
    "TwoTower": TwoTower,
}


def batches(features: Callable[[int], Any] = batch) -> list[tuple[Tensor, Any, Tensor]]:
    draw = torch.Generator().manual_seed(7)
    return [
        (torch.rand(8, DENSE, generator=draw), features(i), (torch.rand(8, generator=draw) < 0.4).float())
        for i in range(STEPS)
    ]


def loss_of(model: nn.Module, dense: Tensor, features: Any, labels: Tensor) -> Tensor:
    logits = model(dense, features)
    return nn.functional.binary_cross_entropy_with_logits(logits.reshape(-1), labels)


def trained_by_torch(model: nn.Module, data: Any, kind: Any, lr: float) -> list[float]:
    optimizer, losses = kind(model.parameters(), lr=lr), []
    for each in data:
        optimizer.zero_grad()
        loss = loss_of(model, *each)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(model: nn.Module, session: Session, data: Any, prefetched: bool) -> list[float]:
    losses = []
    for each in session.prefetch(data, features=lambda each: each[1]) if prefetched else data:
        loss = loss_of(model, *each)
        loss.backward()
        session.push(8)
        losses.append(loss.item())
    return losses


def check_equal(model: nn.Module, expected: nn.Module) -> None:
    found, reference = model.state_dict(), expected.state_dict()
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_in_one_process(session: Session, name: str, prefetched: bool) -> None:
    torch.manual_seed(3)
    model = MODELS[name](collection())
    expected = copy.deepcopy(model)
    ours, theirs = (Adagrad(lr=0.1), torch.optim.Adagrad) if prefetched else (SGD(lr=0.1), torch.optim.SGD)
    assert ecrec.distribute(model, session, sparse=ours, dense=ours) is model
    assert not any(isinstance(part, EmbeddingBagCollection) for part in model.modules())
    check_equal(model, expected)
    losses = trained(model, session, batches(), prefetched)
    torch.testing.assert_close(losses, trained_by_torch(expected, batches(), theirs, 0.1))
    check_equal(model, expected)


def test_weighted_bags_and_sequences_train_as_in_one_process(session: Session) -> None:
    torch.manual_seed(3)
    model = TwoCollections()
    expected = copy.deepcopy(model)

    def features(seed: int) -> Any:
        return batch(seed, ("seen", "user", "item"), weighted=True), batch(seed, ("seen", "item"))

    ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    losses = trained(model, session, batches(features), prefetched=True)
    torch.testing.assert_close(losses, trained_by_torch(expected, batches(features), torch.optim.SGD, 0.1))
    check_equal(model, expected)


def test_torchrecs_training_wrapper_and_a_shard_that_dies() -> None:
    cluster = InProcessCluster(3)
    torch.manual_seed(3)
    model = DLRMTrain(MODELS["DLRM"](collection()))
    expected = copy.deepcopy(model)

    class Of:
        def __init__(self, dense: Tensor, features: Any, labels: Tensor) -> None:
            self.dense_features, self.sparse_features, self.labels = dense, features, labels

    with cluster.session(code="2+1") as session:
        ecrec.distribute(model, session, sparse=Adagrad(lr=0.1), dense=Adagrad(lr=0.1))
        optimizer = torch.optim.Adagrad(expected.parameters(), lr=0.1)
        for i, each in enumerate(batches()):
            if i == 2:
                cluster.kill(1)
            loss, _ = model(Of(*each))
            loss.backward()
            session.push()
            optimizer.zero_grad()
            expected(Of(*each))[0].backward()
            optimizer.step()
        check_equal(model, expected)


def test_a_model_on_meta_begins_with_the_ranges_of_its_configs(session: Session) -> None:
    tables = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                num_embeddings=40, embedding_dim=DIM, name="users", feature_names=["user"],
                weight_init_min=1.0, weight_init_max=3.0,
            ),
            EmbeddingBagConfig(num_embeddings=25, embedding_dim=DIM, name="goods", feature_names=["item"]),
            EmbeddingBagConfig(
                num_embeddings=7, embedding_dim=DIM, name="days", feature_names=["day"], init_fn=nn.init.ones_
            ),
        ],
    )  # fmt: skip
    tables.embedding_bags["days"].requires_grad_(False)
    model = MODELS["DLRM"](tables)
    model.eval()
    ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1), table_codes={"days": "1+1"}, seed=3)
    prefix = "sparse_arch.embedding_bag_collection.embedding_bags"
    state = model.state_dict()
    users, goods, days = (state[f"{prefix}.{name}.weight"] for name in ("users", "goods", "days"))
    assert 1.0 <= float(users.min()) < 1.2 < 2.8 < float(users.max()) <= 3.0
    assert 0.15 < float(goods.abs().max()) <= 0.2 and float(goods.min()) < 0
    assert torch.equal(days, torch.ones(7, DIM))
    made = model.sparse_arch.embedding_bag_collection
    assert not made.training and [str(spec.code) for spec in made.specs] == ["2+1", "2+1", "1+1"]
    trained(model.train(), session, batches(), prefetched=False)
    state = model.state_dict()
    assert torch.equal(state[f"{prefix}.days.weight"], days), "it is frozen"
    assert not torch.equal(state[f"{prefix}.goods.weight"], goods)


def test_a_collection_alone_is_a_model(session: Session) -> None:
    theirs = collection()
    expected = copy.deepcopy(theirs)
    made: Any = ecrec.distribute(theirs, session, sparse=SGD(lr=0.1))
    assert isinstance(theirs, EmbeddingBagCollection) and not isinstance(made, EmbeddingBagCollection)
    out, reference = made(batch(1)), expected(batch(1))
    assert isinstance(out, KeyedTensor) and out.keys() == reference.keys()
    torch.testing.assert_close(out.values(), reference.values())
    assert [config.name for config in made.embedding_bag_configs()] == ["users", "goods", "days"]


def test_a_collection_that_is_used_twice_is_replaced_once(session: Session) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = collection()
            self.rest = nn.ModuleList([self.first, nn.Linear(3, 1)])

    model: Any = ecrec.distribute(Both(), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert model.first is model.rest[0]
    model.first(batch(0)).values().sum().backward()
    model.rest[0](batch(0)).values().sum().backward()
    session.push()


def test_a_state_dict_is_loaded_and_the_dense_part_assigned(session: Session) -> None:
    torch.manual_seed(1)
    other = MODELS["DLRM"](collection())
    model = ecrec.distribute(MODELS["DLRM"](collection()), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    trained(model, session, batches(), prefetched=False)
    model.load_state_dict(other.state_dict())
    ReplicatedModule.of(model).assign()
    torch.testing.assert_close(
        trained(model, session, batches(), prefetched=True),
        trained_by_torch(other, batches(), torch.optim.SGD, 0.1),
    )


def test_a_worker_that_is_started_again_and_a_reader_have_what_was_trained() -> None:
    cluster = InProcessCluster(3)

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return MODELS["DLRM"](collection())

    def distributed(session: Session, seed: int) -> nn.Module:
        return ecrec.distribute(model(seed), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))

    expected = model(1)
    with cluster.session(code="2+1") as session:
        trained(distributed(session, 1), session, batches(), prefetched=False)
    trained_by_torch(expected, batches(), torch.optim.SGD, 0.1)
    with cluster.session(code="2+1") as session:
        again = distributed(session, 2)  # its own weights are others
        check_equal(again, expected)
        with cluster.session(read_only=True) as reader, torch.no_grad():
            theirs = distributed(reader, 3)
            dense, features, _ = batches()[0]
            torch.testing.assert_close(theirs(dense, features), expected(dense, features))
        trained(again, session, batches(), prefetched=True)
        trained_by_torch(expected, batches(), torch.optim.SGD, 0.1)
        check_equal(again, expected)


@pytest.mark.parametrize("prefetched", [False, True])
def test_weights_by_position_that_a_feature_processor_learns_get_gradients(session: Session, prefetched: bool) -> None:
    from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
    from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = EmbeddingBagConfig(
                num_embeddings=25, embedding_dim=DIM, name="goods", feature_names=["item", "seen"]
            )
            positions = PositionWeightedModuleCollection({"item": 5, "seen": 5}, device=torch.device("cpu"))
            for weight in positions.parameters():
                nn.init.uniform_(weight, 0.5, 2.0)
            bags = EmbeddingBagCollection(tables=[config], is_weighted=True)
            self.bags = FeatureProcessedEmbeddingBagCollection(bags, positions)
            self.over = nn.Linear(2 * DIM, 1)

        def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
            out: Tensor = self.over(self.bags(features).values()).squeeze(1)
            return out + dense.sum(dim=1)

    torch.manual_seed(3)
    model = Model()
    expected = copy.deepcopy(model)
    ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))

    def features(seed: int) -> KeyedJaggedTensor:
        return batch(seed, ("item", "seen"))

    losses = trained(model, session, batches(features), prefetched)
    torch.testing.assert_close(losses, trained_by_torch(expected, batches(features), torch.optim.SGD, 0.1))
    check_equal(model, expected)

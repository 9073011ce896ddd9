"""What a table is: fields and meanings are TorchRec's, and what is not supported is refused by name."""

import enum
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster, in_threads  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError, RefusedError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    PoolingType,
    Session,
)

ROWS, DIM = 60, 4


@pytest.fixture
def session() -> Session:
    return InProcessCluster(3).session(code="2+1")


def weights(tables: Any, name: str = "t") -> Any:
    """A table as it is on the shards."""
    prefix = "embedding_bags" if isinstance(tables, EmbeddingBagCollection) else "embeddings"
    return tables.state_dict()[f"{prefix}.{name}.weight"]


def of(session: Session, **fields: Any) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "t", **fields)], SGD(lr=1.0), seed=5)


def test_the_order_of_the_fields_is_torchrecs() -> None:
    config = EmbeddingBagConfig(9, 4, "t", "FP32", ["f"], 0.5, -0.5, None, None, False)
    assert (config.num_embeddings, config.embedding_dim, config.name, config.feature_names) == (9, 4, "t", ["f"])
    assert (config.get_weight_init_max(), config.get_weight_init_min(), config.pooling) == (0.5, -0.5, PoolingType.SUM)
    assert EmbeddingConfig(16, 4, "t").get_weight_init_max() == 0.25
    assert not hasattr(EmbeddingConfig(16, 4, "t"), "pooling")


def test_a_table_without_features_is_its_own_feature(session: Session) -> None:
    sparse = of(session)
    assert sparse.feature_names == ["t"] and sparse.embedding_bag_configs()[0].feature_names == ["t"]


class TheirType(enum.Enum):
    """As TorchRec's."""

    FP32 = "FP32"
    FP16 = "FP16"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_type": TheirType.FP16}, "data_type is .*FP16.*, expected FP32"),
        ({"data_type": "INT8"}, "data_type is 'INT8', expected FP32"),
        ({"need_pos": True}, "need_pos is True, and there are no position weights: expected False"),
        ({"num_embeddings_post_pruning": 7}, "num_embeddings_post_pruning is 7, and tables are not pruned"),
        ({"use_virtual_table": True}, "use_virtual_table is True"),
        ({"total_num_buckets": 3}, "total_num_buckets is 3"),
        ({"input_dim": 3}, "input_dim is 3"),
        ({"virtual_table_eviction_policy": "any"}, "virtual_table_eviction_policy is 'any'"),
        ({"enable_embedding_update": True}, "enable_embedding_update is True"),
        ({"stash_weights": True}, "stash_weights is True"),
        (
            {"weight_init_max": float("nan")},
            "weight_init_min -0.129.* and weight_init_max nan: expected finite numbers",
        ),
        ({"weight_init_min": 2.0, "weight_init_max": 1.0}, "weight_init_min 2.0 and weight_init_max 1.0"),
        ({"init_fn": 3}, "init_fn is 3, expected a function"),
        ({"init_scale": 1.0, "weight_init_max": 1.0}, "init_scale and weight_init_min.*expected one of them"),
        ({"init_scale": 1.0, "init_fn": nn.init.ones_}, "init_scale and .*init_fn: expected one of them"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(session: Session, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"table t: {words}"):
        of(session, **fields)
    assert not session.machine.tables, "nothing was made"


@pytest.mark.parametrize("data_type", ["FP32", TheirType.FP32, torch.float32])
def test_fp32_is_taken_however_it_is_said(session: Session, data_type: Any) -> None:
    of(session, data_type=data_type)


def test_what_is_no_config_is_refused(session: Session) -> None:
    bags, sequences = EmbeddingBagConfig(9, 4, "t"), EmbeddingConfig(9, 4, "t")
    for kind, given in (
        (EmbeddingBagCollection, sequences),
        (EmbeddingCollection, bags),
        (EmbeddingBagCollection, "t"),
        (EmbeddingCollection, SimpleNamespace(num_embeddings=3, name="t")),
    ):
        with pytest.raises(ConfigurationError, match=r"a table is .*, expected Embedding(Bag)?Config"):
            kind(session, [given], SGD(lr=1.0))  # type: ignore[operator]


def test_a_config_of_another_class_with_the_same_fields_will_do(session: Session) -> None:
    given = SimpleNamespace(
        num_embeddings=9, embedding_dim=4, name="t", feature_names=["f"], pooling=TheirPooling.MEAN, init_fn=None
    )
    sparse = EmbeddingBagCollection(session, [given], SGD(lr=1.0))  # type: ignore[list-item]
    (config,) = sparse.embedding_bag_configs()
    assert isinstance(config, EmbeddingBagConfig) and PoolingType.of(config.pooling) is PoolingType.MEAN


class TheirPooling(enum.Enum):
    MEAN = "MEAN"


# ------------------------------------------------------------------ first weights
@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"weight_init_min": -0.5, "weight_init_max": 0.5}, -0.5, 0.5),
        ({"init_fn": partial(nn.init.uniform_, a=-0.5, b=0.5)}, -0.5, 0.5),
        ({"init_scale": 0.5}, -0.5, 0.5),
        ({}, -(ROWS**-0.5), ROWS**-0.5),
        ({"weight_init_min": 1.0, "weight_init_max": 3.0}, 1.0, 3.0),
        ({"init_fn": nn.init.uniform_}, 0.0, 1.0),
        ({"weight_init_max": 2.0}, -(ROWS**-0.5), 2.0),
    ],
)
def test_first_weights_are_uniform_in_the_range(
    session: Session, fields: dict[str, Any], low: float, high: float
) -> None:
    found = weights(of(session, **fields))
    assert low <= float(found.min()) < low + (high - low) / 10
    assert high - (high - low) / 10 < float(found.max()) <= high
    assert abs(float(found.mean()) - (low + high) / 2) < (high - low) / 10


@pytest.mark.parametrize("fields", [{"init_fn": nn.init.zeros_}, {"init_scale": 0.0}])
def test_first_weights_may_be_zero(session: Session, fields: dict[str, Any]) -> None:
    sparse = of(session, **fields)
    assert not weights(sparse).any() and session.figures.bytes_pushed == 0


def test_init_fn_fills_the_table_and_the_seed_gives_what_it_draws(session: Session) -> None:
    kind = partial(nn.init.normal_, mean=3.0, std=0.1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(of(session, init_fn=kind))
    assert torch.equal(torch.get_rng_state(), before), "the generator of the script is left alone"
    assert 2.9 < float(first.mean()) < 3.1 and float(first.std()) > 0.05
    torch.manual_seed(2)
    assert torch.equal(weights(of(InProcessCluster(5).session(code="4+1"), init_fn=kind)), first)
    rows = torch.arange(ROWS * DIM, dtype=torch.float32).reshape(ROWS, DIM)
    other = EmbeddingCollection(
        session, [EmbeddingConfig(ROWS, DIM, "other", init_fn=lambda table: table.copy_(rows))], SGD(lr=1.0)
    )
    assert torch.equal(weights(other, "other"), rows)


def test_an_init_fn_that_fails_says_of_which_table(session: Session) -> None:
    with pytest.raises(ConfigurationError, match=r"table t: its init_fn failed: Only tensors with 3, 4, or 5"):
        of(session, init_fn=nn.init.dirac_)


def test_weights_are_given_and_written_once(session: Session) -> None:
    given = torch.randn(ROWS, DIM)
    config = EmbeddingBagConfig(ROWS, DIM, "t")
    sparse = EmbeddingBagCollection(session, [config], SGD(lr=1.0), weights={"t": given})
    assert torch.equal(weights(sparse), given)
    sparse.load_state_dict({"embedding_bags.t.weight": given + 1})
    del sparse
    again = EmbeddingBagCollection(session, [config], SGD(lr=1.0), weights={"t": torch.randn(ROWS, DIM)})
    assert torch.equal(weights(again), given + 1), "what was trained is not overwritten"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"u": torch.zeros(ROWS, DIM)}, "weights names u; the tables are t"),
        ({"t": torch.zeros(ROWS, DIM + 1)}, r"weights are torch.float32 \(60, 5\) on cpu, expected float32 \(60, 4\)"),
        ({"t": torch.zeros(ROWS, DIM, device="meta")}, "on meta"),
        ({"t": torch.zeros(ROWS, DIM, dtype=torch.int64)}, "weights are torch.int64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(session: Session, given: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "t")], SGD(lr=1.0), weights=given)


def test_a_table_that_servers_began_is_not_begun_again_with_other_weights(session: Session) -> None:
    sparse = of(session)
    del sparse
    with pytest.raises(RefusedError, match="init_seed is"):
        of(session, init_fn=nn.init.ones_)


def test_an_init_fn_of_a_huge_table_is_refused_with_advice(session: Session) -> None:
    config = EmbeddingBagConfig(1 << 30, 64, "t", init_fn=nn.init.ones_)
    with pytest.raises(
        ConfigurationError, match=r"first weights are 274.9 GB, and of more than 1.1 GB the servers draw"
    ):
        EmbeddingBagCollection(session, [config], SGD(lr=1.0))


def test_worker_0_writes_what_all_workers_then_have() -> None:
    cluster = InProcessCluster(3)

    def work(rank: int) -> Any:
        session = cluster.session(code="2+1", rank=rank, world_size=2)
        given = torch.full((ROWS, DIM), float(rank + 1))
        sparse = EmbeddingBagCollection(
            session, [EmbeddingBagConfig(ROWS, DIM, "t")], SGD(lr=1.0), weights={"t": given}
        )
        return weights(sparse)

    for found in in_threads([lambda: work(0), lambda: work(1)]):
        assert torch.equal(found, torch.ones(ROWS, DIM))


@pytest.mark.parametrize("device", [None, "cpu", "meta", torch.device("cpu")])
def test_a_device_is_taken_as_torchrec_does(session: Session, device: Any) -> None:
    sparse = EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "t")], SGD(lr=1.0), device=device)
    assert sparse.device == torch.device("cpu")


def test_another_device_is_refused(session: Session) -> None:
    with pytest.raises(ConfigurationError, match="device is cuda; tables are on the servers, and looked up on the CPU"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(ROWS, DIM, "t")], SGD(lr=1.0), device="cuda")


def reshape(weights: Any) -> None:
    weights.data = torch.ones(ROWS + 1, DIM)


@pytest.mark.parametrize("fill", [torch.ones_like, reshape, lambda weights: weights[1:].fill_(1.0)])
def test_an_init_fn_that_does_not_fill_the_tensor_is_refused(session: Session, fill: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"table t: its init_fn left .*fills the tensor .* in place"):
        of(session, init_fn=fill)


def fill_low(weights: torch.Tensor) -> None:
    weights.fill_(1.0)


def fill_high(weights: torch.Tensor) -> None:
    weights.fill_(2.0)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"pooling": PoolingType.MEAN}, "pooling is SUM, not MEAN"),
        ({"feature_names": ["a", "b"]}, {"feature_names": ["b", "a"]}, "features is a, b, not b, a"),
        ({"feature_names": ["a"]}, {}, "features is a, not t"),
        ({"init_fn": fill_low}, {"init_fn": fill_high}, "first_values is init_fn fill_low, not init_fn fill_high"),
        (
            {"init_fn": partial(nn.init.normal_, std=0.1)},
            {"init_fn": partial(nn.init.normal_, std=0.2)},
            r"first_values is init_fn normal_\(std=0.1\), not init_fn normal_\(std=0.2\)",
        ),
        (
            {"weight_init_min": 0.0, "weight_init_max": 1.0},
            {"weight_init_min": 0.0, "weight_init_max": 2.0},
            "first_values is uniform from 0.0 to 1.0, not uniform from 0.0 to 2.0",
        ),
        (
            {"init_fn": fill_low},
            {},
            ".*init_fn fill_low, not drawn by the servers.*init_seed stands for",
        ),
    ],
)
def test_workers_that_disagree_about_a_table_are_told_in_what(
    first: dict[str, Any], second: dict[str, Any], words: str
) -> None:
    cluster = InProcessCluster(3)
    of(cluster.session(code="2+1", rank=0, world_size=2), **first)
    other = cluster.session(code="2+1", rank=1, world_size=2)
    with pytest.raises(RefusedError, match=rf"table 't' exists with other properties: {words}.*this worker asked for"):
        of(other, **second)
    of(other, **first)


def test_workers_that_disagree_about_the_kind_of_a_collection_are_told() -> None:
    cluster = InProcessCluster(3)
    of(cluster.session(code="2+1", rank=0, world_size=2))
    other = cluster.session(code="2+1", rank=1, world_size=2)
    with pytest.raises(RefusedError, match="pooling is SUM, not none"):
        EmbeddingCollection(other, [EmbeddingConfig(ROWS, DIM, "t")], SGD(lr=1.0), seed=5)
    with pytest.raises(RefusedError, match="pooling is SUM, not SUM with weights of ids"):
        EmbeddingBagCollection(other, [EmbeddingBagConfig(ROWS, DIM, "t")], SGD(lr=1.0), True, seed=5)


def test_a_reader_pools_as_the_table_was_trained_or_looks_at_rows_alone() -> None:
    cluster = InProcessCluster(3)
    of(cluster.session(code="2+1"))
    reader = cluster.session(read_only=True)
    with pytest.raises(ConfigurationError, match="'t' was trained with pooling SUM on the cluster, not MEAN"):
        of(reader, pooling=PoolingType.MEAN)
    rows = EmbeddingCollection(reader, [EmbeddingConfig(ROWS, DIM, "t")], SGD(lr=1.0))
    assert weights(rows).shape == (ROWS, DIM)


def test_many_features_are_compared_by_their_digest() -> None:
    cluster = InProcessCluster(3)
    names = [f"feature_{i}" for i in range(500)]
    of(cluster.session(code="2+1", rank=0, world_size=2), feature_names=names)
    other = cluster.session(code="2+1", rank=1, world_size=2)
    with pytest.raises(RefusedError, match=r"features is feature_0, .* \(SHA-256 .*, not feature_0, .* \(SHA-256"):
        of(other, feature_names=[*names[:-1], "another"])
    of(other, feature_names=names)

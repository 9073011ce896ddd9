"""Embedding tables on shards against ``torch.nn.EmbeddingBag`` in this process."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError, RefusedError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    PoolingType,
    RowWiseAdagrad,
    Session,
)

CONFIGS = [
    EmbeddingBagConfig(40, 8, "users", feature_names=["user"], pooling=PoolingType.SUM),
    EmbeddingBagConfig(25, 4, "items", feature_names=["clicked", "bought"], pooling=PoolingType.MEAN),
    EmbeddingBagConfig(3, 12, "days", feature_names=["day"], pooling=PoolingType.SUM),
]
ROWS = {"user": 40, "clicked": 25, "bought": 25, "day": 3}


@pytest.fixture
def session() -> Session:
    return InProcessCluster(3).session(code="2+1")


def random_batch(rng: np.random.Generator, batch: int = 6, keys: tuple[str, ...] = tuple(ROWS)) -> KeyedJaggedTensor:
    """Bags of 0 to 4 ids, with repeats."""
    lengths = rng.integers(0, 5, (len(keys), batch))
    ids = [rng.integers(0, min(6, ROWS[key]), n) for key, n in zip(keys, lengths.sum(axis=1), strict=True)]
    return KeyedJaggedTensor.from_lengths_sync(
        list(keys), torch.from_numpy(np.concatenate(ids)), torch.from_numpy(lengths.reshape(-1))
    )


def weights(sparse: EmbeddingBagCollection) -> dict[str, nn.EmbeddingBag]:
    """The tables as they are on the shards, as torch's."""
    session = sparse._session
    out = {}
    for config in sparse.embedding_bag_configs():
        keys = sparse.feature_names
        mine = config.feature_names[0]
        size = config.num_embeddings
        lengths = torch.tensor([int(key == mine) for key in keys]).repeat_interleave(size)
        batch = KeyedJaggedTensor.from_lengths_sync(keys, torch.arange(size), lengths)
        with torch.no_grad():
            pooled = sparse(batch).values()
        begin = sum(
            c.embedding_dim * len(c.feature_names)
            for c in sparse.embedding_bag_configs()[: sparse.embedding_bag_configs().index(config)]
        )
        table = pooled[:, begin : begin + config.embedding_dim].clone()
        out[config.name] = nn.EmbeddingBag.from_pretrained(table, freeze=False, mode=config.pooling.value.lower())
    session.pump()
    return out


def reference(tables: dict[str, nn.EmbeddingBag], batch: KeyedJaggedTensor) -> torch.Tensor:
    places = {key: f for f, key in enumerate(batch.keys())}
    size, out = batch.stride(), []
    for config in CONFIGS:
        for name in config.feature_names:
            f = places[name]
            offsets = batch.offsets()[f * size : (f + 1) * size + 1]
            ids = batch.values()[offsets[0] : offsets[-1]]
            out.append(tables[config.name](ids, offsets[:-1] - offsets[0]))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize(("shards", "code"), [(3, "2+1"), (1, "1+0")])
def test_output_and_gradients_are_those_of_torch(shards: int, code: str) -> None:
    session = InProcessCluster(shards).session(code=code)
    rng = np.random.default_rng(1)
    sparse = EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0), seed=3)
    assert sparse.dim == 8 + 4 + 4 + 12
    for _ in range(3):
        tables = weights(sparse)
        batch = random_batch(rng)
        slopes = torch.randn(6, sparse.dim)
        out, expected = sparse(batch).values(), reference(tables, batch)
        torch.testing.assert_close(out, expected)
        (out * slopes).sum().backward()
        (expected * slopes).sum().backward()
        session.push()
        after = weights(sparse)
        for name, table in tables.items():
            torch.testing.assert_close(after[name].weight, table.weight - table.weight.grad)


def test_features_in_another_order_give_the_same(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0))
    batch = random_batch(np.random.default_rng(2), keys=("day", "bought", "user", "clicked"))
    torch.testing.assert_close(sparse(batch).values(), reference(weights(sparse), batch))


def test_first_weights_are_uniform_within_the_scale_and_depend_on_the_seed(session: Session) -> None:
    config = [EmbeddingBagConfig(400, 8, "t", feature_names=["t"])]
    first = weights(EmbeddingBagCollection(session, config, SGD(lr=1.0), seed=1))["t"].weight
    assert 0.04 < float(first.detach().abs().max()) <= 400**-0.5
    other = [EmbeddingBagConfig(400, 8, "t", feature_names=["t"])]
    elsewhere = InProcessCluster(5).session(code="4+1")
    again = weights(EmbeddingBagCollection(elsewhere, other, SGD(lr=1.0), seed=1))["t"].weight
    assert torch.equal(first, again), "the first weights depend on the number of shards"
    third = InProcessCluster(3).session()
    changed = weights(EmbeddingBagCollection(third, other, SGD(lr=1.0), seed=2))["t"].weight
    assert not torch.equal(first, changed)


def test_several_backward_passes_before_a_push_are_one_step(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, CONFIGS, RowWiseAdagrad(lr=0.1))
    other = InProcessCluster(3).session(code="2+1")
    at_once = EmbeddingBagCollection(other, CONFIGS, RowWiseAdagrad(lr=0.1))
    ids = torch.tensor([[1, 2], [3, 3], [4, 5], [0, 1]])
    keys = list(ROWS)
    for column in range(2):
        sparse(KeyedJaggedTensor.from_ids(keys, ids[:, column : column + 1].contiguous())).values().sum().backward()
    session.push()
    at_once(KeyedJaggedTensor.from_ids(keys, ids)).values().sum().backward()
    other.push()
    for name, table in weights(sparse).items():
        torch.testing.assert_close(table.weight, weights(at_once)[name].weight)


def test_an_empty_batch_goes_through(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0))
    batch = KeyedJaggedTensor.from_ids(list(ROWS), torch.zeros((4, 0), dtype=torch.int64))
    assert sparse(batch).values().shape == (0, sparse.dim)
    session.push()


def test_a_missing_feature_and_a_bad_id_are_named(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0))
    with pytest.raises(ValueError, match="lacks features day"):
        sparse(random_batch(np.random.default_rng(0), keys=("user", "clicked", "bought")))
    bad = KeyedJaggedTensor.from_ids(list(ROWS), torch.tensor([[1], [25], [0], [0]]))
    with pytest.raises(IndexError, match="25"):
        sparse(bad)


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ([], "at least one table"),
        (
            [EmbeddingBagConfig(3, 4, "a", feature_names=["f"]), EmbeddingBagConfig(3, 4, "a", feature_names=["g"])],
            "table names",
        ),
        ([EmbeddingBagConfig(3, 4, "a", feature_names=["f", "g", "f"])], "feature_names has f more than once"),
        ([EmbeddingBagConfig(0, 4, "a", feature_names=["f"])], "num_embeddings is 0"),
        ([EmbeddingBagConfig(3, 4, "a", feature_names=["f"], init_scale=-1.0)], "init_scale"),
    ],
)
def test_bad_configs_are_refused(session: Session, configs: list[EmbeddingBagConfig], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EmbeddingBagCollection(session, configs, SGD(lr=1.0))


def test_a_code_that_the_cluster_cannot_hold_is_refused(session: Session) -> None:
    with pytest.raises(RefusedError, match="4\\+1"):
        EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0), code="4+1")


def test_small_tables_are_replicated_and_a_table_may_have_a_code_of_its_own(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, CONFIGS, SGD(lr=1.0), replicated_rows_max=3, table_codes={"items": "1+2"})
    assert [str(spec.code) for spec in sparse.specs] == ["2+1", "1+2", "1+1"]

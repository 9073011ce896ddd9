"""What collections give for features, and what goes back to rows and weights, against torch in this process."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from pooled_by_torch import FEATURES, NAMES, TABLES, bag_configs, batch, pooled, sequence_configs, tables_of  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    KeyedTensor,
    Session,
)


@pytest.fixture
def session() -> Session:
    return InProcessCluster(3).session(code="2+1")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("keys", [("u", "shared", "i", "j"), ("j", "shared", "u", "i")])
def test_pooled_rows_and_their_gradients_are_torchs(session: Session, weighted: bool, keys: tuple[str, ...]) -> None:
    sparse = EmbeddingBagCollection(session, bag_configs(), SGD(lr=1.0), weighted)
    assert sparse.is_weighted() is weighted and sparse.dim == 6 + 6 + 3 + 3 + 3
    assert sparse.feature_names == ["u", "shared", "i", "j", "shared"]
    for seed in range(3):
        features, tables = batch(seed, keys, weighted=weighted), tables_of(sparse)
        out = sparse(features)
        assert isinstance(out, KeyedTensor)
        assert out.keys() == NAMES and out.length_per_key() == [6, 6, 3, 3, 3]
        expected = pooled(tables, features, features.weights_or_none())
        torch.testing.assert_close(out.values(), expected)
        slopes = torch.randn_like(expected)
        (out.values() * slopes).sum().backward()
        (expected * slopes).sum().backward()
        session.push()
        for name, after in tables_of(sparse).items():
            torch.testing.assert_close(after, tables[name] - tables[name].grad)


@pytest.mark.parametrize("keys", [("u", "shared", "i", "j"), ("j", "shared", "u", "i")])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_weights_are_torchs(session: Session, keys: tuple[str, ...], frozen: bool) -> None:
    sparse = EmbeddingBagCollection(session, bag_configs(), SGD(lr=1.0), is_weighted=True)
    sparse.requires_grad_(not frozen)
    given, tables = batch(4, keys, weighted=True), tables_of(sparse)
    mine, theirs = (given.weights().clone().requires_grad_() for _ in range(2))
    features = KeyedJaggedTensor(given.keys(), given.values(), mine * 2, lengths=given.lengths())
    out, expected = sparse(features).values(), pooled(tables, given, theirs * 2)
    slopes = torch.randn_like(expected)
    (out * slopes).sum().backward()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    session.push()
    for name, after in tables_of(sparse).items():
        torch.testing.assert_close(after, tables[name] if frozen else tables[name] - tables[name].grad)


def test_weights_that_change_in_place_before_the_backward_pass_are_torchs_error(session: Session) -> None:
    sparse = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "t")], SGD(lr=1.0), is_weighted=True)
    features = KeyedJaggedTensor(["t"], torch.tensor([1, 2]), torch.ones(2), lengths=torch.tensor([2]))
    out = sparse(features).values().sum()
    features.weights().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_weights_are_there_where_they_are_expected_and_nowhere_else(session: Session) -> None:
    weighted = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "w")], SGD(lr=1.0), is_weighted=True)
    plain = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "p")], SGD(lr=1.0))
    ids = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="the collection is_weighted, and the batch has no weights"):
        weighted(KeyedJaggedTensor(["w"], ids, lengths=torch.tensor([2])))
    with pytest.raises(ValueError, match=r"no effect here: leave them out, or pool with.*is_weighted=True"):
        plain(KeyedJaggedTensor(["p"], ids, torch.ones(2), lengths=torch.tensor([2])))
    with pytest.raises(TypeError, match=r"weights of ids are torch.int64, expected floats"):
        weighted(KeyedJaggedTensor(["w"], ids, ids, lengths=torch.tensor([2])))
    half = KeyedJaggedTensor(["w"], ids, torch.ones(2, dtype=torch.float64), lengths=torch.tensor([2]))
    assert weighted(half).values().dtype == torch.float32


@pytest.mark.parametrize("keys", [("u", "shared", "i", "j"), ("j", "shared", "u", "i")])
@pytest.mark.parametrize("need_indices", [False, True])
def test_rows_of_sequences_and_their_gradients_are_torchs(
    session: Session, keys: tuple[str, ...], need_indices: bool
) -> None:
    sparse = EmbeddingCollection(session, sequence_configs(), SGD(lr=1.0), need_indices=need_indices)
    assert sparse.embedding_dim() == 5 and sparse.need_indices() is need_indices
    assert sparse.embedding_names_by_table() == [["u", "shared@users"], ["i", "j", "shared@items"]]
    assert [config.name for config in sparse.embedding_configs()] == ["users", "items"]
    assert [name for name, _ in sparse.named_parameters()] == ["embeddings.users.weight", "embeddings.items.weight"]
    for seed in range(3):
        features, tables = batch(seed, keys), tables_of(sparse)
        out = sparse(features)
        assert list(out) == NAMES
        loss, expected_loss = torch.zeros(()), torch.zeros(())
        for name, part in out.items():
            feature, _, table = name.partition("@")
            table = table or next(t for t, (_, _, names, _) in TABLES.items() if feature in names)
            expected = nn.functional.embedding(features[feature].values(), tables[table])
            assert torch.equal(part.values(), expected)
            assert torch.equal(part.lengths(), features[feature].lengths())
            ids = part.weights_or_none()
            assert (ids is not None and torch.equal(ids, features[feature].values())) if need_indices else ids is None
            slopes = torch.randn_like(expected)
            loss, expected_loss = loss + (part.values() * slopes).sum(), expected_loss + (expected * slopes).sum()
        loss.backward()
        expected_loss.backward()
        session.push()
        for name, after in tables_of(sparse).items():
            torch.testing.assert_close(after, tables[name] - tables[name].grad)


def test_an_empty_batch_of_sequences(session: Session) -> None:
    sparse = EmbeddingCollection(session, sequence_configs(), SGD(lr=1.0))
    for features in (
        KeyedJaggedTensor.from_ids(list(FEATURES), torch.zeros(4, 0, dtype=torch.int64)),
        KeyedJaggedTensor(
            list(FEATURES), torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(12, dtype=torch.int64)
        ),
    ):
        out = sparse(features)
        assert all(part.values().shape == (0, 5) for part in out.values())
        assert [len(part.lengths()) for part in out.values()] == [features.stride()] * 5
        sum(part.values().sum() for part in out.values()).backward()
        session.push()


def test_tables_of_sequences_have_one_dim(session: Session) -> None:
    with pytest.raises(ConfigurationError, match=r"have one embedding_dim, found \{'a': 3, 'b': 4\}"):
        EmbeddingCollection(session, [EmbeddingConfig(9, 3, "a"), EmbeddingConfig(9, 4, "b")], SGD(lr=1.0))


def test_sequences_take_no_weights(session: Session) -> None:
    sparse = EmbeddingCollection(session, [EmbeddingConfig(9, 3, "a")], SGD(lr=1.0))
    with pytest.raises(ValueError, match="a weight for each id, which would have no effect here"):
        sparse(KeyedJaggedTensor(["a"], torch.tensor([1]), torch.ones(1), lengths=torch.tensor([1])))


@pytest.mark.parametrize("trained", [("users",), ("items",), ()])
def test_frozen_tables_of_sequences_stand_still(session: Session, trained: tuple[str, ...]) -> None:
    sparse = EmbeddingCollection(session, sequence_configs(), SGD(lr=1.0))
    for name, parameter in sparse.named_parameters():
        parameter.requires_grad_(name.split(".")[1] in trained)
    before = tables_of(sparse)
    loss = sum(part.values().sum() for part in sparse(batch(1)).values())
    assert loss.requires_grad is bool(trained)
    if trained:
        loss.backward()
    session.push()
    assert {name for name, after in tables_of(sparse).items() if not torch.equal(after, before[name])} == set(trained)


def test_several_batches_of_features_go_to_the_collections_that_have_them(session: Session) -> None:
    """One batch has ids and weighted ids of the same names, as TorchRec's examples of sparse networks."""
    plain = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "p", feature_names=["f"])], SGD(lr=1.0))
    weighted = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "w", feature_names=["f"])], SGD(lr=1.0), True)
    lists = EmbeddingCollection(session, [EmbeddingConfig(9, 2, "l", feature_names=["g"])], SGD(lr=1.0))
    one, ids = torch.ones(2, dtype=torch.int64), torch.tensor([1, 2])
    batches = (
        KeyedJaggedTensor(["f"], ids, lengths=one),
        KeyedJaggedTensor(["f"], ids, torch.full((2,), 0.5), lengths=one),
        KeyedJaggedTensor(["g", "h"], ids, lengths=one),
    )
    for features in session.prefetch([batches]):
        pulled = session.figures.bytes_pulled
        out = plain(features[0]).values().sum() + weighted(features[1]).values().sum()
        (out + lists(features[2])["g"].values().sum()).backward()
        assert session.figures.bytes_pulled == pulled, "all rows were there"
        session.push()
    with pytest.raises(ValueError, match=r"none of the 1 KeyedJaggedTensors of the batch has features f, expected one"):
        next(session.prefetch([(batches[2],)], plain))
    with pytest.raises(ValueError, match=r"2 of the 2 KeyedJaggedTensors of the batch have features f, expected one"):
        next(session.prefetch([(batches[0], batches[0])], plain))


@pytest.mark.parametrize("features", [torch.zeros(3), None, {"f": torch.zeros(1)}])
def test_what_are_no_features_is_said(session: Session, features: Any) -> None:
    sparse = EmbeddingBagCollection(session, [EmbeddingBagConfig(9, 2, "p")], SGD(lr=1.0))
    with pytest.raises(TypeError, match=r"features are .*, expected a KeyedJaggedTensor"):
        sparse(features)

"""Models of TorchRec that cannot be put on the shards as they are: an error by name, and the model is as it was."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from in_process import InProcessCluster
from torch import nn
from torchrec_package import (
    DataType,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    batch,
)

import ecrec
from ecrec.errors import ConfigurationError, RefusedError
from ecrec.training import SGD, RowWiseAdagrad, Session


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def bags(name: str = "t", rows: int = 9, device: Any = None, **fields: Any) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(num_embeddings=rows, embedding_dim=4, name=name, feature_names=["f"], **fields)
    return EmbeddingBagCollection(tables=[config], device=device)


class Model(nn.Module):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.over = nn.Linear(4, 1)
        for name, part in parts.items():
            setattr(self, name, part)


def with_hook(tables: Any) -> Any:
    tables.register_forward_hook(lambda *_: None)
    return tables


def with_hook_inside(tables: Any) -> Any:
    tables.embedding_bags["t"].register_forward_hook(lambda *_: None)
    return tables


def with_hook_of_weight(tables: Any) -> Any:
    tables.embedding_bags["t"].weight.register_hook(lambda gradient: 2 * gradient)
    return tables


def with_forward(tables: Any) -> Any:
    tables.forward = lambda features: None
    return tables


def with_field(tables: Any, field: str, value: Any) -> Any:
    setattr(tables.embedding_bags["t"], field, value)
    return tables


def tied(tables: Any) -> nn.Module:
    model = Model(tables=tables, other=nn.Embedding(9, 4))
    model.other.weight = tables.embedding_bags["t"].weight
    return model


def derived() -> Any:
    class Mine(EmbeddingBagCollection):  # type: ignore[misc]
        pass

    return Mine(tables=[EmbeddingBagConfig(num_embeddings=9, embedding_dim=4, name="t", feature_names=["f"])])


def fused() -> Any:
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

    config = EmbeddingBagConfig(num_embeddings=9, embedding_dim=4, name="t", feature_names=["f"])
    return FusedEmbeddingBagCollection(
        tables=[config], optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": 0.1}, device=torch.device("cpu")
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Model(a=bags(), b=bags()), r"a and b both have a table 't', and a name is that of one table"),
        (lambda: Model(a=with_hook(bags())), r"a \(EmbeddingBagCollection\) has _forward_hooks, which would be lost"),
        (lambda: Model(a=with_hook_inside(bags())), r"a.embedding_bags.t \(EmbeddingBag\) has _forward_hooks, which"),
        (lambda: Model(a=with_hook_of_weight(bags())), r"a.embedding_bags.t .* has weight.register_hook, which would"),
        (lambda: Model(a=with_forward(bags())), r"a \(EmbeddingBagCollection\) has a forward of its own, which would"),
        (lambda: Model(a=with_field(bags(), "padding_idx", 0)), r"a.embedding_bags.t .* has padding_idx, which would"),
        (lambda: Model(a=with_field(bags(), "max_norm", 1.0)), r"a.embedding_bags.t .* has max_norm, which would"),
        (
            lambda: Model(a=bags().double()),
            r"a .*: table t: weights are torch.float64 \(9, 4\) on cpu, expected float32",
        ),
        (lambda: tied(bags()), r"other.weight is the same tensor as tables.embedding_bags.t.weight"),
        (lambda: Model(a=derived()), r"a \(Mine\) is no plain EmbeddingBagCollection"),
        (lambda: Model(a=fused()), r"a \(FusedEmbeddingBagCollection\) is no plain .*Optimizers are fused by sparse="),
        (lambda: Model(a=(held := bags()), b=[held]), r"holds a EmbeddingBagCollection in its attribute 'b'"),
        (lambda: Model(a=bags(data_type=DataType.FP16)), r"a \(EmbeddingBagCollection\): table t: data_type is .*FP16"),
        (lambda: Model(a=bags(need_pos=True)), r"need_pos is True, and there are no position weights"),
        (lambda: Model(a=bags(use_virtual_table=True)), r"use_virtual_table is True"),
        (lambda: Model(a=bags(), over=nn.Linear(4, 1, device="meta")), r"parameter over.weight .* on meta; expected"),
        (lambda: nn.Sequential(nn.ReLU()), r"no collections and no parameters"),
        (lambda: "model", r"model is 'model', expected a torch.nn.Module"),
        (
            lambda: Model(a=bags(rows=1 << 29, device="meta", init_fn=nn.init.ones_)),
            r"weights are 8.6 GB, .*meta",
        ),
    ],
)
def test_what_would_not_be_the_same_is_refused(session: Session, make: Any, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    before = list(model.modules()) if isinstance(model, nn.Module) else []
    with pytest.raises(ConfigurationError, match=words):
        ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert not session.machine.tables, "nothing was made"
    assert before == (list(model.modules()) if isinstance(model, nn.Module) else [])


def test_optimizers_that_are_missing_or_cannot_be_are_said(session: Session) -> None:
    model = Model(a=bags())
    for options, words in (
        ({"dense": SGD(lr=0.1)}, "sparse= is needed: the model has a"),
        ({"sparse": SGD(lr=0.1)}, "dense= is needed: the model has parameters over.weight, over.bias"),
        ({"sparse": SGD(lr=0.1), "dense": RowWiseAdagrad(lr=0.1)}, "RowWiseAdagrad keeps its state by row"),
        ({"sparse": torch.optim.SGD([torch.zeros(1)], lr=0.1), "dense": SGD(lr=0.1)}, "optimizer is SGD"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            ecrec.distribute(model, session, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="session is None, expected a Session"):
        ecrec.distribute(model, None, sparse=SGD(lr=0.1))  # type: ignore[arg-type]
    assert isinstance(model.a, EmbeddingBagCollection)


def test_a_model_is_distributed_once(session: Session) -> None:
    model = ecrec.distribute(Model(a=bags()), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    with pytest.raises(ConfigurationError, match=r"parameter over.weight of Model is replicated already"):
        ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    other = InProcessCluster(3).session()
    with pytest.raises(ConfigurationError, match=r"a \(EmbeddingBagCollection\) is of another session"):
        ecrec.distribute(model, other, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    with pytest.raises(ConfigurationError, match="table 't': this session has a table of that name already"):
        ecrec.distribute(Model(a=bags()), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1), name="other")
    again = Model(a=bags("u"))
    with pytest.raises(ConfigurationError, match="table 'dense'"):
        ecrec.distribute(again, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert isinstance(again.a, EmbeddingBagCollection), "the model is as it was"


def test_features_of_torchrec_that_are_not_supported_are_refused(session: Session) -> None:
    made: Any = ecrec.distribute(bags(), session, sparse=SGD(lr=0.1))
    one = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="different batch sizes"):
        made(KeyedJaggedTensor(["f"], one, lengths=one, stride_per_key_per_rank=[[2]]))
    with pytest.raises(TypeError, match=r"values is torch.float32, expected integers"):
        made(KeyedJaggedTensor(["f"], torch.ones(2), lengths=one))
    with pytest.raises(ValueError, match=r"3 offsets, from \[0\] to \[2\], for 1 features of 2 examples and 5 ids"):
        made(KeyedJaggedTensor(["f"], torch.ones(5, dtype=torch.int64), lengths=one))
    with pytest.raises(ValueError, match="a weight for each id"):
        made(KeyedJaggedTensor(["f"], one, torch.ones(2), lengths=one))
    with pytest.raises(ValueError, match="lacks features f"):
        made(batch(0))
    ids = one.to(torch.int32)
    assert made(KeyedJaggedTensor(["f"], ids, lengths=ids)).values().shape == (2, 4)


def test_configs_of_torchrec_are_taken_by_ecrecs_collections(session: Session) -> None:
    from ecrec.training import EmbeddingBagCollection as Bags
    from ecrec.training import EmbeddingCollection as Lists

    given = EmbeddingBagConfig(num_embeddings=9, embedding_dim=4, name="t", feature_names=["f"])
    made = Bags(session, [given], SGD(lr=0.1), device=torch.device("meta"))
    assert made.embedding_bag_configs()[0].get_weight_init_max() == pytest.approx(1 / 3)
    Lists(session, [EmbeddingConfig(num_embeddings=9, embedding_dim=4, name="u")], SGD(lr=0.1))
    with pytest.raises(ConfigurationError, match="expected EmbeddingConfig"):
        Lists(session, [given], SGD(lr=0.1))
    assert isinstance(EmbeddingCollection, type)


def test_codes_of_tables_that_are_not_there_are_refused(session: Session) -> None:
    with pytest.raises(ConfigurationError, match="table_codes names typo; the tables that are made are t"):
        ecrec.distribute(Model(a=bags()), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1), table_codes={"typo": "1+2"})


def test_what_failed_can_be_tried_again_while_the_error_is_held(session: Session) -> None:
    """A notebook keeps the last traceback, and with it the collections that were made."""
    model = Model(a=bags("a"), b=bags("b"))
    with pytest.raises(RefusedError, match=r"table 'b': code 5\+1") as held:
        ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1), table_codes={"b": "5+1"})
    assert isinstance(model.a, EmbeddingBagCollection) and not session.parts
    made = ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert made is model and len(session.parts) == 3 and held


def test_a_table_with_the_name_of_the_dense_part_is_refused_before_anything_is_made(session: Session) -> None:
    with pytest.raises(ConfigurationError, match="name 'dense' is that of a table, too"):
        ecrec.distribute(Model(a=bags("dense")), session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert not session.machine.tables


def test_a_model_with_frozen_layers_is_distributed(session: Session) -> None:
    model = Model(a=bags())
    model.over.requires_grad_(False)
    ecrec.distribute(model, session, sparse=SGD(lr=0.1), dense=SGD(lr=0.1))
    assert not model.over.weight.requires_grad


class TwoCollections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(num_embeddings=9, embedding_dim=4, name=name, feature_names=["f"]) for name in "ab"
            ]
        )
        self.two = bags(name="c")


@pytest.mark.parametrize(
    ("sparse", "chosen"),
    [
        ({"one": 1.0, "two": 2.0}, "1.0 1.0 2.0"),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "1.0 2.0 3.0"),
        ({"one": 1.0, "one.b": 2.0, "two.embedding_bags.c.weight": 3.0}, "1.0 2.0 3.0"),
        ({"one": 1.0, "one.embedding_bags.a": 2.0, "c": 3.0}, "2.0 1.0 3.0"),
    ],
)
def test_tables_may_have_optimizers_of_their_own(session: Session, sparse: dict[str, float], chosen: str) -> None:
    model = ecrec.distribute(TwoCollections(), session, sparse={key: SGD(lr=rate) for key, rate in sparse.items()})
    rates = [spec.optimizer.hyper[0] for part in (model.one, model.two) for spec in part.specs]  # type: ignore
    assert " ".join(map(str, rates)) == chosen
    assert [group["lr"] for group in session.optimizer.param_groups] == rates


@pytest.mark.parametrize(
    ("sparse", "words"),
    [
        ({"one": 1.0}, "sparse lacks tables two.c; the collections and their tables are one: a, b; two: c"),
        ({"one": 1.0, "two": 1.0, "three": 2.0}, "sparse names 'three', which no table takes"),
        ({"one": 1.0, "a": 1.0, "b": 1.0, "c": 2.0}, "sparse names 'one', which no table takes"),
        ({"one": 1.0, "a": 1.0, "one.a": 1.0, "c": 2.0}, "sparse: 'a' and one.a are both names of table 'a'"),
        ({"one": None, "c": 2.0}, "optimizer of 'one' is None, expected one of ecrec.training's"),
    ],
)
def test_optimizers_of_tables_that_are_not_there_are_refused(session: Session, sparse: Any, words: str) -> None:
    model = TwoCollections()
    given = {key: rate and SGD(lr=rate) for key, rate in sparse.items()}
    with pytest.raises(ConfigurationError, match=words):
        ecrec.distribute(model, session, sparse=given)
    assert type(model.one) is EmbeddingBagCollection

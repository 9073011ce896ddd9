"""Ways to use embedding tables, features and steps wrongly: each is right, or an error that says what to do."""

import enum
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from torch import nn  # noqa: E402

from ecrec.errors import ConfigurationError, DivergedError, GradientError, RefusedError  # noqa: E402
from ecrec.training import (  # noqa: E402
    SGD,
    Adam,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    PoolingType,
    Session,
)

DIM = 4


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def tables(session: Session, optimizer: Any = None, name: str = "items", **config: Any) -> EmbeddingBagCollection:
    made = EmbeddingBagConfig(20, DIM, name, feature_names=[f"of {name}"], **{"init_scale": 0.0, **config})
    return EmbeddingBagCollection(session, [made], optimizer or SGD(lr=1.0))


def ids(*rows: int, name: str = "items") -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_ids([f"of {name}"], torch.tensor([rows]))


def step(session: Session, sparse: EmbeddingBagCollection, features: KeyedJaggedTensor) -> None:
    """Each row of the batch falls by one."""
    sparse(features).values().sum().backward()
    session.push()


def rows(sparse: EmbeddingBagCollection, features: KeyedJaggedTensor) -> list[float]:
    with torch.no_grad():
        out: list[float] = sparse(features).values()[:, 0].tolist()
    return out


# ------------------------------------------------------------------ what a forward pass sees
def test_the_same_features_after_a_push_see_its_rows(session: Session) -> None:
    sparse = tables(session)
    batch = ids(1, 2)
    for _ in session.prefetch([batch], sparse):
        for expected in (0.0, -1.0, -2.0):
            assert rows(sparse, batch) == [expected] * 2
            step(session, sparse, batch)


def test_features_that_were_changed_in_place_are_looked_up_again(session: Session) -> None:
    sparse = tables(session)
    step(session, sparse, ids(5))
    batch = ids(1, 1)
    for _ in session.prefetch([batch], sparse):
        batch.values()[1] = 5
        assert rows(sparse, batch) == [0.0, -1.0]


def test_lists_that_were_changed_in_place_are_looked_up_again(session: Session) -> None:
    sparse = tables(session)
    step(session, sparse, ids(5))
    batch = KeyedJaggedTensor(["of items"], torch.tensor([5, 1, 1]), lengths=torch.tensor([1, 2]))
    for _ in session.prefetch([batch], sparse):
        batch.lengths()[0], batch.lengths()[1] = 2, 1
        batch.offsets()[1] = 2
        fresh = KeyedJaggedTensor(["of items"], torch.tensor([5, 1, 1]), lengths=torch.tensor([2, 1]))
        assert torch.equal(sparse(batch).values(), sparse(fresh).values())


def test_another_object_of_equal_features_is_not_pulled_twice(session: Session) -> None:
    sparse = tables(session)
    batch = ids(1, 2, 3)
    for _ in session.prefetch([batch], sparse):
        pulled = session.figures.bytes_pulled
        sparse(KeyedJaggedTensor(batch.keys(), batch.values(), lengths=batch.lengths()))
        assert session.figures.bytes_pulled == pulled
        sparse(ids(1, 2, 3))  # as pin_memory makes one
        assert session.figures.bytes_pulled == pulled
        sparse(ids(1, 2, 4))
        assert session.figures.bytes_pulled > pulled


def test_a_default_dtype_and_device_change_nothing(session: Session) -> None:
    sparse = tables(session)
    try:
        torch.set_default_dtype(torch.float64)
        step(session, sparse, ids(1, 2))
        torch.set_default_device("meta")
        step(session, sparse, KeyedJaggedTensor.from_ids(["of items"], torch.tensor([[1, 3]], device="cpu")))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
    assert rows(sparse, ids(1, 2, 3)) == [-2.0, -1.0, -1.0]


def test_weights_that_are_not_finite_are_named_when_they_are_pulled(session: Session) -> None:
    sparse = tables(session, SGD(lr=3e38))
    (10 * sparse(ids(3, 4)).values()[1, 2]).backward()
    session.push()
    with pytest.raises(DivergedError, match="row 4 of the embedding table 'items', column 2 is -inf on the servers"):
        sparse(ids(1, 4))
    assert rows(sparse, ids(3)) == [0.0]


# ------------------------------------------------------------------ pooling and features
class TheirPooling(enum.Enum):
    """As TorchRec's, which is another class."""

    SUM = "SUM"
    MEAN = "MEAN"
    NONE = "NONE"


@pytest.mark.parametrize("pooling", ["mean", "MEAN", PoolingType.MEAN, TheirPooling.MEAN])
def test_mean_is_mean_however_it_is_said(session: Session, pooling: Any) -> None:
    sparse = tables(session, pooling=pooling, init_scale=1.0)
    both = KeyedJaggedTensor.from_lengths_sync(["of items"], torch.tensor([1, 2]), torch.tensor([2]))
    with torch.no_grad():
        torch.testing.assert_close(sparse(both).values()[0], sparse(ids(1, 2)).values().mean(dim=0))


@pytest.mark.parametrize("pooling", ["max", TheirPooling.NONE, None, 3])
def test_another_pooling_is_refused(session: Session, pooling: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pooling is .*, expected SUM or MEAN"):
        tables(session, pooling=pooling)


class TheirFeatures:
    """What a KeyedJaggedTensor of TorchRec has and ours has not."""

    def __init__(self, of: KeyedJaggedTensor, weights: Any = None, varies: bool = False) -> None:
        self._of, self._weights, self._varies = of, weights, varies

    def weights_or_none(self) -> Any:
        return self._weights

    def variable_stride_per_key(self) -> bool:
        return self._varies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def test_features_of_another_class_with_the_same_methods_will_do(session: Session) -> None:
    sparse = tables(session)
    step(session, sparse, TheirFeatures(ids(1, 2)))  # type: ignore[arg-type]
    assert rows(sparse, ids(1, 2)) == [-1.0, -1.0]


def test_weights_of_ids_are_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="a weight for each id"):
        tables(session)(TheirFeatures(ids(1, 2), weights=torch.ones(2)))  # type: ignore[arg-type]


def test_batch_sizes_that_differ_by_feature_are_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="different batch sizes"):
        tables(session)(TheirFeatures(ids(1, 2), varies=True))  # type: ignore[arg-type]


def test_an_id_that_is_not_there_is_named_by_its_feature_and_table(session: Session) -> None:
    configs = [EmbeddingBagConfig(10 + i, DIM, name, feature_names=[f"of {name}"]) for i, name in enumerate("ab")]
    sparse = EmbeddingBagCollection(session, configs, SGD(lr=1.0))
    for bad in (11, -1, 1 << 40):
        features = KeyedJaggedTensor.from_lengths_sync(
            ["of a", "of b"], torch.tensor([9, 1, 2, 3, bad]), torch.tensor([1, 0, 1, 2, 0, 1])[:6]
        )
        words = rf"feature 'of b', example 2 of the batch: id {bad} is not in the table 'b', whose ids are 0 to 10"
        with pytest.raises(IndexError, match=words):
            sparse(features)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint64])
def test_ids_of_any_integer_type_are_taken(session: Session, dtype: Any) -> None:
    sparse = tables(session)
    features = KeyedJaggedTensor.from_lengths_sync(
        ["of items"], torch.tensor([1, 2]).to(dtype), torch.tensor([1, 1], dtype=torch.int32)
    )
    step(session, sparse, features)
    assert rows(sparse, ids(1, 2)) == [-1.0, -1.0]


def test_ids_beyond_2_to_63_are_refused() -> None:
    values = torch.from_numpy(np.array([1, 2**63 + 5], np.uint64))
    with pytest.raises(ValueError, match=f"values has {2**63 + 5}, expected less than 2\\*\\*63"):
        KeyedJaggedTensor.from_lengths_sync(["f"], values, torch.tensor([1, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_ids_that_are_no_integers_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="expected integers"):
        KeyedJaggedTensor.from_ids(["f"], torch.ones(1, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_values_that_are_no_integers_are_not_looked_up(session: Session, dtype: Any) -> None:
    """KeyedJaggedTensors hold values of any type, as TorchRec's do; ids are never truncated."""
    features = KeyedJaggedTensor.from_lengths_sync(["of items"], torch.ones(2, dtype=dtype), torch.tensor([1, 1]))
    sparse = tables(session)
    with pytest.raises(TypeError, match=f"values is {dtype}, expected integers"):
        sparse(features)
    with pytest.raises(TypeError, match=f"values is {dtype}, expected integers"):
        next(iter(session.prefetch([features])))


def test_a_key_that_comes_twice_is_not_looked_up(session: Session) -> None:
    with pytest.raises(ValueError, match="keys of the features must differ, found of items, of items"):
        tables(session)(ids(1, 2).permute([0, 0]))


def test_a_feature_that_is_missing_is_named(session: Session) -> None:
    with pytest.raises(ValueError, match="lacks features of items; it has of others"):
        tables(session)(ids(1, name="others"))


# ------------------------------------------------------------------ tables
@pytest.mark.parametrize("rows_", [0, -1, 1e6, "7", True, 2**64, None])
def test_a_number_of_rows_that_cannot_be_is_refused(session: Session, rows_: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"table t: num_embeddings is .*, expected a whole number from 1"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(rows_, DIM, "t", feature_names=["f"])], SGD(lr=1.0))


@pytest.mark.parametrize("name", ["", "a.b"])
def test_a_name_that_cannot_be_is_refused(session: Session, name: str) -> None:
    with pytest.raises(ConfigurationError, match="a name is not empty and has no dot"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(10, DIM, name, feature_names=["f"])], SGD(lr=1.0))


@pytest.mark.parametrize("name", ["items", "forward", "weight", "keys", "t 1"])
def test_a_table_may_have_any_other_name(session: Session, name: str) -> None:
    sparse = tables(session, name=name)
    step(session, sparse, ids(1, name=name))
    assert [key for key, _ in sparse.named_parameters()] == [f"embedding_bags.{name}.weight"]


def test_two_collections_of_one_table_are_refused(session: Session) -> None:
    first = tables(session)
    with pytest.raises(ConfigurationError, match="table 'items': this session has a table of that name already"):
        tables(session)
    with pytest.raises(ConfigurationError, match="table 'items'"):
        session.replicate(torch.nn.Linear(1, 1), SGD(lr=1.0), name="items")
    step(session, first, ids(1))
    assert rows(first, ids(1)) == [-1.0], "stepped once"


def test_a_collection_that_is_gone_leaves_nothing(session: Session) -> None:
    dropped = tables(session)
    dropped(ids(1)).values().sum().backward()
    del dropped
    again = tables(session)
    session.push()
    assert rows(again, ids(1)) == [0.0]
    step(session, again, ids(1))
    assert rows(again, ids(1)) == [-1.0]


def test_parameters_have_the_shape_of_the_tables_and_no_memory(session: Session) -> None:
    sparse = tables(session)
    ((name, weight),) = sparse.named_parameters()
    assert (name, tuple(weight.shape), weight.device.type) == ("embedding_bags.items.weight", (20, DIM), "meta")


# ------------------------------------------------------------------ steps
@pytest.mark.parametrize("optimizer", [SGD(lr=1.0, momentum=0.9), Adam(lr=1.0)])
def test_a_frozen_collection_stands_still(session: Session, optimizer: Any) -> None:
    sparse = tables(session, optimizer)
    step(session, sparse, ids(1))
    before = rows(sparse, ids(1))
    sparse.requires_grad_(False)
    out = sparse(ids(1)).values()
    assert not out.requires_grad
    session.push()
    assert rows(sparse, ids(1)) == before
    sparse.requires_grad_(True)
    step(session, sparse, ids(1))
    assert rows(sparse, ids(1)) != before


def test_one_table_of_several_can_be_frozen(session: Session) -> None:
    names = ["a", "b", "c"]
    configs = [
        EmbeddingBagConfig(9, 2 + i, name, feature_names=[f"of {name}"], init_scale=0.0) for i, name in enumerate(names)
    ]
    sparse = EmbeddingBagCollection(session, configs, SGD(lr=1.0, momentum=0.9))
    features = KeyedJaggedTensor.from_ids(
        [f"of {name}" for name in names], torch.tensor([[0, 1, 2], [3, 4, 4], [8, 0, 0]])
    )
    parameters = dict(sparse.named_parameters())
    for frozen in ("b", "", "a"):
        for name in names:
            parameters[f"embedding_bags.{name}.weight"].requires_grad_(name != frozen)
        step(session, sparse, features)
    with torch.no_grad():
        out = sparse(features).values()[0]
    # a trained in steps 1 and 2, b in 2 and 3, c in all: w = -(1), -(1 + 1.9), -(1 + 1.9 + 2.71)
    torch.testing.assert_close(out, torch.tensor([-2.9] * 2 + [-2.9] * 3 + [-5.61] * 4))


def test_several_backward_passes_are_one_step_whatever_other_tables_there_are(session: Session) -> None:
    tables(session, name="first")
    sparse = tables(session)
    step(session, sparse, ids(7))
    for batch in (ids(1, 2), ids(2, 3), ids(2)):
        sparse(batch).values().sum().backward()
    session.push()
    assert rows(sparse, ids(1, 2, 3, 7)) == [-1.0, -3.0, -1.0, -1.0]


def test_two_collections_and_one_used_twice_are_one_step(session: Session) -> None:
    first, second = tables(session, name="first"), tables(session)
    (
        first(ids(1, name="first")).values().sum() + second(ids(1)).values().sum() + second(ids(1)).values().sum()
    ).backward()
    session.push()
    assert rows(first, ids(1, name="first")) == [-1.0] and rows(second, ids(1)) == [-2.0]


def test_a_step_that_is_given_up_leaves_nothing(session: Session) -> None:
    sparse = tables(session)
    sparse(ids(1)).values().sum().backward()
    session.discard()
    step(session, sparse, ids(2))
    assert rows(sparse, ids(1, 2)) == [0.0, -1.0]


def test_forgotten_pushes_are_said(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    sparse = tables(session)
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            sparse(ids(1)).values().sum().backward()
    assert caplog.text.count("64 backward passes through items since the last push") == 1
    session.push()
    assert rows(sparse, ids(1)) == [-200.0]


def test_a_push_after_close_is_an_error() -> None:
    session = InProcessCluster(3).session()
    sparse = tables(session)
    sparse(ids(1)).values().sum().backward()
    session.close()
    for call in (session.push, lambda: sparse(ids(1)), session.flush, session.barrier, session.pump):
        with pytest.raises(Exception, match="this session is closed: connect again"):
            call()


def test_a_bad_gradient_is_named_by_table_row_and_feature(session: Session) -> None:
    sparse = tables(session)
    sparse(ids(3, 7)).values()[1, 2].mul(float("nan")).backward()
    with pytest.raises(
        GradientError, match=r"is nan.*: that is row 7 of the embedding table 'items' \(features of items"
    ):
        session.push()


def test_a_loop_over_epochs_with_one_name_is_an_error(session: Session) -> None:
    sparse = tables(session)
    for epoch in range(2):
        if epoch:
            with pytest.raises(ConfigurationError, match="iterated over all of it: epochs= says how many"):
                session.lease_splits("data", 10, split_examples=5)
            break
        for split in session.lease_splits("data", 10, split_examples=5):
            sparse(ids(*range(split.first, split.last))).values().sum().backward()
            session.push(5)


# ------------------------------------------------------------------ gradients that torch would see
def test_a_batch_that_is_skipped_by_zero_grad_trains_nothing(session: Session) -> None:
    sparse = tables(session)
    model = torch.nn.Sequential(sparse)
    for skipped, row in ((True, 1), (False, 2), (True, 3), (False, 4)):
        sparse(ids(row)).values().sum().backward()
        if skipped:
            model.zero_grad()
            continue
        session.push()
    assert rows(sparse, ids(1, 2, 3, 4)) == [0.0, -1.0, 0.0, -1.0]


def test_zero_grad_between_backward_and_push_is_an_error(session: Session) -> None:
    sparse = tables(session)
    sparse(ids(1)).values().sum().backward()
    sparse.zero_grad()
    with pytest.raises(GradientError, match="gradients of tables items were set to None after the backward pass"):
        session.push()
    session.discard()
    step(session, sparse, ids(2))
    assert rows(sparse, ids(1, 2)) == [0.0, -1.0]


def test_gradients_of_tables_cannot_be_changed_here(session: Session) -> None:
    sparse = tables(session)
    sparse(ids(1)).values().sum().backward()
    sparse.zero_grad(set_to_none=False)
    with pytest.raises(GradientError, match="the gradient of table 'items' was changed here"):
        session.push()
    session.discard()
    (100 * sparse(ids(1)).values().sum()).backward()
    with pytest.raises((RuntimeError, GradientError)):  # torch's, of tensors without memory, or ours
        torch.nn.utils.clip_grad_norm_(sparse.parameters(), 1.0)
        session.push()


def test_tables_cannot_be_initialised_or_stepped_here(session: Session) -> None:
    sparse = tables(session)
    torch.nn.init.ones_(next(sparse.parameters()))
    for call in (lambda: sparse(ids(1)), session.push):
        with pytest.raises(ConfigurationError, match="table 'items' was changed here"):
            call()


def replaced(sparse: EmbeddingBagCollection) -> None:
    sparse.embedding_bags["items"].weight = nn.Parameter(torch.ones(20, DIM), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda sparse: torch.nn.init.zeros_(next(sparse.parameters())),
        lambda sparse: torch.optim.SGD(sparse.parameters(), lr=1.0).step(),
        replaced,
    ],
    ids=["init", "optimizer", "replaced"],
)
def test_a_write_to_a_table_here_costs_no_more_than_the_step(session: Session, change: Any) -> None:
    sparse = tables(session)
    step(session, sparse, ids(1))
    sparse(ids(2)).values().sum().backward()
    change(sparse)
    session.optimizer.zero_grad()  # before anybody was told: the error comes all the same
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"servers, as they were: .*Session\.discard\(\) goes on without"):
            sparse(ids(1))
    session.discard()
    assert [weight.requires_grad for weight in sparse.parameters()] == [change is not replaced]
    sparse.requires_grad_(True)
    step(session, sparse, ids(1))
    assert rows(sparse, ids(1, 2)) == [-2.0, 0.0]


def test_tables_cannot_be_converted_and_may_be_left_where_they_are(session: Session) -> None:
    sparse = tables(session)
    model = torch.nn.Sequential(sparse)
    for change in (model.double, model.half, lambda: model.to(torch.bfloat16)):
        with pytest.raises(ConfigurationError, match=r"table 'items' stays torch.float32 on the servers"):
            change()
    step(session, model.float().to("cpu")[0], ids(1))
    assert rows(sparse, ids(1)) == [-1.0]


@pytest.mark.parametrize("examples", [1.0, 1.5, float("nan"), None, "3", -1, 1 << 70, torch.tensor(1.0)])
def test_a_number_of_examples_that_is_none_is_refused(session: Session, examples: Any) -> None:
    sparse = tables(session)
    splits = session.lease_splits("data", 10, split_examples=10)
    next(splits)
    sparse(ids(1)).values().sum().backward()
    with pytest.raises(ConfigurationError, match=r"a push of .* examples, expected a whole number"):
        session.push(examples)
    session.push(torch.tensor(4))  # type: ignore[arg-type]
    session.push(np.int64(6))
    assert list(splits) == [] and rows(sparse, ids(1)) == [-1.0]


def test_a_push_outside_of_an_iteration_is_none_of_its_split(session: Session) -> None:
    splits = session.lease_splits("data", 20, split_examples=20)
    next(splits)
    session.push(5)
    splits.close()
    session.push(10)
    session.push(30)
    assert next(session.lease_splits("data", 20, split_examples=20)) == (0, 5, 20)
    session.push(15)


def test_a_part_of_another_session_is_refused(session: Session) -> None:
    other = InProcessCluster(3).session()
    for part in (tables(other), torch.nn.Linear(1, 1), None):
        with pytest.raises(ConfigurationError, match="is no collection and no replicated module of this session"):
            next(session.prefetch([ids(1)], part))
    for depth in (-1, 1.5, None, "1"):
        with pytest.raises(ConfigurationError, match=r"depth is .*, expected a whole number"):
            next(session.prefetch([ids(1)], depth=depth))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batches": None}, "prefetch: the batches are None, expected an iterable of them"),
        ({"batches": 7}, "prefetch: the batches are 7, expected an iterable of them"),
        ({"batches": [], "features": "ids"}, "prefetch: features is 'ids', expected a function of a batch"),
    ],
)
def test_what_no_batches_come_from_is_refused_at_once(session: Session, arguments: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        session.prefetch(**arguments)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_good_batches_before_a_bad_one_are_given(session: Session, depth: int) -> None:
    sparse = tables(session)
    given = 0
    with pytest.raises(IndexError, match="id 20 is not in the table 'items'"):
        for batch in session.prefetch([ids(1), ids(1), ids(20), ids(1)], sparse, depth=depth):
            step(session, sparse, batch)
            given += 1
    assert given == 2 and rows(sparse, ids(1)) == [-2.0]


def test_numbers_of_numpy_will_do(session: Session) -> None:
    splits = session.lease_splits("data", np.int64(10), split_examples=np.int32(5))  # type: ignore[arg-type]
    for split in splits:
        session.push(split.last - split.first)


def test_what_was_fetched_ahead_is_not_older_than_was_said(session: Session) -> None:
    sparse = tables(session)
    for i, batch in enumerate(session.prefetch([ids(1)] * 4, sparse, depth=1)):
        seen = rows(sparse, batch)
        if i == 1:
            for _ in range(3):
                step(session, sparse, ids(1))
        if i == 2:
            assert seen == [-3.0]
            sparse.load_state_dict({"embedding_bags.items.weight": torch.full((20, DIM), 9.0)})
        if i == 3:
            assert seen == [9.0]


def test_a_state_with_a_value_that_is_not_finite_is_written_nowhere() -> None:
    with InProcessCluster(3).session(nonfinite="zero") as session:
        sparse = tables(session)
        state = torch.full((20, DIM), 3.0)
        state[19, 1] = float("nan")
        with pytest.raises(GradientError, match="table 'items', row 19, column 1 is nan; nothing was written"):
            sparse.load_state_dict({"embedding_bags.items.weight": state})
        assert rows(sparse, ids(0, 19)) == [0.0, 0.0]


def test_offsets_that_change_before_the_backward_pass_are_those_of_the_forward_pass(session: Session) -> None:
    sparse = tables(session)
    offsets = torch.tensor([0, 1, 3])
    features = KeyedJaggedTensor.from_offsets_sync(["of items"], torch.tensor([1, 2, 3]), offsets)
    out = sparse(features).values()
    offsets[1] = 2
    out[0].sum().backward()
    session.push()
    assert rows(sparse, ids(1, 2, 3)) == [-1.0, 0.0, 0.0]


def test_features_that_were_changed_without_a_trace_are_looked_up_again(session: Session) -> None:
    """Numpy shares the memory and counts no version, and a tensor of inference mode has none."""
    sparse = tables(session)
    step(session, sparse, ids(1))
    shared = np.array([1, 2])
    batch = KeyedJaggedTensor.from_ids(["of items"], torch.from_numpy(shared)[None])
    for _ in session.prefetch([batch], sparse):
        shared[:] = 2, 1
        assert rows(sparse, batch) == [0.0, -1.0]
    with torch.inference_mode():
        batch = ids(1, 2)
        for _ in session.prefetch([batch], sparse):
            batch.values().copy_(torch.tensor([2, 1]))
            assert rows(sparse, batch) == [0.0, -1.0]


def test_a_batch_that_nobody_picks_the_features_from_is_an_error(session: Session) -> None:
    sparse = tables(session)
    with pytest.raises(TypeError, match=r"a tuple with a Tensor, expected a KeyedJaggedTensor .*features="):
        next(session.prefetch([(ids(1), torch.ones(1))], sparse))


@pytest.mark.parametrize(
    ("keys", "device", "words"),
    [
        (["of items"], "meta", "features are on meta, expected cpu"),
        (["of items", "of items"], "cpu", "keys of the features must differ, found of items, of items"),
    ],
)
def test_features_that_cannot_be_looked_up_are_refused(
    session: Session, keys: list[str], device: str, words: str
) -> None:
    """TorchRec's takes both."""
    vector = torch.arange(len(keys) + 1, device=device)
    theirs: Any = SimpleNamespace(
        keys=lambda: keys, values=lambda: vector[1:], offsets=lambda: vector, stride=lambda: 1
    )
    with pytest.raises(ValueError, match=words):
        tables(session)(theirs)


@pytest.mark.parametrize("names", ["item", [1]])
def test_names_of_features_are_a_list_of_names(session: Session, names: Any) -> None:
    config = EmbeddingBagConfig(20, DIM, "items", feature_names=names)
    with pytest.raises(ConfigurationError, match=r"table items: feature_names is .*, expected a list of names"):
        EmbeddingBagCollection(session, [config], SGD(lr=1.0))


@pytest.mark.parametrize("number", [np.int64(20), torch.tensor(20)])
def test_numbers_of_rows_of_others_will_do(session: Session, number: Any) -> None:
    sparse = EmbeddingBagCollection(session, [EmbeddingBagConfig(number, number, "items")], SGD(lr=1.0))
    assert sparse.embedding_bags["items"].weight.shape == (20, 20)


def test_first_weights_that_are_no_tensor_are_refused(session: Session) -> None:
    given: Any = {"items": np.zeros((20, DIM), np.float32)}
    with pytest.raises(ConfigurationError, match=r"table items: weights are ndarray, expected a torch.Tensor"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(20, DIM, "items")], SGD(lr=1.0), weights=given)


@pytest.mark.parametrize("column", [[[1.7]], [[True]], [1, 2], np.array([1, 2]), ["12"]])
def test_a_column_of_other_things_than_lists_of_integers_is_refused(column: Any) -> None:
    with pytest.raises(TypeError, match=r"column 'f' .*expected a tensor of integers, or for each example a sequence"):
        KeyedJaggedTensor.from_dict({"f": column})


def test_a_column_with_an_id_beyond_2_to_63_is_refused() -> None:
    with pytest.raises(ValueError, match="column 'f' has 9223372036854775808, expected less than 2"):
        KeyedJaggedTensor.from_dict({"f": [[1], [1 << 63]]})


def test_a_model_may_give_weights_to_the_ids_of_a_batch_that_has_none(session: Session) -> None:
    config = EmbeddingBagConfig(20, DIM, "items", feature_names=["of items"], init_scale=0.0)
    sparse = EmbeddingBagCollection(session, [config], SGD(lr=1.0), is_weighted=True)
    for batch in session.prefetch([ids(1, 2)]):
        pulled = session.figures.bytes_pulled
        with pytest.raises(ValueError, match="the collection is_weighted, and the batch has no weights of ids"):
            sparse(batch)
        weighted = KeyedJaggedTensor(batch.keys(), batch.values(), torch.tensor([2.0, 3.0]), lengths=batch.lengths())
        step(session, sparse, weighted)
        assert session.figures.bytes_pulled == pulled, "the rows that were brought will do"
    assert rows(sparse, weighted) == [-4.0, -9.0]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_session_and_tables_that_are_none_are_refused(session: Session, swapped: bool) -> None:
    made: Any = [EmbeddingBagConfig(20, DIM, "items")]
    given: Any = (made, session) if swapped else (None, made)
    with pytest.raises(ConfigurationError, match=r"expected a (list of EmbeddingBagConfig|Session)"):
        EmbeddingBagCollection(*given, SGD(lr=1.0))
    with pytest.raises(ConfigurationError, match=r"tables is EmbeddingBagConfig\(.*, expected a list of"):
        EmbeddingBagCollection(session, made[0], SGD(lr=1.0))


@pytest.mark.parametrize("field", ["init_scale", "weight_init_max"])
@pytest.mark.parametrize("value", ["1", 1e39])
def test_a_range_of_first_weights_that_is_none_is_refused(session: Session, field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"table items: {field} is .*, expected a finite number, of float32"):
        EmbeddingBagCollection(session, [EmbeddingBagConfig(20, DIM, "items", **{field: value})], SGD(lr=1.0))


@pytest.mark.parametrize("first", [False, True])
def test_a_loss_of_the_weight_of_a_table_is_an_error(session: Session, first: bool) -> None:
    """As a penalty: the weight has no values here."""
    sparse = tables(session)
    sparse.embedding_bags["items"].weight.pow(2).sum().backward()
    if first:
        sparse(ids(1)).values().sum().backward()
    with pytest.raises(GradientError, match=r"table 'items' was changed here .*a loss of the weight itself"):
        session.push()
    session.discard()
    step(session, sparse, ids(1))
    assert rows(sparse, ids(1)) == [-1.0]


def test_a_weight_that_was_replaced_is_an_error(session: Session) -> None:
    sparse = tables(session)
    sparse.embedding_bags["items"].weight = nn.Parameter(torch.ones(20, DIM))
    with pytest.raises(ConfigurationError, match="table 'items' was changed here"):
        sparse(ids(1))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.full((20, DIM), torch.nan), "table 'b', row 0, column 0 is nan; nothing was written"),
        (torch.ones(19, DIM), r"table 'b' is \(20, 4\) on the servers, and .* is \(19, 4\)"),
        (torch.ones(20, DIM, dtype=torch.complex64), "table 'b': .* is torch.complex64, expected a tensor of real"),
        (np.ones((20, DIM)), "table 'b': .* is ndarray, expected a tensor of real numbers"),
    ],
)
def test_a_state_with_a_table_that_does_not_fit_is_written_to_none(session: Session, bad: Any, words: str) -> None:
    configs = [EmbeddingBagConfig(20, DIM, name, init_scale=0.0) for name in "ab"]
    sparse = EmbeddingBagCollection(session, configs, SGD(lr=1.0))
    good = torch.ones(20, DIM)
    state = {"embedding_bags.a.weight": good, "embedding_bags.b.weight": bad}
    with pytest.raises((GradientError, RuntimeError), match=words):
        sparse.load_state_dict(state)
    assert not sparse.state_dict()["embedding_bags.a.weight"].any()
    sparse.load_state_dict({"embedding_bags.b.weight": good}, strict=False)
    assert sparse.state_dict()["embedding_bags.b.weight"].all()
    sparse.embedding_bags.load_state_dict({"a.weight": good, "b.weight": good})
    assert sparse.state_dict()["embedding_bags.a.weight"].all()


def test_a_table_of_written_weights_that_is_made_without_them_says_so(session: Session) -> None:
    tables(session, init_scale=None, init_fn=nn.init.ones_)
    with pytest.raises(RefusedError, match=r"init_seed stands for seed=, and for whether a worker writes the first"):
        tables(session)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"lengths": [1, 2, -1, 1]}, "lengths: the list of feature 'b', example 0 has length -1, expected at least 0"),
        ({"offsets": [0, 2, 1, 3, 3]}, "offsets decrease: the list of feature 'a', example 1 has length -1"),
    ],
)
def test_a_list_of_a_negative_length_is_named(counts: dict[str, list[int]], words: str) -> None:
    given = {name: torch.tensor(values) for name, values in counts.items()}
    with pytest.raises(ValueError, match=words):
        KeyedJaggedTensor(["a", "b"], torch.tensor([1, 2, 3]), **given)


def test_a_list_of_a_negative_length_of_another_library_is_named(session: Session) -> None:
    """TorchRec checks no lengths."""
    sparse = tables(session)
    given = ids(1, 2, 3)
    given._offsets = torch.tensor([0, 2, 1, 3])
    with pytest.raises(ValueError, match="feature 'of items', example 1 of the batch: its list has length -1"):
        sparse(given)

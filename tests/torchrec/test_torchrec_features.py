"""TorchRec's own KeyedJaggedTensor, however a reader has made it, is taken; KeyedTensor and JaggedTensor come back."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from in_process import InProcessCluster
from torch.utils import _pytree
from torchrec_package import Batch, EmbeddingBagConfig, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor, KeyedTensor

from ecrec import training
from ecrec.training import SGD, Session

DIM = 4
KEYS = ["a", "b", "c"]
VALUES = torch.tensor([1, 2, 3, 4, 5, 6, 1, 2])
LENGTHS = torch.tensor([2, 0, 1, 1, 1, 3, 0, 0, 0])
OFFSETS = torch.tensor([0, 2, 2, 3, 4, 5, 8, 8, 8, 8])
WEIGHTS = torch.arange(1, 9) / 4


def plain() -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS)


def synced() -> KeyedJaggedTensor:
    kjt = plain()
    kjt.to_dict(), kjt.offset_per_key(), kjt.sync()
    return kjt


def saved() -> Any:
    file = io.BytesIO()
    torch.save(plain(), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def of_a_batch() -> Any:
    made = Batch(dense_features=torch.ones(3, 1), sparse_features=plain(), labels=torch.ones(3))
    return made.to(torch.device("cpu"), non_blocking=True).sparse_features


MADE: dict[str, Callable[[], Any]] = {
    "from_lengths_sync": plain,
    "from_offsets_sync": lambda: KeyedJaggedTensor.from_offsets_sync(KEYS, VALUES, OFFSETS),
    "lengths": lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS),
    "offsets": lambda: KeyedJaggedTensor(KEYS, VALUES, offsets=OFFSETS),
    "both": lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, offsets=OFFSETS),
    "stride": lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, stride=3),
    "length_per_key": lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, length_per_key=[3, 5, 0]),
    "int32": lambda: KeyedJaggedTensor(KEYS, VALUES.int(), lengths=LENGTHS.int()),
    "int32 offsets": lambda: KeyedJaggedTensor(KEYS, VALUES.int(), offsets=OFFSETS.int()),
    "not contiguous": lambda: KeyedJaggedTensor(KEYS, VALUES.repeat_interleave(2)[::2], lengths=LENGTHS),
    "from_jt_dict": lambda: KeyedJaggedTensor.from_jt_dict(plain().to_dict()),
    "JaggedTensors": lambda: KeyedJaggedTensor.from_jt_dict(
        {
            "a": JaggedTensor.from_dense([VALUES[:2], VALUES[:0], VALUES[2:3]]),
            "b": JaggedTensor(VALUES[3:], lengths=LENGTHS[3:6]),
            "c": JaggedTensor(VALUES[:0], offsets=torch.zeros(4, dtype=torch.int64)),
        }
    ),
    "concat": lambda: KeyedJaggedTensor.concat(plain().split([1, 2])),
    "permute": lambda: plain().permute([2, 0, 1]),
    "permute there and back": lambda: plain().permute([2, 0, 1]).permute([1, 2, 0]),
    "more than is asked for": lambda: KeyedJaggedTensor.concat(
        [KeyedJaggedTensor(["x"], torch.tensor([9, 9, 9]), lengths=torch.tensor([1, 1, 1])), plain()]
    ),
    "to": lambda: plain().to(torch.device("cpu")),
    "sync": synced,
    "unsync": lambda: synced().unsync(),
    "flatten_lengths": lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS).flatten_lengths(),
    "pytree": lambda: _pytree.tree_map(lambda leaf: leaf if leaf is None else leaf.clone(), plain()),
    "deepcopy": lambda: copy.deepcopy(synced()),
    "pickle": lambda: pickle.loads(pickle.dumps(synced())),
    "torch.save": saved,
    "Batch.to": of_a_batch,
}


@pytest.fixture
def session() -> Iterator[Session]:
    with InProcessCluster(3).session(code="2+1") as session:
        yield session


def bags(session: Session, **options: Any) -> training.EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(num_embeddings=10, embedding_dim=DIM, name="one", feature_names=["a", "c"]),
        EmbeddingBagConfig(num_embeddings=10, embedding_dim=DIM, name="two", feature_names=["b"]),
    ]
    return training.EmbeddingBagCollection(session, configs, SGD(lr=1.0), **options)


def lists(session: Session, **options: Any) -> training.EmbeddingCollection:
    configs = [EmbeddingConfig(num_embeddings=10, embedding_dim=DIM, name="all", feature_names=KEYS)]
    return training.EmbeddingCollection(session, configs, SGD(lr=1.0), **options)


def ours(weights: Any = None) -> training.KeyedJaggedTensor:
    return training.KeyedJaggedTensor(KEYS, VALUES, weights, lengths=LENGTHS)


@pytest.mark.parametrize("name", MADE)
def test_it_is_pooled_as_ecrecs_and_torchrecs_comes_back(session: Session, name: str) -> None:
    made = bags(session)
    expected: Any = made(ours())
    found: Any = made(MADE[name]())
    assert type(expected) is training.KeyedTensor and type(found) is KeyedTensor
    assert found.keys() == expected.keys() == ["a", "c", "b"]
    assert torch.equal(found.values(), expected.values())


@pytest.mark.parametrize("name", MADE)
def test_its_sequences_are_those_of_ecrecs_and_torchrecs_come_back(session: Session, name: str) -> None:
    made = lists(session, need_indices=True)
    expected: Any = made(ours())
    found: Any = made(MADE[name]())
    assert list(found) == list(expected)
    for key, part in found.items():
        assert type(part) is JaggedTensor and type(expected[key]) is training.JaggedTensor
        for one, other in zip(part.to_dense(), expected[key].to_dense(), strict=True):
            assert torch.equal(one, other)
        assert part.weights().tolist() == expected[key].weights().tolist()


@pytest.mark.parametrize("name", MADE)
def test_it_is_prefetched_and_trains_as_ecrecs(session: Session, name: str) -> None:
    made = bags(session)
    state = made.state_dict()
    after = []
    for features in (ours(), MADE[name]()):
        made.load_state_dict(state)
        for each in session.prefetch([features, features]):
            made(each).values().sum().backward()
            session.push()
        after.append(made.state_dict())
    for table, values in after[0].items():
        assert torch.equal(values, after[1][table]) and not torch.equal(values, state[table])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_weights_of_ids_are_taken(session: Session, dtype: torch.dtype) -> None:
    made = bags(session, is_weighted=True)
    theirs = KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS, WEIGHTS.to(dtype))
    for features in (theirs, theirs.permute([1, 2, 0]), KeyedJaggedTensor.from_jt_dict(theirs.to_dict())):
        assert torch.equal(made(features).values(), made(ours(WEIGHTS)).values())


@pytest.mark.parametrize(("weights", "shape"), [(torch.ones(3), r"\(3,\)"), (torch.ones(8, 2), r"\(8, 2\)")])
def test_weights_that_do_not_fit_are_refused(session: Session, weights: Any, shape: str) -> None:
    """TorchRec does not compare their number with that of the ids."""
    made = bags(session, is_weighted=True)
    with pytest.raises(ValueError, match=f"weights of ids are {shape}, expected one for each of the 8 ids"):
        made(KeyedJaggedTensor(KEYS, VALUES, weights, lengths=LENGTHS))


def test_what_comes_back_goes_on_into_torchrecs_functions(session: Session) -> None:
    out: Any = bags(session)(plain())
    both = KeyedTensor.regroup([out], [["b", "a"], ["c"]])
    assert torch.equal(both[0], torch.cat([out["b"], out["a"]], dim=1)) and both[1].shape == (3, DIM)
    flat, spec = _pytree.tree_flatten(out)
    assert torch.equal(_pytree.tree_unflatten(flat, spec).values(), out.values())
    sequences: Any = lists(session)(plain())
    assert KeyedJaggedTensor.from_jt_dict(sequences).values().shape == (8, DIM)


def test_a_batch_without_examples_or_ids(session: Session) -> None:
    made = bags(session)
    none = torch.empty(0, dtype=torch.int64)
    assert made(KeyedJaggedTensor(KEYS, none, lengths=none)).values().shape == (0, 3 * DIM)
    empty = KeyedJaggedTensor.from_lengths_sync(KEYS, torch.tensor([]), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(made(empty).values(), torch.zeros(2, 3 * DIM))

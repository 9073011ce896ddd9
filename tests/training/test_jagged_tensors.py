"""JaggedTensor and KeyedJaggedTensor: plain lists, and TorchRec's own classes where they are installed."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ecrec.training import JaggedTensor, KeyedJaggedTensor  # noqa: E402

theirs: Any = None
with warnings.catch_warnings(), contextlib.suppress(ImportError, OSError):
    warnings.simplefilter("ignore")  # of what fbgemm has on a GPU alone
    from torchrec.sparse import jagged_tensor as theirs

KEYS = ["a", "b", "c"]
LISTS = [[[1, 2], [], [3]], [[4], [5], [6, 7, 8]], [[], [], []]]
"""Of each key, of each of three examples."""


def flat(lists: Any) -> list[Any]:
    return [each for some in lists for each in some]


VALUES = torch.tensor(flat(flat(LISTS)))
LENGTHS = torch.tensor([len(each) for each in flat(LISTS)])
WEIGHTS = torch.arange(len(VALUES), dtype=torch.float32) / 4


def ours() -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS, WEIGHTS)


def lists_of(kjt: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    return {key: [each.tolist() for each in part.to_dense()] for key, part in kjt.to_dict().items()}


def of(*indices: int) -> dict[str, list[list[int]]]:
    return {KEYS[i]: LISTS[i] for i in indices}


def test_what_it_holds() -> None:
    kjt = ours()
    assert lists_of(kjt) == of(0, 1, 2)
    assert (kjt.stride(), kjt.stride_per_key()) == (3, [3, 3, 3])
    assert kjt.length_per_key() == [3, 5, 0] and kjt.offset_per_key() == [0, 3, 8, 8]
    assert kjt["b"].weights().tolist() == WEIGHTS[3:].tolist()
    with pytest.raises(KeyError, match="there is no key 'd'; there are a, b, c"):
        kjt["d"]


def test_lengths_and_offsets_are_the_same() -> None:
    kjt = ours()
    again = KeyedJaggedTensor.from_offsets_sync(KEYS, VALUES, kjt.offsets())
    assert lists_of(again) == lists_of(kjt) and again.lengths().tolist() == LENGTHS.tolist()
    both = KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, offsets=kjt.offsets())
    assert lists_of(both) == lists_of(kjt)
    with pytest.raises(ValueError, match="lengths and offsets differ"):
        KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS.flip(0), offsets=kjt.offsets())
    with pytest.raises(ValueError, match="neither lengths nor offsets"):
        KeyedJaggedTensor(KEYS, VALUES)


def test_permute_split_and_concat() -> None:
    kjt = ours()
    assert list(lists_of(kjt.permute([2, 0]))) == ["c", "a"] and lists_of(kjt.permute([2, 0])) == of(0, 2)
    first, none, rest = kjt.split([1, 0, 2])
    assert (lists_of(first), lists_of(none), lists_of(rest)) == (of(0), {}, of(1, 2))
    assert rest.weights().tolist() == WEIGHTS[3:].tolist()
    assert lists_of(KeyedJaggedTensor.concat([rest, first])) == of(1, 2, 0)
    for bad in ([1], [4, -1]):
        with pytest.raises(ValueError, match="do not add up to the 3 keys"):
            kjt.split(bad)
    with pytest.raises(ValueError, match="keys must differ"):
        KeyedJaggedTensor.concat([first, first])
    with pytest.raises(ValueError, match=r"numbers of examples differ: \[3, 1\]"):
        KeyedJaggedTensor.concat([first, KeyedJaggedTensor.from_ids(["d"], torch.tensor([[1]]))])


def test_columns_of_one_id_of_several_and_of_any_number() -> None:
    kjt = KeyedJaggedTensor.from_dict(
        {
            "one": torch.tensor([7, 8, 9], dtype=torch.int32),
            "two": torch.tensor([[1, 2], [3, 4], [5, 6]]),
            "any": [[1], [], [2, 3]],
            "jagged": JaggedTensor(torch.tensor([4]), offsets=torch.tensor([0, 0, 1, 1])),
        }
    )
    assert lists_of(kjt) == {
        "one": [[7], [8], [9]], "two": [[1, 2], [3, 4], [5, 6]], "any": [[1], [], [2, 3]], "jagged": [[], [4], []],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"differ in their number of examples: \{'a': 2, 'b': 1\}"):
        KeyedJaggedTensor.from_dict({"a": [[1], [2]], "b": [[1]]})
    with pytest.raises(TypeError, match=r"column 'a' is torch.float32, expected integers"):
        KeyedJaggedTensor.from_dict({"a": torch.ones(2)})


def test_lists_cut_off_and_filled_up() -> None:
    part = ours()["b"]
    assert part.to_padded_dense().tolist() == [[4, 0, 0], [5, 0, 0], [6, 7, 8]]
    assert part.to_padded_dense(2, -1).tolist() == [[4, -1], [5, -1], [6, 7]]
    assert ours()["c"].to_padded_dense().shape == (3, 0)
    vectors = JaggedTensor.from_dense([torch.ones(2, 3), torch.zeros(0, 3), torch.ones(1, 3)])
    assert vectors.to_padded_dense().sum(dim=(1, 2)).tolist() == [6, 0, 3]


def test_an_empty_batch() -> None:
    kjt = KeyedJaggedTensor.from_ids(KEYS, torch.zeros((3, 0), dtype=torch.int64))
    assert kjt.stride() == 0 and lists_of(kjt) == {key: [] for key in KEYS}
    assert kjt.offset_per_key() == [0, 0, 0, 0] and lists_of(kjt.split([1, 2])[1]) == {"b": [], "c": []}


def test_moving_to_where_it_is_changes_nothing() -> None:
    kjt = ours()
    assert kjt.to("cpu") is kjt and kjt["a"].device().type == "cpu"
    assert kjt.sync() is kjt


@pytest.mark.skipif(theirs is None, reason="TorchRec is not installed")
@pytest.mark.parametrize(
    "look",
    [
        lambda k: k.keys(),
        lambda k: k.values().tolist(),
        lambda k: k.weights().tolist(),
        lambda k: k.lengths().tolist(),
        lambda k: k.offsets().tolist(),
        lambda k: (k.stride(), k.stride_per_key(), k.variable_stride_per_key()),
        lambda k: (k.length_per_key(), k.offset_per_key()),
        lambda k: [
            (s.keys(), s.values().tolist(), s.lengths().tolist(), s.weights().tolist()) for s in k.split([2, 1])
        ],
        lambda k: (p := k.permute([2, 0, 1])) and (p.keys(), p.values().tolist(), p.lengths().tolist()),
        lambda k: {key: [v.tolist() for v in part.to_dense()] for key, part in k.to_dict().items()},
        lambda k: k["b"].to_padded_dense(2).tolist(),
        lambda k: k["a"].weights().tolist(),
    ],
)
def test_what_torchrec_says_of_the_same(look: Callable[[Any], Any]) -> None:
    reference = theirs.KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS, WEIGHTS)
    assert look(ours()) == look(reference)

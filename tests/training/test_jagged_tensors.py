"""JaggedTensor and KeyedJaggedTensor: plain lists, and TorchRec's own classes where they are installed."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ecrec.training import JaggedTensor, KeyedJaggedTensor, KeyedTensor  # noqa: E402

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


@pytest.mark.parametrize("mask", [[True, False], torch.tensor([True, False, True]), [0.0, 1.0], ["a"], [None]])
def test_numbers_of_keys_are_whole(mask: Any) -> None:
    """A mask would be read as the numbers 0 and 1."""
    for call, words in ((ours().permute, "permute: the number of a key"), (ours().split, "split: a number of keys")):
        with pytest.raises(TypeError, match=rf"{words} is .*, expected a whole number \(of a mask"):
            call(mask)
    assert lists_of(ours().permute(torch.tensor([2, 0]))) == of(0, 2)


def test_a_string_is_no_list_of_names() -> None:
    """It would be read as one of letters, which fits where the numbers of lists happen to."""
    ids, lengths = torch.arange(8).reshape(4, 2), torch.ones(8, dtype=torch.int64)
    for make in (
        lambda: KeyedJaggedTensor.from_ids("item", ids),
        lambda: KeyedJaggedTensor("item", ids.flatten(), lengths=lengths),
        lambda: KeyedJaggedTensor.from_lengths_sync("item", ids.flatten(), lengths),
        lambda: KeyedTensor("item", [1, 1, 1, 1], torch.ones(2, 4)),
    ):
        with pytest.raises(TypeError, match=r"keys is 'item', expected a list of names: \['item'\]"):
            make()
    with pytest.raises(TypeError, match=r"group 0 is 'ab', expected a list of names"):
        KeyedTensor.regroup([KeyedTensor(["a", "b"], [1, 1], torch.ones(2, 2))], ["ab"])


@pytest.mark.parametrize("number", [3, -1])
def test_a_key_of_a_number_that_none_has_is_an_error(number: int) -> None:
    with pytest.raises(IndexError, match=f"there is no key of number {number}, expected 0 to 2: a, b, c"):
        ours().permute([0, number])


def test_weights_of_lists_are_one_for_each_value_of_the_same_list() -> None:
    values = [torch.tensor([1, 2]), torch.tensor([3])]
    made = JaggedTensor.from_dense(values, [torch.tensor([0.1, 0.2]), torch.tensor([0.3])])
    assert made.weights().tolist() == torch.tensor([0.1, 0.2, 0.3]).tolist()
    with pytest.raises(ValueError, match=r"from_dense: list 0 has 2 values and 1 weights, expected a weight for each"):
        JaggedTensor.from_dense(values, [torch.tensor([0.1]), torch.tensor([0.2, 0.3])])
    with pytest.raises(ValueError, match=r"from_dense: weights of 1 lists, expected those of the 2 lists"):
        JaggedTensor.from_dense(values, [torch.tensor([0.1, 0.2, 0.3])])
    with pytest.raises(ValueError, match=r"from_dense: there are no lists, expected at least one"):
        JaggedTensor.from_dense([])


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


def test_values_of_any_type_are_held() -> None:
    floats = torch.arange(16.0).reshape(8, 2)
    kjt = KeyedJaggedTensor.from_lengths_sync(KEYS, floats, LENGTHS.to(torch.int32))
    assert kjt["b"].to_dense()[2].tolist() == floats[5:8].tolist()
    assert KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES.to(torch.int32), LENGTHS).values().dtype == torch.int64
    with pytest.raises(ValueError, match=r"values is \(4, 2\), expected a vector"):
        KeyedJaggedTensor.from_lengths_sync(["a"], torch.ones(4, 2, dtype=torch.int64), torch.tensor([4]))


def test_an_empty_tensor_may_be_of_any_type() -> None:
    kjt = KeyedJaggedTensor.from_lengths_sync(KEYS, torch.tensor([]), torch.tensor([]))
    assert kjt.stride() == 0 and lists_of(kjt) == {key: [] for key in KEYS}
    assert KeyedJaggedTensor([], torch.tensor([])).keys() == []
    assert KeyedJaggedTensor.empty(is_weighted=True).weights().tolist() == []
    assert KeyedJaggedTensor.empty_like(ours()).stride() == 3
    assert JaggedTensor.empty(values_dtype=torch.int64).to_dense() == []


def test_no_keys_keep_the_number_of_examples() -> None:
    none, rest = ours().split([0, 3])
    assert none.stride() == 3 and KeyedJaggedTensor.concat([none, rest]).stride() == 3
    assert ours().permute([]).stride() == 3
    assert ours().permute([]).weights().tolist() == []
    with pytest.raises(ValueError, match="stride is 4, but there are 9 lists of 3 keys"):
        KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, stride=4)
    with pytest.raises(ValueError, match=r"length_per_key is \[3, 4, 1\], but the lengths give \[3, 5, 0\]"):
        KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, length_per_key=[3, 4, 1])


def test_a_key_may_be_permuted_to_several_places() -> None:
    kjt = ours().permute([1, 0, 1])
    assert kjt.keys() == ["b", "a", "b"] and kjt.length_per_key() == [5, 3, 5]
    assert kjt["b"].to_dense()[2].tolist() == [6, 7, 8]
    assert [part.keys() for part in kjt.split([1, 2])] == [["b"], ["a", "b"]]
    assert kjt.to("cpu").keys() == kjt.keys()


@pytest.mark.parametrize(
    "given",
    [{"stride_per_key_per_rank": [[3], [3], [3]]}, {"stride_per_key": [3, 3, 3]}, {"inverse_indices": (KEYS, VALUES)}],
)
def test_batch_sizes_that_differ_by_key_are_refused_by_name(given: Any) -> None:
    words = rf"{next(iter(given))} is given: batch sizes that differ by key \(VBE\) are not supported"
    for make in (
        lambda: KeyedJaggedTensor(KEYS, VALUES, lengths=LENGTHS, **given),
        lambda: KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS, **given),
        lambda: KeyedJaggedTensor.from_offsets_sync(KEYS, VALUES, ours().offsets(), **given),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    assert ours().stride_per_key_per_rank() == [] and ours().inverse_indices_or_none() is None
    with pytest.raises(ValueError, match="no inverse indices"):
        ours().inverse_indices()


def test_lists_without_contents_are_refused() -> None:
    with pytest.raises(ValueError, match="on the device meta have no contents"):
        KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES.to("meta"), LENGTHS.to("meta"))


@pytest.mark.parametrize(
    ("values", "lengths", "weights", "words"),
    [
        ((2, 3), [1, 4], None, r"lengths has 4, and values is \(2, 3\)"),
        ((2, 3), [1, -1], None, "the list of list 1 has length -1"),
        ((2, 3), [1], None, r"values is \(2, 3\), expected \[1, n, ...\]"),
        ((2,), [1, 1], None, r"values is \(2,\)"),
        ((2, 3), [1, 1], (2, 2), r"weights is \(2, 2\), expected one for each of values \(2, 3\)"),
    ],
)
def test_rows_and_lengths_that_do_not_fit(values: Any, lengths: Any, weights: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JaggedTensor.from_dense_lengths(
            torch.ones(values), torch.tensor(lengths), None if weights is None else torch.ones(weights)
        )


class Features(torch.nn.Module):
    """Makes features of its inputs, and of others."""

    def forward(self, ids: Any, lengths: Any, kjts: Any) -> Any:
        made = KeyedJaggedTensor(["x"], ids, lengths=lengths)
        rows = JaggedTensor.from_dense_lengths(ids.reshape(2, -1), lengths)
        return made, KeyedJaggedTensor.concat(kjts), rows


def test_a_graph_of_torch_fx_makes_the_same() -> None:
    args = torch.tensor([1, 2, 3, 4]), torch.tensor([2, 2]), ours().split([1, 2])
    traced = torch.fx.symbolic_trace(Features())
    assert [str(each) for each in traced(*args)] == [str(each) for each in Features()(*args)]


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
        lambda k: (k.lengths_offset_per_key(), k.index_per_key()),
        lambda k: (k.offsets().tolist(), k.lengths_or_none().tolist(), k.offsets_or_none().tolist()),
        lambda k: (k.sync().length_per_key_or_none(), k.offset_per_key_or_none()),
        lambda k: k.split([0, 3])[0].stride(),
        lambda k: (p := k.permute([1, 0, 1])) and (p.keys(), p.values().tolist(), p.offset_per_key()),
        lambda k: (c := type(k).concat(k.split([1, 2]))) and (c.keys(), c.values().tolist(), c.offsets().tolist()),
        lambda k: type(k).empty_like(k).stride(),
        lambda k: (str(type(k).empty()), type(k).empty(is_weighted=True).weights().tolist()),
        lambda k: (f := type(k).from_jt_dict(k.to_dict())) and (f.keys(), f.weights().tolist(), f.lengths().tolist()),
        lambda k: k.flatten_lengths().lengths().tolist(),
        lambda k: k.stride_per_key_per_rank(),
        lambda k: k.inverse_indices_or_none(),
        lambda k: (t := k.to(torch.device("cpu"))) and (t.offsets().tolist(), t.weights().tolist()),
        lambda k: [each.tolist() for each in k["b"].to_dense_weights()],
        lambda k: k["b"].to_padded_dense_weights(2, 1.5).tolist(),
        lambda k: (j := k["b"]) and (j.offsets().tolist(), j.lengths_or_none().tolist(), j.offsets_or_none().tolist()),
        lambda k: str(k),
        lambda k: str(type(k).from_lengths_sync(KEYS, VALUES, LENGTHS)),
        lambda k: str(k["b"]),
        lambda k: str(type(k["b"])(torch.arange(6.0).reshape(3, 2), lengths=torch.tensor([1, 0, 2]))),
        lambda k: type(k["b"])(torch.arange(6).reshape(3, 2), lengths=torch.tensor([1, 0, 2])).to_padded_dense(3),
        lambda k: str(type(k["b"]).from_dense_lengths(torch.arange(6).reshape(2, 3), torch.tensor([1, 3]))),
        lambda k: str(type(k["b"]).from_dense([torch.ones(2), torch.zeros(0)], [torch.ones(2), torch.zeros(0)])),
        lambda k: k["b"].to(torch.device("cpu")).values().tolist(),
    ],
)
def test_what_torchrec_says_of_the_same(look: Callable[[Any], Any]) -> None:
    reference = theirs.KeyedJaggedTensor.from_lengths_sync(KEYS, VALUES, LENGTHS, WEIGHTS)
    found, expected = look(ours()), look(reference)
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected

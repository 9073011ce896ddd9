"""Pooled embeddings by name."""

import pytest

torch = pytest.importorskip("torch")

from ecrec.training import KeyedTensor  # noqa: E402


def made() -> KeyedTensor:
    return KeyedTensor(["a", "b", "c"], [1, 2, 3], torch.arange(12.0).reshape(2, 6))


def test_each_key_has_its_columns() -> None:
    kt = made()
    assert (kt.keys(), kt.length_per_key(), kt.offset_per_key(), kt.key_dim()) == (
        ["a", "b", "c"], [1, 2, 3], [0, 1, 3, 6], 1,
    )  # fmt: skip
    assert kt["b"].tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert {key: each.shape[1] for key, each in kt.to_dict().items()} == {"a": 1, "b": 2, "c": 3}
    assert torch.equal(torch.cat(list(kt.to_dict().values()), dim=1), kt.values())
    assert kt.device() == torch.device("cpu") and kt.to("cpu").keys() == kt.keys()
    assert repr(kt) == "KeyedTensor({'a': 1, 'b': 2, 'c': 3}, values=(2, 6))"


def test_from_a_list_and_back_by_groups() -> None:
    kt = made()
    other = KeyedTensor.from_tensor_list(["d", "e"], [torch.ones(2, 2), torch.zeros(2, 1)])
    groups = KeyedTensor.regroup([kt, other], [["d", "a"], ["b"], ["a", "e"]])
    assert [each.tolist() for each in groups] == [
        [[1.0, 1.0, 0.0], [1.0, 1.0, 6.0]],
        [[1.0, 2.0], [7.0, 8.0]],
        [[0.0, 0.0], [6.0, 0.0]],
    ]
    named = KeyedTensor.regroup_as_dict([kt, other], [["c"], ["e"]], ["first", "second"])
    assert torch.equal(named["first"], kt["c"]) and torch.equal(named["second"], other["e"])


def test_gradients_go_through() -> None:
    values = torch.zeros(2, 3, requires_grad=True)
    KeyedTensor(["a", "b"], [1, 2], values)["b"].sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[0.0, 1.0, 1.0]] * 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one each, and no key twice"):
        KeyedTensor(["a", "a"], [1, 1], torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"length_per_key adds up to 1, and values is \(1, 2\)"):
        KeyedTensor(["a"], [1], torch.zeros(1, 2))
    with pytest.raises(KeyError, match="there is no key 'd'; there are a, b, c"):
        made()["d"]
    with pytest.raises(KeyError, match="there is no key d"):
        KeyedTensor.regroup([made()], [["d"]])
    with pytest.raises(ValueError, match="found a, b, c more than once"):
        KeyedTensor.regroup([made(), made()], [["a"]])


def test_its_text_is_its_values() -> None:
    kt = KeyedTensor(["a", "b"], [1, 2], torch.arange(3.0).reshape(1, 3))
    assert str(kt) == 'KeyedTensor({\n    "a": [[0.0]],\n    "b": [[1.0, 2.0]]\n})\n'
    assert str(KeyedTensor([], [], torch.tensor([]))) == "KeyedTensor()\n"
    assert kt.size_in_bytes() == 12


class Towers(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> object:
        pair = [KeyedTensor(["a"], [2], left), KeyedTensor(["b"], [2], right)]
        groups = KeyedTensor.regroup(pair, [["a", "b"], ["b"]])
        return groups[0], KeyedTensor.regroup_as_dict(pair, [["b", "a"]], ["both"])


def test_a_graph_of_torch_fx_makes_the_same() -> None:
    left, right = torch.arange(8.0).reshape(2, 2, 2)
    together, by_name = torch.fx.symbolic_trace(Towers())(left, right)
    assert together.tolist() == torch.cat([left, right], dim=1).tolist()
    assert by_name["both"].tolist() == torch.cat([right, left], dim=1).tolist()


def test_tensors_of_different_key_dims_are_not_regrouped() -> None:
    other = KeyedTensor(["d"], [2], torch.zeros(2, 6), key_dim=0)
    with pytest.raises(
        ValueError, match=r"their keys in different dimensions, key_dim \[1, 0\]: expected the same one"
    ):
        KeyedTensor.regroup([made(), other], [["a", "d"]])
    with pytest.raises(ValueError, match=r"group 1 has no keys, expected at least one in each group"):
        KeyedTensor.regroup([made()], [["a"], []])
    with pytest.raises(ValueError, match=r"there are 1 keys for 2 groups, expected one for each"):
        KeyedTensor.regroup_as_dict([made()], [["a"], ["b"]], ["left"])

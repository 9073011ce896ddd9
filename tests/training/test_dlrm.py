"""The DLRM against its definition, and the sparse batch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ecrec.training.dlrm import DLRM, _PairwiseDots, _triangle_indices  # noqa: E402
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor  # noqa: E402


def test_logits_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    model = DLRM(3, 4, 5, bottom_mlp=(7,), top_mlp=(8, 6))
    dense, pooled = torch.randn(9, 3), torch.randn(9, 20)
    bottom = model.bottom(dense)
    vectors = [bottom, *pooled.split(5, dim=1)]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(5) for j in range(i)]
    expected = model.top(torch.cat([bottom, torch.stack(dots, 1)], 1)).squeeze(1)
    torch.testing.assert_close(model(dense, pooled), expected)
    torch.testing.assert_close(model(dense, pooled.view(9, 4, 5)), expected)


def test_gradients_of_the_interaction_are_right() -> None:
    take, spread = _triangle_indices(4)
    vectors = torch.randn(3, 4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _PairwiseDots.apply(v, take, spread), (vectors,))


def test_one_seed_gives_one_model_and_options_change_its_sizes() -> None:
    torch.manual_seed(3)
    first = DLRM(13, 26, 16, bottom_mlp=(), top_mlp=(64,))
    torch.manual_seed(3)
    second = DLRM(13, 26, 16, bottom_mlp=(), top_mlp=(64,))
    assert list(first.state_dict()) == [
        "bottom.0.weight",
        "bottom.0.bias",
        *(f"top.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")),
    ]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert first.top[0].weight.shape == (64, 16 + 26 * 27 // 2)


def test_wrong_shapes_are_refused() -> None:
    model = DLRM(3, 4, 5)
    with pytest.raises(ValueError, match=r"dense is \(2, 4\), expected \[B, 3\]"):
        model(torch.zeros(2, 4), torch.zeros(2, 20))
    with pytest.raises(ValueError, match=r"pooled is \(2, 19\), expected \(2, 20\) or \(2, 4, 5\)"):
        model(torch.zeros(2, 3), torch.zeros(2, 19))
    with pytest.raises(ValueError, match="at least 1"):
        DLRM(3, 4, 0)


def test_a_keyed_jagged_tensor_from_lengths_and_from_offsets_is_the_same() -> None:
    values = torch.tensor([5, 6, 7, 8])
    a = KeyedJaggedTensor.from_lengths_sync(["x", "y"], values, torch.tensor([2, 0, 1, 1]))
    b = KeyedJaggedTensor.from_offsets_sync(["x", "y"], values, torch.tensor([0, 2, 2, 3, 4]))
    for kjt in (a, b):
        assert kjt.keys() == ["x", "y"]
        assert kjt.stride() == 2
        assert kjt.values().tolist() == [5, 6, 7, 8]
        assert kjt.lengths().tolist() == [2, 0, 1, 1]
        assert kjt.offsets().tolist() == [0, 2, 2, 3, 4]


def test_a_keyed_jagged_tensor_of_one_id_each_is_feature_major() -> None:
    kjt = KeyedJaggedTensor.from_ids(["x", "y"], torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert kjt.values().tolist() == [1, 2, 3, 4, 5, 6]
    assert kjt.lengths().tolist() == [1] * 6
    assert kjt.offsets().tolist() == list(range(7))
    assert kjt.stride() == 3
    assert KeyedJaggedTensor.from_ids(["x"], torch.zeros(1, 0, dtype=torch.int64)).stride() == 0


@pytest.mark.parametrize(
    ("keys", "values", "lengths", "message"),
    [
        (["x", "x"], [1], [1, 0], "differ"),
        (["x", "y"], [1], [1, 0, 0], "multiple of the 2 keys"),
        (["x"], [1], [2, -1], "example 1 has length -1"),
        (["x"], [1, 2], [1], "add up to 1"),
        ([], [], [1], "multiple of the 0 keys"),
        (["x"], [[1]], [1], "vector"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    keys: list[str], values: list[int], lengths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KeyedJaggedTensor.from_lengths_sync(keys, torch.tensor(values, dtype=torch.int64), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([0, 1], "from 0 to 1"), ([1, 2], "from 1 to 2"), ([0, 3, 2], "decrease"), ([], "empty")],
)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeyedJaggedTensor.from_offsets_sync(["x"], torch.tensor([1, 2]), torch.tensor(offsets, dtype=torch.int64))

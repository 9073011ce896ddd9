"""Lists of any length in one tensor, and what such lists must be.

The names and meanings are TorchRec's (`torchrec.sparse.jagged_tensor`), without its dependence on fbgemm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ecrec.training.traceable import Traceable


class Jagged(metaclass=Traceable):
    """What lists in one vector are made of; `JaggedTensor` and `KeyedJaggedTensor` say whose lists they are.

    In a torch.fx graph one that is made of its inputs is a node.
    """

    _values: Tensor
    _weights: Tensor | None
    _lengths: Tensor
    _offsets: Tensor

    def values(self) -> Tensor:
        """All of them, one list after the other, [N]."""
        return self._values

    def lengths(self) -> Tensor:
        """Values of each list, int64."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each list begins, and the end of the last one, int64: one more than there are lists."""
        return self._offsets

    def lengths_or_none(self) -> Tensor | None:
        """`lengths`, which are always known here."""
        return self._lengths

    def offsets_or_none(self) -> Tensor | None:
        """`offsets`, which are always known here."""
        return self._offsets

    def weights(self) -> Tensor:
        """One for each value. Raises ValueError if there are none."""
        if self._weights is None:
            raise ValueError(f"this {type(self).__name__} has no weights")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        return self._weights

    def device(self) -> torch.device:
        return self._values.device

    def record_stream(self, stream: Any) -> None:
        """Its memory on a GPU is kept until the stream has passed this point."""
        for each in (self._values, self._weights, self._lengths, self._offsets):
            if each is not None:
                each.record_stream(stream)


class JaggedTensor(Jagged):
    """Lists of any length in one vector: list b is `values[offsets[b] : offsets[b + 1]]`.

    ``values``: [N] or [N, ...]. Of ``lengths`` (integers [B]) and ``offsets`` (integers [B + 1]) one is needed.
    ``weights``: [N] or [N, ...], one for each value. ``str()`` shows all lists, as TorchRec's. Raises ValueError and
    TypeError for what does not fit together.
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        self._lengths, self._offsets = both(lengths, offsets, len(values))
        if weights is not None and (not weights.dim() or len(weights) != len(values)):
            raise ValueError(f"weights is {tuple(weights.shape)}, expected one for each of the {len(values)} values")
        self._values, self._weights = values, weights

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int64,
    ) -> JaggedTensor:
        """No lists. ``lengths_dtype`` is checked, and lengths are int64."""
        values = torch.empty(0, dtype=values_dtype, device=device)
        weights = torch.empty(0, dtype=weights_dtype, device=device) if is_weighted else None
        return JaggedTensor(values, weights, lengths=torch.empty(0, dtype=lengths_dtype, device=device))

    @staticmethod
    def from_dense(values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> JaggedTensor:
        """From a tensor for each list. ValueError for no lists, and for weights that are not one for each value of the
        same list."""
        values = list(values)
        if not values:
            raise ValueError("from_dense: there are no lists, expected at least one; JaggedTensor.empty() has none")
        sizes = [len(each) for each in values]
        if weights is not None:
            weights = list(weights)
            _check_sizes(sizes, [len(each) for each in weights])
        together = torch.cat(values)
        lengths = torch.tensor(sizes, dtype=torch.int64, device=together.device)
        return JaggedTensor(together, None if weights is None else torch.cat(weights), lengths)

    @staticmethod
    def from_dense_lengths(values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> JaggedTensor:
        """From [B, n, ...] with the first ``lengths[b]`` of each row b. Raises ValueError for a length above n."""
        return _from_dense_lengths(values, lengths, weights)

    def to_dense(self) -> list[Tensor]:
        """A tensor for each list."""
        return list(torch.split(self._values, self._lengths.tolist()))

    def to_dense_weights(self) -> list[Tensor] | None:
        """The weights of each list; None if there are none."""
        return None if self._weights is None else list(torch.split(self._weights, self._lengths.tolist()))

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """[B, desired_length, ...]: each list cut off or filled up; default as long as the longest."""
        return self._padded(self._values, desired_length, padding_value)

    def to_padded_dense_weights(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor | None:
        """`to_padded_dense` of the weights; None if there are none."""
        return None if self._weights is None else self._padded(self._weights, desired_length, padding_value)

    def _padded(self, of: Tensor, desired_length: int | None, padding_value: float) -> Tensor:
        size = int(self._lengths.max()) if desired_length is None and len(self._lengths) else desired_length or 0
        out = of.new_full((len(self._lengths), size, *of.shape[1:]), padding_value)
        lists = torch.repeat_interleave(torch.arange(len(self._lengths), device=of.device), self._lengths)
        places = torch.arange(len(of), device=of.device) - self._offsets[lists]
        kept = places < size
        out[lists[kept], places[kept]] = of[kept]
        return out

    def to(self, device: torch.device | str, non_blocking: bool = False) -> JaggedTensor:
        """Itself where it is there already."""
        made = [moved(each, device, non_blocking) for each in (self._values, self._weights, self._lengths)]
        if made[0] is self._values:
            return self
        assert made[0] is not None
        return JaggedTensor(made[0], made[1], made[2])

    def __repr__(self) -> str:
        return f"JaggedTensor(lists={len(self._lengths)}, values={tuple(self._values.shape)})"

    def __str__(self) -> str:
        values = text_of(self._values, self._lengths)
        if self._weights is None:
            return f"JaggedTensor({{\n    {values}\n}})\n"
        weights = text_of(self._weights, self._lengths)
        return f'JaggedTensor({{\n    "values": {values},\n    "weights": {weights}\n}})\n'


@torch.fx.wrap
def _from_dense_lengths(values: Tensor, lengths: Tensor, weights: Tensor | None) -> JaggedTensor:
    lengths = integers(lengths, "lengths")
    if values.dim() < 2 or lengths.shape != values.shape[:1]:
        raise ValueError(f"values is {tuple(values.shape)}, expected [{len(lengths)}, n, ...]: a row for each length")
    if weights is not None and weights.shape[:2] != values.shape[:2]:
        raise ValueError(f"weights is {tuple(weights.shape)}, expected one for each of values {tuple(values.shape)}")
    if text := _negative("lengths", lengths, ()):
        raise ValueError(text)
    if len(lengths) and int(lengths.max()) > values.shape[1]:
        raise ValueError(f"lengths has {int(lengths.max())}, and values is {tuple(values.shape)}")
    kept = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return JaggedTensor(values[kept], None if weights is None else weights[kept], lengths)


def _check_sizes(values: Sequence[int], weights: Sequence[int]) -> None:
    """Raise ValueError for the first list whose weights are not one for each value."""
    if len(weights) != len(values):
        raise ValueError(f"from_dense: weights of {len(weights)} lists, expected those of the {len(values)} lists")
    for number, (expected, found) in enumerate(zip(values, weights, strict=True)):
        if found != expected:
            raise ValueError(
                f"from_dense: list {number} has {expected} values and {found} weights, expected a weight for each value"
            )


def moved(tensor: Tensor | None, device: torch.device | str, non_blocking: bool) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=non_blocking)


def text_of(values: Tensor, lengths: Tensor) -> str:
    """For people: the lists. Raises ValueError where an element has more than one dimension."""
    if values.dim() > 2:
        raise ValueError(f"values is {tuple(values.shape)}, and only [N] and [N, n] can be printed")
    return str([each.tolist() for each in torch.split(values, lengths.tolist())])


def _negative(what: str, lengths: Tensor, keys: Sequence[str]) -> str:
    """For people: the first list whose length is below 0; empty if there is none."""
    if not len(lengths) or int(lengths.min()) >= 0:
        return ""
    first = int((lengths < 0).nonzero()[0])
    where = f"list {first}"
    if keys:
        feature, example = divmod(first, len(lengths) // len(keys))
        where = f"feature {keys[feature]!r}, example {example}"
    return f"{what}: the list of {where} has length {int(lengths[first])}, expected at least 0"


def both(lengths: Tensor | None, offsets: Tensor | None, count: int, keys: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """Lengths and offsets, checked, of which one at least is given. ``keys``: whose lists they are, key by key."""
    if lengths is None and offsets is None:
        raise ValueError("neither lengths nor offsets, expected one of them")
    if any(each is not None and each.is_meta for each in (lengths, offsets)):
        raise ValueError("lengths and offsets on the device meta have no contents: without them there are no lists")
    if offsets is not None:
        offsets = integers(offsets, "offsets")
        if not len(offsets):
            raise ValueError("offsets is empty, expected at least [0]")
        if int(offsets[0]) != 0 or int(offsets[-1]) != count:
            raise ValueError(
                f"offsets go from {int(offsets[0])} to {int(offsets[-1])}, expected from 0 to {count}, the number of "
                "values"
            )
        steps = offsets[1:] - offsets[:-1]
        if text := _negative("offsets decrease", steps, keys):
            raise ValueError(text)
        if lengths is None:
            return steps, offsets
    assert lengths is not None
    lengths = integers(lengths, "lengths")
    if text := _negative("lengths", lengths, keys):
        raise ValueError(text)
    total = int(lengths.sum())
    if total != count:
        raise ValueError(f"lengths add up to {total}, but there are {count} values")
    if offsets is not None:
        if not torch.equal(lengths, steps):
            raise ValueError("lengths and offsets differ")
        return lengths, offsets
    made = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=made[1:])
    return lengths, made


def names(given: Sequence[str], what: str) -> list[str]:
    """A list of names. Raises TypeError for a string, which would be read as one of its letters."""
    if isinstance(given, str):
        raise TypeError(f"{what} is {given!r:.100}, expected a list of names: [{given!r:.100}]")
    return list(given)


def integers(tensor: Tensor, name: str) -> Tensor:
    """The same as int64. Raises ValueError for what is no vector and numbers from 2**63 on, TypeError for others than
    integers. An empty tensor may be of any type and shape, as `torch.tensor([])` is."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.int64, device=tensor.device)
    if tensor.dim() != 1:
        raise ValueError(f"{name} is {tuple(tensor.shape)}, expected a vector")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} is {tensor.dtype}, expected integers")
    if tensor.dtype == torch.uint64:
        signed = tensor.view(torch.int64)
        if len(signed) and (least := int(signed.min())) < 0:
            raise ValueError(f"{name} has {least + (1 << 64)}, expected less than 2**63")
        return signed
    return tensor.to(torch.int64)

"""The sparse features of a batch: for each feature and example, a list of ids of any length.

The names and meanings are TorchRec's (`torchrec.sparse.jagged_tensor`), without its dependence on fbgemm.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


class JaggedTensor:
    """Lists of any length in one vector: list b is `values[offsets[b] : offsets[b + 1]]`.

    ``values``: [N] or [N, ...]. Of ``lengths`` (integers [B]) and ``offsets`` (integers [B + 1]) one is needed.
    ``weights``: [N], one for each value. Raises ValueError and TypeError for what does not fit together.
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        self._lengths, self._offsets = _both(lengths, offsets, len(values))
        _check_weights(weights, len(values))
        self._values, self._weights = values, weights

    @staticmethod
    def from_dense(values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> JaggedTensor:
        """From a tensor for each list."""
        lengths = torch.tensor([len(each) for each in values], dtype=torch.int64)
        return JaggedTensor(torch.cat(list(values)), None if weights is None else torch.cat(list(weights)), lengths)

    def values(self) -> Tensor:
        """All of them, one list after the other."""
        return self._values

    def lengths(self) -> Tensor:
        """Values of each list, int64[B]."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each list begins, and the end of the last one, int64[B + 1]."""
        return self._offsets

    def weights(self) -> Tensor:
        """One for each value. Raises ValueError if there are none."""
        if self._weights is None:
            raise ValueError("this JaggedTensor has no weights")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        return self._weights

    def to_dense(self) -> list[Tensor]:
        """A tensor for each list."""
        return list(torch.split(self._values, self._lengths.tolist()))

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """[B, desired_length, ...]: each list cut off or filled up; default as long as the longest."""
        size = int(self._lengths.max()) if desired_length is None and len(self._lengths) else desired_length or 0
        out = self._values.new_full((len(self._lengths), size, *self._values.shape[1:]), padding_value)
        lists = torch.repeat_interleave(torch.arange(len(self._lengths), device=self._values.device), self._lengths)
        places = torch.arange(len(self._values), device=self._values.device) - self._offsets[lists]
        kept = places < size
        out[lists[kept], places[kept]] = self._values[kept]
        return out

    def to(self, device: torch.device | str, non_blocking: bool = False) -> JaggedTensor:
        """Itself where it is there already."""
        moved = [_moved(each, device, non_blocking) for each in (self._values, self._weights, self._lengths)]
        if moved[0] is self._values:
            return self
        assert moved[0] is not None
        return JaggedTensor(moved[0], moved[1], moved[2])

    def device(self) -> torch.device:
        return self._values.device

    def __repr__(self) -> str:
        return f"JaggedTensor(lists={len(self._lengths)}, values={tuple(self._values.shape)})"


class KeyedJaggedTensor:
    """F keys and B examples; the lists lie feature-major in one vector.

    ``values``: int64[N], all ids; the list of key f and example b is `values[offsets[f * B + b] : offsets[f * B + b
    + 1]]`. ``weights``: float[N], one for each id, or None. Of ``lengths`` (int64[F * B]) and ``offsets``
    (int64[F * B + 1]) one is needed. Everything is checked, and kept without a copy where the dtype is int64 already.

    Raises ValueError for duplicate keys, a shape that is not a vector, a number of lengths that is not a multiple of
    the number of keys, a negative length, offsets that decrease or do not go from 0 to the number of values, and ids
    from 2**63 on; TypeError for ids, lengths or offsets that are not integers.
    """

    def __init__(
        self,
        keys: Sequence[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        values = integers(values, "values")
        if lengths is not None:
            _check_keys(keys, len(lengths), "lengths")
        elif offsets is not None:
            _check_keys(keys, len(offsets) - 1, "offsets, less the last one,")
        self._lengths, self._offsets = _both(lengths, offsets, len(values), keys)
        _check_weights(weights, len(values))
        self._keys, self._values, self._weights = list(keys), values, weights

    # ------------------------------------------------------------------ made from
    @staticmethod
    def from_lengths_sync(
        keys: Sequence[str], values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """From the length of each list, integers [F * B]."""
        return KeyedJaggedTensor(keys, values, weights, lengths=lengths)

    @staticmethod
    def from_offsets_sync(
        keys: Sequence[str], values: Tensor, offsets: Tensor, weights: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """From where each list begins, integers [F * B + 1], from 0 to the number of values."""
        return KeyedJaggedTensor(keys, values, weights, offsets=offsets)

    @staticmethod
    def from_ids(keys: Sequence[str], ids: Tensor) -> KeyedJaggedTensor:
        """One id for each key and example: integers [F, B], feature-major, as `ecrec.data.Batch.ids`."""
        if ids.dim() != 2 or ids.shape[0] != len(keys):
            raise ValueError(f"ids is {tuple(ids.shape)}, expected [{len(keys)}, B]")
        values = integers(ids.reshape(-1), "ids")
        return KeyedJaggedTensor(keys, values, lengths=torch.ones_like(values))

    @staticmethod
    def from_dict(columns: Mapping[str, Any]) -> KeyedJaggedTensor:
        """From a column for each key, all of B examples: integers [B] (one id each), integers [B, n] (n ids each), a
        `JaggedTensor`, or a sequence of sequences of ids."""
        return KeyedJaggedTensor.from_jt_dict({key: _column(key, column) for key, column in columns.items()})

    @staticmethod
    def from_jt_dict(jt_dict: Mapping[str, JaggedTensor]) -> KeyedJaggedTensor:
        """From a JaggedTensor for each key, all of B lists."""
        if not jt_dict:
            raise ValueError("no columns, expected at least one")
        parts = list(jt_dict.values())
        sizes = {key: len(part.lengths()) for key, part in jt_dict.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"columns differ in their number of examples: {sizes}")
        weights = [part.weights_or_none() for part in parts]
        given = [each for each in weights if each is not None]
        if given and len(given) < len(parts):
            raise ValueError("some columns have weights, and others have none")
        return KeyedJaggedTensor(
            list(jt_dict),
            torch.cat([part.values() for part in parts]),
            torch.cat(given) if given else None,
            lengths=torch.cat([part.lengths() for part in parts]),
        )

    @staticmethod
    def concat(kjt_list: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
        """The keys of all, of the same examples."""
        if not kjt_list:
            raise ValueError("nothing to concatenate")
        if len({kjt.stride() for kjt in kjt_list}) > 1:
            raise ValueError(f"numbers of examples differ: {[kjt.stride() for kjt in kjt_list]}")
        given = [kjt._weights for kjt in kjt_list if kjt._weights is not None]
        if given and len(given) < len(kjt_list):
            raise ValueError("some have weights, and others have none")
        return KeyedJaggedTensor(
            [key for kjt in kjt_list for key in kjt._keys],
            torch.cat([kjt._values for kjt in kjt_list]),
            torch.cat(given) if given else None,
            lengths=torch.cat([kjt._lengths for kjt in kjt_list]),
        )

    # ------------------------------------------------------------------ what there is
    def keys(self) -> list[str]:
        """The F feature names."""
        return self._keys

    def values(self) -> Tensor:
        """All ids, int64[N]."""
        return self._values

    def weights(self) -> Tensor:
        """One for each id. Raises ValueError if there are none."""
        if self._weights is None:
            raise ValueError("this KeyedJaggedTensor has no weights")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        return self._weights

    def lengths(self) -> Tensor:
        """Ids of each list, int64[F * B]."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each list begins, and the end of the last one, int64[F * B + 1]."""
        return self._offsets

    def stride(self) -> int:
        """B, the examples of the batch."""
        return len(self._lengths) // len(self._keys) if self._keys else 0

    def stride_per_key(self) -> list[int]:
        return [self.stride()] * len(self._keys)

    def variable_stride_per_key(self) -> bool:
        """Whether batch sizes differ by key: never."""
        return False

    def length_per_key(self) -> list[int]:
        """Ids of each key."""
        ends = self.offset_per_key()
        return [last - first for first, last in pairwise(ends)]

    def offset_per_key(self) -> list[int]:
        """Where each key's ids begin, and the end of the last one's."""
        batch = self.stride()
        ends: list[int] = self._offsets[::batch].tolist() if batch else [0] * (len(self._keys) + 1)
        return ends

    def device(self) -> torch.device:
        return self._values.device

    def __getitem__(self, key: str) -> JaggedTensor:
        """One key's lists. KeyError, naming those there are."""
        if key not in self._keys:
            raise KeyError(f"there is no key {key!r}; there are {', '.join(self._keys)}")
        return self._part(self._keys.index(key))

    def to_dict(self) -> dict[str, JaggedTensor]:
        """Each key's lists."""
        return {key: self._part(i) for i, key in enumerate(self._keys)}

    # ------------------------------------------------------------------ other ones
    def permute(self, indices: Sequence[int]) -> KeyedJaggedTensor:
        """The keys of these numbers, in this order."""
        return KeyedJaggedTensor.from_jt_dict({self._keys[i]: self._part(i) for i in indices})

    def split(self, segments: Sequence[int]) -> list[KeyedJaggedTensor]:
        """The first so many keys, the next so many, and so on."""
        if sum(segments) != len(self._keys) or min(segments, default=0) < 0:
            raise ValueError(f"segments {list(segments)} do not add up to the {len(self._keys)} keys")
        ends = list(accumulate(segments, initial=0))
        offsets, batch = self.offset_per_key(), self.stride()
        return [
            KeyedJaggedTensor(
                self._keys[first:last],
                self._values[offsets[first] : offsets[last]],
                None if self._weights is None else self._weights[offsets[first] : offsets[last]],
                lengths=self._lengths[first * batch : last * batch],
            )
            for first, last in pairwise(ends)
        ]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Itself where it is there already."""
        return self._with(lambda tensor: _moved(tensor, device, non_blocking))

    def pin_memory(self) -> KeyedJaggedTensor:
        """In memory that a GPU can copy from by itself."""
        return self._with(lambda tensor: None if tensor is None else tensor.pin_memory())

    def sync(self) -> KeyedJaggedTensor:
        """Itself: everything that TorchRec reckons late is known."""
        return self

    def _with(self, change: Any) -> KeyedJaggedTensor:
        values, weights, lengths = (change(each) for each in (self._values, self._weights, self._lengths))
        if values is self._values and lengths is self._lengths:
            return self
        return KeyedJaggedTensor(self._keys, values, weights, lengths=lengths)

    def _part(self, i: int) -> JaggedTensor:
        batch = self.stride()
        first, last = int(self._offsets[i * batch]), int(self._offsets[(i + 1) * batch])
        weights = None if self._weights is None else self._weights[first:last]
        return JaggedTensor(self._values[first:last], weights, self._lengths[i * batch : (i + 1) * batch])

    def __repr__(self) -> str:
        return f"KeyedJaggedTensor(keys={self._keys}, stride={self.stride()}, values={len(self._values)})"


def _column(key: str, column: Any) -> JaggedTensor:
    if isinstance(column, JaggedTensor):
        return column
    if isinstance(column, Tensor):
        if column.dim() not in (1, 2):
            raise ValueError(f"column {key!r} is {tuple(column.shape)}, expected [B] or [B, n]")
        each = 1 if column.dim() == 1 else column.shape[1]
        lengths = torch.full((len(column),), each, dtype=torch.int64, device=column.device)
        return JaggedTensor(integers(column.reshape(-1), f"column {key!r}"), lengths=lengths)
    try:
        lists = [list(each) for each in column]
        ids = [operator.index(i) for each in lists for i in each if not isinstance(i, bool)]
        if len(ids) != sum(map(len, lists)):
            raise TypeError("it has bool")
    except TypeError as error:
        raise TypeError(
            f"column {key!r} ({type(column).__name__}): {error}; expected a tensor of integers, or for each example a "
            "sequence of integers"
        ) from None
    try:
        values = torch.tensor(ids, dtype=torch.int64)
    except (RuntimeError, ValueError, OverflowError):
        raise ValueError(f"column {key!r} has {max(ids, key=abs)}, expected less than 2**63") from None
    return JaggedTensor(values, lengths=torch.tensor([len(each) for each in lists], dtype=torch.int64))


def _moved(tensor: Tensor | None, device: torch.device | str, non_blocking: bool) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=non_blocking)


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


def _both(
    lengths: Tensor | None, offsets: Tensor | None, count: int, keys: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Lengths and offsets, checked, of which one at least is given. ``keys``: whose lists they are, key by key."""
    if lengths is None and offsets is None:
        raise ValueError("neither lengths nor offsets, expected one of them")
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


def _check_weights(weights: Tensor | None, count: int) -> None:
    if weights is not None and (weights.dim() != 1 or len(weights) != count):
        raise ValueError(f"weights is {tuple(weights.shape)}, expected one for each of the {count} values")


def _check_keys(keys: Sequence[str], count: int, what: str) -> None:
    if len(set(keys)) != len(keys):
        raise ValueError(f"keys must differ, found {list(keys)}")
    if count < 0:
        raise ValueError("offsets is empty, expected at least [0]")
    if (count % len(keys) if keys else count) != 0:
        raise ValueError(f"{what} are {count}, expected a multiple of the {len(keys)} keys")


def integers(tensor: Tensor, name: str) -> Tensor:
    """The same as int64. Raises ValueError for what is no vector and numbers from 2**63 on, TypeError for others than
    integers."""
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

"""The sparse features of a batch: for each feature and example, a list of ids of any length.

The names and meanings are TorchRec's (`torchrec.sparse.jagged_tensor`), without its dependence on fbgemm.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ecrec.training.jagged_tensor import Jagged, JaggedTensor, both, integers, moved, names, text_of

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


class KeyedJaggedTensor(Jagged):
    """F keys and B examples; the lists lie feature-major in one vector.

    ``values``: all ids, [N]; the list of key f and example b is `values[offsets[f * B + b] : offsets[f * B + b + 1]]`.
    They are kept as int64, without a copy where they are. Values that are no integers are kept as they are, [N] or
    [N, ...]; a collection refuses them. ``weights``: float[N], one for each id, or None. Of ``lengths`` (integers
    [F * B]) and ``offsets`` (integers [F * B + 1]) one is needed, unless there are no keys. ``stride``: B, for no keys;
    with keys it is checked, as ``length_per_key`` is. ``str()`` shows all lists, as TorchRec's.

    Raises ValueError for duplicate keys, ids that are no vector, a number of lengths that is not a multiple of the
    number of keys, a negative length, offsets that decrease or do not go from 0 to the number of values, ids from 2**63
    on, and batch sizes that differ by key (``stride_per_key``, ``stride_per_key_per_rank``, ``inverse_indices``), which
    are not supported; TypeError for lengths or offsets that are not integers.
    """

    def __init__(
        self,
        keys: Sequence[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: Any = None,
        stride_per_key: Any = None,
        length_per_key: Sequence[int] | None = None,
        *,
        inverse_indices: Any = None,
    ) -> None:
        _refuse_variable_batches(stride_per_key_per_rank, stride_per_key, inverse_indices)
        keys = names(keys, "keys")
        if values.dtype in _INTEGERS:
            values = integers(values, "values")
        if not keys and lengths is None and offsets is None:
            lengths = torch.empty(0, dtype=torch.int64, device=values.device)
        if lengths is not None:
            _check_keys(keys, lengths.numel(), "lengths")
        elif offsets is not None:
            _check_keys(keys, len(offsets) - 1, "offsets, less the last one,")
        self._lengths, self._offsets = both(lengths, offsets, len(values), keys)
        _check_weights(weights, len(values))
        self._keys, self._values, self._weights = keys, values, weights
        self._stride = len(self._lengths) // len(self._keys) if self._keys else stride or 0
        if stride is not None and stride != self._stride:
            raise ValueError(f"stride is {stride}, but there are {len(self._lengths)} lists of {len(keys)} keys")
        ends = self._offsets[:: self._stride].tolist() if self._stride and keys else [0] * (len(self._keys) + 1)
        self._offset_per_key: list[int] = ends
        self._length_per_key = [last - first for first, last in pairwise(ends)]
        if length_per_key is not None and list(length_per_key) != self._length_per_key:
            raise ValueError(f"length_per_key is {list(length_per_key)}, but the lengths give {self._length_per_key}")

    # ------------------------------------------------------------------ made from
    @staticmethod
    def from_lengths_sync(
        keys: Sequence[str],
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None = None,
        stride_per_key_per_rank: Any = None,
        stride_per_key: Any = None,
        inverse_indices: Any = None,
    ) -> KeyedJaggedTensor:
        """From the length of each list, integers [F * B]."""
        _refuse_variable_batches(stride_per_key_per_rank, stride_per_key, inverse_indices)
        return KeyedJaggedTensor(keys, values, weights, lengths=lengths)

    @staticmethod
    def from_offsets_sync(
        keys: Sequence[str],
        values: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        stride_per_key_per_rank: Any = None,
        stride_per_key: Any = None,
        inverse_indices: Any = None,
    ) -> KeyedJaggedTensor:
        """From where each list begins, integers [F * B + 1], from 0 to the number of values."""
        _refuse_variable_batches(stride_per_key_per_rank, stride_per_key, inverse_indices)
        return KeyedJaggedTensor(keys, values, weights, offsets=offsets)

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int64,
    ) -> KeyedJaggedTensor:
        """No keys. ``lengths_dtype`` is checked, and lengths are int64."""
        part = JaggedTensor.empty(is_weighted, device, values_dtype, weights_dtype, lengths_dtype)
        return KeyedJaggedTensor([], part.values(), part.weights_or_none(), part.lengths())

    @staticmethod
    def empty_like(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """No keys, for as many examples, with weights where that one has some."""
        weights = None if kjt._weights is None else kjt._weights[:0]
        return KeyedJaggedTensor([], kjt._values[:0], weights, stride=kjt.stride())

    @staticmethod
    def from_ids(keys: Sequence[str], ids: Tensor) -> KeyedJaggedTensor:
        """One id for each key and example: integers [F, B], feature-major, as `ecrec.data.Batch.ids`."""
        keys = names(keys, "keys")
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
        return _concat(kjt_list)

    # ------------------------------------------------------------------ what there is
    def keys(self) -> list[str]:
        """The F feature names."""
        return self._keys

    def stride(self) -> int:
        """B, the examples of the batch."""
        return self._stride

    def stride_per_key(self) -> list[int]:
        return [self._stride] * len(self._keys)

    def stride_per_key_per_rank(self) -> list[list[int]]:
        """Batch sizes that differ by key: none."""
        return []

    def inverse_indices(self) -> Any:
        """Raises ValueError: batch sizes that differ by key are not supported."""
        raise ValueError("this KeyedJaggedTensor has no inverse indices: batch sizes that differ by key (VBE)")

    def inverse_indices_or_none(self) -> None:
        """Those of batch sizes that differ by key: none."""
        return None

    def variable_stride_per_key(self) -> bool:
        """Whether batch sizes differ by key: never."""
        return False

    def length_per_key(self) -> list[int]:
        """Ids of each key."""
        return list(self._length_per_key)

    def length_per_key_or_none(self) -> list[int] | None:
        """`length_per_key`, which is always known here."""
        return list(self._length_per_key)

    def offset_per_key(self) -> list[int]:
        """Where each key's ids begin, and the end of the last one's."""
        return list(self._offset_per_key)

    def offset_per_key_or_none(self) -> list[int] | None:
        """`offset_per_key`, which is always known here."""
        return list(self._offset_per_key)

    def lengths_offset_per_key(self) -> list[int]:
        """Where each key's lengths begin, and the end of the last one's."""
        return [i * self._stride for i in range(len(self._keys) + 1)]

    def index_per_key(self) -> dict[str, int]:
        """The number of each key."""
        return {key: i for i, key in enumerate(self._keys)}

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
        """The keys of these numbers, in this order. A number may come again: its lists are the same each time.

        TypeError for what is no whole number, IndexError for a number that no key has."""
        indices = [_whole("permute: the number of a key", each) for each in indices]
        for number in indices:
            if not 0 <= number < len(self._keys):
                raise IndexError(
                    f"permute: there is no key of number {number}, expected 0 to {len(self._keys) - 1}: "
                    f"{', '.join(self._keys)}"
                )
        parts = [self._part(i) for i in indices]
        weights = [part.weights() for part in parts] if self._weights is not None else []
        made = KeyedJaggedTensor(
            _numbers(len(parts)),
            torch.cat([part.values() for part in parts]) if parts else self._values[:0],
            torch.cat(weights) if weights else None if self._weights is None else self._weights[:0],
            lengths=torch.cat([part.lengths() for part in parts]) if parts else None,
            stride=self._stride,
        )
        return made._named([self._keys[i] for i in indices])

    def split(self, segments: Sequence[int]) -> list[KeyedJaggedTensor]:
        """The first so many keys, the next so many, and so on. TypeError for a number of keys that is no whole one,
        ValueError for numbers that do not add up to all keys."""
        segments = [_whole("split: a number of keys", each) for each in segments]
        if sum(segments) != len(self._keys) or min(segments, default=0) < 0:
            raise ValueError(f"segments {segments} do not add up to the {len(self._keys)} keys")
        ends = list(accumulate(segments, initial=0))
        offsets, batch = self._offset_per_key, self._stride
        return [
            KeyedJaggedTensor(
                _numbers(last - first),
                self._values[offsets[first] : offsets[last]],
                None if self._weights is None else self._weights[offsets[first] : offsets[last]],
                lengths=self._lengths[first * batch : last * batch],
                stride=batch,
            )._named(self._keys[first:last])
            for first, last in pairwise(ends)
        ]

    def flatten_lengths(self) -> KeyedJaggedTensor:
        """Itself: lengths are a vector always."""
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Itself where it is there already."""
        return self._with(lambda tensor: moved(tensor, device, non_blocking))

    def pin_memory(self) -> KeyedJaggedTensor:
        """In memory that a GPU can copy from by itself."""
        return self._with(lambda tensor: None if tensor is None else tensor.pin_memory())

    def sync(self) -> KeyedJaggedTensor:
        """Itself: everything that TorchRec computes late is known."""
        return self

    def unsync(self) -> KeyedJaggedTensor:
        """Itself, as `sync`."""
        return self

    def _with(self, change: Any) -> KeyedJaggedTensor:
        values, weights, lengths = (change(each) for each in (self._values, self._weights, self._lengths))
        if values is self._values and lengths is self._lengths:
            return self
        made = KeyedJaggedTensor(_numbers(len(self._keys)), values, weights, lengths=lengths, stride=self._stride)
        return made._named(self._keys)

    def _named(self, keys: Sequence[str]) -> KeyedJaggedTensor:
        """Itself with these keys, of which some may be equal where their lists are, too (`permute`)."""
        self._keys = list(keys)
        return self

    def _part(self, i: int) -> JaggedTensor:
        batch = self._stride
        first, last = self._offset_per_key[i], self._offset_per_key[i + 1]
        weights = None if self._weights is None else self._weights[first:last]
        return JaggedTensor(self._values[first:last], weights, self._lengths[i * batch : (i + 1) * batch])

    def __repr__(self) -> str:
        return f"KeyedJaggedTensor(keys={self._keys}, stride={self._stride}, values={len(self._values)})"

    def __str__(self) -> str:
        if not self._keys:
            return "KeyedJaggedTensor()\n"
        lines = []
        for i, key in enumerate(self._keys):
            part = self._part(i)
            text = text_of(part.values(), part.lengths())
            if self._weights is not None:
                weights = text_of(part.weights(), part.lengths())
                text = f'{{\n        "values": {text},\n        "weights": {weights}\n    }}'
            lines.append(f'    "{key}": {text}')
        return "KeyedJaggedTensor({\n" + ",\n".join(lines) + "\n})\n"


def _whole(what: str, given: Any) -> int:
    """A whole number. Raises TypeError for what is none; a bool is none, for a mask would be read as 0 and 1."""
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool) or getattr(given, "dtype", None) == torch.bool:
        raise TypeError(f"{what} is {given!r:.100}, expected a whole number (of a mask: mask.nonzero().flatten())")
    return number


def _numbers(count: int) -> list[str]:
    """Keys for a while, that differ."""
    return [str(i) for i in range(count)]


@torch.fx.wrap
def _concat(kjt_list: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    if not kjt_list:
        raise ValueError("nothing to concatenate")
    if len({kjt.stride() for kjt in kjt_list}) > 1:
        raise ValueError(f"numbers of examples differ: {[kjt.stride() for kjt in kjt_list]}")
    given = [weights for kjt in kjt_list if (weights := kjt.weights_or_none()) is not None]
    if given and len(given) < len(kjt_list):
        raise ValueError("some have weights, and others have none")
    return KeyedJaggedTensor(
        [key for kjt in kjt_list for key in kjt._keys],
        torch.cat([kjt.values() for kjt in kjt_list]),
        torch.cat(given) if given else None,
        lengths=torch.cat([kjt.lengths() for kjt in kjt_list]),
        stride=kjt_list[0].stride(),
    )


def _refuse_variable_batches(stride_per_key_per_rank: Any, stride_per_key: Any, inverse_indices: Any) -> None:
    for name, given in (
        ("stride_per_key_per_rank", stride_per_key_per_rank),
        ("stride_per_key", stride_per_key),
        ("inverse_indices", inverse_indices),
    ):
        if given is not None:
            raise ValueError(
                f"{name} is given: batch sizes that differ by key (VBE) are not supported; one holds for all"
            )


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

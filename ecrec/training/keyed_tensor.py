"""Pooled embeddings by name, as TorchRec's `torchrec.sparse.jagged_tensor.KeyedTensor`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ecrec.training.jagged_tensor import names
from ecrec.training.traceable import Traceable


class KeyedTensor(metaclass=Traceable):
    """Tensors side by side in one: key i has the columns `offset_per_key()[i]` to `offset_per_key()[i + 1]`.

    ``values``: [B, sum of ``length_per_key``], where ``key_dim`` is 1. ``str()`` shows all values, as TorchRec's. In a
    torch.fx graph one that is made of its inputs is a node. Raises ValueError for keys that are given twice and for
    lengths that do not fit.
    """

    def __init__(self, keys: Sequence[str], length_per_key: Sequence[int], values: Tensor, key_dim: int = 1) -> None:
        keys = names(keys, "keys")
        if len(set(keys)) != len(keys) or len(keys) != len(length_per_key):
            raise ValueError(
                f"keys {list(keys)} with lengths {list(length_per_key)}: expected one each, and no key twice"
            )
        if sum(length_per_key) != (values.shape[key_dim] if keys or values.dim() > key_dim else 0):
            raise ValueError(
                f"length_per_key adds up to {sum(length_per_key)}, and values is {tuple(values.shape)}: expected that "
                f"many in dimension {key_dim}"
            )
        self._keys, self._lengths, self._values, self._key_dim = keys, list(length_per_key), values, key_dim

    @staticmethod
    def from_tensor_list(
        keys: Sequence[str], tensors: Sequence[Tensor], key_dim: int = 1, cat_dim: int = 1
    ) -> KeyedTensor:
        """From a tensor for each key."""
        return KeyedTensor(
            keys, [each.shape[key_dim] for each in tensors], torch.cat(list(tensors), dim=cat_dim), key_dim
        )

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> Tensor:
        """All of them, side by side."""
        return self._values

    def key_dim(self) -> int:
        """The dimension in which they lie side by side."""
        return self._key_dim

    def device(self) -> torch.device:
        return self._values.device

    def length_per_key(self) -> list[int]:
        """Columns of each key."""
        return self._lengths

    def offset_per_key(self) -> list[int]:
        """Where each key's columns begin, and the end of the last one's."""
        return list(accumulate(self._lengths, initial=0))

    def __getitem__(self, key: str) -> Tensor:
        """One key's. KeyError, naming those there are."""
        if key not in self._keys:
            raise KeyError(f"there is no key {key!r}; there are {', '.join(self._keys)}")
        i = self._keys.index(key)
        return self._values.narrow(self._key_dim, sum(self._lengths[:i]), self._lengths[i])

    def to_dict(self) -> dict[str, Tensor]:
        """Each key's."""
        return dict(zip(self._keys, torch.split(self._values, self._lengths, dim=self._key_dim), strict=True))

    @staticmethod
    def regroup(keyed_tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]]) -> list[Tensor]:
        """A tensor for each group, of its keys side by side. ValueError for a key that two of them have, for a group
        without keys and for tensors of different ``key_dim``, KeyError for a key that none has."""
        return _regroup(keyed_tensors, groups)

    @staticmethod
    def regroup_as_dict(
        keyed_tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]], keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """`regroup`, each group under the key of its number. ValueError also if there is not one key for each group."""
        return _regroup_as_dict(keyed_tensors, groups, keys)

    def record_stream(self, stream: Any) -> None:
        """Its memory on a GPU is kept until the stream has passed this point."""
        self._values.record_stream(stream)

    def size_in_bytes(self) -> int:
        """Of the values."""
        return self._values.numel() * self._values.element_size()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KeyedTensor:
        return KeyedTensor(self._keys, self._lengths, self._values.to(device, non_blocking=non_blocking), self._key_dim)

    def __repr__(self) -> str:
        return f"KeyedTensor({dict(zip(self._keys, self._lengths, strict=True))}, values={tuple(self._values.shape)})"

    def __str__(self) -> str:
        if not self._keys:
            return "KeyedTensor()\n"
        lines = [f'    "{key}": {values.tolist()}' for key, values in self.to_dict().items()]
        return "KeyedTensor({\n" + ",\n".join(lines) + "\n})\n"


@torch.fx.wrap
def _regroup(keyed_tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]]) -> list[Tensor]:
    groups = [names(group, f"group {i}") for i, group in enumerate(groups)]
    parts: dict[str, Tensor] = {}
    for each in keyed_tensors:
        if twice := parts.keys() & set(each.keys()):
            raise ValueError(f"keys of the tensors must differ, found {', '.join(sorted(twice))} more than once")
        parts.update(each.to_dict())
    if missing := {key for group in groups for key in group} - parts.keys():
        raise KeyError(f"there is no key {', '.join(sorted(missing))}; there are {', '.join(parts)}")
    dims = [each.key_dim() for each in keyed_tensors]
    if len(set(dims)) > 1:
        raise ValueError(
            f"the tensors have their keys in different dimensions, key_dim {dims}: expected the same one for all, "
            "since the keys of a group come to lie side by side"
        )
    if [] in groups:
        raise ValueError(f"group {groups.index([])} has no keys, expected at least one in each group")
    key_dim = dims[0] if dims else 1
    return [torch.cat([parts[key] for key in group], dim=key_dim) for group in groups]


@torch.fx.wrap
def _regroup_as_dict(
    keyed_tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]], keys: Sequence[str]
) -> dict[str, Tensor]:
    if len(keys) != len(groups):
        raise ValueError(f"there are {len(keys)} keys for {len(groups)} groups, expected one for each")
    return dict(zip(keys, _regroup(keyed_tensors, groups), strict=True))

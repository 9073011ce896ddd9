"""The sparse features of a batch: for each feature and row, a list of ids of any length.

The names and meanings are TorchRec's (`torchrec.sparse.jagged_tensor.KeyedJaggedTensor`), without its
weights and without its dependence on fbgemm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyedJaggedTensor:
    """F keys and B rows; the lists lie feature-major in one vector.

    values: int64[N], all ids; the list of key f and row b is `values[offsets[f * B + b] : offsets[f * B + b
    + 1]]`. lengths: int64[F * B]. Make one with `from_lengths_sync`, `from_offsets_sync` or `from_ids`; all
    check what they are given and keep the tensors, without a copy where the dtype is already int64.
    """

    def __init__(self, keys: Sequence[str], values: Tensor, lengths: Tensor, offsets: Tensor) -> None:
        self._keys = list(keys)
        self._values = values
        self._lengths = lengths
        self._offsets = offsets

    @staticmethod
    def from_lengths_sync(keys: Sequence[str], values: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
        """From the length of each list, integers [F * B].

        Raises ValueError for duplicate keys, a shape that is not a vector, a number of lengths that is not a
        multiple of the number of keys, a negative length, or lengths that do not add up to the values;
        TypeError for tensors that are not integers.
        """
        values, lengths = _integers(values, "values"), _integers(lengths, "lengths")
        _check_keys(keys, len(lengths), "lengths")
        if len(lengths) and int(lengths.min()) < 0:
            raise ValueError(f"lengths has {int(lengths.min())}, expected no negative length")
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        if int(offsets[-1]) != len(values):
            raise ValueError(f"lengths add up to {int(offsets[-1])}, but there are {len(values)} values")
        return KeyedJaggedTensor(keys, values, lengths, offsets)

    @staticmethod
    def from_offsets_sync(keys: Sequence[str], values: Tensor, offsets: Tensor) -> KeyedJaggedTensor:
        """From where each list begins, integers [F * B + 1], from 0 to the number of values.

        Raises ValueError and TypeError as `from_lengths_sync`, and ValueError for offsets that are empty,
        decrease, do not begin with 0 or do not end with the number of values.
        """
        values, offsets = _integers(values, "values"), _integers(offsets, "offsets")
        _check_keys(keys, len(offsets) - 1, "offsets, less the last one,")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
            raise ValueError(
                f"offsets go from {int(offsets[0])} to {int(offsets[-1])}, expected from 0 to {len(values)}, "
                "the number of values"
            )
        lengths = offsets[1:] - offsets[:-1]
        if len(lengths) and int(lengths.min()) < 0:
            raise ValueError("offsets decrease; the lists would have negative lengths")
        return KeyedJaggedTensor(keys, values, lengths, offsets)

    @staticmethod
    def from_ids(keys: Sequence[str], ids: Tensor) -> KeyedJaggedTensor:
        """One id for each key and row: integers [F, B], feature-major, as `ecrec.data.Batch.ids`."""
        if ids.dim() != 2 or ids.shape[0] != len(keys):
            raise ValueError(f"ids is {tuple(ids.shape)}, expected [{len(keys)}, B]")
        count = ids.numel()
        _check_keys(keys, count, "ids")
        values = _integers(ids.reshape(-1), "ids")
        ones = torch.ones(count, dtype=torch.int64, device=values.device)
        return KeyedJaggedTensor(keys, values, ones, torch.arange(count + 1, dtype=torch.int64, device=values.device))

    def keys(self) -> list[str]:
        """The F feature names."""
        return self._keys

    def values(self) -> Tensor:
        """All ids, int64[N]."""
        return self._values

    def lengths(self) -> Tensor:
        """Ids of each list, int64[F * B]."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each list begins, and the end of the last one, int64[F * B + 1]."""
        return self._offsets

    def stride(self) -> int:
        """B, the rows of the batch."""
        return len(self._lengths) // len(self._keys) if self._keys else 0

    def __repr__(self) -> str:
        return f"KeyedJaggedTensor(keys={self._keys}, stride={self.stride()}, values={len(self._values)})"


def _check_keys(keys: Sequence[str], count: int, what: str) -> None:
    if len(set(keys)) != len(keys):
        raise ValueError(f"keys must differ, found {list(keys)}")
    if count < 0:
        raise ValueError("offsets is empty, expected at least [0]")
    if (count % len(keys) if keys else count) != 0:
        raise ValueError(f"{what} are {count}, expected a multiple of the {len(keys)} keys")


def _integers(tensor: Tensor, name: str) -> Tensor:
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

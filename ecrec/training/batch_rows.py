"""The rows that a batch needs: pulled before its step, and pushed after it with their gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecrec._native import first_nonfinite
from ecrec.errors import DivergedError
from ecrec.protocol.messages import Section
from ecrec.training.configs import BaseEmbeddingConfig
from ecrec.training.parts import F32, I64, Share


class BatchRows:
    """The distinct rows of one batch: ordered by shard, then table, so that each shard's are one slice.

    ``indices``: of the tables, on the cluster. ``plan``: what `plan_batch` returned. ``bag_offsets``: int64[features *
    ``batch`` + 1], into the ids.
    """

    def __init__(
        self,
        configs: Sequence[BaseEmbeddingConfig],
        indices: NDArray[np.int32],
        features: Any,
        plan: tuple[I64, I64, NDArray[np.int32]],
        bag_offsets: I64,
        batch: int,
    ) -> None:
        rows, counts, inverse = plan
        self._seen = _numbers_of(features)
        self._dims = dims = np.array([config.embedding_dim for config in configs], np.int64)
        self._configs, self._rows, self._counts = configs, rows, counts
        self._used: dict[int, NDArray[np.intp]] = {}
        self.inverse = inverse
        self.bag_offsets = bag_offsets
        self.batch = batch
        self._row_ends = np.concatenate(([0], np.cumsum(counts.sum(axis=1))))
        self._float_ends = np.concatenate(([0], np.cumsum(counts @ dims)))
        per_row = np.repeat(np.tile(dims, len(counts)), counts.reshape(-1))
        self.value_offsets = np.cumsum(per_row) - per_row
        self.shares: dict[int, Share] = {}
        for shard in np.flatnonzero(counts.any(axis=1)).tolist():
            self._used[shard] = used = np.flatnonzero(counts[shard])
            section = Section(indices[used].tolist(), counts[shard, used].tolist())
            self.shares[shard] = Share(section, rows[self._row_ends[shard] : self._row_ends[shard + 1]])
        self.values: F32 = np.empty(int(self._float_ends[-1]), np.float32)

    def _slice(self, shard: int) -> slice:
        return slice(int(self._float_ends[shard]), int(self._float_ends[shard + 1]))

    def fill(self, answers: Mapping[int, Any]) -> None:
        """Copy each shard's rows to their slice; those of a single shard are taken as they came."""
        for shard, frame in answers.items():
            values = np.frombuffer(frame, np.float32)
            if len(values) == len(self.values):
                self.values = values
            else:
                self.values[self._slice(shard)] = values
        first = first_nonfinite(self.values)
        if first >= 0:
            raise DivergedError(f"{self._describe(first)} is {self.values[first]} on the servers")

    def _describe(self, at: int) -> str:
        """For people: where one of the values is."""
        row = int(np.searchsorted(self.value_offsets, at, "right")) - 1
        shards = len(self._counts)
        table = int(np.repeat(np.tile(np.arange(len(self._dims)), shards), self._counts.reshape(-1))[row])
        config = self._configs[table]
        return f"row {self._rows[row]} of the embedding table {config.name!r}, column {at - self.value_offsets[row]}"

    def is_of(self, features: Any) -> bool:
        """These rows were looked up for features that are equal, whatever object has them. Compared one by one:
        versions of tensors do not tell of changes through numpy, or in `torch.inference_mode`."""
        keys, ids, offsets = _numbers_of(features, copied=False)
        seen_keys, seen_ids, seen_offsets = self._seen
        return keys == seen_keys and np.array_equal(ids, seen_ids) and np.array_equal(offsets, seen_offsets)

    def shares_with(self, gradients: F32, trained: NDArray[np.bool_] | None) -> dict[int, Share]:
        """The same rows with their gradients, which are not copied; only those of tables that are ``trained``."""
        shares = {}
        for shard, share in self.shares.items():
            part = gradients[self._slice(shard)]
            if trained is None:
                shares[shard] = Share(share.section, share.rows, part)
                continue
            used = self._used[shard]
            counts = np.array(share.section.counts)
            kept = trained[used]
            if kept.any():
                section = Section(
                    [t for t, keep in zip(share.section.tables, kept, strict=True) if keep], counts[kept].tolist()
                )
                floats = np.repeat(kept, counts * self._dims[used])
                shares[shard] = Share(section, share.rows[np.repeat(kept, counts)], part[floats])
        return shares


class SummedGradients(NamedTuple):
    """What several backward passes left, each row once, by shard; ``trained`` as in `Gradients`."""

    by_shard: dict[int, Share]
    trained: NDArray[np.bool_] | None

    def shares(self) -> dict[int, Share]:
        return self.by_shard


class Gradients(NamedTuple):
    """What a backward pass left: of a batch, for the tables that are trained (None: all)."""

    batch: BatchRows
    values: F32
    trained: NDArray[np.bool_] | None

    def shares(self) -> dict[int, Share]:
        return self.batch.shares_with(self.values, self.trained)


def _numbers_of(features: Any, copied: bool = True) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Keys, ids and bag offsets of a KeyedJaggedTensor; somebody may change his later."""
    ids, offsets = features.values().detach().numpy(), features.offsets().detach().numpy()
    return list(features.keys()), ids.copy() if copied else ids, offsets.copy() if copied else offsets

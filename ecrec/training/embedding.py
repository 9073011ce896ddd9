"""Embedding tables that live on the shards, used like TorchRec's ``EmbeddingBagCollection``."""

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecrec._native import plan_batch, pool_backward, pool_forward, sum_sections
from ecrec.errors import ConfigurationError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor
from ecrec.training.optimizers import Optimizer
from ecrec.training.parts import F32, I64, Share
from ecrec.training.session import Session


class PoolingType(enum.Enum):
    """How the rows of a bag become one vector."""

    SUM = "SUM"
    MEAN = "MEAN"


@dataclass(frozen=True)
class EmbeddingBagConfig:
    """A table and the features that look rows up in it; names and meanings are TorchRec's.

    Weights start uniform in [-init_scale, init_scale); None is TorchRec's sqrt(1 / num_embeddings).
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list[str] = field(default_factory=list)
    pooling: PoolingType = PoolingType.SUM
    init_scale: float | None = None


class EmbeddingBagCollection(nn.Module):
    """Pooled embeddings of all features of a batch; the tables are made on the shards.

    ``optimizer`` is fused: a shard applies it to the summed gradient of each row when the push arrives, so there is no
    ``optimizer.step()``; `Session.push` sends the gradients of the backward passes since the last one.

    ``code``: of all tables, as ``"4+1"``; default `Session.default_code`. ``table_codes``: of single tables. Tables of
    at most ``replicated_rows_max`` rows are replicated, with the r of the code.
    ``seed`` and a table's name give its initial weights, whatever the number of shards.
    Raises ConfigurationError for configs that cannot be, RefusedError for what the cluster refuses.
    """

    def __init__(
        self,
        session: Session,
        tables: Sequence[EmbeddingBagConfig],
        optimizer: Optimizer,
        *,
        code: CodeSpec | str | None = None,
        table_codes: Mapping[str, CodeSpec | str] | None = None,
        replicated_rows_max: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_configs(tables, table_codes or {})
        self._session = session
        self._configs = list(tables)
        general = session.default_code() if code is None else _as_code(code)
        specs = []
        for config in tables:
            chosen = (table_codes or {}).get(config.name)
            if chosen is not None:
                table_code = _as_code(chosen)
            elif config.num_embeddings <= replicated_rows_max:
                table_code = CodeSpec(1, general.r, general.generator)
            else:
                table_code = general
            specs.append(_table_spec(config, table_code, optimizer, seed))
        self.specs = specs
        self._indices = np.array(session.create_tables(specs), np.int32)
        self._table_rows = np.array([c.num_embeddings for c in tables], np.int64)
        self._table_k = np.array([spec.code.k for spec in specs], np.int32)
        self._table_dims = np.array([c.embedding_dim for c in tables], np.int64)
        features = [(t, name, c) for t, c in enumerate(tables) for name in c.feature_names]
        self._feature_names = [name for _, name, _ in features]
        self._feature_tables = np.array([t for t, _, _ in features], np.int32)
        self._feature_dims = np.array([c.embedding_dim for _, _, c in features], np.int32)
        self._feature_mean = np.array([c.pooling is PoolingType.MEAN for _, _, c in features], np.bool_)
        self._dim = int(self._feature_dims.sum())
        # Autograd runs a function's backward only if an input asks for it, and the rows are no torch tensor.
        self._anchor = torch.zeros((), requires_grad=True)
        self._offered: list[tuple[Any, _BatchRows]] = []
        self._pending: list[tuple[_BatchRows, F32]] = []
        session.register(self)

    @property
    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables, as given."""
        return list(self._configs)

    @property
    def feature_names(self) -> list[str]:
        """Features in the order of the output's columns: table by table."""
        return list(self._feature_names)

    @property
    def dim(self) -> int:
        """Columns of the output."""
        return self._dim

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """float32[B, sum of the features' dims].

        Uses the rows that `Session.prefetch` has brought for this very object; pulls them now if there are none.
        Raises ValueError for a feature that is missing, IndexError for an id that its table does not have.
        """
        batch = next((rows for owner, rows in self._offered if owner is features), None)
        if batch is None:
            batch = self.plan(features)
            self._session.fetch(batch)
        pooled: Tensor = _Pooling.apply(self._anchor, self, batch)  # type: ignore[no-untyped-call]
        return pooled

    # ------------------------------------------------------------------ as a part of a session
    def plan(self, features: KeyedJaggedTensor) -> "_BatchRows":
        """The distinct rows of a batch, where they live, and how they are pooled."""
        ids, offsets, batch = self._bags(features)
        starts = np.ascontiguousarray(offsets[::batch]) if batch else np.zeros(len(self._feature_dims) + 1, np.int64)
        machine = self._session.machine
        rows, counts, inverse = plan_batch(
            ids, starts, self._feature_tables, self._table_rows, self._table_k, machine.n, machine.groups
        )
        return _BatchRows(self, rows, counts, inverse, offsets, batch)

    def offer(self, features: Any, fetch: "_BatchRows") -> None:
        """Keep the rows of the batch whose step begins; those of the batch before are no longer wanted."""
        self._offered = [(features, fetch)]

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of the backward passes since the last call, one section a shard."""
        pending, self._pending = self._pending, []
        if not pending:
            return {}
        if len(pending) == 1:
            batch, gradients = pending[0]
            return batch.shares_with(gradients)
        by_shard: dict[int, list[Share]] = {}
        for batch, gradients in pending:
            for shard, share in batch.shares_with(gradients).items():
                by_shard.setdefault(shard, []).append(share)
        return {shard: self._summed(shares) for shard, shares in by_shard.items()}

    def _summed(self, shares: list[Share]) -> Share:
        """Several backward passes are one step: their gradients are added, as torch does."""
        if len(shares) == 1:
            return shares[0]
        dims = np.zeros(int(self._indices.max()) + 1, np.int32)
        dims[self._indices] = self._table_dims
        sections = [
            (np.array(s.section.tables, np.int32), np.array(s.section.counts, np.int64), s.rows, s.values)
            for s in shares
            if s.values is not None
        ]
        tables, counts, rows, values = sum_sections(sections, dims)
        return Share(Section(tables.tolist(), counts.tolist()), rows, values)

    def _bags(self, features: KeyedJaggedTensor) -> tuple[I64, I64, int]:
        """(ids, bag offsets, B) of my features in my order."""
        batch = features.stride()
        values = features.values().detach().to(torch.int64).contiguous().numpy()
        offsets = features.offsets().detach().to(torch.int64).contiguous().numpy()
        keys = list(features.keys())
        if keys == self._feature_names:
            return values, offsets, batch
        places = {key: i for i, key in enumerate(keys)}
        missing = [name for name in self._feature_names if name not in places]
        if missing:
            raise ValueError(f"the batch lacks features {', '.join(missing)}; it has {', '.join(keys)}")
        order = [places[name] for name in self._feature_names]
        ids = [values[offsets[f * batch] : offsets[(f + 1) * batch]] for f in order]
        lengths = np.diff(offsets).reshape(len(keys), batch)[order].reshape(-1)
        ordered = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ordered[1:])
        return np.concatenate(ids), ordered, batch


class _BatchRows:
    """The distinct rows of one batch: ordered by shard, then table, so that each shard's are one slice."""

    def __init__(
        self,
        tables: EmbeddingBagCollection,
        rows: I64,
        counts: I64,
        inverse: NDArray[np.int32],
        bag_offsets: I64,
        batch: int,
    ) -> None:
        self.inverse = inverse
        self.bag_offsets = bag_offsets
        self.batch = batch
        dims = tables._table_dims
        self._row_ends = np.concatenate(([0], np.cumsum(counts.sum(axis=1))))
        self._float_ends = np.concatenate(([0], np.cumsum(counts @ dims)))
        per_row = np.repeat(np.tile(dims, len(counts)), counts.reshape(-1))
        self.value_offsets = np.cumsum(per_row) - per_row
        self.shares: dict[int, Share] = {}
        for shard in np.flatnonzero(counts.any(axis=1)).tolist():
            used = np.flatnonzero(counts[shard])
            section = Section(tables._indices[used].tolist(), counts[shard, used].tolist())
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

    def shares_with(self, gradients: F32) -> dict[int, Share]:
        """The same rows with their gradients, which are not copied."""
        return {
            shard: Share(share.section, share.rows, gradients[self._slice(shard)])
            for shard, share in self.shares.items()
        }


class _Pooling(torch.autograd.Function):
    """Pools rows; the backward pass leaves their gradients with the collection, summed over each row's occurrences."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tables: EmbeddingBagCollection, batch: _BatchRows) -> Tensor:
        ctx.tables, ctx.batch = tables, batch
        out = torch.empty(batch.batch, tables._dim)
        pool_forward(
            batch.values, batch.value_offsets, batch.inverse, batch.bag_offsets,
            tables._feature_dims, batch.batch, tables._feature_mean, out.numpy(),
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        tables, batch = ctx.tables, ctx.batch
        gradients = np.empty_like(batch.values)
        pool_backward(
            grads[0].contiguous().numpy(), batch.value_offsets, batch.inverse, batch.bag_offsets,
            tables._feature_dims, batch.batch, tables._feature_mean, gradients,
        )  # fmt: skip
        tables._pending.append((batch, gradients))
        return None, None, None


def _as_code(code: CodeSpec | str) -> CodeSpec:
    return CodeSpec.parse(code) if isinstance(code, str) else code


def _table_spec(config: EmbeddingBagConfig, code: CodeSpec, optimizer: Optimizer, seed: int) -> TableSpec:
    scale = config.num_embeddings**-0.5 if config.init_scale is None else config.init_scale
    digest = hashlib.sha256(f"{seed} {config.name}".encode()).digest()
    return TableSpec(
        name=config.name,
        rows=config.num_embeddings,
        dim=config.embedding_dim,
        code=code,
        optimizer=optimizer.spec,
        init="uniform" if scale > 0 else "zeros",
        init_seed=int.from_bytes(digest[:7], "little"),
        init_scale=float(np.float32(scale)),
        init_state=optimizer.init_state,
    )


def _check_configs(tables: Sequence[EmbeddingBagConfig], table_codes: Mapping[str, Any]) -> None:
    if not tables:
        raise ConfigurationError("an EmbeddingBagCollection needs at least one table")
    names = [config.name for config in tables]
    features = [name for config in tables for name in config.feature_names]
    for what, found in (("table names", names), ("feature names", features)):
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise ConfigurationError(f"{what} must differ, found {', '.join(twice)} more than once")
    unknown = sorted(set(table_codes) - set(names))
    if unknown:
        raise ConfigurationError(f"table_codes names {', '.join(unknown)}; the tables are {', '.join(names)}")
    for config in tables:
        if config.num_embeddings < 1 or config.embedding_dim < 1:
            raise ConfigurationError(
                f"table {config.name}: {config.num_embeddings} rows of {config.embedding_dim} floats; "
                "expected at least 1 of each"
            )
        if not config.feature_names:
            raise ConfigurationError(f"table {config.name} has no features")
        if config.init_scale is not None and not 0 <= config.init_scale < float("inf"):
            raise ConfigurationError(f"table {config.name}: init_scale is {config.init_scale}, expected at least 0")

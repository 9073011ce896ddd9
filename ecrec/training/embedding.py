"""Embedding tables that live on the shards, used like TorchRec's ``EmbeddingBagCollection``."""

import enum
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ecrec._native import first_nonfinite, plan_batch, pool_backward, pool_forward, sum_sections
from ecrec.errors import ConfigurationError, DivergedError, GradientError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor
from ecrec.training.optimizers import Optimizer, check_optimizer
from ecrec.training.parts import F32, I64, TAKEN_AWAY, Share
from ecrec.training.session import Session
from ecrec.training.whole import read_table, write_table

PASSES_WARNED = 64
"""Backward passes without a push after which the log warns."""

log = logging.getLogger(__name__)


class PoolingType(enum.Enum):
    """How the rows of a bag become one vector."""

    SUM = "SUM"
    MEAN = "MEAN"

    @classmethod
    def of(cls, given: Any) -> "PoolingType":
        """One of these, one of TorchRec's, or its name. ConfigurationError for anything else."""
        name = getattr(given, "value", given)
        try:
            return cls(name.upper() if isinstance(name, str) else name)
        except ValueError:
            raise ConfigurationError(
                f"pooling is {given!r}, expected {' or '.join(each.name for each in cls)}"
            ) from None


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


class _Table(nn.Module):
    """What torch sees of a table: its shape, without memory, and whether it is trained. A state_dict has weights."""

    def __init__(self, session: Session, config: EmbeddingBagConfig) -> None:
        super().__init__()
        self._session, self._name = session, config.name
        self.marker: Tensor | None = None
        """What `weight` has as its gradient while gradients of the table wait for a push, and its version then."""
        self.marker_version = 0
        shape = config.num_embeddings, config.embedding_dim
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32, device="meta"))

    def mark(self) -> None:
        """A backward pass has reached the table."""
        if self.marker is None:
            # Not empty_like, which of a tensor without memory takes a second: torch imports its symbolic shapes for it.
            self.marker = torch.empty(self.weight.shape, dtype=torch.float32, device="meta")
        if self.weight.grad is not self.marker:
            self.weight.grad = self.marker
            self.marker_version = self.marker._version

    @property
    def was_zeroed(self) -> bool:
        """The gradient was set to None since it was marked. Raises GradientError if it was changed."""
        if self.weight.grad is None:
            return True
        if self.weight.grad is not self.marker or self.marker._version != self.marker_version:
            raise GradientError(
                f"the gradient of table {self._name!r} was changed here (clip_grad_norm_, "
                "zero_grad(set_to_none=False), ...), where it is not: gradients of rows go to the servers. "
                "Session.discard() gives a step up"
            )
        return False

    def check_same(self) -> None:
        """Raise ConfigurationError if somebody has taken the weights for real ones."""
        if self.weight._version:
            raise ConfigurationError(
                f"table {self._name!r} was changed here (nn.init, an optimizer, ...), and its weights are on the "
                "servers: init_scale gives the first ones, load_state_dict others, and steps are theirs (Session.push)"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> "_Table":
        probe = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
        if probe.dtype != torch.float32 or probe.device.type not in ("cpu", "meta"):
            raise ConfigurationError(
                f"table {self._name!r} stays torch.float32 on the servers, and is pooled on the CPU; it cannot be "
                f"converted to {probe.dtype} on {probe.device}: convert the dense modules, and what the tables give"
            )
        return self

    @property
    def _spec(self) -> TableSpec:
        return self._session.machine.tables[self._name][1]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = torch.from_numpy(read_table(self._session, self._spec))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is None:
            missing_keys.append(f"{prefix}weight")
        elif tuple(weight.shape) != (expected := (self._spec.rows, self._spec.dim)) or weight.device.type == "meta":
            error_msgs.append(
                f"table {self._name!r} is {expected} on the servers, and {prefix}weight is {tuple(weight.shape)} on "
                f"{weight.device}"
            )
        else:
            values = weight.detach().to(dtype=torch.float32, device="cpu").contiguous().numpy()
            write_table(self._session, self._spec, values)


class EmbeddingBagCollection(nn.Module):
    """Pooled embeddings of all features of a batch; the tables are made on the shards.

    Its parameters, ``embedding_bags.<table>.weight``, have a table's shape and no memory (device meta). One that does
    not require a gradient, as after ``requires_grad_(False)``, is not trained. ``state_dict()`` reads the weights of
    all tables from the shards, and ``load_state_dict`` writes them there (one worker does it, while the others push
    nothing; what the optimizer keeps beside them stays); for a table of more than 1 GiB both raise ConfigurationError.

    ``optimizer`` is fused: a shard applies it to the summed gradient of each row when the push arrives, so there is no
    ``optimizer.step()``; `Session.push` sends the gradients of the backward passes since the last one.

    ``code``: of all tables, as ``"4+1"``; default `Session.default_code`. ``table_codes``: of single tables. Tables of
    at most ``replicated_rows_max`` rows are replicated, with the r of the code.
    ``seed`` and a table's name give its initial weights, whatever the number of shards.
    Raises ConfigurationError for configs that cannot be and for a table that another collection of this session has,
    RefusedError for what the cluster refuses.
    """

    is_on_servers = True

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
        check_optimizer(optimizer)
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
        session.check_claim([config.name for config in tables])
        self._indices = np.array(session.create_tables(specs), np.int32)
        # Where the session only reads, code, optimizer and first values are the cluster's.
        self.specs = specs = [session.machine.tables[spec.name][1] for spec in specs]
        self._table_rows = np.array([c.num_embeddings for c in tables], np.int64)
        self._table_k = np.array([spec.code.k for spec in specs], np.int32)
        self._table_dims = np.array([c.embedding_dim for c in tables], np.int64)
        features = [(t, name, c) for t, c in enumerate(tables) for name in c.feature_names]
        self._feature_names = [name for _, name, _ in features]
        self._feature_tables = np.array([t for t, _, _ in features], np.int32)
        self._feature_dims = np.array([c.embedding_dim for _, _, c in features], np.int32)
        self._feature_mean = np.array([PoolingType.of(c.pooling) is PoolingType.MEAN for _, _, c in features], np.bool_)
        self._dim = int(self._feature_dims.sum())
        # No ModuleDict: a table may have the name of one of its methods, such as items.
        self.embedding_bags = nn.Module()
        self.embedding_bags._modules.update({config.name: _Table(session, config) for config in tables})
        # A tuple, in which torch does not look for parameters again.
        self._tables: tuple[_Table, ...] = tuple(self.embedding_bags._modules.values())  # type: ignore[arg-type]
        self._offered: tuple[Any, _BatchRows] | None = None
        self._pending: list[_Gradients] = []
        session.claim([config.name for config in tables], self)
        session.register(self, keep=False)

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

        Uses the rows that `Session.prefetch` has brought for these features, unless there was a push since; pulls them
        now if there are none. Raises ValueError for a feature that is missing, weights of ids, and batch sizes that
        differ by feature; IndexError for an id that its table does not have.
        """
        if torch.compiler.is_compiling():  # rows come over sockets, and no compiler sees into that
            compiled: Tensor = torch.compiler.disable(self._pooled)(features)  # type: ignore[no-untyped-call]
            return compiled
        return self._pooled(features)

    def _pooled(self, features: KeyedJaggedTensor) -> Tensor:
        offered = self._offered
        if offered is not None and _is_same(offered[0], features) and offered[1].is_of(features):
            batch = offered[1]
        else:
            batch = self.plan(features)
            self._session.fetch(batch)
        for table in self._tables:
            table.check_same()
        trained = np.array([table.weight.requires_grad for table in self._tables])
        # Autograd runs a function's backward only if an input asks for it, and the rows are no torch tensor.
        anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=bool(trained.any()))
        pooled: Tensor = _Pooling.apply(anchor, self, batch, None if trained.all() else trained)  # type: ignore[no-untyped-call]
        return pooled

    def _zeroed(self) -> bool:
        """The gradients that wait for a push were set to None: they are no more, as torch's would not be. Raises
        GradientError where that was done to some tables alone."""
        waiting = np.zeros(len(self._configs), np.bool_)
        for gradients in self._pending:
            waiting |= True if gradients.trained is None else gradients.trained
        zeroed = {table.was_zeroed for table, waits in zip(self._tables, waiting.tolist(), strict=True) if waits}
        if len(zeroed) == 2:
            raise GradientError(
                f"the gradients of some of the tables {', '.join(config.name for config in self._configs)} were set to "
                "None, and of others not: set those of all, or Session.discard() the step"
            )
        return True in zeroed

    # ------------------------------------------------------------------ as a part of a session
    def plan(self, features: KeyedJaggedTensor) -> "_BatchRows":
        """The distinct rows of a batch, where they live, and how they are pooled."""
        ids, offsets, batch = self._bags(features)
        starts = np.ascontiguousarray(offsets[::batch]) if batch else np.zeros(len(self._feature_dims) + 1, np.int64)
        machine = self._session.machine
        try:
            rows, counts, inverse = plan_batch(
                ids, starts, self._feature_tables, self._table_rows, self._table_k, machine.n, machine.groups
            )
        except IndexError as error:
            raise IndexError(self._bad_id(ids, offsets, batch) or str(error)) from None
        return _BatchRows(self, features, rows, counts, inverse, offsets, batch)

    def offer(self, features: Any, fetch: "_BatchRows") -> None:
        """Keep the rows of the batch whose step begins; those of the batch before are no longer wanted."""
        self._offered = (features, fetch)

    def check_gradients(self) -> None:
        """Raise GradientError if those that a backward pass left were taken away, or changed, since."""
        for table in self._tables:
            table.check_same()
        if self._pending and self._zeroed():
            raise GradientError(
                f"the gradients of tables {', '.join(config.name for config in self._configs)} were {TAKEN_AWAY}"
            )

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of the backward passes since the last call, one section a shard."""
        pending, self._pending = self._pending, []
        self._unmark()
        if not pending:
            return {}
        if len(pending) == 1:
            return pending[0].shares()
        by_shard: dict[int, list[Share]] = {}
        for gradients in pending:
            for shard, share in gradients.shares().items():
                by_shard.setdefault(shard, []).append(share)
        return {shard: self._summed(shares) for shard, shares in by_shard.items()}

    def pushed(self) -> None:
        """The rows that are here are older than the push."""
        self._offered = None

    def discard(self) -> None:
        """Forget the gradients of the backward passes since the last push."""
        self._pending = []
        self._unmark()

    def finish(self) -> None:
        """Nothing is left to do."""

    def _unmark(self) -> None:
        for table in self._tables:
            table.weight.grad = None

    def describe(self, table: str, row: int, column: int) -> str:
        """For people: the features that look up in a table. Empty if it is another's."""
        found = next((config for config in self._configs if config.name == table), None)
        if found is None:
            return ""
        return (
            f"row {row} of the embedding table {table!r} (features {', '.join(found.feature_names)}), column {column}"
        )

    def _bad_id(self, ids: I64, offsets: I64, batch: int) -> str:
        """For people: the first id that its table does not have."""
        for feature, name in enumerate(self._feature_names):
            config = self._configs[int(self._feature_tables[feature])]
            first, last = int(offsets[feature * batch]), int(offsets[(feature + 1) * batch])
            bad = np.flatnonzero(ids[first:last].view(np.uint64) >= np.uint64(config.num_embeddings))
            if bad.size:
                at = first + int(bad[0])
                example = int(np.searchsorted(offsets[feature * batch : (feature + 1) * batch + 1], at, "right")) - 1
                return (
                    f"feature {name!r}, example {example} of the batch: id {ids[at]} is not in the table "
                    f"{config.name!r}, whose ids are 0 to {config.num_embeddings - 1}"
                )
        return ""

    def _gathered(self, gradients: "_Gradients") -> None:
        if self._pending and self._zeroed():
            self._pending.clear()  # of a step that was given up by zero_grad
        self._pending.append(gradients)
        for t, table in enumerate(self._tables):
            if gradients.trained is None or gradients.trained[t]:
                table.mark()
        if len(self._pending) == PASSES_WARNED:
            log.warning(
                "%d backward passes through %s since the last push: their gradients take memory until Session.push, "
                "which adds them to one step, or Session.discard",
                PASSES_WARNED, ", ".join(config.name for config in self._configs),
            )  # fmt: skip

    def _summed(self, shares: list[Share]) -> Share:
        """Several backward passes are one step: their gradients are added, as torch does."""
        if len(shares) == 1:
            return shares[0]
        dims = np.ones(int(self._indices.max()) + 1, np.int32)  # of tables that are not mine: any
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
        _refuse_unsupported(features)
        batch = features.stride()
        values = features.values().detach().to(torch.int64).contiguous().numpy()
        # A copy: the backward pass needs them, and somebody may have changed his by then.
        offsets = features.offsets().detach().to(torch.int64, copy=True).contiguous().numpy()
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
        features: KeyedJaggedTensor,
        rows: I64,
        counts: I64,
        inverse: NDArray[np.int32],
        bag_offsets: I64,
        batch: int,
    ) -> None:
        self._version = _version(features.values())
        self._dims = dims = tables._table_dims
        self._configs, self._rows, self._counts = tables._configs, rows, counts
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

    def is_of(self, features: KeyedJaggedTensor) -> bool:
        """Nobody has changed the ids since these rows were looked up."""
        return _version(features.values()) == self._version

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


class _Gradients(NamedTuple):
    """What a backward pass left: of a batch, for the tables that are trained (None: all)."""

    batch: _BatchRows
    values: F32
    trained: NDArray[np.bool_] | None

    def shares(self) -> dict[int, Share]:
        return self.batch.shares_with(self.values, self.trained)


class _Pooling(torch.autograd.Function):
    """Pools rows; the backward pass leaves their gradients with the collection, summed over each row's occurrences."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        tables: EmbeddingBagCollection,
        batch: _BatchRows,
        trained: NDArray[np.bool_] | None,
    ) -> Tensor:
        ctx.tables, ctx.batch, ctx.trained = tables, batch, trained
        out = torch.empty(batch.batch, tables._dim, dtype=torch.float32, device="cpu")
        pool_forward(
            batch.values, batch.value_offsets, batch.inverse, batch.bag_offsets,
            tables._feature_dims, batch.batch, tables._feature_mean, out.numpy(),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        tables, batch = ctx.tables, ctx.batch
        gradients = np.empty_like(batch.values)
        pool_backward(
            grads[0].contiguous().numpy(), batch.value_offsets, batch.inverse, batch.bag_offsets,
            tables._feature_dims, batch.batch, tables._feature_mean, gradients,
        )  # fmt: skip
        tables._gathered(_Gradients(batch, gradients, ctx.trained))
        return None, None, None, None


def _is_same(a: KeyedJaggedTensor, b: KeyedJaggedTensor) -> bool:
    """One object, or another one of the same tensors, as ``to`` of TorchRec's makes."""
    if a is b:
        return True
    pairs = ((a.values(), b.values()), (a.lengths(), b.lengths()))
    return list(a.keys()) == list(b.keys()) and all(
        x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
        for x, y in pairs
    )


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; one of `torch.inference_mode` does not count that."""
    return -1 if tensor.is_inference() else tensor._version


def _refuse_unsupported(features: Any) -> None:
    """What a KeyedJaggedTensor of TorchRec may have, and would be left out."""
    weights = getattr(features, "weights_or_none", lambda: None)()
    if weights is not None:
        raise ValueError("the batch has a weight for each id, and weighted pooling is not there yet")
    if getattr(features, "variable_stride_per_key", lambda: False)():
        raise ValueError("the features have different batch sizes (stride_per_key): expected one for all")


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
        for what, value in (("num_embeddings", config.num_embeddings), ("embedding_dim", config.embedding_dim)):
            if not hasattr(value, "__index__") or isinstance(value, bool) or not 1 <= value < 1 << 48:
                raise ConfigurationError(
                    f"table {config.name}: {what} is {value!r}, expected a whole number from 1 to 2**48 - 1"
                )
        if not config.name or "." in config.name:
            raise ConfigurationError(f"table {config.name!r}: a name is not empty and has no dot")
        PoolingType.of(config.pooling)
        if not config.feature_names:
            raise ConfigurationError(f"table {config.name} has no features")
        if config.init_scale is not None and not 0 <= config.init_scale < float("inf"):
            raise ConfigurationError(f"table {config.name}: init_scale is {config.init_scale}, expected at least 0")

"""Embedding tables that live on the shards, used like TorchRec's collections of the same names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.fx
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from ecrec._native import pool_backward, pool_backward_weights, pool_forward
from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import CodeSpec
from ecrec.training.batch_rows import BatchRows, Gradients
from ecrec.training.configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType, own_configs
from ecrec.training.jagged_tensor import JaggedTensor
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor
from ecrec.training.keyed_tensor import KeyedTensor
from ecrec.training.optimizers import Optimizer
from ecrec.training.parts import I64
from ecrec.training.session import Session
from ecrec.training.tables import EmbeddingTables
from ecrec.training.torchrec_types import jagged_tensor_for, keyed_tensor_for


class EmbeddingBagCollection(EmbeddingTables):
    """Pooled embeddings of all features of a batch; the tables are made on the shards.

    Its parameters, ``embedding_bags.<table>.weight``, have a table's shape and no memory (device meta). One that does
    not require a gradient, as after ``requires_grad_(False)``, is not trained. ``state_dict()`` reads the weights of
    all tables from the shards, and ``load_state_dict`` writes them there (one worker does it, while the others push
    nothing; what the optimizer keeps beside them stays); for a table of more than 1 GiB both raise ConfigurationError.

    ``tables``: `EmbeddingBagConfig` or TorchRec's. ``optimizer`` is fused: a shard applies it to the summed gradient of
    each row when the push arrives, so there is no ``optimizer.step()``; `Session.push` sends the gradients of the
    backward passes since the last one. It is one for all tables, or a mapping from their names. ``is_weighted``: a row
    is multiplied by the weight of its id; a mean still divides by the number of ids. ``device``: as in
    TorchRec; the CPU or meta, for the tables are on the servers.

    ``code``: of all tables, as ``"4+1"``; default `Session.default_code`. ``table_codes``: of single tables. Tables of
    at most ``replicated_rows_max`` rows are replicated, with the r of the code.
    ``seed`` and a table's name give its initial weights, whatever the number of shards. ``weights``: first weights of
    tables, float32[num_embeddings, embedding_dim], which rank 0 writes unless the table ever had any.
    Raises ConfigurationError for configs that cannot be and for a table that another collection of this session has,
    RefusedError for what the cluster refuses.
    """

    def __init__(
        self,
        session: Session,
        tables: Sequence[EmbeddingBagConfig],
        optimizer: Optimizer | Mapping[str, Optimizer],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        code: CodeSpec | str | None = None,
        table_codes: Mapping[str, CodeSpec | str] | None = None,
        replicated_rows_max: int = 0,
        seed: int = 0,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        configs = own_configs(EmbeddingBagConfig, tables)
        super().__init__(
            session, configs, optimizer, code=code, table_codes=table_codes, replicated_rows_max=replicated_rows_max,
            seed=seed, device=device, weights=weights, weighted=bool(is_weighted),
        )  # fmt: skip
        self.embedding_bags = self._by_name()
        self._weighted = bool(is_weighted)
        self._bag_configs = configs
        of_features = [config for config in configs for _ in config.feature_names]
        self._feature_dims = np.array([config.embedding_dim for config in of_features], np.int32)
        self._feature_mean = np.array([PoolingType.of(c.pooling) is PoolingType.MEAN for c in of_features], np.bool_)
        self._columns = self._feature_dims.tolist()
        self._keys = [name for names in self._embedding_names for name in names]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables."""
        return list(self._bag_configs)

    def is_weighted(self) -> bool:
        """Whether rows are multiplied by weights of the ids."""
        return self._weighted

    @property
    def dim(self) -> int:
        """Columns of the output."""
        return sum(self._columns)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """float32[B, sum of the features' dims], by feature, table by table; one of several tables is called
        ``feature@table``. TorchRec's KeyedTensor for a KeyedJaggedTensor of TorchRec's.

        Uses the rows that `Session.prefetch` has brought for these features, unless there was a push since; pulls them
        now if there are none. Raises ValueError for a feature that is missing, weights of ids where none, or no weights
        where some are expected, and batch sizes that differ by feature; IndexError for an id that its table does not
        have.
        """
        node: KeyedTensor | None = _node(self, features)
        if node is not None:
            return node
        if torch.compiler.is_compiling():  # rows come over sockets, and no compiler sees into that
            pooled: Tensor = torch.compiler.disable(self._pooled)(features)  # type: ignore[no-untyped-call]
        else:
            pooled = self._pooled(features)
        made: KeyedTensor = keyed_tensor_for(features)(
            keys=list(self._keys), length_per_key=list(self._columns), values=pooled
        )
        return made

    def _pooled(self, features: Any) -> Tensor:
        batch = self._looked_up(features)
        bags = _Bags(batch.bag_offsets, self._feature_dims, batch.batch, self._feature_mean)
        return _pool(self, batch, bags, self._weights_of(features) if self._weighted else None)

    def _weights_of(self, features: Any) -> Tensor:
        """A weight for each id, in the order of my features."""
        weights: Tensor = features.weights()
        ids = len(features.values())
        if weights.shape != (ids,):
            raise ValueError(f"weights of ids are {tuple(weights.shape)}, expected one for each of the {ids} ids")
        order = self._order(features)
        if order is not None:
            ends = features.offset_per_key()
            weights = torch.cat([weights[ends[f] : ends[f + 1]] for f in order])
        if not weights.is_floating_point():
            raise TypeError(f"weights of ids are {weights.dtype}, expected floats")
        return weights.to(torch.float32)

    @property
    def _is_weighted(self) -> bool:
        return self._weighted


class EmbeddingCollection(EmbeddingTables):
    """Embeddings of all ids of a batch, not pooled; the tables, all of one dim, are made on the shards.

    Its parameters are ``embeddings.<table>.weight``. ``need_indices``: the ids come back as the weights of the output.
    Everything else is as in `EmbeddingBagCollection`.
    """

    def __init__(
        self,
        session: Session,
        tables: Sequence[EmbeddingConfig],
        optimizer: Optimizer | Mapping[str, Optimizer],
        device: torch.device | str | None = None,
        need_indices: bool = False,
        *,
        code: CodeSpec | str | None = None,
        table_codes: Mapping[str, CodeSpec | str] | None = None,
        replicated_rows_max: int = 0,
        seed: int = 0,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        configs = own_configs(EmbeddingConfig, tables)
        dims = {config.name: config.embedding_dim for config in configs}
        if len(set(dims.values())) > 1:
            raise ConfigurationError(f"tables of an EmbeddingCollection have one embedding_dim, found {dims}")
        super().__init__(
            session, configs, optimizer, code=code, table_codes=table_codes, replicated_rows_max=replicated_rows_max,
            seed=seed, device=device, weights=weights,
        )  # fmt: skip
        self.embeddings = self._by_name()
        self._need_indices = bool(need_indices)
        self._sequence_configs = configs

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The tables."""
        return list(self._sequence_configs)

    def need_indices(self) -> bool:
        """Whether the ids come back as the weights of the output."""
        return self._need_indices

    def embedding_dim(self) -> int:
        """Of all tables."""
        return self._sequence_configs[0].embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """Names of the outputs."""
        return [list(names) for names in self._embedding_names]

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """For each feature the rows of its ids, float32[ids, embedding_dim], and the lengths of its lists; one of
        several tables is called ``feature@table``. TorchRec's JaggedTensor for a KeyedJaggedTensor of TorchRec's.
        Raises as `EmbeddingBagCollection.forward`.
        """
        node: dict[str, JaggedTensor] | None = _node(self, features)
        if node is not None:
            return node
        if torch.compiler.is_compiling():
            rows: list[Tensor] = torch.compiler.disable(self._rows)(features)  # type: ignore[no-untyped-call]
        else:
            rows = self._rows(features)
        kind, out = jagged_tensor_for(features), {}
        names = [name for names in self._embedding_names for name in names]
        for name, feature, values in zip(names, self._feature_names, rows, strict=True):
            lists = features[feature]
            out[name] = kind(
                values=values, lengths=lists.lengths(), weights=lists.values() if self._need_indices else None
            )
        return out

    def _rows(self, features: Any) -> list[Tensor]:
        batch = self._looked_up(features)
        ids = len(batch.inverse)
        # Each id is a bag of its own.
        bags = _Bags(np.arange(ids + 1), np.array([self.embedding_dim()], np.int32), ids, np.zeros(1, np.bool_))
        ends = batch.bag_offsets[:: batch.batch] if batch.batch else np.zeros(len(self._feature_names) + 1, np.int64)
        return list(torch.split(_pool(self, batch, bags, None), np.diff(ends).tolist()))


def _node(tables: EmbeddingTables, features: Any) -> Any:
    """The call as a node of a torch.fx graph, which does not see into it; None where torch.fx does not trace. Raises
    ConfigurationError where the graph is that of the collection alone, and for tracers that would keep the rows of this
    batch as constants."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise ConfigurationError(f"torch.jit.trace would keep the rows of this batch for ever. {_RUN_OR_TRACE}")
    if not torch.compiler.is_dynamo_compiling() and getattr(torch.compiler, "is_exporting", bool)():
        raise ConfigurationError(f"torch.export does not see into a collection. {_RUN_OR_TRACE}")
    if not isinstance(features, torch.fx.Proxy):
        return None
    target = features.tracer.path_of_module(tables)  # type: ignore[attr-defined]
    if not target:
        raise ConfigurationError("torch.fx does not see into a collection: trace the model that has it")
    return features.tracer.create_proxy("call_module", target, (features,), {})


_RUN_OR_TRACE = (
    "Rows come from the servers: run the model as it is, use torch.fx or torch.compile, which leave a collection "
    "whole, or trace the dense modules alone, and TorchRec's own collections with the weights of `ecrec export`"
)


class _Bags(NamedTuple):
    """Which ids are pooled together, as the native kernels take it: (offsets, dims, batch, mean)."""

    offsets: I64
    dims: NDArray[np.int32]
    batch: int
    mean: NDArray[np.bool_]


def _pool(tables: EmbeddingTables, batch: BatchRows, bags: _Bags, weights: Tensor | None) -> Tensor:
    trained = tables.trained()
    # Autograd runs a function's backward only if an input asks for it, and the rows are no torch tensor.
    anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=bool(trained.any()))
    pooled: Tensor = _Pooling.apply(  # type: ignore[no-untyped-call]
        anchor, weights, tables, batch, bags, None if trained.all() else trained
    )
    return pooled


class _Pooling(torch.autograd.Function):
    """Pools rows; the backward pass leaves their gradients with the collection, summed over each row's occurrences."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weights: Tensor | None,
        tables: EmbeddingTables,
        batch: BatchRows,
        bags: _Bags,
        trained: NDArray[np.bool_] | None,
    ) -> Tensor:
        ctx.tables, ctx.batch, ctx.bags, ctx.trained = tables, batch, bags, trained
        ctx.save_for_backward(weights)
        out = torch.empty(bags.batch, int(bags.dims.sum()), dtype=torch.float32, device="cpu")
        pool_forward(batch.values, batch.value_offsets, batch.inverse, *bags, out.numpy(), _array(weights))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None, None, None, None]:
        batch: BatchRows = ctx.batch
        bags: _Bags = ctx.bags
        (weights,) = ctx.saved_tensors
        grad = grads[0].contiguous().numpy()
        if ctx.needs_input_grad[0]:
            gradients = np.empty_like(batch.values)
            pool_backward(grad, batch.value_offsets, batch.inverse, *bags, gradients, _array(weights))
            ctx.tables.gathered(Gradients(batch, gradients, ctx.trained))
        of_weights = None
        if ctx.needs_input_grad[1]:
            of_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
            pool_backward_weights(grad, batch.values, batch.value_offsets, batch.inverse, *bags, of_weights.numpy())
        return None, of_weights, None, None, None, None


def _array(weights: Tensor | None) -> Any:
    return None if weights is None else weights.detach().contiguous().numpy()

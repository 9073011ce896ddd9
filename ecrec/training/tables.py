"""What collections of embedding tables have in common: tables on the shards, and a part in a session's steps."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecrec._native import plan_batch, sum_sections
from ecrec.errors import ConfigurationError, GradientError, RefusedError
from ecrec.protocol.messages import Section
from ecrec.protocol.placement import CodeSpec, TableSpec
from ecrec.training.batch_rows import BatchRows, Gradients, SummedGradients
from ecrec.training.configs import (
    BaseEmbeddingConfig,
    check_device,
    check_table_codes,
    check_weights,
    embedding_names,
    first_weights,
    is_written,
    table_spec,
)
from ecrec.training.evaluation import check_no_gradients, refuse
from ecrec.training.jagged_tensor import integers
from ecrec.training.optimizers import Optimizer, by_table
from ecrec.training.parts import F32, I64, TAKEN_AWAY, Share, WaitingGradients
from ecrec.training.session import Session
from ecrec.training.table import Table
from ecrec.training.whole import table_shares
from ecrec.training.whole_model import load_whole

PASSES_WARNED = 64
"""Backward passes without a push after which the log warns."""

log = logging.getLogger(__name__)


class EmbeddingTables(nn.Module):
    """The tables of a collection; `EmbeddingBagCollection` and `EmbeddingCollection` say what becomes of their rows."""

    is_on_servers = True

    def __init__(
        self,
        session: Session,
        configs: Sequence[BaseEmbeddingConfig],
        optimizer: Optimizer | Mapping[str, Optimizer],
        *,
        code: CodeSpec | str | None,
        table_codes: Mapping[str, CodeSpec | str] | None,
        replicated_rows_max: int,
        seed: int,
        device: torch.device | str | None,
        weights: Mapping[str, Tensor] | None,
        weighted: bool = False,
    ) -> None:
        super().__init__()
        what = type(self).__name__
        if not isinstance(session, Session):
            raise ConfigurationError(f"{what}: session is {session!r:.100}, expected a Session (ecrec.connect)")
        if not configs:
            raise ConfigurationError(f"an {what} needs at least one table")
        check_table_codes(configs, table_codes or {})
        optimizers = by_table([config.name for config in configs], optimizer)
        check_device(what, device)
        weights = weights or {}
        check_weights(configs, weights)
        self._session = session
        self._configs = list(configs)
        general = session.default_code() if code is None else CodeSpec.of(code)
        specs = []
        for config in configs:
            chosen = (table_codes or {}).get(config.name)
            if chosen is not None:
                table_code = CodeSpec.of(chosen)
            elif config.num_embeddings <= replicated_rows_max:
                table_code = CodeSpec(1, general.r, general.generator)
            else:
                table_code = general
            given = config.name in weights
            specs.append(table_spec(config, table_code, optimizers[config.name], seed, given=given, weighted=weighted))
        names = [config.name for config in configs]
        session.check_claim(names)
        try:
            self._indices = np.array(session.create_tables(specs), np.int32)
        except RefusedError as error:
            if "exists with other properties" not in str(error):
                raise
            seeds = (
                ". init_seed stands for seed=, and for whether a worker writes the first weights (init_fn, weights=, a "
                "module that is not on meta)"
            ) * ("init_seed" in str(error))
            raise RefusedError(
                f"{error}{seeds}. What comes second is what this worker asked for: give the same as when the table was "
                "made, or another name"
            ) from None
        # Where the session only reads, code, optimizer and first values are the cluster's.
        self.specs = specs = [session.machine.tables[name][1] for name in names]
        self._table_rows = np.array([c.num_embeddings for c in configs], np.int64)
        self._table_k = np.array([spec.code.k for spec in specs], np.int32)
        features = [(t, name, c) for t, c in enumerate(configs) for name in c.feature_names]
        self._feature_names = [name for _, name, _ in features]
        self._feature_tables = np.array([t for t, _, _ in features], np.int32)
        self._embedding_names = embedding_names(configs)
        # A tuple, in which torch does not look for parameters.
        self._tables = tuple(Table(session, config) for config in configs)
        self._offered: BatchRows | None = None
        self._flat: dict[int, tuple[Tensor, list[F32]]] = {}
        """Index of a table -> its gradients as `gradient_of` gave them, and the arrays that they are copies of."""
        self._aside: list[BatchRows | None] = []
        """What was offered before an evaluation, while that goes on."""
        self._pending: list[Gradients | SummedGradients] = []
        for config, spec in zip(configs, specs, strict=True):
            if is_written(config, weights):
                session.initialise(config.name, partial(self._first_values, config, spec, weights.get(config.name)))
        session.claim(names, self)
        session.register(self, keep=False)

    def _first_values(
        self, config: BaseEmbeddingConfig, spec: TableSpec, given: Tensor | None
    ) -> list[dict[int, Share]]:
        values = first_weights(config, spec.init_seed) if given is None else given.detach()
        return list(table_shares(self._session, spec, values.to(torch.float32).contiguous().numpy()))

    def _by_name(self) -> nn.ModuleDict:
        """The tables as modules."""
        out = nn.ModuleDict()
        # No add_module: a table may have the name of one of a module's methods, such as items.
        out._modules.update(zip([config.name for config in self._configs], self._tables, strict=True))
        return out

    @property
    def tables(self) -> tuple[Table, ...]:
        """What torch sees of each table, in order."""
        return self._tables

    @property
    def feature_names(self) -> list[str]:
        """Features, table by table: one that is in several tables several times."""
        return list(self._feature_names)

    @property
    def device(self) -> torch.device:
        """Where looked-up rows are."""
        return torch.device("cpu")

    def _looked_up(self, features: Any) -> BatchRows:
        """The rows of a batch: those that `Session.prefetch` has brought, or pulled now."""
        for table in self._tables:
            table.check_same()
        _check_kind(features)
        self._check_weights_of(features)
        if self._aside:
            check_no_gradients(f"{type(self).__name__} of {self._names()}")
        offered = self._offered
        if offered is not None and offered.is_of(features):
            return offered
        batch = self.plan(features)
        self._session.fetch(batch)
        return batch

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; no table is written if one does not fit, or a key is missing where ``strict``."""
        return load_whole(self, super().load_state_dict, state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Torch loads the tables after this, one by one: none is written if weights of one of them do not fit."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        (child,) = self._modules
        misfits = [
            table.misfit(state_dict, f"{prefix}{child}.{config.name}.")
            for table, config in zip(self._tables, self._configs, strict=True)
        ]
        for table in self._tables:
            table.may_write = not any(misfits)

    def trained(self) -> NDArray[np.bool_]:
        """Which tables are."""
        return np.array([table.weight.requires_grad for table in self._tables])

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
    def plan(self, features: Any) -> BatchRows:
        """The distinct rows of a batch, and where they live. Of several KeyedJaggedTensors: of the one that is mine."""
        features = self._mine(features)
        ids, offsets, batch = self._bags(features)
        starts = np.ascontiguousarray(offsets[::batch]) if batch else np.zeros(len(self._feature_names) + 1, np.int64)
        machine = self._session.machine
        try:
            rows, counts, inverse = plan_batch(
                ids, starts, self._feature_tables, self._table_rows, self._table_k, machine.n, machine.groups
            )
        except IndexError as error:
            raise IndexError(self._bad_id(ids, offsets, batch) or str(error)) from None
        return BatchRows(self._configs, self._indices, features, (rows, counts, inverse), offsets, batch)

    def offer(self, features: Any, fetch: BatchRows) -> None:
        """Keep the rows of the batch whose step begins; those of the batch before are no longer wanted."""
        if self._aside:
            refuse("a step of Session.prefetch")
        self._offered = fetch

    def check_gradients(self) -> None:
        """Raise GradientError if those that a backward pass left were taken away, or changed, since."""
        for table in self._tables:
            table.check_same()
            table.check_gradient()
        if self._pending and self._zeroed():
            raise GradientError(
                f"the gradients of tables {', '.join(config.name for config in self._configs)} were {TAKEN_AWAY}"
            )

    def take_gradients(self) -> dict[int, Share]:
        """Gradients of the backward passes since the last call, one section a shard."""
        self._settle()
        pending, self._pending = self._pending, []
        self._unmark()
        return self._sum_of(pending)

    def waiting_gradients(self) -> list[WaitingGradients]:
        """Those of rows, each row once, in place: one array for each table and shard."""
        self._settle()
        return [WaitingGradients(values, by_row=True) for _, values in self._waiting()]

    def gradient_of(self, index: int) -> Tensor | None:
        """Of one of the tables: the gradients of its rows, each row once, as one flat tensor; None without any. What is
        changed in it counts."""
        if not self._flat:
            arrays: dict[int, list[F32]] = {}
            for table, values in self._waiting():
                arrays.setdefault(table, []).append(values)
            self._flat = {
                table: (torch.from_numpy(np.concatenate([each.reshape(-1) for each in found])), found)
                for table, found in arrays.items()
            }
        return self._flat[index][0] if index in self._flat else None

    def _settle(self) -> None:
        """What was changed in tensors of `gradient_of` becomes the gradients."""
        flat, self._flat = self._flat, {}
        for tensor, arrays in flat.values():
            first = 0
            for each in arrays:
                each[:] = tensor[first : first + each.size].numpy().reshape(each.shape)
                first += each.size

    def _waiting(self) -> list[tuple[int, F32]]:
        """Index of a table, and the gradients of its rows on one shard."""
        if not self._pending:
            return []
        all_trained = [gradients.trained for gradients in self._pending]
        some = [trained for trained in all_trained if trained is not None]
        trained = np.logical_or.reduce(some) if len(some) == len(all_trained) else None
        summed = SummedGradients(self._sum_of(self._pending), trained)
        self._pending = [summed]
        dims = {int(i): config.embedding_dim for i, config in zip(self._indices, self._configs, strict=True)}
        out = []
        for share in summed.by_shard.values():
            assert share.values is not None
            first = 0
            for table, count in zip(share.section.tables, share.section.counts, strict=True):
                last = first + count * dims[table]
                out.append((table, share.values[first:last].reshape(count, dims[table])))
                first = last
        return out

    def _sum_of(self, pending: Sequence[Gradients | SummedGradients]) -> dict[int, Share]:
        """Those of several backward passes, by shard, each row once."""
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
        """Forget the gradients of the backward passes since the last push, and changes of weights here that were an
        error."""
        self._flat = {}
        self._pending = []
        self._unmark()
        for table in self._tables:
            table.go_on()

    def finish(self) -> None:
        """Nothing is left to do."""

    def begin_evaluation(self) -> None:
        """Rows that were offered for a step are kept for it: they may be older than the last push."""
        self._aside.append(self._offered)
        self._offered = None

    def end_evaluation(self) -> None:
        """The step goes on."""
        self._offered = self._aside.pop()

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

    def _names(self) -> str:
        return ", ".join(config.name for config in self._configs)

    def gathered(self, gradients: Gradients) -> None:
        if self._aside:
            refuse(f"a backward pass to the tables {self._names()}")
        self._settle()
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
        dims[self._indices] = [config.embedding_dim for config in self._configs]
        sections = [
            (np.array(s.section.tables, np.int32), np.array(s.section.counts, np.int64), s.rows, s.values)
            for s in shares
            if s.values is not None
        ]
        tables, counts, rows, values = sum_sections(sections, dims)
        return Share(Section(tables.tolist(), counts.tolist()), rows, values)

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks for it."""
        raise ConfigurationError(
            f"torch.jit.script does not see into an {type(self).__name__}, whose rows come from the servers: run the "
            "model as it is, or trace a copy of the dense modules alone"
        )

    def _mine(self, features: Any) -> Any:
        """Of several KeyedJaggedTensors the one for this collection."""
        if not isinstance(features, list | tuple):
            return features
        wanted = set(self._feature_names)
        for each in features:
            _check_kind(each, f"a {type(features).__name__} with a ")
        having = [each for each in features if wanted <= set(each.keys())]
        fitting = [each for each in having if (each.weights_or_none() is not None) is self._is_weighted]
        found = fitting or having
        if len(found) != 1:
            raise ValueError(
                f"{len(found) or 'none'} of the {len(features)} KeyedJaggedTensors of the batch "
                f"{'have' if len(found) > 1 else 'has'} features {', '.join(self._feature_names)}, expected one"
            )
        return found[0]

    @property
    def _is_weighted(self) -> bool:
        return False

    def _order(self, features: Any) -> list[int] | None:
        """For each of my features its number among those of the batch. None: they are the same."""
        keys = list(features.keys())
        if keys == self._feature_names:
            return None
        places = {key: i for i, key in enumerate(keys)}
        missing = [name for name in self._feature_names if name not in places]
        if missing:
            raise ValueError(f"the batch lacks features {', '.join(missing)}; it has {', '.join(keys)}")
        return [places[name] for name in self._feature_names]

    def _bags(self, features: Any) -> tuple[I64, I64, int]:
        """(ids, bag offsets, B) of my features in my order."""
        self._check_features(features)
        batch = features.stride()
        values = integers(features.values().detach(), "values").contiguous().numpy()
        # A copy: the backward pass needs them, and somebody may have changed his by then.
        offsets = features.offsets().detach().to(torch.int64, copy=True).contiguous().numpy()
        keys = features.keys()
        if (backwards := np.flatnonzero(offsets[1:] < offsets[:-1])).size and batch:
            feature, example = divmod(int(backwards[0]), batch)
            raise ValueError(
                f"feature {keys[feature] if feature < len(keys) else feature!r}, example {example} of the batch: its "
                f"list has length {offsets[backwards[0] + 1] - offsets[backwards[0]]}, expected at least 0"
            )
        if len(offsets) != len(keys) * batch + 1 or offsets[0] != 0 or offsets[-1] != len(values):
            raise ValueError(
                f"the batch has {len(offsets)} offsets, from {offsets[:1]} to {offsets[-1:]}, for {len(keys)} features "
                f"of {batch} examples and {len(values)} ids"
            )
        order = self._order(features)
        if order is None:
            return values, offsets, batch
        ids = [values[offsets[f * batch] : offsets[(f + 1) * batch]] for f in order]
        lengths = np.diff(offsets).reshape(len(keys), batch)[order].reshape(-1)
        ordered = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=ordered[1:])
        return np.concatenate(ids), ordered, batch

    def _check_features(self, features: Any) -> None:
        """What a KeyedJaggedTensor of TorchRec may have, and would be left out or misread."""
        _check_kind(features)
        if len(set(features.keys())) != len(features.keys()):
            raise ValueError(f"keys of the features must differ, found {', '.join(features.keys())}")
        varies = getattr(features, "variable_stride_per_key", lambda: False)()
        if varies or getattr(features, "inverse_indices_or_none", lambda: None)() is not None:
            raise ValueError(
                "the features have different batch sizes (VBE: stride_per_key, inverse_indices): expected one for all"
            )
        for given in (features.values(), features.offsets()):
            if given.device.type != "cpu":
                raise ValueError(
                    f"the features are on {given.device}, expected cpu, where rows are looked up: move what the "
                    "collection returns"
                )

    def _check_weights_of(self, features: Any) -> None:
        """Only when it is called: a model may give weights to the features of a batch, or take them away, itself."""
        has_weights = getattr(features, "weights_or_none", lambda: None)() is not None
        if has_weights and not self._is_weighted:
            raise ValueError(
                "the batch has a weight for each id, which would have no effect here: leave them out, or pool with "
                "EmbeddingBagCollection(is_weighted=True)"
            )
        if self._is_weighted and not has_weights:
            raise ValueError("the collection is_weighted, and the batch has no weights of ids")


def _check_kind(features: Any, within: str = "") -> None:
    """Raise TypeError for what is no KeyedJaggedTensor."""
    if not all(callable(getattr(features, name, None)) for name in ("keys", "values", "offsets", "stride")):
        raise TypeError(
            f"features are {within}{type(features).__name__}, expected a KeyedJaggedTensor (ecrec's, TorchRec's); of "
            "a batch with more in it, prefetch(..., features=) gives it"
        )

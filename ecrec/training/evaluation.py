"""A model that is evaluated while it is trained: what it reads, and what must be as before when that is over.

What is read is one state of the model: that after the last push, where nobody else can push meanwhile (one worker, or
workers in sync, whose next push waits for this one), or that of a checkpoint, which is one cut of all workers' pushes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from ecrec.checkpoint.lookup import TableRows, load_tables
from ecrec.checkpoint.reading import Checkpoint, open_checkpoint
from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import TableSpec
from ecrec.training.configs import NOT_POOLED
from ecrec.training.parts import Part
from ecrec.training.pulls import Asked
from ecrec.training.unchanged import Unchanged

COMPARED = ("rows", "dim", "is_module")
"""Of a table, with that of a checkpoint. Code and shards may be others; an optimizer is not used."""


class AtCheckpoint:
    """The weights of a session's tables as a checkpoint has them."""

    def __init__(self, url: str, number: int | None, tables: Mapping[int, TableSpec]) -> None:
        """``tables``: index on the cluster -> spec. Raises ConfigurationError for tables that are others in the
        checkpoint, or too large for memory, CheckpointError for a checkpoint that is damaged."""
        checkpoint = open_checkpoint(url, number)
        for spec in tables.values():
            _check_same(checkpoint, spec)
        found = load_tables(checkpoint, [spec.name for spec in tables.values()])
        self._rows: dict[int, TableRows] = {index: found[spec.name] for index, spec in tables.items()}

    def answer(self, asked: Asked) -> None:
        """Answer a pull, as the shards would have at the cut."""
        asked.frames = {
            shard: [self._weights(section, rows) for section, rows in zip(sections, all_rows, strict=True)]
            for shard, (sections, all_rows) in asked.by_shard.items()
        }
        asked.fill()

    def _weights(self, section: Any, rows: Any) -> Any:
        ends = np.cumsum(section.counts)
        parts = np.split(np.asarray(rows, np.int64), ends[:-1])
        weights = [self._rows[t].weights(part).reshape(-1) for t, part in zip(section.tables, parts, strict=True)]
        return np.concatenate(weights)


def _check_same(checkpoint: Checkpoint, spec: TableSpec) -> None:
    there = checkpoint.spec(spec.name)
    # Of a replicated module the seed stands for the names and shapes of its parameters.
    fields = [*COMPARED, *(("init_seed", "first_values") if spec.is_module else ())]
    if not {"", NOT_POOLED} & {spec.pooling, there.pooling}:  # rows alone may be looked at
        fields.append("pooling")
    for field in fields:
        here, other = getattr(spec, field), getattr(there, field)
        if here != other:
            raise ConfigurationError(
                f"{checkpoint.folder}: {field} of table {spec.name!r} is {other!r} in the checkpoint and {here!r} in "
                "the model that is to be evaluated: give a checkpoint of this model"
            )


class Evaluation:
    """While its ``with`` block lasts, parts of a session read, and nothing is trained; behind it all is as before."""

    def __init__(
        self,
        parts: Sequence[Part],
        modules: Iterable[nn.Module],
        source: AtCheckpoint | None,
        kept_by_parts: Collection[int] = (),
        undo_others: Callable[[], str] = str,
    ) -> None:
        """``modules``: set into evaluation mode, with all in them. ``kept_by_parts``: ids of parameters whose values
        the parts look after. ``undo_others``: brings other things back to what they are now, and says which."""
        self._parts = list(parts)
        self._modules = list(modules)
        self.source = source
        """What answers pulls instead of the shards."""
        self._kept_by_parts, self._undo_others = kept_by_parts, undo_others
        self._block = ExitStack()

    def __enter__(self) -> "Evaluation":
        modes = [(each, each.training) for module in self._modules for each in module.modules()]
        with ExitStack() as block:
            block.callback(_restore_modes, modes)
            for part in self._parts:
                part.begin_evaluation()
                block.callback(part.end_evaluation)
            for module in self._modules:
                module.eval()
            block.push(partial(self._check, Unchanged(self._modules, self._kept_by_parts)))
            block.enter_context(torch.no_grad())
            self._block = block.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, trace)

    def _check(
        self,
        inside: Unchanged,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What was changed meanwhile is undone, and an error."""
        changed = [what for what in (inside.restore(), self._undo_others()) if what]
        if kind is None and changed:
            raise ConfigurationError(
                f"{', '.join(changed)} inside Session.evaluate, which changes nothing: leave the mode of the model as "
                "it is there, its tensors, gradients and learning rates too; all of it is as before again"
            )


def _restore_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, was_training in modes:
        module.training = was_training


def check_no_gradients(what: str) -> None:
    """Raise ConfigurationError where a forward pass inside of an evaluation would record what a backward pass needs."""
    if torch.is_grad_enabled():
        raise ConfigurationError(
            f"{what} is called inside Session.evaluate with gradients enabled (torch.enable_grad): an evaluation "
            "trains nothing. Compute gradients before or after it"
        )


def refuse(what: str) -> NoReturn:
    """Raise ConfigurationError for what would change the model."""
    raise ConfigurationError(f"{what} inside Session.evaluate, which changes nothing: call it before or after")

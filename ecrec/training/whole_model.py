"""What torch does to a model as a whole, done to one whose tables are on the servers: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError
from ecrec.training.parameter_rows import dense_parameters
from ecrec.training.replicated import ReplicatedModule, owner_of


def keep_whole(model: nn.Module) -> None:
    """From now on the model is loaded (``load_state_dict``) and converted (``double``, ``to``, ...) as a whole or not
    at all. A copy of it, or one that was saved, is plain torch."""
    model.load_state_dict = LoadStateDict(model)  # type: ignore[method-assign]
    model._apply = Convert(model)  # type: ignore[method-assign]


class LoadStateDict:
    """``load_state_dict`` of one model: where an error is raised, no table, parameter or buffer is another one."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's. Raises as that does; ConfigurationError for ``assign``, GradientError for a weight of a table
        that is not finite. An error of the cluster while tables are written leaves those written before it."""
        model = self._model
        return load_whole(model, partial(type(model).load_state_dict, model), state_dict, strict, assign)


class Convert:
    """``_apply`` of one model, behind ``double``, ``half``, ``to``, ``cuda`` and so on."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        model = self._model
        if any(not part.is_over for part in _replicated(model)) or _tables(model):
            probe = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
            if probe.dtype != torch.float32 or probe.device.type != "cpu":
                raise ConfigurationError(
                    f"{type(model).__name__} is on the servers, and stays torch.float32 on cpu here; it cannot be "
                    f"converted to {probe.dtype} on {probe.device}, and nothing of it was. Convert what goes in and "
                    "out, or a copy.deepcopy of the dense modules"
                )
        converted: nn.Module = type(model)._apply(model, fn, recurse)  # type: ignore[no-untyped-call]
        return converted


def load_whole(
    model: nn.Module, load: Callable[..., Any], state_dict: Mapping[str, Any], strict: bool, assign: bool
) -> Any:
    """Have torch ``load`` a state into a model: tables to the servers, everything else here. Raises as
    `LoadStateDict`."""
    parts = _replicated(model)
    tables = _tables(model)
    if assign and (parts or tables):
        raise ConfigurationError(
            "load_state_dict(assign=True) would put other tensors in the place of parameters that are on the servers: "
            "leave assign out, which copies the values"
        )
    for part in parts:
        part.before_saving()
    restores = [part.remember() for part in parts]
    of_parts = {id(parameter) for part in parts for parameter in part.parameters}
    others = [each for each in dense_parameters(model).values() if id(each) not in of_parts]
    kept = [(each, each.detach().clone()) for each in [*others, *model.buffers()] if not each.is_meta]
    writes: list[Callable[[], None]] = []
    for table in tables:
        table.writes = writes
    try:
        found = load(state_dict, strict)
    except BaseException:
        for restore in restores:
            restore()
        with torch.no_grad():
            for each, value in kept:
                each.copy_(value)
        for part in parts:
            part.buffers_are_known()
        raise
    finally:
        for table in tables:
            table.writes = None
    for write in writes:
        write()
    return found


def _replicated(model: nn.Module) -> list[ReplicatedModule]:
    found = (owner_of(parameter) for parameter in dense_parameters(model).values())
    return list({id(part): part for part in found if part is not None}.values())


def _tables(model: nn.Module) -> list[Any]:
    collections: list[Any] = [part for part in model.modules() if getattr(part, "is_on_servers", False)]
    return [table for collection in collections for table in collection.tables]

"""The values of a replicated module's parameters: what the shards had last, and what somebody has made of them here."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ecrec._native import first_nonfinite
from ecrec.errors import ConfigurationError, DivergedError
from ecrec.training.parameter_rows import ParameterRows, dense_parameters
from ecrec.training.parts import F32

UNDO = "ReplicatedModule.pull(undo=True)"
"""The way back, for people."""


class DenseValues:
    """One flat buffer, of which the parameters become views. A pull replaces its values."""

    def __init__(self, name: str, module: nn.Module, rows: ParameterRows) -> None:
        """Copies the values that the parameters have; the module is touched by `take_over` alone."""
        self._name, self._module, self._rows = name, module, rows
        self.here: F32 = rows.buffer()
        """As they are here now."""
        self._views = list(rows.views(self.here))
        self._places = [view.data_ptr() for view in self._views]
        self._owners = [
            (part, key, i)
            for i, parameter in enumerate(rows.parameters)
            for part in module.modules()
            for key, other in part._parameters.items()
            if other is parameter
        ]
        """The modules that have each parameter, and under which name."""
        self._known: F32 = self.here
        """As they were pulled, or written, last."""
        self._versions: list[int] = []
        """Of the parameters, then."""
        self._evaluated: F32 | None = None
        for parameter, view in zip(rows.parameters, self._views, strict=True):
            view.copy_(parameter.data)

    @property
    def is_evaluated(self) -> bool:
        """The parameters have values of an evaluation. Those of training stay where they are."""
        return self._evaluated is not None

    # ------------------------------------------------------------------ from the shards, and to them
    def assembled(self, answers: Mapping[int, Any]) -> F32:
        """The rows of a pull in one array. Raises DivergedError for a value that is not finite."""
        out = self._rows.buffer()
        for shard, frame in answers.items():
            out[self._rows.by_shard[shard]] = np.frombuffer(frame, np.float32).reshape(-1, out.shape[1])
        first = first_nonfinite(out.reshape(-1))
        if first >= 0:
            row, column = divmod(first, out.shape[1])
            raise DivergedError(
                f"{self._rows.describe(row, column)} of the replicated module {self._name!r} is {out[row, column]} on "
                "the servers"
            )
        return out

    def take_over(self, first: F32) -> bool:
        """From now on the parameters are views, and have the values that the shards had ``first``. Whether those are
        others than the module had."""
        differ = not _equal(self.here, first)
        self._known = first
        self.here[:] = first
        for parameter, view in zip(self._rows.parameters, self._views, strict=True):
            parameter.data = view
            parameter.grad = None
        return differ

    def set(self, new: F32) -> None:
        """A step begins with these. Raises ConfigurationError if that would undo a change that was made here."""
        if not _equal(self.here, self._known):
            self._refuse_changed("a parameter")
        if not _equal(new, self._known):
            self.here[:] = self._known = new
            # A graph that was built with the values of before must not go backward with these: torch says so then.
            for parameter in self._rows.parameters:
                increment_version(parameter)
            self.know_versions()

    def written(self) -> None:
        """The shards have what is here."""
        self._known[:] = self.here
        self.know_versions()

    def undo(self) -> None:
        """A change that was made here is none: not of values, nor of types, memory or the parameters themselves."""
        for part, key, i in self._owners:
            part._parameters[key] = self._rows.parameters[i]
        self._views = list(self._rows.views(self.here))
        for parameter, view in zip(self._rows.parameters, self._views, strict=True):
            parameter.data = view
        self.here[:] = self._known
        self.know_versions()

    def know_versions(self) -> None:
        """What was done to the parameters up to now is no change."""
        self._versions = [p._version for p in self._rows.parameters]

    def remember(self) -> Callable[[], None]:
        """What brings the values of now back, as if they had never been changed."""
        values = self.here.copy()
        were_same = [p._version for p in self._rows.parameters] == self._versions

        def restore() -> None:
            self.here[:] = values
            if were_same:
                self.know_versions()

        return restore

    # ------------------------------------------------------------------ evaluations
    def begin_evaluation(self, evaluated: F32) -> None:
        """The parameters have these values, in memory of their own, until `end_evaluation`.

        trap: not in place. A graph that waits for its backward pass, and a step of `Session.prefetch`, are of values
        that may be older than the last push.
        """
        self._evaluated = evaluated
        for parameter, value in zip(self._rows.parameters, self._rows.views(evaluated), strict=True):
            parameter.data = value

    def end_evaluation(self) -> None:
        """The parameters have the values of training again. Raises ConfigurationError if somebody has changed those
        that were evaluated, or other tensors are in their place; that change is undone."""
        evaluated, self._evaluated = self._evaluated, None
        assert evaluated is not None
        were = [value.data_ptr() for value in self._rows.views(evaluated)]
        is_same = were == [parameter.data.data_ptr() for parameter in self._rows.parameters]
        is_same = is_same and [p._version for p in self._rows.parameters] == self._versions
        for parameter, view in zip(self._rows.parameters, self._views, strict=True):
            parameter.data = view
        self.know_versions()
        if not is_same:
            raise ConfigurationError(
                f"replicated module {self._name!r}: a parameter was changed inside Session.evaluate (load_state_dict, "
                "the step of an optimizer, a conversion), which changes nothing; it has the values of before again"
            )

    # ------------------------------------------------------------------ what was done to them here
    def check_same(self, values: bool = True) -> None:
        """The module still has the parameters that were replicated, and, with ``values``, nobody has changed them."""
        named = dense_parameters(self._module)
        parameters = list(named.values())
        if len(parameters) != len(self._rows.parameters) or any(
            a is not b for a, b in zip(parameters, self._rows.parameters, strict=True)
        ):
            raise ConfigurationError(
                f"replicated module {self._name!r}: its parameters are {', '.join(named)}, and were "
                f"{', '.join(self._rows.names)}, or one was replaced: change a module before it is replicated. "
                f"{UNDO} has its parameters again; put back layers that were added or replaced; before "
                "torch.func.functional_call, pull()"
            )
        self._take_back()
        for name, parameter, version in zip(self._rows.names, self._rows.parameters, self._versions, strict=True):
            if values and parameter._version != version:
                self._refuse_changed(f"parameter {name}")

    def _take_back(self) -> None:
        """A parameter that lies elsewhere, as one that was converted and back, is a view again; if its values are
        others now, that is a change as any other. Raises ConfigurationError for another type, device or shape."""
        moved = []
        for i, (parameter, view, place) in enumerate(
            zip(self._rows.parameters, self._views, self._places, strict=True)
        ):
            data = parameter.data
            if data.dtype != view.dtype or data.device.type != "cpu" or data.shape != view.shape:
                self._refuse_moved(self._rows.names[i], parameter)
            if data.data_ptr() != place or data.stride() != view.stride():
                moved.append(i)
        if not moved:
            return
        self._views = list(self._rows.views(self.here))  # torch may have moved the memory of all (share_memory)
        for i in moved:
            parameter, view = self._rows.parameters[i], self._views[i]
            if not torch.equal(parameter.data.contiguous().view(torch.int32), view.view(torch.int32)):
                view.copy_(parameter.data.clone())
                increment_version(parameter)
            parameter.data = view

    def check_kind(self) -> None:
        """Raise ConfigurationError for a parameter that was converted: torch would only name the matrices."""
        for name, parameter in zip(self._rows.names, self._rows.parameters, strict=True):
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                self._refuse_moved(name, parameter)

    def _refuse_moved(self, name: str, parameter: Tensor) -> NoReturn:
        raise ConfigurationError(
            f"replicated module {self._name!r}: parameter {name} was moved or converted ({parameter.dtype} on "
            f"{parameter.device}), or has another shape, {tuple(parameter.shape)}; it is trained as torch.float32 on "
            f"cpu: convert it back (module.float()), or {UNDO} does it"
        )

    def _refuse_changed(self, what: str) -> NoReturn:
        raise ConfigurationError(
            f"replicated module {self._name!r}: {what} was changed here (load_state_dict, the step of an optimizer, "
            "DistributedDataParallel, another operation in place), and the next pull would undo it. "
            f"ReplicatedModule.assign() writes the values to the servers, {UNDO} gives the change up; steps are theirs "
            "(Session.push)"
        )


def _equal(a: F32, b: F32) -> bool:
    """To the bit."""
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))

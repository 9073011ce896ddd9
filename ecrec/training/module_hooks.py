"""The hooks of a replicated module: what its part is told when torch calls, saves, loads or copies it."""

from typing import Any, Protocol

import torch
from torch import nn

from ecrec.errors import ConfigurationError
from ecrec.training.parameter_rows import dense_parameters


class Hooked(Protocol):
    """What is told; `ReplicatedModule` says what each does."""

    name: str
    module: nn.Module

    @property
    def is_over(self) -> bool: ...

    def before_forward(self, is_whole: bool) -> None: ...

    def after_forward(self) -> None: ...

    def before_saving(self) -> None: ...

    def check_fresh(self, what: str) -> None: ...

    def buffers_are_known(self) -> None: ...


def hook(part: Hooked) -> None:
    """Tell a part from now on what is done to its module, and to those in it."""
    # First, so that other hooks see the parameters of now.
    for module in part.module.modules():
        if module is part.module or dense_parameters(module):
            module.register_forward_pre_hook(_PullBefore(part, of_part=module is not part.module), prepend=True)
            module.register_forward_hook(_CallIsOver(part), always_call=True)
        module.register_state_dict_pre_hook(_PullBeforeSave(part))  # type: ignore[no-untyped-call]
        module._register_load_state_dict_pre_hook(_PullBeforeLoad(part))  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(_KnowBuffers(part))  # type: ignore[no-untyped-call]


class _Hook:
    """A hook of the module. A copy of the module, or one that was loaded from a file, has none that does anything.

    ``of_part``: of a module in it. Where the whole is compiled, that one's hook is enough: each ends a graph.
    """

    def __init__(self, part: Hooked | None, of_part: bool = False) -> None:
        self.part, self.of_part = part, of_part

    def __call__(self, *_: Any) -> None:
        if self.part is None:
            return
        if not torch.compiler.is_compiling():
            self._act(self.part)
        elif not self.of_part:  # it waits for sockets, and no compiler sees into that
            torch.compiler.disable(self._act)(self.part)  # type: ignore[no-untyped-call]

    def _act(self, part: Hooked) -> None:
        raise NotImplementedError

    def __deepcopy__(self, memo: Any) -> "_Hook":
        if self.part is not None:
            self.part.check_fresh("a copy")
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.part is not None:
            self.part.check_fresh("a file")
        return _Hook, (None,)


class _PullBefore(_Hook):
    """The hook before a call."""

    def _act(self, part: Hooked) -> None:
        part.before_forward(not self.of_part)


class _CallIsOver(_Hook):
    """The hook after a call."""

    def _act(self, part: Hooked) -> None:
        part.after_forward()


class _PullBeforeSave(_Hook):
    """The hook of ``state_dict``."""

    def _act(self, part: Hooked) -> None:
        part.before_saving()


class _PullBeforeLoad(_PullBeforeSave):
    """The hook of ``load_state_dict``, which is told whether other tensors are to take the parameters' places."""

    def __call__(self, *given: Any) -> None:
        if self.part is not None and given[2].get("assign_to_params_buffers") and not self.part.is_over:
            raise ConfigurationError(
                f"load_state_dict(assign=True) would put other tensors in the place of the parameters of the "
                f"replicated module {self.part.name!r}: leave assign out, which copies the values"
            )
        super().__call__(*given)


class _KnowBuffers:
    """A hook of the module after ``load_state_dict``: the buffers that were loaded are no work of training's."""

    def __init__(self, part: Hooked | None) -> None:
        self.part = part

    def __call__(self, *_: Any) -> None:
        if self.part is not None:
            self.part.buffers_are_known()

    def __deepcopy__(self, memo: Any) -> "_KnowBuffers":
        return _KnowBuffers(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _KnowBuffers, (None,)

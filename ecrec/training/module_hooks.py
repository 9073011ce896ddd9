"""The hooks of a replicated module: what its part is told when torch calls, saves, loads or copies it, and what torch
cannot do to it."""

import copy
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ecrec.errors import ConfigurationError
from ecrec.training.parameter_rows import dense_parameters


class Hooked(Protocol):
    """What is told; `ReplicatedModule` says what each does."""

    name: str
    module: nn.Module

    @property
    def is_over(self) -> bool: ...

    outermost: int

    def before_forward(self, is_whole: bool, module: int) -> None: ...

    def after_forward(self) -> None: ...

    def before_saving(self) -> None: ...

    def check_fresh(self, what: str) -> None: ...

    def buffers_are_known(self) -> None: ...


def hook(part: Hooked) -> None:
    """Tell a part from now on what is done to its module, and to those in it."""
    for module in part.module.modules():
        if module is part.module or dense_parameters(module):
            _hook_calls(part, module)
            module.__prepare_scriptable__ = _PrepareScriptable(part, module)  # type: ignore[assignment]
        module.register_state_dict_pre_hook(_PullBeforeSave(part))  # type: ignore[no-untyped-call]
        module._register_load_state_dict_pre_hook(_PullBeforeLoad(part))  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(_KnowBuffers(part))  # type: ignore[no-untyped-call]


def _hook_calls(part: Hooked, module: nn.Module) -> None:
    # First, so that other hooks see the parameters of now.
    module.register_forward_pre_hook(_PullBefore(part, module), prepend=True)
    module.register_forward_hook(_CallIsOver(part, module), always_call=True)


def watch_shared(owner_of: Callable[[nn.Parameter], Hooked | None]) -> None:
    """A module that is given a replicated parameter of another one pulls before it is called, too.

    That is how torch.fx makes a graph of a module that reads its parameters itself. Where such a module is inside of
    another one, the graph has it as a mere holder of parameters, which nobody calls: ConfigurationError.
    """

    def given(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        part = None if parameter is None else owner_of(parameter)
        if part is None or part.is_over or any(module is each for each in part.module.modules()):
            return
        if type(module) is nn.Module:
            _refuse(
                part, "a holder of parameters, such as torch.fx makes for a module that reads its parameters itself,"
            )
        if not any(isinstance(each, _PullBefore) and each.part is part for each in module._forward_pre_hooks.values()):
            _hook_calls(part, module)

    register_module_parameter_registration_hook(given)


def _refuse(part: Hooked, what: str) -> NoReturn:
    raise ConfigurationError(
        f"replicated module {part.name!r}: {what} does not pull its parameters, and would keep those of now, or read "
        "old ones. ReplicatedModule.of(module).pull(), then give it copy.deepcopy(module), or that of a module in it "
        "where it has tables: a copy is plain torch, with the values of then; inside Session.evaluate it has those "
        "that are evaluated"
    )


def _is_exporting() -> bool:
    """torch.export is at work; an old torch does not say so."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())


class _Hook:
    """A hook of the module. A copy of the module, or one that was loaded from a file, has none that does anything."""

    def __init__(self, part: Hooked | None) -> None:
        self.part = part

    def __call__(self, *_: Any) -> None:
        if self.part is None:
            return
        if _is_exporting() and not self.part.is_over:
            _refuse(self.part, "torch.export")
        if torch.compiler.is_compiling():
            self._act_uncompiled(self.part)
            return
        if torch.jit.is_tracing() and not self.part.is_over:  # type: ignore[attr-defined,no-untyped-call]
            _refuse(self.part, "torch.jit.trace")
        self._act(self.part)

    def _act(self, part: Hooked) -> None:
        raise NotImplementedError

    def _act_uncompiled(self, part: Hooked) -> None:
        # It waits for sockets, and no compiler sees into that: here ends a graph.
        torch.compiler.disable(self._act)(part)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> "_Hook":
        if self.part is not None:
            self.part.check_fresh("a copy")
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.part is not None:
            self.part.check_fresh("a file")
        return _Hook, (None,)


class _CallHook(_Hook):
    """Of calls of one module. Where the module around it is compiled, that one's hooks are enough."""

    def __init__(self, part: Hooked, module: nn.Module) -> None:
        super().__init__(part)
        self.module = id(module)
        self.is_whole = module is part.module


class _PullBefore(_CallHook):
    """The hook before a call."""

    def _act(self, part: Hooked) -> None:
        part.before_forward(self.is_whole, self.module)

    def _act_uncompiled(self, part: Hooked) -> None:
        if self.is_whole or not part.outermost:
            super()._act_uncompiled(part)


class _CallIsOver(_CallHook):
    """The hook after a call."""

    def _act(self, part: Hooked) -> None:
        part.after_forward()

    def _act_uncompiled(self, part: Hooked) -> None:
        if part.outermost == self.module:
            super()._act_uncompiled(part)


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


class _PrepareScriptable:
    """What torch.jit.script asks a module for. One that is no copy is refused. A copy loses its hooks: they do nothing,
    and torch.jit.script cannot read them."""

    def __init__(self, part: Hooked | None, module: nn.Module) -> None:
        self.part, self.module = part, module

    def __call__(self) -> nn.Module:
        if self.part is not None:
            if not self.part.is_over:
                _refuse(self.part, "torch.jit.script")
            return copy.deepcopy(self.module).__prepare_scriptable__()  # type: ignore[no-any-return,operator]
        module = self.module
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, each in hooks.items() if isinstance(each, _Hook)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        del module.__dict__["__prepare_scriptable__"]
        prepare = getattr(module, "__prepare_scriptable__", lambda: module)
        prepared: nn.Module = prepare()
        return prepared

    def __deepcopy__(self, memo: Any) -> "_PrepareScriptable":
        return _PrepareScriptable(None, copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _PrepareScriptable, (None, self.module)

"""Buffers of a replicated module, of which servers keep none: training does not change them, or each worker has its
own."""

import hashlib
from typing import NamedTuple

from torch import Tensor, nn

from ecrec.errors import ConfigurationError
from ecrec.training.unchanged import bytes_of, same_bits

CONSTANT, LOCAL = "constant", "local"
"""What becomes of buffers: training does not change them, or each worker has its own."""

ADVICE = (
    'buffers="local" (replicate, distribute) trains so all the same; layers without running statistics (LayerNorm, '
    "track_running_stats=False), or in evaluation mode, need none of it"
)


class _Known(NamedTuple):
    """A buffer as it was last known."""

    buffer: Tensor
    version: int
    values: Tensor
    """A copy."""

    def is_untouched(self, buffer: Tensor) -> bool:
        """It is this one, and nobody has written to it since."""
        return self.buffer is buffer and self.version == buffer._version


class ConstantBuffers:
    """The buffers of a module that training must not change, where it must not."""

    def __init__(self, name: str, module: nn.Module, kept: str) -> None:
        """``kept``: `CONSTANT` or `LOCAL`."""
        self._name, self._module, self._is_constant = name, module, kept == CONSTANT
        self._known: dict[str, _Known] = {}

    def know(self) -> None:
        """Those that the module has now are right."""
        if self._is_constant:
            self._known = {name: self._of(name, buffer) for name, buffer in _buffers(self._module).items()}

    def _of(self, name: str, buffer: Tensor) -> "_Known":
        known = self._known.get(name)
        if known is not None and known.is_untouched(buffer):
            return known
        return _Known(buffer, buffer._version, buffer.detach().clone())

    def check(self) -> None:
        """Raise ConfigurationError for a buffer that has other values than before, where none may."""
        if not self._is_constant:
            return
        check_buffers(self._name, self._module, CONSTANT)  # torch's kernels change running means without a trace
        for name, buffer in _buffers(self._module).items():
            known = self._known.get(name)
            if known is not None and known.is_untouched(buffer):
                continue
            if known is None or not same_bits(buffer, known.values):
                raise ConfigurationError(
                    f"replicated module {self._name!r}: buffer {name} was changed since the last push, and servers "
                    "keep no buffers: the workers would differ in it, and one that is started again would lose it. "
                    f"Give it the values of before again, or load_state_dict all workers' anew. {ADVICE}"
                )
            self._known[name] = _Known(buffer, buffer._version, known.values)  # it was changed, and changed back


def check_buffers(name: str, module: nn.Module, buffers: str) -> None:
    """Raise ConfigurationError for another option, and for layers whose buffers training would change."""
    if buffers not in (CONSTANT, LOCAL):
        raise ConfigurationError(f"buffers is {buffers!r:.100}, expected {CONSTANT!r} or {LOCAL!r}")
    if buffers == CONSTANT and (learning := running_statistics(module, of_training=True)):
        raise ConfigurationError(
            f"replicated module {name!r}: {', '.join(learning)} learns running statistics, which are buffers, and "
            f"servers keep none: each worker would have its own, and lose them when it is started again. {ADVICE}"
        )


def running_statistics(module: nn.Module, of_training: bool = False) -> list[str]:
    """Layers that learn some beside their parameters, as BatchNorm does; ``of_training``: in training mode."""
    layers = ((name or type(part).__name__, part) for name, part in module.named_modules())
    return [
        name
        for name, part in layers
        if isinstance(getattr(part, "running_mean", None), Tensor) and (part.training or not of_training)
    ]


def digest_of_buffers(module: nn.Module) -> str:
    """Of their names and values, to the bit; empty without any. Workers that differ in one train different models."""
    digest = hashlib.sha256()
    buffers = _buffers(module)
    for name, buffer in sorted(buffers.items()):
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)};".encode())
        digest.update(bytes_of(buffer.cpu()).numpy().tobytes())
    return f"buffers {digest.hexdigest()[:16]}" if buffers else ""


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers())

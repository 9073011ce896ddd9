"""Buffers of a replicated module, of which servers keep none: training does not change them, or each worker has its
own."""

import hashlib

import torch
from torch import Tensor, nn

from ecrec.errors import ConfigurationError

CONSTANT, LOCAL = "constant", "local"
"""What becomes of buffers: training does not change them, or each worker has its own."""

ADVICE = (
    'buffers="local" (replicate, distribute) trains so all the same; layers without running statistics (LayerNorm, '
    "track_running_stats=False), or in evaluation mode, need none of it"
)


class ConstantBuffers:
    """The buffers of a module that training must not change, where it must not."""

    def __init__(self, name: str, module: nn.Module, kept: str) -> None:
        """``kept``: `CONSTANT` or `LOCAL`."""
        self._name, self._module, self._is_constant = name, module, kept == CONSTANT
        self._known: dict[str, tuple[Tensor, int]] = {}
        """As they were last known, with their versions."""

    def know(self) -> None:
        """Those that the module has now are right."""
        if self._is_constant:
            self._known = {name: (buffer, buffer._version) for name, buffer in _buffers(self._module).items()}

    def check(self) -> None:
        """Raise ConfigurationError for a buffer that was changed, where none may be."""
        if not self._is_constant:
            return
        check_buffers(self._name, self._module, CONSTANT)  # torch's kernels change running means without a trace
        now = {name: (buffer, buffer._version) for name, buffer in _buffers(self._module).items()}
        for name, (buffer, version) in now.items():
            known, known_version = self._known.get(name, (None, 0))
            if known is not buffer or known_version != version:
                raise ConfigurationError(
                    f"replicated module {self._name!r}: buffer {name} was changed since the last push, and servers "
                    "keep no buffers: the workers would differ in it, and one that is started again would lose it. "
                    f"{ADVICE}"
                )


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
        digest.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"buffers {digest.hexdigest()[:16]}" if buffers else ""


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers())

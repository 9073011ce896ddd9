"""Modules that must be as before when something is over: what was done to them meanwhile is found, and undone."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

HELD = ("_parameters", "_buffers", "_modules")
"""What torch keeps in a module under names."""


def bytes_of(tensor: Tensor) -> Tensor:
    """Its values as bytes, in order, on its device."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """To the bit, and of the same type and shape, on the same device. Of tensors without memory all else counts."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    return one.is_meta or torch.equal(bytes_of(one), bytes_of(other))


class Unchanged:
    """Some modules as they are now, with all in them: their modes, what they hold, values, gradients."""

    def __init__(self, modules: Iterable[nn.Module], kept_elsewhere: Collection[int]) -> None:
        """``kept_elsewhere``: ids of parameters whose values others look after."""
        self._modules = list({id(each): each for module in modules for each in module.modules()}.values())
        self._modes = [each.training for each in self._modules]
        self._held = [
            (each, kind, dict(held))
            for each in self._modules
            for kind in HELD
            if isinstance(held := getattr(each, kind), dict)  # not of TorchScript's
        ]
        tensors = {
            id(tensor): (name, tensor)
            for each in self._modules
            for name, tensor in [*each.named_parameters(recurse=False), *each.named_buffers(recurse=False)]
        }
        self._values = [_Values(name, tensor) for key, (name, tensor) in tensors.items() if key not in kept_elsewhere]
        self._trained = [(name, tensor, tensor.requires_grad, tensor.grad) for name, tensor in tensors.values()]
        self._gradients = [_Values(name, gradient) for name, _, _, gradient in self._trained if gradient is not None]

    def restore(self) -> str:
        """All is as it was. Returns what was not, for people; empty if everything was."""
        found = []
        for module, kind, held in self._held:
            now = getattr(module, kind)
            # A buffer may be made when it is needed first.
            names = held if kind == "_buffers" else {*held, *now}
            if changed := sorted(name for name in names if now.get(name) is not held.get(name)):
                found.append(f"{changed[0]} of {type(module).__name__} was replaced")
                new = {} if kind != "_buffers" else {name: each for name, each in now.items() if name not in held}
                now.clear()
                now.update(held, **new)
        for module, was_training in zip(self._modules, self._modes, strict=True):
            if module.training != was_training:
                found.append(f"the mode of {type(module).__name__} was changed")
                module.training = was_training
        for values in self._values:
            if not values.are_same:
                found.append(f"{values.name} was changed")
                values.restore()
        for name, tensor, was_trained, gradient in self._trained:
            if tensor.requires_grad != was_trained:
                found.append(f"requires_grad of {name} was changed")
                tensor.requires_grad_(was_trained)
            if tensor.grad is not gradient:
                found.append(f"the gradient of {name} was replaced")
                tensor.grad = gradient
        for values in self._gradients:
            if not values.are_same:
                found.append(f"the gradient of {values.name} was changed")
                values.restore()
        return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


class _Values:
    """Of one tensor. Those of one without memory, or that is sparse, are told by its version, and are not restored."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self._tensor, self._version = tensor, _version(tensor)
        self._memory = tensor.data
        is_plain = tensor.layout == torch.strided and not tensor.is_meta
        self._copy = tensor.data.clone() if is_plain else None

    @property
    def are_same(self) -> bool:
        """trap: torch raises no version of what batch_norm writes to."""
        if self._copy is None:
            return _version(self._tensor) == self._version
        now = self._tensor.data
        is_there = now.data_ptr() == self._memory.data_ptr() and now.stride() == self._memory.stride()
        return is_there and same_bits(now, self._copy)

    def restore(self) -> None:
        if self._copy is not None:
            self._memory.copy_(self._copy)
            self._tensor.data = self._memory


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version

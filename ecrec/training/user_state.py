"""Torch tensors in a user's own state (`ecrec.checkpoint.user_state`)."""

from typing import Any

import numpy as np
import torch

from ecrec.checkpoint.user_state import Tensor, tensor_of

BF16 = "BF16"
TORCH = "torch"


def convert(value: Any) -> Tensor | None:
    """The `Tensor` of torch's. Raises TypeError for one that no array can hold."""
    if not isinstance(value, torch.Tensor):
        return None
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"a tensor of {value.layout}")
    plain = value.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return Tensor(BF16, plain.view(torch.int16).numpy().view(np.uint16), TORCH)
    return tensor_of(plain.numpy(), TORCH)


def make(tensor: Tensor) -> Any:
    """What `convert` was given, or the array."""
    if tensor.kind != TORCH:
        return tensor.array
    if tensor.dtype == BF16:
        return torch.from_numpy(tensor.array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor.array)

"""PyTorch on the CPU, on one thread."""

from __future__ import annotations

from typing import Any

from ecrec.bench.harness import PeerMissingError


def load() -> Any:
    """The module ``torch``, held to one thread. Raises PeerMissingError."""
    try:
        import torch
    except ImportError as error:
        raise PeerMissingError(f'torch is not installed: pip install "ecrec[bench]" ({error})') from error
    torch.set_num_threads(1)
    return torch

"""PyTorch on the CPU, on one thread."""

from __future__ import annotations

from typing import Any

from ecrec.bench.harness import import_peer


def load() -> Any:
    """The module ``torch``, held to one thread. Raises PeerMissingError."""
    torch = import_peer("torch")
    torch.set_num_threads(1)
    return torch

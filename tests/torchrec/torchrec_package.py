"""TorchRec's own package: a module of tests that imports this is a visible skip where it is not installed.

**trap**: this folder is called torchrec, and Python takes it for a package without a file where there is no other: so
what is imported is always a module inside of the package.
"""

import warnings
from typing import Any

import pytest

pytest.importorskip("torch")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what fbgemm has on a GPU alone
        from torchrec.datasets.utils import Batch
        from torchrec.models.deepfm import SimpleDeepFMNN
        from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
        from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
        from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
        from torchrec.modules.mlp import MLP
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor
except (ImportError, OSError) as error:
    pytest.skip(f"TorchRec is not installed: {error}", allow_module_level=True)

__all__ = [
    "DLRM",
    "DLRM_DCN",
    "MLP",
    "Batch",
    "DLRMTrain",
    "DLRM_Projection",
    "DataType",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "PoolingType",
    "SimpleDeepFMNN",
    "batch",
]

ROWS = {"user": 40, "item": 25, "seen": 25, "day": 7}


def batch(seed: int, keys: Any = tuple(ROWS), size: int = 8, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to 3 ids, with repeats."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(keys), size), generator=draw)
    counts = lengths.sum(dim=1).tolist()
    values = torch.cat(
        [torch.randint(0, min(6, ROWS[key]), (n,), generator=draw) for key, n in zip(keys, counts, strict=True)]
    )
    weights = torch.rand(len(values), generator=draw) if weighted else None
    return KeyedJaggedTensor(list(keys), values, weights, lengths=lengths.reshape(-1))

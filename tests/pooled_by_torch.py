"""Tables, batches, and what torch makes of them in this process."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ecrec.training import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

TABLES = {"users": (30, 6, ["u", "shared"], "SUM"), "items": (20, 3, ["i", "j", "shared"], "MEAN")}
FEATURES = {"u": 30, "shared": 20, "i": 20, "j": 20}
NAMES = ["u", "shared@users", "i", "j", "shared@items"]


def bag_configs() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(rows, dim, name, feature_names=features, pooling=PoolingType[pooling])
        for name, (rows, dim, features, pooling) in TABLES.items()
    ]


def sequence_configs(dim: int = 5) -> list[EmbeddingConfig]:
    return [EmbeddingConfig(rows, dim, name, feature_names=of) for name, (rows, _, of, _) in TABLES.items()]


def batch(seed: int, keys: Any = FEATURES, size: int = 7, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to 4 ids, with repeats."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, (len(keys), size))
    ids = [rng.integers(0, min(8, FEATURES[key]), n) for key, n in zip(keys, lengths.sum(axis=1), strict=True)]
    values = torch.from_numpy(np.concatenate(ids))
    weights = torch.from_numpy(rng.standard_normal(len(values)).astype(np.float32)) if weighted else None
    return KeyedJaggedTensor.from_lengths_sync(list(keys), values, torch.from_numpy(lengths.reshape(-1)), weights)


def tables_of(tables: nn.Module) -> dict[str, Tensor]:
    """The weights on the shards, as leaves."""
    return {name.split(".")[1]: value.clone().requires_grad_() for name, value in tables.state_dict().items()}


def pooled(tables: dict[str, Tensor], features: KeyedJaggedTensor, weights: Tensor | None = None) -> Tensor:
    """The formula, by torch: sum of weight * row over a bag, for a mean divided by its ids."""
    out = []
    for name, (_, _, names, pooling) in TABLES.items():
        for feature in names:
            f = features.keys().index(feature)
            first, last = features.offset_per_key()[f : f + 2]
            rows = nn.functional.embedding(features.values()[first:last], tables[name])
            if weights is not None:
                rows = rows * weights[first:last, None]
            lengths = features[feature].lengths()
            bags = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
            sums = torch.zeros(len(lengths), rows.shape[1]).index_add(0, bags, rows)
            out.append(sums / lengths.clamp(min=1)[:, None] if pooling == "MEAN" else sums)
    return torch.cat(out, dim=1)

"""DLRM: the model that the embedding tables are trained for.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019: a
bottom MLP takes the integers to the embedding dimension, the dot product of every pair of {its output, the
pooled embeddings} is taken, and a top MLP makes a logit of the products and the bottom output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DLRM(nn.Module):
    """The dense part of a DLRM; the embeddings come in pooled.

    dense_features: integers per row; 0: the bottom MLP has one input, which is always 1.
    sparse_features: F, pooled embeddings per row. dim: D, of each
    embedding. bottom_mlp, top_mlp: sizes of the hidden layers; the last layers, of D and of 1, are added.
    Each hidden layer and the bottom output go through a ReLU.

    Initial values are those of nn.Linear, drawn from torch's global generator. Raises ValueError for a size
    below 1.
    """

    def __init__(
        self,
        dense_features: int,
        sparse_features: int,
        dim: int,
        bottom_mlp: Sequence[int] = (256,),
        top_mlp: Sequence[int] = (256,),
    ) -> None:
        super().__init__()
        if min(dense_features + 1, sparse_features, dim, *bottom_mlp, *top_mlp) < 1:
            raise ValueError(
                f"sizes are dense {dense_features}, sparse {sparse_features}, dim {dim}, "
                f"bottom {bottom_mlp}, top {top_mlp}; expected at least 1 each, and dense 0"
            )
        self.dense_features = dense_features
        self.sparse_features = sparse_features
        self.dim = dim
        pairs = sparse_features * (sparse_features + 1) // 2
        self.bottom = _mlp([max(1, dense_features), *bottom_mlp, dim], relu_at_the_end=True)
        self.top = _mlp([dim + pairs, *top_mlp, 1], relu_at_the_end=False)
        take, spread = _triangle_indices(sparse_features + 1)
        self.register_buffer("_take", take, persistent=False)
        self.register_buffer("_spread", spread, persistent=False)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Logits [B] of dense float[B, dense_features] and pooled float[B, F * D] (or [B, F, D]).

        Raises ValueError for other shapes.
        """
        size = dense.shape[0]
        if dense.shape != (size, self.dense_features):
            raise ValueError(f"dense is {tuple(dense.shape)}, expected [B, {self.dense_features}]")
        expected = ((size, self.sparse_features * self.dim), (size, self.sparse_features, self.dim))
        if tuple(pooled.shape) not in expected:
            raise ValueError(f"pooled is {tuple(pooled.shape)}, expected {expected[0]} or {expected[1]}")
        bottom = self.bottom(dense if self.dense_features else dense.new_ones(size, 1))
        vectors = torch.cat((bottom, pooled.reshape(size, -1)), dim=1).view(size, -1, self.dim)
        dots = _PairwiseDots.apply(vectors, self._take, self._spread)  # type: ignore[no-untyped-call]
        logits: Tensor = self.top(torch.cat((bottom, dots), dim=1))
        return logits.squeeze(1)


def _mlp(sizes: Sequence[int], relu_at_the_end: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if relu_at_the_end else layers[:-1]))


def _triangle_indices(vectors: int) -> tuple[Tensor, Tensor]:
    """Where the pairs (i, j), i > j, are in a flat [vectors * vectors] matrix, in row order; and for each
    place of that matrix the number of its pair, or the number of pairs on the diagonal."""
    i, j = torch.tril_indices(vectors, vectors, offset=-1)
    pairs = len(i)
    spread = torch.full((vectors, vectors), pairs)
    spread[i, j] = torch.arange(pairs)
    spread[j, i] = torch.arange(pairs)
    return i * vectors + j, spread.flatten()


class _PairwiseDots(torch.autograd.Function):
    """Dot products of all pairs of n vectors: [B, n, D] to [B, n * (n - 1) / 2].

    By hand because autograd would multiply twice in the backward pass, once for each factor of Z Z^T, and
    scatter where a gather will do: with S the symmetric matrix of the gradients, the gradient of Z is S Z.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, take: Tensor, spread: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, spread)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return products.view(len(vectors), -1).index_select(1, take)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        vectors, spread = ctx.saved_tensors
        padded = nn.functional.pad(grads[0], (0, 1))
        symmetric = padded.index_select(1, spread).view(len(vectors), vectors.shape[1], vectors.shape[1])
        return torch.bmm(symmetric, vectors), None, None

"""FBGEMM's embedding tables on the CPU (fbgemm-gpu-cpu): the backward pass with the optimizer fused into it.

The fast path of TorchRec on CPUs: ``SplitTableBatchedEmbeddingBagsCodegen`` in host memory, float32, exact optimizers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError
from ecrec.bench.peers import torch_cpu

OPTIMIZERS = {"rowwise-adagrad": "EXACT_ROWWISE_ADAGRAD", "adagrad": "EXACT_ADAGRAD", "sgd": "EXACT_SGD"}


class Fbgemm:
    """The library. Raises PeerMissingError."""

    def __init__(self) -> None:
        self.torch = torch_cpu.load()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it names every operator of GPUs that it does not have
                from fbgemm_gpu import split_embedding_configs as configs
                from fbgemm_gpu import split_table_batched_embeddings_ops_training as training
        except (ImportError, OSError) as error:
            raise PeerMissingError(
                "fbgemm-gpu-cpu is not installed, or does not fit this torch: "
                f'pip install -c constraints.txt "ecrec[bench]" ({str(error).splitlines()[0]})'
            ) from error
        self._configs, self._training = configs, training

    def tables(self, count: int, rows: int, dim: int, optimizer: str, lr: float, eps: float) -> FbgemmTables:
        """``count`` tables of so many rows, each looked up by the feature of the same number."""
        training = self._training
        spec = (rows, dim, training.EmbeddingLocation.HOST, training.ComputeDevice.CPU)
        kind = getattr(self._configs.EmbOptimType, OPTIMIZERS[optimizer])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = training.SplitTableBatchedEmbeddingBagsCodegen(
                [spec] * count, optimizer=kind, learning_rate=lr, eps=eps
            )
        return FbgemmTables(self.torch, module, rows, dim)


class FbgemmTables:
    """Some tables and their optimizer."""

    def __init__(self, torch: Any, module: Any, rows: int, dim: int) -> None:
        self._torch, self._module, self._rows, self._dim = torch, module, rows, dim

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32[all rows of all tables, dim], the live memory."""
        weights: NDArray[np.float32] = self._module.weights_host.detach().numpy().reshape(-1, self._dim)
        return weights

    def backward(self, ids: NDArray[np.int64], gradients: NDArray[np.float32]) -> Callable[[], None]:
        """A call of the backward pass and optimizer step of a batch with bags of one id.

        The forward pass is done here, once: its graph is kept, and only the backward pass is repeated.
        ``gradients`` float32[batch, tables * dim].
        """
        torch = self._torch
        out = self._module(torch.from_numpy(ids), torch.arange(len(ids) + 1))
        grad = torch.from_numpy(gradients)

        def step() -> None:
            out.backward(grad, retain_graph=True)

        return step

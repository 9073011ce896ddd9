"""torch.distributed.rpc (TensorPipe): a process that serves one table.

As it comes, TensorPipe moves tensors between processes of one host through shared memory; ``TCP`` holds it to the
sockets that it uses between hosts. The server has one worker thread, so that calls are carried out in order: a push
need not be waited for before the next pull is asked, and one thread is faster here than the 16 that are the default.

The functions that the server carries out are found by name in its copy of this module.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.serve import server
from ecrec.bench.peers.torch_server import Table

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CLIENT, SERVER, TCP = "client", "server", "tcp"
TIMEOUT_S = 60.0

_table: Table


def pull(ids: Any) -> Any:
    return _table.pull(ids)


def push(ids: Any, gradients: Any) -> None:
    _table.push(ids, gradients)


def _join(directory: Path, name: str, rank: int, tcp: bool) -> Any:
    """The module torch.distributed.rpc, once both are there."""
    torch = torch_cpu.load()
    rpc = torch.distributed.rpc
    kinds: dict[str, list[str]] = {"_transports": ["uv"], "_channels": ["mpt_uv", "basic"]} if tcp else {}
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"file://{directory / 'rendezvous'}", rpc_timeout=TIMEOUT_S, num_worker_threads=1, **kinds
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)
    return rpc


def serve(arguments: Sequence[str]) -> None:
    """Until the client leaves."""
    global _table
    directory, tcp, rows, dim, lr, eps = arguments
    _table = Table(int(rows), int(dim), float(lr), float(eps))
    _join(Path(directory), SERVER, 1, tcp == TCP).shutdown()


class TorchRpc:
    """The client."""

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc
        self._torch = torch_cpu.load()

    def steps(self, batches: Sequence[tuple[I64, F32]], calls: int, first: int) -> None:
        """Pull, then push, so many times, the first with batch ``first``; returns when all is done."""
        tensors = [(self._torch.from_numpy(ids), self._torch.from_numpy(gradients)) for ids, gradients in batches]
        pushed: Any = None
        for call in range(first, first + calls):
            ids, gradients = tensors[call % len(tensors)]
            self._rpc.rpc_sync(SERVER, pull, args=(ids,))
            if pushed is not None:
                pushed.wait()
            pushed = self._rpc.rpc_async(SERVER, push, args=(ids, gradients))
        pushed.wait()

    def pull(self, ids: I64) -> F32:
        rows: F32 = self._rpc.rpc_sync(SERVER, pull, args=(self._torch.from_numpy(ids),)).numpy()
        return rows


@contextmanager
def client(rows: int, dim: int, lr: float, eps: float, tcp: bool) -> Iterator[TorchRpc]:
    """Starts the server and joins it. Raises PeerMissingError."""
    torch = torch_cpu.load()
    if not torch.distributed.is_available() or not torch.distributed.rpc.is_available():
        raise PeerMissingError("this torch was built without torch.distributed.rpc: install one from PyPI")
    with tempfile.TemporaryDirectory() as directory:
        arguments = (directory, TCP if tcp else "", str(rows), str(dim), str(lr), str(eps))
        with server("torch_rpc", *arguments):
            rpc = _join(Path(directory), CLIENT, 0, tcp)
            try:
                yield TorchRpc(rpc)
            finally:
                rpc.shutdown()

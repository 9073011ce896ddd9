"""Ray: an actor that serves one table.

What is larger than 100 KB goes through the shared memory of Ray's object store, and arrays are read where they lie
there. ``TCP`` puts the actor on a second node, whose object store gets everything from the first one's by a socket,
as between hosts. Calls of one client are carried out in order: a push need not be waited for before the next pull is
asked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import import_peer
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.torch_server import Table

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

OBJECT_STORE_BYTES = 256 << 20
SERVER = "server"
"""Resource of the node that has the actor."""
TIMEOUT_S = 60.0


class Server:
    """The actor."""

    def __init__(self, rows: int, dim: int, lr: float, eps: float) -> None:
        self._torch = torch_cpu.load()
        # Arrays out of the object store are read-only, and only read here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._table = Table(rows, dim, lr, eps)

    def pull(self, ids: I64) -> F32:
        rows: F32 = self._table.pull(self._torch.from_numpy(ids)).numpy()
        return rows

    def push(self, ids: I64, gradients: F32) -> None:
        self._table.push(self._torch.from_numpy(ids), self._torch.from_numpy(gradients))


class RayActor:
    """The client."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def steps(self, batches: Sequence[tuple[I64, F32]], calls: int, first: int) -> None:
        """Pull, then push, so many times, the first with batch ``first``; returns when all is done."""
        pushed: Any = None
        for call in range(first, first + calls):
            ids, gradients = batches[call % len(batches)]
            self._ray.get(self._actor.pull.remote(ids), timeout=TIMEOUT_S)
            if pushed is not None:
                self._ray.get(pushed, timeout=TIMEOUT_S)
            pushed = self._actor.push.remote(ids, gradients)
        self._ray.get(pushed, timeout=TIMEOUT_S)

    def pull(self, ids: I64) -> F32:
        rows: F32 = self._ray.get(self._actor.pull.remote(ids), timeout=TIMEOUT_S)
        return rows


@contextmanager
def client(rows: int, dim: int, lr: float, eps: float, tcp: bool) -> Iterator[RayActor]:
    """Starts Ray's processes, which are this one's, and the actor. Raises PeerMissingError."""
    torch_cpu.load()
    ray, cluster_utils = import_peer("ray"), import_peer("ray.cluster_utils")
    node: dict[str, Any] = {
        "num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False,
    }  # fmt: skip
    here: dict[str, float] = {SERVER: 1}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "resources": {} if tcp else here})
    try:
        if tcp:
            cluster.add_node(**node, resources=here)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        actor = ray.remote(num_cpus=0, resources=here)(Server).remote(rows, dim, lr, eps)
        yield RayActor(ray, actor)
    finally:
        ray.shutdown()
        cluster.shutdown()

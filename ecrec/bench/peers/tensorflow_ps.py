"""TensorFlow's parameter server: a process with the job *ps*, whose variables the client's operations name.

The table and Adagrad's sums are variables there. A pull is ``gather``, a push ``ResourceSparseApplyAdagradV2`` (the
kernel of TensorFlow's own Adagrad for distinct rows), both carried out on the server, in functions that are traced
once. Between processes TensorFlow has gRPC, which is TCP within a host, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError, import_peer
from ecrec.bench.peers.serve import free_port, server

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

DEVICE = "/job:ps/replica:0/task:0/device:CPU:0"
STARTED = "started"


def _load() -> Any:
    """The module ``tensorflow``, held to one thread. Raises PeerMissingError."""
    tf = import_peer("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    return tf


def _jobs(ps: str, worker: str) -> dict[str, list[str]]:
    return {"ps": [f"127.0.0.1:{ps}"], "worker": [f"127.0.0.1:{worker}"]}


def serve(arguments: Sequence[str]) -> None:
    """Until it is terminated."""
    process = _load().distribute.Server(_jobs(*arguments), job_name="ps", task_index=0, protocol="grpc")
    print(STARTED, flush=True)
    process.join()


class TensorflowPs:
    """The client."""

    def __init__(self, tf: Any, rows: int, dim: int, lr: float, eps: float) -> None:
        self._tf = tf
        with tf.device(DEVICE):
            weights, sums = tf.Variable(tf.zeros((rows, dim))), tf.Variable(tf.zeros((rows, dim)))
        ids, gradients = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, dim], tf.float32)

        def pull(ids: Any) -> Any:
            with tf.device(DEVICE):
                return tf.gather(weights, ids)

        def push(ids: Any, gradients: Any) -> None:
            with tf.device(DEVICE):
                tf.raw_ops.ResourceSparseApplyAdagradV2(
                    var=weights.handle, accum=sums.handle, lr=lr, epsilon=eps, grad=gradients, indices=ids
                )

        self._pull = tf.function(pull, input_signature=[ids])
        self._push = tf.function(push, input_signature=[ids, gradients])

    def steps(self, batches: Sequence[tuple[I64, F32]], calls: int, first: int) -> None:
        """Pull, then push, so many times, the first with batch ``first``; returns when all is done."""
        tensors = [(self._tf.constant(ids), self._tf.constant(gradients)) for ids, gradients in batches]
        for call in range(first, first + calls):
            ids, gradients = tensors[call % len(tensors)]
            self._pull(ids).numpy()
            self._push(ids, gradients)

    def pull(self, ids: I64) -> F32:
        rows: F32 = self._pull(self._tf.constant(ids)).numpy()
        return rows


@contextmanager
def client(rows: int, dim: int, lr: float, eps: float, tcp: bool) -> Iterator[TensorflowPs]:
    """Starts the server and connects to it. Raises PeerMissingError."""
    tf = _load()
    ports = str(free_port()), str(free_port())
    with server("tensorflow_ps", *ports) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != STARTED:
            raise PeerMissingError(f"its server ended with code {process.wait()}")
        tf.config.experimental_connect_to_cluster(
            tf.train.ClusterSpec(_jobs(*ports)), job_name="worker", task_index=0, protocol="grpc"
        )
        yield TensorflowPs(tf, rows, dim, lr, eps)

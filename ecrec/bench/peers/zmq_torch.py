"""Bare pyzmq with PyTorch on the server: what somebody writes who has no framework. Frames are sent without a copy."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.serve import server
from ecrec.bench.peers.torch_server import Table

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TIMEOUT_MS = 60_000
DONE = b""


def serve(arguments: Sequence[str]) -> None:
    """Until it is terminated."""
    endpoint, rows, dim, lr, eps = arguments
    torch = torch_cpu.load()
    table = Table(int(rows), int(dim), float(lr), float(eps))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        print(json.dumps({"endpoint": str(socket.getsockopt_string(zmq.LAST_ENDPOINT))}), flush=True)
        while True:
            client, *frames = socket.recv_multipart(copy=False)
            ids, *gradients = [memoryview(frame.buffer) for frame in frames]
            ids = torch.from_numpy(np.frombuffer(ids, np.int64))
            if gradients:
                table.push(ids, torch.from_numpy(np.frombuffer(gradients[0], np.float32)).view(len(ids), -1))
                socket.send_multipart([client, DONE])
            else:
                socket.send_multipart([client, memoryview(table.pull(ids).numpy())], copy=False)


class ZmqTorch:
    """The client. The server answers in order, so a push is not waited for until the next pull is answered."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def _answer(self) -> Any:
        return self._socket.recv(copy=False).buffer

    def steps(self, batches: Sequence[tuple[I64, F32]], calls: int, first: int) -> None:
        """Pull, then push, so many times, the first with batch ``first``; returns when all is done."""
        pushed = False
        for call in range(first, first + calls):
            ids, gradients = batches[call % len(batches)]
            self._socket.send(ids, copy=False)
            if pushed:
                self._answer()
            np.frombuffer(self._answer(), np.float32)
            self._socket.send_multipart([ids, gradients], copy=False)
            pushed = True
        self._answer()

    def pull(self, ids: I64) -> F32:
        self._socket.send(ids)
        rows: F32 = np.frombuffer(self._answer(), np.float32).reshape(len(ids), -1).copy()
        return rows


@contextmanager
def client(rows: int, dim: int, lr: float, eps: float, tcp: bool) -> Iterator[ZmqTorch]:
    """Starts the server and connects to it, by TCP or a socket of the file system. Raises PeerMissingError."""
    torch_cpu.load()
    with (
        tempfile.TemporaryDirectory() as directory,
        server(
            "zmq_torch",
            "tcp://127.0.0.1:*" if tcp else f"ipc://{directory}/server",
            str(rows),
            str(dim),
            str(lr),
            str(eps),
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PeerMissingError(f"its server ended with code {process.wait()}")
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger, socket.rcvtimeo = 0, TIMEOUT_MS
            socket.connect(json.loads(line)["endpoint"])
            yield ZmqTorch(socket)

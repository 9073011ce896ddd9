"""Pull and push: 6,000 distinct rows of 128 floats, Adagrad on the servers, over loopback TCP.

A step pulls the rows, then pushes a gradient for each; the next pull sees it. Batches take turns. The seconds of a
round are wall-clock time from the first pull until every push is done, which for ours means *durable*: with 4+1, its
deltas are with the peers that hold the parity. Ours is a cluster of processes as `ecrec-scheduler` and `ecrec-ps` make
it, and a `Session`, with its copies into one array and its search for gradients that are not finite; in the case 4+1
the same rows lie on five servers. Finding out which shard has which row is part of `plan_batch`, so it is in the suite
batch. The peers have one server without redundancy: what they do on it stands in ``peers/torch_server.py``.

``torch.distributed.rpc`` moves tensors through shared memory within a host; ``TCP`` is what it does between hosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.bench.harness import Case, PeerMissingError, Run, Selection, check_close, digest_of, result_of
from ecrec.bench.peers import torch_cpu, torch_rpc, zmq_torch

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

ROWS, DIM = 1_000_000, 128
PULLED = 6000
"""Distinct rows of a step."""
BATCHES = 8
"""48,000 rows are 50 MB with their Adagrad sums: more than caches hold."""
LR, EPS = 0.02, 1e-8
TOLERANCE = 1e-5
ROUND_SECONDS = 1.0
"""Windows are closed each 50 ms; the wait for the last one is to be a small part of a round."""
CODES = {"one server": (1, 0), "4+1 durable": (4, 1)}
"""k and r of our cluster of k + r servers."""

Batches = Sequence[tuple[I64, F32]]


class Client(Protocol):
    """A peer's."""

    def steps(self, batches: Batches, calls: int, first: int) -> None: ...

    def pull(self, ids: I64) -> F32: ...


StartPeer = Callable[[], AbstractContextManager[Client]]

PEERS: tuple[dict[str, StartPeer], ...] = (
    {
        "torch.distributed.rpc": partial(torch_rpc.client, ROWS, DIM, LR, EPS),
        "pyzmq + torch": partial(zmq_torch.client, ROWS, DIM, LR, EPS),
    },
    {"torch.distributed.rpc TCP": partial(torch_rpc.client, ROWS, DIM, LR, EPS, tcp=True)},
)
"""Those of one dictionary take turns. A process can be in one torch.distributed.rpc at a time."""


def make_batches() -> Batches:
    """Distinct rows and a gradient for each."""
    rng = np.random.default_rng(7)
    return [
        (rng.choice(ROWS, PULLED, replace=False), rng.standard_normal((PULLED, DIM), np.float32))
        for _ in range(BATCHES)
    ]


class Rows:
    """A part of a session, and its own fetch: the rows of one batch, in order of shard."""

    def __init__(self, table: int, k: int, shards: int, batch: tuple[I64, F32]) -> None:
        from ecrec.protocol.messages import Section
        from ecrec.training.parts import Share

        ids, gradients = batch
        rows, counts, inverse = _native.plan_batch(
            ids, np.array([0, len(ids)]), np.zeros(1, np.int32), np.array([ROWS]), np.array([k], np.int32), shards
        )
        self.inverse = inverse
        self.values = np.empty((len(rows), DIM), np.float32)
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
            self.values[self._slice(shard)] = np.frombuffer(frame, np.float32).reshape(-1, DIM)


class Ours:
    """A session and the batches in its terms; as `Client`. Also the session's only part, which gives its gradients."""

    def __init__(self, session: Any, name: str, k: int, r: int, batches: Batches) -> None:
        from ecrec.protocol.placement import CodeSpec, TableSpec
        from ecrec.training.optimizers import Adagrad

        self._session = session
        spec = TableSpec(name, ROWS, DIM, CodeSpec(k, r), Adagrad(LR, EPS).spec, "zeros")
        (table,) = session.create_tables([spec])
        self._rows = [Rows(table, k, k + r, batch) for batch in batches]
        self._gradients: dict[int, Any] = {}
        session.register(self)

    def take_gradients(self) -> dict[int, Any]:
        taken, self._gradients = self._gradients, {}
        return taken

    def steps(self, calls: int, first: int) -> None:
        session = self._session
        for call in range(first, first + calls):
            rows = self._rows[call % len(self._rows)]
            session.fetch(rows)
            self._gradients = rows.gradients
            session.push()
        session.wait(lambda: session.machine.durable, "all pushes to be durable")

    def pull(self, number: int) -> F32:
        """The rows of that batch, in its order."""
        rows = self._rows[number]
        self._session.fetch(rows)
        pulled: F32 = rows.values[rows.inverse]
        return pulled


def timed_steps(steps: Callable[[int, int], None]) -> Run:
    """``steps(calls, first)`` with the batches one after the other."""
    made = 0

    def run(calls: int) -> float:
        nonlocal made
        start = time.perf_counter()
        steps(calls, made)
        made += calls
        return time.perf_counter() - start

    return run


def case_of(name: str, ours: Ours, peers: Mapping[str, Client], batches: Batches) -> Case:
    def check() -> str:
        ours.steps(2 * len(batches), 0)
        mine = [ours.pull(i) for i in range(len(batches))]
        apart = 0.0
        for peer, client in peers.items():
            client.steps(batches, 2 * len(batches), 0)
            for rows, (ids, _) in zip(mine, batches, strict=True):
                apart = max(apart, check_close(name, peer, rows, client.pull(ids), TOLERANCE))
        return result_of(digest_of(*mine), apart)

    theirs = {peer: timed_steps(partial(client.steps, batches)) for peer, client in peers.items()}
    return Case(name, "million rows/s", PULLED / 1e6, timed_steps(ours.steps), theirs, check, ROUND_SECONDS)


def cases(selection: Selection) -> Iterator[Case]:
    """The suite."""
    names = {f"pull + push, {name}": code for name, code in CODES.items()}
    wanted = {name: code for name, code in names.items() if selection.wants(name)}
    if not wanted:
        return
    if selection.start_cluster is None or selection.find("ours", torch_cpu.load) is None:
        return
    from ecrec.training.session import connect

    batches = make_batches()
    for name, (k, r) in wanted.items():
        with selection.start_cluster(k + r) as endpoint:
            for number, group in enumerate(PEERS):
                with ExitStack() as stack:
                    peers: dict[str, Client] = {}
                    for peer, start in group.items():
                        try:
                            peers[peer] = stack.enter_context(start())
                        except PeerMissingError as reason:
                            selection.skip(peer, str(reason))
                    if peers:
                        session = stack.enter_context(connect(endpoint, rank=number, world_size=number + 1))
                        yield case_of(name, Ours(session, f"rows-{number}", k, r, batches), peers, batches)

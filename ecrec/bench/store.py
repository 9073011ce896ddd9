"""The store of a shard: optimizer steps with and without deltas, and gathers; against FBGEMM and torch.

*step*: the gradient of the pooled output of a batch (bags of one id) goes in, updated rows come out. Ours: `plan_batch`
finds the distinct rows, `pool_backward` sums each one's gradients, `Store.apply` steps them and writes every delta into
the window of the peer that holds its parity (4+1 code), and the window is emptied. FBGEMM: the backward pass with fused
optimizer, which begins with the same ids. Neither figure has the forward pass in it. *without deltas* is ours without a
window, over the same store.

*gather*: the weights of a batch's distinct rows into one array, from more than 1 GB that was all touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.bench import workload
from ecrec.bench.harness import Case, Run, Selection, check_close, check_equal, digest_of, repeated, result_of, threaded
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.fbgemm import Fbgemm, FbgemmTables
from ecrec.bench.workload import BATCH, IDS, SHARDS, TABLES, Step, make_step

F32 = NDArray[np.float32]

DIMS = (64, 128)
OPTIMIZERS: dict[str, list[float]] = {"rowwise-adagrad": [0.02, 1e-8], "adagrad": [0.02, 1e-8], "sgd": [0.02]}
"""Name and hyperparameters."""
STEP_ROWS = 100_000
"""Rows of a table on this shard: 26 such tables are 0.7 GB at 64 floats a row, without optimizer state."""
THREADS = 2
GATHER_BYTES_MIN = 1 << 30
HUGE_PAGE_EXTENTS = 1 << 20
"""More than a store of these cases has. A server does this bit by bit while it is idle; the peers' weights are numpy
arrays, which lie in huge pages, too."""
TOLERANCE = 1e-6
"""FBGEMM takes an approximate reciprocal root, and adds in another order; weights are below 1, a step below 0.02."""
GRADIENT_SCALE = 1e-2


def make_store(step: Step, dim: int, optimizer: str) -> _native.Store:
    """Shard 0 of 5 with 26 tables, 4+1 code, every row of which is touched, at its initial value."""
    store = _native.Store(0, SHARDS)
    rows = workload.global_rows(np.arange(step.rows_per_table))
    gradients = np.zeros(len(rows) * dim, np.float32)
    for table in range(TABLES):
        store.add_table(
            int(step.table_rows[table]), dim, workload.K, workload.R, "cauchy", optimizer, OPTIMIZERS[optimizer],
            "uniform", table, 0.01, 0.0,
        )  # fmt: skip
        section = np.array([table], np.int32), np.array([len(rows)])
        store.apply(*section, rows, gradients, None)
    store.use_huge_pages(HUGE_PAGE_EXTENTS)
    return store


def all_weights(store: _native.Store, step: Step, dim: int) -> F32:
    """float32[all local rows of all tables, dim]."""
    rows = np.tile(workload.global_rows(np.arange(step.rows_per_table)), TABLES)
    out = np.empty((len(rows), dim), np.float32)
    counts = np.full(TABLES, step.rows_per_table)
    store.gather(step.tables, counts, rows, out.reshape(-1).view(np.uint8))
    return out


class Steps:
    """Our side of a step case: a store, its window, and the batches."""

    def __init__(self, step: Step, dim: int, optimizer: str) -> None:
        self.step, self.dim = step, dim
        self.store = make_store(step, dim, optimizer)
        self.window = _native.Window(self.store)
        for peer in range(1, SHARDS):
            for class_id in range(SHARDS):
                self.window.set_limit(peer, class_id, _native.Window.UNLIMITED)
        rng = np.random.default_rng(workload.SEED)
        self.gradients: list[F32] = [
            rng.standard_normal((BATCH, TABLES * dim), np.float32) * np.float32(GRADIENT_SCALE) for _ in step.batches
        ]
        self._bag_offsets = np.arange(IDS + 1, dtype=np.int64)
        self._dims = np.full(TABLES, dim, np.int32)
        self._mean = np.zeros(TABLES, np.bool_)
        self._sums = np.empty(max(batch.distinct for batch in step.batches) * dim, np.float32)

    def calls(self, window: _native.Window | None) -> list[Callable[[], None]]:
        """A step for each batch."""
        return [partial(self._run, i, window) for i in range(len(self.step.batches))]

    def _run(self, number: int, window: _native.Window | None) -> None:
        step, dim = self.step, self.dim
        rows, counts, inverse = _native.plan_batch(
            step.batches[number].ids, step.starts, step.tables, step.table_rows, step.table_k, SHARDS
        )
        sums = self._sums[: len(rows) * dim]
        offsets = np.arange(0, len(rows) * dim, dim)
        _native.pool_backward(
            self.gradients[number], offsets, inverse, self._bag_offsets, self._dims, BATCH, self._mean, sums
        )
        self.store.apply(step.tables, counts[0], rows, sums, window)
        if window is not None:
            for peer in range(1, SHARDS):
                window.buffer(peer).take()


def step_case(name: str, step: Step, dim: int, optimizer: str, fbgemm: Fbgemm | None) -> Case:
    """backward + optimizer with deltas, against FBGEMM and against the same without deltas."""
    ours = Steps(step, dim, optimizer)
    peers: dict[str, Run] = {}
    with_deltas = ours.calls(ours.window)
    tables: FbgemmTables | None = None
    theirs: list[Callable[[], None]] = []
    if fbgemm is not None:
        tables = fbgemm.tables(TABLES, step.rows_per_table, dim, optimizer, *_lr_and_eps(optimizer))
        tables.weights[:] = all_weights(ours.store, step, dim)
        theirs = [tables.backward(b.local, g) for b, g in zip(step.batches, ours.gradients, strict=True)]
        peers["FBGEMM"] = repeated(*theirs)
    peers["without deltas"] = repeated(*ours.calls(None))

    def check() -> str:
        before = all_weights(ours.store, step, dim)
        for call in with_deltas:
            call()
        after = all_weights(ours.store, step, dim)
        digest = digest_of(after)
        _check_only_rows_of_batches_changed(before, after, step)
        if tables is None:
            return digest
        for call in theirs:
            call()
        return result_of(digest, check_close(name, "FBGEMM", after, tables.weights, TOLERANCE))

    return Case(name, "million ids/s", IDS / 1e6, repeated(*with_deltas), peers, check)


def threads_case(name: str, step: Step, dim: int, optimizer: str) -> Case:
    """A step with deltas on two threads, against the same on one, by wall-clock time."""
    ours = Steps(step, dim, optimizer)
    calls = ours.calls(ours.window)

    def check() -> str:
        digests = []
        for count in (THREADS, 1):
            fresh = Steps(step, dim, optimizer)
            threaded(count, *fresh.calls(fresh.window))(len(step.batches))
            digests.append(all_weights(fresh.store, step, dim))
        check_equal(name, "one thread", *digests)
        return digest_of(digests[0])

    return Case(name, "million ids/s", IDS / 1e6, threaded(THREADS, *calls), {"one thread": threaded(1, *calls)}, check)


def _lr_and_eps(optimizer: str) -> tuple[float, float]:
    lr, *eps = OPTIMIZERS[optimizer]
    return lr, eps[0] if eps else 0.0


def _check_only_rows_of_batches_changed(before: F32, after: F32, step: Step) -> None:
    changed = np.flatnonzero((before != after).any(axis=1))
    check_equal("step", "its batches", changed, np.unique(np.concatenate([b.places for b in step.batches])))


def gather_step(dim: int) -> Step:
    """Batches out of tables whose weights are GATHER_BYTES_MIN together."""
    return make_step(-(-GATHER_BYTES_MIN // (dim * 4) // TABLES) // workload.K * workload.K + workload.K)


def gather_case(name: str, dim: int, torch: Any | None) -> Case:
    """Weights of the distinct rows of a batch, out of row-wise Adagrad's records."""
    step = gather_step(dim)
    store = make_store(step, dim, "rowwise-adagrad")
    rows_max = max(batch.distinct for batch in step.batches)
    mine = np.empty((rows_max, dim), np.float32)
    calls: list[Callable[[], object]] = []
    for batch in step.batches:
        out = mine[: batch.distinct].reshape(-1).view(np.uint8)
        calls.append(partial(store.gather, step.tables, batch.counts, batch.rows, out))
    peers: dict[str, Run] = {}
    theirs: list[Callable[[], object]] = []
    his = np.empty_like(mine)
    if torch is not None:
        theirs = _index_selects(torch, all_weights(store, step, dim), step, his)
        peers["torch.index_select"] = repeated(*theirs)

    def check() -> str:
        digests = []
        for i, batch in enumerate(step.batches):
            calls[i]()
            digests.append(np.frombuffer(digest_of(mine[: batch.distinct]).encode(), np.uint8))
            if theirs:
                theirs[i]()
                check_equal(name, "torch.index_select", mine[: batch.distinct], his[: batch.distinct])
        return digest_of(*digests)

    rows = sum(batch.distinct for batch in step.batches) / len(step.batches)
    return Case(name, "million rows/s", rows / 1e6, repeated(*calls), peers, check)


def _index_selects(torch: Any, weights: F32, step: Step, out: F32) -> list[Callable[[], object]]:
    """One table that holds all rows, one call a batch, into memory that is there."""
    table = torch.from_numpy(weights)
    calls: list[Callable[[], object]] = []
    for batch in step.batches:
        places, target = torch.from_numpy(batch.places), torch.from_numpy(out[: batch.distinct])
        calls.append(partial(torch.index_select, table, 0, places, out=target))
    return calls


def cases(selection: Selection) -> Iterator[Case]:
    """The suite."""
    steps = [(f"step {optimizer} dim {dim}", optimizer, dim) for optimizer in OPTIMIZERS for dim in DIMS]
    steps = [case for case in steps if selection.wants(case[0])]
    if steps:
        step, fbgemm = make_step(STEP_ROWS), selection.find("FBGEMM", Fbgemm)
        for name, optimizer, dim in steps:
            yield step_case(name, step, dim, optimizer, fbgemm)
    name = f"step rowwise-adagrad dim 128, {THREADS} threads"
    if selection.wants(name):
        yield threads_case(name, make_step(STEP_ROWS), 128, "rowwise-adagrad")
    gathers = [(f"gather dim {dim}", dim) for dim in DIMS]
    gathers = [case for case in gathers if selection.wants(case[0])]
    if gathers:
        torch = selection.find("torch.index_select", torch_cpu.load)
        for name, dim in gathers:
            yield gather_case(name, dim, torch)

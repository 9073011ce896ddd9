"""What a worker does with a batch: distinct rows and inverse, pooling forward and backward; against numpy and torch.

*dedup*: `plan_batch` on the ids of 26 tables, which also orders the distinct rows by shard and table. The peers get one
array of keys, table and id in one number, made before. *unique*: `unique_inverse` on the same array.

*pool*: rows that were pulled, one a distinct id, into float32[batch, 26 * dim], and the gradient of that back into a
sum for each row. torch gets its bags in the order in which its output has the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.bench import workload
from ecrec.bench.harness import (
    Case,
    ResultsDifferError,
    Run,
    Selection,
    check_close,
    check_equal,
    digest_of,
    repeated,
    result_of,
)
from ecrec.bench.peers import torch_cpu
from ecrec.bench.workload import BATCH, SHARDS, TABLES, Step, make_step

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ROWS_PER_TABLE = 100_000
DIMS = (64, 128)
BAGS = (1, 10)
"""Ids in a bag: Criteo's, and a multi-hot feature."""
TOLERANCE = 1e-4
"""Of sums of up to some thousand values around 1, added in another order."""

Dedup = Callable[[], tuple[I64, I64]]


def keys_of(step: Step) -> list[I64]:
    """Table and local row in one number, for each batch."""
    base = np.repeat(step.tables * np.int64(step.rows_per_table), BATCH)
    return [batch.local + base for batch in step.batches]


def check_dedup(case: str, side: str, ids: NDArray[Any], distinct: NDArray[Any], inverse: NDArray[Any]) -> None:
    """Raises ResultsDifferError unless each id is at its place among distinct ones."""
    check_equal(case, side, np.asarray(ids, np.int64), np.asarray(distinct, np.int64)[inverse])
    if len(np.unique(distinct)) != len(distinct):
        raise ResultsDifferError(f"{case}: the distinct ids of {side} are not distinct")


def dedup_case(name: str, step: Step, torch: Any | None) -> Case:
    """`plan_batch` against unique with inverse."""
    keys = keys_of(step)
    table_of_id = np.repeat(step.tables, BATCH)
    table_span = int(step.table_rows[0])

    def plan(number: int) -> tuple[I64, I64, I32]:
        return _native.plan_batch(
            step.batches[number].ids, step.starts, step.tables, step.table_rows, step.table_k, SHARDS
        )

    def check() -> str:
        results: list[NDArray[Any]] = []
        for number, batch in enumerate(step.batches):
            rows, counts, inverse = plan(number)
            tables = np.repeat(np.tile(step.tables, SHARDS), counts.reshape(-1))
            check_dedup(name, "plan_batch", batch.ids + table_of_id * table_span, rows + tables * table_span, inverse)
            results += [rows, counts.reshape(-1), inverse]
            _check_peers(name, keys[number], len(rows), torch)
        return digest_of(*results)

    ours = repeated(*[partial(plan, i) for i in range(len(keys))])
    return Case(name, "million ids/s", workload.IDS / 1e6, ours, _unique_peers(keys, torch), check)


def unique_case(name: str, step: Step, torch: Any | None) -> Case:
    """`unique_inverse` against the same."""
    keys = keys_of(step)

    def check() -> str:
        results: list[NDArray[Any]] = []
        for ids in keys:
            distinct, inverse = _native.unique_inverse(ids)
            check_dedup(name, "unique_inverse", ids, distinct, inverse)
            _check_peers(name, ids, len(distinct), torch)
            results += [distinct, inverse]
        return digest_of(*results)

    ours = repeated(*[partial(_native.unique_inverse, ids) for ids in keys])
    return Case(name, "million ids/s", workload.IDS / 1e6, ours, _unique_peers(keys, torch), check)


def _unique_peers(keys: list[I64], torch: Any | None) -> dict[str, Run]:
    peers: dict[str, Run] = {"np.unique": repeated(*[partial(np.unique, ids, return_inverse=True) for ids in keys])}
    if torch is not None:
        tensors = [torch.from_numpy(ids) for ids in keys]
        peers["torch.unique"] = repeated(*[partial(torch.unique, ids, return_inverse=True) for ids in tensors])
    return peers


def _check_peers(case: str, ids: I64, count: int, torch: Any | None) -> None:
    found = {"np.unique": np.unique(ids, return_inverse=True)}
    if torch is not None:
        distinct, inverse = torch.unique(torch.from_numpy(ids), return_inverse=True)
        found["torch.unique"] = distinct.numpy(), inverse.numpy()
    for peer, (distinct, inverse) in found.items():
        check_dedup(case, peer, ids, distinct, inverse)
        if len(distinct) != count:
            raise ResultsDifferError(f"{case}: {count} distinct ids, {peer} found {len(distinct)}")


class Bags:
    """A batch whose bags have ``size`` ids of one table each, in our form and in that of the peers."""

    def __init__(self, size: int, dim: int) -> None:
        examples = BATCH // size
        ids = make_step(ROWS_PER_TABLE, 1).batches[0].ids.reshape(TABLES, BATCH)[:, : examples * size]
        tables = np.arange(TABLES, dtype=np.int32)
        starts = np.arange(TABLES + 1, dtype=np.int64) * (examples * size)
        rows = np.full(TABLES, ROWS_PER_TABLE // workload.K * SHARDS * workload.K, np.int64)
        distinct, _, self.inverse = _native.plan_batch(
            np.ascontiguousarray(ids).reshape(-1), starts, tables, rows, np.full(TABLES, workload.K, np.int32), SHARDS
        )
        rng = np.random.default_rng(workload.SEED)
        self.size, self.dim, self.examples = size, dim, examples
        self.values: F32 = rng.standard_normal(len(distinct) * dim, np.float32)
        self.gradient: F32 = rng.standard_normal((examples, TABLES * dim), np.float32)
        self.value_offsets = np.arange(0, self.values.size, dim)
        self.bag_offsets = np.arange(0, len(self.inverse) + 1, size)
        self.dims = np.full(TABLES, dim, np.int32)
        self.mean = np.zeros(TABLES, np.bool_)
        by_example = self.inverse.reshape(TABLES, examples, size).transpose(1, 0, 2)
        self.inverse_by_example = np.ascontiguousarray(by_example).reshape(-1).astype(np.int64)
        """Of all ids of the first example, then of the second: bags in the order of the output."""

    @property
    def ids(self) -> int:
        return len(self.inverse)

    def forward(self, out: F32) -> None:
        _native.pool_forward(
            self.values, self.value_offsets, self.inverse, self.bag_offsets, self.dims, self.examples, self.mean, out
        )

    def backward(self, out: F32) -> None:
        _native.pool_backward(
            self.gradient, self.value_offsets, self.inverse, self.bag_offsets, self.dims, self.examples, self.mean, out
        )


def forward_case(name: str, bags: Bags, torch: Any | None) -> Case:
    """Sum pooling."""
    out = np.empty_like(bags.gradient)
    peers: dict[str, Run] = {}
    results: dict[str, Callable[[], F32]] = {}
    if torch is not None:
        values = torch.from_numpy(bags.values.reshape(-1, bags.dim))
        ids = torch.from_numpy(bags.inverse_by_example)
        offsets = torch.arange(0, bags.ids, bags.size)

        def embedding_bag() -> Any:
            return torch.nn.functional.embedding_bag(ids, values, offsets, mode="sum")

        peers["torch embedding_bag"] = repeated(embedding_bag)
        results["torch embedding_bag"] = lambda: embedding_bag().numpy().reshape(out.shape)

    def check() -> str:
        bags.forward(out)
        return _checked(name, out, results)

    return Case(name, "million ids/s", bags.ids / 1e6, repeated(lambda: bags.forward(out)), peers, check)


def backward_case(name: str, bags: Bags, torch: Any | None) -> Case:
    """The gradient of each distinct row: the sum over its occurrences."""
    out = np.empty_like(bags.values)
    peers: dict[str, Run] = {}
    results: dict[str, Callable[[], F32]] = {}
    if torch is not None:
        grad = torch.from_numpy(bags.gradient.reshape(-1, bags.dim))
        ids = torch.from_numpy(bags.inverse_by_example)
        table = torch.zeros(bags.values.size // bags.dim, bags.dim, requires_grad=True)
        offsets = torch.arange(0, bags.ids, bags.size)
        pooled = torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum")

        def embedding_bag() -> Any:
            (sums,) = torch.autograd.grad(pooled, table, grad, retain_graph=True)
            return sums

        peers["torch embedding_bag"] = repeated(embedding_bag)
        results["torch embedding_bag"] = lambda: embedding_bag().numpy().reshape(-1)
        if bags.size == 1:

            def index_add() -> Any:
                return torch.zeros(table.shape).index_add_(0, ids, grad)

            peers["torch index_add_"] = repeated(index_add)
            results["torch index_add_"] = lambda: index_add().numpy().reshape(-1)

    def check() -> str:
        bags.backward(out)
        return _checked(name, out, results)

    return Case(name, "million ids/s", bags.ids / 1e6, repeated(lambda: bags.backward(out)), peers, check)


def _checked(name: str, ours: F32, results: dict[str, Callable[[], F32]]) -> str:
    apart = [check_close(name, peer, ours, result(), TOLERANCE) for peer, result in results.items()]
    return result_of(digest_of(ours), max(apart, default=0.0))


def cases(selection: Selection) -> Iterator[Case]:
    """The suite."""
    torch = selection.find("torch", torch_cpu.load)
    for name, make in (("dedup 26 tables", dedup_case), ("unique one array", unique_case)):
        if selection.wants(name):
            yield make(name, make_step(ROWS_PER_TABLE), torch)
    for dim in DIMS:
        for size in BAGS:
            for name, pool in (("pool forward", forward_case), ("pool backward", backward_case)):
                full = f"{name} bag {size} dim {dim}"
                if selection.wants(full):
                    yield pool(full, Bags(size, dim), torch)

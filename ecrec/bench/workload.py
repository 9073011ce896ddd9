"""The rows that the cases of store, batch and rpc work on: those of a training step of a DLRM on Criteo's data.

26 tables, a batch of 2,048 examples, one id of each table an example: 53,248 ids. Ids are Zipf-distributed, which
leaves about 29,700 distinct ones, and hot rows lie anywhere in their table. All rows of a case belong to shard 0 of a
group of 5 with a 4+1 code, as they would on that shard: a peer without shards numbers the same rows 0, 1, 2, ...
(*local*), we name them by their id in the whole table (*global*).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecrec._native import plan_batch

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

TABLES = 26
BATCH = 2048
IDS = TABLES * BATCH
SHARDS, K, R = 5, 4, 1
BATCHES = 8
"""Different batches that take turns, so that rows come from memory as they do in training."""
SEED = 7
ZIPF_EXPONENT = 1.005
"""With 100,000 rows a table this gives the distinct ids that the cases are named for."""

SERVED_ROWS, SERVED_DIM = 1_000_000, 128
"""The table of the suite rpc."""
PULLED = 6000
"""Distinct rows of one of its steps."""
ROW_BATCHES = 40
"""Different batches of it that take turns: more than there are steps in a window, where deltas of a row would merge."""


def global_rows(local: I64, shards: int = SHARDS, k: int = K) -> I64:
    """Ids of the rows of shard 0 in a table of which it holds every ``shards``-th: row m is slot m % k.

    Slot j of stripe g lies on shard (g + j) % shards, so shard 0 has slot j of the stripes g = -j modulo shards.
    """
    slot = local % k
    stripe = local // k * shards + -slot % shards
    return stripe * k + slot


@dataclass(frozen=True)
class Batch:
    """One batch: ids of table t are local[t * BATCH : (t + 1) * BATCH], and what `plan_batch` makes of them."""

    local: I64
    ids: I64
    rows: I64
    """Distinct global rows, table after table."""
    counts: I64
    """How many each table has."""
    inverse: I32
    places: I64
    """The distinct rows, in the same order, as places in one array of the local rows of all tables."""

    @property
    def distinct(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Step:
    """The batches of a case, and the constant arguments of the native calls."""

    rows_per_table: int
    """Local rows: those of shard 0."""
    table_rows: I64
    """Rows of the whole tables."""
    table_k: I32
    tables: I32
    starts: I64
    batches: list[Batch]


def make_step(rows_per_table: int, batches: int = BATCHES) -> Step:
    """Batches over tables of which shard 0 has so many rows each; a multiple of K."""
    rng = np.random.default_rng(SEED)
    chances = np.cumsum(1.0 / np.arange(1, rows_per_table + 1) ** ZIPF_EXPONENT)
    chances /= chances[-1]
    homes = [rng.permutation(rows_per_table) for _ in range(TABLES)]
    tables = np.arange(TABLES, dtype=np.int32)
    table_rows = np.full(TABLES, rows_per_table // K * SHARDS * K, np.int64)
    table_k = np.full(TABLES, K, np.int32)
    starts = np.arange(0, IDS + 1, BATCH, dtype=np.int64)
    made = []
    for _ in range(batches):
        ranks = np.searchsorted(chances, rng.random((TABLES, BATCH)))
        local = np.concatenate([home[rank] for home, rank in zip(homes, ranks, strict=True)])
        ids = global_rows(local)
        rows, counts, inverse = plan_batch(ids, starts, tables, table_rows, table_k, SHARDS)
        distinct_places = np.empty(len(rows), np.int64)
        distinct_places[inverse] = local + np.repeat(tables * np.int64(rows_per_table), BATCH)
        made.append(Batch(local, ids, rows, counts[0].copy(), inverse, distinct_places))
    return Step(rows_per_table, table_rows, table_k, tables, starts, made)


def make_row_batches() -> list[tuple[I64, NDArray[np.float32]]]:
    """Distinct rows of the table of the suite rpc, and a gradient float32[PULLED, SERVED_DIM] for them, a few times."""
    rng = np.random.default_rng(SEED)
    return [
        (
            rng.choice(SERVED_ROWS, PULLED, replace=False),
            rng.standard_normal((PULLED, SERVED_DIM), np.float32),
        )
        for _ in range(ROW_BATCHES)
    ]

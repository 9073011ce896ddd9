"""Floors of `ecrec bench`, measured: what a bare loop takes that moves the same bytes and does nothing else.

Each loop (``floors.c``) is tried in several ways, with and without prefetch and stores past the caches; the best takes
turns with ours and with the peer, which are those of `ecrec bench`. A ratio of ours to the peer cannot be more than
*floor/peer*, but for what another order of the same bytes would change.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ecrec import _native
from ecrec.bench import kernels, store
from ecrec.bench.harness import Case, Run, calls_for, in_turns, machine
from ecrec.bench.peers import torch_cpu
from ecrec.bench.peers.fbgemm import Fbgemm
from ecrec.bench.peers.isal import U8, Isal, compile_library, pointer, pointers
from ecrec.bench.report import describe_machine
from ecrec.bench.workload import BATCH, IDS, SHARDS, TABLES, make_step

HINTS = ("no prefetch", "prefetch into L1", "prefetch into L2")
AHEAD_MAX = 128
"""Rows; a stream is asked for 512 B or 4 KiB ahead."""
LINE = 64
STATE_FLOATS = {"rowwise-adagrad": 0, "adagrad": 1, "sgd": 0}
"""Of each weight. Row-wise Adagrad's single float of a row is left out."""


class Way(NamedTuple):
    """How a bare loop runs."""

    hint: int
    ahead: int
    past_caches: int

    def __str__(self) -> str:
        ahead = f" {self.ahead} ahead" if self.hint else ""
        return HINTS[self.hint] + ahead + (", past the caches" if self.past_caches else "")


def ways(aheads: tuple[int, ...], past_caches: tuple[int, ...]) -> list[Way]:
    """All that differ."""
    found = [Way(0, 0, past) for past in past_caches]
    return found + [Way(hint, ahead, past) for hint in (1, 2) for ahead in aheads for past in past_caches]


def compile_floors(scratch: Path) -> ctypes.CDLL:
    """``floors.c`` for this CPU."""
    source = Path(__file__).parent / "floors.c"
    floors = ctypes.CDLL(str(compile_library(source, scratch, "-O3", "-march=native", "-Wno-psabi")))
    for name in ("xor_streams", "fold_rows", "copy_rows", "step"):
        getattr(floors, f"time_{name}").restype = ctypes.c_double
    return floors


def aligned(size: int) -> U8:
    """uint8[size] of ones that starts on a cache line."""
    base = np.ones(size + LINE, dtype=np.uint8)
    start = -base.ctypes.data % LINE
    return base[start : start + size]


def addresses(array: U8, rows: NDArray[np.int64], stride: int) -> NDArray[np.uint64]:
    """Of the rows, and of the first ones again, which are asked for behind the last."""
    found = np.uint64(array.ctypes.data) + rows.astype(np.uint64) * np.uint64(stride)
    return np.concatenate([found, found[:AHEAD_MAX]])


def size(count: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(count)


# ------------------------------------------------------------------ the floors: what of a way makes a run
def encode_floor(floors: ctypes.CDLL, k: int, r: int, block: int) -> Callable[[Way], Run]:
    """k streams into r."""
    rng = np.random.default_rng(k * 100 + r)
    data, parity = kernels.blocks(rng, k, block, fill=True), kernels.blocks(rng, r, block, fill=True)
    inputs, outputs = pointers(data), pointers(parity)

    def make(way: Way) -> Run:
        def run(calls: int) -> float:
            assert data and parity
            seconds: float = floors.time_xor_streams(
                calls, size(block), k, r, inputs, outputs, size(way.ahead), way.hint, way.past_caches
            )
            return seconds

        return run

    return make


def fold_rows_floor(floors: ctypes.CDLL, row_bytes: int, r: int, memory: U8) -> Callable[[Way], Run]:
    """Rows in order into random ones of r parities."""
    rng = np.random.default_rng(row_bytes)
    source = aligned((kernels.ROWS + AHEAD_MAX) * row_bytes)
    batches = [
        addresses(memory, rng.integers(0, memory.size // row_bytes, kernels.ROWS), row_bytes) for _ in range(8 * r)
    ]

    def make(way: Way) -> Run:
        return turning(
            batches,
            lambda targets: floors.time_fold_rows(
                size(kernels.ROWS), size(row_bytes), pointer(source), pointer(targets), size(way.ahead), way.hint
            ),
            [memory],
            r,
        )

    return make


def gather_floor(floors: ctypes.CDLL, dim: int) -> Callable[[Way], Run]:
    """Weights out of row-wise Adagrad's records, from as many as the case has."""
    row_bytes = dim * 4
    stride = row_bytes + 16
    step = store.gather_step(dim)
    table = aligned(step.rows_per_table * TABLES * stride)
    out = aligned((max(batch.distinct for batch in step.batches) + AHEAD_MAX) * row_bytes)
    batches = [(batch.distinct, addresses(table, batch.places, stride)) for batch in step.batches]

    def make(way: Way) -> Run:
        return turning(
            batches,
            lambda batch: floors.time_copy_rows(
                size(batch[0]), size(row_bytes), pointer(batch[1]), pointer(out), size(way.ahead), way.hint,
                way.past_caches,
            ),
            [table],
        )  # fmt: skip

    return make


def step_floor(floors: ctypes.CDLL, optimizer: str, dim: int) -> Callable[[Way], Run]:
    """Gradients into sums, sums into records, records into deltas."""
    step = make_step(store.STEP_ROWS)
    row_bytes = dim * 4
    state = STATE_FLOATS[optimizer] * row_bytes
    table = aligned(step.rows_per_table * TABLES * (row_bytes + state))
    most = max(batch.distinct for batch in step.batches)
    deltas, sums = aligned(most * (row_bytes + state)), aligned((most + AHEAD_MAX) * row_bytes)
    batches = []
    for batch in step.batches:
        _, _, inverse = _native.plan_batch(batch.ids, step.starts, step.tables, step.table_rows, step.table_k, SHARDS)
        by_sample = inverse.reshape(TABLES, BATCH).T.ravel()
        is_first = np.zeros(IDS, np.uint8)
        is_first[np.unique(by_sample, return_index=True)[1]] = 1
        gradients = np.random.default_rng(0).standard_normal(IDS * dim, np.float32).view(np.uint8)
        records = addresses(table, batch.places, row_bytes + state)
        batches.append((batch.distinct, gradients, addresses(sums, by_sample, row_bytes), is_first, records))

    def make(way: Way) -> Run:
        return turning(
            batches,
            lambda batch: floors.time_step(
                size(IDS), size(batch[0]), size(row_bytes), size(state), pointer(batch[1]), pointer(batch[2]),
                pointer(batch[3]), pointer(sums), pointer(batch[4]), pointer(deltas), size(way.ahead), way.hint,
            ),
            [table],
        )  # fmt: skip

    return make


def turning(batches: list[Any], run_batch: Callable[[Any], float], alive: list[U8], batches_a_call: int = 1) -> Run:
    """Each call takes the next batches; ``alive`` is what they have addresses of."""
    turn = 0

    def run(calls: int) -> float:
        nonlocal turn
        assert alive
        seconds = 0.0
        for _ in range(calls * batches_a_call):
            seconds += run_batch(batches[turn % len(batches)])
            turn += 1
        return seconds

    return run


# ------------------------------------------------------------------ the cases
Floor = tuple[Case, str, Callable[[Way], Run], list[Way]]
"""Ours and its peers, the peer that counts, and the floor in its ways."""

STREAM_WAYS = ((512, 4096), (0, 1))
ROW_WAYS = ((8, 16, 32, 64), (0,))


def cases(floors: ctypes.CDLL, scratch: Path, wanted: str) -> Iterator[Floor]:
    """All whose name has ``wanted`` in it, one at a time."""
    isal = Isal(scratch)
    for place in (*kernels.CACHE_BYTES, "memory"):
        for k, r in kernels.CODES:
            name = f"encode ({k},{r}) {place}"
            if wanted in name:
                block = kernels.size_of(place, k, r)
                case = kernels.encode_case(isal, name, _native.Code(k, r).coefficients, block)
                yield case, "ISA-L", encode_floor(floors, k, r, block), ways(*STREAM_WAYS)
    memory = np.zeros(0, np.uint8)
    for row_bytes in (256, 512):
        for r in (1, 2):
            name = f"fold_rows {row_bytes} B r={r}"
            if wanted in name:
                memory = memory if memory.size else np.ones(kernels.PARITY_BYTES, np.uint8)
                case = kernels.fold_rows_case(isal, name, row_bytes, r, memory)
                yield case, "ISA-L", fold_rows_floor(floors, row_bytes, r, memory), ways(*ROW_WAYS)
    del memory
    for dim in store.DIMS:
        if wanted in (name := f"gather dim {dim}"):
            case = store.gather_case(name, dim, torch_cpu.load())
            yield case, "torch.index_select", gather_floor(floors, dim), ways(ROW_WAYS[0], (0, 1))
    for optimizer in store.OPTIMIZERS:
        for dim in store.DIMS:
            if wanted in (name := f"step {optimizer} dim {dim}"):
                case = store.step_case(name, make_step(store.STEP_ROWS), dim, optimizer, Fbgemm())
                yield case, "FBGEMM", step_floor(floors, optimizer, dim), ways(*ROW_WAYS)


def best_way(make: Callable[[Way], Run], candidates: list[Way], rounds: int = 5) -> Way:
    """The quickest, by median."""
    runs = {way: make(way) for way in candidates}
    seconds: dict[Way, list[float]] = {way: [] for way in candidates}
    for _ in range(rounds):
        for way, run in runs.items():
            run(1)
            seconds[way].append(run(4))
    return min(candidates, key=lambda way: statistics.median(seconds[way]))


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    console = Console(width=165)
    console.print(describe_machine(machine()))
    table = Table(
        "case", "unit", "floor", "ours", "peer", "", "floor/peer", "ours/floor", "the floor's way", title="floors"
    )
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        for case, peer, make, candidates in cases(compile_floors(scratch), scratch, options.case):
            way = best_way(make, candidates)
            sides = {"floor": make(way), "ours": case.ours, peer: case.peers[peer]}
            # As many calls of each: the later ones of a round find more in the last-level cache.
            calls = dict.fromkeys(sides, calls_for(case.ours, case.round_seconds))
            seconds = in_turns(sides, calls, options.rounds)
            floor, ours, theirs = (case.work / statistics.median(seconds[side]) for side in sides)
            table.add_row(
                case.name, case.unit, f"{floor:.1f}", f"{ours:.1f}", f"{theirs:.1f}", peer, f"{floor / theirs:.2f}",
                f"{ours / floor:.2f}", str(way),
            )  # fmt: skip
            console.print(f"{case.name}: floor {floor:.1f}, ours {ours:.1f}, {peer} {theirs:.1f} {case.unit}")
    console.print(table)


if __name__ == "__main__":
    main()

"""The kernel's encode, fold and fold_rows against ISA-L's.

The peer is the ISA-L that comes in pyeclib's wheel; a C compiler is needed for the loops around both
(``native_calls.c``). Both sides work on the same arrays, in the same order. ``case`` names (k, r) and where the data
lies: all buffers of *L1* are 24 KiB together, of *L2* 256 KiB, and *memory* is 256 MiB of data.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec import _native
from ecrec.bench.harness import Case, ResultsDifferError, Run, Selection, digest_of
from ecrec.bench.peers.isal import U8, Isal, pointer, pointers

CODES = [(2, 1), (4, 1), (4, 2), (8, 2), (8, 3), (10, 4)]
CACHE_BYTES = {"L1": 24 << 10, "L2": 256 << 10}
"""Of all buffers of a case: half of the smallest such cache of a server's CPU, so that it stays there when other
processes take turns on the core."""
MEMORY_BYTES = 256 << 20
PARITY_BYTES = 4 << 30
"""What fold_rows scatters over: far more than the translation buffers reach."""
ROWS = 65536
ROUND_SECONDS = 0.003
"""The loops are in C and their clock is that of the thread: this is enough, and there are many cases."""


def blocks(rng: np.random.Generator, count: int, size: int, fill: bool) -> list[U8]:
    """Arrays that start on a cache line, each at another distance from a page (as allocators give them)."""
    stride = size + 4096 + 320
    base = np.zeros(count * stride + 64, dtype=np.uint8)
    start = -base.ctypes.data % 64
    arrays = [base[start + i * stride :][:size] for i in range(count)]
    if fill:
        pattern = rng.integers(0, 256, min(size, 1 << 20), dtype=np.uint8)
        for i, array in enumerate(arrays):
            for at in range(0, size, pattern.size):
                array[at : at + pattern.size] = (pattern + np.uint8(i))[: size - at]
    return arrays


def check_overwritten(name: str, ours: Run, peer: Run, result: Callable[[], list[U8]]) -> str:
    """Compares what one call of each side writes."""
    ours(1)
    digest = digest_of(*result())
    for array in result():
        array[:] = 0
    peer(1)
    return _equal(name, digest, digest_of(*result()))


def check_undone(name: str, ours: Run, peer: Run, result: Callable[[], list[U8]]) -> str:
    """The same for a fold: what one call of ours folded in, one of the peer must fold out again."""
    before = digest_of(*result())
    ours(1)
    digest = digest_of(*result())
    if digest == before:
        raise ResultsDifferError(f"{name}: ours folded nothing in")
    peer(1)
    _equal(name, before, digest_of(*result()))
    return digest


def _equal(name: str, ours: str, peer: str) -> str:
    if ours != peer:
        raise ResultsDifferError(f"{name}: the results differ: {ours}, with ISA-L {peer}")
    return ours


def _case(
    name: str,
    unit: str,
    work: float,
    ours: Run,
    peer: Run,
    check: Callable[[str, Run, Run, Callable[[], list[U8]]], str],
    result: Callable[[], list[U8]],
    sources: Sequence[NDArray[Any]],
) -> Case:
    def checked() -> str:
        # The sides read the sources through bare pointers; this closure keeps them alive as long as the case.
        assert sources
        return check(name, ours, peer, result)

    return Case(name, unit, work, ours, {"ISA-L": peer}, checked, ROUND_SECONDS)


def encode_case(isal: Isal, name: str, matrix: U8, size: int) -> Case:
    """outputs = matrix x inputs: encode, or reconstruct with the matrix of a loss."""
    r, k = matrix.shape
    rng = np.random.default_rng(k * 100 + r)
    data = blocks(rng, k, size, fill=True)
    parity = blocks(rng, r, size, fill=False)
    functions = _native.kernel_functions()
    prepared, tables = _native.prepare_coefficients(matrix), isal.tables(matrix)
    inputs, outputs = pointers(data), pointers(parity)
    ours, peer = ctypes.c_void_p(functions["encode"]), isal.function("ec_encode_data")

    def run_ours(calls: int) -> float:
        seconds: float = isal.loops.time_ours_encode(
            ours, calls, ctypes.c_size_t(size), k, r, pointer(prepared), inputs, outputs
        )
        return seconds

    def run_peer(calls: int) -> float:
        seconds: float = isal.loops.time_isal_encode(
            peer, calls, ctypes.c_size_t(size), k, r, pointer(tables), inputs, outputs
        )
        return seconds

    return _case(name, "GB/s of data", k * size / 1e9, run_ours, run_peer, check_overwritten, lambda: parity, data)


def fold_case(isal: Isal, name: str, size: int) -> Case:
    """parity ^= c * x."""
    rng = np.random.default_rng(1)
    (source,) = blocks(rng, 1, size, fill=True)
    (target,) = blocks(rng, 1, size, fill=False)
    value = np.array([[0x53]], dtype=np.uint8)
    prepared, tables = _native.prepare_coefficients(value), isal.tables(value)
    ours, peer = ctypes.c_void_p(_native.kernel_functions()["fold"]), isal.function("gf_vect_mad")

    def run_ours(calls: int) -> float:
        seconds: float = isal.loops.time_ours_fold(
            ours, calls, ctypes.c_size_t(size), pointer(prepared), pointer(source), pointer(target)
        )
        return seconds

    def run_peer(calls: int) -> float:
        seconds: float = isal.loops.time_isal_fold(
            peer, calls, ctypes.c_size_t(size), pointer(tables), pointer(source), pointer(target)
        )
        return seconds

    return _case(name, "GB/s of data", size / 1e9, run_ours, run_peer, check_undone, lambda: [target], [source])


def fold_rows_case(isal: Isal, name: str, row_bytes: int, r: int, memory: U8) -> Case:
    """parity[i][index[m]] ^= c[i] * x[m] for ROWS random rows of r parities, each call at other rows."""
    rng = np.random.default_rng(row_bytes + r)
    (source,) = blocks(rng, 1, ROWS * row_bytes, fill=True)
    sources = source.ctypes.data + np.arange(ROWS, dtype=np.uint64) * np.uint64(row_bytes)
    parity_rows = memory.size // r // row_bytes
    batches = []
    for _ in range(8):
        indices = rng.integers(0, parity_rows, (r, ROWS)).astype(np.uint64)
        bases = np.array([memory.ctypes.data + i * parity_rows * row_bytes for i in range(r)], dtype=np.uint64)
        targets = indices * np.uint64(row_bytes) + bases[:, None]
        batches.append((targets, (ctypes.c_void_p * r)(*(row.ctypes.data for row in targets))))
    values = np.array([[0x53], [0xA7]], dtype=np.uint8)[:r]
    prepared, tables = _native.prepare_coefficients(values), isal.tables(values)
    ours, peer = ctypes.c_void_p(_native.kernel_functions()["fold_rows"]), isal.function("gf_vect_mad")
    turn = {"ours": 0, "peer": 0}

    def next_targets(side: str) -> ctypes.Array[ctypes.c_void_p]:
        turn[side] += 1
        return batches[turn[side] % len(batches)][1]

    def run_ours(calls: int) -> float:
        seconds: float = sum(
            isal.loops.time_ours_fold_rows(
                ours, r, ctypes.c_size_t(ROWS), ctypes.c_size_t(row_bytes), pointer(prepared),
                ctypes.c_size_t(prepared.shape[1]), pointer(sources), next_targets("ours"),
            )
            for _ in range(calls)
        )  # fmt: skip
        return seconds

    def run_peer(calls: int) -> float:
        seconds: float = sum(
            isal.loops.time_isal_fold_rows(
                peer, r, ctypes.c_size_t(ROWS), ctypes.c_size_t(row_bytes), pointer(tables),
                ctypes.c_size_t(32), pointer(source), next_targets("peer"),
            )
            for _ in range(calls)
        )  # fmt: skip
        return seconds

    def result() -> list[U8]:
        """The rows that the first call of a side wrote."""
        rows = memory.reshape(-1, row_bytes)
        return [rows[(row - np.uint64(memory.ctypes.data)) // np.uint64(row_bytes)] for row in batches[1][0]]

    return _case(name, "million rows/s", ROWS / 1e6, run_ours, run_peer, check_undone, result, [source, sources])


def size_of(place: str, k: int, r: int) -> int:
    """Bytes of one block."""
    return (CACHE_BYTES[place] // (k + r) if place in CACHE_BYTES else MEMORY_BYTES // k) // 64 * 64


def cases(selection: Selection) -> Iterator[Case]:
    """The suite. Without the peer nothing is measured: both sides need its loops."""
    with tempfile.TemporaryDirectory() as scratch:
        isal = selection.find("ISA-L", lambda: Isal(Path(scratch)))
        if isal is not None:
            yield from _cases(isal, selection)


def _cases(isal: Isal, selection: Selection) -> Iterator[Case]:
    for place in (*CACHE_BYTES, "memory"):
        for k, r in CODES:
            if selection.wants(name := f"encode ({k},{r}) {place}"):
                yield encode_case(isal, name, _native.Code(k, r).coefficients, size_of(place, k, r))
        for k, r in [(4, 1), (4, 2), (10, 4)]:
            if selection.wants(name := f"reconstruct ({k},{r}) {place}"):
                matrix = _native.Code(k, r).decode_matrix(range(r, k + r), range(r))
                yield encode_case(isal, name, matrix, size_of(place, k, r))
        if selection.wants(name := f"fold {place}"):
            yield fold_case(isal, name, size_of(place, 1, 1))
    scatter = [(f"fold_rows {row_bytes} B r={r}", row_bytes, r) for row_bytes in (256, 512) for r in (1, 2)]
    memory = np.zeros(0, dtype=np.uint8)
    for name, row_bytes, r in scatter:
        if not selection.wants(name):
            continue
        if memory.size == 0:
            memory = np.zeros(PARITY_BYTES, dtype=np.uint8)
            memory[::4096] = 1  # every page is there before a round is timed
        yield fold_rows_case(isal, name, row_bytes, r, memory)

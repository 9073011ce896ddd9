"""The kernel's encode, fold and fold_rows against ISA-L's, turn about, on one thread.

    python bench/kernels.py [--case TEXT] [--rounds 9] [--json kernels.json]

The peer is the ISA-L that comes in pyeclib's wheel. Without it, or without a C compiler for ``native_calls.c``, the
benchmark says so and measures nothing. Both sides work on the same arrays, in the same order, and their results are
compared. ``case`` names (k, r) and where the data lies: all buffers of *L1* are 24 KiB together, of *L2* 256 KiB, and
*memory* is 256 MiB of data.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ecrec import _native

U8 = NDArray[np.uint8]

CODES = [(2, 1), (4, 1), (4, 2), (8, 2), (8, 3), (10, 4)]
CACHE_BYTES = {"L1": 24 << 10, "L2": 256 << 10}
"""Of all buffers of a case: half of the smallest such cache of a server's CPU, so that it stays there when other
processes take turns on the core."""
MEMORY_BYTES = 256 << 20
PARITY_BYTES = 4 << 30
"""What fold_rows scatters over: far more than the translation buffers reach."""
ROWS = 65536
ROUND_SECONDS_MIN = 0.003


class PeerMissingError(Exception):
    """What is needed to run the peer is not installed; the text says what."""


@dataclass(frozen=True)
class Measurement:
    """One line of the result. ``ratio`` > 1: ours is faster. The limits are the extremes over the rounds."""

    case: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    ratio_min: float
    ratio_max: float
    digest: str


@dataclass(frozen=True)
class Case:
    """``ours(calls)`` and ``peer(calls)`` return seconds; ``work`` is in units a call; ``result``: what they wrote."""

    name: str
    unit: str
    work: float
    ours: Callable[[int], float]
    peer: Callable[[int], float]
    result: Callable[[], list[U8]]
    repeatable: bool
    """False where a second call undoes the first: a fold."""
    sources: list[U8]
    """What ``ours`` and ``peer`` read through bare pointers; kept alive here."""


class Isal:
    """ISA-L's functions and the loops that call them and ours."""

    def __init__(self, scratch: Path) -> None:
        self.library = ctypes.CDLL(str(isal_path()))
        self.loops = ctypes.CDLL(str(compile_loops(scratch)))
        for name in ("encode", "fold", "fold_rows"):
            for side in ("ours", "isal"):
                getattr(self.loops, f"time_{side}_{name}").restype = ctypes.c_double

    def function(self, name: str) -> ctypes.c_void_p:
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p)

    def tables(self, matrix: U8) -> U8:
        """uint8[matrix.size * 32]; in the format of the functions that ISA-L chooses for this CPU."""
        rows, columns = matrix.shape
        tables = np.zeros(matrix.size * 32, dtype=np.uint8)
        self.library.ec_init_tables(columns, rows, pointer(np.ascontiguousarray(matrix)), pointer(tables))
        return tables


def isal_path() -> Path:
    """The library in pyeclib's wheel."""
    spec = importlib.util.find_spec("pyeclib")
    if spec is None or spec.origin is None:
        raise PeerMissingError("pyeclib is not installed")
    found = sorted((Path(spec.origin).parent.parent / "pyeclib.libs").glob("libisal*.so*"))
    if not found:
        raise PeerMissingError("this pyeclib has no ISA-L in its wheel")
    return found[0]


def compile_loops(scratch: Path) -> Path:
    """``native_calls.c`` as a shared library."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise PeerMissingError("no C compiler (cc) to compile bench/native_calls.c")
    library = scratch / "native_calls.so"
    source = Path(__file__).with_name("native_calls.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def pointer(array: U8) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def pointers(arrays: Sequence[U8]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


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

    return Case(name, "GB/s of data", k * size / 1e9, run_ours, run_peer, lambda: parity, True, data)


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

    return Case(name, "GB/s of data", size / 1e9, run_ours, run_peer, lambda: [target], False, [source])


def fold_rows_case(isal: Isal, name: str, row_bytes: int, r: int, memory: U8) -> Case:
    """parity[i][index[m]] ^= c[i] * x[m] for ROWS random rows of r parities, each call at other rows."""
    rng = np.random.default_rng(row_bytes + r)
    (source,) = blocks(rng, 1, ROWS * row_bytes, fill=True)
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
                ctypes.c_size_t(prepared.shape[1]), pointer(source), next_targets("ours"),
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

    return Case(name, "million rows/s", ROWS / 1e6, run_ours, run_peer, result, False, [source])


def size_of(place: str, k: int, r: int) -> int:
    """Bytes of one block."""
    return (CACHE_BYTES[place] // (k + r) if place in CACHE_BYTES else MEMORY_BYTES // k) // 64 * 64


def cases(isal: Isal, wanted: str) -> Iterator[Case]:
    """All cases whose name contains ``wanted``, made one at a time: each holds much memory."""
    for place in (*CACHE_BYTES, "memory"):
        for k, r in CODES:
            if wanted in (name := f"encode ({k},{r}) {place}"):
                yield encode_case(isal, name, _native.Code(k, r).coefficients, size_of(place, k, r))
        for k, r in [(4, 1), (4, 2), (10, 4)]:
            if wanted in (name := f"reconstruct ({k},{r}) {place}"):
                matrix = _native.Code(k, r).decode_matrix(range(r, k + r), range(r))
                yield encode_case(isal, name, matrix, size_of(place, k, r))
        if wanted in (name := f"fold {place}"):
            yield fold_case(isal, name, size_of(place, 1, 1))
    scatter = [(f"fold_rows {row_bytes} B r={r}", row_bytes, r) for row_bytes in (256, 512) for r in (1, 2)]
    memory = np.zeros(0, dtype=np.uint8)
    for name, row_bytes, r in scatter:
        if wanted not in name:
            continue
        if memory.size == 0:
            memory = np.zeros(PARITY_BYTES, dtype=np.uint8)
            memory[::4096] = 1  # every page is there before a round is timed
        yield fold_rows_case(isal, name, row_bytes, r, memory)


def digest_of(arrays: list[U8]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(array.data).digest() for array in arrays)).hexdigest()[:16]


def digest_after(case: Case, run: Callable[[int], float]) -> str:
    """Of what one call writes. A fold is called again to undo it, so that the other side starts from the same."""
    run(1)
    return digest_of(case.result())


def measure(case: Case, rounds: int) -> Measurement:
    """Compare the results, then time both sides turn about, each in turn the first."""
    if case.repeatable:
        digests = [digest_after(case, case.ours)]
        for array in case.result():
            array[:] = 0
        digests.append(digest_after(case, case.peer))
    else:
        before = digest_of(case.result())
        digests = [digest_after(case, case.ours)]
        digests.append(digest_after(case, case.peer))
        # What ours folded in, the peer has folded out again.
        digests = [digests[0], digests[0] if digests[1] == before else digests[1]]
    if digests[0] != digests[1]:
        raise AssertionError(f"{case.name}: the results differ: ours {digests[0]}, peer {digests[1]}")

    calls = max(1, math.ceil(ROUND_SECONDS_MIN / max(case.peer(3) / 3, 1e-9)))
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(rounds):
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            seconds[side].append((case.ours if side == "ours" else case.peer)(calls) / calls)
    ours, peer = (statistics.median(seconds[side]) for side in ("ours", "peer"))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    return Measurement(
        case.name, case.unit, case.work / ours, case.work / peer, "ISA-L",
        peer / ours, min(ratios), max(ratios), digests[0],
    )  # fmt: skip


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def run(wanted: str = "", rounds: int = 9) -> dict[str, object]:
    """Measure all cases whose name contains ``wanted``; print each as it is done.

    Returns what ``--json`` writes. Raises `PeerMissingError`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        isal = Isal(Path(scratch))
        versions = {"ecrec": _native.__version__, "pyeclib": metadata.version("pyeclib"), "numpy": np.__version__}
        print(f"{cpu_name()}, kernel {_native.kernel()}, {isal_path().name} of pyeclib {versions['pyeclib']}")
        print(f"{'case':24} {'unit':>15} {'ours':>8} {'ISA-L':>8} {'ratio':>6} {'min..max':>12}  result")
        measurements = []
        for case in cases(isal, wanted):
            line = measure(case, rounds)
            limits = f"{line.ratio_min:.2f}..{line.ratio_max:.2f}"
            print(
                f"{line.case:24} {line.unit:>15} {line.ours:8.1f} {line.peer:8.1f} {line.ratio:6.2f} {limits:>12}"
                f"  {line.digest}",
                flush=True,
            )
            measurements.append(asdict(line))
    return {"versions": versions, "cpu": cpu_name(), "kernel": _native.kernel(), "results": measurements}


def main() -> None:
    """Parse the arguments, run, write the JSON."""
    parser = argparse.ArgumentParser(description="Our kernels against ISA-L's, turn about.")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kernel", default=None, help="force a kernel instead of the fastest")
    parser.add_argument("--json", type=Path, default=None, help="write the result to this file")
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("--rounds: at least 7")
    if options.kernel is not None:
        _native.use_kernel(options.kernel)
    try:
        report = run(options.case, options.rounds)
    except PeerMissingError as reason:
        print(f"SKIPPED: {reason}")
        return
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How long the native calls of a server's loop keep its thread away, with rows by the hundred thousand.

    python bench/longest_call.py --rows 500000 --dim 64

A server says that it lives from the thread that applies pushes. Each line is one call: how long it took, how often it
paused to let that happen, and the longest time without a pause, which is what the others may see as silence. Times are
milliseconds by the clock and, on a machine that does other things too, of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np

from ecrec import _native
from ecrec._native import Capture, RowBuffer, Store, Window

SHARDS, K, R = 5, 4, 1
SEED = 7


class Watch:
    """Times calls, and what lies between the pauses in them."""

    def __init__(self, store: Any) -> None:
        self.at: list[tuple[float, float]] = []
        if hasattr(store, "on_pause"):
            store.on_pause(lambda work: self.at.append(_now()))

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        """The call's result; prints its line."""
        self.at.clear()
        begin = _now()
        result = call()
        times = [begin, *self.at, _now()]
        gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(times)]
        wall, processor = (1e3 * (times[-1][i] - begin[i]) for i in range(2))
        longest = [1e3 * max(gap[i] for gap in gaps) for i in range(2)]
        print(
            f"{name:34} {wall:9.1f} {processor:9.1f} {len(self.at):7d} {longest[0]:9.1f} {longest[1]:9.1f}", flush=True
        )
        return result


def _now() -> tuple[float, float]:
    """Seconds of the clock, and of the processor in this thread."""
    return time.perf_counter(), time.thread_time()


def make_store(shard: int, rows: int, dim: int, recovered: bool = True) -> Any:
    """A store whose shard has more than ``rows`` rows, so that a draw of as many is sparse."""
    store = Store(shard, SHARDS)
    store.add_table(40 * rows, dim, K, R, "cauchy", "adagrad", [0.01, 1e-8], "uniform", SEED, 0.1, 0.0, recovered)
    return store


def rows_of(shard: int, rows: int) -> Any:
    """Distinct rows of the shard, int64[rows], in no order."""
    ids = np.arange(40 * rows, dtype=np.int64)
    mine = ids[(ids // K + ids % K) % SHARDS == shard]
    return np.ascontiguousarray(np.random.default_rng(SEED).permutation(mine)[:rows])


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run each call once, print."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=64, help="float32 weights of a row; Adagrad")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    rows, dim = args.rows, args.dim
    _native.use_threads(args.threads)
    print(f"{rows} rows of {dim} floats, Adagrad, code {K}+{R}, kernel {_native.kernel()}, {args.threads} thread(s)")
    print(f"{'call':34} {'ms':>9} {'cpu ms':>9} {'pauses':>7} {'longest':>9} {'cpu ms':>9}")
    store = make_store(0, rows, dim)
    watch, window = Watch(store), Window(store)
    for peer in range(1, SHARDS):
        for class_id in range(SHARDS):
            window.set_limit(peer, class_id, Window.UNLIMITED)
    ids = rows_of(0, rows)
    section = np.zeros(1, np.int32), np.array([rows], np.int64), ids
    gradients = np.random.default_rng(SEED).standard_normal(rows * dim, np.float32)
    watch.time("apply, rows never touched", lambda: store.apply(*section, gradients, window))
    frames = {p: watch.time(f"take the window for {p}", window.buffer(p).take) for p in range(1, SHARDS)}
    watch.time("apply, rows touched before", lambda: store.apply(*section, gradients, window))
    watch.time("apply, rows in the window twice", lambda: store.apply(*section, gradients, window))
    watch.time("remove_class of the window", lambda: window.buffer(1).remove_class(2))
    again = [window.buffer(p).take() for p in range(1, SHARDS)]
    watch.time("free the frames of a window", again.clear)
    out = np.empty(store.gather_bytes(*section[:2]), np.uint8)
    watch.time("gather", lambda: store.gather(*section, out))
    watch.time("keys", lambda: store.keys(*section))
    watch.time("coded_rows of a class", lambda: store.coded_rows(0, 0, store.class_size(0)))
    peer = max(frames, key=lambda p: len(frames[p][0]))
    keys, records = frames[peer]
    print(f"a window of {len(keys)} rows, {records.nbytes >> 20} MiB:")
    watch.time("checksum", lambda: _native.crc32c(records))
    holder = make_store(peer, rows, dim)
    watch = Watch(holder)
    watch.time("fold, parity never touched", lambda: holder.fold(0, 2**64 - 1, keys, records))
    watch.time("fold again, which undoes it", lambda: holder.fold(0, 2**64 - 1, keys, records))
    class_id = int(holder.classes(keys)[0])
    capture = watch.time("capture of a class", lambda: Capture(holder, class_id, 0, holder.class_size(class_id)))
    watch.time("fold into the capture", lambda: capture.fold(0, keys, records))
    buffer = RowBuffer(holder)
    watch.time("fold into a buffer", lambda: buffer.fold(3, keys, records))
    watch.time("nonzero of a buffer", buffer.nonzero)
    watch.time("classes of the keys", lambda: holder.classes(keys))
    watch.time("wipe parity", lambda: holder.wipe_parity(class_id))
    lost = make_store(0, rows, dim, recovered=False)
    watch = Watch(lost)
    missing = watch.time("missing rows of a push", lambda: lost.missing(*section))
    watch.time("restore", lambda: lost.restore(keys, records))
    watch.time("mark recovered by key", lambda: lost.mark_recovered_keys(missing))
    parts = [(*section, gradients), (*section, gradients)]
    watch.time("sum the pushes of a barrier", lambda: _native.sum_sections(parts, np.array([dim], np.int32), lost))
    return 0


if __name__ == "__main__":
    sys.exit(main())

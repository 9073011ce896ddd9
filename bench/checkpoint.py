"""What a checkpoint costs: training while one is always in progress, writing, restoring, and PyTorch's DCP beside them.

    python bench/checkpoint.py
    python bench/checkpoint.py --gb 1 --dir /mnt/checkpoints --report checkpoint.json

A cluster of five servers (4+1) on this machine gets --gb of touched rows of 64 floats with row-wise Adagrad. One worker
trains: pulls and pushes of random touched rows. Steps a second and the longest pause between two steps are taken
without a checkpoint and with checkpoints back to back, alternating, --rounds times; then one checkpoint is written, and
restored into a new cluster, without training. *dd* is what the disk takes with O_DIRECT, in the same folder, of as many
bytes. `torch.distributed.checkpoint` saves as many bytes of float32 from one process, synchronously: what it takes is
what its training would stand still.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import ecrec
from bench.running import write_json
from ecrec.bench.harness import machine
from ecrec.bench.report import describe_machine
from ecrec.checkpoint.restore import restore
from ecrec.checkpoint.saving import save_checkpoint
from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad, Session

DIM = 64
RECORD_BYTES = 4 * DIM + 4
TOUCH_ROWS = 50_000
BAGS = 1000
SPAN_S = 6.0
TIMEOUT_S = 600.0
SHARDS, CODE = 5, "4+1"


class Loop:
    """Steps of one worker over one table."""

    def __init__(self, session: Session, rows: int) -> None:
        config = EmbeddingBagConfig(rows, DIM, "items", feature_names=["item"])
        self.session, self.rows = session, rows
        self.bags = EmbeddingBagCollection(session, [config], RowWiseAdagrad(lr=0.01))
        self._draw = torch.Generator().manual_seed(7)

    def step(self, ids: torch.Tensor) -> None:
        self.bags(KeyedJaggedTensor.from_ids(["item"], ids[None])).values().sum().backward()
        self.session.push()

    def touch(self) -> None:
        for first in range(0, self.rows, TOUCH_ROWS):
            self.step(torch.arange(first, min(self.rows, first + TOUCH_ROWS)))
        self.session.flush()

    def measure(self, seconds: float) -> tuple[float, float]:
        """(steps a second, longest time of a step)."""
        begin = last = time.perf_counter()
        steps, longest = 0, 0.0
        while last - begin < seconds:
            self.step(torch.randint(0, self.rows, (BAGS,), generator=self._draw))
            now = time.perf_counter()
            steps, longest, last = steps + 1, max(longest, now - last), now
        return steps / (last - begin), longest


class BackToBack:
    """Checkpoints, one after the other, from a thread."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._endpoint, self._folder = endpoint, folder
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.written = 0

    def __enter__(self) -> "BackToBack":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            save_checkpoint(self._endpoint, str(self._folder), TIMEOUT_S)
            self.written += 1
            for old in sorted(self._folder.iterdir())[:-1]:
                shutil.rmtree(old)


def dd(folder: Path, nbytes: int) -> float:
    """Seconds in which the disk takes so many bytes past the page cache."""
    target = folder / "dd"
    blocks = max(1, nbytes >> 24)
    begin = time.perf_counter()
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=16M", f"count={blocks}", "oflag=direct", "conv=fsync"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    target.unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(f"dd failed: {done.stderr}")
    return seconds * nbytes / (blocks << 24)


def dcp(folder: Path, nbytes: int) -> float:
    """Seconds in which torch.distributed.checkpoint saves so many bytes."""
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"weight": torch.rand(nbytes // 4)}
    begin = time.perf_counter()
    save(state, checkpoint_id=str(folder / "dcp"))
    seconds = time.perf_counter() - begin
    shutil.rmtree(folder / "dcp")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    print(describe_machine(machine()), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="ecrec-checkpoint-", dir=args.dir))
    try:
        report = run(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(args.report, report)
    return 0


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = int(args.gb * 1e9 / RECORD_BYTES)
    nbytes = rows * RECORD_BYTES
    url = folder / "checkpoints"
    without, beside, written = [], [], 0
    with ecrec.local_cluster(shards=SHARDS, code=CODE) as session:
        endpoint = session.scheduler[0]
        loop = Loop(session, rows)
        loop.touch()
        loop.measure(args.seconds / 3)
        for _ in range(args.rounds):
            without.append(loop.measure(args.seconds))
            with BackToBack(endpoint, url) as saving:
                beside.append(loop.measure(args.seconds))
            written += saving.written
        session.flush()
        begin = time.perf_counter()
        session.save(str(url))
        save_s = time.perf_counter() - begin
    with ecrec.local_cluster(shards=SHARDS, code=CODE) as session:
        begin = time.perf_counter()
        restore(session.scheduler[0], str(url))
        restore_s = time.perf_counter() - begin
    dd_s, dcp_s = dd(folder, nbytes), dcp(folder, nbytes)
    speed = [statistics.median(rate for rate, _ in some) for some in (without, beside)]
    pause = [statistics.median(longest for _, longest in some) for some in (without, beside)]
    gb = nbytes / 1e9
    print(f"{gb:.2f} GB of {rows:,} touched rows, {args.rounds} rounds of {args.seconds:g} s, medians")
    print(
        f"training: {speed[0]:.1f} steps/s; {speed[1]:.1f} with {written} checkpoints: {speed[1] / speed[0]:.2f} of it"
    )
    print(f"longest step: {1e3 * pause[0]:.0f} ms; {1e3 * pause[1]:.0f} ms with checkpoints")
    print(f"write: {save_s:.2f} s, {gb / save_s:.2f} GB/s; dd {gb / dd_s:.2f} GB/s: {dd_s / save_s:.2f} of it")
    print(f"restore: {restore_s:.2f} s, {gb / restore_s:.2f} GB/s")
    print(f"torch.distributed.checkpoint.save: {dcp_s:.2f} s, {gb / dcp_s:.2f} GB/s, in which it trains nothing")
    return {
        "machine": machine(), "gb": gb, "rows": rows, "steps_s": without, "steps_s_with": beside, "written": written,
        "ratio": speed[1] / speed[0], "pause_s": pause, "save_s": save_s, "restore_s": restore_s, "dd_s": dd_s,
        "dcp_s": dcp_s,
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=0.5, help="of touched rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SPAN_S, help="of training in each half of a round")
    parser.add_argument("--dir", help="on the disk that is written to; the temporary directory")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What the death of a server costs where it held much: seconds until all is whole, and training meanwhile.

    python bench/recovery_large.py
    python bench/recovery_large.py --gb 1 --sparse --training

Starts a cluster on this machine and touches --gb of rows, all of a table's or (--sparse) a random 6 % of one that is
so much larger. Then one server is killed with SIGKILL and replaced. With --training a loop of pulls and pushes of
random touched rows goes on all the time; without, the cluster is idle. *GB/s* counts what was lost: the touched data
rows and parity rows of the server, from the kill until all of the group is whole. Resident bytes are of the server
processes, beside those that rows have and those that the servers say.

The floor is the processor time that the same bytes take at least, divided by the processors: one process does with a
small table, and with nothing else, what all servers do with the lost rows. A lost data row is decoded of k rows: k - 1
go to the server that has the parity row, and one from there to the replacement. Of a lost parity row k go to the
replacement. So k times the lost bytes pass through a socket of the file system, with a checksum at either end.
Afterwards some lost rows are compared, bit by bit (idle), and a scrub compares parity with data (unless --no-verify).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import write_json
from ecrec import _native
from ecrec._native import Capture, RowBuffer, Store, Window
from ecrec.bench.harness import machine
from ecrec.bench.report import describe_machine
from ecrec.errors import ClusterError
from ecrec.launch.connect import Keeper
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.tools.verify import scrub
from ecrec.protocol.messages import DOWN, UP, ClusterQuery, ClusterState, Section
from ecrec.protocol.placement import CodeSpec, Placement, Stripe, TableSpec
from ecrec.protocol.table_memory import add_table
from ecrec.training import Session, connect
from ecrec.training.optimizers import RowWiseAdagrad
from ecrec.training.parts import GivenGradients, Share
from ecrec.transport.client_node import query

SPARSE = 0.06
"""Part of a sparse table's rows that are touched: 3 of 50 million."""
TOUCHED_AT_ONCE = 50_000
COMPARED = 20_000
"""Lost rows that are compared with what they were before."""
LOOK_S = 0.05
BEFORE_S = 5.0
SETTLE_S = 2.0
IDLE_S = 1.5
"""Longer than `foreground_ms`: without training, nobody has asked for anything lately."""
FLOOR_ROWS = 8192
"""In each class of the floor: about as many as in a repair."""
FLOOR_ROUNDS, FLOOR_SHARD = 5, 0
ALL_CLASSES = 2**64 - 1
SEED = 7


class Rows:
    """A part of a session, and its own fetch: some rows of the one table, in order of shard."""

    def __init__(self, table: int, rows: int, code: CodeSpec, dim: int, ids: Any) -> None:
        shards = code.k + code.r
        planned, counts, _ = _native.plan_batch(
            ids, np.array([0, len(ids)]), np.zeros(1, np.int32), np.array([rows]), np.array([code.k], np.int32), shards
        )
        ends = np.concatenate(([0], np.cumsum(counts[:, 0]))).tolist()
        values = np.random.default_rng(len(ids)).standard_normal((len(planned), dim), np.float32)
        self.shares: dict[int, Share] = {}
        self.gradients: dict[int, Share] = {}
        self.answers: dict[int, bytes] = {}
        for shard, count in enumerate(counts[:, 0].tolist()):
            part = slice(ends[shard], ends[shard + 1])
            if count:
                section = Section([table], [count])
                self.shares[shard] = Share(section, planned[part])
                self.gradients[shard] = Share(section, planned[part], values[part].reshape(-1))

    def fill(self, answers: Mapping[int, Any]) -> None:
        self.answers = dict(answers)


class Look(NamedTuple):
    """What the scheduler says at a time of the monotonic clock."""

    at: float
    state: ClusterState


class Watcher:
    """A thread that asks the scheduler all the time."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ending = threading.Event()
        self._request = 0
        self.looks: list[Look] = [self._look()]
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def _look(self) -> Look:
        self._request += 1
        state = query(self._endpoint, ClusterQuery(self._request), timeout_ms=30_000)
        assert isinstance(state, ClusterState)
        return Look(time.monotonic(), state)

    def _run(self) -> None:
        while not self._ending.wait(LOOK_S):
            try:
                self.looks.append(self._look())
            except ClusterError as error:
                print(f"the scheduler does not answer: {error}", flush=True)

    def is_whole(self, shard: int, epoch: int) -> bool:
        """Whether all shards are up, this one in a later incarnation."""
        shards = self.looks[-1].state.shards
        return all(s.state == UP and (s.shard != shard or s.epoch > epoch) for s in shards)

    def replaced_at(self, shard: int, epoch: int) -> float:
        """When a later incarnation of the shard was first seen to have its place; nan if none was."""
        for look in self.looks:
            if any(s.shard == shard and s.epoch > epoch and s.state != DOWN for s in look.state.shards):
                return look.at
        return math.nan

    def close(self) -> None:
        self._ending.set()
        self._thread.join()


def server_processes() -> dict[int, list[str]]:
    """Process id -> command line of each parameter server of this process."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "ecrec.launch.servers.ps" in words:
            found[process.pid] = words
    return found


def resident_bytes() -> dict[int, int]:
    found = {}
    for pid in server_processes():
        try:
            found[pid] = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return found


def processor_s() -> dict[int, float]:
    """Processor seconds of each server process so far."""
    found = {}
    for pid in server_processes():
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        found[pid] = times.user + times.system
    return found


def kill(shard: int) -> None:
    """SIGKILL to the server of a shard."""
    for pid, words in server_processes().items():
        if words[words.index("--shard") + 1] == str(shard):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------ the floor
class Floor(NamedTuple):
    """Processor seconds of a lost byte, of data and of parity, and what they consist of."""

    data: float
    parity: float
    pieces: dict[str, float]
    """Of a byte that is read and coded, passes a socket, is checksummed, decoded, restored, folded."""

    def seconds(self, data_bytes: float, parity_bytes: float) -> float:
        """With all processors at work all the time."""
        return (data_bytes * self.data + parity_bytes * self.parity) / (os.cpu_count() or 1)


def measure_floor(code: CodeSpec, dim: int) -> Floor:
    """The best of several rounds, in each of which the first server's rows are recovered, each class in one piece."""
    shards = code.k + code.r
    rows = FLOOR_ROWS * code.k * shards
    spec = TableSpec("rows", rows, dim, code, RowWiseAdagrad(0.02).spec, "uniform", init_seed=SEED, init_scale=0.1)
    placement = Placement(shards)
    placement.add(code)
    stores = [_store(shard, shards, spec, recovered=True) for shard in range(shards)]
    gradients = Rows(0, rows, code, dim, np.arange(rows)).gradients
    for source, store in enumerate(stores):
        window = Window(store)
        for peer in range(shards):
            for stripe in placement.classes:
                window.set_limit(peer, stripe.class_id, Window.UNLIMITED)
        section, ids, values = gradients[source]
        assert values is not None
        store.apply(np.array(section.tables, np.int32), np.array(section.counts), ids, values, window)
        for peer in range(shards):
            stores[peer].fold(source, ALL_CLASSES, *window.buffer(peer).take())
    rounds = []
    for _ in range(FLOOR_ROUNDS):
        spent: dict[str, list[float]] = {}
        replacement = _store(FLOOR_SHARD, shards, spec, recovered=False)
        for stripe in placement.classes:
            recover = _repair if FLOOR_SHARD in stripe.data else _seed
            recover(stores, stripe, replacement, spent)
        rounds.append({name: used / nbytes for name, (used, nbytes) in spent.items()})
    best = {name: min(each[name] for each in rounds) for name in rounds[0]}
    moved = best["checksum"] * 2 + best["socket"]
    k = code.k
    data = (k - 1) * best["code"] + k * moved + best["decode"] + best["restore"]
    return Floor(data, k * (best["code"] + moved + best["fold"]), best)


def _store(shard: int, shards: int, spec: TableSpec, recovered: bool) -> Store:
    store = Store(shard, shards)
    add_table(store, spec, recovered)
    return store


def _repair(stores: list[Store], stripe: Stripe, replacement: Store, spent: dict[str, list[float]]) -> None:
    """All of a class, as in `ecrec.protocol.repair`: the first parity row is the sum of the data rows."""
    class_id, holder = stripe.class_id, stores[stripe.parity[0]]
    rows = [_coded(stores[member], class_id, spent) for member in stripe.data if member != FLOOR_SHARD]
    with _timed(spent, "decode", rows[0][1].nbytes):
        lost = RowBuffer(holder)
        lost.fold(1, *Capture(holder, class_id, 0, holder.class_size(class_id)).take())
        for keys, records in rows:
            lost.fold(1, keys, records)
        keys, records = lost.take_nonzero()
    with _timed(spent, "restore", records.nbytes):
        replacement.restore(keys, records)
        replacement.mark_recovered(class_id, 0, replacement.class_size(class_id))
    with _timed(spent, "checksum", records.nbytes):
        _native.crc32c(records)
    ends = socket.socketpair()
    with ends[0], ends[1], _timed(spent, "socket", records.nbytes):
        _pass(records, *ends)


def _seed(stores: list[Store], stripe: Stripe, replacement: Store, spent: dict[str, list[float]]) -> None:
    """The parity rows of a class, as in `ecrec.protocol.seeding`."""
    for member in stripe.data:
        keys, records = _coded(stores[member], stripe.class_id, spent)
        with _timed(spent, "fold", records.nbytes):
            replacement.fold(member, ALL_CLASSES, keys, records)


def _coded(store: Store, class_id: int, spent: dict[str, list[float]]) -> tuple[Any, Any]:
    start = time.process_time()
    keys, records = store.coded_rows(class_id, 0, store.class_size(class_id))
    _add(spent, "code", time.process_time() - start, records.nbytes)
    return keys, records


@contextlib.contextmanager
def _timed(spent: dict[str, list[float]], name: str, nbytes: int) -> Iterator[None]:
    """Processor time, of all threads: what others do on this machine counts less than in time by the clock."""
    start = time.process_time()
    yield
    _add(spent, name, time.process_time() - start, nbytes)


def _add(spent: dict[str, list[float]], name: str, used: float, nbytes: int) -> None:
    so_far = spent.setdefault(name, [0.0, 0.0])
    so_far[0] += used
    so_far[1] += nbytes


def _pass(block: Any, out: socket.socket, into: socket.socket) -> None:
    """All of it through a connection, by two threads."""
    for end in (out, into):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    thread = threading.Thread(target=out.sendall, args=(block,))
    thread.start()
    left, buffer = block.nbytes, bytearray(1 << 20)
    while left:
        left -= into.recv_into(buffer, min(left, len(buffer)))
    thread.join()


# ------------------------------------------------------------------ the run
def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run, print; 1 if a row differs or parity does not fit."""
    args = _parser().parse_args(arguments)
    code = CodeSpec.parse(args.code)
    shards = code.k + code.r
    print(describe_machine(machine()), flush=True)
    floor = measure_floor(code, args.dim)
    pieces = ", ".join(f"{name} {1e-9 / each:.1f}" for name, each in floor.pieces.items())
    print(f"of one processor, GB/s: {pieces}", flush=True)
    with Scratch("ecrec-") as directory, LocalCluster(ClusterSettings(shards, directory)) as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        with Keeper(cluster), connect(endpoint, code=code, wait_timeout_ms=600_000) as session:
            report = run(args, code, session, endpoint)
            if args.verify:
                outcome = scrub(endpoint, 600.0)
                report["stripes_compared"], report["parity_ok"] = outcome.stripes, outcome.ok
                print(f"scrub: {outcome.stripes:,} stripes compared, parity fits: {outcome.ok}")
    lost = report["lost_gb"]
    floor_s = floor.seconds(report["lost_data_gb"] * 1e9, report["lost_parity_gb"] * 1e9)
    report["floor"], report["floor_s"] = floor._asdict(), floor_s
    print(f"floor of this recovery: {floor_s:.2f} s, {lost / floor_s:.2f} GB/s", end="; ")
    print(f"it took {report['whole_s'] / floor_s:.1f} times as long")
    write_json(args.report, report)
    return 0 if report.get("parity_ok", True) and report.get("rows_equal", True) else 1


def run(args: argparse.Namespace, code: CodeSpec, session: Session, endpoint: str) -> dict[str, Any]:
    record_bytes = (args.dim * 4 + 4 + 15) // 16 * 16
    touched = max(int(args.gb * 1e9 / record_bytes), args.step_rows)
    rows = int(touched / SPARSE) if args.sparse else touched
    spec = TableSpec("rows", rows, args.dim, code, RowWiseAdagrad(0.02).spec, "uniform", init_seed=SEED, init_scale=0.1)
    (table,) = session.create_tables([spec])
    part = GivenGradients()
    session.register(part)
    rng = np.random.default_rng(SEED)
    ids = rng.permutation(rng.choice(rows, touched, replace=False)) if args.sparse else rng.permutation(rows)
    start = time.monotonic()
    for some in np.array_split(ids, max(1, touched // TOUCHED_AT_ONCE)):
        part.next = Rows(table, rows, code, args.dim, some).gradients
        session.push()
    session.flush()
    print(f"touched {touched:,} of {rows:,} rows in {time.monotonic() - start:.1f} s", flush=True)
    batches = [Rows(table, rows, code, args.dim, rng.choice(ids, args.step_rows, replace=False)) for _ in range(16)]
    time.sleep(args.settle)
    watcher = Watcher(endpoint)
    try:
        return _measure(args, session, part, watcher, batches, Rows(table, rows, code, args.dim, ids[:COMPARED]))
    finally:
        watcher.close()


def _measure(
    args: argparse.Namespace,
    session: Session,
    part: GivenGradients,
    watcher: Watcher,
    batches: list[Rows],
    sample: Rows,
) -> dict[str, Any]:
    steps: list[float] = []
    shard = args.shard

    def train(until: Any) -> None:
        while not until():
            if not args.training:
                time.sleep(LOOK_S)
                session.pump()
                continue
            batch = batches[len(steps) % len(batches)]
            session.fetch(batch)
            part.next = batch.gradients
            session.push()
            steps.append(time.monotonic())

    deadline = time.monotonic() + (args.before if args.training else 1.0)
    train(lambda: time.monotonic() > deadline)
    session.flush()
    session.fetch(sample)
    before_rows = dict(sample.answers)
    if not args.training:
        rested = time.monotonic() + IDLE_S
        train(lambda: time.monotonic() > rested)
    before = watcher.looks[-1]
    figures = {s.shard: s.figures for s in before.state.shards}
    epoch = next(s.epoch for s in before.state.shards if s.shard == shard)
    lost_data, lost_parity = (figures[shard].get(f"{kind}_bytes_touched", 0.0) for kind in ("data", "parity"))
    lost = lost_data + lost_parity
    kept = _memory(before)
    mark = len(steps)
    used = processor_s()
    killed = time.monotonic()
    kill(shard)
    train(lambda: watcher.is_whole(shard, epoch) or time.monotonic() > killed + args.limit)
    whole_s = time.monotonic() - killed
    cpu_s = sum(seconds - used.get(pid, 0.0) for pid, seconds in processor_s().items())
    during = [at for at in steps[mark:] if at <= killed + whole_s]
    replaced_s = watcher.replaced_at(shard, epoch) - killed
    if not watcher.is_whole(shard, epoch):
        print(f"FAILED: not whole after {args.limit} s")
    train(lambda: time.monotonic() > killed + whole_s + 2.0)
    report: dict[str, Any] = {
        "lost_gb": lost / 1e9,
        "lost_data_gb": lost_data / 1e9,
        "lost_parity_gb": lost_parity / 1e9,
        "whole_s": whole_s,
        "gb_s": lost / 1e9 / whole_s,
        "replaced_s": replaced_s,
        "servers_cpu_s": cpu_s,
        "memory_before": kept,
        "memory_after": _memory(watcher.looks[-1]),
    }
    rate = lost / 1e9 / (whole_s - replaced_s)
    print(f"lost {lost / 1e9:.3f} GB; whole after {whole_s:.2f} s: {lost / 1e9 / whole_s:.3f} GB/s", end="; ")
    print(f"{replaced_s:.2f} s of it until another process was there, then {rate:.3f} GB/s")
    print(f"the servers used {cpu_s:.2f} s of processor time meanwhile")
    if args.training:
        quiet = mark / args.before
        busy = len(during) / whole_s
        gaps = np.diff([killed, *during, killed + whole_s])
        served = sum(at > killed + replaced_s for at in during) / (whole_s - replaced_s)
        report.update(steps_before=quiet, steps_during=busy, steps_ratio=busy / quiet, served_ratio=served / quiet)
        report["longest_pause_s"] = float(gaps.max())
        print(f"steps/s: before {quiet:.1f}, until whole {busy:.1f} ({busy / quiet:.2f})", end="; ")
        print(f"since another process was there {served:.1f} ({served / quiet:.2f})", end="; ")
        print(f"longest pause {gaps.max():.2f} s")
    else:
        session.fetch(sample)
        equal = all(bytes(sample.answers[s]) == bytes(before_rows[s]) for s in before_rows)
        report["rows_equal"] = equal
        print(f"{COMPARED:,} rows are the same as before: {equal}")
    for name in ("memory_before", "memory_after"):
        memory = report[name]
        print(
            f"{name.replace('_', ' ')}: servers have {memory['resident'] / 1e6:.0f} MB resident, rows and parity "
            f"{memory['rows'] / 1e6:.0f} MB of it, data rows {memory['data'] / 1e6:.0f} MB; the servers say "
            f"{memory['said'] / 1e6:.0f} MB"
        )
    return report


def _memory(look: Look) -> dict[str, float]:
    figures = [shard.figures for shard in look.state.shards]
    data = sum(f.get("data_bytes_touched", 0.0) for f in figures)
    parity = sum(f.get("parity_bytes_touched", 0.0) for f in figures)
    said = sum(f.get("resident_bytes", 0.0) for f in figures)
    return {"resident": float(sum(resident_bytes().values())), "rows": data + parity, "data": data, "said": said}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=0.1, help="of touched rows, all servers together")
    parser.add_argument("--sparse", action="store_true", help=f"a random {SPARSE:.0%}% of the rows is touched")
    parser.add_argument("--training", action="store_true", help="pulls and pushes go on meanwhile")
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--dim", type=int, default=64, help="float32 weights of a row; row-wise Adagrad")
    parser.add_argument("--step-rows", type=int, default=1000, help="rows of a step of training")
    parser.add_argument("--shard", type=int, default=2, help="the server that is killed")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds between touching and training")
    parser.add_argument("--before", type=float, default=BEFORE_S, help="seconds of training before the kill")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a recovery is given up")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="no scrub at the end")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

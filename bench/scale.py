"""What a large cluster costs each of its processes: the real machines of all of them in one process, without sockets.

    python bench/scale.py                                      # 5 to 300 servers, a few minutes
    python bench/scale.py --shards 5 50 500 1000 --workers 1 4 --plot scale.svg --report scale.json

For each number of servers a scheduler, the servers (in coding groups of --group) and workers are made, as the machines
of `ecrec/protocol`, which know no sockets: this script hands their messages on. Workers pull and push random rows of
one table, as many a step whatever the number of servers; windows, acknowledgements and heartbeats go on as they do in a
cluster, in simulated time (--step-ms a step). Then one server dies, and another process takes its place. Counted are
messages and bytes, by who sends them to whom, and processor time, by who handles them.

It tells what of the protocol grows with the cluster. Not in it: sockets, checksums and copies of the transport, and
networks; `bench/pull_push.py` has those for five servers. The last lines fit, for a step and a server, messages and
processor time as fixed + a * workers, and say what follows for 1,000 servers and 200 workers.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.running import write_json
from ecrec.bench.harness import machine
from ecrec.bench.report import describe_machine
from ecrec.checkpoint.rows import shards_of_rows
from ecrec.protocol import wire
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    Connect,
    Connection,
    Disconnected,
    Effect,
    Event,
    Failed,
    Persist,
    PullDone,
    Received,
    Send,
    Stop,
    Tick,
)
from ecrec.protocol.messages import SCHEDULER_ADDRESS, SHARD, UP, Address, Section
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

TICK_MS = 20.0
SETTLE_TICKS = 3000
DIM = 64
ROWS_OF_SHARD = 2000
FAR_SHARDS, FAR_WORKERS = 1000, 200
SCHEDULER, SERVER, WORKER = "scheduler", "server", "worker"


class Spent(NamedTuple):
    """What a span of time took: (from, to) -> messages and bytes; role -> processor seconds."""

    messages: Counter[tuple[str, str]]
    nbytes: Counter[tuple[str, str]]
    seconds: defaultdict[str, float]


class Wires:
    """All machines of a cluster, and their messages, one after the other."""

    def __init__(self, shards: int, group: int, workers: int, code: CodeSpec) -> None:
        self.now_ms = 0.0
        self.n = group
        self.scheduler = SchedulerMachine(group, shards // group, ProtocolConfig(), None, "scale")
        self.processes: dict[str, ShardMachine] = {}
        self.clients = [ClientMachine(rank, f"worker-{rank}") for rank in range(workers)]
        self.queue: deque[tuple[str, Any, Event]] = deque()
        self.answers: dict[int, set[int]] = defaultdict(set)
        self.spent = Spent(Counter(), Counter(), defaultdict(float))
        self._headers: dict[type, int] = {}
        self._started = 0
        self.state_bytes = 0
        """Of what the scheduler persisted last."""
        for shard in range(shards):
            self.start(shard)
        self.until(self.all_up, "the groups")
        self.until(lambda: all(client.ready for client in self.clients), "the workers")
        spec = TableSpec(
            "t", shards * ROWS_OF_SHARD, DIM, code, OptimizerSpec("sgd", (0.1,)), "uniform", 1, 0.1, 0.0
        )  # fmt: skip
        for client in self.clients:
            self.perform(WORKER, client, client.create_table(spec))
        self.until(lambda: all(client.table_ready("t") for client in self.clients), "the table")
        self.spec, self.table = spec, self.clients[0].tables["t"][0]

    def start(self, wanted: int) -> None:
        """A process that wants to be a shard."""
        name = f"process-{self._started}"
        self._started += 1
        self.processes[name] = ShardMachine(name, f"inproc://{name}", wanted)

    def all_up(self) -> bool:
        groups = self.scheduler.state.groups
        return bool(groups) and all(place.state == UP for group in groups for place in group.places)

    # ------------------------------------------------------------------ messages
    def perform(self, role: str, source: Any, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(role, source, effect)
            elif isinstance(effect, Connect) and isinstance(source, ShardMachine):
                self.queue.append((SERVER, source, Connection(effect.address, up=True)))
            elif isinstance(effect, Persist):
                self.state_bytes = len(effect.state)
            elif isinstance(effect, PullDone):
                self.answers[source.worker].add(effect.ticket)
            elif isinstance(effect, Stop | Failed):
                raise SystemExit(f"{source.address} has ended: {effect.reason}")

    def _send(self, role: str, source: Any, effect: Send) -> None:
        to = effect.to
        target: Any
        if to == SCHEDULER_ADDRESS:
            kind, target = SCHEDULER, self.scheduler
        elif to.role == SHARD:
            kind, target = SERVER, self._server(to)
        else:
            kind, target = WORKER, self.clients[to.id]
        if target is None:
            return
        if type(effect.message) not in self._headers:
            header, *_ = wire.encode(effect.message, effect.frames, source.address, to)
            self._headers[type(effect.message)] = memoryview(header).nbytes
        self.spent.messages[role, kind] += 1
        frames = sum(memoryview(frame).nbytes for frame in effect.frames)
        self.spent.nbytes[role, kind] += self._headers[type(effect.message)] + frames
        self.queue.append((kind, target, Received(source.address, effect.message, effect.frames)))

    def _server(self, address: Address) -> ShardMachine | None:
        if address.id < 0:
            found = [each for each in self.scheduler.admission.candidates.values() if each.address == address]
            return next((p for each in found for p in self.processes.values() if p.endpoint == each.endpoint), None)
        group, shard = divmod(address.id, self.n)
        place = self.scheduler.state.groups[group].places[shard]
        return self.processes.get(place.process) if place.epoch == address.epoch else None

    def give(self, role: str, target: Any, event: Event) -> None:
        begin = time.process_time()
        effects = target.handle(event, self.now_ms)
        self.spent.seconds[role] += time.process_time() - begin
        self.perform(role, target, effects)

    def run(self) -> None:
        """Deliver all there is."""
        while self.queue:
            self.give(*self.queue.popleft())

    def tick(self, ms: float = TICK_MS) -> None:
        self.now_ms += ms
        self.give(SCHEDULER, self.scheduler, Tick())
        for process in list(self.processes.values()):
            self.give(SERVER, process, Tick())
        for client in self.clients:
            self.give(WORKER, client, Tick())
        self.run()

    def until(self, done: Callable[[], bool], what: str) -> None:
        for _ in range(SETTLE_TICKS):
            if done():
                return
            self.tick()
        raise SystemExit(f"waited too long for {what}")

    # ------------------------------------------------------------------ work
    def step(self, rows: int, draw: np.random.Generator, step_ms: float) -> None:
        """Each worker pulls rows and pushes their gradients."""
        tickets: list[tuple[ClientMachine, int]] = []
        parts = []
        for client in self.clients:
            ids = np.unique(draw.integers(0, self.spec.rows, rows))
            by_shard = self._by_shard(ids)
            parts.append(by_shard)
            asked = {shard: (sections, frames[:1]) for shard, (sections, frames) in by_shard.items()}
            begin = time.process_time()
            ticket, effects = client.pull(asked, exact=False)
            self.spent.seconds[WORKER] += time.process_time() - begin
            self.perform(WORKER, client, effects)
            tickets.append((client, ticket))
        self.run()
        self.until(lambda: all(ticket in self.answers[client.worker] for client, ticket in tickets), "a pull")
        self.until(lambda: all(client.can_push for client in self.clients), "room for a push")
        for client, by_shard in zip(self.clients, parts, strict=True):
            begin = time.process_time()
            effects = client.push(by_shard)
            self.spent.seconds[WORKER] += time.process_time() - begin
            self.perform(WORKER, client, effects)
        self.run()
        left_ms = step_ms
        while left_ms > 0:
            self.tick(min(TICK_MS, left_ms))
            left_ms -= TICK_MS

    def _by_shard(self, ids: Any) -> dict[int, Any]:
        shards = shards_of_rows(self.spec, self.n, len(self.scheduler.state.groups), ids)
        order = np.argsort(shards, kind="stable")
        found, starts = np.unique(shards[order], return_index=True)
        values = np.full((len(ids), DIM), 1e-3, np.float32)
        pieces = np.split(ids[order], starts[1:])
        return {
            int(shard): ([Section([self.table], [len(mine)])], (mine, values[: len(mine)].reshape(-1)))
            for shard, mine in zip(found, pieces, strict=True)
        }

    def measure(self, work: Callable[[], None]) -> Spent:
        """What some work took."""
        self.spent = Spent(Counter(), Counter(), defaultdict(float))
        work()
        return self.spent


def run_one(args: argparse.Namespace, shards: int, workers: int) -> dict[str, Any]:
    """All figures of a cluster of one size."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cluster = Wires(shards, args.group, workers, CodeSpec.parse(args.code))
    draw = np.random.default_rng(7)
    for _ in range(2):
        cluster.step(args.rows, draw, args.step_ms)
    steps = args.steps

    def work() -> None:
        for _ in range(steps):
            cluster.step(args.rows, draw, args.step_ms)

    spent = cluster.measure(work)
    idle = cluster.measure(lambda: rest(cluster))
    death = cluster.measure(lambda: die(cluster))
    figures = {
        "shards": shards, "workers": workers, "rows_a_step": args.rows,
        "server_us": 1e6 * spent.seconds[SERVER] / steps / shards,
        "worker_us": 1e6 * spent.seconds[WORKER] / steps / workers,
        "scheduler_us": 1e6 * spent.seconds[SCHEDULER] / steps,
        "idle_scheduler_ms_a_s": 1e3 * idle.seconds[SCHEDULER],
        "idle_server_ms_a_s": 1e3 * idle.seconds[SERVER] / shards,
        "death_scheduler_ms": 1e3 * death.seconds[SCHEDULER], "death_worker_ms": 1e3 * death.seconds[WORKER] / workers,
        "rss_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
        "state_bytes": cluster.state_bytes,
    }  # fmt: skip
    for (source, to), count in sorted(spent.messages.items()):
        each = {SERVER: shards, WORKER: workers, SCHEDULER: 1}[source]
        figures[f"messages {source} to {to}"] = count / steps / each
        figures[f"bytes {source} to {to}"] = spent.nbytes[source, to] / steps / each
    return figures


def rest(cluster: Wires) -> None:
    """A second in which nobody trains."""
    for _ in range(round(1000 / TICK_MS)):
        cluster.tick()


def die(cluster: Wires) -> None:
    """Shard 0 dies; another process takes its place; until all is whole."""
    places = cluster.scheduler.state.groups[0].places
    epoch = places[0].epoch
    del cluster.processes[places[0].process]
    address = Address(SHARD, 0, epoch)
    cluster.give(SCHEDULER, cluster.scheduler, Disconnected(address))
    for other in places[1:]:
        cluster.give(SERVER, cluster.processes[other.process], Connection(address, up=False))
    cluster.start(0)
    cluster.until(lambda: cluster.all_up() and places[0].epoch > epoch, "the death")


COLUMNS = (
    ("servers", "shards", "d"), ("workers", "workers", "d"), ("server us/step", "server_us", ".0f"),
    ("worker us/step", "worker_us", ".0f"), ("scheduler us/step", "scheduler_us", ".0f"),
    ("messages of a server", "server_messages", ".1f"), ("of a worker", "worker_messages", ".0f"),
    ("kB of a server", "server_kb", ".1f"), ("death: scheduler ms", "death_scheduler_ms", ".1f"),
    ("worker ms", "death_worker_ms", ".1f"), ("MB in all", "rss_mb", ".0f"),
)  # fmt: skip


def summed(figures: dict[str, Any]) -> dict[str, Any]:
    """With what a server and a worker send in a step, to everybody."""
    for role in (SERVER, WORKER):
        figures[f"{role}_messages"] = sum(v for k, v in figures.items() if k.startswith(f"messages {role} to"))
        figures[f"{role}_kb"] = sum(v for k, v in figures.items() if k.startswith(f"bytes {role} to")) / 1e3
    return figures


def fit(found: Sequence[dict[str, Any]], figure: str) -> tuple[float, float]:
    """figure = fixed + a * workers, by least squares over all runs."""
    matrix = np.array([[1.0, each["workers"]] for each in found])
    values = np.array([each[figure] for each in found])
    (fixed, per_worker), *_ = np.linalg.lstsq(matrix, values, rcond=None)
    return float(fixed), float(per_worker)


def plot(found: Sequence[dict[str, Any]], path: str, caption: str) -> None:
    """Cost of a step, for each server and each worker, against the number of servers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for workers in sorted({each["workers"] for each in found}):
        mine = [each for each in found if each["workers"] == workers]
        sizes = [each["shards"] for each in mine]
        axes.plot(sizes, [each["server_us"] for each in mine], marker="o", label=f"a server, {workers} workers")
        axes.plot(
            sizes, [each["worker_us"] for each in mine], marker="x", linestyle="--", label=f"a worker, of {workers}"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("servers")
    axes.set_ylabel("processor time of a step in the protocol, us")
    axes.grid(linewidth=0.3, which="both")
    axes.legend(fontsize=7)
    figure.text(0.01, 0.01, caption, fontsize=6)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    about = describe_machine(machine())
    print(about, flush=True)
    print(" ".join(f"{name:>{max(8, len(name))}}" for name, _, _ in COLUMNS), flush=True)
    found = []
    for workers in args.workers:
        for shards in args.shards:
            found.append(summed(run_one(args, shards - shards % args.group, workers)))
            cells = [f"{format(found[-1][key], form):>{max(8, len(name))}}" for name, key, form in COLUMNS]
            print(" ".join(cells), flush=True)
    if len({each["workers"] for each in found}) > 1:
        large = [each for each in found if each["shards"] == max(each["shards"] for each in found)]
        for name, figure, unit in (("messages", "server_messages", ""), ("processor time", "server_us", " us")):
            fixed, per_worker = fit(large, figure)
            far = fixed + per_worker * FAR_WORKERS
            print(
                f"{name} of a server and step, {large[0]['shards']} servers: {fixed:.1f} + {per_worker:.2f} * workers"
                f"{unit}; {FAR_WORKERS} workers: {far:.0f}{unit}"
            )
    if args.plot:
        plot(found, args.plot, about)
    write_json(args.report, {"machine": machine(), "runs": found})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[5, 20, 100, 300], help="servers of all groups")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--group", type=int, default=5, help="servers of a coding group")
    parser.add_argument("--code", default="4+1")
    parser.add_argument(
        "--rows", type=int, default=4000, help="rows of a worker's step, whatever the number of servers"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=100.0, help="simulated time of a step")
    parser.add_argument("--plot", help="write the plot here; .svg or .png")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The server programs as real processes, one worker, and the checks that follow a fault. conftest.py has fixtures."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from forwarder import Forwarder

from ecrec.errors import ClusterError
from ecrec.launch.tools.verify import scrub
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Failed, PullDone
from ecrec.protocol.messages import UP, ClusterQuery, ClusterState, Section
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.transport.client_node import ClientNode, query
from ecrec.transport.curve import CurveKeys

DEADLINE_S = 30.0
SHARDS = 5


class Processes:
    """A cluster's processes, each with a log; all are killed at the end."""

    def __init__(self, directory: Path, transport: str) -> None:
        self.directory = directory
        self.transport = transport
        self.running: list[subprocess.Popen[str]] = []
        self.scheduler_process: subprocess.Popen[str] | None = None
        self.endpoint = ""
        self.keys: CurveKeys | None = None
        """For the questions to the scheduler."""

    def program(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return self._start("-m", f"ecrec.launch.servers.{name}", *arguments, **environment)

    def proxied_shard(self, told: str, *arguments: str) -> subprocess.Popen[str]:
        """A server of which everybody is told this endpoint."""
        return self._start(str(Path(__file__).parent / "proxied_ps.py"), *arguments, PROXY_ENDPOINT=told)

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        with (self.directory / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            )
        self.running.append(process)
        return process

    def bind(self) -> str:
        if self.transport == "tcp":
            return "tcp://127.0.0.1:0"
        return f"ipc://{self.directory}/{len(self.running)}.sock"

    def scheduler(self, *more: str) -> None:
        arguments = ("--bind", self.endpoint or self.bind(), "--shards", str(SHARDS))
        process = self.program("scheduler", *arguments, "--state", str(self.directory / "state"), *more)
        ready = ready_line(process)
        assert ready["ready"] == "scheduler"
        self.scheduler_process, self.endpoint = process, ready["endpoint"]

    def shard(self, *arguments: str) -> subprocess.Popen[str]:
        return self.program("ps", "--scheduler", self.endpoint, "--bind", self.bind(), *arguments)

    def all_shards(self) -> list[subprocess.Popen[str]]:
        shards = [self.shard("--shard", str(number)) for number in range(SHARDS)]
        # Figures come with the first heartbeat: the process knows its place.
        self.wait(lambda state: all(shard.state == UP and shard.figures for shard in state.shards))
        return shards

    def wait(self, until: Callable[[ClusterState], bool], deadline_s: float = DEADLINE_S) -> ClusterState:
        """Ask the scheduler until the condition holds."""
        end = time.monotonic() + deadline_s
        while True:
            state = query(self.endpoint, ClusterQuery(secrets.randbelow(1 << 31)), 1000 * deadline_s, self.keys)
            assert isinstance(state, ClusterState)
            if until(state):
                return state
            assert time.monotonic() < end, f"not in time: {state}; logs: {self.logs()}"

    def logs(self) -> str:
        """What all processes said, and how those ended that have."""
        ends = "\n".join(f"{number}: exit code {process.poll()}" for number, process in enumerate(self.running))
        return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(self.directory.glob("*.log"))) + ends

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def ready_line(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout
    line: dict[str, str] = json.loads(process.stdout.readline())
    return line


class Worker:
    """A worker that adds to all rows of one table and keeps its own copy."""

    def __init__(self, endpoint: str, rows: int = 1000, dim: int = 8, keys: CurveKeys | None = None) -> None:
        self.machine = ClientMachine(0, secrets.token_hex(8))
        self.node = ClientNode(endpoint, self.machine, keys)
        self.spec = TableSpec("t", rows, dim, CodeSpec(4, 1), OptimizerSpec("sgd", (1.0,)), "zeros")
        stripes, slots = np.divmod(np.arange(rows), 4)
        self.places = (stripes + slots) % SHARDS
        self.expected = np.zeros((rows, dim), np.float32)
        self.rng = np.random.default_rng(7)

    def until(self, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            for effect in self.node.pump(20):
                assert not isinstance(effect, Failed), effect
            assert time.monotonic() < end

    def flush(self) -> None:
        """Until every push is durable."""
        self.node.perform(self.machine.flush())
        self.until(lambda: self.machine.durable)

    def start(self) -> None:
        self.until(lambda: self.machine.ready)
        self.node.perform(self.machine.create_table(self.spec))
        self.until(lambda: self.machine.table_ready("t"))

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and gradients of the next push: small integers, so that float32 sums are exact."""
        rows = self.rng.choice(self.spec.rows, size, replace=False)
        return rows, self.rng.integers(-8, 8, (size, self.spec.dim)).astype(np.float32)

    def push(self, size: int = 200) -> None:
        self.until(lambda: self.machine.can_push)
        rows, gradients = self.draw(size)
        self.expected[rows] -= gradients
        by_shard = {}
        for shard in range(SHARDS):
            mine = self.places[rows] == shard
            section = Section([0], [int(mine.sum())])
            by_shard[shard] = ([section], (rows[mine].astype(np.int64), gradients[mine]))
        self.node.perform(self.machine.push(by_shard))

    def pull(self) -> np.ndarray:
        """All rows."""
        asked = {shard: np.flatnonzero(self.places == shard).astype(np.int64) for shard in range(SHARDS)}
        ticket, effects = self.machine.pull(
            {shard: ([Section([0], [len(rows)])], (rows,)) for shard, rows in asked.items()}, exact=True
        )
        self.node.perform(effects)
        end = time.monotonic() + DEADLINE_S
        while True:
            for effect in self.node.pump(20):
                assert isinstance(effect, PullDone), effect
                assert effect.ticket == ticket
                out = np.empty_like(self.expected)
                for shard, frames in effect.answers.items():
                    out[asked[shard]] = np.frombuffer(frames[0], np.float32).reshape(-1, self.spec.dim)
                return out
            assert time.monotonic() < end


class Cluster(Processes):
    """Processes with a worker, and the checks that follow a fault."""

    worker: Worker | None = None

    def start(self, *scheduler_options: str, rows: int = 1000, dim: int = 8) -> list[subprocess.Popen[str]]:
        self.scheduler(*scheduler_options)
        shards = self.all_shards()
        self.worker = Worker(self.endpoint, rows, dim)
        self.worker.start()
        return shards

    def stop_scheduler(self) -> None:
        assert self.scheduler_process
        self.scheduler_process.kill()
        self.scheduler_process.wait()

    def push(self, count: int) -> None:
        assert self.worker
        for _ in range(count):
            self.worker.push()

    def whole(self, epochs: dict[int, int] | None = None) -> ClusterState:
        """Wait until all shards are up, those named with the epoch given."""
        return self.wait(
            lambda state: (
                all(s.state == UP for s in state.shards)
                and all(state.shards[shard].epoch == epoch for shard, epoch in (epochs or {}).items())
            )
        )

    def check(self, least_pushes: int) -> None:
        """Nothing acknowledged is lost, all rows are exact, all parity fits."""
        worker = self.worker
        assert worker
        worker.flush()
        acked = worker.machine.acked
        assert min(acked.values()) >= least_pushes
        assert np.array_equal(worker.pull(), worker.expected), self.logs()
        state = self.wait(lambda state: all(s.state == UP for s in state.shards))
        state = self.wait(lambda state: all(s.watermarks.get(0, 0) >= acked[s.shard] for s in state.shards))
        lost = sum(max(0, acked[s.shard] - s.watermarks.get(0, 0)) for s in state.shards)
        assert lost == 0
        try:
            outcome = scrub(self.endpoint, DEADLINE_S)
        except ClusterError as error:
            raise AssertionError(f"{error}; logs: {self.logs()}") from error
        assert outcome.ok is True, outcome
        assert outcome.stripes > 0

    def close(self) -> None:
        if self.worker is not None:
            self.worker.node.close()
        super().close()


class Proxied(Cluster):
    """A cluster of which two shards reach the scheduler, and are reached by everybody, through proxies."""

    def __init__(self, directory: Path, transport: str = "tcp") -> None:
        super().__init__(directory, transport)
        self.proxies: list[Forwarder] = []

    def proxied(self, number: int) -> None:
        # An address of its own: a port that is free again may be the next one that somebody gets there.
        with socket.create_server(("127.0.0.2", 0)) as free:
            bind = f"tcp://127.0.0.2:{free.getsockname()[1]}"
        to_scheduler, to_shard = Forwarder(self.endpoint), Forwarder(bind)
        self.proxies += [to_scheduler, to_shard]
        arguments = ("--scheduler", to_scheduler.endpoint, "--bind", bind, "--shard", str(number))
        self.proxied_shard(to_shard.endpoint, *arguments)

    def shards_behind_proxies(self, *numbers: int) -> None:
        """Start all shards, these ones behind proxies, and wait until all are up."""
        for number in range(SHARDS):
            if number in numbers:
                self.proxied(number)
            else:
                self.shard("--shard", str(number))
        self.wait(lambda state: all(shard.state == UP and shard.figures for shard in state.shards))

    def close(self) -> None:
        super().close()
        for proxy in self.proxies:
            proxy.close()

"""The server programs as real processes, and one worker: deaths, spares, a scheduler that is started again."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ecrec.protocol.client import ClientMachine
from ecrec.protocol.events import Failed, PullDone
from ecrec.protocol.messages import DOWN, UP, ClusterQuery, ClusterState, Section
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
        return self._start("-m", f"ecrec.launch.{name}", *arguments, **environment)

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
        return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(self.directory.glob("*.log")))

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


@pytest.fixture(params=["tcp", "ipc"])
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    # A path of a socket has at most 107 bytes; pytest's tmp_path may be longer.
    with tempfile.TemporaryDirectory(prefix="ecrec") as directory:
        made = Processes(Path(directory), request.param)
        yield made
        made.close()


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, "tcp")
    yield made
    made.close()


# ------------------------------------------------------------------ membership
def test_a_cluster_comes_up_and_a_killed_shard_is_noticed_and_replaced(processes: Processes) -> None:
    processes.scheduler()
    shards = processes.all_shards()
    shards[2].kill()
    state = processes.wait(lambda state: state.shards[2].state == DOWN, deadline_s=2.0)
    assert [shard.shard for shard in state.shards if shard.state != UP] == [2]
    processes.shard("--spare")
    state = processes.wait(lambda state: state.shards[2].state == UP)
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1]
    assert [entry.event for entry in state.history[SHARDS:]] == ["down", "settled", "up", "whole"]


def test_a_waiting_spare_takes_over(tcp: Processes) -> None:
    tcp.scheduler()
    shards = tcp.all_shards()
    tcp.shard("--spare")
    tcp.wait(lambda state: state.spares == 1)
    shards[0].kill()
    state = tcp.wait(lambda state: state.shards[0].epoch == 2 and state.shards[0].state == UP)
    assert state.spares == 0


def test_a_shard_that_hangs_is_replaced_and_fenced_when_it_wakes(tcp: Processes) -> None:
    tcp.scheduler("--heartbeat-ms", "50", "--heartbeat-timeout-ms", "600")
    shards = tcp.all_shards()
    shards[3].send_signal(signal.SIGSTOP)
    tcp.wait(lambda state: state.shards[3].state == DOWN)
    tcp.shard("--shard", "3")
    tcp.wait(lambda state: state.shards[3].state == UP)
    shards[3].send_signal(signal.SIGCONT)
    assert shards[3].wait(DEADLINE_S) == 3
    assert "fenced by the scheduler: shard 3 (epoch 1) was declared dead" in tcp.logs()


def test_a_scheduler_that_is_killed_goes_on_where_it_was(processes: Processes) -> None:
    processes.scheduler()
    shards = processes.all_shards()
    assert processes.scheduler_process
    processes.scheduler_process.kill()
    processes.scheduler_process.wait()
    shards[1].kill()
    processes.scheduler()
    processes.shard("--shard", "1")
    state = processes.wait(lambda state: all(s.state == UP for s in state.shards) and state.shards[1].epoch == 2)
    assert [shard.epoch for shard in state.shards] == [1, 2, 1, 1, 1]


def test_sigterm_ends_all_programs_with_0(tcp: Processes) -> None:
    tcp.scheduler()
    shards = tcp.all_shards()
    for process in shards:
        process.terminate()  # without tables there is nothing to lose
    assert [process.wait(DEADLINE_S) for process in shards] == [0] * SHARDS
    assert tcp.scheduler_process
    tcp.scheduler_process.terminate()
    assert tcp.scheduler_process.wait(DEADLINE_S) == 0


def test_sigint_ends_all_programs_at_once_with_0(tcp: Processes) -> None:
    tcp.scheduler()
    shards = tcp.all_shards()
    for process in tcp.running:
        process.send_signal(signal.SIGINT)
    assert [process.wait(DEADLINE_S) for process in (tcp.scheduler_process, *shards) if process] == [0] * 6


# ------------------------------------------------------------------ a worker
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


def test_a_worker_loses_nothing_when_shards_and_the_scheduler_are_killed(processes: Processes) -> None:
    processes.scheduler()
    shards = processes.all_shards()
    worker = Worker(processes.endpoint)
    try:
        worker.start()
        for step in range(60):
            worker.push()
            if step == 15:
                shards[2].kill()
                processes.shard("--shard", "2")
            if step == 30:
                worker.flush()
                processes.wait(lambda state: state.shards[2].state == UP)
                assert processes.scheduler_process
                processes.scheduler_process.kill()
                processes.scheduler_process.wait()
                processes.scheduler()
            if step == 45:
                shards[4].kill()
                processes.shard("--spare")
            if step % 10 == 9:
                assert np.array_equal(worker.pull(), worker.expected)
        worker.flush()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    state = processes.wait(lambda state: all(shard.state == UP for shard in state.shards))
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 2]


# ------------------------------------------------------------------ options and files that cannot work
def refused(tcp: Processes, name: str, *arguments: str, **environment: str) -> str:
    """Run a program that must end with exit code 2 before it is ready; return what it says."""
    process = tcp.program(name, *arguments, **environment)
    assert process.wait(DEADLINE_S) == 2
    assert process.stdout
    assert process.stdout.read() == ""
    return " ".join(tcp.logs().replace("│", " ").split())


SCHEDULER = "tcp://127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheduler", "nonsense"], "endpoint 'nonsense': expected tcp://HOST:PORT"),
        (["--scheduler", SCHEDULER, "--bind", "tcp://127.0.0.1:70000"], "with a port from 0 to 65535"),
        (["--scheduler", SCHEDULER, "--bind", "ipc:///no/such/dir/x"], "cannot listen at 'ipc:///no/such/dir/x'"),
        (["--scheduler", SCHEDULER, "--bind", "tcp://0.0.0.0:0"], "--allow-plain-network"),
        (
            ["--scheduler", SCHEDULER, "--bind", "tcp://0.0.0.0:0", "--allow-plain-network"],
            "name one by --advertise HOST",
        ),
        (["--scheduler", SCHEDULER, "--curve-dir", "/no/such/dir"], "make a directory of keys by `ecrec keygen DIR`"),
        (["--scheduler", SCHEDULER, "--shard", "1", "--spare"], "give --shard or --spare, not both"),
        ([], "Missing option '--scheduler'"),
    ],
)
def test_options_of_a_shard_that_cannot_work(tcp: Processes, arguments: list[str], says: str) -> None:
    assert says in refused(tcp, "ps", *arguments)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ECREC_KERNEL", "warp9", "kernel 'warp9' is unknown"),
        ("ECREC_PREFETCH", "L9", "cache 'L9' is unknown, expected L1 or L2"),
        ("ECREC_THREADS", "many", "expected 1 to 256 threads"),
    ],
)
def test_what_the_environment_asks_of_native_code_does_not_exist(
    tcp: Processes, variable: str, value: str, says: str
) -> None:
    assert f"{variable}={value}: {says}" in refused(tcp, "ps", "--scheduler", SCHEDULER, **{variable: value})


def test_options_of_a_scheduler_that_cannot_work(tcp: Processes) -> None:
    state = str(tcp.directory / "state")
    wrong_shards = refused(tcp, "scheduler", "--bind", "tcp://127.0.0.1:0", "--shards", "17", "--state", state)
    assert "Invalid value for '--shards'" in wrong_shards
    assert "possible are 15, 16, 18 and 20" in " ".join(wrong_shards.replace("│", " ").split())
    odd = refused(tcp, "scheduler", "--bind", "tcp://127.0.0.1:0", "--shards", "5", "--groups", "2", "--state", state)
    assert "5 shards in 2 groups" in odd
    arguments = ["--bind", "tcp://127.0.0.1:0", "--shards", "5"]
    assert "name a file" in refused(tcp, "scheduler", *arguments, "--state", "/no/such/dir/state")
    timeouts = ["--heartbeat-ms", "500", "--heartbeat-timeout-ms", "800"]
    assert "one late heartbeat would be a death" in refused(tcp, "scheduler", *arguments, "--state", state, *timeouts)
    tcp.scheduler()
    assert "another ecrec-scheduler uses it" in refused(tcp, "scheduler", *arguments, "--state", state)


def test_a_state_file_of_another_cluster_is_refused(tcp: Processes) -> None:
    tcp.scheduler()
    tcp.all_shards()
    assert tcp.scheduler_process
    tcp.scheduler_process.terminate()
    tcp.scheduler_process.wait()
    arguments = ["--bind", "tcp://127.0.0.1:0", "--shards", "6", "--state", str(tcp.directory / "state")]
    assert "the stored cluster has 1 group(s) of 5 shards" in refused(tcp, "scheduler", *arguments)


def test_a_shard_that_the_cluster_does_not_have_is_told_so(tcp: Processes) -> None:
    tcp.scheduler()
    process = tcp.shard("--shard", "5")
    assert process.wait(DEADLINE_S) == 3
    assert "there is no shard 5: the cluster has 0 to 4" in tcp.logs()


def test_a_port_that_is_taken(tcp: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        says = refused(tcp, "ps", "--scheduler", SCHEDULER, "--bind", bind)
    assert f"cannot listen at '{bind}': Address already in use" in says


def test_a_shard_that_hostile_bytes_are_sent_to_serves_on(tcp: Processes) -> None:
    tcp.scheduler()
    tcp.all_shards()
    state = tcp.wait(lambda state: True)
    for endpoint in [tcp.endpoint, *(shard.endpoint for shard in state.shards)]:
        host, port = endpoint.removeprefix("tcp://").split(":")
        for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(4096), os.urandom(4096)):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(data)
    worker = Worker(tcp.endpoint)
    try:
        worker.start()
        worker.push()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    state = tcp.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1] * SHARDS


@pytest.mark.parametrize("name", ["ps", "scheduler"])
def test_servers_start_without_torch(name: str) -> None:
    code = f"import sys, ecrec.launch.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

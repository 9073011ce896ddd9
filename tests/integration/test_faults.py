"""What production does to processes, done to real ones. After each fault: every row is what it must be to the last bit,
what was acknowledged is there, and all parity fits.

A worker pushes small integers, so that sums are exact in any order, and keeps its own copy. Faults that need root are
skipped without it, and say so.
"""

import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from processes import DEADLINE_S, SHARDS, Cluster, Proxied, Worker

from ecrec.exit_codes import ExitCode
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.messages import DOWN
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.transport.client_node import ClientNode

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


# ------------------------------------------------------------------ stopped, and awake again
def test_a_stopped_server_that_wakes_in_the_middle_of_training_changes_nothing(cluster: Cluster) -> None:
    """It has pushes, windows and acknowledgements in its sockets, and does not know that it is dead."""
    shards = cluster.start()
    cluster.push(20)
    shards[3].send_signal(signal.SIGSTOP)
    cluster.push(5)
    cluster.wait(lambda state: state.shards[3].state == DOWN)
    cluster.shard("--spare")
    cluster.push(20)
    shards[3].send_signal(signal.SIGCONT)
    cluster.push(20)
    assert shards[3].wait(DEADLINE_S) == ExitCode.REPLACED
    cluster.whole({3: 2})
    cluster.check(65)
    assert "fenced by the scheduler: shard 3 (epoch 1) was declared dead" in cluster.logs()


# ------------------------------------------------------------------ connections that are reset


def test_connections_of_two_servers_that_are_reset_at_once_kill_nobody(proxied: Proxied) -> None:
    """All of theirs, until the scheduler suspects both: the code tolerates one, and both processes live."""
    proxied.scheduler()
    proxied.shards_behind_proxies(1, 3)
    proxied.worker = Worker(proxied.endpoint, 1000, 8)
    proxied.worker.start()
    for _ in range(2):
        proxied.push(20)
        for proxy in proxied.proxies:
            proxy.cut(refuse=True)
        proxied.wait(lambda state: state.suspected.keys() == {1, 3})
        for proxy in proxied.proxies:
            proxy.cut()
        proxied.wait(lambda state: not state.suspected)
    proxied.push(20)
    proxied.check(60)
    state = proxied.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1] * SHARDS
    assert "is suspected, not declared down" in proxied.logs()


def test_a_server_that_is_heard_and_hears_nothing_of_the_scheduler_is_replaced(proxied: Proxied) -> None:
    """A cut in one direction: what the scheduler sends to it is lost, so that it never confirms a table."""
    proxied.scheduler()
    proxied.shards_behind_proxies(1)
    assert proxied.scheduler_process
    worker = proxied.worker = Worker(proxied.endpoint, 1000, 8)
    worker.start()
    proxied.push(20)
    connections = psutil.Process(proxied.scheduler_process.pid).net_connections("tcp")
    for proxy in proxied.proxies:
        proxy.swallow({connection.laddr.port for connection in connections})
    proxied.shard("--spare")
    late = TableSpec("late", 10, 4, CodeSpec(2, 1), OptimizerSpec("sgd", (1.0,)), "zeros")
    worker.node.perform(worker.machine.create_table(late))
    proxied.push(20)
    proxied.whole({1: 2})
    proxied.push(20)
    proxied.check(60)
    assert worker.machine.table_ready("late")
    assert "it is heard, but has confirmed no view" in proxied.logs()


# ------------------------------------------------------------------ a network that is cut
class Namespaces:
    """Network namespaces on a bridge, in which programs can be run, and links between them that can be cut."""

    def __init__(self) -> None:
        # Another process of this test run may do the same.
        number = os.getpid()
        self.tag = f"ec{number % 100_000}"
        self.net = f"10.{200 + number // 250 % 50}.{number % 250}"
        self.names: list[str] = []
        self.here = f"{self.net}.1"
        self._ip("link", "add", f"{self.tag}br", "type", "bridge")
        self._ip("addr", "add", f"{self.here}/24", "dev", f"{self.tag}br")
        self._ip("link", "set", f"{self.tag}br", "up")

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def add(self) -> str:
        """Make a namespace; its address."""
        number = len(self.names) + 2
        name, address = f"{self.tag}n{number}", f"{self.net}.{number}"
        self._ip("netns", "add", name)
        self.names.append(name)
        outer = f"{self.tag}v{number}"
        self._ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._ip("link", "set", outer, "master", f"{self.tag}br", "up")
        self._ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        return address

    def name_of(self, address: str) -> str:
        return self.names[int(address.rpartition(".")[2]) - 2]

    def cut(self, a: str, b: str) -> None:
        """Packets between the two vanish without a word: they go to an address that no card has."""
        for here, there in ((a, b), (b, a)):
            nowhere = ("lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
            self._ip("-n", self.name_of(here), "neigh", "replace", there, *nowhere)

    def mend(self, a: str, b: str) -> None:
        for here, there in ((a, b), (b, a)):
            self._ip("-n", self.name_of(here), "neigh", "del", there, "dev", "eth0")

    def close(self) -> None:
        # A namespace goes in the background, and would keep the names of its links a while.
        for number in range(2, len(self.names) + 2):
            subprocess.run(["ip", "link", "del", f"{self.tag}v{number}"], capture_output=True, check=False)
        for name in self.names:
            self._ip("netns", "del", name)
        self._ip("link", "del", f"{self.tag}br")


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Skips the test where there can be none."""
    if not ROOT or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        made = Namespaces()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    yield made
    made.close()


@pytest.fixture
def network() -> Iterator[Namespaces]:
    with namespaces() as made:
        yield made


class Spread(Cluster):
    """A cluster of which two shards run in network namespaces of their own."""

    network: Namespaces
    addresses: dict[int, str]

    def bind(self) -> str:
        return f"tcp://{self.network.here}:0"

    def scheduler(self, *more: str) -> None:
        super().scheduler("--allow-plain-network", *more)

    def shard(self, *arguments: str) -> subprocess.Popen[str]:
        number = int(arguments[arguments.index("--shard") + 1]) if "--shard" in arguments else -1
        address = self.addresses.get(number, self.network.here)
        options = ["--scheduler", self.endpoint, "--bind", f"tcp://{address}:0", "--allow-plain-network"]
        if number not in self.addresses:
            return self.program("ps", *options, *arguments)
        command = [
            "ip",
            "netns",
            "exec",
            self.network.name_of(address),
            sys.executable,
            "-m",
            "ecrec.launch.servers.ps",
        ]
        with (self.directory / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen([*command, *options, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        self.running.append(process)
        return process


@pytest.fixture
def spread(tmp_path: Path, network: Namespaces) -> Iterator[Spread]:
    made = Spread(tmp_path, "tcp")
    made.network = network
    made.addresses = {1: network.add(), 3: network.add()}
    yield made
    made.close()


def test_a_cut_network_between_two_servers(spread: Spread) -> None:
    """The scheduler and the worker reach both: one is replaced, by a server that all reach, and training goes on."""
    shards = spread.start()
    spread.push(20)
    spread.network.cut(spread.addresses[1], spread.addresses[3])
    spread.shard("--spare")
    spread.push(30)  # more than may be in flight: only a replacement makes them durable
    state = spread.wait(lambda state: any(state.shards[shard].epoch == 2 for shard in (1, 3)))
    (ended,) = [shard for shard in (1, 3) if state.shards[shard].epoch == 2]
    assert shards[ended].wait(DEADLINE_S) == ExitCode.REPLACED
    spread.push(20)
    spread.whole({ended: 2})
    spread.check(70)
    assert "have not heard each other for 4000 ms" in spread.logs()


def test_a_network_that_is_cut_for_a_moment_kills_nobody(spread: Spread) -> None:
    """TCP repeats what was lost; nobody is declared dead."""
    spread.start()
    assert spread.worker
    for _ in range(2):
        spread.push(10)
        spread.worker.flush()
        spread.network.cut(spread.addresses[1], spread.addresses[3])
        spread.push(8)
        spread.network.mend(spread.addresses[1], spread.addresses[3])
    spread.push(30)
    spread.check(66)
    state = spread.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1] * SHARDS


# ------------------------------------------------------------------ a full disk
@contextmanager
def small_disk(at: Path, megabytes: int = 1) -> Iterator[Path]:
    """A file system of so many megabytes."""
    if not ROOT or shutil.which("mount") is None:
        pytest.skip("a small file system needs root and mount")
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.decode()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue


def test_a_full_disk_stops_the_scheduler_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        cluster = Cluster(disk, "tcp")
        cluster.directory = tmp_path  # logs are elsewhere
        try:
            _full_disk(cluster, disk)
        finally:
            cluster.close()


def _full_disk(cluster: Cluster, disk: Path) -> None:
    (cluster.directory / "state").symlink_to(disk / "state")
    shards = cluster.start()
    scheduler = cluster.scheduler_process
    assert scheduler
    cluster.push(10)
    fill(disk / "filler")
    # A second worker must get an epoch, which the scheduler has to remember.
    other = ClientNode(cluster.endpoint, ClientMachine(1, secrets.token_hex(8)))
    try:
        end = time.monotonic() + DEADLINE_S
        while scheduler.poll() is None:
            other.pump(20)
            assert time.monotonic() < end
    finally:
        other.close()
    assert scheduler.wait() == ExitCode.STATE
    assert "cannot be written: database or disk is full; make room" in cluster.logs()
    worker = cluster.worker
    assert worker
    before = dict(worker.machine.acked)
    cluster.push(40)
    worker.flush()
    assert all(worker.machine.acked[shard] >= before[shard] + 40 for shard in before), "training went on"
    shards[1].kill()
    (disk / "filler").unlink()
    cluster.scheduler()
    cluster.shard("--spare")
    cluster.push(20)
    cluster.whole({0: 1, 1: 2, 2: 1, 3: 1, 4: 1})
    cluster.check(70)


# ------------------------------------------------------------------ no memory
def limit_address_space(process: subprocess.Popen[str]) -> None:
    """A few more megabytes, and every further allocation fails."""
    limit = psutil.Process(process.pid).memory_info().vms + (8 << 20)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))


CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def memory_cgroup() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Limits what is resident; the kernel kills who wants more."""
    one = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if one else CGROUPS) / f"ecrec-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if one else "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup here: {error}")
    try:
        if not limit.exists():
            pytest.skip("no memory cgroup here: the controller is not enabled")

        def apply(process: subprocess.Popen[str]) -> None:
            # What the process has so far is not counted here; what it touches from now on is.
            limit.write_text(str(4 << 20))
            (group / "cgroup.procs").write_text(str(process.pid))

        yield apply
    finally:
        end = time.monotonic() + DEADLINE_S
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.02)


def test_a_server_whose_allocations_fail_dies_and_is_replaced(cluster: Cluster) -> None:
    _without_memory(cluster, limit_address_space, {5, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS})


def test_a_server_that_the_kernel_kills_for_memory_is_replaced(cluster: Cluster) -> None:
    with memory_cgroup() as limit:
        try:
            _without_memory(cluster, limit, {-signal.SIGKILL})
        finally:
            cluster.close()


def _without_memory(cluster: Cluster, limit: Callable[[subprocess.Popen[str]], None], ends: set[int]) -> None:
    """Pushes of megabytes until the limit is felt, in the middle of one: none is applied in part."""
    shards = cluster.start(rows=20_000, dim=256)
    worker = cluster.worker
    assert worker
    cluster.push(10)
    cluster.shard("--spare")
    cluster.wait(lambda state: state.spares == 1)
    limit(shards[2])
    pushes = 10
    while shards[2].poll() is None:
        worker.push(3000)
        pushes += 1
        assert pushes < 200, "the limit was not felt"
    assert shards[2].wait() in ends, (shards[2].returncode, cluster.logs())
    print("ended with", shards[2].returncode, "after", pushes, "pushes")
    cluster.push(10)
    cluster.whole({2: 2})
    cluster.check(pushes + 10)


# ------------------------------------------------------------------ a worker that dies
PUSHING = """
import sys
sys.path[:0] = {path!r}
from processes import Worker
worker = Worker({endpoint!r}, 20000, 128)
worker.start()
while True:
    worker.push(5000)
    print(*[worker.machine.acked[shard] for shard in range(5)], flush=True)
"""
"""Pushes of 2.5 MB: it dies while one is on its way."""


def pushes_of(worker: Worker, watermarks: dict[int, int], size: int) -> np.ndarray:
    """What the rows must be when each shard has the pushes up to its watermark, and of no later one anything."""
    worker.expected[:] = 0
    worker.rng = np.random.default_rng(7)
    for number in range(1, max(watermarks.values()) + 1):
        rows, gradients = worker.draw(size)
        there = np.array([number <= watermarks[shard] for shard in range(SHARDS)])[worker.places[rows]]
        worker.expected[rows[there]] -= gradients[there]
    return worker.expected


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_killed_in_the_middle_of_a_push(cluster: Cluster, seed: int) -> None:
    """Each shard has a push whole or not at all; what was acknowledged is there; the next life goes on behind it."""
    cluster.scheduler()
    cluster.all_shards()
    path = [str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1])]
    script = PUSHING.format(path=path, endpoint=cluster.endpoint)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    cluster.running.append(process)
    assert process.stdout
    rng = random.Random(seed)
    for _ in range(rng.randrange(12, 30)):
        acked = [int(word) for word in process.stdout.readline().split()]
        assert len(acked) == SHARDS, "the pushing process ended"
    time.sleep(rng.random() * 0.02)  # the moment is what the test is about
    process.kill()
    process.wait()
    lines = process.stdout.read().splitlines()
    whole_lines = [line for line in lines if len(line.split()) == SHARDS]
    if whole_lines:
        acked = [int(word) for word in whole_lines[-1].split()]
    worker = cluster.worker = Worker(cluster.endpoint, 20_000, 128)
    worker.start()
    watermarks = worker.machine.pushed
    assert all(watermarks[shard] >= acked[shard] for shard in range(SHARDS)), (watermarks, acked)
    assert max(watermarks.values()) > 10
    pushes_of(worker, watermarks, 5000)
    assert np.array_equal(worker.pull(), worker.expected)
    cluster.push(10)
    cluster.check(10)


# ------------------------------------------------------------------ the scheduler, during a recovery
@pytest.mark.parametrize("moment", ["down", "settled", "up"])
def test_the_scheduler_is_killed_during_a_recovery(cluster: Cluster, moment: str) -> None:
    """At the first sign of each step: it goes on from what it had written, and the replacement becomes whole."""
    shards = cluster.start(rows=50_000, dim=64)
    worker = cluster.worker
    assert worker
    for _ in range(10):
        worker.push(5000)
    worker.flush()
    if moment == "up":
        cluster.shard("--spare")
        cluster.wait(lambda state: state.spares == 1)
    shards[2].kill()
    cluster.wait(lambda state: any(entry.event == moment and entry.shard == 2 for entry in state.history[SHARDS:]))
    cluster.stop_scheduler()
    cluster.push(5)
    cluster.scheduler()
    if moment != "up":
        cluster.shard("--spare")
    cluster.push(30)
    cluster.whole({0: 1, 1: 1, 2: 2, 3: 1, 4: 1})
    cluster.check(45)


# ------------------------------------------------------------------ slow is not dead
def resident_bytes(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [psutil.Process(process.pid).memory_info().rss for process in processes]


def test_a_slow_server_slows_its_pushers_and_grows_nothing(cluster: Cluster) -> None:
    """One server runs 300 ms and stands still for 300 ms, again and again: nobody is declared dead."""
    # Beside other tests it may stand still for longer than it was told to.
    shards = cluster.start("--heartbeat-timeout-ms", "1500", rows=20_000, dim=64)
    worker, scheduler = cluster.worker, cluster.scheduler_process
    assert worker
    assert scheduler
    everybody = [scheduler, *shards]
    for _ in range(60):
        worker.push(2000)
    worker.flush()
    before = resident_bytes(everybody)
    own = psutil.Process().memory_info().rss
    pushes, running, turn = 60, True, 0.0
    end = time.monotonic() + 9.0
    most = before
    try:
        while (now := time.monotonic()) < end:
            if now >= turn:
                running, turn = not running, now + 0.3
                shards[2].send_signal(signal.SIGCONT if running else signal.SIGSTOP)
            if worker.machine.can_push:
                worker.push(2000)
                pushes += 1
            else:
                worker.node.pump(10)
            most = [max(pair) for pair in zip(most, resident_bytes(everybody), strict=True)]
            limit = worker.machine.config.pushes_in_flight_max
            assert all(len(shard.kept) <= limit for shard in worker.machine._shards.values())
    finally:
        shards[2].send_signal(signal.SIGCONT)
    assert pushes > 100, "pushes go on, at the pace of the slowest"
    grown_mb = [(after - was) / 1e6 for was, after in zip(before, most, strict=True)]
    # 32 pushes of 0.5 MB, their windows and undo records, and what the allocator keeps of it.
    assert max(grown_mb) < 40, grown_mb
    assert (psutil.Process().memory_info().rss - own) / 1e6 < 40
    cluster.check(pushes)
    state = cluster.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1] * SHARDS


def test_heartbeats_do_not_pile_up_while_the_scheduler_is_stopped(cluster: Cluster) -> None:
    """A scheduler that hangs for a while is no death of anybody, and training goes on meanwhile."""
    cluster.start()
    assert cluster.scheduler_process
    cluster.scheduler_process.send_signal(signal.SIGSTOP)
    try:
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            cluster.push(5)
    finally:
        cluster.scheduler_process.send_signal(signal.SIGCONT)
    cluster.check(50)
    state = cluster.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1] * SHARDS

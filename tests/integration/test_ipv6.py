"""Two hosts that have addresses of IPv6 alone: network namespaces without any of IPv4, not even 127.0.0.1."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEADLINE_S, Processes, ready_line

HERE = Path(__file__).parent
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
HOSTS = ("left", "right")

WORKER = """
import sys, time
endpoint, replaced, *sys.path[:0] = sys.argv[1:]
import numpy as np
from processes import Worker
from ecrec.launch.tools.verify import cluster_state

def push(count):
    for _ in range(count):
        worker.push()
    worker.flush()

worker = Worker(endpoint)
worker.start()
push(20)
print("pushed", flush=True)
sys.stdin.readline()
push(20)
deadline = time.monotonic() + 30
while True:
    shards = cluster_state(endpoint, 10.0).shards
    if [shard.state for shard in shards] == ["up"] * 5 and shards[int(replaced)].epoch == 2:
        break
    assert time.monotonic() < deadline, shards
    time.sleep(0.05)
assert np.array_equal(worker.pull(), worker.expected)
print("exact", shards[int(replaced)].endpoint, flush=True)
"""


class Hosts(Processes):
    """Two namespaces at the ends of one cable, with names of their own for each other."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "tcp")
        self.tag = f"ecsix{os.getpid()}"
        self.addresses = {host: f"fd00:ec::{number}" for number, host in enumerate(HOSTS, start=1)}
        for host in HOSTS:
            self._ip("netns", "add", self.netns(host))
        left, right = map(self.netns, HOSTS)
        self._ip("-n", left, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right)
        for host in HOSTS:
            netns = self.netns(host)
            self._ip("-n", netns, "link", "set", "lo", "up")
            self._ip("-n", netns, "-4", "addr", "flush", "dev", "lo")
            self._ip("-n", netns, "addr", "add", f"{self.addresses[host]}/64", "dev", "eth0", "nodad")
            self._ip("-n", netns, "link", "set", "eth0", "up")
            names = Path("/etc/netns") / netns
            names.mkdir(parents=True)
        self.name("scheduler", "left")

    def name(self, name: str, host: str) -> None:
        """From now on ``name`` is the address of that host, everywhere."""
        table = {"localhost": "::1", **self.addresses, name: self.addresses[host]}
        for each in HOSTS:
            # In place: programs that run have the file mounted.
            with (Path("/etc/netns") / self.netns(each) / "hosts").open("w") as hosts:
                hosts.writelines(f"{address} {known}\n" for known, address in table.items())

    def netns(self, host: str) -> str:
        return f"{self.tag}{host}"

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def on(self, host: str, *arguments: str) -> "subprocess.Popen[str]":
        command = ["ip", "netns", "exec", self.netns(host), sys.executable, *arguments]
        with (self.directory / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.running.append(process)
        return process

    def server(self, host: str, program: str, *arguments: str) -> "subprocess.Popen[str]":
        return self.on(host, "-m", f"ecrec.launch.servers.{program}", "--allow-plain-network", *arguments)

    def close(self) -> None:
        super().close()
        for process in self.running:
            assert process.stdin
            process.stdin.close()
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", self.netns(host)], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / self.netns(host), ignore_errors=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if not ROOT or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Hosts.__new__(Hosts)
    try:
        made.__init__(tmp_path)  # type: ignore[misc]
    except (subprocess.CalledProcessError, OSError) as error:
        made.close()
        pytest.skip(f"no network namespaces with IPv6 here: {getattr(error, 'stderr', error)}")
    yield made
    made.close()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


def test_a_cluster_of_hosts_without_ipv4_survives_a_death_and_a_scheduler_that_moves(hosts: Hosts) -> None:
    state = str(hosts.directory / "state")
    begin = ("--bind", "tcp://[::]:7070", "--shards", "5", "--state", state, "--http", "[::]:9090")
    scheduler = hosts.server("left", "scheduler", *begin)
    assert ready_line(scheduler)["http"] == "http://[::]:9090"
    where = ("--scheduler", "tcp://scheduler:7070")
    for number in range(3):
        hosts.server("left", "ps", *where, "--shard", str(number), "--bind", "tcp://[::]:0", "--advertise", "left")
    victim = hosts.server("right", "ps", *where, "--shard", "3", "--bind", f"tcp://[{hosts.addresses['right']}]:0")
    hosts.server("right", "ps", *where, "--shard", "4", "--bind", "tcp://[::]:0", "--advertise", "[fd00:ec::2]")
    paths = (str(HERE), str(HERE.parent))
    worker = hosts.on("right", "-c", WORKER, "tcp://scheduler:7070", "3", *paths)
    assert worker.stdin is not None
    assert line(worker) == "pushed\n", hosts.logs()

    # The scheduler moves to the other host, with its state and its name, and a server dies meanwhile.
    scheduler.kill()
    scheduler.wait()
    victim.kill()
    hosts.name("scheduler", "right")
    ready_line(hosts.server("right", "scheduler", *begin))
    hosts.server("left", "ps", *where, "--spare", "--bind", "tcp://[::]:0", "--advertise", "left")
    worker.stdin.write("go on\n")
    worker.stdin.flush()
    assert line(worker).startswith("exact tcp://left:"), hosts.logs()
    assert worker.wait(DEADLINE_S) == 0
    assert "Traceback" not in hosts.logs()

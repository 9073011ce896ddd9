"""`ecrec drain` and `ecrec restart --rolling` on real servers, which something starts again, under load."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from processes import DEADLINE_S, SHARDS, Cluster

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.tools.leaving import Leaving


class Manager:
    """Starts a spare for each server that has ended, as a service manager does (`Restart=always`)."""

    def __init__(self, cluster: Cluster, servers: list[subprocess.Popen[str]]) -> None:
        self._cluster = cluster
        self.servers = list(servers)
        self.codes: list[int] = []

    def look(self) -> None:
        for number, server in enumerate(self.servers):
            if server.poll() is not None:
                self.codes.append(server.returncode)
                self.servers[number] = self._cluster.shard("--spare")


def under_load(cluster: Cluster, manager: Manager, call: Callable[[], None]) -> int:
    """Push until the call, in a thread of its own, is over; how many pushes that were."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread, pushes = threading.Thread(target=run), 0
    thread.start()
    while thread.is_alive():
        manager.look()
        cluster.push(1)
        pushes += 1
    thread.join()
    if failed:
        raise failed[0]
    return pushes


def changes(cluster: Cluster) -> list[tuple[str, int]]:
    state = cluster.wait(lambda state: True)
    return [(e.event, e.shard) for e in state.history if e.event in ("down", "handed over", "lost")]


def test_a_rolling_restart_under_load_loses_nothing_and_no_server_is_ever_missing(cluster: Cluster) -> None:
    servers = cluster.start(rows=5000)
    servers.append(cluster.shard("--spare"))
    cluster.wait(lambda state: state.spares == 1)
    manager, said = Manager(cluster, servers), list[str]()
    pushes = under_load(cluster, manager, lambda: Leaving(cluster.endpoint, said.append, DEADLINE_S).restart())
    manager.look()
    assert changes(cluster) == [("handed over", shard) for shard in range(SHARDS)], cluster.logs()
    assert manager.codes == [0] * (SHARDS + 1)
    assert not {server.pid for server in servers} & {server.pid for server in manager.servers}
    assert said[-1] == "5 of 5 places are restarted" and said[0].startswith("spare 1 of 1 has left after")
    assert pushes > 20
    cluster.push(20)
    cluster.check(pushes + 20)


def test_one_server_is_drained_by_its_name_and_another_is_not_touched(cluster: Cluster) -> None:
    servers = cluster.start()
    cluster.shard("--spare")
    cluster.wait(lambda state: state.spares == 1)
    cluster.push(10)
    command = [sys.executable, "-m", "ecrec.cli", "drain", "ps:3", "--scheduler", cluster.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "ps:3 has left after" in done.stdout and "has its place" in done.stdout
    assert servers[3].wait(DEADLINE_S) == 0
    assert changes(cluster) == [("handed over", 3)] and all(server.poll() is None for server in servers[:3])
    cluster.push(10)
    cluster.check(20)


def test_a_drain_that_cannot_end_says_why_and_can_be_taken_back(cluster: Cluster) -> None:
    servers = cluster.start()
    cluster.push(10)
    servers[0].kill()  # its place stays empty: with another one data would be lost
    cluster.wait(lambda state: state.shards[0].state == "down")
    said: list[str] = []
    with pytest.raises(ClusterError, match=r"ps:2 has not left within 2 s: .*shard 0 is down.*--withdraw"):
        Leaving(cluster.endpoint, said.append, 2.0).drain(["ps:2"])
    assert said[-1] == "ps:2: data would be lost with it: shard 0 is down"
    Leaving(cluster.endpoint, said.append, DEADLINE_S).withdraw(["ps:2"])
    cluster.shard("--spare")
    cluster.whole({0: 2})
    cluster.push(10)
    assert servers[2].poll() is None and changes(cluster) == [("down", 0)]
    cluster.check(20)


def test_a_name_of_nobody_is_refused_with_those_that_there_are(cluster: Cluster) -> None:
    cluster.start()
    leaving = Leaving(cluster.endpoint, print, DEADLINE_S)
    for name in ("ps:5", "ps:", "3", "host:nowhere", "host:"):
        with pytest.raises(ConfigurationError, match=r"no such server; expected ps:SHARD, of 0 to 4, or host:NAME"):
            leaving.drain([name])

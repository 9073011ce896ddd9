"""Several schedulers behind a real ZooKeeper: leaders that are killed, stopped and deposed lose nothing.

Skipped where there is no ZooKeeper; on Debian ``apt-get install -y --no-install-recommends zookeeper`` brings one.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kazoo.client import KazooClient
from processes import DEADLINE_S, SHARDS, Processes, Worker, ready_line

from ecrec.errors import ClusterError
from ecrec.exit_codes import ExitCode
from ecrec.launch.tools.verify import scrub
from ecrec.protocol.messages import DOWN, UP, ClusterQuery, Section
from ecrec.transport.client_node import query
from ecrec.transport.coordinator import candidate
from ecrec.transport.leadership import DeposedError
from ecrec.transport.zookeeper import PIECE_BYTES, Candidate

JARS = [Path("/usr/share/java") / name for name in ("zookeeper.jar", "slf4j-simple.jar")]
TICK_MS = 200
SESSION_MS = 3000
"""Long enough for a process that a busy machine keeps waiting."""

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"


def why_no_zookeeper() -> str:
    """Empty if one can be started here."""
    there = shutil.which("java") is not None and all(jar.exists() for jar in JARS)
    return "" if there else "no ZooKeeper here: apt-get install -y --no-install-recommends zookeeper"


pytestmark = pytest.mark.skipif(bool(why_no_zookeeper()), reason=why_no_zookeeper())


class ZooKeeper:
    """A server of its own on a free port, which can be killed and started again with what it stored.

    ``ensemble``: lines of the configuration for one of several servers, this one with number ``id``.
    """

    def __init__(self, directory: Path, ensemble: str = "", id: int = 0) -> None:
        self.directory = directory
        self.port = free_port()
        (directory / "data").mkdir()
        (directory / "data" / "myid").write_text(str(id))
        (directory / "zoo.cfg").write_text(
            f"tickTime={TICK_MS}\ndataDir={directory}/data\nclientPort={self.port}\nclientPortAddress=127.0.0.1\n"
            f"admin.enableServer=false\nmaxClientCnxns=0\n{ensemble}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        command = ["java", "-Xmx64m", "-XX:+UseSerialGC", "-cp", ":".join(map(str, JARS)), main]
        with (self.directory / "zookeeper.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, str(self.directory / "zoo.cfg")], stdout=log, stderr=log, cwd=self.directory
            )
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert time.monotonic() < end, (self.directory / "zookeeper.log").read_text()
                assert self.process.poll() is None, (self.directory / "zookeeper.log").read_text()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    server = ZooKeeper(tmp_path_factory.mktemp("zookeeper"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def coordinator(zookeeper: ZooKeeper) -> str:
    """A name below which nothing is yet."""
    return f"zk://127.0.0.1:{zookeeper.port}/ecrec/{secrets.token_hex(4)}"


class Several(Processes):
    """A cluster of several schedulers, found through ZooKeeper."""

    def __init__(self, directory: Path, coordinator: str) -> None:
        super().__init__(directory, "tcp")
        self.endpoint = coordinator
        self.schedulers: dict[str, subprocess.Popen[str]] = {}
        """By endpoint."""

    def scheduler(self, *more: str) -> None:
        arguments = ("--bind", self.bind(), "--shards", str(SHARDS), "--coordinator", self.endpoint)
        process = self.program("scheduler", *arguments, "--coordinator-timeout-ms", str(SESSION_MS), *more)
        self.schedulers[ready_line(process)["endpoint"]] = process

    def leader(self) -> subprocess.Popen[str]:
        """The process that leads now."""
        return self.schedulers[leader_of(self.endpoint)[1]]

    def kill_leader(self) -> None:
        leader = self.leader()
        leader.kill()
        leader.wait()

    def replace_ended(self) -> None:
        """What whoever watches over the processes would do."""
        for endpoint, process in list(self.schedulers.items()):
            if process.poll() is not None:
                assert process.returncode == ExitCode.REPLACED, self.logs()
                del self.schedulers[endpoint]
                self.scheduler()

    def scrub_is_clean(self) -> None:
        self.wait(lambda state: all(shard.state == UP for shard in state.shards))
        assert scrub(self.endpoint, DEADLINE_S).ok


def leader_of(coordinator: str) -> tuple[int, str]:
    """Term and endpoint of the newest leader."""
    hosts, _, path = coordinator.removeprefix("zk://").partition("/")
    client = KazooClient(hosts)
    client.start()
    try:
        return msgspec.msgpack.decode(client.get(f"/{path}/leader")[0], type=tuple[int, str])
    finally:
        client.stop()
        client.close()


@pytest.fixture
def several(tmp_path: Path, coordinator: str) -> Iterator[Several]:
    made = Several(tmp_path, coordinator)
    yield made
    made.close()


# ------------------------------------------------------------------ whole clusters
def test_a_worker_loses_nothing_when_leaders_are_killed(several: Several) -> None:
    for _ in range(3):
        several.scheduler()
    shards = several.all_shards()
    worker = Worker(several.endpoint)
    try:
        worker.start()
        ahead = worker.machine.config.pushes_in_flight_max
        for step in range(2 * ahead):
            worker.push()
            if step == 10:
                several.kill_leader()
            if step == 20:  # nobody leads yet: the next leader finds out, before the worker can be so far ahead
                shards[2].kill()
                several.shard("--spare")
            if step == 20 + ahead:
                several.kill_leader()
        worker.flush()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    several.scrub_is_clean()
    state = several.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1]
    assert len(set(re.findall(r"leads at \S+ \(term (\d+)\)", several.logs()))) == 3


def test_a_leader_killed_between_a_death_and_its_settlement(several: Several) -> None:
    several.scheduler()
    several.scheduler()
    shards = several.all_shards()
    worker = Worker(several.endpoint)
    try:
        worker.start()
        for _ in range(10):
            worker.push()
        leader = several.leader()
        shards[4].send_signal(signal.SIGSTOP)  # without its report there is no cut
        shards[2].kill()
        several.wait(lambda state: state.shards[2].state == DOWN)
        leader.kill()
        leader.wait()
        shards[4].send_signal(signal.SIGCONT)
        several.shard("--shard", "2")
        for _ in range(10):
            worker.push()
        worker.flush()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    several.scrub_is_clean()
    state = several.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1]


def test_a_leader_killed_while_a_shard_recovers(several: Several) -> None:
    several.scheduler()
    several.scheduler()
    shards = several.all_shards()
    worker = Worker(several.endpoint, rows=200_000, dim=64)
    try:
        worker.start()
        worker.expected[:] = worker.rng.integers(-8, 8, worker.expected.shape)
        every = {shard: np.flatnonzero(worker.places == shard).astype(np.int64) for shard in range(SHARDS)}
        pushes = {shard: ([Section([0], [len(rows)])], (rows, -worker.expected[rows])) for shard, rows in every.items()}
        worker.node.perform(worker.machine.push(pushes))
        worker.flush()
        leader = several.leader()
        shards[2].kill()
        several.shard("--shard", "2")
        several.wait(lambda state: state.shards[2].epoch == 2)
        leader.kill()
        leader.wait()
        for _ in range(5):
            worker.push()
        worker.flush()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    several.scrub_is_clean()
    state = several.wait(lambda state: True)
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1]


def test_a_leader_that_was_stopped_too_long_does_not_act(several: Several) -> None:
    several.scheduler()
    several.scheduler()
    shards = several.all_shards()
    old = several.leader()
    old.send_signal(signal.SIGSTOP)
    shards[2].kill()
    replacement = several.shard("--shard", "2")
    several.wait(lambda state: state.shards[2].state == UP and state.shards[2].epoch == 2)
    # It has the connection of the dead shard closed, and would tell the new one that its place is another's.
    old.send_signal(signal.SIGCONT)
    assert old.wait(DEADLINE_S) == ExitCode.REPLACED
    assert re.search(r"this scheduler \(term \d+\) leads no more", several.logs())
    state = several.wait(lambda state: True)
    assert [(shard.epoch, shard.state) for shard in state.shards] == [(1, UP), (1, UP), (2, UP), (1, UP), (1, UP)]
    assert replacement.poll() is None
    assert leader_of(several.endpoint)[1] == next(e for e, p in several.schedulers.items() if p is not old)


def test_a_leader_that_ends_hands_over_at_once(several: Several) -> None:
    several.scheduler("--coordinator-timeout-ms", "4000")  # the longest session that this server gives
    several.scheduler()
    several.all_shards()
    leader = several.leader()
    leader.terminate()
    assert leader.wait(DEADLINE_S) == 0
    ended = time.monotonic()
    while leader_of(several.endpoint)[0] == 1:
        assert time.monotonic() < ended + 4.0
    several.wait(lambda state: all(shard.state == UP for shard in state.shards))


@pytest.mark.parametrize("away_s", [
    0.0, pytest.param(60.0, marks=pytest.mark.skipif(not LONG, reason="takes a minute: ECREC_LONG_FAULTS=1"))
])  # fmt: skip
def test_a_zookeeper_that_is_killed_and_comes_back(tmp_path: Path, away_s: float) -> None:
    server = ZooKeeper(tmp_path)
    server.start()
    several = Several(tmp_path, f"zk://127.0.0.1:{server.port}/ecrec")
    try:
        for _ in range(2):
            several.scheduler()
        shards = several.all_shards()
        worker = Worker(several.endpoint)
        try:
            worker.start()
            server.kill()
            end = time.monotonic() + away_s
            pushes = 0
            while pushes < 20 or time.monotonic() < end:  # training goes on without it
                worker.push()
                worker.flush()
                pushes += 1
            server.start()
            several.replace_ended()
            several.wait(lambda state: all(shard.state == UP for shard in state.shards))
            shards[2].kill()
            several.shard("--shard", "2")
            worker.push()
            worker.flush()
            assert np.array_equal(worker.pull(), worker.expected)
        finally:
            worker.node.close()
        several.scrub_is_clean()
        state = several.wait(lambda state: True)
        assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1], "a healthy shard was declared down"
    finally:
        several.close()
        server.kill()


def test_what_is_wiped_from_a_zookeeper_ends_no_shard_and_is_said(several: Several) -> None:
    """No scheduler acts on an empty state beside a living cluster, and one that is told to adopt it goes on."""
    several.scheduler()
    several.all_shards()
    worker = Worker(several.endpoint)
    try:
        worker.start()
        worker.push()
        worker.flush()
        leader = several.leader()
        hosts, _, path = several.endpoint.removeprefix("zk://").partition("/")
        client = KazooClient(hosts)
        client.start()
        client.delete(f"/{path}", recursive=True)
        client.stop()
        client.close()
        assert leader.wait(DEADLINE_S) == ExitCode.REPLACED, several.logs()
        with pytest.raises(ClusterError, match="no scheduler is known at"):
            query(several.endpoint, ClusterQuery(1), 2000.0)
        several.schedulers.clear()
        several.scheduler()
        (second,) = several.schedulers.values()
        assert second.wait(DEADLINE_S) == ExitCode.OUTDATED, several.logs()
        assert "--adopt" in several.logs()
        several.schedulers.clear()
        several.scheduler("--adopt")
        state = several.wait(lambda state: all(shard.state == UP for shard in state.shards))
        assert [shard.epoch for shard in state.shards] == [1] * SHARDS, "a healthy shard was declared down"
        worker.push()
        worker.flush()
        assert np.array_equal(worker.pull(), worker.expected)
    finally:
        worker.node.close()
    several.scrub_is_clean()


def test_an_ensemble_whose_servers_are_killed_in_turn(tmp_path: Path) -> None:
    ensemble = "initLimit=20\nsyncLimit=10\n"
    for id in (1, 2, 3):
        ensemble += f"server.{id}=127.0.0.1:{free_port()}:{free_port()}\n"
    servers = []
    for id in (1, 2, 3):
        (tmp_path / str(id)).mkdir()
        servers.append(ZooKeeper(tmp_path / str(id), ensemble, id))
    for server in servers:
        server.start()
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    several = Several(tmp_path, f"zk://{hosts}/ecrec")
    try:
        for _ in range(2):
            several.scheduler()
        shards = several.all_shards()
        worker = Worker(several.endpoint)
        try:
            worker.start()
            for turn, server in enumerate(servers):  # each is the leader's once, and one of them leads the others
                server.kill()
                worker.push()
                shards[turn].kill()
                several.shard("--shard", str(turn))
                several.wait(lambda state, turn=turn: state.shards[turn].state == UP and state.shards[turn].epoch == 2)
                worker.push()
                worker.flush()
                server.start()
                several.replace_ended()
            assert np.array_equal(worker.pull(), worker.expected)
        finally:
            worker.node.close()
        several.scrub_is_clean()
    finally:
        several.close()
        for server in servers:
            server.kill()


# ------------------------------------------------------------------ one scheduler's state
@pytest.fixture
def candidates(coordinator: str) -> Iterator[Callable[[], Candidate]]:
    made: list[Candidate] = []

    def make() -> Candidate:
        made.append(candidate(coordinator, SESSION_MS))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


def elected(one: Candidate) -> Candidate:
    end = time.monotonic() + DEADLINE_S
    while not one.may_act(50.0):
        assert time.monotonic() < end
    return one


def test_a_state_larger_than_a_znode_is_kept_whole(candidates: Callable[[], Candidate]) -> None:
    first = elected(candidates())
    assert first.load() is None
    assert first.claim("tcp://127.0.0.1:1")
    states = [os.urandom(size) for size in (100, 3 * PIECE_BYTES + 7, 2 * PIECE_BYTES)]
    for state in states:
        first.save(state)
    second = candidates()
    assert not second.may_act(0.0)
    first.close()
    assert elected(second).load() == states[-1]
    assert second.claim("tcp://127.0.0.1:2")
    second.save(b"small")
    assert second.load() == b"small"


def test_a_claim_fences_the_leader_before(
    candidates: Callable[[], Candidate], coordinator: str, request: pytest.FixtureRequest
) -> None:
    first = elected(candidates())
    assert first.load() is None
    assert first.claim("tcp://127.0.0.1:1")
    first.save(b"one")
    # As if ZooKeeper had elected both.
    second = candidate(coordinator, SESSION_MS)
    request.addfinalizer(second.close)
    second._client.start()
    second._place, second._confirmed_s = first._place, first._confirmed_s + 60.0
    assert second.load() == b"one"
    first.save(b"two")
    assert not second.claim("tcp://127.0.0.1:2"), "it has loaded an older state"
    assert second.load() == b"two"
    assert second.claim("tcp://127.0.0.1:2")
    with pytest.raises(DeposedError, match="another scheduler has written the state"):
        first.save(b"three")
    with pytest.raises(DeposedError):
        first.may_act(0.0)
    assert second.load() == b"two"
    assert leader_of(coordinator) == (second.term, "tcp://127.0.0.1:2") and second.term > first.term


def test_nobody_leads_and_nobody_is_there(coordinator: str) -> None:
    with pytest.raises(ClusterError, match="no scheduler is known at zk://"):
        query(coordinator, ClusterQuery(1), 1000)
    with pytest.raises(ClusterError, match="no scheduler is known at zk://"):
        query("zk://127.0.0.1:1/ecrec", ClusterQuery(1), 300)

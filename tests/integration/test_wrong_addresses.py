"""Addresses, names, ports and limits that cannot work: an error within seconds that says what to do."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE_S, Cluster

from ecrec.errors import ClusterError
from ecrec.exit_codes import ExitCode
from ecrec.launch.servers.server import warn_of_loopback
from ecrec.launch.tools.verify import cluster_state
from ecrec.protocol.events import NO_SCHEDULER
from ecrec.transport.curve import generate
from ecrec.transport.scheduler_wait import SchedulerWait

UNKNOWN = "no-such-host.invalid"


def server(program: str, *arguments: str, limit: int | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"ecrec.launch.servers.{program}", *arguments]
    if limit is not None:
        command = ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "-", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_server_with_a_wrong_scheduler_says_what_is_wrong_and_ends(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "tcp")
    generate(tmp_path / "keys", "servers", None)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        try:
            cluster.scheduler("--curve-dir", str(tmp_path / "keys"))
            ends = {
                cluster.program("ps", "--scheduler", where, "--scheduler-timeout-ms", "3000"): words
                for where, words in {
                    f"tcp://{UNKNOWN}:7070": f"the host name '{UNKNOWN}' is not known: ",
                    "tcp://127.0.0.1:1": "nothing accepts connections there",
                    f"tcp://127.0.0.1:{port}": "does not speak ZeroMQ, or not with these keys",
                    cluster.endpoint: "with these keys|look at the keys of both ends",
                }.items()
            }
            for number, (process, words) in enumerate(ends.items(), start=1):
                assert process.wait(DEADLINE_S) == ExitCode.NO_SCHEDULER
                said = (tmp_path / f"{number}.log").read_text()
                assert any(word in said for word in words.split("|")), said
                assert " for 2 s: " in said and "given up after --scheduler-timeout-ms 3000" in said, said
        finally:
            cluster.close()


def test_a_server_that_a_scheduler_has_answered_waits_for_it_without_a_limit(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "ipc")
    try:
        cluster.scheduler()
        spare = cluster.program(
            "ps", "--scheduler", cluster.endpoint, "--bind", cluster.bind(), "--spare", "--scheduler-timeout-ms", "1000"
        )
        cluster.wait(lambda state: state.spares == 1)
        assert cluster.scheduler_process is not None
        cluster.scheduler_process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            spare.wait(2.0)
    finally:
        cluster.close()


def test_the_wait_is_said_after_seconds_and_again_and_has_an_end() -> None:
    wait = SchedulerWait("tcp://s:1", 60_000)
    assert wait.look("x", 1e6) is None
    assert wait.look("x", 1e6 + 59_999) is None
    stop = wait.look("nobody is there", 1e6 + 60_000)
    assert stop is not None and stop.kind == NO_SCHEDULER and "at tcp://s:1 for 60 s: nobody is there" in stop.reason
    assert SchedulerWait("tcp://s:1", 0).look("x", 1e15) is None


@pytest.mark.parametrize(
    ("where", "words"),
    [(f"tcp://{UNKNOWN}:7070", f"the host name '{UNKNOWN}' is not known"), ("tcp://127.0.0.1:1", "nothing accepts")],
)
def test_a_tool_says_what_is_in_the_way(where: str, words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        cluster_state(where, 1.0)


def test_a_busy_port_and_a_name_that_cannot_be_bound_end_with_2() -> None:
    state = ("--shards", "3", "--state", ":memory:")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = server("scheduler", "--bind", f"tcp://127.0.0.1:{taken.getsockname()[1]}", *state)
    assert done.returncode == ExitCode.OPTIONS
    assert "Address already in use" in done.stderr and "a free port (0 takes any)" in done.stderr, done.stderr
    done = server("scheduler", "--bind", f"tcp://{UNKNOWN}:7070", "--allow-plain-network", *state)
    assert done.returncode == ExitCode.OPTIONS
    assert "cannot listen at" in done.stderr and "an address of this machine" in done.stderr, done.stderr


@pytest.mark.parametrize("program", ["ps", "scheduler"])
def test_too_few_descriptors_end_with_2_and_not_by_zeromq(program: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    more = ("--scheduler", "tcp://127.0.0.1:1") if program == "ps" else ("--shards", "3", "--state", ":memory:")
    done = server(program, "--bind", "tcp://127.0.0.1:0", *more, limit=20)
    assert done.returncode == ExitCode.OPTIONS and "ulimit -n 4096" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("found", "words"),
    [(("127.0.1.1",), "is 127.0.1.1 on this machine"), ((), "is not known on this machine"), (("192.0.2.7",), "")],
)
def test_a_name_that_is_loopback_here_is_a_warning(
    found: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Now:
        """A thread that has ended when it is started."""

        def __init__(self, target: object, **_: object) -> None:
            self.start = target

    def look_up(host: str) -> tuple[str, ...]:
        if not found:
            raise socket.gaierror(-2, "Name or service not known")
        return found

    monkeypatch.setattr("ecrec.launch.servers.server.threading.Thread", Now)
    monkeypatch.setattr("ecrec.launch.servers.server.look_up", look_up)
    warn_of_loopback("tcp://0.0.0.0:7071", "tcp://ps1:7071")
    assert (words in caplog.text) if words else not caplog.text
    caplog.clear()
    warn_of_loopback("tcp://127.0.0.1:7071", "tcp://ps1:7071")
    assert not caplog.text, "who listens to this machine alone is meant to be reached from it alone"

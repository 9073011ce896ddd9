"""The server programs as real processes, and one worker: deaths, spares, a scheduler that is started again."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from processes import DEADLINE_S, SHARDS, Processes, Worker

from ecrec.exit_codes import ExitCode
from ecrec.protocol.messages import DOWN, UP


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
    assert shards[3].wait(DEADLINE_S) == ExitCode.REPLACED
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
    return tcp.logs()


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
        ([], "error: --scheduler is missing: give it, or set ECREC_PS_SCHEDULER"),
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
    assert "error: --shards 17: " in wrong_shards
    assert "possible are 15, 16, 18 and 20" in wrong_shards
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
    assert process.wait(DEADLINE_S) == ExitCode.REPLACED
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
    code = f"import sys, ecrec.launch.servers.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

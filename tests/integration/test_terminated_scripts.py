"""SIGTERM to a script: of `ecrec.local_cluster` nothing is left behind, and a worker hands its leases back."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ecrec.exit_codes import ExitCode
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster

pytest.importorskip("torch")

TRAINS = """
import signal, sys, threading, time, torch, ecrec
from ecrec.training import SGD
with ecrec.local_cluster(shards=3, code="2+1") as session:
    model = torch.nn.Linear(1, 1)
    session.replicate(model, SGD(lr=0.1))
    print("ready", flush=True)
    {body}
"""
STEPS = """while True:
        model(torch.ones(1, 1)).sum().backward()
        session.push()"""
SLEEPS = "time.sleep(100)"
WAITS = 'session.wait(lambda: False, "something that does not come")'
SWALLOWS = """while True:
        try:
            time.sleep(100)
        except BaseException as error:
            print(type(error).__name__, flush=True)"""


def begin(tmp_path, body):
    script, temporary = tmp_path / "script.py", tmp_path / "t"
    temporary.mkdir()
    script.write_text(TRAINS.format(body=body))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    servers = psutil.Process(process.pid).children(recursive=True)
    assert len(servers) >= 4
    return process, servers, temporary


def are_gone(servers):
    _, alive = psutil.wait_procs(servers, timeout=10)
    return not alive


@pytest.mark.parametrize("body", [STEPS, SLEEPS, WAITS], ids=["steps", "sleeps", "waits"])
def test_sigterm_to_a_script_with_a_local_cluster_leaves_no_process_and_no_directory(tmp_path, body):
    process, servers, temporary = begin(tmp_path, body)
    try:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == ExitCode.INTERRUPTED, errors
        assert "Traceback" not in errors
        assert are_gone(servers)
        assert list(temporary.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


def test_a_second_sigterm_ends_a_script_that_goes_on_after_the_first(tmp_path):
    process, servers, _ = begin(tmp_path, SWALLOWS)
    try:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "Terminated\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGTERM
        assert are_gone(servers)
    finally:
        process.kill()
        process.communicate()


def test_a_script_that_handles_sigterm_itself_does_so_and_a_forked_child_is_ended_as_ever(tmp_path):
    body = """import os
    child = os.fork()
    if not child:
        time.sleep(100)
    time.sleep(1.0)  # Python drops a signal that a child gets before it knows that it is one
    os.kill(child, signal.SIGTERM)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: print("its own", flush=True))
    signal.pause()
    session.push()"""
    process, servers, temporary = begin(tmp_path, body)
    try:
        assert process.stdout.readline() == f"child {-signal.SIGTERM}\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=100)
        assert (process.returncode, out) == (0, "its own\n"), errors
        assert are_gone(servers) and list(temporary.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


WORKER = """
import time, torch, ecrec
from ecrec.training import SGD
with ecrec.connect(code="2+1") as session:
    model = torch.nn.Linear(1, 1)
    session.replicate(model, SGD(lr=0.1))
    for split in session.lease_splits("examples", 200, split_examples=100):
        print("split", split.first, split.last, flush=True)
        for first in range(split.first, split.last, 10):
            model(torch.ones(1, 1)).sum().backward()
            session.push(10)
            if session.rank == 0 and first - split.first == 20:
                print("sleeps", flush=True)
                time.sleep(100)
print("done", flush=True)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_to_ecrec_worker_hands_its_leases_to_another_at_once(tmp_path, count):
    """Its lease time-out is an hour: only a worker that says that it ends gives a split back before that."""
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    with LocalCluster(ClusterSettings(3, tmp_path / "run", lease_timeout_ms=3_600_000)) as servers:
        environment = {**os.environ, "ECREC_SCHEDULER": servers.start(), "OMP_NUM_THREADS": "1"}
        servers.wait_ready()

        def start(*options):
            return subprocess.Popen(
                [sys.executable, "-m", "ecrec.launch.worker", *options, "--world-size", "3", str(script)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip

        first = start("--rank", "0", "--nproc-per-node", str(count))
        other = None
        try:
            while "sleeps" not in (line := first.stdout.readline()):
                assert line, first.stderr.read()
            first.send_signal(signal.SIGTERM)
            _, errors = first.communicate(timeout=100)
            assert first.returncode == ExitCode.INTERRUPTED, errors
            assert "Traceback" not in errors
            other = start("--rank", "2")
            out, errors = other.communicate(timeout=100)
            assert other.returncode == 0 and out.endswith("done\n"), errors
            assert "split 30 100" in out or "split 130 200" in out, "with the example after its last push"
        finally:
            for process in filter(None, (first, other)):
                process.kill()
                process.communicate()

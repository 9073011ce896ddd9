"""Scripts that open a session without ``with``: what becomes of their last pushes is never unsaid."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")

EXIT_CLEANUP = 120
"""Python's code for errors in the cleanup."""

BEGIN = """
import json, os, pathlib, signal, sys, time
import ecrec
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

SPEC = TableSpec("t", 1000, 8, CodeSpec(2, 1), OptimizerSpec("sgd", (1.0,)), "zeros")

def pids(kind):
    return [pid for name, pid in json.loads(pathlib.Path(sys.argv[1], "cluster.json").read_text())["pids"].items()
            if name.startswith(kind)]

def signal_all(number, kind="ps"):
    for pid in pids(kind):
        os.kill(pid, number)

def begin(**more):
    cluster = ecrec.local_cluster(shards=3, code="2+1", run_dir=sys.argv[1], **more)
    session = cluster.__enter__()
    session.create_tables([SPEC])
    session.push()
    session.flush()
    return cluster, session
"""


def run(directory, script):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(directory)], capture_output=True, text=True, timeout=100
    )
    print(done.stdout, done.stderr)
    return done


def test_the_pushes_of_a_session_that_nobody_closes_become_durable(tmp_path):
    script = """
cluster, session = begin()
for _ in range(5):
    session.push()
import atexit
atexit.register(lambda: print("its own handler"))
print("end", flush=True)
"""
    done = run(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "end\nits own handler\n")


@pytest.mark.parametrize("last", ["", "sys.exit(0)"])
def test_servers_that_all_died_are_an_exit_code_and_the_handlers_of_others_run(tmp_path, last):
    script = """
import atexit
atexit.register(lambda: print("its own handler"))
cluster, session = begin()
signal_all(signal.SIGKILL)
session.push()
print("end")
"""
    done = run(tmp_path, script + last)
    assert done.returncode == EXIT_CLEANUP
    assert "its last 1 push may be lost" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "end\nits own handler\n"


def test_servers_that_all_died_with_everything_durable_are_said_too(tmp_path):
    done = run(tmp_path, "cluster, session = begin()\nsignal_all(signal.SIGKILL)\n")
    assert done.returncode == EXIT_CLEANUP and "a session was not closed" in done.stderr


def test_what_servers_said_before_they_died_is_no_sign_of_life(tmp_path):
    """The answers to these pushes are read at the end alone."""
    script = """
cluster, session = begin()
for _ in range(10):
    session.push()
time.sleep(1)  # a long computation
signal_all(signal.SIGKILL)
"""
    done = run(tmp_path, script)
    assert done.returncode == EXIT_CLEANUP and "a session was not closed" in done.stderr


def test_a_session_that_is_dropped_with_pushes_in_flight_is_an_exit_code(tmp_path):
    """At once: without Python's search for circles. (torch must be there already: the import of it is such a circle,
    which holds all functions that were being called.)"""
    script = """
import gc, ecrec.training
gc.disable()
def train():
    cluster, session = begin()
    signal_all(signal.SIGSTOP)
    session.push()
train()
print("end", file=sys.stderr)
"""
    done = run(tmp_path, script)
    assert done.returncode == EXIT_CLEANUP and done.stderr.endswith("end\n")
    assert "a session was dropped without being closed: its last 1 push may be lost" in done.stderr


def test_a_wait_raises_when_servers_died_for_good(tmp_path):
    script = """
cluster, session = begin(deaths_max=1)
signal_all(signal.SIGKILL)
session.push()
try:
    session.flush()
except ecrec.errors.ClusterError as error:
    print("raised", type(error).__name__)
"""
    done = run(tmp_path, script)
    assert done.stdout.startswith("raised ") and done.returncode == EXIT_CLEANUP


def test_an_exception_of_the_script_keeps_its_exit_code(tmp_path):
    done = run(
        tmp_path, "cluster, session = begin()\nsignal_all(signal.SIGSTOP)\nsession.push()\nraise ValueError(7)\n"
    )
    assert done.returncode == 1 and "ValueError: 7" in done.stderr and "may be lost" in done.stderr


def test_connect_gives_a_session_that_is_closed_by_hand(tmp_path):
    script = """
cluster, session = begin()
endpoint = json.loads(pathlib.Path(sys.argv[1], "cluster.json").read_text())["scheduler"]
other = ecrec.connect(endpoint, rank=1, world_size=2)
other.create_tables([SPEC])
other.push()
other.close()
print(other.machine.durable)
try:
    other.push()
except ecrec.errors.ClusterError as error:
    print(error)
cluster.__exit__(None, None, None)
"""
    done = run(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "True\nthis session is closed: connect again\n")


def test_a_connection_that_is_dropped_with_pushes_that_are_lost_is_an_exit_code(tmp_path):
    script = """
import gc
cluster, session = begin()
endpoint = json.loads(pathlib.Path(sys.argv[1], "cluster.json").read_text())["scheduler"]
other = ecrec.connect(endpoint, rank=1, world_size=2, wait_timeout_ms=2000)
other.create_tables([SPEC])
signal_all(signal.SIGSTOP)
other.push()
del other
gc.collect()
time.sleep(5)
print("later", file=sys.stderr, flush=True)
session.abandon()
signal_all(signal.SIGKILL)
"""
    done = run(tmp_path, script)
    assert done.returncode == EXIT_CLEANUP
    before, _, _ = done.stderr.partition("later")
    assert "a session was dropped without being closed: a session was not closed, and its last 1 push may be" in before

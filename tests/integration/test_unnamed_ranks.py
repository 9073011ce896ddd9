"""``ecrec.connect`` without a rank: it takes no place of a worker that lives, and at once that of one that has left."""

import signal
import subprocess
import sys
import time

import pytest

import ecrec
from ecrec.errors import RefusedError
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster

torch = pytest.importorskip("torch")

TRAINS = """
import sys, time, torch, ecrec
from ecrec.training import SGD
with ecrec.connect(sys.argv[1], code="2+1") as session:
    model = torch.nn.Linear(1, 1)
    session.replicate(model, SGD(lr=0.1))
    while True:
        model(torch.ones(1, 1)).sum().backward()
        session.push()
        print("step", flush=True)
        {meanwhile}
"""
COMPUTES = "end = time.monotonic() + 2.0\n        while time.monotonic() < end: torch.ones(64, 64) @ torch.ones(64, 64)"


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with LocalCluster(ClusterSettings(3, tmp_path / "run")) as servers:
        found = servers.start()
        servers.wait_ready()
        yield found


def start(tmp_path, endpoint, meanwhile="pass"):
    script = tmp_path / "script.py"
    script.write_text(TRAINS.format(meanwhile=meanwhile))
    return subprocess.Popen([sys.executable, str(script), endpoint], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("meanwhile", ["pass", COMPUTES], ids=["steps", "computes"])
def test_a_notebook_that_names_no_rank_does_not_end_the_worker_that_trains(tmp_path, endpoint, meanwhile):
    process = start(tmp_path, endpoint, meanwhile)
    try:
        assert process.stdout.readline() == "step\n"
        for _ in range(2):
            with pytest.raises(RefusedError, match=r"worker 0.*lives.*read_only=True.*rank="):
                ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000)
        with ecrec.connect(endpoint, read_only=True) as session:
            assert session.machine.tables
        for _ in range(3):
            assert process.stdout.readline() == "step\n", "the training goes on"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_script_that_is_started_again_takes_the_place_of_the_one_that_was_killed(tmp_path, endpoint):
    process = start(tmp_path, endpoint)
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    with ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000):
        assert time.monotonic() - begun < 15
    begun = time.monotonic()
    with ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000):
        assert time.monotonic() - begun < 3, "one that has left is not waited for"


def test_a_worker_that_names_its_rank_takes_the_place_at_once(tmp_path, endpoint):
    process = start(tmp_path, endpoint, COMPUTES)
    try:
        assert process.stdout.readline() == "step\n"
        begun = time.monotonic()
        with ecrec.connect(endpoint, code="2+1", rank=0):
            assert time.monotonic() - begun < 3
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.communicate()


DROPS = """
import gc, sys, torch, ecrec
from ecrec.training import SGD
def train():
    session = ecrec.connect(sys.argv[1], code="2+1")
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    session.replicate(model, SGD(lr=0.5))
    session.optimizer.param_groups[0]["lr"] = 0.25
    model(torch.ones(1, 1)).sum().backward()
    session.push()
train()
gc.collect()
print("dropped", flush=True)
sys.stdin.read()
"""


def trained(session):
    model = torch.nn.Linear(1, 1, bias=False)
    session.replicate(model, ecrec.training.SGD(lr=0.5))
    return model.weight.item()


def test_a_session_that_another_process_dropped_is_no_worker_any_more(tmp_path, endpoint):
    """Also while that process lives; what it pushed is durable."""
    process = subprocess.Popen(
        [sys.executable, "-c", DROPS, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "dropped\n"
        begun = time.monotonic()
        with ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000) as session:
            assert trained(session) == 0.75
        assert time.monotonic() - begun < 15
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_a_cell_of_a_notebook_may_be_run_again(endpoint):
    """The session of before is dropped when the name is given to the new one, or before that."""

    def cell():
        session = ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000)
        weight = trained(session)
        session.push()
        return session, weight

    session, _ = cell()
    with pytest.raises(RefusedError, match=r"lives.*This process has a session that is open.*close\(\) it first"):
        ecrec.connect(endpoint, code="2+1", wait_timeout_ms=20_000)
    del session
    begun = time.monotonic()
    session, _ = cell()
    assert time.monotonic() - begun < 3, "one that has left is not waited for"
    session.close()

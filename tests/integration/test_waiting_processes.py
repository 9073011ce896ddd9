"""Workers that wait for servers: for how long, and what they say meanwhile."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from processes import DEADLINE_S, SHARDS, Proxied

from ecrec.errors import ClusterError
from ecrec.protocol.messages import DOWN, UP
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

SPEC = TableSpec("t", 1000, 8, CodeSpec(4, 1), OptimizerSpec("sgd", (1.0,)), "zeros")


def test_a_shard_that_one_worker_alone_does_not_reach_is_named_shown_and_not_replaced(proxied: Proxied) -> None:
    training = pytest.importorskip("ecrec.training")
    proxied.scheduler()
    proxied.shards_behind_proxies(1)
    session = training.connect(proxied.endpoint, wait_timeout_ms=6000)
    session.create_tables([SPEC])
    me = {connection.laddr.port for connection in psutil.Process().net_connections("tcp")}
    for proxy in proxied.proxies:
        proxy.swallow(me)
    failed: list[Exception] = []

    def push() -> None:
        session.push()
        try:
            session.flush()
        except ClusterError as error:
            failed.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    state = proxied.wait(lambda state: 1 in state.unheard)
    assert state.unheard[1][0] >= 1000
    thread.join(DEADLINE_S)
    (error,) = failed
    endpoint = proxied.proxies[1].endpoint
    assert f"shard 1 of 5 at {endpoint} has not answered this worker for" in str(error), error
    assert "shards are up" not in str(error)
    session.abandon()
    state = proxied.wait(lambda state: True)
    assert [(shard.state, shard.epoch) for shard in state.shards] == [(UP, 1)] * SHARDS
    assert "worker 0 has not heard shard 1 (epoch 1)" in proxied.logs()


SCRIPT = """
import ecrec.training.connection as connection
connection.SAID_S = 0.5
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
import ecrec, sys
with ecrec.connect() as session:
    session.create_tables([TableSpec("t", 1000, 8, CodeSpec(4, 1), OptimizerSpec("sgd", (1.0,)), "zeros")])
    print("ready", flush=True)
    sys.stdin.readline()
    session.push()
    session.flush()
    print("durable", flush=True)
"""


def test_a_worker_waits_as_long_as_a_recovery_is_possible_and_says_for_whom(proxied: Proxied, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    proxied.scheduler()
    shards = proxied.all_shards()
    command = [sys.executable, "-m", "ecrec.launch.worker", "--scheduler", proxied.endpoint, str(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin and worker.stdout and worker.stderr
        assert worker.stdout.readline() == "ready\n"
        shards[2].kill()
        proxied.wait(lambda state: state.shards[2].state == DOWN)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        said = ""
        while "shard 2 of 5 at tcp://127.0.0.1:" not in said or "has been down for" not in said:
            said = worker.stderr.readline()
            assert said
        proxied.shard("--spare")
        assert worker.stdout.readline() == "durable\n"
        worker.communicate(timeout=DEADLINE_S)
        assert worker.returncode == 0

"""The pages of real servers and workers, through a death and a recovery."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import get
from processes import DEADLINE_S, SHARDS, Cluster, Worker, ready_line

HTTP = ("--http", "127.0.0.1:0")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(url: str) -> dict[str, float]:
    """Sample, with its labels as written -> value."""
    status, text = get(f"{url}/metrics")
    assert status == 200, text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_servers_tell_whether_they_are_ready_and_count_what_they_do(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    cluster = Cluster(tmp_path, "ipc")
    try:
        early = cluster.program("ps", "--scheduler", f"ipc://{tmp_path}/s", "--bind", cluster.bind(), *HTTP)
        alone = ready_line(early)["http"]
        assert get(f"{alone}/healthz") == (200, "ok\n")
        assert get(f"{alone}/readyz") == (503, "no scheduler has answered yet\n")
        early.kill()

        process = cluster.program(
            "scheduler", "--bind", cluster.bind(), "--shards", str(SHARDS), "--state", ":memory:", *HTTP
        )
        ready = ready_line(process)
        cluster.endpoint, scheduler = ready["endpoint"], ready["http"]
        assert get(f"{scheduler}/readyz") == (200, "ok\n"), "members must reach it before there is a cluster"
        shards = [cluster.shard("--shard", str(number), *HTTP) for number in range(SHARDS)]
        urls = [ready_line(shard)["http"] for shard in shards]
        until(lambda: all(get(f"{url}/readyz")[0] == 200 for url in urls))
        cluster.worker = Worker(cluster.endpoint)
        cluster.worker.start()
        cluster.push(20)
        cluster.worker.flush()
        until(lambda: sum(metrics(url)["ecrec_pushes_total"] for url in urls) == 20 * SHARDS)
        spare = cluster.shard("--spare", *HTTP)
        url = ready_line(spare)["http"]
        until(lambda: get(f"{url}/readyz")[0] == 200)
        assert metrics(url)['ecrec_state{state="spare"}'] == 1.0
        until(lambda: metrics(scheduler)["ecrec_spares"] == 1)
        assert metrics(scheduler)['ecrec_deaths_tolerated{group="0"}'] == 1

        shards[2].kill()
        until(lambda: metrics(scheduler)["ecrec_replacements_total"] == 1)
        cluster.push(5)
        cluster.whole({2: 2})
        until(lambda: get(f"{url}/readyz")[0] == 200 and metrics(url)['ecrec_state{state="up"}'] == 1)
        until(lambda: "ecrec_last_recovery_seconds" in metrics(scheduler))
        figures = metrics(scheduler)
        assert figures['ecrec_shards{state="up"}'] == SHARDS and figures["ecrec_data_lost"] == 0
        assert figures['ecrec_shard_epoch{shard="2"}'] == 2 and 0 < figures["ecrec_last_recovery_seconds"] < DEADLINE_S
        assert metrics(url)["ecrec_shard"] == 2 and metrics(url)["ecrec_data_rows_touched"] > 0
        cluster.check(25)
    finally:
        cluster.close()


def test_a_server_whose_loop_hangs_is_not_healthy(tmp_path: Path) -> None:
    """SIGSTOP would stop the thread of the pages, too: here the loop alone is kept from going on."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import sys, time\n"
        "from ecrec.launch import watched\n"
        "from ecrec.launch.servers import figures, ps\n"
        "watched.HUNG_S = 0.5\n"
        "def hang(machine):\n"
        "    print('hangs', flush=True)\n"
        "    time.sleep(3600)\n"
        "figures.of_shard = hang\n"
        "ps.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), "--scheduler", f"ipc://{tmp_path}/s", "--bind", f"ipc://{tmp_path}/p", *HTTP],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = ready_line(process)["http"]
        assert process.stdout.readline() == "hangs\n"
        until(lambda: get(f"{url}/healthz")[0] == 503)
        assert "its loop has made no step for" in get(f"{url}/healthz")[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


SCRIPT = """
import sys
import torch
import ecrec
from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, SGD

print("begins", flush=True)
sys.stdin.readline()
with ecrec.connect() as session:
    table = EmbeddingBagConfig(100, 8, "t", feature_names=["t"])
    bags = EmbeddingBagCollection(session, [table], SGD(lr=0.1))
    for _ in range(3):
        features = KeyedJaggedTensor.from_ids(["t"], torch.arange(16).reshape(1, 16))
        for batch in session.prefetch([features], features=lambda batch: batch):
            bags(batch).values().sum().backward()
            session.push(16)
    session.flush()
    print("trained", flush=True)
    sys.stdin.readline()
"""


def test_a_worker_shows_its_session(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("prometheus_client")
    cluster = Cluster(tmp_path, "ipc")
    worker = None
    try:
        cluster.scheduler()
        cluster.all_shards()
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        worker = subprocess.Popen(
            [sys.executable, "-m", "ecrec.launch.worker", *HTTP, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "ECREC_SCHEDULER": cluster.endpoint},
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
        url = worker.stderr.readline().split()[-1]
        assert worker.stdout.readline() == "begins\n"
        assert get(f"{url}/readyz") == (503, "the script has no session yet\n")
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "trained\n"
        assert get(f"{url}/readyz") == (200, "ok\n")
        figures = metrics(url)
        assert figures["ecrec_steps_total"] == 3 and figures["ecrec_examples_total"] == 48
        assert figures["ecrec_bytes_pushed_total"] > 0
        worker.stdin.write("end\n")
        worker.stdin.flush()
        assert worker.wait(DEADLINE_S) == 0
    finally:
        if worker is not None:
            worker.kill()
            worker.communicate()
        cluster.close()

"""Workers that die, or stand still and come back: every example is trained on, and what was repeated is counted."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from runs import SMALL, cluster, wait_until, words

from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
from ecrec.launch.tools.verify import cluster_state, scrub

STEPS, BATCH = 40, 256
OPTIONS = (*SMALL, "--steps", str(STEPS), "--batch", str(BATCH))


def check(finished, deaths):
    """The run ended well, every example counts once, and so many workers died."""
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["kills_not_done"] == [], finished.story
    assert report["worker_deaths"] == deaths, finished.story
    assert report["examples_trained"] == STEPS * BATCH, finished.story
    # What a dead worker had in flight: at most a push for each that a worker keeps, and here a window of one.
    assert 0 <= report["examples_repeated"] <= report["examples"] - report["examples_trained"] + deaths * BATCH
    assert report["splits_handed_on"] >= (1 if deaths else 0), finished.story
    assert report["lost_updates"] == 0, finished.story
    assert report["parity_ok"] is True, finished.story
    assert report["auc"] > 0.6, finished.story
    return report


def test_killed_workers_are_replaced_and_every_example_is_trained_on(trainer):
    kills = ("worker:1@8", "worker:0@20", "worker:2@20", "ps:2@25")
    finished = trainer.run(*OPTIONS, "--workers", "3", *(w for kill in kills for w in ("--kill", kill)))
    report = check(finished, 3)
    assert [(kill["shard"], kill["step"]) for kill in report["kills"]] == [(2, 25)]
    assert report["steps"] >= STEPS


def test_the_only_worker_is_killed(trainer):
    check(trainer.run(*OPTIONS, "--kill", "worker:0@10"), 1)


def test_a_worker_that_stood_still_is_fenced_when_it_comes_back(trainer):
    options = (*SMALL, "--steps", "150", "--batch", "256", "--workers", "3", "--lease-timeout-ms", "1500")
    run = trainer.start(*options, "--kill", "worker:2@50")
    process, run_dir, _ = run
    words(process, "step 1/")
    endpoint = cluster(run_dir)["scheduler"]
    wait_until(lambda: cluster_state(endpoint).workers.get(1, {}).get("steps"))  # it may be the last one to start
    zombie = next(p for p in workers(process) if p.environ()["RANK"] == "1")
    zombie.suspend()
    wait_until(lambda: cluster_state(endpoint).fenced.get(1))  # a program of its own may be too slow: they end it
    zombie.resume()
    finished = trainer.finish(*run)
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["worker_deaths"] == 2, finished.story
    assert report["examples_trained"] == 150 * 256, finished.story
    assert report["splits_handed_on"] >= 2, finished.story
    assert report["lost_updates"] == 0, finished.story
    assert report["parity_ok"] is True, finished.story
    log = (run_dir / "logs" / "worker-1.log").read_text()
    assert "is over" in log or "fenced" in log, finished.story


def workers(launcher):
    return [p for p in psutil.Process(launcher.pid).children() if "ecrec.train.worker" in p.cmdline()]


def test_a_worker_that_never_comes_back_does_not_hold_up_the_others(trainer):
    run = trainer.start(*SMALL, "--steps", "100", "--workers", "3", "--lease-timeout-ms", "1500")
    process, run_dir, _ = run
    words(process, "step 1/")
    endpoint = cluster(run_dir)["scheduler"]
    wait_until(lambda: cluster_state(endpoint).workers.get(1, {}).get("steps"))
    next(p for p in workers(process) if p.environ()["RANK"] == "1").suspend()
    finished = trainer.finish(*run)
    assert finished.code == 0, finished.story
    assert finished.report["examples_trained"] == 100 * 256, finished.story
    assert finished.report["worker_deaths"] == 1, finished.story


COUNTING = """
import sys
import time
import torch
import ecrec
from ecrec.training import SGD, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

EXAMPLES, BATCH = 10_000, 20
with ecrec.connect() as session:
    # a row for each example: each time that it is trained on, its weights grow by exactly one
    tables = [EmbeddingBagConfig(EXAMPLES, 4, "times", feature_names=["example"], init_scale=0.0)]
    sparse = EmbeddingBagCollection(session, tables, SGD(lr=1.0))
    for split in session.lease_splits("examples", EXAMPLES, split_examples=10 * BATCH):
        batches = (
            KeyedJaggedTensor.from_ids(["example"], torch.arange(at, min(at + BATCH, split.last))[None, :])
            for at in range(split.first, split.last, BATCH)
        )
        for batch in session.prefetch(batches, sparse):
            (-sparse(batch).values()).sum().backward()
            session.push(BATCH)
            print(split.first, flush=True)
    if session.rank == 0:
        with torch.no_grad():
            every = KeyedJaggedTensor.from_ids(["example"], torch.arange(EXAMPLES)[None, :])
            times = sparse(every).values()
        assert (times == times[:, :1]).all()
        print("times", *times[:, 0].int().tolist(), flush=True)
"""


def test_users_scripts_count_every_example_exactly(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(COUNTING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(rank):
        return subprocess.Popen(
            [sys.executable, "-m", "ecrec.launch.worker", "--rank", str(rank), "--world-size", "3", str(script)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    with LocalCluster(ClusterSettings(5, tmp_path / "run")) as servers:
        environment["ECREC_SCHEDULER"] = endpoint = servers.start()
        servers.wait_ready()
        running = [start(rank) for rank in range(3)]
        try:
            kills = 0
            for rank in (1, 2, 1):
                # The last one may find that the others have done it all.
                if sum(bool(running[rank].stdout.readline()) for _ in range(15)) == 15:
                    running[rank].send_signal(signal.SIGKILL)
                    running[rank].communicate()
                    running[rank] = start(rank)
                    kills += 1
            ended = [process.communicate(timeout=100) for process in running]
        finally:
            for process in running:
                process.kill()
                process.communicate()
        assert [process.returncode for process in running] == [0, 0, 0], [err for _, err in ended]
        (figures,) = cluster_state(endpoint).datasets
        outcome = scrub(endpoint, 30)
    (line,) = [line for line in ended[0][0].splitlines() if line.startswith("times")]
    times = [int(word) for word in line.split()[1:]]
    assert len(times) == figures.trained == 10_000
    assert min(times) == 1
    assert 1 <= figures.deaths <= kills
    # A row lies on one shard, and a batch counts as repeated where any shard had it.
    assert sum(times) - 10_000 <= figures.repeated <= kills * 16 * 20
    assert outcome.ok is True


@pytest.mark.parametrize("beats", [True, False])
def test_a_worker_that_computes_for_long_is_not_taken_for_dead(tmp_path, beats):
    """Longer than the scheduler waits for a worker that says nothing; without its heartbeat it is fenced."""
    torch = pytest.importorskip("torch")
    from ecrec.errors import FencedError
    from ecrec.training import SGD, connect

    module = torch.nn.Linear(8, 8)
    with LocalCluster(ClusterSettings(3, tmp_path, lease_timeout_ms=2500)) as servers:
        endpoint = servers.start()
        servers.wait_ready()
        with connect(endpoint, code="2+1", wait_timeout_ms=30_000) as session:
            session.replicate(module, SGD(lr=0.1))
            if not beats:
                session._connection._heartbeat.stop()
            splits = session.lease_splits("data", 100, split_examples=50)
            next(splits)
            end = time.monotonic() + 8.0
            while time.monotonic() < end:
                torch.ones(64, 64) @ torch.ones(64, 64)
            if beats:
                module(torch.ones(1, 8)).sum().backward()
                session.push(50)
                next(splits)
                session.push(50)
                assert list(splits) == [] and not cluster_state(endpoint).fenced
                return
            with pytest.raises(FencedError):
                session.wait(lambda: False, "the news")
            session.abandon()

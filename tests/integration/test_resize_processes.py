"""A cluster that goes on with another number of servers, by one command: on real processes."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest
from processes import Processes, Worker, ready_line
from runs import SMALL, cluster, words

from ecrec.checkpoint.reading import checkpoints
from ecrec.launch.resize import by_hand
from ecrec.launch.tools.verify import cluster_state, scrub

LONG = pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes long: ECREC_LONG_FAULTS=1")
EXACT = (*SMALL, "--prefetch", "0", "--steps", "400", "--batch", "64")


def resize(run_dir, *options):
    command = [sys.executable, "-m", "ecrec.cli", "resize", "--run-dir", str(run_dir), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@LONG
def test_a_run_goes_on_with_other_servers_and_the_same_model(trainer, undisturbed):
    started = trainer.start(*EXACT)
    process, run_dir, _ = started
    words(process, "step ")
    done = resize(run_dir, "--shards", "7", "--code", "3+2")
    assert done.returncode == 0, done.stderr
    assert "training goes on with 7 servers; it stood still for " in done.stdout
    assert sum(name.startswith("ps ") for name in cluster(run_dir)["pids"]) == 7
    finished = trainer.finish(*started)
    assert finished.code == 0, finished.story
    report = finished.report
    (entry,) = report["resizes"]
    assert report["rewinds"] == [] and entry["reason"] == "resized to 7 servers, code 3+2", finished.story
    assert f"{entry['examples_repeated']:,} examples are repeated" in done.stdout
    assert report["examples"] == 400 * 64 + entry["examples_repeated"] and report["config"]["shards"] == 7
    assert report["parity_ok"] is True and report["lost_updates"] == 0, finished.story
    assert report["model_digest"] == undisturbed(*EXACT[len(SMALL) :])["model_digest"], finished.story


@LONG
def test_a_cluster_by_hand_is_saved_and_restored_when_it_is_there_again(tmp_path_factory):
    directory = tmp_path_factory.mktemp("c")
    url = str(directory / "checkpoints")
    with contextlib.closing(Processes(directory, "tcp")) as processes:
        processes.scheduler()
        processes.all_shards()
        worker = Worker(processes.endpoint)
        worker.start()
        worker.push()
        worker.until(lambda: worker.machine.durable)
        worker.node.close()
        said, told, outcome = [], threading.Event(), []

        def say(text):
            said.append(text)
            told.set()

        thread = threading.Thread(
            target=lambda: outcome.append(by_hand(processes.endpoint, url, 6, "4+2", 120.0, say)), daemon=True
        )
        thread.start()
        assert told.wait(60)
        assert "start the scheduler with --shards 6 and a new state" in said[0], said
        for process in processes.running:
            process.kill()
            process.wait()
        arguments = ("--bind", processes.endpoint, "--shards", "6", "--state", str(directory / "new-state"))
        assert ready_line(processes.program("scheduler", *arguments))["ready"] == "scheduler"
        for number in range(6):
            processes.shard("--shard", str(number))
        thread.join(120)
        assert outcome and outcome[0].rows == 200 and outcome[0].seconds > 0, (said, processes.logs())
        state = cluster_state(processes.endpoint)
        assert [(table.name, str(table.code)) for table in state.tables] == [("t", "4+2")]
        assert (state.restored.url, state.restored.checkpoint) == (url, outcome[0].checkpoint)
        assert scrub(processes.endpoint, 60.0).ok is True
    assert checkpoints(url)[-1].number == outcome[0].checkpoint

"""Checkpoints of real servers: training stopped, brought into another cluster, and finished, to the last bit."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from runs import SMALL

from ecrec.checkpoint.checking import check
from ecrec.checkpoint.reading import checkpoints, open_checkpoint

EXACT = (*SMALL, "--prefetch", "0")
SHAPES = (("5", "4+1"), ("6", "4+2"), ("3", "1+2"), ("10", "4+1"))
LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"


def run(trainer, *options):
    finished = trainer.run(*options)
    assert finished.code == 0, finished.story
    assert finished.report["parity_ok"] is True and finished.report["lost_updates"] == 0, finished.story
    return finished


def test_training_goes_on_in_other_clusters_as_if_it_had_never_stopped(trainer, tmp_path):
    """Stopped three times, each time restored on other servers and under another code; a server dies on the way."""
    url = str(tmp_path / "checkpoints")
    whole = run(trainer, *EXACT)
    options = [*EXACT, "--checkpoint", url]
    for number, (stop, (shards, code)) in enumerate(zip((7, 15, 22, 30), SHAPES, strict=True)):
        options[options.index("--steps") + 1] = str(stop)
        resume = ("--resume", url) if number else ()
        groups = ("--groups", "2") if shards == "10" else ()
        kill = ("--kill", "ps:1@2") if number == 1 else ()
        finished = run(trainer, *options, "--shards", shards, "--code", code, *groups, *resume, *kill)
        assert finished.report["examples_trained"] == stop * 256, finished.story
    assert finished.report["model_digest"] == whole.report["model_digest"], finished.story
    assert finished.report["auc"] == whole.report["auc"]
    assert [info.number for info in checkpoints(url) if info.is_complete]
    assert check(url).problems == []


@pytest.mark.skipif(not LONG, reason="takes minutes: ECREC_LONG_FAULTS=1")
@pytest.mark.parametrize("stop", (3, 11, 14, 19, 28))
@pytest.mark.parametrize(("shards", "code"), SHAPES[1:])
def test_training_stopped_anywhere_ends_with_the_same_model(trainer, tmp_path, stop, shards, code):
    url = str(tmp_path / "checkpoints")
    whole = run(trainer, *EXACT)
    options = list(EXACT)
    options[options.index("--steps") + 1] = str(stop)
    run(trainer, *options, "--checkpoint", url)
    again = run(trainer, *EXACT, "--resume", url, "--shards", shards, "--code", code)
    assert again.report["model_digest"] == whole.report["model_digest"], again.story


def test_checkpoints_back_to_back_change_nothing_and_servers_may_die_meanwhile(trainer, tmp_path):
    url = tmp_path / "checkpoints"
    steps = ("--steps", "300", "--dim", "32")
    calm = run(trainer, *EXACT, *steps)
    busy = run(
        trainer, *EXACT, *steps, "--checkpoint", str(url), "--checkpoint-every", "50ms", "--checkpoint-keep", "2",
        "--kill", "ps:2@100", "--kill", "ps:0@200",
    )  # fmt: skip
    assert busy.report["model_digest"] == calm.report["model_digest"], busy.story
    assert len(busy.report["checkpoints"]) >= 2, busy.story
    complete = [info for info in checkpoints(str(url)) if info.is_complete]
    assert len(complete) == 2 and check(str(url)).problems == []
    # The last one is of the end: it gives the model that was trained.
    again = run(trainer, *EXACT, *steps, "--resume", str(url), "--shards", "6", "--code", "4+2")
    assert again.report["model_digest"] == calm.report["model_digest"], again.story


@pytest.mark.skipif(not LONG, reason="takes long: ECREC_LONG_FAULTS=1")
def test_increments_back_to_back_with_deaths_give_the_model_that_was_trained(trainer, tmp_path):
    """Servers that are replaced write all their rows; what is merged is brought into other servers, bit for bit."""
    url = tmp_path / "checkpoints"
    steps = ("--steps", "300", "--dim", "32")
    calm = run(trainer, *EXACT, *steps)
    busy = run(
        trainer, *EXACT, *steps, "--checkpoint", str(url), "--checkpoint-every", "50ms", "--checkpoint-keep", "2",
        "--checkpoint-incremental", "--kill", "ps:2@100", "--kill", "ps:0@200",
    )  # fmt: skip
    assert busy.report["model_digest"] == calm.report["model_digest"], busy.story
    infos = checkpoints(str(url))
    assert all(info.is_complete for info in infos) and any(info.base for info in infos), busy.story
    assert check(str(url)).problems == []
    again = run(trainer, *EXACT, *steps, "--resume", str(url), "--shards", "6", "--code", "4+2")
    assert again.report["model_digest"] == calm.report["model_digest"], again.story


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(trainer, tmp_path):
    """SIGKILL to everything: what no parity helps against."""
    url = str(tmp_path / "checkpoints")
    whole = run(trainer, *EXACT, "--steps", "400")
    process, _, _ = trainer.start(
        *EXACT, "--steps", "400", "--checkpoint", url, "--checkpoint-every", "100ms"
    )  # fmt: skip
    end = time.monotonic() + 60
    try:
        while pushes_in(url) < 50:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    newest = open_checkpoint(url)
    assert newest.manifest.workers == [0]
    again = run(trainer, *EXACT, "--steps", "400", "--resume", url)
    assert again.report["model_digest"] == whole.report["model_digest"], again.story
    assert again.report["examples_trained"] == whole.report["examples_trained"]
    assert 0 < again.report["examples"] < whole.report["examples"]


def pushes_in(url):
    """Pushes of worker 0 in the newest complete checkpoint; 0: there is none."""
    complete = [info.number for info in checkpoints(url) if info.is_complete]
    return open_checkpoint(url, complete[-1]).index(0).watermarks.get(0, 0) if complete else 0


def test_two_workers_in_step_are_cut_at_one_barrier(trainer, tmp_path):
    url = str(tmp_path / "checkpoints")
    options = (*EXACT, "--workers", "2", "--sync", "--steps", "200", "--optimizer", "adam")
    calm = run(trainer, *options)
    busy = run(trainer, *options, "--checkpoint", url, "--checkpoint-every", "50ms")
    assert busy.report["model_digest"] == calm.report["model_digest"], busy.story
    assert busy.report["checkpoints"], busy.story
    assert check(url).problems == []


def test_a_cluster_that_has_tables_is_not_restored_into(tmp_path):
    """And a session saves what it has pushed, and nothing of what it has not."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch
import ecrec
from ecrec.errors import RefusedError
from ecrec.checkpoint.restore import restore
from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad

url = sys.argv[1]
def bags_of(session):
    tables = [EmbeddingBagConfig(500, 8, "items", feature_names=["item"])]
    return EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1))
def step(bags, ids):
    bags(KeyedJaggedTensor.from_ids(["item"], torch.tensor([ids]))).values().sum().backward()
def weights(bags):
    return bags.state_dict()["embedding_bags.items.weight"]

with ecrec.local_cluster(shards=3, code="2+1") as session:
    bags = bags_of(session)
    step(bags, [1, 2, 3, 250]); session.push()
    number = session.save(url)
    saved = weights(bags).clone()
    step(bags, [1, 499]); session.push()
    try:
        restore(session.scheduler[0], url)
    except RefusedError as error:
        assert "has tables already ('items')" in str(error), error
    else:
        raise AssertionError("restored into a cluster with tables")
    assert number == 1 and not torch.equal(weights(bags), saved)
with ecrec.local_cluster(shards=5, code="3+2", restore=url) as session:
    bags = bags_of(session)
    assert torch.equal(weights(bags), saved)
    step(bags, [7]); session.push()
    assert session.save(url) == 2, "a new cluster goes on with the numbers that are there"
"""
    )
    url = tmp_path / "checkpoints"
    done = subprocess.run([sys.executable, script, url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [info.number for info in checkpoints(str(url))] == [1, 2]


def test_a_storage_that_fails_is_told(trainer, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    finished = trainer.run(*EXACT, "--checkpoint", str(blocked / "checkpoints"))
    assert finished.code == 1, finished.story
    assert "training is done, without a last checkpoint" in finished.err, finished.story
    assert "Not a directory" in finished.err, finished.story
    assert finished.report["parity_ok"] is True and finished.report["checkpoints"] == []

"""A user's own script: ecrec.local_cluster, and ecrec.connect under ecrec-worker, with servers that die."""

import json
import os
import signal
import subprocess
import sys

import pytest
from runs import left_over

import ecrec
from ecrec.errors import ConfigurationError
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
from ecrec.launch.tools.verify import scrub

TRAINING = """
import torch
from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad, SGD
from ecrec.training.digest import model_digest

def train(session, steps, at_step=lambda step: None):
    tables = [EmbeddingBagConfig(500, 8, "C1"), EmbeddingBagConfig(300, 8, "C2")]
    sparse = EmbeddingBagCollection(session, tables, optimizer=RowWiseAdagrad(lr=0.05), seed=3)
    torch.manual_seed(3)
    model = torch.nn.Linear(16, 1)
    dense = session.replicate(model, SGD(lr=0.05))
    draw = torch.Generator().manual_seed(5)
    losses = []

    def batches():
        for _ in range(steps):
            c1 = torch.randint(500, (1, 64), generator=draw)
            c2 = torch.randint(300, (1, 64), generator=draw)
            yield KeyedJaggedTensor.from_ids(["C1", "C2"], torch.cat([c1, c2]))

    for step, batch in enumerate(session.prefetch(batches(), sparse, dense)):
        at_step(step)
        labels = (batch.values()[:64] % 2).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(sparse(batch).values()).squeeze(1), labels)
        loss.backward()
        session.push(len(labels))
        losses.append(loss.item())
    return model_digest(session, [*sparse.specs, dense.spec]), losses
"""


@pytest.fixture
def training():
    pytest.importorskip("torch")
    names = {}
    exec(TRAINING, names)
    return names["train"]


def test_a_local_cluster_trains_and_replaces_a_server_that_dies(training, tmp_path):
    def run(name, at_step):
        run_dir = tmp_path / name
        with ecrec.local_cluster(shards=3, code="2+1", run_dir=str(run_dir)) as session:
            outcome = training(session, 12, lambda step: at_step(step, run_dir))
        assert left_over(run_dir) == []
        return outcome

    def kill_one(step, run_dir):
        if step == 5:
            os.kill(json.loads((run_dir / "cluster.json").read_text())["pids"]["ps 1"], signal.SIGKILL)

    calm, losses = run("calm", lambda step, run_dir: None)
    assert losses[-1] != losses[0]
    assert run("broken", kill_one) == (calm, losses)


def test_a_script_under_ecrec_worker_joins_by_its_environment(training, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        TRAINING
        + "import ecrec, sys\n"
        + "with ecrec.connect(code=sys.argv[1]) as session:\n"
        + "    print(train(session, 8)[0])\n"
    )
    with LocalCluster(ClusterSettings(3, tmp_path / "run")) as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        worker = subprocess.run(
            [sys.executable, "-m", "ecrec.launch.worker", "--scheduler", endpoint, str(script), "2+1"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert worker.returncode == 0, worker.stderr
        outcome = scrub(endpoint, 30)
    assert len(worker.stdout.strip()) == 64
    assert outcome.ok is True
    assert outcome.stripes > 100


@pytest.mark.parametrize(("shards", "code"), [(3, "3+1"), (0, "1+1"), (5, "4")])
def test_a_cluster_that_cannot_be_is_refused_before_anything_starts(shards, code, tmp_path):
    pytest.importorskip("torch")
    with (
        pytest.raises(ConfigurationError),
        ecrec.local_cluster(shards=shards, code=code, run_dir=str(tmp_path / "run")),
    ):
        pass
    assert not (tmp_path / "run").exists()

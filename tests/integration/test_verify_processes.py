"""``ecrec verify`` on servers whose memory is damaged, while a worker trains and a server is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ecrec.exit_codes import ExitCode
from ecrec.launch.connect import Keeper
from ecrec.launch.local.cluster import CLUSTER_FILE, ClusterSettings, LocalCluster
from ecrec.launch.tools.verify import cluster_state, scrub
from ecrec.protocol.messages import UP

DEADLINE_S = 60.0
VICTIM, KILLED = 4, 1


class Training:
    """A model in a session; `step` does one step of it."""

    def __init__(self, session):
        import torch

        from ecrec.training import EmbeddingBagCollection, EmbeddingBagConfig, RowWiseAdagrad, SGD  # isort: skip

        tables = [
            EmbeddingBagConfig(500, 8, "C1"),
            EmbeddingBagConfig(300, 8, "C2"),
        ]
        self.torch, self.session = torch, session
        self.sparse = EmbeddingBagCollection(session, tables, optimizer=RowWiseAdagrad(lr=0.05), seed=3)
        self.model = torch.nn.Linear(16, 1)
        self.dense = session.replicate(self.model, SGD(lr=0.05))

    def steps(self, count):
        from ecrec.training import KeyedJaggedTensor

        torch = self.torch

        def batches():
            for _ in range(count):
                ids = torch.cat([torch.randint(500, (1, 64)), torch.randint(300, (1, 64))])
                yield KeyedJaggedTensor.from_ids(["C1", "C2"], ids)

        for batch in self.session.prefetch(batches(), self.sparse, self.dense):
            labels = (batch.values()[:64] % 2).float()
            logits = self.model(self.sparse(batch).values()).squeeze(1)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
            self.session.push(len(labels))
        # Then there is parity to damage.
        self.session.flush()


class Damaged:
    """A local cluster of servers that damage their own parity at SIGUSR1."""

    def __init__(self, directory, monkeypatch):
        self.directory = directory
        self.flipped = directory / "flipped.json"
        monkeypatch.setenv("FLIPPED_FILE", str(self.flipped))
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        self.cluster = LocalCluster(ClusterSettings(5, directory, shard_module="flipping_ps"))

    def pid(self, shard):
        return json.loads((self.directory / CLUSTER_FILE).read_text())["pids"][f"ps {shard}"]

    def flip(self, shard):
        """Damage a shard's parity; returns what `ecrec verify` must say of it."""
        self.flipped.unlink(missing_ok=True)
        os.kill(self.pid(shard), signal.SIGUSR1)
        wait(self.flipped.exists, "the flip")
        told = json.loads(self.flipped.read_text())
        return {**told, "table": self.state().tables[told["table"]].name}

    def state(self):
        return cluster_state(self.cluster.endpoint)

    def verify(self, *options):
        return subprocess.run(
            [sys.executable, "-m", "ecrec.cli", "verify", "--scheduler", self.cluster.endpoint, *options],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip


class SlowScrub(threading.Thread):
    """A scrub that takes some seconds."""

    def __init__(self, endpoint):
        super().__init__()
        self.endpoint = endpoint
        self.outcomes = []
        self.rounds = 0

    def run(self):
        self.outcomes.append(scrub(self.endpoint, DEADLINE_S, self.count, repair=True, rate_mb_s=0.05))

    def count(self):
        self.rounds += 1

    @property
    def under_way(self):
        """It has asked, and been answered, for a while."""
        return self.rounds >= 10


def wait(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"no {what} in {DEADLINE_S} s"
        time.sleep(0.02)


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    return Damaged(tmp_path, monkeypatch)


def test_a_flipped_byte_of_parity_is_found_and_repaired_while_training_goes_on(damaged):
    from ecrec.training import connect

    with damaged.cluster as cluster:
        endpoint = cluster.start()
        cluster.wait_ready()
        with Keeper(cluster), connect(endpoint, code="3+2") as session:
            training = Training(session)
            training.steps(10)

            # ---- at rest: reported, repaired, clean
            flipped = damaged.flip(VICTIM)
            reported = damaged.verify("--no-repair", "--json")
            assert reported.returncode == ExitCode.DAMAGED, reported
            (bad,) = json.loads(reported.stdout)["bad"]
            assert {name: bad[name] for name in flipped} == flipped
            assert (bad["located"], bad["repaired"]) == (True, False)
            repaired = damaged.verify()
            assert repaired.returncode == ExitCode.REPAIRED, repaired
            where = f"table {flipped['table']}, stripe {flipped['stripe']}"
            what = f"parity row {flipped['parity']} on shard {VICTIM} is wrong; rewritten from the data rows"
            assert f"{where}: {what}" in repaired.stdout
            clean = damaged.verify()
            assert clean.returncode == 0, clean
            assert "all parity fits" in clean.stdout

            # ---- slowly, under pushes, and a server is killed in the middle
            flipped = damaged.flip(VICTIM)
            slow = SlowScrub(endpoint)
            slow.start()
            try:
                while not slow.under_way:
                    training.steps(1)
                assert slow.is_alive()
                os.kill(damaged.pid(KILLED), signal.SIGKILL)
                wait(lambda: damaged.state().shards[KILLED].epoch > 1, "replacement")
                assert slow.is_alive()
                while slow.is_alive():
                    training.steps(1)
            finally:
                slow.join()
            (outcome,) = slow.outcomes
            (bad,) = [stripe._asdict() for stripe in outcome.bad]
            assert {name: bad[name] for name in flipped} == flipped
            assert (bad["located"], bad["repaired"]) == (True, True)
            assert outcome.stripes > 250
            wait(lambda: all(shard.state == UP for shard in damaged.state().shards), "whole cluster")
            clean = damaged.verify()
            assert clean.returncode == 0, clean

"""More servers die than the code tolerates, and training goes back to a checkpoint by itself: on real processes."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import SMALL, cluster

import ecrec
from ecrec.checkpoint.reading import checkpoints, open_checkpoint
from ecrec.errors import ConfigurationError
from ecrec.training import SGD, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad
from ecrec.training.digest import model_digest

EXACT = (*SMALL, "--prefetch", "0", "--steps", "150")
BACK = ("--on-data-loss", "restore")


def pushes_in(url):
    """Pushes of worker 0 in the newest complete checkpoint; 0: there is none."""
    complete = [info.number for info in checkpoints(url) if info.is_complete]
    return open_checkpoint(url, complete[-1]).index(0).watermarks.get(0, 0) if complete else 0


def test_training_goes_back_to_the_newest_checkpoint_and_on_by_itself(trainer, tmp_path):
    url = str(tmp_path / "checkpoints")
    started = trainer.start(*EXACT, *BACK, "--checkpoint", url, "--checkpoint-every", "500ms")
    process, run_dir, _ = started
    end = time.monotonic() + 90
    while pushes_in(url) < 20:
        assert time.monotonic() < end and process.poll() is None, "no checkpoint in time"
        time.sleep(0.02)
    before = cluster(run_dir)
    for name in ("ps 1", "ps 3"):
        os.kill(before["pids"][name], signal.SIGKILL)
    finished = trainer.finish(*started)
    assert finished.code == 0, finished.story
    report = finished.report
    (rewind,) = report["rewinds"]
    assert rewind["url"] == url and "data lost: shards 1 (" in rewind["reason"], finished.story
    assert rewind["seconds_stood_still"] > 0 and rewind["seconds_repeated"] >= 0.0
    assert report["steps"] == 150 and report["examples_trained"] == 150 * 256, finished.story
    assert report["examples"] == 150 * 256 + rewind["examples_repeated"], finished.story
    assert report["parity_ok"] is True and report["lost_updates"] == 0 and report["losses"] == [], finished.story
    assert f"training went back to checkpoint {rewind['checkpoint']}" in finished.err
    # All processes are others, and so is the cluster.
    names = {info.cluster for info in checkpoints(url) if info.is_complete}
    assert len(names) == 2, "the checkpoints before and after are of two clusters"
    assert cluster(run_dir)["scheduler"] != before["scheduler"]
    assert (run_dir / "ended-1-scheduler.sqlite").exists()
    # The same, by hand.
    by_hand = trainer.run(*EXACT, "--resume", f"{url}/checkpoint-{rewind['checkpoint']:06d}")
    assert by_hand.code == 0, by_hand.story
    assert by_hand.report["model_digest"] == report["model_digest"], finished.story


def test_without_a_checkpoint_it_ends_and_says_so(trainer, tmp_path):
    url = str(tmp_path / "checkpoints")
    finished = trainer.run(
        *SMALL, *BACK, "--checkpoint", url, "--checkpoint-every", "10m", "--kill", "ps:1@8", "--kill", "ps:3@8"
    )
    assert finished.code == 3, finished.story
    assert "the run will go back to its newest checkpoint" in finished.err
    assert "error: data lost: shards 1 (" in finished.err, finished.story
    assert f"no checkpoint at {url} is complete that this run has written" in finished.err, finished.story
    assert "Traceback" not in finished.err


def damage(url, number):
    """One bit of a part."""
    part = next(Path(url, f"checkpoint-{number:06d}").rglob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)


def trained(session, url, run_dir, kill):
    """A user's training: 40 steps of splits that it leases; after the 20th, if ``kill``, all is lost once."""
    torch.manual_seed(3)
    tables = [EmbeddingBagConfig(500, 8, "items", feature_names=["item"])]
    sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.05))
    model = torch.nn.Linear(8, 1)
    dense = session.replicate(model, SGD(lr=0.05))
    for split in session.lease_splits("clicks", 40 * 64, split_examples=10 * 64):
        for first in range(split.first, split.last, 64):
            ids = torch.randint(500, (1, 64), generator=torch.Generator().manual_seed(first))
            features = KeyedJaggedTensor.from_ids(["item"], ids)
            loss = (model(sparse(features).values()).squeeze(1) - (ids[0] % 2)).square().mean()
            loss.backward()
            session.push(64)
            kill.append(first)
            if len(kill) == 12:
                session.save(url)
            if len(kill) == 16:
                damage(url, session.save(url))
            if len(kill) == 20:
                for name in ("ps 0", "ps 2"):
                    os.kill(cluster(run_dir)["pids"][name], signal.SIGKILL)
    return model_digest(session, [*sparse.specs, dense.spec])


def test_a_function_of_a_script_is_called_again(tmp_path):
    """Its newest checkpoint is damaged, so that it goes back to the one before."""

    def run(name, steps):
        run_dir = tmp_path / name
        options = {"shards": 3, "code": "2+1", "run_dir": str(run_dir), "checkpoint": str(tmp_path / f"{name}-saved")}
        local = ecrec.local_cluster(**options, on_data_loss="restore")
        return local.run(lambda session: trained(session, options["checkpoint"], run_dir, steps)), local.rewound

    calm, rewound = run("calm", [None] * 20)
    assert rewound == []
    steps = []
    disturbed, (rewound,) = run("disturbed", steps)
    assert disturbed == calm
    assert (rewound.to.number, rewound.to.url) == (1, str(tmp_path / "disturbed-saved"))
    assert len(steps) == 40 + rewound.examples_repeated // 64 and rewound.examples_repeated == 8 * 64
    assert steps[20] == 12 * 64, "it goes on with the next example after the checkpoint"
    assert rewound.seconds_repeated > 0 and "data lost" in rewound.reason
    assert [info.number for info in checkpoints(str(tmp_path / "disturbed-saved"))] == [1, 2, 3], "one at the end"


def test_a_with_block_cannot_be_called_again(tmp_path):
    with pytest.raises(ConfigurationError, match="give checkpoint"):
        ecrec.local_cluster(on_data_loss="restore")
    local = ecrec.local_cluster(on_data_loss="restore", checkpoint=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"a with block cannot be begun again.*run\(train\)"), local:
        pass

"""What a training script does in the tests of engines: a DLRM on the Criteo sample, held at some steps so that hosts
can be lost there. At its end it writes the digest of the model, and what the cluster has of its updates.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_train_criteo import DATA

import ecrec

STEPS = 60
SHARDS, CODE = 3, "2+1"

TRAINING = """
import json, os, time
from pathlib import Path

import torch

import ecrec
from ecrec.data import FileDataset, HashedIds
from ecrec.launch.tools.verify import cluster_state, scrub
from ecrec.protocol.messages import UP
from ecrec.train.report import lost_updates
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad
from ecrec.training.digest import model_digest
from ecrec.training.dlrm import DLRM

ROWS, DIM, BATCH = 2000, 16, 256


def train(session, data, steps, at_step=lambda step: None):
    # Sums depend on the number of threads, which engines set, and a test does not.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_in_one_thread(session, data, steps, at_step)
    finally:
        torch.set_num_threads(threads)


def train_in_one_thread(session, data, steps, at_step):
    source = FileDataset([data], HashedIds(ROWS))
    names = source.sparse_features
    tables = [EmbeddingBagConfig(ROWS, DIM, f"t_{name}", feature_names=[name]) for name in names]
    sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.02), seed=5)
    torch.manual_seed(5)
    model = DLRM(len(source.dense_features), len(tables), DIM, (32,), (32,))
    dense = session.replicate(model, Adagrad(lr=0.005))

    def batches():
        for batch in source.train_range(0, steps * BATCH, BATCH):
            yield batch, KeyedJaggedTensor.from_ids(names, torch.from_numpy(batch.ids))

    for step, (batch, features) in enumerate(session.prefetch(batches(), features=lambda pair: pair[1], depth=1)):
        at_step(step)
        logits = model(torch.from_numpy(batch.dense), sparse(features).values())
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels)).backward()
        session.push(len(batch))
    return model_digest(session, [*sparse.specs, dense.spec])


def compared(session, endpoint, timeout_s=90.0):
    # Watermarks come with heartbeats: what was acknowledged is there within some, or is lost.
    session.flush()
    acked = {session.rank: dict(session.machine.acked)}
    end = time.monotonic() + timeout_s
    while True:
        state = cluster_state(endpoint)
        lost = lost_updates(acked, {shard.shard: shard.watermarks for shard in state.shards})
        whole = all(shard.state == UP for shard in state.shards)
        if (whole and not lost) or time.monotonic() > end:
            break
        time.sleep(0.2)
    return {
        "lost_updates": lost + state.updates_damaged,
        "updates_acknowledged": sum(sum(each.values()) for each in acked.values()),
        "deaths": sum(shard.epoch - 1 for shard in state.shards),
        "parity_ok": scrub(endpoint, timeout_s).ok,
    }
"""

SCRIPT = """
{training}

where = Path({directory!r})


def at_step(step):
    if step in {holds!r}:
        (where / "step").write_text(str(step))
        while not (where / f"go-{{step}}").exists():
            time.sleep(0.02)


# Exact: of several workers one trains, and its model is to be compared.
with ecrec.connect(code=os.environ.get("ECREC_CODE") or {code!r}, exact=True) as session:
    if session.rank == 0:
        digest = train(session, {data!r}, {steps}, at_step)
        found = compared(session, os.environ["ECREC_SCHEDULER"])
        (where / "new").write_text(json.dumps({{"model_digest": digest, **found}}))
        (where / "new").rename(where / "result.json")
"""


def need_data() -> None:
    """Skip, visibly, where the rows are not."""
    pytest.importorskip("torch")
    if not DATA.exists():
        pytest.skip(f"no Criteo rows at {DATA} (see ECREC_CRITEO)")


def write_script(directory: Path, holds: Sequence[int]) -> Path:
    """The script, which leaves its files in that directory and waits at these steps for `let_go`."""
    path = directory / "train_model.py"
    values = {"directory": str(directory), "holds": tuple(holds), "code": CODE, "data": str(DATA), "steps": STEPS}
    path.write_text(SCRIPT.format(training=TRAINING, **values))
    return path


def has_reached(directory: Path, step: int) -> bool:
    """It waits there."""
    path = directory / "step"
    return path.exists() and path.read_text() == str(step)


def let_go(directory: Path, step: int) -> None:
    (directory / f"go-{step}").touch()


@cache
def calm_digest() -> str:
    """Of a run in which nobody dies."""
    names: dict[str, Any] = {}
    exec(TRAINING, names)
    with ecrec.local_cluster(shards=SHARDS, code=CODE) as session:
        return str(names["train"](session, str(DATA), STEPS))


def check_result(directory: Path, deaths: int) -> None:
    """So many servers died, or more; nothing is lost, parity fits, and the model is that of a run without a death."""
    result = json.loads((directory / "result.json").read_text())
    assert result["lost_updates"] == 0 and result["updates_acknowledged"] >= STEPS
    assert result["deaths"] >= deaths and result["parity_ok"] is True
    assert result["model_digest"] == calm_digest()

"""TorchRec's own DLRM, its rows on ecrec's servers: `python torchrec_dlrm.py`.

The model is TorchRec's, untouched; `ecrec.distribute` brings it to the cluster in one line. It is trained twice, the
second time with a server that is killed in the middle: the loss at the end is the same, to the last bit.
"""

import json
import os
import signal
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import ecrec
from ecrec.training import Adagrad, RowWiseAdagrad

FEATURES, ROWS, DIM, DENSE, BATCH, STEPS = ["user", "item", "query"], 10_000, 16, 4, 128, 60


def batches():
    draw = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        lengths = torch.randint(1, 4, (len(FEATURES) * BATCH,), generator=draw)
        ids = torch.randint(0, ROWS, (int(lengths.sum()),), generator=draw)
        dense = torch.rand(BATCH, DENSE, generator=draw)
        yield dense, KeyedJaggedTensor(keys=FEATURES, values=ids, lengths=lengths), (dense.sum(1) > DENSE / 2).float()


def train(kill_at=None):
    """The loss of the last batch."""
    torch.manual_seed(5)
    tables = [
        EmbeddingBagConfig(num_embeddings=ROWS, embedding_dim=DIM, name=f"t_{name}", feature_names=[name])
        for name in FEATURES
    ]
    model = DLRM(EmbeddingBagCollection(tables=tables), DENSE, [32, DIM], [32, 1])
    with (
        tempfile.TemporaryDirectory() as run_dir,
        ecrec.local_cluster(shards=3, code="2+1", run_dir=run_dir) as session,
    ):
        model = ecrec.distribute(model, session, sparse=RowWiseAdagrad(lr=0.02), dense=Adagrad(lr=0.01))
        for step, (dense, features, labels) in enumerate(session.prefetch(batches(), features=lambda batch: batch[1])):
            if step == kill_at:
                os.kill(json.loads(Path(run_dir, "cluster.json").read_text())["pids"]["ps 1"], signal.SIGKILL)
            loss = binary_cross_entropy_with_logits(model(dense, features).squeeze(1), labels)
            loss.backward()
            session.push(BATCH)
        return loss.item()


calm, killed = train(), train(kill_at=STEPS // 2)
print(f"loss {calm:.4f}; with a server killed at step {STEPS // 2}: {'the same' if killed == calm else killed}")

"""A model over two tables, trained by any number of workers: `ecrec-worker train.py` on each of their hosts.

Stands for your own script: replace `read` by what reads your examples.
"""

import os

import torch

import ecrec
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad

EXAMPLES = int(os.environ.get("EXAMPLES", "200000"))
BATCH = 512


def read(first, last):
    """Batches of examples first <= i < last: here drawn, always the same for the same number."""
    for at in range(first, last, BATCH):
        draw = torch.Generator().manual_seed(at)
        ids = torch.randint(0, 10_000, (2, min(BATCH, last - at)), generator=draw)
        yield KeyedJaggedTensor.from_ids(["user", "item"], ids), (ids % 2).any(0).float()


with ecrec.connect() as session:  # ECREC_SCHEDULER, RANK and WORLD_SIZE say where, and who this is
    tables = [EmbeddingBagConfig(10_000, 16, f"{name}s", feature_names=[name]) for name in ("user", "item")]
    sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1))
    model = torch.nn.Linear(32, 1)
    session.replicate(model, Adagrad(lr=0.05))
    # Each worker leases the next part when it is through with the last one.
    for split in session.lease_splits("clicks", examples=EXAMPLES, split_examples=20 * BATCH):
        batches = read(split.first, split.last)
        for features, labels in session.prefetch(batches, features=lambda batch: batch[0], depth=1):
            logits = model(sparse(features).values()).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            loss.backward()
            session.push(len(labels))
        print(f"worker {session.rank}: {split.last} examples, loss {loss.item():.3f}", flush=True)

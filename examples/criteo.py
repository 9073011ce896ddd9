"""A DLRM on Criteo's click logs, trained by any number of workers on any cluster, each of which may die.

    ecrec-worker --nproc-per-node 2 criteo.py --data day_0.gz day_1.gz    # ECREC_SCHEDULER says where the cluster is
    python criteo.py --local                                             # a cluster of this machine, generated rows

It is what `ecrec train` does, as a script to change. Workers lease what they train on, so a fast one does more, and one
that is gone leaves its part to the others. Worker 0 tests at the end.
"""

import argparse
from contextlib import ExitStack

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import ecrec
from ecrec.data import FileDataset, HashedIds, SyntheticDataset, SyntheticOptions
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad
from ecrec.training.dlrm import DLRM
from ecrec.training.metrics import auc, normalized_entropy


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", metavar="FILE", help="plain, .gz or Parquet; without, generated rows")
    parser.add_argument("--local", action="store_true", help="a cluster of this machine, of 5 servers")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of each embedding table: ids are hashed")
    parser.add_argument("--dim", type=int, default=16, help="floats of a row")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--examples", type=int, default=100_000, help="of generated rows")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--dense-lr", type=float, default=0.005)
    return parser.parse_args()


def main():
    args = arguments()
    if args.data:
        data = FileDataset(args.data, HashedIds(args.rows))
    else:
        data = SyntheticDataset(SyntheticOptions(rows=args.examples, rows_per_table=args.rows))
    with ExitStack() as block:
        session = block.enter_context(ecrec.local_cluster(shards=5, code="4+1") if args.local else ecrec.connect())
        tables = [
            EmbeddingBagConfig(rows, args.dim, f"t_{name}", feature_names=[name])
            for name, rows in zip(data.sparse_features, data.rows_per_table, strict=True)
        ]
        sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=args.lr))
        torch.manual_seed(7)
        model = DLRM(len(data.dense_features), len(tables), args.dim, (64,), (64,))
        session.replicate(model, Adagrad(lr=args.dense_lr))

        def features_of(batch):
            return KeyedJaggedTensor.from_ids(data.sparse_features, torch.from_numpy(batch.ids))

        def logits_of(batch, features):
            return model(torch.from_numpy(batch.dense), sparse(features).values())

        for split in session.lease_splits(
            "criteo", data.train_rows, split_examples=32 * args.batch, epochs=args.epochs
        ):
            batches = ((batch, features_of(batch)) for batch in data.train_range(split.first, split.last, args.batch))
            for batch, features in session.prefetch(batches, features=lambda pair: pair[1], depth=1):
                loss = binary_cross_entropy_with_logits(logits_of(batch, features), torch.from_numpy(batch.labels))
                loss.backward()
                session.push(len(batch) + batch.skipped)
            print(f"worker {session.rank}: rows {split.first} to {split.last}, loss {loss.item():.4f}", flush=True)
        if session.rank == 0:
            with torch.no_grad():
                tested = [
                    (batch.labels, logits_of(batch, features_of(batch)).numpy()) for batch in data.test_batches(2048)
                ]
            labels, scores = (np.concatenate(each) for each in zip(*tested, strict=True))
            print(f"AUC {auc(labels, scores):.4f}, normalized entropy {normalized_entropy(labels, scores):.4f}")


if __name__ == "__main__":
    main()

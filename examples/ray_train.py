"""Ray: servers on nodes of their own, workers of Ray Train beside them, and rows from Ray Data.

    ray job submit -- python ray_train.py --shards 4 --spares 1 --state /shared/ecrec     # on a cluster
    python ray_train.py --local                                                           # three nodes of this machine

Nodes are lost and come back: a spare takes the place of a lost server within a second, and a worker that Ray starts
again goes on with the next rows that nobody has trained on.
"""

import argparse

import numpy as np
import ray
import ray.data
import torch
from ray.cluster_utils import Cluster as RayCluster
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch.nn.functional import binary_cross_entropy_with_logits

import ecrec.ray
from ecrec.training import Adagrad, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, RowWiseAdagrad

BATCH = 256


def train(config):
    """A worker of Ray Train: rank and world size are those that Ray gives."""
    rows = config["rows"]
    with ecrec.ray.connect() as session:
        tables = [EmbeddingBagConfig(1000, 16, f"{name}s", feature_names=[name]) for name in ("user", "item")]
        sparse = EmbeddingBagCollection(session, tables, RowWiseAdagrad(lr=0.1))
        model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        session.replicate(model, Adagrad(lr=0.02))
        for split in session.lease_splits("clicks", examples=len(rows), split_examples=8 * BATCH):
            for batch in rows.read(split.first, split.last, BATCH):
                ids = torch.from_numpy(np.stack([batch["user"], batch["item"]]))
                features, labels = KeyedJaggedTensor.from_ids(["user", "item"], ids), torch.from_numpy(batch["label"])
                loss = binary_cross_entropy_with_logits(model(sparse(features).values()).squeeze(1), labels)
                loss.backward()
                session.push(len(labels))
            print(f"worker {session.rank}: rows {split.first} to {split.last}, loss {loss.item():.3f}", flush=True)


def made_up(rows):
    """Clicks of users on items, some of which everybody likes."""
    draw = np.random.default_rng(1)
    user, item = draw.integers(0, 1000, (2, rows))
    return ray.data.from_numpy_refs(
        [ray.put(np.stack([user, item, (item % 3 == 0)], axis=1))]
    ).map_batches(
        lambda batch: {
            "user": batch["data"][:, 0], "item": batch["data"][:, 1], "label": batch["data"][:, 2].astype(np.float32)
        }
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", action="store_true", help="a Ray of this machine, of as many nodes as servers")
    parser.add_argument("--shards", type=int, default=3, help="servers, each on a node of its own")
    parser.add_argument("--spares", type=int, default=0)
    parser.add_argument("--code", default="2+1")
    parser.add_argument("--state", help="a directory that all nodes see, for the scheduler's state")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=int, default=20_000)
    args = parser.parse_args()
    nodes = None
    if args.local:
        nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 4})
        for _ in range(args.shards + args.spares - 1):
            nodes.add_node(num_cpus=1)
    ray.init(nodes.address if nodes else None)
    try:
        with ecrec.ray.Cluster(shards=args.shards, code=args.code, spares=args.spares, state=args.state):
            TorchTrainer(
                train,
                train_loop_config={"rows": ecrec.ray.Rows(made_up(args.rows))},
                scaling_config=ScalingConfig(num_workers=args.workers),
                run_config=RunConfig(failure_config=FailureConfig(max_failures=-1)),
            ).fit()
    finally:
        ray.shutdown()
        if nodes is not None:
            nodes.shutdown()


if __name__ == "__main__":
    main()

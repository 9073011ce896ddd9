"""Test AUC and log loss of a DLRM trained on Criteo rows in one process of plain PyTorch.

    python bench/compare_torch.py --data rows.tsv.gz --seeds 7 8 9 --staleness 0 1

First 80 % of the rows for training, in file order, last 20 % for the test. Prints one line for each seed and
staleness, and with --report writes all of it, with the versions, as JSON. Staleness 1 shows what a pipelined
trainer loses by reading the rows of the next batch before the update of this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.baselines.torch_dlrm import (
    InitialValues,
    TorchOptions,
    TorchResult,
    random_initial_values,
    train,
)
from ecrec.data import BatchSource, CriteoDataset, HashedIds, SyntheticDataset, SyntheticOptions


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, run each seed with each staleness, print the results."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    data = _open(args)
    runs = []
    print(f"{'seed':>4} {'staleness':>9} {'auc':>8} {'logloss':>8} {'examples/s':>10}  initial values", flush=True)
    for seed in args.seeds:
        options = _options(args, staleness=0)
        initial = random_initial_values(data.rows_per_table, args.dim, options, seed, args.init_scale)
        digest = _digest(initial)
        for staleness in args.staleness:
            options = _options(args, staleness)
            result = run(data, initial, options, args.batch, args.epochs)
            speed = result.examples / result.seconds
            print(
                f"{seed:4d} {staleness:9d} {result.auc:8.5f} {result.logloss:8.5f} {speed:10.0f}  {digest[:12]}",
                flush=True,
            )
            runs.append(
                {
                    "seed": seed,
                    "initial_values": digest,
                    "options": asdict(options),
                    "auc": result.auc,
                    "logloss": result.logloss,
                    "examples": result.examples,
                    "examples_per_s": speed,
                }
            )
    if args.report:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        report = {
            "machine": platform.platform(),
            "versions": versions,
            "threads": args.threads,
            "batch": args.batch,
            "epochs": args.epochs,
            "dim": args.dim,
            "rows_per_table": data.rows_per_table,
            "runs": runs,
        }
        Path(args.report).write_text(json.dumps(report, indent=1) + "\n")


def run(data: BatchSource, initial: InitialValues, options: TorchOptions, batch_size: int, epochs: int) -> TorchResult:
    """Train from these initial values in the order of the data, and score its test part."""
    return train(initial, options, data.train_batches(batch_size, epochs=epochs), data.test_batches(batch_size))


def _open(args: argparse.Namespace) -> BatchSource:
    if args.data:
        return CriteoDataset(args.data, HashedIds(args.rows))
    return SyntheticDataset(SyntheticOptions(rows_per_table=args.rows))


def _options(args: argparse.Namespace, staleness: int) -> TorchOptions:
    return TorchOptions(
        sparse_optimizer=args.optimizer,
        sparse_lr=args.lr,
        dense_optimizer=args.dense_optimizer,
        dense_lr=args.dense_lr,
        bottom_mlp=tuple(args.bottom_mlp),
        top_mlp=tuple(args.top_mlp),
        staleness=staleness,
    )


def _digest(initial: InitialValues) -> str:
    digest = hashlib.sha256()
    for table in initial.tables:
        digest.update(table.tobytes())
    for name in sorted(initial.dense):
        digest.update(name.encode())
        digest.update(initial.dense[name].tobytes())
    return digest.hexdigest()


def _parser() -> argparse.ArgumentParser:
    defaults = TorchOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", help="Criteo files, plain or gzip; without, generated rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rows", type=int, default=50_000, help="hashed rows of each table")
    parser.add_argument("--init-scale", type=float, default=0.01)
    parser.add_argument("--optimizer", choices=["rowwise-adagrad", "adagrad", "sgd"], default=defaults.sparse_optimizer)
    parser.add_argument("--lr", type=float, default=defaults.sparse_lr)
    parser.add_argument("--dense-optimizer", choices=["adagrad", "sgd"], default=defaults.dense_optimizer)
    parser.add_argument("--dense-lr", type=float, default=defaults.dense_lr)
    parser.add_argument("--bottom-mlp", type=int, nargs="*", default=list(defaults.bottom_mlp))
    parser.add_argument("--top-mlp", type=int, nargs="*", default=list(defaults.top_mlp))
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    main()

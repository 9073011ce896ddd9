"""Test AUC and log loss of ``ecrec train`` against the same DLRM in one process of plain PyTorch.

    python bench/compare_torch.py --data rows.tsv.gz --seeds 7 8 --staleness 0 1

Same model, data, order, initial values and optimizers; the first 80 % of the rows, in file order, for training, the
last 20 % for the test. For each seed ecrec trains once, then PyTorch with every staleness: 0 is training as usual, 1
is what the prefetch of one batch does (the rows of batch t + 1 are read before the update of batch t). Exit code 1 if
an AUC or log loss differs by more than --tolerance, or if the two do not start from the same values, which the loss
of the first batch tells. At the staleness of ecrec's own prefetch the curves of the training loss are compared too:
they differ by rounding only, because sums are formed in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

# Behind what is installed: a checkout has no native module.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench.baselines.torch_dlrm import InitialValues, TorchOptions, TorchResult, train
from bench.running import Recorded, add_training_options, describe, training_options, write_json
from bench.running import train as train_ecrec
from ecrec import _native
from ecrec.data.criteo_format import DENSE_FEATURES, SPARSE_FEATURES
from ecrec.protocol.placement import CodeSpec
from ecrec.train.options import TrainOptions
from ecrec.train.run import resolved_config
from ecrec.train.steps import TrainConfig, open_data
from ecrec.training.configs import EmbeddingBagConfig, table_spec
from ecrec.training.dlrm import DLRM
from ecrec.training.optimizers import SGD, optimizer

FIRST_LOSS_TOLERANCE = 1e-5
"""The loss of the first batch comes from the initial values alone; float32 rounding is below this."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run each seed, print the results; 1 if something differs too much."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    runs: list[dict[str, Any]] = []
    wrong: list[str] = []
    report: dict[str, Any] = {}
    for seed in args.seeds:
        options = training_options(args, code=args.code, seed=seed, steps=args.steps, workers=1)
        config = _train_config(options)
        ecrec = train_ecrec(options)
        report = ecrec.report
        print(f"seed {seed}, {report['steps']} steps of {config.batch}, {config.optimizer} {config.lr}, "
              f"dense {config.dense_optimizer} {config.dense_lr}")  # fmt: skip
        print(f"  {'':20} {'auc':>8} {'logloss':>8} {'auc diff':>9} {'loss diff':>9} {'curve max':>9}  equal steps")
        print(f"  {f'ecrec, prefetch {config.prefetch}':20} {report['auc']:8.5f} {report['logloss']:8.5f}", flush=True)
        initial = initial_values(config)
        for staleness in args.staleness:
            plain = run_plain(config, initial, staleness)
            found = compare(ecrec, plain)
            print(
                f"  {f'torch, staleness {staleness}':20} {plain.auc:8.5f} {plain.logloss:8.5f} {found['auc']:9.5f} "
                f"{found['logloss']:9.5f} {found['curve_max']:9.2e}  {found['equal_steps']} of {len(plain.loss)}",
                flush=True,
            )
            where = f"seed {seed}, staleness {staleness}"
            wrong += [f"{where}: {text}" for text in failures(found, args.tolerance)]
            runs.append(
                {
                    "seed": seed,
                    "staleness": staleness,
                    "ecrec": {"auc": report["auc"], "logloss": report["logloss"], "loss_curve": ecrec.losses},
                    "torch": {"auc": plain.auc, "logloss": plain.logloss, "loss_curve": plain.loss},
                    "differences": found,
                    "initial_values": _digest(initial),
                    "torch_options": asdict(plain_options(config, staleness)),
                    "config": report["config"],
                }
            )
    print(describe(report))
    for text in wrong:
        print(f"FAILED: {text}")
    print(f"tolerance {args.tolerance}: {'failed' if wrong else 'passed'}")
    write_json(
        args.report,
        {
            "tolerance": args.tolerance,
            "failures": wrong,
            "machine": report["machine"],
            "versions": report["versions"],
            "torch_threads": args.threads,
            "runs": runs,
        },
    )
    return 1 if wrong else 0


def initial_values(config: TrainConfig) -> InitialValues:
    """What a run of this configuration starts from: records of the native generator, and the seeded dense part."""
    tables = []
    for name, rows in zip(SPARSE_FEATURES, open_data(config).rows_per_table, strict=True):
        spec = table_spec(
            EmbeddingBagConfig(rows, config.dim, name, feature_names=[name], init_scale=config.init_scale),
            CodeSpec(1, 0),
            SGD(1.0),
            config.seed,
        )
        store = _native.Store(0, 1)
        store.add_table(rows, config.dim, 1, 0, "cauchy", "sgd", [1.0], spec.init, spec.init_seed, spec.init_scale, 0.0)
        values: NDArray[np.float32] = np.empty((rows, config.dim), np.float32)
        section = np.array([0], np.int32), np.array([rows], np.int64)
        store.gather(*section, np.arange(rows, dtype=np.int64), values.view(np.uint8).reshape(-1))
        tables.append(values)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = DLRM(len(DENSE_FEATURES), len(SPARSE_FEATURES), config.dim, config.bottom_mlp, config.top_mlp)
    return InitialValues(tables, {name: value.numpy() for name, value in model.state_dict().items()})


def plain_options(config: TrainConfig, staleness: int) -> TorchOptions:
    """The same model and optimizers for the baseline, eps as ecrec's optimizers have it."""
    sparse = optimizer(config.optimizer, config.lr)
    dense = optimizer(config.dense_optimizer, config.dense_lr)
    return TorchOptions(
        sparse_optimizer=config.optimizer,
        sparse_lr=config.lr,
        dense_optimizer=config.dense_optimizer,
        dense_lr=config.dense_lr,
        sparse_eps=getattr(sparse, "eps", 0.0),
        dense_eps=getattr(dense, "eps", 0.0),
        bottom_mlp=config.bottom_mlp,
        top_mlp=config.top_mlp,
        staleness=staleness,
    )


def run_plain(config: TrainConfig, initial: InitialValues, staleness: int) -> TorchResult:
    """Train the baseline on the batches of this configuration, in their order, and score the test part."""
    data = open_data(config)
    batches = data.train_batches(config.batch, epochs=config.epochs, steps=config.steps)
    return train(initial, plain_options(config, staleness), batches, data.test_batches(config.batch))


def compare(ecrec: Recorded, plain: TorchResult) -> dict[str, Any]:
    """ecrec less PyTorch, and how far apart the curves of the training loss are.

    Raises ValueError for curves of different lengths.
    """
    ours, theirs = np.array(ecrec.losses), np.array(plain.loss)
    if ours.shape != theirs.shape:
        raise ValueError(f"ecrec made {len(ours)} steps, PyTorch {len(theirs)}")
    apart = np.abs(ours - theirs)
    return {
        "auc": ecrec.report["auc"] - plain.auc,
        "logloss": ecrec.report["logloss"] - plain.logloss,
        "first_loss": float(apart[0]),
        "curve_max": float(apart.max()),
        # A mean is rounded to float32 there, and divided in float64 here.
        "equal_steps": int((ours.astype(np.float32) == theirs.astype(np.float32)).sum()),
    }


def failures(differences: dict[str, Any], tolerance: float) -> list[str]:
    """What is too far apart."""
    found = [
        f"{name} differs by {differences[name]:+.5f}, expected at most {tolerance}"
        for name in ("auc", "logloss")
        if not abs(differences[name]) <= tolerance
    ]
    if not differences["first_loss"] <= FIRST_LOSS_TOLERANCE:
        found.append(f"the loss of the first batch differs by {differences['first_loss']:.2e}: other initial values")
    return found


def _train_config(options: TrainOptions) -> TrainConfig:
    """What the worker of such a run is told; the launcher's own options are ignored."""
    return msgspec.convert(resolved_config(options), TrainConfig)


def _digest(initial: InitialValues) -> str:
    digest = hashlib.sha256()
    for table in initial.tables:
        digest.update(table.tobytes())
    for name in sorted(initial.dense):
        digest.update(name.encode())
        digest.update(initial.dense[name].tobytes())
    return digest.hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1], help="of PyTorch's runs")
    parser.add_argument("--tolerance", type=float, default=0.002, help="of the AUC and the log loss")
    parser.add_argument("--code", default="4+1")
    parser.add_argument("--steps", type=int, help="as many as the data gives")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--report", help="write the results, loss curves too, to this JSON file")
    add_training_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The worker of ``ecrec train``: trains a DLRM on rows of files, or generated ones, and says how it goes.

Its events are ``joined``, ``step``, ``first_row``, ``bad_rows``, ``warning`` and, at the end, ``done``; the program is
`ecrec.train.worker`.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecrec.data import (
    Batch,
    BatchSource,
    Columns,
    FileDataset,
    HashedIds,
    PlainIds,
    ShuffledSource,
    SyntheticDataset,
    SyntheticOptions,
)
from ecrec.data.batch import examples_of_steps
from ecrec.errors import ConfigurationError, DataError
from ecrec.launch import worker_pages
from ecrec.train.options import PLAIN_IDS, dataset_name
from ecrec.training.configs import EmbeddingBagConfig
from ecrec.training.digest import model_digest
from ecrec.training.dlrm import DLRM
from ecrec.training.embedding import EmbeddingBagCollection
from ecrec.training.joining import connect
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor
from ecrec.training.metrics import auc, log_loss, normalized_entropy
from ecrec.training.observation import TRACE_STEPS, Observation
from ecrec.training.optimizers import optimizer
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.session import Session
from ecrec.transport.curve import CurveKeys

Emit = Callable[[dict[str, Any]], None]


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to train on what. Other keys of the file are the launcher's, and ignored."""

    data: tuple[str, ...] = ()
    """Files; none: generated rows."""
    columns: Columns | None = None
    """Which column of CSV and Parquet files is what; none: these are Criteo's."""
    data_rows: tuple[int, ...] | None = None
    """Rows of each file, where somebody has counted them."""
    data_marks: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """Places in each file that were noted then."""
    shuffle_window: int | None = None
    """Rows that are shuffled together, by `seed`; none: rows come as they are in the files."""
    nonfinite: str = "error"
    """What becomes of gradients that are not finite: ``error`` or ``zero``."""
    bad_rows: str = "stop"
    """What becomes of rows that cannot be read: ``stop`` or ``skip``."""
    test_fraction: float = 0.2
    rows: int = 50_000
    """Of each table."""
    ids: str = "hash"
    """What becomes of ids of files: ``hash``, into the rows of a table, or ``plain``: they are rows of a table."""
    batch: int = 512
    """Rows of a step, over all workers: each pushes its share of so many."""
    steps: int | None = None
    epochs: int = 1
    dim: int = 64
    bottom_mlp: tuple[int, ...] = (256,)
    top_mlp: tuple[int, ...] = (256,)
    optimizer: str = "rowwise-adagrad"
    lr: float = 0.02
    dense_optimizer: str = "adagrad"
    dense_lr: float = 0.005
    init_scale: float | None = 0.01
    code: str = "4+1"
    sync: bool = False
    seed: int = 7
    prefetch: int = 1
    """Batches whose rows are fetched ahead."""
    seconds: float | None = None
    """No batch is begun after this time."""
    threads: int | None = None
    wait_timeout_ms: float | None = None
    dense_code: str | None = None
    """Of the dense part, 1+r; none: with r of `code`."""
    metrics: str | None = None
    tensorboard: str | None = None
    trace: str | None = None
    """Where `Session.observe` writes; the launcher makes one trace of those of all workers."""
    trace_steps: int = TRACE_STEPS
    digest: bool = True
    """Worker 0 reads the whole model at the end, for `model_digest`."""


SPLIT_BATCHES = 32
"""Batches of a split at most, with several workers: behind each the next batch is not fetched ahead, which then costs a
few per cent of one batch in so many."""

SPLITS_PER_WORKER = 8
"""At least so many splits for each worker, if there are as many batches: at the end they wait for the slowest."""


BAD_ROWS_TOLD = 5
"""Of those that are met at once, so many are told with file and line."""


class _Work(NamedTuple):
    """A worker's slice of a batch."""

    batch: Batch
    features: KeyedJaggedTensor
    rows_of_all: int
    """Rows of the whole batch, which all workers share."""


def run(
    config: TrainConfig,
    scheduler: str,
    rank: int,
    world_size: int,
    emit: Emit,
    keys: CurveKeys | None = None,
    ends: Callable[[], bool] = lambda: False,
    first_step: int = 0,
) -> dict[str, Any]:
    """Train as worker ``rank``, with ``keys`` if the cluster encrypts; returns the ``done`` event, which was
    emitted too. No batch is begun once ``ends()``. ``first_step``: steps of the run that it goes on with.

    Raises what `connect` and the session raise, DataError for data that cannot be read, and ConfigurationError for a
    configuration that cannot be.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = open_data(config)
    bad_rows = _BadRowsTold(data, emit)
    with connect(
        scheduler,
        code=config.code,
        rank=rank,
        world_size=world_size,
        sync=config.sync,
        nonfinite=config.nonfinite,
        wait_timeout_ms=config.wait_timeout_ms,
        keys=keys,
    ) as session:
        worker_pages.attach(session)
        emit({"event": "joined", "epoch": session.machine.epoch, "at": time.monotonic()})
        model, sparse, dense = build(config, session, data)
        with session.observe(
            metrics=config.metrics,
            tensorboard=config.tensorboard,
            trace=config.trace,
            trace_steps=config.trace_steps,
            first_step=first_step,
        ) as observation:
            seconds = _train(config, session, data, model, sparse, dense, observation, bad_rows, emit, ends)
        _tell_warnings(observation, emit)
        done: dict[str, Any] = {
            "event": "done",
            "at": time.monotonic(),
            "acked": {str(shard): number for shard, number in session.machine.acked.items()},
            "seconds": seconds,
            **msgspec.to_builtins(session.figures),
            "auc": None,
            "logloss": None,
            "normalized_entropy": None,
            "training": msgspec.to_builtins(observation.window.figures()),
            "model_digest": None,
        }
        if rank == 0:
            if data.test_rows:
                done |= _evaluate(config, session, data, model, sparse, dense)
                bad_rows.tell()
            if config.digest:
                done["model_digest"] = model_digest(session, [*sparse.specs, dense.spec])
        emit(done)
    return done


def make_tables(
    config: TrainConfig, scheduler: str, rank: int, world_size: int, emit: Emit, keys: CurveKeys | None = None
) -> None:
    """Make the model, its first values too, and train nothing: what a checkpoint is brought into. Raises as `run`."""
    data = open_data(config)
    _BadRowsTold(data, emit).tell()
    with connect(
        scheduler, code=config.code, rank=rank, world_size=world_size, wait_timeout_ms=config.wait_timeout_ms, keys=keys
    ) as session:
        build(config, session, data)


def open_data(config: TrainConfig) -> BatchSource:
    """The rows to train on. Raises DataError for files that cannot be read."""
    train_fraction = 1.0 - config.test_fraction
    data: BatchSource
    if config.data:
        ids = PlainIds(config.rows) if config.ids == PLAIN_IDS else HashedIds(config.rows)
        data = FileDataset(
            config.data, ids, columns=config.columns, train_fraction=train_fraction,
            rows_of_files=config.data_rows, marks_of_files=config.data_marks, bad_rows=config.bad_rows,
        )  # fmt: skip
        if not data.train_rows:
            raise DataError(
                f"{', '.join(config.data)}: {data.test_rows} rows, of which none is left to train on: "
                f"--test-fraction {config.test_fraction} is for the test"
            )
    else:
        data = SyntheticDataset(
            SyntheticOptions(train_fraction=train_fraction, seed=config.seed, rows_per_table=config.rows)
        )
    return data if config.shuffle_window is None else ShuffledSource(data, config.shuffle_window, config.seed)


class _BadRowsTold:
    """Emits the bad rows of a data set once each, as they are met."""

    def __init__(self, data: BatchSource, emit: Emit) -> None:
        source = data.source if isinstance(data, ShuffledSource) else data
        self._found: dict[int, str] = source.bad.found if isinstance(source, FileDataset) else {}
        self._emit = emit
        self._told = 0
        self.tell()

    def tell(self) -> None:
        """Those that were met since the last call."""
        if len(self._found) > self._told:
            new = list(itertools.islice(self._found.items(), self._told, None))
            self._told += len(new)
            rows, texts = [row for row, _ in new], [text for _, text in new]
            self._emit({"event": "bad_rows", "rows": rows, "texts": texts[:BAD_ROWS_TOLD]})


def build(
    config: TrainConfig, session: Session, data: BatchSource
) -> tuple[DLRM, EmbeddingBagCollection, ReplicatedModule]:
    """The model, with its tables and parameters on the shards; the seed gives all first values."""
    tables = [
        EmbeddingBagConfig(rows, config.dim, name, feature_names=[name], init_scale=config.init_scale)
        for name, rows in zip(data.sparse_features, data.rows_per_table, strict=True)
    ]
    sparse = EmbeddingBagCollection(session, tables, optimizer(config.optimizer, config.lr), seed=config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = DLRM(len(data.dense_features), len(data.sparse_features), config.dim, config.bottom_mlp, config.top_mlp)
    dense = session.replicate(model, optimizer(config.dense_optimizer, config.dense_lr), code=config.dense_code)
    return model, sparse, dense


def _train(
    config: TrainConfig,
    session: Session,
    data: BatchSource,
    model: DLRM,
    sparse: EmbeddingBagCollection,
    dense: ReplicatedModule,
    observation: Observation,
    bad_rows: _BadRowsTold,
    emit: Emit,
    ends: Callable[[], bool],
) -> float:
    told: set[tuple[int, int]] = set()
    begin = time.monotonic()
    end = math.inf if config.seconds is None else begin + config.seconds

    def is_over() -> bool:
        return time.monotonic() >= end or ends()

    step = 0
    for work_items in _work(config, session, data):
        in_time = itertools.takewhile(lambda work: not is_over(), work_items)
        for work in session.prefetch(in_time, sparse, dense, features=_features, depth=config.prefetch):
            step += 1
            loss = 0.0
            if len(work.batch):
                logits = model(torch.from_numpy(work.batch.dense), sparse(work.features).values())
                labels = torch.from_numpy(work.batch.labels)
                total = binary_cross_entropy_with_logits(logits, labels, reduction="sum")
                # A death noticed here is repaired during the backward pass.
                session.pump()
                mean = total / (work.rows_of_all if config.sync else len(work.batch))
                mean.backward()  # type: ignore[no-untyped-call]
                loss = total.item() / len(work.batch)
            session.push(len(work.batch) + work.batch.skipped)  # of the split, which has bad rows, too
            if len(work.batch):
                observation.step(loss, work.batch.labels, logits)
            at = time.monotonic()
            emit(
                {
                    "event": "step",
                    "step": step,
                    "examples": len(work.batch),
                    "skipped": work.batch.skipped,
                    "loss": loss,
                    "at": at,
                    "waited_s": session.figures.waited_s,
                }
            )
            _tell_first_rows(session, told, emit)
            bad_rows.tell()
            _tell_warnings(observation, emit)
        if is_over():
            break  # what is left of the split is nobody's
    seconds = time.monotonic() - begin
    session.flush()
    _tell_first_rows(session, told, emit)
    return seconds


def _tell_warnings(observation: Observation, emit: Emit) -> None:
    while observation.warnings:
        emit({"event": "warning", "text": observation.warnings.pop(0)})


def _tell_first_rows(session: Session, told: set[tuple[int, int]], emit: Emit) -> None:
    for (shard, epoch), at in session.first_rows.items():
        if (shard, epoch) not in told:
            told.add((shard, epoch))
            emit({"event": "first_row", "shard": shard, "epoch": epoch, "at": at})


def _evaluate(
    config: TrainConfig,
    session: Session,
    data: BatchSource,
    model: DLRM,
    sparse: EmbeddingBagCollection,
    dense: ReplicatedModule,
) -> dict[str, float | None]:
    """AUC and normalized entropy (None where all labels are equal) and log loss of the test part, as the model is on
    the shards now. All None where the test part has bad rows alone."""
    dense.pull()
    labels, logits = [], []
    tested = (batch for batch in data.test_batches(config.batch) if len(batch))
    batches = (_Work(batch, _bag(batch, data), len(batch)) for batch in tested)
    with torch.no_grad():
        for work in session.prefetch(batches, sparse, features=_features, depth=config.prefetch):
            out: Tensor = model(torch.from_numpy(work.batch.dense), sparse(work.features).values())
            logits.append(out.numpy())
            labels.append(work.batch.labels)
    if not labels:
        return {}
    all_labels, all_logits = np.concatenate(labels), np.concatenate(logits)
    both = 0.0 < float(all_labels.mean()) < 1.0
    return {
        "auc": auc(all_labels, all_logits) if both else None,
        "logloss": log_loss(all_labels, all_logits),
        "normalized_entropy": normalized_entropy(all_labels, all_logits) if both else None,
    }


def _work(config: TrainConfig, session: Session, data: BatchSource) -> Iterator[Iterator[_Work]]:
    """What this worker is to do, in stretches: with sync its share of every batch, else the splits that it leases."""
    if config.sync and session.world_size > 1:
        yield _shares(config, session, data)
        return
    size = max(1, config.batch // session.world_size)
    end = examples_of_steps(data.train_rows, config.batch, epochs=config.epochs, steps=config.steps)
    if not end:
        return
    split_examples = size * split_batches(min(data.train_rows, end), size, session.world_size)
    if config.shuffle_window is not None and session.world_size > 1:
        # Whole windows: each is then read by one worker.
        split_examples = max(1, round(split_examples / config.shuffle_window)) * config.shuffle_window
    name = dataset_name(config.shuffle_window, config.seed, config.ids)
    for split in session.lease_splits(name, data.train_rows, split_examples=split_examples, end=end):
        batches = data.train_range(split.first, split.last, size, split.epoch)
        yield (_Work(batch, _bag(batch, data), len(batch)) for batch in batches)


def _shares(config: TrainConfig, session: Session, data: BatchSource) -> Iterator[_Work]:
    for batch in data.train_batches(config.batch, epochs=config.epochs, steps=config.steps):
        mine = batch.shard(session.rank, session.world_size)
        yield _Work(mine, _bag(mine, data), len(batch))


def split_batches(examples: int, batch: int, workers: int) -> int:
    """Batches of a split, for a pass over so many examples. One worker has no use for more than one split a pass."""
    batches = -(-examples // batch)
    if workers == 1:
        return batches
    return max(1, min(SPLIT_BATCHES, batches // (SPLITS_PER_WORKER * workers)))


def _bag(batch: Batch, data: BatchSource) -> KeyedJaggedTensor:
    if batch.ids.shape[0] == len(data.sparse_features):
        return KeyedJaggedTensor.from_ids(data.sparse_features, torch.from_numpy(batch.ids))
    ends = itertools.accumulate(data.hot)
    columns = [batch.ids[end - hot : end].T.reshape(-1) for end, hot in zip(ends, data.hot, strict=True)]
    lengths = torch.tensor(data.hot).repeat_interleave(len(batch))
    return KeyedJaggedTensor(data.sparse_features, torch.from_numpy(np.concatenate(columns)), lengths=lengths)


def _features(work: _Work) -> KeyedJaggedTensor:
    return work.features


def read_config(path: str) -> TrainConfig:
    """Raises ConfigurationError for a file that cannot be read or does not fit."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=TrainConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"--config {path}: {error}") from error

"""One life of a run: a cluster and workers that wait for the word to go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ecrec.launch.groups import REINITIALISE, STOP
from ecrec.launch.local.children import Child
from ecrec.launch.local.cluster import ClusterSettings
from ecrec.launch.threads import cores, thread_environment, worker_threads
from ecrec.reproduce.checkpointing import Holding
from ecrec.reproduce.control import Control
from ecrec.reproduce.plan import PARTIAL, Run
from ecrec.train.engines import make_cluster
from ecrec.train.options import DENSE_LEARNING_RATES, LEARNING_RATES, LOCAL

EPOCHS = 1_000_000
TEST_FRACTION = 0.2
DEATHS_MAX = 1_000_000

FAST_DEATHS = {"heartbeat_timeout_many_ms": 800, "isolated_timeout_ms": 800}
"""A death by which data is lost is believed only after 5 s. Here it is believed at once, in all modes: what is right to
wait for on a network of many hosts would make those look slow that lose data by each death."""


class Engine(NamedTuple):
    """Where the processes of a run are, and what keys they have (`ecrec.train.engines`)."""

    on: str = LOCAL
    keys: Path | None = None


class Life:
    """Its processes, and how far they are. `start` may be called in another thread than the rest."""

    def __init__(self, run: Run, number: int, directory: Path, data: str, data_rows: int, engine: Engine) -> None:
        self.number = number
        self._run = run
        self._run_dir = directory / f"life-{number}"
        self._run_dir.mkdir(parents=True)
        self._data, self._data_rows = data, data_rows
        mode = run.mode
        self.cluster = make_cluster(engine.on, settings(run, self._run_dir), mode.code, mode.spare_count, engine.keys)
        self.control = Control(self._run_dir, self.cluster.flag_workers)
        self.holding = Holding(self.control, run.workers)
        self.endpoint = ""
        self.workers: dict[Child, int] = {}
        """Rank of each worker's process that runs."""
        self.done: dict[int, dict[str, Any]] = {}
        """What each worker said at its end."""
        self.replaced = 0
        """Servers that ended, as far as the driver knows."""
        self.spares_due = run.mode.spare_count
        self.losses_handled = 0

    def start(self, started: Callable[[list[int]], None]) -> None:
        """Start all processes, and wait until the servers listen. ``started`` is told the servers' process ids."""
        self.endpoint = self.cluster.start()
        started(self.cluster.server_pids)
        self._start_workers()
        self.cluster.wait_ready()

    def _start_workers(self) -> None:
        path = self._run_dir / "config.json"
        path.write_text(json.dumps(worker_config(self._run, self._data, self._data_rows)))
        environment = thread_environment(worker_threads(cores(), self._run.workers))
        arguments = ["-m", "ecrec.reproduce.worker", "--config", str(path), "--control", str(self._run_dir)]
        for rank in range(self._run.workers):
            child = self.cluster.start_worker(rank, self._run.workers, arguments, environment)
            self.workers[child] = rank

    def add_spares(self) -> None:
        for _ in range(self.spares_due):
            self.cluster.add_spare()
        self.spares_due = 0

    def end_at_once(self) -> None:
        """Nothing of it is needed any more: its processes are not given time to end."""
        self.cluster.end_at_once()


def settings(run: Run, run_dir: Path) -> ClusterSettings:
    """What the cluster of a run is started with."""
    mode = run.mode
    limits = {**FAST_DEATHS, **mode.limits}
    return ClusterSettings(
        mode.shards, run_dir, run.resources.transport, deaths_max=DEATHS_MAX, limits=limits, shard_module=mode.server,
        on_data_loss=REINITIALISE if mode.recovery == PARTIAL else STOP,
    )  # fmt: skip


def worker_config(run: Run, data: str, data_rows: int) -> dict[str, Any]:
    """What a worker is told; see `ecrec.train.steps.TrainConfig`."""
    model = run.model
    return {
        "data": [data], "data_rows": [data_rows], "test_fraction": TEST_FRACTION if run.exact else 0.0,
        "rows": model.rows, "batch": model.batch * run.workers, "dim": model.dim, "bottom_mlp": model.bottom_mlp,
        "top_mlp": model.top_mlp, "optimizer": model.optimizer, "lr": LEARNING_RATES[model.optimizer],
        "dense_optimizer": "adagrad", "dense_lr": DENSE_LEARNING_RATES["adagrad"], "code": run.mode.code,
        "dense_code": run.mode.dense_code, "seed": run.seed, "prefetch": 0 if run.exact else 1,
        "steps": run.steps or None, "epochs": EPOCHS, "digest": run.exact,
        "threads": worker_threads(cores(), run.workers),
    }  # fmt: skip

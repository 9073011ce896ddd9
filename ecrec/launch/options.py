"""The options of ``ecrec train``, checked before anything is started."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ecrec.errors import ConfigurationError, DataError
from ecrec.launch.cluster import DEATHS_MAX
from ecrec.launch.groups import DEFAULT_CODE, Groups, Tolerance, deal
from ecrec.launch.kills import Kill, WorkerKill, check_kills, check_worker_kills, parse_kill
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import CodeSpec

LEARNING_RATES = {
    "sgd": 20.0,
    "momentum": 2.0,
    "nesterov": 2.0,
    "adagrad": 0.02,
    "rowwise-adagrad": 0.02,
    "adam": 0.003,
    "ftrl": 20.0,
}
"""Default learning rate of the embedding tables, by optimizer. Those of SGD and the Adagrads, and the other defaults of
training, were found on the Criteo sample (one epoch, rows and dense tensors one step behind); `bench/compare_torch.py`
trains with them. The others were tried on generated data alone."""

DENSE_LEARNING_RATES = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adagrad": 0.005, "adam": 0.0003}
"""The same for the dense part. Row-wise Adagrad does not go with it, and FTRL would forget the first values."""

TRANSPORTS = ("tcp", "ipc")
ON_DATA_LOSS = STOP, REINITIALISE = ("stop", "reinitialise")
"""What happens when more servers die than the code stands: training stops with an error, or goes on with the lost rows
at their initial records."""
RATE_MB_S = 64.0
"""Megabytes a second that `ecrec verify` reads, of all members together, where nothing else is said: little beside what
training moves; 10 GB in three minutes."""
HEARTBEATS_IN_TIMEOUT = 8
"""A shard is down after so many heartbeats that did not come."""

LEARNING_RATE_MAX = 3.4028235e38
"""Of float32, in which the servers reckon."""


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to train, on what, and what to break. Learning rates of None stand for the optimizer's default."""

    data: tuple[str, ...] = ()
    """Criteo files; none: generated data."""
    shards: int = 5
    """Of all coding groups."""
    groups: int | None = None
    """None: one of up to 16 shards; of more, as few as possible."""
    code: str = DEFAULT_CODE
    workers: int = 1
    steps: int | None = None
    """None: as many as the data gives."""
    epochs: int = 1
    seconds: float | None = None
    """No step is begun after so long; None: no such end."""
    batch: int = 512
    dim: int = 64
    rows: int = 50_000
    """Hash buckets a table."""
    optimizer: str = "rowwise-adagrad"
    lr: float | None = None
    dense_optimizer: str = "adagrad"
    dense_lr: float | None = None
    bottom_mlp: tuple[int, ...] = (256,)
    top_mlp: tuple[int, ...] = (256,)
    seed: int = 7
    sync: bool = False
    prefetch: int = 1
    """Batches fetched ahead."""
    test_fraction: float = 0.2
    kills: tuple[str, ...] = ()
    chaos_kill_every_s: float | None = None
    """SIGKILL to a random server so often; None: never."""
    report: str | None = None
    spares: int | None = None
    """Idle servers that take the place of one that dies at once: a process takes a while to start, on a busy machine
    longer than a pull may wait. A spare serves any group. None: r for each group, because every group may lose r at the
    same time, and a group without a spare waits for a process to start; they cost r / n of the servers' memory."""
    transport: str = "ipc"
    run_dir: str | None = None
    deaths_max: int = DEATHS_MAX
    """So many ends of one server within two minutes end the run; each replacement is started later than the last."""
    heartbeat_timeout_ms: int | None = None
    """None: 800, and more where more than 4 servers share a core."""
    link_timeout_ms: int | None = None
    """None: 4000, and more with a long `heartbeat_timeout_ms`."""
    on_data_loss: str = STOP
    lease_timeout_ms: int = ProtocolConfig().lease_timeout_ms
    wait_timeout_ms: float | None = None
    """Longest wait of a worker for the cluster, in milliseconds; None: no limit."""
    quiet: bool = False

    @property
    def code_spec(self) -> CodeSpec:
        return CodeSpec.parse(self.code)

    @property
    def dealt(self) -> Groups:
        """The coding groups. Raises ConfigurationError, naming the options, when the shards cannot be dealt so."""
        code = self.code_spec
        try:
            return deal(self.shards, self.groups, code)
        except ConfigurationError as error:
            groups = "" if self.groups is None else f" --groups {self.groups}"
            raise ConfigurationError(f"--shards {self.shards}{groups} --code {self.code}: {error}") from error

    @property
    def tolerance(self) -> Tolerance:
        """Which deaths lose data."""
        return Tolerance(self.dealt, self.code_spec)

    @property
    def kill_list(self) -> list[Kill]:
        """Of servers."""
        return [kill for kill in map(parse_kill, self.kills) if isinstance(kill, Kill)]

    @property
    def worker_kills(self) -> list[WorkerKill]:
        return [kill for kill in map(parse_kill, self.kills) if isinstance(kill, WorkerKill)]

    @property
    def leases_splits(self) -> bool:
        """Workers lease what they train on, and may die. With sync they go through the data in step."""
        return self.workers == 1 or not self.sync

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def dense_learning_rate(self) -> float:
        return DENSE_LEARNING_RATES[self.dense_optimizer] if self.dense_lr is None else self.dense_lr

    @property
    def spare_count(self) -> int:
        return self.code_spec.r * self.dealt.count if self.spares is None else self.spares

    @property
    def heartbeat_ms(self) -> int:
        usual = ProtocolConfig().heartbeat_ms
        if self.heartbeat_timeout_ms is None:
            return usual
        return max(1, min(usual, self.heartbeat_timeout_ms // HEARTBEATS_IN_TIMEOUT))


def parse_sizes(option: str, text: str) -> tuple[int, ...]:
    """``"512,256"`` -> (512, 256). Raises ConfigurationError naming the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"{option} {text!r}: expected layer sizes like 512,256")
    return tuple(int(part) for part in parts)


def check_options(options: TrainOptions) -> list[str]:
    """Warnings. Raises ConfigurationError, naming the option, for the first thing that cannot be."""
    counts = (
        ("--shards", options.shards),
        ("--workers", options.workers),
        ("--steps", options.steps),
        ("--epochs", options.epochs),
        ("--batch", options.batch),
        ("--dim", options.dim),
        ("--rows", options.rows),
        ("--deaths-max", options.deaths_max),
    )
    for name, value in counts:
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} {value}: must be at least 1")
    for name, value in (("--prefetch", options.prefetch), ("--spares", options.spares)):
        if value is not None and value < 0:
            raise ConfigurationError(f"{name} {value}: must not be negative")
    if not 0 <= options.seed < 1 << 63:
        raise ConfigurationError(f"--seed {options.seed}: must be from 0 to 2**63 - 1")
    if not 0 <= options.test_fraction < 1:
        raise ConfigurationError(f"--test-fraction {options.test_fraction}: must be at least 0 and less than 1")
    _check_choice("--optimizer", options.optimizer, tuple(LEARNING_RATES))
    _check_choice("--dense-optimizer", options.dense_optimizer, tuple(DENSE_LEARNING_RATES))
    _check_choice("--transport", options.transport, TRANSPORTS)
    _check_choice("--on-data-loss", options.on_data_loss, ON_DATA_LOSS)
    if options.wait_timeout_ms is not None and not 0 < options.wait_timeout_ms < float("inf"):
        raise ConfigurationError(f"--wait-timeout-ms {options.wait_timeout_ms}: must be a positive number")
    for name, rate in (("--lr", options.lr), ("--dense-lr", options.dense_lr)):
        if rate is not None and not 0 < rate <= LEARNING_RATE_MAX:
            raise ConfigurationError(f"{name} {rate}: must be a positive number, at most {LEARNING_RATE_MAX:.3g}")
    if options.heartbeat_timeout_ms is not None and options.heartbeat_timeout_ms < 2 * HEARTBEATS_IN_TIMEOUT:
        raise ConfigurationError(
            f"--heartbeat-timeout-ms {options.heartbeat_timeout_ms}: must be at least {2 * HEARTBEATS_IN_TIMEOUT}"
        )
    silence_ms = options.heartbeat_timeout_ms or ProtocolConfig().heartbeat_timeout_ms
    if options.link_timeout_ms is not None and options.link_timeout_ms <= silence_ms:
        raise ConfigurationError(
            f"--link-timeout-ms {options.link_timeout_ms}: must be more than --heartbeat-timeout-ms, {silence_ms}"
        )
    if options.lease_timeout_ms < 10 * options.heartbeat_ms:
        limit = f"{10 * options.heartbeat_ms}, ten heartbeats"
        raise ConfigurationError(f"--lease-timeout-ms {options.lease_timeout_ms}: must be at least {limit}")
    if options.worker_kills and not options.leases_splits:
        raise ConfigurationError(f"--kill {options.worker_kills[0]}: with --sync no worker may die; leave it out")
    check_worker_kills(options.worker_kills, options.workers, options.steps)
    code = options.code_spec
    tolerance = options.tolerance
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        raise ConfigurationError(f"--seconds {options.seconds}: must be a positive number")
    if options.seconds is not None and options.sync and options.workers > 1:
        raise ConfigurationError("--seconds with --sync: the workers would stop at different steps; give --steps")
    if options.chaos_kill_every_s is not None:
        if code.r < 1:
            raise ConfigurationError(f"--chaos-kill-every: code {options.code} stands no death")
        if options.kills:
            raise ConfigurationError(
                "--chaos-kill-every and --kill: give one of them; together they could kill too many"
            )
    for file in options.data:
        _check_readable(file)
    in_order = sorted(options.data, key=_natural)
    warnings = []
    if list(options.data) != in_order:
        warnings.append(
            f"--data: the files are read in this order: {', '.join(options.data)}; the test part is the end of it. "
            f"Numbered in order they are: {', '.join(in_order)}"
        )
    _check_writable(options.report)
    _check_run_dir(options)
    kills = check_kills(options.kill_list, tolerance, options.steps, options.on_data_loss == REINITIALISE)
    return [*warnings, *kills]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """``day_10`` behind ``day_9``."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name} {value!r}: expected one of {', '.join(choices)}")


def _check_readable(file: str) -> None:
    from ecrec.data.criteo import check_file  # numpy, which most programs of the launcher do without

    try:
        check_file(file)
    except DataError as error:
        raise ConfigurationError(f"--data {error}") from error


def _check_writable(report: str | None) -> None:
    if report is None:
        return
    path = Path(report)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"--report {report}: cannot be written")


def _check_run_dir(options: TrainOptions) -> None:
    if options.run_dir is None:
        return
    path = Path(options.run_dir)
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"--run-dir {path}: is not a directory")
    if (path / "scheduler.sqlite").exists():
        raise ConfigurationError(f"--run-dir {path}: holds another run; name a new directory")

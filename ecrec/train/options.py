"""The options of ``ecrec train``, checked before anything is started."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec

from ecrec.errors import ConfigurationError, DataError
from ecrec.launch.environment import WAIT_TIMEOUT_HELP
from ecrec.launch.flags import Flag, check
from ecrec.launch.groups import DEFAULT_CODE, ON_DATA_LOSS_OF_RUNS, RESTORE, STOP, Groups, Tolerance, deal
from ecrec.launch.local.cluster import DEATHS_MAX, default_heartbeat_timeout_ms
from ecrec.launch.timeouts import check_timeouts
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec
from ecrec.train.kills import Kill, WorkerKill, check_kills, check_worker_kills, parse_interval, parse_kill

LEARNING_RATES = {name: kind.table_rate for name, kind in OPTIMIZERS.items()}
"""Default learning rate of the embedding tables, by optimizer. Those of SGD and the Adagrads, and the other defaults of
training, were found on the Criteo sample (one epoch, rows and dense tensors one step behind); `bench/compare_torch.py`
trains with them. The others were tried on generated data alone."""

DENSE_LEARNING_RATES = {name: kind.dense_rate for name, kind in OPTIMIZERS.items() if kind.dense_rate}
"""The same for the dense part, of the optimizers that go with it."""

TRANSPORTS = ("tcp", "ipc")
ENGINES = LOCAL, RAY = ("local", "ray")
STOP_AT_BAD_ROWS, SKIP_BAD_ROWS = "stop", "skip"
IDS = HASHED_IDS, PLAIN_IDS = ("hash", "plain")
NONFINITE = ("error", "zero")
"""As `ecrec.training.session.NONFINITE`, which needs torch."""
BAD_ROWS = (STOP_AT_BAD_ROWS, SKIP_BAD_ROWS)
"""As `ecrec.data.BAD_ROWS`, which needs numpy."""
TRACE_STEPS_MAX = 10_000
"""As `ecrec.training.spans.STEPS_MAX`, which needs torch."""
RATE_MB_S = 64.0
"""Megabytes a second that `ecrec verify` reads, of all members together, where nothing else is said: little beside what
training moves; 10 GB in three minutes."""
HEARTBEATS_IN_TIMEOUT = 8
"""A shard is down after so many heartbeats that did not come."""

LEARNING_RATE_MAX = 3.4028235e38
"""Of float32, in which the servers reckon."""


def parse_sizes(option: str, text: str) -> tuple[int, ...]:
    """``"512,256"`` -> (512, 256). Raises ConfigurationError naming the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"{option} {text!r}: expected layer sizes like 512,256")
    return tuple(int(part) for part in parts)


def _show_sizes(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to train, on what, and what to break: the options of ``ecrec train``, each in one place."""

    data: Annotated[
        tuple[str, ...],
        Flag(
            "Files or URLs, '*' in numeric order; repeatable: Criteo's lines (.gz too), CSV (--columns), Parquet, "
            ".npy, .npz, .bin; docs/data.md. None: generated data."
        ),
    ] = ()
    columns: Annotated[
        str | None, Flag("A TOML file: which column of CSV and Parquet files is what; docs/data.md.")
    ] = None
    shuffle_window: Annotated[
        int | None,
        Flag("Shuffle the training rows within windows of so many, anew in each pass, by --seed; no.", at_least=1),
    ] = None
    nonfinite: Annotated[
        str,
        Flag(
            "A gradient that is infinite or not a number: an error before it is sent, or set to zero and counted.",
            choices=NONFINITE,
        ),
    ] = "error"
    bad_rows: Annotated[
        str, Flag(f"What becomes of rows that cannot be read: {' or '.join(BAD_ROWS)}.", choices=BAD_ROWS)
    ] = STOP_AT_BAD_ROWS
    shards: Annotated[int, Flag("Parameter servers, of all coding groups.", at_least=1)] = 5
    groups: Annotated[
        int | None,
        Flag(
            "Coding groups of equal size, each of which tolerates R deaths; one of up to 16 servers, of more as few as "
            "possible."
        ),
    ] = None
    code: Annotated[str, Flag("K+R: R parity rows for K data rows; 1+R replicates.")] = DEFAULT_CODE
    workers: Annotated[int, Flag("Worker processes.", at_least=1)] = 1
    steps: Annotated[int | None, Flag("Steps of each worker; as many as the data gives.", at_least=1)] = None
    epochs: Annotated[int, Flag("Passes over the training data.", at_least=1)] = 1
    seconds: Annotated[float | None, Flag("Begin no step after this many seconds.")] = None
    batch: Annotated[int, Flag("Examples in a step, over all workers.", at_least=1)] = 512
    dim: Annotated[int, Flag("Floats in an embedding vector.", at_least=1)] = 64
    rows: Annotated[int, Flag("Rows of each table.", at_least=2)] = 50_000
    ids: Annotated[
        str,
        Flag(
            "Ids of files: hash them into the rows of a table, or take them plain, as rows of it, such as those of "
            "MLPerf's preprocessed arrays.",
            choices=IDS,
        ),
    ] = HASHED_IDS
    optimizer: Annotated[
        str, Flag(f"Of the embeddings: {', '.join(LEARNING_RATES)}.", choices=tuple(LEARNING_RATES))
    ] = "rowwise-adagrad"
    lr: Annotated[float | None, Flag("Its learning rate.")] = None
    dense_optimizer: Annotated[
        str, Flag(f"Of the dense part: {', '.join(DENSE_LEARNING_RATES)}.", choices=tuple(DENSE_LEARNING_RATES))
    ] = "adagrad"
    dense_lr: Annotated[float | None, Flag("Its learning rate.")] = None
    bottom_mlp: Annotated[tuple[int, ...], Flag("Its hidden layers below.", parse=parse_sizes, show=_show_sizes)] = (
        256,
    )
    top_mlp: Annotated[tuple[int, ...], Flag("Its hidden layers above.", parse=parse_sizes, show=_show_sizes)] = (256,)
    seed: Annotated[int, Flag("Of initial values, generated data and --shuffle-window.")] = 7
    sync: Annotated[bool, Flag("Sum the gradients of all workers in each step.")] = False
    prefetch: Annotated[int, Flag("Batches whose rows are fetched ahead.", at_least=0)] = 1
    kills: Annotated[
        tuple[str, ...],
        Flag("ps:SHARD@STEP or worker:RANK@STEP: SIGKILL at a step; repeatable.", name="--kill"),
    ] = ()
    chaos_kill_every_s: Annotated[
        float | None,
        Flag(
            "Like 10s: SIGKILL to random servers, at most one in each coding group, whenever that time has passed and "
            "no data is lost by it.",
            name="--chaos-kill-every",
            parse=parse_interval,
        ),
    ] = None
    report: Annotated[str | None, Flag("Write the report here, as JSON.")] = None
    metrics: Annotated[
        str | None,
        Flag("Add a line of JSON to this file every second, of each worker: loss, AUC, examples/s, waiting, deaths."),
    ] = None
    tensorboard: Annotated[
        str | None, Flag("Write the same for TensorBoard into this directory, each worker as a run of its own.")
    ] = None
    trace: Annotated[
        str | None, Flag("Write here what each worker's first steps did when, for chrome://tracing or Perfetto.")
    ] = None
    trace_steps: Annotated[int, Flag("So many steps.", at_least=1)] = 100
    spares: Annotated[
        int | None, Flag("Idle servers that take a dead one's place, in any group; R for each group.", at_least=0)
    ] = None
    """A process takes a while to start, on a busy machine longer than a pull may wait. None: r for each group, because
    every group may lose r at the same time, and a group without a spare waits for a process to start; they cost r / n
    of the servers' memory."""
    on: Annotated[
        str,
        Flag(
            "Where servers and workers run: local, on this machine, or ray: on the nodes of a Ray (RAY_ADDRESS), each "
            "server on one of its own.",
            choices=ENGINES,
        ),
    ] = LOCAL
    transport: Annotated[str, Flag(" or ".join(TRANSPORTS) + ".", choices=TRANSPORTS)] = "ipc"
    http: Annotated[
        str | None,
        Flag("HOST:PORT, such as 127.0.0.1:7080: show the live page of the run there, to everybody who reaches it."),
    ] = None
    run_dir: Annotated[str | None, Flag("Directory for logs and state; a temporary one.")] = None
    deaths_max: Annotated[
        int,
        Flag(
            "A server that ended so often within two minutes, without --kill, ends the run, with its last words.",
            at_least=1,
        ),
    ] = DEATHS_MAX
    """Each replacement is started later than the last."""
    heartbeat_timeout_ms: Annotated[
        int | None,
        Flag("A server that was silent for that long is down; 800, and more where more than 4 servers share a core."),
    ] = None
    link_timeout_ms: Annotated[
        int | None,
        Flag("When two servers have not heard each other for this long, one is replaced; 4000, or more."),
    ] = None
    on_data_loss: Annotated[
        str,
        Flag(
            "After more deaths than the code tolerates: stop, reinitialise the lost rows, or restore the newest "
            "checkpoint of this run (--checkpoint, --checkpoint-every) and go on from there.",
            choices=ON_DATA_LOSS_OF_RUNS,
        ),
    ] = STOP
    lease_timeout_ms: Annotated[
        int, Flag("A worker that is silent for longer is given up; its splits go to others.")
    ] = ProtocolConfig().lease_timeout_ms
    wait_timeout_ms: Annotated[float | None, Flag(WAIT_TIMEOUT_HELP, kind=int)] = None
    checkpoint: Annotated[
        str | None, Flag("Write checkpoints here, a path or URL: one at the end, and with --checkpoint-every more.")
    ] = None
    checkpoint_every_s: Annotated[
        float | None,
        Flag("Like 10m: write one whenever that time has passed.", name="--checkpoint-every", parse=parse_interval),
    ] = None
    checkpoint_keep: Annotated[int | None, Flag("Keep so many of them; all.", at_least=1)] = None
    checkpoint_incremental: Annotated[
        bool, Flag("Write only what changed since the one before, and everything again now and then.")
    ] = False
    resume: Annotated[
        str | None,
        Flag("Go on from the newest complete checkpoint here, with the next example; shards and code may be others."),
    ] = None
    partial: Annotated[
        bool,
        Flag("With --resume: take what fits. Without it, tables that are missing, new or changed are an error."),
    ] = False
    map: Annotated[
        tuple[str, ...], Flag("With --resume, OLD=NEW: what a table of the checkpoint is called here; repeatable.")
    ] = ()
    test_fraction: Annotated[float, Flag("The last part of the data, kept for the test.")] = 0.2
    quiet: Annotated[bool, Flag("No progress, no summary.")] = False

    @property
    def names(self) -> dict[str, str]:
        """`map`: name in the checkpoint -> name here."""
        from ecrec.checkpoint.fitting import parse_names  # numpy, which most programs of the launcher do without

        return parse_names("--map", self.map)

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


def check_options(options: TrainOptions) -> list[str]:
    """Warnings. Raises ConfigurationError, naming the option, for the first thing that cannot be."""
    check(options)
    if not 0 <= options.seed < 1 << 63:
        raise ConfigurationError(f"--seed {options.seed}: must be from 0 to 2**63 - 1")
    if not 0 <= options.test_fraction < 1:
        raise ConfigurationError(f"--test-fraction {options.test_fraction}: must be at least 0 and less than 1")
    if options.wait_timeout_ms is not None and not 0 < options.wait_timeout_ms < float("inf"):
        raise ConfigurationError(f"--wait-timeout-ms {options.wait_timeout_ms}: must be a positive number")
    for name, rate in (("--lr", options.lr), ("--dense-lr", options.dense_lr)):
        if rate is not None and not 0 < rate <= LEARNING_RATE_MAX:
            raise ConfigurationError(f"{name} {rate}: must be a positive number, at most {LEARNING_RATE_MAX:.3g}")
    if options.heartbeat_timeout_ms is not None and options.heartbeat_timeout_ms < 2 * HEARTBEATS_IN_TIMEOUT:
        raise ConfigurationError(
            f"--heartbeat-timeout-ms {options.heartbeat_timeout_ms}: must be at least {2 * HEARTBEATS_IN_TIMEOUT}"
        )
    silence_ms = options.heartbeat_timeout_ms or default_heartbeat_timeout_ms(options.shards)
    check_timeouts(silence_ms, options.link_timeout_ms, options.heartbeat_ms, as_flags=True)
    if options.lease_timeout_ms < 10 * options.heartbeat_ms:
        limit = f"{10 * options.heartbeat_ms}, ten heartbeats"
        raise ConfigurationError(f"--lease-timeout-ms {options.lease_timeout_ms}: must be at least {limit}")
    if options.worker_kills and not options.leases_splits:
        raise ConfigurationError(f"--kill {options.worker_kills[0]}: with --sync no worker may die; leave it out")
    _check_goes_on(options)
    check_worker_kills(options.worker_kills, options.workers, options.steps)
    code = options.code_spec
    tolerance = options.tolerance
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        raise ConfigurationError(f"--seconds {options.seconds}: must be a positive number")
    if options.seconds is not None and options.sync and options.workers > 1:
        raise ConfigurationError("--seconds with --sync: the workers would stop at different steps; give --steps")
    if options.chaos_kill_every_s is not None:
        if code.r < 1:
            raise ConfigurationError(f"--chaos-kill-every: code {options.code} tolerates no death")
        if options.kills:
            raise ConfigurationError(
                "--chaos-kill-every and --kill: give one of them; together they could kill too many"
            )
    warnings = _check_data(options)
    _check_writable("--report", options.report)
    _check_observed(options)
    _check_run_dir(options)
    if options.on_data_loss == RESTORE and options.checkpoint_every_s is None and options.resume is None:
        warnings.append(
            "--on-data-loss restore: without --checkpoint-every there is no checkpoint to go back to before the end"
        )
    kills = check_kills(options.kill_list, tolerance, options.steps, options.on_data_loss)
    return [*warnings, *kills]


def check_resized(options: TrainOptions) -> None:
    """Raise ConfigurationError, naming the option, for servers that a run in progress cannot go on with."""
    if not options.leases_splits:
        raise ConfigurationError(
            "with --sync no worker leases its examples, and a checkpoint does not say how far they were"
        )
    if options.shards < 1:
        raise ConfigurationError(f"--shards {options.shards}: must be at least 1")
    _ = options.dealt


def _check_goes_on(options: TrainOptions) -> None:
    """What a run needs that begins with a checkpoint, or may go back to one."""
    if not options.leases_splits:
        for name, is_given in (
            ("--resume", options.resume),
            ("--on-data-loss restore", options.on_data_loss == RESTORE),
        ):
            if is_given:
                raise ConfigurationError(
                    f"{name}: with --sync no worker leases its examples, and a checkpoint does not say how "
                    "far they were"
                )
    if options.resume is None and (options.partial or options.map):
        raise ConfigurationError(f"{'--partial' if options.partial else '--map'}: expected --resume with it")
    if options.map:
        _ = options.names
    if options.on_data_loss == RESTORE and options.checkpoint is None:
        raise ConfigurationError("--on-data-loss restore: give --checkpoint, and --checkpoint-every")


def with_files(options: TrainOptions) -> TrainOptions:
    """The same with the files that ``--data`` means, each by its name. Raises ConfigurationError, naming the option."""
    if not options.data:
        return options
    from ecrec.data.formats import names_of  # numpy, which most programs of the launcher do without

    try:
        return msgspec.structs.replace(options, data=tuple(names_of(options.data)))
    except DataError as error:
        raise ConfigurationError(f"--data {error}") from error


def dataset_name(shuffle_window: int | None, seed: int, ids: str = HASHED_IDS) -> str:
    """Name under which workers lease splits. It says in which order rows come, and what their ids mean: a checkpoint of
    another order knows of other rows which ones are trained on, and its tables are of other ids."""
    name = "train" if ids == HASHED_IDS else f"train, ids {ids}"
    return name if shuffle_window is None else f"{name}, shuffled in windows of {shuffle_window} by seed {seed}"


def check_order(options: TrainOptions, known: Sequence[str]) -> None:
    """Raise ConfigurationError where the data sets of a checkpoint are trained on in another order, or with other ids,
    than asked for."""
    name = dataset_name(options.shuffle_window, options.seed, options.ids)
    others = [each for each in known if each.startswith("train") and each != name]
    if others:
        raise ConfigurationError(
            f"--resume {options.resume}: its examples come in another order, or with other ids: it was trained on "
            f"{others[0]!r}, and this is {name!r}. Give the same --ids, --shuffle-window and --seed"
        )


def _check_data(options: TrainOptions) -> list[str]:
    """Warnings. Raises ConfigurationError, naming the option, for files that do not begin with a row."""
    if not options.data and options.columns is not None:
        raise ConfigurationError("--columns: expected --data with it")
    if not options.data and options.ids == PLAIN_IDS:
        raise ConfigurationError("--ids plain: expected --data with it; generated data has ids of its own")
    if not options.data and options.shuffle_window is None:
        return []
    from ecrec.data.columns import read_columns  # numpy, which most programs of the launcher do without
    from ecrec.data.formats import check_file
    from ecrec.data.opened import natural_key
    from ecrec.data.plain_ids import PlainIds
    from ecrec.data.shuffle import WINDOW_ROWS_MAX
    from ecrec.urls import shown

    if options.shuffle_window is not None and options.shuffle_window > WINDOW_ROWS_MAX:
        raise ConfigurationError(f"--shuffle-window {options.shuffle_window}: must be at most {WINDOW_ROWS_MAX}")
    columns = None if options.columns is None else read_columns(options.columns)
    plain = PlainIds(options.rows) if options.ids == PLAIN_IDS else None
    if columns is not None and plain is not None:
        try:
            columns.check_plain_ids()
        except ConfigurationError as error:
            raise ConfigurationError(f"--ids plain with --columns {options.columns}: {error}") from error
    for file in options.data:
        try:
            check_file(file, columns, plain)
        except (DataError, ConfigurationError) as error:
            raise ConfigurationError(f"--data {error}") from error
    in_order = sorted(options.data, key=natural_key)
    if list(options.data) == in_order:
        return []
    return [
        f"--data: the files are read in this order: {', '.join(map(shown, options.data))}; the test part is the end of "
        f"it. Numbered in order they are: {', '.join(map(shown, in_order))}"
    ]


def _check_writable(name: str, file: str | None) -> None:
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        why = "it is a directory, expected the name of a file"
    elif not path.parent.is_dir():
        why = f"there is no directory {path.parent}: make it first"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "this user may not write there"
    else:
        return
    raise ConfigurationError(f"{name} {file}: cannot be written: {why}")


def _check_observed(options: TrainOptions) -> None:
    """The files that workers write while they train."""
    if options.trace_steps > TRACE_STEPS_MAX:
        raise ConfigurationError(f"--trace-steps {options.trace_steps}: must be at most {TRACE_STEPS_MAX}")
    for name, given in (
        ("--metrics", options.metrics), ("--tensorboard", options.tensorboard), ("--trace", options.trace)
    ):  # fmt: skip
        if given is not None and options.on == RAY:
            raise ConfigurationError(f"{name} with --on ray: each worker would write it on a node of its own")
    _check_writable("--metrics", options.metrics)
    _check_writable("--trace", options.trace)
    if options.tensorboard is not None:
        directory = Path(options.tensorboard)
        if find_spec("tensorboard") is None:
            raise ConfigurationError(f'--tensorboard {directory}: needs TensorBoard: pip install "ecrec[tensorboard]"')
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--tensorboard {directory}: {error.strerror}") from error


def _check_run_dir(options: TrainOptions) -> None:
    if options.run_dir is None:
        return
    path = Path(options.run_dir)
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"--run-dir {path}: is not a directory")
    if (path / "scheduler.sqlite").exists():
        raise ConfigurationError(f"--run-dir {path}: holds another run; name a new directory")

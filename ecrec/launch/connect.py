"""``ecrec.connect`` and ``ecrec.local_cluster``: a training session from a script or a notebook."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ecrec.checkpoint.checking import prune
from ecrec.checkpoint.reading import open_checkpoint
from ecrec.checkpoint.restore import cluster_name, restore, restored_datasets
from ecrec.checkpoint.saving import Increments
from ecrec.errors import CheckpointError, ClusterError, ConfigurationError, DataLostError, EcrecError
from ecrec.launch import environment, worker_pages
from ecrec.launch.environment import curve_keys
from ecrec.launch.groups import DEFAULT_CODE, ON_DATA_LOSS_OF_RUNS, RESTORE, STOP, deal
from ecrec.launch.local.cluster import (
    DEATHS_MAX,
    ClusterSettings,
    LocalCluster,
    default_heartbeat_timeout_ms,
    set_aside,
)
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.rewind import DamagedPointError, Point, Rewinds, Rewound
from ecrec.launch.saving import SavingThread
from ecrec.launch.timeouts import check_timeouts
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.placement import CodeSpec
from ecrec.termination import sigterm_as_exit

if TYPE_CHECKING:
    from ecrec.training.session import Session

SCHEDULER, RANK, WORLD_SIZE, LOCAL_RANK = "ECREC_SCHEDULER", "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Environment of a worker: where the scheduler is; the last three are torchrun's."""

CODE = "ECREC_CODE"
"""The code of tables that name none, where `connect` is given none; empty or not set: K+1 over a whole group."""

_PUMP_S = 1.0

T = TypeVar("T")

log = logging.getLogger(__name__)


def whole_number(variable: str, default: int) -> int:
    """Of the environment. ConfigurationError for what is no number."""
    text = os.environ.get(variable, "")
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"{variable}={text!r}: expected a whole number, as `ecrec-worker` sets it")
    return int(text or default)


def connect(
    endpoint: str | None = None,
    *,
    code: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    sync: bool = False,
    exact: bool | None = None,
    nonfinite: str = "error",
    curve_dir: str | None = None,
    wait_timeout_ms: float | None = None,
    read_only: bool = False,
) -> "Session":
    """A training session of a running cluster; what is not given is taken from the environment of
    `ecrec-worker`. Use it in a ``with`` statement, or `close` it: both wait until every push is durable.

    ``code`` is that of tables which name none (default: ECREC_CODE, or else n - 1 data rows and 1 parity row in groups
    of n shards); ``sync``, ``exact`` and ``nonfinite`` are the session's; ``curve_dir`` holds the keys of a cluster
    that encrypts (default: ECREC_CURVE_DIR). ``wait_timeout_ms``: a wait of the session that takes longer ends with
    ClusterError (default: ECREC_WAIT_TIMEOUT_MS; without it, it waits as long as the scheduler is there and does not
    say that data is lost). ``read_only``: a session that is no worker, for a notebook, a monitor or an evaluation: it
    pulls and changes nothing, and the environment's rank is not its own.

    Of two processes with one rank the newer one takes the place, and the other is told to end. A process that names no
    rank, nor the environment, is worker 0 unless another process is, and lives: then it is refused. It waits for 5 s
    after the last word of one that was killed.

    Raises ConfigurationError without an endpoint or for keys that cannot be used, RefusedError where a worker 0 lives
    and no rank is named, ClusterError when the cluster cannot be reached.
    """
    endpoint = endpoint or os.environ.get(SCHEDULER)
    if not endpoint:
        raise ConfigurationError(f"no scheduler: give its endpoint, or set {SCHEDULER}")
    if rank is None and not read_only and os.environ.get(RANK):
        rank = whole_number(RANK, 0)
    for name, number, least in (("rank", rank, 0), ("world_size", world_size, 1)):
        is_whole = hasattr(number, "__index__") and not isinstance(number, bool)
        if number is not None and not (is_whole and number >= least):
            raise ConfigurationError(f"{name} {number!r}: expected a whole number, at least {least}")
    is_told = world_size is not None or bool(os.environ.get(WORLD_SIZE))
    if world_size is None:
        least = 1 if rank is None else rank + 1
        world_size = least if read_only else whole_number(WORLD_SIZE, least)
    code = os.environ.get(CODE) or None if code is None else code
    spec = None if code is None else CodeSpec.of(code)
    keys = curve_keys(curve_dir)
    limit_ms = environment.wait_timeout_ms(wait_timeout_ms)
    session = _training_connect()(
        endpoint, rank=rank, world_size=world_size, sync=sync, exact=exact, nonfinite=nonfinite, code=spec, keys=keys,
        wait_timeout_ms=limit_ms, read_only=read_only,
    )  # fmt: skip
    session.knows_world_size = is_told
    worker_pages.attach(session)
    return session


def local_cluster(
    *,
    shards: int = 5,
    groups: int | None = None,
    code: str = DEFAULT_CODE,
    run_dir: str | None = None,
    transport: str = "ipc",
    on_data_loss: str = STOP,
    deaths_max: int = DEATHS_MAX,
    heartbeat_timeout_ms: int | None = None,
    link_timeout_ms: int | None = None,
    nonfinite: str = "error",
    wait_timeout_ms: float | None = None,
    restore: str | None = None,
    checkpoint: str | None = None,
    checkpoint_every_s: float | None = None,
    checkpoint_keep: int | None = None,
    checkpoint_incremental: bool = False,
) -> "LocalRun":
    """A scheduler and shards on this machine, and a session. In a ``with`` statement they are started, the session is
    given, and all are ended at its exit; ``.run(train)`` does the same around ``train(session)``.

    ``shards`` is the number of all; they are dealt into ``groups`` coding groups of equal size (default: one of up to
    16 shards; of more, as few as possible), each of which tolerates r deaths of its own.

    A thread replaces shards that die; one that ended ``deaths_max`` times within two minutes is given up. A server that
    is silent for ``heartbeat_timeout_ms`` is declared down (800, and more where servers share processors), and so is
    one of two that have not heard each other for ``link_timeout_ms`` (4000, and more with a longer time of silence).
    ``nonfinite``, ``wait_timeout_ms``: as for `connect`. ``on_data_loss``: what happens when more shards die than the
    code tolerates: ``"stop"`` (DataLostError), ``"reinitialise"`` the lost rows and go on, or ``"restore"`` the newest
    checkpoint of this run, see `LocalRun.run`. ``restore``: begin with the newest complete checkpoint at this path or
    URL, whatever its shards and code were. ``checkpoint``: where checkpoints of this run are: one is written at the
    end, and one every ``checkpoint_every_s`` seconds; all but the newest ``checkpoint_keep`` and their bases are
    removed. ``checkpoint_incremental``: they have only what changed since the one before, and now and then everything.
    In the main thread, unless the script handles it itself, SIGTERM raises SystemExit while it lasts, so that processes
    and temporary directories are gone when the script is.

    Raises ConfigurationError for shards that cannot be dealt so, a code that does not fit a group and options that do
    not go together; entered or run, ClusterError when the processes cannot be started.
    """
    if on_data_loss not in ON_DATA_LOSS_OF_RUNS:
        known = ", ".join(ON_DATA_LOSS_OF_RUNS)
        raise ConfigurationError(f"on_data_loss {on_data_loss!r}: expected one of {known}")
    if checkpoint is None and (on_data_loss == RESTORE or checkpoint_every_s is not None):
        what = 'on_data_loss="restore"' if on_data_loss == RESTORE else "checkpoint_every_s"
        raise ConfigurationError(f"{what}: give checkpoint, the path or URL of this run's checkpoints")
    if checkpoint_every_s is not None and not 0 < checkpoint_every_s < math.inf:
        raise ConfigurationError(f"checkpoint_every_s {checkpoint_every_s}: expected a positive number of seconds")
    if checkpoint_keep is not None and checkpoint_keep < 1:
        raise ConfigurationError(f"checkpoint_keep {checkpoint_keep}: expected at least 1")
    silence_ms = default_heartbeat_timeout_ms(shards) if heartbeat_timeout_ms is None else heartbeat_timeout_ms
    check_timeouts(silence_ms, link_timeout_ms, ProtocolConfig().heartbeat_ms, as_flags=False)
    spec = CodeSpec.of(code)
    _training_connect()
    settings = ClusterSettings(
        shards, Path(), transport, on_data_loss=STOP if on_data_loss == RESTORE else on_data_loss,
        heartbeat_timeout_ms=heartbeat_timeout_ms, link_timeout_ms=link_timeout_ms,
        groups=deal(shards, groups, spec).count, deaths_max=deaths_max,
    )  # fmt: skip
    writes = Writes(checkpoint, checkpoint_every_s, checkpoint_keep, checkpoint_incremental)
    limit_ms = environment.wait_timeout_ms(wait_timeout_ms)
    return LocalRun(_Lives(settings, run_dir, spec, nonfinite, limit_ms, on_data_loss == RESTORE, restore, writes))


class Writes(NamedTuple):
    """Which checkpoints a run writes."""

    url: str | None
    every_s: float | None
    keep: int | None
    incremental: bool


class LocalRun(AbstractContextManager["Session"]):
    """What `local_cluster` returns: nothing is started yet. It is used once, in a ``with`` statement or by `run`."""

    def __init__(self, lives: "_Lives") -> None:
        self._lives = lives
        self._block = ExitStack()

    @property
    def rewound(self) -> list[Rewound]:
        """Each time that `run` went back to a checkpoint."""
        return self._lives.rewound

    def __enter__(self) -> "Session":
        if self._lives.goes_back:
            raise ConfigurationError(
                'on_data_loss="restore": a with block cannot be begun again. Give a function: '
                "local_cluster(...).run(train) calls train(session)"
            )
        with ExitStack() as block:
            directory, point, rewinds = self._lives.begin(block)
            session = block.enter_context(self._lives.live(directory, point, rewinds, None))
            self._block = block.pop_all()
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)

    def run(self, train: "Callable[[Session], T]") -> T:
        """Call ``train(session)``, and return what it returns.

        With ``on_data_loss="restore"`` it is called again, with the session of a new cluster, each time that more
        shards died than the code tolerates. The new cluster begins with the newest complete checkpoint of this run, or
        with the one of ``restore``. ``train`` makes its model again as it did before, and finds the weights of the
        checkpoint; `Session.lease_splits` goes on with the next example after it. All processes of the cluster before
        have ended by then, and its session is closed. `rewound` says what is repeated. Raises what ``train`` raises,
        and DataLostError, with the reason, if there is no checkpoint to go back to.
        """
        with ExitStack() as block:
            directory, point, rewinds = self._lives.begin(block)
            lost: DataLostError | None = None
            while True:
                try:
                    with self._lives.live(directory, point, rewinds, lost) as session:
                        return train(session)
                except DataLostError as error:
                    if not self._lives.goes_back:
                        raise
                    lost = error
                    self._lives.lost_data()
                except DamagedPointError as error:
                    log.warning("%s cannot be restored, the one before it is tried: %s", error.point, error)
                    rewinds.is_damaged(error.point)
                assert lost is not None
                point = rewinds.back(lost)
                log.warning("%s\ngoing back to %s", lost, point)
                set_aside(directory)


class _Lives:
    """The clusters of one run, each after the one before has lost data.

    Apart from `LocalRun`, so that one that is dropped ends its block at once: if the block referred back to it, that
    would wait until Python looks for circles.
    """

    def __init__(
        self, settings: ClusterSettings, run_dir: str | None, code: CodeSpec, nonfinite: str,
        wait_timeout_ms: float | None, goes_back: bool, restore: str | None, writes: Writes,
    ) -> None:  # fmt: skip
        self._run_dir = run_dir
        self._settings, self._code, self._nonfinite, self._wait_timeout_ms = settings, code, nonfinite, wait_timeout_ms
        self.goes_back = goes_back
        self._restore, self._writes = restore, writes
        self._is_used = False
        self._began_s = 0.0
        """When the present cluster began, by the monotonic clock."""
        self._trained = 0
        """Examples that were trained on in the data sets that it began with."""
        self._examples = 0
        """That its session has pushed."""
        self._stopped_s = 0.0
        """When it lost data."""
        self.rewound: list[Rewound] = []
        """Each time that `run` went back to a checkpoint."""

    def begin(self, block: ExitStack) -> tuple[Path, Point | None, Rewinds]:
        """The directory of the run, which ``block`` removes if it is a temporary one, and where it begins."""
        if self._is_used:
            raise ConfigurationError("this local_cluster was used already: call local_cluster again")
        self._is_used = True
        block.enter_context(sigterm_as_exit())
        point = None
        if self._restore is not None:
            checkpoint = open_checkpoint(self._restore)
            point = Point(self._restore, checkpoint.manifest.checkpoint)
            self._trained = sum(dataset.trained for dataset in restored_datasets(checkpoint))
        # An error of the cluster names logs, which then stay.
        given = nullcontext(Path(self._run_dir)) if self._run_dir else Scratch("ecrec-", kept_after=EcrecError)
        directory = block.enter_context(given)
        directory.mkdir(parents=True, exist_ok=True)
        return directory, point, Rewinds(self._writes.url or "", point)

    @contextmanager
    def live(
        self, directory: Path, point: Point | None, rewinds: Rewinds, lost: DataLostError | None
    ) -> "Iterator[Session]":
        """One cluster, which begins at ``point``, and its session; all is ended at the exit. It is left with
        DataLostError, whatever was raised inside, if more shards have died than the code tolerates."""
        with LocalCluster(self._settings._replace(run_dir=directory)) as cluster:
            endpoint = cluster.start()
            cluster.wait_ready()
            with Keeper(cluster) as keeper:
                rewinds.lives(cluster_name(endpoint, curve_keys()))
                if point is not None:
                    self._bring(endpoint, point, lost)
                self._began_s, self._examples = time.monotonic(), 0
                session = _training_connect()(
                    endpoint, code=self._code, keys=curve_keys(), nonfinite=self._nonfinite, rank=0,
                    wait_timeout_ms=self._wait_timeout_ms,
                )  # fmt: skip
                with session:
                    session.watch(keeper.failure)
                    try:
                        with self._checkpoints(session):
                            yield session
                    except Exception as error:
                        if session.machine.failed_kind == "lost" and not isinstance(error, DataLostError):
                            raise DataLostError(session.machine.failed) from error
                        raise
                    finally:
                        self._examples = session.figures.examples

    def lost_data(self) -> None:
        """The present cluster has ended with it."""
        self._stopped_s = time.monotonic()

    def _bring(self, endpoint: str, point: Point, lost: DataLostError | None) -> None:
        try:
            restore(endpoint, point.url, point.number, self._code, keys=curve_keys())
        except CheckpointError as error:
            if lost is None:
                raise
            raise DamagedPointError(point, str(error)) from error
        if lost is not None:
            self._count(str(lost), point)

    @contextmanager
    def _checkpoints(self, session: "Session") -> Iterator[None]:
        """Checkpoints are written meanwhile, and one at the end, unless that is an error."""
        url, every_s, keep, incremental = self._writes
        if url is None:
            yield
            return
        thread = SavingThread(session.scheduler[0], url, every_s, keep, log.info, Increments() if incremental else None)
        thread.start()
        try:
            yield
        finally:
            thread.stop()
        session.save(url, incremental=incremental)
        if keep is not None:
            prune(url, keep)

    def _count(self, reason: str, point: Point) -> None:
        """What is repeated of the cluster that has ended: the next one has begun at ``point``."""
        checkpoint = open_checkpoint(point.url, point.number)
        datasets = restored_datasets(checkpoint)
        trained = sum(dataset.trained for dataset in datasets)
        examples = max(0, self._trained + self._examples - trained) if datasets else 0
        cut = time.monotonic() - (time.time() - checkpoint.manifest.time_s)
        seconds = max(0.0, self._stopped_s - max(cut, self._began_s))
        self._trained = trained
        self.rewound.append(Rewound(reason, point, examples, seconds, self._stopped_s))
        log.warning("%d examples, %.1f s of training, are repeated", examples, seconds)


def _training_connect() -> "Callable[..., Session]":
    try:
        from ecrec.training import connect as join
    except ImportError as error:
        raise ConfigurationError(f'training needs torch: pip install "ecrec[train]" ({error})') from error
    return join


class Keeper:
    """A thread that hears a cluster's processes and replaces those that die."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._pid = os.getpid()
        self._ending = threading.Event()
        self._error: ClusterError | None = None
        self._thread = threading.Thread(target=self._run, name="ecrec-cluster", daemon=True)

    def failure(self) -> ClusterError | None:
        """Why it does not replace servers any more; None while it does."""
        return self._error

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._cluster.pump(_PUMP_S)
        except ClusterError as error:
            self._error = error
        except Exception as error:
            self._error = ClusterError(f"the thread that starts servers again has ended: {error!r}")
            self._error.__cause__ = error

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._pid:
            return
        self._ending.set()
        self._cluster.children.wake()
        self._thread.join()
        if self._error is not None:
            raise self._error

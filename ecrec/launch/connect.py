"""``ecrec.connect`` and ``ecrec.local_cluster``: a training session from a script or a notebook."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ecrec.errors import ClusterError, ConfigurationError, EcrecError
from ecrec.launch import environment
from ecrec.launch.cluster import DEATHS_MAX, ClusterSettings, LocalCluster
from ecrec.launch.environment import curve_keys
from ecrec.launch.groups import DEFAULT_CODE, deal
from ecrec.launch.options import ON_DATA_LOSS, STOP
from ecrec.launch.scratch import Scratch
from ecrec.protocol.placement import CodeSpec

if TYPE_CHECKING:
    from ecrec.training.session import Session

SCHEDULER, RANK, WORLD_SIZE, LOCAL_RANK = "ECREC_SCHEDULER", "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Environment of a worker: where the scheduler is; the last three are torchrun's."""

_PUMP_S = 1.0


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

    ``code`` is that of tables which name none (default: n - 1 data rows and 1 parity row in groups of n
    shards); ``sync``, ``exact`` and ``nonfinite`` are the session's; ``curve_dir`` holds the keys of a cluster that
    encrypts (default: ECREC_CURVE_DIR). ``wait_timeout_ms``: a wait of the session that takes longer ends with
    ClusterError (default: ECREC_WAIT_TIMEOUT_MS; without it, it waits as long as the scheduler is there and does not
    say that data is lost). ``read_only``: a session that is no worker, for a notebook, a monitor or an evaluation: it
    pulls and changes nothing, and the environment's rank is not its own.
    Raises ConfigurationError without an endpoint or for keys that cannot be used, ClusterError when the cluster cannot
    be reached.
    """
    endpoint = endpoint or os.environ.get(SCHEDULER)
    if not endpoint:
        raise ConfigurationError(f"no scheduler: give its endpoint, or set {SCHEDULER}")
    if rank is None:
        rank = 0 if read_only else whole_number(RANK, 0)
    if world_size is None:
        world_size = rank + 1 if read_only else whole_number(WORLD_SIZE, rank + 1)
    spec = None if code is None else CodeSpec.parse(code)
    keys = curve_keys(curve_dir)
    limit_ms = environment.wait_timeout_ms(wait_timeout_ms)
    return _training_connect()(
        endpoint, rank=rank, world_size=world_size, sync=sync, exact=exact, nonfinite=nonfinite, code=spec, keys=keys,
        wait_timeout_ms=limit_ms, read_only=read_only,
    )  # fmt: skip


@contextmanager
def local_cluster(
    *,
    shards: int = 5,
    groups: int | None = None,
    code: str = DEFAULT_CODE,
    run_dir: str | None = None,
    transport: str = "ipc",
    on_data_loss: str = STOP,
    deaths_max: int = DEATHS_MAX,
    nonfinite: str = "error",
    wait_timeout_ms: float | None = None,
) -> "Iterator[Session]":
    """Start a scheduler and shards on this machine, give a session, end them all at exit.

    ``shards`` is the number of all; they are dealt into ``groups`` coding groups of equal size (default: one of up to
    16 shards; of more, as few as possible), each of which tolerates r deaths of its own.

    A thread replaces shards that die; one that ended ``deaths_max`` times within two minutes is given up.
    ``nonfinite``, ``wait_timeout_ms``: as for `connect`. ``on_data_loss``: what happens when more shards die than the
    code tolerates, ``"stop"`` (DataLostError) or ``"reinitialise"`` the lost rows and go on. Raises ConfigurationError
    for shards that cannot be dealt so, a code that does not fit a group or another ``on_data_loss``, ClusterError when
    the processes cannot be started.
    """
    if on_data_loss not in ON_DATA_LOSS:
        raise ConfigurationError(f"on_data_loss {on_data_loss!r}: expected one of {', '.join(ON_DATA_LOSS)}")
    spec = CodeSpec.parse(code)
    dealt = deal(shards, groups, spec)
    join = _training_connect()
    limit_ms = environment.wait_timeout_ms(wait_timeout_ms)
    # An error of the cluster names logs, which then stay.
    with nullcontext(Path(run_dir)) if run_dir else Scratch("ecrec-", kept_after=EcrecError) as directory:
        directory.mkdir(parents=True, exist_ok=True)
        settings = ClusterSettings(
            shards, directory, transport, on_data_loss=on_data_loss, groups=dealt.count, deaths_max=deaths_max
        )
        with LocalCluster(settings) as cluster:
            endpoint = cluster.start()
            cluster.wait_ready()
            with (
                Keeper(cluster) as keeper,
                join(endpoint, code=spec, keys=curve_keys(), nonfinite=nonfinite, wait_timeout_ms=limit_ms) as session,
            ):
                session.watch(keeper.failure)
                yield session


def _training_connect() -> "Callable[..., Session]":
    try:
        from ecrec.training.session import connect as join
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

"""``ecrec.connect`` and ``ecrec.local_cluster``: a training session from a script or a notebook."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.cluster import ClusterSettings, LocalCluster
from ecrec.launch.environment import curve_keys
from ecrec.launch.options import ON_DATA_LOSS, STOP
from ecrec.protocol.placement import CodeSpec, Placement

if TYPE_CHECKING:
    from ecrec.training.session import Session

SCHEDULER, RANK, WORLD_SIZE, LOCAL_RANK = "ECREC_SCHEDULER", "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Environment of a worker: where the scheduler is; the last three are torchrun's."""

DEFAULT_CODE = "4+1"
_PUMP_S = 1.0


@contextmanager
def connect(
    endpoint: str | None = None,
    *,
    code: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    sync: bool = False,
    exact: bool | None = None,
    curve_dir: str | None = None,
) -> "Iterator[Session]":
    """A training session of a running cluster; what is not given is taken from the environment of
    `ecrec-worker`.

    ``code`` is that of tables which name none (default: n - 1 data rows and 1 parity row in groups of n
    shards); ``sync`` and ``exact`` are the session's; ``curve_dir`` holds the keys of a cluster that encrypts (default:
    ECREC_CURVE_DIR). Raises ConfigurationError without an endpoint or for keys that cannot be used, ClusterError
    when the cluster cannot be reached.
    """
    endpoint = endpoint or os.environ.get(SCHEDULER)
    if not endpoint:
        raise ConfigurationError(f"no scheduler: give its endpoint, or set {SCHEDULER}")
    rank = int(os.environ.get(RANK, "0")) if rank is None else rank
    if world_size is None:
        world_size = int(os.environ.get(WORLD_SIZE, str(rank + 1)))
    spec = None if code is None else CodeSpec.parse(code)
    keys = curve_keys(curve_dir)
    with _training_connect()(
        endpoint, rank=rank, world_size=world_size, sync=sync, exact=exact, code=spec, keys=keys
    ) as session:
        yield session


@contextmanager
def local_cluster(
    *,
    shards: int = 5,
    code: str = DEFAULT_CODE,
    run_dir: str | None = None,
    transport: str = "ipc",
    on_data_loss: str = STOP,
) -> "Iterator[Session]":
    """Start a scheduler and shards on this machine, give a session, end them all at exit.

    A thread replaces shards that die. ``on_data_loss``: what happens when more die than the code stands, ``"stop"``
    (DataLostError) or ``"reinitialise"`` the lost rows and go on. Raises ConfigurationError for a code that does not
    fit the shards or another ``on_data_loss``, ClusterError when the processes cannot be started.
    """
    if on_data_loss not in ON_DATA_LOSS:
        raise ConfigurationError(f"on_data_loss {on_data_loss!r}: expected one of {', '.join(ON_DATA_LOSS)}")
    spec = CodeSpec.parse(code)
    Placement(shards).check(spec)
    join = _training_connect()
    with tempfile.TemporaryDirectory(prefix="ecrec-") as scratch:
        directory = Path(run_dir or scratch)
        directory.mkdir(parents=True, exist_ok=True)
        with LocalCluster(ClusterSettings(shards, directory, transport, on_data_loss=on_data_loss)) as cluster:
            endpoint = cluster.start()
            cluster.wait_ready()
            with Keeper(cluster), join(endpoint, code=spec, keys=curve_keys()) as session:
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
        self._ending = threading.Event()
        self._error: ClusterError | None = None
        self._thread = threading.Thread(target=self._run, name="ecrec-cluster", daemon=True)

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._cluster.pump(_PUMP_S)
        except ClusterError as error:
            self._error = error

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._cluster.children.wake()
        self._thread.join()
        if self._error is not None:
            raise self._error

"""A whole cluster on this machine: a scheduler and shards as processes, replaced when they die."""

import json
import os
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ecrec.errors import ClusterError
from ecrec.launch.children import Child, ChildEvent, Children, Ended, Line
from ecrec.launch.threads import SERVER_THREADS, thread_environment
from ecrec.tether import module_command

START_TIMEOUT_S = 60.0
"""A loaded machine may need so long until all processes are ready."""

ENDS_MAX = 4
ENDS_SPAN_S = 30.0
"""A server that ended ENDS_MAX times in such a span without being killed from here is given up."""

SPARE = -1

CLUSTER_FILE = "cluster.json"
"""In the run directory: where the scheduler is, and the process ids, for tools and people."""

STATE_FILE = "scheduler.sqlite"


class ClusterSettings(NamedTuple):
    """What the processes of a local cluster are started with."""

    shards: int
    run_dir: Path
    transport: str = "ipc"
    """Sockets of the file system cost less than TCP's; ``"tcp"`` is what a cluster of several machines has."""
    heartbeat_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    on_data_loss: str | None = None
    lease_timeout_ms: int | None = None
    scheduler_module: str = "ecrec.launch.scheduler"
    shard_module: str = "ecrec.launch.ps"


class LocalCluster:
    """Starts the processes, hears them, kills them when asked, and replaces each that ends.

    Everything happens in the thread that calls ``pump``. The children are killed by the kernel if the
    launcher dies.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.children = Children()
        self.endpoint = ""
        self.replaced: list[str] = []
        """Names of the servers that were started again."""
        self.failures: list[str] = []
        """How servers ended that were not killed from here."""
        self._scheduler: Child | None = None
        self._shards: dict[Child, int] = {}
        """Shard servers; -1: a spare, or one that was a spare."""
        self._endpoints: dict[str, Child] = {}
        self._with_spares = False
        self._ready: set[Child] = set()
        self._asked: set[Child] = set()
        self._ends: defaultdict[str, deque[float]] = defaultdict(deque)
        self._incarnations = 0
        self._log_dir = settings.run_dir / "logs"
        self._socket_dir: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ start and end
    def start(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Start the scheduler and then all shards; return the scheduler's endpoint once it is ready.

        The shards come up meanwhile (``wait_ready``). Raises ClusterError when a process ends or is late.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        self._start_scheduler(self._bind("scheduler"))
        while not self.endpoint:
            self._pump_until(deadline, "the scheduler")
        for shard in range(self.settings.shards):
            self._start_shard(shard)
        return self.endpoint

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until all processes listen. Raises ClusterError when one ends or is late."""
        deadline = time.monotonic() + timeout_s
        while waiting := [child.name for child in self._servers() if child not in self._ready]:
            self._pump_until(deadline, ", ".join(waiting))

    def _pump_until(self, deadline: float, who: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClusterError(f"not ready in time: {who}; logs are in {self._log_dir}")
        self.pump(left)

    def close(self) -> None:
        """End all processes."""
        self._asked.update(self.children.running)
        self.children.close()
        if self._socket_dir is not None:
            self._socket_dir.cleanup()
            self._socket_dir = None

    # ------------------------------------------------------------------ while it runs
    def pump(self, timeout_s: float) -> list[ChildEvent]:
        """Hear the children for at most so long; return what those that are not servers said.

        Raises ClusterError when a server keeps ending.
        """
        others: list[ChildEvent] = []
        for event in self.children.wait(timeout_s):
            if event.child not in self._servers():
                others.append(event)
            elif isinstance(event, Line):
                self._on_line(event)
            else:
                self._on_server_ended(event)
        return others

    def add_spare(self) -> None:
        """Start a server that waits for a place; from now on every server that ends is replaced by a spare.

        Not before all shards are up: it could take the place of one that is a little late.
        """
        self._with_spares = True
        self._start_shard(SPARE)

    def runs(self, endpoint: str) -> bool:
        """A server of this cluster listens there, as far as is known."""
        return endpoint in self._endpoints

    def kill(self, endpoint: str) -> float:
        """SIGKILL to the server at this endpoint. Returns when, in seconds of the monotonic clock."""
        child = self._endpoints[endpoint]
        self._asked.add(child)
        return self.children.kill(child)

    def start_worker(self, rank: int, world_size: int, arguments: list[str], environment: Mapping[str, str]) -> Child:
        """Start ``ecrec-worker ARGUMENTS`` as worker ``rank``; its events come out of ``pump``."""
        given = {
            **os.environ,
            **environment,
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": str(rank),
            "ECREC_SCHEDULER": self.endpoint,
        }
        return self.children.start(
            f"worker {rank}",
            module_command("ecrec.launch.worker", *arguments),
            self._log_dir / f"worker-{rank}.log",
            given,
            events=True,
        )

    def kill_worker(self, child: Child) -> float:
        """SIGKILL to a worker. Returns when, in seconds of the monotonic clock."""
        return self.children.kill(child)

    # ------------------------------------------------------------------ servers
    def _servers(self) -> list[Child]:
        return [*([self._scheduler] if self._scheduler else []), *self._shards]

    def _bind(self, name: str) -> str:
        if self.settings.transport == "ipc":
            # Not in the run directory, whose path may be longer than a socket's can be.
            if self._socket_dir is None:
                self._socket_dir = tempfile.TemporaryDirectory(prefix="ecrec-sockets-")
            return f"ipc://{self._socket_dir.name}/{name}"
        return "tcp://127.0.0.1:0"

    def _start_scheduler(self, bind: str) -> None:
        arguments = ["--bind", bind, "--shards", str(self.settings.shards), "--groups", "1"]
        arguments += ["--state", str(self.settings.run_dir / STATE_FILE)]
        if self.settings.heartbeat_ms is not None:
            arguments += ["--heartbeat-ms", str(self.settings.heartbeat_ms)]
        if self.settings.heartbeat_timeout_ms is not None:
            arguments += ["--heartbeat-timeout-ms", str(self.settings.heartbeat_timeout_ms)]
        if self.settings.on_data_loss is not None:
            arguments += ["--on-data-loss", self.settings.on_data_loss]
        if self.settings.lease_timeout_ms is not None:
            arguments += ["--lease-timeout-ms", str(self.settings.lease_timeout_ms)]
        self._scheduler = self._start("scheduler", self.settings.scheduler_module, arguments)

    def _start_shard(self, shard: int) -> None:
        self._incarnations += 1
        bind = self._bind(f"ps-{self._incarnations}")
        place = ["--spare"] if shard == SPARE else ["--shard", str(shard)]
        name = f"spare {self._incarnations - self.settings.shards}" if shard == SPARE else f"ps {shard}"
        arguments = ["--scheduler", self.endpoint, *place, "--bind", bind]
        child = self._start(name, self.settings.shard_module, arguments)
        self._shards[child] = shard

    def _start(self, name: str, module: str, arguments: list[str]) -> Child:
        child = self.children.start(
            name,
            module_command(module, *arguments),
            self._log_dir / f"{name.replace(' ', '-')}.log",
            {**os.environ, **thread_environment(SERVER_THREADS)},
        )
        self._write_cluster_file(child)
        return child

    def _write_cluster_file(self, started: Child) -> None:
        pids = {child.name: child.pid for child in self._servers() if not child.ended}
        pids[started.name] = started.pid
        text = json.dumps({"scheduler": self.endpoint, "pids": pids})
        path = self.settings.run_dir / CLUSTER_FILE
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def _on_line(self, line: Line) -> None:
        if "ready" not in line.data:
            return
        self._ready.add(line.child)
        endpoint = str(line.data["endpoint"])
        if line.child is not self._scheduler:
            self._endpoints[endpoint] = line.child
        else:
            self.endpoint = endpoint
            self._write_cluster_file(line.child)

    def _on_server_ended(self, event: Ended) -> None:
        child = event.child
        if child not in self._asked:
            self.failures.append(child.describe_end())
            self._check_not_failing(child)
        self._ready.discard(child)
        if child is self._scheduler:
            if not self.endpoint:
                raise ClusterError(child.describe_end())
            self._start_scheduler(self.endpoint)
        else:
            shard = self._shards.pop(child)
            self._endpoints = {at: server for at, server in self._endpoints.items() if server is not child}
            self._start_shard(SPARE if self._with_spares else shard)
        self.replaced.append(child.name)

    def _check_not_failing(self, child: Child) -> None:
        now = time.monotonic()
        # Spares are all one kind: whoever takes a place that cannot be held ends in it.
        ends = self._ends["spare" if self._shards.get(child) == SPARE else child.name]
        ends.append(now)
        while ends[0] < now - ENDS_SPAN_S:
            ends.popleft()
        if len(ends) >= ENDS_MAX or (child not in self._ready and child.process.returncode == 2):
            raise ClusterError(f"{child.name} keeps ending: {child.describe_end()}")

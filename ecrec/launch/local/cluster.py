"""A whole cluster on this machine: a scheduler and shards as processes, replaced when they die."""

import json
import logging
import math
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

from ecrec.errors import ClusterError
from ecrec.exit_codes import ExitCode
from ecrec.launch.local.children import Child, ChildEvent, Children, Ended, Line
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.threads import SERVER_THREADS, cores, crowding, thread_environment
from ecrec.launch.variables import environment_of_children
from ecrec.protocol.config import ProtocolConfig
from ecrec.tether import module_command

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""A loaded machine may need that long until all processes are ready; times `crowding`."""

DEATHS_MAX = 10
DEATHS_SPAN_S = 120.0
"""A server that ended DEATHS_MAX times in such a span without being killed from here is given up, and the run with it;
of spares, that many for each group."""

BACK_OFF_S = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before a server is started again, after its first, second, ... end in that span; the last entry is
for all later ends. A server that ended for want of memory, for example, would only end again if it came back sooner."""

SPARE = -1

CLUSTER_FILE = "cluster.json"
"""In the run directory: where the scheduler is, and the process ids, for tools and people."""

STATE_FILE = "scheduler.sqlite"


class ClusterSettings(NamedTuple):
    """What the processes of a local cluster are started with."""

    shards: int
    """Of all coding groups."""
    run_dir: Path
    transport: str = "ipc"
    """Sockets of the file system cost less than TCP's; ``"tcp"`` is what a cluster of several machines has."""
    heartbeat_ms: int | None = None
    heartbeat_timeout_ms: int | None = None
    """None: the protocol's default, times `crowding`."""
    link_timeout_ms: int | None = None
    """None: as `ecrec-scheduler` makes it of the one of silence."""
    on_data_loss: str | None = None
    lease_timeout_ms: int | None = None
    groups: int | None = None
    """Coding groups; None: as `ecrec-scheduler` deals them."""
    deaths_max: int = DEATHS_MAX
    """So many ends of one server in `DEATHS_SPAN_S` are borne, but for the last."""
    limits: Mapping[str, int | float] = MappingProxyType({})
    """Limits and time-outs of `ProtocolConfig` that are others than by default."""
    scheduler_module: str = "ecrec.launch.servers.scheduler"
    shard_module: str = "ecrec.launch.servers.ps"


def set_aside(run_dir: Path) -> None:
    """Give the state of the scheduler of a cluster that has ended another name: one that is started in this directory
    is a new one. Raises ClusterError if that cannot be done."""
    number = 1
    while (run_dir / f"ended-{number}-{STATE_FILE}").exists():
        number += 1
    try:
        for path in list(run_dir.glob(f"{STATE_FILE}*")):  # SQLite has files beside it
            path.rename(run_dir / f"ended-{number}-{path.name}")
    except OSError as error:
        raise ClusterError(f"the state of the cluster that has ended stays in the way: {error}") from error


def default_heartbeat_timeout_ms(shards: int) -> int:
    """Silence after which a server of so many on this machine is declared down, where nothing else is said."""
    return round(ProtocolConfig().heartbeat_timeout_ms * crowding(shards, cores()))


class LocalCluster:
    """Starts the processes, hears them, kills them when asked, and replaces each that ends.

    Everything happens in the thread that calls ``pump``. The children are killed by the kernel if the
    launcher dies.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self._pid = os.getpid()
        self.crowding = crowding(settings.shards, cores())
        """Factor for time-outs that wait for all servers of the cluster."""
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
        self._processes: dict[Child, str] = {}
        """Server -> its random name, by which the scheduler knows it."""
        self._asked: set[Child] = set()
        self._ends: defaultdict[str, deque[float]] = defaultdict(deque)
        self._heard: list[ChildEvent] = []
        """What those that are not servers said while servers were waited for: `pump` returns it."""
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        """What is started again at a time of the monotonic clock, by its name."""
        self._incarnations = 0
        self._log_dir = settings.run_dir / "logs"
        self._socket_dir: Scratch | None = None

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ start and end
    def start(self, timeout_s: float | None = None) -> str:
        """Start the scheduler and then all shards; return the scheduler's endpoint once it is ready.

        The shards come up meanwhile (``wait_ready``). Raises ClusterError when a process ends or is late.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        deadline = self._start_deadline(timeout_s)
        self._start_scheduler(self._bind("scheduler"))
        while not self.endpoint:
            self._pump_until(deadline, "the scheduler")
        for shard in range(self.settings.shards):
            self._start_shard(shard)
        return self.endpoint

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until all processes listen. Raises ClusterError when one ends or is late."""
        deadline = self._start_deadline(timeout_s)
        while waiting := [
            *(child.name for child in self._servers() if child not in self._ready),
            *(name for _, name, _ in self._later),
        ]:
            self._pump_until(deadline, ", ".join(waiting))

    def _start_deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (START_TIMEOUT_S * self.crowding if timeout_s is None else timeout_s)

    def _pump_until(self, deadline: float, who: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClusterError(f"not ready in time: {who}; logs are in {self._log_dir}")
        self._heard += self.pump(left)

    def close(self) -> None:
        """End all processes. In a child of `os.fork` nothing happens: they are not its own."""
        if os.getpid() != self._pid:
            return
        self._asked.update(self.children.running)
        self.children.close()
        if self._socket_dir is not None:
            self._socket_dir.remove()
            self._socket_dir = None

    def end_at_once(self) -> None:
        """Nothing of it is needed any more: its processes are not given time to end."""
        for child in self.children.running:
            self.children.kill(child)
        self.close()

    # ------------------------------------------------------------------ while it runs
    def pump(self, timeout_s: float) -> list[ChildEvent]:
        """Hear the children for at most this long; return what those that are not servers said.

        Raises ClusterError when a server keeps ending.
        """
        others, self._heard = self._heard, []
        if others:
            timeout_s = 0.0
        due = min((at for at, _, _ in self._later), default=math.inf)
        for event in self.children.wait(min(timeout_s, max(0.0, due - time.monotonic()))):
            if event.child not in self._servers():
                others.append(event)
            elif isinstance(event, Line):
                self._on_line(event)
            else:
                self._on_server_ended(event)
        now = time.monotonic()
        due_now = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, name, start in due_now:
            self._start_again(name, start)
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

    def tell_to_end(self, endpoint: str) -> float:
        """SIGTERM to the server at this endpoint: it leaves without loss of data. Returns when."""
        child = self._endpoints[endpoint]
        self._asked.add(child)
        at = time.monotonic()
        child.process.terminate()
        return at

    @property
    def server_pids(self) -> list[int]:
        """Of the parameter servers and spares that run."""
        return [child.pid for child in self._shards]

    def start_worker(self, rank: int, world_size: int, arguments: list[str], environment: Mapping[str, str]) -> Child:
        """Start ``ecrec-worker ARGUMENTS`` as worker ``rank``; its events come out of ``pump``."""
        given = {
            **environment_of_children(),
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

    def flag_workers(self, name: str, is_set: bool) -> None:
        """Nothing: workers of this machine see the files of their ``--control`` themselves."""

    def kill_worker(self, child: Child) -> float:
        """SIGKILL to a worker. Returns when, in seconds of the monotonic clock."""
        return self.children.kill(child)

    # ------------------------------------------------------------------ servers
    @property
    def heartbeat_timeout_ms(self) -> int:
        """A server that is silent for that long is declared down."""
        if self.settings.heartbeat_timeout_ms is not None:
            return self.settings.heartbeat_timeout_ms
        return default_heartbeat_timeout_ms(self.settings.shards)

    def _servers(self) -> list[Child]:
        return [*([self._scheduler] if self._scheduler else []), *self._shards]

    def _bind(self, name: str) -> str:
        if self.settings.transport == "ipc":
            # Not in the run directory, whose path may be longer than a socket's can be.
            if self._socket_dir is None:
                self._socket_dir = Scratch("ecrec-sockets-", for_sockets=True)
            return f"ipc://{self._socket_dir.path}/{name}"
        return "tcp://127.0.0.1:0"

    def _start_scheduler(self, bind: str) -> None:
        arguments = ["--bind", bind, "--shards", str(self.settings.shards)]
        if self.settings.groups is not None:
            arguments += ["--groups", str(self.settings.groups)]
        arguments += ["--state", str(self.settings.run_dir / STATE_FILE)]
        if self.settings.heartbeat_ms is not None:
            arguments += ["--heartbeat-ms", str(self.settings.heartbeat_ms)]
        arguments += ["--heartbeat-timeout-ms", str(self.heartbeat_timeout_ms)]
        if self.settings.link_timeout_ms is not None:
            arguments += ["--link-timeout-ms", str(self.settings.link_timeout_ms)]
        if self.settings.on_data_loss is not None:
            arguments += ["--on-data-loss", self.settings.on_data_loss]
        if self.settings.lease_timeout_ms is not None:
            arguments += ["--lease-timeout-ms", str(self.settings.lease_timeout_ms)]
        for name, value in self.settings.limits.items():
            arguments += ["--set", f"{name}={json.dumps(value)}"]
        self._scheduler = self._start("scheduler", self.settings.scheduler_module, arguments)

    def _start_shard(self, shard: int, predecessor: str = "") -> None:
        self._incarnations += 1
        bind = self._bind(f"ps-{self._incarnations}")
        place = ["--spare"] if shard == SPARE else ["--shard", str(shard)]
        name = f"spare {self._incarnations - self.settings.shards}" if shard == SPARE else f"ps {shard}"
        # The scheduler is a child, too, and started again by the same hand: it may be late.
        arguments = ["--scheduler", self.endpoint, *place, "--bind", bind, "--scheduler-timeout-ms", "0"]
        if predecessor:
            arguments += ["--predecessor", predecessor]
        child = self._start(name, self.settings.shard_module, arguments)
        self._shards[child] = shard

    def _start(self, name: str, module: str, arguments: list[str]) -> Child:
        child = self.children.start(
            name,
            module_command(module, *arguments),
            self._log_dir / f"{name.replace(' ', '-')}.log",
            {**environment_of_children(), **thread_environment(SERVER_THREADS)},
            end_signal=signal.SIGINT,  # at SIGTERM a server waits until the others are whole, and here all end
        )
        self._write_cluster_file(child)
        return child

    def _write_cluster_file(self, started: Child) -> None:
        pids = {child.name: child.pid for child in self._servers() if not child.ended}
        pids[started.name] = started.pid
        text = json.dumps({"scheduler": self.endpoint, "pids": pids})
        path = self.settings.run_dir / CLUSTER_FILE
        new = path.with_suffix(".new")
        try:
            new.write_text(text)
            new.replace(path)
        except OSError as error:  # it only informs: training goes on without it
            log.warning("%s could not be written, and is out of date: %s", path, error.strerror)

    def _on_line(self, line: Line) -> None:
        if "ready" not in line.data:
            return
        self._ready.add(line.child)
        self._processes[line.child] = str(line.data.get("process", ""))
        endpoint = str(line.data["endpoint"])
        if line.child is not self._scheduler:
            self._endpoints[endpoint] = line.child
        else:
            self.endpoint = endpoint
            self._write_cluster_file(line.child)

    def _on_server_ended(self, event: Ended) -> None:
        child = event.child
        was_ready = child in self._ready
        self._ready.discard(child)
        start: Callable[[], None]
        if child is self._scheduler:
            if not self.endpoint:
                raise ClusterError(child.describe_end())
            self._scheduler = None
            kind, start = "scheduler", partial(self._start_scheduler, self.endpoint)
        else:
            # The ends of all spares are counted together: each of them may take the same place, and end there.
            shard = self._shards.pop(child)
            kind = "spare" if shard == SPARE else child.name
            self._endpoints = {at: server for at, server in self._endpoints.items() if server is not child}
            process, how = self._processes.pop(child, ""), child.describe_end(lines=1)
            predecessor = f"{process}:{' '.join(how.split())}" if process and child not in self._asked else ""
            start = partial(self._start_shard, SPARE if self._with_spares else shard, predecessor)
        wait_s = 0.0
        if child not in self._asked:
            self.failures.append(child.describe_end())
            if child.process.returncode == ExitCode.OPTIONS and not was_ready:
                raise ClusterError(f"{child.name} keeps ending: {child.describe_end()}")
            wait_s = self._count_end(kind, event.code, child.describe_end())
        self.replaced.append(child.name)
        if wait_s:
            log.warning("%s; it is started again in %.1f s", child.describe_end(lines=1), wait_s)
            self._later.append((time.monotonic() + wait_s, kind, start))
        else:
            self._start_again(kind, start)

    def _start_again(self, kind: str, start: Callable[[], None]) -> None:
        try:
            start()
        except ClusterError as error:  # no memory, or no processes, for it now
            wait_s = max(BACK_OFF_S[2], self._count_end(kind, None, str(error)))
            log.warning("%s; trying again in %.1f s", error, wait_s)
            self._later.append((time.monotonic() + wait_s, kind, start))

    def _count_end(self, kind: str, code: int | None, how: str) -> float:
        """How long to wait before the next one, in seconds. Raises ClusterError after too many."""
        now = time.monotonic()
        ends = self._ends[kind]
        ends.append(now)
        while ends[0] < now - DEATHS_SPAN_S:
            ends.popleft()
        most = self.settings.deaths_max * ((self.settings.groups or 1) if kind == "spare" else 1)
        # A scheduler without room for its state goes on as soon as there is some; training needs it only at a death. A
        # server whose place another one has was taken for dead, and is not: busy hosts do that.
        if len(ends) >= most and code not in (ExitCode.STATE, ExitCode.REPLACED):
            raise ClusterError(f"{kind} keeps ending, {len(ends)} times in {DEATHS_SPAN_S:.0f} s: {how}")
        return BACK_OFF_S[min(len(ends), len(BACK_OFF_S)) - 1]

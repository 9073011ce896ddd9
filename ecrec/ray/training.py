"""The cluster of ``ecrec train --on ray``, and of ``ecrec reproduce --on ray``: what `LocalCluster` is for a run on one
machine, with the same calls.

Servers are those of `ecrec.ray.Cluster`. Each worker is an actor that runs `ecrec-worker` as a child, and hands out
what that says. The scheduler runs on the node of this process, whose clock times of kills and deaths are compared by.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecrec.errors import ClusterError
from ecrec.launch.environment import CURVE_DIR, curve_dir_for_all
from ecrec.launch.groups import STOP
from ecrec.launch.local.children import Children, Ended, Line
from ecrec.launch.local.cluster import ClusterSettings
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.variables import environment_of_children
from ecrec.protocol.config import ProtocolConfig
from ecrec.ray.actors import Standing, write_keys
from ecrec.ray.cluster import Cluster, Keys
from ecrec.ray.needed import import_ray
from ecrec.tether import module_command

EVENTS_S = 5.0
"""How long a question for the events of a worker waits for one."""
STANDING_S = 0.5
"""How often the actors of servers are asked how these are."""
START_TIMEOUT_S = 120.0


class WorkerActor:
    """A worker of a run, as the child of an actor. ``files``: written before it starts; their directory is {dir}, and
    a worker that is told ``--control {dir}`` finds there what `flag` makes."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], files: Mapping[str, bytes]
    ) -> None:
        self._scratch = Scratch("ecrec-ray-")
        self._children = Children()
        write_keys(self._scratch.path, files)
        here = str(self._scratch.path)
        given = {key: value.replace("{dir}", here) for key, value in environment.items()}
        self._child = self._children.start(
            name,
            module_command("ecrec.launch.worker", *(each.replace("{dir}", here) for each in arguments)),
            self._scratch.path / "worker.log",
            {**environment_of_children(), **given},
            events=True,
        )

    def clock_s(self) -> float:
        """The monotonic clock of this host, by which events of the worker are timed."""
        return time.monotonic()

    def events(self, timeout_s: float) -> list[dict[str, Any]]:
        """What the worker said since the last call; waits for something. The last event has an exit code."""
        found = []
        for event in self._children.wait(timeout_s):
            if isinstance(event, Ended):
                found.append({"ended": event.code, "how": event.child.describe_end()})
            else:
                found.append({"line": event.data})
        return found

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGKILL)

    def flag(self, name: str, is_set: bool) -> None:
        """Make an empty file of that name in {dir}, or remove it."""
        path = self._scratch.path / name
        path.touch() if is_set else path.unlink(missing_ok=True)


class RayWorker:
    """A worker as the run sees it: what `children.Child` is for a local one."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.ended = False
        self.how = f"{name} was lost with its actor or its node"
        self.offset_s = 0.0
        """What its clock is behind the one of this host."""

    def describe_end(self, lines: int = 15) -> str:
        """How it ended, with the last lines of its log."""
        return self.how


class RayTraining:
    """A context manager with the calls of `LocalCluster`. ``spares``: all servers are placed at once.

    ``keys``: of a process that has several clusters, and has named those of its workers in the environment.
    """

    def __init__(self, settings: ClusterSettings, code: str, spares: int, keys: Keys | None = None) -> None:
        self.settings = settings
        self.crowding = 1.0
        self.endpoint = ""
        self.failures: list[str] = []
        self.replaced: list[str] = []
        self._cluster = Cluster(
            settings.shards,
            code,
            spares,
            groups=settings.groups,
            name=f"train-{secrets.token_hex(4)}",
            on_data_loss=settings.on_data_loss or STOP,
            start_timeout_s=START_TIMEOUT_S,
            scheduler_options=_scheduler_options(settings),
            keys=keys,
            server_module=settings.shard_module,
        )
        self._has_own_keys = keys is None
        self._flags: set[str] = set()
        self._workers: dict[RayWorker, Any] = {}
        """Worker -> the question for its events that is out."""
        self._standings: dict[str, Standing] = {}
        self._asked_s = 0.0
        self._keys = contextlib.ExitStack()

    def __enter__(self) -> "RayTraining":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def heartbeat_timeout_ms(self) -> int:
        """A server that is silent for that long is declared down."""
        return self.settings.heartbeat_timeout_ms or ProtocolConfig().heartbeat_timeout_ms

    def start(self) -> str:
        """Place and start everything but the workers; the scheduler's endpoint. Raises ClusterError."""
        ray = import_ray()
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.WARNING)  # the logs of actors are kept by Ray
        self._cluster.start()
        self.endpoint = self._cluster.scheduler
        if self._has_own_keys:
            self._keys.enter_context(curve_dir_for_all(self._cluster.curve_dir))
        self._look()
        return self.endpoint

    def wait_ready(self) -> None:
        self._cluster.wait_whole()

    def close(self) -> None:
        ray = import_ray()
        for worker in list(self._workers):
            with contextlib.suppress(Exception):
                ray.kill(worker.actor, no_restart=True)
        self._workers.clear()
        self._cluster.close()
        self._keys.close()

    def end_at_once(self) -> None:
        """Nothing of it is needed any more."""
        self.close()

    # ------------------------------------------------------------------ workers
    def start_worker(
        self, rank: int, world_size: int, arguments: list[str], environment: Mapping[str, str]
    ) -> RayWorker:
        """Start ``ecrec-worker ARGUMENTS`` on any node that has room; files that they name go with it."""
        ray = import_ray()
        files = {f"keys/{name}": content for name, content in self._cluster.worker_keys.items()}
        sent = []
        for number, each in enumerate(arguments):
            if number and arguments[number - 1] == "--config":
                files["config.json"] = Path(each).read_bytes()
                each = "{dir}/config.json"
            elif number and arguments[number - 1] == "--control":
                files.update(dict.fromkeys(self._flags, b""))
                each = "{dir}"
            sent.append(each)
        given = {
            **environment, "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0",
            "ECREC_SCHEDULER": self.endpoint, CURVE_DIR: "{dir}/keys" if self._cluster.worker_keys else "",
        }  # fmt: skip
        actor = ray.remote(WorkerActor).options(num_cpus=0, max_concurrency=4, scheduling_strategy="SPREAD")
        worker = RayWorker(f"worker {rank}", actor.remote(f"worker {rank}", sent, given, files))
        try:
            ray.get(worker.actor.clock_s.remote(), timeout=START_TIMEOUT_S)  # it has started
            before = time.monotonic()
            theirs = ray.get(worker.actor.clock_s.remote(), timeout=START_TIMEOUT_S)
            worker.offset_s = (before + time.monotonic()) / 2 - theirs
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise ClusterError(f"worker {rank} cannot be started on Ray: {error}") from error
        self._workers[worker] = worker.actor.events.remote(EVENTS_S)
        return worker

    def kill_worker(self, worker: RayWorker) -> float:
        """SIGKILL to a worker. Returns when, in seconds of the monotonic clock."""
        ray = import_ray()
        at = time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(worker.actor.kill.remote(), timeout=EVENTS_S)
        return at

    def flag_workers(self, name: str, is_set: bool) -> None:
        """Have the workers that were started with ``--control`` find a file of that name there, or no more."""
        ray = import_ray()
        self._flags.add(name) if is_set else self._flags.discard(name)
        told = [worker.actor.flag.remote(name, is_set) for worker in list(self._workers)]
        ray.wait(told, num_returns=len(told), timeout=EVENTS_S) if told else None

    def pump(self, timeout_s: float) -> list[Line | Ended]:
        """Hear the workers for at most this long."""
        ray = import_ray()
        if time.monotonic() - self._asked_s > STANDING_S:
            self._look()
        asked = {question: worker for worker, question in self._workers.items()}
        if not asked:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(list(asked), num_returns=1, timeout=timeout_s)
        found: list[Line | Ended] = []
        for question in done:
            found += self._hear(asked[question], question)
        return found

    def _hear(self, worker: RayWorker, question: Any) -> list[Line | Ended]:
        ray = import_ray()
        try:
            said = ray.get(question)
        except ray.exceptions.RayError:
            said = [{"ended": -signal.SIGKILL}]
        events: list[Line | Ended] = []
        for each in said:
            if "line" in each:
                data = each["line"]
                if "at" in data:
                    data["at"] += worker.offset_s
                events.append(Line(worker, data))  # type: ignore[arg-type]
            else:
                worker.ended, worker.how = True, each.get("how", worker.how)
                events.append(Ended(worker, each["ended"]))  # type: ignore[arg-type]
        if worker.ended:
            del self._workers[worker]
            with contextlib.suppress(Exception):
                ray.kill(worker.actor, no_restart=True)
        else:
            self._workers[worker] = worker.actor.events.remote(EVENTS_S)
        return events

    # ------------------------------------------------------------------ servers
    def add_spare(self) -> None:
        """They are there already."""

    def runs(self, endpoint: str) -> bool:
        """A server of this cluster listens there, as far as is known."""
        return any(standing.endpoint == endpoint for standing in self._standings.values())

    def kill(self, endpoint: str) -> float:
        """SIGKILL to the server at this endpoint. Returns when, in seconds of the monotonic clock."""
        return self._end(endpoint, self._cluster.kill_actor)

    def tell_to_end(self, endpoint: str) -> float:
        """SIGTERM to the server at this endpoint: it leaves without loss of data. Returns when."""
        return self._end(endpoint, self._cluster.terminate_actor)

    def _end(self, endpoint: str, act: Callable[[str], None]) -> float:
        name = next(name for name, standing in self._standings.items() if standing.endpoint == endpoint)
        del self._standings[name]
        at = time.monotonic()
        act(name)
        self.replaced.append(name)
        return at

    @property
    def server_pids(self) -> list[int]:
        """None: they are processes of other hosts."""
        return []

    def _look(self) -> None:
        self._standings = {standing.name: standing for standing in self._cluster.servers()}
        self._asked_s = time.monotonic()
        for standing in self._standings.values():
            if standing.failure:
                raise ClusterError(f"{standing.name} cannot be started: {standing.failure}")


def _scheduler_options(settings: ClusterSettings) -> list[str]:
    given = {
        "--heartbeat-ms": settings.heartbeat_ms,
        "--heartbeat-timeout-ms": settings.heartbeat_timeout_ms,
        "--link-timeout-ms": settings.link_timeout_ms,
        "--lease-timeout-ms": settings.lease_timeout_ms,
    }
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    for name, value in settings.limits.items():
        options += ["--set", f"{name}={json.dumps(value)}"]
    return options


def describe_nodes() -> str:
    """What the nodes are that RAY_ADDRESS names, for results that are compared: ``Ray, nodes of 1, 8 CPUs``."""
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    cpus = {int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    return f"Ray, nodes of {', '.join(map(str, sorted(cpus - {0})))} CPUs"

"""``ecrec.ray.Cluster``: scheduler and parameter servers as actors of Ray, each server on a node of its own."""

import atexit
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.connect import connect as connect_to
from ecrec.launch.groups import DEFAULT_CODE, ON_DATA_LOSS, STOP, deal
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.tools.verify import cluster_state
from ecrec.protocol.messages import UP, ClusterState
from ecrec.protocol.placement import CodeSpec
from ecrec.ray.actors import IP, KEYS, ServerActor, Standing, read_keys, write_keys
from ecrec.ray.needed import import_ray
from ecrec.transport.coordinator import FILE_SCHEME
from ecrec.transport.curve import generate
from ecrec.transport.endpoints import tcp

if TYPE_CHECKING:
    from ecrec.training.session import Session

log = logging.getLogger(__name__)

NAMESPACE = "ecrec"
"""Of Ray, in which the actors have their names."""

START_TIMEOUT_S = 120.0
"""Nodes that are there take seconds; those that an autoscaler brings may take longer: ``start_timeout_s``."""

POLL_S = 0.2
ANSWER_S = 10.0
"""An actor that does not answer for this long is being started again."""

SERVER_RESOURCES = {"CPU": 1.0}
STATE_FILE, ENDPOINT_FILE = "scheduler.sqlite", "scheduler.endpoint"
SERVER_MODULE = "ecrec.launch.servers.ps"


class Keys(NamedTuple):
    """Files of two directories of keys, by their names: of servers, and of workers and tools."""

    servers: dict[str, bytes]
    workers: dict[str, bytes]

    @classmethod
    def read(cls, directory: Path) -> "Keys":
        """Those that `make_keys` has made there."""
        return cls(read_keys(directory / "servers"), read_keys(directory / "workers"))


def make_keys(directory: Path) -> Path:
    """New keys in two directories there; that of workers, for this process."""
    generate(directory / "servers", "servers")
    generate(directory / "workers", "workers", directory / "servers")
    return directory / "workers"


class Cluster:
    """A cluster on Ray; a context manager, at whose end it is closed.

    ``shards``: all parameter servers, in ``groups`` coding groups; ``code``: ``K+R``, of the tables; ``spares``:
    servers that wait for a place (default: R for each group). Each has a bundle of ``resources_per_shard`` (default:
    one CPU) in a placement group with STRICT_SPREAD: there must be as many nodes as servers. A server whose node is
    lost is started again on another node as soon as Ray has one; a spare has its place by then.

    The scheduler needs its state. ``coordinator="zk://..."``: ``schedulers`` of them stand by for each other.
    ``state="/shared/path"``: a directory that all nodes see; the scheduler comes back on any node. Without either it
    runs on the node of this process, and the cluster ends with that node.

    ``curve_dir``: a directory of keys that is on all nodes (default: keys are made for the cluster, and given to its
    actors). ``allow_plain_network``: without keys. ``name``: by which `connect` finds it. ``detached``: it stays when
    this process ends, and `Cluster.attach` finds it. ``scheduler_options``: more for `ecrec-scheduler`. ``keys``: in
    place of new ones, for several clusters of one process. ``server_module``: the program of the parameter servers.
    """

    def __init__(
        self,
        shards: int = 5,
        code: str = DEFAULT_CODE,
        spares: int | None = None,
        resources_per_shard: Mapping[str, float] | None = None,
        groups: int | None = None,
        *,
        name: str = "ecrec",
        state: str | None = None,
        coordinator: str | None = None,
        schedulers: int = 2,
        curve_dir: str | None = None,
        allow_plain_network: bool = False,
        on_data_loss: str = STOP,
        start_timeout_s: float = START_TIMEOUT_S,
        detached: bool = False,
        scheduler_options: Sequence[str] = (),
        keys: Keys | None = None,
        server_module: str = SERVER_MODULE,
    ) -> None:
        """Starts nothing yet. Raises ConfigurationError for what cannot work."""
        self.code = CodeSpec.parse(code)
        self.groups = deal(shards, groups, self.code)
        self.spares = self.code.r * self.groups.count if spares is None else spares
        if self.spares < 0:
            raise ConfigurationError(f"spares {spares}: must not be negative")
        if on_data_loss not in ON_DATA_LOSS:
            raise ConfigurationError(f"on_data_loss {on_data_loss!r}: expected one of {', '.join(ON_DATA_LOSS)}")
        if state is not None and coordinator is not None:
            raise ConfigurationError("state and coordinator: give one of them; with a coordinator the state is there")
        if state is not None and not state.startswith("/"):
            raise ConfigurationError(f"state {state!r}: expected the absolute path of a directory that all nodes see")
        if coordinator is not None and schedulers < 1:
            raise ConfigurationError(f"schedulers {schedulers}: expected at least 1")
        if curve_dir is not None and allow_plain_network:
            raise ConfigurationError("curve_dir and allow_plain_network: give one of them")
        self.name = name
        self.resources = dict(SERVER_RESOURCES if resources_per_shard is None else resources_per_shard)
        self._state, self._coordinator, self._schedulers = state, coordinator, schedulers
        self._curve_dir, self._plain, self._on_data_loss = curve_dir, allow_plain_network, on_data_loss
        self._start_timeout_s, self._detached = start_timeout_s, detached
        self._scheduler_options = list(scheduler_options)
        self.scheduler = ""
        """Where the scheduler is, for `ecrec.connect` and ECREC_SCHEDULER; empty before `start`."""
        self._actors: dict[str, Any] = {}
        self._placement: Any = None
        self._scratch: Scratch | None = None
        self._server_module = server_module
        self._keys: dict[str, bytes] = {} if keys is None else keys.servers
        self.worker_keys: dict[str, bytes] = {} if keys is None else keys.workers
        """Files of the directory of keys that is made for workers; none with keys of the user's, or without any."""

    @classmethod
    def attach(cls, name: str = "ecrec") -> "Cluster":
        """The running cluster of that name; `close` ends it. ClusterError if there is none."""
        description = _describe(name)
        cluster = cls(
            cast(int, description["shards"]),
            str(description["code"]),
            cast(int, description["spares"]),
            groups=cast(int, description["groups"]),
            name=name,
            detached=True,
        )
        ray = import_ray()
        cluster.scheduler = str(description["scheduler"])
        cluster._curve_dir = cast("str | None", description["curve_dir"])
        cluster.worker_keys = cast("dict[str, bytes]", description["keys"])
        for each in cast("list[str]", description["actors"]):
            with contextlib.suppress(ValueError):
                cluster._actors[each] = ray.get_actor(each, namespace=NAMESPACE)
        with contextlib.suppress(ValueError):
            cluster._placement = ray.util.get_placement_group(f"{NAMESPACE}.{name}")
        return cluster

    # ------------------------------------------------------------------ start and end
    def __enter__(self) -> "Cluster":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self.close()

    def start(self) -> "Cluster":
        """Place the servers, and wait until all shards are whole. Raises ClusterError, with the reason, if they are
        not within ``start_timeout_s``; nothing is left of them then."""
        ray = import_ray()
        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING)
        until = time.monotonic() + self._start_timeout_s
        try:
            if _is_there(self.name):
                raise ConfigurationError(f"there is a cluster {self.name!r} on Ray already: close it, or give a name")
            self._make_keys()
            self._place(until)
            self._start_schedulers()
            for number in range(self.groups.shards + self.spares):
                self._start_server(number)
            self.wait_whole(until - time.monotonic())
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all actors and their servers. May be called twice."""
        ray = import_ray()
        if not ray.is_initialized():
            return
        stopping = [actor.stop.remote() for name, actor in self._actors.items() if not _is_scheduler(name)]
        with contextlib.suppress(Exception):
            ray.wait(stopping, num_returns=len(stopping), timeout=POLL_S * 10) if stopping else None
        for actor in self._actors.values():
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)
        self._actors.clear()
        if self._placement is not None:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(self._placement)
            self._placement = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    # ------------------------------------------------------------------ while it runs
    def connect(self, **more: Any) -> "Session":
        """A training session, as `ecrec.connect` gives one (``rank=``, ``world_size=``, ...)."""
        return connect_to(self.scheduler, code=str(self.code), curve_dir=self.curve_dir, **more)

    @property
    def curve_dir(self) -> str | None:
        """The keys of a worker or tool on this node; None without keys."""
        if self._curve_dir is not None or not self.worker_keys:
            return self._curve_dir
        if self._scratch is None:
            self._scratch = Scratch("ecrec-ray-")
        directory = self._scratch.path / "worker"
        if not directory.exists():
            write_keys(directory, self.worker_keys)
        return str(directory)

    def state(self) -> ClusterState:
        """What the scheduler knows. ClusterError when it does not answer."""
        return cluster_state(self.scheduler, curve_dir=self.curve_dir)

    def servers(self) -> list[Standing]:
        """The actors' servers, but for actors that Ray is starting again."""
        return self._standings(lambda name: not _is_scheduler(name))

    def schedulers(self) -> list[Standing]:
        """The same of the schedulers, of which one leads."""
        return self._standings(_is_scheduler)

    def _standings(self, wanted: Callable[[str], bool]) -> list[Standing]:
        ray = import_ray()
        asked = [actor.standing.remote() for name, actor in self._actors.items() if wanted(name)]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        found = []
        for each in done:
            with contextlib.suppress(ray.exceptions.RayError):
                found.append(cast(Standing, ray.get(each)))
        return sorted(found, key=lambda standing: standing.name)

    def kill(self, shard: int) -> str:
        """SIGKILL to the server that has a place; the name of its actor. ClusterError if no actor has it."""
        endpoint = next((each.endpoint for each in self.state().shards if each.shard == shard), "")
        for standing in self.servers():
            if endpoint and standing.endpoint == endpoint:
                self.kill_actor(standing.name)
                return standing.name
        raise ClusterError(f"no actor's server is shard {shard} at {endpoint or 'no endpoint'}")

    def kill_actor(self, name: str) -> None:
        """SIGKILL to the server of an actor, which starts it again."""
        ray = import_ray()
        ray.get(self._actors[name].kill.remote(), timeout=ANSWER_S)

    def terminate_actor(self, name: str) -> None:
        """SIGTERM to the server of an actor: it leaves without loss, and is started again."""
        ray = import_ray()
        ray.get(self._actors[name].terminate.remote(), timeout=ANSWER_S)

    def wait_whole(self, timeout_s: float = START_TIMEOUT_S) -> ClusterState:
        """Wait until every shard is there and whole. Raises ClusterError, with the reasons, when they are not."""
        until = time.monotonic() + timeout_s
        why = "the scheduler has not answered"
        while True:
            self._check()
            try:
                state = self.state()
                missing = [f"shard {each.shard} is {each.state}" for each in state.shards if each.state != UP]
                if state.lost:
                    raise ClusterError(f"data was lost: {state.lost}")
                if not missing:
                    return state
                why = ", ".join(missing)
            except ClusterError as error:
                why = str(error)
                if why.startswith("data was lost"):
                    raise
            if time.monotonic() > until:
                raise ClusterError(f"the cluster is not whole after {timeout_s:.0f} s: {why}")
            time.sleep(POLL_S)

    def _check(self) -> None:
        """Raise ClusterError for an actor whose server cannot be started."""
        ray = import_ray()
        asked = [actor.standing.remote() for actor in self._actors.values()]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=POLL_S)
        for each in done:
            try:
                standing = cast(Standing, ray.get(each))
            except ray.exceptions.RayError:
                continue  # it is being started again
            if standing.failure:
                raise ClusterError(f"{standing.name} cannot be started: {standing.failure}")

    # ------------------------------------------------------------------ the parts
    def _make_keys(self) -> None:
        if self._plain or self._curve_dir is not None or self._keys:
            return
        with Scratch("ecrec-ray-") as directory:
            make_keys(directory)
            self._keys, self.worker_keys = Keys.read(directory)

    def _place(self, until: float) -> None:
        ray = import_ray()
        count = self.groups.shards + self.spares
        self._placement = ray.util.placement_group(
            [self.resources] * count,
            strategy="STRICT_SPREAD",
            name=f"{NAMESPACE}.{self.name}",
            lifetime="detached" if self._detached else None,
        )
        if not self._placement.wait(max(1.0, until - time.monotonic())):
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
            raise ClusterError(
                f"Ray cannot place {count} servers ({self.groups.shards} shards, {self.spares} spares) on {count} "
                f"different nodes with {self.resources} each: it has {nodes} nodes; add nodes, or take fewer servers"
            )

    def _security(self) -> list[str]:
        if self._plain:
            return ["--allow-plain-network"]
        return ["--curve-dir", KEYS if self._curve_dir is None else self._curve_dir]

    def _options(self, name: str, strategy: Any, resources: Mapping[str, float]) -> dict[str, Any]:
        given = dict(resources)
        return {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached" if self._detached else None,
            "max_restarts": -1,
            "max_concurrency": 4,
            "num_cpus": given.pop("CPU", 0),
            "num_gpus": given.pop("GPU", 0),
            "memory": given.pop("memory", None),
            "resources": given or None,
            "scheduling_strategy": strategy,
        }

    def _start(
        self, name: str, module: str, arguments: list[str], strategy: Any, resources: Mapping[str, float]
    ) -> None:
        ray = import_ray()
        description = {
            "scheduler": self.scheduler, "code": str(self.code), "shards": self.groups.shards, "spares": self.spares,
            "groups": self.groups.count, "curve_dir": self._curve_dir, "keys": self.worker_keys,
            "actors": self._names(),
        }  # fmt: skip
        actor = ray.remote(ServerActor).options(**self._options(name, strategy, resources))
        keys = self._keys if not self._plain else {}
        self._actors[name] = actor.remote(name, module, [*arguments, *self._security()], keys, description)

    def _names(self) -> list[str]:
        schedulers = self._schedulers if self._coordinator is not None else 1
        servers = range(self.groups.shards + self.spares)
        return [
            *(f"{self.name}.scheduler.{number}" for number in range(schedulers)),
            *(f"{self.name}.ps.{number}" for number in servers),
        ]

    def _start_schedulers(self) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = import_ray()
        module = "ecrec.launch.servers.scheduler"
        arguments = ["--shards", str(self.groups.shards), "--groups", str(self.groups.count)]
        arguments += ["--on-data-loss", self._on_data_loss, *self._scheduler_options]
        if self._coordinator is not None:
            self.scheduler = self._coordinator
            arguments += ["--bind", f"tcp://{IP}:0", "--coordinator", self._coordinator]
            for number in range(self._schedulers):
                self._start(f"{self.name}.scheduler.{number}", module, arguments, "SPREAD", {})
            return
        name = _first_scheduler(self.name)
        if self._state is not None:
            endpoint_file = f"{self._state}/{ENDPOINT_FILE}"
            self.scheduler = f"{FILE_SCHEME}{endpoint_file}"
            state = ["--state", f"{self._state}/{STATE_FILE}", "--endpoint-file", endpoint_file]
            self._start(name, module, [*arguments, "--bind", f"tcp://{IP}:0", *state], "DEFAULT", {})
            return
        ip = ray.util.get_node_ip_address()
        self.scheduler = tcp(ip, _free_port(ip))
        if self._scratch is None:
            self._scratch = Scratch("ecrec-ray-")
        state_file = self._scratch.path / STATE_FILE
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._start(name, module, [*arguments, "--bind", self.scheduler, "--state", str(state_file)], here, {})

    def _start_server(self, number: int) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=number)
        arguments = ["--scheduler", self.scheduler, "--spare", "--bind", f"tcp://{IP}:0"]
        self._start(f"{self.name}.ps.{number}", self._server_module, arguments, bundle, self.resources)


def connect(name: str = "ecrec", *, rank: int | None = None, world_size: int | None = None, **more: Any) -> "Session":
    """A training session of the cluster of that name, from a task, an actor or a job of the same Ray.

    In a worker of Ray Train, ``rank`` and ``world_size`` are those of its context. The rest as of `ecrec.connect`.
    Raises ClusterError if there is no such cluster.
    """
    description = _describe(name)
    if rank is None and world_size is None and (given := _of_ray_train()) is not None:
        rank, world_size = given
    keys = cast("dict[str, bytes]", description["keys"])
    code = more.pop("code", description["code"])
    directory = cast("str | None", description["curve_dir"])
    scheduler = str(description["scheduler"])
    if keys and directory is None:
        directory = _own_keys(keys)
    return connect_to(scheduler, code=code, curve_dir=directory, rank=rank, world_size=world_size, **more)


def _own_keys(keys: Mapping[str, bytes]) -> str:
    """A directory with these keys, which goes when this process ends: each connection reads there."""
    own = Scratch("ecrec-ray-")
    atexit.register(own.remove)
    write_keys(own.path / "keys", keys)
    return str(own.path / "keys")


def _of_ray_train() -> tuple[int, int] | None:
    """Rank and world size in a worker of Ray Train; None elsewhere."""
    try:
        from ray.train import get_context

        context = get_context()
        return context.get_world_rank(), context.get_world_size()
    except (ImportError, RuntimeError):
        return None


def _is_there(name: str) -> bool:
    try:
        import_ray().get_actor(_first_scheduler(name), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _describe(name: str) -> dict[str, object]:
    ray = import_ray()
    try:
        actor = ray.get_actor(_first_scheduler(name), namespace=NAMESPACE)
        return cast("dict[str, object]", ray.get(actor.description.remote(), timeout=ANSWER_S))
    except ValueError as error:
        raise ClusterError(f"Ray has no cluster {name!r}: was ecrec.ray.Cluster(name={name!r}) started?") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the scheduler's actor of cluster {name!r} does not answer: {error}") from error


def _first_scheduler(name: str) -> str:
    return f"{name}.scheduler.0"


def _is_scheduler(name: str) -> bool:
    return name.rpartition(".")[0].endswith(".scheduler")


def _free_port(ip: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])

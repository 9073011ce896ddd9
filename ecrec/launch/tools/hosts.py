"""``ecrec launch``: a training run on many hosts over ssh, for those without an engine.

Every process is a child ``ssh`` of this program, with a terminal: its output becomes a log in one directory here, and
the process over there ends when ssh does. What ends is started again: servers and the scheduler as long as the run
lasts, a worker with its rank. One more process, on the scheduler's host, tells how the cluster is, for `metrics.jsonl`.
"""

import io
import json
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ecrec.errors import ClusterError, ConfigurationError, DataLostError
from ecrec.exit_codes import ExitCode
from ecrec.launch.local.children import Child, Children, Ended
from ecrec.launch.local.cluster import BACK_OFF_S
from ecrec.transport.curve import generate
from ecrec.transport.endpoints import is_host, tcp

SCHEDULER, SERVER, WORKER = ROLES = ("scheduler", "server", "worker")
SSH = (
    "ssh",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=5",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=2",
)
COPY_S = 300.0
"""To copy keys, script and wheel to a host, and to install it."""
WORKER_STARTS_MAX = 50
METRICS = "metrics"
METRICS_S = 5
"""How often the state of the cluster, with the figures of all servers and workers, is kept."""
PUMP_S = 0.2
ENDS_RUN = {ExitCode.OPTIONS, ExitCode.OUTDATED}


class Host(msgspec.Struct, forbid_unknown_fields=True):
    """One host: ``ssh``: what ssh calls it; ``address``: how the others reach it, by default what ssh calls it."""

    ssh: str
    runs: list[str]
    address: str = ""

    @property
    def reached_at(self) -> str:
        return self.address or self.ssh.rpartition("@")[2]


class Hosts(msgspec.Struct, forbid_unknown_fields=True):
    """What stands in hosts.toml."""

    hosts: list[Host]
    shards: int
    directory: str
    """On each host; made where it is missing. Each has a folder of its own in it: it may be shared."""
    python: str = "python3"
    """On each host, with ecrec; with ``--install`` what makes the virtual environment."""
    port: int = 7070
    """Of the scheduler."""
    ssh_options: list[str] = []
    scheduler_options: list[str] = []
    """More options of ``ecrec-scheduler``, such as ``["--link-timeout-ms", "20000"]``; so of the other programs."""
    server_options: list[str] = []
    worker_options: list[str] = []

    def with_role(self, role: str) -> list[Host]:
        return [host for host in self.hosts if role in host.runs]


def read_hosts(path: str) -> Hosts:
    """Raises ConfigurationError, naming the file, for one that cannot be read or does not fit."""
    try:
        hosts = msgspec.toml.decode(Path(path).read_bytes(), type=Hosts)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ImportError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    for host in hosts.hosts:
        if wrong := [role for role in host.runs if role not in ROLES]:
            raise ConfigurationError(f"{path}: {host.ssh} runs {wrong[0]!r}: expected some of {', '.join(ROLES)}")
        if not is_host(host.reached_at) or host.ssh.startswith("-"):
            raise ConfigurationError(f"{path}: {host.ssh!r}: no name of a host")
    counts = {role: len(hosts.with_role(role)) for role in ROLES}
    if counts[SCHEDULER] != 1:
        raise ConfigurationError(f"{path}: {counts[SCHEDULER]} hosts run the scheduler: expected 1")
    if counts[SERVER] < hosts.shards:
        raise ConfigurationError(
            f"{path}: {counts[SERVER]} hosts run a server, for {hosts.shards} shards: expected at least as many"
        )
    if not counts[WORKER]:
        raise ConfigurationError(f"{path}: no host runs a worker")
    return hosts


class Launch:
    """One run; ``run`` does it all."""

    def __init__(self, hosts: Hosts, script: str, arguments: list[str], out: Path, say: Callable[[str], None]) -> None:
        if not Path(script).is_file():
            raise ConfigurationError(f"there is no script {script}")
        self._hosts, self._script, self._arguments, self._out, self._say = hosts, script, arguments, out, say
        self._python = hosts.python
        self._commands: dict[str, tuple[Host, str]] = {}
        """Name of a process -> where, and what it is."""
        self._due: dict[str, float] = {}
        """Those that are to be started again -> when."""
        self._ends: dict[str, int] = {}
        self._left: set[str] = set()
        """Workers that are not done."""

    def run(self, wheel: str | None = None) -> None:
        """Prepare the hosts, train, end everything; logs, metrics and the cluster's last state are in one directory.

        Raises ConfigurationError for what cannot work, DataLostError, and ClusterError for a worker that keeps ending.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        self._prepare(wheel)
        self._plan()
        children = Children()
        try:
            for name in self._commands:
                self._start(children, name)
            while self._left:
                for event in children.wait(PUMP_S):
                    if isinstance(event, Ended):
                        self._on_ended(event.child, event.code)
                    elif event.child.name == METRICS:
                        self._keep_metrics(event.data)
                now = time.monotonic()
                for name in [name for name, at in self._due.items() if at <= now]:
                    del self._due[name]
                    self._start(children, name)
            self._keep_state()
        finally:
            children.close()

    # ------------------------------------------------------------------ before
    def _prepare(self, wheel: str | None) -> None:
        keys = self._out / "keys"
        if not keys.exists():
            generate(keys / "servers", "servers")
            generate(keys / "workers", "workers", keys / "servers")
        for host in self._hosts.hosts:
            wanted = {"keys-workers": keys / "workers"} if WORKER in host.runs else {}
            if SCHEDULER in host.runs or SERVER in host.runs:
                wanted["keys"] = keys / "servers"
            wanted["script.py"] = Path(self._script)
            if wheel is not None:
                wanted[Path(wheel).name] = Path(wheel)
            here = shlex.quote(self._folder(host))
            unpack = f"umask 077 && mkdir -p {here} && cd {here} && rm -rf keys keys-workers && tar -x"
            if wheel is not None:
                name = shlex.quote(Path(wheel).name)
                extra = "[train]" if WORKER in host.runs else "[cli]" if SCHEDULER in host.runs else ""
                what = name + shlex.quote(extra) if extra else name
                unpack += f" && {self._hosts.python} -m venv venv && venv/bin/pip install -q ./{what}"
            self._remote(host, unpack, _packed(wanted))
            self._say(f"{host.ssh} is prepared")
        if wheel is not None:
            self._python = "venv/bin/python"

    def _remote(self, host: Host, command: str, given: bytes = b"") -> bytes:
        """Run a command over there. Raises ClusterError, with what it said, if it fails."""
        done = subprocess.run(
            [*SSH, *self._hosts.ssh_options, host.ssh, command],
            input=given,
            capture_output=True,
            timeout=COPY_S,
            check=False,
        )
        if done.returncode:
            raise ClusterError(
                f"{host.ssh}: {command.partition(' ')[0]} failed: {done.stderr.decode(errors='replace')}"
            )
        return done.stdout

    def _folder(self, host: Host) -> str:
        return f"{self._hosts.directory}/{host.reached_at}"

    def _plan(self) -> None:
        hosts = self._hosts
        (first,) = hosts.with_role(SCHEDULER)
        self._endpoint = tcp(first.reached_at, hosts.port)
        keys = ["--curve-dir", "keys"]
        bind = ["--bind", f"tcp://0.0.0.0:{hosts.port}"]
        state = ["--shards", str(hosts.shards), "--state", f"scheduler-{time.time_ns()}.sqlite"]
        self._add(
            "scheduler", first, "ecrec.launch.servers.scheduler", [*bind, *state, *keys, *hosts.scheduler_options]
        )
        for host in hosts.with_role(SERVER):
            place = [
                "--spare",
                "--scheduler",
                self._endpoint,
                "--bind",
                "tcp://0.0.0.0:0",
                "--advertise",
                host.reached_at,
            ]
            self._add(f"ps {host.reached_at}", host, "ecrec.launch.servers.ps", [*place, *keys, *hosts.server_options])
        workers = hosts.with_role(WORKER)
        for rank, host in enumerate(workers):
            options = ["--scheduler", self._endpoint, "--rank", str(rank), "--world-size", str(len(workers))]
            options += ["--curve-dir", "keys-workers", *hosts.worker_options, "script.py", *self._arguments]
            self._add(f"worker {rank}", host, "ecrec.launch.worker", options)
            self._left.add(f"worker {rank}")

        watch = ["status", "--json", "--watch", "--every", str(METRICS_S), "--scheduler", self._endpoint]
        self._add(METRICS, first, "ecrec", [*watch, *keys])

    def _add(self, name: str, host: Host, module: str, arguments: list[str]) -> None:
        words = " ".join(map(shlex.quote, arguments))
        command = f"cd {shlex.quote(self._folder(host))} && exec {self._python} -m {module} {words}"
        self._commands[name] = host, command

    # ------------------------------------------------------------------ meanwhile
    def _start(self, children: Children, name: str) -> None:
        host, command = self._commands[name]
        ssh = [*SSH, "-tt", *self._hosts.ssh_options, host.ssh, command]
        children.start(name, ssh, self._out / f"{name.replace(' ', '-')}.log", _environment())

    def _on_ended(self, child: Child, code: int) -> None:
        name = child.name
        if name in self._left and code == ExitCode.DONE:
            self._left.discard(name)
            self._say(f"{name} is done")
            return
        if name == METRICS and code in (ExitCode.FAILED, ExitCode.OPTIONS):
            self._say(f"warning: no metrics are kept: {child.describe_end(lines=1)}")
            return
        ends = self._ends[name] = self._ends.get(name, 0) + 1
        if code == ExitCode.DATA_LOST:
            raise DataLostError(child.describe_end())
        if code in ENDS_RUN:
            raise ConfigurationError(child.describe_end())
        if name in self._left and (code == ExitCode.FAILED or ends >= WORKER_STARTS_MAX):
            raise ClusterError(child.describe_end())
        self._say(f"{child.describe_end(lines=1)}; it is started again")
        self._due[name] = time.monotonic() + max(0.5, BACK_OFF_S[min(ends, len(BACK_OFF_S)) - 1])

    def _keep_metrics(self, state: Mapping[str, Any]) -> None:
        with (self._out / "metrics.jsonl").open("a") as file:
            print(json.dumps(state), file=file)

    def _keep_state(self) -> None:
        """What the scheduler knows at the end, asked on its host: this one may not reach it."""
        host, _ = self._commands["scheduler"]
        here = shlex.quote(self._folder(host))
        ask = f"cd {here} && {self._python} -m ecrec status --json --curve-dir keys --scheduler {self._endpoint}"
        try:
            (self._out / "status.json").write_bytes(self._remote(host, ask))
        except (ClusterError, subprocess.TimeoutExpired) as error:
            self._say(f"warning: the last state of the cluster is not known: {error}")


def _environment() -> dict[str, str]:
    from ecrec.launch.variables import environment_of_children

    return environment_of_children()


def _packed(files: dict[str, Path]) -> bytes:
    """As tar has them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, path in files.items():
            archive.add(path, name)
    return data.getvalue()

"""What runs in an actor of Ray: a server program of ecrec as a child process, started again when it ends.

The child dies with the actor's process, by the kernel's hand (`ecrec/tether.py`). Ray starts the actor again, on this
node or, where the node is lost, on another.
"""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ecrec.exit_codes import ExitCode
from ecrec.launch.local.children import Child, Children, Ended
from ecrec.launch.local.cluster import BACK_OFF_S, DEATHS_SPAN_S
from ecrec.launch.local.scratch import Scratch
from ecrec.launch.variables import environment_of_children
from ecrec.ray.needed import import_ray
from ecrec.tether import module_command
from ecrec.transport.endpoints import tcp

POLL_S = 0.5
ENDS_KEPT = 20
LOG = Path("/proc/self/fd/2")
"""The standard error of this process, which Ray keeps as the log of the actor."""

IP, KEYS = "{ip}", "{keys}"
"""In arguments: what stands for the address of the actor's node, and for the directory of its keys."""


class Standing(NamedTuple):
    """How an actor's server is."""

    name: str
    node: str
    endpoint: str
    """Empty until it is ready."""
    pid: int
    ends: list[str]
    """How it ended up to now, the last times."""
    failure: str
    """Why it is not started again; empty while it is."""


class ServerActor:
    """A server program: ``module`` with ``arguments``, in which `IP` and `KEYS` are replaced.

    ``keys``: files of a directory for --curve-dir, by their names. ``description``: what others ask of it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        keys: Mapping[str, bytes],
        description: Mapping[str, object],
    ) -> None:
        ray = import_ray()
        context = ray.get_runtime_context()
        self._name, self._module, self._description = name, module, dict(description)
        self._node = str(context.get_node_id())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray, about itself
            self._is_again = bool(context.was_current_actor_reconstructed)
        ip = ray.util.get_node_ip_address()
        self._scratch = Scratch("ecrec-ray-")
        write_keys(self._scratch.path, keys)
        ip_in_endpoint = tcp(ip, 0).removeprefix("tcp://").rpartition(":")[0]
        self._arguments = [
            each.replace(f"//{IP}", f"//{ip_in_endpoint}").replace(IP, ip).replace(KEYS, str(self._scratch.path))
            for each in arguments
        ]
        self._lock = threading.Lock()
        self._children = Children()
        self._child: Child | None = None
        self._endpoint = ""
        self._failure = ""
        self._ends: deque[str] = deque(maxlen=ENDS_KEPT)
        self._ended_s: deque[float] = deque()
        self._due_s = 0.0
        self._leaving = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ecrec-server", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ what the cluster calls
    def standing(self) -> Standing:
        child = self._child
        pid = child.pid if child is not None else 0
        return Standing(self._name, self._node, self._endpoint, pid, list(self._ends), self._failure)

    def description(self) -> dict[str, object]:
        """What a worker needs to know of the cluster."""
        return self._description

    def kill(self) -> int:
        """SIGKILL to the server, as in a test of what it survives; its process id."""
        child = self._child
        if child is None:
            return 0
        os.kill(child.pid, signal.SIGKILL)
        return child.pid

    def terminate(self) -> int:
        """SIGTERM to the server, which leaves without loss and is started again; its process id."""
        child = self._child
        if child is None:
            return 0
        child.process.terminate()
        return child.pid

    def leave(self) -> str:
        """Have the server end without loss (SIGTERM), and wait for it; how it ended."""
        self._leaving = True
        while (child := self._child) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
            while self._child is child:
                time.sleep(POLL_S / 10)
        return self._ends[-1] if self._ends else ""

    def stop(self) -> None:
        """End the server at once, and all that this actor holds."""
        self._ending.set()
        self._children.wake()
        self._thread.join()
        self._children.close()
        self._scratch.remove()

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        while not self._ending.is_set() and not self._failure:
            if self._child is None and not self._leaving and time.monotonic() >= self._due_s:
                self._start()
            for event in self._children.wait(POLL_S):
                if isinstance(event, Ended):
                    self._on_ended(event)
                elif "ready" in event.data:
                    self._endpoint = str(event.data["endpoint"])

    def _start(self) -> None:
        self._child = self._children.start(
            self._name,
            module_command(self._module, *self._arguments),
            LOG,
            environment_of_children(),
            end_signal=signal.SIGINT,
        )

    def _on_ended(self, event: Ended) -> None:
        was_ready, self._endpoint, self._child = bool(self._endpoint), "", None
        self._ends.append(event.child.describe_end(lines=3))
        if event.code == ExitCode.OPTIONS and not was_ready and not self._is_again:
            # Options do not get better; what is in the way of an actor that is there again may: a lock of the last.
            self._failure = event.child.describe_end()
            return
        now = time.monotonic()
        self._ended_s.append(now)
        while self._ended_s[0] < now - DEATHS_SPAN_S:
            self._ended_s.popleft()
        self._due_s = now + BACK_OFF_S[min(len(self._ended_s), len(BACK_OFF_S)) - 1]


def write_keys(directory: Path, keys: Mapping[str, bytes]) -> None:
    """Write the files of a directory for --curve-dir, which nobody else can read."""
    for name, content in keys.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)


def read_keys(directory: Path) -> dict[str, bytes]:
    """The other way round."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }

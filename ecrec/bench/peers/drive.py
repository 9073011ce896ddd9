"""A peer's client in a process of its own, driven over pipes: the module ``ecrec.bench.peers.drive NAME OPTIONS``.

NAME is a module of this package with ``client(**options)``, a context manager; OPTIONS is JSON. A line on stdin is
[calls, first], answered with the seconds that these steps took, measured here; or [batch, file], which has the rows of
that batch written to the file. Between answers client and server are stopped (SIGSTOP): torch.distributed.rpc polls its
shared memory all the time, on a core each, and the cores are to be the other side's then.

torch.distributed.rpc can be joined once in the life of a process, and no client shares its interpreter with another
one's threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError
from ecrec.bench.workload import make_row_batches
from ecrec.tether import module_command

F32 = NDArray[np.float32]

END_TIMEOUT_S = 20.0
"""Client and server have this long to end."""
_MISSING = "missing"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "-1",
}
"""What the libraries of some peers read as they are imported: nothing is sent to anybody or kept in the home directory,
there are no notices, and no GPU takes part. (No operation that is used has a form of oneDNN's.)"""


class Driven:
    """Our end of the pipes."""

    def __init__(self, name: str, process: subprocess.Popen[str], directory: Path) -> None:
        self._name, self._process, self._directory = name, process, directory

    def wait_started(self) -> None:
        """Raises PeerMissingError if it cannot run."""
        started = self._answer()
        if started:
            raise PeerMissingError(str(started[_MISSING]))
        self._signal(signal.SIGSTOP)

    def _ask(self, question: object) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        self._signal(signal.SIGCONT)
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: int) -> None:
        """To client and server, which are a group of processes."""
        os.killpg(self._process.pid, number)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerMissingError(f"{self._name}: its client ended with code {self._process.wait(END_TIMEOUT_S)}")
        return json.loads(line)

    def steps(self, calls: int, first: int) -> float:
        """Pull, then push, so many times, the first with batch ``first``. Returns seconds."""
        return float(self._ask([calls, first]))

    def pull(self, number: int) -> F32:
        """The rows of that batch."""
        file = self._directory / f"{number}.npy"
        self._ask([number, str(file)])
        rows: F32 = np.load(file)
        return rows


@contextmanager
def driven(name: str, options: Mapping[str, Any]) -> Iterator[Driven]:
    """Starts the client, which starts its server. The first thing to do with it is `Driven.wait_started`."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        subprocess.Popen(_command(name, options, directory), **pipes, start_new_session=True) as process,
    ):
        try:
            yield Driven(name, process, Path(directory))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.killpg(process.pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):  # it, and what it started and did not end
                os.killpg(process.pid, signal.SIGKILL)


def _command(name: str, options: Mapping[str, Any], directory: str) -> list[str]:
    """The client's, in our environment with some changes; what it writes is gone with the directory."""
    changes = [f"{variable}={value}" for variable, value in {**ENVIRONMENT, "TMPDIR": directory}.items()]
    return ["env", *changes, *module_command(__name__, name, json.dumps(options))]


def main(arguments: Sequence[str]) -> None:
    name, options = arguments
    batches = make_row_batches()
    try:
        with importlib.import_module(f"ecrec.bench.peers.{name}").client(**json.loads(options)) as client:
            _say({})
            for line in sys.stdin:
                number, argument = json.loads(line)
                if isinstance(argument, str):
                    np.save(argument, client.pull(batches[number][0]))
                    _say(None)
                else:
                    start = time.perf_counter()
                    client.steps(batches, number, argument)
                    _say(time.perf_counter() - start)
    except PeerMissingError as reason:
        _say({_MISSING: str(reason)})


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The process of a peer's server: ``python -m ecrec.bench.peers.serve NAME ARGUMENTS...``.

NAME is a module of this package with ``serve(arguments)``, which returns when the server is to end. It is a program of
its own so that the module has its own name in this process too: some peers call functions by name.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

END_TIMEOUT_S = 10.0
"""A server that was asked to end has so long."""
_PR_SET_PDEATHSIG = 1
MODULES_AT = Path(__file__).parents[3]
"""Start ``python -m ecrec...`` here: -m looks in the current directory first, maybe a checkout without the core."""


@contextmanager
def server(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts ``serve`` of that module in a process; it is terminated at the end if it still runs."""
    command = [sys.executable, "-m", __name__, name, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=MODULES_AT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def end_with_parent() -> None:
    """SIGKILL to this process when the one that started it ends in whatever way, also while it is stopped (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(arguments: Sequence[str]) -> None:
    end_with_parent()
    name, *rest = arguments
    importlib.import_module(f"ecrec.bench.peers.{name}").serve(rest)


if __name__ == "__main__":
    main(sys.argv[1:])

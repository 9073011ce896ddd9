"""The process of a peer's server: ``python -m ecrec.bench.peers.serve NAME ARGUMENTS...``.

NAME is a module of this package with ``serve(arguments)``, which returns when the server is to end. It is a program of
its own so that the module has its own name in this process too: some peers call functions by name.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

END_TIMEOUT_S = 10.0
"""A server that was asked to end has so long."""
MODULES_AT = Path(__file__).parents[3]
"""Start ``python -m ecrec...`` here: -m looks in the current directory first, maybe a checkout without the core."""


@contextmanager
def server(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts ``serve`` of that module in a process; it is terminated at the end if it still runs."""
    command = [sys.executable, "-m", __name__, name, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=MODULES_AT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    # Nobody writes to it: it ends when the client's process does, in whatever way.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name, *rest = arguments
    importlib.import_module(f"ecrec.bench.peers.{name}").serve(rest)


if __name__ == "__main__":
    main(sys.argv[1:])

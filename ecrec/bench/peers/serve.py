"""The process of a peer's server: the module ``ecrec.bench.peers.serve NAME ARGUMENTS...``.

NAME is a module of this package with ``serve(arguments)``, which returns when the server is to end. It is a program of
its own so that the module has its own name in this process too: some peers call functions by name.
"""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ecrec.tether import module_command

END_TIMEOUT_S = 10.0
"""A server that was asked to end has this long."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens to now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts ``serve`` of that module in a process; it is terminated at the end if it still runs."""
    command = module_command(__name__, name, *arguments)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def main(arguments: Sequence[str]) -> None:
    name, *rest = arguments
    importlib.import_module(f"ecrec.bench.peers.{name}").serve(rest)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the server programs have in common: how they get ready, run, and end."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.environment import keep_freed_memory
from ecrec.transport.coordinator import DeposedError
from ecrec.transport.links import Links

log = logging.getLogger(__name__)

EXIT_STOPPED = 0
"""Ended by SIGTERM or SIGINT."""
EXIT_OPTIONS = 2
"""Options, environment or files that cannot work; the process never got ready. Starting it again does not help."""
EXIT_FENCED = 3
"""Told to stop by the cluster: another process has, or may have, this place, or data was lost. The log says which."""
EXIT_STATE = 4
"""The scheduler cannot write its state. Make room, then start it again."""

EXIT_MEMORY = 5
"""No more memory. What the process held counts no more; another one is to take its place."""

EXIT_CODES_HELP = (
    "Prints one JSON line on stdout when it is ready; logs to stderr. Exit codes: 0 ended by SIGTERM or SIGINT, "
    "1 unexpected, 2 options or files that cannot work, 3 told to stop by the cluster, 4 state cannot be written, "
    "5 out of memory."
)

SCHEDULER_HELP = (
    "Where the scheduler is: its endpoint, tcp://HOST:PORT or ipc://PATH; or zk://HOST:PORT[,HOST:PORT...]/PATH, as "
    "the --coordinator of several schedulers, for the one that leads."
)

PLAIN_HELP = (
    "Listen without keys where other machines reach it: whoever does may read and change everything. Only for a "
    "network on which everybody is trusted."
)


WILDCARDS = ("0.0.0.0", "*", "::", "[::]")


class Server(Protocol):
    """What can be run: a `Node`, or what becomes one."""

    @property
    def links(self) -> Links: ...

    @property
    def stopped(self) -> str:
        """Why the cluster wants this process to end; empty while it does not."""

    def run(self) -> None: ...

    def request_stop(self) -> None: ...

    def close(self) -> None: ...


def advertised(endpoint: str, host: str) -> str:
    """The endpoint that others connect to: with ``host``, if given, in place of the one that was bound.

    Raises ConfigurationError for an endpoint that only its own machine can make sense of.
    """
    if not endpoint.startswith("tcp://"):
        return endpoint
    parts = urlsplit(endpoint)
    if host:
        return f"tcp://{host}:{parts.port}"
    if endpoint[len("tcp://") :].rpartition(":")[0] in WILDCARDS:
        raise ConfigurationError(
            f"--bind {endpoint}: others cannot connect to that address; name one by --advertise HOST"
        )
    return endpoint


def run_server(make: Callable[[], Server], ready: dict[str, Any]) -> int:
    """Make the node, say that it is ready on stdout, run it to its end; return the exit code.

    ``ready`` gets the endpoint added.
    """
    keep_freed_memory()
    try:
        node = make()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_OPTIONS
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.request_stop())
        print(json.dumps({**ready, "endpoint": node.links.endpoint}), flush=True)
        node.run()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_OPTIONS
    except DeposedError as error:
        log.error("stopping: %s", error)
        return EXIT_FENCED
    except ClusterError as error:
        log.error("%s", error)
        return EXIT_STATE
    except MemoryError as error:
        log.error("out of memory, which is a death like others: %s", error or "an allocation failed")
        return EXIT_MEMORY
    finally:
        node.close()
    if node.stopped:
        log.error("stopping: %s", node.stopped)
        return EXIT_FENCED
    return EXIT_STOPPED

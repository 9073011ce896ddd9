"""What the server programs have in common: how they get ready, run, and end."""

import errno
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch.environment import keep_freed_memory
from ecrec.protocol.events import FENCED, LEFT, LEFT_EARLY, OUTDATED, HalfHandledError
from ecrec.transport.endpoints import WILDCARDS, is_host, is_ipc, is_loopback, parse, tcp
from ecrec.transport.leadership import DeposedError
from ecrec.transport.links import Links
from ecrec.transport.visitors import connections_max, raise_descriptor_limit

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

EXIT_HALF_HANDLED = 6
"""An error inside ecrec in the middle of an event. What the process held counts no more; another one is to take its
place."""
EXIT_OUTDATED = 7
"""The scheduler's state is older than the living cluster, or another cluster's. Start it with the newest, or adopt."""
EXIT_LEFT_EARLY = 8
"""Told to end, and ended by --leave-timeout-ms before the others were whole. The log says who was missing."""

EXIT_CODES = {FENCED: EXIT_FENCED, OUTDATED: EXIT_OUTDATED, LEFT: EXIT_STOPPED, LEFT_EARLY: EXIT_LEFT_EARLY}

DESCRIPTORS_LOW = 4096
"""With fewer a server says so when it starts."""

EXIT_CODES_HELP = (
    "Prints one JSON line on stdout when it is ready; logs to stderr. Exit codes: 0 ended by SIGTERM or SIGINT, "
    "1 unexpected, 2 options or files that cannot work, 3 told to stop by the cluster, 4 state cannot be written, "
    "5 out of memory, 6 an error inside ecrec, in the middle of an event; another process is to take its place, "
    "7 the scheduler's state is older than its cluster, or another cluster's (--adopt), "
    "8 a server ended by --leave-timeout-ms before the others were whole."
)

SCHEDULER_HELP = (
    "Where the scheduler is: its endpoint, tcp://HOST:PORT or ipc://PATH; or zk://HOST:PORT[,HOST:PORT...]/PATH, as "
    "the --coordinator of several schedulers, for the one that leads."
)

PLAIN_HELP = (
    "Listen without keys where other machines reach it: whoever does may read and change everything. Only for a "
    "network on which everybody is trusted."
)


class Server(Protocol):
    """What can be run: a `Node`, or what becomes one."""

    @property
    def links(self) -> Links: ...

    @property
    def stopped(self) -> str:
        """Why the cluster wants this process to end; empty while it does not."""

    @property
    def stop_kind(self) -> str:
        """The kind of that `Stop`."""

    def run(self) -> None: ...

    def request_stop(self) -> None:
        """End at once."""

    def request_leave(self) -> None:
        """End as soon as nothing is lost with it."""

    def last_words(self, reason: str) -> None:
        """Tell the cluster why this process ends, as far as that can be done."""

    def close(self) -> None: ...


def advertised(endpoint: str, host: str, scheduler: str = "") -> str:
    """The endpoint that others connect to: with ``host``, if given, in place of the one that was bound.

    ``scheduler``: where the scheduler is, of a server that must be reached from there. Raises ConfigurationError for an
    endpoint that only its own machine can make sense of, and for a host that can be none.
    """
    if is_ipc(endpoint):
        return endpoint
    where = parse(endpoint)
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if host and (not is_host(host) or host in WILDCARDS):
        raise ConfigurationError(f"--advertise {host!r}: expected the name or the address of this host, without a port")
    if not host and where.host in WILDCARDS:
        raise ConfigurationError(
            f"--bind {endpoint}: others cannot connect to that address; name one by --advertise HOST"
        )
    endpoint = tcp(host or where.host, where.port)
    if scheduler.startswith("tcp://") and is_loopback(endpoint) and is_elsewhere(scheduler):
        raise ConfigurationError(
            f"{endpoint} is reached from this machine alone, and the scheduler at {scheduler} is on another: give "
            "--bind tcp://0.0.0.0:PORT and --advertise HOST, the name or address of this host"
        )
    return endpoint


def is_elsewhere(endpoint: str) -> bool:
    """Whether an endpoint is certainly on another machine; a name that cannot be looked up says nothing."""
    host = parse(endpoint).host
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
                return False
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    return False
    return True


def run_server(make: Callable[[], Server], ready: dict[str, Any]) -> int:
    """Make the node, say that it is ready on stdout, run it to its end; return the exit code.

    ``ready`` gets the endpoint added.
    """
    keep_freed_memory()
    descriptors = raise_descriptor_limit()
    if descriptors < DESCRIPTORS_LOW:
        log.warning(
            "this process may have %d descriptors, and takes %d connections; a cluster of many workers needs more: "
            "ulimit -n %d", descriptors, connections_max(descriptors), DESCRIPTORS_LOW,
        )  # fmt: skip
    try:
        node = make()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_OPTIONS
    try:
        _end_at_signals(node)
        print(json.dumps({**ready, "endpoint": node.links.endpoint}), flush=True)
        node.run()
        if node.stop_kind == LEFT_EARLY:
            node.last_words("its --leave-timeout-ms is over")
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
        reason = f"out of memory: {error or 'an allocation failed'}"
        log.error("%s, which is a death like others", reason)
        node.last_words(reason)
        return EXIT_MEMORY
    except HalfHandledError as error:
        log.error("an error in the middle of an event, which is a death like others: %s", error, exc_info=True)
        node.last_words(f"an error inside ecrec: {error}")
        return EXIT_HALF_HANDLED
    finally:
        node.close()
    if not node.stopped:
        return EXIT_STOPPED
    log.log(logging.INFO if node.stop_kind == LEFT else logging.ERROR, "stopping: %s", node.stopped)
    return EXIT_CODES[node.stop_kind]


def _end_at_signals(node: Server) -> None:
    """SIGTERM ends it as soon as nothing is lost with it; SIGINT, and a second SIGTERM, at once."""
    told = False

    def leave(*_: Any) -> None:
        nonlocal told
        if told:
            log.warning("told to end again, ends at once: data may be lost if others are not whole")
            node.request_stop()
        else:
            told = True
            node.request_leave()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, lambda *_: node.request_stop())

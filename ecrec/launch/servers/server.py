"""What the server programs have in common: how they get ready, run, and end."""

import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.exit_codes import ExitCode
from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.environment import keep_freed_memory
from ecrec.launch.output import Informing
from ecrec.launch.watched import Snapshot, Watched
from ecrec.protocol.events import FENCED, LEFT, LEFT_EARLY, NO_SCHEDULER, OUTDATED, HalfHandledError
from ecrec.protocol.node_core import Machine
from ecrec.transport.endpoints import WILDCARDS, is_address, is_host, is_ipc, is_loopback, parse, tcp
from ecrec.transport.leadership import DeposedError
from ecrec.transport.links import Links
from ecrec.transport.names import look_up
from ecrec.transport.visitors import connections_max, raise_descriptor_limit

log = logging.getLogger(__name__)

EXIT_CODES = {
    FENCED: ExitCode.REPLACED,
    OUTDATED: ExitCode.OUTDATED,
    LEFT: ExitCode.DONE,
    LEFT_EARLY: ExitCode.LEFT_EARLY,
    NO_SCHEDULER: ExitCode.NO_SCHEDULER,
}
"""Why the cluster wants a process to end -> its exit code."""

DESCRIPTORS_MIN = 64
"""With fewer no server starts: ZeroMQ ends a process that has none left for a socket of its own."""

DESCRIPTORS_LOW = 4096
"""With fewer a server says so when it starts."""

READY_HELP = "Prints one JSON line on stdout when it is ready; logs to stderr. "

SCHEDULER_HELP = (
    "Where the scheduler is: its endpoint, tcp://HOST:PORT or ipc://PATH; zk://HOST:PORT[,HOST:PORT...]/PATH, as "
    "the --coordinator of several schedulers, for the one that leads; or file:///PATH, as its --endpoint-file."
)

PLAIN_HELP = (
    "Listen without keys on an address that other machines can reach. Anyone who reaches it may read and change "
    "everything. Only for a network on which everybody is trusted."
)


UNTIL_HELP = (
    "A file; repeatable. When all of them are there the program ends, as by SIGINT: for engines that end a run only "
    "when all its programs have ended. Workers make the files when they are done."
)
UNTIL_S = 1.0
"""How often the files of --until are looked for."""


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

    @property
    def stepped_s(self) -> float:
        """When its loop made its last step, in seconds of the monotonic clock."""

    def watch(self, look: Callable[[Machine], None]) -> None:
        """Have ``look(machine)`` called about once a second."""

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


def warn_of_loopback(bound: str, endpoint: str) -> None:
    """Say it when others are told a name that is this machine's loopback here; it is looked up in the background.

    ``bound``: where the process listens. On Debian a host's own name is 127.0.1.1 in its /etc/hosts.
    """
    if is_ipc(endpoint) or is_loopback(bound) or is_address(host := parse(endpoint).host):
        return

    def look() -> None:
        try:
            found = look_up(host)
        except (OSError, UnicodeError) as error:
            log.warning(
                "others are told to connect to %s, and %r is not known on this machine: %s; is it known to them? "
                "(--advertise)", endpoint, host, getattr(error, "strerror", None) or error,
            )  # fmt: skip
            return
        if found and all(is_loopback(tcp(address, 1)) for address in found):
            log.warning(
                "others are told to connect to %s, and %r is %s on this machine: if it is that elsewhere, too, nobody "
                "reaches this process (--advertise)", endpoint, host, ", ".join(found),
            )  # fmt: skip

    threading.Thread(target=look, name="ecrec-advertised", daemon=True).start()


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


class Pages:
    """What a server shows over HTTP. ``show``: makes it of the server's machine. ``dashboard``: the live page."""

    def __init__(self, show: Callable[[Any], Snapshot], waiting: str, dashboard: Dashboard | None = None) -> None:
        self._show = show
        self.dashboard = dashboard
        self._server: Server | None = None
        self._snapshot = Snapshot(waiting)
        self.watched = Watched(lambda: self._snapshot, self._alive_s)

    def follow(self, server: Server) -> None:
        self._server = server
        server.watch(self._look)

    def _look(self, machine: Any) -> None:
        self._snapshot = self._show(machine)

    def _alive_s(self) -> float:
        return time.monotonic() if self._server is None else self._server.stepped_s


def run_server(
    make: Callable[[], Server],
    ready: dict[str, Any],
    pages: Pages,
    http: str | None,
    until: Sequence[str] | None = None,
) -> int:
    """Make the node, say that it is ready on stdout, run it to its end; return the exit code.

    ``ready`` gets the endpoint added, and that of the ``pages``, which are shown at ``http``. It ends when the files
    of ``until`` are there, if any are named.
    """
    try:
        with pages.watched.serve("--http", http, dashboard=pages.dashboard) if http else nullcontext() as shown:
            return _run(make, {**ready, **({"http": shown.url} if shown else {})}, pages, until or ())
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.OPTIONS


def _end_when_there(node: Server, files: Sequence[str]) -> None:
    """In a thread: a file system of the network may hang."""
    while not all(os.path.exists(file) for file in files):
        time.sleep(UNTIL_S)
    log.info("ends: %s is there", ", ".join(files))
    node.request_stop()


def _run(make: Callable[[], Server], ready: dict[str, Any], pages: Pages, until: Sequence[str]) -> int:
    keep_freed_memory()
    descriptors = raise_descriptor_limit()
    if descriptors < DESCRIPTORS_MIN:
        print(
            f"error: this process may have {descriptors} descriptors, and needs at least {DESCRIPTORS_MIN}, for a "
            f"cluster of many workers {DESCRIPTORS_LOW}: ulimit -n {DESCRIPTORS_LOW}, or LimitNOFILE of its unit",
            file=sys.stderr,
        )
        return ExitCode.OPTIONS
    if descriptors < DESCRIPTORS_LOW:
        log.warning(
            "this process may have %d descriptors, and takes %d connections; a cluster of many workers needs more: "
            "ulimit -n %d", descriptors, connections_max(descriptors), DESCRIPTORS_LOW,
        )  # fmt: skip
    try:
        node = make()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.OPTIONS
    try:
        signals = Signals(node)
        if "http" in ready:
            pages.follow(node)
        if until:
            threading.Thread(target=_end_when_there, args=(node, until), name="ecrec-until", daemon=True).start()
        print(json.dumps({**ready, "endpoint": node.links.endpoint}), flush=True, file=Informing(sys.stdout))
        node.run()
        if node.stop_kind == LEFT_EARLY:
            node.last_words("its --leave-timeout-ms is over")
        elif signals.hurried:
            node.last_words("it was told to end twice")
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.OPTIONS
    except DeposedError as error:
        log.error("stopping: %s", error)
        return ExitCode.REPLACED
    except ClusterError as error:
        log.error("%s", error)
        return ExitCode.STATE
    except MemoryError as error:
        reason = f"out of memory: {error or 'an allocation failed'}"
        log.error("%s, which is a death like others", reason)
        node.last_words(reason)
        return ExitCode.MEMORY
    except HalfHandledError as error:
        log.error("an error in the middle of an event, which is a death like others: %s", error, exc_info=True)
        log.error("what went before:\n%s", error.story)
        node.last_words(f"an error inside ecrec: {error}")
        return ExitCode.HALF_HANDLED
    finally:
        node.close()
    if not node.stopped:
        return ExitCode.LEFT_EARLY if signals.hurried else ExitCode.DONE
    log.log(logging.INFO if node.stop_kind == LEFT else logging.ERROR, "stopping: %s", node.stopped)
    return EXIT_CODES[node.stop_kind]


class Signals:
    """SIGTERM ends a server as soon as nothing is lost with it; SIGINT, and a second SIGTERM, at once."""

    def __init__(self, node: Server) -> None:
        self._node = node
        self._told = False
        self.hurried = False
        """Whether it was a second SIGTERM that ended it."""
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, lambda *_: node.request_stop())

    def _leave(self, *_: Any) -> None:
        if self._told:
            self.hurried = True
            log.warning("told to end again, ends at once: data may be lost if others are not whole")
            self._node.request_stop()
        else:
            self._told = True
            self._node.request_leave()

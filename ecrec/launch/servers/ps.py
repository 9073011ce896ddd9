"""``ecrec-ps``: one parameter server process."""

import os
import secrets
from collections.abc import Callable
from typing import Annotated

import msgspec

from ecrec.checkpoint.writer import FileWriter
from ecrec.errors import ConfigurationError
from ecrec.exit_codes import ExitCode, exit_codes_help
from ecrec.launch import variables
from ecrec.launch.environment import (
    CURVE_DIR_HELP,
    configure_native,
    curve_keys,
    log_to_stderr,
)
from ecrec.launch.flags import Flag
from ecrec.launch.program import Program
from ecrec.launch.servers import figures
from ecrec.launch.servers.server import (
    PLAIN_HELP,
    READY_HELP,
    SCHEDULER_HELP,
    UNTIL_HELP,
    Pages,
    advertised,
    run_server,
    warn_of_loopback,
)
from ecrec.launch.watched import HTTP_HELP
from ecrec.protocol.shard import ShardMachine
from ecrec.transport.links import Links
from ecrec.transport.node import Node
from ecrec.transport.scheduler_wait import SchedulerWait

STATM = "/proc/self/statm"
"""Pages of this process; the second number counts those that are resident."""


ENDED_CHARACTERS_MAX = 300
"""Of how a predecessor ended."""


class PsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``ecrec-ps``, each in one place."""

    scheduler: Annotated[str, Flag(SCHEDULER_HELP)]
    shard: Annotated[int, Flag("Shard to be, or to replace, over all groups.", at_least=-1)] = -1
    spare: Annotated[bool, Flag("Take any place that is or gets free.")] = False
    bind: Annotated[str, Flag("Where to listen; port 0 takes a free one.")] = "tcp://127.0.0.1:0"
    advertise: Annotated[str, Flag("Host name or address that others reach this machine by.")] = ""
    predecessor: Annotated[
        str,
        Flag(
            "PROCESS:HOW of the server that this one is started in place of: the name that its line on standard output "
            'gave as "process", and how it ended, for `ecrec status`. Launchers say it.'
        ),
    ] = ""
    curve_dir: Annotated[str | None, Flag(CURVE_DIR_HELP)] = None
    allow_plain_network: Annotated[bool, Flag(PLAIN_HELP)] = False
    leave_timeout_ms: Annotated[
        int,
        Flag(
            "After SIGTERM a server goes on serving until it can end without loss of data. This is the longest time it "
            "waits, in milliseconds; then it ends with exit code 8, and data may be lost. 0: no limit. SIGINT or a "
            "second SIGTERM ends it at once.",
            at_least=0,
        ),
    ] = 0
    stopped_exit_code: Annotated[
        int,
        Flag(
            "Exit code, in place of 0, of a server that is told to end: for an engine that starts nothing again that "
            "ended with 0, as a Job of Kubernetes.",
            at_least=0,
            at_most=255,
        ),
    ] = 0
    scheduler_timeout_ms: Annotated[
        int,
        Flag(
            "Until a scheduler answers for the first time, the log says every few seconds what is in the way. After so "
            "many milliseconds the server ends with exit code 12. 0: no limit.",
            at_least=0,
        ),
    ] = 60_000
    http: Annotated[str | None, Flag(HTTP_HELP)] = None
    until: Annotated[tuple[str, ...], Flag(UNTIL_HELP)] = ()
    verbose: Annotated[bool, Flag("Log everything.")] = False


def ps(options: PsOptions) -> int:
    """Be a parameter server until it is told to end; returns the exit code."""
    if options.spare and options.shard >= 0:
        raise ConfigurationError("--spare: a spare takes any shard: give --shard or --spare, not both")
    log_to_stderr(options.verbose)
    process = secrets.token_hex(8)

    def make() -> Node:
        links = Links(options.bind, curve_keys(options.curve_dir), options.allow_plain_network)
        try:
            configure_native()  # trap: not before: its threads may be all that a limit leaves, and ZeroMQ would abort
            endpoint = advertised(links.endpoint, options.advertise, options.scheduler)
            warn_of_loopback(links.endpoint, endpoint)
            machine = ShardMachine(process, endpoint, options.shard, options.leave_timeout_ms)
            machine.heartbeats.resident_bytes = resident_bytes_reader()
            before, _, how = options.predecessor.partition(":")
            machine.heartbeats.predecessor = before[:ENDED_CHARACTERS_MAX], how[:ENDED_CHARACTERS_MAX]
            wait = SchedulerWait(options.scheduler, options.scheduler_timeout_ms)
            return Node(machine, links, scheduler_endpoint=options.scheduler, files=FileWriter(), scheduler_wait=wait)
        except Exception:
            links.close()
            raise

    ready = {"ready": "ps", "shard": options.shard, "process": process, "pid": os.getpid()}
    pages = Pages(figures.of_shard, figures.NO_SCHEDULER)
    code = run_server(make, ready, pages, options.http, options.until)
    return options.stopped_exit_code if code == ExitCode.DONE else code


def resident_bytes_reader() -> Callable[[], int] | None:
    """Tells the resident memory of this process, libraries included; None where the system does not tell it.

    The file stays open: a process that has used up its descriptors goes on to tell.
    """
    try:
        descriptor = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    return lambda: int(os.pread(descriptor, 200, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


program = Program(
    "ecrec-ps",
    variables.PS,
    "One parameter server: holds the rows of a shard, or waits as a spare. "
    + READY_HELP
    + exit_codes_help(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.OPTIONS,
        ExitCode.MEMORY,
        ExitCode.HALF_HANDLED,
        ExitCode.LEFT_EARLY,
        ExitCode.REPLACED,
        ExitCode.NO_SCHEDULER,
    ),
    PsOptions,
    ps,
)


def main() -> None:
    program()


if __name__ == "__main__":
    main()

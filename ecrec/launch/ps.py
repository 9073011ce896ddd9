"""``ecrec-ps``: one parameter server process."""

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from ecrec.launch.environment import (
    CURVE_DIR_HELP,
    configure_native,
    curve_keys,
    log_to_stderr,
)
from ecrec.launch.server import EXIT_CODES_HELP, PLAIN_HELP, SCHEDULER_HELP, advertised, run_server
from ecrec.protocol.shard import ShardMachine
from ecrec.transport.links import Links
from ecrec.transport.node import Node

STATM = Path("/proc/self/statm")
"""Pages of this process; the second number counts those that are resident."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="One parameter server: holds the rows of a shard, or waits as a spare. " + EXIT_CODES_HELP)
def ps(
    scheduler: Annotated[str, typer.Option(help=SCHEDULER_HELP)],
    shard: Annotated[int, typer.Option(min=-1, help="Shard to be, or to replace, over all groups.")] = -1,
    spare: Annotated[bool, typer.Option("--spare", help="Take any place that is or gets free.")] = False,
    bind: Annotated[str, typer.Option(help="Where to listen; port 0 takes a free one.")] = "tcp://127.0.0.1:0",
    advertise: Annotated[str, typer.Option(help="Host name or address that others reach this machine by.")] = "",
    curve_dir: Annotated[str | None, typer.Option(help=CURVE_DIR_HELP)] = None,
    allow_plain_network: Annotated[bool, typer.Option("--allow-plain-network", help=PLAIN_HELP)] = False,
    leave_timeout_ms: Annotated[
        int,
        typer.Option(
            min=0,
            help="After SIGTERM a server goes on serving until it can end without loss of data. This is the longest "
            "time it waits, in milliseconds; then it ends with exit code 8, and data may be lost. 0: no limit. SIGINT "
            "or a second SIGTERM ends it at once.",
        ),
    ] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log everything.")] = False,
) -> None:
    if spare and shard >= 0:
        raise typer.BadParameter("a spare takes any shard: give --shard or --spare, not both", param_hint="--spare")
    log_to_stderr(verbose)
    process = secrets.token_hex(8)

    def make() -> Node:
        configure_native()
        links = Links(bind, curve_keys(curve_dir), allow_plain_network)
        try:
            machine = ShardMachine(process, advertised(links.endpoint, advertise, scheduler), shard, leave_timeout_ms)
            machine.resident_bytes = resident_bytes if STATM.exists() else None
            return Node(machine, links, scheduler_endpoint=scheduler)
        except Exception:
            links.close()
            raise

    raise typer.Exit(run_server(make, {"ready": "ps", "shard": shard, "process": process, "pid": os.getpid()}))


def resident_bytes() -> int:
    """Of this process, libraries included."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    app()


if __name__ == "__main__":
    main()

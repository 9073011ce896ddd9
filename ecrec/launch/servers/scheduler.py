"""``ecrec-scheduler``: the process that decides who is a member."""

import os
import secrets
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from ecrec.checkpoint.writer import FileWriter
from ecrec.errors import ConfigurationError
from ecrec.exit_codes import ExitCode, exit_codes_help
from ecrec.launch import variables
from ecrec.launch.dashboard import ALLOW_HOST_HELP
from ecrec.launch.dashboard.feed import Feed
from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.environment import CURVE_DIR_HELP, curve_keys, log_to_stderr
from ecrec.launch.groups import ON_DATA_LOSS, REINITIALISE, STOP, Groups, deal
from ecrec.launch.servers import figures
from ecrec.launch.servers.server import (
    PLAIN_HELP,
    READY_HELP,
    UNTIL_HELP,
    Pages,
    Server,
    advertised,
    run_server,
    warn_of_loopback,
)
from ecrec.launch.watched import HTTP_HELP
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.transport.coordinator import candidate
from ecrec.transport.endpoint_file import write_endpoint
from ecrec.transport.leadership import StateStore
from ecrec.transport.links import Links
from ecrec.transport.node import Node
from ecrec.transport.persistence import StateFile

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DEFAULTS = ProtocolConfig()
LINK_TIMEOUT_TIMES = 2
MANY_TIMEOUT_TIMES = 3
STUCK_TIMEOUT_TIMES = 2
ISOLATED_TIMEOUT_TIMES = 6
"""The other time-outs that tell of a death are at least that many times the one of silence: a cluster whose processes
get their turn late (`--heartbeat-timeout-ms` is long) must not give up a slow link before it gives up a silent shard,
nor declare data lost as soon as one death."""
TICKS_IN_HEARTBEAT = 5
"""A late heartbeat, or a closed connection, is noticed within a fifth of a heartbeat."""


@app.command(
    help="The scheduler: keeps views, epochs and tables. Training goes on while it is down; started again with the "
    "same --bind and --state it goes on where it was. With --coordinator several stand by for each other. "
    + READY_HELP
    + exit_codes_help(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.OPTIONS,
        ExitCode.STATE,
        ExitCode.MEMORY,
        ExitCode.HALF_HANDLED,
        ExitCode.OUTDATED,
        ExitCode.REPLACED,
    )
)
def scheduler(
    bind: Annotated[str, typer.Option(help="Where to listen, tcp://HOST:PORT or ipc://PATH; port 0 takes a free one.")],
    shards: Annotated[int, typer.Option(min=1, help="Shards of all coding groups together.")],
    state: Annotated[
        str | None, typer.Option(help="SQLite file with the scheduler's state; made if it does not exist.")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="zk://HOST:PORT[,HOST:PORT...]/PATH: keep the state in ZooKeeper instead, and lead only while elected."
        ),
    ] = None,
    endpoint_file: Annotated[
        str | None,
        typer.Option(
            help="A file that all hosts see: write there where this scheduler is reached. Servers and workers that are "
            "given --scheduler file:///PATH follow when it is started on another host, with the same --state."
        ),
    ] = None,
    coordinator_timeout_ms: Annotated[
        int,
        typer.Option(
            min=100,
            max=40_000,
            help="Session with ZooKeeper: another scheduler leads after so long without a word. ZooKeeper takes 2 to "
            "20 of its ticks: by default, 4 to 40 s.",
        ),
    ] = 6000,
    advertise: Annotated[
        str,
        typer.Option(
            help="Host name or address that others reach this machine by (with --coordinator or --endpoint-file)."
        ),
    ] = "",
    groups: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Coding groups of equal size, at most 16 shards each; shards are numbered over all of them. Default: "
            "one, and of more than 16 shards as few as possible with room for code 4+1.",
        ),
    ] = None,
    heartbeat_ms: Annotated[int, typer.Option(min=1, help="How often members report.")] = DEFAULTS.heartbeat_ms,
    heartbeat_timeout_ms: Annotated[
        int, typer.Option(min=1, help="A shard that was silent for so long is down.")
    ] = DEFAULTS.heartbeat_timeout_ms,
    link_timeout_ms: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="When two shards have not heard each other for this long, though the scheduler hears both, one is "
            f"replaced; {DEFAULTS.link_timeout_ms}, and more with a long --heartbeat-timeout-ms.",
        ),
    ] = None,
    lease_timeout_ms: Annotated[
        int,
        typer.Option(
            min=1,
            help="A worker that was silent for so long is over, and its splits of the data go to others. A worker says "
            "nothing while it computes: more than a step takes.",
        ),
    ] = DEFAULTS.lease_timeout_ms,
    reconnect_grace_ms: Annotated[
        int, typer.Option(min=1, help="A shard whose connection stays closed for so long is down.")
    ] = DEFAULTS.reconnect_grace_ms,
    on_data_loss: Annotated[
        str,
        typer.Option(
            help="When more shards die than the code stands: stop, or reinitialise: go on with the lost rows at their "
            "initial values, counted."
        ),
    ] = STOP,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=NUMBER",
            help="A limit or time-out of ecrec/protocol/config.py that has no option of its own, such as "
            "window_interval_ms=100, for all members; for experiments. Repeatable.",
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="If the state turns out to be lost, or older than the living cluster: make it again from what the "
            "members tell, instead of ending with exit code 7. Without effect where the state is the newest. End the "
            "other schedulers of this cluster first.",
        ),
    ] = False,
    curve_dir: Annotated[str | None, typer.Option(help=CURVE_DIR_HELP)] = None,
    allow_plain_network: Annotated[bool, typer.Option("--allow-plain-network", help=PLAIN_HELP)] = False,
    http: Annotated[str | None, typer.Option(help=f"{HTTP_HELP} A browser gets a live page there.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help=ALLOW_HOST_HELP)] = None,
    until: Annotated[list[str] | None, typer.Option(help=UNTIL_HELP)] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log everything.")] = False,
) -> None:
    if heartbeat_timeout_ms <= 2 * heartbeat_ms:
        raise typer.BadParameter(
            f"{heartbeat_timeout_ms} ms: one late heartbeat would be a death; expected more than 2 * --heartbeat-ms = "
            f"{2 * heartbeat_ms}",
            param_hint="--heartbeat-timeout-ms",
        )
    if link_timeout_ms is not None and link_timeout_ms <= heartbeat_timeout_ms:
        raise typer.BadParameter(
            f"{link_timeout_ms} ms: a link would be given up before a shard; expected more than --heartbeat-timeout-ms "
            f"{heartbeat_timeout_ms}",
            param_hint="--link-timeout-ms",
        )
    if lease_timeout_ms <= 2 * heartbeat_ms:
        raise typer.BadParameter(
            f"{lease_timeout_ms} ms: one late heartbeat would end a worker; expected more than 2 * --heartbeat-ms = "
            f"{2 * heartbeat_ms}",
            param_hint="--lease-timeout-ms",
        )
    if (state is None) == (coordinator is None):
        raise typer.BadParameter("expected a file, or else a --coordinator", param_hint="--state")
    if endpoint_file is not None and coordinator is not None:
        raise typer.BadParameter("a --coordinator tells where the scheduler is", param_hint="--endpoint-file")
    if on_data_loss not in ON_DATA_LOSS:
        raise typer.BadParameter(f"{on_data_loss!r}: expected {' or '.join(ON_DATA_LOSS)}", param_hint="--on-data-loss")
    try:
        dealt = deal(shards, groups)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="'--shards'") from error
    log_to_stderr(verbose)
    config = ProtocolConfig(
        heartbeat_ms=heartbeat_ms,
        heartbeat_timeout_ms=heartbeat_timeout_ms,
        **timeouts(heartbeat_timeout_ms, link_timeout_ms),
        reconnect_grace_ms=reconnect_grace_ms,
        reinitialise_lost=on_data_loss == REINITIALISE,
        lease_timeout_ms=lease_timeout_ms,
    )
    try:
        config = with_limits(config, limits or [])
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="'--set'") from error

    def node(machine: SchedulerMachine, links: Links, store: StateStore) -> Node:
        return Node(
            machine,
            links,
            state_store=store,
            grace_ms=config.reconnect_grace_ms,
            tick_ms=config.heartbeat_ms / TICKS_IN_HEARTBEAT,
            files=FileWriter(),
        )

    def alone(state: str) -> Node:
        state_file = StateFile(state)
        try:
            machine = _machine(dealt, config, state_file.load(), state, adopt)
            links = Links(bind, curve_keys(curve_dir), allow_plain_network)
            if endpoint_file is not None:
                write_endpoint(endpoint_file, advertised(links.endpoint, advertise))
        except Exception:
            state_file.close()
            raise
        return node(machine, links, state_file)

    def one_of_several(coordinator: str) -> Server:
        chosen = candidate(coordinator, coordinator_timeout_ms)
        from ecrec.launch.servers.standby import Standby

        links = Links(bind, curve_keys(curve_dir), allow_plain_network)
        try:
            endpoint = advertised(links.endpoint, advertise)
            warn_of_loopback(links.endpoint, endpoint)
        except ConfigurationError:
            links.close()
            raise
        return Standby(
            links,
            chosen,
            endpoint,
            lambda stored: _machine(dealt, config, stored, coordinator, adopt),
            lambda machine: node(machine, links, chosen),
        )

    def make() -> Server:
        return alone(state) if state is not None else one_of_several(str(coordinator))

    ready = {"ready": "scheduler", "pid": os.getpid(), **({"coordinator": coordinator} if coordinator else {})}
    feed = Feed("the scheduler at this address")
    pages = Pages(figures.of_scheduler(feed), "", Dashboard(feed, allow_host or ()))
    raise typer.Exit(run_server(make, ready, pages, http, until))


def timeouts(heartbeat_timeout_ms: int, link_timeout_ms: int | None = None) -> dict[str, int]:
    """The time-outs of the configuration that follow from these: their defaults, unless these are long."""
    link_ms = link_timeout_ms or max(DEFAULTS.link_timeout_ms, LINK_TIMEOUT_TIMES * heartbeat_timeout_ms)
    return {
        "link_timeout_ms": link_ms,
        "heartbeat_timeout_many_ms": max(DEFAULTS.heartbeat_timeout_many_ms, MANY_TIMEOUT_TIMES * heartbeat_timeout_ms),
        "stuck_timeout_ms": max(DEFAULTS.stuck_timeout_ms, STUCK_TIMEOUT_TIMES * link_ms),
        "isolated_timeout_ms": max(DEFAULTS.isolated_timeout_ms, ISOLATED_TIMEOUT_TIMES * heartbeat_timeout_ms),
    }


def with_limits(config: ProtocolConfig, limits: Sequence[str]) -> ProtocolConfig:
    """With these limits, ``name=number`` each. Raises ConfigurationError for a name or number that is none."""
    for text in limits:
        name, equals, number = text.partition("=")
        values: dict[str, object] = msgspec.structs.asdict(config)
        if name not in values or not equals:
            raise ConfigurationError(f"{text!r}: expected NAME=NUMBER, with one of {', '.join(values)}")
        try:
            config = msgspec.convert({**values, name: msgspec.json.decode(number)}, ProtocolConfig)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"{text!r}: {error}") from error
    return config


def _machine(groups: Groups, config: ProtocolConfig, stored: bytes | None, where: str, adopt: bool) -> SchedulerMachine:
    try:
        return SchedulerMachine(groups.n, groups.count, config, stored, secrets.token_hex(8), adopt)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"scheduler state {where}: not written by this version of ecrec: {error}") from error


def main() -> None:
    variables.run(app, variables.SCHEDULER)


if __name__ == "__main__":
    main()

"""``ecrec-scheduler``: the process that decides who is a member."""

import os
import secrets
from collections.abc import Sequence
from typing import Annotated

import msgspec

from ecrec.checkpoint.writer import FileWriter
from ecrec.errors import ConfigurationError
from ecrec.exit_codes import ExitCode, exit_codes_help
from ecrec.launch import variables
from ecrec.launch.dashboard import ALLOW_HOST_HELP
from ecrec.launch.dashboard.feed import Feed
from ecrec.launch.dashboard.page import Dashboard
from ecrec.launch.environment import CURVE_DIR_HELP, curve_keys, log_to_stderr
from ecrec.launch.flags import Flag
from ecrec.launch.groups import ON_DATA_LOSS, REINITIALISE, STOP, Groups, deal
from ecrec.launch.program import Program
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
from ecrec.launch.timeouts import check_timeouts, timeouts
from ecrec.launch.watched import HTTP_HELP
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.transport.coordinator import candidate
from ecrec.transport.endpoint_file import write_endpoint
from ecrec.transport.leadership import StateStore
from ecrec.transport.links import Links
from ecrec.transport.node import Node
from ecrec.transport.persistence import StateFile

DEFAULTS = ProtocolConfig()
TICKS_IN_HEARTBEAT = 5
"""A late heartbeat, or a closed connection, is noticed within a fifth of a heartbeat."""


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``ecrec-scheduler``, each in one place."""

    bind: Annotated[str, Flag("Where to listen, tcp://HOST:PORT or ipc://PATH; port 0 takes a free one.")]
    shards: Annotated[int, Flag("Shards of all coding groups together.", at_least=1)]
    state: Annotated[str | None, Flag("SQLite file with the scheduler's state; made if it does not exist.")] = None
    coordinator: Annotated[
        str | None,
        Flag("zk://HOST:PORT[,HOST:PORT...]/PATH: keep the state in ZooKeeper instead, and lead only while elected."),
    ] = None
    endpoint_file: Annotated[
        str | None,
        Flag(
            "A file that all hosts see: write there where this scheduler is reached. Servers and workers that are "
            "given --scheduler file:///PATH follow when it is started on another host, with the same --state."
        ),
    ] = None
    coordinator_timeout_ms: Annotated[
        int,
        Flag(
            "Session with ZooKeeper: another scheduler leads after this silence. ZooKeeper takes 2 to 20 of "
            "its ticks: by default, 4 to 40 s.",
            at_least=100,
            at_most=40_000,
        ),
    ] = 6000
    advertise: Annotated[
        str,
        Flag("Host name or address that others reach this machine by (with --coordinator or --endpoint-file)."),
    ] = ""
    groups: Annotated[
        int | None,
        Flag(
            "Coding groups of equal size, at most 16 shards each; shards are numbered over all of them. Default: one, "
            "and of more than 16 shards as few as possible with room for code 4+1.",
            at_least=1,
        ),
    ] = None
    heartbeat_ms: Annotated[int, Flag("How often members report.", at_least=1)] = DEFAULTS.heartbeat_ms
    heartbeat_timeout_ms: Annotated[int, Flag("A shard that is silent for longer is declared down.", at_least=1)] = (
        DEFAULTS.heartbeat_timeout_ms
    )
    link_timeout_ms: Annotated[
        int | None,
        Flag(
            "When two shards have not heard each other for this long, though the scheduler hears both, one is "
            f"replaced; {DEFAULTS.link_timeout_ms}, and more with a long --heartbeat-timeout-ms.",
            at_least=1,
        ),
    ] = None
    lease_timeout_ms: Annotated[
        int,
        Flag(
            "A worker that is silent for longer is given up, and its splits of the data go to others. A worker says "
            "nothing while it computes: more than a step takes.",
            at_least=1,
        ),
    ] = DEFAULTS.lease_timeout_ms
    reconnect_grace_ms: Annotated[
        int, Flag("A shard whose connection stays closed for longer is declared down.", at_least=1)
    ] = DEFAULTS.reconnect_grace_ms
    on_data_loss: Annotated[
        str,
        Flag(
            "When more shards die than the code tolerates: stop, or reinitialise: go on with the lost rows at their "
            "initial values, counted.",
            choices=ON_DATA_LOSS,
        ),
    ] = STOP
    limits: Annotated[
        tuple[str, ...],
        Flag(
            "A limit or time-out of ecrec/protocol/config.py that has no option of its own, such as "
            "window_interval_ms=100, for all members; for experiments. Repeatable.",
            name="--set",
            metavar="NAME=NUMBER",
        ),
    ] = ()
    adopt: Annotated[
        bool,
        Flag(
            "If the state turns out to be lost, or older than the living cluster: make it again from what the members "
            "tell, instead of ending with exit code 7. Without effect where the state is the newest. End the other "
            "schedulers of this cluster first."
        ),
    ] = False
    curve_dir: Annotated[str | None, Flag(CURVE_DIR_HELP)] = None
    allow_plain_network: Annotated[bool, Flag(PLAIN_HELP)] = False
    http: Annotated[str | None, Flag(f"{HTTP_HELP} A browser gets a live page there.")] = None
    allow_host: Annotated[tuple[str, ...], Flag(ALLOW_HOST_HELP)] = ()
    until: Annotated[tuple[str, ...], Flag(UNTIL_HELP)] = ()
    verbose: Annotated[bool, Flag("Log everything.")] = False


def scheduler(options: SchedulerOptions) -> int:
    """Be a scheduler until it is told to end; returns the exit code."""
    state, coordinator, adopt = options.state, options.coordinator, options.adopt
    _check(options)
    dealt = _dealt(options)
    config = with_limits(
        ProtocolConfig(
            heartbeat_ms=options.heartbeat_ms,
            heartbeat_timeout_ms=options.heartbeat_timeout_ms,
            **timeouts(options.heartbeat_timeout_ms, options.link_timeout_ms),
            reconnect_grace_ms=options.reconnect_grace_ms,
            reinitialise_lost=options.on_data_loss == REINITIALISE,
            lease_timeout_ms=options.lease_timeout_ms,
        ),
        options.limits,
    )
    log_to_stderr(options.verbose)

    def listen() -> Links:
        return Links(options.bind, curve_keys(options.curve_dir), options.allow_plain_network)

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
            links = listen()
            if options.endpoint_file is not None:
                write_endpoint(options.endpoint_file, advertised(links.endpoint, options.advertise))
        except Exception:
            state_file.close()
            raise
        return node(machine, links, state_file)

    def one_of_several(coordinator: str) -> Server:
        chosen = candidate(coordinator, options.coordinator_timeout_ms)
        from ecrec.launch.servers.standby import Standby

        links = listen()
        try:
            endpoint = advertised(links.endpoint, options.advertise)
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
    pages = Pages(figures.of_scheduler(feed), "", Dashboard(feed, options.allow_host))
    return run_server(make, ready, pages, options.http, options.until)


def _check(options: SchedulerOptions) -> None:
    """Raise ConfigurationError, naming the flag, for options that do not go together."""
    check_timeouts(options.heartbeat_timeout_ms, options.link_timeout_ms, options.heartbeat_ms, as_flags=True)
    twice_ms = 2 * options.heartbeat_ms
    if options.lease_timeout_ms <= twice_ms:
        raise ConfigurationError(
            f"--lease-timeout-ms {options.lease_timeout_ms}: one late heartbeat would end a worker; expected more than "
            f"2 * --heartbeat-ms = {twice_ms}"
        )
    if (options.state is None) == (options.coordinator is None):
        raise ConfigurationError("--state: expected a file, or else a --coordinator")
    if options.endpoint_file is not None and options.coordinator is not None:
        raise ConfigurationError("--endpoint-file: a --coordinator tells where the scheduler is")


def _dealt(options: SchedulerOptions) -> Groups:
    try:
        return deal(options.shards, options.groups)
    except ConfigurationError as error:
        raise ConfigurationError(f"--shards {options.shards}: {error}") from error


def with_limits(config: ProtocolConfig, limits: Sequence[str]) -> ProtocolConfig:
    """With these limits, ``name=number`` each. Raises ConfigurationError for a name or number that is none."""
    for text in limits:
        name, equals, number = text.partition("=")
        values: dict[str, object] = msgspec.structs.asdict(config)
        if name not in values or not equals:
            raise ConfigurationError(f"--set {text!r}: expected NAME=NUMBER, with one of {', '.join(values)}")
        try:
            config = msgspec.convert({**values, name: msgspec.json.decode(number)}, ProtocolConfig)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"--set {text!r}: {error}") from error
    return config


def _machine(groups: Groups, config: ProtocolConfig, stored: bytes | None, where: str, adopt: bool) -> SchedulerMachine:
    try:
        return SchedulerMachine(groups.n, groups.count, config, stored, secrets.token_hex(8), adopt)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"scheduler state {where}: not written by this version of ecrec: {error}") from error


program = Program(
    "ecrec-scheduler",
    variables.SCHEDULER,
    "The scheduler: keeps views, epochs and tables. Training goes on while it is down; started again with the same "
    "--bind and --state it goes on where it was. With --coordinator several stand by for each other. "
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
    ),
    SchedulerOptions,
    scheduler,
)


def main() -> None:
    program()


if __name__ == "__main__":
    main()

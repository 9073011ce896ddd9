"""``ecrec``: the program that people use."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from ecrec.errors import ClusterError, ConfigurationError, DataError, DataLostError, EcrecError
from ecrec.launch import environment
from ecrec.launch.environment import CURVE_DIR_HELP, WAIT_TIMEOUT_HELP
from ecrec.launch.kills import parse_interval
from ecrec.launch.options import (
    DENSE_LEARNING_RATES,
    LEARNING_RATES,
    ON_DATA_LOSS,
    RATE_MB_S,
    TRANSPORTS,
    TrainOptions,
    check_options,
    parse_sizes,
)

EXIT_FAILED, EXIT_OPTIONS, EXIT_DATA_LOST, EXIT_BAD_PARITY, EXIT_REPAIRED = 1, 2, 3, 4, 5
EXIT_INTERRUPTED = 130
EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 failed, 2 options that cannot be, 3 data was lost, 4 parity or acknowledged "
    "updates are not as they must be."
)
VERIFY_EXIT_CODES_HELP = (
    "Exit codes: 0 all fits, 1 failed, 2 options that cannot be, 3 data was lost, 4 there is damage that was not "
    "repaired, 5 all damage found was repaired."
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Training of recommendation models over parameter servers that may die. " + EXIT_CODES_HELP,
)

DEFAULTS = TrainOptions()

SchedulerOption = Annotated[
    str, typer.Option(help="Endpoint of the scheduler, tcp://HOST:PORT or ipc://PATH, or zk://HOST:PORT/PATH.")
]

CurveDirOption = Annotated[str | None, typer.Option(help=f"{CURVE_DIR_HELP} Default: ECREC_CURVE_DIR.")]


def _sizes(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


@app.command(help="Start a whole cluster on this machine and train a DLRM. " + EXIT_CODES_HELP)
def train(
    data: Annotated[
        list[str] | None, typer.Option(help="Criteo files (TSV, .gz too); repeatable. None: generated data.")
    ] = None,
    shards: Annotated[int, typer.Option(help="Parameter servers, of all coding groups.")] = DEFAULTS.shards,
    groups: Annotated[
        int | None,
        typer.Option(
            help="Coding groups of equal size, each of which tolerates R deaths; one of up to 16 servers, of more as "
            "few as possible."
        ),
    ] = None,
    code: Annotated[str, typer.Option(help="K+R: R parity rows for K data rows; 1+R replicates.")] = DEFAULTS.code,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = DEFAULTS.workers,
    steps: Annotated[int | None, typer.Option(help="Steps of each worker; as many as the data gives.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = DEFAULTS.epochs,
    seconds: Annotated[float | None, typer.Option(help="Begin no step after so long.")] = None,
    batch: Annotated[int, typer.Option(help="Examples in a step, over all workers.")] = DEFAULTS.batch,
    dim: Annotated[int, typer.Option(help="Floats in an embedding vector.")] = DEFAULTS.dim,
    rows: Annotated[int, typer.Option(help="Hash buckets a table.")] = DEFAULTS.rows,
    optimizer: Annotated[
        str, typer.Option(help=f"Of the embeddings: {', '.join(LEARNING_RATES)}.")
    ] = DEFAULTS.optimizer,
    lr: Annotated[float | None, typer.Option(help="Its learning rate.")] = None,
    dense_optimizer: Annotated[
        str, typer.Option(help=f"Of the dense part: {', '.join(DENSE_LEARNING_RATES)}.")
    ] = DEFAULTS.dense_optimizer,
    dense_lr: Annotated[float | None, typer.Option(help="Its learning rate.")] = None,
    bottom_mlp: Annotated[str, typer.Option(help="Its hidden layers below.")] = _sizes(DEFAULTS.bottom_mlp),
    top_mlp: Annotated[str, typer.Option(help="Its hidden layers above.")] = _sizes(DEFAULTS.top_mlp),
    seed: Annotated[int, typer.Option(help="Of initial values and generated data.")] = DEFAULTS.seed,
    sync: Annotated[bool, typer.Option("--sync", help="Sum the gradients of all workers in each step.")] = False,
    prefetch: Annotated[int, typer.Option(help="Batches whose rows are fetched ahead.")] = DEFAULTS.prefetch,
    kill: Annotated[
        list[str] | None, typer.Option(help="ps:SHARD@STEP or worker:RANK@STEP: SIGKILL at a step; repeatable.")
    ] = None,
    chaos_kill_every: Annotated[
        str | None,
        typer.Option(
            help="Like 10s: SIGKILL to random servers, at most one in each coding group, whenever that time has passed "
            "and no data is lost by it."
        ),
    ] = None,
    report: Annotated[str | None, typer.Option(help="Write the report here, as JSON.")] = None,
    spares: Annotated[
        int | None, typer.Option(help="Idle servers that take a dead one's place, in any group; R for each group.")
    ] = None,
    transport: Annotated[str, typer.Option(help=" or ".join(TRANSPORTS) + ".")] = DEFAULTS.transport,
    run_dir: Annotated[str | None, typer.Option(help="Directory for logs and state; a temporary one.")] = None,
    deaths_max: Annotated[
        int,
        typer.Option(
            help="A server that ended so often within two minutes, without --kill, ends the run, with its last words."
        ),
    ] = DEFAULTS.deaths_max,
    heartbeat_timeout_ms: Annotated[
        int | None,
        typer.Option(
            help="A server that was silent for that long is down; 800, and more where more than 4 servers share a core."
        ),
    ] = None,
    link_timeout_ms: Annotated[
        int | None,
        typer.Option(help="When two servers have not heard each other for this long, one is replaced; 4000, or more."),
    ] = None,
    on_data_loss: Annotated[
        str, typer.Option(help=f"After more deaths than the code stands: {' or '.join(ON_DATA_LOSS)} the lost rows.")
    ] = DEFAULTS.on_data_loss,
    lease_timeout_ms: Annotated[
        int, typer.Option(help="A worker that was silent for so long is over; its splits go to others.")
    ] = DEFAULTS.lease_timeout_ms,
    wait_timeout_ms: Annotated[int | None, typer.Option(min=1, help=WAIT_TIMEOUT_HELP)] = None,
    test_fraction: Annotated[
        float, typer.Option(help="The last part of the data, kept for the test.")
    ] = DEFAULTS.test_fraction,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
) -> None:
    from ecrec.launch.progress import make_progress, summary
    from ecrec.launch.train import run_training

    options = TrainOptions(
        data=tuple(data or ()),
        shards=shards,
        groups=groups,
        code=code,
        workers=workers,
        steps=steps,
        epochs=epochs,
        seconds=seconds,
        batch=batch,
        dim=dim,
        rows=rows,
        optimizer=optimizer,
        lr=lr,
        dense_optimizer=dense_optimizer,
        dense_lr=dense_lr,
        bottom_mlp=parse_sizes("--bottom-mlp", bottom_mlp),
        top_mlp=parse_sizes("--top-mlp", top_mlp),
        seed=seed,
        sync=sync,
        prefetch=prefetch,
        kills=tuple(kill or ()),
        chaos_kill_every_s=parse_interval("--chaos-kill-every", chaos_kill_every) if chaos_kill_every else None,
        report=report,
        spares=spares,
        transport=transport,
        run_dir=run_dir,
        deaths_max=deaths_max,
        heartbeat_timeout_ms=heartbeat_timeout_ms,
        link_timeout_ms=link_timeout_ms,
        on_data_loss=on_data_loss,
        lease_timeout_ms=lease_timeout_ms,
        wait_timeout_ms=environment.wait_timeout_ms(wait_timeout_ms),
        test_fraction=test_fraction,
        quiet=quiet,
    )
    for warning in check_options(options):
        _say(f"warning: {warning}")
    console = Console()
    result = run_training(options, lambda: make_progress(console, options.steps, quiet, options.dealt))
    if not quiet:
        console.print(summary(result))
    for text in result["kills_not_done"]:
        _say(f"warning: --kill {text} was not done: training had ended")
    for loss in result["losses"]:
        _say(f"warning: {loss['text']}")
    if result["lost_updates"] > result["updates_damaged"] or result["parity_ok"] is False:
        raise typer.Exit(EXIT_BAD_PARITY)


@app.command(help="Show the shards, workers and last events of a running cluster.")
def status(
    scheduler: SchedulerOption,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.status import plain, redundancy, render, status_console
    from ecrec.launch.verify import cluster_state

    if as_json:
        state = cluster_state(scheduler, curve_dir=curve_dir)
        print(json.dumps({**plain(state), "redundancy": redundancy(state)}))
        return
    console = status_console()
    if not watch:
        console.print(render(cluster_state(scheduler, curve_dir=curve_dir)))
        return
    with Live(render(cluster_state(scheduler, curve_dir=curve_dir)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                live.update(render(cluster_state(scheduler, curve_dir=curve_dir)), refresh=True)
            except ClusterError as error:
                live.console.print(str(error))


@app.command(
    help="Compare all parity with all data of a running cluster, while training goes on, and rewrite parity rows that "
    "do not fit. Data rows are never changed. " + VERIFY_EXIT_CODES_HELP
)
def verify(
    scheduler: SchedulerOption,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Megabytes a second to read, of all servers together; 0: no limit.")
    ] = RATE_MB_S,
    repair: Annotated[bool, typer.Option("--repair/--no-repair", help="Rewrite wrong parity, or only report.")] = True,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds without progress until it is given up.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.verify import describe_bad, scrub

    outcome = scrub(scheduler, timeout, curve_dir=curve_dir, repair=repair, rate_mb_s=rate or None)
    left = len(outcome.unrepaired)
    if as_json:
        bad = [stripe._asdict() for stripe in outcome.bad]
        figures = {
            "stripes_scrubbed": outcome.stripes,
            "parity_rows_scrubbed": outcome.parity_rows,
            "bytes_read": outcome.bytes_read,
            "restarts": outcome.restarts,
            "repaired": len(outcome.bad) - left,
        }
        print(json.dumps({"parity_ok": outcome.ok, **figures, "bad": bad}))
    else:
        for line in describe_bad(outcome.bad):
            print(line)
        if outcome.restarts:
            print(
                f"{outcome.restarts} classes of stripes were begun again: a server that holds their parity was replaced"
            )
        if outcome.ok is None:
            print("nothing to compare: no stripe with parity was touched")
        else:
            found = "all parity fits" if outcome.ok else f"{len(outcome.bad)} rows do not fit, {left} are not repaired"
            print(f"{found}: {outcome.stripes} stripes, {outcome.parity_rows} parity rows compared")
    if outcome.ok is False:
        raise typer.Exit(EXIT_BAD_PARITY if left else EXIT_REPAIRED)


@app.command(
    help="Make a key pair for CURVE encryption, in a new directory for --curve-dir. Without --join it is the directory "
    "of a cluster's servers, to be copied to each of their hosts; with --join that of one who connects to them."
)
def keygen(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where to write; own.key_secret in it stays secret.")],
    name: Annotated[str, typer.Option(help="Name of the key on the list of those that are allowed.")] = "servers",
    join: Annotated[
        str | None, typer.Option(help="The servers' directory: take over their public keys, allow the new key there.")
    ] = None,
) -> None:
    from ecrec.transport.curve import generate

    for path in generate(Path(directory), name, Path(join) if join else None):
        print(path)


@app.command(
    help="Measure the native core and the push and pull path beside each peer that is installed, turn about. "
    "Without a SUITE all are run. Exit codes: 0 measured, or the peer is missing (a line says SKIPPED); 1 a result is "
    "not that of the peer; 2 options that cannot be."
)
def bench(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help="kernels, store, batch, rpc.")
    ] = None,
    case: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    rounds: Annotated[int, typer.Option(help="Turns of each side, at least 7.")] = 9,
    kernel: Annotated[str | None, typer.Option(help="Force a kernel in place of the fastest.")] = None,
    json_path: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result here.")] = None,
) -> None:
    from ecrec.launch.bench import run_bench

    if not run_bench(suites or [], case, rounds, kernel, json_path):
        raise typer.Exit(EXIT_FAILED)


def exit_code(error: EcrecError) -> int:
    """What the program ends with for an error."""
    if isinstance(error, ConfigurationError | DataError):
        return EXIT_OPTIONS
    return EXIT_DATA_LOST if isinstance(error, DataLostError) else EXIT_FAILED


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _on_sigterm(number: int, frame: object) -> NoReturn:
    # As Ctrl-C: the way out leads past everything that stops the children.
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except EcrecError as error:
        _say(f"error: {error}")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

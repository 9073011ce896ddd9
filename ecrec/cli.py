"""``ecrec``: the program that people use.

This file is long because the flags of all commands stand here; what they do stands elsewhere.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.live import Live

import ecrec
from ecrec.errors import ClusterError, ConfigurationError, DataLostError, EcrecError
from ecrec.exit_codes import ExitCode, exit_code, exit_codes_help
from ecrec.launch.commands import command, run
from ecrec.launch.dashboard import ALLOW_HOST_HELP, DEFAULT_ADDRESS
from ecrec.launch.environment import CURVE_DIR_HELP
from ecrec.launch.output import Informing
from ecrec.train.options import (
    RATE_MB_S,
    TrainOptions,
    check_options,
    with_files,
)
from ecrec.urls import shown

EXIT_CODES_HELP = exit_codes_help(
    ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS, ExitCode.DATA_LOST, ExitCode.DAMAGED, ExitCode.INTERRUPTED
)
VERIFY_EXIT_CODES_HELP = exit_codes_help(
    ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS, ExitCode.DATA_LOST, ExitCode.DAMAGED, ExitCode.REPAIRED
)
CHECKPOINTS_EXIT_CODES_HELP = exit_codes_help(ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS, ExitCode.DAMAGED)

DATA_EXIT_CODES_HELP = exit_codes_help(ExitCode.DONE, ExitCode.OPTIONS, ExitCode.DAMAGED)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Training of recommendation models over parameter servers that may die. " + EXIT_CODES_HELP,
)

checkpoints = typer.Typer(
    no_args_is_help=True, help="Look at checkpoints, check them and remove old ones. " + CHECKPOINTS_EXIT_CODES_HELP
)
app.add_typer(checkpoints, name="checkpoints")

data = typer.Typer(no_args_is_help=True, help="Look at files of data to train on. " + DATA_EXIT_CODES_HELP)
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ecrec {ecrec.__version__}")
        raise typer.Exit()


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    pass


SchedulerOption = Annotated[
    str,
    typer.Option(
        help="Endpoint of the scheduler, tcp://HOST:PORT or ipc://PATH, zk://HOST:PORT/PATH or file:///PATH. A local "
        "run's is in the first line that it prints."
    ),
]

DASHBOARD_HELP = "HOST:PORT: show it there, to everybody who reaches it, without encryption; port 0 takes a free one."

CurveDirOption = Annotated[str | None, typer.Option(help=CURVE_DIR_HELP)]
NoProgressOption = Annotated[
    float,
    typer.Option(
        min=1.0, help="The longest time without progress, in seconds; then it ends, and says for whom it waited."
    ),
]


@app.command(help="Start a whole cluster on this machine and train a DLRM. " + EXIT_CODES_HELP)
@command(TrainOptions)
def train(options: TrainOptions) -> None:
    from ecrec.train.progress import make_progress, summary
    from ecrec.train.run import run_training

    options = with_files(options)
    for warning in check_options(options):
        _say(f"warning: {warning}")
    console = Console(file=Informing(sys.stdout))  # type: ignore[arg-type]
    result = run_training(options, lambda: make_progress(console, options.steps, options.quiet, options.dealt))
    if not options.quiet:
        console.print(summary(result))
    for text in result["kills_not_done"]:
        _say(f"warning: --kill {text} was not done: training had ended")
    if result["bad_rows"]:
        _say(f"warning: {result['bad_rows']} bad rows of the data were skipped, the first one: {result['bad_row']}")
    for rewind in result["rewinds"]:
        _say(
            "warning: more servers died than the code tolerates: training went back to checkpoint "
            f"{rewind['checkpoint']}, and repeated {rewind['examples_repeated']:,} examples"
        )
    for loss in result["losses"]:
        _say(f"warning: {loss['text']}")
    if result["lost_updates"] > result["updates_damaged"] or result["parity_ok"] is False:
        raise typer.Exit(ExitCode.DAMAGED)


@app.command(help="Show the shards, workers and last events of a running cluster.")
def status(
    scheduler: SchedulerOption,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; with --watch one line for each look, and one with an error.")
    ] = False,
    story: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What one process went through last: scheduler, or ps:2 for shard 2."),
    ] = None,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.redundancy import redundancy
    from ecrec.launch.tools.status import plain, render, status_console
    from ecrec.launch.tools.verify import cluster_state

    if story is not None:
        from ecrec.launch.tools.story import story as ask
        from ecrec.protocol.story import text

        told = ask(scheduler, story, curve_dir=curve_dir)
        print(json.dumps(plain(told)) if as_json else text(told.events))
        return
    if as_json:

        def looked() -> dict[str, object]:
            state = cluster_state(scheduler, curve_dir=curve_dir)
            return {**plain(state), "redundancy": redundancy(state)}

        if not watch:
            print(json.dumps(looked()))
        while watch:
            try:
                line = looked()
            except ClusterError as error:
                line = {"error": str(error)}
            print(json.dumps({"at": time.time(), **line}), flush=True)
            time.sleep(every)
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
    name="dashboard",
    help="Show a running cluster as a live page for a browser, until Ctrl-C: training, servers, deaths and recoveries. "
    "It changes nothing. " + exit_codes_help(ExitCode.FAILED, ExitCode.OPTIONS, ExitCode.INTERRUPTED),
)
def show_dashboard(
    scheduler: SchedulerOption,
    http: Annotated[str, typer.Option(help=DASHBOARD_HELP)] = DEFAULT_ADDRESS,
    allow_host: Annotated[list[str] | None, typer.Option(help=ALLOW_HOST_HELP)] = None,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.tools.dashboard import dashboard

    with dashboard(scheduler, http, allow_host or (), curve_dir) as url:
        print(url, flush=True)
        while True:
            signal.pause()


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
    from ecrec.launch.tools.verify import describe_bad, scrub

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
        raise typer.Exit(ExitCode.DAMAGED if left else ExitCode.REPAIRED)


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
    help="What a model needs of servers and network: memory, bytes a second and the time of a recovery, by arithmetic. "
    + exit_codes_help(ExitCode.DONE, ExitCode.OPTIONS)
)
def size(
    table: Annotated[list[str], typer.Option(metavar="ROWSxFLOATS", help="Such as 1000000x64; repeatable.")],
    optimizer: Annotated[str, typer.Option(help="Of the tables.")] = "rowwise-adagrad",
    code: Annotated[str, typer.Option(help="K+R.")] = "4+1",
    shards: Annotated[int, typer.Option(min=1, help="Parameter servers, of all groups, without spares.")] = 5,
    groups: Annotated[int | None, typer.Option(min=1, help="Coding groups.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a step, each with one row of each table.")] = 512,
    steps_per_s: Annotated[float, typer.Option(help="Of all workers together.")] = 10.0,
    touched: Annotated[float, typer.Option(help="The part of the rows that is ever trained.")] = 1.0,
    network_gbit_s: Annotated[float, typer.Option(help="Of each server.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    import msgspec

    from ecrec.launch.tools.sizing import lines, parse_table
    from ecrec.launch.tools.sizing import size as reckon

    tables = [parse_table(text) for text in table]
    found = reckon(tables, optimizer, code, shards, groups, batch, steps_per_s, touched, network_gbit_s)
    print(json.dumps(msgspec.to_builtins(found)) if as_json else "\n".join(lines(found, code)))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Train a script on many hosts over ssh: prepare them, run the scheduler, servers and workers that HOSTS "
    "names, start again what ends, and keep all logs in one directory. docs/clusters.md shows HOSTS. "
    + EXIT_CODES_HELP,
)
def launch(
    hosts: Annotated[str, typer.Argument(metavar="HOSTS", help="A TOML file: which host runs what.")],
    script: Annotated[
        list[str],
        typer.Argument(metavar="SCRIPT [ARGUMENTS]...", help="A Python file, which goes to the hosts of workers."),
    ],
    out: Annotated[str, typer.Option(help="Where logs, keys and the last state of the cluster go.")] = "ecrec-run",
    install: Annotated[
        str | None,
        typer.Option(metavar="WHEEL", help="Install this wheel of ecrec on each host, into an environment of its own."),
    ] = None,
) -> None:
    from ecrec.launch.tools.hosts import Launch, read_hosts

    given = {"--out": out, "--install": install}
    rest = list(script)
    # Those behind HOSTS: from there on the command's own options are told from the script's by where they stand.
    while rest and rest[0].startswith("--"):
        name, has_value, value = rest.pop(0).partition("=")
        if name == "--":
            break
        if name not in given or not (has_value or rest):
            raise ConfigurationError(f"{name}: expected --out DIR or --install WHEEL, and then the script")
        given[name] = value if has_value else rest.pop(0)
    if not rest:
        raise ConfigurationError("launch: there is no script: ecrec launch HOSTS SCRIPT [ARGUMENTS]...")
    Launch(read_hosts(hosts), rest[0], rest[1:], Path(given["--out"] or out), _say).run(given["--install"])


@app.command(
    help="Measure the native core and the push and pull path, compared with each peer that is installed, alternating. "
    "Without a SUITE all are run. A peer that is missing is skipped, and a line says so. "
    + exit_codes_help(ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS)
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
    from ecrec.launch.tools.bench import run_bench

    if not run_bench(suites or [], case, rounds, kernel, json_path):
        raise typer.Exit(ExitCode.FAILED)


@app.command(
    help="Run the evaluation: each claim of CLAIMS.md, measured on this machine, with tables, plots and a summary. "
    "What is done already is not run again. A target that is missed is no failure. "
    + exit_codes_help(ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS)
)
def reproduce(
    scale: Annotated[str, typer.Option(help="smoke (minutes), laptop (an hour) or paper (days).")] = "laptop",
    only: Annotated[str | None, typer.Option(metavar="C1,C3", help="Only these claims.")] = None,
    out: Annotated[str, typer.Option(help="Folder for the results; each scale has its own in it.")] = "results",
    data: Annotated[str | None, typer.Option(help="A Criteo file, plain or .gz; without, generated rows.")] = None,
    on: Annotated[
        str,
        typer.Option(
            help="Where servers and workers run: local, on this machine, or ray: on the nodes of a Ray (RAY_ADDRESS), "
            "each server on one of its own. All nodes must see --out and --data."
        ),
    ] = "local",
    claims: Annotated[bool, typer.Option("--claims", help="Print CLAIMS.md, and run nothing.")] = False,
) -> None:
    from ecrec.reproduce.plan import SCALES, load
    from ecrec.reproduce.summary import claims_text

    plan = load()
    if claims:
        print(claims_text(plan), end="")
        return
    if scale not in SCALES:
        raise ConfigurationError(f"--scale {scale!r}: expected one of {', '.join(SCALES)}")
    from ecrec.reproduce.runner import SUMMARY, Runner
    from ecrec.train.options import ENGINES

    if on not in ENGINES:
        raise ConfigurationError(f"--on {on!r}: expected one of {', '.join(ENGINES)}")
    done = Runner(plan, scale, only, Path(out), data, lambda text: print(text, flush=True), on=on).run()
    for finding in done.findings:
        print(f"{finding.name}: {finding.verdict}: {finding.claim.title}")
    print(f"{len(done.failed)} runs failed, {len(done.skipped)} skipped; {done.folder / SUMMARY}")
    if done.failed:
        raise typer.Exit(ExitCode.FAILED)


@data.command(
    "check",
    help="Read files of data to their ends, and name all that is wrong with file and line or row. "
    + DATA_EXIT_CODES_HELP,
)
def check_data(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Paths or URLs of any format that `ecrec train` reads.")
    ],
    columns: Annotated[
        str | None, typer.Option(help="A TOML file: which column of CSV and Parquet files is what.")
    ] = None,
    plain_ids: Annotated[
        int | None,
        typer.Option(min=1, metavar="ROWS", help="Ids are rows of tables of so many: name those that are not."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Defects of a file that are told one by one.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    from ecrec.launch.tools.data_files import check_files

    if not check_files(files, columns, plain_ids, show, as_json):
        raise typer.Exit(ExitCode.DAMAGED)


UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="Where the checkpoints are: a folder, or what fsspec reaches, such as s3://BUCKET/PATH."
    ),
]


@checkpoints.command("list", help="Which checkpoints there are. " + CHECKPOINTS_EXIT_CODES_HELP)
def list_checkpoints(
    url: UrlArgument, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    from ecrec.checkpoint.reading import State, checkpoints
    from ecrec.launch.tools.checkpoints import listed

    found = checkpoints(url)
    if as_json:
        print(json.dumps([{**info._asdict(), "state": info.state.value} for info in found]))
    elif found:
        for line in listed(found):
            print(line)
    if not found:
        _say(f"{shown(url)}: there are no checkpoints")
        raise typer.Exit(ExitCode.FAILED)
    if any(info.state in (State.DAMAGED, State.BASE_LOST, State.UNREADABLE) for info in found):
        raise typer.Exit(ExitCode.DAMAGED)


@checkpoints.command(
    "check",
    help="Read every file of a checkpoint, and compare all checksums and rows with what they must be. "
    + CHECKPOINTS_EXIT_CODES_HELP,
)
def check_checkpoint(
    url: UrlArgument,
    number: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; the newest complete one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    from ecrec.checkpoint.checking import check
    from ecrec.launch.tools.checkpoints import outcome, progress

    with progress("checking") as report:
        checked = check(url, number, report)
    if as_json:
        problems = [problem._asdict() for problem in checked.problems]
        print(json.dumps({**checked._asdict(), "problems": problems, "is_whole": checked.is_whole}))
    else:
        for line in outcome(checked):
            print(line)
    if not checked.is_whole:
        raise typer.Exit(ExitCode.DAMAGED)


@checkpoints.command(
    "prune",
    help="Remove all but the newest complete checkpoints, and unfinished or damaged ones that are older than the "
    "newest complete one. " + CHECKPOINTS_EXIT_CODES_HELP,
)
def prune_checkpoints(
    url: UrlArgument,
    keep: Annotated[int, typer.Option(min=1, help="How many complete ones stay.")],
    broken: Annotated[
        bool, typer.Option("--broken", help="Unfinished ones that are newer go too; no cluster may be writing there.")
    ] = False,
) -> None:
    from ecrec.checkpoint.checking import prune
    from ecrec.launch.tools.checkpoints import pruned

    for line in pruned(prune(url, keep, broken)):
        print(line)


@app.command(
    help="Write tables of a checkpoint as files that others read. "
    + exit_codes_help(ExitCode.DONE, ExitCode.FAILED, ExitCode.OPTIONS)
)
def export(
    url: UrlArgument,
    to: Annotated[
        str, typer.Option(help="safetensors, torch, torchrec, dcp (torch.distributed.checkpoint) or parquet.")
    ],
    out: Annotated[str, typer.Option(help="A new folder for the files.")],
    number: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; the newest complete one.")] = None,
    table: Annotated[list[str] | None, typer.Option(help="Only this table; repeatable.")] = None,
    with_state: Annotated[bool, typer.Option("--with-state", help="The optimizer's state, too.")] = False,
    names: Annotated[
        str | None, typer.Option(help="What the weights are called, such as model.ebc.embedding_bags.{table}.weight.")
    ] = None,
) -> None:
    from ecrec.checkpoint.export import export as write
    from ecrec.launch.tools.checkpoints import progress

    with progress("exporting") as report:
        done = write(
            url, to, out, number=number, tables=table, with_state=with_state, names=names, progress=report
        )  # fmt: skip
    for warning in done.warnings:
        _say(f"warning: {warning}")
    for name in done.files:
        print(Path(out) / name)
    print(f"checkpoint {done.checkpoint}: {done.rows} rows in tables {', '.join(done.tables)}, {done.touched} trained")


@app.command(
    help="Have a running cluster write a checkpoint, while training goes on. Every server writes its own part: on "
    "several hosts a path must be on a file system that they share."
)
def save(
    url: Annotated[str, typer.Argument(help="A path, or a URL such as s3://bucket/run-7.")],
    scheduler: SchedulerOption,
    every: Annotated[str | None, typer.Option(help="Like 10m: again whenever that time has passed.")] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Remove all but so many complete ones; default: none.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one.")] = 600.0,
    incremental: Annotated[
        bool,
        typer.Option("--incremental", help="Write only what changed since the one before, if this cluster wrote that."),
    ] = False,
    increments_max: Annotated[
        int, typer.Option(min=1, help="With --incremental: after so many write everything again.")
    ] = 16,
    increments_share: Annotated[
        float, typer.Option(min=0.0, help="Or when they have so many times the bytes of what they begin with.")
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate-mb-s", help="All servers together write at most so many megabytes a second; default: what is idle."
        ),
    ] = None,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.checkpoint.saving import Increments
    from ecrec.launch.saving import SaysWaiting, described
    from ecrec.launch.saving import save as write
    from ecrec.train.kills import parse_interval

    increments = Increments(increments_max, increments_share) if incremental else None
    every_s = None if every is None else parse_interval("--every", every)
    while True:
        began = time.monotonic()
        try:
            done = write(
                scheduler, url, timeout, keep, curve_dir,
                increments=increments, rate_mb_s=rate, waits=SaysWaiting(_say),
            )  # fmt: skip
        except EcrecError as error:
            if every_s is None or isinstance(error, ConfigurationError | DataLostError):
                raise
            _say(f"error: {error}")
        else:
            seconds = time.monotonic() - began
            print(f"{described(done)} in {seconds:.1f} s")
        if every_s is None:
            return
        time.sleep(max(0.0, began + every_s - time.monotonic()))


@app.command(
    help="Bring a checkpoint into a cluster that was just started, of any number of shards. Data sets go on with the "
    "next example."
)
def restore(
    url: Annotated[str, typer.Argument(help="Where the checkpoints are, or one of them.")],
    scheduler: SchedulerOption,
    number: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; the newest complete one.")] = None,
    code: Annotated[str | None, typer.Option(help="K+R of the tables in this cluster; the one that they had.")] = None,
    into_tables: Annotated[
        bool,
        typer.Option("--into-tables", help="The cluster has the tables of a model that nobody trains: fill those."),
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --into-tables: take what fits; else any difference is an error.")
    ] = False,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="With --into-tables, OLD=NEW: what a table of the checkpoint is called here."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for a cluster that was just started, and is complete.")
    ] = 0.0,
    timeout: NoProgressOption = 60.0,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.checkpoint.fitting import parse_names
    from ecrec.checkpoint.restore import restore as bring
    from ecrec.launch.environment import curve_keys
    from ecrec.launch.resize import not_complete, wait_for_cluster
    from ecrec.protocol.placement import CodeSpec

    if not into_tables and (partial or map_):
        raise ConfigurationError(f"{'--partial' if partial else '--map'}: expected --into-tables with it")
    if into_tables and code is not None:
        raise ConfigurationError("--code: with --into-tables the tables have their codes already")
    if wait and not into_tables:
        wait_for_cluster(scheduler, not_complete, wait, _say, curve_dir)
    began = time.monotonic()
    spec = None if code is None else CodeSpec.parse(code)
    done = bring(
        scheduler, url, number, spec, keys=curve_keys(curve_dir), into_tables=into_tables,
        names=parse_names("--map", map_ or []), partial=partial, timeout_s=timeout,
    )  # fmt: skip
    for difference in done.differences:
        _say(f"warning: not as in the checkpoint: {difference}")
    print(f"{done.rows:,} rows, {done.nbytes / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")


@app.command(
    "import",
    help="Set the weights of the tables of a cluster, which nobody trains yet, to those of other files: a warm start. "
    "FILE is a .safetensors file or a folder of such, a state dict of torch.save, or a directory of "
    "torch.distributed.checkpoint. Exit codes: 0 done, 1 failed, or a file is damaged, 2 it does not fit.",
)
def import_(
    path: Annotated[str, typer.Argument(metavar="FILE", help="Where the weights are.")],
    scheduler: SchedulerOption,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="TENSOR=TABLE: which table a tensor is of; repeatable.")
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="What the weights are called, such as model.ebc.embedding_bags.{table}.weight.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what fits; else any difference is an error.")
    ] = False,
    timeout: NoProgressOption = 60.0,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.checkpoint.fitting import parse_names
    from ecrec.checkpoint.importing import import_weights
    from ecrec.launch.environment import curve_keys

    began = time.monotonic()
    done = import_weights(
        scheduler, path, names=parse_names("--map", map_ or []), pattern=names, partial=partial,
        keys=curve_keys(curve_dir), timeout_s=timeout,
    )  # fmt: skip
    for difference in done.differences:
        _say(f"warning: {difference}")
    if done.unused:
        _say(f"no table took: {', '.join(done.unused)}")
    for table, tensor in done.tables.items():
        print(f"{table}: {tensor}")
    print(f"{done.rows:,} rows, {done.nbytes / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")


@app.command(
    help="Go on with another number of servers: a checkpoint is written, the cluster ends, and another one begins with "
    "it. An `ecrec train` (--run-dir) does all of that by itself. Of a cluster that was started by hand (--scheduler), "
    "the command writes the checkpoint, waits for the new cluster, and restores it: it starts and ends no process. "
    "Exit codes: 0 done, 1 failed, 2 invalid options; training goes on as it was."
)
def resize(
    shards: Annotated[int, typer.Option(min=1, help="Parameter servers from now on, of all coding groups.")],
    code: Annotated[str | None, typer.Option(help="K+R of the tables from now on; the one that they have.")] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Coding groups from now on, with --run-dir.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="The --run-dir of a running `ecrec train`.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Endpoint of the scheduler of a cluster by hand.")] = None,
    url: Annotated[str | None, typer.Option(help="Where its checkpoint is written, with --scheduler.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for all of it.")] = 600.0,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch import resize as size

    if (run_dir is None) == (scheduler is None):
        raise ConfigurationError("expected --run-dir of an `ecrec train`, or else --scheduler and --url")
    if run_dir is not None:
        done = size.ask(Path(run_dir), shards, groups, code, timeout)
        print(
            f"training goes on with {shards} servers; it stood still for {done.seconds_stood_still:.1f} s, and "
            f"{done.examples_repeated:,} examples are repeated (checkpoint {done.checkpoint} at {shown(done.url)})"
        )
        return
    if url is None or groups is not None:
        raise ConfigurationError("--scheduler: expected --url with it, and no --groups, which the new scheduler has")
    by_hand = size.by_hand(str(scheduler), url, shards, code, timeout, _say, curve_dir)
    print(
        f"checkpoint {by_hand.checkpoint}: {by_hand.rows:,} rows are in the new cluster; workers may start. From the "
        f"checkpoint to now it took {by_hand.seconds:.1f} s"
    )


@app.command(
    help="Have servers leave without loss, one after the other: a spare takes over while each serves on. Names are as "
    "`ecrec status` shows them: ps:3, or host:NAME for all of a host. Without a spare a server leaves when no data is "
    "lost."
)
def drain(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="ps:SHARD or host:NAME.")],
    scheduler: SchedulerOption,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="They stay after all.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for each server.")] = 600.0,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.tools.leaving import Leaving

    leaving = Leaving(scheduler, print, timeout, curve_dir)
    if withdraw:
        leaving.withdraw(names)
    else:
        leaving.drain(names)


@app.command(
    help="Restart all servers of a running cluster, spares first, then one after the other, each handed over to a "
    "spare. The service manager of each host starts the new processes."
)
def restart(
    scheduler: SchedulerOption,
    rolling: Annotated[bool, typer.Option("--rolling", help="One after the other; the only way there is.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for each server, and for what starts it.")] = 600.0,
    curve_dir: CurveDirOption = None,
) -> None:
    from ecrec.launch.tools.leaving import Leaving

    if not rolling:
        raise typer.BadParameter("a cluster is restarted one server after the other: say so", param_hint="--rolling")
    Leaving(scheduler, print, timeout, curve_dir).restart()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _on_sigterm(number: int, frame: object) -> NoReturn:
    # As Ctrl-C: the way out leads past everything that stops the children.
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        run(app, "ECREC")
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except EcrecError as error:
        _say(f"error: {error}")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

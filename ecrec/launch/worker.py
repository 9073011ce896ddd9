"""``ecrec-worker``: runs a training script as one or several workers of a cluster, as torchrun does.

The script finds RANK, LOCAL_RANK, WORLD_SIZE and ECREC_SCHEDULER in its environment; `ecrec.connect()` reads
them.
"""

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from ecrec.errors import ConfigurationError, EcrecError
from ecrec.exit_codes import ExitCode, exit_code, exit_codes_help
from ecrec.launch import variables, worker_pages
from ecrec.launch.connect import CODE, LOCAL_RANK, RANK, SCHEDULER, WORLD_SIZE
from ecrec.launch.environment import (
    CURVE_DIR,
    CURVE_DIR_HELP,
    WAIT_TIMEOUT_HELP,
    WAIT_TIMEOUT_MS,
    curve_keys,
    keep_freed_memory,
)
from ecrec.launch.flags import Flag
from ecrec.launch.program import Program
from ecrec.launch.threads import cores, cores_of_quota, thread_environment, worker_threads
from ecrec.launch.watched import HTTP_HELP
from ecrec.protocol.placement import CodeSpec
from ecrec.termination import sigterm_as_exit
from ecrec.tether import module_command

_POLL_S = 0.05


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``ecrec-worker``, each in one place."""

    module: Annotated[bool, Flag("SCRIPT is the name of a module.", short="-m")] = False
    scheduler: Annotated[str | None, Flag("Endpoint of the scheduler.")] = None
    nproc_per_node: Annotated[int, Flag("Workers to start on this machine.", at_least=1)] = 1
    rank: Annotated[int | None, Flag("Rank of the first of them.", at_least=0)] = None
    world_size: Annotated[int | None, Flag("Workers on all machines.", at_least=1)] = None
    code: Annotated[
        str | None, Flag("K+R: of tables for which the script names no code. Default: K+1 over all shards of a group.")
    ] = None
    curve_dir: Annotated[str | None, Flag(CURVE_DIR_HELP)] = None
    wait_timeout_ms: Annotated[int | None, Flag(WAIT_TIMEOUT_HELP, at_least=1)] = None
    http: Annotated[str | None, Flag(f"{HTTP_HELP} Of several workers each has the next port.")] = None


def worker(options: WorkerOptions, script: str, arguments: Sequence[str]) -> int:
    """Run the script as one or several workers; returns the exit code. SIGTERM raises SystemExit in the script: its
    pushes become durable, and its leases go to others at once."""
    with sigterm_as_exit():
        return _worker(options, script, arguments)


def _worker(options: WorkerOptions, script: str, arguments: Sequence[str]) -> int:
    module, count, http = options.module, options.nproc_per_node, options.http
    given = _settle(options.scheduler, count, options.rank, options.world_size)
    if options.code is not None:
        given[CODE] = str(CodeSpec.parse(options.code))
    if options.curve_dir:
        curve_keys(options.curve_dir)
        given[CURVE_DIR] = options.curve_dir
    if options.wait_timeout_ms is not None:
        given[WAIT_TIMEOUT_MS] = str(options.wait_timeout_ms)
    if not module and not Path(script).is_file():
        raise ConfigurationError(f"there is no script {script}; give -m before the name of a module")
    if count > 1:
        return _run_many(given, count, module, script, arguments, http)
    if (allowed := cores_of_quota(Path("/proc/self"))) is not None:  # torch sees all cores of the machine
        given = {**thread_environment(min(allowed, cores())), **os.environ, **given}
    os.environ.update(given)
    if http:
        shown = worker_pages.serve("--http", http, int(given[LOCAL_RANK]))
        print(f"worker {given[RANK]} is shown at {shown.url}", file=sys.stderr)
    return _run(module, script, arguments)


def _settle(scheduler: str | None, count: int, rank: int | None, world_size: int | None) -> dict[str, str]:
    """The environment of the first worker. Raises ConfigurationError for numbers that do not fit."""
    if not scheduler:
        raise ConfigurationError(f"no scheduler: give --scheduler, or set {SCHEDULER}")
    first = rank or 0
    world = first + count if world_size is None else world_size
    if first + count > world:
        raise ConfigurationError(f"ranks {first} to {first + count - 1} do not fit into a world of {world} workers")
    local = os.environ.get(LOCAL_RANK, "0")
    return {SCHEDULER: scheduler, RANK: str(first), WORLD_SIZE: str(world), LOCAL_RANK: local}


def _run(module: bool, script: str, arguments: Sequence[str]) -> int:
    keep_freed_memory()
    sys.argv[:] = [script, *arguments]
    sys.path.insert(0, os.getcwd() if module else str(Path(script).resolve().parent))
    try:
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except EcrecError as error:
        traceback.print_exc()
        sys.last_value = error  # as of one that nobody catches, for handlers at the exit
        return exit_code(error)
    return ExitCode.DONE


def _run_many(
    given: dict[str, str], count: int, module: bool, script: str, arguments: Sequence[str], http: str | None
) -> int:
    """Start the workers, wait for all; the first that fails ends the others. Returns its exit code."""
    threads = thread_environment(worker_threads(cores(), count))
    options = [*(["--http", http] if http else []), *(["-m"] if module else [])]
    command = module_command("ecrec.launch.worker", *options, script, *arguments)
    first = int(given[RANK])
    environment = variables.environment_of_children()  # with --nproc-per-node out of it they would start others
    workers = [
        subprocess.Popen(
            command,
            env={**threads, **environment, **given, RANK: str(first + i), LOCAL_RANK: str(i)},
        )
        for i in range(count)
    ]
    try:
        left = list(workers)
        while left:
            for process in list(left):
                try:
                    code = process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                left.remove(process)
                if code != 0:
                    print(f"worker {first + workers.index(process)} failed: {code}", file=sys.stderr)
                    return code if code > 0 else 128 - code
    finally:
        for process in workers:
            process.terminate()
        for process in workers:
            process.wait()
    return 0


program = Program(
    "ecrec-worker",
    variables.WORKER,
    "Run a training script as one or several workers. The script finds RANK, LOCAL_RANK, WORLD_SIZE and "
    "ECREC_SCHEDULER in its environment. The exit code is the script's; an error of ecrec that the script does not "
    "catch has its own. "
    + exit_codes_help(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.OPTIONS,
        ExitCode.DATA_LOST,
        ExitCode.REPLACED,
        ExitCode.CLEANUP,
        ExitCode.INTERRUPTED,
    ),
    WorkerOptions,
    worker,
    script_help="A Python file, or with -m a module.",
)


def main() -> None:
    program()


if __name__ == "__main__":
    main()

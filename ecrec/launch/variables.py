"""Every flag of every program is an environment variable, too: of ``ecrec-ps --shard`` it is ECREC_PS_SHARD.

The names are made of the flags; `--help` shows them. What is given on the command line counts before a variable, a
variable of one program before one of all programs (`COMMON`). An empty variable is none.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

PROGRAMS = PS, SCHEDULER, WORKER = "ECREC_PS", "ECREC_SCHEDULER", "ECREC_WORKER"
"""What the variables of programs begin with that others start."""

COMMON = {
    "--scheduler": "ECREC_SCHEDULER",
    "--curve-dir": "ECREC_CURVE_DIR",
    "--wait-timeout-ms": "ECREC_WAIT_TIMEOUT_MS",
}
"""Flags that mean the same everywhere -> a variable for all programs."""

LAUNCHERS = {"--rank": "RANK", "--world-size": "WORLD_SIZE"}
"""Flags of `ecrec-worker` -> what torchrun, Kubeflow and others set."""

_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT\w*)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
"""What Kubernetes sets in every pod for a service with a name such as ``ecrec-ps``."""


def run(app: typer.Typer, prefix: str) -> Any:
    """Run a program with the arguments of this process. ``prefix``: of its variables, such as ``ECREC_PS``."""
    return with_variables(app, prefix)()


def with_variables(app: typer.Typer, prefix: str) -> Any:
    """The click command of a program, each of whose flags has its variable."""
    command = get_command(app)
    known = dict(_name(command, prefix))
    _warn_of_unknown(known)
    return command


def environment_of_children() -> dict[str, str]:
    """The environment for programs of ecrec whose flags are all given: without the variables of their flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}


_PREFIXES = tuple(f"{program}_" for program in PROGRAMS)


def _name(command: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Give each flag its variable; yields what the variables of a command begin with, and all of them."""
    if commands := getattr(command, "commands", None):
        for name, each in commands.items():
            yield from _name(each, f"{prefix}_{_upper(name)}")
        return
    names = []
    for param in command.params:
        flag = next((opt for opt in getattr(param, "opts", ()) if opt.startswith("--")), None)
        if flag is None:
            continue
        names.append(f"{prefix}_{_upper(flag.removeprefix('--'))}")
        more = COMMON.get(flag) or (LAUNCHERS.get(flag) if prefix == WORKER else None)
        param.envvar = [names[-1], more] if more else names[-1]
    yield f"{prefix}_", names


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


def _warn_of_unknown(known: dict[str, list[str]]) -> None:
    """A variable that is no flag's would change nothing, and nobody would know."""
    names = {name for each in known.values() for name in each}
    for name in sorted(os.environ):
        if not name.startswith(tuple(known)) or name in names or _OF_KUBERNETES.search(name):
            continue
        close = difflib.get_close_matches(name, names, 1)
        print(f"warning: {name} is no option{f': is it {close[0]}?' if close else ''}", file=sys.stderr)

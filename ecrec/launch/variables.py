"""Every flag of every program is an environment variable, too: of ``ecrec-ps --shard`` it is ECREC_PS_SHARD.

The names are made of the flags; `--help` shows them. What is given on the command line counts before a variable, a
variable of one program before one of all programs (`COMMON`). An empty variable is none.
"""

import difflib
import os
import re
import sys

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


def variables_of(prefix: str, flag: str) -> tuple[str, ...]:
    """Those of a flag such as ``--shard``; the first one that is set counts. ``prefix``: such as ``ECREC_PS``."""
    more = COMMON.get(flag) or (LAUNCHERS.get(flag) if prefix == WORKER else None)
    own = variable_of(prefix, flag.removeprefix("--"))
    return (own, more) if more else (own,)


def variable_of(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('-', '_').upper()}"


def environment_of_children() -> dict[str, str]:
    """The environment for programs of ecrec whose flags are all given: without the variables of their flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}


_PREFIXES = tuple(f"{program}_" for program in PROGRAMS)


def warn_of_unknown(known: dict[str, list[str]]) -> None:
    """Say on stderr which variables are no flag's: they change nothing, and nobody would know.

    ``known``: what the variables of a command begin with -> all of them.
    """
    names = {name for each in known.values() for name in each}
    for name in sorted(os.environ):
        if not name.startswith(tuple(known)) or name in names or _OF_KUBERNETES.search(name):
            continue
        close = difflib.get_close_matches(name, names, 1)
        print(f"warning: {name} is no option{f': is it {close[0]}?' if close else ''}", file=sys.stderr)

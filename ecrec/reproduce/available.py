"""What cannot be measured with this ecrec, or on this machine, and why."""

import inspect
from collections.abc import Callable
from functools import cache

from ecrec.launch.saving import save
from ecrec.reproduce.plan import INCREMENTAL, Run
from ecrec.reproduce.resources import why_no_cpu_limit, why_no_namespace
from ecrec.train.options import LOCAL


def why_not(run: Run, on: str = LOCAL) -> str:
    """Why a run cannot be done; empty if it can. ``on``: where its processes are."""
    if run.mode.unavailable:
        return run.mode.unavailable
    if on != LOCAL and (run.resources.cores is not None or run.resources.mbit_s is not None):
        return f"cores and networks of other hosts cannot be limited (--on {on})"
    checks: list[tuple[bool, Callable[[], str]]] = [
        (run.mode.checkpoint == INCREMENTAL, why_no_incremental),
        (run.resources.cores is not None, _cpu_limit),
        (run.resources.mbit_s is not None, _namespace),
    ]
    return next((why for needed, check in checks if needed and (why := check())), "")


def why_no_incremental() -> str:
    """Empty if checkpoints can have only what changed since the one before."""
    if "increments" in inspect.signature(save).parameters:
        return ""
    return "this version of ecrec writes no incremental checkpoints"


@cache
def _cpu_limit() -> str:
    return why_no_cpu_limit()


@cache
def _namespace() -> str:
    return why_no_namespace()

"""The native store's thresholds, drawn small so that few rows take the paths of many."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ecrec import _native
from simulation.plan import Plan

NO_THRESHOLDS = {"buffer_rows_max", "buffer_bytes_max", "collapse_errno"}
"""Knobs at which the store refuses a push, or that only say how a failure of a test looks."""

_set_tuning: Any = getattr(_native, "set_tuning", None)


def defaults() -> dict[str, int]:
    """All thresholds that can be drawn, as they are now; none where the store has no knobs."""
    tuning: Any = getattr(_native, "tuning", dict)
    return {name: value for name, value in sorted(tuning().items()) if name not in NO_THRESHOLDS}


@contextmanager
def native_store(plan: Plan) -> Iterator[None]:
    """The native store with the plan's thresholds and threads, and as it was afterwards.

    A threshold that this version of the store does not have is left out: a kept plan may name one.
    """
    before, threads = defaults(), _native.threads()
    wanted = {name: value for name, value in plan.tuning.items() if name in before}
    try:
        if wanted:
            _set_tuning(**wanted)
        _native.use_threads(plan.threads)
        yield
    finally:
        _native.use_threads(threads)
        if wanted:
            _set_tuning(**before)

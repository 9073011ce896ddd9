"""Checkpoints of a run: when one is written, and whether training stands meanwhile."""

import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ecrec.checkpoint import saving
from ecrec.errors import EcrecError
from ecrec.launch.saving import save
from ecrec.reproduce.control import Control
from ecrec.reproduce.plan import DALY, INCREMENTAL, STOP, Mode

KEEP = 2
"""The one before the newest stays until that is complete."""

SAVE_S = 120.0
CLOSE_S = 10.0
PAUSED_S = 30.0
INTERVAL_S_MIN = 0.5


def interval_s(mode: Mode, every: float | str, cost_s: float, mtbf_s: float | None) -> float:
    """From the end of one checkpoint to the beginning of the next, after one that took so many seconds.

    After Daly and Young the best one is sqrt(2 * cost * MTBF); the cost is what training loses by a checkpoint, which
    is a part of the time that it takes where training goes on meanwhile. Raises ValueError without an MTBF.
    """
    if every != DALY:
        return mode.every_times * float(every)
    if mtbf_s is None:
        raise ValueError("an interval after Daly needs a mean time between failures")
    return mode.every_times * max(INTERVAL_S_MIN, math.sqrt(2.0 * mode.cost_share * cost_s * mtbf_s))


class Holding:
    """Which workers stand still, and how to make them. ``heard`` is called by the thread that hears the workers."""

    def __init__(self, control: Control, workers: int) -> None:
        self._control, self._workers = control, workers
        self._paused: set[int] = set()
        self._holders = 0
        self._changed = threading.Condition()

    def heard(self, event: str, worker: int) -> None:
        with self._changed:
            if event == "paused":
                self._paused.add(worker)
            else:
                self._paused.discard(worker)
            self._changed.notify_all()

    def pause(self, timeout_s: float) -> bool:
        """Have all workers stand still; False if they did not within this time."""
        with self._changed:
            self._holders += 1
            self._control.pause()
            return self._changed.wait_for(lambda: len(self._paused) >= self._workers, timeout_s)

    def resume(self) -> None:
        with self._changed:
            self._holders -= 1
            if self._holders == 0:
                self._control.resume()

    @property
    def all_paused(self) -> bool:
        return len(self._paused) >= self._workers


class Checkpointer:
    """A thread that has checkpoints written: one at once if ``first``, which does not count, then one after another.

    What happens is told as (event, time, fields) by `take`.
    """

    def __init__(
        self, endpoint: str, url: str, mode: Mode, every: float | str, mtbf_s: float | None, holding: Holding,
        first: bool,
    ) -> None:  # fmt: skip
        self._endpoint, self._url, self._mode = endpoint, url, mode
        self._every, self._mtbf_s = every, mtbf_s
        self._holding = holding
        self._first = first
        self._told: queue.SimpleQueue[tuple[str, float, dict[str, Any]]] = queue.SimpleQueue()
        self._ending, self._beginning = threading.Event(), threading.Event()
        self.is_ready = threading.Event()
        """The first one is written; the clock may start."""
        self.error = ""
        self._thread = threading.Thread(target=self._run, name="reproduce-checkpoints", daemon=True)

    def begin(self) -> None:
        """The clock of the run has started."""
        self._beginning.set()

    def take(self) -> list[tuple[str, float, dict[str, Any]]]:
        """What was told since the last call."""
        found = []
        while not self._told.empty():
            found.append(self._told.get())
        return found

    def start(self) -> None:
        """Write the first one, if there is to be one, and wait for `begin`."""
        self._thread.start()

    def close(self) -> None:
        """Begin no further one. One that is being written is waited for as long as a cluster that lives may take; one
        of a cluster that is gone is not."""
        self._ending.set()
        self._beginning.set()
        if self._thread.ident is not None:
            self._thread.join(0.0 if sys.exc_info()[0] is not None else CLOSE_S)

    def _run(self) -> None:
        cost_s = 1.0
        if self._first:
            try:
                cost_s = self._write("first checkpoint", holds=False)
            except EcrecError as error:
                self.error = str(error)
        self.is_ready.set()
        self._beginning.wait()
        due = time.monotonic() + interval_s(self._mode, self._every, cost_s, self._mtbf_s)
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            begin = time.monotonic()
            try:
                cost_s = self._write("checkpoint", holds=self._mode.checkpoint == STOP)
            except EcrecError as error:
                self._tell("checkpoint failed", reason=str(error), seconds=time.monotonic() - begin)
            due = time.monotonic() + interval_s(self._mode, self._every, cost_s, self._mtbf_s)

    def _write(self, event: str, holds: bool) -> float:
        """Seconds from the moment when it was due until training goes on, or until it is complete."""
        begin = time.monotonic()
        self._tell(f"{event} begins")
        try:
            if holds and not self._holding.pause(PAUSED_S):
                raise EcrecError(f"the workers did not stand still within {PAUSED_S:.0f} s")
            done = save(self._endpoint, self._url, SAVE_S, KEEP, stops=self._ending.is_set, **self._options())
        finally:
            if holds:
                self._holding.resume()
        seconds = time.monotonic() - begin
        self._tell(f"{event} ends", seconds=seconds, bytes=done.nbytes, rows=done.rows)
        return seconds

    def _options(self) -> dict[str, Any]:
        if self._mode.checkpoint != INCREMENTAL:
            return {}
        return {"increments": vars(saving)["Increments"]()}

    def _tell(self, event: str, **fields: Any) -> None:
        self._told.put((event, time.monotonic(), fields))


class Task:
    """A call in a thread, whose result is looked for while others are heard."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.begin = time.monotonic()
        self.result: Any = None
        self.error: EcrecError | None = None
        self._thread = threading.Thread(target=self._run, name="reproduce-task", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except EcrecError as error:
            self.error = error

"""Checkpoints of a running cluster, one or one after another."""

import threading
import time
from collections.abc import Callable

from ecrec.checkpoint.checking import prune
from ecrec.checkpoint.saving import SAVE_TIMEOUT_S, Increments, save_checkpoint
from ecrec.errors import EcrecError
from ecrec.launch.environment import curve_keys
from ecrec.protocol.messages import SavingFigures
from ecrec.urls import shown

LAST_S = 60.0
"""For the one at the end of a run, whose servers nobody replaces any more."""


def save(
    endpoint: str,
    url: str,
    timeout_s: float = SAVE_TIMEOUT_S,
    keep: int | None = None,
    curve_dir: str | None = None,
    meanwhile: Callable[[SavingFigures | None], None] = lambda _: None,
    stops: Callable[[], bool] = lambda: False,
    increments: Increments | None = None,
    rate_mb_s: float | None = None,
    waits: Callable[[str], None] = lambda _: None,
) -> SavingFigures:
    """Have a checkpoint written, see `save_checkpoint`; then remove all but the newest ``keep`` complete ones and their
    bases."""
    done = save_checkpoint(
        endpoint, url, timeout_s, curve_keys(curve_dir), meanwhile, stops,
        increments=increments, rate_mb_s=rate_mb_s, waits=waits,
    )  # fmt: skip
    if keep is not None:
        prune(url, keep)
    return done


def described(done: SavingFigures) -> str:
    """A checkpoint that was written, for people."""
    since = f", what changed since {done.base}" if done.base else ""
    return f"checkpoint {done.checkpoint}: {done.rows:,} rows, {done.nbytes / 1e6:.1f} MB{since}"


class SaysWaiting:
    """Tells people why there is no checkpoint yet, each ``every_s`` seconds; the first time not for a busy moment."""

    def __init__(self, say: Callable[[str], None], every_s: float = 10.0, patience_s: float = 1.0) -> None:
        self._say, self._every_s = say, every_s
        self._due = time.monotonic() + patience_s

    def __call__(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every_s
            self._say(f"no checkpoint yet: {why.removesuffix(': ask again')}; trying again")


class SavingThread:
    """Has a checkpoint written every ``every_s`` seconds, and a last one at the end (`finish`).

    One that cannot be written is told of by ``say``, and does not end the training.
    """

    def __init__(
        self,
        endpoint: str,
        url: str,
        every_s: float | None,
        keep: int | None,
        say: Callable[[str], None],
        increments: Increments | None = None,
    ) -> None:
        self._endpoint, self._url, self._every_s, self._keep, self._say = endpoint, url, every_s, keep, say
        self._increments = increments
        self.written: list[SavingFigures] = []
        self.failed: list[str] = []
        self.error = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ecrec-checkpoints", daemon=True)

    def start(self) -> None:
        if self._every_s is not None:
            self._thread.start()

    def stop(self) -> None:
        """Begin no further one; one that is being written is waited for."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def finish(self) -> None:
        """Write the last one; ``error`` says why it could not be written, if so."""
        self.stop()
        try:
            self._save(LAST_S)
        except EcrecError as error:
            self.error = str(error)
            self.failed.append(self.error)

    def _run(self) -> None:
        assert self._every_s is not None
        due = time.monotonic() + self._every_s
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due += self._every_s
            try:
                self._save(SAVE_TIMEOUT_S, self._ending.is_set)
            except EcrecError as error:
                self.failed.append(str(error))
                self._say(f"no checkpoint: {error}")
            due = max(due, time.monotonic())

    def _save(self, timeout_s: float, stops: Callable[[], bool] = lambda: False) -> None:
        done = save(self._endpoint, self._url, timeout_s, self._keep, stops=stops, increments=self._increments)
        self.written.append(done)
        self._say(f"{described(done)} at {shown(done.url)}")

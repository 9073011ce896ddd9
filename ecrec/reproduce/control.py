"""How a run holds its workers: files in a directory that they look at."""

import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.002


class Control:
    """``go``: connect to the cluster. ``pause``: begin no further step. ``stop``: end."""

    def __init__(self, directory: Path) -> None:
        self._go, self._pause, self._stop = (directory / name for name in ("go", "pause", "stop"))

    # ------------------------------------------------------------------ the driver
    def go(self) -> None:
        self._go.touch()

    def pause(self) -> None:
        self._pause.touch()

    def resume(self) -> None:
        self._pause.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stop.touch()

    # ------------------------------------------------------------------ a worker
    @property
    def stopped(self) -> bool:
        return self._stop.exists()

    def wait_to_go(self) -> None:
        while not self._go.exists() and not self.stopped:
            time.sleep(POLL_S)

    def hold(self, tell: Callable[[str], None]) -> None:
        """Return when nobody pauses; ``tell`` is given "paused" and "resumed" if somebody does."""
        if not self._pause.exists():
            return
        tell("paused")
        while self._pause.exists() and not self.stopped:
            time.sleep(POLL_S)
        tell("resumed")

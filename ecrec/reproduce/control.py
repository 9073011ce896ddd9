"""How a run holds its workers: files in a directory that they look at. Those on other hosts have one each."""

import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.002


class Control:
    """``go``: connect to the cluster. ``pause``: begin no further step. ``stop``: end.

    ``tell``: is given each name, and whether its file is there now, for workers that do not see the directory.
    """

    def __init__(self, directory: Path, tell: Callable[[str, bool], None] = lambda name, is_set: None) -> None:
        self._go, self._pause, self._stop = (directory / name for name in ("go", "pause", "stop"))
        self._tell = tell

    # ------------------------------------------------------------------ the driver
    def go(self) -> None:
        self._set(self._go)

    def pause(self) -> None:
        self._set(self._pause)

    def resume(self) -> None:
        self._pause.unlink(missing_ok=True)
        self._tell(self._pause.name, False)

    def stop(self) -> None:
        self._set(self._stop)

    def _set(self, path: Path) -> None:
        path.touch()
        self._tell(path.name, True)

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

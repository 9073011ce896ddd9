"""What a worker shows over HTTP: its session, as soon as its script has one (``ecrec-worker --http``)."""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from ecrec.launch.http_server import HttpServer
from ecrec.launch.watched import Snapshot, Watched, counter, gauge

if TYPE_CHECKING:
    from ecrec.training.session import Session

NO_SESSION = "the script has no session yet"

_COUNTERS = {
    "steps": "Steps.",
    "examples": "Examples.",
    "bytes_pulled": "Bytes of rows pulled.",
    "bytes_pushed": "Bytes of row ids and gradients pushed.",
    "nonfinite_gradients": "Gradients that were infinite or not a number, and were set to zero.",
    "waited_s": "Seconds of waiting for the cluster.",
}
"""Figures of a session -> what they are; the last one is in seconds."""


class WorkerPages:
    """Of this process. The session is the last one that was attached; only plain numbers of it are read."""

    def __init__(self) -> None:
        self._session: Callable[[], Session | None] = lambda: None
        self._watched = Watched(self._look)

    def serve(self, option: str, address: str, offset: int) -> HttpServer:
        """Raises ConfigurationError, naming the option. ``offset``: of the port, for several workers of a host."""
        return self._watched.serve(option, address, offset)

    def attach(self, session: "Session") -> None:
        self._session = weakref.ref(session)  # one that a script drops ends

    def _look(self) -> Snapshot:
        session = self._session()
        if session is None:
            return Snapshot(NO_SESSION)
        machine, figures = session.machine, session.figures
        metrics = [
            *(
                counter(f"ecrec_{name.removesuffix('_s')}{'_seconds' * name.endswith('_s')}_total", what, figure)
                for name, what in _COUNTERS.items()
                for figure in [float(getattr(figures, name))]
            ),
            gauge("ecrec_longest_pause_seconds", "The longest wait for the cluster.", figures.longest_pause_s),
            gauge("ecrec_worker", "Its rank.", float(machine.worker)),
            gauge("ecrec_epoch", "Which life of the worker this process is.", float(machine.epoch)),
            gauge("ecrec_waits", "1: it waits for the cluster, for a second or more.", float(machine.waits)),
        ]
        return Snapshot(machine.failed or ("its session is closed" if session.closed else ""), metrics)


_here: WorkerPages | None = None


def serve(option: str, address: str, offset: int = 0) -> HttpServer:
    """Show the session of this process, once it has one."""
    global _here
    _here = WorkerPages()
    return _here.serve(option, address, offset)


def attach(session: "Session") -> None:
    """A session of this process was opened; nothing happens where nobody wants to see it."""
    if _here is not None:
        _here.attach(session)

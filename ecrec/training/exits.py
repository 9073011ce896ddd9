"""Sessions that nobody has closed when the interpreter ends: their last pushes are made durable, or their loss is said.

Without this a script that opens a session without ``with`` ends with exit code 0, whatever became of its pushes. One
that a script has dropped before, as a notebook does whose cell is run again, ends when Python notices.
"""

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import Any, Protocol

from ecrec.errors import EcrecError


class Open(Protocol):
    """The life of a session that is not closed."""

    is_dropped: bool

    def wait_until_over(self) -> None:
        """Of one that was dropped."""

    def end(self) -> str:
        """Close it. Returns what was lost with it; empty if nothing was."""


class LostAtExitError(EcrecError):
    """What makes Python end with its exit code for errors in the cleanup, 120."""


_open: dict[Open, tuple[int, int]] = {}
"""Life of a session -> process and thread that made it."""
_lost: list[str] = []


def opened(session: Open) -> None:
    if not _open and not _lost:
        atexit.register(_at_exit)
    _open[session] = os.getpid(), threading.get_ident()


def closed(session: Open) -> None:
    _open.pop(session, None)


def end_dropped() -> bool:
    """Wait until sessions that this process has dropped have ended: each would count as a worker that lives. Whether it
    has others, that are open."""
    if _open:
        gc.collect()  # a model and its session hold each other
    mine = [session for session, (process, _) in list(_open.items()) if process == os.getpid()]
    for session in mine:
        if session.is_dropped:
            session.wait_until_over()
    return not all(session.is_dropped for session in mine)


def lost(text: str) -> None:
    """Say at once what was lost where no exception can, and let the process end with an exit code that is not 0."""
    print(f"ecrec: {text}", file=sys.stderr, flush=True)
    if not _open and not _lost:
        atexit.register(_at_exit)
    _lost.append(text)


def _at_exit() -> None:
    running = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    for session, (process, thread) in list(_open.items()):
        # A child of `os.fork` owns none of them; a daemon thread may still be in the middle of a call of its own.
        if process != os.getpid() or (thread in running and not session.is_dropped):
            continue
        if text := session.end():
            lost(text)
    if _lost and not hasattr(sys, "last_value"):  # of an exception that was not caught the exit code is 1 anyway
        _end_with_an_error()


def _end_with_an_error() -> None:
    """An exception in a handler of `atexit` changes no exit code, and `os._exit` skips all other handlers. Python's own
    code for errors in the cleanup is that of a standard stream which cannot be flushed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, LostAtExitError):
            before(unraisable)

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.unraisablehook = hook
    sys.stdout = _Failing(sys.stdout)


class _Failing:
    """A standard stream that passes everything on, and cannot be flushed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        self._stream.flush()
        raise LostAtExitError("; ".join(_lost))

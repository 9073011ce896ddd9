"""SIGTERM to a script that trains: an exception, so that its blocks, and Python's handlers at the end, end all of it.

Python's default ends the process in the middle, and leaves temporary directories and leases behind. The exception is
raised in the main thread, and never while a machine of the protocol is in the middle of an event: it waits until that
call is over.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ecrec.exit_codes import ExitCode


class Terminated(SystemExit):
    """SIGTERM has come: the process ends with `ExitCode.INTERRUPTED` unless somebody catches this."""

    def __init__(self) -> None:
        super().__init__(int(ExitCode.INTERRUPTED))


class _Asked:
    """Whether SIGTERM has come, in a moment in which nothing may be raised."""

    def __init__(self) -> None:
        self.to_end = False
        self.owner = 0
        """The process that has the handler: a child of `os.fork` inherits it."""


_asked = _Asked()
_busy: list[Callable[[], bool]] = []


def add_busy(is_busy: Callable[[], bool]) -> None:
    """From now on nothing is raised while ``is_busy()`` in the main thread: who is busy calls `check` behind that."""
    _busy.append(is_busy)


def remove_busy(is_busy: Callable[[], bool]) -> None:
    if is_busy in _busy:
        _busy.remove(is_busy)


def is_asked() -> bool:
    """SIGTERM has come, and was not raised yet."""
    return _asked.to_end and threading.current_thread() is threading.main_thread()


def check() -> None:
    """Raise `Terminated` in the main thread if SIGTERM has come while it was busy, and it is no longer."""
    if is_asked() and not any(busy() for busy in _busy):
        _asked.to_end = False
        raise Terminated


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    # The second one ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getpid() != _asked.owner:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    _asked.to_end = True
    check()


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """While this lasts, SIGTERM raises `Terminated` in the main thread. Does nothing in another thread, which Python
    gives no signals, and where somebody handles SIGTERM already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    _asked.owner, _asked.to_end = os.getpid(), False
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        if os.getpid() == _asked.owner and signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

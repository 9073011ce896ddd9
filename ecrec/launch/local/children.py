"""Child processes: started, heard, and ended. Knows nothing of what they do."""

import contextlib
import json
import logging
import os
import queue
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ecrec.errors import ClusterError

log = logging.getLogger(__name__)

EVENTS_FD = "ECREC_EVENTS_FD"
"""Environment variable that names the descriptor to which a worker writes its events, one JSON object a
line."""

_READ_BYTES = 1 << 16
_ENDING_POLL_S = 0.005
"""A process whose pipe is closed is gone within microseconds; looks are this far apart."""


class Child:
    """One process: its name (for people), its log, and the pipe on which it reports."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], log: Path, pipe: int, end_signal: signal.Signals
    ) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.pipe = pipe
        self.end_signal = end_signal
        """Ends it at once."""
        self.ended = False
        self.unread = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - (1 << 16)))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def describe_end(self, lines: int = 15) -> str:
        """How it ended, the last lines of its log, and where the log is."""
        code = self.process.returncode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        tail = self.log_tail(lines)
        shown = "\n".join(f"    {line}" for line in tail.splitlines()) if tail else "    (nothing)"
        return f"{self.name} {how}; last lines of {self.log}:\n{shown}"


def _open_log(name: str, path: Path) -> BinaryIO:
    """Without room for a log there is none: it only informs."""
    try:
        return path.open("ab")
    except OSError as error:
        log.warning("%s has no log: %s: %s", name, path, error.strerror)
        return open(os.devnull, "ab")


class Line(NamedTuple):
    """A child wrote a JSON object."""

    child: Child
    data: dict[str, Any]


class Ended(NamedTuple):
    """A child is gone; everything it wrote was handed out before."""

    child: Child
    code: int


ChildEvent = Line | Ended


class _Spawner:
    """A thread that starts processes. Linux tells a child of the end of the *thread* that started it
    (`ecrec/tether.py`), and a user's may end long before the children are to."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[Callable[[], subprocess.Popen[bytes]] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[subprocess.Popen[bytes] | Exception] = queue.SimpleQueue()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="ecrec-spawner", daemon=True).start()

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        with self._lock:
            self._wanted.put(start)
            made = self._made.get()
        if isinstance(made, Exception):
            raise made
        return made

    def close(self) -> None:
        self._wanted.put(None)

    def _run(self) -> None:
        while (start := self._wanted.get()) is not None:
            try:
                self._made.put(start())
            except Exception as error:
                self._made.put(error)


class Children:
    """Starts processes and waits for what they say, all in the caller's thread.

    Each child reports on one pipe: its standard output, or (``events=True``) a pipe of its own whose number
    it finds in ECREC_EVENTS_FD. Everything else it writes goes into its log. The closed pipe tells of its
    end.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._ending: list[Child] = []
        self._running: list[Child] = []
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._closed = False
        self._spawner = _Spawner()

    def start(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        events: bool = False,
        end_signal: signal.Signals = signal.SIGTERM,
    ) -> Child:
        """Start a process in a session of its own, so that Ctrl-C reaches only the caller.

        ``end_signal``: what ends it at once. Raises ClusterError when it cannot be started.
        """
        read, write = os.pipe()
        try:
            with _open_log(name, log) as log_file:
                extra = {EVENTS_FD: str(write)} if events else {}
                process = self._spawner.run(
                    lambda: subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log_file if events else write,
                        stderr=log_file,
                        env={**environment, **extra},
                        pass_fds=(write,) if events else (),
                        start_new_session=True,
                    )
                )
        except OSError as error:
            os.close(read)
            raise ClusterError(f"cannot start {name}: {error}") from error
        finally:
            os.close(write)
        os.set_blocking(read, False)
        child = Child(name, process, log, read, end_signal)
        self._selector.register(read, selectors.EVENT_READ, child)
        self._running.append(child)
        return child

    @property
    def running(self) -> list[Child]:
        return list(self._running)

    def wake(self) -> None:
        """Make a ``wait`` in another thread return."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"x")

    def wait(self, timeout_s: float) -> list[ChildEvent]:
        """What the children said, as soon as one says something; empty after the timeout."""
        deadline = time.monotonic() + max(0.0, timeout_s)
        events: list[ChildEvent] = []
        while True:
            left = deadline - time.monotonic()
            patience = min(left, _ENDING_POLL_S) if self._ending else left
            ready = self._selector.select(max(0.0, patience))
            woken = False
            for key, _ in ready:
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, _READ_BYTES)
                    woken = True
                else:
                    events.extend(self._read(key.data))
            events.extend(self._reap())
            if events or woken or left <= 0:
                return events

    def _read(self, child: Child) -> list[ChildEvent]:
        try:
            data = os.read(child.pipe, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            self._ending.append(child)
            return []
        *lines, child.unread = (child.unread + data).split(b"\n")
        return [event for line in lines if (event := self._parse(child, line)) is not None]

    @staticmethod
    def _parse(child: Child, line: bytes) -> Line | None:
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if isinstance(data, dict):
            return Line(child, data)
        # A full disk takes the line, and must take no more.
        with contextlib.suppress(OSError), child.log.open("ab") as file:
            file.write(line + b"\n")
        return None

    def _reap(self) -> list[ChildEvent]:
        ended: list[ChildEvent] = []
        for child in list(self._ending):
            code = child.process.poll()
            if code is not None:
                self._ending.remove(child)
                self._running.remove(child)
                child.ended = True
                ended.append(Ended(child, code))
        return ended

    def kill(self, child: Child) -> float:
        """SIGKILL. Returns when, in seconds of the monotonic clock."""
        at = time.monotonic()
        child.process.kill()
        return at

    def stop(self, grace_s: float = 2.0) -> None:
        """Its signal to each, SIGKILL after the grace to those that are left. Nothing of them survives this
        call."""
        for child in self._running:
            self._signal_group(child, child.end_signal)
        deadline = time.monotonic() + grace_s
        while self._running and time.monotonic() < deadline:
            self.wait(deadline - time.monotonic())
        for child in self._running:
            self._signal_group(child, signal.SIGKILL)
        for child in self._running:
            child.process.wait()
            child.ended = True
            if child not in self._ending:
                self._selector.unregister(child.pipe)
                os.close(child.pipe)
        self._running.clear()
        self._ending.clear()

    @staticmethod
    def _signal_group(child: Child, number: int) -> None:
        # A child leads its own group: what it has started itself goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    def close(self) -> None:
        """Stop all children and give the descriptors back. May be called twice. A child of `os.fork` stops nobody."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self.stop()
        self._spawner.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

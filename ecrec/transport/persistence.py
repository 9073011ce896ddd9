"""The scheduler's state in an SQLite file, and a history in it for people."""

import fcntl
import os
import sqlite3
from collections import deque
from pathlib import Path
from typing import IO

from ecrec.errors import ClusterError, ConfigurationError

NOTES_MAX = 1000
"""Notes that wait for the next `save`; the oldest go first."""

HISTORY_MAX = 100_000
"""Notes kept in the file, about 10 MB."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (only INTEGER PRIMARY KEY CHECK (only = 0), blob BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS history (at TEXT NOT NULL, level TEXT NOT NULL, event TEXT NOT NULL);
"""


class StateFile:
    """One scheduler's file (a `StateStore`). A second scheduler on it is refused while the first one runs."""

    term = 0

    def __init__(self, path: str) -> None:
        """Open or create the file. ConfigurationError if it cannot be used, saying why."""
        self.path = path
        self._notes: deque[tuple[str, str]] = deque(maxlen=NOTES_MAX)
        self._lock = _lock(path)
        try:
            self._connection = sqlite3.connect(path)
            try:
                # FULL: what the scheduler has told others must still be there after a power cut.
                for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                    self._connection.execute(f"PRAGMA {pragma}").fetchall()
                self._connection.executescript(_SCHEMA)
                self._connection.commit()
            except sqlite3.Error:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            self._lock.close()
            raise ConfigurationError(
                f"scheduler state {path}: {error}; name a file that can be written, or that an ecrec-scheduler made"
            ) from error

    def load(self) -> bytes | None:
        """The state that was written last; None in a new file. ConfigurationError if it cannot be read."""
        try:
            row = self._connection.execute("SELECT blob FROM state").fetchone()
        except sqlite3.Error as error:
            raise ConfigurationError(f"scheduler state {self.path}: {error}") from error
        return bytes(row[0]) if row else None

    def may_act(self, wait_ms: float) -> bool:
        """Always: the lock on the file is held as long as this process lives."""
        return True

    def note(self, level: str, text: str) -> None:
        """Add to the history, with the next `save`."""
        self._notes.append((level, text))

    def save(self, state: bytes) -> None:
        """Write the state; it is on stable storage on return. ClusterError if not; what was there is then unchanged."""
        try:
            with self._connection:
                self._connection.execute("REPLACE INTO state VALUES (0, ?)", (state,))
                self._connection.executemany(
                    "INSERT INTO history VALUES (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?, ?)", self._notes
                )
                self._connection.execute(
                    "DELETE FROM history WHERE rowid <= (SELECT max(rowid) FROM history) - ?", (HISTORY_MAX,)
                )
        except sqlite3.Error as error:
            raise ClusterError(
                f"scheduler state {self.path} cannot be written: {error}; make room or restore access, then start "
                "ecrec-scheduler again with the same file and endpoint: training goes on meanwhile"
            ) from error
        self._notes.clear()

    def history(self) -> list[tuple[str, str, str]]:
        """(UTC time, level, event) of all notes that were saved, oldest first."""
        return self._connection.execute("SELECT at, level, event FROM history ORDER BY rowid").fetchall()

    def close(self) -> None:
        self._connection.close()
        self._lock.close()


def _lock(path: str) -> IO[bytes]:
    """Hold PATH.lock as long as this process lives: two schedulers of one cluster would contradict each other."""
    try:
        lock = Path(f"{path}.lock").open("ab")  # noqa: SIM115
    except OSError as error:
        raise ConfigurationError(
            f"scheduler state {path}: {os.strerror(error.errno or 0)}; name a file in a directory that can be written"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(f"scheduler state {path}: another ecrec-scheduler uses it") from error
    return lock

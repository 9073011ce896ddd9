"""A scheduler found by a file that all hosts see: it writes its endpoint there, and whoever wants it keeps reading.

For clusters that have a shared file system, as those of Slurm and Ray, and no ZooKeeper: the scheduler may come back on
another host. Who may write the file decides where servers and workers connect to.
"""

import contextlib
import logging
import os
import threading
from pathlib import Path

from ecrec.errors import ConfigurationError
from ecrec.transport.endpoints import parse

log = logging.getLogger(__name__)

POLL_S = 0.25
"""How often the file is read. A file system may take longer to show what another host has written."""

FILE_BYTES_MAX = 1024


def write_endpoint(path: str, endpoint: str) -> None:
    """Make the file anew, as a whole. Raises ConfigurationError if it cannot be written."""
    new = Path(f"{path}.{os.getpid()}.new")
    try:
        with new.open("w") as file:
            file.write(f"{endpoint}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise ConfigurationError(f"--endpoint-file {path}: {error.strerror}") from error


class FileWatch:
    """Keeps reading the file, in a thread: a file system of the network may hang. A `LeaderWatch`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._endpoint = ""
        self._wrong = ""
        self._ending = threading.Event()
        self._look()
        threading.Thread(target=self._run, name="ecrec-endpoint-file", daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The last one that could be read. What is there for a moment, or not at all, changes nothing."""
        return self._endpoint

    def close(self) -> None:
        """The thread ends by itself: it may hang in the file system."""
        self._ending.set()

    def _run(self) -> None:
        while not self._ending.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        try:
            with open(self._path, "rb") as file:
                text = file.read(FILE_BYTES_MAX).decode().strip()
            parse(text)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, ConfigurationError) as error:
            if str(error) != self._wrong:
                self._wrong = str(error)
                log.warning("the scheduler's endpoint cannot be read from %s: %s", self._path, error)
            return
        self._wrong, self._endpoint = "", text

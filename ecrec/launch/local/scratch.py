"""Directories of a run that are removed at its end: by the process that made them, and no other."""

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from ecrec.errors import ConfigurationError
from ecrec.transport.endpoints import IPC_PATH_BYTES_MAX

SOCKET_NAME_BYTES_MAX = 24
"""The longest name of a socket in a directory of sockets, with the slash."""

SHORT = "/tmp"
"""Where directories of sockets are made when the usual place has too long a path."""


class Scratch:
    """A new directory under the usual temporary one (TMPDIR); a context manager.

    A child of `os.fork` that ends does not remove it. ``for_sockets``: its path is short enough for sockets.
    ``kept_after``: such an error that leaves the context leaves the directory there. ``place``: where it is made, in
    place of the usual one. Raises ConfigurationError, saying
    what to do, where none can be made.
    """

    def __init__(
        self,
        prefix: str,
        for_sockets: bool = False,
        kept_after: type[BaseException] | tuple[()] = (),
        place: Path | None = None,
    ) -> None:
        self._kept_after = kept_after
        usual = [tempfile.gettempdir() if _usual() else SHORT, *([SHORT] if for_sockets else [])]
        places = usual if place is None else [str(place)]
        self._pid = os.getpid()
        wrong = ""
        for each in dict.fromkeys(places):
            path = os.path.join(each, prefix)
            if for_sockets and len(os.fsencode(path)) + 8 + SOCKET_NAME_BYTES_MAX > IPC_PATH_BYTES_MAX:
                wrong = f"{each} is too long a path for sockets"
                continue
            try:
                self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=each))
                return
            except OSError as error:
                wrong = f"{each}: {error.strerror}"
        raise ConfigurationError(
            f"no temporary directory can be made: {wrong}; set TMPDIR to a directory that can be written"
            + (", with a path below 60 characters" if for_sockets else "")
        )

    def remove(self) -> None:
        """Also if it is gone, or some of it cannot be removed."""
        if os.getpid() == self._pid:
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, self._kept_after):
            self.remove()


def _usual() -> bool:
    """Python finds a temporary directory that can be written."""
    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True

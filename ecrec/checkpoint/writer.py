"""Writes the files of checkpoints for a server, so that its loop never waits for storage.

Local files are written by native threads, without the interpreter and with the lowest priority (`_native.FileWriter`);
those of other file systems by a thread of Python's, since fsspec is Python.
"""

import errno
import logging
import os
import queue
import threading
from collections import deque

from ecrec import _native
from ecrec._native import crc32c
from ecrec.checkpoint.files import Folder, partial_of
from ecrec.errors import CheckpointError, EcrecError
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.saved import MANIFEST, checkpoint_folder

log = logging.getLogger("ecrec.checkpoint")


class FileWriter:
    """Carries out `WriteFile`, those of one urgency one after the other. Begins its threads with the first one."""

    def __init__(self) -> None:
        self._local = _native.FileWriter()
        self._writing: dict[int, tuple[WriteFile, Folder]] = {}
        """Number at ``_local`` -> what it is."""
        self._todo: queue.SimpleQueue[tuple[WriteFile, Folder] | None] = queue.SimpleQueue()
        self._done: deque[FileWritten] = deque()
        self._thread: threading.Thread | None = None
        self.pending = 0
        """Files that were given, and not taken back as `FileWritten`."""
        self._folder: tuple[str, Folder] | None = None
        self._newest = 0
        """Highest number of a checkpoint that a file was given for: those of earlier ones are not needed any more."""

    def write(self, effect: WriteFile) -> None:
        """Have a file written, behind those that wait."""
        self.pending += 1
        self._newest = max(self._newest, effect.checkpoint)
        try:
            if self._folder is None or self._folder[0] != effect.url:
                self._folder = effect.url, Folder(effect.url)
            folder = self._folder[1]
            path = folder.local_path(effect.name)
            if path is not None:
                number = self._local.submit(
                    path, partial_of(path), folder.local_path(_manifest(effect)) or "", effect.buffers, effect.urgent
                )
                self._writing[number] = effect, folder
            else:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="checkpoint files", daemon=True)
                    self._thread.start()
                self._todo.put((effect, folder))
        except (EcrecError, RuntimeError) as failed:
            self._done.append(FileWritten(effect.checkpoint, effect.name, 0, 0, str(failed)))

    def take(self) -> list[FileWritten]:
        """What was written, or could not be, since the last call."""
        found = []
        for number, nbytes, checksum, failed, _ in self._local.take():
            effect, folder = self._writing.pop(number)
            found.append(FileWritten(effect.checkpoint, effect.name, nbytes, checksum, _error(effect, folder, failed)))
        while self._done:
            found.append(self._done.popleft())
        self.pending -= len(found)
        return found

    def close(self) -> None:
        """Write nothing more; what is being written is not waited for."""
        self._local.close()
        self._todo.put(None)

    def _run(self) -> None:
        begun = "", 0
        while (given := self._todo.get()) is not None:
            effect, folder = given
            error, nbytes, checksum = "", 0, 0
            try:
                if effect.checkpoint < self._newest:
                    raise EcrecError(f"checkpoint {effect.checkpoint} is over")
                if (effect.url, effect.checkpoint) != begun:
                    if folder.exists(_manifest(effect)):
                        raise _is_anothers(effect)
                    begun = effect.url, effect.checkpoint
                for buffer in effect.buffers:
                    view = memoryview(buffer).cast("B")
                    checksum = crc32c(view, checksum)
                    nbytes += len(view)
                folder.write(effect.name, effect.buffers)
            except EcrecError as failed:
                error = str(failed)
            except Exception as failed:  # of a file system's package, whatever it raises
                log.exception("cannot write %s", effect.name)
                error = f"{type(failed).__name__}: {failed}"
            self._done.append(FileWritten(effect.checkpoint, effect.name, nbytes, checksum, error))
            del effect, folder, given


def _manifest(effect: WriteFile) -> str:
    return f"{checkpoint_folder(effect.checkpoint)}/{MANIFEST}"


def _is_anothers(effect: WriteFile) -> CheckpointError:
    return CheckpointError(f"{_manifest(effect)} is there already: another cluster writes to this URL")


def _error(effect: WriteFile, folder: Folder, failed: int) -> str:
    """What a number of an error means; empty: it is written."""
    if not failed:
        return ""
    if failed == errno.EEXIST:
        return str(_is_anothers(effect))
    return str(folder.error_of(effect.name, "write", OSError(failed, os.strerror(failed))))

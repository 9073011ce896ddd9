"""Files of checkpoints under one URL: a local folder, or anything that fsspec reaches.

A file appears under its name when all of it is written, never before. Everything that goes wrong is a CheckpointError
that names the file and the reason.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ecrec._native import write_file
from ecrec.errors import CheckpointError, ConfigurationError, FileMissingError
from ecrec.urls import file_system, is_url, local_path, reason_of, shown

Buffer = Any
"""What has the buffer protocol: bytes, memoryview, a contiguous array."""

_PARTIAL = ".partial"
_counter = itertools.count()


class Entry(NamedTuple):
    """What a folder has."""

    name: str
    is_folder: bool
    nbytes: int


def is_partial(name: str) -> bool:
    """It is a file that was not written to its end: one being written, or what a killed writer left."""
    base = name.rpartition("/")[2]
    return base.startswith(".") and base.endswith(_PARTIAL)


def partial_of(path: str) -> str:
    """The name under which a file is written until it is whole; each call gives another one."""
    folder, _, base = path.rpartition("/")
    return f"{folder}/.{base}.{os.getpid()}-{next(_counter)}{_PARTIAL}"


class Folder:
    """The folder at a URL. It needs not exist until something is written.

    ``/path``, ``file:///path`` and paths relative to the working directory are local. Everything else that has a scheme
    (``s3://bucket/path``, ``hdfs://...``) goes through fsspec, of the extra ``checkpoints``; credentials come from
    where the file system's own package takes them. Names are relative to the folder, with ``/`` between folders.

    An object may be used by several threads.
    Raises ConfigurationError for an empty URL, or one for which a package is missing: it says what to install.
    """

    def __init__(self, url: str) -> None:
        if not url or "\0" in url:
            raise ConfigurationError(f"URL {shown(url)!r}: expected a path, or a URL such as s3://bucket/checkpoints")
        self.url = shown(url.rstrip("/") or "/")
        self._files: _Files
        if is_url(url):
            system, path = file_system(url, "checkpoints")
            moves = _renames(system)
            self._files = _FsspecFiles(system, path.rstrip("/"), moves)
        else:
            self._files = _LocalFiles(os.path.abspath(local_path(url)))

    def __str__(self) -> str:
        return self.url

    def within(self, name: str) -> "Folder":
        """A folder in this one."""
        self._check(name)
        other = object.__new__(Folder)
        other.url = self.path(name)
        other._files = self._files.within(name)
        return other

    def path(self, name: str) -> str:
        """The whole name of a file, for people."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def local_path(self, name: str) -> str | None:
        """Where a file is on this machine; None: the folder is not local."""
        self._check(name)
        return self._files.path_of(name) if isinstance(self._files, _LocalFiles) else None

    def write(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Write a file that consists of these buffers, one after the other, and the folders that it lies in.

        A local file is durable when this returns, and so is its name. A file of that name is replaced.
        """
        self._check(name)
        views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
        with self._errors(name, "write"):
            self._files.write(name, views)

    def read(self, name: str, bytes_max: int) -> bytes:
        """All of a file. Raises CheckpointError for one of more than ``bytes_max`` bytes; nothing is allocated then."""
        with self.open(name) as file:
            if file.nbytes > bytes_max:
                raise CheckpointError(
                    f"{self.path(name)}: it has {file.nbytes:,} bytes, and at most {bytes_max:,} are read"
                )
            data = bytearray(file.nbytes)
            file.read_into(0, memoryview(data))
            return bytes(data)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator["File"]:
        """A file to read from; closed afterwards."""
        self._check(name)
        with self._errors(name, "read"):
            file = self._files.open(name)
        try:
            yield File(self, name, file)
        finally:
            with contextlib.suppress(*self._files.errors):  # what was read is read
                file.close()

    def list(self, name: str = "") -> list[Entry]:
        """What is in a folder, in order of names. Raises FileMissingError if there is no such folder; that of an object
        store, which has no folders, is missing if nothing is in it."""
        self._check(name, or_itself=True)
        with self._errors(name, "list"):
            return sorted(self._files.list(name))

    def exists(self, name: str) -> bool:
        """There is a file or folder of this name."""
        self._check(name)
        with self._errors(name, "look for"):
            return self._files.exists(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; durable when this returns, if it is local."""
        self._check(name)
        with contextlib.suppress(FileMissingError), self._errors(name, "remove"):
            self._files.remove(name)

    def remove_tree(self, name: str) -> None:
        """Remove a folder and all that is in it, if it is there."""
        self._check(name)
        with contextlib.suppress(FileMissingError), self._errors(name, "remove"):
            self._files.remove_tree(name)

    def sync(self) -> None:
        """Make names in this folder durable. `write` and `remove` have done so for theirs."""
        with self._errors("", "sync"):
            self._files.sync()

    def _check(self, name: str, or_itself: bool = False) -> None:
        if or_itself and not name:
            return
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
            raise CheckpointError(
                f"{self.url}: {name[:300]!r} is no name of a file in it: expected a relative one, without '..'"
            )

    def error_of(self, name: str, what: str, error: Exception) -> CheckpointError:
        """For people: what went wrong with a file."""
        return CheckpointError(f"{self.path(name)}: cannot {what} it: {reason_of(error)}")

    @contextlib.contextmanager
    def _errors(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except FileNotFoundError as error:
            raise FileMissingError(f"{self.path(name)}: it is not there") from error
        except self._files.errors as error:
            raise self.error_of(name, what, error) from error


class File:
    """A file that is read from anywhere."""

    def __init__(self, folder: Folder, name: str, file: "_File") -> None:
        self._folder, self._name, self._file = folder, name, file
        self.nbytes = file.nbytes

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with bytes from an offset on. Raises CheckpointError where the file ends before that."""
        with self._folder._errors(self._name, "read"):
            count = self._file.read_into(offset, into)
        if count != len(into):
            raise CheckpointError(
                f"{self._folder.path(self._name)}: it ended at byte {offset + count}, and had {self.nbytes} when it "
                "was opened"
            )


class _File(Protocol):
    nbytes: int

    def read_into(self, offset: int, into: memoryview) -> int:
        """Returns how many bytes there were, fewer only where the file ends."""
        ...

    def close(self) -> None: ...


class _Files(Protocol):
    """What a `Folder` needs of a file system. FileNotFoundError: it is not there."""

    errors: tuple[type[Exception], ...]

    def within(self, name: str) -> "_Files": ...
    def write(self, name: str, views: list[memoryview]) -> None: ...
    def open(self, name: str) -> _File: ...
    def list(self, name: str) -> list[Entry]: ...
    def exists(self, name: str) -> bool: ...
    def remove(self, name: str) -> None: ...
    def remove_tree(self, name: str) -> None: ...
    def sync(self) -> None: ...


# ---------------------------------------------------------------------- local
class _LocalFile:
    def __init__(self, path: str) -> None:
        # Not blocking: a pipe, which somebody may have put there, would wait for a writer.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise OSError("it is no regular file")
        self.nbytes = status.st_size

    def read_into(self, offset: int, into: memoryview) -> int:
        done = 0
        while done < len(into):
            count = os.preadv(self._descriptor, [into[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def close(self) -> None:
        os.close(self._descriptor)


class _LocalFiles:
    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, path: str) -> None:
        self._path = path

    def within(self, name: str) -> "_LocalFiles":
        return _LocalFiles(self.path_of(name))

    def write(self, name: str, views: list[memoryview]) -> None:
        path = self.path_of(name)
        write_file(path, partial_of(path), views)

    def open(self, name: str) -> _File:
        return _LocalFile(self.path_of(name))

    def list(self, name: str) -> list[Entry]:
        entries = []
        with os.scandir(self.path_of(name)) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    is_folder = each.is_dir()
                    entries.append(Entry(each.name, is_folder, 0 if is_folder else each.stat().st_size))
        return entries

    def exists(self, name: str) -> bool:
        try:
            os.stat(self.path_of(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remove(self, name: str) -> None:
        os.unlink(self.path_of(name))
        _sync_folder(os.path.dirname(self.path_of(name)))

    def remove_tree(self, name: str) -> None:
        path = self.path_of(name)
        if os.path.islink(path):  # as for links in it: what they lead to stays
            os.unlink(path)
            return
        for folder, _, files in os.walk(path, topdown=False, onerror=_raise):
            for each in files:
                os.unlink(os.path.join(folder, each))
            for each in os.listdir(folder):  # empty by now, or links to folders, which are not followed
                below = os.path.join(folder, each)
                os.unlink(below) if os.path.islink(below) else os.rmdir(below)
        os.rmdir(path)
        _sync_folder(os.path.dirname(path))

    def sync(self) -> None:
        _sync_folder(self._path)

    def path_of(self, name: str) -> str:
        return os.path.join(self._path, name) if name else self._path


def _raise(error: OSError) -> None:
    raise error


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- fsspec
def _renames(system: Any) -> bool:
    """It moves a file in one step; others copy it."""
    import fsspec

    return type(system).mv is not fsspec.AbstractFileSystem.mv


class _FsspecFile:
    def __init__(self, file_system: Any, path: str) -> None:
        self._file = file_system.open(path, "rb")
        size = getattr(self._file, "size", None)
        try:
            self.nbytes = int(file_system.info(path)["size"] if size is None else size)
        except TypeError as error:
            self._file.close()
            raise OSError("the file system does not tell its size") from error

    def read_into(self, offset: int, into: memoryview) -> int:
        self._file.seek(offset)
        done = 0
        while done < len(into):
            data = self._file.read(len(into) - done)
            if not data:
                break
            into[done : done + len(data)] = data
            done += len(data)
        return done

    def close(self) -> None:
        self._file.close()


class _FsspecFiles:
    errors: tuple[type[Exception], ...] = (Exception,)
    """Each file system has its own, not all of them OSErrors."""

    def __init__(self, file_system: Any, path: str, moves: bool) -> None:
        self._system, self._path, self._moves = file_system, path, moves

    def within(self, name: str) -> "_FsspecFiles":
        return _FsspecFiles(self._system, self._at(name), self._moves)

    def write(self, name: str, views: list[memoryview]) -> None:
        # One call with all bytes: an object store shows them when it has them all. A file of fsspec would be closed by
        # an error, and what it had by then be shown as the whole.
        path, data = self._at(name), b"".join(views)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self._moves:
            partial = partial_of(path)
            self._pipe(partial, data)
            try:
                if self._system.exists(path):
                    self._system.rm_file(path)  # some do not rename onto a file that is there
                self._system.mv(partial, path)
            except BaseException:
                self._forget(partial)
                raise
        else:
            self._pipe(path, data)

    def _pipe(self, path: str, data: bytes) -> None:
        try:
            self._system.pipe_file(path, data)
            size = self._system.info(path)["size"]
            if size != len(data):
                raise OSError(f"{size} of {len(data)} bytes were written")
        except BaseException:
            self._forget(path)
            raise

    def _forget(self, path: str) -> None:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._system.rm_file(path)

    def open(self, name: str) -> _File:
        return _FsspecFile(self._system, self._at(name))

    def list(self, name: str) -> list[Entry]:
        path = self._at(name)
        self._system.invalidate_cache(path)
        entries = []
        for each in self._system.ls(path, detail=True):
            base = each["name"].rstrip("/").rpartition("/")[2]
            if each["name"].rstrip("/") != path.rstrip("/") and base:  # some object stores list the folder itself
                entries.append(Entry(base, each["type"] == "directory", int(each.get("size") or 0)))
        return entries

    def exists(self, name: str) -> bool:
        # Not exists() of fsspec, for which all errors mean that a file is not there.
        path = self._at(name)
        self._system.invalidate_cache(path.rpartition("/")[0])
        try:
            self._system.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remove(self, name: str) -> None:
        self._system.rm_file(self._at(name))

    def remove_tree(self, name: str) -> None:
        self._system.rm(self._at(name), recursive=True)

    def sync(self) -> None:
        """Whatever it is, it has no more to offer than what it did when it wrote."""

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

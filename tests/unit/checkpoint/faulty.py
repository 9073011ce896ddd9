"""A file system of fsspec that fails when it is told to. It renames, as HDFS and SFTP do."""

from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails: ClassVar[Callable[[str], bool]]
    """Is asked at each request, which it gets the name of."""
    requests: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def _request(self, name: str) -> None:
        self.requests.append(name)
        if type(self).fails(name):
            raise ConnectionError(f"the network failed at {name}")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.requests.append("write")
        if type(self).fails("write"):
            super().pipe_file(path, value[: len(value) // 2])
            raise ConnectionError("the network failed in the middle of a write")
        super().pipe_file(path, value)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._request("open")
        file = super()._open(path, mode, **kwargs)
        return _FaultyFile(self, file) if mode == "rb" else file

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._request("rename")
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._request("list")
        return super().ls(path, detail, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self._request("info")
        return super().info(path, **kwargs)


class _FaultyFile:
    def __init__(self, system: FaultyFileSystem, file: Any) -> None:
        self._system, self._file = system, file
        self.size = file.size

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        self._system._request("read")
        data: bytes = self._file.read(min(size, 100))  # as networks do: not all at once
        return data

    def close(self) -> None:
        self._system._request("close")


def never(name: str) -> bool:
    return False


def start(fails: Callable[[str], bool] = never) -> str:
    """An empty file system; returns a URL in it."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.store.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]
    FaultyFileSystem.requests.clear()
    FaultyFileSystem.fails = staticmethod(fails)  # type: ignore[assignment]
    return "faulty://bucket/checkpoints"

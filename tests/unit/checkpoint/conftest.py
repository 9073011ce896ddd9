from collections.abc import Iterator

import pytest


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL in fsspec's file system in memory, with nothing in it."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket/checkpoints"
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """A folder for checkpoints, of each kind of file system in turn."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "checkpoints")
    found: str = request.getfixturevalue("memory")
    return found

"""A scheduler that is found by a file: it may come back elsewhere, and the file may be anything for a while."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecrec.errors import ConfigurationError
from ecrec.transport import endpoint_file
from ecrec.transport.coordinator import is_coordinator, watch_leader
from ecrec.transport.endpoint_file import FileWatch, write_endpoint


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(endpoint_file, "POLL_S", 0.01)
    return str(tmp_path / "endpoint")


@pytest.fixture
def watch(path: str) -> Iterator[FileWatch]:
    made = watch_leader(f"file://{path}")
    assert isinstance(made, FileWatch)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_scheduler_that_moves_is_followed(path: str, watch: FileWatch) -> None:
    assert watch.endpoint == ""
    for endpoint in ("tcp://a:7070", "tcp://[fd00::2]:7071"):
        write_endpoint(path, endpoint)
        until(lambda endpoint=endpoint: watch.endpoint == endpoint)  # type: ignore[misc]


@pytest.mark.parametrize("content", [b"", b"tcp://", b"tcp://b:99999", b"\xff\xfe", b"x" * 5000, b"zk://a:1/b"])
def test_what_is_no_endpoint_changes_nothing_and_is_said(
    path: str, watch: FileWatch, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_endpoint(path, "tcp://a:7070")
    until(lambda: watch.endpoint == "tcp://a:7070")
    Path(path).write_bytes(content)
    until(lambda: "cannot be read from" in caplog.text)
    assert watch.endpoint == "tcp://a:7070"
    Path(path).unlink()
    write_endpoint(path, "tcp://b:7070")
    until(lambda: watch.endpoint == "tcp://b:7070")


def test_names_that_are_no_path_and_places_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    assert is_coordinator("file:///x")
    for wrong in ("file://x", "file://", "file:///x/"):
        with pytest.raises(ConfigurationError, match="expected file:///PATH"):
            watch_leader(wrong)
    with pytest.raises(ConfigurationError, match=r"--endpoint-file .*/no/file: No such file or directory"):
        write_endpoint(str(tmp_path / "no" / "file"), "tcp://a:1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=r"--endpoint-file"):
        write_endpoint(str(tmp_path / "folder"), "tcp://a:1")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]

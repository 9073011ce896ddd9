"""Temporary directories: found or refused with advice, and removed by their own process."""

import os
import tempfile
from pathlib import Path

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.local import scratch
from ecrec.launch.local.scratch import SOCKET_NAME_BYTES_MAX, Scratch
from ecrec.transport.endpoints import IPC_PATH_BYTES_MAX


@pytest.fixture
def usual(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_there_and_then_it_is_gone(usual):
    with Scratch("ecrec-") as path:
        assert path.parent == usual and path.is_dir()
        (path / "file").write_text("x")
    assert not path.exists()


@pytest.mark.parametrize(("error", "is_left"), [(ConfigurationError, True), (ValueError, False)])
def test_an_error_that_names_its_files_leaves_them(usual, error, is_left):
    with pytest.raises(error), Scratch("ecrec-", kept_after=ConfigurationError) as path:
        raise error("see the log")
    assert path.exists() == is_left


def test_a_child_of_fork_does_not_remove_it(usual):
    made = Scratch("ecrec-")
    child = os.fork()
    if child == 0:
        made.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert made.path.is_dir()
    made.remove()
    assert not made.path.exists()


def test_a_long_path_is_no_place_for_sockets(usual, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Scratch("ecrec-sockets-", for_sockets=True) as path:
        assert len(os.fsencode(path)) + SOCKET_NAME_BYTES_MAX <= IPC_PATH_BYTES_MAX
        assert path.parent == Path("/tmp")
    with Scratch("ecrec-") as path:
        assert path.parent == long


def test_where_none_can_be_made_it_says_what_to_do(usual, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(usual / "gone"))
    monkeypatch.setattr(scratch, "SHORT", str(usual / "gone too"))
    with pytest.raises(ConfigurationError, match=r"gone.*No such file.*set TMPDIR"):
        Scratch("ecrec-")
    with pytest.raises(ConfigurationError, match="set TMPDIR to a directory that can be written, with a path below"):
        Scratch("ecrec-sockets-", for_sockets=True)

"""Whole runs of ``ecrec train``, and clusters of server programs: fixtures of all tests here."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Cluster, Processes, Proxied
from runs import SMALL, Trainer


@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Reports of runs in which nothing is killed, by options; each is done once."""
    trainer = Trainer(tmp_path_factory.mktemp("undisturbed"))
    known = {}

    def report(*options):
        if options not in known:
            finished = trainer.run(*SMALL, *options)
            assert finished.code == 0, finished.story
            known[options] = finished.report
        return known[options]

    return report


@pytest.fixture(params=["tcp", "ipc"])
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    # A path of a socket has at most 107 bytes; pytest's tmp_path may be longer.
    with (
        tempfile.TemporaryDirectory(prefix="ecrec") as directory,
        contextlib.closing(Processes(Path(directory), request.param)) as made,
    ):
        yield made


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[Processes]:
    with contextlib.closing(Processes(tmp_path, "tcp")) as made:
        yield made


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Nothing of it runs yet; what a test starts is killed at its end."""
    with contextlib.closing(Cluster(tmp_path, "tcp")) as made:
        yield made


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    with contextlib.closing(Proxied(tmp_path)) as made:
        yield made

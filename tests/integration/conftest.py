"""Whole runs of ``ecrec train``: fixtures of all tests here."""

import pytest
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

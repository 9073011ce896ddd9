import os
from pathlib import Path

import pytest


@pytest.fixture
def fakes(monkeypatch):
    """Child processes find the tiny programs of this directory as modules."""
    here = str(Path(__file__).parent)
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", here if not known else here + os.pathsep + known)

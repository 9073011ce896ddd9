"""Sixteen servers of code 14+2 and four workers on a host whose cores are all busy: two die at once, no living one is
taken for dead.

Needs ECREC_LONG_FAULTS=1; ECREC_BUSY_RUNS is the number of runs (1).
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from runs import SMALL, Trainer

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"
RUNS = int(os.environ.get("ECREC_BUSY_RUNS", "1"))
TIMEOUT_S = 300


@pytest.fixture
def busy() -> Iterator[None]:
    """One process for each core that does nothing but compute."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.skipif(not LONG, reason="sixteen servers on few busy cores: ECREC_LONG_FAULTS=1")
@pytest.mark.parametrize("run", range(RUNS))
def test_two_of_sixteen_die_at_once_on_a_busy_host(tmp_path, busy, run):
    finished = Trainer(tmp_path).run(
        *SMALL, "--shards", "16", "--code", "14+2", "--workers", "4", "--steps", "120", "--spares", "2",
        "--kill", "ps:2@30", "--kill", "ps:9@30", timeout_s=TIMEOUT_S,
    )  # fmt: skip
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["lost_updates"] == 0 and report["parity_ok"], finished.story
    assert report["deaths"] == 2, finished.story

"""bench/scale.py runs, with little: real machines of two sizes, a death, the report, the plot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 120


def test_the_cost_of_a_server_is_measured_for_two_sizes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    command = [sys.executable, "bench/scale.py", "--shards", "3", "6", "--group", "3", "--code", "2+1", "--steps", "2"]
    command += ["--workers", "1", "2", "--rows", "50", "--report", str(report), "--plot", str(plot)]
    done = subprocess.run(command, cwd=ROOT, timeout=RUN_S, check=False, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(report.read_text())["runs"]
    assert [(run["shards"], run["workers"]) for run in runs] == [(3, 1), (6, 1), (3, 2), (6, 2)]
    # One push and one pull to each server that has some of the rows, which with 50 of them is each.
    assert all(run["messages worker to server"] >= 2 * run["shards"] for run in runs)
    assert all(run["server_us"] > 0 and run["death_scheduler_ms"] > 0 for run in runs)
    assert "200 workers" in done.stdout and plot.stat().st_size > 1000

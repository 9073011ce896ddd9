"""bench/recovery_large.py runs, with little: a cluster, a SIGKILL, a recovery, the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 180


@pytest.mark.parametrize("options", [[], ["--sparse", "--training"]], ids=["dense, idle", "sparse, training"])
def test_the_recovery_of_much_runs_with_little(options: list[str], tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    command = [sys.executable, "bench/recovery_large.py", "--gb", "0.002", "--settle", "0", "--before", "0.5"]
    done = subprocess.run(
        [*command, *options, "--report", str(report_path)],
        cwd=ROOT,
        timeout=RUN_S,
        check=False,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_path.read_text())
    assert report["parity_ok"] and report["stripes_compared"] > 0
    assert 0 < report["lost_gb"] < 0.01 and report["gb_s"] > 0 and report["floor_s"] > 0
    assert report["replaced_s"] < report["whole_s"]
    if options:
        assert report["steps_before"] > 0 and report["steps_during"] > 0
    else:
        assert report["rows_equal"]

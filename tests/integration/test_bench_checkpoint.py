"""bench/checkpoint.py runs, with little: training, checkpoints, a restore, the report."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 180


def test_the_cost_of_checkpoints_is_measured_with_little(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    command = [sys.executable, "bench/checkpoint.py", "--gb", "0.005", "--rounds", "1", "--seconds", "1"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path), "--report", str(report_path)],
        cwd=ROOT, timeout=RUN_S, check=False, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_path.read_text())
    assert report["written"] > 0 and min(report["save_s"], report["restore_s"], report["dcp_s"], report["dd_s"]) > 0
    assert list(tmp_path.iterdir()) == [report_path]

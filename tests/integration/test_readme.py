"""The README's own program."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_first_program_trains(tmp_path):
    pytest.importorskip("torch")
    programs = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    whole = [program for program in programs if "local_cluster" in program]
    assert whole, "the README has no program that starts a cluster"
    (tmp_path / "program.py").write_text(whole[0])
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = r"100 steps, loss 0\.[01]\d{3}, AUC (0\.9\d\d|1\.000), digest [0-9a-f]{12}\n"
    assert re.fullmatch(said, done.stdout), done.stdout

"""A parameter-server host has no torch."""

import subprocess
import sys

import pytest

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is not installed here")
sys.meta_path.insert(0, Block())
"""


MODULES = [
    "ecrec",
    "ecrec.checkpoint.checking",
    "ecrec.cli",
    "ecrec.launch.servers.ps",
    "ecrec.launch.servers.scheduler",
]


@pytest.mark.parametrize("module", MODULES)
def test_a_program_of_the_servers_starts_without_torch(module: str, tmp_path: object) -> None:
    code = BLOCK_TORCH + f"import {module}; assert 'torch' not in sys.modules; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=str(tmp_path))
    assert done.stdout == "ok\n", done.stderr

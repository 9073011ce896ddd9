"""A parameter-server host has no torch, and no framework for command lines."""

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Block())
import {module}
print("ok")
"""


MODULES = [
    "ecrec",
    "ecrec.checkpoint.checking",
    "ecrec.cli",
    "ecrec.launch.servers.ps",
    "ecrec.launch.servers.scheduler",
]
SERVERS = [
    "ecrec.launch.servers.ps",
    "ecrec.launch.servers.scheduler",
    "ecrec.launch.servers.standby",
    "ecrec.launch.worker",
]
NOT_OF_SERVERS = ("torch", "typer", "click", "rich", "pandas", "scipy")


@pytest.mark.parametrize("module", MODULES)
def test_a_program_of_the_servers_starts_without_torch(module: str, tmp_path: object) -> None:
    assert _imported(module, ("torch",), tmp_path) == "ok\n"


@pytest.mark.parametrize("module", SERVERS)
def test_a_server_or_worker_starts_with_what_ecrec_alone_installs(module: str, tmp_path: object) -> None:
    # -W error: no deprecation of a newer Python goes unseen.
    assert _imported(module, NOT_OF_SERVERS, tmp_path, "-W", "error") == "ok\n"


def _imported(module: str, blocked: tuple[str, ...], folder: object, *options: str) -> str:
    code = BLOCK.format(blocked=blocked, module=module)
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60, cwd=str(folder), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

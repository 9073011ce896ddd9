"""deploy/Dockerfile and deploy/compose.yaml: built where there is a builder; what can be read in them is checked."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_kubernetes import PREFIXES

import ecrec.launch.servers.ps
import ecrec.launch.servers.scheduler
from ecrec.launch.variables import PS, SCHEDULER

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SERVER_BYTES_MAX = 300_000_000
PROGRAMS: dict[str, Any] = {PS: ecrec.launch.servers.ps.program, SCHEDULER: ecrec.launch.servers.scheduler.program}


def stages() -> dict[str, list[str]]:
    """Stage -> its instructions."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = []
        found[match[2] if match else list(found)[-1]].append(line)
    return found


def test_what_is_copied_and_installed_is_there_and_nobody_is_root() -> None:
    found = stages()
    assert list(found) == ["build", "server", "worker"]
    for instruction in found["build"]:
        if instruction.startswith("COPY"):
            for name in instruction.split()[1:-1]:
                assert (ROOT / name).exists(), name
    extras = set(re.findall(r"\$wheel\[([\w,]+)\]", " ".join(found["server"]))[0].split(","))
    declared = re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.M
    )
    assert extras <= set(declared) and "train" not in extras, "a server has no torch"
    for stage in ("server", "worker"):
        assert [line for line in found[stage] if line.startswith("USER")][-1] == "USER 65532:65532"


def test_every_variable_of_the_compose_file_is_a_flag() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert set(services) == {"scheduler", "server", "worker"}
    for service in services.values():
        assert service["build"]["target"] in stages()
        program = re.search(r"ecrec-\w+", " ".join(service["command"]))
        assert program is not None
        prefix = PREFIXES[program[0]]
        if prefix not in PROGRAMS:
            continue
        known = {name for names in PROGRAMS[prefix].flags.values() for name in names}
        assert set(service["environment"]) <= known, set(service["environment"]) - known


def builder() -> str | None:
    for program in ("docker", "podman"):
        if shutil.which(program) and not subprocess.run([program, "info"], capture_output=True, check=False).returncode:
            return program
    return None


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes minutes: ECREC_LONG_FAULTS=1")
def test_the_server_image_is_small_and_runs() -> None:
    program = builder()
    if program is None:
        pytest.skip("no builder of images here: neither docker with its daemon nor podman")
    build = [program, "build", "-f", str(DOCKERFILE), "--target", "server", "-t", "ecrec-server:test", str(ROOT)]
    subprocess.run(build, check=True, timeout=1800)
    shown = subprocess.run([program, "image", "inspect", "ecrec-server:test"], capture_output=True, check=True)
    (image,) = json.loads(shown.stdout)
    assert image["Size"] < SERVER_BYTES_MAX and image["Config"]["User"] == "65532:65532"
    run = [program, "run", "--rm", "ecrec-server:test"]
    assert subprocess.run([*run, "ecrec-ps", "--help"], capture_output=True, check=True).stdout
    assert subprocess.run([*run, "python", "-c", "import torch"], capture_output=True, check=False).returncode

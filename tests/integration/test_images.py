"""deploy/Dockerfile and deploy/compose.yaml: built where there is a builder, else its steps are run in a root of their
own; what can be read in them is checked.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import image_steps
import pytest
from image_steps import DOCKERFILE, ROOT, Build, stages
from test_kubernetes import PREFIXES

import ecrec.launch.servers.ps
import ecrec.launch.servers.scheduler
from ecrec.launch.variables import PS, SCHEDULER

LONG = pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes minutes: ECREC_LONG_FAULTS=1")
SERVER_BYTES_MAX = 300_000_000
PROGRAMS: dict[str, Any] = {PS: ecrec.launch.servers.ps.program, SCHEDULER: ecrec.launch.servers.scheduler.program}


def test_what_is_copied_and_installed_is_there_and_nobody_is_root() -> None:
    found = stages(DOCKERFILE.read_text())
    assert list(found) == ["build", "server", "worker"]
    for word, rest in found["build"]:
        if word == "COPY":
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), name
    steps = " ".join(rest for _, rest in found["server"])
    extras = set(re.findall(r"\$wheel\[([\w,]+)\]", steps)[0].split(","))
    declared = re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.M
    )
    assert extras <= set(declared) and "train" not in extras, "a server has no torch"
    for stage in ("server", "worker"):
        assert [rest for word, rest in found[stage] if word == "USER"][-1] == "65532:65532"


def test_every_variable_of_the_compose_file_is_a_flag() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert set(services) == {"scheduler", "server", "worker"}
    for service in services.values():
        assert service["build"]["target"] in stages(DOCKERFILE.read_text())
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


@LONG
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


@LONG
def test_the_steps_of_the_server_image_run_in_a_root_of_their_own(tmp_path: Path) -> None:
    """What a builder would do, where there is none. A scheduler of the image is ready then, with a state in /state."""
    if builder() is not None:
        pytest.skip("there is a builder of images here, which does it")
    if why := image_steps.why_not():
        pytest.skip(why)
    image = Build(tmp_path).make("server")
    try:
        assert image.size() < SERVER_BYTES_MAX
        assert image.run(["id", "-u"]).stdout == "65532\n" and image.directory == "/state"
        done = image.run(image.command)
        assert done.returncode == 0 and "--scheduler" in done.stdout, done.stderr
        for absent in ("python -c 'import torch'", "command -v g++", "ls /tmp/wheels"):
            assert image.run(["sh", "-c", absent]).returncode != 0, absent
        options = ["--bind", "tcp://127.0.0.1:0", "--shards", "1", "--state", "/state/scheduler.sqlite"]
        done = image.run(["timeout", "--signal=INT", "10", "ecrec-scheduler", *options])
        assert json.loads(done.stdout.splitlines()[0])["ready"] == "scheduler", done.stderr
        assert (image.root / "state" / "scheduler.sqlite").stat().st_uid == 65532
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", *map(str, tmp_path.iterdir())], check=False)

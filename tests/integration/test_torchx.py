"""The TorchX component, run by TorchX itself on this machine, through the loss of a server and the scheduler."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_training import check_result, has_reached, let_go, need_data, write_script

from ecrec.launch.tools.verify import cluster_state

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"
DEADLINE_S = 120.0


@pytest.fixture
def component() -> Any:
    pytest.importorskip("torchx.specs", reason='pip install "ecrec[torchx]"')
    import ecrec.torchx_component

    return ecrec.torchx_component


def test_the_component_is_one_that_torchx_takes(component: Any) -> None:
    from torchx.specs.file_linter import validate

    assert validate(component.__file__, "train") == []
    app = component.train("--lr", "1", script="my train.py", state="/runs", shards=5, spares=2, workers=3)
    assert {role.name: role.num_replicas for role in app.roles} == {"scheduler": 1, "servers": 7, "workers": 3}
    with pytest.raises(ValueError, match="needs --curve_dir"):
        component.train(script="x.py", state="/runs", network=True)


@pytest.mark.skipif(not LONG, reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_torchx_runs_it_and_a_host_is_lost(component: Any, tmp_path: Path) -> None:
    """There are no hosts with local_cwd: the programs of a server and of the scheduler die in the same moment, as where
    both were on one."""
    need_data()
    script = write_script(tmp_path, (10,))
    bin_dir = str(Path(sys.executable).parent)
    command = [
        sys.executable, "-m", "torchx.cli.main", "run", "--wait", "-s", "local_cwd",
        f"{component.__file__}:train", "--script", str(script), "--state", str(tmp_path / "runs"),
        "--shards", "3", "--spares", "1", "--image", str(tmp_path),
    ]  # fmt: skip
    with (tmp_path / "torchx.log").open("w") as log:
        run = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path,
            env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            until(lambda: has_reached(tmp_path, 10), tmp_path, run)
            programs = {
                name: [each for each in mine(tmp_path) if f"ecrec-{name}" in " ".join(each.cmdline()[:2])]
                for name in ("ps", "scheduler")
            }
            assert [len(each) for each in programs.values()] == [4, 1], programs
            (endpoint_file,) = (tmp_path / "runs").glob("*/scheduler.endpoint")
            place = cluster_state(f"file://{endpoint_file}").shards[1].endpoint
            server = next(each for each in programs["ps"] if listens(each, place))
            for each in (programs["scheduler"][0], server):
                each.send_signal(signal.SIGKILL)
            let_go(tmp_path, 10)
            assert run.wait(DEADLINE_S) == 0, (tmp_path / "torchx.log").read_text()
        finally:
            run.kill()
            run.wait()
            for each in mine(tmp_path):
                each.kill()
    check_result(tmp_path, deaths=1)


def mine(directory: Path) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid != os.getpid() and any(str(directory / "runs") in word for word in each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return [each for each in found if each.name() not in ("sh", "bash")]


def listens(process: psutil.Process, endpoint: str) -> bool:
    port = int(endpoint.rpartition(":")[2])
    return any(each.laddr.port == port for each in process.net_connections("tcp") if each.status == "LISTEN")


def until(condition: Any, directory: Path, run: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        log = (directory / "torchx.log").read_text()
        assert run.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.05)

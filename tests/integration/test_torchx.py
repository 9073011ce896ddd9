"""The TorchX component, run by TorchX itself on this machine, through the loss of a server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_train_sessions import TRAINING

import ecrec

LONG = os.environ.get("ECREC_LONG_FAULTS") == "1"
DEADLINE_S = 120.0
SCRIPT = """
import os, time
import ecrec

{training}

with ecrec.connect(code="2+1") as session:
    def at_step(step):
        open("step", "w").write(str(step))
        while step == 10 and not os.path.exists("go"):
            time.sleep(0.02)
    digest, losses = train(session, 30, at_step)
    session.flush()
    open("digest", "w").write(digest)
"""


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
def test_torchx_runs_it_and_a_server_is_killed(component: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "train_model.py"
    script.write_text(SCRIPT.format(training=TRAINING))
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
            until(lambda: (tmp_path / "step").exists() and (tmp_path / "step").read_text() == "10", tmp_path, run)
            servers = [each for each in mine(tmp_path) if "ecrec-ps" in " ".join(each.cmdline()[:2])]
            assert len(servers) == 4, [each.cmdline() for each in servers]
            servers[0].send_signal(signal.SIGKILL)
            (tmp_path / "go").touch()
            assert run.wait(DEADLINE_S) == 0, (tmp_path / "torchx.log").read_text()
        finally:
            run.kill()
            run.wait()
            for each in mine(tmp_path):
                each.kill()
    names: dict[str, Any] = {}
    exec(TRAINING, names)
    with ecrec.local_cluster(shards=3, code="2+1") as session:
        calm, _ = names["train"](session, 30)
    assert (tmp_path / "digest").read_text() == calm


def mine(directory: Path) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid != os.getpid() and any(str(directory / "runs") in word for word in each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return [each for each in found if each.name() not in ("sh", "bash")]


def until(condition: Any, directory: Path, run: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        log = (directory / "torchx.log").read_text()
        assert run.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.05)

"""``ecrec launch`` over a real sshd: each host a network namespace with one, of which one is lost while it trains."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_training import check_result, has_reached, let_go, need_data, write_script
from test_faults import Namespaces, namespaces

from ecrec.errors import ConfigurationError
from ecrec.launch.tools.hosts import Launch, read_hosts
from ecrec.launch.tools.verify import cluster_state

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
DEADLINE_S = 120.0
COUNT = 5
"""A scheduler with a worker, and four servers, one of them a spare."""


@pytest.fixture
def network() -> Iterator[Namespaces]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (openssh-server)")
    with namespaces() as made:
        yield made


def toml(**more: Any) -> str:
    values = {"shards": 3, "directory": "/tmp/x", **more}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def host(ssh: str, *runs: str) -> str:
    return f"[[hosts]]\nssh = {json.dumps(ssh)}\nruns = {json.dumps(list(runs))}\n"


GOOD = [host("a", "scheduler", "worker"), *(host(name, "server") for name in "bcd")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (toml() + "".join(GOOD[1:]), "0 hosts run the scheduler: expected 1"),
        (toml() + "".join(GOOD[:3]), "2 hosts run a server, for 3 shards"),
        (toml() + host("a", "scheduler") + "".join(GOOD[1:]), "no host runs a worker"),
        (toml() + "".join(GOOD) + host("e", "serfer"), "e runs 'serfer'"),
        (toml(shard=3) + "".join(GOOD), "unknown field `shard`"),
        (toml() + "".join(GOOD) + host("-oProxyCommand=x", "server"), "no name of a host"),
        ("shards = ", "hosts.toml"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_starts(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_hosts(str(path))


def start_sshd(directory: Path, network: Namespaces, address: str) -> "subprocess.Popen[bytes]":
    """A real one, in the namespace of that address, with keys in the directory; it listens on return."""
    assert SSHD is not None
    for name in ("host", "user"):
        if not (directory / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    config = directory / f"sshd-{address}"
    config.write_text(
        f"ListenAddress {address}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    with (directory / f"sshd-{address}.log").open("w") as log:
        command = ["ip", "netns", "exec", network.name_of(address), SSHD, "-D", "-e", "-f", str(config)]
        sshd = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + DEADLINE_S
    while "listening" not in (directory / f"sshd-{address}.log").read_text():
        assert sshd.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return sshd


def options(directory: Path) -> list[str]:
    return ["-i", str(directory / "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]


def tiny_wheel(directory: Path) -> Path:
    """Of a package that is called ecrec, and says that it was run."""
    path = directory / "ecrec-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("ecrec/__init__.py", "")
        for name in ("scheduler", "ps"):
            wheel.writestr(f"ecrec/launch/servers/{name}.py", "import time\ntime.sleep(3600)\n")
        wheel.writestr("ecrec/launch/worker.py", "import sys\nprint('ran', sys.prefix)\n")
        wheel.writestr("ecrec-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: ecrec\nVersion: 0.0.1\n")
        wheel.writestr("ecrec-0.0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("ecrec-0.0.1.dist-info/RECORD", "")
    return path


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_a_wheel_is_installed_on_a_host_into_an_environment_of_its_own(tmp_path: Path, network: Namespaces) -> None:
    address = network.add()
    sshd = start_sshd(tmp_path, network, address)
    hosts = tmp_path / "hosts.toml"
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    there = tmp_path / "there"
    hosts.write_text(
        toml(shards=1, directory=str(there), python=python, ssh_options=options(tmp_path))
        + host(f"root@{address}", "scheduler", "server", "worker")
    )
    (tmp_path / "train.py").touch()
    said: list[str] = []
    try:
        launch = Launch(read_hosts(str(hosts)), str(tmp_path / "train.py"), [], tmp_path / "out", said.append)
        launch.run(str(tiny_wheel(tmp_path)))
    finally:
        sshd.kill()
        sshd.wait()
    assert f"ran {there / address}/venv" in (tmp_path / "out" / "worker-0.log").read_text()
    assert "worker 0 is done" in said and "the last state of the cluster is not known" in said[-1]


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_a_run_over_ssh_survives_the_loss_of_a_host(tmp_path: Path, network: Namespaces) -> None:
    need_data()
    addresses = [network.add() for _ in range(COUNT)]
    sshds = [start_sshd(tmp_path, network, address) for address in addresses]
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(
        toml(directory=str(tmp_path / "there"), python=sys.executable, ssh_options=options(tmp_path))
        + host(f"root@{addresses[0]}", "scheduler", "worker")
        + "".join(host(f"root@{address}", "server") for address in addresses[1:])
    )
    script = write_script(tmp_path, (10,))
    with (tmp_path / "launch.log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "ecrec.cli", "launch", "--out", str(tmp_path / "out"), str(hosts), str(script)],
            stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip

    def logs() -> str:
        paths = [tmp_path / "launch.log", *sorted((tmp_path / "out").glob("*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert run.poll() is None and time.monotonic() < deadline, logs()
            time.sleep(0.05)

    def pids(address: str) -> list[int]:
        command = ["ip", "netns", "pids", network.name_of(address)]
        return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

    try:
        until(lambda: has_reached(tmp_path, 10))
        state = cluster_state(f"tcp://{addresses[0]}:7070", curve_dir=str(tmp_path / "out" / "keys" / "workers"))
        lost = state.shards[1].endpoint.removeprefix("tcp://").rpartition(":")[0]
        subprocess.run(["ip", "-n", network.name_of(lost), "link", "set", "eth0", "down"], check=True)
        for pid in pids(lost):
            psutil.Process(pid).kill()
        let_go(tmp_path, 10)
        assert run.wait(DEADLINE_S) == 0, logs()
        last = json.loads((tmp_path / "out" / "status.json").read_text())
        assert [shard["state"] for shard in last["shards"]] == ["up"] * 3
        metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        seen = [each for each in metrics if each.get("workers")]
        assert seen and seen[-1]["workers"]["0"]["examples"] > 0
        # Nothing is left over there but sshd.
        deadline = time.monotonic() + DEADLINE_S
        while any("ecrec" in " ".join(cmdline(pid)) for address in addresses for pid in pids(address)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert {path.name for path in (tmp_path / "out").glob("*.log")} == {
            "scheduler.log", "worker-0.log", "metrics.log", *(f"ps-{address}.log" for address in addresses[1:])
        }  # fmt: skip
    finally:
        run.kill()
        run.wait()
        for address in addresses:
            for pid in pids(address):
                psutil.Process(pid).kill()
        for sshd in sshds:
            sshd.kill()
            sshd.wait()
    check_result(tmp_path, deaths=1)


def cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []

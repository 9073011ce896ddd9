"""deploy/slurm/ecrec.sbatch, with fakes of `srun` and `scontrol`: there is no Slurm here.

The fake `srun` runs its command in the network namespace of the node that it is given, with the variables that the
script uses. What Slurm itself does with a node that fails is not tested.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from engine_training import check_result, has_reached, let_go, need_data, write_script
from test_faults import Namespaces, namespaces

SBATCH = Path(__file__).parents[2] / "deploy" / "slurm" / "ecrec.sbatch"
NODES = ("n1", "n2", "n3", "n4", "n5")
DEADLINE_S = 120.0
SRUN = """#!/bin/bash
node=; log=/dev/null
while [[ "$1" == --* ]]; do
    case "$1" in
        --nodelist=*) node=${1#*=} ;;
        --output=*) log=${1#*=} ;;
        --nodes=1 | --ntasks=1 | --overlap | --no-kill | --kill-on-bad-exit=0 | --open-mode=append) ;;
        *) echo "srun: unknown option $1" >&2; exit 1 ;;
    esac
    shift
done
[ -e "$FAKE/lost-$node" ] && exit 1
netns=$(cat "$FAKE/$node")
export SLURMD_NODENAME=$node
exec ip netns exec "$netns" "$@" >>"$log" 2>&1
"""


@pytest.fixture
def network() -> Iterator[Namespaces]:
    with namespaces() as made:
        yield made


def run(directory: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    fake = directory / "fake"
    fake.mkdir()
    (fake / "srun").write_text(SRUN)
    (fake / "scontrol").write_text('#!/bin/bash\n[ "$1 $2" = "show hostnames" ] && tr , "\\n" <<<"$3"\n')
    for name in ("srun", "scontrol"):
        (fake / name).chmod(0o755)
    path = f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SBATCH), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory,
        env={
            **os.environ, "PATH": path, "FAKE": str(fake), "SLURM_JOB_NODELIST": ",".join(NODES), "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(directory), "OMP_NUM_THREADS": "1", **environment,
        },
    )  # fmt: skip


def test_too_few_nodes_are_an_error(tmp_path: Path) -> None:
    job = run(tmp_path, "train.py", SHARDS="4", SPARES="1")
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 2 and "5 nodes: expected 5 for servers, and one or more for workers" in out


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes a minute: ECREC_LONG_FAULTS=1")
def test_a_job_trains_through_the_loss_of_the_node_with_the_scheduler(tmp_path: Path, network: Namespaces) -> None:
    need_data()
    script = write_script(tmp_path, (10,))
    addresses = {node: network.add() for node in NODES}
    table = "127.0.0.1 localhost\n" + "".join(f"{address} {node}\n" for node, address in addresses.items())
    folders = [Path("/etc/netns") / network.name_of(address) for address in addresses.values()]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "hosts").write_text(table)
    job = run(tmp_path, str(script))
    try:
        for node, address in addresses.items():
            (tmp_path / "fake" / node).write_text(network.name_of(address))
        state = tmp_path / "ecrec-7"

        def logs() -> str:
            return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(state.glob("*.log")))

        def until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + DEADLINE_S
            while not condition():
                assert job.poll() is None and time.monotonic() < deadline, logs()
                time.sleep(0.05)

        until(lambda: has_reached(tmp_path, 10))
        asked = subprocess.run(
            ["ip", "netns", "exec", network.name_of(addresses["n5"]), sys.executable, "-m", "ecrec.cli", "status",
             "--json", "--scheduler", f"file://{state}/scheduler.endpoint", "--curve-dir", str(state / "keys-workers")],
            capture_output=True, text=True, timeout=DEADLINE_S, check=True,
        )  # fmt: skip
        endpoints = [shard["endpoint"] for shard in json.loads(asked.stdout)["shards"]]
        deaths = sum("//n1:" in endpoint for endpoint in endpoints)  # none if its server is the spare
        # The first node is lost, with a server and the scheduler: nothing of it is heard any more.
        (tmp_path / "fake" / "lost-n1").touch()
        lost = network.name_of(addresses["n1"])
        subprocess.run(["ip", "-n", lost, "link", "set", "eth0", "down"], check=True)
        pids = subprocess.run(["ip", "netns", "pids", lost], capture_output=True, text=True, check=True).stdout.split()
        assert len(pids) == 2, "a server and the scheduler"
        for pid in pids:
            psutil.Process(int(pid)).kill()
        let_go(tmp_path, 10)
        out, _ = job.communicate(timeout=DEADLINE_S)
        assert job.returncode == 0, out + logs()
        assert "//n1:" not in (state / "scheduler.endpoint").read_text(), "it has moved"
        assert "Traceback" not in logs()
    finally:
        for process in [*psutil.Process(job.pid).children(recursive=True)] if job.poll() is None else []:
            process.kill()
        job.kill()
        job.wait()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    check_result(tmp_path, deaths)

"""What a machine does to a run: forks, full disks, places without room."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import zmq
from processes import Cluster
from runs import SMALL, check_exact, cluster, wait_until, words
from test_faults import fill, small_disk
from test_train_sessions import TRAINING

DEADLINE_S = 120

FORKS = (
    TRAINING
    + """
import os, sys
import ecrec.errors
import ecrec

def child(step):
    # What a library does that forks: the child leaves by an exception, through every block that is open.
    if step in (3, 6):
        pid = os.fork()
        if pid == 0:
            if step == 6:
                try:
                    session.flush()
                except ecrec.errors.EcrecError as error:
                    print("refused:", error, flush=True)
            raise SystemExit(0)
        _, status = os.waitpid(pid, 0)
        print("child", os.waitstatus_to_exitcode(status), flush=True)

with ecrec.local_cluster(shards=3, code="2+1", run_dir=sys.argv[1]) as session:
    digest, losses = train(session, 12, child)
print("steps", len(losses))
"""
)


def test_a_child_of_fork_ends_nothing_and_is_told_to_connect_itself(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(script), str(run_dir)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("child 0") == 2, done.stdout + done.stderr
    assert "steps 12" in done.stdout
    assert "was made by process" in done.stdout and "connect in the process that uses it" in done.stdout
    assert "Traceback" not in done.stderr
    for log in (run_dir / "logs").glob("*.log"):
        assert "down" not in log.read_text(), log.read_text()


def test_a_full_disk_and_a_death_end_no_training(trainer, undisturbed, tmp_path: Path) -> None:
    """The file that tells of the processes cannot be written, nor can logs; the scheduler waits for room."""
    with small_disk(tmp_path / "disk", 8) as disk:
        run = trainer.start(*SMALL, "--steps", "300", "--kill", "ps:2@200", run_dir=disk / "run")
        process, run_dir, _ = run
        words(process, "step 1/")
        fill(disk / "filler")
        before = cluster(run_dir)["pids"]["ps 2"]
        wait_until(lambda: not _runs(before))
        (disk / "filler").unlink()
        finished = trainer.finish(*run)
    check_exact(finished, undisturbed("--steps", "300"))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    """Nor does it keep a server from starting."""
    report = tmp_path / "report"
    command = [sys.executable, "-m", "ecrec.cli", "train", *SMALL, "--steps", "10", "--report", str(report)]
    with open("/dev/full", "w") as full:
        trained = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False
        )
    assert trained.returncode == 0, trained.stderr
    assert "standard output cannot be written (No space left on device)" in trained.stderr
    assert json.loads(report.read_text())["lost_updates"] == 0
    bound, state = f"ipc://{tmp_path}/s", str(tmp_path / "state")
    module = "ecrec.launch.servers.scheduler"
    scheduler = [sys.executable, "-m", module, "--shards", "1", "--bind", bound, "--state", state]
    with open("/dev/full", "w") as full:
        server = subprocess.Popen(scheduler, stdout=full, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "standard output cannot be written" in server.stderr.readline()
        server.terminate()
        assert server.wait(DEADLINE_S) == 0
    finally:
        server.kill()
        server.communicate()


def test_places_without_room_are_said(trainer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for options, word in ((("--run-dir", str(file / "below")), "--run-dir"), (("--run-dir", str(file)), "--run-dir")):
        done = subprocess.run(
            [sys.executable, "-m", "ecrec.cli", "train", *SMALL, *options],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert word in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_long_path_for_temporary_files_is_no_matter(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "ecrec.cli", "train", *SMALL, "--steps", "3", "--report", str(report)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "TMPDIR": str(long)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert report.exists()
    assert list(long.iterdir()) == []


class Few(Cluster):
    """Each process has 256 descriptors."""

    def program(self, name: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        with (self.directory / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", 'ulimit -n 256 && exec "$@"', "-", sys.executable, "-m", f"ecrec.launch.servers.{name}",
                 *arguments],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.running.append(process)
        return process


@pytest.mark.parametrize("speak_zeromq", [False, True])
def test_idle_connections_by_the_hundred_keep_no_peer_out(tmp_path: Path, speak_zeromq: bool) -> None:
    """A death while somebody holds 500 connections to each survivor: they have descriptors for the replacement."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 12_000:
        pytest.skip("2,500 connections, each with the descriptors of its socket, need ulimit -n 12000")
    cluster = Few(tmp_path, "tcp")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(4)
    context.set(zmq.MAX_SOCKETS, 4000)
    idle: list[socket.socket | zmq.Socket[bytes]] = []
    try:
        shards = cluster.start()
        cluster.push(20)
        endpoints = [shard.endpoint for shard in cluster.wait(lambda state: True).shards]
        for endpoint in endpoints:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            for _ in range(500):
                if speak_zeromq:
                    dealer = context.socket(zmq.DEALER)
                    dealer.setsockopt(zmq.LINGER, 0)
                    dealer.setsockopt(zmq.RECONNECT_IVL, -1)
                    dealer.connect(endpoint)
                    idle.append(dealer)
                else:
                    idle.append(socket.create_connection((host, int(port))))
        cluster.push(10)
        shards[2].kill()
        cluster.shard("--spare")
        cluster.push(30)
        cluster.whole({0: 1, 1: 1, 2: 2, 3: 1, 4: 1})
        cluster.check(60)
        assert "ulimit -n" in cluster.logs()
        for shard in (*shards[:2], *shards[3:]):
            assert len(psutil.Process(shard.pid).net_connections("tcp")) < 200
    finally:
        for one in idle:
            one.close()
        context.term()
        cluster.close()

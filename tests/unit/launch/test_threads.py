"""How many cores and threads the processes of a machine take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecrec.launch.threads import cores_of_quota, thread_environment, worker_threads


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (2, 4, 1), (4, 1, 3), (16, 1, 12), (16, 2, 6)]
)
def test_workers_share_what_the_servers_leave(cores, workers, threads):
    assert worker_threads(cores, workers) == threads


def test_waiting_threads_sleep():
    environment = thread_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


V2 = "30 24 0:26 {root} {mounted} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 24 0:27 {root} {mounted} rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = "25 24 0:22 / /proc rw - proc proc rw\n28 24 0:29 / {mounted} rw - cgroup cgroup rw,memory\n"


def proc(directory: Path, mount: str, group: str, root: str = "/") -> Path:
    """A directory of a process whose control groups are mounted at ``directory/cgroup``."""
    process = directory / "proc"
    process.mkdir()
    (process / "mountinfo").write_text((OTHER + mount).format(root=root, mounted=directory / "cgroup"))
    (process / "cgroup").write_text(f"12:memory:/else\n{group}\n")
    return process


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        ("max 100000", None),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("20000 100000", 1),
        ("nonsense", None),
        ("", None),
    ],
)
def test_a_quota_of_cgroups_v2_counts_in_whole_cores(tmp_path, cpu_max, cores):
    process = proc(tmp_path, V2, "0::/")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cpu.max").write_text(cpu_max + "\n")
    assert cores_of_quota(process) == cores


@pytest.mark.parametrize(
    ("group", "root", "cores"),
    [("/pods/mine", "/", 2), ("/pods/other", "/", 3), ("/elsewhere", "/", None), ("/host/pods/mine", "/host", 2),
     ("/docker/other", "/host", None), ("/../outside", "/", None)],
)  # fmt: skip
def test_the_smallest_quota_of_the_groups_above_counts(tmp_path, group, root, cores):
    process = proc(tmp_path, V2, f"0::{group}", root)
    (tmp_path / "cgroup" / "pods" / "mine").mkdir(parents=True)
    (tmp_path / "cgroup" / "pods" / "cpu.max").write_text("300000 100000\n")
    (tmp_path / "cgroup" / "pods" / "mine" / "cpu.max").write_text("200000 100000\n")
    assert cores_of_quota(process) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("250000", 2)])
def test_a_quota_of_cgroups_v1_counts(tmp_path, quota, cores):
    process = proc(tmp_path, V1, "4:cpu,cpuacct:/mine")
    (tmp_path / "cgroup" / "mine").mkdir(parents=True)
    (tmp_path / "cgroup" / "mine" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cgroup" / "mine" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores_of_quota(process) == cores


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cores_of_quota(tmp_path) is None


def test_a_process_in_a_real_group_has_the_cores_of_its_quota():
    place = Path("/sys/fs/cgroup/cpu")
    v2 = not place.is_dir()
    group = (Path("/sys/fs/cgroup") if v2 else place) / f"ecrec-test-{os.getpid()}"
    try:
        group.mkdir()
        if v2:
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        group.rmdir() if group.is_dir() else None
        pytest.skip(f"no control group with a quota can be made here: {error}")
    try:
        move = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); "
        done = subprocess.run(
            [sys.executable, "-c", move + "from ecrec.launch.threads import cores; print(cores())"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "1\n", done.stderr
    finally:
        group.rmdir()

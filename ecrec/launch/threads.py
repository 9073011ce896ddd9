"""How the processes of one machine share its cores.

OpenMP threads spin while they wait: on 2 cores, two of them beside busy servers made a DLRM step twice as
slow as one (840 ms against 370 ms). So every process started here gets a number of threads and a passive wait
policy.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

SERVER_THREADS = 1
SERVERS_PER_CORE = 4
"""With so many servers on each core, all of them waiting for one worker, the default time-outs hold on a machine that
also does other work. With 32 a core, a server that started was silent for 0.8 s, and was declared down."""

SERVER_CORES_FRACTION = 4
"""One core in so many is left to the servers: their work is small beside the dense part of a model."""


def cores() -> int:
    """Cores that this process may use: those of its affinity, and no more than its control groups give it time for."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(mine, cores_of_quota(Path("/proc/self")) or mine)


def cores_of_quota(process: Path) -> int | None:
    """Whole cores of the smallest quota of CPU time, at least 1; None: no quota. Of cgroups v2 and v1, with ancestors.

    With 1.5 cores, two busy threads would be stopped for a quarter of the time, in the middle of what they do.
    ``process``: its directory in /proc. What cannot be read there is no quota.
    """
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        groups = (process / "cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {}
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    quotas: list[float] = []
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        root, mounted = before.split(" ")[3:5]
        quotas += _quotas(kind, Path(mounted), _below(paths[kind], root))
    return max(1, int(min(quotas))) if quotas else None


def _below(path: str, root: str) -> str:
    """Of a group below the one that is mounted; without a name space of its own a container is told the host's path."""
    if ".." in path:
        return ""
    if root != "/":
        path = path.removeprefix(root) if path == root or path.startswith(root + "/") else ""
    return path.strip("/")


def _quotas(kind: str, mounted: Path, below: str) -> Iterator[float]:
    """Cores, of the group and of each above it that has a quota."""
    group = mounted / below
    while True:
        try:
            if kind == "cgroup2":
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            pass
        if group == mounted:
            return
        group = group.parent


def crowding(servers: int, cores: int) -> float:
    """Factor, at least 1, for the time-outs of a cluster on one machine: servers that share a core wait for each other,
    the longer the more they are."""
    return max(1.0, servers / (SERVERS_PER_CORE * cores))


def worker_threads(cores: int, workers: int) -> int:
    """Threads for each worker of a machine that also runs the servers."""
    for_servers = max(1, cores // SERVER_CORES_FRACTION)
    return max(1, (cores - for_servers) // workers)


def thread_environment(threads: int) -> Mapping[str, str]:
    """Environment variables that hold OpenMP, MKL and OpenBLAS to so many threads which sleep while they
    wait."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }

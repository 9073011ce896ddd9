"""How the processes of one machine share its cores.

OpenMP threads spin while they wait: on 2 cores, two of them beside busy servers made a DLRM step twice as
slow as one (840 ms against 370 ms). So every process started here gets a number of threads and a passive wait
policy.
"""

import os
from collections.abc import Mapping

SERVER_THREADS = 1
SERVERS_PER_CORE = 4
"""With so many servers on each core, all of them waiting for one worker, the default time-outs hold on a machine that
also does other work. With 32 a core, a server that started was silent for 0.8 s, and was declared down."""

SERVER_CORES_FRACTION = 4
"""One core in so many is left to the servers: their work is small beside the dense part of a model."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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

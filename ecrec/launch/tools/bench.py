"""``ecrec bench``: sets the process up as the programs of ecrec are, and runs the suites of `ecrec.bench`."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ecrec import codec
from ecrec.errors import ConfigurationError
from ecrec.launch.connect import Keeper
from ecrec.launch.environment import configure_native, keep_freed_memory
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
from ecrec.launch.threads import thread_environment

TUNING_PREFIXES = ("OPENBLAS_", "MKL_", "OMP_", "KMP_", "GOMP_")
"""Variables that hold numpy or torch to another CPU's code or another number of threads than a fair run has."""


ALLOCATOR_OF_CHILDREN = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""What `keep_freed_memory` does for our servers, for the peers' too."""


def run_bench(suites: Sequence[str], case: str, rounds: int, kernel: str | None, json_path: str | None) -> bool:
    """Run suites, print tables, write JSON; False if a peer came to another result.

    Raises ConfigurationError for what cannot be.
    """
    set_up_process(kernel)
    # What loads numpy and torch comes after the environment is as it must be.
    from ecrec.bench.harness import machine
    from ecrec.bench.report import write_json
    from ecrec.bench.suites import run

    outcome = run(suites, case, rounds, local_shards, Console())
    if not (outcome.lines or outcome.skipped or outcome.failed):
        raise ConfigurationError(f"--case {case!r}: no case of {', '.join(suites) or 'any suite'} has this in its name")
    if json_path is not None:
        write_json(json_path, outcome.lines, machine())
    return not outcome.failed


def set_up_process(kernel: str | None = None) -> None:
    """One thread for each library, no tuning that came with the environment, the allocator as servers have it.

    Raises ConfigurationError for a kernel that is unknown or cannot run here.
    """
    for name in [name for name in os.environ if name.startswith(TUNING_PREFIXES)]:
        del os.environ[name]
    os.environ.update(thread_environment(1))
    os.environ.update(ALLOCATOR_OF_CHILDREN)
    keep_freed_memory()
    configure_native()
    if kernel is not None:
        try:
            codec.use_kernel(kernel)
        except ValueError as error:
            raise ConfigurationError(f"--kernel {kernel}: {error}") from error


@contextmanager
def local_shards(shards: int, transport: str) -> Iterator[str]:
    """A scheduler and so many shards, on "tcp" (loopback) or "ipc"; gives the scheduler's endpoint."""
    with (
        tempfile.TemporaryDirectory(prefix="ecrec-bench-") as directory,
        LocalCluster(ClusterSettings(shards, Path(directory), transport)) as cluster,
    ):
        endpoint = cluster.start()
        cluster.wait_ready()
        with Keeper(cluster):
            yield endpoint

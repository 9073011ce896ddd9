"""The engines that a run's processes are on: this machine, or a Ray (``--on``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from ecrec.launch.environment import curve_dir_for_all
from ecrec.launch.local.cluster import ClusterSettings, LocalCluster
from ecrec.launch.local.scratch import Scratch
from ecrec.train.options import LOCAL


def make_cluster(on: str, settings: ClusterSettings, code: str, spares: int, keys: Path | None = None) -> LocalCluster:
    """A cluster that is not started yet. On Ray: of that code, with so many spares; ``keys``: see `keys_of_run`."""
    if on == LOCAL:
        return LocalCluster(settings)
    from ecrec.ray.cluster import Keys
    from ecrec.ray.training import RayTraining  # it has the same calls, and needs Ray

    given = None if keys is None else Keys.read(keys)
    return cast(LocalCluster, RayTraining(settings, code, spares, given))


@contextmanager
def keys_of_run(on: str) -> Iterator[Path | None]:
    """A directory of keys for all clusters of a process, which may have several at a time; the environment names those
    of its tools meanwhile. None on this machine, where no keys are needed."""
    if on == LOCAL:
        yield None
        return
    from ecrec.ray.cluster import make_keys

    with Scratch("ecrec-keys-") as directory, curve_dir_for_all(str(make_keys(directory))):
        yield directory


def describe_engine(on: str) -> str:
    """What results on other machines than this one were measured on; empty for this one."""
    if on == LOCAL:
        return ""
    from ecrec.ray.training import describe_nodes

    return describe_nodes()

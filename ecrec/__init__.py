"""Recommendation model training that survives parameter server deaths, by erasure coding."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecrec.launch.connect import connect, local_cluster

try:
    __version__ = version("ecrec")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__", "connect", "local_cluster"]


def __getattr__(name: str) -> Any:
    # Late: a parameter server imports this package too, and needs nothing of the launcher.
    if name in ("connect", "local_cluster"):
        from ecrec.launch import connect as entry

        return getattr(entry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

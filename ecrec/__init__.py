"""Recommendation model training that survives parameter server deaths, by erasure coding."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecrec.launch.connect import connect, local_cluster
    from ecrec.training import metrics
    from ecrec.training.distribute import distribute

if find_spec("ecrec._native") is None:
    raise ImportError(
        f"{__path__[0]} is ecrec's source without its native module, found first because Python was started beside it "
        "with -m or -c: start it elsewhere, use the installed command (ecrec), or pip install -e ."
    )

try:
    __version__ = version("ecrec")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__", "connect", "distribute", "local_cluster", "metrics"]


def __getattr__(name: str) -> Any:
    # Late: a parameter server imports this package too, and needs nothing of the launcher.
    if name in ("connect", "local_cluster"):
        from ecrec.launch import connect as entry

        return getattr(entry, name)
    if name == "distribute":
        from ecrec.training.distribute import distribute as entry_point

        return entry_point
    if name == "metrics":
        from ecrec.training import metrics as figures

        return figures
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Recommendation model training that survives parameter server deaths, by erasure coding."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ecrec")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__"]

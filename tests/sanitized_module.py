"""A plugin of pytest for `tests/sanitize.sh`: ecrec is the package that the script made, whatever is installed."""

import os
import sys
from pathlib import Path

import pytest


def take_package() -> None:
    """Also in the processes that pytest-xdist starts. RuntimeError if another module is loaded."""
    package = Path(os.environ["ECREC_SANITIZED"]).resolve()
    # An editable installation answers for ecrec before sys.path does.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
    sys.path.insert(0, str(package))

    from ecrec import _native

    with open("/proc/self/maps") as maps:
        is_preloaded = any("libasan" in line for line in maps)
    if Path(_native.__file__).parent != package / "ecrec" or not is_preloaded:
        raise RuntimeError(f"{_native.__file__} was loaded, expected that of {package}, with the sanitizer's runtime")


take_package()


def pytest_report_header(config: pytest.Config) -> str:
    return f"sanitized: {os.environ['ECREC_SANITIZED']}"

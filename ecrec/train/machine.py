"""What a run ran on, and with which versions, for its report."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ecrec
from ecrec.launch.threads import cores


def versions() -> dict[str, str]:
    """What took part."""
    found = {"ecrec": ecrec.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "pyzmq", "msgspec"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def machine_of(engine: str) -> dict[str, Any]:
    """The same, and what the other processes ran on, where that is not this machine."""
    return {**machine(), "engine": engine} if engine else machine()


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

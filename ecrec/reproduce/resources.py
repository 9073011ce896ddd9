"""Servers held to a share of the processors (cgroup) and of a network (tc in a namespace of its own)."""

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ecrec.errors import ConfigurationError

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 20_000
"""Short, so that a group that has used up its share stands still for milliseconds, and is not taken for dead."""

NAMESPACE_SCRIPT = (
    'ip link set lo up && tc qdisc add dev lo root tbf rate {rate}kbit burst {burst} latency 50ms && exec "$@"'
)


class CpuLimit:
    """A cgroup that holds processes to so many cores together. A context manager; raises ConfigurationError where none
    can be made."""

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._held: set[int] = set()
        self._path = _place() / f"ecrec-{os.getpid()}-{secrets.token_hex(4)}"

    def __enter__(self) -> "CpuLimit":
        try:
            self._path.mkdir()
            if (self._path / "cpu.cfs_quota_us").exists():
                (self._path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self._path / "cpu.cfs_quota_us").write_text(str(round(self._cores * PERIOD_US)))
            else:
                (self._path / "cpu.max").write_text(f"{round(self._cores * PERIOD_US)} {PERIOD_US}")
        except OSError as error:
            self._remove()
            raise ConfigurationError(f"no cgroup can be made: {error}") from error
        return self

    def hold(self, pids: Iterable[int]) -> None:
        """Those that are not held yet, with all their threads; one that has just ended is left out."""
        for pid in set(pids) - self._held:
            with contextlib.suppress(ProcessLookupError, OSError):
                (self._path / "cgroup.procs").write_text(str(pid))
            self._held.add(pid)

    @property
    def throttled(self) -> dict[str, int]:
        """What the system counts: periods, and those in which the group had to wait."""
        with contextlib.suppress(OSError):
            return {
                name: int(value) for name, value in map(str.split, (self._path / "cpu.stat").read_text().splitlines())
            }
        return {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        # What still runs goes back where it came from.
        with contextlib.suppress(OSError):
            for pid in (self._path / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (self._path.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            self._path.rmdir()


def _place() -> Path:
    """Where cgroups with a limit on processors are made (version 1 or 2)."""
    return CGROUPS / "cpu" if (CGROUPS / "cpu" / "cpu.cfs_quota_us").exists() else CGROUPS


def why_no_cpu_limit() -> str:
    """Empty if processes can be held to a share of the processors here."""
    try:
        with CpuLimit(1.0):
            return ""
    except ConfigurationError as error:
        return str(error)


def in_namespace(command: list[str], mbit_s: float) -> list[str]:
    """The command in a network namespace of its own, whose loopback interface takes so many megabits a second."""
    kbit = round(1000 * mbit_s)
    script = NAMESPACE_SCRIPT.format(rate=kbit, burst=max(65_536 * 2, kbit * 125 // 100))
    return ["unshare", "--net", "sh", "-c", script, "sh", *command]


def why_no_namespace() -> str:
    """Empty if a network can be held to a rate here."""
    for program in ("unshare", "ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    done = subprocess.run(in_namespace(["true"], 1000.0), capture_output=True, text=True, check=False, timeout=30)
    return "" if done.returncode == 0 else f"no network namespace with a rate: {done.stderr.strip()}"

"""Run a module as a program that the kernel kills when the process that started it dies.

``python .../ecrec/tether.py PARENT_PID MODULE [ARGS]``. The request (PR_SET_PDEATHSIG) is made by the
child itself: Python code between fork and exec can deadlock in a parent that has threads.
"""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module with this Python, tied to the life of this process.

    By its path, because ``-m`` would look for ecrec in the current directory first, maybe a checkout without the core.
    """
    return [sys.executable, __file__, str(os.getpid()), module, *arguments]


def die_with_parent(parent_pid: int) -> None:
    """Ask for SIGKILL at the parent's death (Linux only); exit at once if it is already dead."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(f"the parent process {parent_pid} is gone")


def main() -> None:
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(parent_pid)
    sys.argv[:] = sys.argv[2:]
    # Modules come from where this ecrec is, and never from this file's directory.
    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

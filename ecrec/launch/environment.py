"""What programs and sessions take from their environment, and what servers set for themselves."""

import ctypes
import logging
import os
import sys
import time

from ecrec.errors import ConfigurationError
from ecrec.transport.curve import CurveKeys

KERNEL = "ECREC_KERNEL"
"""Name of the kernel to use in place of the fastest one; one that is unknown or cannot run here is an error."""

THREADS = "ECREC_THREADS"
"""Over how many threads a server divides bulk operations; 1 if not set, as where several servers share a machine."""

CURVE_DIR = "ECREC_CURVE_DIR"
"""Directory of keys (``ecrec/transport/curve.py``) where ``--curve-dir`` names none; empty or not set: no keys."""

CURVE_DIR_HELP = "Directory of keys, made by `ecrec keygen`: encrypt, and let nobody in whose key is not allowed."


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 32 << 20
"""The most that glibc takes."""
_TRIM_THRESHOLD_BYTES = 1 << 30


def curve_keys(directory: str | None = None) -> CurveKeys | None:
    """The keys in the directory, or else in the one that ECREC_CURVE_DIR names; None for a cluster without keys.

    Raises ConfigurationError for a directory without the own secret key, or where others may read that.
    """
    directory = directory or os.environ.get(CURVE_DIR)
    return CurveKeys.load(directory) if directory else None


def use_kernel_of_environment() -> str:
    """Use the kernel that ECREC_KERNEL names, if it names one; return the name of the one in use.

    Raises ConfigurationError for a name that is unknown or that this machine cannot run.
    """
    from ecrec import codec

    name = os.environ.get(KERNEL, "")
    if name:
        try:
            codec.use_kernel(name)
        except ValueError as error:
            raise ConfigurationError(f"{KERNEL}={name}: {error}") from error
    return codec.kernel()


def use_threads_of_environment() -> int:
    """Divide native operations over as many threads as ECREC_THREADS says, if it is set; return how many are in use.

    Raises ConfigurationError for what is not a number of threads.
    """
    from ecrec import codec

    count = os.environ.get(THREADS, "")
    if count:
        try:
            codec.use_threads(int(count))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{THREADS}={count}: expected 1 to 256 threads") from error
    return codec.threads()


def keep_freed_memory() -> None:
    """Let the allocator reuse what was freed instead of giving it back to the system (glibc; elsewhere nothing).

    Every step frees and asks for the same megabytes of messages, and each page that comes back from the system costs a
    fault. What a process once needed it keeps.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def log_to_stderr(verbose: bool) -> None:
    """One line a record, with UTC time and the process id, which tells incarnations apart in a common log."""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ {os.getpid()} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])

"""What programs and sessions take from their environment, and what servers set for themselves."""

import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ecrec.errors import ConfigurationError
from ecrec.transport.curve import CurveKeys

KERNEL = "ECREC_KERNEL"
"""Name of the kernel to use in place of the fastest one; one that is unknown or cannot run here is an error."""

THREADS = "ECREC_THREADS"
"""Over how many threads a server divides bulk operations; 1 if not set, as where several servers share a machine."""

PREFETCH = "ECREC_PREFETCH"
"""The cache, L1 or L2, that native operations fetch rows into before their turn; not set: as this CPU does it best."""

CURVE_DIR = "ECREC_CURVE_DIR"
"""Directory of keys (``ecrec/transport/curve.py``) where ``--curve-dir`` names none; empty or not set: no keys."""

WAIT_TIMEOUT_MS = "ECREC_WAIT_TIMEOUT_MS"
"""What `--wait-timeout-ms` says, where that is not given; empty or not set: no limit."""

WAIT_TIMEOUT_HELP = (
    "Longest wait of a worker for the cluster, in milliseconds; then it ends with an error. Default: no limit while "
    "the scheduler answers and has not lost data, 60 s for one that has never answered, 5 minutes for one that did. "
    "Every 10 s the log names who is missing."
)

CURVE_DIR_HELP = "Directory of keys, made by `ecrec keygen`: encrypt, and let nobody in whose key is not allowed."


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 32 << 20
"""The most that glibc takes."""
_TRIM_THRESHOLD_BYTES = 1 << 30


def wait_timeout_ms(given: float | None = None) -> float | None:
    """What is given, or else what ECREC_WAIT_TIMEOUT_MS says; None: no limit.

    Raises ConfigurationError for what is no time above 0.
    """
    if given is not None:
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if not is_number or not 0 < given < float("inf"):
            raise ConfigurationError(f"wait_timeout_ms {given!r}: expected milliseconds above 0, or None for no limit")
        return given
    text = os.environ.get(WAIT_TIMEOUT_MS, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ConfigurationError(f"{WAIT_TIMEOUT_MS}={text!r}: expected milliseconds, a whole number above 0")
    return int(text)


def curve_keys(directory: str | None = None) -> CurveKeys | None:
    """The keys in the directory, or else in the one that ECREC_CURVE_DIR names; None for a cluster without keys.

    Raises ConfigurationError for a directory without the own secret key, or where others may read that.
    """
    directory = directory or os.environ.get(CURVE_DIR)
    return CurveKeys.load(directory) if directory else None


@contextmanager
def curve_dir_for_all(directory: str | None) -> Iterator[None]:
    """Have `curve_keys` find this directory wherever none is given; None changes nothing."""
    before = os.environ.get(CURVE_DIR)
    if directory is not None:
        os.environ[CURVE_DIR] = directory
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CURVE_DIR, None)
        else:
            os.environ[CURVE_DIR] = before


def configure_native() -> None:
    """The kernel, the cache that rows are fetched into and the threads that the environment names, where it names any.

    Raises ConfigurationError for what is unknown or cannot run on this machine.
    """
    from ecrec import codec

    uses: dict[str, Callable[[str], None]] = {
        KERNEL: codec.use_kernel,
        PREFETCH: codec.use_prefetch,
        THREADS: _use_threads,
    }
    for variable, use in uses.items():
        value = os.environ.get(variable, "")
        if not value:
            continue
        try:
            use(value)
        except (ValueError, TypeError) as error:
            expected = "expected 1 to 256 threads" if variable == THREADS else str(error)
            raise ConfigurationError(f"{variable}={value}: {expected}") from error


def _use_threads(count: str) -> None:
    from ecrec import codec

    if (started := codec.use_threads(int(count))) != int(count):
        logging.getLogger(__name__).warning(
            "%s=%s: only %d threads run, the system starts no more; look at its limits on threads and memory",
            THREADS, count, started,
        )  # fmt: skip


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

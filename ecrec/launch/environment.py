"""What a server process takes from its environment, and what it sets for itself."""

import logging
import os
import sys
import time

from ecrec.errors import ConfigurationError

KERNEL = "ECREC_KERNEL"
"""Name of the kernel to use in place of the fastest one; one that is unknown or cannot run here is an error."""


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


def log_to_stderr(verbose: bool) -> None:
    """One line a record, with UTC time and the process id, which tells incarnations apart in a common log."""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ {os.getpid()} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])

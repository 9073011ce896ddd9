"""Standard output that cannot be written: it only informs, and must end nothing."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Informing:
    """Standard output; once a write fails (a full disk, a reader that has gone), nothing more is said on it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or give up for good; the reason goes to standard error."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """What is still buffered, and what follows, goes nowhere: it would fail again, at the latest at exit."""
        with suppress(OSError):
            print(f"standard output cannot be written ({error.strerror}): no more is said there", file=sys.stderr)
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

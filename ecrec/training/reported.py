"""What a script tells people of its training: figures that travel with the heartbeats of its session."""

import math
from typing import SupportsFloat

from ecrec.errors import ConfigurationError
from ecrec.training.connection import Connection, locked

REPORTED_MAX = 16
"""Figures of a worker: each heartbeat carries them, and tables for people have a column for each."""
NAME_CHARACTERS_MAX = 40


class Reported:
    """The figures that were reported last, by name, and those that the session counts itself."""

    def __init__(self, connection: Connection) -> None:
        self.pid, self.lock = connection.pid, connection.lock
        self._machine, self._counted = connection.machine, connection.figures
        self._own = frozenset(vars(self._counted))
        self._figures: dict[str, float] = {}

    def show(self) -> None:
        """What there is now goes with the next heartbeat."""
        self._machine.figures = {**vars(self._counted), **self._figures}

    @locked
    def report(self, /, **figures: SupportsFloat | None) -> None:
        """Raises ConfigurationError as `Session.report`; nothing is taken then."""
        new = dict(self._figures)
        for name, given in figures.items():
            if name in self._own or len(name) > NAME_CHARACTERS_MAX:
                raise ConfigurationError(
                    f"report({name[:80]}=...): expected a name of at most {NAME_CHARACTERS_MAX} characters, and none "
                    f"of {', '.join(sorted(self._own))}, which the session counts itself"
                )
            if isinstance(given, bool | str) or not isinstance(given, SupportsFloat | None):
                raise ConfigurationError(f"report({name}=...): {given!r:.80} is no number; expected loss.item(), say")
            new.pop(name, None)
            if given is not None and math.isfinite(value := float(given)):
                new[name] = value
        if len(new) > REPORTED_MAX:
            raise ConfigurationError(f"report: {len(new)} figures, expected at most {REPORTED_MAX}: {', '.join(new)}")
        self._figures = new
        self.show()

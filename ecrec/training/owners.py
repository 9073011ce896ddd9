"""The parts of a session, and which table is whose."""

import gc
import weakref
from collections.abc import Callable, Sequence

from ecrec.errors import ConfigurationError
from ecrec.training.parts import Part


class Owners:
    """Parts in the order in which they were made, as long as somebody holds them; each table is one part's."""

    def __init__(self) -> None:
        self._parts: list[Callable[[], Part | None]] = []
        self._owners: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
        """Table -> the part that has it."""

    def check_claim(self, names: Sequence[str]) -> None:
        """Raise ConfigurationError if one of these is a living part's: it would be stepped twice, or overwritten."""
        if any(name in self._owners for name in names):
            gc.collect()  # a module and its part hold each other, and may be gone for all others
        for name in names:
            other = self._owners.get(name)
            if other is not None:
                raise ConfigurationError(
                    f"table {name!r}: this session has a table of that name already, in a {type(other).__name__}; use "
                    "another name, or that one, or delete it first"
                )

    def of(self, name: str) -> object | None:
        """The living part that has this table."""
        return self._owners.get(name)

    def claim(self, names: Sequence[str], owner: object) -> None:
        """These tables are this part's, as long as it lives."""
        for name in names:
            self._owners[name] = owner

    def register(self, part: Part, keep: bool) -> None:
        """From now on it is one of the `parts`; without ``keep`` as long as somebody else holds it."""
        self._parts.append((lambda: part) if keep else weakref.ref(part))

    def release(self, part: Part) -> None:
        """It is no part any more, though somebody may hold it, as the traceback of an error does."""
        for name in [name for name, owner in self._owners.items() if owner is part]:
            del self._owners[name]
        self._parts = [find for find in self._parts if find() is not part]

    @property
    def parts(self) -> list[Part]:
        """Those that live, in the order in which they were made."""
        living = [(find, part) for find in self._parts if (part := find()) is not None]
        self._parts = [find for find, _ in living]
        return [part for _, part in living]

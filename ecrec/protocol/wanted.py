"""Lost rows that a push, a pull or a seed waits for (docs/protocol.md, "Repair of the replacement's data rows").

What waits is looked at again and again. Its rows are found once; a look then costs time in proportion to the rows that
came since, not to all of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ecrec._native import Store


@dataclass(slots=True)
class RowsOfClass:
    """Rows of one class that something waits for."""

    class_id: int
    keys: Any
    """uint64, ascending."""
    here: int = 0
    """So many of the first of them are here."""
    asked: int = 0
    """So many of the first of them are asked for, or here."""
    asking: int = 0
    """`Repairs` forgets what is asked of a class with a view; this tells whether it has since."""


class Wanted:
    """What one push, pull or seed waits for. Rows come, and never go."""

    def __init__(self, store: Store, keys: Any) -> None:
        keys = np.unique(keys)
        classes = store.classes(keys)
        by_class = np.argsort(classes, kind="stable")
        bounds = np.flatnonzero(np.diff(classes[by_class])) + 1
        self.parts = [
            RowsOfClass(int(classes[some[0]]), keys[some]) for some in np.split(by_class, bounds) if some.size
        ]
        """Classes of which rows are missing; the first one has some for sure after `is_here`."""

    def is_here(self, store: Store) -> bool:
        """Whether all rows are."""
        while self.parts:
            part = self.parts[0]
            missing = store.missing_of(part.keys[part.here :], 1)
            if missing.size:
                part.here += int(np.searchsorted(part.keys[part.here :], missing[0]))
                return False
            del self.parts[0]
        return True

"""Rows of a checkpoint by their numbers: weights in memory, for who evaluates a model as it was at the cut."""

from collections.abc import Sequence

import numpy as np

from ecrec.checkpoint.reading import DENSE_BYTES_MAX, Checkpoint
from ecrec.checkpoint.rows import F32, I64, InitialValues
from ecrec.errors import ConfigurationError


class TableRows:
    """The weights of one table: those rows that were ever touched are in memory, others are computed."""

    def __init__(self, checkpoint: Checkpoint, table: str) -> None:
        """Raises as `Checkpoint.rows`."""
        spec = checkpoint.spec(table)
        count = checkpoint.touched_rows(table)
        rows, weights = np.empty(count, np.int64), np.empty((count, spec.dim), np.float32)
        first = 0
        for some, columns in checkpoint.rows(table):  # it has compared their number with the index's
            rows[first : first + len(some)] = some
            weights[first : first + len(some)] = columns["weights"]
            first += len(some)
        order = np.argsort(rows, kind="stable")
        self._rows, self._order, self._weights = rows[order], order, weights
        self._initial = InitialValues(spec)

    def weights(self, rows: I64) -> F32:
        """float32[len(rows), dim]. Raises IndexError for a row that the table does not have."""
        out = self._initial.weights(np.ascontiguousarray(rows, np.int64))
        if self._rows.size:
            at = np.minimum(np.searchsorted(self._rows, rows), self._rows.size - 1)
            there = self._rows[at] == rows
            out[there] = self._weights[self._order[at[there]]]
        return out


def load_tables(
    checkpoint: Checkpoint, tables: Sequence[str], bytes_max: int = DENSE_BYTES_MAX
) -> dict[str, TableRows]:
    """Tables by name. Raises ConfigurationError where the weights of their trained rows have more than ``bytes_max``
    bytes together, and as `Checkpoint.rows`."""
    size = sum(4 * checkpoint.spec(table).dim * checkpoint.touched_rows(table) for table in tables)
    if size > bytes_max:
        raise ConfigurationError(
            f"{checkpoint.folder}: the trained rows of tables {', '.join(tables)} have {size / 1e9:.1f} GB of weights, "
            f"and at most {bytes_max / 1e9:.1f} GB are brought into memory: bring the checkpoint into a cluster of its "
            "own (`ecrec restore`), and evaluate there"
        )
    return {table: TableRows(checkpoint, table) for table in tables}

"""The rows of the data, counted once for all workers, while the servers start."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ecrec.errors import DataError, EcrecError

if TYPE_CHECKING:
    from ecrec.data.rows import Counted


class RowCount:
    """Counts the rows of files in threads, one for each file. A context manager that gives up at its end.

    ``columns``: the TOML file that says which column of the files is what.
    """

    def __init__(self, files: Sequence[str], columns: str | None = None) -> None:
        self._columns = columns
        self._rows: list[Counted | None] = [None] * len(files)
        self._errors: list[EcrecError] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._count, args=(i, file), name=f"count {file}", daemon=True)
            for i, file in enumerate(files)
        ]

    def __enter__(self) -> "RowCount":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _count(self, i: int, file: str) -> None:
        from ecrec.data.columns import read_columns  # numpy, which most programs of the launcher do without
        from ecrec.data.formats import open_rows

        try:
            columns = None if self._columns is None else read_columns(self._columns)
            self._rows[i] = open_rows(file, columns).count(self._is_over.is_set)
        except EcrecError as error:
            self._errors.append(error)

    @property
    def is_done(self) -> bool:
        """All are counted, or one cannot be."""
        return bool(self._errors) or not any(thread.is_alive() for thread in self._threads)

    def result(self) -> "list[Counted]":
        """Of each file; behind `is_done`. Raises DataError for a file that cannot be read."""
        if self._errors:
            raise self._errors[0]
        rows = [number for number in self._rows if number is not None]
        if len(rows) < len(self._rows):
            raise DataError("the rows of the data could not be counted; see above")
        return rows

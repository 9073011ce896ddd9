"""The rows of the data, counted once for all workers, while the servers start."""

import threading
from collections.abc import Sequence
from types import TracebackType

from ecrec.errors import DataError


class RowCount:
    """Counts the lines of files in threads, one for each file. A context manager that gives up at its end."""

    def __init__(self, files: Sequence[str]) -> None:
        self._rows: list[int | None] = [None] * len(files)
        self._errors: list[DataError] = []
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
        from ecrec.data.criteo import count_rows  # numpy, which most programs of the launcher do without

        try:
            self._rows[i] = count_rows(file, self._is_over.is_set)
        except DataError as error:
            self._errors.append(error)

    @property
    def is_done(self) -> bool:
        """All are counted, or one cannot be."""
        return bool(self._errors) or not any(thread.is_alive() for thread in self._threads)

    def result(self) -> list[int]:
        """Rows of each file; behind `is_done`. Raises DataError for a file that cannot be read."""
        if self._errors:
            raise self._errors[0]
        rows = [number for number in self._rows if number is not None]
        if len(rows) < len(self._rows):
            raise DataError("the rows of the data could not be counted; see above")
        return rows

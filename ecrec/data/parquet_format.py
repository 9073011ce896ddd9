"""Parquet files: row groups are streamed, and only those that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ecrec.data.columns import Columns, check_names, import_pyarrow, to_rows
from ecrec.data.opened import open_file
from ecrec.data.rows import PIECE_ROWS, Counted, Layout, Marks, Piece
from ecrec.errors import ConfigurationError, DataError
from ecrec.urls import printable, shown

BUFFER_BYTES = 1 << 20
"""Of each column, so much is read at once: a row group is never held whole."""


class ParquetFile:
    """A Parquet file with these columns; a `RowFile`. Raises DataError for one that lacks some, or is damaged."""

    def __init__(self, name: str, columns: Columns) -> None:
        import_pyarrow("Parquet files")
        self.name = name
        self._columns = columns
        with self._open() as file:
            check_names(shown(name), file.schema_arrow.names, columns)

    @property
    def layout(self) -> Layout:
        return self._columns.layout

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with open_file(self.name) as stream:
            try:
                yield pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
            except (DataError, ConfigurationError):
                raise
            except (pa.ArrowException, OSError) as error:
                reason = printable(str(error).partition("\n")[0][:500])
                raise DataError(f"{shown(self.name)}: damaged or truncated Parquet: {reason}") from error

    def where(self, row: int) -> str:
        """Rows are numbered from 1."""
        return f"{shown(self.name)}, row {row + 1}"

    def count(self, is_over: Callable[[], bool] = lambda: False) -> Counted:
        """From the metadata at the end of the file."""
        with self._open() as file:
            return Counted(file.metadata.num_rows)

    def pieces(
        self, first: int = 0, stop: int | None = None, marks: Marks = (), skip: Callable[[], int] = lambda: 0
    ) -> Iterator[Piece]:
        """Row groups without a wanted row are not read."""
        with self._open() as file:
            end = 0
            for group in range(file.metadata.num_row_groups):
                at, end = end, end + file.metadata.row_group(group).num_rows
                if stop is not None and at >= stop:
                    return
                if end <= max(first, skip()):
                    continue
                batches = file.iter_batches(
                    PIECE_ROWS, row_groups=[group], columns=self._columns.wanted, use_threads=False
                )
                for batch in batches:
                    begin, at = at, at + batch.num_rows
                    low = max(0, first - begin, skip() - begin)
                    keep = batch.num_rows if stop is None else min(batch.num_rows, stop - begin)
                    if low < keep:
                        yield self._piece(batch.slice(low, keep - low), begin + low, at / file.metadata.num_rows)
                    if (stop is not None and at >= stop) or end <= skip():
                        break

    def _piece(self, batch: Any, first: int, share: float) -> Piece:
        import pyarrow as pa

        parsed = to_rows(pa.Table.from_batches([batch]), self._columns, lambda i: self.where(first + i))
        wrong = {first + number: why for number, why in parsed.wrong.items()}
        return Piece(parsed.rows, parsed.numbers + first, wrong, first, first + batch.num_rows, share)

"""Files with named columns, a line a row: CSV, TSV and the like, parsed by pyarrow in blocks of whole lines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.data.columns import Columns, check_names, import_pyarrow, to_rows
from ecrec.data.opened import shown
from ecrec.data.rows import Rows
from ecrec.data.text import Parsed, TextFile, line_blocks
from ecrec.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def csv_file(name: str, columns: Columns) -> TextFile:
    """A CSV file as a `RowFile`. Raises DataError unless it has all columns."""
    import_pyarrow("CSV files")
    names = list(columns.header)
    if not names:
        block = next((each.lines for each in line_blocks(name)), b"")
        line = block[: block.find(b"\n") + 1].removeprefix(_BYTE_ORDER_MARK)
        names = _header(line, columns, shown(name))
    check_names(shown(name), names, columns)
    parser = _Parser(columns, names)
    return TextFile(name, columns.layout, parser.parse, header=0 if columns.header else 1)


def _header(line: bytes, columns: Columns, name: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.csv as csv

    def read(types: dict[str, Any]) -> Any:
        return csv.read_csv(
            pa.BufferReader(line),
            csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
            csv.ParseOptions(delimiter=columns.separator, quote_char=columns.quote or False),
            csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )

    try:
        values = [column[0].as_py() for column in read(dict.fromkeys(read({}).column_names, pa.string())).columns]
    except (pa.ArrowException, IndexError) as error:
        raise DataError(f"{name}, line 1: found no names of columns, expected them in the first line") from error
    return ["" if value is None else value for value in values]


class _Parser:
    """``names``: of all columns of the file."""

    def __init__(self, columns: Columns, names: list[str]) -> None:
        self._columns = columns
        self._names = names

    def parse(self, block: bytes, name: str, first_line: int) -> Parsed:
        """As `ecrec.data.text.Parse`."""
        lines = block.count(b"\n")
        wrong: dict[int, str] = {}
        if first_line == 1:
            block = block.removeprefix(_BYTE_ORDER_MARK)

        def is_wrong(line: int, why: str) -> None:
            wrong[line] = f"{name}, line {first_line + line}: found {why}"

        block, kept = self._whole_lines(block, lines, is_wrong)
        table, numbers = self._table(block, kept, is_wrong)
        if table is None:
            empty = Rows(
                np.empty(0, np.float32),
                np.empty((0, len(self._columns.dense)), np.float32),
                np.empty((len(self._columns.sparse), 0), np.int64),
            )
            return Parsed(empty, numbers, dict(sorted(wrong.items())))
        parsed = to_rows(table, self._columns, lambda i: f"{name}, line {first_line + int(numbers[i])}")
        wrong.update((int(numbers[i]), why) for i, why in parsed.wrong.items())
        return Parsed(parsed.rows, numbers[parsed.numbers], dict(sorted(wrong.items())))

    def _whole_lines(self, block: bytes, lines: int, is_wrong: Any) -> tuple[bytes, NDArray[np.int64]]:
        """The block without lines that pyarrow would take for parts of a row, or for several; which are left."""
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        bad = np.zeros(lines, np.bool_)
        if self._columns.quote and self._columns.quote.encode() in block:
            quotes = np.cumsum(data == ord(self._columns.quote))[ends]
            odd = (np.diff(quotes, prepend=0) % 2).astype(np.bool_)
            for line in np.flatnonzero(odd).tolist():
                is_wrong(line, "a quoted value without its end, expected one in the same line")
            bad |= odd
        if b"\r" in block:
            returns = np.flatnonzero(data == ord("\r"))
            alone = np.unique(np.searchsorted(ends, returns[data[returns + 1] != ord("\n")]))
            for line in alone[~bad[alone]].tolist():
                is_wrong(line, "a carriage return inside of it, expected one row a line")
            bad[alone] = True
        if not bad.any():
            return block, np.arange(lines)
        # A line is taken out by its bytes, all at once.
        keep = np.repeat(~bad, np.diff(ends, prepend=-1))
        return data[keep].tobytes(), np.flatnonzero(~bad)

    def _table(self, block: bytes, kept: NDArray[np.int64], is_wrong: Any) -> tuple[Any, NDArray[np.int64]]:
        """(the table, numbers of its rows); None where no line is a row."""
        import pyarrow as pa
        import pyarrow.csv as csv

        refused: list[int] = []

        def refuse(row: Any) -> str:
            refused.append(row.number - 1)
            is_wrong(
                int(kept[row.number - 1]),
                f"{row.actual_columns} values, expected {row.expected_columns}, separated by "
                f"{self._columns.separator!r}: {row.text[:60]!r}",
            )
            return "skip"

        if not len(kept):
            return None, kept
        table = csv.read_csv(
            pa.BufferReader(block),
            # One block and one thread: only then do rows have numbers.
            csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(block) + 1),
            csv.ParseOptions(
                delimiter=self._columns.separator,
                quote_char=self._columns.quote or False,
                ignore_empty_lines=False,
                invalid_row_handler=refuse,
            ),
            csv.ConvertOptions(
                column_types={name: pa.binary() for name in self._columns.wanted},
                include_columns=self._columns.wanted,
                strings_can_be_null=False,
            ),
        )
        numbers = np.delete(kept, refused)
        if table.num_rows != len(numbers):
            raise AssertionError(f"pyarrow made {table.num_rows} rows of {len(numbers)} lines")
        return table, numbers

"""Files with named columns, a line a row: CSV, TSV and the like, parsed by pyarrow in blocks of whole lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecrec.data.columns import Columns, check_names, import_pyarrow, to_rows
from ecrec.data.rows import Rows
from ecrec.data.text import Parsed, TextFile, line_blocks
from ecrec.errors import DataError
from ecrec.urls import shown

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


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Parser:
    """``names``: of all columns of the file."""

    def __init__(self, columns: Columns, names: list[str]) -> None:
        self._columns = columns
        self._names = names

    def parse(self, block: bytes, name: str, first_line: int) -> Parsed:
        """As `ecrec.data.text.Parse`."""
        import pyarrow as pa

        lines = block.count(b"\n")
        wrong: dict[int, str] = {}
        if first_line == 1:
            block = block.removeprefix(_BYTE_ORDER_MARK)

        def is_wrong(line: int, why: str) -> None:
            wrong[line] = f"{name}, line {first_line + line}: found {why}"

        block, kept = self._lines_alone(block, lines, is_wrong)
        found = list(self._tables(block, kept, is_wrong))
        if not found:
            return self._none(wrong)
        table = pa.concat_tables([table for table, _ in found])
        numbers = np.concatenate([numbers for _, numbers in found])
        parsed = to_rows(table, self._columns, lambda i: f"{name}, line {first_line + int(numbers[i])}")
        wrong.update((int(numbers[i]), why) for i, why in parsed.wrong.items())
        return Parsed(parsed.rows, numbers[parsed.numbers], dict(sorted(wrong.items())))

    def _none(self, wrong: dict[int, str]) -> Parsed:
        layout = self._columns.layout
        dense = np.empty((0, len(layout.dense)), np.float32)
        rows = Rows(np.empty(0, np.float32), dense, np.empty((sum(layout.hot), 0), np.int64))
        return Parsed(rows, np.empty(0, np.int64), dict(sorted(wrong.items())))

    def _lines_alone(self, block: bytes, lines: int, is_wrong: Any) -> tuple[bytes, NDArray[np.int64]]:
        """The block without lines that pyarrow would take for several rows; the numbers of those that are left."""
        if b"\r" not in block:
            return block, np.arange(lines)
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        returns = np.flatnonzero(data == ord("\r"))
        alone = np.unique(np.searchsorted(ends, returns[data[returns + 1] != ord("\n")]))
        for line in alone.tolist():
            is_wrong(line, "a carriage return inside of it, expected one row a line")
        keep = np.ones(lines, np.bool_)
        keep[alone] = False
        # A line is taken out by its bytes, all at once.
        return data[np.repeat(keep, np.diff(ends, prepend=-1))].tobytes(), np.flatnonzero(keep)

    def _tables(self, block: bytes, kept: NDArray[np.int64], is_wrong: Any) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """(a table, numbers of its rows) for the rows of the block, in order. ``kept``: numbers of its lines.

        A quoted value without its end makes one row of several lines. The block is then halved until that line is
        alone.
        """
        if not len(kept):
            return
        refused: list[tuple[int, str]] = []
        table = self._read(block + b"\n", refused)  # an empty line is a row, if nothing before takes it in
        if table is not None and table.num_rows + len(refused) == len(kept) + 1:
            for line, why in refused:
                is_wrong(int(kept[line]), why)
            if table.num_rows > 1:
                yield table.slice(0, table.num_rows - 1), np.delete(kept, [line for line, _ in refused])
        elif len(kept) == 1:
            is_wrong(int(kept[0]), "a quoted value without its end, expected that in the same line")
        else:
            half = len(kept) // 2
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            middle = int(ends[half - 1]) + 1
            yield from self._tables(block[:middle], kept[:half], is_wrong)
            yield from self._tables(block[middle:], kept[half:], is_wrong)

    def _read(self, block: bytes, refused: list[tuple[int, str]]) -> Any:
        """The table of all lines that have as many values as there are columns, and why others have not; None where
        there is none to be made."""
        import pyarrow as pa
        import pyarrow.csv as csv

        if not _is_utf8(block):
            # trap: pyarrow cannot tell of a line that it refuses and that is no UTF-8. Another text, of the same lines,
            # separators and quotes, says which these are.
            probe = self._read(block.decode("latin-1").encode(), refused)
            lines = block.split(b"\n")[:-1]
            if probe is None or probe.num_rows + len(refused) != len(lines):
                return None
            bad = {line for line, _ in refused}
            block = b"".join(line + b"\n" for number, line in enumerate(lines) if number not in bad)

        def refuse(row: Any) -> str:
            found = f"{row.actual_columns} values, expected {row.expected_columns}"
            refused.append((row.number - 1, f"{found}, separated by {self._columns.separator!r}: {row.text[:60]!r}"))
            return "skip"

        wanted = self._columns.wanted
        try:
            return csv.read_csv(
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
                    column_types=dict.fromkeys(wanted, pa.binary()), include_columns=wanted, strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid:
            return None

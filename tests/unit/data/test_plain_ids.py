"""Ids of files that are rows of tables already: taken as they are, and others are bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import whole_rows, write

from ecrec.data import Columns, FileDataset, PlainIds
from ecrec.data.checking import check
from ecrec.data.formats import open_rows
from ecrec.errors import ConfigurationError, DataError

ROWS = 200
RAW = whole_rows(ROWS)
HOT = (3, 1)


def arrays(folder: Path, first: Any = None) -> Path:
    """As MLPerf's preprocessing leaves them: contiguous ids of each feature."""
    path = write(folder, "sparse_multi_hot.npz", RAW)
    if first is None:
        first = np.arange(ROWS * 3).reshape(ROWS, 3) % 40
    np.savez(path, **{"0": first.astype(np.int32), "1": np.arange(ROWS, dtype=np.int32)[:, None] % 7})
    return path


def test_ids_are_those_of_the_file(tmp_path: Path) -> None:
    path = arrays(tmp_path)
    for cache_rows_max in (0, None):
        data = FileDataset([path], PlainIds((40, 7)), train_fraction=1.0, cache_rows_max=cache_rows_max)
        assert data.rows_per_table == (40, 7) and data.hot == HOT
        (batch,) = data.train_range(50, 60, 10)
        with np.load(path) as expected:
            assert np.array_equal(batch.ids, np.concatenate([expected["0"], expected["1"]], axis=1)[50:60].T)
    assert FileDataset([path], PlainIds(1000)).rows_per_table == (1000, 1000)


def test_ids_outside_of_their_tables_are_bad_rows(tmp_path: Path) -> None:
    first = np.zeros((ROWS, 3), np.int64)
    first[7, 2], first[9, 0] = 40, -1
    path = arrays(tmp_path, first)
    with pytest.raises(
        DataError, match=rf"{path}, row 8: found C1 = 40, expected an id from 0 to 39; the table has no"
    ):
        FileDataset([path], PlainIds((40, 7)))
    data = FileDataset([path], PlainIds((40, 7)), train_fraction=1.0, bad_rows="skip")
    (batch,) = data.train_batches(ROWS)
    assert len(batch) == ROWS - 2 and batch.skipped == 2 and batch.ids.max() == 6
    assert "row 10: found C1 = 4294967295 (-1 as int32), expected an id from 0 to 39" in data.bad.found[9]
    defects: list[str] = []
    (checked,) = check([str(path)], None, defects.append, PlainIds((40, 7)))
    assert checked.bad_rows == 2 and checked.rows == ROWS and defects == list(data.bad.found.values())
    (checked,) = check([str(path)], None, defects.append)
    assert checked.is_good


def test_rows_that_are_bad_for_two_reasons_are_told_in_order(tmp_path: Path) -> None:
    path = arrays(tmp_path, np.full((ROWS, 3), 99))
    np.save(tmp_path / "day_0_labels.npy", np.array([0] * 3 + [9] + [1] * (ROWS - 4)))
    data = FileDataset([path], PlainIds(99), train_fraction=1.0, bad_rows="skip")
    assert list(data.bad.found) == list(range(ROWS)) and "found label 9" in data.bad.found[3]
    assert "found C1 = 99" in data.bad.found[4]


def test_an_id_that_is_missing_is_a_bad_row_and_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"label": [0, 1], "item": pa.array([3, None], pa.int64())}), path)
    columns = Columns(sparse=("item",), tokens="decimal")
    with pytest.raises(DataError, match=r"row 2: found no item, expected an id from 0 to 4; ids .* cannot be missing"):
        FileDataset([path], PlainIds(5), columns=columns)
    lines = tmp_path / "rows.csv"
    lines.write_text("label,item\n0,3\n1,9\n")
    with pytest.raises(ConfigurationError, match='tokens = "text" makes hashes of values'):
        FileDataset([lines], PlainIds(5), columns=Columns(sparse=("item",)))
    with pytest.raises(DataError, match=r"rows\.csv, line 3: found item = 9, expected an id from 0 to 4"):
        FileDataset([lines], PlainIds(5), columns=columns)


def test_decimal_ids_of_texts_are_those_of_numbers(tmp_path: Path) -> None:
    columns = Columns(sparse=("item",), tokens="decimal")
    texts, numbers = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    ids = ["0", "", "4294967295", "7", "4294967296", "-1", "1e3", "0x3", "9" * 30]
    texts.write_text("label,item\n" + "".join(f"1,{each}\n" for each in ids))
    (piece,) = open_rows(str(texts), columns).pieces()
    assert piece.rows.tokens.tolist() == [[0, -1, 4294967295, 7]] and sorted(piece.wrong) == [4, 5, 6, 7, 8]
    assert piece.wrong[4].endswith("found item = '4294967296', expected a number of 32 bits, or nothing")
    pq.write_table(pa.table({"label": [1] * 5, "item": pa.array([0, None, 4294967295, 7, 4294967296])}), numbers)
    (piece,) = open_rows(str(numbers), columns).pieces()
    assert piece.rows.tokens.tolist() == [[0, -1, 4294967295, 7]] and sorted(piece.wrong) == [4]


def test_more_than_32_bits_are_named_with_their_feature(tmp_path: Path) -> None:
    path = arrays(tmp_path)
    second = np.zeros((ROWS, 1), np.int64)
    second[4] = 1 << 40
    np.savez(path, **{"0": np.zeros((ROWS, 3), np.int64), "1": second})
    with pytest.raises(DataError, match=r"row 5: found C2 = 1099511627776, expected an id of 32 bits"):
        FileDataset([path], PlainIds(5))


@pytest.mark.parametrize("given", [(0,), ((1, 0),), ((5, 5), (1, 1, 1))])
def test_impossible_tables_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of at least 1"):
        PlainIds(*given)

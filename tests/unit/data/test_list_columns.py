"""Columns of lists are read like that many columns of one value each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecrec.data import Columns, FileDataset, HashedIds
from ecrec.data.formats import check_file, open_rows
from ecrec.errors import ConfigurationError, DataError

LISTS: list[Any] = [["a", "b"], [], ["c", None, "a"], None, ["b"]]
COLUMNS = Columns(sparse=("x", "ids"), lists={"ids": 3})
LABELS = [0, 1, 0, 1, 1]


def write(path: Path, ids: pa.Array, **more: Any) -> str:
    pq.write_table(pa.table({"label": LABELS, "x": LABELS, "ids": ids, **more}), path)
    return str(path)


def tokens_of(path: str, columns: Columns = COLUMNS) -> Any:
    (piece,) = open_rows(path, columns).pieces()
    assert piece.wrong == {}
    return piece.rows.tokens


def apart(path: Path) -> Any:
    """The same ids, a column for each place."""
    places = [[each[i] if each and len(each) > i else None for each in LISTS] for i in range(3)]
    names = tuple(f"ids{i}" for i in range(3))
    pq.write_table(pa.table({"label": LABELS, "x": LABELS, **dict(zip(names, places, strict=True))}), path)
    return tokens_of(str(path), Columns(sparse=("x", *names)))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
)
def test_a_list_is_that_many_columns(kind: pa.DataType, tmp_path: Path) -> None:
    found = tokens_of(write(tmp_path / "lists", pa.array(LISTS, kind)))
    assert found.shape == (4, 5) and np.array_equal(found, apart(tmp_path / "apart"))


def test_rows_from_the_middle_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "lists", pa.array(LISTS))
    whole = tokens_of(path)
    for first, stop in ((0, 2), (1, 4), (2, 5)):
        (piece,) = open_rows(path, COLUMNS).pieces(first, stop)
        assert np.array_equal(piece.rows.tokens, whole[:, first:stop])
    fixed = [[i, i + 1, None] if i != 3 else None for i in range(5)]
    path = write(tmp_path / "fixed", pa.array(fixed, pa.list_(pa.int64(), 3)))
    whole = tokens_of(path)
    assert (whole[1:, 3] == -1).all() and (whole[3] == -1).all() and (whole[1, :3] >= 0).all()
    monkeypatch.setattr("ecrec.data.parquet_format.PIECE_ROWS", 2)
    pieces = list(open_rows(path, COLUMNS).pieces(1, 5))
    assert np.array_equal(np.concatenate([piece.rows.tokens for piece in pieces], axis=1), whole[:, 1:])


def test_texts_of_a_csv_file_are_lists_by_their_separator(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('label,x,ids\n0,0,a|b\n1,1,\n0,0,"c||a"\n1,1,(none)\n1,1,b\n')
    columns = Columns(sparse=COLUMNS.sparse, lists=COLUMNS.lists, list_separator="|", missing=("", "(none)"))
    assert np.array_equal(tokens_of(str(path), columns), apart(tmp_path / "apart"))


def test_a_file_of_nothing_but_bad_lines_has_rows_of_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("label,x,ids\n1\n")
    columns = Columns(dense=("x",), sparse=("ids",), lists={"ids": 3, "x": 2}, list_separator="|")
    (piece,) = open_rows(str(path), columns).pieces()
    assert piece.rows.tokens.shape == (3, 0) and piece.rows.dense.shape == (0, 2) and len(piece.wrong) == 1


def test_ids_of_a_list_are_ids_of_one_feature(tmp_path: Path) -> None:
    path = write(tmp_path / "lists", pa.array(LISTS))
    data = FileDataset([path], HashedIds((10, 500)), columns=COLUMNS, train_fraction=1.0)
    assert data.sparse_features == ("x", "ids") and data.hot == (1, 3) and data.rows_per_table == (10, 500)
    (batch,) = data.train_batches(5)
    ids = batch.ids
    assert ids[1, 0] == ids[3, 2] and ids[2, 0] == ids[1, 4], "an id is one at every place"
    assert (ids[1:, 1] == 0).all() and (ids[1:, 3] == 0).all()


def test_numbers_in_lists_are_dense_features(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, -2.0], [0.5], None, [float("nan"), 3.0], []], pa.list_(pa.float32()))
    path = write(tmp_path / "lists", pa.array(LISTS), v=vectors)
    columns = Columns(dense=("x", "v"), dense_as="is", sparse=("x",), lists={"v": 2})
    (piece,) = open_rows(path, columns).pieces()
    assert columns.layout.dense == ("x", "v[0]", "v[1]")
    assert piece.rows.dense.tolist() == [[0, 1, -2], [1, 0.5, 0], [0, 0, 0], [1, 0, 3], [1, 0, 0]]


def test_a_list_that_is_too_long_or_has_something_wrong_in_it_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "lists", pa.array(LISTS))
    (piece,) = open_rows(path, Columns(sparse=("ids",), lists={"ids": 2})).pieces()
    assert piece.numbers.tolist() == [0, 1, 3, 4] and piece.rows.tokens.shape == (2, 4)
    assert piece.wrong == {2: f"{path}, row 3: found ids of 3 values, expected at most 2"}
    vectors = pa.array([[1.0], [1.0, float("inf")], [], [], []])
    path = write(tmp_path / "lists", pa.array(LISTS), v=vectors)
    (piece,) = open_rows(path, Columns(dense=("v",), sparse=("x",), lists={"v": 2})).pieces()
    assert piece.wrong == {1: f"{path}, row 2: found v[1] = 'inf', expected a finite number or nothing"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            Columns(sparse=("ids",)),
            r"lists, row 1: column ids has lists \(list<.*\), .*lists = \{ \"ids\" = N \} in --co",
        ),
        (Columns(dense=("ids",), sparse=("x",)), r"column ids has lists \(list<.*\), expected one value a row"),
        (
            Columns(sparse=("x",), lists={"x": 2}),
            "column x has values of type int64, expected lists, as --columns says",
        ),
        (Columns(sparse=("name",), lists={"name": 2}), "column name has texts, expected lists, .*list_separator"),
        (Columns(sparse=("deep",), lists={"deep": 2}), r"column deep\[0\] has lists|column deep has lists"),
        (Columns(sparse=("pair",)), "column pair has values of type struct"),
    ],
)
def test_columns_of_another_type_say_what_they_are(columns: Columns, words: str, tmp_path: Path) -> None:
    more = {"name": list("abcde"), "deep": [[[1]]] * 5, "pair": [{"a": 1}] * 5}
    path = write(tmp_path / "lists", pa.array(LISTS), **more)
    with pytest.raises(DataError, match=words):
        check_file(path, columns)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lists": {"y": 2}}, "lists: y is neither in dense nor in sparse"),
        ({"lists": {"x": 0}}, "lists: x = 0: expected 1 to 4096 values"),
        ({"lists": {"x": 4097}}, "lists: x = 4097: expected 1 to 4096 values"),
        ({"list_separator": "|"}, "list_separator: expected lists with it"),
        (
            {"lists": {"x": 2}, "list_separator": ",", "quote": ""},
            "list_separator ',': expected another text than the separator",
        ),
    ],
)
def test_a_mapping_of_lists_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Columns(sparse=("x",), **given).check()

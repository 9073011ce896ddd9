"""Rows that cannot be read, in every format: named with their place, left out and counted; and the pass that looks for
all of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import COLUMNS, KINDS, TEXT_KINDS, table, whole_rows, write
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ecrec.cli import app
from ecrec.data import FileDataset, HashedIds, read_columns
from ecrec.data.columns import Columns, hash_texts
from ecrec.data.csv_format import csv_file
from ecrec.data.formats import check_file, open_rows
from ecrec.data.opened import LABELS
from ecrec.data.text import Parsed
from ecrec.errors import DataError
from ecrec.exit_codes import ExitCode

RAW = whole_rows(200)
BAD = (0, 57, 160, 199)
"""Rows with another label; the last ones are of the test part."""


def mapping_of(kind: str, tmp_path: Path) -> str | None:
    if kind != "csv":
        return None
    path = tmp_path / "columns.toml"
    path.write_text(COLUMNS)
    return str(path)


def write_bad(tmp_path: Path, kind: str) -> Path:
    """The rows with the label 7 in `BAD`."""
    path = write(tmp_path, kind, RAW)
    bad = list(BAD)
    if kind in TEXT_KINDS:
        lines = path.read_bytes().splitlines(keepends=True)
        for row in BAD:
            lines[row + (kind == "csv")] = b"7" + lines[row + (kind == "csv")][1:]
        path.write_bytes(b"".join(lines))
    elif kind == "bin":
        rows = np.fromfile(path, np.int32).reshape(-1, 40)
        rows[bad, 0] = 7
        rows.tofile(path)
    elif kind == "npy":
        rows = np.load(path)
        rows[bad, 0] = 7
        np.save(path, rows)
    elif kind.endswith("npz") and not kind.startswith("sparse"):
        parts = dict(np.load(path))
        parts["y"][bad] = 7
        np.savez(path, **parts)
    elif kind == "parquet":
        rows = pq.read_table(path).set_column(0, "label", pa.array(label_of_all(bad)))
        pq.write_table(rows, path, row_group_size=50)
    else:
        np.save(tmp_path / f"day_0_{LABELS}", label_of_all(bad))
    return path


def label_of_all(bad: list[int]) -> np.ndarray:
    labels = RAW.labels.astype(np.int32)
    labels[bad] = 7
    return labels


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_stop_or_are_left_out_and_named_by_their_place(kind: str, tmp_path: Path) -> None:
    path = write_bad(tmp_path, kind)
    columns = None if kind != "csv" else read_columns(str(mapping_of(kind, tmp_path)))
    place = {"tsv": "line 58", "csv": "line 59"}.get(kind, "row 58")
    options: dict[str, Any] = {"columns": columns, "cache_rows_max": 0}
    with pytest.raises(DataError, match=rf"{path.name}, (row|line) [12]: found label"):
        list(FileDataset([path], HashedIds(9), **options).train_range(0, 160, 50))
    for cache_rows_max in (0, 200):
        data = FileDataset([path], HashedIds(9), **options | {"bad_rows": "skip", "cache_rows_max": cache_rows_max})
        assert (data.train_rows, data.test_rows) == (160, 40), "they count as rows"
        (batch,) = data.train_range(50, 60, 10)
        good = [row for row in range(50, 60) if row != 57]
        assert batch.skipped == 1 and np.array_equal(batch.labels, RAW.labels[good])
        assert sum(map(len, data.train_range(0, 160, 40))) == 158
        assert sum(batch.skipped for batch in data.test_batches(7)) == 2
        assert sorted(data.bad.found) == list(BAD)
        assert f"{path.name}, {place}: found label" in data.bad.found[57] and "7" in data.bad.found[57]


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_names_every_defect_and_ends_as_it_must(kind: str, tmp_path: Path) -> None:
    columns = mapping_of(kind, tmp_path)
    given_columns = [] if columns is None else ["--columns", columns]
    path = write_bad(tmp_path, kind)
    run = CliRunner().invoke(app, ["data", "check", str(path), "--show", "3", *given_columns])
    assert run.exit_code == ExitCode.DAMAGED, run.output
    lines = run.stdout.splitlines()
    assert len(lines) == 4 and all("found label" in line and "expected 0 or 1" in line for line in lines[:3])
    assert lines[3] == f"{path}: 200 rows, 4 bad rows (1 more are not shown)"
    write(tmp_path, kind, RAW)
    run = CliRunner().invoke(app, ["data", "check", str(path), "--json", *given_columns])
    assert run.exit_code == ExitCode.DONE, run.output
    assert json.loads(run.stdout) == [{"name": str(path), "rows": 200, "bad_rows": 0, "damage": "", "defects": []}]


def test_the_check_goes_on_behind_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    good, cut, page = write(tmp_path, "tsv", RAW), tmp_path / "cut.gz", tmp_path / "page.tsv"
    cut.write_bytes(gzip.compress(good.read_bytes())[:2000])
    page.write_text("<html>")
    archive = write(tmp_path, "npz", RAW)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    few = tmp_path / "few_sparse.npy"
    np.save(few, np.zeros((5, 3), np.int32))
    np.save(tmp_path / "few_dense.npy", np.array([[1, 2, np.nan]] * 5, np.float32))
    np.save(tmp_path / "few_labels.npy", np.zeros(5, np.int32))
    names = [str(each) for each in (good, cut, page, archive, few)]
    run = CliRunner().invoke(app, ["data", "check", *names])
    assert run.exit_code == ExitCode.DAMAGED
    assert "cut.gz, after line" in run.stdout and "found damaged or truncated gzip" in run.stdout
    assert "page.tsv: is a page of HTML" in run.stdout
    assert "rows.npz: X_cat.npy: its checksum does not fit" in run.stdout
    assert "few_sparse.npy, row 5: found I3 = nan, expected a finite number" in run.stdout
    assert "few_sparse.npy: has 3 dense and 3 sparse features, and the files before have 13 and 26" in run.stdout
    assert f"{good}: 200 rows, good" in run.stdout and "5 files" in run.stdout
    run = CliRunner().invoke(app, ["data", "check", str(tmp_path / "absent"), *names])
    assert isinstance(run.exception, DataError) and "absent: No such file" in str(run.exception)


def test_values_of_named_columns_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    lines = [
        b"click,price,user", b"1,2.5,a", b"0,x,a", b"2,1,a", b",1,a", b"1,1e999,a", b"1,1", b"1,1,a,b", b"", b'1,"1,a',
        b"1,\r1,a", b'1,"1","a,b"', b"0,,\xff", b"1, 3,a",
    ]  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n")
    columns = Columns(label="click", dense=("price",), sparse=("user",))
    for name in (path, tmp_path / "headless.csv"):
        if name != path:
            name.write_bytes(b"\n".join(lines[1:]) + b"\n")
            columns = Columns(label="click", dense=("price",), sparse=("user",), header=("click", "price", "user"))
        (piece,) = open_rows(str(name), columns).pieces()
        assert piece.numbers.tolist() == [0, 10, 11]
        assert piece.rows.dense[:, 0].tolist() == [np.log1p(np.float32(2.5)), np.log1p(np.float32(1)), 0]
        line = 2 if name == path else 1
        expected = {
            1: "found price = 'x', expected a finite number or nothing",
            2: "found click = '2', expected 0 or 1",
            3: "found click = '', expected 0 or 1",
            4: "found price = '1e999', expected a finite number",
            5: "found 2 values, expected 3, separated by ','",
            6: "found 4 values, expected 3",
            8: "found a quoted value without its end",
            9: "found a carriage return inside of it",
            12: "found price = ' 3', expected a finite number",
        }
        assert set(piece.wrong) == {*expected, 7}, "an empty line is no row either"
        for row, words in expected.items():
            assert f"{name}, line {row + line}: {words}" in piece.wrong[row]


def test_labels_and_numbers_as_the_mapping_says(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    time = pa.array([1, 2, 3, None], pa.timestamp("s"))
    pq.write_table(
        pa.table({
            "stars": [4.5, 4.0, 1.0, None], "kind": pa.array(["buy", "pv", "cart", "buy"]).dictionary_encode(),
            "age": pa.array([3, -2, None, 0], pa.int64()), "done": [True, False, True, True], "time": time,
            "x": [np.nan, 1.0, -1.0, 2.0],
        }),
        path,
    )  # fmt: skip

    def rows(**options: Any) -> Any:
        columns = Columns(dense=("age", "x"), dense_as="is", sparse=("kind", "time", "age"), **options)
        (piece,) = open_rows(str(path), columns).pieces()
        return piece

    piece = rows(label="stars", label_at_least=4.0)
    assert (
        piece.rows.labels.tolist() == [1, 1, 0] and "row 4: found stars = nothing, expected a number" in piece.wrong[3]
    )
    assert piece.rows.dense.tolist() == [[3, 0], [-2, 1], [0, -1]]
    assert rows(label="kind", label_values=("buy", "cart")).rows.labels.tolist() == [1, 0, 1, 1]
    piece = rows(label="done")
    assert piece.rows.labels.tolist() == [1, 0, 1, 1] and (piece.rows.tokens[1:, 2:] < 0).tolist() == [
        [False, True], [True, False],
    ]  # fmt: skip
    assert piece.rows.tokens[0, 0] == piece.rows.tokens[0, 3] != piece.rows.tokens[0, 1]


def test_a_number_is_the_same_token_in_csv_and_parquet(tmp_path: Path) -> None:
    numbers = [0, -7, 2**40, 12]
    pq.write_table(pa.table({"label": [0] * 4, "n": numbers}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("n,label\n" + "".join(f"{n},0\n" for n in numbers))
    columns = Columns(sparse=("n",))
    tokens = [
        next(open_rows(str(tmp_path / name), columns).pieces()).rows.tokens.tolist() for name in ("x.csv", "x.parquet")
    ]
    assert tokens[0] == tokens[1] and len(set(tokens[0][0])) == 4
    hexes = Columns(sparse=("n",), tokens="hex")
    (piece,) = open_rows(str(tmp_path / "x.parquet"), hexes).pieces()
    assert piece.rows.tokens.tolist() == [[0, 2**32 - 7, 12]]
    assert "row 3: found n = '1099511627776', expected 8 hexadecimal digits, a number of 32 bits" in piece.wrong[2]


def test_hashes_of_texts_are_these_on_every_machine_and_in_every_release() -> None:
    texts = [b"", b"a", b"12345678", b"123456789", b"0" * 40]
    data = np.frombuffer(b"".join(texts) + b"\0" * 8, np.uint8)
    lengths = np.array([len(each) for each in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    assert hash_texts(data, starts, lengths).tolist() == HASHES
    other = hash_texts(np.frombuffer(b"xx12345678yyyyyyyyy", np.uint8), np.array([2]), np.array([8]))
    assert other.tolist() == [HASHES[2]], "what lies around a text has no say"


HASHES = [1210155558, 2159934797, 3169403091, 88739092, 3184542819]

FIELDS = st.text(st.sampled_from('a1"\r,é '), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(FIELDS, min_size=1, max_size=4).map(",".join), min_size=1, max_size=8))
def test_each_line_of_a_csv_file_is_one_row_or_one_defect(lines: list[str]) -> None:
    parse = csv_file_parser()
    block = ("\n".join(lines) + "\n").encode()
    parsed = parse(block)
    rows = parsed.numbers.tolist()
    assert sorted([*rows, *parsed.wrong]) == list(range(block.count(b"\n")))
    assert rows == sorted(rows) and parsed.rows.tokens.shape == (2, len(rows))
    for number in rows:  # a line by itself means the same
        alone = parse(block.split(b"\n")[number] + b"\n")
        place = rows.index(number)
        assert np.array_equal(alone.rows.tokens[:, 0], parsed.rows.tokens[:, place])


def csv_file_parser() -> Any:
    from ecrec.data.csv_format import _Parser

    columns = Columns(label="l", label_values=("1",), sparse=("a", "b"), header=("l", "a", "b"))
    parser = _Parser(columns, list(columns.header))

    def parse(block: bytes) -> Parsed:
        return parser.parse(block, "f", 5)

    return parse


def test_a_damaged_page_of_parquet_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table(RAW), path, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: damaged or truncated Parquet"):
        FileDataset([path], HashedIds(9))


def test_csv_needs_no_names_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("1;a\n0;b\n")
    columns = Columns(sparse=("s",), separator=";", quote="", header=("label", "s"))
    assert csv_file(str(tmp_path / "x"), columns).count().rows == 2


def test_a_line_that_is_no_utf8_and_has_too_few_values_is_named_as_that(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"label,a\n1,caf\xe9\n0\xe9\n1,caf\xc3\xa9\n0,x,\xff\nx\xe9,y\n")
    (piece,) = open_rows(str(path), Columns(sparse=("a",))).pieces()
    assert piece.numbers.tolist() == [0, 2] and len(set(piece.rows.tokens[0].tolist())) == 2
    assert "line 3: found 1 values, expected 2" in piece.wrong[1] and "line 5: found 3 values" in piece.wrong[3]
    assert "line 6: found label = 'x\\\\xe9', expected 0 or 1" in piece.wrong[4]
    assert capfd.readouterr().err == ""


def test_a_text_of_parquet_that_is_no_utf8_is_shown(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"x\xff")])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"label": text, "a": [1]}), path)
    with pytest.raises(DataError, match=r"row 1: found label = 'x\\\\xff', expected 0 or 1"):
        check_file(str(path), Columns(sparse=("a",)))

"""Every format gives the same batches of the same rows, reads only what is asked for, and says what a wrong file is."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import COLUMNS, KINDS, rows_of, table, whole_rows, write

from ecrec.data import Batch, FileDataset, HashedIds, VocabularyIds, read_columns
from ecrec.data.columns import Columns
from ecrec.data.formats import check_file, names_of, open_rows
from ecrec.data.opened import DENSE, LABELS
from ecrec.errors import ConfigurationError, DataError

ROWS = 300
RAW = whole_rows(ROWS)


@pytest.fixture
def mapping(tmp_path: Path) -> Columns:
    path = tmp_path / "columns.toml"
    path.write_text(COLUMNS)
    return read_columns(str(path))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 4000)
    for module in ("arrays", "parquet_format"):
        monkeypatch.setattr(f"ecrec.data.{module}.PIECE_ROWS", 37)


def columns_of(kind: str, mapping: Columns) -> Columns | None:
    return mapping if kind in ("csv", "csv.gz") else None


def bytes_of(batches: list[Batch]) -> list[bytes]:
    return [each.labels.tobytes() + each.dense.tobytes() + each.ids.tobytes() for each in batches]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_byte_identical_batches_in_every_format(kind: str, tmp_path: Path, mapping: Columns) -> None:
    expected = FileDataset([write(tmp_path / "tsv", "tsv", RAW)], HashedIds(500))
    path = write(tmp_path, kind, RAW)
    for cache_rows_max in (0, ROWS):
        data = FileDataset([path], HashedIds(500), columns=columns_of(kind, mapping), cache_rows_max=cache_rows_max)
        assert (data.train_rows, data.test_rows) == (240, 60)
        assert data.sparse_features == expected.sparse_features and data.dense_features == expected.dense_features
        for batches in ("train_batches", "test_batches"):
            assert bytes_of(list(getattr(data, batches)(64))) == bytes_of(list(getattr(expected, batches)(64)))
        for first, last in ((100, 170), (10, 20), (200, 240), (0, 240)):
            ranges = [list(each.train_range(first, last, 32)) for each in (data, expected)]
            assert bytes_of(ranges[0]) == bytes_of(ranges[1])
    words = [FileDataset([each], VocabularyIds(1), columns=columns) for each, columns in (
        (path, columns_of(kind, mapping)), (tmp_path / "tsv" / "rows.tsv", None)
    )]  # fmt: skip
    assert words[0].rows_per_table == words[1].rows_per_table
    assert bytes_of(list(words[0].train_batches(100))) == bytes_of(list(words[1].train_batches(100)))


@pytest.mark.parametrize("kind", [*KINDS, "csv.gz"])
def test_rows_are_counted_and_entered_anywhere(kind: str, tmp_path: Path, mapping: Columns) -> None:
    path = write(tmp_path, kind.removesuffix(".gz"), RAW)
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    file = open_rows(str(path), columns_of(kind, mapping))
    assert file.count().rows == ROWS
    for first, stop in ((0, ROWS), (99, 201), (299, 300), (300, 310), (0, 1), (150, None)):
        pieces = list(file.pieces(first, stop))
        numbers = np.concatenate([np.empty(0, np.int64), *(piece.numbers for piece in pieces)])
        assert numbers.tolist() == list(range(first, min(ROWS, stop or ROWS)))
        for piece in pieces:
            assert np.array_equal(piece.rows.tokens, RAW.tokens[:, piece.numbers])
            assert np.array_equal(piece.rows.labels, RAW.labels[piece.numbers])
        if pieces:
            assert [piece.first for piece in pieces] == [first, *(piece.stop for piece in pieces[:-1])]


def test_multi_hot_ids_are_those_of_the_arrays_feature_by_feature(tmp_path: Path) -> None:
    sparse = write(tmp_path, "sparse_multi_hot.npz", RAW)
    hot = (3, 1, 5)
    parts = {str(i): np.arange(ROWS * n, dtype=np.int32).reshape(ROWS, n) * (i + 1) for i, n in enumerate(hot)}
    np.savez(sparse, **parts)
    data = FileDataset([sparse], HashedIds((50, 60, 70), hot=hot), cache_rows_max=0)
    assert data.hot == hot and data.sparse_features == ("C1", "C2", "C3")
    (batch,) = data.train_range(20, 30, 10)
    assert batch.ids.shape == (9, 10)
    singles = HashedIds((50, 60, 70))
    for h in range(3):
        tokens = np.stack([parts["0"][20:30, h], parts["1"][20:30, 0], parts["2"][20:30, h]]).astype(np.int64)
        ids = singles(tokens)
        assert np.array_equal(batch.ids[h], ids[0]) and np.array_equal(batch.ids[4 + h], ids[2])
    assert FileDataset([sparse], VocabularyIds(1)).rows_per_table[0] == 2 + len(np.unique(parts["0"][:240]))


def test_days_come_in_numeric_order_and_arrays_that_belong_together_are_one_file(tmp_path: Path) -> None:
    for day in (10, 2, 0, 1):
        (tmp_path / f"day_{day}.gz").touch()
    expected = [str(tmp_path / f"day_{day}.gz") for day in (0, 1, 2, 10)]
    assert names_of([tmp_path / "day_*.gz"]) == expected == names_of([f"file://{tmp_path}/day_*"])
    assert names_of(expected[::-1]) == expected[::-1], "files that are named are read in that order"
    arrays = tmp_path / "arrays"
    path = write(arrays, "sparse.npy", RAW)
    assert (
        names_of([arrays / "*"]) == [str(path)] == names_of([arrays / "day_0_labels.npy", arrays / "day_0_dense.npy"])
    )
    with pytest.raises(DataError, match=r"x_\*: no file fits"):
        names_of([tmp_path / "x_*"])
    write(arrays, "sparse_multi_hot.npz", RAW)
    with pytest.raises(DataError, match="both are there: name the one to read"):
        names_of([arrays / "day_0_labels.npy"])
    with pytest.raises(DataError, match="are of the same rows: name the one to read"):
        names_of([arrays / "day_0_sparse*"])
    path.unlink()
    (arrays / "day_0_sparse_multi_hot.npz").unlink()
    with pytest.raises(DataError, match=r"day_0_labels\.npy: its rows are completed by sparse\.npy or .*; neither"):
        names_of([arrays / "day_0_labels.npy"])


def test_urls_are_read_by_fsspec(tmp_path: Path, mapping: Columns) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for kind in KINDS:
        path = write(tmp_path, kind, RAW)
        for each in tmp_path.glob("day_0_*"):
            memory.pipe_file(f"/{kind}/{each.name}", each.read_bytes())
            each.unlink()
        if path.exists():
            memory.pipe_file(f"/{kind}/{path.name}", path.read_bytes())
        data = FileDataset([f"memory://{kind}/*"], HashedIds(500), columns=columns_of(kind, mapping), cache_rows_max=0)
        local = FileDataset([write(tmp_path, "tsv", RAW)], HashedIds(500))
        assert bytes_of(list(data.train_range(50, 90, 16))) == bytes_of(list(local.train_range(50, 90, 16)))
    signed = "memory://days/rows.bin?sig=secret"
    memory.pipe_file("/days/rows.bin?sig=secret", rows_of(RAW).tobytes())
    assert names_of([signed]) == [signed], "the query of a signed URL is no wildcard"
    assert len(FileDataset([signed], HashedIds(500)).dense_features) == 13
    memory.pipe_file("/days/rows.bin?sig=secret", b"")
    with pytest.raises(DataError, match=r"^memory://days/rows\.bin\?\*\*\*: found 0 bytes"):
        check_file(signed)
    with pytest.raises(DataError, match=r"memory://nowhere/x\.tsv: No such file"):
        check_file("memory://nowhere/x.tsv")
    with pytest.raises(ConfigurationError, match=r"//\*\*\*@h/x': fsspec cannot open it|a package for nosuch:// is"):
        check_file("nosuch://user:secret@h/x")


@pytest.mark.parametrize(("kind", "files_read"), [("tsv", 3), ("bin", 3), ("parquet", 3)])
def test_a_range_reads_only_its_rows(
    kind: str, files_read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that come from a file for a few rows of it; a file of lines has marks where it was counted."""
    monkeypatch.setattr("ecrec.data.text.MARK_BYTES", 8000)
    monkeypatch.setattr("ecrec.data.parquet_format.BUFFER_BYTES", 1000)
    raw = whole_rows(3000)
    path = write(tmp_path, kind, raw)
    if kind == "parquet":
        pq.write_table(table(raw), path, row_group_size=100)
    counted = open_rows(str(path)).count()
    data = FileDataset(
        [path], HashedIds(9), cache_rows_max=0, rows_of_files=[counted.rows], marks_of_files=[counted.marks]
    )
    read = [0]

    class Counting(io.FileIO):
        def readinto(self, into: Any) -> int:
            count = super().readinto(into) or 0
            read[0] += count
            return count

        def read(self, size: int = -1) -> bytes:
            found = super().read(size)
            read[0] += len(found)
            return found

    monkeypatch.setattr("ecrec.data.opened.open", lambda path, mode: Counting(path), raising=False)
    whole = FileDataset([path], HashedIds(9))
    read[0] = 0
    for first in (2000, 100, 700, 1500):  # backwards and forwards
        (batch,) = data.train_range(first, first + 20, 20)
        (expected,) = whole.train_range(first, first + 20, 20)
        assert bytes_of([batch]) == bytes_of([expected])
    assert 0 < read[0] < path.stat().st_size * (0.7 if kind == "parquet" else 0.3)


def test_nothing_but_numpy_is_needed_for_lines_and_arrays_and_the_rest_says_what_to_install(tmp_path: Path) -> None:
    names = [str(write(tmp_path, kind, RAW)) for kind in ("tsv", "bin", "npz", "sparse.npy")]
    others = [str(write(tmp_path, "csv", RAW)), str(write(tmp_path, "parquet", RAW)), "s3://bucket/day_0"]
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pyarrow", "fsspec", "torch"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Block())
from ecrec.data import Columns, FileDataset, HashedIds
from ecrec.errors import ConfigurationError
for name in {names}:
    assert sum(map(len, FileDataset([name], HashedIds(9)).train_batches(100))) == 240
for name in {others}:
    try:
        FileDataset([name], HashedIds(9), columns=Columns(sparse=("C1",)))
    except ConfigurationError as error:
        assert 'pip install "ecrec[data]"' in str(error), error
        print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "told\n" * 3, done.stderr


# ------------------------------------------------------------------ files that are something else
def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


GOOD = npy(rows_of(RAW))
PARQUET = io.BytesIO()
pq.write_table(table(RAW), PARQUET)
ZIPPED = io.BytesIO()
np.savez(ZIPPED, a=np.arange(3))
ROWS_ZIPPED = io.BytesIO()
np.savez(ROWS_ZIPPED, y=np.arange(3), X_int=np.arange(3), X_cat=np.arange(3))
ENCRYPTED = ROWS_ZIPPED.getvalue()
for begin, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # one bit of each header says so
    ENCRYPTED = b"".join(
        begin + part[: flags - 4] + bytes([part[flags - 4] | 1]) + part[flags - 3 :] if i else part
        for i, part in enumerate(ENCRYPTED.split(begin))
    )
GZIPPED = gzip.compress(b"1", mtime=0)  # a time in it would name the test otherwise in each process


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "x.npy",
            ZIPPED.getvalue(),
            r"x\.npy: its name says an array of NumPy .*, and it is a zip archive \(.npz",
        ),
        ("x.npz", GOOD, "its name says a zip archive .*, and it is an array of NumPy"),
        ("x.npz", ZIPPED.getvalue(), "found no array y, X_int, X_cat; there are: a"),
        ("x.parquet", GZIPPED, "its name says a Parquet file, and it is compressed by gzip: unpack it"),
        ("x.npy", b"1\t2\n", r"and it is no such file: it begins with b'1\\t2\\n'"),
        ("x.bin", GZIPPED, "its name says int32 rows, and it is compressed by gzip"),
        ("x.bin", b"\0" * 161, "found 161 bytes, expected a multiple of 160"),
        ("x.bin", b"", "found 0 bytes, expected a multiple of 160"),
        ("x.bin", np.ones(40, "<f4").tobytes(), r"found \[1.0, 1.0, 1.0\]... in the first row, if read as floats"),
        ("x.tsv", b"<!DOCTYPE html>\n<html>", "is a page of HTML or XML: the download answered with an error"),
        ("x.tsv", b"<?xml version='1.0'?><Error>", "is a page of HTML or XML"),
        ("x.gz", b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        ("x.tsv", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (
            "x.gz",
            gzip.compress(GOOD, mtime=0),
            "gzip, and inside of that it is an array of NumPy .* unpack it",
        ),
        (
            "x.gz",
            gzip.compress(GZIPPED, mtime=0),
            "inside of that it is gzip: only text is read from gzip, unpack",
        ),
        ("x.tsv", b"\0" * 999, "is no text, but data of no format that is known here"),
        ("x.feather", b"ARROW1\0\0", "is an Arrow or Feather file: write it as Parquet"),
        ("x.db", b"SQLite format 3\0", "is a database of SQLite"),
        ("x.lz4", b"\x04\x22\x4d\x18", "is compressed by lz4: unpack it"),
        ("x.Z", b"\x1f\x9d\x90", r"is compressed by compress \(\.Z\): unpack it"),
        ("x.tsv", "0\t1".encode("utf-16"), "is text in UTF-16: write it in UTF-8"),
        ("x.json", b'{"label": 1}\n', "is JSON: write it as Parquet or CSV"),
        ("x.pkl", b"\x80\x04\x95", "is a pickle, which is never read"),
        ("x.tfrecord", b"\x10\0\0\0\0\0\0\0", "TFRecord files are converted once, to Parquet"),
        ("x.npy", GOOD[:2000], "found 2000 bytes, expected 48128 for 300 rows of 40: it is cut off"),
        ("x.npy", GOOD[:20], "no array of NumPy"),
        ("x.npy", GOOD.replace(b"(300, 40)", b"(300, 2\x01N"), "no array of NumPy"),
        ("x.npy", npy(np.zeros((4, 39), np.int32)), r"found an array of shape \[4, 39\] and type int32, expected int"),
        ("x.npy", npy(np.zeros((4, 40), np.float32)), r"shape \[4, 40\] and type float32"),
        ("x.npy", npy(np.zeros((40, 4), np.int32).T), "in Fortran's order"),
        ("x.npy", npy(np.array([{}]), allow_pickle=True), "type object, expected numbers"),
        ("x.npy", b"\x93NUMPY\x02\0\xff\xff\xff\x7f" + b" " * 99, "a header of 2147483647 bytes"),
        ("x.parquet", PARQUET.getvalue()[:-9], "damaged or truncated Parquet"),
        ("x.npz", ENCRYPTED, "y: damaged, truncated or encrypted: .*encrypted, password required"),
        ("x.npz", ZIPPED.getvalue()[:-30], "damaged or truncated .npz"),
        ("x.parquet", PARQUET.getvalue()[:4] + b"x" * 50, "damaged or truncated Parquet"),
    ],
)
def test_a_file_that_is_something_else_is_named_as_that(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        check_file(str(path))
    assert str(path) in str(caught.value)


def test_directories_and_columns_that_are_not_there_are_named(tmp_path: Path, mapping: Columns) -> None:
    with pytest.raises(DataError, match=r"is a directory, expected a file; all files in it are '.*/\*'"):
        check_file(str(tmp_path))
    path = tmp_path / "x.csv"
    path.write_text("label,I1,I1\n1,2,3\n")
    lacking = Columns(label="click", sparse=("site",))
    with pytest.raises(DataError, match=r"x\.csv: found no column click, site; there are: label, I1, I1"):
        check_file(str(path), lacking)
    with pytest.raises(DataError, match="found column I1 more than once"):
        check_file(str(path), Columns(sparse=("I1",)))
    path.write_text("click;site\n1;2\n")
    with pytest.raises(DataError, match=r"there are: click;site\..*; is it separated by ';'\? separator in that"):
        check_file(str(path), lacking)
    path.write_text("a\x07,b\n1,2\n")
    with pytest.raises(DataError, match=r"there are: a\\x07, b\."):
        check_file(str(path), lacking)
    path.write_text("")
    with pytest.raises(DataError, match="line 1: found no names of columns"):
        check_file(str(path), lacking)
    parquet = write(tmp_path, "parquet", RAW)
    with pytest.raises(DataError, match=r"found no column click, site; there are: label, I1, .*--columns FILE"):
        check_file(str(parquet), lacking)
    pq.write_table(pa.table({"label": [1], "x": [[1, 2]]}), parquet)
    with pytest.raises(DataError, match=r"rows\.parquet, row 1: column x has lists .list.*, expected one value a row"):
        check_file(str(parquet), Columns(sparse=("x",)))
    with pytest.raises(ConfigurationError, match=r"--columns: .*rows\.bin has no names of columns"):
        check_file(str(write(tmp_path, "bin", RAW)), lacking)


def test_arrays_of_different_rows_and_files_of_different_features_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "sparse.npy", RAW)
    np.save(tmp_path / f"day_0_{LABELS}", np.zeros(299, np.int32))
    with pytest.raises(DataError, match=r"different numbers of rows \(labels 299, dense 300, sparse 0 300\)"):
        open_rows(str(path))
    np.save(tmp_path / f"day_0_{LABELS}", np.zeros(300, np.int32))
    np.save(tmp_path / f"day_0_{DENSE}", np.zeros((300, 2), np.float32))
    tsv = write(tmp_path, "tsv", RAW)
    with pytest.raises(DataError, match=r"found 2 dense and 26 sparse features, and .*tsv has 13 dense and 26 sparse"):
        FileDataset([tsv, path], HashedIds(9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparse = []", "sparse: expected at least one column"),
        ("label = 'x'", "missing required field `sparse`"),
        ("sparse = ['a']\nsparce = 1", "contains unknown field `sparce`"),
        ("sparse = ['a', 'a']", "a column is named twice"),
        ("sparse = ['a']\nseparator = 'ab'", "separator 'ab': expected one ASCII character"),
        ("sparse = ['a']\ndense_as = 'log'", "dense_as"),
        ("sparse = ['a']\nheader = ['label']", "header: has no column a"),
        ("sparse = ['a']\nlabel_at_least = 1\nlabel_values = ['x']", "expected one of them"),
        ("sparse = ", "columns.toml"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "columns.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_columns(str(tmp_path / "columns.toml"))

"""Files, splits, ids and batches of the Criteo reader."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecrec.data import Batch, FileDataset, HashedIds, SyntheticDataset, SyntheticOptions, VocabularyIds
from ecrec.data.batch import examples_of_steps
from ecrec.data.criteo import criteo_file
from ecrec.data.dataset import read_pieces
from ecrec.data.formats import check_file
from ecrec.data.ids import VocabularyTables
from ecrec.data.rows import MISSING_TOKEN, Piece, transform_integers
from ecrec.data.text import LINE_BYTES_MAX, line_blocks
from ecrec.errors import DataError

ROWS = 1000


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    path = tmp_path / "rows.tsv"
    SyntheticDataset(SyntheticOptions(rows=ROWS)).write_tsv(path)
    return path


def pieces(path: Path, first: int = 0, stop: int | None = None) -> Iterator[Piece]:
    return read_pieces([criteo_file(str(path))], first, stop)


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.labels, b.labels) and np.array_equal(a.dense, b.dense) and np.array_equal(a.ids, b.ids)


def test_batches_are_the_same_plain_zipped_misnamed_split_in_files_cached_and_streamed(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks, so that lines, batches and files end in the middle of one.
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 1000)
    text = tsv.read_bytes()
    zipped = tmp_path / "zipped.txt"
    zipped.write_bytes(gzip.compress(text[: len(text) // 2]) + gzip.compress(text[len(text) // 2 :]))
    parts = [tmp_path / "part0", tmp_path / "part1.gz"]
    cut = text.index(b"\n", len(text) // 3)
    parts[0].write_bytes(text[:cut])
    parts[1].write_bytes(text[cut + 1 :].replace(b"\n", b"\r\n"))
    for ids in (HashedIds(500), VocabularyIds(2)):
        expected = list(FileDataset([tsv], ids).train_batches(64, epochs=2))
        expected_test = list(FileDataset([tsv], ids).test_batches(64))
        assert [len(batch) for batch in expected] == ([64] * 12 + [32]) * 2
        assert sum(len(batch) for batch in expected_test) == 200
        for files in ([tsv], [zipped], parts):
            for cache_rows_max in (0, ROWS):
                data = FileDataset(files, ids, cache_rows_max=cache_rows_max)
                assert data.cached == (cache_rows_max == ROWS)
                assert (data.train_rows, data.test_rows) == (800, 200)
                got = list(data.train_batches(64, epochs=2))
                assert len(got) == len(expected)
                assert all(map(same, got, expected))
                assert all(map(same, data.test_batches(64), expected_test))
                tail = list(data.train_batches(64, steps=20, first_step=15))
                assert all(map(same, tail, expected[15:20])) and len(tail) == 5


def test_ranges_are_the_rows_of_the_batches_in_any_order(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 5000)
    zipped = tmp_path / "zipped.gz"
    zipped.write_bytes(gzip.compress(tsv.read_bytes()))
    whole = next(FileDataset([tsv], HashedIds(500)).train_batches(800))
    for cache_rows_max in (0, ROWS):
        data = FileDataset([zipped], HashedIds(500), cache_rows_max=cache_rows_max)
        # on from there, a gap, back, a piece of what is held, the end, the start
        for first, last in ((0, 70), (70, 130), (300, 420), (100, 140), (141, 150), (700, 800), (0, 1), (5, 5)):
            batches = list(data.train_range(first, last, 32))
            assert [len(batch) for batch in batches] == [min(32, last - at) for at in range(first, last, 32)]
            for at, batch in zip(range(first, last, 32), batches, strict=True):
                assert same(batch, whole.rows(at, min(at + 32, last)))
    generated = SyntheticDataset(SyntheticOptions(rows=ROWS))
    (batch,) = generated.train_range(100, 140, 64)
    assert same(batch, generated.batch(100, 140))


def test_splits_that_go_forwards_open_the_files_once(tsv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 5000)
    data = FileDataset([tsv], HashedIds(500), cache_rows_max=0)
    opened = []
    monkeypatch.setattr("ecrec.data.dataset.read_pieces", lambda *a: opened.append(a) or read_pieces(*a))
    for first in range(0, 800, 100):
        list(data.train_range(first, first + 50, 20))
    assert len(opened) == 1
    list(data.train_range(0, 50, 20))
    assert len(opened) == 2


@pytest.mark.parametrize(("first", "last", "batch"), [(-1, 5, 2), (5, 4, 2), (0, 801, 2), (0, 5, 0)])
def test_ranges_that_are_none_are_refused(tsv: Path, first: int, last: int, batch: int) -> None:
    for data in (FileDataset([tsv], HashedIds(100)), SyntheticDataset(SyntheticOptions(rows=ROWS))):
        with pytest.raises(ValueError, match="there are none such"):
            list(data.train_range(first, last, batch))


@pytest.mark.parametrize("options", [{"epochs": 3}, {"steps": 0}, {"steps": 5}, {"steps": 13}, {"steps": 40}])
def test_examples_of_steps_are_those_of_their_batches(options: dict[str, int]) -> None:
    batches = SyntheticDataset(SyntheticOptions(rows=ROWS)).train_batches(64, **options)
    assert examples_of_steps(800, 64, **options) == sum(map(len, batches))


def test_generated_rows_written_and_read_give_the_generated_batches(tsv: Path) -> None:
    generator = SyntheticDataset(SyntheticOptions(rows=ROWS))
    reader = FileDataset([tsv], HashedIds(generator.rows_per_table))
    assert reader.rows_per_table == generator.rows_per_table
    for batch_size in (1000, 33):
        read = [*reader.train_batches(batch_size), *reader.test_batches(batch_size)]
        generated = [*generator.train_batches(batch_size), *generator.test_batches(batch_size)]
        assert len(read) == len(generated)
        assert all(map(same, read, generated))


def test_batches_have_the_stated_shapes_and_types(tsv: Path) -> None:
    data = FileDataset([tsv], HashedIds(100))
    batch = next(iter(data.train_batches(7)))
    assert (batch.labels.shape, batch.labels.dtype) == ((7,), np.float32)
    assert (batch.dense.shape, batch.dense.dtype) == ((7, 13), np.float32)
    assert (batch.ids.shape, batch.ids.dtype) == ((26, 7), np.int64)
    assert batch.ids.flags.c_contiguous
    for other in data.train_batches(64):
        assert other.ids.min() >= 0
        assert other.ids.max() < 100


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 80])
def test_worker_slices_are_disjoint_contiguous_and_cover_the_batch(tsv: Path, workers: int) -> None:
    batch = next(iter(FileDataset([tsv], HashedIds(100)).train_batches(64)))
    slices = [batch.shard(worker, workers) for worker in range(workers)]
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    joined = Batch(
        np.concatenate([part.labels for part in slices]),
        np.concatenate([part.dense for part in slices]),
        np.concatenate([part.ids for part in slices], axis=1),
    )
    assert same(joined, batch)
    with pytest.raises(ValueError, match="not one of"):
        batch.shard(workers, workers)


def test_integers_are_log_transformed_and_missing_or_negative_ones_are_zero() -> None:
    got = transform_integers(np.array([[0, -3, 1, 99]]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.0, 0.0, np.log(2.0), np.log(100.0)]], rtol=1e-6)


def test_hashed_ids_are_these_on_every_machine_and_in_every_release() -> None:
    tokens = np.full((26, 3), MISSING_TOKEN, np.int64)
    tokens[:, 0] = 0
    tokens[:, 1] = 0xFFFFFFFF
    ids = HashedIds(1_000_003)(tokens)
    assert ids[[0, 1, 25], 0].tolist() == [320054, 531669, 135614]
    assert ids[[0, 1, 25], 1].tolist() == [11642, 136594, 618617]
    assert not ids[:, 2].any()


def test_hashed_ids_use_every_row_and_keep_row_0_for_the_missing_token() -> None:
    tokens = np.tile(np.arange(20_000, dtype=np.int64), (26, 1))
    rows = (2, 3, *range(10, 34))
    ids = HashedIds(rows)(tokens)
    for column, table_rows in zip(ids, rows, strict=True):
        counts = np.bincount(column, minlength=table_rows)
        assert len(counts) == table_rows
        assert counts[0] == 0
        assert counts[1:].min() > 0.7 * 20_000 / (table_rows - 1)
    with pytest.raises(ValueError, match="at least 2"):
        HashedIds(1)


def test_a_vocabulary_has_its_tokens_by_first_occurrence_and_drops_rare_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Merge after every piece, so that the counts and first rows go through merging.
    monkeypatch.setattr("ecrec.data.ids._MERGE_ENTRIES", 1)
    seen = np.array([30, MISSING_TOKEN, 10, 20, 10, MISSING_TOKEN, 30, 5, 40, 40], np.int64)
    pieces = [np.tile(part, (26, 1)) for part in np.array_split(seen, 4)]
    table = VocabularyTables.build(VocabularyIds(min_count=2), iter(pieces))
    assert table.rows_per_table == (5,) * 26
    asked = np.tile(np.array([30, 10, 40, 20, 5, 77, MISSING_TOKEN], np.int64), (26, 1))
    assert table(asked)[13].tolist() == [2, 3, 4, 0, 0, 0, 1]
    everything = VocabularyTables.build(VocabularyIds(min_count=1), iter(pieces))
    assert everything(asked)[0].tolist() == [2, 3, 6, 4, 5, 0, 1]
    with pytest.raises(ValueError, match="min_count"):
        VocabularyIds(0)


def test_a_vocabulary_knows_nothing_of_the_test_part(tsv: Path) -> None:
    train_tokens = np.concatenate([piece.rows.tokens for piece in pieces(tsv, 0, 800)], axis=1)
    data = FileDataset([tsv], VocabularyIds(1))
    for feature, rows in enumerate(data.rows_per_table):
        assert rows == 2 + len(set(train_tokens[feature].tolist()) - {MISSING_TOKEN})


def test_a_malformed_line_names_its_file_and_line(tsv: Path, tmp_path: Path) -> None:
    lines = tsv.read_bytes().split(b"\n")
    lines[699] = lines[699].replace(b"\t", b" ", 1)
    bad = tmp_path / "bad.tsv"
    bad.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"bad\.tsv, line 700: found 39 tab-separated fields, expected 40"):
        FileDataset([tsv, bad], HashedIds(100))
    streaming = FileDataset([tsv, bad], HashedIds(100), cache_rows_max=0)
    assert sum(map(len, streaming.train_batches(64))) == 1600
    with pytest.raises(DataError, match=r"bad\.tsv, line 700"):
        list(streaming.test_batches(64))


def test_a_truncated_gzip_file_names_the_last_good_line(tsv: Path, tmp_path: Path) -> None:
    whole = gzip.compress(tsv.read_bytes())
    cut = tmp_path / "cut.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.gz, after line \d+: found damaged or truncated gzip"):
        FileDataset([cut], HashedIds(100))
    flipped = bytearray(whole)
    flipped[-6] ^= 1
    cut.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match=r"cut\.gz, after line \d+: found damaged or truncated gzip"):
        FileDataset([cut], HashedIds(100))


def test_a_text_file_cut_inside_its_last_line_is_refused(tsv: Path) -> None:
    text = tsv.read_bytes()
    tsv.write_bytes(text[: text.rindex(b"\t") - 3])
    with pytest.raises(DataError, match=rf"line {ROWS}: "):
        FileDataset([tsv], HashedIds(100))


def test_files_that_are_absent_empty_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.tsv.*cannot be read"):
        FileDataset([tmp_path / "absent.tsv"], HashedIds(100))
    with pytest.raises(DataError, match="is a directory, expected a file"):
        FileDataset([tmp_path], HashedIds(100))
    empty = tmp_path / "empty.tsv"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.tsv: found no rows"):
        FileDataset([empty], HashedIds(100))
    with pytest.raises(DataError, match="no file: found no rows"):
        FileDataset([], HashedIds(100))
    noise = tmp_path / "noise.bin"
    noise.write_bytes(b"\0" * (LINE_BYTES_MAX + 1))
    with pytest.raises(DataError, match=r"noise\.bin, line 1: found a line of more than"):
        list(line_blocks(str(noise)))


def test_steps_without_training_rows_are_refused(tsv: Path) -> None:
    data = FileDataset([tsv], HashedIds(100), train_fraction=0.0)
    assert list(data.train_batches(64)) == []
    with pytest.raises(DataError, match="no rows"):
        list(data.train_batches(64, steps=1))
    with pytest.raises(ValueError, match="train_fraction"):
        FileDataset([tsv], HashedIds(100), train_fraction=1.5)
    with pytest.raises(ValueError, match="batch_size"):
        list(data.train_batches(0))


def test_the_real_criteo_sample_is_read_whole() -> None:
    default = Path(__file__).parents[4] / "shared" / "data" / "criteo_100k.tsv.gz"
    path = Path(os.environ.get("ECREC_CRITEO", default))
    if not path.is_file():
        pytest.skip(f"no Criteo rows at {path}; set ECREC_CRITEO")
    rows = criteo_file(str(path)).count().rows
    data = FileDataset([path], VocabularyIds(2))
    batches = [*data.train_batches(2048), *data.test_batches(2048)]
    assert sum(map(len, batches)) == rows == data.train_rows + data.test_rows
    assert 0.2 < np.mean(np.concatenate([batch.labels for batch in batches])) < 0.3


def test_a_file_that_shrank_since_it_was_opened_is_refused(tsv: Path) -> None:
    data = FileDataset([tsv], HashedIds(100), cache_rows_max=0)
    lines = tsv.read_bytes().splitlines(keepends=True)
    tsv.write_bytes(b"".join(lines[:500]))
    with pytest.raises(DataError, match="fewer rows than when they were counted"):
        list(data.train_batches(64))


LINE = b"\t".join([b"1", *[b"3"] * 13, *[b"0a0b0c0d"] * 26])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbf" + LINE + b"\n", "byte order mark"),
        (LINE + b"\r" + LINE + b"\r", "carriage return alone"),
        (LINE.replace(b"\t", b",") + b"\n", "separated by commas"),
        (LINE[2:] + b"\n", "a test file, which has no label"),
        (b"label" + LINE[1:] + b"\n", "looks like a header"),
        (b"", "the file is empty"),
    ],
)
def test_what_a_file_looks_like_that_is_none_of_criteos(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        check_file(str(path))


def test_a_file_is_checked_by_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(LINE + b"\r\n" + b"not a row\n")
    check_file(str(path))
    with pytest.raises(DataError, match="line 2: found 1 tab-separated fields"):
        list(pieces(path))
    with pytest.raises(DataError, match="No such file"):
        check_file(str(tmp_path / "other"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(DataError, match="is a pipe or a device, and the rows are read more than once"):
            check_file(str(path))


# ------------------------------------------------------------------ bad rows, and rows that were counted before
def with_bad_rows(tsv: Path, tmp_path: Path, bad: dict[int, bytes]) -> list[Path]:
    """The rows in three files, the second one zipped, with other lines in the place of some."""
    lines = tsv.read_bytes().splitlines(keepends=True)
    for row, line in bad.items():
        lines[row] = line + b"\n"
    files = [tmp_path / "one.tsv", tmp_path / "two.tsv.gz", tmp_path / "three.tsv"]
    for path, first, last in zip(files, (0, 300, 650), (300, 650, len(lines)), strict=True):
        content = b"".join(lines[first:last])
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return files


BAD = {20: b"no row", 21: b"", 299: b"2" + LINE[1:], 301: LINE[:-1], 640: LINE + b"\t", 900: b"\xff\xfe"}
SIZES = [300, 350, 350]


@pytest.mark.parametrize("cache_rows_max", [0, ROWS])
@pytest.mark.parametrize("rows_of_files", [None, SIZES])
def test_bad_rows_are_left_out_of_their_batches_and_told_by_file_and_line(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_rows_max: int, rows_of_files: Any
) -> None:
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 5000)
    whole = next(FileDataset([tsv], HashedIds(500), train_fraction=1.0).train_batches(ROWS))
    files = with_bad_rows(tsv, tmp_path, BAD)
    data = FileDataset(
        files, HashedIds(500), cache_rows_max=cache_rows_max, rows_of_files=rows_of_files, bad_rows="skip"
    )
    assert (data.train_rows, data.test_rows) == (800, 200)
    for first, last in ((0, 64), (10, 30), (250, 420), (20, 22), (600, 800), (0, 40)):
        (batch,) = data.train_range(first, last, ROWS)
        good = [row for row in range(first, last) if row not in BAD]
        assert batch.skipped == last - first - len(good)
        for ours, theirs in ((batch.labels, whole.labels), (batch.dense, whole.dense), (batch.ids.T, whole.ids.T)):
            assert np.array_equal(ours, theirs[good])
    tested = list(data.test_batches(64))
    assert sum(map(len, tested)) == 199 and sum(batch.skipped for batch in tested) == 1
    assert sorted(data.bad.found) == sorted(BAD)
    assert "one.tsv, line 21: found 1 tab-separated fields" in data.bad.found[20]
    assert "two.tsv.gz, line 2: found C26" in data.bad.found[301]
    assert "three.tsv, line 251: " in data.bad.found[900]


def test_a_bad_row_deep_in_a_file_stops_where_nothing_else_is_said(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecrec.data.text.BLOCK_BYTES", 5000)
    files = with_bad_rows(tsv, tmp_path, {640: b"no row"})
    data = FileDataset(files, HashedIds(500), cache_rows_max=0)
    assert sum(map(len, data.train_range(0, 600, 64))) == 600
    with pytest.raises(DataError, match=r"two.tsv.gz, line 341: found 1 tab-separated fields"):
        list(data.train_range(600, 800, 64))


def test_more_bad_rows_than_can_be_an_accident_are_an_error(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecrec.data.dataset.BAD_ROWS_MAX", 5)
    files = with_bad_rows(tsv, tmp_path, BAD)
    with pytest.raises(DataError, match=r"more than 5 bad rows were skipped.*three.tsv, line 251"):
        FileDataset(files, HashedIds(500), bad_rows="skip")
    with pytest.raises(ValueError, match="'ignore', expected one of stop, skip"):
        FileDataset(files, HashedIds(500), bad_rows="ignore")


def test_rows_that_were_counted_before_are_not_counted_again(
    tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = with_bad_rows(tsv, tmp_path, {})
    assert [criteo_file(str(path)).count().rows for path in files] == SIZES
    assert criteo_file(str(files[0])).count(lambda: True).rows == 0
    opened: list[str] = []
    monkeypatch.setattr(
        "ecrec.data.text.line_blocks", lambda path, *at: opened.append(Path(path).name) or line_blocks(path, *at)
    )
    data = FileDataset(files, HashedIds(500), cache_rows_max=0, rows_of_files=SIZES)
    assert not opened and data.train_rows == 800
    list(data.train_range(660, 700, 16))
    assert opened == ["three.tsv"]  # nothing before it is read either
    with pytest.raises(ValueError, match="rows_of_files has 2 numbers for 3 files"):
        FileDataset(files, HashedIds(500), rows_of_files=[1, 2])
    with pytest.raises(DataError, match=r"one.tsv: found 300 rows, more rows than when they were counted \(299\)"):
        list(FileDataset(files, HashedIds(500), cache_rows_max=0, rows_of_files=[299, 350, 350]).train_batches(64))

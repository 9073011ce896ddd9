"""Whole runs on files of other formats than Criteo's: read, shuffled, leased, resumed and refused."""

import gzip
import os

import numpy as np
import pyarrow.csv as csv
import pytest
from data_files import COLUMNS, table, whole_rows, write

MODEL = ("--rows", "100", "--batch", "32", "--dim", "8", "--top-mlp", "8", "--bottom-mlp", "8", "--shards", "3")


def test_a_shuffled_run_goes_on_from_its_checkpoint_with_the_rows_that_are_left(trainer, tmp_path):
    """Bit for bit the model of a run that was not interrupted; rows in arrays, one of them bad."""
    data = write(tmp_path, "npy", whole_rows(1000))
    rows = np.load(data)
    rows[333, 0] = 5
    np.save(data, rows)
    url = str(tmp_path / "checkpoints")
    options = (
        *("--data", str(data), "--bad-rows", "skip", "--shuffle-window", "150", "--epochs", "2", "--code", "2+1"),
        *MODEL, "--prefetch", "0",
    )  # fmt: skip
    whole = trainer.run(*options)
    assert whole.code == 0, whole.story
    assert whole.report["bad_rows"] == 1 and "rows.npy, row 334: found label 5" in whole.report["bad_row"]
    part = trainer.run(*options, "--steps", "37", "--checkpoint", url)
    assert part.code == 0, part.story
    again = trainer.run(*options, "--resume", url)
    assert again.code == 0, again.story
    assert again.report["model_digest"] == whole.report["model_digest"] != part.report["model_digest"], again.story


@pytest.mark.skipif(os.environ.get("ECREC_LONG_FAULTS") != "1", reason="takes long: ECREC_LONG_FAULTS=1")
def test_workers_lease_rows_of_csv_files_and_one_of_them_dies(trainer, tmp_path):
    (tmp_path / "columns.toml").write_text(COLUMNS)
    for day in (10, 9):
        plain = tmp_path / f"plain_{day}"
        csv.write_csv(table(whole_rows(600, seed=day)), plain)
        content = plain.read_bytes().replace(b"\n", b"\nno row\n", 3).replace(b"\nno row\n", b"\n", 2)
        (tmp_path / f"day_{day}.csv.gz").write_bytes(gzip.compress(content))
    options = ("--data", str(tmp_path / "day_*"), "--columns", str(tmp_path / "columns.toml"), "--code", "2+1", *MODEL)
    finished = trainer.run(
        *options, "--bad-rows", "skip", "--shuffle-window", "100", "--workers", "2", "--epochs", "2",
        "--kill", "worker:1@5",
    )  # fmt: skip
    assert finished.code == 0, finished.story
    report = finished.report
    names = [path.rpartition("/")[2] for path in report["config"]["data"]]
    assert names == ["day_9.csv.gz", "day_10.csv.gz"] and report["config"]["columns"]["tokens"] == "hex"
    assert "day_9.csv.gz, line 4: found 1 values, expected 40" in report["bad_row"]
    assert report["bad_rows"] == 2 and report["examples_trained"] == 2 * 961
    assert report["lost_updates"] == 0 and report["parity_ok"] is True

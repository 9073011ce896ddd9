"""The options of ``ecrec train`` about data: files that are meant, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecrec.errors import ConfigurationError
from ecrec.train.options import TrainOptions, check_options, check_order, dataset_name, with_files

ROW = "\t".join(["1", *["3"] * 13, *["0a0b0c0d"] * 26]) + "\n"


def test_days_are_read_in_numeric_order_and_named_files_as_they_are_named(tmp_path: Path) -> None:
    for day in (10, 9, 1):
        (tmp_path / f"day_{day}").write_text(ROW)
    names = [str(tmp_path / f"day_{day}") for day in (1, 9, 10)]
    options = with_files(TrainOptions(data=(str(tmp_path / "day_*"),)))
    assert list(options.data) == names and check_options(options) == []
    as_named = with_files(TrainOptions(data=(names[2], names[0])))
    assert list(as_named.data) == [names[2], names[0]]
    (warning,) = check_options(as_named)
    assert warning.endswith(f"Numbered in order they are: {names[0]}, {names[2]}")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": ("{}/page.gz",)}, r"--data .*page\.gz: is a page of HTML or XML"),
        ({"data": ("{}/x*",)}, r"--data .*x\*: no file fits"),
        ({"data": ("{}/page.gz",), "columns": "{}/none.toml"}, r"--columns .*none\.toml: .*No such file"),
        ({"columns": "{}/page.gz"}, "--columns: expected --data with it"),
        ({"ids": "plain"}, "--ids plain: expected --data with it"),
        ({"ids": "as-is"}, "--ids 'as-is': expected one of hash, plain"),
        (
            {"data": ("{}/rows",), "columns": "{}/columns.toml", "ids": "plain"},
            r'--ids plain with --columns .*columns\.toml: tokens = "text" makes hashes',
        ),
        ({"shuffle_window": 0}, "--shuffle-window 0: must be at least 1"),
        ({"shuffle_window": (1 << 24) + 1}, "--shuffle-window 16777217: must be at most 16777216"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_starts(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "page.gz").write_text("<!doctype html><title>404</title>")
    (tmp_path / "rows").write_text("label,item\n1,2\n")
    (tmp_path / "columns.toml").write_text("sparse = ['item']")
    here = str(tmp_path)
    filled = {
        key: tuple(each.replace("{}", here) for each in value) if isinstance(value, tuple)
        else value.replace("{}", here) if isinstance(value, str) else value
        for key, value in given.items()
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=words):
        check_options(with_files(TrainOptions(**filled)))


def test_a_checkpoint_of_another_order_is_refused() -> None:
    plain, shuffled = TrainOptions(resume="c"), TrainOptions(resume="c", shuffle_window=50, seed=3)
    names = [dataset_name(each.shuffle_window, each.seed) for each in (plain, shuffled)]
    check_order(plain, [names[0]])
    check_order(shuffled, [names[1]])
    check_order(shuffled, [])
    check_order(TrainOptions(resume="c", seed=99), [names[0]])
    check_order(TrainOptions(resume="c", ids="plain"), [dataset_name(None, 7, "plain")])
    for options, name in (
        (TrainOptions(resume="c", ids="plain"), names[0]),
        (plain, dataset_name(None, 7, "plain")),
        (plain, names[1]),
        (shuffled, names[0]),
        (TrainOptions(resume="c", shuffle_window=51, seed=3), names[1]),
        (TrainOptions(resume="c", shuffle_window=50, seed=4), names[1]),
    ):
        with pytest.raises(ConfigurationError, match="--resume c: its examples come in another order"):
            check_order(options, [name])

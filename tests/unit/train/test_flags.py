"""An option of ``ecrec train`` is one field: its flag, default, check, value and documentation follow from it."""

import re
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from ecrec.errors import ConfigurationError
from ecrec.launch.commands import command
from ecrec.launch.flags import Flag, check, options_of
from ecrec.train.options import TrainOptions

ROOT = Path(__file__).parents[3]
ELSEWHERE = {"--help"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    files: Annotated[tuple[str, ...], Flag("Files.", name="--file")] = ()
    batch_size: Annotated[int, Flag("Examples.", at_least=1)] = 5
    kind: Annotated[str, Flag("Which.", choices=("a", "b"))] = "a"
    spares: Annotated[int | None, Flag("Some.", at_least=0)] = None
    percent: Annotated[int, Flag("Of all.", at_most=100)] = 10
    loud: Annotated[bool, Flag("Loud.")] = False
    sizes: Annotated[
        tuple[int, ...],
        Flag("Sizes.", parse=lambda name, text: tuple(map(int, text.split(","))), show=lambda sizes: "3,4"),
    ] = (3, 4)
    wait_s: Annotated[float | None, Flag("Wait.", kind=int)] = None


def run(*arguments: str) -> Options:
    seen: list[Options] = []

    @command(Options)
    def program(options: Options) -> None:
        seen.append(options)

    app = typer.Typer()
    app.command()(program)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    (options,) = seen
    return options


def test_what_is_not_given_has_the_default_of_its_field() -> None:
    assert run() == Options()


def test_what_is_given_is_the_value_of_its_field() -> None:
    given = ("--file", "x", "--file", "y", "--batch-size", "9", "--kind", "b", "--spares", "0", "--loud")
    assert run(*given, "--sizes", "1,2,3", "--wait-s", "2") == Options(
        files=("x", "y"), batch_size=9, kind="b", spares=0, loud=True, sizes=(1, 2, 3), wait_s=2
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("percent", 101, "--percent 101: must be at most 100"),
        ("batch_size", 0, "--batch-size 0: must be at least 1"),
        ("spares", -1, "--spares -1: must not be negative"),
        ("kind", "c", "--kind 'c': expected one of a, b"),
    ],
)
def test_what_a_flag_does_not_allow_is_named(field: str, value: object, words: str) -> None:
    check(Options())
    with pytest.raises(ConfigurationError, match=words):
        check(Options(**{field: value}))


def test_a_field_without_a_flag_is_an_error() -> None:
    class Bare(msgspec.Struct):
        batch: int = 1

    with pytest.raises(TypeError, match=r"Bare\.batch has no Flag"):
        options_of(Bare)


def test_the_help_names_every_option_with_its_default() -> None:
    from ecrec.cli import app

    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for option in options_of(TrainOptions):
        assert option.name in text, option
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert f"[default: {option.default}]" in text, option


def test_the_documentation_names_no_option_of_train_that_there_is_not() -> None:
    known = {option.name for option in options_of(TrainOptions)} | ELSEWHERE
    named = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]:
        for command_line in re.findall(r"ecrec train((?: +[^\s`|]+)*)", path.read_text()):
            named |= dict.fromkeys(re.findall(r"--[a-z][a-z-]*", command_line), path.name)
    assert len(named) > 8 and not named.keys() - known, {name: named[name] for name in named.keys() - known}

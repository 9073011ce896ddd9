"""`ecrec checkpoints` and `ecrec export`: what they print, and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from written_checkpoint import table, write_checkpoint

from ecrec.cli import app
from ecrec.errors import ConfigurationError
from ecrec.exit_codes import ExitCode
from ecrec.launch.tools import checkpoints as tools

TABLES = [table("a"), table("b", "adam")]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def program(*arguments: str) -> Any:
    return subprocess.run([sys.executable, "-m", "ecrec.cli", *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def url(tmp_path: Path) -> str:
    for number in (3, 12):
        write_checkpoint(str(tmp_path / "checkpoints"), TABLES, number)
    return str(tmp_path / "checkpoints")


def damage(url: str, number: int) -> Path:
    path = Path(url) / f"checkpoint-{number:06d}" / "shard-00001" / "part-000000.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return path


def test_list_fits_into_80_columns(url: str) -> None:
    (Path(url) / "checkpoint-000013").mkdir()
    result = run("checkpoints", "list", url)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["complete", "complete", "unfinished"]
    assert "2027-01-15 08:00:00" in lines[1]
    assert max(map(len, lines[:4])) < 80
    assert lines[4].startswith("13: it has no manifest")


@pytest.mark.parametrize("time_s", [-1e300, 1e300, 0.0])
def test_any_time_can_be_listed(tmp_path: Path, time_s: float) -> None:
    write_checkpoint(str(tmp_path), TABLES, changed={"time_s": time_s})
    assert run("checkpoints", "list", str(tmp_path)).exit_code == 0


def test_list_for_programs(url: str) -> None:
    found = json.loads(run("checkpoints", "list", url, "--json").stdout)
    assert [(each["number"], each["state"], each["tables"]) for each in found] == [
        (3, "complete", 2),
        (12, "complete", 2),
    ]


def test_list_of_nothing(tmp_path: Path) -> None:
    result = program("checkpoints", "list", str(tmp_path / "no"))
    assert result.returncode == 1 and result.stderr == f"{tmp_path}/no: there are no checkpoints\n"


def test_list_shows_a_damaged_manifest(url: str) -> None:
    (Path(url) / "checkpoint-000003" / "manifest.json").write_bytes(b"{}x")
    result = run("checkpoints", "list", url)
    assert (
        result.exit_code == ExitCode.DAMAGED
        and "damaged" in result.stdout
        and "checkpoint-000003/manifest.json: " in result.stdout
    )


def test_check(url: str) -> None:
    result = run("checkpoints", "check", url)
    assert result.exit_code == 0 and result.stdout.startswith("checkpoint 12: ") and "all fits" in result.stdout
    path = damage(url, 12)
    result = run("checkpoints", "check", url)
    assert result.exit_code == ExitCode.DAMAGED
    assert result.stdout.splitlines()[0].startswith(f"damaged: {path}: damaged: its CRC-32C is")
    assert result.stdout.endswith("1 problems\n")
    assert run("checkpoints", "check", url, "--number", "3").exit_code == 0
    said = json.loads(run("checkpoints", "check", url, "--json").stdout)
    assert not said["is_whole"] and str(path) in said["problems"][0]["text"] and said["number"] == 12
    assert run("checkpoints", "check", str(path.parents[1])).exit_code == ExitCode.DAMAGED


def test_check_of_a_manifest_that_is_damaged(url: str) -> None:
    for number in (3, 12):
        (Path(url) / f"checkpoint-{number:06d}" / "manifest.json").write_bytes(b"{}x")
    for arguments in ([url], [url, "--number", "3"], [f"{url}/checkpoint-000003"]):
        result = run("checkpoints", "check", *arguments)
        assert result.exit_code == ExitCode.DAMAGED and "manifest.json" in result.stdout


def test_check_of_nothing_is_an_error(url: str, tmp_path: Path) -> None:
    for arguments, words in (([url, "--number", "5"], "there are 3, 12"), ([str(tmp_path)], "there is no checkpoint")):
        result = program("checkpoints", "check", *arguments)
        assert result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr


def test_prune(url: str) -> None:
    (Path(url) / "checkpoint-000013").mkdir()
    result = run("checkpoints", "prune", url, "--keep", "1")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["3", "removed"], ["12", "stays"], ["13", "stays"]
    ]  # fmt: skip
    assert run("checkpoints", "prune", url, "--keep", "1", "--broken").exit_code == 0
    assert sorted(path.name for path in Path(url).iterdir()) == ["checkpoint-000012"]
    assert run("checkpoints", "prune", url, "--keep", "0").exit_code == 2
    assert run("checkpoints", "prune", url).exit_code == 2


def test_export(url: str, tmp_path: Path) -> None:
    result = run("export", url, "--to", "safetensors", "--out", str(tmp_path / "out"), "--table", "b", "--number", "3")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(tmp_path / "out" / "b.safetensors") and Path(lines[0]).exists()
    assert lines[1].startswith("checkpoint 3: 50 rows in tables b, ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--to", "onnx"], 2, "format 'onnx'"),
        (["--to", "safetensors", "--table", "c"], 2, "there is no table 'c'; it has 'a', 'b'"),
        (["--to", "safetensors", "--number", "4"], 1, "there is no checkpoint 4; there are 3, 12"),
    ],
)
def test_export_says_what_is_wrong(url: str, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    result = program("export", url, "--out", str(tmp_path / "out"), *arguments)
    assert result.returncode == code and words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_exported(url: str, tmp_path: Path) -> None:
    path = damage(url, 12)
    result = program("export", url, "--to", "safetensors", "--out", str(tmp_path / "out"))
    assert result.returncode == 1 and str(path) in result.stderr and not (tmp_path / "out").exists()


def test_progress_in_lines_and_as_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tools, "LINES_S", 0.0)
    with tools.progress("checking") as report:
        report(1 << 20, 3 << 20)
    assert capsys.readouterr().err == "checking: 1.0 MiB of 3.0 MiB\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with tools.progress("checking") as report:
        report(1, 3)
    with pytest.raises(ConfigurationError), tools.progress("checking"):
        raise ConfigurationError("nothing hides an error")

"""The command lines of servers and workers, as argparse of any Python takes them."""

import subprocess
import sys
from typing import Any

import pytest

import ecrec
from ecrec.errors import ConfigurationError
from ecrec.launch import worker
from ecrec.launch.servers import ps, scheduler

PROGRAMS = [ps.program, scheduler.program, worker.program]


def ended(program: Any, *arguments: str) -> Any:
    with pytest.raises(SystemExit) as exit_:
        program(list(arguments))
    return exit_.value.code


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_each_tells_its_version(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(program, "--version") == 0
    assert capsys.readouterr().out == f"{program.name} {ecrec.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "3", "x"],
        ["-m", "--http", "y"],
        ["--scheduler", "of the script", "--help", "--version"],
        ["a", "--", "b", "--"],
        ["--set=a=b", "-1", "-"],
        [],
    ],
)
def test_what_follows_a_script_is_the_scripts(arguments: list[str]) -> None:
    options, script, given = worker.program.parse(["--scheduler", "tcp://s:1", "-m", "x.py", *arguments], {})
    assert (options.scheduler, options.module, options.http) == ("tcp://s:1", True, None)
    assert script == "x.py" and given == arguments


def test_defaults_are_those_of_the_options() -> None:
    (options,) = ps.program.parse(["--scheduler", "tcp://s:1"], {})
    assert options == ps.PsOptions(scheduler="tcp://s:1")
    (options,) = scheduler.program.parse(["--bind", "b", "--shards", "5", "--set", "a=1", "--set", "b=2"], {})
    assert options == scheduler.SchedulerOptions(bind="b", shards=5, limits=("a=1", "b=2"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheduler", "s", "--sh", "1"], "--sh"),
        (["--scheduler", "s", "--nonsense"], "--nonsense"),
        (["--scheduler", "s", "left over"], "left over"),
        (["--scheduler"], "--scheduler"),
        (["--scheduler", "s", "--shard", "1.5"], "--shard '1.5': expected a whole number"),
        (["--scheduler", "s", "--stopped-exit-code", "256"], "--stopped-exit-code 256: must be at most 255"),
        (["--shard", "1"], "--scheduler is missing: give it, or set ECREC_PS_SCHEDULER"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_to_do(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ECREC_SCHEDULER", raising=False)
    assert ended(ps.program, *arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and words in error
    assert hint == "`ecrec-ps --help` shows all options."


def test_a_script_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(worker.program, "--scheduler", "s") == 2
    assert "required: SCRIPT\n" in capsys.readouterr().err


def test_a_number_that_cannot_be_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigurationError, match="--rank -1: must not be negative"):
        worker.program.parse(["--rank", "-1", "x.py"], {})


def test_a_script_that_is_interrupted_ends_as_interrupted(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "ecrec.launch.worker", "--scheduler", "tcp://s:1", str(script)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 130 and "Traceback" not in done.stderr

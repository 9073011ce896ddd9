"""Every flag is an environment variable: of all programs, by one rule, and none is taken by accident."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ecrec import cli
from ecrec.errors import ConfigurationError
from ecrec.launch import worker
from ecrec.launch.commands import with_variables
from ecrec.launch.program import Program
from ecrec.launch.servers import ps, scheduler
from ecrec.launch.variables import PROGRAMS, environment_of_children

PROGRAM_OF: dict[str, Program[Any]] = {each.prefix: each for each in (ps.program, scheduler.program, worker.program)}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if commands := getattr(command, "commands", None):
        for name, each in commands.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, command


def test_every_flag_of_ecrec_has_a_variable_of_its_own_and_the_help_names_it() -> None:
    seen: set[str] = set()
    for path, leaf in leaves(with_variables(cli.app, "ECREC")):
        text = run(*path, "--help").output
        for param in leaf.params:
            if type(param).__name__ == "TyperArgument":
                continue
            expected = "_".join(["ECREC", *path, max(param.opts, key=len).removeprefix("--")])
            expected = expected.replace("-", "_").upper()
            assert param.envvar[0] == expected and expected not in seen
            seen.add(expected)
            assert expected in text
    assert len(seen) > 50


@pytest.mark.parametrize("prefix", PROGRAMS)
def test_every_flag_of_a_server_and_worker_has_a_variable_of_its_own_and_the_help_names_it(
    prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = PROGRAM_OF[prefix]
    monkeypatch.setenv("COLUMNS", "70")  # narrow: no name is broken over two lines
    with pytest.raises(SystemExit) as ended:
        program(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag, names in program.flags.items():
        assert names[0] == f"{prefix}_{flag.removeprefix('--').replace('-', '_').upper()}"
        assert flag in text and all(name in text for name in names)
    assert len(program.flags) >= 7 and len({names[0] for names in program.flags.values()}) == len(program.flags)


class _App(typer.Typer):
    """What CliRunner takes, of a command that is already made."""

    def __init__(self, command: Any) -> None:
        super().__init__()
        self.command_ = command


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer import testing

    get = testing._get_command
    monkeypatch.setattr(testing, "_get_command", lambda app: getattr(app, "command_", None) or get(app))


def run(*arguments: str, **environment: str) -> Any:
    command = with_variables(cli.app, "ECREC")
    return CliRunner().invoke(_App(command), list(arguments), env={"COLUMNS": "300", "NO_COLOR": "1", **environment})


def test_a_variable_counts_as_the_flag_and_is_checked_as_such() -> None:
    everywhere = {"ECREC_SCHEDULER": "tcp://s:1"}
    (options,) = ps.program.parse([], {**everywhere, "ECREC_PS_SHARD": "2", "ECREC_PS_SPARE": "no"})
    assert (options.scheduler, options.shard, options.spare) == ("tcp://s:1", 2, False)
    with pytest.raises(ConfigurationError, match=r"--shard \(ECREC_PS_SHARD\) 'two': expected a whole number"):
        ps.program.parse([], {**everywhere, "ECREC_PS_SHARD": "two"})
    with pytest.raises(ConfigurationError, match="ECREC_PS_SPARE='2': expected true or false"):
        ps.program.parse([], {**everywhere, "ECREC_PS_SPARE": "2"})
    with pytest.raises(ConfigurationError, match="--shard -2: must be at least -1"):
        ps.program.parse([], {**everywhere, "ECREC_PS_SHARD": "-2"})
    with pytest.raises(ConfigurationError, match="--shards is missing: give it, or set ECREC_SCHEDULER_SHARDS"):
        scheduler.program.parse([], {"ECREC_SCHEDULER_BIND": "tcp://127.0.0.1:0"})


def test_the_command_line_counts_before_a_variable_and_that_of_a_program_before_a_common_one() -> None:
    everywhere = {"ECREC_SCHEDULER": "common", "ECREC_STATUS_SCHEDULER": "status"}
    assert "'given'" in str(run("status", "--scheduler", "given", **everywhere).exception)
    assert "'status'" in str(run("status", **everywhere).exception)
    assert "'common'" in str(run("status", ECREC_SCHEDULER="common").exception)
    assert "'common'" in str(run("status", ECREC_SCHEDULER="common", ECREC_STATUS_SCHEDULER="").exception)

    everywhere = {"ECREC_SCHEDULER": "common", "ECREC_PS_SCHEDULER": "ps"}

    def taken(*arguments: str, **environment: str) -> str:
        (options,) = ps.program.parse(arguments, environment)
        return str(options.scheduler)

    assert taken("--scheduler", "given", **everywhere) == "given"
    assert taken(**everywhere) == "ps"
    assert taken(ECREC_SCHEDULER="common") == "common"
    assert taken(ECREC_SCHEDULER="common", ECREC_PS_SCHEDULER="") == "common"


def test_flags_that_may_be_given_several_times_take_words() -> None:
    done = run("train", ECREC_TRAIN_KILL="ps:0@3 ps:99@4", ECREC_TRAIN_SHARDS="5")
    assert "there is no shard 99" in str(done.exception)
    (options,) = ps.program.parse(["--scheduler", "s"], {"ECREC_PS_UNTIL": "a b"})
    assert options.until == ("a", "b")
    (options,) = ps.program.parse(["--scheduler", "s", "--until", "a b", "--until", "c"], {"ECREC_PS_UNTIL": "d"})
    assert options.until == ("a b", "c")


def test_a_misspelt_variable_is_said_and_those_of_kubernetes_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ECREC_PS_SHRAD", "1")
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_ZMQ", "PORT", "PORT_7071_TCP", "PORT_7071_TCP_ADDR"):
        monkeypatch.setenv(f"ECREC_PS_{name}", "x")
    ps.program.parse(["--scheduler", "s"], {})
    assert capsys.readouterr().err == "warning: ECREC_PS_SHRAD is no option: is it ECREC_PS_SHARD?\n"


def test_children_whose_flags_are_given_take_none_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ECREC_PS_SPARE", "ECREC_SCHEDULER_ADOPT", "ECREC_WORKER_RANK", "ECREC_SCHEDULER", "ECREC_CURVE_DIR"):
        monkeypatch.setenv(name, "1")
    given = environment_of_children()
    assert [name for name in given if name.startswith("ECREC_") and name in os.environ and given[name] == "1"] == [
        name for name in os.environ if name in ("ECREC_SCHEDULER", "ECREC_CURVE_DIR")
    ]


def test_workers_that_a_worker_starts_start_no_others(tmp_path: Any) -> None:
    """Trap: --nproc-per-node out of the environment counts for the children, too."""
    script = tmp_path / "script.py"
    script.write_text("import os\nos.write(1, (os.environ['RANK'] + '\\n').encode())\n")
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = {
        **clean,
        "ECREC_SCHEDULER": "tcp://s:1",
        "ECREC_WORKER_NPROC_PER_NODE": "2",
        "ECREC_WORKER_RANK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ecrec.launch.worker", str(script)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["1", "2"]


def test_an_error_of_ecrec_that_a_script_does_not_catch_has_its_exit_code(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text("from ecrec.errors import DataLostError\nraise DataLostError('rows 0 to 7 of items')\n")
    done = subprocess.run(
        [sys.executable, "-m", "ecrec.launch.worker", "--scheduler", "tcp://s:1", str(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.rstrip().endswith("DataLostError: rows 0 to 7 of items")

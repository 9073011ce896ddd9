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
from ecrec.launch import worker
from ecrec.launch.servers import ps, scheduler
from ecrec.launch.variables import PS, SCHEDULER, WORKER, environment_of_children, with_variables

APPS = {"ECREC": cli.app, PS: ps.app, SCHEDULER: scheduler.app, WORKER: worker.app}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if commands := getattr(command, "commands", None):
        for name, each in commands.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize("prefix", APPS)
def test_every_flag_has_a_variable_of_its_own_and_the_help_names_it(prefix: str) -> None:
    wide = {"COLUMNS": "300", "NO_COLOR": "1"}
    seen: set[str] = set()
    command = with_variables(APPS[prefix], prefix)
    for path, leaf in leaves(command):
        text = CliRunner().invoke(_App(command), [*path, "--help"], env=wide).output
        for param in leaf.params:
            if type(param).__name__ == "TyperArgument":
                continue
            expected = "_".join([prefix, *path, max(param.opts, key=len).removeprefix("--")])
            expected = expected.replace("-", "_").upper()
            names = [param.envvar] if isinstance(param.envvar, str) else param.envvar
            assert names[0] == expected and expected not in seen
            seen.add(expected)
            assert expected in text
    assert len(seen) >= 7


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


def run(prefix: str, *arguments: str, **environment: str) -> Any:
    command = with_variables(APPS[prefix], prefix)
    return CliRunner().invoke(_App(command), list(arguments), env={"COLUMNS": "300", "NO_COLOR": "1", **environment})


def test_a_variable_counts_as_the_flag_and_is_checked_as_such() -> None:
    done = run(PS, ECREC_PS_SCHEDULER="tcp://127.0.0.1:1", ECREC_PS_SHARD="2", ECREC_PS_SPARE="yes")
    assert done.exit_code == 2 and "give --shard or --spare, not both" in done.output
    done = run(PS, ECREC_SCHEDULER="tcp://127.0.0.1:1", ECREC_PS_SHARD="two")
    assert done.exit_code == 2 and "(env var: 'ECREC_PS_SHARD'): Input should be" in done.output
    done = run(SCHEDULER, ECREC_SCHEDULER_BIND="tcp://127.0.0.1:0", ECREC_SCHEDULER_SHARDS="17")
    assert done.exit_code == 2 and "--state" in done.output


def test_the_command_line_counts_before_a_variable_and_that_of_a_program_before_a_common_one() -> None:
    everywhere = {"ECREC_SCHEDULER": "common", "ECREC_STATUS_SCHEDULER": "status"}
    assert "'given'" in str(run("ECREC", "status", "--scheduler", "given", **everywhere).exception)
    assert "'status'" in str(run("ECREC", "status", **everywhere).exception)
    assert "'common'" in str(run("ECREC", "status", ECREC_SCHEDULER="common").exception)
    assert "'common'" in str(run("ECREC", "status", ECREC_SCHEDULER="common", ECREC_STATUS_SCHEDULER="").exception)


def test_flags_that_may_be_given_several_times_take_words() -> None:
    done = run("ECREC", "train", ECREC_TRAIN_KILL="ps:0@3 ps:99@4", ECREC_TRAIN_SHARDS="5")
    assert "there is no shard 99" in str(done.exception)


def test_a_misspelt_variable_is_said_and_those_of_kubernetes_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ECREC_PS_SHRAD", "1")
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_ZMQ", "PORT", "PORT_7071_TCP", "PORT_7071_TCP_ADDR"):
        monkeypatch.setenv(f"ECREC_PS_{name}", "x")
    with_variables(ps.app, PS)
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

import json
import os
import subprocess
import sys

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.connect import connect

SCRIPT = r"""
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ECREC_SCHEDULER")
line = json.dumps([sys.argv, {n: os.environ[n] for n in names}, __name__]) + "\n"
os.write(1, line.encode())
if os.environ["RANK"] == os.environ.get("FAIL_RANK"):
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def worker(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ECREC_SCHEDULER")}
    return subprocess.run(
        [sys.executable, "-m", "ecrec.launch.worker", *arguments],
        env={**clean, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_script_gets_its_arguments_and_environment(script):
    result = worker("--scheduler", "tcp://s:1", script, "--lr", "3", "x")
    argv, environment, name = json.loads(result.stdout)
    assert argv == [script, "--lr", "3", "x"]
    assert environment == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "ECREC_SCHEDULER": "tcp://s:1"}
    assert name == "__main__"


def test_a_code_reaches_the_script(script, tmp_path):
    path = tmp_path / "tells.py"
    path.write_text("import os; print(os.environ.get('ECREC_CODE'))")
    assert worker("--scheduler", "tcp://s:1", "--code", "3+2", str(path)).stdout == "3+2\n"
    assert worker("--scheduler", "tcp://s:1", str(path), ECREC_WORKER_CODE="2+1").stdout == "2+1\n"
    wrong = worker("--scheduler", "tcp://s:1", "--code", "four", str(path))
    assert wrong.returncode == 2 and "code 'four': expected K+R" in wrong.stderr


def test_connect_takes_the_code_of_the_environment_where_none_is_given(monkeypatch):
    given = []

    def start(endpoint, **options):
        given.append(options["code"])
        raise ConfigurationError("not here")

    monkeypatch.setattr("ecrec.launch.connect._training_connect", lambda: start)
    for variable, code in (("2+1", None), ("2+1", "3+2"), ("", None)):
        monkeypatch.setenv("ECREC_CODE", variable)
        with pytest.raises(ConfigurationError, match="not here"):
            connect("tcp://s:1", code=code)
    assert [str(code) for code in given] == ["2+1", "3+2", "None"]


def test_a_module_and_the_environment_of_a_launcher(script, tmp_path):
    result = worker(
        "-m", "script", PYTHONPATH=str(tmp_path),
        RANK="1", WORLD_SIZE="3", ECREC_SCHEDULER="tcp://s:2",
    )  # fmt: skip
    argv, environment, _ = json.loads(result.stdout)
    assert argv[1:] == []
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("1", "3")


def test_several_workers_of_one_machine(script):
    result = worker("--scheduler", "tcp://s:1", "--nproc-per-node", "2", "--rank", "2", "--world-size", "4", script)
    assert result.returncode == 0, result.stderr
    seen = [json.loads(line)[1] for line in result.stdout.splitlines()]
    assert sorted((e["RANK"], e["LOCAL_RANK"], e["WORLD_SIZE"]) for e in seen) == [
        ("2", "0", "4"),
        ("3", "1", "4"),
    ]


def test_the_first_failure_ends_them_all(script):
    result = worker("--scheduler", "tcp://s:1", "--nproc-per-node", "2", script, FAIL_RANK="1")
    assert result.returncode == 7
    assert "worker 1 failed: 7" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["script.py"], "no scheduler"),
        (["--scheduler", "tcp://s:1", "/nonexistent.py"], "no script /nonexistent.py"),
        (["--scheduler", "tcp://s:1", "--rank", "3", "--world-size", "3", "x.py"], "do not fit"),
    ],
)
def test_what_cannot_be_is_said(arguments, words):
    result = worker(*arguments)
    assert result.returncode == 2
    assert words in result.stderr


def test_connect_needs_an_endpoint(monkeypatch):
    monkeypatch.delenv("ECREC_SCHEDULER", raising=False)
    with pytest.raises(ConfigurationError, match="no scheduler"), connect():
        pass

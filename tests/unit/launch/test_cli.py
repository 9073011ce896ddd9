import subprocess
import sys

import pytest

from ecrec import __version__
from ecrec.errors import ClusterError, ConfigurationError, DataError, DataLostError, FencedError
from ecrec.exit_codes import exit_code


def ecrec(*arguments):
    return subprocess.run([sys.executable, "-m", "ecrec", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--code", "5+1"], "a stripe needs k + r = 6 different shards"),
        (["train", "--kill", "ps:7@3"], "there is no shard 7"),
        (["train", "--kill", "scheduler:1@3"], "expected ps:SHARD@STEP"),
        (["train", "--kill", "worker:1@3"], "there is no worker 1"),
        (["train", "--data", "/nonexistent.tsv"], "/nonexistent.tsv: No such file"),
        (["train", "--workers", "0"], "--workers 0"),
        (["train", "--top-mlp", "64,x"], "--top-mlp"),
        (["train", "--no-such-option"], "No such option"),
        (["status", "--scheduler", "nonsense"], "nonsense"),
        (["status"], "ECREC_STATUS_SCHEDULER or"),
        (["reproduce", "--on", "moon"], "--on 'moon': expected one of local, ray"),
        (["launch", "hosts.toml", "--uot", "x", "train.py"], "--uot: expected --out DIR or --install WHEEL"),
        (["launch", "hosts.toml", "--out"], "--out: expected --out DIR or --install WHEEL"),
        (["launch", "hosts.toml", "--out", "x", "--"], "launch: there is no script"),
        (["launch", "hosts.toml"], "SCRIPT"),
    ],
)
def test_options_that_cannot_be_end_with_2_and_say_why(arguments, words):
    result = ecrec(*arguments)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "run-7", "hosts.toml", "train.py", "--epochs", "3"],
        ["hosts.toml", "--out", "run-7", "train.py", "--epochs", "3"],
        ["hosts.toml", "--out=run-7", "--", "train.py", "--epochs", "3"],
        ["--out", "run-7", "hosts.toml", "--", "train.py", "--epochs", "3"],
        ["hosts.toml", "--install", "w.whl", "--out", "run-7", "train.py", "--epochs", "3"],
    ],
)
def test_options_of_launch_may_stand_on_both_sides_of_the_hosts(arguments, monkeypatch):
    made = []

    class Launch:
        def __init__(self, hosts, script, rest, out, say):
            made.append([hosts, script, rest, str(out)])

        def run(self, wheel):
            made[-1].append(wheel)

    hosts = pytest.importorskip("ecrec.launch.tools.hosts")
    monkeypatch.setattr(hosts, "Launch", Launch)
    monkeypatch.setattr(hosts, "read_hosts", lambda file: file)
    app = pytest.importorskip("ecrec.cli").app
    app(["launch", *arguments], standalone_mode=False)
    wheel = "w.whl" if "--install" in arguments else None
    assert made == [["hosts.toml", "train.py", ["--epochs", "3"], "run-7", wheel]]


def test_a_scheduler_that_is_not_there_is_said():
    result = ecrec("status", "--scheduler", "tcp://127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no answer from a scheduler at tcp://127.0.0.1:1")


def test_it_tells_its_version():
    result = ecrec("--version")
    assert (result.returncode, result.stdout) == (0, f"ecrec {__version__}\n"), result.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_packages_of_its_command_line_it_says_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; from ecrec.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f'ecrec needs {package}, which is missing: pip install "ecrec[cli]"' in result.stderr


def test_exit_codes():
    assert exit_code(ConfigurationError("")) == exit_code(DataError("")) == 2
    assert exit_code(DataLostError("")) == 3
    assert exit_code(FencedError("")) == 9
    assert exit_code(ClusterError("")) == 1


def test_the_programs_start_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None;"
        "import ecrec.cli, ecrec.train.run, ecrec.launch.tools.verify, ecrec.launch.connect;"
        "import ecrec.launch.worker;"
        "import ecrec.launch.servers.scheduler, ecrec.launch.servers.ps"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

"""docs/operations.md, followed word by word: each host is a network namespace with a home and names of its own."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_faults import Namespaces, namespaces

from ecrec.exit_codes import ExitCode

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train.py"
HOSTS = ("scheduler", "ps0", "ps1", "ps2", "ps3", "worker0", "worker1")
DEADLINE_S = 120.0


def blocks(kind: str) -> dict[str, list[str]]:
    """The code of the page: host or unit -> its blocks, in order."""
    found: dict[str, list[str]] = {}
    for name, text in re.findall(rf"^```\w+ {kind}=(\S+)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL):
        found.setdefault(name, []).append(text)
    return found


def unit(name: str) -> dict[str, str]:
    (text,) = blocks("unit")[name]
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


class Hosts:
    """The hosts of the page."""

    def __init__(self, directory: Path, network: Namespaces) -> None:
        self.directory = directory
        self.network = network
        self.addresses = {host: network.add() for host in HOSTS}
        self.running: list[subprocess.Popen[str]] = []
        programs = directory / "bin"
        programs.mkdir()
        # What the page copies with goes from one home to another here.
        (programs / "scp").write_text('#!/bin/bash\nto=${3#*:}; cp -r "$2" "$HOMES/${3%%:*}/${to:-$2}"\n')
        (programs / "scp").chmod(0o755)
        table = "".join(f"{address} {host}\n" for host, address in {**self.addresses, "localhost": "127.0.0.1"}.items())
        bin_dir = Path(sys.executable).parent
        for host in HOSTS:
            (directory / host / "ecrec").mkdir(parents=True)
            (directory / host / "ecrec" / "bin").symlink_to(bin_dir)
            names = Path("/etc/netns") / self.netns(host)
            names.mkdir(parents=True)
            (names / "hosts").write_text(table)
        self.environment = {
            **os.environ, "PATH": f"{programs}:{bin_dir}:{os.environ['PATH']}", "HOMES": str(directory),
            "OMP_NUM_THREADS": "1", "EXAMPLES": "300000",
        }  # fmt: skip

    def netns(self, host: str) -> str:
        return self.network.name_of(self.addresses[host])

    def start(self, host: str, script: str) -> "subprocess.Popen[str]":
        with (self.directory / f"{host}.log").open("a") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns(host), "bash", "-euc", script],
                stdout=log, stderr=log, text=True, cwd=self.directory / host, start_new_session=True,
                env={**self.environment, "HOME": str(self.directory / host)},
            )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, host: str, script: str, code: int = 0) -> None:
        assert self.start(host, script).wait(DEADLINE_S) == code, self.logs()

    def service(self, host: str, name: str) -> None:
        """What systemd would do with a unit of the page."""
        options = unit(name)
        assert options["Restart"] == "always" and options["WorkingDirectory"] == "%h"
        never = "|".join(options["RestartPreventExitStatus"].split())
        command = options["ExecStart"].replace("%H", host).replace("%h", str(self.directory / host))
        assert command.startswith("/"), "systemd looks for a program in places of its own"
        script = (
            f"ulimit -n $(( $(ulimit -Hn) < {options['LimitNOFILE']} ? $(ulimit -Hn) : {options['LimitNOFILE']} ))\n"
            f'while true; do code=0; {command} || code=$?; case "$code" in {never}) exit "$code";; esac; '
            f"sleep {options['RestartSec']}; done"
        )
        self.start(host, script)

    def status(self) -> dict[str, Any]:
        command = ["ip", "netns", "exec", self.netns("scheduler"), sys.executable, "-m", "ecrec.cli", "status"]
        done = subprocess.run(
            [*command, "--scheduler", "tcp://scheduler:7070", "--curve-dir", "keys", "--json"],
            capture_output=True, text=True, cwd=self.directory / "scheduler", timeout=60, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"shards": []}
        return found

    def until(self, condition: str, test: Any) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while not test(state := self.status()):
            assert time.monotonic() < deadline, f"{condition}: {state}\n{self.logs()}"
        return state

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.directory.glob("*.log"))
        )

    def close(self) -> None:
        for process in self.running:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()
        for host in HOSTS:
            shutil.rmtree(Path("/etc/netns") / self.netns(host), ignore_errors=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    pytest.importorskip("torch")
    with namespaces() as network:
        made = Hosts(tmp_path, network)
        yield made
        made.close()


def test_the_page_is_followed_word_by_word(hosts: Hosts) -> None:
    keys, looking = blocks("host")["scheduler"]
    hosts.run("scheduler", keys)
    hosts.service("scheduler", "ecrec-scheduler.service")
    for host in ("ps0", "ps1", "ps2"):
        hosts.service(host, "ecrec-ps.service")
    state = hosts.until("all are up", lambda state: [s["state"] for s in state["shards"]] == ["up"] * 3)
    hosts.service("ps3", "ecrec-ps.service")
    hosts.until("one spare", lambda state: state.get("spares") == 1)

    workers = []
    for host in ("worker0", "worker1"):
        shutil.copy(EXAMPLE, hosts.directory / host / "train.py")
        (script,) = blocks("host")[host]
        workers.append(hosts.start(host, script))
    hosts.until(
        "both train",
        lambda state: all(w.get("steps", 0) > 5 for w in state["workers"].values()) and len(state["workers"]) == 2,
    )

    # The host of a server loses its power; its unit starts it again, as a spare.
    victim = next(host for host in HOSTS if f"//{host}:" in state["shards"][1]["endpoint"])
    (process,) = (p for p in psutil.process_iter() if is_server(p, victim))
    process.kill()
    hosts.until("a spare took the place", lambda state: state["shards"][1]["epoch"] == 2)
    state = hosts.until(
        "all is whole, and it is a spare",
        lambda state: [s["state"] for s in state["shards"]] == ["up"] * 3 and state["spares"] == 1,
    )
    assert f"//{victim}:" not in state["shards"][1]["endpoint"]

    for worker in workers:
        assert worker.wait(DEADLINE_S) == 0, hosts.logs()
    hosts.run("scheduler", looking)
    texts = (hosts.directory / "scheduler.log").read_text()
    assert "shards: 3" in texts and "Traceback" not in hosts.logs(), hosts.logs()
    trained = sum(len(re.findall(r"^worker \d: ", (hosts.directory / f"{host}.log").read_text(), re.MULTILINE))
                  for host in ("worker0", "worker1"))  # fmt: skip
    assert trained >= 10, "of 300,000 examples in splits of 10,240"


def is_server(process: psutil.Process, host: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "--advertise" in words and words[words.index("--advertise") + 1] == host and "bash" not in words[0]


def test_every_exit_code_is_on_the_page() -> None:
    table = DOCS.read_text().partition("## Exit codes")[2]
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|", table, re.MULTILINE))
    assert rows == {str(int(code)): code.means for code in ExitCode}


def test_the_messages_on_the_page_are_those_of_the_programs() -> None:
    source = "\n".join(path.read_text() for path in (DOCS.parents[1] / "ecrec").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for message in re.findall(r"^\| `([^`]*)`", DOCS.read_text().partition("## Messages")[2], re.MULTILINE):
        for part in re.split(r"\.\.\.|'|: |shard 2 \(epoch 1\)|shard 2", message):
            assert part.strip() in source, f"nothing says {part.strip()!r} of {message!r}"


def test_every_warning_of_a_server_is_on_the_page() -> None:
    page = DOCS.read_text().partition("## Messages")[2]
    missing = [f"{path}:{line}: {text}" for path, line, text in warnings() if text not in page]
    assert not missing, "say what each means, and what to do:\n" + "\n".join(missing)


def warnings() -> Iterator[tuple[Path, int, str]]:
    """Where a server, a scheduler or a launcher warns, and the longest part of the text that is always the same."""
    package = DOCS.parents[1] / "ecrec"
    for folder in ("protocol", "transport", "launch/servers", "launch/local"):
        for path in sorted((package / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                text = warned(node)
                parts = [part.strip(" :,.;()\n") for part in constants(text) if text is not None]
                longest = max(parts, key=len, default="")
                if len(longest) > 7:  # else it is what somebody else says
                    yield path.relative_to(package), node.lineno, longest  # type: ignore[attr-defined]


def warned(node: ast.AST) -> ast.expr | None:
    """The text, if this is a call that warns."""
    if not isinstance(node, ast.Call):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("warning", "error") and node.args:
        return node.args[0]
    if len(node.args) < 2:
        return None
    kind = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
    return node.args[1] if name == "complain" or (name in ("note", "Note") and kind in ("warning", "error")) else None


def constants(text: ast.expr | None) -> list[str]:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return re.split(r"%[-.0-9]*[sdfr]", text.value)
    if isinstance(text, ast.JoinedStr):
        return [str(part.value) for part in text.values if isinstance(part, ast.Constant)]
    return []

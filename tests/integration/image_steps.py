"""The steps of a Dockerfile, run where there is no builder: each stage in a root of its own, in namespaces of its own.

    python tests/integration/image_steps.py DIRECTORY [STAGE]   makes the stages up to STAGE there, and prints its size

The base image is a Debian root with the Python that Debian has, made by debootstrap, in place of python:3.12-slim. A
step runs in a chroot of its stage, with process ids and mounts of its own, and as the stage's user; the network is that
of this machine, for the package index. What a builder does besides (layers, caches) is not done.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
NOT_IN_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists")
"""What the slim images leave out of Debian."""
HEADERS = "python3-dev"
"""Of Python, which the image has and Debian has in a package of its own: where something is built."""
STEP_S = 1500
OF_HOST = [
    path
    for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/apt", "/usr/share/keyrings", "/etc/ssl/certs")
    if Path(path).exists()
]
"""How this machine reaches its package indexes, which is not part of an image: lent to each step that is run."""
PIP = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Debian keeps its Python from pip; that of the image does not."""


class Instruction(NamedTuple):
    word: str
    rest: str


def stages(text: str) -> dict[str, list[Instruction]]:
    """Name of a stage -> its instructions, FROM first."""
    found: dict[str, list[Instruction]] = {}
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            name = rest.split()[-1]
            found[name] = []
        found[name].append(Instruction(word, rest.strip()))
    return found


def why_not() -> str:
    """Why the steps cannot be run here; empty if they can."""
    if os.geteuid() != 0:
        return "a root file system needs root"
    for program in ("debootstrap", "unshare", "chroot"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"the program {program} is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"no namespaces of mounts and processes: {tried.stderr.strip()}"


class Stage:
    """One stage: its root, and what holds for its next step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory, self.user = "/", "0:0"
        self.environment: dict[str, str] = {}
        self.command: list[str] = []

    def run(
        self, command: list[str], lent: Sequence[str] = (), variables: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.CompletedProcess[str]":
        """In the root, with namespaces of its own. ``lent``: paths of this machine that it sees meanwhile."""
        user, _, group = self.user.partition(":")
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
        mounts += [f"mount --bind {shlex.quote(path)} .{shlex.quote(path)}" for path in lent]
        made = [path for path in lent if make_place(Path(path), self.root / path.lstrip("/"))]
        enter = f'exec chroot --userspec={user}:{group or user} . "$@"'
        script = " && ".join([f"cd {shlex.quote(str(self.root))}", *mounts, enter])
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', self.directory, *command]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", **self.environment}
        try:
            return subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *inside],
                env={**environment, **variables}, capture_output=True, text=True, timeout=STEP_S, check=False,
            )  # fmt: skip
        finally:
            for path in made:
                take_place(self.root / path.lstrip("/"), self.root)

    def copy(self, sources: list[Path], target: str) -> None:
        where = self.root / os.path.join(self.directory, target).lstrip("/")
        if target.endswith("/") or len(sources) > 1:
            where.mkdir(parents=True, exist_ok=True)
        where.parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            into = where / source.name if where.is_dir() and source.is_file() else where
            if source.is_dir():
                shutil.copytree(source, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, into)

    def size(self) -> int:
        """Bytes of all files, as du counts them, without what the host has lent."""
        done = subprocess.run(["du", "-s", "-B1", str(self.root)], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[0])


class Build:
    """All stages of a Dockerfile, each in a folder of the directory."""

    def __init__(self, directory: Path, dockerfile: Path = DOCKERFILE) -> None:
        self._directory = directory
        self._instructions = stages(dockerfile.read_text())
        self.stages: dict[str, Stage] = {}

    def base(self) -> Path:
        """A fresh Debian with Python."""
        root = self._directory / "base"
        suite = next(
            line.partition("=")[2].strip('"')
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        )
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root), *mirror()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
        if done.returncode:
            raise RuntimeError(f"debootstrap: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
        for folder in NOT_IN_SLIM:
            for path in (root / folder).glob("*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return root

    def make(self, last: str) -> Stage:
        """Run all steps up to the end of a stage."""
        copied_from = re.findall(r"--from=(\S+)", DOCKERFILE.read_text())
        for name, instructions in self._instructions.items():
            stage = self._begin(name, instructions[0].rest.split()[0])
            if name in copied_from:
                install = f"apt-get update && apt-get install -y --no-install-recommends {HEADERS}"
                self._do(stage, Instruction("RUN", install))
            for instruction in instructions[1:]:
                self._do(stage, instruction)
            if name == last:
                break
        return self.stages[last]

    def _begin(self, name: str, on: str) -> Stage:
        root = self._directory / name
        before = self.stages.get(on)
        if before is None and not (self._directory / "base").exists():
            self.base()
        source = self._directory / "base" if before is None else before.root
        subprocess.run(["cp", "-a", str(source), str(root)], check=True)
        stage = self.stages[name] = Stage(root)
        if before is not None:
            stage.directory, stage.user, stage.environment = before.directory, before.user, dict(before.environment)
        return stage

    def _do(self, stage: Stage, instruction: Instruction) -> None:
        word, rest = instruction
        if word == "RUN":
            given = pip_settings()
            done = stage.run(["sh", "-c", rest], [*OF_HOST, *places(given)], {**PIP, **given})
            if done.returncode:
                raise RuntimeError(f"RUN {rest}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        elif word == "COPY":
            *names, target = rest.split()
            source = ROOT
            if names[0].startswith("--from="):
                source = self.stages[names.pop(0).removeprefix("--from=")].root
            stage.copy([source / name.lstrip("/") for name in names], target)
        elif word == "WORKDIR":
            stage.directory = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
        elif word == "ENV":
            name, _, value = rest.partition("=")
            stage.environment[name] = value
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word != "VOLUME":
            raise ValueError(f"{word}: not known here")


def mirror() -> list[str]:
    """Where this machine has Debian's own packages from; debootstrap's default if that is not known."""
    asked = subprocess.run(["apt-cache", "policy", "base-files"], capture_output=True, text=True, check=False)
    found = re.search(r"^ +\d+ (https?://\S+) \S+/main ", asked.stdout, re.MULTILINE)
    return [found[1]] if found else []


def pip_settings() -> dict[str, str]:
    """How pip is set up on this machine, as variables."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        found[f"PIP_{name.rpartition('.')[2].replace('-', '_').upper()}"] = str(ast.literal_eval(value))
    return found


def places(settings: Mapping[str, str]) -> list[str]:
    """Files and folders of this machine that pip is told of; of an index, the folder above, where its files may be."""
    found = []
    for word in (word for value in settings.values() for word in value.split()):
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            found.append(str(path.parent if word.startswith("file://") else path))
    return list(dict.fromkeys(found))


def make_place(source: Path, target: Path) -> bool:
    """Something to mount on; False if it is there."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if source.is_dir() else target.touch()
    return True


def take_place(target: Path, root: Path) -> None:
    """The other way round, with the folders above that have nothing else."""
    target.rmdir() if target.is_dir() else target.unlink()
    for above in target.parents:
        if above == root or any(above.iterdir()):
            return
        above.rmdir()


if __name__ == "__main__":
    if why := why_not():
        sys.exit(why)
    made = Build(Path(sys.argv[1])).make(sys.argv[2] if len(sys.argv) > 2 else "server")
    print(f"{made.size() / 1e6:.0f} MB in {made.root}")

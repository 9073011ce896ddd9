"""What is said of packages in pyproject.toml, constraints.txt, .ci and .github agrees, and names what there is."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NOT_PINNED = {"torchx"}
"""torchx brings old versions of what is pinned here; nothing of ours needs it to be a certain one."""
BOUNDS: dict[str, Any] = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))
PROJECT: dict[str, Any] = BOUNDS["project"]()
EXTRAS = tuple(PROJECT["optional-dependencies"])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins() -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def holds(requirement: Requirement, python: str, machine: str = "x86_64") -> bool:
    """Whether a requirement counts there."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"platform_machine": machine, "platform_system": "Linux", "sys_platform": "linux"}
    return requirement.marker is None or requirement.marker.evaluate({k: str(v) for k, v in environment.items()})


def declared() -> list[Requirement]:
    return list(BOUNDS["requirements"](EXTRAS))


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_that_is_asked_for_has_one_pin_that_it_allows(python: str) -> None:
    pinned: dict[str, str] = {}
    for pin in pins():
        if holds(pin, python):
            name, (only,) = canonicalize_name(pin.name), pin.specifier
            assert only.operator == "==" and name not in pinned, f"{pin}: expected one == for Python {python}"
            pinned[name] = only.version
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        if holds(requirement, python) and name not in NOT_PINNED:
            assert name in pinned, f"constraints.txt has no {name} for Python {python}"
            assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement}: {pinned[name]}"


def test_each_package_that_is_asked_for_has_a_lower_bound() -> None:
    for requirement in declared():
        assert Version(BOUNDS["lower_bound"](requirement)) > Version("0"), requirement
    with pytest.raises(ValueError, match="numpy<3: expected one lower bound"):
        BOUNDS["lower_bound"](Requirement("numpy<3"))


def test_a_server_asks_for_three_packages() -> None:
    assert [requirement.name for requirement in BOUNDS["requirements"](())] == ["numpy", "pyzmq", "msgspec"]
    assert {"typer", "rich"} <= {requirement.name for requirement in BOUNDS["requirements"](["train"])}
    with pytest.raises(SystemExit, match="no extra nonsense"):
        list(BOUNDS["requirements"](["nonsense"]))


def test_wheels_are_built_for_each_python_that_is_promised() -> None:
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert built["build"] == [f"cp{python.replace('.', '')}-*" for python in PYTHONS]
    classifiers = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python :: 3." in each]
    assert classifiers == list(PYTHONS)
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in PYTHONS)
    words = " ".join(built["test-command"]).replace("{package}", str(ROOT)).split()
    assert all(Path(word).exists() for word in words if word.startswith("/"))


def jobs(workflow: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(workflow.read_text())["jobs"])


def test_the_workflows_run_what_there_is() -> None:
    assert [path.name for path in WORKFLOWS] == ["nightly.yml", "tests.yml", "wheels.yml"]
    commands = []
    for workflow in WORKFLOWS:
        for name, job in jobs(workflow).items():
            assert job["runs-on"] and job["steps"][0]["uses"].startswith("actions/checkout@"), f"{workflow}: {name}"
            commands += [step["run"] for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands and any(command.startswith("cibuildwheel") for command in commands)
    for word in " ".join(commands).split():
        if word.startswith((".ci/", "tests/", "constraints")):
            assert (ROOT / word).exists(), word
    assert jobs(WORKFLOWS[1])["pythons"]["strategy"]["matrix"]["python"] == list(PYTHONS)


def test_ci_builds_one_wheel_and_installs_it_from_the_file() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert text.count(" wheel -q ") == 1 and text.count("auditwheel repair") == 1
    installs = [line for line in text.splitlines() if "pip" in line and " install " in line]
    assert not [line for line in installs if line.rstrip().endswith(" .")], "a second build"

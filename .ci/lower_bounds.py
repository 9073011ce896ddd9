"""Prints constraints for pip: the lowest version that pyproject.toml allows of each package, for some extras.

    python .ci/lower_bounds.py test cli >lower.txt && pip install -c lower.txt "$WHEEL[test,cli]"

A bound that nobody runs is a guess. Packages that these only bring with them stay as pip chooses them. Needs packaging.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    return dict(tomllib.loads(PYPROJECT.read_text())["project"])


def requirements(extras: Sequence[str]) -> Iterator[Requirement]:
    """All that the package asks for with these extras, and with the extras of its own that they name."""
    table = project()
    known = table["optional-dependencies"]
    if unknown := set(extras) - known.keys():
        raise SystemExit(f"no extra {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    left, seen = list(extras), set(extras)
    yield from map(Requirement, table["dependencies"])
    while left:
        for requirement in map(Requirement, known[left.pop()]):
            if requirement.name != table["name"]:
                yield requirement
            more = [extra for extra in requirement.extras if requirement.name == table["name"] and extra not in seen]
            left += more
            seen |= set(more)


def lower_bound(requirement: Requirement) -> str:
    """The version behind >=. Raises ValueError where there is none: then any version is promised to work."""
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{PYPROJECT}: {requirement}: expected one lower bound, such as {requirement.name}>=1.0")
    return bounds[0]


def main() -> None:
    for requirement in requirements(sys.argv[1:]):
        if requirement.marker is None or requirement.marker.evaluate():
            print(f"{requirement.name}=={lower_bound(requirement)}")


if __name__ == "__main__":
    main()

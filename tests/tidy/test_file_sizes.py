"""A file that is longer than a reader can hold says in its first lines why it is one file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_MAX = 500
REASON = "This file is long because"


def sources() -> list[Path]:
    """All code but tests themselves, which are lists of cases that are read one by one."""
    python = [path for folder in ("ecrec", "bench", "examples", "tests") for path in (ROOT / folder).rglob("*.py")]
    native = [path for folder in ("src", "bindings") for path in (ROOT / folder).rglob("*.[chi]*")]
    shell = list((ROOT / "tests").rglob("*.sh"))
    return sorted(path for path in (*python, *native, *shell) if path.is_file() and not path.name.startswith("test_"))


def first_words(path: Path) -> str:
    """A module's docstring on one line; of another file its first lines."""
    text = path.read_text()
    words = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else "\n".join(text.splitlines()[:40])
    return " ".join(words.replace("//", " ").split())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_long_file_says_why_it_is_one(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX or REASON in first_words(path), (
        f"{path}: {lines} lines. Divide it where a conversation ends, or say in its first lines: {REASON} ..."
    )


def test_a_short_file_does_not_say_that_it_is_long() -> None:
    stale = [path for path in sources() if path != Path(__file__) and REASON in first_words(path)]
    assert [str(path) for path in stale if len(path.read_text().splitlines()) <= LINES_MAX] == []

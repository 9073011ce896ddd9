"""Python started in a checkout finds the source there first; without the native module it says what to do."""

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ecrec


def test_the_source_without_its_native_module_says_what_to_do(tmp_path: Path) -> None:
    assert ecrec.__file__ is not None
    (tmp_path / "ecrec").mkdir()
    shutil.copy(ecrec.__file__, tmp_path / "ecrec")
    # -S: no site-packages, and so no other ecrec, editable or not.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ecrec"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert str(tmp_path / "ecrec") in done.stderr and "pip install -e ." in done.stderr


def test_no_two_modules_of_the_tests_have_one_name() -> None:
    # Their directories, but for the simulator, are no packages: one run of all would take the one for the other. A
    # fixture goes by conftest.py, which nobody imports for that reason.
    files = list((Path(__file__).parents[1]).rglob("*.py"))
    alone = [path for path in files if not (path.parent / "__init__.py").exists()]
    names = Counter(path.name for path in alone if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    imports = [path for path in files if path != Path(__file__) and "from conftest import" in path.read_text()]
    assert imports == []


def test_no_program_takes_the_beginning_of_an_option_for_it() -> None:
    # "--seed 7" is not to run "--seeds 7".
    root = Path(__file__).parents[2]
    files = [path for folder in ("ecrec", "bench", "tests") for path in (root / folder).rglob("*.py")]
    calls = [
        (path, node.keywords)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("ArgumentParser", "add_parser"))
    ]
    assert len(calls) > 10
    assert {path for path, keywords in calls if "allow_abbrev" not in {each.arg for each in keywords}} == set()


def test_no_package_or_archive_is_in_the_source() -> None:
    """One was, downloaded there and committed with a change of something else."""
    root = Path(__file__).parents[2]
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    ends = (".bz2", ".gz", ".xz", ".zst", ".zip", ".tar", ".tgz", ".whl", ".egg", ".so", ".pyc", ".log")
    assert [name for name in listed.stdout.splitlines() if name.endswith(ends)] == []


def test_no_named_tuple_is_generic() -> None:
    """Python 3.10 does not import one, and mypy does not say so."""
    for path in (Path(__file__).parents[2] / "ecrec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).partition("[")[0] for base in node.bases}
                assert not {"NamedTuple", "Generic"} <= bases, f"{path}:{node.lineno}: {node.name}: use a dataclass"

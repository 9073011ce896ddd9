"""Every script that is run by hand explains its options."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [
    path
    for folder in ("bench", "tests/simulator", "tests/mutation", "tests/fuzz")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "argparse" in (text := path.read_text()) and '__name__ == "__main__"' in text
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_says_what_its_options_are(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "import atheris" in path.read_text() and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in (said := capsys.readouterr().out) and "--help" in said

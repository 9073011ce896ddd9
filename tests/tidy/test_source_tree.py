"""Python started in a checkout finds the source there first; without the native module it says what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

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

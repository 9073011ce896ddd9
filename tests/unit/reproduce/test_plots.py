"""Every plot is made, of hand-made rows, and the same file of the same rows."""

from pathlib import Path
from typing import Any

import pytest

from ecrec.errors import ConfigurationError
from ecrec.reproduce import plots
from ecrec.reproduce.claims import Finding, Rows
from ecrec.reproduce.plan import load

PLAN = load()
BASE = {"experiment": "e", "model": "m", "workers": 1, "kills": "once", "resources": "", "repeat": 0}
FIGURES: dict[str, Any] = {
    "overhead": 0.1, "cpu_overhead": None, "recovery_s": 1.0, "s_per_gb": 2.0, "t": 0.5, "ratio": 0.9, "auc": 0.75,
    "deaths": 1, "same_model": False, "parity_of_data": 0.25, "resident_mb": 100.0, "ettr": 0.9,
    "lost_s_per_kill": 1.0, "examples_per_s": 1000.0,
}  # fmt: skip


def rows() -> Rows:
    found = [{**BASE, **FIGURES, "mode": mode, "repeat": repeat} for mode in ("ec41", "stop") for repeat in (0, 1)]
    return [*found, {**BASE, "mode": "none", "workers": 2, **dict.fromkeys(FIGURES), "deaths": 0, "t": 0.0}]


@pytest.mark.parametrize("name", list(plots.PLOTS))
def test_every_plot_is_made(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finding = Finding(name, PLAN.claims[name], rows(), {}, [])
    files = plots.draw(finding, {"ec41": "erasure code 4+1"}, tmp_path, "a machine")
    assert [path.name for path in files] == [f"{name}.svg", f"{name}.png"]
    text = files[0].read_text()
    assert PLAN.claims[name].title in text and "a machine" in text
    assert files[1].read_bytes().startswith(b"\x89PNG") and files[1].stat().st_size > 5000


def test_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finding = Finding("C3", PLAN.claims["C3"], rows(), {}, [])
    (tmp_path / "again").mkdir()
    first, again = (plots.draw(finding, {}, folder, "")[0] for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_nothing_measured_gives_no_plot(tmp_path: Path) -> None:
    assert plots.draw(Finding("C1", PLAN.claims["C1"], [], {}, []), {}, tmp_path, "") == []
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"ecrec\[reproduce\]"):
        plots.pyplot()

"""The examples in docs/checkpoints.md run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
from written_checkpoint import table, write_chain, write_checkpoint

from ecrec.cli import app

DOCUMENT = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text()
FORMAT = DOCUMENT.partition("\n## Format\n")[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", FORMAT, re.MULTILINE | re.DOTALL)


def test_the_example_reads_a_checkpoint_without_ecrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    specs = [table("clicks"), table("user", "adam")]
    written = write_checkpoint(str(tmp_path / "checkpoints"), specs, number=12, groups=2)
    monkeypatch.chdir(tmp_path)
    assert "ecrec" not in EXAMPLES[0] and len(EXAMPLES[0].strip().splitlines()) <= 16
    found: dict[str, Any] = {}
    exec(EXAMPLES[0], found)
    for spec in specs:
        rows = found["tables"][spec.name]
        assert rows.keys() == written.touched[spec.name]
        assert all(rows[row].tobytes() == written.weights(spec)[row].tobytes() for row in rows)


def test_the_example_reads_an_increment_with_its_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    chain = write_chain(str(tmp_path / "checkpoints"), [table("clicks"), table("user")], [[], [2], []], first=8)
    assert chain[-1].number == 12
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(EXAMPLES[0], found)
    for spec in chain[-1].manifest.tables:
        rows = found["tables"][spec.name]
        assert rows.keys() == chain[-1].touched[spec.name]
        assert all(rows[row].tobytes() == chain[-1].weights(spec)[row].tobytes() for row in rows)


def test_the_example_with_ecrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write_checkpoint(str(tmp_path / "checkpoints"), [table("clicks")])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(EXAMPLES[1], found)
    assert found["weights"].shape == (50, 4) and "4)" in capsys.readouterr().out


def test_the_documented_commands_and_options_are_there() -> None:
    import typer

    root: Any = typer.main.get_command(app)
    for command in re.findall(r"`ecrec ((?:checkpoints )?[a-z]+) URL", DOCUMENT):
        found = root
        for word in command.split():
            found = found.commands[word]
        assert {parameter.name for parameter in found.params} >= {"url"}
    named = [root.commands[name] for name in ("export", "save", "restore", "train", "resize", "import")]
    options = {o for c in (*named, *root.commands["checkpoints"].commands.values())
               for p in c.params for o in p.opts}  # fmt: skip
    assert set(re.findall(r"(--[a-z][a-z-]*)", DOCUMENT)) <= options

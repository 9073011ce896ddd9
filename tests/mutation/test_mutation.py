"""The tool itself: what it changes, and that a verdict is one. A whole run takes hours: tests/mutation/run.py."""

import ast
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutants import cpp_mutants, python_mutants

SAMPLE = '''
class Part:
    """Text with 7."""

    def on_message(self, number: int, items: list[int]) -> bool:
        """Take what is new."""
        if number <= self.last or not items:
            return False
        if number > 9:
            raise ValueError(f"{number} is more than {9}")
        self.last = number
        self.mask &= ~(1 << number)
        self.waiting.clear()
        self.note("warning", f"{number + 1}")
        return max(i for i in items if i != 3) > 2
'''


def changes(source: str = SAMPLE) -> dict[str, str]:
    found = {mutant.change: mutant.write() for mutant in python_mutants("part.py", source)}
    for text in found.values():
        compile(text, "part.py", "exec")
    return found


def test_each_line_of_defence_has_a_mutant() -> None:
    found = changes()
    for change in (
        "if number <= self.last or not items -> False",
        "number <= self.last or not items -> number <= self.last",
        "number <= self.last or not items -> not items",
        "number <= self.last -> number < self.last",
        "number > 9 -> number >= 9",
        "self.last = number -> pass",
        "self.mask &= ~(1 << number) -> pass",
        "~(1 << number) -> 1 << number",
        "self.waiting.clear() -> pass",
        "max((i for i in items if i != 3)) -> min((i for i in items if i != 3))",
        "9 -> 10",
    ):
        assert change in found, sorted(found)
    assert any(change.startswith("raise ValueError") for change in found)
    assert any("for i in items ->" not in change and change.endswith("for i in items") for change in found)


def test_what_only_people_read_is_left_alone() -> None:
    whole = ast.unparse(ast.parse(SAMPLE))
    for text in changes().values():
        assert text != whole
        assert "Text with 7." in text and "number: int" in text and "self.note(" in text
        assert "is more than" in text or "raise" not in text


def test_a_key_is_of_the_function_and_the_change_alone() -> None:
    before = {mutant.change: mutant.key for mutant in python_mutants("part.py", SAMPLE)}
    moved = {mutant.change: mutant.key for mutant in python_mutants("part.py", "X = 1\n\n\n" + SAMPLE)}
    assert before == moved and len(set(before.values())) == len(before)
    other = {mutant.change: mutant.key for mutant in python_mutants("part.py", SAMPLE.replace("> 9", "> 8"))}
    assert not set(before.values()) & set(other.values())


def test_cpp_is_changed_outside_of_comments_and_texts() -> None:
    source = """
void Store::fold(int source) {
    // source < 3 && true
    if (source < 3 && source > 0) refuse(ErrorKind::value, "a; < b ", source, " && c");
    buffer.clear();
}
"""
    found = {mutant.change.partition(" in `")[0]: mutant.write() for mutant in cpp_mutants("a.cpp", source)}
    assert {"no refusal", "<= for <", ">= for >", "|| for &&", "not called"} <= set(found)
    assert all("// source < 3 && true" in text for text in found.values())
    assert "refuse" not in found["no refusal"] and "clear" in found["no refusal"]


def test_mutants_are_judged_once(tmp_path: Path) -> None:
    """Of a small module: one run says what the tests notice, the next has nothing to do."""
    results = tmp_path / "results.jsonl"
    runner = Path(__file__).with_name("run.py")
    command = [sys.executable, str(runner), "--only", "ecrec/protocol/stream.py:InStream.take", "--seeds", "0"]
    command += ["--unit", "tests/unit/protocol/test_stream.py", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(found) >= 6 and {each["verdict"] for each in found} <= {"failed", "survived", "hang", "crash"}
    assert sum(each["verdict"] == "failed" for each in found) > len(found) // 2
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout.startswith("0 of ") and len(results.read_text().splitlines()) == len(found)

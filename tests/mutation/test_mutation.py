"""The tool itself: what it changes, and that a verdict is one. A whole run takes hours: tests/mutation/run.py."""

import argparse
import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the tool needs Python 3.11", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

import run
from mutants import Mutant, constant_mutants, cpp_mutants, cpp_switched, marked, mutants, python_mutants
from run import EXCLUDED, ROOT, files, reasons

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
        if number == 5:
            self.waiting = {}
            return False
        self.note("warning", f"{number + 1}")
        return max(i for i in items if i != 3) > 2
'''


def changes(source: str = SAMPLE) -> dict[str, str]:
    found = {mutant.change: mutant.write() for mutant in python_mutants("part.py", source)}
    for tree in found.values():
        compile(tree, "part.py", "exec")
    return {change: ast.unparse(tree) for change, tree in found.items()}


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


def test_lines_of_defence_are_told_from_the_rest() -> None:
    defences = {mutant.change for mutant in python_mutants("part.py", SAMPLE) if mutant.defence}
    filtered = "max((i for i in items if i != 3))"
    assert {
        "if number <= self.last or not items -> False",
        "number <= self.last or not items -> not items",
        "number <= self.last -> number < self.last",
        "number <= self.last -> number <= self.last + 1",
        "if number > 9 -> False",
        "self.mask &= ~(1 << number) -> pass",
        "self.waiting.clear() -> pass",
        "if number == 5 -> False",
        "self.waiting = {} -> pass",
        f"{filtered} -> {filtered.replace('max', 'min')}",
    } <= defences
    for change in (
        "self.last = number -> pass",
        "9 -> 10",
        "number == 5 -> number != 5",
        "~(1 << number) -> 1 << number",
    ):
        assert change not in defences and change in changes()
    assert not any(change.startswith("raise") for change in defences), "its guard, made False, is the same"


def test_what_only_people_read_is_left_alone() -> None:
    whole = ast.unparse(ast.parse(SAMPLE))
    for text in changes().values():
        assert text != whole
        assert '"""Take what is new."""' in text and "number: int" in text and "self.note(" in text
        assert "is more than" in text or "raise" not in text


def test_a_method_that_calls_its_super_class_no_more_can_be_put_into_place() -> None:
    class Kept(list[int]):
        def clear(self) -> None:
            super().clear()

    some = Kept([1])
    changed = next(
        code
        for code in compile("def clear(self):\n    pass", "part.py", "exec").co_consts
        if isinstance(code, CodeType)
    )
    function: Any = Kept.clear
    function.__code__ = run.fitting(changed, function)
    some.clear()
    assert some == [1]


KEPT = """
HEARD = (First, Second)

class Part:
    def on_message(self, message):
        if isinstance(message, First | Third):
            return
        if message.kind in HEARD:
            self.begins, self.ends, seen = {}, list(message.rows), 3
            self.known = replace(message.row)
            print(list(message.rows))
"""


def test_sets_of_types_copies_that_are_kept_and_pairs_of_fields_are_lines_of_defence() -> None:
    defences = {mutant.change for mutant in python_mutants("part.py", KEPT) if mutant.defence}
    pairs = "self.begins, self.ends, seen = ({}, list(message.rows), 3)"
    assert {
        "First | Third -> First",
        "First | Third -> Third",
        "list(message.rows) -> message.rows",
        "replace(message.row) -> message.row",
        f"{pairs} -> self.ends, seen = (list(message.rows), 3)",
        f"{pairs} -> self.begins, seen = ({{}}, 3)",
    } == defences - {"if isinstance(message, First | Third) -> False"}


def test_a_constant_of_a_module_lacks_an_element_or_has_everything() -> None:
    some = list(constant_mutants("part.py", KEPT))
    assert [mutant.name for mutant in some] == [
        "part.py HEARD: without First", "part.py HEARD: without Second", "part.py HEARD: with everything",
    ]  # fmt: skip
    changed = [mutant.constant.changed((int, str)) for mutant in some if mutant.constant is not None]
    assert changed[:2] == [(str,), (int,)]
    assert float in changed[2] and isinstance(1.5, changed[2])
    (at,) = {mutant.statement for mutant in some}
    assert at in marked(KEPT, 0)[1]


def test_a_key_is_of_the_function_and_the_change_alone() -> None:
    before = {mutant.change: mutant.key for mutant in python_mutants("part.py", SAMPLE)}
    moved = {mutant.change: mutant.key for mutant in python_mutants("part.py", "X = 1\n\n\n" + SAMPLE)}
    assert before == moved and len(set(before.values())) == len(before)
    other = {mutant.change: mutant.key for mutant in python_mutants("part.py", SAMPLE.replace("> 9", "> 8"))}
    assert not set(before.values()) & set(other.values())


CPP_SAMPLE = """#include <cstdio>
#include <cstdlib>
#include <vector>
// refuse(3) && true
[[noreturn]] void refuse(int code) { std::exit(code); }
int part(unsigned number, std::vector<int>& items) {
    if (number < 3 && !items.empty()) refuse(7);
    if (number >= 8) {
        items.clear();
        return 5;
    }
    const char* text = "; if (number < 3) return;";
    return static_cast<int>(number & 6u) + (text == nullptr ? 1 : 0);
}
int main(int, char** arguments) {
    std::vector<int> items(static_cast<unsigned>(std::atoi(arguments[2])));
    return 10 * part(static_cast<unsigned>(std::atoi(arguments[1])), items) + static_cast<int>(items.size());
}
"""


def cpp_changes() -> dict[str, Mutant]:
    return {
        mutant.change.partition(" in `")[0]: mutant for mutant in cpp_mutants("a.cpp", CPP_SAMPLE) if mutant.defence
    }


def test_cpp_is_changed_outside_of_comments_and_texts() -> None:
    assert set(cpp_changes()) == {
        "no refusal", "guard never holds", "condition without `number < 3`", "condition without `!items.empty()`",
        "<= for <", "> for >=", "not called", "no mask",
    }  # fmt: skip
    text = cpp_switched("a.cpp", CPP_SAMPLE, {mutant.key: 1 for mutant in cpp_changes().values()})
    assert (
        "// refuse(3) && true" in text
        and '"; if (number < 3) return;"' in text
        and "ecrec_mutation::mask<1>(6u)" in text
    )


def test_a_switch_changes_one_thing_and_all_off_is_the_unchanged_program(tmp_path: Path) -> None:
    compiler = next(found for found in map(shutil.which, ("c++", "g++", "clang++")) if found)
    found = cpp_changes()
    switches = {mutant.key: number for number, mutant in enumerate(found.values())}
    switch = Path(__file__).with_name("switch.hpp")
    text = (
        cpp_switched("a.cpp", CPP_SAMPLE, switches)
        .replace("int main(int,", "int main(int n,")
        .replace(
            "    std::vector<int> items(st",
            "    ecrec_mutant = n > 3 ? std::atoi(arguments[3]) : -1;\n    std::vector<int> items(st",
        )
    )
    (tmp_path / "a.cpp").write_text(text + f"int ecrec_mutant = -1; unsigned char ecrec_reached[{len(switches)}];\n")
    (tmp_path / "b.cpp").write_text(CPP_SAMPLE)
    for name, flags in (("a", ["-include", str(switch)]), ("b", [])):
        subprocess.run(
            [compiler, "-std=c++20", "-w", *flags, str(tmp_path / f"{name}.cpp"), "-o", str(tmp_path / name)],
            check=True,
        )

    def code(program: str, *arguments: int) -> int:
        return subprocess.run([str(tmp_path / program), *map(str, arguments)], check=False).returncode

    for number in (0, 2, 3, 7, 8, 9):
        for items in (0, 1):
            assert code("a", number, items) == code("b", number, items), (number, items)
    for change, number, items, expected in (
        ("no refusal", 2, 1, 21),
        ("guard never holds", 8, 1, 1),
        ("condition without `number < 3`", 7, 1, 7),
        ("condition without `!items.empty()`", 2, 0, 7),
        ("<= for <", 3, 1, 7),
        ("> for >=", 8, 0, 0),
        ("not called", 8, 1, 51),
        ("no mask", 3, 0, 30),
    ):
        assert code("a", number, items, switches[found[change].key]) == expected != code("b", number, items), change


def test_all_of_the_protocol_and_the_store_is_changed_but_for_what_is_excluded_with_a_reason() -> None:
    found = files()
    for path in ("ecrec/protocol/deaths.py", "ecrec/protocol/messages/common.py", "src/cpp/store/recovered.cpp"):
        assert path in found
    assert not set(EXCLUDED) & set(found)
    for path, reason in EXCLUDED.items():
        assert (ROOT / path).exists() and reason.endswith("."), path


def test_verdicts_are_kept_while_the_function_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "VERDICTS", tmp_path / "verdicts.txt")
    results = tmp_path / "results.jsonl"
    first, second, third, last = [m for m in python_mutants("part.py", SAMPLE) if m.defence][:4]
    found = {first.key: run.CAUGHT, second.key: run.SURVIVED, third.key: run.NOT_REACHED, "0" * 16: run.CAUGHT}
    run.save([first, second, third, last], found)
    assert run.verdicts(results) == {key: verdict for key, verdict in found.items() if key != "0" * 16}
    results.write_text(json.dumps({"key": second.key, "verdict": run.CAUGHT}) + "\n")
    assert run.verdicts(results)[second.key] == run.CAUGHT, "what was found here since counts"
    assert run.report([first, second, third, last], run.verdicts(results)) == 2
    said = capsys.readouterr().out
    assert "| part.py | 4 | 2 | 0 | 1 | 1 |" in said and "**not reached, not explained**" in said


def test_each_survivor_that_is_explained_exists() -> None:
    """An entry of survivors.toml that no mutant has is of code that has changed since: explain what is there now."""
    explained = reasons()
    names: set[str] = set()
    for path in {name.partition(" ")[0] for name in explained}:
        assert (ROOT / path).exists(), f"survivors.toml explains mutants of {path}, which does not exist"
        names |= {mutant.name for mutant in mutants(path, (ROOT / path).read_text())}
    assert not set(explained) - names, "no mutants have these names of survivors.toml"
    assert all(reason.strip().endswith(".") for reason in explained.values())


def test_no_mutant_that_a_test_catches_is_explained() -> None:
    """A reason why it does no harm would be wrong, or of no use."""
    found = run.verdicts(run.VERDICTS.with_name("no-results.jsonl"))
    caught: list[str] = []
    explained = reasons()
    for path in {name.partition(" ")[0] for name in explained}:
        some = mutants(path, (ROOT / path).read_text())
        caught += [mutant.name for mutant in some if mutant.name in explained and found.get(mutant.key) == run.CAUGHT]
    assert not caught, "survivors.toml explains mutants that are caught"


def test_a_run_leaves_alone_what_another_one_has_judged_since_it_began(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    first, second, third, *_ = [m for m in python_mutants("part.py", SAMPLE) if m.defence]

    def judged(mutant: Mutant) -> str:
        return json.dumps({"key": mutant.key, "verdict": run.CAUGHT}) + "\n"

    results.write_text(judged(first))
    one = run.Run(tmp_path, None, [], argparse.Namespace(minutes=1, results=results))  # type: ignore[arg-type]
    assert not one._is_judged(first) and not one._is_judged(second)
    with results.open("a") as file:
        file.write(judged(second) + judged(third)[:9])
    assert one._is_judged(second) and not one._is_judged(third), "a line that is half written"
    with results.open("a") as file:
        file.write(judged(third)[9:])
    assert one._is_judged(third) and one._is_judged(second) and not one._is_judged(first)


def test_mutants_are_judged_once(tmp_path: Path) -> None:
    """Of a small module: one run says what the tests notice, the next has nothing to do."""
    results = tmp_path / "results.jsonl"
    runner = Path(__file__).with_name("run.py")
    command = [sys.executable, str(runner), "--only", "ecrec/protocol/stream.py:InStream.take", "--seeds", "0"]
    command += ["--all", "--unit", "tests/unit/protocol/test_stream.py", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(found) >= 6 and {each["verdict"] for each in found} <= {"caught", "survived", "not reached"}
    assert sum(each["verdict"] == "caught" for each in found) > len(found) // 2
    assert all(each["by"].startswith("tests/unit/protocol/test_stream.py::") for each in found if each["by"])
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout.startswith("0 of ") and len(results.read_text().splitlines()) == len(found)

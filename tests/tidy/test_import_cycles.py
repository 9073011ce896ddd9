"""No module of ecrec imports itself by way of others: each can be read, and tested, without those that use it.

Counted are all imports: also those inside of functions, and those for annotations alone (``if TYPE_CHECKING``).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_by(path: Path, names: set[str]) -> set[str]:
    """Modules of ecrec that a file imports. A package that is only on the way to a module does not count."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & names
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts & names
            if parts - names:
                found |= {node.module} & names
    return found


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules each of which reaches all the others."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[start] = seen
    found: list[set[str]] = []
    for name in sorted(graph):
        if name in reached[name] and not any(name in cycle for cycle in found):
            found.append({other for other in reached[name] if name in reached[other]})
    return found


def test_no_modules_import_each_other() -> None:
    paths = {module_name(path): path for path in (ROOT / "ecrec").rglob("*.py")}
    names = set(paths)
    graph = {name: imported_by(path, names) for name, path in paths.items()}
    assert len(graph) > 100 and "ecrec.protocol.messages" in graph["ecrec.protocol.shard"]
    assert cycles(graph) == []


def test_a_cycle_is_found_whole() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}, "f": set()}
    assert cycles(graph) == [{"a", "b", "c"}, {"e"}]

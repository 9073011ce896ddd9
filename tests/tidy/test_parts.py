"""A part of a machine gets what it needs, and never the machine: it cannot reach what it was not given."""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "protocol"))

from cluster import Cluster, table

from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import ToldToEnd
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

PACKAGE = Path(inspect.getfile(ShardMachine)).parent
MACHINES = {kind: kind.__module__ for kind in (ShardMachine, SchedulerMachine, ClientMachine)}


def referred(thing: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a thing holds: attributes, slots, items, what a closure or a partial has caught."""
    if isinstance(thing, type | ModuleType | str | bytes | int | float) or thing is None:
        return
    if isinstance(thing, MethodType):
        yield "__self__", thing.__self__
    elif isinstance(thing, FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells)
    elif isinstance(thing, partial):
        yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
        yield from ((f"key {key!r}", key) for key in thing)
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif not isinstance(thing, BuiltinMethodType):
        yield from getattr(thing, "__dict__", {}).items()
        for kind in type(thing).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if isinstance(name, str) and hasattr(thing, name):
                    yield name, getattr(thing, name)


def ways_back(machine: Any) -> list[str]:
    """How the parts of a machine reach it: ``part.attribute[...]`` each; what the machine alone holds is its own."""
    found = []
    todo = [
        (name, part) for name, part in vars(machine).items() if not name.startswith("_") and hasattr(part, "__dict__")
    ]
    seen = {id(part) for _, part in todo}
    while todo:
        where, thing = todo.pop()
        for name, value in referred(thing):
            if value is machine:
                found.append(f"{where}.{name}")
            elif id(value) not in seen:
                seen.add(id(value))
                todo.append((f"{where}.{name}", value))
    return found


def machines_at_work() -> Iterator[tuple[str, Any]]:
    """(moment, machine) of a group of which one shard is repaired, another one leaves, and a table is asked for."""
    cluster, spec = Cluster(5), table(rows=60, code="3+2")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(60), 1.0))
    cluster.kill(2)
    cluster.replace(2)
    cluster.shard(1).handle(ToldToEnd(), cluster.now_ms)
    for step in range(12):
        cluster.deliver()
        if step == 6:
            cluster.tick()
        yield from ((f"{name} at step {step}", machine) for name, machine in cluster.machines.items())


def test_no_part_of_a_new_machine_holds_it() -> None:
    new = (ShardMachine("p", "tcp://x:1"), SchedulerMachine(2, 1, ProtocolConfig(), None), ClientMachine(0, "p"))
    assert [ways_back(machine) for machine in new] == [[], [], []]


def test_no_part_of_a_machine_at_work_holds_it() -> None:
    found = {where: ways for where, machine in machines_at_work() if (ways := ways_back(machine))}
    assert found == {}


def test_a_part_that_holds_its_machine_is_found_however_it_does() -> None:
    machine = ClientMachine(0, "p")
    part = machine.leasing
    for hold in (machine, {"m": [machine]}, machine.handle, lambda: machine.epoch, partial(print, machine)):
        part.held = hold  # type: ignore[attr-defined]
        assert len(ways_back(machine)) == 1, hold


def test_only_what_stands_outside_of_the_machines_imports_them() -> None:
    outside = {"invariants.py": set(MACHINES.values())}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ecrec.protocol."):
                taken = {node.module} & set(MACHINES.values()) - outside.get(path.name, set())
                assert not taken, f"{path}:{node.lineno}: imports the machine of {node.module}"


def test_no_constructor_of_a_part_names_a_machine() -> None:
    names = [kind.__name__ for kind in MACHINES] + ["Machine"]
    for path in sorted(PACKAGE.rglob("*.py")):
        for kind in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            if kind.name == "NodeCore":  # what a process does around its machine, whichever that is
                continue
            for init in (node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"):
                arguments = ast.unparse(init.args)
                assert not any(name in arguments for name in names), f"{path}:{init.lineno}: {kind.name}({arguments})"

"""States are changed in one place each, by tables; docs/protocol.md shows these tables."""

import ast
from pathlib import Path

import pytest
from cluster import Cluster
from msgspec.structs import replace

from ecrec.protocol import messages as m
from ecrec.protocol.events import HalfHandledError, Received
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.transitions import DIED, PLACE, TABLES, TOLD, TransitionError, Transitions, diagrams

ROOT = Path(__file__).parents[3]
STEPPED = {"state": {"Place", "Peer", "ShardContext", "Channel", "Handover"}, "stream": {"Peer"}, "link": {"Peer"}}
"""Attributes that only `step`, `step_stream` and `step_link` of these classes assign."""
SET_ELSEWHERE = {
    ("context.py", "begin_with", "state"), ("shard_context.py", "__init__", "state"),
    ("channel.py", "__init__", "state"), ("handover.py", "__init__", "state"),
    ("membership.py", "_place", "stream"),
}  # fmt: skip
"""A state of another kind, first states, and streams of those who died before this shard was."""


def test_each_state_is_assigned_in_one_place() -> None:
    steps, others = set(), set()
    for path in sorted((ROOT / "ecrec" / "protocol").rglob("*.py")):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            targets = [target for node in ast.walk(function) if isinstance(node, ast.Assign) for target in node.targets]
            targets += [e for target in targets if isinstance(target, ast.Tuple) for e in target.elts]
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in STEPPED:
                    where = steps if function.name.startswith("step") else others
                    where.add((path.name, function.name, target.attr))
    assert others == SET_ELSEWHERE
    assert len(steps) == sum(map(len, STEPPED.values()))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_state_is_reached_and_has_a_diagram(table: Transitions) -> None:
    reached = {table.first}
    for _ in table.steps:
        reached |= {after for (before, _), after in table.steps.items() if before in reached}
    assert reached >= {state for step in table.steps.items() for state in (step[0][0], step[1])}
    assert table.diagram().count("-->") >= len(table.steps)


def test_the_document_shows_the_tables() -> None:
    assert diagrams() in (ROOT / "docs" / "protocol.md").read_text(), "python -m ecrec.protocol.transitions"


def test_what_is_in_no_table_is_an_error_that_names_the_state() -> None:
    with pytest.raises(TransitionError, match="a place of a group: 'declared down' cannot happen in state 'down'"):
        PLACE.after(m.DOWN, DIED)
    with pytest.raises(ValueError, match="'sleeping' is no state"):
        PLACE.check("sleeping")


def test_a_death_that_is_announced_twice_ends_the_shard_with_the_reason() -> None:
    cluster = Cluster(5)
    machine = cluster.shard(0)
    for number in (1, 2):
        view = m.ShardDown(machine.view + 1, 3, 1)
        event = Received(m.SCHEDULER_ADDRESS, m.Views(machine.context.origin, [view]))
        if number == 1:
            machine.handle(event, cluster.now_ms)
            assert machine.peers[3].state == m.DOWN and machine.peers[3].unsettled
        else:
            with pytest.raises(HalfHandledError, match="cannot happen in state 'down'"):
                machine.handle(event, cluster.now_ms)


def test_a_start_with_a_member_in_no_state_is_refused_as_a_whole() -> None:
    start = Cluster(3).shard(0).membership.start
    assert start is not None
    bad = replace(start, members=[replace(start.members[0], state="sleeping"), *start.members[1:]])
    fresh = ShardMachine("new", "tcp://new:1")
    with pytest.raises(ValueError, match="'sleeping' is no state"):
        fresh.handle(Received(m.SCHEDULER_ADDRESS, m.Views(m.Origin("c", 0, 1), [bad])), 0.0)
    assert not fresh.state and not fresh.peers


def test_what_a_peer_says_twice_changes_its_stream_once() -> None:
    peer = Cluster(3).shard(0).peers[1]
    before = peer.stream
    peer.step_stream(TOLD)
    assert peer.stream == before == "joined"

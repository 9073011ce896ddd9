"""Repairs and scrubs, one rule at a time: what is asked of whom, when again, and what comes to nothing."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from test_repair import LOST, SPEC, grown, recovering, repair, told
from test_scrub import TOOL_ADDRESS, flip_parity, found, scrub, trained

from ecrec.protocol import messages as m
from ecrec.protocol.captures import TIMEOUT_FACTOR_MAX, Assembly
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, HalfHandledError, Received
from ecrec.protocol.messages import RECOVERING, UNSURE, Address, Stripes
from ecrec.protocol.scrub import SCRUBS_MAX, Findings, Running
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.transitions import UNSETTLED
from ecrec.protocol.wanted import Wanted

TIMEOUT_MS = ProtocolConfig().repair_timeout_ms
NO = np.zeros(0, np.uint64)


def quiet(config: ProtocolConfig | None = None) -> ShardMachine:
    """A replacement that has asked for nothing; classes 1 and 2 have its data."""
    _, machine = recovering(config)
    machine.repairs.asked.clear()
    machine.context.effects = []
    return machine


def keys_of(machine: ShardMachine, class_id: int, count: int = 100) -> Any:
    return machine.store.missing_keys(class_id, 0, count)


def wanted(machine: ShardMachine, *keys: Any) -> Wanted:
    return Wanted(machine.store, np.concatenate(keys))


def by_name(machine: ShardMachine) -> list[list[int]]:
    """Rows of each repair that is asked for by name."""
    return [asked.keys.tolist() for asked in machine.repairs.asked.values() if not asked.background]


# ------------------------------------------------------------------ asking for rows by name
def test_between_a_death_and_its_cut_no_rows_of_its_stripes_are_asked_for() -> None:
    machine = quiet()
    machine.peers[4].stream = UNSETTLED  # it holds the parity of class 2
    of_1, of_2 = keys_of(machine, 1, 3), keys_of(machine, 2, 3)
    machine.repairs.ask(wanted(machine, of_1, of_2))
    assert by_name(machine) == [of_1.tolist()]


def test_rows_that_are_asked_for_are_not_asked_for_again() -> None:
    machine = quiet()
    keys = keys_of(machine, 1, 6)
    machine.repairs.ask(wanted(machine, keys[:2]))
    machine.repairs.ask(wanted(machine, keys[3:5]))
    machine.repairs.ask(wanted(machine, keys[:2], keys[3:5]))
    machine.repairs.ask(wanted(machine, keys[:2]))
    assert by_name(machine) == [keys[:2].tolist(), keys[3:5].tolist()]
    machine.repairs.ask(wanted(machine, keys, keys_of(machine, 2, 1)))
    assert by_name(machine)[2:] == [[keys[2], keys[5]], keys_of(machine, 2, 1).tolist()]


def test_rows_that_nobody_can_give_now_are_asked_for_later() -> None:
    machine = quiet()
    some = wanted(machine, keys_of(machine, 1, 2))
    state, machine.peers[3].state = machine.peers[3].state, RECOVERING  # it holds the parity of class 1
    machine.repairs.ask(some)
    assert by_name(machine) == []
    machine.peers[3].state = state
    machine.repairs.ask(some)
    assert len(by_name(machine)) == 1


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_repair_has_as_many_rows_as_may_be_and_one_at_least(rows: int) -> None:
    size = SPEC.record_bytes
    for most in (rows * size, (rows + 1) * size - 1, *([1] if rows == 1 else [])):
        machine = quiet(ProtocolConfig(repair_bytes_max=most))
        keys = keys_of(machine, 1, 3)
        machine.repairs.ask(wanted(machine, keys))
        assert by_name(machine) == [keys[i : i + rows].tolist() for i in range(0, 3, rows)], most


def test_so_many_repairs_are_asked_for_by_name_and_the_rest_when_one_is_answered() -> None:
    machine = quiet(ProtocolConfig(repairs_wanted_max=2, repair_rows_max=1))
    keys = keys_of(machine, 1, 4)
    some = wanted(machine, keys)
    machine.repairs.ask(some)
    assert by_name(machine) == [[keys[0]], [keys[1]]]
    machine.repairs._end(next(iter(machine.repairs.asked.values())))
    machine.repairs.ask(some)
    assert by_name(machine) == [[keys[1]], [keys[2]]]


# ------------------------------------------------------------------ whom is asked, and when again
def two_holders() -> ShardMachine:
    """A replacement of five shards with 2+2: classes of two parity holders."""
    cluster = Cluster(5)
    spec = table(code="2+2", rows=100)
    cluster.create(spec)
    cluster.push(spec, {row: 1.0 + row for row in range(spec.rows)})
    cluster.drain()
    cluster.kill(LOST)
    cluster.declared(LOST)
    cluster.blocked |= {(cluster.shards[shard], cluster.next_process) for shard in range(5)}
    machine = cluster.replace(LOST)
    machine.context.effects = []
    return machine


def test_where_one_holder_is_silent_the_other_one_is_asked_and_none_twice() -> None:
    machine = two_holders()
    asked = next(asked for asked in machine.repairs.asked.values() if asked.stripes.class_id == 1)
    assert list(asked.requests.values()) == [3]
    for now_ms, holders in ((TIMEOUT_MS, [3]), (TIMEOUT_MS + 1.0, [3, 4]), (90 * TIMEOUT_MS, [3, 4])):
        machine.context.now_ms = asked.asked_ms + now_ms if len(holders) == 1 else machine.context.now_ms + now_ms
        machine.repairs.on_tick()
        assert list(asked.requests.values()) == holders


def test_a_refusal_of_one_of_two_holders_leaves_the_other_one() -> None:
    for refused in (0, 1):
        machine = two_holders()
        asked = next(asked for asked in machine.repairs.asked.values() if asked.stripes.class_id == 1)
        machine.context.now_ms = asked.asked_ms + TIMEOUT_MS + 1.0
        machine.repairs.on_tick()
        request, holder = list(asked.requests.items())[refused]
        gone = m.RepairWorking(machine.view, request, 1, True)
        machine.repairs.on_working(machine.peers[holder], gone, ())
        assert len(asked.requests) == 2 - refused, "the first one names the repair, and stays"
        assert asked.again_ms == 0.0 and asked in machine.repairs.asked.values()
        machine.repairs.on_working(machine.peers[holder], gone, ())
        assert (asked.again_ms == 0.0) and asked.requests


def test_while_a_repair_pauses_it_is_not_asked_for_however_long_nobody_was_heard() -> None:
    machine = quiet()
    machine.repairs.sweep()
    first, asked = next(iter(machine.repairs.asked.items()))
    (holder,) = asked.requests.values()
    gone = m.RepairWorking(machine.view, first, asked.stripes.class_id, True)
    machine.repairs.on_working(machine.peers[holder], gone, ())
    asked.heard_ms, asked.again_ms = -1e9, machine.context.now_ms + 1.0
    machine.repairs.on_tick()
    assert not asked.requests
    machine.context.now_ms += 1.0
    machine.repairs.on_tick()
    assert list(asked.requests.values()) == [holder]


def test_a_repair_that_pauses_does_not_outlive_a_view_that_concerns_it() -> None:
    machine = quiet()
    machine.repairs.sweep()
    first, asked = next((r, a) for r, a in machine.repairs.asked.items() if a.stripes.class_id == 1)
    (holder,) = asked.requests.values()
    machine.repairs.on_working(machine.peers[holder], m.RepairWorking(machine.view, first, 1, True), ())
    assert asked in machine.repairs.asked.values()
    machine.repairs.forget({1})
    assert asked not in machine.repairs.asked.values()


def wants(machine: ShardMachine) -> list[int]:
    effects, machine.context.effects = machine.context.effects, []
    return [message.request for message in told(effects, m.RepairWanted)]


def test_a_holder_is_told_that_it_is_wanted_once_until_it_says_that_it_knows() -> None:
    machine = quiet()
    machine.repairs.sweep()
    request, asked = next(iter(machine.repairs.asked.items()))
    (holder,) = asked.requests.values()
    machine.context.effects = []
    heard: list[int] = []
    for step in range(1, 4):
        machine.context.now_ms = asked.asked_ms + step * TIMEOUT_MS / 2
        machine.repairs._look_after(request, asked, TIMEOUT_MS)
        heard.append(wants(machine).count(request))
    assert heard == [1, 0, 0]
    working = m.RepairWorking(machine.view, request, asked.stripes.class_id, False)
    machine.repairs.on_working(machine.peers[holder], working, ())
    machine.context.now_ms += TIMEOUT_MS / 2
    machine.repairs._look_after(request, asked, TIMEOUT_MS)
    assert wants(machine) == [request]
    machine.repairs._end(asked)
    machine.repairs.on_tick()
    assert not {key for key in machine.captures._unanswered if key[0] == request}, "of what is over nothing is kept"
    others = {key[0] for key in machine.captures._unanswered}
    assert others <= {r for a in machine.repairs.asked.values() for r in a.requests}


# ------------------------------------------------------------------ answers
@pytest.mark.parametrize("last", [11, 1 << 40])
def test_an_answer_of_stripes_that_there_are_not_is_refused(last: int) -> None:
    cluster, machine = recovering()
    request, asked = next((r, a) for r, a in machine.repairs.asked.items() if a.stripes.class_id == 1)
    (holder,) = asked.requests.values()
    answer = m.Repaired(machine.view, request, Stripes(1, asked.stripes.first, last))
    with pytest.raises(BAD_CONTENT, match="class 1 has stripes 0 to 10"):
        machine.handle(Received(Address(m.SHARD, holder, 1), answer, [b"", b"", b""]), cluster.now_ms)
    assert request in machine.repairs.asked


def test_rows_that_begin_again_are_counted_where_they_were_lacking_and_nowhere_else() -> None:
    machine = quiet()
    lacking = int(machine.store.missing_counts(1)[1].sum())
    machine.store.mark_recovered(2, 0, machine.store.class_size(2))
    machine.repairs.incomplete.discard(2)
    machine.repairs.reinitialise({0, 1, 2, 3})
    assert machine.repairs.reinitialised == {machine.view: {0: lacking}} and machine.repairs.complete()
    machine.repairs.reinitialised.clear()
    machine.repairs.reinitialise({0, 1, 2})
    assert machine.repairs.reinitialised == {}


# ------------------------------------------------------------------ at a parity holder
def assembly_of(machine: ShardMachine, class_id: int = 0, **fields: Any) -> Assembly:
    capture = SimpleNamespace(fold=lambda *delta: None, take=lambda: (NO, np.zeros(0, np.uint8)), nbytes=0)
    made = Assembly(machine.view, Stripes(class_id, 0, 1), capture, NO, machine.context.now_ms)  # type: ignore[arg-type]
    made.wanted_ms = machine.context.now_ms
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def holder(config: ProtocolConfig | None = None) -> tuple[Cluster, ShardMachine]:
    """Shard 2, which holds the parity of class 0, whose data are on shards 0 and 1."""
    cluster = grown(config)
    machine = cluster.shard(2)
    machine.context.effects = []
    return cluster, machine


def test_a_view_ends_requests_of_the_classes_that_it_concerns_and_no_others() -> None:
    _, machine = holder()
    machine.captures.assemblies = {1: assembly_of(machine, 0), 2: assembly_of(machine, 3)}
    machine.captures.forget({0})
    assert list(machine.captures.assemblies) == [2]


def test_what_is_dropped_keeps_no_rows_and_is_over_when_all_have_marked() -> None:
    _, machine = holder()
    rows = {0: (NO, NO)}
    failed: list[int] = []
    one = assembly_of(machine, members={0, 1}, rows=dict(rows), captures=dict(rows), fail=lambda: failed.append(1))
    machine.captures.assemblies = {9: one}
    machine.captures.give_up(9)
    assert failed == [1] and not one.rows and not one.captures and one.capture is None
    for member, left in ((0, [9]), (1, [])):
        mark = m.Marker(machine.view, 9, Stripes(0, 0, 1))
        machine.captures.on_marker(machine.peers[member], mark, [b"", b"", b""])
        assert list(machine.captures.assemblies) == left, "a mark that comes later must not open it again"


def test_a_request_that_nobody_waits_for_is_given_up_and_one_that_has_not_come_is_kept() -> None:
    _, machine = holder()
    late_ms = 2 * TIMEOUT_FACTOR_MAX * TIMEOUT_MS
    early, known = assembly_of(machine), assembly_of(machine, members={0, 1}, used=[2, 3])
    dropped = assembly_of(machine, members={0, 1}, used=[2, 3], capture=None)
    machine.captures.assemblies = {1: early, 2: known, 3: dropped}
    machine.context.now_ms += late_ms
    machine.captures.on_tick()
    assert known.capture is not None and wants(machine) == [2], "of one that was dropped nobody is told"
    machine.context.now_ms += 1.0
    machine.captures.on_tick()
    assert known.capture is None and early.capture is not None, "its request follows the mark that opened it"
    assert wants(machine) == []


def test_a_holder_whose_own_parity_does_not_fit_gives_nothing_though_others_could() -> None:
    cluster = Cluster(5)
    spec = table(code="2+2", rows=100)
    cluster.create(spec)
    cluster.drain()
    machine = cluster.shard(2)
    assert told(repair(cluster, machine, 1, 0, request=7), m.Snap)
    machine.peers[2].state, machine.peers[2].reseeding = m.RESEEDING, {0}
    with mock.patch("ecrec.protocol.invariants.check"):
        effects = repair(cluster, machine, 1, 0, request=8)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True] and 8 not in machine.captures.assemblies


def captures(cluster: Cluster, machine: ShardMachine, request: int = 9) -> list[Any]:
    """Another holder asks this one for its capture."""
    message = m.CaptureParity(machine.view, request, Stripes(0, 0, 1), [0, 1])
    return machine.handle(Received(cluster.shard(1).address, message, [b""]), cluster.now_ms)


def marker_of(
    cluster: Cluster, machine: ShardMachine, member: int, request: int = 9, too_long: bool = False
) -> list[Any]:
    message = m.Marker(machine.view, request, Stripes(0, 0, 1), too_long)
    return machine.handle(Received(cluster.shard(member).address, message, [b"", b"", b""]), cluster.now_ms)


def test_a_capture_is_sent_when_all_have_marked() -> None:
    cluster, machine = holder()
    assert captures(cluster, machine) == [] and not told(marker_of(cluster, machine, 0), m.Captured)
    assert told(marker_of(cluster, machine, 1), m.Captured) and not machine.captures.assemblies


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_capture_for_which_there_was_no_room_is_said_to_be_gone_and_does_not_come_back(before: int) -> None:
    """However many markers come before the request."""
    cluster, machine = holder(ProtocolConfig(captures_bytes_max=1))
    machine.captures.assemblies = {1: assembly_of(machine, members={0, 1})}
    for member in range(before):
        marker_of(cluster, machine, member)
    effects = captures(cluster, machine)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True]
    for member in range(before, 2):
        assert not told(marker_of(cluster, machine, member), m.Captured)
    assert list(machine.captures.assemblies) == [1]


def test_a_capture_that_no_frame_holds_is_said_to_be_gone() -> None:
    cluster, machine = holder()
    captures(cluster, machine)
    marker_of(cluster, machine, 0)
    with mock.patch.object(machine.captures, "_is_too_long", return_value=True):
        effects = marker_of(cluster, machine, 1)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True] and not told(effects, m.Captured)


@pytest.mark.parametrize("how", ["too long", "does not fit"])
def test_rows_that_cannot_be_given_are_said_to_be_gone(how: str) -> None:
    cluster, machine = holder()
    repair(cluster, machine, 1, 0)
    if how == "too long":
        broken: Any = mock.patch.object(machine.captures, "_is_too_long", return_value=True)
    else:
        broken = mock.patch.object(machine.captures, "_solve", side_effect=ValueError("7 bytes"))
    with broken:
        effects = marker_of(cluster, machine, 0)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True] and not told(effects, m.Repaired)


def test_a_member_whose_rows_are_too_long_ends_the_request() -> None:
    cluster, machine = holder()
    repair(cluster, machine, 1, 0)
    effects = marker_of(cluster, machine, 0, too_long=True)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True] and not machine.captures.assemblies


def test_who_asks_whether_a_repair_is_still_worked_on_is_told() -> None:
    cluster, machine = holder()
    machine.captures.assemblies = {1: assembly_of(machine, at_ms=-9.0), 2: assembly_of(machine, capture=None)}
    for request, gone in ((1, False), (2, True), (3, True)):
        asks = Received(cluster.shard(1).address, m.RepairWanted(machine.view, request, 0))
        (answer,) = told(machine.handle(asks, cluster.now_ms), m.RepairWorking)
        assert answer.gone == gone
    assert machine.captures.assemblies[1].at_ms == cluster.now_ms


@pytest.mark.parametrize(
    ("what", "message", "frames"),
    [
        ("_heard", m.RepairWorking(0, 1, 0, False), ()),
        ("_say", m.RepairWanted(0, 1, 0), ()),
        ("_say", m.Repair(0, 9, Stripes(0, 0, 1)), [b""]),
        ("_is_too_long", m.Snap(0, 9, Stripes(2, 0, 1), [1], True), [b""]),
    ],
)
def test_what_fails_once_the_state_moves_ends_the_process(what: str, message: Any, frames: Any) -> None:
    cluster, machine = holder()
    if what == "_heard":
        asked = SimpleNamespace(requests={1: 1}, stripes=Stripes(0, 0, 1))
        machine.repairs.asked, machine.repairs._first_request = {1: asked}, {1: 1}  # type: ignore[dict-item]
    if isinstance(message, m.Repair):
        machine.peers[0].state = RECOVERING  # it cannot be decoded
    message = msgspec.structs.replace(message, view=machine.view)
    broken = mock.patch.object(
        machine.repairs if what == "_heard" else machine.captures, what, side_effect=ValueError("so")
    )
    with broken, pytest.raises(HalfHandledError, match="so"):
        machine.handle(Received(cluster.shard(1).address, message, frames), cluster.now_ms)


# ------------------------------------------------------------------ scrubs
def asks(cluster: Cluster, shard: int, **fields: Any) -> Any:
    """A tool's question to the shard that leads class 0, and what it is told at once."""
    question = m.Scrub(**{"request": 5, "class_id": 0, "first": 0, "rows_max": 100, **fields})
    effects = cluster.shard(shard).handle(Received(TOOL_ADDRESS, question), cluster.now_ms)
    answers = told(effects, m.ScrubBusy) + told(effects, m.ScrubResult)
    return answers[0] if answers else None


def test_a_scrub_begins_where_it_is_asked_to_and_ends_at_the_end() -> None:
    cluster = trained(5, table(code="3+2", rows=60))
    size = cluster.shard(3).store.class_size(0)
    cluster.give(cluster.shards[3], Received(TOOL_ADDRESS, m.Scrub(1, 0, size - 1, 100, False)))
    cluster.run()
    result, _ = found(cluster)
    assert (result.last, result.size, result.stripes) == (size, size, 1)
    for first in (size, size + 9):
        result = asks(cluster, 3, first=first)
        assert (result.last, result.size, result.stripes, result.parity_rows) == (size, size, 0, 0)
        assert not cluster.shard(3).scrubs.running


@pytest.mark.parametrize("what", ["too many", "no room", "I recover", "one recovers", "one is not settled", ""])
def test_a_scrub_is_put_off_while_it_cannot_be_right_or_there_is_no_room(what: str) -> None:
    cluster = trained(5, table(code="3+2", rows=60))
    machine = cluster.shard(3)
    if what == "too many":
        busy: Any = SimpleNamespace(class_id=77, waiting=set(), at_ms=cluster.now_ms)
        machine.scrubs.running = dict.fromkeys(range(SCRUBS_MAX), busy)
    elif what == "no room":
        machine.context.config = msgspec.structs.replace(machine.config, captures_bytes_max=1)
        machine.captures.assemblies = {1: assembly_of(machine)}
    elif what == "I recover":
        machine.context.state = RECOVERING
    elif what == "one recovers":
        machine.peers[1].state = RECOVERING
    elif what == "one is not settled":
        machine.peers[1].stream = UNSETTLED
    with mock.patch("ecrec.protocol.invariants.check"), mock.patch.object(machine, "advance"):
        answer = asks(cluster, 3)
    assert isinstance(answer, m.ScrubBusy) == bool(what)


def test_the_stripes_of_a_second_table_have_its_own_rows() -> None:
    """The last stripe of each has one data row: what looks as if another one were wrong is its parity."""
    first, second = table("first", code="2+1", rows=40), table("second", code="2+1", rows=9)
    cluster = trained(3, first)
    cluster.create(second)
    cluster.push(second, {row: 1.0 for row in range(second.rows)})
    cluster.drain()
    key = 1 << 48 | 3
    machine = cluster.shard(2)
    some: Any = SimpleNamespace(table=1, keys=np.array([key, 1 << 48 | 4], np.uint64))
    assert machine.scrubs._row_exists(some).tolist() == [[True, True], [True, False]]
    flip_parity(cluster, 2, key=key)
    assert scrub(cluster, 0)[1] == [(key, 2, UNSURE)]


def test_a_tool_is_told_when_all_corrections_are_confirmed_and_not_before() -> None:
    cluster = trained(6, table(code="3+3", rows=60))
    machine = cluster.shard(3)
    result = m.ScrubResult(5, 0, 9, 9, 1, 1, 0, True)
    running = Running(TOOL_ADDRESS, 5, 0, 0, 0.0, True, machine.view, result, Findings(NO, NO, NO), {4, 5})
    machine.scrubs.running = {1: running}
    for source, request, answered in ((4, 2, False), (3, 1, False), (4, 1, False), (4, 1, False), (5, 1, True)):
        machine.context.effects = []
        confirmed = m.ParityCorrected(machine.view, request, 0)
        machine.scrubs.on_parity_corrected(machine.peers[source], confirmed, ())
        assert bool(told(machine.context.effects, m.ScrubResult)) == answered
    assert not machine.scrubs.running


def test_a_correction_of_stripes_that_are_not_all_of_the_class_is_refused() -> None:
    cluster = trained(5, table(code="3+2", rows=60))
    machine = cluster.shard(4)
    for keys in ([1], [0, 1]):
        frames = np.array(keys, np.uint64), np.zeros(len(keys) * machine.store.record_bytes(0), np.uint8)
        correct = m.CorrectParity(machine.view, 1, 0)
        machine.peers[3].broken = False
        with pytest.raises(BAD_CONTENT, match="not all of class 0"):
            machine.handle(Received(cluster.shard(3).address, correct, frames), cluster.now_ms)
    assert machine.scrubs.corrected == 0


@pytest.mark.parametrize(("what", "message"), [("note", m.CorrectParity(0, 1, 0)), ("", m.ParityCorrected(0, 1, 0))])
def test_what_fails_once_parity_is_corrected_ends_the_process(what: str, message: Any) -> None:
    cluster = trained(5, table(code="3+2", rows=60))
    machine = cluster.shard(4 if what else 3)
    frames = np.array([0], np.uint64), np.zeros(machine.store.record_bytes(0), np.uint8)
    target: Any = (machine.context, what) if what else (machine.scrubs, "_answer")
    machine.scrubs.running = {1: SimpleNamespace(waiting={4, 3}, class_id=0, at_ms=0.0)}  # type: ignore[dict-item]
    source = cluster.shard(3 if what else 4).address
    message = msgspec.structs.replace(message, view=machine.view)
    with mock.patch.object(*target, side_effect=ValueError("so")), pytest.raises(HalfHandledError, match="so"):
        machine.handle(Received(source, message, frames if what else ()), cluster.now_ms)

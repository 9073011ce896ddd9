"""Repairs: what is asked of whom, which requests fit, and when they come to an end."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.captures import check_stripes
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, Received, Send
from ecrec.protocol.messages import Address
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.transitions import UNSETTLED

SPEC = table(code="2+1", rows=100)
LOST = 2
"""Classes of five shards with 2+1: class c has its data on c and c + 1 and its parity on c + 2."""


def grown(config: ProtocolConfig | None = None) -> Cluster:
    cluster = Cluster(5, config)
    cluster.create(SPEC)
    cluster.push(SPEC, {row: 1.0 + row for row in range(SPEC.rows)})
    cluster.drain()
    return cluster


def recovering(config: ProtocolConfig | None = None) -> tuple[Cluster, ShardMachine]:
    """A replacement that nobody answers."""
    cluster = grown(config)
    cluster.kill(LOST)
    cluster.declared(LOST)
    cluster.blocked |= {(cluster.shards[shard], cluster.next_process) for shard in range(5)}
    return cluster, cluster.replace(LOST)


def swept(machine: ShardMachine) -> list[int]:
    """Classes of which a range is asked for."""
    return sorted(asked.stripes.class_id for asked in machine.repairs.asked.values() if asked.background)


def told(effects: list[Any], kind: type) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


# ------------------------------------------------------------------ which stripes there are
@pytest.mark.parametrize(("stripes", "as_data", "why"), [
    (m.Stripes(0, 0, 1), True, ""), (m.Stripes(3, 0, 1), False, ""), (m.Stripes(0, 0, 10), True, ""),
    (m.Stripes(0, 9, 10), True, ""), (m.Stripes(5, 0, 1), True, "no class 5"), (m.Stripes(-1, 0, 1), True, "no class"),
    (m.Stripes(3, 0, 1), True, "not on shard 0"), (m.Stripes(0, 0, 1), False, "not on shard 0"),
    (m.Stripes(0, 0, 11), True, "stripes 0 to 10"), (m.Stripes(0, 4, 4), True, "stripes 0 to 10"),
    (m.Stripes(0, -1, 1), True, "stripes 0 to 10"),
])  # fmt: skip
def test_stripes_that_there_are_not_here_are_refused(stripes: m.Stripes, as_data: bool, why: str) -> None:
    machine = grown().shard(0)
    assert machine.store.class_size(0) == 10
    none = np.zeros(0, np.uint64)
    if why:
        with pytest.raises(ValueError, match=why):
            check_stripes(machine.context, stripes, none, as_data)
    else:
        check_stripes(machine.context, stripes, none, as_data)


def test_rows_by_name_are_all_of_the_class_that_is_named() -> None:
    machine = grown().shard(0)
    of_class = [machine.store.coded_rows(class_id, 0, 10)[0] for class_id in (0, 4)]
    named = m.Stripes(0, 0, 0)
    check_stripes(machine.context, named, of_class[0], as_data=True)
    for keys in (of_class[1], np.concatenate(of_class)):
        with pytest.raises(ValueError, match="not all of class 0"):
            check_stripes(machine.context, named, keys, as_data=True)


# ------------------------------------------------------------------ asking
@pytest.mark.parametrize(("in_flight_max", "classes"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 1, 2, 2])])
def test_the_sweep_asks_for_as_many_ranges_of_each_class(in_flight_max: int, classes: list[int]) -> None:
    cluster, machine = recovering(ProtocolConfig(repairs_in_flight_max=in_flight_max, repair_rows_max=1))
    assert swept(machine) == classes
    cluster.tick()
    assert swept(machine) == classes


def test_fewer_are_asked_for_while_workers_ask() -> None:
    _, machine = recovering(ProtocolConfig(foreground_repairs_max=1))
    machine.repairs.asked.clear()
    machine.context.worked_ms = machine.context.now_ms
    machine.repairs.share.resume_ms = machine.context.now_ms
    machine.repairs.sweep()
    assert swept(machine) == [1]


def test_rows_that_are_asked_for_by_name_do_not_keep_the_sweep_from_their_class() -> None:
    cluster, machine = recovering()
    machine.repairs.asked.clear()
    row = int(cluster.by_shard(SPEC, range(SPEC.rows))[LOST][0])
    cluster.pull(SPEC, [row], exact=False)
    cluster.run()
    assert [asked.background for asked in machine.repairs.asked.values()].count(False) == 1
    assert swept(machine) == [1, 2]


def test_of_a_class_with_a_member_whose_cut_is_not_announced_nothing_is_asked() -> None:
    """Between its death and the settlement the parities of a stripe can differ."""
    _, machine = recovering()
    machine.repairs.asked.clear()
    machine.peers[4].stream = UNSETTLED
    machine.repairs.sweep()
    assert swept(machine) == [1], "shard 4 holds the parity of class 2"


def test_only_who_recovers_sweeps() -> None:
    machine = grown().shard(0)
    machine.repairs.incomplete = {0}
    machine.repairs.sweep()
    assert not machine.repairs.asked


def test_an_answer_to_something_else_is_refused_and_brings_nothing() -> None:
    cluster, machine = recovering()
    request, asked = next((r, a) for r, a in machine.repairs.asked.items() if a.stripes.class_id == 1)
    missing = {class_id: machine.store.next_missing(class_id, 0) for class_id in (1, 2)}
    (holder,) = asked.requests.values()
    for stripes in (m.Stripes(2, asked.stripes.first, asked.stripes.last), m.Stripes(1, 1, 2), m.Stripes(1, 0, 0)):
        machine.peers[holder].broken = False
        with pytest.raises(BAD_CONTENT, match="asked for"):
            answer = m.Repaired(machine.view, request, stripes)
            machine.handle(Received(Address(m.SHARD, holder, 1), answer, [b"", b"", b""]), cluster.now_ms)
    assert missing == {class_id: machine.store.next_missing(class_id, 0) for class_id in (1, 2)}
    assert request in machine.repairs.asked


def test_a_holder_that_cannot_is_asked_again_after_a_pause() -> None:
    cluster, machine = recovering()
    request, asked = next(iter(machine.repairs.asked.items()))
    (holder,) = asked.requests.values()
    source = Address(m.SHARD, holder, 1)
    gone = m.RepairWorking(machine.view, request, asked.stripes.class_id, True)
    machine.handle(Received(source, gone), cluster.now_ms)
    assert request not in machine.repairs.asked and asked in machine.repairs.asked.values() and not asked.requests
    effects = machine.handle(Received(source, gone), cluster.now_ms)
    assert not told(effects, m.Repair), "the same word again, of a request that is over"
    machine.context.now_ms = asked.again_ms - 1
    machine.repairs.on_tick()
    assert not asked.requests
    machine.context.now_ms = asked.again_ms
    machine.repairs.on_tick()
    assert list(asked.requests.values()) == [holder] and list(machine.repairs.asked.values()).count(asked) == 1


def test_a_view_that_concerns_a_class_ends_what_is_asked_of_it_and_nothing_else() -> None:
    _, machine = recovering()
    assert swept(machine) == [1, 2]
    over = next(asked for asked in machine.repairs.asked.values() if asked.stripes.class_id == 1)
    machine.repairs.forget({1})
    assert swept(machine) == [2]
    assert not any(machine.repairs._first_request.get(request) for request in over.requests)


# ------------------------------------------------------------------ a parity holder
def repair(cluster: Cluster, machine: ShardMachine, shard: int, class_id: int, request: int = 9) -> list[Any]:
    event = Received(cluster.shard(shard).address, m.Repair(machine.view, request, m.Stripes(class_id, 0, 1)), [b""])
    return machine.handle(event, cluster.now_ms)


def test_only_a_data_member_is_given_its_rows() -> None:
    cluster = grown()
    machine = cluster.shard(2)
    for shard in (3, 4):
        with pytest.raises(BAD_CONTENT, match="holds no data"):
            repair(cluster, machine, shard, 0)
    assert not machine.captures.assemblies
    assert told(repair(cluster, machine, 1, 0), m.Snap)


def test_what_cannot_be_decoded_in_this_view_is_said_to_be_gone() -> None:
    cluster = grown()
    machine = cluster.shard(2)
    machine.peers[0].state = m.RECOVERING
    assert [answer.gone for answer in told(repair(cluster, machine, 1, 0), m.RepairWorking)] == [True]
    assert not machine.captures.assemblies


def test_a_capture_for_which_there_is_no_room_is_said_to_be_gone() -> None:
    cluster = grown(ProtocolConfig(captures_bytes_max=1))
    machine = cluster.shard(2)
    assert told(repair(cluster, machine, 1, 0, request=8), m.Snap)
    effects = repair(cluster, machine, 1, 0, request=9)
    assert [answer.gone for answer in told(effects, m.RepairWorking)] == [True] and not told(effects, m.Snap)
    assert list(machine.captures.assemblies) == [8]


def test_a_delta_is_folded_into_captures_of_its_class_until_its_sender_has_marked() -> None:
    machine = grown().shard(2)
    folded: list[str] = []

    def assembly(name: str, class_id: int, marked: set[int]) -> Any:
        capture = SimpleNamespace(fold=lambda source, keys, records: folded.append(name))
        return SimpleNamespace(capture=capture, marked=marked, stripes=m.Stripes(class_id, 0, 1))

    nothing = SimpleNamespace(capture=None, marked=set(), stripes=m.Stripes(0, 0, 1))
    machine.captures.assemblies = {
        1: assembly("counts", 0, set()), 2: assembly("marked", 0, {1}), 3: assembly("old round", 1, set()), 4: nothing,
    }  # fmt: skip
    machine.captures.fold_captures(machine.peers[1], 0b101, None, None)
    assert folded == ["counts"]
    machine.captures.assemblies = {}


def test_a_member_that_marks_or_a_capture_that_is_asked_for_where_there_is_no_parity_is_refused() -> None:
    cluster = grown()
    machine, stripes = cluster.shard(2), m.Stripes(1, 0, 1)
    source = cluster.shard(1).address
    for message, frames in (
        (m.Marker(machine.view, 9, stripes), [b"", b"", b""]), (m.CaptureParity(machine.view, 9, stripes, [1]), [b""]),
    ):  # fmt: skip
        machine.peers[1].broken = False
        with pytest.raises(BAD_CONTENT, match="not on shard 2"):
            machine.handle(Received(source, message, frames), cluster.now_ms)
        assert not machine.captures.assemblies


# ------------------------------------------------------------------ what people see
def test_the_scheduler_knows_how_far_a_recovery_is_and_when_its_parts_were_done() -> None:
    cluster = grown()
    beside = [entry.since_ms for entry in cluster.scheduler.state.history]
    assert beside == [-1.0] * 5, "nothing is told of the places of a new group"
    killed_ms = cluster.now_ms
    cluster.kill(LOST)
    cluster.declared(LOST)
    cluster.blocked |= {(cluster.shards[shard], cluster.next_process) for shard in range(5)}
    machine = cluster.replace(LOST)

    def told() -> dict[str, float]:
        return cluster.scheduler.cluster_state().shards[LOST].figures

    cluster.settle_down(lambda: "repair_done" in told())
    assert (told()["repair_done"], told()["seed_done"]) == (0.0, 0.0)
    cluster.blocked.clear()
    seen: list[tuple[float, float]] = []
    while not cluster.whole():
        cluster.tick(5.0)
        for _ in range(3):
            cluster.deliver()
        seen.append((machine.repairs.done(), machine.seeding.share_done()))
    assert seen == sorted(seen) and seen[-1] == (1.0, 1.0)
    cluster.settle_down(lambda: "repair_done" not in told())

    down, settled, up, whole = cluster.scheduler.state.history[5:]
    assert [entry.event for entry in (down, settled, up, whole)] == ["down", "settled", "up", "whole"]
    assert down.since_ms <= killed_ms <= down.at_ms, "when it was last heard"
    assert up.at_ms < whole.since_ms <= whole.at_ms <= cluster.scheduler.cluster_state().now_ms, "when it had all rows"

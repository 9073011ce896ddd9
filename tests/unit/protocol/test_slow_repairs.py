"""Repairs that take longer than any time-out are asked for once, kept alive, and end. And which views end them."""

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send, Tick
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.shard import ShardMachine

SPEC = table(rows=60, code="3+2")
SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
ABANDONED_MS = 32 * 1000.0


class Counting(Cluster):
    """Counts messages between shards by kind, and can hold those of some kinds up, each for so long."""

    def __init__(self, n: int, config: ProtocolConfig | None = None) -> None:
        self.sent: dict[str, int] = {}
        self.delays_ms: dict[str, float] = {}
        self.late: list[tuple[float, tuple[str, str], Received]] = []
        super().__init__(n, config)

    def send(self, name: str, machine: Any, effect: Send) -> None:
        kind = type(effect.message).__name__
        self.sent[kind] = self.sent.get(kind, 0) + 1
        super().send(name, machine, effect)

    def give(self, name: str, event: Any) -> None:
        delay_ms = self.delays_ms.get(type(getattr(event, "message", None)).__name__, 0.0)
        if delay_ms:
            self.late.append((self.now_ms + delay_ms, (name, ""), event))
        else:
            super().give(name, event)

    def tick(self, ms: float = 20.0) -> None:
        super().tick(ms)
        due = [one for one in self.late if one[0] <= self.now_ms]
        self.late = [one for one in self.late if one[0] > self.now_ms]
        for _, (name, _), event in due:
            super().give(name, event)


def recovering(spec: TableSpec = SPEC, **config: Any) -> tuple[Counting, ShardMachine]:
    """Five shards, one of which was just replaced and has asked for its rows; nobody has heard of that."""
    cluster = Counting(5, msgspec.structs.replace(ProtocolConfig(), **config))
    cluster.create(spec)
    cluster.push(spec, {row: 1.0 + row for row in range(spec.rows)})
    cluster.drain()
    cluster.kill(2)
    cluster.delays_ms = {"Repair": 1e9}
    machine = cluster.replace(2)
    cluster.delays_ms, cluster.sent = {}, {}
    return cluster, machine


def let_go(cluster: Counting, delay_ms: float = 0.0) -> None:
    cluster.late = [(cluster.now_ms + delay_ms, where, event) for _, where, event in cluster.late]


@pytest.mark.parametrize("slow", ["Snap", "Marker", "Captured", "Repaired"])
@pytest.mark.parametrize("delay_ms", [5_000.0, 3 * ABANDONED_MS])
def test_a_slow_repair_is_asked_for_once_of_each_holder_and_ends(slow: str, delay_ms: float) -> None:
    """Asked again for ever, it drowned the peers, and none of the requests lived long enough to be answered."""
    cluster, machine = recovering()
    asked = len(machine.repairs.asked)
    assert asked == 3
    let_go(cluster)
    cluster.delays_ms = {slow: delay_ms}
    if slow == "Repaired":  # in a stream nothing overtakes it
        cluster.delays_ms["RepairWorking"] = delay_ms
    cluster.settle_down(machine.repairs.complete, ticks=20_000)
    # Who hears "working" asks nobody else; who hears nothing asks each holder once.
    assert cluster.sent.get("Repair", 0) == (asked if slow == "Repaired" else 0)
    assert cluster.sent["Snap"] <= 4 * asked
    assert not any(a.capture for s in range(5) for a in cluster.shard(s).captures.assemblies.values())
    cluster.delays_ms = {}
    cluster.drain()
    cluster.scrub()


def test_a_silent_holder_is_asked_once_and_then_another_one() -> None:
    cluster, machine = recovering()
    asked = list(machine.repairs.asked.values())
    cluster.delays_ms = {"RepairWanted": 1e9}
    for _ in range(3000):
        cluster.tick()
        cluster.run()
        if machine.repairs.complete():
            break
    assert machine.repairs.complete()
    assert cluster.sent["Repair"] == len(asked)
    cluster.late.clear()
    cluster.drain()
    cluster.scrub()


def test_a_round_trip_longer_than_the_time_out_is_learned() -> None:
    cluster, machine = recovering()
    for one in machine.repairs.asked.values():
        one.asked_ms = one.heard_ms = cluster.now_ms
    cluster.now_ms += 7000.0
    request, one = next(iter(machine.repairs.asked.items()))
    holder = m.Address(m.SHARD, one.requests[request], 1)
    working = m.RepairWorking(one.view, request, one.stripes.class_id, False)
    machine.handle(Received(holder, working), cluster.now_ms)
    cluster.now_ms += 13_000.0
    effects = machine.handle(Tick(), cluster.now_ms)
    again = [e for e in effects if isinstance(e, Send) and isinstance(e.message, m.Repair)]
    assert one.stripes not in [e.message.stripes for e in again]
    effects = machine.handle(Tick(), cluster.now_ms + 2000.0)
    assert one.stripes in [e.message.stripes for e in effects if isinstance(e, Send) and type(e.message) is m.Repair]


def test_a_capture_that_nobody_wants_is_dropped_and_its_asker_told() -> None:
    cluster, machine = recovering()
    let_go(cluster)
    cluster.delays_ms = {"Marker": 1e9, "RepairWanted": 1e9}
    for _ in range(20):
        cluster.tick()
        cluster.run()
    holders = [cluster.shard(s).captures for s in range(5) if s != 2]
    captured = [r for captures in holders for r, a in captures.assemblies.items() if a.capture is not None]
    assert captured
    cluster.now_ms += ABANDONED_MS
    for _ in range(3):
        cluster.tick()
        cluster.run()
    old = set(captured)
    assert not any(a.capture for captures in holders for r, a in captures.assemblies.items() if r in old)
    # Marks that come now open none of them again; the replacement hears that they are gone, and asks again.
    cluster.delays_ms = {}
    let_go(cluster)
    cluster.settle_down(machine.repairs.complete, ticks=5000)
    assert not any(old & set(captures.assemblies) for captures in holders)
    cluster.drain()
    cluster.scrub()


def test_rows_that_no_frame_holds_put_a_repair_off_and_end_nobody() -> None:
    """So many may be touched between the choice of the stripes and the MARKER."""
    cluster, machine = recovering()
    let_go(cluster)
    small = {s: cluster.shard(s).config for s in range(5)}
    cluster.shard(0).context.config = msgspec.structs.replace(small[0], frame_bytes_max=30)
    for _ in range(5):
        cluster.tick()
        cluster.run()
    assert not machine.repairs.complete() and not cluster.stopped
    assert any(not a.requests for a in machine.repairs.asked.values())
    cluster.shard(0).context.config = small[0]
    cluster.drain()
    cluster.scrub()


# ------------------------------------------------------------------ views
def view_that_does_not_concern(cluster: Counting, which: int) -> Any:
    """The scheduler decides it, and is not heard."""
    cluster.blocked |= {("scheduler", name) for name in cluster.shards.values()}
    group = cluster.scheduler.state.groups[0]
    if which:
        cluster.scheduler.tables.announce(table("other", code="2+1"), "")
    else:
        cluster.scheduler.announcer.fence_worker(77, 1)
    return group.views[-1]


@pytest.mark.parametrize("which", [0, 1])
def test_a_view_that_cannot_concern_a_repair_does_not_end_it(which: int) -> None:
    """It comes to each member at another moment of the repair."""
    cluster, machine = recovering()
    asked = dict(machine.repairs.asked)
    let_go(cluster)
    members = [cluster.shard(s) for s in (2, 0, 3, 1, 4)]
    view = view_that_does_not_concern(cluster, which)
    assert view.number == machine.view + 1
    for member in members:
        cluster.deliver()
        cluster.tick(1.0)
        name = cluster.shards[member.shard]
        cluster.give(name, Received(SCHEDULER, m.Views(0, [view])))
        if member is machine:
            assert machine.repairs.asked == asked
    cluster.blocked.clear()
    cluster.settle_down(machine.repairs.complete)
    assert cluster.sent.get("Repair", 0) == 0
    cluster.drain()
    cluster.scrub()


def test_a_view_ends_the_repairs_of_its_classes_alone() -> None:
    """With 1+1 on five shards a class has two members."""
    spec = table(rows=40, code="1+1")
    cluster, machine = recovering(spec)
    assert {a.stripes.class_id for a in machine.repairs.asked.values()} == {2}
    classes = {s.class_id for s in machine.placement.classes if 4 in s.data + s.parity}
    assert 2 not in classes
    number = machine.view + 1
    machine.handle(Received(SCHEDULER, m.Views(0, [m.ShardDown(number, 4, 1)])), cluster.now_ms)
    assert {a.stripes.class_id for a in machine.repairs.asked.values()} == {2}
    machine.handle(Received(SCHEDULER, m.Views(0, [m.ShardDown(number + 1, 3, 1)])), cluster.now_ms)
    assert not machine.repairs.asked


def test_a_message_of_a_view_that_concerned_its_class_since_is_dropped() -> None:
    cluster, _ = recovering()
    holder = cluster.shard(3)
    old = holder.view
    keys = np.zeros(0, np.uint64)
    mark = m.Marker(old, 12345, m.Stripes(0, 0, 1))
    holder.handle(Received(SCHEDULER, m.Views(0, [m.WorkerFenced(old + 1, 77, 1)])), cluster.now_ms)
    holder.handle(Received(m.Address(m.SHARD, 0, 1), mark, (keys, keys, b"")), cluster.now_ms)
    assert 12345 in holder.captures.assemblies
    holder.handle(Received(SCHEDULER, m.Views(0, [m.ShardWhole(old + 2, 2, 2)])), cluster.now_ms)
    assert not holder.captures.assemblies
    holder.handle(Received(m.Address(m.SHARD, 1, 1), mark, (keys, keys, b"")), cluster.now_ms)
    assert not holder.captures.assemblies


def test_ranges_of_a_class_are_asked_for_together_where_there_is_room_and_never_overlap() -> None:
    """A sweep that asks for one range of each class waits most of the time, and longest for the last class."""
    cluster, machine = recovering(repair_rows_max=1, repairs_in_flight_max=7)
    let_go(cluster)
    most: dict[int, int] = {}
    while not machine.repairs.complete():
        ranges = sorted(
            (a.stripes.class_id, a.stripes.first, a.stripes.last)
            for a in machine.repairs.asked.values()
            if a.background
        )
        assert len(ranges) <= 7
        for class_id, first, last in ranges:
            assert first < last
            most[class_id] = max(most.get(class_id, 0), sum(of == class_id for of, _, _ in ranges))
        for (class_id, _, last), (next_id, first, _) in pairwise(ranges):
            assert class_id != next_id or last <= first
        if not cluster.deliver():
            cluster.tick()
    assert most == {class_id: 2 for class_id in most} and len(most) == 3
    cluster.drain()
    cluster.scrub()

"""Tables of 1e11 rows, nearly all of them untouched, and windows of many rows, in a group of machines."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.loss import lost_rows
from ecrec.protocol.messages import DOWN, UP
from ecrec.protocol.placement import Placement, TableSpec

CPU_S = 5.0
"""Of all machines of a group together; what looks at each row once would take minutes."""


def large(rows: int, code: str = "2+1") -> TableSpec:
    return table(code=code, rows=rows)


def touched_rows(spec: TableSpec) -> list[int]:
    return [0, 3, spec.rows // 3, spec.rows // 2 + 1, spec.rows - 1]


def read_some(cluster: Cluster, spec: TableSpec, rows: list[int]) -> dict[int, bytes]:
    ticket = cluster.pull(spec, rows)
    cluster.settle_down(lambda: ticket in cluster.done)
    found: dict[int, bytes] = {}
    for shard, own in cluster.by_shard(spec, rows).items():
        values = np.frombuffer(cluster.done[ticket][shard][0], np.float32).reshape(len(own), -1)
        found |= {int(row): value.tobytes() for row, value in zip(own, values, strict=True)}
    return found


@pytest.mark.parametrize("rows", [100_000_000_000, 300_000_000_000])
def test_a_death_of_a_large_and_nearly_untouched_table(rows: int) -> None:
    cluster, spec = Cluster(4), large(rows)
    cluster.create(spec)
    began = time.process_time()
    cluster.push(spec, dict.fromkeys(touched_rows(spec), 2.0))
    cluster.drain()
    before = read_some(cluster, spec, touched_rows(spec))
    for dead in range(4):
        cluster.kill(dead)
        cluster.replace(dead)
        cluster.push(spec, {7: 1.0})
        cluster.drain()
        assert cluster.shard(dead).repairs.complete()
        assert read_some(cluster, spec, touched_rows(spec)) == before
    cluster.scrub()
    assert not cluster.failed and not cluster.stopped
    assert time.process_time() - began < CPU_S


def test_rows_of_a_large_table_that_are_lost_begin_again_and_are_counted() -> None:
    cluster, spec = Cluster(4, ProtocolConfig(reinitialise_lost=True)), large(100_000_000_000)
    cluster.create(spec)
    began = time.process_time()
    initial = read_some(cluster, spec, touched_rows(spec))
    cluster.push(spec, dict.fromkeys(touched_rows(spec), 2.0))
    cluster.drain()
    for dead in (0, 1):
        cluster.kill(dead)
    cluster.settle_down(lambda: all(cluster.scheduler.state.groups[0].places[i].state == DOWN for i in (0, 1)))
    for dead in (0, 1):
        cluster.shards[dead] = cluster.start(dead)
    cluster.settle_down(cluster.whole)
    cluster.drain()
    placement = Placement(4)
    placement.add(spec.code)
    lost_classes = [c.class_id for c in placement.classes if len({0, 1} & {*c.data, *c.parity}) == 2
                    and {0, 1} & {*c.data}]  # fmt: skip
    counted = sum(some.rows for dead in (0, 1) for some in lost_rows(placement, [spec], lost_classes, dead, 0, 1))
    assert cluster.scheduler.state.rows_reinitialised == counted > 10_000_000_000
    after = read_some(cluster, spec, touched_rows(spec))
    assert any(after[row] == initial[row] for row in after) and any(after[row] != initial[row] for row in after)
    cluster.scrub()
    assert all(cluster.scheduler.state.groups[0].places[i].state == UP for i in range(4))
    assert time.process_time() - began < CPU_S


def test_a_shard_that_recovers_a_large_table_gives_up_what_it_lacks_and_counts_it() -> None:
    """Its own count is exact: all that it had not yet got back when a second shard died."""
    config = ProtocolConfig(reinitialise_lost=True, repair_rows_max=1, repairs_in_flight_max=1)
    cluster, spec = Cluster(5, config), large(100_000_000_000, "4+1")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(0, 4000, 7), 2.0))
    cluster.drain()
    cluster.kill(1)
    cluster.blocked |= {(cluster.shards[i], cluster.next_process) for i in (0, 2, 3, 4)}
    cluster.replace(1)
    cluster.blocked.clear()
    machine = cluster.shard(1)
    data = sorted(machine.placement.data_classes(1))
    while machine.store.next_missing(data[0], 0) == 0:
        cluster.deliver()
    began = time.process_time()
    cluster.blocked |= {(cluster.shards[i], cluster.shards[1]) for i in (0, 2, 4)}
    left = sum(int(machine.store.missing_counts(class_id)[1].sum()) for class_id in data)
    cluster.kill(3)
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[3].state == DOWN)
    cluster.blocked.clear()
    cluster.shards[3] = cluster.start(3)
    cluster.drain()
    (counts,) = machine.repairs.reinitialised.values()
    assert 10_000_000_000 < counts[0] == left < spec.rows // 5
    assert cluster.scheduler.state.rows_reinitialised == left + spec.rows // 5
    cluster.scrub()
    assert time.process_time() - began < CPU_S


PUSH_DURING_A_SEED = """
from cluster import Cluster, table
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import UP

config = ProtocolConfig(seed_rows_max=256, windows_in_flight_max=1)
cluster, spec = Cluster(3, config), table(code="2+1", rows=30_000)
cluster.create(spec)
for rows in (300, spec.rows):  # the first are looked up, which does not pay: the next 15 windows are appended to
    cluster.push(spec, dict.fromkeys(range(rows), 1.0))
    cluster.drain()
cluster.kill(1)
cluster.replace(1)
client, survivor = cluster.client, cluster.shard(0)  # whose class 2 has its parity on shard 1
pushes = 0
while cluster.scheduler.state.groups[0].places[1].state != UP or pushes < 3:
    if client.can_push and pushes < 20 and survivor.context.buffers.limit(1, 2) > 2_500:  # ten times the rows of a seed
        cluster.push(spec, dict.fromkeys(range(spec.rows), 0.5))
        pushes += 1
    cluster.deliver() or cluster.tick()
cluster.drain()
cluster.scrub()
assert not cluster.failed
"""


def test_a_push_of_many_rows_while_a_replacement_is_seeded() -> None:
    """Its rows are appended to the window that the seed goes into, whose index has room for few."""
    subprocess.run([sys.executable, "-c", PUSH_DURING_A_SEED], cwd=Path(__file__).parent, timeout=60, check=True)

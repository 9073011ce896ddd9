"""More deaths than the code tolerates: what is lost is named; by option training goes on without it."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnected
from ecrec.protocol.loss import NAMED_MAX, describe_places, describe_rows, lost_rows, undecodable
from ecrec.protocol.messages import (
    DOWN,
    RECOVERING,
    RESEEDING,
    TOOL,
    UP,
    Address,
    ClusterQuery,
    LostRows,
    Member,
    Reinitialise,
)
from ecrec.protocol.placement import CodeSpec, Placement
from ecrec.protocol.scheduler import SchedulerMachine

GOES_ON = ProtocolConfig(reinitialise_lost=True)


def rows_on(cluster: Cluster, spec: Any, shards: list[int]) -> np.ndarray:
    rows = np.arange(spec.rows)
    return rows[np.isin((rows // spec.code.k + rows % spec.code.k) % cluster.n, shards)]


def trained(cluster: Cluster, *specs: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Initial and trained weights of some tables."""
    out = []
    for spec in specs:
        cluster.create(spec)
        initial = cluster.read(spec)
        cluster.push(spec, {row: 1.0 + row for row in range(spec.rows)})
        cluster.drain()
        out.append((initial, cluster.read(spec)))
    return out


def kill_together(cluster: Cluster, *shards: int) -> None:
    addresses = [cluster.machines.pop(cluster.shards[shard]).address for shard in shards]
    cluster.now_ms += cluster.config.reconnect_grace_ms  # since their connections broke
    for address in addresses:
        cluster.give("scheduler", Disconnected(address))


def replace(cluster: Cluster, *shards: int) -> None:
    for shard in shards:
        cluster.shards[shard] = cluster.start(shard)
    cluster.settle_down(lambda: all(cluster.shard(shard).state for shard in shards))


def queried(cluster: Cluster) -> Any:
    """What `ecrec status` gets to see."""
    from ecrec.protocol.events import Received

    cluster.give("scheduler", Received(Address(TOOL, 9, 0), ClusterQuery(1)))
    cluster.run()
    return cluster.tool_answers[-1][0]


# ------------------------------------------------------------------ which rows
@pytest.mark.parametrize(("n", "code", "groups"), [(5, "4+1", 1), (6, "3+2", 1), (4, "1+1", 3), (5, "2+2", 2)])
@pytest.mark.parametrize("size", [97, 20, 6, 4, 1])
def test_lost_rows_are_those_of_the_placement(n: int, code: str, groups: int, size: int) -> None:
    spec = table(rows=size, code=code)
    placement = Placement(n)
    placement.add(CodeSpec(1, 1))
    placement.add(spec.code)
    everything = range(len(placement.classes))
    k, seen = spec.code.k, []
    for group in range(groups):
        for shard in range(n):
            for some in lost_rows(placement, [spec], everything, shard, group, groups):
                assert some.shard == group * n + shard
                assert some.first and max(some.first) < size and some.first == sorted(some.first)
                rows = [row for first in some.first for row in range(first, spec.rows, some.step)]
                assert len(rows) == some.rows
                for row in rows:
                    stripe = row // k
                    assert stripe % groups == group
                    assert (stripe // groups + row % k) % n == shard
                seen += rows
    assert sorted(seen) == list(range(spec.rows))


def test_who_is_not_whole_decides_class_by_class() -> None:
    placement = Placement(6)
    placement.add(CodeSpec(1, 1))

    def lost(**states: Any) -> set[int]:
        members = [Member(i, 1, states.get(f"s{i}", UP), "", states.get(f"r{i}", [])) for i in range(6)]
        return undecodable(placement, members)

    assert lost(s0=DOWN, s2=DOWN, s4=DOWN) == set()
    assert lost(s0=DOWN, s1=DOWN) == {0}
    assert lost(s0=RECOVERING, s1=DOWN) == {0}
    assert lost(s0=DOWN, s1=RESEEDING, r1=[0]) == {0}
    assert lost(s0=DOWN, s1=RESEEDING, r1=[3]) == set()
    assert lost(s1=DOWN, s0=RESEEDING, r0=[5]) == set()


def test_lost_rows_are_described_as_far_as_a_message_may_go() -> None:
    tables = [table(name=f"t{i}", rows=1000 + i) for i in range(NAMED_MAX + 2)]
    one = LostRows(3, "t0", 1200, [2, 7], 20)
    assert describe_rows([one], tables) == "t0: 1,200 of 1,000 rows (every 20th from 2, 7 on shard 3)"
    more = LostRows(4, "t0", 30, [], 20)
    assert describe_places(LostRows(4, "t0", 1030, [], 20)) == "1,030 not yet recovered on shard 4"
    assert describe_rows([one, more], tables).startswith("t0: 1,230 of 1,000 rows (every 20th from 2, 7 on shard 3, ")
    each = [LostRows(0, spec.name, 5, [1], 20) for spec in tables]
    assert describe_rows(each[:NAMED_MAX], tables).count("; ") == NAMED_MAX - 1
    assert "more tables" not in describe_rows(each[:NAMED_MAX], tables)
    assert describe_rows(each[: NAMED_MAX + 1], tables).endswith("; and 1 more tables")
    assert f"t{NAMED_MAX}:" not in describe_rows(each, tables)
    assert describe_rows([LostRows(0, "gone", 5, [1], 20)], tables).startswith("gone: 5 of 0 rows")
    exactly = describe_places(LostRows(0, "t", 9, list(range(NAMED_MAX)), 20))
    assert exactly == "every 20th from 0, 1, 2, 3, 4, 5, 6, 7 on shard 0"
    assert describe_places(LostRows(0, "t", 9, list(range(9)), 1020)) == (
        "every 1,020th from 0, 1, 2, 3, 4, 5, 6, 7, ... on shard 0"
    )


# ------------------------------------------------------------------ it stops
def test_what_is_lost_is_named_and_training_stops() -> None:
    cluster, spec = Cluster(5), table()
    trained(cluster, spec)
    kill_together(cluster, 0, 3)
    cluster.settle_down(lambda: bool(cluster.failed))
    assert "0 (down), 3 (down)" in cluster.failed[0]
    assert "16 rows of 1 table(s)" in cluster.failed[0]
    assert "t: 16 of 40 rows (every 20th from 0, 11, 14, 17 on shard 0, " in cluster.failed[0]
    state = queried(cluster)
    assert state.lost and not state.rows_reinitialised
    (loss,) = state.losses
    assert not loss.reinitialised
    assert [(some.shard, some.table, some.rows) for some in loss.rows] == [(0, "t", 8), (3, "t", 8)]
    cluster.start(0)
    cluster.tick()
    cluster.run()
    assert [place.state for place in cluster.scheduler.state.groups[0].places] == [DOWN, UP, UP, DOWN, UP]


def test_deaths_that_share_no_stripe_lose_nothing() -> None:
    cluster, spec = Cluster(6), table(code="1+1", rows=30)
    ((_, before),) = trained(cluster, spec)
    kill_together(cluster, 0, 2, 4)
    replace(cluster, 0, 2, 4)
    cluster.drain()
    assert not cluster.failed
    assert cluster.read(spec).tobytes() == before.tobytes()
    cluster.scrub()


# ------------------------------------------------------------------ it goes on
@pytest.mark.parametrize(
    ("n", "code", "dead", "decoded"),
    [(5, "4+1", [0, 3], 0), (5, "3+2", [0, 1, 2], 0), (6, "2+1", [1, 2], 9), (7, "3+2", [0, 1, 2], 15)],
)
def test_lost_rows_begin_again_and_all_others_stay(n: int, code: str, dead: list[int], decoded: int) -> None:
    """``decoded``: rows of the dead that their stripes' other members still give."""
    cluster, spec = Cluster(n, GOES_ON), table(code=code, rows=105)
    ((initial, before),) = trained(cluster, spec)
    placement = Placement(n)
    placement.add(spec.code)
    members = [Member(i, 1, DOWN if i in dead else UP, "") for i in range(n)]
    classes = undecodable(placement, members)
    lost = np.array(
        [row for s in dead for some in lost_rows(placement, [spec], classes, s, 0, 1)
         for first in some.first for row in range(first, spec.rows, some.step)]
    )  # fmt: skip
    assert len(rows_on(cluster, spec, dead)) - len(lost) == decoded
    kill_together(cluster, *dead)
    replace(cluster, *dead)
    cluster.drain()
    assert not cluster.failed
    expected = before.copy()
    expected[lost] = initial[lost]
    assert cluster.read(spec).tobytes() == expected.tobytes()
    cluster.scrub()
    state = queried(cluster)
    assert state.rows_reinitialised == len(lost)
    assert state.updates_damaged == len({(row // spec.code.k + row % spec.code.k) % n for row in lost.tolist()})
    assert all(loss.reinitialised for loss in state.losses)
    # and the group stands r deaths again
    cluster.push(spec, {row: 1.0 for row in range(spec.rows)})
    cluster.drain()
    after = cluster.read(spec)
    kill_together(cluster, *range(spec.code.r))
    replace(cluster, *range(spec.code.r))
    cluster.drain()
    assert cluster.read(spec).tobytes() == after.tobytes()
    cluster.scrub()


def test_a_coded_table_after_one_without_parity() -> None:
    """Without a coded table nobody is sent windows; the first one that is must be one that all expect."""
    cluster, plain, coded = Cluster(5, GOES_ON), table("plain", code="4+0"), table("coded")
    cluster.create(plain)
    initial = cluster.read(plain)
    for _ in range(3):
        cluster.push(plain, dict.fromkeys(range(plain.rows), 1.0))
        cluster.drain()
    ((_, before),) = trained(cluster, coded)
    cluster.scrub()
    cluster.kill(1)
    cluster.replace(1)
    cluster.drain()
    assert cluster.read(coded).tobytes() == before.tobytes()
    now = cluster.read(plain)
    lost = rows_on(cluster, plain, [1])
    assert now[lost].tobytes() == initial[lost].tobytes()
    cluster.push(coded, dict.fromkeys(range(coded.rows), 1.0))
    cluster.drain()
    cluster.scrub()
    assert not cluster.failed


def test_what_was_pushed_before_the_first_coded_table_is_known_to_all() -> None:
    """The replacement of a shard that got no push since goes on with the number that its worker uses."""
    cluster, plain = Cluster(5, GOES_ON), table("plain", code="4+0")
    cluster.create(plain)
    for _ in range(3):
        cluster.push(plain, dict.fromkeys(range(plain.rows), 1.0))
        cluster.drain()
    cluster.create(table("coded"))
    cluster.run()
    cluster.kill(1)
    machine = cluster.replace(1)
    assert machine.watermarks == {0: 3}
    cluster.push(plain, dict.fromkeys(range(plain.rows), 1.0))
    cluster.drain()
    assert not cluster.failed


def test_a_first_table_after_a_death() -> None:
    cluster, spec = Cluster(5), table()
    cluster.kill(1)
    cluster.replace(1)
    cluster.drain()
    ((_, before),) = trained(cluster, spec)
    cluster.kill(2)
    cluster.replace(2)
    cluster.drain()
    assert cluster.read(spec).tobytes() == before.tobytes()
    cluster.scrub()


def test_pushes_go_on_while_rows_begin_again() -> None:
    config = ProtocolConfig(reinitialise_lost=True, repair_rows_max=1, seed_rows_max=1)
    cluster, spec, dense = Cluster(5, config), table(rows=200), table("dense", rows=20, code="1+1")
    trained(cluster, spec, dense)
    kill_together(cluster, 1, 2)
    pushes = 0
    for shard in (1, 2):
        cluster.shards[shard] = cluster.start(shard)
    while pushes < 30:
        cluster.settle_down(lambda: cluster.client.can_push)
        cluster.push(spec, {row: 0.5 for row in range(pushes % 7, spec.rows, 7)})
        cluster.settle_down(lambda: cluster.client.can_push)
        cluster.push(dense, dict.fromkeys(range(20), 0.25))
        pushes += 1
    cluster.drain()
    cluster.scrub()
    assert not cluster.failed
    assert cluster.scheduler.state.rows_reinitialised > 0


def test_a_shard_that_still_recovers_counts_its_own() -> None:
    config = ProtocolConfig(reinitialise_lost=True, repair_rows_max=1, repairs_in_flight_max=1)
    cluster, spec = Cluster(5, config), table(rows=400)
    ((initial, before),) = trained(cluster, spec)
    cluster.kill(1)
    cluster.blocked |= {(cluster.shards[i], cluster.next_process) for i in (0, 2, 3, 4)}
    cluster.replace(1)
    cluster.blocked.clear()
    machine, own = cluster.shard(1), rows_on(cluster, spec, [1])
    one = np.array([0], np.int32), np.array([len(own)], np.int64), own
    while len(machine.store.missing(*one)) > len(own) // 2:
        cluster.deliver()
    assert machine.state == RECOVERING
    cluster.blocked |= {(name, cluster.shards[1]) for name in (cluster.shards[i] for i in (0, 2, 4))}
    kill_together(cluster, 3)
    cluster.settle_down(lambda: cluster.scheduler.state.groups[0].places[3].state == DOWN)
    cluster.blocked.clear()
    replace(cluster, 3)
    cluster.drain()
    now = cluster.read(spec)
    changed = (now != before).any(axis=1)
    assert now[changed].tobytes() == initial[changed].tobytes()
    assert cluster.scheduler.state.rows_reinitialised == changed.sum()
    assert 0 < changed[own].sum() < len(own), "some of its rows were there again, some were not"
    assert changed[rows_on(cluster, spec, [0, 2, 4])].sum() == 0
    cluster.scrub()


def test_another_death_while_parity_is_seeded_anew() -> None:
    config = ProtocolConfig(reinitialise_lost=True, seed_rows_max=1)
    cluster, spec = Cluster(5, config), table(rows=300)
    ((initial, before),) = trained(cluster, spec)
    kill_together(cluster, 0, 3)
    cluster.settle_down(lambda: any(isinstance(v, Reinitialise) for v in cluster.scheduler.state.groups[0].views))
    cluster.run()
    assert cluster.shard(1).state == RESEEDING
    kill_together(cluster, 1)
    replace(cluster, 0, 1, 3)
    cluster.drain()
    now = cluster.read(spec)
    changed = rows_on(cluster, spec, [0, 1, 3])
    assert now[changed].tobytes() == initial[changed].tobytes()
    kept = rows_on(cluster, spec, [2, 4])
    assert now[kept].tobytes() == before[kept].tobytes()
    assert cluster.scheduler.state.rows_reinitialised == len(changed)
    cluster.scrub()


def test_a_scheduler_restarted_in_the_middle_goes_on() -> None:
    cluster, spec = Cluster(5, GOES_ON), table(rows=100)
    trained(cluster, spec)
    kill_together(cluster, 0, 3)
    cluster.machines["scheduler"] = cluster.scheduler = SchedulerMachine(5, 1, cluster.config, cluster.state)
    replace(cluster, 0, 3)
    cluster.machines["scheduler"] = cluster.scheduler = SchedulerMachine(5, 1, cluster.config, cluster.state)
    cluster.drain()
    assert cluster.scheduler.state.rows_reinitialised == len(rows_on(cluster, spec, [0, 3]))
    cluster.scrub()


def test_when_nobody_is_left_it_stops_all_the_same() -> None:
    config = ProtocolConfig(reinitialise_lost=True, isolated_timeout_ms=3_000)
    cluster, spec = Cluster(3, config), table(code="2+1")
    trained(cluster, spec)
    kill_together(cluster, 0, 1, 2)
    for shard in range(3):  # until others want their places, it may be the scheduler that is cut off
        cluster.shards[shard] = cluster.start(shard)
    cluster.settle_down(lambda: bool(cluster.failed))
    assert "nobody is left that knows what they had applied" in cluster.failed[0]


def test_without_any_parity_it_stops_all_the_same() -> None:
    cluster, spec = Cluster(4, GOES_ON), table(code="4+0")
    trained(cluster, spec)
    kill_together(cluster, 2)
    cluster.settle_down(lambda: bool(cluster.failed))
    assert "without parity nobody knows what they had applied" in cluster.failed[0]


def test_a_new_code_waits_for_no_row_that_never_was() -> None:
    """A table of another code, created while a shard is down."""
    cluster, spec, dense = Cluster(5), table(rows=60, code="3+2"), table("dense", rows=20, code="1+1")
    ((_, before),) = trained(cluster, spec)
    cluster.kill(1)
    cluster.declared(1)
    cluster.create(dense)
    replace(cluster, 1)
    cluster.push(dense, dict.fromkeys(range(20), 1.0))
    cluster.drain()
    assert cluster.read(spec).tobytes() == before.tobytes()
    cluster.scrub()


@pytest.mark.parametrize("code", ["1+1", "2+0"])
def test_a_table_waits_while_its_code_would_count_its_rows_as_lost(code: str) -> None:
    cluster, spec, weak = Cluster(5), table(rows=60, code="3+2"), table("weak", rows=20, code=code)
    ((_, before),) = trained(cluster, spec)
    kill_together(cluster, 1, 2)
    cluster.declared(1, 2)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(weak))
    for _ in range(100):
        cluster.run()
        cluster.tick()
    assert not cluster.client.table_ready("weak")
    replace(cluster, 1, 2)
    cluster.settle_down(lambda: cluster.client.table_ready("weak"))
    cluster.push(weak, dict.fromkeys(range(20), 1.0))
    cluster.drain()
    assert cluster.read(spec).tobytes() == before.tobytes()
    cluster.scrub()


def test_what_was_acknowledged_without_parity_is_known_when_the_first_coded_table_comes() -> None:
    """The shard dies before anybody has a window of it that was closed after that."""
    cluster, uncoded, coded = Cluster(5, GOES_ON), table("uncoded", rows=40, code="2+0"), table("coded", code="3+1")
    ((initial, before),) = trained(cluster, uncoded)
    assert min(cluster.client.acked.values()) == 1
    cluster.blocked |= {(cluster.shards[1], cluster.shards[i]) for i in (0, 2, 3, 4)}
    cluster.create(coded)
    cluster.kill(1)
    cluster.blocked.clear()
    cluster.declared(1)
    cluster.replace(1)
    cluster.push(coded, {row: 1.0 for row in range(coded.rows)})
    cluster.drain()
    assert not cluster.failed
    now, lost = cluster.read(uncoded), rows_on(cluster, uncoded, [1])
    kept = np.setdiff1d(np.arange(uncoded.rows), lost)
    assert now[kept].tobytes() == before[kept].tobytes() and now[lost].tobytes() == initial[lost].tobytes()
    assert cluster.scheduler.state.rows_reinitialised == len(lost)
    cluster.scrub()

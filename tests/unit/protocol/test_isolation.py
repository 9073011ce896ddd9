"""Silence that is no death: a scheduler that is cut off, several members that are silenced at once, a slow host.

Where data would be lost, silence alone declares nobody down.
"""

import pytest
from cluster import Cluster, table
from doubts import close_links, deafen, epochs, formed, link_all, mute, pass_time, restart_scheduler, states, suspected

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnected, Tick
from ecrec.protocol.evidence import Sign, Word
from ecrec.protocol.messages import DOWN, UP
from ecrec.protocol.suspicion import Suspicions

SCHEDULER = "scheduler"


def isolate(cluster: Cluster, *shards: int, both: bool = True) -> None:
    """The scheduler does not hear these shards, and does not reach them if it is ``both``; they reach each other."""
    mute(cluster, *shards)
    if both:
        deafen(cluster, *shards)


def part(cluster: Cluster, some: set[int], with_scheduler: bool = False) -> None:
    """Nothing passes between these shards and the others, in either direction."""
    ours = {cluster.shards[shard] for shard in some} | ({SCHEDULER} if with_scheduler else set())
    others = ({SCHEDULER} | set(cluster.shards.values())) - ours
    cluster.blocked |= {(a, b) for a in ours for b in others} | {(b, a) for a in ours for b in others}


def lost(cluster: Cluster) -> str:
    return cluster.scheduler.state.groups[0].lost


# ------------------------------------------------------------------ a scheduler that is cut off
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("code", ["4+1", "3+2", "1+4"])
def test_a_scheduler_that_hears_nobody_declares_nobody_down(code: str, both: bool) -> None:
    cluster, spec = formed(code=code)
    isolate(cluster, *range(5), both=both)
    pass_time(cluster, 2 * cluster.config.heartbeat_timeout_many_ms)
    assert states(cluster) == [UP] * 5 and not lost(cluster)
    assert sorted(suspected(cluster)) == [0, 1, 2, 3, 4]
    assert "it may be the scheduler that is cut off" in suspected(cluster)[0]
    cluster.blocked.clear()
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and suspected(cluster) == {} and not cluster.stopped
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.scrub()


def test_without_tables_a_scheduler_that_hears_nobody_declares_nobody_down() -> None:
    cluster = Cluster(5)
    link_all(cluster)
    isolate(cluster, *range(5))
    pass_time(cluster, 3_000.0)
    cluster.blocked.clear()
    pass_time(cluster, 1_000.0)
    assert states(cluster) == [UP] * 5 and not cluster.stopped


def test_a_scheduler_that_was_started_again_where_nobody_reaches_it_declares_nobody_down() -> None:
    cluster, _ = formed()
    isolate(cluster, *range(5))
    restart_scheduler(cluster)
    pass_time(cluster, 10_000.0)
    assert states(cluster) == [UP] * 5
    cluster.blocked.clear()
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and not cluster.stopped


@pytest.mark.parametrize("gap_ms", [60, 300, 600])
def test_after_a_cut_that_ends_for_one_member_after_the_other_all_live(gap_ms: int) -> None:
    """Who is heard first has not heard the others for as long as the group was idle."""
    cluster, _ = formed()
    isolate(cluster, *range(5))
    pass_time(cluster, 9_000.0)
    for shard in (3, 0, 4, 1, 2):
        name = cluster.shards[shard]
        cluster.blocked -= {(name, SCHEDULER), (SCHEDULER, name)}
        pass_time(cluster, float(gap_ms))
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5 and not cluster.stopped


@pytest.mark.parametrize("beside", [{0}, {0, 1}])
def test_a_scheduler_that_is_cut_off_with_the_smaller_part_of_a_group_declares_nobody_down(beside: set[int]) -> None:
    cluster, _ = formed()
    part(cluster, beside, with_scheduler=True)
    pass_time(cluster, 12_000.0)
    assert states(cluster) == [UP] * 5 and "more are silent than heard" in suspected(cluster)[4]
    cluster.blocked.clear()
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and not cluster.stopped


def test_candidates_that_are_heard_before_the_members_when_a_cut_ends_take_no_place() -> None:
    cluster, _ = formed(3, code="2+1", config=ProtocolConfig(isolated_timeout_ms=8_000))
    spares = [cluster.start(-1) for _ in range(3)]
    isolate(cluster, *range(3))
    cluster.blocked |= {(name, SCHEDULER) for name in spares}
    pass_time(cluster, 15_000.0)
    cluster.blocked -= {(name, SCHEDULER) for name in spares}
    pass_time(cluster, 1_000.0)
    assert states(cluster) == [UP] * 3
    cluster.blocked.clear()
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 3 and epochs(cluster) == [1] * 3 and not cluster.stopped


# ------------------------------------------------------------------ more that really died
def test_more_deaths_than_tolerated_are_announced_though_no_connection_closes() -> None:
    """Three of five are heard, and miss the other two."""
    cluster, _ = formed()
    begin_ms = cluster.now_ms
    for shard in (1, 3):
        cluster.machines.pop(cluster.shards[shard])
    pass_time(cluster, 4_000.0)
    assert not lost(cluster)
    cluster.settle_down(lambda: bool(lost(cluster)))
    assert cluster.now_ms - begin_ms < cluster.config.heartbeat_timeout_many_ms + 1_000.0


def test_deaths_of_most_members_are_announced_when_their_connections_closed() -> None:
    cluster, _ = formed(code="3+2")
    begin_ms = cluster.now_ms
    dead = [cluster.shard(shard).address for shard in (0, 1, 3)]
    for shard in (0, 1, 3):
        cluster.machines.pop(cluster.shards[shard])
    for address in dead:
        close_links(cluster, address)
    pass_time(cluster, cluster.config.reconnect_grace_ms)
    for address in dead:
        cluster.give(SCHEDULER, Disconnected(address))
    cluster.settle_down(lambda: bool(lost(cluster)))
    assert cluster.now_ms - begin_ms < cluster.config.heartbeat_timeout_many_ms + 1_000.0


def test_a_group_that_died_as_a_whole_is_declared_lost_when_others_have_waited_for_its_places() -> None:
    cluster, _ = formed(config=ProtocolConfig(isolated_timeout_ms=8_000))
    for shard in range(5):
        cluster.machines.pop(cluster.shards[shard])
    pass_time(cluster, 20_000.0)
    assert states(cluster) == [UP] * 5, "nobody is there who could take the places"
    for shard in range(4):
        cluster.shards[shard] = cluster.start(shard)
    pass_time(cluster, 10_000.0)
    assert states(cluster) == [UP] * 5, "nor for the last one"
    cluster.shards[4] = cluster.start(4)
    pass_time(cluster, 7_000.0)
    assert not lost(cluster)
    pass_time(cluster, 1_500.0)
    assert lost(cluster)


def test_a_group_without_tables_that_died_as_a_whole_is_replaced_soon() -> None:
    cluster = Cluster(3)
    for shard in range(3):
        cluster.machines.pop(cluster.shards[shard])
        cluster.shards[shard] = cluster.start(shard)
    begin_ms = cluster.now_ms
    cluster.settle_down(lambda: epochs(cluster) == [2] * 3)
    assert cluster.now_ms - begin_ms < 5_000.0


# ------------------------------------------------------------------ several at once
@pytest.mark.parametrize("gap_ms", [20, 40, 100])
@pytest.mark.parametrize("lasts_ms", [1_000, 1_300, 2_000])
def test_of_two_that_are_silenced_a_moment_apart_neither_is_declared_down(gap_ms: int, lasts_ms: int) -> None:
    cluster, _ = formed()
    part(cluster, {1})
    pass_time(cluster, float(gap_ms))
    part(cluster, {3})
    pass_time(cluster, float(lasts_ms))
    cluster.blocked.clear()
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5


def test_the_silence_of_one_that_peers_hear_does_not_keep_the_death_of_another() -> None:
    """A real death next to a member that only the scheduler does not hear is declared, a little later."""
    cluster, _ = formed()
    mute(cluster, 3)
    cluster.machines.pop(cluster.shards[1])
    begin_ms = cluster.now_ms
    cluster.declared(1)
    assert cluster.now_ms - begin_ms < 2_000.0
    pass_time(cluster, 8_000.0)
    assert states(cluster) == [UP, DOWN, UP, UP, UP]


def test_of_two_that_became_deaf_a_moment_apart_neither_is_declared_down() -> None:
    """Of the second nothing is asked that it does not do: that it does not hear of the newest state shows it."""
    cluster, _ = formed()
    deafen(cluster, 1)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    pass_time(cluster, 200.0)
    deafen(cluster, 3)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("later")))
    pass_time(cluster, 6_000.0)
    assert states(cluster) == [UP] * 5 and sorted(suspected(cluster)) == [1]
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("later"))
    assert epochs(cluster) == [1] * 5


# ------------------------------------------------------------------ heard, but in the way
def deaf_next_to_a_death() -> Cluster:
    cluster, _ = formed()
    deafen(cluster, 2)
    cluster.kill(1)
    cluster.declared(1)
    cluster.shards[1] = cluster.start(1)
    return cluster


def test_a_table_that_waits_for_a_suspect_is_refused_with_its_name_after_a_bounded_time() -> None:
    cluster = deaf_next_to_a_death()
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    pass_time(cluster, cluster.config.blocked_timeout_ms)
    assert not cluster.client.table_refusals
    pass_time(cluster, 10_000.0)
    refusal = cluster.client.table_refusals["late"]
    assert "table 'late': shard 2 is in the way: it is heard, but has confirmed no view" in refusal
    assert not cluster.client.failed
    assert not cluster.scheduler.tables.creating and not cluster.scheduler.state.new_tables.queue
    cluster.blocked.clear()
    cluster.settle_down(cluster.whole)


def test_workers_are_told_whom_the_settlement_of_a_death_waits_for() -> None:
    cluster = deaf_next_to_a_death()
    pass_time(cluster, 6_000.0)
    assert "has confirmed no view" in cluster.client.suspected()[2]
    cluster.blocked.clear()
    cluster.settle_down(cluster.whole)
    pass_time(cluster, 2_000.0)
    assert cluster.client.suspected() == {}


def test_rows_without_parity_keep_a_deaf_member_for_a_bounded_time() -> None:
    cluster, _ = formed()
    cluster.create(table("uncoded", code="5+0"))
    deafen(cluster, 2)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    pass_time(cluster, 8_000.0)
    assert states(cluster) == [UP] * 5 and suspected(cluster).keys() == {2}
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP, UP, DOWN, UP, UP]
    assert "uncoded" in lost(cluster)


# ------------------------------------------------------------------ slow, and alive
def reads_late(cluster: Cluster, shard: int, ms: float, since_ms: float) -> None:
    """A shard does not get to what its peers sent since then, for a while; all else of it goes on."""
    machine, name = cluster.shard(shard), cluster.shards[shard]
    cluster.blocked |= {(other, name) for other in cluster.shards.values() if other != name}
    until_ms = cluster.now_ms + ms
    while cluster.now_ms < until_ms:
        machine.read_until(since_ms)
        pass_time(cluster, 20.0)


@pytest.mark.parametrize("stuck_timeout_ms", [60_000, 10_000])
def test_a_member_that_is_heard_and_acknowledges_late_is_replaced_long_after_a_link(stuck_timeout_ms: int) -> None:
    cluster, spec = formed(config=ProtocolConfig(stuck_timeout_ms=stuck_timeout_ms))
    since_ms = cluster.now_ms
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    reads_late(cluster, 3, 3 * cluster.config.link_timeout_ms, since_ms)
    if stuck_timeout_ms == 10_000:
        assert states(cluster) == [UP, UP, UP, DOWN, UP]
        return
    assert states(cluster) == [UP] * 5 and suspected(cluster) == {}
    assert 3 in cluster.shard(0).windows.late()
    cluster.blocked.clear()
    cluster.shard(3).read_until(float("inf"))
    cluster.drain()
    assert epochs(cluster) == [1] * 5
    cluster.scrub()


def test_who_has_unread_messages_knows_of_no_silence() -> None:
    cluster, _ = formed()
    machine = cluster.shard(2)
    machine.read_until(cluster.now_ms)
    at_ms = cluster.now_ms
    for step in range(100):
        machine.handle(Tick(), at_ms + 100.0 * step)
    assert machine.heartbeats.unheard() == []
    machine.read_until(at_ms + 9_900.0)
    assert machine.heartbeats.unheard() == [0, 1, 3, 4]


def decide(suspicions: Suspicions, now_ms: float, words: list[Word]) -> list[int]:
    signs = [Sign(shard, 50.0, 5, complains=True) for shard in range(3)]
    decision = suspicions.decide(
        now_ms, 5, signs, lambda: words, lambda shards, uncoded: len(shards) < 2, lambda _: False
    )
    return [verdict.shard for verdict in decision.down]


@pytest.mark.parametrize(("mine", "theirs", "down"), [
    (dict(late_ms=5e3, unheard=True), {}, [1]),
    (dict(late_ms=5e3), dict(unheard=True), [1]),
    (dict(late_ms=5e3), {}, []),
    (dict(unheard=True), dict(unheard=True), []),
    (dict(late_ms=3e3, unheard=True), {}, []),
    (dict(late_ms=61e3), {}, [1]),
])  # fmt: skip
def test_a_link_is_accused_when_it_is_silent_in_one_direction(mine: dict, theirs: dict, down: list[int]) -> None:
    suspicions = Suspicions(ProtocolConfig())
    words = [Word(0, 1, 10.0, 10.0, True, **mine), Word(1, 0, 10.0, 10.0, True, **theirs)]
    assert decide(suspicions, 0.0, words) == [], "a member that stood still is heard here before its peers hear it"
    assert decide(suspicions, 900.0, words) == down


def test_a_stream_that_cannot_be_followed_is_no_matter_of_time() -> None:
    words = [Word(0, 1, 10.0, 10.0, True, broken=True)]
    assert decide(Suspicions(ProtocolConfig()), 0.0, words) == [1]

"""A recovery leaves most of the time to workers that ask for rows, and takes all of it where none does."""

from collections import Counter
from typing import Any

import pytest
from cluster import Cluster, table

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.messages import RECOVERING, Repaired, Window
from ecrec.protocol.share import Share

LOST = 1
SLOW = {"recovery_share_percent": 1, "recovery_pause_max_ms": 200.0, "foreground_ms": 1000.0}


def dead(rows: int = 2_000, touched: int = 1, **limits: Any) -> tuple[Cluster, Any]:
    """A cluster of 4+1, one row in ``touched`` of which was pushed, whose shard 1 is dead."""
    config = ProtocolConfig(repair_rows_max=8, seed_rows_max=8, **limits)
    cluster, spec = Cluster(5, config), table(rows=rows, code="4+1")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(0, rows, touched), 1.0))
    cluster.drain()
    cluster.tick(2000.0)
    cluster.kill(LOST)
    cluster.declared(LOST)
    return cluster, spec


def watched(cluster: Cluster, message_ms: float = 0.0) -> Counter[str]:
    """Kinds of messages between shards from now on; a counter that goes on counting. Each takes its time."""
    sent: Counter[str] = Counter()
    windows: dict[tuple[str, int], bool] = {}
    send = cluster.send

    def watch(name: str, machine: Any, effect: Any) -> None:
        message = effect.message
        sent[type(message).__name__] += 1
        if isinstance(message, Window):
            said = bool(effect.frames[0].size or message.watermarks or message.begins or message.ends)
            windows[name, message.number] = windows.get((name, message.number), False) or said
            sent["empty"] = sum(not each for each in windows.values())
        if isinstance(message, Repaired):
            sent["rows"] += len(effect.frames[1])
        cluster.now_ms += message_ms
        send(name, machine, effect)

    cluster.send = watch  # type: ignore[method-assign]
    return sent


@pytest.mark.parametrize(
    ("percent", "took_ms", "pause_ms"), [(30, 3.0, 7.0), (50, 8.0, 8.0), (100, 8.0, 0.0), (1, 9.0, 200.0)]
)
def test_a_chunk_is_followed_by_a_pause(percent: int, took_ms: float, pause_ms: float) -> None:
    config, share = ProtocolConfig(recovery_share_percent=percent), Share()
    assert not share.waits(True, 1000.0)
    share.ended(took_ms, config, 1000.0)
    assert share.resume_ms == pytest.approx(1000.0 + pause_ms)
    if pause_ms:
        assert share.waits(True, 1000.0 + pause_ms / 2), "a worker asked just now"
        assert not share.waits(False, 1000.0 + pause_ms / 2), "nobody asked for a second"
    assert not share.waits(True, 1000.0 + pause_ms)


def time_until_whole(cluster: Cluster, spec: Any, works: bool) -> float:
    """Milliseconds of the cluster's clock; with ``works`` a worker pushes every row of some stripes all the time."""
    watched(cluster, 0.02)
    if works:
        cluster.push(spec, dict.fromkeys(range(8), 1.0))
    cluster.replace(LOST)
    since_ms = cluster.now_ms
    for _ in range(2_000):
        if cluster.whole():
            return cluster.now_ms - since_ms
        if works and cluster.client.can_push:
            cluster.push(spec, dict.fromkeys(range(8), 1.0))
        cluster.tick(5.0)
        cluster.run()
    raise AssertionError("it never became whole")


def test_without_workers_there_is_no_pause() -> None:
    cluster, spec = dead(**SLOW)
    assert time_until_whole(cluster, spec, works=False) < 1000.0
    cluster.scrub()


def test_with_workers_it_takes_longer_and_comes_to_an_end() -> None:
    quick = time_until_whole(*dead(**{**SLOW, "recovery_share_percent": 100}), works=True)
    slow = time_until_whole(*dead(**SLOW), works=True)
    assert slow > 2 * quick


def test_rows_that_a_worker_waits_for_come_at_once() -> None:
    """A pause of a minute: only what is asked for by name comes in it."""
    cluster, spec = dead(**{**SLOW, "recovery_pause_max_ms": 60_000.0, "foreground_ms": 60_000.0})
    watched(cluster, 1.0)
    cluster.push(spec, {8: 1.0})
    cluster.replace(LOST)
    rows = cluster.by_shard(spec, range(spec.rows))[LOST].tolist()
    since_ms = cluster.now_ms
    for row in rows[-40::10]:
        ticket = cluster.pull(spec, [row], exact=False)
        cluster.settle_down(lambda ticket=ticket: ticket in cluster.done)
    assert cluster.now_ms - since_ms < 2000.0
    assert cluster.shard(LOST).repairs.incomplete and not cluster.whole()


def test_a_mark_closes_no_empty_window() -> None:
    cluster, _ = dead()
    sent = watched(cluster)
    cluster.replace(LOST)
    cluster.settle_down(cluster.whole)
    assert sent["Marker"] > 100 and sent["Repair"] > 30
    assert sent["empty"] <= 10, "one to each peer before a Join, and none for a MARKER"
    cluster.scrub()


def test_rows_that_were_never_touched_are_not_sent() -> None:
    """One row in forty is touched: of each stripe at most one member's, and only that is sent to the replacement."""
    cluster, spec = dead(rows=4_000, touched=41)
    lost = sum(row % 41 == 0 for row in cluster.by_shard(spec, range(spec.rows))[LOST].tolist())
    sent = watched(cluster)
    cluster.replace(LOST)
    cluster.settle_down(cluster.whole)
    assert 0 < sent["rows"] <= lost
    assert cluster.read(spec).any()
    cluster.scrub()


def test_chunks_are_smaller_while_workers_ask() -> None:
    cluster, spec = dead(foreground_rows_max=2)
    machine = cluster.shard(0)
    assert machine.context.rows_at_once(8) == 8
    cluster.push(spec, {0: 1.0, 4: 1.0, 8: 1.0, 12: 1.0, 16: 1.0})
    cluster.run()
    assert machine.context.rows_at_once(8) == 2 and machine.context.rows_at_once(1) == 1
    assert machine.state != RECOVERING


def test_a_worker_that_waits_for_long_still_has_its_share() -> None:
    """It asks for nothing meanwhile; taken for idle, it would wait behind a recovery at full speed."""
    cluster, spec = dead(foreground_ms=20.0)
    to_new = {(cluster.shards[shard], cluster.next_process) for shard in range(5)}
    cluster.blocked |= to_new
    machine = cluster.replace(LOST)
    rows = cluster.by_shard(spec, range(spec.rows))[LOST].tolist()
    assert not machine.context.shares_time()
    ticket = cluster.pull(spec, rows[-4:], exact=False)
    cluster.run()
    for _ in range(10):
        cluster.tick(100.0)
        assert machine.context.shares_time()
    cluster.blocked -= to_new
    cluster.settle_down(lambda: ticket in cluster.done)
    cluster.tick(100.0)
    assert not machine.context.shares_time()
    cluster.drain()
    cluster.scrub()

"""The windows of a shard, and those of its peers: which are in flight, which are taken, and what is told of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, Received, Send
from ecrec.protocol.windows import Windows


def pushed_without_acknowledgements(cluster: Cluster, pushes: int) -> None:
    """Shard 0 does not hear shard 1 while it applies pushes, each in a window of its own if it may."""
    spec = table(code="2+1")
    cluster.create(spec)
    cluster.blocked.add((cluster.shards[1], cluster.shards[0]))
    for _ in range(pushes):
        cluster.push(spec, {0: 1.0})
        for _ in range(15):
            cluster.run()
            cluster.tick()


def test_no_more_windows_are_in_flight_than_the_limit_says_and_the_open_one_merges() -> None:
    cluster = Cluster(3)
    pushed_without_acknowledgements(cluster, 6)
    shard = cluster.shard(0)
    assert list(shard.context.unstable) == [1, 2] and shard.context.has_open()
    cluster.blocked.clear()
    cluster.drain()
    assert shard.context.stable == 3
    cluster.scrub()


def test_a_window_that_is_full_is_sent_however_many_are_in_flight() -> None:
    cluster = Cluster(3, ProtocolConfig(window_bytes_max=1))
    pushed_without_acknowledgements(cluster, 6)
    assert len(cluster.shard(0).context.unstable) > cluster.config.windows_in_flight_max
    cluster.blocked.clear()
    cluster.drain()
    cluster.scrub()


def test_without_parity_nothing_is_sent_and_no_window_is_numbered() -> None:
    cluster, spec = Cluster(3), table(code="3+0")
    cluster.create(spec)
    sent: list[Any] = []
    shard, real = cluster.shard(0), cluster.shard(0).handle

    def handle(event: Any, now_ms: float) -> Any:
        effects = real(event, now_ms)
        sent.extend(e.message for e in effects if isinstance(e, Send) and e.to.role == m.SHARD)
        return effects

    shard.handle = handle  # type: ignore[method-assign]
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    assert sent == [] and shard.context.window_number == 1 and not shard.context.unstable
    cluster.create(table("u", code="2+1"))
    cluster.settle_down(lambda: shard.context.stable == 1)
    assert [message.number for message in sent if isinstance(message, m.Window)] == [1, 1]


def test_of_a_peer_that_has_not_acknowledged_for_long_the_oldest_window_counts() -> None:
    unstable = {
        1: SimpleNamespace(waiting={1}, closed_ms=0.0),
        2: SimpleNamespace(waiting={1, 2}, closed_ms=2100.0),
        3: SimpleNamespace(waiting={1, 2, 3}, closed_ms=3000.0),
    }
    context: Any = SimpleNamespace(unstable=unstable, awake_ms=4000.0, config=SimpleNamespace(link_timeout_ms=4000.0))
    assert Windows(context).late() == {1: 4000}
    context.awake_ms = 5000.0
    assert Windows(context).late() == {1: 5000, 2: 2900, 3: 2000}


# ------------------------------------------------------------------ windows of peers
def window_of(cluster: Cluster, number: int, begins: dict[int, int]) -> tuple[m.Window, list[bytes]]:
    """One delta of row 0 of the table, from shard 0."""
    records = np.ones(cluster.shard(1).store.record_bytes(0), np.uint8)
    return m.Window(number, 0, {}, begins, []), [np.array([0], np.uint64).tobytes(), records.tobytes()]


@pytest.mark.parametrize("ahead", [0, 2, 3])
def test_a_window_that_is_not_the_next_one_is_not_folded(ahead: int) -> None:
    cluster, spec = Cluster(3), table(code="2+1")
    cluster.create(spec)
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    shard = cluster.shard(2)
    last = shard.peers[0].received
    assert last
    window, frames = window_of(cluster, last + ahead, {})
    with pytest.raises(BAD_CONTENT, match=f"window {last + ahead} after {last}"):
        shard.handle(Received(cluster.shard(0).address, window, frames), cluster.now_ms)
    assert shard.peers[0].received == last
    cluster.scrub()


def test_a_window_before_the_join_of_its_stream_is_not_folded() -> None:
    cluster, spec = Cluster(3), table(code="2+1")
    cluster.create(spec)
    cluster.kill(2)
    cluster.declared(2)
    cluster.blocked.add((cluster.shards[0], cluster.next_process))
    shard = cluster.replace(2)
    assert shard.peers[0].received is None
    window, frames = window_of(cluster, 1, {})
    with pytest.raises(BAD_CONTENT, match="window 1 after None"):
        shard.handle(Received(cluster.shard(0).address, window, frames), cluster.now_ms)


def test_a_window_may_begin_the_last_class_that_there_can_be() -> None:
    cluster = Cluster(3)
    cluster.create(table(code="2+1"))
    cluster.drain()
    shard = cluster.shard(2)
    assert shard.peers[0].received is not None
    window = m.Window(shard.peers[0].received + 1, 0, {}, {63: 0}, [])
    shard.handle(Received(cluster.shard(0).address, window, [b"", b""]), cluster.now_ms)
    assert shard.peers[0].rounds == {63: 0}

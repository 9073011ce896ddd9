"""What a shard says in the middle of an event that takes long: that it lives, and nothing else."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table
from store_group import tuned

from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.events import Connect, Connection, Effect, HalfHandledError, Received, Send
from ecrec.protocol.messages import SCHEDULER, SHARD, Address
from ecrec.protocol.node_core import NodeCore
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

SPEC = table(rows=2000, dim=4)
SMALL = {"pause_bytes": 3_000, "run_rows": 8, "fold_batch_rows": 4}
"""Pieces of work of a few rows."""


class Busy:
    """Lets ``ms`` pass in each pause of a machine, and keeps what it says in them."""

    def __init__(self, cluster: Cluster, machine: ShardMachine, ms: float = 10.0) -> None:
        self.cluster, self.machine, self.ms = cluster, machine, ms
        self.said: list[tuple[float, list[Effect]]] = []
        self.pauses = 0
        machine.context.on_pause = self.pause

    def pause(self) -> None:
        self.pauses += 1
        self.cluster.now_ms += self.ms
        said = self.machine.while_busy(self.cluster.now_ms)
        if said:
            self.said.append((self.cluster.now_ms, said))

    @property
    def statuses(self) -> list[m.ShardStatus]:
        return [e.message for _, said in self.said for e in said if isinstance(e.message, m.ShardStatus)]  # type: ignore[union-attr]


def group() -> Cluster:
    """Five shards, 4+1, whose connections are made, with a table."""
    cluster = Cluster(5)
    cluster.create(SPEC)
    for shard in range(5):
        for other in range(5):
            if other != shard:
                cluster.give(cluster.shards[shard], Connection(cluster.shard(other).address, up=True))
    cluster.tick(400.0)  # the next window is closed at once
    cluster.run()
    return cluster


def everywhere(value: float) -> dict[int, float]:
    return dict.fromkeys(range(SPEC.rows), value)


def check_signs(cluster: Cluster, busy: Busy, began_ms: float) -> None:
    """The scheduler and all peers heard of it as often as a heartbeat is due."""
    assert busy.pauses > 20
    times = [began_ms, *(at for at, _ in busy.said)]
    assert max(np.diff(times)) <= cluster.config.heartbeat_ms + busy.ms
    machine = busy.machine
    for at_ms, said in busy.said:
        assert all(isinstance(effect, Send) for effect in said)
        sent = {e.to: e.message for e in said if isinstance(e, Send)}
        status = sent.pop(Address(SCHEDULER, 0, 0))
        assert isinstance(status, m.ShardStatus)
        assert status.age_ms == int(at_ms - machine.heartbeats.said_ms) or status.age_ms > 0
        assert set(sent) == {cluster.shard(s).address for s in range(5) if s != machine.shard}
        assert all(message == m.Ping(asks=False) for message in sent.values())


def test_in_the_middle_of_a_large_push_the_shard_is_heard_and_nothing_of_the_push_is_told() -> None:
    cluster = group()
    machine = cluster.shard(2)
    cluster.push(SPEC, everywhere(1.0))
    with tuned(SMALL):
        busy = Busy(cluster, machine)
        queue = cluster.channels["worker-0", cluster.shards[2]]
        event = next(e for e in queue if isinstance(e.message, m.Push))
        before, began_ms = dict(machine.watermarks), machine.heartbeats.said_ms
        cluster.now_ms = began_ms
        effects = machine.handle(event, cluster.now_ms)
        check_signs(cluster, busy, began_ms)
    assert all(status.watermarks == before for status in busy.statuses)
    assert machine.watermarks != before
    assert any(isinstance(effect, Send) and isinstance(effect.message, m.Window) for effect in effects)


def test_in_the_middle_of_a_large_fold_the_shard_is_heard() -> None:
    cluster = group()
    cluster.push(SPEC, everywhere(1.0))
    for shard in range(5):
        cluster.blocked.update((cluster.shards[shard], cluster.shards[other]) for other in range(5) if other != shard)
    cluster.run()
    machine = cluster.shard(3)
    source = next(s for s in range(5) if cluster.channels[cluster.shards[s], cluster.shards[3]])
    queue = cluster.channels[cluster.shards[source], cluster.shards[3]]
    event = next(e for e in queue if isinstance(e.message, m.Window))
    with tuned(SMALL):
        busy = Busy(cluster, machine)
        began_ms = cluster.now_ms = machine.heartbeats.said_ms
        machine.handle(event, cluster.now_ms)
        check_signs(cluster, busy, began_ms)
    assert machine.peers[source].received == event.message.number


def test_a_view_is_not_confirmed_before_its_undo_is_done() -> None:
    """trap: a heartbeat of the state in the middle of a Settle says that it is followed."""
    cluster = group()
    # A window of shard 0 reaches shard 1, and no other: it is beyond the cut.
    for other in (2, 3, 4):
        cluster.blocked.add((cluster.shards[0], cluster.shards[other]))
    cluster.push(SPEC, everywhere(1.0))
    cluster.run()
    machine = cluster.shard(1)
    assert any(undo.keys.size for undo in machine.peers[0].undo)
    cluster.kill(0)
    with tuned(SMALL):
        Busy(cluster, machine)
        confirmed: list[tuple[int, int]] = []
        real = machine.while_busy

        def while_busy(now_ms: float) -> list[Effect]:
            said = real(now_ms)
            statuses = [e.message for e in said if isinstance(e, Send) and isinstance(e.message, m.ShardStatus)]
            confirmed.extend((status.view, machine.view) for status in statuses)
            return said

        machine.while_busy = while_busy  # type: ignore[method-assign]
        cluster.declared(0)
        cluster.settle_down(lambda: machine.peers[0].state == m.DOWN and not machine.peers[0].unsettled)
    assert any(said < real_view for said, real_view in confirmed), "it was heard in the middle of the undo"
    assert all(said <= real_view for said, real_view in confirmed)
    machine.context.on_pause = None
    cluster.blocked.clear()
    cluster.replace(0)
    cluster.drain()
    cluster.scrub()


def test_a_death_in_the_middle_of_a_push_is_a_death() -> None:
    cluster = group()
    cluster.push(SPEC, everywhere(0.5))
    cluster.drain()
    cluster.push(SPEC, everywhere(0.25))
    machine = cluster.shard(2)
    queue = cluster.channels["worker-0", cluster.shards[2]]
    event = next(e for e in queue if isinstance(e.message, m.Push))
    pauses = []

    def die() -> None:
        pauses.append(1)
        if len(pauses) == 20:
            raise OSError("the power is gone")

    machine.context.on_pause = die
    with tuned(SMALL), pytest.raises(HalfHandledError, match="the power is gone"):
        machine.handle(event, cluster.now_ms)
    cluster.kill(2)
    cluster.declared(2)
    cluster.replace(2)
    cluster.drain()
    cluster.scrub()
    start = group()
    start.push(SPEC, everywhere(0.5))
    start.drain()
    start.push(SPEC, everywhere(0.25))
    start.drain()
    assert cluster.read(SPEC).tobytes() == start.read(SPEC).tobytes()


def test_what_fails_in_a_pause_is_no_refusal_of_the_push() -> None:
    """A ValueError in the middle of a push would be one, of a push that is applied in part."""
    cluster = group()
    machine = cluster.shard(2)
    core = NodeCore(machine, Port())
    core.listen(lambda: core.while_busy(cluster.now_ms))
    core.carry_out = lambda effect, now_ms: (_ for _ in ()).throw(ValueError("a wire that breaks"))  # type: ignore[method-assign]
    cluster.push(SPEC, everywhere(1.0))
    event = next(e for e in cluster.channels["worker-0", cluster.shards[2]] if isinstance(e.message, m.Push))
    now_ms, cluster.now_ms = cluster.now_ms, cluster.now_ms + 1e4
    with tuned(SMALL), pytest.raises(HalfHandledError, match="a wire that breaks"):
        machine.handle(event, now_ms)


def test_nothing_is_said_before_there_is_something_to_say_again() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    assert machine.while_busy(1e9) == []


def test_the_store_does_not_keep_its_machine() -> None:
    import gc
    import weakref

    cluster = group()
    name = cluster.shards[4]
    machine = weakref.ref(cluster.machines[name])
    store = cluster.machines[name].store
    del cluster.machines[name]
    gc.collect()
    assert machine() is None
    rows = np.array([row for row in range(SPEC.rows) if (row // 4 + row % 4) % 5 == 4], np.int64)
    with tuned({"pause_bytes": 1}):
        store.keys(np.zeros(1, np.int32), np.array([len(rows)], np.int64), rows)


class Port:
    """Keeps what a node sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[Address, wire.Envelope]] = []

    def connect(self, address: Address, endpoint: str, watched: bool) -> bool:
        return True

    def is_connected(self, address: Address) -> bool:
        return True

    def send(self, to: Address, parts: Any) -> bool:
        self.sent.append((to, wire.decode([bytes(part) for part in parts])))
        return True


class Speaker:
    """A machine that can be busy."""

    def __init__(self) -> None:
        self.address = Address(SHARD, 0, 1)
        self.pause: Any = None

    def listen(self, pause: Any) -> None:
        self.pause = pause

    def handle(self, event: Any, now_ms: float) -> list[Effect]:
        return []

    def while_busy(self, now_ms: float) -> list[Effect]:
        return [Send(Address(SHARD, 1, 1), m.Ping(asks=False))]


def test_what_is_sent_in_a_pause_goes_before_the_message_whose_checksum_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """trap: a number given to the message before its checksum is read would come behind that of the sign of life."""
    monkeypatch.setattr(wire, "CHECKED_BYTES_MAX", 1000)
    port, peer = Port(), Address(SHARD, 1, 1)
    core = NodeCore(Speaker(), port)  # type: ignore[arg-type]
    core.perform([Connect(peer, "b")], 0.0)
    core.listen(lambda: core.while_busy(0.0))
    core.perform([Send(peer, m.Window(1, 0, {}, {}, [], 0), (np.zeros(1000, np.uint64), np.zeros(10, np.uint8)))], 0.0)
    kinds = [type(envelope.message).__name__ for _, envelope in port.sent]
    assert kinds == ["Ping"] * 8 + ["Window"]
    assert [envelope.sequence for _, envelope in port.sent] == list(range(1, 10))


def test_checksums_of_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = (np.arange(5000, dtype=np.uint64), np.arange(250, dtype=np.uint8))
    message = m.Window(1, 0, {}, {}, [], 0)
    a, b = Address(SHARD, 0, 1), Address(SHARD, 1, 1)
    whole = wire.encode(message, frames, a, b)
    monkeypatch.setattr(wire, "CHECKED_BYTES_MAX", 999)
    pauses: list[int] = []
    parts = wire.encode(message, frames, a, b)
    assert [bytes(part) for part in parts] == [bytes(part) for part in whole]
    assert wire.decode(parts, lambda: pauses.append(1)).message == message
    assert len(pauses) == 41


def test_what_is_said_again_is_no_news_of_others() -> None:
    """trap: a shard that is busy has not heard of others meanwhile, nor seen connections close."""
    cluster = group()
    scheduler: SchedulerMachine = cluster.scheduler
    cluster.tick(200.0)
    cluster.run()
    busy = cluster.shard(1)
    status = busy.heartbeats._said
    assert status is not None
    assert status.heard
    cluster.now_ms += 700.0
    said = busy.while_busy(cluster.now_ms)
    scheduler.handle(Received(busy.address, said[0].message), cluster.now_ms)  # type: ignore[union-attr]
    group_ = scheduler.state.groups[0]
    signs = {sign.shard: sign.silent_ms for sign in scheduler.deaths._signs(0, group_, lambda prepared: False)}
    assert signs[1] == 0
    assert min(silent for shard, silent in signs.items() if shard != 1) >= 700
    ages = {word.age_ms for word in scheduler.deaths._words(0, group_) if word.speaker == 1}
    assert min(ages) >= 700

"""Readers of changes, one schedule at a time: what they get is durable and lacks nothing, whoever is replaced."""

import itertools
from typing import Any

import msgspec
import numpy as np
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send
from ecrec.protocol.messages import RECOVERING, TOOL, UP, Address
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX

READER = Address(TOOL, 9, 0)
CONFIG = ProtocolConfig(changes_chunk_bytes=60, changes_readers_max=2)


REQUESTS = itertools.count(1)


class Follower:
    """Asks one shard, and keeps a copy of its rows."""

    def __init__(self, cluster: Cluster, shard: int, reader: int = 77) -> None:
        self.cluster, self.shard, self.reader = cluster, shard, reader
        self.copy: dict[int, bytes] = {}
        self.epoch = self.since = 0
        self.chunks = 0
        self.reasons: list[str] = []

    def ask(self, until: int = 0, place: tuple[int, int, int] = (0, 0, 0)) -> int:
        request = next(REQUESTS)
        asked = m.AskChanges(request, self.reader, self.epoch, self.since, until, place)
        self.cluster.give(self.cluster.shards[self.shard], Received(READER, asked))
        return request

    def answer(self, request: int) -> tuple[m.Changed, Any] | None:
        for message, frames in self.cluster.tool_answers:
            if isinstance(message, m.Changed) and message.request == request:
                return message, frames
        return None

    def follow(self, meanwhile: Any = lambda: None) -> set[int]:
        """Read to the end; returns the rows that came."""
        request, came, first = self.ask(), set(), True
        while True:
            self.cluster.settle_down(lambda number=request: self.answer(number) is not None)
            message, frames = self.answer(request)
            assert message.until
            if first and message.is_all:
                self.copy = {}
                self.reasons.append(message.reason)
            first = False
            rows, weights = np.frombuffer(frames[0], np.int64), np.frombuffer(frames[1], np.uint8)
            self.chunks += 1
            for row, weight in zip(rows.tolist(), weights.reshape(len(rows), -1) if len(rows) else [], strict=True):
                self.copy[row] = weight.tobytes()
                came.add(row)
            if message.is_last:
                self.epoch, self.since = self.cluster.shard(self.shard).address.epoch, message.until
                return came
            meanwhile()
            self.epoch = self.cluster.shard(self.shard).address.epoch
            request = self.ask(message.until, message.place)

    def check(self, spec: Any) -> None:
        """The copy has what the shard has."""
        store = self.cluster.shard(self.shard).store
        tables, counts = np.zeros(1, np.int32), np.ones(1, np.int64)
        for row, weights in self.copy.items():
            out = np.empty(4 * spec.dim, np.uint8)
            store.gather(tables, counts, np.array([row], np.int64), out)
            assert out.tobytes() == weights


def trained(config: ProtocolConfig = CONFIG) -> tuple[Cluster, Any]:
    cluster, spec = Cluster(5, config), table(rows=60)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(0, 60, 2), 1.0))
    cluster.drain()
    return cluster, spec


def rows_of(cluster: Cluster, shard: int, rows: Any, spec: Any) -> set[int]:
    places = [(*divmod(row, spec.code.k), row) for row in rows]
    return {row for stripe, slot, row in places if (stripe + slot) % cluster.n == shard}


def test_a_reader_gets_all_rows_once_and_then_what_changed() -> None:
    cluster, spec = trained()
    follower = Follower(cluster, 1)
    assert follower.follow() == rows_of(cluster, 1, range(0, 60, 2), spec) and follower.chunks >= 3
    assert follower.follow() == set() and len(follower.reasons) == 1
    cluster.push(spec, dict.fromkeys(range(10), 1.0))
    cluster.run()
    assert follower.follow() == rows_of(cluster, 1, range(10), spec)
    follower.check(spec)
    # What changes while it reads comes with the next changes, whether it was read already or not.
    cluster.push(spec, dict.fromkeys(range(60), 1.0))
    cluster.run()
    follower.follow(lambda: cluster.push(spec, dict.fromkeys(range(60), 1.0)))
    cluster.drain()
    follower.follow()
    follower.check(spec)
    assert follower.copy.keys() == rows_of(cluster, 1, range(60), spec) and len(follower.reasons) == 1


def test_nothing_is_told_that_a_death_could_undo() -> None:
    cluster, spec = trained()
    follower = Follower(cluster, 1)
    follower.follow()
    name = cluster.shards[1]
    cluster.blocked = {(peer, name) for peer in cluster.shards.values() if peer != name}  # nobody acknowledges
    cluster.push(spec, dict.fromkeys(range(60), 1.0))
    cluster.run()
    request = follower.ask()
    for _ in range(30):
        cluster.run()
        cluster.tick(5.0)
    assert follower.answer(request) is None and follower.ask() == request + 1
    cluster.blocked = set()
    cluster.settle_down(lambda: follower.answer(request + 1) is not None)
    follower.follow()
    follower.check(spec)


def test_of_a_shard_that_was_replaced_all_rows_come_again_and_none_before_it_is_whole() -> None:
    cluster, spec = trained()
    follower = Follower(cluster, 1)
    follower.follow()
    cluster.push(spec, dict.fromkeys(range(20), 1.0))
    cluster.drain()
    cluster.kill(1)
    cluster.declared(1)
    machine = cluster.replace(1)
    if machine.state != m.UP:
        request = follower.ask()
        message, _ = follower.answer(request)
        assert not message.until and message.reason == "shard 1 is recovering"
    cluster.settle_down(lambda: machine.state == m.UP)
    store = machine.store
    while store.mark_changes() < follower.since:  # so that a mark of the life before has the number of one of this life
        pass
    follower.follow()
    assert follower.reasons[1:] == ["shard 1 was replaced"]
    follower.check(spec)
    assert follower.copy.keys() == rows_of(cluster, 1, {*range(0, 60, 2), *range(20)}, spec)


def test_a_reader_that_is_not_known_any_more_gets_all_rows_and_is_told_why() -> None:
    cluster, spec = trained()
    readers = [Follower(cluster, 1, reader) for reader in range(3)]  # one more than a shard keeps marks of
    for reader in readers:
        reader.follow()
    cluster.push(spec, dict.fromkeys(range(60), 1.0))
    cluster.drain()
    readers[0].follow()
    assert readers[0].reasons[1:] == ["what changed since then was not kept"]
    readers[0].check(spec)
    old = readers[2].since
    readers[2].follow()
    readers[2].follow()
    assert len(readers[2].reasons) == 1
    readers[2].since = old  # a token that was read on from since
    readers[2].follow()
    assert readers[2].reasons[1:] == ["what changed since then was not kept"]
    late = Follower(cluster, 1, 2)
    late.epoch = cluster.shard(1).address.epoch
    message, _ = late.answer(late.ask(until=old, place=(0, 0, 1))) or (None, None)
    assert message is not None and not message.until


def test_a_place_that_cannot_be_is_answered() -> None:
    cluster, _ = trained()
    follower = Follower(cluster, 1)
    for place in [(9, 0, 0), (0, 1 << 40, 0), (m.NUMBER_MAX, m.NUMBER_MAX, m.NUMBER_MAX)]:
        message, _ = follower.answer(follower.ask(place=place)) or (None, None)
        assert message is not None and not message.until
    request = follower.ask(place=(0, 0, m.NUMBER_MAX))
    cluster.settle_down(lambda: follower.answer(request) is not None)
    follower.follow()


# ------------------------------------------------------------------ one question at a time
def asks(cluster: Cluster, request: int, reader: int = 77, **fields: Any) -> list[m.Changed]:
    """What shard 1 answers at once."""
    machine = cluster.shard(1)
    asked = m.AskChanges(request, reader, fields.pop("epoch", machine.address.epoch), fields.pop("since", 0), **fields)
    return answered(cluster, Received(READER, asked))


def answered(cluster: Cluster, event: Any) -> list[m.Changed]:
    effects = cluster.shard(1).handle(event, cluster.now_ms)
    return [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, m.Changed)]


def test_a_place_behind_the_last_table_is_the_end_and_one_further_on_is_none() -> None:
    cluster, _ = trained()
    (first,) = asks(cluster, 1)
    assert first.until and not first.is_last
    for place, why in (
        ((1, 0, 0), ""), ((2, 0, 0), "there is no such place"), ((0, SHARDS_IN_GROUP_MAX, 0), ""),
        ((0, SHARDS_IN_GROUP_MAX + 1, 0), "there is no such place"),
    ):  # fmt: skip
        (answer,) = asks(cluster, 2, until=first.until, place=place)
        assert (answer.until, answer.is_last, answer.reason) == (
            (first.until, True, "") if not why else (0, False, why)
        )


def test_a_shard_that_is_not_whole_tells_nothing_but_that() -> None:
    cluster, _ = trained()
    machine = cluster.shard(1)
    machine.context.state = RECOVERING
    asked = m.AskChanges(1, 77, machine.address.epoch, 0)
    machine.context.effects = []
    machine.following.on_ask(READER, asked, ())
    (answer,) = machine.context.effects
    assert answer.message == m.Changed(1, 0, reason="shard 1 is recovering")
    assert not machine.following._readers
    machine.context.state = UP


def not_durable() -> tuple[Cluster, Any]:
    """What shard 1 has applied last its peers have not acknowledged."""
    cluster, spec = trained(msgspec.structs.replace(CONFIG, changes_chunk_bytes=1 << 20))
    name = cluster.shards[1]
    cluster.blocked = {(peer, name) for peer in cluster.shards.values() if peer != name}
    cluster.push(spec, dict.fromkeys(range(60), 1.0))
    cluster.run()
    return cluster, spec


def test_a_question_that_is_asked_again_is_read_once_and_answered_once() -> None:
    cluster, _ = not_durable()
    following = cluster.shard(1).following
    assert asks(cluster, 1) == []
    until = following._readers[77].until
    assert asks(cluster, 1) == [] and following._readers[77].until == until
    assert asks(cluster, 2) == [] and following._readers[77].until > until, "that is another one"
    cluster.blocked = set()
    cluster.settle_down(lambda: not following._waiting)
    cluster.tick(500.0)
    cluster.run()
    assert [answer.request for answer, _ in cluster.tool_answers if isinstance(answer, m.Changed)] == [2]


def test_of_a_reader_that_is_forgotten_nothing_is_kept() -> None:
    """So many are known: more would keep rows and marks for ever."""
    cluster, _ = not_durable()
    machine = cluster.shard(1)
    following = machine.following
    marks = []
    for reader in range(CONFIG.changes_readers_max + 1):
        assert asks(cluster, 1, reader) == []
        marks.append(following._readers[reader].until)
    assert following._readers.keys() == following._waiting.keys() == {1, 2}
    assert [machine.store.has_mark(mark) for mark in marks] == [False, True, True]


def test_marks_that_a_reader_needs_no_more_are_dropped() -> None:
    cluster, _ = trained(msgspec.structs.replace(CONFIG, changes_chunk_bytes=1 << 20))
    store, marks = cluster.shard(1).store, [0]
    for request in range(4):
        (answer,) = asks(cluster, request, since=marks[-1])
        assert answer.is_last and answer.is_all == (not request)
        marks.append(answer.until)
        assert [store.has_mark(mark) for mark in marks[1:]] == [mark in marks[-2:] for mark in marks[1:]]


def test_who_goes_on_reading_names_the_incarnation_and_the_mark_of_the_last_answer() -> None:
    cluster, _ = trained()
    (first,) = asks(cluster, 1)
    unknown = "this reader is not known any more"
    for fields, reader in (({"epoch": 9}, 77), ({}, 78)):
        assert asks(cluster, 2, reader, until=first.until, place=first.place, **fields) == [
            m.Changed(2, 0, reason=unknown)
        ]
    assert asks(cluster, 3, until=first.until + 1, place=first.place) == [m.Changed(3, 0, reason=unknown)]
    (answer,) = asks(cluster, 4, until=first.until, place=first.place)
    assert (answer.until, answer.reason) == (first.until, ""), "it is still known"

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecrec.protocol.messages import SHARD, Address
from ecrec.protocol.stream import (
    RESEND_MS,
    RESEND_MS_MAX,
    UNKNOWN_INCARNATIONS_MAX,
    InStream,
    Numbered,
    OutStream,
    Streams,
)

PEER = Address(SHARD, 2, 5)


def test_messages_are_numbered_from_one_and_kept() -> None:
    out: OutStream[str] = OutStream()
    assert [out.append(x, 0.0) for x in "abc"] == [1, 2, 3]
    assert out.reconnected(1.0) == [Numbered(1, "a"), Numbered(2, "b"), Numbered(3, "c")]


def test_an_acknowledgement_is_cumulative() -> None:
    out: OutStream[str] = OutStream()
    for x in "abc":
        out.append(x, 0.0)
    out.acknowledge(2, 1.0)
    assert out.reconnected(1.0) == [Numbered(3, "c")]
    out.acknowledge(1, 2.0)
    assert out.unacknowledged == 1


def test_an_acknowledgement_of_what_was_never_sent_is_ignored() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    out.acknowledge(2, 1.0)
    assert out.unacknowledged == 1


def test_what_is_not_acknowledged_in_time_is_sent_again_ever_more_slowly() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    assert out.due(RESEND_MS - 1) == []
    at, sent = 0.0, []
    while len(sent) < 8:
        at += 10.0
        if out.due(at):
            sent.append(at)
    waits = [b - a for a, b in zip([0.0, *sent], sent, strict=False)]
    assert waits[0] == RESEND_MS
    assert waits == sorted(waits)
    assert waits[1] == 2 * RESEND_MS, "it doubles"
    assert waits[-1] == RESEND_MS_MAX


def test_copies_for_a_peer_that_hangs_do_not_pile_up() -> None:
    """All is sent again once, then the oldest alone, until it is taken: then the rest at once."""
    out: OutStream[int] = OutStream()
    for number in range(100):
        out.append(number, 0.0)
    copies = 0
    for at in range(0, 600_000, 20):
        copies += len(out.due(float(at)))
    assert 100 < copies < 100 + 2 * 600_000 / RESEND_MS_MAX
    out.acknowledge(1, 600_000.0)
    assert [numbered.item for numbered in out.due(600_000.0)] == list(range(1, 100))
    assert out.due(600_000.0 + RESEND_MS) == []
    assert [numbered.item for numbered in out.reconnected(600_001.0)] == list(range(1, 100))
    assert len(out.due(600_001.0 + RESEND_MS)) == 99, "a new connection is another matter"


def test_progress_starts_the_wait_again() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    out.append("b", 0.0)
    out.acknowledge(1, RESEND_MS - 1)
    assert out.due(RESEND_MS + 1) == []
    assert out.due(2 * RESEND_MS) == [Numbered(2, "b")]


def test_the_wait_begins_with_the_first_message_that_is_kept() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 10_000.0)
    out.append("b", 10_000.0 + RESEND_MS - 1)
    assert out.due(10_000.0 + RESEND_MS - 1) == []
    assert len(out.due(10_000.0 + RESEND_MS)) == 2, "a later message does not put off the first"


def test_a_stream_that_was_idle_waits_as_long_as_a_new_one() -> None:
    out: OutStream[str] = OutStream()
    for at in range(0, 100_000, 1000):
        assert out.due(float(at)) == []
    out.append("a", 100_000.0)
    assert out.due(100_000.0) == []
    assert out.due(100_000.0 + RESEND_MS) == [Numbered(1, "a")]


def test_a_peer_that_took_everything_after_a_hang_gets_no_copy_of_the_next_at_once() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    for at in range(0, 100_000, 100):
        out.due(float(at))
    out.acknowledge(1, 100_000.0)
    out.append("b", 100_100.0)
    assert out.due(100_100.0 + RESEND_MS - 1) == []
    assert out.due(100_100.0 + RESEND_MS) == [Numbered(2, "b")]


def test_an_acknowledgement_said_again_is_no_progress() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    out.append("b", 0.0)
    out.acknowledge(1, 100.0)
    out.acknowledge(1, 100.0 + RESEND_MS - 1)
    assert out.due(100.0 + RESEND_MS) == [Numbered(2, "b")]


def test_duplicates_and_what_follows_a_gap_are_dropped_but_acknowledged() -> None:
    into = InStream()
    assert [into.take(number) for number in (1, 1, 3, 2, 3)] == [True, False, False, True, True]
    assert into.ack_due
    assert into.acknowledged() == 3
    assert not into.ack_due
    assert not into.take(2)
    assert into.ack_due


def test_an_older_incarnation_is_dropped_and_a_newer_one_delivered() -> None:
    streams: Streams[str] = Streams()
    streams.connected(PEER)
    assert not streams.take(PEER._replace(epoch=4), 1)
    assert streams.take(PEER, 1)
    assert streams.take(PEER._replace(epoch=6), 1)
    assert streams.take(PEER, 2), "what a message claims must not fence the incarnation that is known"


def test_what_is_known_of_an_epoch_never_falls() -> None:
    streams: Streams[str] = Streams()
    streams.fenced(PEER)
    streams.connected(PEER)
    streams.fenced(PEER._replace(epoch=2))
    assert streams.is_old(PEER)
    newer = PEER._replace(epoch=6)
    streams.connected(newer)
    streams.out(newer).append("a", 0.0)
    streams.connected(PEER)
    assert streams.is_old(PEER) and not streams.is_old(newer)
    assert [number for _, numbered in streams.resends_due(1e6) for number in numbered] == [Numbered(1, "a")]


def test_the_first_incarnation_of_a_shard_counts() -> None:
    streams: Streams[str] = Streams()
    first, other = Address(SHARD, 3, 0), Address(SHARD, 4, 1)
    streams.connected(other)
    assert not streams.is_old(first) and streams.take(first, 1)
    assert streams.is_old(other._replace(epoch=0))
    streams.fenced(first)
    assert streams.is_old(first)


def test_another_incarnation_of_the_shard_itself_has_nothing_to_send() -> None:
    streams: Streams[str] = Streams()
    streams.connected(PEER)
    streams.out(PEER).append("a", 0.0)
    assert streams.take(PEER, 1)
    streams.reset()
    assert streams.resends_due(1e6) == [] and streams.acks_due() == []
    assert streams.out(PEER).append("b", 0.0) == 1
    assert streams.take(PEER, 1)


def test_a_newer_incarnation_ends_the_streams_of_older_ones_of_its_shard_alone() -> None:
    streams: Streams[str] = Streams()
    older, newer, other = PEER, PEER._replace(epoch=6), Address(SHARD, 3, 1)
    for peer in (older, newer, other):
        streams.out(peer).append("x", 0.0)
        assert streams.take(peer, 1)
    streams.connected(newer)
    assert [peer for peer, _ in streams.resends_due(1e6)] == [newer, other]
    assert [streams.ack_for(peer) for peer in (older, newer, other)] == [0, 1, 1]


def test_acknowledgements_and_connections_concern_their_stream_alone() -> None:
    streams: Streams[str] = Streams()
    other = Address(SHARD, 3, 1)
    assert streams.ack_for(PEER) == 0
    assert streams.reconnected(PEER, 0.0) == []
    streams.acknowledge(PEER, 1, 0.0)
    for peer in (PEER, other):
        streams.out(peer).append("a", 0.0)
        streams.out(peer).append("b", 0.0)
    streams.acknowledge(PEER, 1, 1.0)
    assert streams.reconnected(PEER, 1.0) == [Numbered(2, "b")]
    assert streams.reconnected(other, 1.0) == [Numbered(1, "a"), Numbered(2, "b")]
    streams.acknowledge(PEER, 2, 2.0)
    assert [peer for peer, _ in streams.resends_due(1e6)] == [other]


def test_a_new_connection_begins_the_wait_again() -> None:
    out: OutStream[str] = OutStream()
    out.append("a", 0.0)
    assert out.reconnected(RESEND_MS - 1) == [Numbered(1, "a")]
    assert out.due(RESEND_MS) == [], "it was sent a moment ago"
    assert out.due(2 * RESEND_MS - 1) == [Numbered(1, "a")]


def test_nothing_is_acknowledged_before_something_came() -> None:
    into = InStream()
    assert (into.ack, into.ack_due, into.ack_overdue) == (0, False, False)


def test_a_fenced_incarnation_is_forgotten_with_all_it_was_to_get() -> None:
    streams: Streams[str] = Streams()
    streams.connected(PEER)
    streams.out(PEER).append("a", 0.0)
    assert streams.take(PEER, 1)
    streams.fenced(PEER)
    assert not streams.take(PEER, 2)
    assert streams.acks_due() == []
    assert streams.resends_due(1e9) == []
    assert streams.is_old(PEER)
    assert not streams.is_old(PEER._replace(epoch=6))


def test_invented_incarnations_are_limited_and_the_known_one_is_not_kept_out() -> None:
    streams: Streams[str] = Streams()
    for shard in range(UNKNOWN_INCARNATIONS_MAX + 10):
        streams.take(Address(SHARD, 100 + shard, 1), 1)
    streams.acks_due()
    assert len(streams.acks_due()) == UNKNOWN_INCARNATIONS_MAX
    streams.connected(PEER)
    assert streams.take(PEER, 1)


def test_only_what_nothing_took_along_is_acknowledged_alone() -> None:
    streams: Streams[str] = Streams()
    streams.connected(PEER)
    streams.take(PEER, 1)
    assert streams.acks_due() == [], "something may go that way soon"
    streams.ack_for(PEER)
    streams.take(PEER, 2)
    assert streams.acks_due() == []
    assert streams.acks_due() == [PEER]
    assert streams.ack_for(PEER) == 2
    assert [streams.acks_due(), streams.acks_due()] == [[], []]


class Wire:
    """Two ends and a channel each way that loses, repeats and reorders as it is told."""

    def __init__(self) -> None:
        self.out: OutStream[int] = OutStream()
        self.into = InStream()
        self.there: deque[Numbered[int]] = deque()
        self.back: deque[int] = deque()
        self.delivered: list[int] = []
        self.sent = 0
        self.now_ms = 0.0

    def step(self, action: str, pick: int) -> None:
        self.now_ms += 50.0
        if action == "send":
            self.sent += 1
            self.there.append(Numbered(self.out.append(self.sent, self.now_ms), self.sent))
        elif action == "deliver" and self.there:
            self.deliver(self.there.popleft())
        elif action == "repeat" and self.there:
            self.deliver(self.there[pick % len(self.there)])
        elif action == "lose" and self.there:
            del self.there[pick % len(self.there)]
        elif action == "acknowledge" and self.back:
            del_at = pick % len(self.back)
            self.out.acknowledge(self.back[del_at], self.now_ms)
            del self.back[del_at]
        elif action == "lose ack" and self.back:
            self.back.pop()
        elif action == "reconnect":
            self.there.clear()
            self.back.clear()
            self.there.extend(self.out.reconnected(self.now_ms))
        elif action == "tick":
            self.there.extend(self.out.due(self.now_ms))
            if self.into.ack_due:
                self.back.append(self.into.acknowledged())

    def deliver(self, numbered: Numbered[int]) -> None:
        if self.into.take(numbered.sequence):
            self.delivered.append(numbered.item)
        if numbered.sequence % 3 == 0:
            self.back.append(self.into.acknowledged())


ACTIONS = ("send", "deliver", "repeat", "lose", "acknowledge", "lose ack", "reconnect", "tick")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 20)), max_size=120))
def test_everything_arrives_once_and_in_order_whatever_the_channel_does(actions: list[tuple[str, int]]) -> None:
    wire = Wire()
    for action, pick in actions:
        wire.step(action, pick)
        assert wire.delivered == list(range(1, len(wire.delivered) + 1))
    for _ in range(1000):
        if not wire.out.unacknowledged:
            break
        wire.now_ms += 1000.0
        for action in ("tick", *["deliver"] * (1 + len(wire.there)), "tick", *["acknowledge"] * (1 + len(wire.back))):
            wire.step(action, 0)
    assert wire.delivered == list(range(1, wire.sent + 1))
    assert wire.out.unacknowledged == 0


@pytest.mark.parametrize("taken", [0, 3])
def test_an_incarnation_that_became_another_starts_all_streams_again(taken: int) -> None:
    streams: Streams[str] = Streams()
    for number in range(1, taken + 1):
        streams.take(PEER, number)
    streams.reset()
    assert streams.take(PEER, 1)

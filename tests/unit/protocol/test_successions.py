"""A server that leaves while a spare waits is copied to it, and serves until the copy has its place."""

import dataclasses
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from doubts import epochs, formed, pass_time, states

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import LEFT, Connection, Note, Received, Send, Tick, ToldToEnd
from ecrec.protocol.messages import SCHEDULER_ADDRESS, TOOL, UP, Address
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.transitions import COPYING, ENDING, HALTING, LEVEL, NEAR, NOT_COPIED

SLOW = ProtocolConfig(
    succession_bytes=64, succession_left_bytes_max=64, succession_copies_in_flight_max=1, window_interval_ms=0.0
)
"""Rows are copied one or two at a time."""


def with_spare(config: ProtocolConfig = SLOW) -> tuple[Cluster, Any, str]:
    cluster, spec = formed(config=config)
    spare = cluster.start(-1)
    pass_time(cluster, 200.0)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    return cluster, spec, spare


def leave(cluster: Cluster, shard: int) -> str:
    name = cluster.shards[shard]
    cluster.give(name, ToldToEnd())
    return name


def until(cluster: Cluster, shard: int, *some: str) -> None:
    """Let things happen, message by message, until the shard's part is there."""
    for _ in range(4000):
        if cluster.shard(shard).handover.state in some:
            return
        if not cluster.deliver():
            cluster.tick()
    raise AssertionError(cluster.shard(shard).handover.state)


def noted(cluster: Cluster) -> list[str]:
    """What is said to people from now on."""
    notes = list[str]()
    real = cluster.carry_out

    def carry_out(name: str, of: Any, effects: list[Any]) -> None:
        notes.extend(effect.text for effect in effects if isinstance(effect, Note))
        real(name, of, effects)

    cluster.carry_out = carry_out  # type: ignore[method-assign]
    return notes


def events(cluster: Cluster, *some: str) -> list[tuple[str, int]]:
    return [(entry.event, entry.shard) for entry in cluster.scheduler.state.history if entry.event in some]


def check(cluster: Cluster, spec: Any) -> None:
    """All parity fits, nothing is lost, and pushes go on."""
    cluster.drain()
    assert not cluster.failed and not cluster.scheduler.state.groups[0].lost
    cluster.scrub()
    rows = cluster.read(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 2.0))
    cluster.drain()
    assert (cluster.read(spec) == rows - 1.0).all()


def test_a_spare_takes_over_without_a_death() -> None:
    cluster, spec, spare = with_spare()
    expected = cluster.read(spec)
    name = leave(cluster, 2)
    pushes = 0
    while name not in cluster.stopped:
        cluster.tick()
        cluster.push(spec, dict.fromkeys(range(pushes % 5, spec.rows, 5), 1.0))
        expected[pushes % 5 :: 5] -= np.float32(0.5)
        pushes += 1
        cluster.run()
        assert states(cluster) == [UP] * 5
    cluster.shards[2] = spare
    cluster.drain()
    assert epochs(cluster) == [1, 1, 2, 1, 1]
    assert events(cluster, "down", "handed over") == [("handed over", 2)]
    assert pushes > 3 and (cluster.read(spec) == expected).all()
    check(cluster, spec)


def test_the_process_ends_with_the_code_of_an_orderly_end() -> None:
    cluster, _, _ = with_spare()
    machine, kinds = cluster.shard(1), []
    real = cluster.carry_out

    def carry_out(name: str, of: Any, effects: list[Any]) -> None:
        kinds.extend(effect.kind for effect in effects if of is machine and hasattr(effect, "kind"))
        real(name, of, effects)

    cluster.carry_out = carry_out  # type: ignore[method-assign]
    name = leave(cluster, 1)
    cluster.settle_down(lambda: name in cluster.stopped)
    assert kinds == [LEFT]


def test_two_at_once_are_handed_over_one_after_the_other() -> None:
    cluster, spec, first = with_spare()
    second = cluster.start(-1)
    pass_time(cluster, 200.0)
    names = [leave(cluster, 3)]
    cluster.run()
    cluster.tick()
    names.append(leave(cluster, 0))
    while not all(name in cluster.stopped for name in names):
        cluster.tick()
        cluster.run()
        assert states(cluster) == [UP] * 5
    assert events(cluster, "down", "handed over") == [("handed over", 3), ("handed over", 0)]
    cluster.shards[3], cluster.shards[0] = first, second
    check(cluster, spec)


def test_a_death_meanwhile_comes_first_and_the_one_that_leaves_stays_until_all_are_whole() -> None:
    for stage in (COPYING, NEAR, HALTING, LEVEL):
        cluster, spec, _ = with_spare()
        cluster.start(-1)
        pass_time(cluster, 200.0)
        name, leaver = leave(cluster, 2), cluster.shard(2)
        until(cluster, 2, stage)
        cluster.kill(4)
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        while name not in cluster.stopped:
            cluster.tick()
            cluster.run()
            assert states(cluster)[2] == UP and (not leaver.context.halted or cluster.whole())
        cluster.settle_down(lambda cluster=cluster: ("down", 4) in events(cluster, "down") and cluster.whole())
        assert sorted(events(cluster, "down", "handed over")) == [("down", 4), ("handed over", 2)]
        for shard in (2, 4):
            cluster.shards[shard] = cluster.scheduler.state.groups[0].places[shard].process
        check(cluster, spec)


def test_a_halt_that_a_death_has_ended_is_not_that_of_the_next_succession() -> None:
    cluster, spec, _ = with_spare(msgspec.structs.replace(SLOW, succession_halt_timeout_ms=60))
    spare = cluster.start(-1)
    pass_time(cluster, 200.0)
    name = leave(cluster, 2)
    until(cluster, 2, NEAR)
    cluster.kill(4)
    until(cluster, 2, HALTING)
    notes = noted(cluster)
    cluster.settle_down(lambda: states(cluster) != [UP] * 5)
    cluster.settle_down(lambda: states(cluster) == [UP] * 5)
    succeeding = cluster.scheduler.state.groups[0].succeeding
    cluster.blocked.add((name, succeeding.process if succeeding else spare))
    pass_time(cluster, 100.0)
    cluster.blocked.clear()
    cluster.settle_down(lambda: name in cluster.stopped)
    assert not [text for text in notes if "is not succeeded" in text], notes
    assert sorted(events(cluster, "down", "handed over")) == [("down", 4), ("handed over", 2)]
    for shard in (2, 4):
        cluster.shards[shard] = cluster.scheduler.state.groups[0].places[shard].process
    assert spare in cluster.shards.values()
    check(cluster, spec)


def test_when_the_spare_dies_the_shard_serves_on_and_goes_without_one() -> None:
    for stage in (COPYING, NEAR, HALTING):
        cluster, spec, spare = with_spare()
        name = leave(cluster, 2)
        until(cluster, 2, stage)
        cluster.machines.pop(spare)
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        cluster.settle_down(lambda cluster=cluster, name=name: name in cluster.stopped)
        assert events(cluster, "down", "handed over") == [("down", 2)]
        cluster.replace(2)
        check(cluster, spec)


def test_one_that_cannot_be_handed_over_in_time_goes_without_a_successor_in_the_end() -> None:
    """Its rows change as fast as they are copied, say: each halt of the group ends in nothing."""
    more = {"succession_halt_timeout_ms": 1, "succession_tries_max": 2, "succession_again_ms": 100}
    cluster, spec, spare = with_spare(msgspec.structs.replace(SLOW, **more))
    notes = noted(cluster)
    name = leave(cluster, 2)
    for _ in range(400):
        cluster.tick()
        if name in cluster.stopped:
            break
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        for _ in range(3):
            cluster.deliver()
    cluster.shards[2] = spare
    cluster.settle_down(lambda: name in cluster.stopped and cluster.whole())
    given_up = [text for text in notes if "is not succeeded" in text]
    assert len(given_up) == 2 and all("it was not over 1 ms after it halted" in text for text in given_up), notes
    assert any("is copied to a spare at" in text and text.endswith(", try 2 of 2") for text in notes), notes
    assert events(cluster, "down", "handed over") == [("down", 2)]
    check(cluster, spec)


def test_one_that_need_not_leave_after_all_stays_and_the_spare_is_one_again() -> None:
    for stage in (COPYING, NEAR, HALTING):
        cluster, spec, spare = with_spare()
        name = leave(cluster, 2)
        until(cluster, 2, stage)
        epoch = cluster.shard(2).address.epoch
        cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(1, 2, epoch, stays=True)))
        cluster.settle_down(lambda cluster=cluster: cluster.shard(2).handover.state == NOT_COPIED)
        pass_time(cluster, 2_000.0)
        assert name not in cluster.stopped and not cluster.machines[spare].successor.since
        assert cluster.scheduler.admission.spares == 1
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        check(cluster, spec)
        cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(2, 2, epoch)))
        cluster.settle_down(lambda cluster=cluster, name=name: name in cluster.stopped)
        cluster.shards[2] = spare
        assert epochs(cluster)[2] == 3 and events(cluster, "down") == []
        check(cluster, spec)


def test_what_was_said_of_the_one_that_left_says_nothing_of_its_successor() -> None:
    cluster, _, _ = with_spare()
    suspicions = cluster.scheduler.deaths.suspicions[0]
    name = leave(cluster, 2)
    until(cluster, 2, LEVEL)
    for is_news in (True, False):
        assert suspicions.claimed(2, "stranger", cluster.now_ms) == is_news
    cluster.settle_down(lambda: name in cluster.stopped)
    assert suspicions.claimed(2, "stranger", cluster.now_ms)


def test_a_halt_of_a_succession_that_is_over_halts_nobody() -> None:
    cluster, spec, _ = with_spare()
    leave(cluster, 2)
    until(cluster, 2, NEAR)
    member, source = cluster.shard(0), cluster.shard(2).address
    since = cluster.scheduler.state.groups[0].succeeding.view
    cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(1, 2, 1, stays=True)))
    cluster.settle_down(lambda: member.handover.succession is None)
    cluster.give(cluster.shards[0], Received(source, m.Halt(since)))
    assert not member.context.halted
    check(cluster, spec)


def test_a_spare_without_a_place_is_told_to_end() -> None:
    cluster, _, spare = with_spare()
    cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(1, process=spare)))
    cluster.settle_down(lambda: spare in cluster.stopped)
    assert isinstance(cluster.tool_answers[-1][0], m.Draining)
    cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(2, process="nobody")))
    cluster.run()
    refused = cluster.tool_answers[-1][0]
    assert isinstance(refused, m.Refused) and refused.reason == "no process nobody waits for a place"


def test_a_shard_that_loses_the_connection_to_its_successor_says_so_and_serves_on() -> None:
    cluster, spec, _ = with_spare()
    leave(cluster, 2)
    until(cluster, 2, COPYING)
    leaver = cluster.shard(2)
    cluster.give(cluster.shards[2], Connection(leaver.handover.successor, up=True))
    assert leaver.handover.state == COPYING
    notes = noted(cluster)
    cluster.give(cluster.shards[2], Connection(leaver.handover.successor, up=False))
    cluster.settle_down(lambda: any("the connection to its successor broke" in text for text in notes))
    assert states(cluster) == [UP] * 5 and not leaver.context.halted
    check(cluster, spec)


# ------------------------------------------------------------------ one rule at a time
def at(stage: str, config: ProtocolConfig = SLOW) -> tuple[Cluster, Any, Any]:
    """Shard 2 leaves, and has come so far; it, and who it would be."""
    cluster, _, spare = with_spare(config)
    leave(cluster, 2)
    until(cluster, 2, stage)
    return cluster, cluster.shard(2), cluster.machines[spare]


def says(cluster: Cluster, shard: int, event: Any, *kinds: type) -> list[Any]:
    """What of these kinds a shard says at an event."""
    effects = cluster.shard(shard).handle(event, cluster.now_ms)
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kinds or object)]


def tell(message: m.Message) -> Received:
    """The scheduler says something."""
    return Received(SCHEDULER_ADDRESS, message)


def test_only_the_one_that_leaves_is_copied() -> None:
    cluster, leaver, _ = at(COPYING)
    cluster.run()
    others = [cluster.shard(shard).handover for shard in (0, 1, 3, 4)]
    assert leaver.handover.state != NOT_COPIED and all(each.state == NOT_COPIED for each in others)
    assert all(each.succession == leaver.handover.succession for each in others)


def test_a_halt_is_for_the_succession_that_it_names() -> None:
    cluster, leaver, _ = at(NEAR)
    since = leaver.handover.succession.number
    for number in (since - 1, since + 1):
        assert says(cluster, 2, tell(m.HaltNow(number)), m.Halt) == [] and leaver.handover.state == NEAR
    assert says(cluster, 2, tell(m.HaltNow(since)), m.Halt) == [m.Halt(since)] * 4
    assert leaver.handover.state == HALTING and leaver.context.halted
    assert says(cluster, 2, tell(m.HaltNow(since)), m.Halt) == [], "it has halted already"


def test_a_member_says_once_that_it_has_halted() -> None:
    cluster, leaver, _ = at(HALTING)
    said, halt = [], Received(leaver.address, m.Halt(leaver.handover.succession.number))
    for event in (halt, Tick(), Tick()):
        said += says(cluster, 0, event, m.Halted)
    assert len(said) == 1 and said[0].since == halt.message.since


def test_who_has_halted_counts_for_this_succession_alone_and_with_all_its_windows() -> None:
    cluster, leaver, _ = at(NEAR)
    handover, since = leaver.handover, leaver.handover.succession.number
    peer, source = leaver.peers[0], cluster.shard(0).address
    window = peer.received
    assert window
    leaver.handle(Received(source, m.Halted(since, window)), cluster.now_ms)
    assert handover._halted == {}, "nobody has asked it to halt"
    leaver.handle(tell(m.HaltNow(since)), cluster.now_ms)
    leaver.handle(Received(source, m.Halted(since - 1, window)), cluster.now_ms)
    assert handover._halted == {}, "that was another succession"
    with pytest.raises(ValueError, match=f"shard 0 has halted at window {window + 1}, I have {window}"):
        leaver.handle(Received(source, m.Halted(since, window + 1)), cluster.now_ms)
    peer.broken = False
    leaver.handle(Received(source, m.Halted(since, window)), cluster.now_ms)
    assert handover._halted == {0: window}
    handover.on_halted(dataclasses.replace(leaver.peers[1], received=None), m.Halted(since, 0), ())
    assert handover._halted == {0: window, 1: 0}, "it never had anything to say"
    handover.over()
    assert handover._halted == {}, "the next one asks anew"


def test_what_a_successor_says_of_a_succession_that_is_over_moves_nothing() -> None:
    cluster, leaver, _ = at(COPYING)
    handover, since, source = leaver.handover, leaver.handover.succession.number, leaver.handover.successor
    leaver.handle(Received(source, m.Copied(since - 1, 9, "no room")), cluster.now_ms)
    assert handover._acked == 0 and not handover._failure
    leaver.handle(Received(source, m.Copied(since, 1, "")), cluster.now_ms)
    assert handover._acked == 1
    handover.over()
    leaver.handle(Received(source, m.Copied(since, 2, "no room")), cluster.now_ms)
    assert handover.state == NOT_COPIED and handover._acked == 1 and not handover._failure


def test_what_waits_for_the_end_of_a_halt_is_kept_in_order_until_then() -> None:
    cluster, leaver, _ = at(HALTING)
    handover = leaver.handover
    some = [Received(cluster.shard(0).address, m.Snap(1, number, m.Stripes(0, 0, 1), [], False)) for number in (1, 2)]
    assert [handover.defers(each) for each in some] == [True, True]
    assert not handover.defers(Received(cluster.shard(0).address, m.Ping(asks=True)))
    assert handover.take_waiting() == []
    handover.over()
    assert handover.take_waiting() == some and handover.take_waiting() == [] and not handover.defers(some[0])


def test_a_copy_that_cannot_begin_is_a_failure_with_its_reason_and_nothing_of_the_last_one_is_left() -> None:
    _, leaver, _ = at(NEAR)
    handover, view = leaver.handover, leaver.handover.succession
    handover.over()
    assert handover._copying is None
    leaver.context.effects = []
    broken = mock.patch("ecrec.protocol.handover.Copying", side_effect=RuntimeError("a scrub takes its changes"))
    with broken:
        handover.on_succession(view)
    told = [e.message for e in leaver.context.effects if isinstance(e, Send) and isinstance(e.message, m.Handover)]
    assert [(each.failure, each.left_bytes) for each in told] == [("a scrub takes its changes", 0)]
    handover.advance()
    assert not [e for e in leaver.context.effects if isinstance(e, Send) and isinstance(e.message, m.Copy)]


WIDE = msgspec.structs.replace(SLOW, succession_copies_in_flight_max=3)


def copies(leaver: Any, *, workers_ask: bool) -> int:
    """How many copies are sent at once, of a succession that begins."""
    handover, view, context = leaver.handover, leaver.handover.succession, leaver.context
    handover.over()
    context.worked_ms = context.now_ms if workers_ask else -1e18
    context.effects = []
    handover.on_succession(view)
    handover.advance()
    return sum(isinstance(e, Send) and isinstance(e.message, m.Copy) for e in context.effects)


def test_while_workers_ask_for_something_one_copy_is_in_flight_and_a_pause_follows_it() -> None:
    _, leaver, _ = at(COPYING, WIDE)
    handover, context = leaver.handover, leaver.context
    assert copies(leaver, workers_ask=False) == 3
    assert copies(leaver, workers_ask=True) == 1
    context.now_ms += 40.0
    handover.on_copied(m.Copied(handover.succession.number, 1, ""))
    assert handover.share.resume_ms > context.now_ms
    for later_ms, sent in ((0.0, 1), (handover.share.resume_ms - context.now_ms, 2)):
        context.now_ms += later_ms
        context.worked_ms = context.now_ms
        handover.advance()
        assert handover._sent == sent
    handover.share.resume_ms = context.now_ms + 1_000.0
    assert copies(leaver, workers_ask=True) == 0 and handover.state == COPYING, "it is near when something was sent"


def test_a_halted_group_is_copied_at_once_also_while_workers_ask() -> None:
    cluster, leaver, _ = at(HALTING, WIDE)
    handover, context = leaver.handover, leaver.context
    cluster.blocked = {(name, cluster.shards[2]) for name in cluster.machines}
    handover._acked, context.worked_ms = handover._sent, context.now_ms
    handover.share.resume_ms = context.now_ms + 1_000.0
    context.store.mark_changes()
    handover._tables, sent = 0, handover._sent
    handover.advance()
    assert handover._sent > sent


def said(leaver: Any) -> list[Any]:
    """What the successor is sent now, when all before it has arrived and no row is left."""
    handover = leaver.handover
    while handover._copying.rows:
        handover._copying.take(1 << 20)
    handover._acked, leaver.context.effects = handover._sent, []
    handover.advance()
    return [
        e.message for e in leaver.context.effects if isinstance(e, Send) and isinstance(e.message, m.Copy | m.CopyEnd)
    ]


def test_a_table_is_told_though_it_has_no_rows() -> None:
    cluster, leaver, _ = at(NEAR)
    assert said(leaver) == []
    leaver.handover._tables = 0
    (copy,) = said(leaver)
    assert copy.tables == leaver.context.tables == cluster.scheduler.state.tables
    assert said(leaver) == []


def test_behind_the_end_nothing_is_sent() -> None:
    _, leaver, _ = at(HALTING, WIDE)
    leaver.handover._tables, leaver.context.worked_ms = 0, -1e18
    with mock.patch.object(leaver.handover, "_has_halted", return_value=True):
        (end,) = said(leaver)
        assert isinstance(end, m.CopyEnd) and said(leaver) == []


def test_the_end_is_not_sent_while_rows_are_left() -> None:
    cluster, leaver, spare = at(NEAR)
    cluster.blocked.add((spare.process, cluster.shards[2]))
    cluster.push(table(), dict.fromkeys(range(40), 1.0))
    cluster.run()
    leaver.handle(tell(m.HaltNow(leaver.handover.succession.number)), cluster.now_ms)
    leaver.handover._acked, leaver.context.effects = leaver.handover._sent, []
    assert leaver.handover._copying.rows and leaver.handover.state == HALTING
    with mock.patch.object(leaver.handover, "_has_halted", return_value=True):
        leaver.handover.advance()
    first, *_ = [e.message for e in leaver.context.effects if isinstance(e, Send)]
    assert isinstance(first, m.Copy)


def test_the_first_message_goes_out_though_there_is_nothing_to_copy() -> None:
    """How near it is is told when the successor has been sent something."""
    large = msgspec.structs.replace(WIDE, succession_left_bytes_max=1 << 20)
    _, leaver, _ = at(NEAR, large)
    handover, context = leaver.handover, leaver.context
    handover.share.resume_ms = context.now_ms + 1_000.0
    assert copies(leaver, workers_ask=True) == 0 and handover.state == COPYING
    context.worked_ms, tables, context.tables = -1e18, context.tables, []
    (copy,) = said(leaver)
    assert copy == m.Copy(handover.succession.number, 1, []) and handover.state == NEAR and said(leaver) == []
    context.tables = tables


def test_the_only_server_of_a_group_halts_when_it_is_told_to() -> None:
    """It has no peers that could halt."""
    cluster, _ = formed(1, SLOW, code="1+0")
    cluster.start(-1)
    pass_time(cluster, 200.0)
    leave(cluster, 0)
    until(cluster, 0, NEAR)
    leaver = cluster.shard(0)
    assert said(leaver) == [] and leaver.handover.state == NEAR
    leaver.handle(tell(m.HaltNow(leaver.handover.succession.number)), cluster.now_ms)
    assert said(leaver) == [] and leaver.handover.state == ENDING


def test_the_only_server_of_a_group_is_succeeded() -> None:
    """It has no peers that could halt, and must halt itself all the same."""
    cluster, spec = formed(1, SLOW, code="1+0")
    spare = cluster.start(-1)
    pass_time(cluster, 200.0)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    name = leave(cluster, 0)
    cluster.settle_down(lambda: name in cluster.stopped)
    cluster.shards[0] = spare
    assert events(cluster, "down", "handed over") == [("handed over", 0)]
    check(cluster, spec)


# ------------------------------------------------------------------ the one that copies
def copying() -> tuple[Cluster, Any, Any]:
    """The spare has taken the first copy."""
    cluster, leaver, spare = at(COPYING)
    while not spare.successor._taken:
        if not cluster.deliver():
            cluster.tick()
    assert leaver.handover.state == COPYING and spare.successor.end is None
    return cluster, leaver, spare


def test_a_spare_follows_whom_it_is_told_to_until_it_is_told_of_another_one_or_of_nobody() -> None:
    _, leaver, spare = copying()
    successor = spare.successor
    told, taken = successor.told, successor._taken
    for same in (told, msgspec.structs.replace(told, process="another", since=told.since + 1)):
        successor.on_succeed(same)
        assert successor.told == told and successor._taken == taken
    other = msgspec.structs.replace(told, since=told.since + 1, epoch=told.epoch + 1)
    successor.on_succeed(other)
    assert successor.told == other and (successor._taken, successor.tables, successor.end) == (0, [], None)
    successor.on_succeed(m.Succeed(spare.process, 0))
    assert successor.told is None and successor.store is None and successor.leaver is None
    assert len(successor._given_up) == 2
    for _ in range(100):
        successor.on_tick()
    assert not successor._given_up and not successor.takes(Received(leaver.address, m.CopyEnd(told.since, 1, {}, {})))


def test_a_successor_takes_copies_of_the_one_that_it_follows_and_nothing_else() -> None:
    cluster, leaver, spare = copying()
    successor, since = spare.successor, spare.successor.since
    copy = Received(leaver.address, m.Copy(since, successor._taken + 1, []), (b"", b""))
    assert not successor.takes(Received(cluster.shard(0).address, copy.message, copy.frames))
    for message in (m.Ping(asks=True), m.Halt(since)):
        assert not successor.takes(Received(leaver.address, message))
    taken = successor._taken
    for wrong in (m.Copy(since - 1, taken + 1, []), m.Copy(since, taken, []), m.Copy(since, taken + 2, [])):
        spare.context.effects = []
        assert successor.takes(Received(leaver.address, wrong, copy.frames))
        assert successor._taken == taken and spare.context.effects == [], "it comes late, or again"
    assert successor.takes(copy) and successor._taken == taken + 1


def test_behind_what_it_cannot_hold_a_successor_takes_nothing() -> None:
    _, leaver, spare = copying()
    successor, since = spare.successor, spare.successor.since
    number = successor._taken + 1
    for message, said in (
        (m.Copy(since, number, [table("too large", rows=2**46)]), [number]), (m.Copy(since, number + 1, []), []),
        (m.CopyEnd(since, number + 1, {}, {}), []),
    ):  # fmt: skip
        spare.context.effects = []
        assert successor.takes(Received(leaver.address, message, (b"", b"")))
        answers = [e.message for e in spare.context.effects]
        assert [each.number for each in answers] == said and all(each.refusal for each in answers)
        assert successor._taken == number and successor.end is None


@pytest.mark.parametrize("stage", [HALTING, LEVEL])
def test_a_halt_ends_where_the_state_of_the_scheduler_was_lost_and_is_made_again(stage: str) -> None:
    cluster, spec, spare = with_spare()
    pass_time(cluster, 1200.0)
    leave(cluster, 2)
    until(cluster, 2, stage)
    for key, queue in cluster.channels.items():
        if "scheduler" in key:
            queue.clear()
    del cluster.machines[spare]  # so that nobody goes on with it
    cluster.scheduler = SchedulerMachine(cluster.n, 1, cluster.config, None, "new", True)
    cluster.machines["scheduler"] = cluster.scheduler
    cluster.give(cluster.shards[2], Received(SCHEDULER_ADDRESS, m.ToldToLeave(cluster.shards[2], stays=True)))
    pass_time(cluster, 8000.0)
    assert cluster.scheduler.state.generation == 1
    assert not any(cluster.shard(shard).context.halted for shard in range(5))
    cluster.settle_down(lambda: cluster.client.can_push)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.settle_down(lambda: cluster.client.durable)


def test_a_correction_of_parity_waits_until_the_group_goes_on() -> None:
    cluster, _, _ = with_spare()
    leave(cluster, 2)
    until(cluster, 2, LEVEL)
    halted = next(shard for shard in range(5) if shard != 2 and cluster.shard(shard).context.halted)
    machine = cluster.shard(halted)
    source = next(shard for shard in range(5) if shard not in (2, halted))
    correction = Received(Address(m.SHARD, source, epochs(cluster)[source]), m.CorrectParity(machine.view, 1, 0))
    answers = machine.handle(correction, cluster.now_ms)
    assert not answers and machine.handover._waiting == [correction]
    machine.handover.over()
    assert machine.handover.take_waiting() == [correction]

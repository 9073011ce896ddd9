"""A shard, one rule at a time: what it takes late, which requests it is behind of, what it applies and what not, and
what ends its process."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from test_shard import SOMEBODY, TOOL, answers, own_rows, peer, pull, push, sent

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import (
    BAD_CONTENT,
    LEFT,
    Connection,
    FileWritten,
    HalfHandledError,
    Note,
    Received,
    Send,
    Stop,
    Tick,
    ToldToEnd,
)
from ecrec.protocol.messages import RECOVERING, SCHEDULER_ADDRESS, UP, Address, FullView, Member, Views
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX
from ecrec.protocol.queues import QueuedPush
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.transitions import JOINED_BLIND


@pytest.fixture
def cluster() -> Cluster:
    """Three shards with a table."""
    made = Cluster(3)
    made.create(table(code="2+1"))
    made.drain()
    return made


def views(machine: ShardMachine, *some: m.AnyView) -> Received:
    return Received(SCHEDULER_ADDRESS, Views(0, list(some), machine.context.origin))


def fence(machine: ShardMachine) -> m.WorkerFenced:
    """A view that concerns nobody."""
    return m.WorkerFenced(machine.view + 1, 99, 1)


# ------------------------------------------------------------------ what ends the process
def breaks(machine: ShardMachine, target: Any, name: str) -> Any:
    return mock.patch.object(target, name, side_effect=ValueError("so"))


ENDS: list[tuple[str, Callable[[ShardMachine], tuple[Any, str]], Callable[[ShardMachine], Any]]] = [
    ("a connection", lambda s: (s, "_on_connection"), lambda s: Connection(peer(1), up=False)),
    ("a signal to end", lambda s: (s.departure, "begin"), lambda s: ToldToEnd()),
    ("a tick", lambda s: (s, "_on_tick"), lambda s: Tick()),
    ("what is possible", lambda s: (s, "advance"), lambda s: Received(TOOL, m.StoryQuery(1))),
    ("the answer to a tool's pull", lambda s: (s.workers, "is_behind"), lambda s: pull(1, [], source=TOOL)),
    ("a worker's push", lambda s: (s.workers, "is_behind"), lambda s: push(1, [])),
    ("a window that is stable", lambda s: (s.peer_windows, "commit"), lambda s: Received(peer(1), m.Stable(0))),
    ("a word of a replacement", lambda s: (s.seeding, "on_reseed"), lambda s: Received(peer(1), m.Joined({0: 1}))),
    ("a view", lambda s: (s.repairs, "forget"), lambda s: views(s, fence(s))),
    ("a word to leave", lambda s: (s.departure, "begin"), lambda s: tell(m.ToldToLeave(s.process))),
    ("a copy", lambda s: (s.context, "hear_origin"), lambda s: tell(m.StateCopy(s.context.origin), b"copy")),
    ("a window", lambda s: (s.peer_windows, "commit"), lambda s: Received(peer(1), window(s), EMPTY)),
    ("a file", lambda s: (s.saver, "on_written"), lambda s: FileWritten(1, "part", 1, 0, "")),
]


def tell(message: m.Message, *frames: bytes) -> Received:
    """The scheduler says something."""
    return Received(SCHEDULER_ADDRESS, message, frames)


EMPTY = (b"", b"")


def window(machine: ShardMachine) -> m.Window:
    """The next one of shard 1, of no rows."""
    return m.Window((machine.peers[1].received or 0) + 1, 0, {}, {}, [])


@pytest.mark.parametrize(("what", "part", "event"), ENDS, ids=[what for what, _, _ in ENDS])
def test_what_fails_once_the_state_moves_ends_the_process(
    cluster: Cluster,
    what: str,
    part: Any,
    event: Any,
) -> None:
    machine = cluster.shard(2) if "replacement" in what else cluster.shard(0)
    if "replacement" in what:
        stripe = next(s for s in machine.placement.classes if 2 in s.data and 1 in s.parity)
        joined = Received(peer(1), m.Joined({stripe.class_id: 1}))
        with breaks(machine, *part(machine)), pytest.raises(HalfHandledError, match="so"):
            machine.handle(joined, cluster.now_ms)
        return
    with breaks(machine, *part(machine)), pytest.raises(HalfHandledError, match="so"):
        machine.handle(event(machine), cluster.now_ms)


def test_want_of_memory_is_raised_as_it_is(cluster: Cluster) -> None:
    error = MemoryError("no room")
    with mock.patch.object(cluster.shard(0), "_on_tick", side_effect=error), pytest.raises(MemoryError) as raised:
        cluster.shard(0).handle(Tick(), cluster.now_ms)
    assert raised.value is error


def test_a_place_that_cannot_be_taken_to_its_end_ends_the_process() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    broken = mock.patch("ecrec.protocol.membership.WindowBuffers", side_effect=ValueError("so"))
    with broken, pytest.raises(HalfHandledError, match="so"):
        machine.handle(Received(SCHEDULER_ADDRESS, Views(0, [started(3)])), 0.0)


def test_a_part_of_a_push_that_was_applied_ends_the_process(cluster: Cluster) -> None:
    """The second section fails though its check has passed: the first one stands."""
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    one = push(1, rows[:1])
    both = msgspec.structs.replace(one.message, sections=[m.Section([0], [1])] * 2)
    frames = [*one.frames, np.array(rows[1:], np.int64).tobytes(), np.ones(4, np.float32).tobytes()]
    for fails_at, error in ((0, None), (1, HalfHandledError)):
        machine.context.store = Failing(machine.store, fails_at)  # type: ignore[assignment]
        event = Received(SOMEBODY, both, frames)
        if error is None:
            (refused,) = answers(machine, event, cluster.now_ms)
            assert isinstance(refused, m.PushRefused) and machine.watermarks.get(SOMEBODY.id, 0) == 0
            machine.context.store = machine.store.store  # type: ignore[attr-defined]
        else:
            with pytest.raises(error, match="applied a part of a push: so"):
                machine.handle(event, cluster.now_ms)


class Failing:
    """A store of which a later `apply` fails."""

    def __init__(self, store: Any, fails_at: int) -> None:
        self.store, self._left = store, fails_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def apply(self, *arguments: Any) -> None:
        if not self._left:
            raise ValueError("so")
        self._left -= 1
        self.store.apply(*arguments)


def test_rows_that_cannot_be_asked_for_are_no_refusal_of_who_waits_for_them(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    waits: Any = SimpleNamespace(wanted=object())
    with breaks(machine, machine.repairs, "lacks"):
        assert not machine.pushes.lost.still_lacks([waits]), "a shard that is whole lacks nothing"
        machine.context.state = RECOVERING
        with pytest.raises(HalfHandledError, match="could not ask for rows: so"):
            machine.pushes.lost.still_lacks([waits])
    assert ValueError in BAD_CONTENT


# ------------------------------------------------------------------ places
def started(n: int, shard: int = 0, members: Any = None, **fields: Any) -> FullView:
    listed = [Member(i, 1, UP, f"inproc://{i}") for i in range(n)] if members is None else members
    start = FullView(1, 0, 1, n, shard, 1, False, 0, {}, listed, [], [], "", ProtocolConfig())
    return msgspec.structs.replace(start, **fields)


@pytest.mark.parametrize(
    ("start", "fits"),
    [
        (started(1), True),
        (started(SHARDS_IN_GROUP_MAX), True),
        (started(SHARDS_IN_GROUP_MAX + 1), False),
        (started(3, members=[]), False),
        (started(3, members=[Member(i, 1, UP, "") for i in (0, 1, 1)]), False),
        (started(3, window=-1), False),
        (started(3, shard=3), False),
        (started(3, shard=2), True),
        (started(3, unsettled=[Member(3, 1, UP, "")]), False),
    ],
)
def test_a_place_that_cannot_be_is_refused_and_nothing_of_it_is_kept(start: FullView, fits: bool) -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    event = Received(SCHEDULER_ADDRESS, Views(0, [start]))
    if fits:
        machine.handle(event, 0.0)
        assert machine.state == UP
    else:
        with pytest.raises(BAD_CONTENT):
            machine.handle(event, 0.0)
        assert machine.state == "" and not machine.peers


def test_what_a_peer_says_to_a_process_without_a_place_waits_without_a_word() -> None:
    machine = ShardMachine("p", "inproc://p", 0)
    machine.handle(Tick(), 0.0)
    assert machine.handle(Received(peer(1), m.Ping(asks=True)), 1.0) == []
    assert [event.message for event in machine.early] == [m.Ping(asks=True)]
    effects = machine.handle(Received(SCHEDULER_ADDRESS, Views(0, [started(3)])), 2.0)
    assert sent(effects, m.Ping) == [peer(1)] and not machine.early


# ------------------------------------------------------------------ what is taken late
@pytest.mark.parametrize(
    ("error", "acting", "ends"),
    [(ValueError("so"), False, False), (ValueError("so"), True, True), (RuntimeError("so"), False, True)],
)
def test_what_waited_for_a_view_and_does_not_fit_breaks_its_sender_and_nobody_else(
    cluster: Cluster,
    error: Exception,
    acting: bool,
    ends: bool,
) -> None:
    machine = cluster.shard(0)

    def fails(peer: Any, message: m.Ping, frames: m.Frames) -> None:
        if acting:
            machine.context.checked()
        raise error

    machine.handle(Received(peer(1), m.Reseed(0, 0, machine.view + 2)), cluster.now_ms)
    machine.peers[1].held.clear()
    machine.peers[1].hold(Received(peer(1), m.Ping(asks=True)))
    machine.peers[2].hold(Received(peer(2), m.Ping(asks=False)))
    machine._from_shards[m.Ping] = fails
    event = views(machine, fence(machine))
    if ends:
        with pytest.raises(HalfHandledError):
            machine.handle(event, cluster.now_ms)
        return
    effects = machine.handle(event, cluster.now_ms)
    told = [effect.text for effect in effects if isinstance(effect, Note) and effect.level == "error"]
    assert len(told) == 2 and "took nothing more from it since a Ping that does not fit: so" in told[0]
    assert machine.peers[1].broken and machine.view == event.message.views[0].number  # type: ignore[attr-defined]


# ------------------------------------------------------------------ pushes
def test_a_push_that_is_applied_is_acknowledged_again_whatever_else_is_wrong_with_it(
    cluster: Cluster,
) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    machine.handle(push(1, rows), cluster.now_ms)
    assert machine.watermarks[SOMEBODY.id] == 1
    again = push(1, rows, barrier=2, run=0)
    assert answers(machine, again, cluster.now_ms) == [m.PushAck(machine.durable.get(SOMEBODY.id, 0))]


def test_a_barrier_that_can_never_be_is_refused_with_all_that_waits_before_it(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    first = Address(m.WORKER, 0, 1)
    assert answers(machine, push(1, rows, source=first, barrier=2, run=7, sequence=1), cluster.now_ms) == []
    (refused,) = answers(machine, push(2, rows, source=first, barrier=2, run=0, sequence=1), cluster.now_ms)
    assert isinstance(refused, m.PushRefused) and refused.nowhere and refused.number == 2
    assert not machine.context.workers[0].queue, "a hole would be before what follows"
    machine.handle(push(1, rows, source=Address(m.WORKER, 1, 1), barrier=2, run=7, sequence=1), cluster.now_ms)
    assert machine.watermarks.get(1, 0) == 0, "its partner is gone"
    (refused,) = answers(machine, push(1, rows, source=first, barrier=2, run=0, sequence=1), cluster.now_ms)
    assert isinstance(refused, m.PushRefused) and not machine.context.workers[0].queue


def test_pushes_of_a_barrier_wait_for_a_checkpoint_together(cluster: Cluster) -> None:
    """One that comes before the cut of its worker is not applied with one that comes behind the cut of another."""
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    machine.handle(push(1, rows, source=Address(m.WORKER, 0, 1), barrier=2, run=7, sequence=1), cluster.now_ms)
    stamped = push(1, rows, source=Address(m.WORKER, 1, 1), barrier=2, run=7, sequence=1, checkpoint=1)
    machine.handle(stamped, cluster.now_ms)
    assert not machine.watermarks.get(0, 0) and not machine.watermarks.get(1, 0)
    machine.handle(views(machine, m.CheckpointOver(machine.view + 1, 1, False)), cluster.now_ms)
    assert (machine.watermarks[0], machine.watermarks[1]) == (1, 1)


@pytest.mark.parametrize(("sections", "assign"), [(2, True), (1, False), (2, False)])
def test_whole_records_come_in_one_section_that_is_assigned(cluster: Cluster, sections: int, assign: bool) -> None:
    machine, spec = cluster.shard(0), table(code="2+1")
    rows = own_rows(cluster, 0, 2)
    before = machine.store.coded_rows(0, 0, 40)[1].tobytes()
    parts = [m.Section([0], [1])] * sections
    record = np.ones(machine.store.record_bytes(0) // 4, np.float32).tobytes()
    frames = [part for row in rows[:sections] for part in (np.array([row], np.int64).tobytes(), record)]
    made = m.Push(SOMEBODY.epoch, 1, 0, assign, parts, tables=1, records=True)
    (refused,) = answers(machine, Received(SOMEBODY, made, frames), cluster.now_ms)
    assert isinstance(refused, m.PushRefused)
    assert f"whole records in {sections} sections, assign is {assign}; expected one, to assign" in refused.reason
    assert machine.store.coded_rows(0, 0, 40)[1].tobytes() == before and spec.dim == 4


def test_whole_records_of_several_rows_in_one_section_are_taken(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    record = np.arange(machine.store.record_bytes(0) // 4, dtype=np.float32)
    frames = [np.array(rows, np.int64).tobytes(), record.tobytes() * 2]
    made = m.Push(SOMEBODY.epoch, 1, 0, True, [m.Section([0], [2])], tables=1, records=True)
    assert answers(machine, Received(SOMEBODY, made, frames), cluster.now_ms) == []
    assert machine.watermarks[SOMEBODY.id] == 1
    out = np.empty(2 * record.nbytes, np.uint8)
    machine.store.gather(np.array([0], np.int32), np.array([2], np.int64), np.array(rows, np.int64), out, records=True)
    assert out.tobytes() == record.tobytes() * 2


def test_a_word_to_leave_that_is_for_another_process_is_not_followed(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    assert machine.handle(tell(m.ToldToLeave("another")), cluster.now_ms) == []
    assert not machine.departure.is_asked


def test_what_a_shard_that_is_not_succeeded_has_copied_is_passed_over(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    assert machine.handle(Received(machine.address, m.Copied(9, 1)), cluster.now_ms) == []


def test_what_would_change_a_parity_row_waits_while_the_group_is_halted(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    stripe = next(s for s in machine.placement.classes if 0 in s.data and s.parity[0] == 1)
    snap = m.Snap(machine.view, 5, m.Stripes(stripe.class_id, 0, 1), [1], True)
    machine.context.halted = True
    keys = (b"",)
    assert machine.handle(Received(peer(1), snap, keys), cluster.now_ms) == []
    machine.context.halted = False
    effects = machine.handle(views(machine, fence(machine)), cluster.now_ms)
    assert sent(effects, m.Marker) == [peer(1)]


def test_no_window_is_closed_while_the_group_is_halted(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.handle(push(1, own_rows(cluster, 0, 2)), cluster.now_ms)
    assert machine.context.has_open()
    machine.context.halted = True
    number = machine.context.window_number
    for _ in range(3):
        cluster.now_ms += 10 * machine.config.window_interval_ms
        machine.handle(Tick(), cluster.now_ms)
    assert machine.context.window_number == number
    machine.context.halted = False
    machine.handle(Tick(), cluster.now_ms + 10 * machine.config.window_interval_ms)
    assert machine.context.window_number == number + 1


def test_a_cut_that_cannot_be_is_refused(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    for pushes, epochs, barriers in (({3: [1, 1]}, {3: 1}, {}), ({3: [1, 1, 1]}, {}, {}), ({}, {}, {3: (1, 1)})):
        cut = m.CheckpointCut(machine.view + 1, 1, "sim://u", pushes, epochs, barriers)
        with pytest.raises(ValueError, match="CheckpointCut 1: its workers do not fit, or not 3 shards"):
            machine.handle(views(machine, cut), cluster.now_ms)


def test_a_shard_that_another_process_has_succeeded_ends(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    place = machine.peers[0]
    view = m.Succeeded(machine.view + 1, 0, place.epoch + 1, "inproc://next", 0, {})
    (stop,) = [e for e in machine.handle(views(machine, view), cluster.now_ms) if isinstance(e, Stop)]
    assert stop.kind == LEFT and "another process is shard 0 now, epoch 2, and has all rows" in stop.reason
    assert machine.peers[0].epoch == place.epoch, "nothing else happens"


def test_a_place_that_is_to_be_succeeded_is_refused_by_who_has_not_copied_it() -> None:
    machine = ShardMachine("p", "inproc://p", -1)
    machine.handle(Tick(), 0.0)
    start = msgspec.structs.replace(started(3), succeeds=True)
    effects = machine.handle(Received(SCHEDULER_ADDRESS, Views(0, [start])), 2.0)
    (unfit,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.Unfit)]
    (stop,) = [e for e in effects if isinstance(e, Stop)]
    assert unfit.reason == stop.reason == "was to succeed shard 0, and has not copied it"
    assert not machine.state


def test_a_barrier_is_applied_with_all_its_pushes_and_those_that_differ_are_refused_to_all(
    cluster: Cluster,
) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    one, two = Address(m.WORKER, 0, 1), Address(m.WORKER, 1, 1)
    machine.handle(push(1, rows, source=one, barrier=2, run=7, sequence=1), cluster.now_ms)
    assert machine.watermarks.get(0, 0) == 0
    machine.handle(push(1, rows, source=two, barrier=2, run=7, sequence=1), cluster.now_ms)
    assert (machine.watermarks[0], machine.watermarks[1]) == (1, 1)
    machine.handle(push(2, rows, source=one, barrier=2, run=7, sequence=2), cluster.now_ms)
    effects = machine.handle(push(2, rows, source=two, barrier=2, run=7, sequence=3), cluster.now_ms)
    told = {e.to: e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.PushRefused)}
    assert told.keys() == {one, two} and all(message.nowhere for message in told.values())
    assert (machine.watermarks[0], machine.watermarks[1]) == (1, 1)
    assert not machine.context.workers[0].queue and not machine.context.workers[1].queue


def test_while_a_peer_has_yet_to_say_what_it_wants_seeded_nothing_is_applied(cluster: Cluster) -> None:
    """My deltas to it would be wrong."""
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    stream, machine.peers[1].stream = machine.peers[1].stream, JOINED_BLIND
    machine.handle(push(1, rows), cluster.now_ms)
    assert machine.watermarks.get(SOMEBODY.id, 0) == 0 and len(machine.context.workers[SOMEBODY.id].queue) == 1
    machine.peers[1].stream = stream
    machine.handle(Tick(), cluster.now_ms)
    assert machine.watermarks[SOMEBODY.id] == 1


def test_pushes_wait_when_so_many_bytes_of_windows_are_not_stable(cluster: Cluster) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    limit = machine.config.unstable_bytes_max
    for number, kept, applied in ((1, limit - 1, 1), (2, limit, 1), (2, 0, 2)):
        machine.context.unstable_bytes = kept
        machine.handle(push(number, rows), cluster.now_ms)
        assert machine.watermarks[SOMEBODY.id] == applied
        machine.context.unstable_bytes = 0 if kept else machine.context.unstable_bytes


@pytest.mark.parametrize(("rates", "why"), [
    ({1: 0.5}, "a learning rate of table 1: there are 1"), ({0: -0.5}, "table 't': learning rate -0.5"), ({0: 0.5}, ""),
])  # fmt: skip
def test_learning_rates_at_which_no_step_can_be_taken_are_refused(
    cluster: Cluster,
    rates: dict[int, float],
    why: str,
) -> None:
    machine, rows = cluster.shard(0), own_rows(cluster, 0, 2)
    told = answers(machine, push(1, rows, rates=rates), cluster.now_ms)
    if why:
        (refused,) = told
        assert isinstance(refused, m.PushRefused) and why in refused.reason
    assert machine.watermarks.get(SOMEBODY.id, 0) == (0 if why else 1)


# ------------------------------------------------------------------ requests that a shard is behind of
def behind(machine: ShardMachine, tables: list[list[int]], known: int | None) -> bool:
    """Whether a push (a pull, if ``known`` is None) that names these tables is dropped, to be sent again."""
    sections = [m.Section(some, [0] * len(some)) for some in tables]
    request: Any = m.Pull(1, 0, False, sections) if known is None else m.Push(1, 1, 0, False, sections, tables=known)
    return machine.workers.is_behind(SOMEBODY, request)


@pytest.mark.parametrize(
    ("tables", "known", "is_behind"),
    [
        ([], 1, False),
        ([[0]], 1, False),
        ([[0]], None, False),
        ([[1]], 2, True),
        ([[1]], None, True),
        ([[0, 1]], 2, True),
        ([[1, 0]], 2, True),
        ([[0], [1]], 2, True),
        ([], 9, False),
        ([], None, False),
    ],
)
def test_a_request_that_names_a_table_of_a_view_that_is_missing_here_is_sent_again(
    cluster: Cluster,
    tables: list[list[int]],
    known: int | None,
    is_behind: bool,
) -> None:
    assert behind(cluster.shard(0), tables, known) == is_behind


@pytest.mark.parametrize(
    ("known", "again", "is_behind"), [(0, False, False), (1, False, True), (1, True, False), (0, True, False)]
)
def test_while_a_shard_knows_of_no_table_a_push_of_one_that_does_would_be_kept_nowhere_else(
    known: int, again: bool, is_behind: bool
) -> None:
    machine = Cluster(3, ProtocolConfig(reinitialise_lost=again)).shard(0)
    assert behind(machine, [], known) == is_behind
    assert not behind(machine, [], None)
    uncoded = Cluster(3)
    uncoded.create(table(code="2+0"))
    assert not behind(uncoded.shard(0), [[0]], 1), "it knows of a table"


# ------------------------------------------------------------------ what it says of others
def test_members_that_were_not_heard_for_the_timeout_are_named_and_no_others(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    machine.context.awake_ms = 50_000.0
    limit = machine.config.link_timeout_ms
    machine.peers[1].heard_awake_ms, machine.peers[2].heard_awake_ms = 50_000.0 - limit, 49_999.0 - limit
    assert machine.heartbeats.unheard() == [2]
    machine.peers[1].heard_awake_ms -= 1.0
    assert machine.heartbeats.unheard() == [1, 2]


@pytest.mark.parametrize(("percent", "shares"), [(100, False), (99, True), (30, True)])
def test_a_recovery_takes_all_of_the_time_where_it_may(cluster: Cluster, percent: int, shares: bool) -> None:
    machine = cluster.shard(0)
    machine.context.config = ProtocolConfig(recovery_share_percent=percent)
    machine.context.worked_ms = machine.context.now_ms
    assert machine.context.shares_time() == shares
    assert machine.context.rows_at_once(16_384) == (4_096 if shares else 16_384)
    machine.context.worked_ms = machine.context.now_ms - machine.config.foreground_ms
    assert not machine.context.shares_time(), "no worker has asked for a while"


# ------------------------------------------------------------------ lives of workers
def test_an_earlier_life_of_a_worker_is_told_that_it_is_over_and_a_later_one_takes_its_place(cluster: Cluster) -> None:
    context, workers = cluster.shard(0).context, cluster.shard(0).workers
    first, second = Address(m.WORKER, 7, 1), Address(m.WORKER, 7, 2)
    known = workers.known(first)
    assert known is not None and workers.known(first) is known
    waits = QueuedPush(7, 1, m.Push(1, 1, 0, False, []), (), first)
    known.queue.append(waits)
    context.effects = []
    assert workers.known(second) is known and known.address == second and not known.queue, "its pushes are of no use"
    assert context.effects == [] and workers.known(first) is None
    (told,) = [effect for effect in context.effects if isinstance(effect, Send)]
    assert told.to == first and told.message.reason == "worker 7 has been started again (epoch 2)"

"""The machine of `ecrec verify`, and of who keeps asking how the cluster is: whom they ask, when again, what they make
of answers; and the small machine of a shard that was told to end."""

from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import table

from ecrec.protocol.config import NEVER_MS, ProtocolConfig
from ecrec.protocol.departure import SAID_MS, Departure
from ecrec.protocol.events import LEFT, LEFT_EARLY, Connect, Disconnect, Note, Received, Send, Stop, Tick
from ecrec.protocol.messages import (
    DOWN,
    LOCATED,
    SCHEDULER_ADDRESS,
    SHARD,
    TOOL,
    UNSURE,
    UP,
    Address,
    ClusterQuery,
    ClusterState,
    HistoryEntry,
    Leave,
    LeaveWaits,
    Scrub,
    ScrubBusy,
    ScrubResult,
    ShardFigures,
)
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.scrub_tool import AGAIN_MS, QUESTION_S, ROWS_MAX, SILENCE_MS, BadStripe, ScrubMachine
from ecrec.protocol.tables import spec_bytes
from ecrec.protocol.watch import EVERY_MS, WatchMachine

N = 3
CODED, WIDE, PLAIN = table("t", code="2+1"), table("wide", dim=64, code="2+1"), table("plain", dim=512, code="2+0")
NOBODY: Any = (np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.uint8))


def cluster_of(*tables: TableSpec, groups: int = 1, epochs: Any = None, down: tuple[int, ...] = ()) -> ClusterState:
    shards = [
        ShardFigures(i, (epochs or {}).get(i, 1), DOWN if i in down else UP, f"inproc://{i}", 0.0, {}, {}, {})
        for i in range(N * groups)
    ]
    return ClusterState(1, N, groups, [1] * groups, shards, {}, list(tables), [], 0, "", [], 0, 0, [], {}, {})


class Tool:
    """A scrub of a cluster whose shards all run."""

    def __init__(self, *tables: TableSpec, groups: int = 1, **options: Any) -> None:
        state = cluster_of(*(tables or (CODED,)), groups=groups)
        self.machine = ScrubMachine(Address(TOOL, 1, 0), state, **options)
        self.now_ms = 1_000.0
        self.connected = self.machine.update(state)

    def tick(self, now_ms: float) -> list[tuple[int, Scrub]]:
        self.now_ms = now_ms
        return self._asked(self.machine.handle(Tick(), now_ms))

    def answers(self, question: Scrub, last: int, size: int = 40, frames: Any = NOBODY, **more: Any) -> Any:
        fields: dict[str, Any] = {"stripes": 5, "parity_rows": 5, "bytes_read": 0, "repaired": False, **more}
        result = ScrubResult(question.request, question.class_id, last, size, **fields)
        return self.says(result, [frame.tobytes() for frame in frames])

    def says(self, message: Any, frames: Any = ()) -> list[tuple[int, Scrub]]:
        return self._asked(self.machine.handle(Received(Address(SHARD, 0, 1), message, frames), self.now_ms))

    @staticmethod
    def _asked(effects: list[Any]) -> list[tuple[int, Scrub]]:
        assert all(isinstance(effect, Send) and isinstance(effect.message, Scrub) for effect in effects)
        return [(effect.to.id, effect.message) for effect in effects]


# ------------------------------------------------------------------ whom it asks
def test_each_class_is_asked_of_the_first_that_holds_its_parity_one_question_at_a_time_of_each_shard() -> None:
    tool = Tool(CODED, table("more", code="1+1"))
    assert {effect.address.id for effect in tool.connected if isinstance(effect, Connect)} == {0, 1, 2}
    asked = tool.tick(1_000.0)
    assert sorted(shard for shard, _ in asked) == [0, 1, 2], "six classes, and each shard leads two"
    assert tool.tick(1_001.0) == []
    more = tool.answers(asked[0][1], 40)
    assert [shard for shard, _ in more] == [asked[0][0]] and more[0][1].class_id != asked[0][1].class_id


def test_tables_without_parity_have_nothing_to_compare() -> None:
    tool = Tool(PLAIN)
    assert tool.machine.is_empty and tool.machine.done and tool.machine.outcome.ok is None
    assert not Tool(CODED, PLAIN).machine.is_empty


def test_a_class_is_gone_through_to_its_end_and_what_was_found_adds_up() -> None:
    tool = Tool()
    asked = dict(tool.tick(1_000.0))
    for shard, question in asked.items():
        assert question == Scrub(question.request, question.class_id, 0, ROWS_MAX, False)
        ((again, following),) = tool.answers(question, 16, bytes_read=100)
        assert again == shard and following.first == 16 and following.request != question.request
        assert tool.answers(question, 40) == [], "that question was answered"
        assert not tool.machine.done
        assert tool.answers(following, 40, bytes_read=50) == []
    assert tool.machine.done and tool.machine.waits_for == ""
    tool.says(ScrubResult(0, 0, 40, 40, 5, 5, 0, False), [b"", b"", b""])  # no question had this number
    outcome = tool.machine.outcome
    assert (outcome.stripes, outcome.parity_rows, outcome.bytes_read, outcome.ok) == (30, 30, 450, True)


def test_a_busy_shard_is_asked_again_after_a_moment_and_a_silent_one_much_later() -> None:
    tool = Tool()
    asked = tool.tick(1_000.0)
    shard, question = asked[0]
    assert tool.says(ScrubBusy(question.request, "one is down")) == [] and tool.machine.waits_for == "one is down"
    assert tool.tick(999.0 + AGAIN_MS) == []
    ((again, following),) = tool.tick(1_000.0 + AGAIN_MS)
    assert (again, following.class_id) == (shard, question.class_id)
    assert tool.tick(999.0 + SILENCE_MS) == []
    assert {some for some, _ in tool.tick(1_000.0 + SILENCE_MS)} == {0, 1, 2} - {shard}


def test_words_that_answer_nothing_are_passed_over() -> None:
    tool = Tool()
    ((_, question), *_) = tool.tick(1_000.0)
    assert tool.says(Leave("p")) == []
    assert tool.says(ScrubBusy(99, "strange")) == [] and tool.machine.refusal == ""
    tool.answers(question, 40)
    late = ScrubResult(question.request, question.class_id, 40, 40, 5, 5, 0, False)
    assert tool.says(late, [b"", b"", b""]) == [] and tool.machine.outcome.stripes == 5
    assert tool.machine.handle(Disconnect(Address(SHARD, 0, 1)), 0.0) == []  # type: ignore[arg-type]


# ------------------------------------------------------------------ members come and go
def test_shards_that_are_down_are_waited_for_and_a_replacement_is_asked_anew() -> None:
    tool = Tool()
    asked = dict(tool.tick(1_000.0))
    tool.answers(asked[1], 16)
    effects = tool.machine.update(cluster_of(CODED, down=(1,)))
    assert effects == [Disconnect(Address(SHARD, 1, 1))]
    assert tool.machine.waits_for == "shard 1 down"
    assert 1 not in dict(tool.tick(9_000.0))
    assert tool.machine.update(cluster_of(CODED, down=(1,))) == [], "it is known"
    effects = tool.machine.update(cluster_of(CODED, epochs={1: 2}))
    assert effects == [Connect(Address(SHARD, 1, 2), "inproc://1")]
    assert dict(tool.tick(20_000.0))[1].first == 0, "its parity rows are other ones"
    assert tool.machine.outcome.restarts == 1
    assert tool.machine.update(cluster_of(CODED, epochs={1: 2})) == []
    effects = tool.machine.update(cluster_of(CODED, epochs={1: 3}))
    assert effects == [Disconnect(Address(SHARD, 1, 2)), Connect(Address(SHARD, 1, 3), "inproc://1")]
    tool.machine.update(cluster_of(CODED, down=(0, 1)))
    assert tool.machine.waits_for == "shards 0, 1 down"


def test_what_was_found_of_a_class_that_begins_again_counts_no_more_but_for_what_was_repaired() -> None:
    tool = Tool(repair=True)
    asked = dict(tool.tick(1_000.0))
    assert asked[1].repair
    wrong = np.array([3, 4], np.uint64), np.array([2, 0], np.uint8), np.array([LOCATED, UNSURE], np.uint8)
    tool.answers(asked[1], 16, frames=wrong, repaired=True)
    assert [stripe.repaired for stripe in tool.machine.outcome.bad] == [True, False]
    assert len(tool.machine.outcome.unrepaired) == 1 and tool.machine.outcome.ok is False
    tool.machine.update(cluster_of(CODED, epochs={1: 2}))
    assert [stripe.repaired for stripe in tool.machine.outcome.bad] == [True] and tool.machine.outcome.stripes == 0


def test_a_wrong_row_is_named_by_its_table_stripe_shard_and_row() -> None:
    tool = Tool(CODED, WIDE, groups=2)
    asked = dict(tool.tick(1_000.0))
    key = 1 << 48 | 4
    wrong = np.array([key, 5], np.uint64), np.array([1, 2], np.uint8), np.array([LOCATED, UNSURE], np.uint8)
    tool.answers(asked[3], 40, frames=wrong)
    data, parity = tool.machine.outcome.bad
    assert data == BadStripe("wide", 9, 3 + (4 + 1) % N, 1, 19, None, True, False)
    assert parity == BadStripe("t", 11, 3 + (5 + 2) % N, 2, None, 0, False, False)


# ------------------------------------------------------------------ a rate
@pytest.mark.parametrize("rate_mb_s", [0.001, 1.0, 1e6])
def test_with_a_rate_a_question_asks_for_what_may_be_read_in_its_time(rate_mb_s: float) -> None:
    tool = Tool(CODED, WIDE, PLAIN, rate_mb_s=rate_mb_s)
    ((_, question),) = tool.tick(1_000.0)
    widest = 3 * spec_bytes(WIDE) / WIDE.rows
    expected = rate_mb_s * 1e6 * QUESTION_S / widest
    assert question.rows_max == max(1, min(ROWS_MAX, int(expected)))


def test_with_a_rate_there_is_one_question_at_a_time_and_a_pause_after_it() -> None:
    tool = Tool(rate_mb_s=1.0)
    ((_, question),) = tool.tick(1_000.0)
    assert tool.tick(1_001.0) == []
    tool.now_ms = 1_100.0
    assert tool.answers(question, 40, bytes_read=300_000) == [], "300 kB take 300 ms from when they were asked for"
    assert tool.tick(1_299.0) == []
    ((_, following),) = tool.tick(1_300.0)
    tool.now_ms = 9_000.0
    assert len(tool.answers(following, 40, bytes_read=1_000)) == 1, "its time is over"
    fast = Tool(rate_mb_s=1.0)
    ((_, first),) = fast.tick(1_000.0)
    fast.answers(first, 16, bytes_read=500_000)
    ((_, second),) = fast.tick(1_500.0)
    fast.now_ms = 1_501.0
    fast.answers(second, 32, bytes_read=500_000)
    assert fast.tick(1_999.0) == [] and fast.tick(2_000.0)


def test_what_was_read_in_vain_counts_for_the_rate_too() -> None:
    tool = Tool(rate_mb_s=1.0)
    ((_, question),) = tool.tick(1_000.0)
    tool.now_ms = 1_010.0
    assert tool.says(ScrubBusy(question.request, "more rows are wrong than are judged at a time", 500_000)) == []
    assert tool.tick(1_499.0) == [] and tool.tick(1_500.0)


# ------------------------------------------------------------------ who keeps asking
def test_a_watch_asks_from_time_to_time_and_takes_the_answer_to_its_last_question() -> None:
    watch = WatchMachine(Address(TOOL, 1, 0))
    for now_ms, request in ((0.0, 1), (EVERY_MS - 1.0, None), (EVERY_MS, 2), (2 * EVERY_MS - 1.0, None)):
        asked = watch.handle(Tick(), now_ms)
        assert asked == ([Send(SCHEDULER_ADDRESS, ClusterQuery(request))] if request else [])
    assert watch.handle(Disconnect(Address(SHARD, 0, 1)), 9_000.0) == []  # type: ignore[arg-type]
    assert watch._asked_ms == EVERY_MS, "it asks at a tick"
    state = cluster_of(CODED)
    for request, seen in ((1, False), (3, False), (2, True)):
        watch.handle(Received(SCHEDULER_ADDRESS, msgspec.structs.replace(state, request=request)), 150.0)
        assert (watch.seen is not None) == seen
    assert watch.seen is not None and watch.seen.asked_at == EVERY_MS / 1e3


def test_a_watch_knows_each_event_once_also_of_those_that_the_scheduler_has_forgotten() -> None:
    watch = WatchMachine(Address(TOOL, 1, 0))
    events = [HistoryEntry(float(i), "up", i, 1, "") for i in range(6)]
    for first, last in ((0, 3), (1, 4), (1, 4), (3, 6)):
        watch.handle(Tick(), EVERY_MS * (watch._request + 1))
        history = msgspec.structs.replace(cluster_of(CODED), request=watch._request, history=events[first:last])
        watch.handle(Received(SCHEDULER_ADDRESS, history), 0.0)
    assert watch.seen is not None and watch.seen.state.history == events
    watch.handle(Tick(), EVERY_MS * (watch._request + 1))
    other = msgspec.structs.replace(
        cluster_of(CODED), request=watch._request, history=events[1:2], cluster="another at the same endpoint"
    )
    watch.handle(Received(SCHEDULER_ADDRESS, other), 0.0)
    assert watch.seen.state.history == events[1:2]


# ------------------------------------------------------------------ told to end
CONFIG = ProtocolConfig()


def test_a_process_without_a_place_ends_at_once_and_one_with_a_place_asks_once() -> None:
    (stop,) = Departure("p").begin("it", False, 0.0)
    assert isinstance(stop, Stop) and stop.kind == LEFT
    one = Departure("p")
    _, asked = one.begin("it", True, 5.0)
    assert asked == Send(SCHEDULER_ADDRESS, Leave("p")) and one.is_asked
    assert one.begin("it", True, 6.0) == [], "a second signal is the process's own matter"
    assert Departure("p").on_tick(CONFIG, 9_000.0) == [], "nobody told it to end"


def test_it_asks_again_until_it_is_let_go() -> None:
    one = Departure("p")
    one.begin("it", True, 0.0)
    asked = [now_ms for now_ms in (20.0, 99.0, 100.0, 199.0, 200.0) if one.on_tick(CONFIG, now_ms)]
    assert asked == [100.0, 200.0]


@pytest.mark.parametrize(("after_ms", "ends"), [(0.0, False), (1.0, True)])
def test_it_waits_for_as_long_as_it_was_told_and_then_ends_with_the_reason(after_ms: float, ends: bool) -> None:
    one = Departure("p", timeout_ms=5_000.0)
    one.begin("it", True, 100.0)
    one.answered(LeaveWaits("data would be lost"), 5_100.0)
    stops = [effect for effect in one.on_tick(CONFIG, 5_100.0 + after_ms) if isinstance(effect, Stop)]
    assert bool(stops) == ends
    if ends:
        assert stops[0].kind == LEFT_EARLY and "data may be lost: data would be lost" in stops[0].reason
    assert NEVER_MS > 1e12


@pytest.mark.parametrize(("silent_ms", "why"), [(CONFIG.heartbeat_timeout_ms, "because"), (
    CONFIG.heartbeat_timeout_ms + 1.0, "the scheduler has not answered for 1 s")])  # fmt: skip
def test_people_are_told_why_it_serves_on_from_time_to_time(silent_ms: float, why: str) -> None:
    one = Departure("p")
    one.begin("it", True, 0.0)
    one.answered(LeaveWaits("because"), 1_000.0)
    told = []
    for now_ms in (1_000.0 + silent_ms, 999.0 + silent_ms + SAID_MS, 1_000.0 + silent_ms + SAID_MS):
        told.append([e.text for e in one.on_tick(CONFIG, now_ms) if isinstance(e, Note)])
    assert [bool(texts) for texts in told] == [True, False, True] and why in told[0][0]

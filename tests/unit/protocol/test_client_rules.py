"""A worker's machine, one rule at a time: what of the scheduler and of shards it takes, what it asks again, what it
refuses."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import pytest
from test_client import CONFIG, FIRST, GRADIENTS, ROWS, Driver, ready

from ecrec.errors import RefusedError
from ecrec.protocol import messages as m
from ecrec.protocol.channel import Channel, Kept, WatermarkError
from ecrec.protocol.client import GROUPS_MAX, ClientMachine
from ecrec.protocol.client_leases import DONE_TOLD_MAX, ClientLeases
from ecrec.protocol.client_runs import ClientRuns
from ecrec.protocol.client_saves import ClientSaves
from ecrec.protocol.client_tables import ClientTables
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnect, Failed, PullFailed, Received, Send, Tick
from ecrec.protocol.leases import LEASES_AHEAD_MAX
from ecrec.protocol.messages import (
    CURSOR_BITS,
    DOWN,
    SCHEDULER,
    SHARD,
    TOOL,
    UP,
    WORKERS_MAX,
    Address,
    CreateTable,
    DataLost,
    Dataset,
    FullView,
    InitialiseTable,
    JoinRun,
    Leased,
    LeaseSplit,
    LeaveRun,
    Member,
    NoSplit,
    Origin,
    PullRefused,
    PushAck,
    Rows,
    RunJoined,
    RunOver,
    ShardDown,
    ShardUp,
    TableInitial,
    TableReady,
    View,
    Views,
    Welcome,
    WorkerCensus,
    WorkerFenced,
    WorkerStatus,
)
from ecrec.protocol.placement import SHARDS_IN_GROUP_MAX, TABLES_MAX

DATA = Dataset("d", 100, 100, 10)
AGAIN_MS = 100.0


def started(number: int = 1, group: int = 0, groups: int = 1, n: int = 3, **fields: Any) -> FullView:
    members = [Member(i, 1, UP, f"tcp://{group}.{i}") for i in range(n)]
    start = FullView(number, group, groups, n, -1, 7, False, 0, {}, members, [], [], "", CONFIG)
    return msgspec.structs.replace(start, **fields)


def tool() -> ClientMachine:
    return ClientMachine(1, "p", TOOL)


# ------------------------------------------------------------------ views that cannot be
@pytest.mark.parametrize(
    ("view", "group", "why"),
    [
        (started(), 0, ""),
        (started(), 1, "views of group 1, there are 1"),
        (started(), -1, "views of group -1, there are 1"),
        (started(members=[]), 0, "FullView: 0 members"),
        (started(members=[Member(0, 1, UP, "")] * 3), 0, "FullView: 3 members"),
        (started(n=1), 0, ""),
        (started(n=0, members=[]), 0, "FullView: 0 members in 1 group"),
        (started(n=SHARDS_IN_GROUP_MAX), 0, ""),
        (started(n=SHARDS_IN_GROUP_MAX + 1), 0, f"group(s) of {SHARDS_IN_GROUP_MAX + 1}"),
        (started(groups=GROUPS_MAX), 0, ""),
        (started(groups=GROUPS_MAX + 1), 0, f"there are {GROUPS_MAX + 1}"),
        (started(groups=0), 0, "there are 0"),
    ],
)
def test_a_first_view_that_cannot_be_is_refused(view: FullView, group: int, why: str) -> None:
    machine = ClientMachine(1, "p")
    if not why:
        machine.handle(Received(Address(SCHEDULER, 0, 0), Views(group, [view])), 0.0)
        assert machine.n == view.n
        return
    with pytest.raises(ValueError, match=r"FullView|views|shard") as error:
        machine.handle(Received(Address(SCHEDULER, 0, 0), Views(group, [view])), 0.0)
    assert why in str(error.value) and machine.n == 0


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (started(2, n=4), "FullView: 4 members in 1 group(s) of 4"),
        (started(2, groups=2), "in 2 group(s) of 3"),
        (ShardDown(2, 2, 1), ""),
        (ShardDown(2, 3, 1), "ShardDown of shard 3, in a group of 3"),
        (ShardDown(2, -1, 1), "ShardDown of shard -1, in a group of 3"),
        (ShardUp(2, 3, 2, "", 0, {}), "ShardUp of shard 3, in a group of 3"),
    ],
)
def test_a_later_view_that_does_not_fit_the_first_one_is_refused(view: View, why: str) -> None:
    driver = Driver()
    driver.view(started())
    if not why:
        driver.view(view)
        return
    with pytest.raises(ValueError, match=r"FullView|views|shard") as error:
        driver.view(view)
    assert why in str(error.value)


def test_views_that_come_before_the_first_one_are_passed_over_whatever_they_are() -> None:
    for view, group in ((ShardDown(0, 77, 1), 0), (ShardDown(1, 0, 1), 5), (WorkerFenced(0, 1, 9), 0)):
        driver = Driver()
        assert driver.view(view, group) == [] and not driver.machine.failed


def test_first_views_come_in_any_order_of_their_groups_and_each_is_taken_once() -> None:
    driver = Driver(groups=2)
    driver.view(started(5, group=1, groups=2), 1)
    assert driver.view(ShardDown(6, 0, 1), 0) == [], "that group is not known yet"
    assert driver.machine._views == [-1, 5]
    driver.view(started(3, group=0, groups=2), 0)
    for group, number in ((1, 5), (1, 4), (0, 3), (0, 2)):
        assert driver.view(started(number, group=group, groups=2, tables=[FIRST]), group) == []
    assert driver.machine._views == [3, 5] and driver.machine.tables == {}


def test_an_older_incarnation_in_a_view_is_passed_over() -> None:
    driver = Driver()
    driver.view(started())
    driver.view(ShardDown(2, 1, 1))
    driver.view(ShardUp(3, 1, 5, "tcp://new", 0, {}))
    for epoch, state in ((4, UP), (4, DOWN), (5, UP)):
        members = [Member(i, 1 if i != 1 else epoch, UP if i != 1 else state, f"tcp://0.{i}") for i in range(3)]
        effects = driver.view(started(driver.machine._views[0] + 1, members=members))
        assert not any(isinstance(effect, Disconnect) for effect in effects)
        assert driver.machine.epoch_of(1) == 5 and driver.machine.down() == {}
    members = [Member(i, 1 if i != 1 else 5, UP if i != 1 else DOWN, f"tcp://0.{i}") for i in range(3)]
    driver.view(started(driver.machine._views[0] + 1, members=members))
    assert driver.machine.down().keys() == {1}


def test_a_first_view_of_a_group_that_has_lost_data_ends_the_session() -> None:
    driver = Driver()
    (failed,) = driver.view(started(lost="all rows"))
    assert isinstance(failed, Failed) and driver.machine.failed_kind == "lost"
    assert driver.machine.n == 0, "nothing of it is taken"


def test_views_after_one_that_ends_the_session_are_not_taken() -> None:
    driver = ready()
    effects = driver.scheduler(Views(0, [DataLost(1, "all rows"), ShardDown(2, 1, 1)]))
    assert [type(effect) for effect in effects] == [Failed]


@pytest.mark.parametrize(
    ("worker", "epoch", "is_over"), [(1, 7, True), (1, 8, True), (1, 6, False), (2, 7, False), (2, 9, False)]
)
def test_a_life_that_is_over_ends_the_session_and_that_of_another_worker_does_not(
    worker: int, epoch: int, is_over: bool
) -> None:
    driver = ready()
    driver.view(WorkerFenced(1, worker, epoch))
    assert driver.machine.failed_kind == ("fenced" if is_over else "")
    machine = tool()
    for view in (started(), WorkerFenced(2, worker, epoch)):
        machine.handle(Received(Address(SCHEDULER, 0, 0), Views(0, [view])), 0.0)
    assert not machine.failed, "a tool has no lives"
    machine = ClientMachine(1, "p")
    for view in (started(epoch=0), WorkerFenced(2, worker, epoch)):
        machine.handle(Received(Address(SCHEDULER, 0, 0), Views(0, [view])), 0.0)
    assert not machine.failed, "it has no epoch yet"


def test_a_scheduler_whose_state_was_made_again_is_followed_from_its_first_full_view_on() -> None:
    driver = Driver()
    driver.scheduler(Views(0, [started(5)], Origin("c", 0, 1)))
    driver.scheduler(Views(0, [ShardDown(6, 1, 1)], Origin("c", 1, 1)))
    assert driver.machine._views == [5] and driver.machine.origin == Origin("c", 0, 1)
    driver.scheduler(Views(0, [started(4)], Origin("c", 1, 1)))
    assert driver.machine._views == [4] and driver.machine.origin == Origin("c", 1, 1)


def test_the_newest_state_that_a_worker_has_heard_of_does_not_fall() -> None:
    """It would then be ended by a scheduler that knows less than it."""
    driver = Driver()
    driver.scheduler(Views(0, [started(5)], Origin("c", 1, 7)))
    driver.scheduler(Views(0, [], Origin("c", 1, 3)))
    assert driver.machine.origin == Origin("c", 1, 7)
    driver.scheduler(m.Fenced("you are another", Origin("c", 1, 3)))
    assert not driver.machine.failed
    driver.scheduler(Views(0, [], Origin("c", 1, 8)))
    assert driver.machine.origin == Origin("c", 1, 8)
    driver.scheduler(Views(0, [started(6)], Origin("c", 2, 1)))
    assert driver.machine.origin == Origin("c", 2, 1)


def test_who_is_asked_for_its_splits_tells_them_if_it_is_a_worker_that_has_a_life() -> None:
    driver = Driver()
    assert driver.scheduler(m.Census()) == []
    driver.view(started())
    (told,) = driver.scheduler(m.Census())
    assert isinstance(told, Send) and told.message == WorkerCensus("p", Origin(), 0, 0, [], 0)
    machine = tool()
    machine.handle(Received(Address(SCHEDULER, 0, 0), Views(0, [started()])), 0.0)
    assert machine.epoch == 7 and machine.handle(Received(Address(SCHEDULER, 0, 0), m.Census()), 0.0) == []


# ------------------------------------------------------------------ checkpoints
def heartbeat(driver: Driver) -> WorkerStatus:
    """What the scheduler is told next."""
    (status,) = [
        effect.message for effect in driver.tick(1_000.0)
        if isinstance(effect, Send) and isinstance(effect.message, WorkerStatus)
    ]  # fmt: skip
    return status


def test_the_last_push_before_a_checkpoint_is_told_of_shards_that_know_of_this_life() -> None:
    driver = Driver()
    driver.view(started())
    for shard, made in ((0, 4), (1, 7)):
        driver.shard(shard, Welcome(made, made))
    (told,) = driver.view(m.CheckpointAsked(2, 5))
    assert isinstance(told, Send) and told.message.checkpoint == 5 and told.message.pushed == {0: 4, 1: 7}
    driver.shard(2, Welcome(9, 9))
    assert heartbeat(driver).pushed == {0: 4, 1: 7, 2: 9}


def test_of_a_checkpoint_that_is_heard_of_again_or_late_nothing_is_taken() -> None:
    """Pushes made since come after it, also when somebody says again that it began."""
    driver = ready()
    driver.push()
    driver.view(m.CheckpointAsked(1, 5))
    driver.push()
    for number, late in ((2, 5), (3, 4)):
        assert driver.view(started(number, checkpoint=late)) == []
        status = heartbeat(driver)
        assert (status.checkpoint, status.pushed) == (5, {0: 1, 1: 1, 2: 1})
    driver.view(m.CheckpointAsked(4, 6))
    status = heartbeat(driver)
    assert (status.checkpoint, status.pushed) == (6, {0: 2, 1: 2, 2: 2})
    driver.view(m.CheckpointOver(5, 6))
    assert heartbeat(driver).pushed == {}


def test_a_tool_takes_no_part_in_checkpoints() -> None:
    driver = Driver(role=TOOL)
    driver.view(started())
    assert driver.view(m.CheckpointAsked(2, 5)) == []
    status = heartbeat(driver)
    assert (status.checkpoint, status.pushed) == (0, {})


def test_a_checkpoint_that_no_message_can_ask_for_is_refused_at_once() -> None:
    driver = ready()
    for more in ({"after": m.CHECKPOINTS_MAX + 1}, {"base": -1}):
        with pytest.raises(RefusedError, match="a checkpoint to 'sim://x' cannot be asked for"):
            driver.machine.save("sim://x", 1.0, **more)
        assert not driver.machine.saves.asking
    (asked,) = driver.machine.save("sim://x", 1.0, after=m.CHECKPOINTS_MAX)
    assert isinstance(asked, Send) and isinstance(asked.message, m.Save)


def test_a_checkpoint_is_asked_for_again_after_a_while_until_it_is_answered() -> None:
    for answer, is_begun in ((m.SaveBegun, True), (m.Refused, False)):
        saves, asked = ClientSaves(), m.Save(3, "sim://x", 1.0)
        saves.ask(asked, 5_000.0)
        assert saves.on_tick(5_000.0 + AGAIN_MS - 1.0, AGAIN_MS) == []
        for now_ms, is_sent in ((5_100.0, True), (5_199.0, False), (5_200.0, True)):
            assert saves.on_tick(now_ms, AGAIN_MS) == ([Send(m.SCHEDULER_ADDRESS, asked)] if is_sent else [])
        for request in (2, 3):
            assert saves.asking
            saves.on_begun(answer(request, 7)) if is_begun else saves.on_refused(request, "no")
        assert not saves.asking and (saves.checkpoint, saves.refusal) == ((7, "") if is_begun else (0, "no"))
        assert saves.on_tick(900.0, AGAIN_MS) == []


# ------------------------------------------------------------------ the end
def test_a_worker_says_that_it_ends_when_all_is_durable_and_who_has_no_life_says_nothing() -> None:
    driver = ready()
    driver.push()
    with pytest.raises(RuntimeError, match="worker 1: its pushes are not durable yet"):
        driver.machine.say_goodbye()
    for shard in range(3):
        driver.shard(shard, PushAck(1))
    (said,) = driver.machine.say_goodbye()
    assert isinstance(said, Send) and said.message.leaves and said.to.role == SCHEDULER
    assert not heartbeat(driver).leaves
    assert ClientMachine(1, "p").say_goodbye() == []
    driver = Driver(role=TOOL)
    driver.view(started())
    assert driver.machine.epoch and driver.machine.say_goodbye() == []


# ------------------------------------------------------------------ changes for readers
def test_a_shard_is_asked_what_changed_until_it_has_answered_just_that() -> None:
    driver = Driver(role=TOOL)
    driver.view(started())

    def asked(effects: Any) -> list[tuple[Address, int]]:
        return [(each.to, each.message.request) for each in effects if isinstance(each.message, m.AskChanges)]

    for shard in (0, 1):
        assert asked(driver.machine.ask_changes(shard, 5, 1, 0, 0, (0, 0, 0))) == [
            (Address(SHARD, shard, 1), shard + 1)
        ]
    assert asked(driver.machine.ask_changes(0, 5, 1, 0, 0, (0, 0, 0))) == [(Address(SHARD, 0, 1), 3)]
    again_ms = driver.machine.config.resend_ms
    assert asked(driver.tick(again_ms - 1.0)) == []
    assert asked(driver.tick(1.0)) == [(Address(SHARD, 0, 1), 3), (Address(SHARD, 1, 1), 2)]
    driver.shard(0, m.Changed(1, 9))
    driver.shard(1, m.Changed(3, 9))
    assert driver.machine.changes.answers == {}, "of questions that were asked before, or elsewhere"
    driver.shard(0, m.Changed(3, 9), frames=(b"rows", b"weights"))
    answer = driver.machine.changes.answers[0]
    assert (answer.epoch, answer.message.until, answer.frames) == (1, 9, (b"rows", b"weights"))
    assert asked(driver.tick(again_ms)) == [(Address(SHARD, 1, 1), 2)]
    driver.view(ShardDown(2, 1, 1))
    assert asked(driver.tick(again_ms)) == []
    driver.view(ShardUp(3, 1, 2, "tcp://new", 0, {}))
    assert asked(driver.tick(again_ms)) == [(Address(SHARD, 1, 2), 2)]


# ------------------------------------------------------------------ what is asked
def test_nothing_is_asked_for_before_the_cluster_is_known_or_that_is_not_for_a_tool() -> None:
    driver = Driver()
    with pytest.raises(RuntimeError, match="the cluster is not known yet"):
        driver.machine.pull({0: (ROWS[0], (b"",))}, exact=True)
    with pytest.raises(RuntimeError, match="the cluster is not known yet"):
        driver.machine.join_run(2)
    machine = tool()
    machine.handle(Received(Address(SCHEDULER, 0, 0), Views(0, [started()])), 0.0)
    assert machine.ready
    with pytest.raises(RuntimeError, match="the cluster is not known yet"):
        machine.join_run(2)


@pytest.mark.parametrize(
    ("worker", "size", "fits"),
    [(0, 1, False), (0, 2, True), (1, 2, True), (2, 2, False), (2, 3, True), (0, WORKERS_MAX, True),
     (0, WORKERS_MAX + 1, False)],
)  # fmt: skip
def test_a_run_has_room_for_its_workers_and_two_at_least(worker: int, size: int, fits: bool) -> None:
    machine = ready().machine
    machine.worker = worker
    if fits:
        (asked,) = machine.join_run(size)
        assert isinstance(asked, Send) and asked.message == JoinRun(2, size)
        assert machine.join_run(size) == [], "it is asked for already"
    else:
        with pytest.raises(ValueError, match="they are numbered from 0"):
            machine.join_run(size)


def test_pushes_wait_when_so_many_bytes_of_them_are_kept_and_no_sooner() -> None:
    driver = ready()
    limit = driver.machine.config.pushes_kept_bytes_max
    for kept, can in ((limit - 1, True), (limit, False)):
        driver.machine._kept_bytes = kept
        assert driver.machine.can_push == can
    driver.machine._kept_bytes = 0


def test_what_is_durable_is_so_on_the_shard_that_is_least_far() -> None:
    driver = ready()
    driver.machine.lease(DATA)
    driver.scheduler(split := Leased(driver.machine._requests, 4, 0, 10, driver.machine.origin, 0))
    for _ in range(3):
        driver.machine.push({0: GRADIENTS}, examples=2)
    for shard, durable in ((0, 3), (1, 3), (2, 1)):
        driver.shard(shard, PushAck(durable))
    assert driver.machine.leasing.cursor == (split.lease << CURSOR_BITS) + 2
    driver.shard(2, PushAck(3))
    assert driver.machine.leasing.cursor == (split.lease << CURSOR_BITS) + 6


# ------------------------------------------------------------------ what shards say
def test_who_is_waited_for_are_the_shards_that_run_and_have_something_to_answer() -> None:
    driver = Driver()
    driver.start()
    for shard in (0, 1):
        driver.shard(shard, Welcome(0, 0))
    assert driver.machine.unanswered() == [2]
    driver.shard(2, Welcome(0, 0))
    assert driver.machine.unanswered() == []
    driver.push()
    driver.shard(0, PushAck(1))
    assert driver.machine.unanswered() == [1, 2]


def test_a_shard_that_is_down_is_not_one_that_is_silent() -> None:
    driver = ready()
    driver.machine.wait(True)
    driver.pass_time(300.0)
    assert driver.machine.unheard(200.0).keys() == {0, 1, 2}
    driver.view(ShardDown(1, 1, 1))
    assert driver.machine.unheard(200.0).keys() == {0, 2}
    driver.machine.wait(False)
    assert driver.machine.unheard(0.0) == {}


@pytest.mark.parametrize("source", [Address(SHARD, 9, 1), Address(SHARD, 1, 2), Address(SHARD, 1, 0)])
def test_words_of_shards_that_are_not_there_say_nothing(source: Address) -> None:
    driver = ready()
    driver.push()
    assert driver.machine.handle(Received(source, PushAck(1)), driver.now) == []
    assert driver.machine.acked == {0: 0, 1: 0, 2: 0}
    driver.view(ShardDown(1, 2, 1))
    driver.shard(2, PushAck(1))
    assert driver.machine.acked[2] == 0


@pytest.mark.parametrize(("mark", "durable", "is_ready"), [(5, 5, True), (5, 4, False), (5, 6, True)])
def test_a_life_begins_when_all_pushes_of_the_one_before_are_durable(mark: int, durable: int, is_ready: bool) -> None:
    driver = Driver(n=1)
    driver.view(started(n=1))
    driver.shard(0, Welcome(mark, durable))
    assert driver.machine.ready == is_ready


def pulled() -> tuple[Driver, int]:
    """Shards 0 and 1 are asked for rows."""
    driver = ready()
    ticket, _ = driver.machine.pull({0: (ROWS[0], (b"",)), 1: (ROWS[0], (b"",))}, exact=True)
    return driver, ticket


def test_rows_count_once_and_only_from_those_that_were_asked() -> None:
    driver, ticket = pulled()
    assert driver.shard(2, Rows(ticket), frames=(b"wrong",)) == []
    assert driver.shard(0, Rows(ticket + 1), frames=(b"wrong",)) == []
    assert driver.shard(0, Rows(ticket), frames=(b"zero",)) == []
    assert driver.shard(0, Rows(ticket), frames=(b"again",)) == []
    (done,) = driver.shard(1, Rows(ticket), frames=(b"one",))
    assert done == (ticket, {0: (b"zero",), 1: (b"one",)})


def test_a_refusal_counts_only_from_one_that_was_asked_and_has_not_answered() -> None:
    driver, ticket = pulled()
    assert driver.shard(2, PullRefused(ticket, "no")) == []
    assert driver.shard(0, PullRefused(ticket + 1, "no")) == []
    driver.shard(0, Rows(ticket), frames=(b"zero",))
    assert driver.shard(0, PullRefused(ticket, "no")) == []
    (failed,) = driver.shard(1, PullRefused(ticket, "no"))
    assert (
        isinstance(failed, PullFailed)
        and "shard 1 (epoch 1) refused a pull of rows of table 'first': no" in failed.reason
    )
    assert driver.shard(0, PullRefused(ticket, "no")) == [] and driver.machine.can_push


@pytest.mark.parametrize("error", [MemoryError(), ValueError("so")])
def test_what_is_raised_once_the_state_moves_ends_the_session_but_for_want_of_memory(error: Exception) -> None:
    machine = ready().machine
    with mock.patch.object(machine, "_on_tick", side_effect=error), pytest.raises(Exception) as raised:
        machine.handle(Tick(), 0.0)
    assert (raised.value is error) == isinstance(error, MemoryError)
    assert machine.failed_kind == ("" if isinstance(error, MemoryError) else "broken")


# ------------------------------------------------------------------ one shard, over its incarnations
def channel() -> Channel:
    """Pushes 6 to 9 were made after 5 of an earlier life; 7 is durable."""
    one = Channel(2)
    one.meet(1, "x")
    one.welcome(5)
    for number in range(6, 10):
        one.pushed = number
        one.keep(Kept(number, 0, 0, 0, False, [], (), push_bytes=number))
    one.keep(Kept(0, 77, 0, 0, False, [], ()))
    assert one.forget(7) == 13 and one.durable == 2
    return one


@pytest.mark.parametrize(("mark", "durable", "kept"), [(7, None, 3), (8, None, 2), (9, None, 1), (9, 8, 2), (8, 9, 2)])
def test_a_replacement_goes_on_from_its_watermark(mark: int, durable: int | None, kept: int) -> None:
    one = channel()
    one.gone(2, 0.0)
    one.meet(2, "y")
    freed = one.go_on(1, mark, durable)
    assert len(one.kept) == kept and freed == sum(range(8, 11 - kept))
    assert one.acked == min(mark, durable or mark)


@pytest.mark.parametrize(("mark", "why"), [(6, "updates were lost"), (10, "another process pushes in its name")])
def test_a_watermark_that_does_not_fit_is_an_error(mark: int, why: str) -> None:
    one = channel()
    one.gone(2, 0.0)
    one.meet(2, "y")
    with pytest.raises(WatermarkError, match=why):
        one.go_on(1, mark)


def test_what_is_durable_does_not_go_back_and_pulls_are_kept() -> None:
    one = channel()
    for durable in (7, 6, 0):
        assert one.forget(durable) == 0 and one.acked == 7
    assert one.forget(9) == 17 and [kept.request for kept in one.kept] == [77]
    one.drop_pull(77)
    assert one.kept == []


def test_a_death_of_an_incarnation_that_does_not_run_raises_the_epoch_and_never_lowers_it() -> None:
    one = Channel(2)
    for epoch, known in ((3, 3), (2, 3), (5, 5)):
        assert one.gone(epoch, 10.0) == [] and one.epoch == known
    assert one.down_ms == 10.0
    one.gone(6, 99.0)
    assert one.down_ms == 10.0, "it is down since it was first known"


# ------------------------------------------------------------------ splits
def leasing(*splits: tuple[int, int, int]) -> ClientLeases:
    one = ClientLeases(1)
    for request, (lease, first, last) in enumerate(splits, 1):
        one.ask(LeaseSplit(request, DATA, 0))
        one.on_answer(Leased(request, lease, first, last, Origin("", 0, 1), 0))
    return one


def test_a_split_is_asked_for_one_at_a_time_and_again_until_it_is_answered() -> None:
    one = ClientLeases(1)
    assert one.on_tick(5_000.0, AGAIN_MS) == []
    one.ask(LeaseSplit(1, DATA, 0))
    with pytest.raises(RuntimeError, match="already waits for a split of 'd'"):
        one.check_ask(64)
    assert [bool(one.on_tick(ms, AGAIN_MS)) for ms in (5_000.0, 5_099.0, 5_100.0, 5_199.0)] == [
        True, False, True, False,
    ]  # fmt: skip
    one.on_none(NoSplit(2, True))
    assert one.asking, "that was another request"
    one.on_none(NoSplit(1, False))
    assert one.asking and one.answers == 1, "others still have the rest"
    one.on_none(NoSplit(1, True))
    assert not one.asking and one.finished == {DATA}
    assert one.on_tick(9_000.0, AGAIN_MS) == []


def test_splits_that_are_done_are_told_until_every_shard_keeps_a_copy_that_knows_of_them() -> None:
    one = ClientLeases(1)

    def granted(number: int, serial: int, copied: int) -> None:
        one.ask(LeaseSplit(number, DATA, 0))
        one.on_answer(Leased(number, number, 10 * number, 10 * number + 10, Origin("", 0, serial), copied))
        one.advance(10, pushes=number)

    def told() -> list[int]:
        """Those that are done."""
        leases = [lease.lease for lease in one.told()]
        kept = [lease.lease for lease in one.held]
        assert leases[len(leases) - len(kept) :] == kept
        return leases[: len(leases) - len(kept)]

    for number, serial in ((1, 5), (2, 5), (3, 8)):
        granted(number, serial, 4)
    assert told() == []
    one.durable(2)
    assert told() == [1, 2] and [lease.lease for lease in one.held] == [3]
    granted(4, 9, 5)
    assert told() == []
    one.durable(4)
    assert told() == [3, 4] and not one.held
    granted(5, 11, 11)
    one.durable(5)
    assert told() == []


def test_no_more_splits_that_are_done_are_told_than_a_scheduler_takes() -> None:
    one = leasing(*((number, number, number + 1) for number in range(1, DONE_TOLD_MAX + 3)))
    for _ in range(DONE_TOLD_MAX + 2):
        one.advance(1, pushes=1)
    one.durable(1)
    assert [lease.lease for lease in one.told()] == list(range(3, DONE_TOLD_MAX + 3))


def test_as_many_splits_are_held_as_the_scheduler_gives_and_no_more() -> None:
    one = leasing(*((number, 10 * number, 10 * number + 10) for number in range(1, 4 + LEASES_AHEAD_MAX)))
    one.check_ask(4)
    with pytest.raises(RefusedError, match=f"holds {3 + LEASES_AHEAD_MAX} splits"):
        one.check_ask(3)


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        (Leased(2, 6, 0, 10, Origin(), 0), True),
        (Leased(2, 5, 0, 10, Origin(), 0), False),
        (Leased(2, 6, 0, 0, Origin(), 0), False),
        (Leased(2, 6, -1, 10, Origin(), 0), False),
        (Leased(2, 6, 9, 10, Origin(), 0), True),
        (Leased(9, 1, 0, 0, Origin(), 0), True),  # not the one that was asked for: it is passed over
    ],
)
def test_a_split_that_cannot_be_the_next_one_is_an_error(answer: Leased, fits: bool) -> None:
    one = leasing((5, 0, 10))
    one.ask(LeaseSplit(2, DATA, 0))
    if fits:
        one.check(answer)
    else:
        with pytest.raises(ValueError, match="after lease 5"):
            one.check(answer)
    assert ClientLeases(1).check(answer) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("examples", "fits"), [(1, True), (10, True), (11, False), (-1, False)])
def test_a_push_takes_examples_of_one_split_and_no_more_than_are_left(examples: int, fits: bool) -> None:
    one = leasing((5, 20, 30))
    if not fits:
        with pytest.raises(ValueError, match="a batch must not reach into the next split"):
            one.advance(examples, 1)
        assert one.examples_left == 10
        return
    assert one.advance(examples, 1) == (5 << CURSOR_BITS) + examples
    assert one.examples_left == (10 - examples or None)


def test_examples_of_no_split_do_not_count_and_a_push_of_none_takes_none() -> None:
    assert ClientLeases(1).advance(5, 1) == 0
    one = leasing((5, 20, 30))
    assert one.advance(0, 1) == 0 and one.examples_left == 10 and not one.waits


def test_a_split_is_held_until_all_of_it_is_durable_and_the_first_one_is_that_which_is_trained_on() -> None:
    one = leasing((5, 0, 10), (8, 20, 30))
    other = Dataset("other", 9, 9, 3)
    one.held[1] = msgspec.structs.replace(one.held[1], dataset=other)
    assert one.dataset == DATA
    for pushes, examples in ((1, 4), (2, 6), (3, 5)):
        one.advance(examples, pushes)
    assert one.dataset == other and [held.lease for held in one.held] == [5, 8]
    one.durable(1)
    assert one.cursor == (5 << CURSOR_BITS) + 4 and [held.lease for held in one.held] == [5, 8]
    one.durable(2)
    assert one.cursor == (5 << CURSOR_BITS) + 10 and [held.lease for held in one.held] == [8]
    one.durable(3)
    assert one.waits is False and one.cursor == (8 << CURSOR_BITS) + 5
    one.advance(5, 4)
    assert one.dataset is None, "none is left to train on"
    one.on_refused(1, "no")
    assert one.refusal == "", "that one was answered"


# ------------------------------------------------------------------ runs
def joined(size: int = 2) -> ClientRuns:
    one = ClientRuns()
    one.join(1, size)
    one.on_joined(RunJoined(1, 4))
    return one


def test_a_run_is_asked_for_again_until_it_is_answered() -> None:
    one = ClientRuns()
    assert one.on_tick(5_000.0, AGAIN_MS) == []
    one.join(1, 3)
    assert [bool(one.on_tick(ms, AGAIN_MS)) for ms in (5_000.0, 5_099.0, 5_100.0, 5_199.0)] == [
        True, False, True, False,
    ]  # fmt: skip
    one.on_joined(RunJoined(7, 4))
    assert one.joining, "that was another request"
    one.on_joined(RunJoined(1, 0, [2]))
    assert one.joining and one.missing == [2]
    one.on_joined(RunJoined(1, 4))
    assert not one.joining and (one.run, one.missing) == (4, []) and one.on_tick(9_000.0, AGAIN_MS) == []
    one.on_refused(1, "no")
    assert one.refusal == ""


@pytest.mark.parametrize(
    ("run", "size", "barrier", "can"),
    [(4, 2, 0, True), (4, 2, 1, True), (4, 2, 2, True), (4, 3, 2, False), (0, 2, 2, False), (0, 0, 1, True)],
)
def test_a_barrier_needs_a_run_of_as_many(run: int, size: int, barrier: int, can: bool) -> None:
    one = ClientRuns()
    one.run, one.size = run, size
    assert (one.why_no_push(barrier) == "") == can


def test_a_run_that_is_left_for_another_one_is_over_with_its_barriers() -> None:
    one = joined()
    one.push(7)
    one.push(8)
    one.durable(7)
    (asked,) = one.join(2, 3)
    assert isinstance(asked, Send) and asked.message == JoinRun(2, 3, 4, 1) and not one.waits
    one.on_joined(RunJoined(2, 5))
    one.durable(8)
    assert one.done == 0, "a push of the run before is none of this one"


def test_a_worker_that_leaves_says_so_until_it_is_answered_and_one_in_no_run_says_nothing() -> None:
    assert ClientRuns().leave() == [] and not ClientRuns().leaving
    one = joined()
    (left,) = one.leave()
    assert isinstance(left, Send) and left.message == LeaveRun(4, 0) and one.on_heartbeat() == [left]
    one.on_over(RunOver(3, 0, "another one"))
    assert one.leaving
    one.on_over(RunOver(4, 0, "you have left"))
    assert not one.leaving and one.on_heartbeat() == [] and one.broken() == ""


@pytest.mark.parametrize(
    ("over", "pushes", "durable", "is_broken"),
    [
        (None, 2, 0, False),
        (RunOver(4, 1, "so"), 1, 0, False),
        (RunOver(4, 1, "so"), 2, 0, True),
        (RunOver(4, 1, "so"), 2, 8, False),  # that one was complete all the same
        (RunOver(3, 0, "so"), 2, 0, False),  # another run
    ],
)
def test_a_push_behind_the_end_of_the_run_is_never_applied(
    over: RunOver | None, pushes: int, durable: int, is_broken: bool
) -> None:
    one = joined()
    for number in range(pushes):
        one.push(7 + number)
    one.durable(durable)
    if over is not None:
        one.on_over(over)
    assert bool(one.broken()) == is_broken
    if is_broken:
        assert one.broken() == "push 2 of run 4 is never applied: so"
        one.run = 0
        assert one.broken() == "", "it is in no run any more"


def test_the_end_of_a_run_is_that_of_the_worker_that_was_least_far() -> None:
    one = joined()
    for done, known in ((5, 5), (7, 5), (3, 3)):
        one.on_over(RunOver(4, done, f"after {done}"))
        assert one._over == (known, f"after {known}")


# ------------------------------------------------------------------ tables
def tables() -> ClientTables:
    one = ClientTables()
    one.create(CreateTable(1, FIRST))
    return one


OTHER = msgspec.structs.replace(FIRST, dim=8)


def test_a_table_is_asked_for_once_and_one_of_other_properties_instead() -> None:
    one = tables()
    assert one.create(CreateTable(2, FIRST)) == [] and one.creating("first")
    (asked,) = one.create(CreateTable(3, OTHER))
    assert asked == Send(m.SCHEDULER_ADDRESS, CreateTable(3, OTHER))
    one.on_ready(TableReady(1, 0))
    assert not one.ready("first"), "that was the request before"
    one.on_ready(TableReady(3, 0))
    assert one.ready("first") and not one.creating("first")
    assert one.create(CreateTable(4, OTHER)) == [] and not one.creating("first"), "it is there"
    one.create(CreateTable(5, FIRST))
    assert one.creating("first")
    one.create(CreateTable(6, OTHER))
    assert not one.creating("first"), "the one that is there is wanted, and no other"


def test_a_refused_table_can_be_asked_for_again_and_its_reason_is_gone_then() -> None:
    one = tables()
    one.on_refused(7, "another request")
    assert one.creating("first") and one.refusals == {}
    one.on_refused(1, "no room")
    assert one.refusals == {"first": "no room"} and not one.creating("first")
    one.create(CreateTable(2, FIRST))
    assert one.refusals == {}


@pytest.mark.parametrize(
    ("request_", "index", "fits"), [(1, TABLES_MAX - 1, True), (1, TABLES_MAX, False), (9, TABLES_MAX, True)]
)
def test_a_number_that_no_table_has_is_an_error(request_: int, index: int, fits: bool) -> None:
    one = tables()
    if fits:
        one.check_ready(TableReady(request_, index))
    else:
        with pytest.raises(ValueError, match=f"table 'first' has number {TABLES_MAX}"):
            one.check_ready(TableReady(request_, index))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.changed(),
        lambda one: one.on_ready(TableReady(1, 0)),
        lambda one: one.start(0, [OTHER], []),
        lambda one: one.added(0, OTHER),
    ],
)
def test_requests_are_checked_for_the_tables_and_limits_as_they_are(change: Callable[[ClientTables], None]) -> None:
    one = tables()
    checks = one.checks(3, 1, CONFIG)
    assert one.checks(3, 1, CONFIG) is checks
    change(one)
    assert one.checks(3, 1, ProtocolConfig(answer_bytes_max=7)) is not checks


def test_tables_that_are_there_and_those_that_are_announced_are_told_apart() -> None:
    one = tables()
    one.on_ready(TableReady(1, 0))
    one.added(0, FIRST)
    one.added(0, msgspec.structs.replace(FIRST, name="more"))
    checks = one.checks(3, 1, CONFIG)
    assert one.known["more"][0] == 1 and not one.ready("more")
    with pytest.raises(RefusedError, match="more"):
        checks.pull({0: ([m.Section([1], [0])], (b"",))}, False)
    checks.pull({0: ([m.Section([0], [0])], (b"",))}, False)


def test_first_values_are_asked_about_until_they_are_there_or_refused() -> None:
    one = ClientTables()
    asked = InitialiseTable(3, 0, True, False)
    one.ask_initial(asked)
    for ms, again in ((1_000.0, True), (1_099.0, False), (1_100.0, True)):
        assert bool(one.on_tick(ms, CONFIG)) == again
    one.on_initial(TableInitial(9, 0, m.WRITTEN))
    assert one.initial(0) == m.WAIT, "that was another question"
    one.on_initial(TableInitial(3, 0, m.WRITE))
    assert one.initial(0) == m.WRITE and one.on_tick(2_000.0, CONFIG)
    one.on_initial(TableInitial(3, 0, m.WRITTEN))
    assert one.initial(0) == m.WRITTEN and one.on_tick(3_000.0, CONFIG) == []
    one.ask_initial(InitialiseTable(4, 1, True, False))
    one.ask_initial(InitialiseTable(5, 2, True, False))
    one.on_refused(4, "unsure")
    assert one.initial_refusals == {1: "unsure"}
    assert [effect.message for effect in one.on_tick(4_000.0, CONFIG)] == [InitialiseTable(5, 2, True, False)]  # type: ignore[union-attr]
    one.ask_initial(InitialiseTable(6, 1, True, False))
    assert one.initial_refusals == {}

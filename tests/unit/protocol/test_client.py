"""The worker's machine, driven with fake shards and a fake scheduler."""

import random

import pytest

from ecrec.protocol import invariants
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connect, Disconnect, Effect, Failed, PullDone, PullFailed, Received, Send, Tick
from ecrec.protocol.messages import (
    DOWN,
    SCHEDULER,
    SHARD,
    TOOL,
    UP,
    Address,
    CreateTable,
    DataLost,
    Fenced,
    FullView,
    Hello,
    Member,
    Message,
    Pull,
    PullRefused,
    Push,
    PushAck,
    PushRefused,
    Rows,
    Section,
    ShardDown,
    ShardUp,
    TableAdded,
    TableReady,
    View,
    Views,
    Welcome,
    WorkerStatus,
)
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

CONFIG = ProtocolConfig()
FIRST = TableSpec("first", 100, 4, CodeSpec(2, 1), OptimizerSpec("sgd", (0.1,)), "zeros")
TABLE = TableSpec("t", 100, 4, CodeSpec(2, 1), OptimizerSpec("sgd", (0.1,)), "zeros")
ROWS = ([Section([0], [0])], (b"",))
"""No row of the first table: such a request fits every shard."""
GRADIENTS = (ROWS[0], (b"", b""))


class Driver:
    """A client machine, a clock, and what it sent."""

    def __init__(self, n: int = 3, groups: int = 1, role: int | None = None) -> None:
        self.n, self.groups = n, groups
        self.machine = ClientMachine(1, "p") if role is None else ClientMachine(1, "p", role)
        self.now = 1000.0

    def start(
        self, number: int = 0, epochs: dict[int, int] | None = None, state: dict[int, str] | None = None
    ) -> list[Effect]:
        effects: list[Effect] = []
        for group in range(self.groups):
            members = [
                Member(s, (epochs or {}).get(s, 1), (state or {}).get(s, UP), f"tcp://{group}.{s}")
                for s in range(self.n)
            ]
            start = FullView(number, group, self.groups, self.n, -1, 7, False, 0, {}, members, [], [], "", CONFIG)
            effects += self.view(start, group)
        for asked in self.machine.create_table(FIRST):
            assert isinstance(asked, Send) and isinstance(asked.message, CreateTable)
            self.scheduler(TableReady(asked.message.request, 0))
        return effects

    def view(self, view: View, group: int = 0) -> list[Effect]:
        return self.scheduler(Views(group, [view]))  # type: ignore[list-item]

    def scheduler(self, message: Message) -> list[Effect]:
        return self._done(self.machine.handle(Received(Address(SCHEDULER, 0, 0), message), self.now))

    def shard(self, shard: int, message: Message, epoch: int = 1, frames: tuple[bytes, ...] = ()) -> list[Effect]:
        event = Received(Address(SHARD, shard, epoch), message, frames)
        return self._done(self.machine.handle(event, self.now))

    def tick(self, ms: float) -> list[Effect]:
        self.now += ms
        return self._done(self.machine.handle(Tick(), self.now))

    def pass_time(self, ms: float) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(int(ms // 50)):
            effects += self.tick(50)
        return effects

    def push(self, **options: bool) -> list[Effect]:
        return self._done(self.machine.push({0: GRADIENTS}, **options))

    def _done(self, effects: list[Effect]) -> list[Effect]:
        if not self.machine.failed:
            invariants.check(self.machine)
        return effects


def ready(n: int = 3, groups: int = 1, mark: int = 0) -> Driver:
    driver = Driver(n, groups)
    driver.start()
    for shard in range(n * groups):
        driver.shard(shard, Welcome(mark, mark))
    assert driver.machine.ready
    return driver


def sent(effects: list[Effect], shard: int | None = None) -> list[Message]:
    """Messages to one shard, or to any."""
    return [
        e.message for e in effects if isinstance(e, Send) and e.to.role == SHARD and (shard is None or e.to.id == shard)
    ]


def test_heartbeats_show_the_views_known() -> None:
    driver = Driver()
    statuses = [e.message for e in driver.pass_time(200) if isinstance(e, Send)]
    assert statuses == [WorkerStatus("p", [-1], {})] * 2
    assert driver.machine.address.epoch == 0
    driver.start(number=4)
    assert driver.machine.address.epoch == 7
    statuses = [e.message for e in driver.pass_time(100) if isinstance(e, Send) and e.to.role == SCHEDULER]
    assert statuses == [WorkerStatus("p", [4], {})]


def test_start_connects_and_says_hello_and_welcome_makes_ready() -> None:
    driver = Driver(n=2, groups=2)
    effects = driver.start()
    assert [e.address.id for e in effects if isinstance(e, Connect)] == [0, 1, 2, 3]
    assert sent(effects) == [Hello(7)] * 4
    for shard in range(4):
        assert not driver.machine.ready
        driver.shard(shard, Welcome(0, 0))
    assert driver.machine.ready and driver.machine.shards == 4


def test_hello_is_repeated_until_welcome() -> None:
    driver = Driver(n=1)
    driver.start()
    assert sent(driver.pass_time(100)) == [Hello(7)]


def test_a_new_life_waits_for_the_pushes_of_the_one_before_to_be_durable() -> None:
    driver = Driver(n=1)
    driver.start()
    driver.shard(0, Welcome(5, 3))
    assert not driver.machine.ready
    driver.view(ShardDown(1, 0, 1))
    effects = driver.view(ShardUp(2, 0, 2, "tcp://new", 9, {1: 4}))
    assert sent(effects) == [Hello(7)]
    driver.shard(0, Welcome(4, 4), epoch=2)
    assert driver.machine.ready
    push = sent(driver.push())[0]
    assert isinstance(push, Push) and push.number == 5


def test_views_at_or_below_the_known_one_are_ignored_and_a_gap_waits() -> None:
    driver = ready()
    assert driver.view(ShardDown(0, 1, 1)) == []
    assert driver.view(ShardDown(2, 1, 1)) == []
    assert driver.machine.down() == {}
    assert isinstance(driver.view(ShardDown(1, 1, 1))[0], Disconnect)
    assert list(driver.machine.down()) == [1]


def test_a_push_goes_to_every_shard_and_numbers_go_on_from_the_watermark() -> None:
    driver = ready(mark=9)
    effects = driver.push()
    assert sent(effects, 0) == [Push(7, 10, 0, False, ROWS[0], tables=1)]
    assert sent(effects, 1) == [Push(7, 10, 0, False, [], tables=1)]
    assert driver.machine.pushed == {0: 10, 1: 10, 2: 10}
    driver.shard(0, PushAck(10))
    assert driver.machine.acked == {0: 10, 1: 9, 2: 9}
    assert not driver.machine.durable


def test_too_many_pushes_in_flight_are_not_let_out() -> None:
    driver = ready()
    for _ in range(CONFIG.pushes_in_flight_max):
        driver.push()
    assert not driver.machine.can_push
    with pytest.raises(RuntimeError, match="unacknowledged"):
        driver.push()
    for shard in range(3):
        driver.shard(shard, PushAck(1))
    driver.push()


def test_an_exact_pull_names_the_last_push_and_holds_the_next_one_back() -> None:
    driver = ready()
    driver.push()
    ticket, effects = driver.machine.pull({0: ROWS, 2: ROWS}, exact=True)
    assert sent(effects) == [Pull(ticket, 1, False, ROWS[0])] * 2
    with pytest.raises(RuntimeError, match="exact"):
        driver.push()
    assert driver.shard(2, Rows(ticket), frames=(b"c",)) == []
    assert driver.shard(2, Rows(ticket), frames=(b"again",)) == []
    assert driver.shard(0, Rows(ticket), frames=(b"a",)) == [PullDone(ticket, {0: (b"a",), 2: (b"c",)})]
    assert driver.shard(0, Rows(ticket), frames=(b"a",)) == []
    assert driver.machine.can_push


def test_a_pull_that_is_not_exact_holds_nothing_back() -> None:
    driver = ready()
    driver.push()
    ticket, effects = driver.machine.pull({1: ROWS}, exact=False, records=True)
    assert sent(effects) == [Pull(ticket, 0, True, ROWS[0])]
    driver.push()


def test_a_pull_of_nothing_is_done_at_once() -> None:
    driver = ready()
    ticket, effects = driver.machine.pull({}, exact=True)
    assert effects == [PullDone(ticket, {})]
    assert driver.machine.can_push


def test_a_new_incarnation_gets_what_its_watermark_does_not_cover_in_the_first_order() -> None:
    driver = ready()
    driver.push()
    driver.push()
    loose, _ = driver.machine.pull({0: ROWS}, exact=False)
    driver.push()
    exact, _ = driver.machine.pull({0: ROWS}, exact=True)
    down = driver.view(ShardDown(1, 0, 1))
    assert [e.address for e in down if isinstance(e, Disconnect)] == [Address(SHARD, 0, 1)]
    up = driver.view(ShardUp(2, 0, 2, "tcp://new", 5, {1: 1, 2: 77}))
    assert up[0] == Connect(Address(SHARD, 0, 2), "tcp://new")
    assert sent(up) == [
        Push(7, 2, 0, False, ROWS[0], tables=1),
        Pull(loose, 0, False, ROWS[0]),
        Push(7, 3, 0, False, ROWS[0], tables=1),
        Pull(exact, 3, False, ROWS[0]),
    ]
    assert driver.machine.acked[0] == 1
    assert driver.shard(0, PushAck(3), epoch=1) == []
    assert driver.machine.acked[0] == 1, "an old incarnation acknowledged"
    assert driver.shard(0, Rows(exact), epoch=1) == []
    driver.shard(0, PushAck(3), epoch=2)
    driver.now += 5
    done = driver.shard(0, Rows(exact), epoch=2)
    assert isinstance(done[0], PullDone)
    assert driver.machine.first_rows == {(0, 2): driver.now}


def test_what_is_asked_of_a_shard_that_is_down_waits_for_its_replacement() -> None:
    driver = ready()
    driver.view(ShardDown(1, 1, 1))
    assert sent(driver.push(), 1) == []
    assert sent(driver.pass_time(2000), 1) == []
    up = driver.view(ShardUp(2, 1, 2, "tcp://new", 5, {}))
    assert sent(up, 1) == [Push(7, 1, 0, False, [], tables=1)]


def test_a_watermark_below_what_was_acknowledged_is_a_lost_update() -> None:
    driver = ready()
    driver.push()
    driver.shard(0, PushAck(1))
    driver.view(ShardDown(1, 0, 1))
    effects = driver.view(ShardUp(2, 0, 2, "tcp://new", 5, {}))
    failed = [e for e in effects if isinstance(e, Failed)]
    assert len(failed) == 1 and "updates were lost" in failed[0].reason
    assert driver.tick(1000) == []


def test_a_start_that_replaces_all_meets_new_incarnations_with_hello() -> None:
    driver = ready()
    driver.push()
    effects = driver.start(number=9, epochs={0: 3})
    assert [e for e in effects if isinstance(e, Connect)] == [Connect(Address(SHARD, 0, 3), "tcp://0.0")]
    assert sent(effects) == [Hello(7)]
    assert sent(driver.shard(0, Welcome(1, 0), epoch=3)) == [Push(7, 1, 0, False, ROWS[0], tables=1)]
    assert driver.start(number=9) == []


def test_a_member_that_is_down_at_the_start_is_waited_for() -> None:
    driver = Driver()
    effects = driver.start(state={1: DOWN})
    assert len(sent(effects)) == 2
    driver.shard(0, Welcome(0, 0))
    driver.shard(2, Welcome(0, 0))
    assert not driver.machine.ready
    assert sent(driver.view(ShardUp(1, 1, 2, "tcp://new", 0, {}))) == [Hello(7)]
    driver.shard(1, Welcome(0, 0), epoch=2)
    assert driver.machine.ready


def test_silence_makes_it_send_again_ever_more_slowly_until_an_answer() -> None:
    driver = ready(n=1)
    driver.push()
    assert sent(driver.pass_time(450)) == []
    assert len(sent(driver.pass_time(50))) == 1
    assert sent(driver.pass_time(950)) == []
    assert len(sent(driver.pass_time(50))) == 1
    driver.shard(0, PushAck(1))
    assert sent(driver.pass_time(5000)) == []


def test_an_acknowledged_push_does_not_hide_a_lost_pull() -> None:
    driver = ready(n=1)
    pull, _ = driver.machine.pull({0: ROWS}, exact=False)
    resent: list[Message] = []
    for number in range(1, 5):
        driver.push()
        resent += sent(driver.pass_time(200))
        driver.shard(0, PushAck(number))
    assert Pull(pull, 0, False, ROWS[0]) in resent


def test_time_in_which_nobody_pumped_is_no_silence() -> None:
    driver = ready(n=1)
    driver.push()
    assert sent(driver.tick(10_000)) == []


def test_tables_are_asked_for_until_ready_and_taken_once() -> None:
    driver = ready()
    effects = driver.machine.create_table(TABLE)
    create = CreateTable(2, TABLE)
    assert effects == [Send(Address(SCHEDULER, 0, 0), create)]
    assert driver.machine.create_table(TABLE) == []
    assert any(isinstance(e, Send) and e.message == create for e in driver.pass_time(500))
    driver.view(TableAdded(1, TABLE))
    assert driver.machine.tables == {"first": (0, FIRST), "t": (0, TABLE)}
    assert not driver.machine.table_ready("t")
    driver.scheduler(TableReady(2, 0))
    assert driver.machine.table_ready("t")
    assert driver.machine.create_table(TABLE) == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (PushRefused(1, "NaN in table t"), "shard 0 (epoch 1) refused push 1: NaN in table t"),
        (Fenced("stale"), "fenced by shard 0"),
    ],
)
def test_a_refusal_of_a_shard_ends_the_worker(message: Message, words: str) -> None:
    driver = ready()
    effects = driver.shard(0, message)
    assert isinstance(effects[0], Failed) and words in effects[0].reason
    with pytest.raises(RuntimeError):
        driver.push()


def test_a_refused_pull_ends_alone_on_all_shards() -> None:
    driver = ready()
    first, _ = driver.machine.pull({0: ROWS, 1: ROWS}, exact=True)
    second, _ = driver.machine.pull({0: ROWS, 1: ROWS}, exact=True)
    assert driver.shard(0, PullRefused(first, "later")) == [
        PullFailed(first, "shard 0 (epoch 1) refused a pull of rows of table 'first': later")
    ]
    assert driver.shard(1, PullRefused(first, "later")) == driver.shard(1, Rows(first), frames=(b"",)) == []
    again = sent(driver.pass_time(2 * CONFIG.resend_ms))
    assert {message.request for message in again if isinstance(message, Pull)} == {second}
    driver.shard(0, Rows(second), frames=(b"",))
    assert driver.shard(1, PullRefused(99, "not ours")) == []
    assert driver.shard(1, Rows(second), frames=(b"",)) == [PullDone(second, {0: (b"",), 1: (b"",)})]
    assert driver.machine.can_push


def test_what_ends_the_worker_at_the_scheduler() -> None:
    driver = ready()
    assert isinstance(driver.scheduler(Fenced("another process"))[0], Failed)
    driver = ready()
    assert "two gone" in str(driver.view(DataLost(1, "two gone")))


def test_a_tool_pulls_without_hello_and_never_pushes() -> None:
    driver = Driver(role=TOOL)
    assert sent(driver.start()) == []
    assert driver.machine.ready
    _, effects = driver.machine.pull({0: ROWS}, exact=False)
    assert len(sent(effects)) == 1
    with pytest.raises(RuntimeError, match="tool"):
        driver.push()


class FakeShard:
    """Applies pushes of one worker in order; loses everything after some point when it dies."""

    def __init__(self, epoch: int, applied: list[int]) -> None:
        self.epoch = epoch
        self.applied = applied
        self.durable = len(applied)
        self.waiting: list[Pull] = []
        self.inbox: list[Message] = []
        self.outbox: list[tuple[Message, tuple[bytes, ...]]] = []

    def take(self) -> None:
        message = self.inbox.pop(0)
        if isinstance(message, Hello):
            self.outbox.append((Welcome(len(self.applied), self.durable), ()))
        elif isinstance(message, Push):
            if message.number == len(self.applied) + 1:
                self.applied.append(message.number)
            self.outbox.append((PushAck(self.durable), ()))
        elif isinstance(message, Pull):
            self.waiting.append(message)
        for pull in [p for p in self.waiting if p.after <= len(self.applied)]:
            self.waiting.remove(pull)
            self.outbox.append((Rows(pull.request), (str(len(self.applied)).encode(),)))


@pytest.mark.parametrize("seed", range(200))
def test_pushes_are_applied_once_and_exact_pulls_see_their_point_under_deaths_and_losses(seed: int) -> None:
    rng = random.Random(seed)
    driver = Driver(n=2)
    shards = [FakeShard(1, []) for _ in range(2)]
    number, down = 0, dict[int, int]()
    exact: dict[int, int] = {}
    pushes = 0

    def carry(effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Failed), effect
            if isinstance(effect, Send) and effect.to.role == SHARD:
                shard = shards[effect.to.id]
                if effect.to.epoch == shard.epoch and effect.to.id not in down and rng.random() > 0.1:
                    shard.inbox.append(effect.message)
            if isinstance(effect, PullDone) and effect.ticket in exact:
                point = exact.pop(effect.ticket)
                assert all(frames == (str(point).encode(),) for frames in effect.answers.values())

    carry(driver.start())
    for step in range(4000):
        machine = driver.machine
        draining = step >= 600
        s = rng.randrange(2)
        shard = shards[s]
        match rng.randrange(8):
            case 0:
                carry(driver.tick(50))
            case 1 if shard.inbox and s not in down:
                shard.take()
            case 2 if shard.outbox:
                message, frames = shard.outbox.pop(0)
                if rng.random() > 0.1:
                    carry(driver.shard(s, message, shard.epoch, frames))
            case 3 if s not in down:
                shard.durable = rng.randint(shard.durable, len(shard.applied))
                if draining:
                    shard.durable = len(shard.applied)
                shard.outbox.append((PushAck(shard.durable), ()))
            case 4 if machine.can_push and not draining:
                pushes += 1
                carry(driver.push())
            case 5 if machine.ready and not exact and not draining:
                ticket, effects = machine.pull({0: ROWS, 1: ROWS}, exact=True)
                exact[ticket] = pushes
                carry(effects)
            case 6 if s not in down and rng.random() < 0.2 and not draining:
                number += 1
                down[s] = rng.randint(shard.durable, len(shard.applied))
                carry(driver.view(ShardDown(number, s, shard.epoch)))
            case 7 if s in down:
                number += 1
                shards[s] = FakeShard(shard.epoch + 1, shard.applied[: down.pop(s)])
                watermarks = {1: len(shards[s].applied)}
                carry(driver.view(ShardUp(number, s, shards[s].epoch, "tcp://x", 0, watermarks)))
        if draining and not exact and driver.machine.durable and driver.machine.ready:
            break
    assert driver.machine.durable and not exact
    assert [s.applied for s in shards] == [list(range(1, pushes + 1))] * 2


def test_copies_for_a_shard_that_hangs_do_not_pile_up() -> None:
    """All is sent again once, then the oldest alone; when that is answered, the rest at once."""
    driver = ready()
    for _ in range(CONFIG.pushes_in_flight_max):
        driver.push()
    assert not driver.machine.can_push
    again = sent(driver.pass_time(600_000), 0)
    assert CONFIG.pushes_in_flight_max < len(again) < CONFIG.pushes_in_flight_max + 600_000 / CONFIG.resend_ms
    assert {message.number for message in again[CONFIG.pushes_in_flight_max :]} == {1}
    rest = sent(driver.shard(0, PushAck(1)), 0)
    assert [message.number for message in rest] == [*range(2, CONFIG.pushes_in_flight_max + 1)]
    assert sent(driver.shard(0, PushAck(2)), 0) == []

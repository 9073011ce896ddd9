"""Splits of the data: leased, renewed, handed on from the first example that some shard lacks."""

from typing import Any

import msgspec
import pytest
from cluster import Cluster, table

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Disconnected, Received, Tick
from ecrec.protocol.leases import LEASES_AHEAD_MAX
from ecrec.protocol.messages import CURSOR_BITS, SCHEDULER, SHARD, TOOL, WORKER, Address, Dataset
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.state import read_state, with_checksum, without_checksum

DATA = Dataset("d", 10, 25, 4)
"""Two passes and a half: splits of 4, 4, 2, 4, 4, 2, 4, 1."""
TIMEOUT_MS = 2000


class Workers(Cluster):
    """A group with any number of workers. Worker 0 is the cluster's client."""

    def __init__(self, n: int = 3, config: ProtocolConfig | None = None) -> None:
        self.lives = 0
        super().__init__(n, config or ProtocolConfig(lease_timeout_ms=TIMEOUT_MS))
        self.create(table(code="2+1"))

    def start_worker(self, number: int) -> ClientMachine:
        """A new process of a worker."""
        self.lives += 1
        client = ClientMachine(number, f"worker-{number}-{self.lives}")
        self.machines[client.process] = client
        return client

    def worker(self, number: int) -> ClientMachine:
        """A new process of a worker, ready."""
        client = self.start_worker(number)
        self.settle_down(lambda: client.ready)
        return client

    def end(self, client: ClientMachine) -> None:
        """It is gone, with what it had not yet sent."""
        del self.machines[client.process]
        for (source, _), queue in self.channels.items():
            if source == client.process:
                queue.clear()

    def lease(self, client: ClientMachine, dataset: Dataset = DATA) -> tuple[int, int] | None:
        """The next split that it gets, as first and last; None: all are trained on."""
        before = len(client.leasing.leases)
        self.carry_out(client.process, client, client.lease(dataset))
        self.settle_down(lambda: not client.leasing.asking or client.failed)
        assert not client.failed, client.failed
        return (
            (client.leasing.leases[-1].first, client.leasing.leases[-1].last)
            if len(client.leasing.leases) > before
            else None
        )

    def train(self, client: ClientMachine, examples: int) -> None:
        """Push so many examples, as one batch."""
        self.settle_down(lambda: client.can_push)
        self.carry_out(client.process, client, client.push({}, examples=examples))

    def durable(self, client: ClientMachine) -> None:
        """Wait until the scheduler knows that all that was pushed is durable."""
        self.settle_down(lambda: client.durable)
        self.pass_ms(3 * self.config.heartbeat_ms)

    def pass_ms(self, ms: float) -> None:
        until = self.now_ms + ms
        while self.now_ms < until:
            self.tick()
            self.run()

    @property
    def figures(self) -> m.DatasetFigures:
        (figures,) = self.scheduler.leases.figures()
        return figures

    def restart_scheduler(self) -> None:
        self.scheduler = SchedulerMachine(self.n, 1, self.config, self.state)
        self.machines["scheduler"] = self.scheduler


def test_splits_come_in_order_and_end_with_their_pass() -> None:
    workers = Workers()
    client = workers.client
    got = []
    while (split := workers.lease(client)) is not None:
        got.append(split)
        workers.train(client, split[1] - split[0])
        workers.durable(client)
    assert got == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20), (20, 24), (24, 25)]
    figures = workers.figures
    assert (figures.trained, figures.repeated, figures.splits, figures.handed_on, figures.leased) == (25, 0, 8, 0, 0)


def test_splits_go_on_where_they_were_when_rows_begin_again() -> None:
    """Rows are lost, watermarks and cursors are not: what was durable is not trained on again."""
    workers = Workers(config=ProtocolConfig(lease_timeout_ms=TIMEOUT_MS, reinitialise_lost=True))
    one, two = workers.client, workers.worker(1)
    dataset = Dataset("d", 12, 12, 6)
    assert workers.lease(one, dataset) == (0, 6)
    assert workers.lease(two, dataset) == (6, 12)
    for _ in range(2):
        workers.train(one, 2)
        workers.train(two, 1)
    workers.durable(one)
    workers.end(two)
    dead = [workers.machines.pop(workers.shards[shard]).address for shard in (0, 1)]
    workers.now_ms += workers.config.reconnect_grace_ms  # since their connections broke
    for address in dead:
        workers.give("scheduler", Disconnected(address))
    for shard in (0, 1):
        workers.shards[shard] = workers.start(shard)
    workers.settle_down(lambda: workers.scheduler.state.rows_reinitialised > 0 and workers.whole())
    workers.train(one, 2)
    three = workers.worker(1)
    assert workers.lease(three, dataset) == (8, 12)
    workers.train(three, 4)
    assert workers.lease(one, dataset) is None
    workers.settle_down(lambda: dataset in one.leasing.finished)
    figures = workers.figures
    assert (figures.trained, figures.repeated, figures.handed_on) == (12, 0, 1)
    assert workers.scheduler.state.updates_damaged == 2 * 4, "four pushes a shard; cursors are no pushes"


def test_no_two_workers_get_the_same_and_the_end_waits_for_all() -> None:
    workers = Workers()
    one, two = workers.client, workers.worker(1)
    dataset = Dataset("d", 8, 8, 4)
    assert workers.lease(one, dataset) == (0, 4)
    assert workers.lease(two, dataset) == (4, 8)
    workers.carry_out("worker-0", one, one.lease(dataset))
    workers.train(one, 4)
    workers.pass_ms(1000)
    assert one.leasing.asking, "the other one's split may come back"
    workers.train(two, 4)
    workers.settle_down(lambda: not one.leasing.asking)
    assert one.leasing.finished == {dataset} and not one.leasing.leases


def test_a_worker_that_is_started_again_goes_on_with_the_first_example_that_some_shard_lacks() -> None:
    workers = Workers()
    client = workers.worker(1)
    assert workers.lease(client) == (0, 4)
    workers.train(client, 1)
    workers.durable(client)
    workers.blocked = {(client.process, workers.shards[2])}
    workers.train(client, 2)  # two shards have it
    workers.run()
    workers.end(client)
    again = workers.worker(1)
    assert workers.lease(again) == (1, 4)
    figures = workers.figures
    assert (figures.trained, figures.repeated, figures.handed_on, figures.deaths) == (1, 2, 1, 1)


def test_batches_of_several_leases_are_counted_by_example() -> None:
    workers = Workers()
    client = workers.worker(1)
    workers.lease(client)
    workers.lease(client)
    workers.train(client, 3)
    workers.durable(client)
    workers.blocked = {(client.process, workers.shards[0])}
    workers.train(client, 1)
    workers.train(client, 2)
    workers.run()
    workers.end(client)
    again = workers.worker(1)
    assert [workers.lease(again), workers.lease(again)] == [(3, 4), (4, 8)]
    assert (workers.figures.trained, workers.figures.repeated) == (3, 3)


def test_a_silent_worker_is_fenced_and_its_late_pushes_change_nothing() -> None:
    workers = Workers()
    zombie, other = workers.worker(1), workers.client
    assert workers.lease(zombie) == (0, 4)
    workers.train(zombie, 1)
    workers.durable(zombie)
    effects = zombie.push({}, examples=2)
    machine = workers.machines.pop(zombie.process)  # it stands still
    workers.pass_ms(TIMEOUT_MS - 500)
    assert workers.lease(other) == (4, 8), "so long it may take its time"
    workers.pass_ms(1000)
    assert workers.lease(other) == (1, 4), "from its cursor on"
    watermarks = [dict(workers.shard(s).watermarks) for s in range(3)]
    workers.machines[zombie.process] = machine
    workers.carry_out(zombie.process, zombie, effects)
    workers.run()
    assert [dict(workers.shard(s).watermarks) for s in range(3)] == watermarks
    workers.settle_down(lambda: bool(zombie.failed))
    assert zombie.failed_kind == "fenced"
    assert (workers.figures.trained, workers.figures.repeated, workers.figures.deaths) == (1, 0, 1)


def test_a_worker_that_reports_keeps_its_splits_however_long_they_take() -> None:
    workers = Workers()
    slow = workers.worker(1)
    workers.lease(slow)
    workers.pass_ms(3 * TIMEOUT_MS)
    assert not slow.failed and workers.figures.deaths == 0


def test_a_scheduler_that_stood_still_gives_up_no_worker() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    workers.now_ms += 2 * TIMEOUT_MS
    workers.give("scheduler", Tick())
    workers.pass_ms(500)
    assert not client.failed and workers.figures.deaths == 0


def test_nothing_is_handed_on_before_every_shard_has_heard_of_it() -> None:
    workers = Workers()
    client = workers.worker(1)
    workers.lease(client)
    workers.train(client, 2)
    workers.durable(client)
    workers.blocked = {("scheduler", workers.shards[1])}
    workers.end(client)
    again = workers.worker(1)
    workers.carry_out(again.process, again, again.lease(DATA))
    workers.pass_ms(600)
    assert again.leasing.asking and not again.leasing.leases
    workers.blocked = set()
    workers.settle_down(lambda: not again.leasing.asking)
    assert again.leasing.leases[0][1:] == (2, 4)


def test_nothing_is_handed_on_while_a_shard_is_down_and_its_replacement_knows_who_is_fenced() -> None:
    workers = Workers()
    client = workers.worker(1)
    workers.lease(client)
    workers.train(client, 1)
    workers.durable(client)
    workers.kill(0)
    machine = workers.machines.pop(client.process)
    again = workers.start_worker(1)
    workers.pass_ms(1000)
    assert workers.figures.leased == 1, "what shard 0 had is not known yet"
    workers.replace(0)
    workers.settle_down(lambda: again.ready)
    assert workers.lease(again) == (1, 4)
    workers.machines[client.process] = machine
    address = Address(SHARD, 0, 2)
    workers.channels[client.process, workers.shards[0]].append(Received(client.address, m.Hello(client.epoch)))
    workers.run()
    assert workers.shard(0).address == address
    assert workers.shard(0).context.fenced == {1: client.epoch}
    assert 1 not in workers.shard(0).context.workers or workers.shard(0).context.workers[1].address.epoch > client.epoch
    workers.settle_down(lambda: client.failed_kind == "fenced")


def test_leases_survive_a_restart_of_the_scheduler() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    workers.train(client, 1)
    late = m.LeaseSplit(client._requests, DATA, 0)
    workers.lease(client)
    workers.restart_scheduler()
    workers.pass_ms(500)
    for _ in range(2):
        workers.give("scheduler", Received(client.address, late))
    workers.train(client, 3)
    workers.train(client, 4)
    workers.durable(client)
    assert workers.lease(client) == (8, 10)
    assert (workers.figures.trained, workers.figures.splits) == (8, 3)


def test_a_worker_that_died_while_the_scheduler_was_down_is_noticed() -> None:
    workers = Workers()
    client = workers.worker(1)
    workers.lease(client)
    workers.train(client, 1)
    workers.durable(client)
    workers.end(client)
    workers.restart_scheduler()
    workers.pass_ms(TIMEOUT_MS + 500)
    assert workers.lease(workers.client) == (1, 4)


# ------------------------------------------------------------------ what does not fit
@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Dataset("", 10, 10, 4), "1 to 256 characters"),
        (Dataset("e", 0, 10, 4), "0 examples"),
        (Dataset("e", 10, 1 << 60, 4), "over all passes"),
        (Dataset("e", 10, 10, 0), "0 examples a split"),
        (Dataset("e", 10, 10, 1 << 32), "examples a split"),
        (Dataset("e", 1 << 40, 1 << 40, 1), "splits are too many"),
        (Dataset("d", 10, 25, 5), "exists as"),
    ],
)
def test_a_data_set_that_cannot_be_is_refused(dataset: Dataset, words: str) -> None:
    workers = Workers()
    workers.lease(workers.worker(1))
    client = workers.client
    workers.carry_out("worker-0", client, client.lease(dataset))
    workers.settle_down(lambda: bool(client.leasing.refusal))
    assert words in client.leasing.refusal and not client.failed
    assert len(workers.scheduler.leases.figures()) == 1


def answers(workers: Workers, source: Address, message: m.Message) -> list[m.Message]:
    effects = workers.scheduler.handle(Received(source, message), workers.now_ms)
    return [e.message for e in effects if getattr(e, "to", None) == source]


def test_more_splits_than_a_worker_can_have_begun_are_refused() -> None:
    workers = Workers()
    client, dataset = workers.client, Dataset("d", 1000, 1000, 1)
    held_max = workers.config.pushes_in_flight_max + LEASES_AHEAD_MAX
    for request in range(100, 100 + held_max):
        (leased,) = answers(workers, client.address, m.LeaseSplit(request, dataset, 0))
        assert isinstance(leased, m.Leased)
    (refused,) = answers(workers, client.address, m.LeaseSplit(999, dataset, 0))
    assert isinstance(refused, m.Refused) and f"holds {held_max} splits" in refused.reason


@pytest.mark.parametrize("source", [Address(TOOL, 0, 1), Address(WORKER, 9, 1), Address(WORKER, 0, 7)])
def test_only_workers_that_are_known_get_splits(source: Address) -> None:
    workers = Workers()
    (answer,) = answers(workers, source, m.LeaseSplit(1, DATA, 0))
    assert isinstance(answer, m.Fenced)
    assert workers.scheduler.leases.figures() == []


@pytest.mark.parametrize(
    "cursor",
    [-1, (1 << CURSOR_BITS) + 5, (2 << CURSOR_BITS) + 1, (7 << CURSOR_BITS) + 1, (1 << 62) + 1],
    ids=["negative", "beyond the split", "another's lease", "unknown lease", "far away"],
)
def test_a_cursor_that_cannot_be_ends_its_worker_and_hands_on_what_the_shards_do_not_have(cursor: int) -> None:
    workers = Workers()
    client, other = workers.worker(1), workers.client
    workers.lease(client)
    workers.lease(other)
    workers.train(client, 1)
    workers.durable(client)
    (answer, *_) = answers(workers, client.address, m.WorkerStatus(client.process, [0], {}, cursor))
    assert isinstance(answer, m.Fenced) and "examples of lease" in answer.reason
    workers.end(client)
    assert workers.figures.trained == 1, "nothing of what it said counts"
    workers.pass_ms(500)
    assert workers.lease(other) == (1, 4)


def test_a_cursor_that_comes_late_takes_nothing_back() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    workers.train(client, 3)
    workers.durable(client)
    assert answers(workers, client.address, m.WorkerStatus("worker-0", [99], {}, (1 << CURSOR_BITS) + 1)) == []
    (lease,) = workers.scheduler.state.leases.leases
    assert lease.done == 3


def test_a_shard_refuses_a_push_whose_cursor_goes_back() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    workers.train(client, 3)
    workers.durable(client)
    shard = workers.shard(0)
    mark = shard.watermarks[0]
    for cursor in ((1 << CURSOR_BITS) + 3, (1 << CURSOR_BITS) + 1, -5):
        push = m.Push(client.epoch, mark + 1, 0, False, [], cursor)
        effects = shard.handle(Received(client.address, push), workers.now_ms)
        (refused,) = [e.message for e in effects if isinstance(getattr(e, "message", None), m.PushRefused)]
        assert "it only rises" in refused.reason
        assert shard.watermarks[0] == mark


def test_a_push_of_more_than_is_left_of_the_split_is_an_error() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    workers.train(client, 3)
    with pytest.raises(ValueError, match=r"5 examples, but 1 are left of the split 0 to 4"):
        client.push({}, examples=5)
    assert client.pushed == {0: 1, 1: 1, 2: 1}


def test_a_worker_asks_for_one_split_at_a_time_and_takes_no_older_one() -> None:
    workers = Workers()
    client = workers.client
    workers.lease(client)
    client.lease(DATA)
    with pytest.raises(RuntimeError, match="already waits"):
        client.lease(DATA)
    for number, first in ((1, 4), (9, 8)):
        leased = m.Leased(client._requests, number, first, 8, client.origin, 0)
        with pytest.raises(ValueError, match="after lease 1"):
            client.handle(Received(Address(SCHEDULER, 0, 0), leased), workers.now_ms)


@pytest.mark.parametrize("change", ["dataset", "empty", "fence"])
def test_a_stored_state_whose_leases_contradict_it_is_refused(change: str) -> None:
    workers = Workers()
    workers.lease(workers.client)
    state: Any = msgspec.msgpack.decode(without_checksum(workers.state))
    if change == "dataset":
        state["leases"]["leases"][0]["dataset"] = 7
    elif change == "empty":
        state["leases"]["leases"][0]["last"] = 0
    else:
        state["leases"]["fences"] = [{"worker": 0, "epoch": 1, "views": []}]
    with pytest.raises(ConfigurationError, match="do not fit"):
        read_state(with_checksum(msgspec.msgpack.encode(state)))


def test_the_last_number_of_a_lease_can_be_used_to_its_end_and_the_next_one_is_refused() -> None:
    cluster = Workers()
    worker = cluster.worker(1)
    cluster.lease(worker)
    cluster.train(worker, 4)
    cluster.scheduler.state.leases.number = m.LEASES_MAX - 1
    assert cluster.lease(worker) == (4, 8)
    cluster.train(worker, 4)
    cluster.settle_down(lambda: worker.leasing.cursor == (m.LEASES_MAX << CURSOR_BITS) + 4)
    cluster.settle_down(lambda: not cluster.scheduler.state.leases.leases)
    assert read_state(cluster.state).leases.number == m.LEASES_MAX
    cluster.carry_out(worker.process, worker, worker.lease(DATA))
    cluster.settle_down(lambda: bool(worker.leasing.refusal))
    assert f"{m.LEASES_MAX} splits were leased" in worker.leasing.refusal


def test_the_highest_cursor_travels_and_a_higher_one_is_refused() -> None:
    highest = (m.LEASES_MAX << CURSOR_BITS) + m.SPLIT_EXAMPLES_MAX
    source, to = Address(WORKER, 1, 1), Address(SHARD, 0, 1)
    for message in (
        m.Push(1, 1, 0, False, [], highest),
        m.WorkerStatus("p", [], {}, highest),
        m.LeaseSplit(1, DATA, highest),
        m.Leased(1, m.LEASES_MAX, 0, 1, m.Origin("ours", 1, 9), 8),
        m.Window(1, 0, {m.cursor_key(m.WORKERS_MAX - 1): highest}, {}, []),
    ):
        frames = (b"", b"") if isinstance(message, m.Window) else ()
        assert wire.decode(wire.seal(wire.pack(message, frames), source, to)).message == message
    cluster = Workers()
    worker = cluster.worker(1)
    cluster.lease(worker)
    refused = m.Push(1, 1, 0, False, [], highest + 1)
    effects = cluster.shard(0).handle(Received(worker.address, refused, ()), cluster.now_ms)
    assert any("cursor" in e.message.reason for e in effects if isinstance(getattr(e, "message", None), m.PushRefused))


def test_what_a_worker_holds_that_leaves_is_given_to_others_at_once() -> None:
    run = Workers()
    first, second = run.client, run.worker(1)
    assert run.lease(first) == (0, 4)
    run.train(first, 3)
    run.settle_down(lambda: first.durable)
    run.carry_out(first.process, first, first.say_goodbye())
    run.run()
    run.end(first)
    began_ms = run.now_ms
    run.pass_ms(3 * run.config.heartbeat_ms)
    assert run.lease(second) == (3, 4)
    assert run.now_ms - began_ms < TIMEOUT_MS / 2

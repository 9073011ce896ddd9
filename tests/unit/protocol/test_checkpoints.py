"""Checkpoints, one schedule at a time: what the simulator draws too rarely, and what nobody may do to them."""

from typing import Any

import msgspec
import pytest
from cluster import Cluster, table, written
from workers import add_worker

from ecrec.errors import WireError
from ecrec.protocol import messages as m
from ecrec.protocol import wire
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import FileWritten, Received, Send
from ecrec.protocol.messages import TOOL, WORKER, Address
from ecrec.protocol.saved import MANIFEST, STATE, STATE_BYTES_MAX
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.transitions import WRITING

TOOL_ADDRESS = Address(TOOL, 7, 0)
CONFIG = ProtocolConfig(checkpoint_told_timeout_ms=200, checkpoint_cut_timeout_ms=400)


def trained(config: ProtocolConfig = CONFIG) -> tuple[Cluster, Any]:
    cluster, spec = Cluster(5, config), table(rows=60)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    return cluster, spec


def ask(cluster: Cluster, request: int = 1, **fields: Any) -> None:
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Save(request, "sim://storage", 1.0, **fields)))


def push_goes_through(cluster: Cluster, spec: Any) -> None:
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.settle_down(lambda: cluster.client.durable, ticks=200)


def test_shards_wait_for_a_checkpoint_no_longer_than_its_time_outs_though_the_scheduler_is_gone() -> None:
    cluster, spec = trained()
    ask(cluster)
    cluster.run()
    del cluster.machines["scheduler"]
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    limit_ms = CONFIG.checkpoint_told_timeout_ms + 2 * CONFIG.checkpoint_cut_timeout_ms
    for _ in range(int(limit_ms / 20) + 20):
        cluster.tick()
        cluster.run()
    assert cluster.client.durable


def test_no_heartbeat_names_a_checkpoint_that_cannot_be() -> None:
    cluster, spec = trained()
    status = m.WorkerStatus("p", [0], {}, checkpoint=m.CHECKPOINTS_MAX)
    source, to = Address(WORKER, 3, 0), Address(m.SCHEDULER, 0, 0)
    cluster.give("scheduler", Received(source, status))
    ask(cluster)
    cluster.run()
    push_goes_through(cluster, spec)
    with pytest.raises(WireError):
        more = msgspec.structs.replace(status, checkpoint=m.CHECKPOINTS_MAX + 1)
        wire.decode(wire.encode(more, (), source, to))


def test_nobody_trains_on_a_checkpoint_that_is_half_restored() -> None:
    cluster = Cluster(5, CONFIG)
    cluster.settle_down(lambda: cluster.client.ready)
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(1, [], 99, 0, begins=True)))
    spec = table(rows=60)
    cluster.carry_out("w0", cluster.client, cluster.client.create_table(spec))
    cluster.settle_down(lambda: spec.name in cluster.client.table_refusals)
    assert "a checkpoint is being brought into this cluster" in cluster.client.table_refusals[spec.name]
    # The one that restores makes the tables, and nothing is said to it that is not so.
    restorer = Address(m.WORKER, 99, 1)
    own = table("own", rows=60)
    cluster.where[restorer] = "restorer"
    effects = cluster.scheduler.handle(Received(restorer, m.CreateTable(7, own)), cluster.now_ms)
    assert not [e for e in effects if isinstance(e, Send) and isinstance(e.message, m.Refused)]
    cluster.carry_out("scheduler", cluster.scheduler, effects)
    assert [waiting.table for waiting in cluster.scheduler.state.new_tables.queue] == [own]
    effects = cluster.scheduler.handle(Received(TOOL_ADDRESS, m.CreateTable(8, spec)), cluster.now_ms)
    assert [e.message.request for e in effects if isinstance(e, Send) and e.to == TOOL_ADDRESS] == [8]
    assert [waiting.table for waiting in cluster.scheduler.state.new_tables.queue] == [own]
    cluster.settle_down(lambda: cluster.scheduler.state.tables == [own])
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(2, [], 99, 0)))
    cluster.create(spec)
    push_goes_through(cluster, spec)


@pytest.mark.parametrize(
    "message",
    [m.LeaseSplit(5, m.Dataset("d", 10, 10, 5), 0), m.InitialiseTable(5, 0, True, False), m.JoinRun(5, 2)],
    ids=lambda message: type(message).__name__,
)
def test_no_worker_begins_to_train_while_a_checkpoint_is_half_restored(message: Any) -> None:
    cluster = Cluster(5, CONFIG)
    cluster.settle_down(lambda: cluster.client.ready)
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(1, [], 99, 0, begins=True)))
    (effect,) = cluster.scheduler.handle(Received(cluster.client.address, message), cluster.now_ms)
    assert isinstance(effect, Send) and isinstance(effect.message, m.Refused) and effect.message.request == 5
    assert "being brought into" in effect.message.reason


def test_what_the_manifest_says_of_splits_is_what_was_done_at_the_cut() -> None:
    cluster, _ = trained(ProtocolConfig())
    client = cluster.client
    other = add_worker(cluster, 1)
    data = m.Dataset("d", 100, 100, 10)
    for name, machine in (("worker-0", client), ("worker-1", other)):
        cluster.carry_out(name, machine, machine.lease(data))
        cluster.settle_down(lambda machine=machine: bool(machine.leasing.leases))

    def step(examples: int) -> None:
        cluster.settle_down(lambda: client.can_push)
        cluster.carry_out("worker-0", client, client.push({}, examples=examples))
        cluster.settle_down(lambda: client.durable)
        for _ in range(15):
            cluster.tick()
            cluster.run()

    step(2)
    ask(cluster)
    cluster.settle_down(lambda: cluster.scheduler.state.saving.state == WRITING)
    step(5)
    # A split that comes back behind the cut was out at the cut.
    cluster.scheduler.leases.end(1, other.address.epoch)
    cluster.settle_down(lambda: bool(cluster.scheduler.state.leases.datasets[0].returned))
    for _ in range(400):
        files, cluster.files = cluster.files, []
        for name, effect in files:
            if effect.name.endswith(MANIFEST):
                (dataset,) = msgspec.json.decode(bytes(effect.buffers[0]))["datasets"]
                assert sorted(each["done"] for each in dataset["leases"]) == [0, 2] and dataset["returned"] == []
                return
            cluster.give(name, written(effect))
        cluster.tick()
        cluster.run()
    raise AssertionError("no manifest was written")


def test_a_restore_into_a_cluster_with_tables_is_refused() -> None:
    cluster, spec = trained()
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(1, [], 99, 0, begins=True)))
    assert cluster.scheduler.state.saving.restorer == -1
    push_goes_through(cluster, spec)


def test_what_a_cut_said_of_workers_is_not_kept() -> None:
    cluster, spec = trained(ProtocolConfig(checkpoint_stall_timeout_ms=100))
    for request in range(1, 6):
        ask(cluster, request)
        cluster.settle_down(lambda: not cluster.scheduler.state.saving.is_active, ticks=100)
    cuts = [view for view in cluster.scheduler.state.groups[0].views if isinstance(view, m.CheckpointCut)]
    assert cuts and all(not cut.pushes and not cut.epochs for cut in cuts)
    push_goes_through(cluster, spec)


def test_a_users_state_that_only_a_scheduler_before_this_one_knew_ends_the_checkpoint() -> None:
    """And one that is longer than any may be begins none."""
    cluster, spec = trained()
    ask(cluster, state=bytes(STATE_BYTES_MAX + 1))
    (refused,) = [answer for answer, _ in cluster.tool_answers if isinstance(answer, m.Refused)]
    assert "at most 67,108,864 are possible" in refused.reason
    ask(cluster, 2, state=b"mine")
    cluster.settle_down(lambda: cluster.scheduler.state.saving.state == WRITING, ticks=100)
    cluster.scheduler = SchedulerMachine(5, 1, CONFIG, cluster.state)
    cluster.machines["scheduler"] = cluster.scheduler
    cluster.files.clear()
    cluster.settle_down(lambda: not cluster.scheduler.state.saving.is_active, ticks=200)
    assert "before the user's state was written" in cluster.scheduler.state.saving.error
    push_goes_through(cluster, spec)


def test_a_users_state_that_cannot_be_written_ends_the_checkpoint() -> None:
    cluster, spec = trained()
    ask(cluster, state=b"mine")
    cluster.run()
    ((_, effect),) = [(name, each) for name, each in cluster.files if each.name.endswith(STATE)]
    cluster.give("scheduler", FileWritten(1, effect.name, 0, 0, "the disk is full"))
    assert "state.safetensors: the disk is full" in cluster.scheduler.state.saving.error
    assert not cluster.scheduler.state.saving.has_state
    push_goes_through(cluster, spec)


def test_a_checkpoint_goes_into_tables_that_are_there_and_the_cluster_remembers_which_it_was() -> None:
    cluster, spec = trained()
    cluster.where[TOOL_ADDRESS] = "tool"
    begins = m.Restore(1, [], 99, 0, begins=True, into_tables=True)
    cluster.give("scheduler", Received(TOOL_ADDRESS, begins))
    assert cluster.scheduler.state.saving.restorer == 99
    other = table("other", rows=60)
    cluster.carry_out("w0", cluster.client, cluster.client.create_table(other))
    cluster.settle_down(lambda: other.name in cluster.client.table_refusals)
    ends = m.Restore(2, [], 99, 0, into_tables=True, url="sim://storage", checkpoint=12)
    cluster.give("scheduler", Received(TOOL_ADDRESS, ends))
    assert cluster.scheduler.state.saving.restorer == -1
    # Also for a scheduler that is started again.
    cluster.scheduler = SchedulerMachine(5, 1, CONFIG, cluster.state)
    cluster.machines["scheduler"] = cluster.scheduler
    cluster.tool_answers.clear()
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.ClusterQuery(3)))
    cluster.settle_down(lambda: bool(cluster.tool_answers))
    ((answer, _),) = cluster.tool_answers
    assert answer.restored == m.RestoredFrom("sim://storage", 12)
    push_goes_through(cluster, spec)


@pytest.mark.parametrize("is_named", [True, False])
def test_the_life_that_brought_a_checkpoint_is_over_and_is_sent_nothing_more(is_named: bool) -> None:
    """Shards take nothing of it that comes late: it could undo what was trained since."""
    cluster = Cluster(5, CONFIG)
    restorer = add_worker(cluster, 99)
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(1, [], 99, 1, begins=True)))
    assert (WORKER, 99) in cluster.scheduler.workers.clients
    for request in (2, 3):  # it was not answered in time, and is asked again
        cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(request, [], 99, 1 if is_named else 0)))
        cluster.run()
        assert cluster.tool_answers[-1][0] == m.Restored(request)
        assert cluster.scheduler.state.leases.fenced == ({99: 1} if is_named else {})
        assert (WORKER, 99) not in cluster.scheduler.workers.clients and not restorer.failed
    fences = [view for view in cluster.scheduler.state.groups[0].views if isinstance(view, m.WorkerFenced)]
    assert [(view.worker, view.epoch) for view in fences] == ([(99, 1)] if is_named else [])
    assert all(cluster.shard(shard).context.fenced == ({99: 1} if is_named else {}) for shard in range(5))


def test_a_restore_into_tables_whose_data_was_begun_is_refused() -> None:
    cluster, spec = trained()
    cluster.carry_out("worker-0", cluster.client, cluster.client.lease(m.Dataset("clicks", 100, 100, 10)))
    cluster.settle_down(lambda: bool(cluster.client.leasing.leases))
    cluster.where[TOOL_ADDRESS] = "tool"
    cluster.give("scheduler", Received(TOOL_ADDRESS, m.Restore(1, [], 99, 0, begins=True, into_tables=True)))
    (refused,) = [answer for answer, _ in cluster.tool_answers if isinstance(answer, m.Refused)]
    assert "this cluster has data sets of its own ('clicks')" in refused.reason
    assert cluster.scheduler.state.saving.restorer == -1
    push_goes_through(cluster, spec)


def test_a_checkpoint_is_written_no_faster_than_was_asked_for() -> None:
    """No worker asks for anything, so that nothing else holds it back."""
    took_ms = {}
    for rate in (0, 4000, 1000):
        cluster, _ = trained(ProtocolConfig(checkpoint_part_bytes=64))
        for _ in range(20):  # until no shard takes workers to ask for something
            cluster.tick()
            cluster.run()
        began_ms, nbytes = cluster.now_ms, 0
        ask(cluster, bytes_per_s=rate)
        while cluster.scheduler.state.saving.complete is None:
            cluster.run()
            for name, effect in cluster.files:
                if "part" in effect.name:
                    nbytes += sum(memoryview(buffer).nbytes for buffer in effect.buffers[1:])
                cluster.give(name, written(effect))
            cluster.files.clear()
            cluster.tick(5.0)
            assert cluster.now_ms - began_ms < 60_000.0
        took_ms[rate] = cluster.now_ms - began_ms
        if rate:
            assert took_ms[rate] >= 0.5 * 1000.0 * nbytes / rate, (rate, nbytes, took_ms)
    assert 4 * took_ms[0] < 2 * took_ms[4000] < took_ms[1000], took_ms


def test_a_base_that_the_cluster_did_not_write_is_not_taken() -> None:
    cluster, _ = trained()
    own = m.CheckpointBase(3, "sim://storage", 77)
    cluster.scheduler.state.saving.number, cluster.scheduler.state.saving.bases = 3, [own]
    for request, (base, crc32c, url) in enumerate(
        [(3, 78, "sim://storage"), (2, 77, "sim://storage"), (3, 77, "sim://other"), (3, 77, "sim://storage")]
    ):
        saving = cluster.scheduler.state.saving
        cluster.where[TOOL_ADDRESS] = "tool"
        asked = m.Save(request, url, 1.0, incremental=True, base=base, base_crc32c=crc32c)
        cluster.give("scheduler", Received(TOOL_ADDRESS, asked))
        assert (saving.base, saving.base_crc32c) == ((3, 77) if request == 3 else (0, 0)) and saving.is_active
        cluster.scheduler.checkpoints.give_up("the next one")

"""A request that is refused is over, alone; a push is checked as a whole before any shard has a part of it."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from workers import add_worker, do

from ecrec.errors import GradientError, RefusedError
from ecrec.protocol import invariants, wire
from ecrec.protocol import messages as m
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received
from ecrec.protocol.messages import SCHEDULER, SHARD, Address, Section
from ecrec.protocol.placement import OptimizerSpec, TableSpec

SPEC = table(rows=40, code="2+1")
OTHER = table("other", rows=30, dim=2, code="1+1")
HUGE = msgspec.structs.replace(table("huge", code="2+1"), rows=1 << 46)

Parts = dict[int, tuple[list[Section], list[Any]]]


def cluster_of(config: ProtocolConfig | None = None, *specs: TableSpec) -> Cluster:
    cluster = Cluster(3, config)
    for spec in specs or (SPEC, OTHER):
        cluster.create(spec)
    return cluster


def parts_of(cluster: Cluster, spec: TableSpec = SPEC, rows: Any = range(12), value: float = 1.0) -> Parts:
    index = cluster.client.tables[spec.name][0]
    return {
        shard: ([Section([index], [len(some)])], [some, np.full(len(some) * spec.dim, value, np.float32)])
        for shard, some in cluster.by_shard(spec, rows).items()
    }


def watermarks(cluster: Cluster) -> list[int]:
    return [cluster.shard(shard).watermarks.get(0, 0) for shard in range(cluster.n)]


def goes_on(cluster: Cluster) -> None:
    """The session pushes and pulls, on all shards."""
    before = cluster.read(SPEC)
    cluster.push(SPEC, {row: 2.0 for row in range(SPEC.rows)})
    cluster.drain()
    assert cluster.read(SPEC).tobytes() == (before - np.float32(1.0)).tobytes()
    assert len(set(watermarks(cluster))) == 1
    assert not cluster.failed and not cluster.client.failed
    cluster.scrub()


# ------------------------------------------------------------------ requests to the scheduler
def test_a_refused_table_concerns_that_request_alone() -> None:
    cluster = cluster_of()
    client = cluster.client
    ticket = cluster.pull(SPEC, range(8))
    third = table("third", rows=9, code="1+1")
    for spec in (HUGE, third):
        do(cluster, client, client.create_table(spec))
    assert client.creating("huge") and client.creating("third")
    cluster.settle_down(lambda: not client.creating("huge") and client.table_ready("third"))
    reason = client.table_refusals["huge"]
    assert "'huge'" in reason and "bytes of address space" in reason
    assert not client.table_ready("huge") and not client.failed
    assert ticket in cluster.done
    goes_on(cluster)
    cluster.create(msgspec.structs.replace(HUGE, rows=12))  # the name may be tried again
    assert "huge" not in client.table_refusals


def test_a_table_that_is_there_stays_usable_when_it_is_asked_for_with_other_properties() -> None:
    cluster = cluster_of()
    client = cluster.client
    do(cluster, client, client.create_table(msgspec.structs.replace(SPEC, dim=7)))
    cluster.settle_down(lambda: not client.creating("t"))
    assert "table 't' exists with other properties: dim is 4, not 7" in client.table_refusals["t"]
    assert client.table_ready("t") and client.tables["t"][1] == SPEC
    goes_on(cluster)
    assert client.create_table(SPEC) == [] and not client.table_refusals


def test_a_late_copy_of_a_refused_request_is_refused_too() -> None:
    """Else the table that nobody wants any more would stand in the way of the next one of its name."""
    cluster = cluster_of()
    client = cluster.client
    do(cluster, client, client.create_table(HUGE))
    request = client._tables._creating["huge"][0]
    cluster.settle_down(lambda: not client.creating("huge"))
    first = client.table_refusals["huge"]
    late = Received(client.address, m.CreateTable(request, msgspec.structs.replace(HUGE, rows=10)))
    (effect,) = [e for e in cluster.scheduler.handle(late, cluster.now_ms) if getattr(e, "to", None) == client.address]
    assert isinstance(effect.message, m.Refused) and effect.message.request == request
    assert effect.message.reason in first
    assert cluster.scheduler.tables.preparing.find("huge") is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (msgspec.structs.replace(SPEC, name="x", rows=1 << 70), "table 'x'"),
        (msgspec.structs.replace(SPEC, name="x", rows=np.int64(8)), "table 'x'"),
        (msgspec.structs.replace(SPEC, name="x", dim="4"), "table 'x'"),
        (msgspec.structs.replace(SPEC, name="\ud800"), "table"),
        (msgspec.structs.replace(SPEC, name=7), "table 7"),
    ],
)
def test_a_table_that_no_message_can_hold_is_refused_at_once(spec: TableSpec, words: str) -> None:
    cluster = cluster_of()
    with pytest.raises(RefusedError, match=words):
        cluster.client.create_table(spec)
    goes_on(cluster)


@pytest.mark.parametrize(
    "dataset", [m.Dataset("d", 1 << 70, 10, 5), m.Dataset("d", 10, 10, -1), m.Dataset("d", 10, 10.5, 5)]
)
def test_a_data_set_that_no_message_can_hold_is_refused_at_once(dataset: m.Dataset) -> None:
    cluster = cluster_of()
    with pytest.raises(RefusedError, match="data set 'd'"):
        cluster.client.lease(dataset)
    assert not cluster.client.leasing.asking


def test_a_refused_split_concerns_that_request_alone() -> None:
    cluster = cluster_of()
    client = cluster.client
    good = m.Dataset("d", 10, 10, 5)
    do(cluster, client, client.lease(good))
    cluster.settle_down(lambda: bool(client.leasing.leases))
    do(cluster, client, client.lease(m.Dataset("d", 10, 10, 3)))
    cluster.settle_down(lambda: not client.leasing.asking)
    assert "'d'" in client.leasing.refusal and not client.failed
    do(cluster, client, client.lease(good))
    assert not client.leasing.refusal
    cluster.settle_down(lambda: len(client.leasing.leases) == 2)
    goes_on(cluster)


def test_a_worker_holds_no_more_splits_than_the_scheduler_would_give() -> None:
    """Asked for, a late copy of the refused request could be granted, and nobody would train on the split."""
    cluster = cluster_of(ProtocolConfig(pushes_in_flight_max=1))
    client, dataset = cluster.client, m.Dataset("d", 100, 100, 5)
    for held in range(3):
        do(cluster, client, client.lease(dataset))
        cluster.settle_down(lambda held=held: len(client.leasing.leases) == held + 1)
    with pytest.raises(RefusedError, match="holds 3 splits"):
        client.lease(dataset)
    goes_on(cluster)


def test_a_refused_run_can_be_asked_for_again_and_a_late_copy_begins_nothing() -> None:
    cluster = cluster_of()
    first, second = cluster.client, add_worker(cluster, 1)
    for machine, size in ((first, 2), (second, 3)):
        do(cluster, machine, machine.join_run(size))
    late = Received(first.address, m.JoinRun(first.runs._joining[0], 2))
    cluster.settle_down(lambda: first.runs.refusal and second.runs.refusal)
    assert "2 workers" in first.runs.refusal and "3 workers" in first.runs.refusal
    assert not first.runs.joining and not first.failed and not second.failed
    cluster.give("scheduler", late)
    do(cluster, second, second.join_run(2))
    for _ in range(20):
        cluster.run()
        cluster.tick()
    assert not second.runs.run, "the run began with a worker that does not know of it"
    do(cluster, first, first.join_run(2))
    assert not first.runs.refusal
    cluster.settle_down(lambda: first.runs.run and second.runs.run)
    goes_on(cluster)


def test_a_table_that_is_not_there_is_not_initialised_and_the_session_goes_on() -> None:
    cluster = cluster_of()
    client = cluster.client
    do(cluster, client, client.initialise(7, claim=True))
    cluster.settle_down(lambda: 7 in client.initial_refusals)
    assert "no table 7" in client.initial_refusals[7]
    goes_on(cluster)


# ------------------------------------------------------------------ pulls
def bad_rows(parts: Parts) -> Parts:
    parts[1][1][0] = parts[1][1][0] + 1  # lies on another shard
    return parts


def negative_rows(parts: Parts) -> Parts:
    parts[1][1][0] = -1 - parts[1][1][0]
    return parts


def far_rows(parts: Parts) -> Parts:
    parts[1][1][0] = parts[1][1][0] + 3 * 2 * 100
    return parts


def int32_rows(parts: Parts) -> Parts:
    parts[1][1][0] = parts[1][1][0].astype(np.int32)
    return parts


def strided_rows(parts: Parts) -> Parts:
    parts[1][1][0] = np.repeat(parts[1][1][0], 2)[::2]
    return parts


def float64_values(parts: Parts) -> Parts:
    parts[1][1][1] = parts[1][1][1].astype(np.float64)
    return parts


def short_values(parts: Parts) -> Parts:
    parts[1][1][1] = parts[1][1][1][:-1]
    return parts


def unknown_table(parts: Parts) -> Parts:
    parts[1][0][0] = Section([9], parts[1][0][0].counts)
    return parts


def negative_table(parts: Parts) -> Parts:
    parts[1][0][0] = Section([-1], parts[1][0][0].counts)
    return parts


def other_counts(parts: Parts) -> Parts:
    parts[1][0][0] = Section(parts[1][0][0].tables, [1])
    return parts


def negative_counts(parts: Parts) -> Parts:
    size = len(parts[1][1][0])
    parts[1][0][0] = Section([0, 0], [size + 1, -1])
    return parts


def missing_frame(parts: Parts) -> Parts:
    del parts[1][1][-1]
    return parts


def no_shard(parts: Parts) -> Parts:
    parts[3] = parts[1]
    return parts


def not_finite(parts: Parts) -> Parts:
    parts[1][1][1][5] = float("inf")
    return parts


OF_ROWS = [
    (bad_rows, r"row \d+ of table 't' is not on shard 1"),
    (negative_rows, r"row -\d+ of table 't'.* 0 to 39"),
    (far_rows, r"row 6\d+ of table 't'.* 0 to 39"),
    (int32_rows, "int32.*int64"),
    (strided_rows, "contiguous"),
    (unknown_table, "table 9"),
    (negative_table, "table -1"),
    (other_counts, "counts"),
    (negative_counts, "counts"),
    (missing_frame, "frames"),
    (no_shard, "shard 3"),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *OF_ROWS,
        (float64_values, "float64.*float32"),
        (short_values, "values"),
        (not_finite, "table 't', row .* is inf"),
    ],
)
def test_a_push_that_one_shard_would_refuse_goes_to_no_shard(change: Callable[[Parts], Parts], words: str) -> None:
    cluster = cluster_of()
    before, sent, pushed = cluster.read(SPEC), watermarks(cluster), cluster.client.pushed
    parts = change(parts_of(cluster))
    with pytest.raises((RefusedError, GradientError), match=words):
        cluster.client.push(parts)
    cluster.run()
    assert cluster.client.pushed == pushed and watermarks(cluster) == sent
    assert cluster.read(SPEC).tobytes() == before.tobytes()
    goes_on(cluster)


@pytest.mark.parametrize(("change", "words"), OF_ROWS)
def test_a_pull_that_one_shard_would_refuse_is_asked_of_none(change: Callable[[Parts], Parts], words: str) -> None:
    cluster = cluster_of()
    parts = change(parts_of(cluster))
    pull = {shard: (sections, frames[::2]) for shard, (sections, frames) in parts.items()}
    if change is missing_frame:
        pull[1] = (pull[1][0], [])
    with pytest.raises(RefusedError, match=words):
        cluster.client.pull(pull, exact=True)
    assert cluster.client.can_push
    goes_on(cluster)


def test_a_push_with_a_split_that_is_refused_takes_no_examples() -> None:
    cluster = cluster_of()
    client = cluster.client
    do(cluster, client, client.lease(m.Dataset("d", 10, 10, 5)))
    cluster.settle_down(lambda: bool(client.leasing.leases))
    with pytest.raises(RefusedError):
        client.push(int32_rows(parts_of(cluster)), examples=3)
    assert client.leasing.examples_left == 5
    do(cluster, client, client.push(parts_of(cluster), examples=5))
    cluster.drain()
    assert not client.leasing.leases and client.leasing.cursor
    invariants.check(client)


def test_a_table_that_not_all_shards_have_yet_is_not_pushed_to() -> None:
    cluster = cluster_of()
    client = cluster.client
    third = table("third", rows=9, code="1+1")
    cluster.blocked.add(("scheduler", cluster.shards[1]))
    do(cluster, client, client.create_table(third))
    for _ in range(30):
        cluster.run()
        cluster.tick()
    client.tables["third"] = (2, third)  # as when its view is here before the other shards have it
    with pytest.raises(RefusedError, match=r"'third'.*create"):
        client.push(parts_of(cluster, third, range(9)))
    cluster.blocked.clear()
    cluster.settle_down(lambda: client.table_ready("third"))
    do(cluster, client, client.push(parts_of(cluster, third, range(9))))
    goes_on(cluster)


# ------------------------------------------------------------------ bytes
ADAM = msgspec.structs.replace(table("wide", rows=300, dim=64, code="2+1"), optimizer=OptimizerSpec(
    "adam", (0.1, 0.9, 0.999, 1e-8)))  # fmt: skip


def test_a_push_whose_deltas_are_too_long_for_one_shard_goes_to_none() -> None:
    cluster = cluster_of(ProtocolConfig(frame_bytes_max=16 << 10), SPEC, ADAM)
    cluster.config = ProtocolConfig()
    rows = [0, *(row for row in range(ADAM.rows) if (row // 2 + row % 2) % 3 == 1)]
    with pytest.raises(RefusedError, match=r"(?s)table 'wide'.*shard 1.*78,?400 bytes.*16,?384.*fewer rows"):
        cluster.client.push(parts_of(cluster, ADAM, rows))
    cluster.run()
    goes_on(cluster)


def test_a_push_that_is_longer_than_a_frame_is_cut_into_sections_and_stays_one_push(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = []
    for limit in (wire.REQUEST_BYTES_MAX, 1000):
        monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", limit)
        cluster = cluster_of(None, SPEC, OTHER, ADAM)
        by_shard: dict[int, Any] = {}
        for spec in (SPEC, ADAM):
            for shard, (sections, frames) in parts_of(cluster, spec, range(spec.rows), 0.5).items():
                known = by_shard.setdefault(
                    shard, ([Section([], [])], [np.zeros(0, np.int64), np.zeros(0, np.float32)])
                )
                known[0][0] = Section(known[0][0].tables + sections[0].tables, known[0][0].counts + sections[0].counts)
                known[1][:] = [np.concatenate(both) for both in zip(known[1], frames, strict=True)]
        do(cluster, cluster.client, cluster.client.push(by_shard))
        kept = [kept for shard in cluster.client._shards.values() for kept in shard.kept]
        assert all(memoryview(frame).nbytes <= limit for k in kept for frame in k.frames)
        assert (max(len(k.sections) for k in kept) > 3) == (limit == 1000)
        cluster.drain()
        assert watermarks(cluster) == [1, 1, 1]
        steps.append((cluster.read(SPEC).tobytes(), cluster.read(ADAM).tobytes()))
        cluster.scrub()
    assert steps[0] == steps[1]


def test_a_push_of_more_sections_than_a_message_takes_goes_to_no_shard() -> None:
    cluster = cluster_of()
    parts = parts_of(cluster, SPEC, [0])
    ((shard, (sections, frames)),) = parts.items()
    with pytest.raises(RefusedError, match=r"4,?098 frames.*4,?096"):
        cluster.client.push({shard: (sections * 2049, frames * 2049)})
    with pytest.raises(RefusedError, match=r"4,?097 frames.*4,?096"):
        cluster.client.pull({shard: (sections * 4097, frames[:1] * 4097)}, exact=True)
    goes_on(cluster)


def test_a_pull_whose_answer_is_too_long_is_asked_of_no_shard() -> None:
    cluster = cluster_of(ProtocolConfig(answer_bytes_max=1000))
    with pytest.raises(RefusedError, match=r"table 't'.*shard 0.*bytes.*1,?000.*fewer rows"):
        cluster.pull(SPEC, [row for row in range(40) if (row // 2 + row % 2) % 3 == 0] * 5)
    assert cluster.client.can_push


def test_a_pull_of_more_row_ids_than_a_frame_holds_is_asked_of_no_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of()
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", 100)
    with pytest.raises(RefusedError, match=r"table 't'.*160 bytes.*100"):
        cluster.pull(SPEC, [0] * 20)
    assert cluster.client.can_push


def test_a_push_in_a_barrier_is_small_enough_for_the_sum_of_all() -> None:
    """Each worker's part is applied with those of the others, and one shard could refuse the sum alone."""
    cluster = cluster_of(ProtocolConfig(frame_bytes_max=1200), SPEC)
    first, second = cluster.client, add_worker(cluster, 1)
    do(cluster, second, second.create_table(SPEC))
    for machine in (first, second):
        do(cluster, machine, machine.join_run(2))
    cluster.settle_down(lambda: first.runs.run and second.runs.run and second.table_ready("t"))
    largest = float(np.finfo(np.float32).max)
    with pytest.raises(RefusedError, match=r"table 't', row .*2 workers"):
        first.push(parts_of(cluster, value=largest * 0.9), barrier=2)
    for machine in (first, second):
        do(cluster, machine, machine.push(parts_of(cluster, value=largest * 0.2), barrier=2))
    cluster.settle_down(lambda: (first.durable and second.durable) or first.failed)
    assert not first.failed and not second.failed


# ------------------------------------------------------------------ what only a shard can refuse
def test_a_pull_that_a_shard_refuses_concerns_that_pull_alone() -> None:
    cluster = cluster_of()
    client = cluster.client
    refused, fine = cluster.pull(SPEC, range(12)), cluster.pull(OTHER, range(12))
    assert not client.can_push
    source = Address(SHARD, 1, client.epoch_of(1))
    cluster.give("worker-0", Received(source, m.PullRefused(refused, "too many pulls wait already")))
    assert cluster.refused == {refused: f"{source} refused a pull of rows of table 't': too many pulls wait already"}
    cluster.run()
    assert fine in cluster.done and refused not in cluster.done
    cluster.give("worker-0", Received(source, m.PullRefused(fine, "late")))
    assert list(cluster.refused) == [refused]
    goes_on(cluster)


def test_a_push_that_one_shard_refuses_ends_the_session_and_says_what_the_others_may_have_applied() -> None:
    cluster = cluster_of()
    parts = parts_of(cluster)
    parts.pop(2)
    do(cluster, cluster.client, cluster.client.push(parts))
    cluster.channels["worker-0", cluster.shards[1]].clear()
    source = Address(SHARD, 1, cluster.client.epoch_of(1))
    cluster.give("worker-0", Received(source, m.PushRefused(1, "it does not fit")))
    assert cluster.client.failed_kind == "part"
    for words in (f"{source} refused push 1: it does not fit", "shard 0 may have applied", "start this worker again"):
        assert words in cluster.client.failed
    cluster.run()
    again = add_worker(cluster, 0, 1)  # its next life goes on from what each shard has applied
    assert again.pushed == {0: 1, 1: 0, 2: 1}


def test_what_a_shard_refuses_of_a_client_that_checks_nothing_leaves_it_as_it_was() -> None:
    cluster = cluster_of()
    client, shard = cluster.client, cluster.shard(1)
    sections, frames = parts_of(cluster)[1]
    bad = Received(client.address, m.Push(client.epoch, 1, 0, False, sections), (frames[0], frames[1] * np.inf))
    for _ in range(2):
        (reply,) = [
            e.message
            for e in shard.handle(bad, cluster.now_ms)
            if isinstance(getattr(e, "message", None), m.PushRefused)
        ]
        assert reply.number == 1 and not reply.nowhere
        assert not shard.context.workers[0].queue and not shard.watermarks.get(0)
    good = Received(client.address, m.Push(client.epoch, 1, 0, False, sections), tuple(frames))
    shard.handle(good, cluster.now_ms)
    assert shard.watermarks[0] == 1


def test_what_the_scheduler_says_of_others_is_not_taken() -> None:
    cluster = cluster_of()
    scheduler = Address(SCHEDULER, 0, 0)
    cluster.give("worker-0", Received(scheduler, m.Refused(999, "of another one")))
    client: ClientMachine = cluster.client
    assert not (client.table_refusals or client.leasing.refusal or client.runs.refusal or client.initial_refusals)
    goes_on(cluster)


def test_a_table_with_a_number_that_none_has_is_not_taken() -> None:
    cluster = cluster_of()
    client = cluster.client
    client.create_table(table("third", rows=9, code="1+1"))
    request = client._tables._creating["third"][0]
    with pytest.raises(ValueError, match="'third' has number 4398046511104"):
        client.handle(Received(Address(SCHEDULER, 0, 0), m.TableReady(request, 1 << 42)), cluster.now_ms)
    assert client.creating("third")
    goes_on(cluster)

"""The scrub: which member of a stripe is wrong, and what is done about it."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send, Tick
from ecrec.protocol.messages import LOCATED, RESEEDING, TOOL, UNSURE, UP, Address
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.shard import ShardMachine

TOOL_ADDRESS = Address(TOOL, 7, 0)


def trained(n: int, spec: TableSpec, config: ProtocolConfig | None = None) -> Cluster:
    cluster = Cluster(n, config)
    cluster.create(spec)
    cluster.push(spec, {row: 1.0 + row for row in range(spec.rows)})
    cluster.drain()
    return cluster


def flip_parity(cluster: Cluster, shard: int, key: int, byte: int = 3) -> None:
    """A delta that no data row has."""
    store = cluster.shard(shard).store
    wrong = np.zeros(store.record_bytes(key >> 48), np.uint8)
    wrong[byte] = 1
    class_id = int(store.classes(np.array([key], np.uint64))[0])
    source = cluster.shard(shard).placement.classes[class_id].data[0]
    store.fold(source, 2**64 - 1, np.array([key], np.uint64), wrong)


def flip_data(cluster: Cluster, spec: TableSpec, row: int) -> None:
    """A weight changes, and nobody is told."""
    shard = (row // spec.code.k + row % spec.code.k) % cluster.n
    values = np.full(spec.dim, 9.0, np.float32)
    one = np.array([0], np.int32), np.array([1], np.int64), np.array([row], np.int64)
    cluster.shard(shard).store.assign(*one, values, None)


def scrub(cluster: Cluster, class_id: int, repair: bool = True, request: int = 1) -> tuple[Any, list[tuple[int, ...]]]:
    """The result, and (key, slot, verdict) of what does not fit."""
    leader = cluster.shard(0).placement.classes[class_id].parity[0]
    cluster.give(cluster.shards[leader], Received(TOOL_ADDRESS, m.Scrub(request, class_id, 0, 10_000, repair)))
    cluster.run()
    return found(cluster)


def found(cluster: Cluster) -> tuple[Any, list[tuple[int, ...]]]:
    result, frames = cluster.tool_answers[-1]
    if not isinstance(result, m.ScrubResult):
        return result, []
    columns = [np.frombuffer(f, t).tolist() for f, t in zip(frames, (np.uint64, np.uint8, np.uint8), strict=True)]
    return result, list(zip(*columns, strict=True))


@pytest.mark.parametrize(("n", "code"), [(5, "4+1"), (5, "3+2"), (6, "3+3"), (3, "1+2"), (5, "1+1")])
def test_all_fits(n: int, code: str) -> None:
    spec = table(code=code, rows=50)
    cluster = trained(n, spec)
    stripes = -(-spec.rows // spec.code.k)
    results = [scrub(cluster, class_id) for class_id in range(n)]
    assert [bad for _, bad in results] == [[]] * n
    assert sum(result.stripes for result, _ in results) == stripes
    assert sum(result.parity_rows for result, _ in results) == stripes * spec.code.r
    record = cluster.shard(0).store.record_bytes(0)
    assert sum(result.bytes_read for result, _ in results) == (spec.rows + stripes * spec.code.r) * record


def test_one_parity_row_cannot_tell_and_is_rewritten() -> None:
    cluster = trained(5, table())
    flip_parity(cluster, 4, key=0)
    assert scrub(cluster, 0, repair=False)[1] == [(0, 4, UNSURE)]
    result, bad = scrub(cluster, 0)
    assert result.repaired and bad == [(0, 4, UNSURE)]
    assert cluster.shard(4).scrubs.corrected == 1
    assert scrub(cluster, 0)[1] == []
    cluster.scrub()


@pytest.mark.parametrize("generator", ["cauchy", "isal-cauchy"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_with_more_parity_rows_the_wrong_one_is_located(which: int, generator: str) -> None:
    spec = TableSpec("t", 60, 4, CodeSpec(3, 3, generator), OptimizerSpec("sgd", (0.5,)), "uniform", 1, 0.1, 0.0)
    cluster = trained(6, spec)
    for byte in range(0, 16, 5):
        flip_parity(cluster, 3 + which, key=0, byte=byte)
    result, bad = scrub(cluster, 0)
    assert result.repaired and bad == [(0, 3 + which, LOCATED)]
    assert [cluster.shard(s).scrubs.corrected for s in (3, 4, 5)] == [int(which == i) for i in range(3)]
    assert scrub(cluster, 0)[1] == []
    cluster.scrub()


@pytest.mark.parametrize(("n", "code"), [(5, "3+2"), (6, "2+3"), (3, "1+2")])
def test_a_wrong_data_row_is_located_and_parity_stays(n: int, code: str) -> None:
    spec = table(code=code, rows=60)
    cluster = trained(n, spec)
    for row in (spec.code.k - 1, n * spec.code.k):  # both in class 0
        flip_data(cluster, spec, row)
    _, bad = scrub(cluster, 0)
    assert bad == [(0, spec.code.k - 1, LOCATED), (n, 0, LOCATED)]
    assert scrub(cluster, 0)[1] == bad
    assert all(cluster.shard(s).scrubs.corrected == 0 for s in range(n))


def test_several_wrong_members_cannot_be_told_apart() -> None:
    spec = table(code="3+2", rows=60)
    cluster = trained(5, spec)
    flip_parity(cluster, 3, key=0, byte=1)
    flip_parity(cluster, 4, key=0, byte=9)
    assert scrub(cluster, 0)[1] == [(0, 3, UNSURE), (0, 4, UNSURE)]
    assert scrub(cluster, 0)[1] == []
    cluster.scrub()


@pytest.mark.parametrize("wrong_rows_max", [1, 3, 16, 100])
def test_where_much_is_wrong_less_is_compared_at_a_time_and_all_of_it_is_corrected_once(wrong_rows_max: int) -> None:
    """To judge a whole chunk at once would take a server's only thread a third of a second."""
    spec = table(code="3+2", rows=900)
    record = 4 * spec.dim
    cluster = trained(5, spec, ProtocolConfig(scrub_wrong_bytes_max=wrong_rows_max * record))
    assert cluster.shard(0).store.record_bytes(0) == record
    leader = cluster.shard(0).placement.classes[0].parity[0]
    store = cluster.shard(leader).store
    keys = [key for key in range(100) if store.classes(np.array([key], np.uint64))[0] == 0]
    for key in keys:
        flip_parity(cluster, leader, key)
    answers, wrong, first = [], [], 0
    while first < len(keys) + 40:
        cluster.give(cluster.shards[leader], Received(TOOL_ADDRESS, m.Scrub(1, 0, first, 16, True)))
        cluster.run()
        answer, bad = found(cluster)
        answers.append(type(answer))
        if isinstance(answer, m.ScrubResult):
            assert len(bad) <= max(1, wrong_rows_max)
            wrong += bad
            first = answer.last
            if first == answer.size:
                break
    assert sorted(wrong) == [(key, 3, LOCATED) for key in keys]
    assert cluster.shard(leader).scrubs.corrected == len(keys)
    assert (m.ScrubBusy in answers) == (wrong_rows_max < 16)
    answer, bad = scrub(cluster, 0)
    while answer.last < answer.size:
        assert not bad
        leads = Received(TOOL_ADDRESS, m.Scrub(1, 0, answer.last, 10_000, False))
        cluster.give(cluster.shards[leader], leads)
        cluster.run()
        answer, bad = found(cluster)
    assert not bad
    whole, _ = scrub(cluster, 0, repair=False)
    assert whole.last == whole.size, "where nothing is wrong all is compared at a time again"


def test_parity_that_its_holder_lacks_as_a_whole_is_found_and_corrected() -> None:
    """That says that no row was touched: how many were touched there makes no question smaller."""
    spec = table(code="3+2", rows=900)
    cluster = trained(5, spec, ProtocolConfig(scrub_wrong_bytes_max=16 * 4 * spec.dim))
    leader = cluster.shard(0).placement.classes[0].parity[0]
    cluster.shard(leader).store.wipe_parity(0)
    first = 0
    for tries in range(1, 60):
        cluster.give(cluster.shards[leader], Received(TOOL_ADDRESS, m.Scrub(tries, 0, first, 10_000, True)))
        cluster.run()
        answer, _ = found(cluster)
        if isinstance(answer, m.ScrubBusy):
            assert answer.bytes_read > 0
            continue
        first = answer.last
        if first == answer.size:
            break
    assert isinstance(answer, m.ScrubResult) and first == answer.size
    cluster.scrub()


def test_a_row_that_there_is_not_is_not_to_blame() -> None:
    """The last stripe has one data row: what looks as if its second one were wrong is its parity."""
    spec = table(code="2+2", rows=9)  # stripe 4 has row 8 alone
    cluster = trained(4, spec)
    store, key = cluster.shard(2).store, np.array([4], np.uint64)
    wrong = np.zeros(store.record_bytes(0), np.uint8)
    wrong[2] = 5
    for holder in (2, 3):
        code = cluster.shard(holder).captures.code(0)
        row = code.coefficients[holder - 2]
        from ecrec._native import RowBuffer, gf_inverse

        scaled = RowBuffer(cluster.shard(holder).store)
        scaled.fold(gf_inverse(int(row[0])), key, wrong)
        keys, once = scaled.take()
        scaled.fold(int(row[1]), keys, once)
        cluster.shard(holder).store.fold(0, 2**64 - 1, *scaled.take())
    assert scrub(cluster, 0)[1] == [(4, 2, UNSURE), (4, 3, UNSURE)]


def flipped_at_the_other(spec: TableSpec) -> tuple[Cluster, str, str]:
    """A trained cluster of a 3+2 table, and the two holders of class 0's parity; the second's is wrong in stripe 0."""
    cluster = trained(5, spec)
    flip_parity(cluster, 4, key=0)
    return cluster, cluster.shards[3], cluster.shards[4]


def test_pushes_between_the_cut_and_the_correction_are_kept() -> None:
    spec = table(code="3+2", rows=60)
    cluster, leader, other = flipped_at_the_other(spec)
    cluster.blocked.add((leader, other))
    cluster.give(leader, Received(TOOL_ADDRESS, m.Scrub(1, 0, 0, 1000, True)))
    for _ in range(3):
        cluster.push(spec, dict.fromkeys(range(spec.rows), 0.5))
        cluster.run()
    cluster.blocked.clear()
    # the capture there begins with the first MARKER, not with the leader's question
    cluster.run()
    assert found(cluster)[1] == [(0, 4, LOCATED)]
    cluster.push(spec, dict.fromkeys(range(spec.rows), 0.5))
    cluster.drain()
    cluster.scrub()


def test_asked_again_in_the_middle_nothing_is_corrected_twice() -> None:
    cluster, leader, other = flipped_at_the_other(table(code="3+2", rows=60))
    cluster.blocked.add((other, leader))
    for request in (1, 2):
        cluster.give(leader, Received(TOOL_ADDRESS, m.Scrub(request, 0, 0, 1000, True)))
        cluster.run()
    cluster.give(leader, Received(Address(TOOL, 8, 0), m.Scrub(3, 0, 0, 1000, True)))
    cluster.run()
    assert isinstance(cluster.tool_answers[-1][0], m.ScrubBusy)
    cluster.blocked.clear()
    cluster.run()
    result, bad = found(cluster)
    assert (result.request, bad) == (2, [(0, 4, LOCATED)])
    assert cluster.shard(4).scrubs.corrected == 1
    cluster.scrub()


def test_a_death_in_the_middle_ends_it_and_the_next_one_repairs() -> None:
    cluster, leader, other = flipped_at_the_other(table(code="3+2", rows=60))
    cluster.blocked.add((leader, other))
    cluster.give(leader, Received(TOOL_ADDRESS, m.Scrub(1, 0, 0, 1000, True)))
    cluster.run()
    cluster.kill(1)
    cluster.declared(1)
    cluster.run()
    busy = cluster.tool_answers[-1][0]
    assert isinstance(busy, m.ScrubBusy) and "membership" in busy.reason
    cluster.blocked.clear()
    cluster.replace(1)
    cluster.drain()
    bad = scrub(cluster, 0, request=2)[1]
    assert scrub(cluster, 0, request=3)[1] == []
    # what it had already sent may have been taken before the death was known
    assert bad in ([(0, 4, LOCATED)], [])
    assert cluster.shard(4).scrubs.corrected == 1
    cluster.scrub()


def test_only_the_leader_scrubs_and_only_it_may_correct() -> None:
    cluster = trained(5, table(code="3+2", rows=60))
    cluster.give(cluster.shards[4], Received(TOOL_ADDRESS, m.Scrub(1, 0, 0, 100)))
    assert isinstance(cluster.tool_answers[-1][0], m.ScrubBusy)
    victim, peer = cluster.shard(3), cluster.shard(1)
    correct = m.CorrectParity(victim.view, 1, 0)
    frames = np.array([0], np.uint64), np.ones(16, np.uint8)
    with pytest.raises(ValueError, match="does not lead"):
        victim.handle(Received(peer.address, correct, frames), cluster.now_ms)
    cluster.scrub()


def test_a_scrub_that_waits_while_the_clock_jumps_is_given_up_once() -> None:
    """The capture of another holder is missing when the leader's process comes back from a sleep."""
    cluster = trained(5, table(code="1+3", rows=17))
    stripe = cluster.shard(0).placement.classes[0]
    leader, silent = (cluster.shards[shard] for shard in stripe.parity[:2])
    cluster.blocked.add((silent, leader))
    cluster.give(leader, Received(TOOL_ADDRESS, m.Scrub(1, stripe.class_id, 0, 10_000, True)))
    cluster.run()
    assert cluster.tool_answers == []
    cluster.now_ms += 40 * cluster.config.repair_timeout_ms
    cluster.give(leader, Tick())
    assert [type(answer) for answer, _ in cluster.tool_answers] == [m.ScrubBusy]
    cluster.blocked.clear()
    cluster.run()
    assert not any(
        machine.captures.assemblies for machine in cluster.machines.values() if isinstance(machine, ShardMachine)
    )
    assert scrub(cluster, stripe.class_id, request=2)[1] == []


def test_a_scrub_that_cannot_begin_is_answered_once_and_nothing_is_begun() -> None:
    spec = table(code="3+2")
    cluster = trained(5, spec)
    classes = cluster.shard(0).placement.classes
    mine = next(stripe for stripe in classes if stripe.parity[0] == 0)
    scrubs, context = cluster.shard(0).scrubs, cluster.shard(0).context
    context.state = RESEEDING
    for class_id in (len(classes), mine.class_id):
        context.effects = []
        scrubs.on_scrub(TOOL_ADDRESS, m.Scrub(1, class_id, 0, 10), ())
        (answer,) = [effect.message for effect in context.effects if isinstance(effect, Send)]
        assert isinstance(answer, m.ScrubBusy) and not scrubs.running
    context.state = UP

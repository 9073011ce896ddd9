"""Messages of servers that do not fit, and messages that would cost too much: refused as a whole, with nothing lost."""

from typing import Any

import msgspec
import numpy as np
import pytest
from cluster import Cluster, table
from hypothesis import given, settings
from hypothesis import strategies as st

from ecrec._native import Store
from ecrec.errors import ConfigurationError
from ecrec.protocol import admission, tables, workers
from ecrec.protocol import messages as m
from ecrec.protocol import pulls as pulls_module
from ecrec.protocol import scrub as scrub_module
from ecrec.protocol import shard as shard_module
from ecrec.protocol import state as state_module
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import BAD_CONTENT, OUTDATED, Note, Received, Send, Stop
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec, OptimizerSpec, Placement, TableSpec
from ecrec.protocol.pulls import PULLS_WAITING_MAX
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.table_memory import add_table
from ecrec.protocol.tables import check_table

SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
WORKER = m.Address(m.WORKER, 0, 1)
SPEC = table(rows=60, code="3+2")
STRIPES = m.Stripes(0, 0, 1)


@pytest.fixture
def cluster() -> Cluster:
    """Five shards that hold some rows."""
    made = Cluster(5)
    made.create(SPEC)
    made.push(SPEC, {row: float(row) for row in range(SPEC.rows)})
    made.drain()
    return made


def peer(shard: int) -> m.Address:
    return m.Address(m.SHARD, shard, 1)


def view_of(machine: Any) -> m.ShardDown:
    """The next view."""
    return m.ShardDown(machine.view + 1, 2, 1)


# ------------------------------------------------------------------ between shards
@pytest.mark.parametrize(
    ("stripes", "holders"), [(STRIPES, [99]), (m.Stripes(99, 0, 1), [3]), (m.Stripes(0, 5, 2**40), [3]), (STRIPES, [0])]
)
def test_a_mark_that_cannot_be_made_closes_no_window(cluster: Cluster, stripes: m.Stripes, holders: list[int]) -> None:
    """A window that was closed and not sent would be a gap in all streams for ever."""
    machine = cluster.shard(0)
    number = machine.context.window_number
    with pytest.raises(BAD_CONTENT):
        snap = m.Snap(machine.view, 7, stripes, holders, True)
        machine.handle(Received(peer(3), snap, (b"",)), cluster.now_ms)
    assert machine.context.window_number == number
    check_parted(cluster, machine, 3)


def check_parted(cluster: Cluster, machine: ShardMachine, other: int) -> None:
    """Of a server that sent what does not fit nothing more is taken; it is accused, and one of the two replaced."""
    peer = machine.peers[other]
    assert peer.broken and not machine.takes_from(m.Address(m.SHARD, other, 1))
    received = peer.received
    cluster.push(SPEC, {row: 1.0 for row in range(SPEC.rows)})
    cluster.run()
    assert peer.received == received
    cluster.settle_down(lambda: bool(cluster.stopped))
    (dead,) = [shard for shard in (machine.shard, other) if cluster.shards[shard] in cluster.stopped]
    cluster.replace(dead)
    cluster.drain()
    cluster.scrub()


def test_a_window_that_does_not_fit_changes_nothing(cluster: Cluster) -> None:
    machine = cluster.shard(3)
    known = machine.peers[0]
    before = known.received, dict(known.rounds), len(known.undo)
    keys = np.array([0], np.uint64).tobytes()
    for begins, records in (({3: 9}, b"too short"), ({64: 1}, b""), ({-1: 1}, b"")):
        known.broken = False
        window = m.Window(known.received + 1, 0, {}, begins, [])
        with pytest.raises(BAD_CONTENT):
            machine.handle(Received(peer(0), window, (keys if records else b"", records)), cluster.now_ms)
    assert (known.received, known.rounds, len(known.undo)) == before


def test_a_repair_that_does_not_fit_is_still_asked(cluster: Cluster) -> None:
    cluster.kill(2)
    cluster.blocked |= {(a, b) for a in cluster.machines for b in [cluster.next_process] if a.startswith("process")}
    machine = cluster.replace(2)
    asked = dict(machine.repairs.asked)
    assert asked
    request, wanted = next(iter(asked.items()))
    keys = np.array([0, 5], np.uint64).tobytes()
    for stripes, rows in ((wanted.stripes, b"short"), (m.Stripes(0, 0, 2**62), b"")):
        machine.peers[3].broken = False
        repaired = m.Repaired(machine.view, request, stripes)
        with pytest.raises(BAD_CONTENT):
            machine.handle(Received(peer(3), repaired, (b"", keys, rows)), cluster.now_ms)
    assert machine.repairs.asked == asked


def test_rows_of_a_member_that_do_not_fit_end_the_repair_and_no_more(cluster: Cluster) -> None:
    """They are looked at when the last member's are here: its message is not to blame."""
    machine = cluster.shard(3)
    tool = m.Address(m.TOOL, 1, 1)
    effects = machine.handle(Received(tool, m.Scrub(1, 0, 0, 10)), cluster.now_ms)
    snaps = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, m.Snap)]
    notes = []
    for snap in snaps:
        mark = m.Marker(machine.view, snap.message.request, snap.message.stripes)
        bad = np.array([0], np.uint64).tobytes(), b"short"
        notes += machine.handle(Received(snap.to, mark, (b"", *bad)), cluster.now_ms)
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.message, m.CaptureParity):
            captured = m.Captured(machine.view, effect.message.request)
            notes += machine.handle(Received(effect.to, captured, (b"", b"")), cluster.now_ms)
    assert any(isinstance(note, Note) and "gave up a scrub of class 0" in note.text for note in notes)
    assert not machine.captures.assemblies


def test_a_push_to_a_table_that_a_peer_has_not_heard_of_makes_no_hole(cluster: Cluster) -> None:
    """Nobody but a worker that does not wait for its table can do it."""
    late = cluster.shards[4]
    other = table("other", rows=60, code="3+2")
    cluster.blocked.add(("scheduler", late))
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(other))
    cluster.run()
    waiting = cluster.channels["scheduler", late]
    assert [type(event.message) for event in waiting] == [m.PrepareTable]
    cluster.give(late, waiting.popleft())
    cluster.settle_down(lambda: cluster.shard(0).store.tables == 2)
    assert cluster.shard(0).store.tables == 2 and cluster.shard(4).store.tables == 1
    for shard in range(4):
        rows = np.array([row for row in range(60) if (row // 3 + row % 3) % 5 == shard])
        push = m.Push(1, 1, 0, False, [m.Section([1], [len(rows)])])
        early = Received(m.Address(m.WORKER, 7, 1), push, (rows, np.ones(4 * len(rows), np.float32)))
        cluster.give(cluster.shards[shard], early)
        cluster.give(cluster.shards[shard], Received(m.Address(m.WORKER, 7, 1), m.Flush(1)))
    cluster.run()
    assert any(p.held for p in cluster.shard(4).peers.values())
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("other"))
    cluster.drain()
    assert not any(p.broken or p.held for p in cluster.shard(4).peers.values())
    cluster.settle_down(lambda: all(cluster.shard(s).durable.get(7) == 1 for s in range(4)))
    cluster.scrub()


def test_a_shard_takes_nothing_from_itself(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    effects = machine.handle(Received(peer(0), m.Join(5, {}, True)), cluster.now_ms)
    assert [type(effect) for effect in effects] == [Note]


def test_what_waits_behind_a_message_that_does_not_fit_is_not_taken(cluster: Cluster) -> None:
    """It is a hole in the stream; what another server sent is taken."""
    machine = cluster.shard(3)
    early = machine.view + 1
    for sender, class_id, request in ((1, 77, 5), (1, 0, 6), (2, 0, 7)):
        repair = m.Repair(early, request, m.Stripes(class_id, 0, 1))
        machine.handle(Received(peer(sender), repair, (b"",)), cluster.now_ms)
    assert [len(machine.peers[sender].held) for sender in (1, 2)] == [2, 1]
    added = m.TableAdded(early, table("other", code="3+2"))
    effects = machine.handle(Received(SCHEDULER, m.Views(0, [added])), cluster.now_ms)
    assert any(isinstance(effect, Note) and "there is no class 77" in effect.text for effect in effects)
    assert list(machine.captures.assemblies) == [7]
    assert [peer.shard for peer in machine.context.others() if peer.broken] == [1]


# ------------------------------------------------------------------ views
@pytest.mark.parametrize("shard", [-1, 5, 2**40])
def test_views_of_a_shard_that_there_is_not_are_not_taken(cluster: Cluster, shard: int) -> None:
    machine = cluster.shard(0)
    number = machine.view
    for bad in (m.ShardDown, m.ShardWhole):
        views = m.Views(0, [m.ShardWhole(number + 1, 1, 1), bad(number + 2, shard, 1)])
        with pytest.raises(ValueError, match=f"of shard {shard}, in a group of 5"):
            machine.handle(Received(SCHEDULER, views), cluster.now_ms)
    assert machine.view == number


def test_a_start_that_cannot_be_leaves_the_process_without_a_place() -> None:
    members = [m.Member(i, 1, m.UP, f"tcp://x:{i}") for i in range(5)]
    good = m.FullView(1, 0, 1, 5, 2, 1, False, 0, {}, members, [SPEC], [], "", ProtocolConfig())
    replace = msgspec.structs.replace
    machine = ShardMachine("p", "tcp://x:2", 2)
    for bad in (
        replace(good, n=17),
        replace(good, n=2**62),
        replace(good, shard=5),
        replace(good, members=members[1:]),
        replace(good, window=-1),
        replace(good, tables=[replace(SPEC, rows=2**60)]),
        replace(good, unsettled=[replace(members[0], shard=7)]),
        replace(good, group=3),
    ):
        with pytest.raises(BAD_CONTENT):
            machine.handle(Received(SCHEDULER, m.Views(0, [bad])), 0.0)
        assert (machine.state, machine.address) == ("", m.Address(m.SHARD, -1, 0))
    machine.handle(Received(SCHEDULER, m.Views(0, [good])), 0.0)
    assert machine.state == m.UP


def test_a_shard_that_cannot_hold_a_table_ends(cluster: Cluster) -> None:
    """Every later table would have another number there than on all other shards."""
    machine = cluster.shard(0)
    big = msgspec.structs.replace(SPEC, name="big", rows=2**60)
    effects = machine.handle(Received(SCHEDULER, m.Views(0, [m.TableAdded(machine.view + 1, big)])), 0.0)
    assert any(isinstance(e, Stop) and "cannot hold table 'big'" in e.reason for e in effects)


def test_a_shard_whose_place_another_has_ends(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    up = m.ShardUp(machine.view + 1, 0, 2, "tcp://x:9", 0, {})
    effects = machine.handle(Received(SCHEDULER, m.Views(0, [up])), 0.0)
    assert any(isinstance(e, Stop) and "another process is shard 0, epoch 2" in e.reason for e in effects)


def test_a_worker_takes_no_views_that_cannot_be(cluster: Cluster) -> None:
    client = cluster.client
    before = list(client._views)
    down = m.ShardDown(before[0] + 1, 9, 1)
    start = m.FullView(before[0] + 1, 0, 1, 4, -1, 1, False, 0, {}, [], [], [], "", ProtocolConfig())
    for views in (m.Views(0, [down]), m.Views(5, []), m.Views(0, [start])):
        with pytest.raises(ValueError, match=r"in a group of 5|views of group 5|FullView: 0 members"):
            client.handle(Received(SCHEDULER, views), cluster.now_ms)
    assert client._views == before
    new = ClientMachine(1, "new")
    for groups in (2**40, 0):
        bad = msgspec.structs.replace(start, n=1, groups=groups, members=[m.Member(0, 1, m.UP, "tcp://x:1")])
        with pytest.raises(ValueError, match=f"there are {groups}"):
            new.handle(Received(SCHEDULER, m.Views(0, [bad])), 0.0)
        assert new._views == [-1]


# ------------------------------------------------------------------ what would grow without bound
@pytest.mark.parametrize("worker", [-1, m.WORKERS_MAX, 2**31 - 1])
def test_a_worker_that_cannot_be_is_refused(cluster: Cluster, worker: int) -> None:
    source = m.Address(m.WORKER, worker, 1)
    effects = cluster.shard(0).handle(Received(source, m.Hello(1)), 0.0)
    effects += cluster.scheduler.handle(Received(source, m.WorkerStatus("p", [-1], {})), cluster.now_ms)
    assert [type(effect.message) for effect in effects if isinstance(effect, Send)] == [m.Fenced, m.Fenced]
    assert worker not in cluster.shard(0).context.workers
    assert worker not in cluster.scheduler.state.workers


def test_pushes_that_wait_are_bounded(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    source = m.Address(m.WORKER, 5, 1)
    for number in range(1, 100):
        machine.handle(Received(source, m.Push(1, number, 9, False, [], 0, 3, number), ()), 0.0)
    assert [p.number for p in machine.context.workers[5].queue] == [*range(1, machine.config.pushes_in_flight_max + 1)]


def test_pulls_that_wait_are_bounded(cluster: Cluster) -> None:
    machine = cluster.shard(0)
    effects = []
    for request in range(PULLS_WAITING_MAX + 5):
        effects += machine.handle(Received(WORKER, m.Pull(request, 2**40, False, []), ()), 0.0)
    assert len(machine.context.pulls) == PULLS_WAITING_MAX
    refused = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.PullRefused)]
    assert [r.request for r in refused] == [*range(PULLS_WAITING_MAX, PULLS_WAITING_MAX + 5)]


def test_pulls_of_invented_tools_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "PULLS_WAITING_ALL_MAX", 8)
    machine, effects = cluster.shard(0), []
    for worker in range(10):
        source = m.Address(m.WORKER, worker, 1)
        effects += machine.handle(Received(source, m.Pull(1, 2**40, False, []), ()), 0.0)
    assert len(machine.context.pulls) == 8
    refused = [e.to.id for e in effects if isinstance(e, Send) and isinstance(e.message, m.PullRefused)]
    assert refused == [8, 9]


def test_scrubs_under_way_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a copy of parity rows until its members have marked."""
    monkeypatch.setattr(scrub_module, "SCRUBS_MAX", 2)
    for code in ("3+1", "2+1"):
        cluster.create(table(code, code=code))
    machine, effects = cluster.shard(4), []
    led = [1, 6, 12]  # of each code one class has its first parity row on shard 4
    for request, class_id in enumerate(led):
        tool = m.Address(m.TOOL, request, 0)
        effects += machine.handle(Received(tool, m.Scrub(request, class_id, 0, 100), ()), cluster.now_ms)
    assert [running.class_id for running in machine.scrubs.running.values()] == led[:2]
    assert len(machine.captures.assemblies) == 2
    (busy,) = [e for e in effects if isinstance(e, Send) and isinstance(e.message, m.ScrubBusy)]
    assert busy.to.id == 2
    assert "under way" in busy.message.reason


def test_messages_that_wait_for_a_view_or_a_place_are_bounded(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "HELD_MAX", 3)
    monkeypatch.setattr(shard_module, "EARLY_MAX", 3)
    machine = cluster.shard(0)
    newer = m.Address(m.SHARD, 1, 2)
    taken = 0
    while machine.takes_from(newer):
        machine.handle(Received(newer, m.WindowAck(taken), ()), cluster.now_ms)
        taken += 1
    assert taken == 3
    assert machine.takes_from(m.Address(m.SHARD, 2, 1)), "it is that peer's matter alone"
    unplaced = ShardMachine("p", "tcp://x:1")
    for number in range(10):
        unplaced.handle(Received(newer, m.WindowAck(number), ()), 0.0)
    assert len(unplaced.early) == 3


def test_tables_waited_for_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CREATING_MAX", 3)
    for request in range(10):
        create = m.CreateTable(request, table("late"))
        cluster.scheduler.handle(Received(WORKER, create, ()), cluster.now_ms)
    assert len(cluster.scheduler.tables.creating) == 3


def test_processes_and_clients_that_wait_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CANDIDATES_MAX", 3)
    monkeypatch.setattr(workers, "CLIENTS_MAX", 3)
    nobody = m.Address(m.SHARD, -1, 0)
    for i in range(10):
        cluster.scheduler.handle(Received(nobody, m.Register(f"p{i}", f"tcp://x:{i}", -1)), cluster.now_ms)
        tool = m.Address(m.TOOL, i, 0)
        cluster.scheduler.handle(Received(tool, m.WorkerStatus("p", [], {})), cluster.now_ms)
    assert (len(cluster.scheduler.admission.candidates), len(cluster.scheduler.workers.clients)) == (3, 3)


# ------------------------------------------------------------------ the scheduler
def test_a_view_that_was_never_decided_confirms_nothing_and_stops_a_scheduler_that_knows_less(cluster: Cluster) -> None:
    status = m.ShardStatus(cluster.shards[0], 2**62, True, [], {}, {}, {})
    before = cluster.scheduler.members.contacts[0, 0].view
    (effect,) = cluster.scheduler.handle(Received(peer(0), status), cluster.now_ms)
    assert isinstance(effect, Stop) and effect.kind == OUTDATED
    assert cluster.scheduler.members.contacts[0, 0].view == before


numbers = st.sampled_from([0.0, 0.5, -1.0, 1e38, 1e39, float("nan"), float("inf")])
specs = st.builds(
    TableSpec,
    st.just("t"),
    st.sampled_from([-1, 0, 1, 60, 2**30, 2**38, 2**46, 2**47, 2**62]),
    st.sampled_from([-1, 0, 1, 8, 65_536, 65_537, 2**40]),
    st.builds(CodeSpec, st.integers(-1, 6), st.integers(-1, 6), st.sampled_from(["cauchy", "isal-cauchy", "x"])),
    st.builds(
        OptimizerSpec,
        st.sampled_from([*OPTIMIZERS, "x"]),
        st.lists(numbers, max_size=5).map(tuple),
    ),
    st.sampled_from(["zeros", "uniform", "x"]),
    st.sampled_from([0, -1, 2**63, 2**64 - 1, 2**64]),
    numbers,
    numbers,
)


@settings(max_examples=300)
@given(specs)
def test_a_table_that_the_scheduler_takes_every_shard_can_hold(spec: TableSpec) -> None:
    try:
        check_table(spec, [], 1, Placement(5))
    except ConfigurationError:
        return
    add_table(Store(0, 5), spec, recovered=True)


@pytest.mark.parametrize("field", ["pooling", "features", "first_values"])
def test_a_description_of_a_table_that_is_too_long_is_refused(field: str) -> None:
    spec = TableSpec("t", 8, 8, CodeSpec(4, 1), OptimizerSpec("adagrad", (0.1, 1e-8)), "zeros", **{field: "x" * 4096})
    check_table(spec, [], 1, Placement(5))
    with pytest.raises(ConfigurationError, match="'t': a description of 4097 characters"):
        check_table(msgspec.structs.replace(spec, **{field: "x" * 4097}), [], 1, Placement(5))


def test_tables_that_only_together_are_too_large_are_refused(cluster: Cluster) -> None:
    spec = TableSpec("t", 2**38, 8, CodeSpec(4, 1), OptimizerSpec("adagrad", (0.1, 1e-8)), "zeros")
    refused = []
    for i in range(5):
        create = m.CreateTable(i, msgspec.structs.replace(spec, name=f"t{i}"))
        effects = cluster.scheduler.handle(Received(WORKER, create), cluster.now_ms)
        refused += [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.Refused)]
    assert [r.request for r in refused] == [3, 4]
    assert "bytes of address space" in refused[0].reason


def test_a_state_that_contradicts_itself_is_refused(cluster: Cluster) -> None:
    good = state_module.encode_state(cluster.scheduler.state)
    assert state_module.read_state(good) == cluster.scheduler.state
    group = cluster.scheduler.state.groups[0]
    for change in (
        {"places": group.places[1:]},
        {"settlements": {7: state_module.Settlement(1)}},
        {"table_views": []},
        {"view": -1},
    ):
        bad = msgspec.structs.replace(cluster.scheduler.state, groups=[msgspec.structs.replace(group, **change)])
        with pytest.raises(ConfigurationError, match="scheduler state: group 0 has"):
            state_module.read_state(state_module.encode_state(bad))
    body = state_module.without_checksum(good)
    for junk in (b"", b"\xff", body[:-1], body.replace(b"process-1", b"\xff" * 9), b"\x91" * 100_000):
        with pytest.raises(ConfigurationError, match="scheduler state: not written by this version of ecrec"):
            state_module.read_state(state_module.with_checksum(junk))


def test_a_state_that_was_damaged_or_cut_short_is_refused(cluster: Cluster) -> None:
    """Wherever: most changed bits would decode, to a state with another view, epoch or endpoint."""
    good = state_module.encode_state(cluster.scheduler.state)
    cut = [good[:size] for size in range(len(good))]
    changed = [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(len(good))]
    for damaged in cut + changed:
        with pytest.raises(ConfigurationError, match=r"scheduler state: damaged.*--adopt"):
            SchedulerMachine(5, 1, ProtocolConfig(), damaged, adopt=True)

"""Schedules that the simulator draws too rarely: each catches a mistake that `tests/simulator/mutations.py` makes."""

from unittest import mock

import numpy as np
from cluster import Cluster, table, written

from ecrec._native import crc32c
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send, ToldToEnd
from ecrec.protocol.messages import RECOVERING, TOOL, UP, WORKER, Address
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.saved import MANIFEST, STATE, Manifest, StateFile, decode
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.transitions import NEAR, UNSETTLED


def test_pushes_that_were_acknowledged_before_the_first_coded_table_are_known_after_a_death() -> None:
    """Of rows without parity only the watermarks are told to peers, and with the first coded table it would be late."""
    cluster, spec = Cluster(3, ProtocolConfig(reinitialise_lost=True)), table(code="3+0")
    cluster.create(spec)
    for _ in range(2):
        cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
        cluster.drain()
    cluster.blocked.update((cluster.shards[1], cluster.shards[other]) for other in (0, 2))
    cluster.create(table("u", code="2+1"))
    cluster.kill(1)
    cluster.blocked.clear()
    cluster.declared(1)
    assert cluster.replace(1).watermarks == {0: 2}
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()


def test_a_member_that_heard_nothing_of_a_replacement_reports_its_first_cut() -> None:
    """Some have a window of it and some do not: nobody may keep what the others can no longer get."""
    config = ProtocolConfig(windows_in_flight_max=100)
    cluster, spec, other = Cluster(5, config), table(), table("u")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    before = cluster.read(spec)
    cluster.kill(2)
    cluster.declared(2)
    cluster.blocked.add((cluster.next_process, cluster.shards[3]))
    replacement = cluster.replace(2)
    cluster.create(other)  # of which the replacement lacks no rows
    weights = cluster.read(other)
    cluster.push(other, dict.fromkeys(range(other.rows), 1.0))
    cluster.run()
    assert replacement.state == RECOVERING and replacement.context.unstable
    cluster.settle_down(lambda: not replacement.context.open_watermarks)
    cluster.settle_down(lambda: all(window.waiting == {3} for window in replacement.context.unstable.values()))
    assert any(window.watermarks for window in replacement.context.unstable.values())
    cluster.kill(2)
    cluster.blocked.clear()
    cluster.declared(2)
    cluster.replace(2)
    cluster.drain()
    assert not cluster.failed
    assert cluster.read(spec).tobytes() == before.tobytes()
    assert cluster.read(other).tobytes() == (weights - np.float32(0.5)).tobytes()
    cluster.scrub()


def test_a_round_of_seeding_that_is_heard_of_twice_is_seeded_once() -> None:
    """A data member that came back hears of a round by Reseed, when another one was settled, and by Joined."""
    cluster, spec = Cluster(5, ProtocolConfig(seed_rows_max=1)), table(rows=400)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.kill(4)
    cluster.declared(4)
    cluster.shards[4] = cluster.start(4)
    replacement, seeder = cluster.shard(4), cluster.shard(0)
    began = seeder.context.stable
    for _ in range(1000):
        if seeder.context.stable > began + 3 and any(peer == 4 for peer, _ in seeder.seeding.tasks):
            break
        if not cluster.deliver():
            cluster.tick()
    wanted = replacement.seeding.wanted_from(0)
    assert wanted and wanted == seeder.peers[4].seeding
    cluster.give(cluster.shards[0], Received(replacement.address, m.Joined(wanted)))
    cluster.drain()
    cluster.scrub()


def test_an_earlier_life_of_a_worker_is_not_told_what_a_later_one_made_durable() -> None:
    """By number alone it would take the later life's push for its own."""
    cluster, spec = Cluster(3), table(code="2+1")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    shard, now = cluster.shard(0), Address(WORKER, 0, 7)
    shard.handle(Received(now, m.Hello(7)), cluster.now_ms)
    earlier = Address(WORKER, 0, 6)
    pushed = Received(earlier, m.Push(6, 1, 0, False, [], tables=1), [b"", b""])
    told = [e.message for e in shard.handle(pushed, cluster.now_ms) if isinstance(e, Send) and e.to == earlier]
    assert [type(message) for message in told] == [m.Fenced]


def test_no_row_is_repaired_between_a_death_and_its_cut() -> None:
    """Parities of a stripe may differ by windows of the dead until all survivors have undone what is beyond the cut."""
    cluster, spec = Cluster(6), table(code="3+3", rows=60)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    expected = cluster.read(spec)
    cluster.kill(2)
    cluster.declared(2)
    cluster.blocked.update((cluster.next_process, cluster.shards[other]) for other in (0, 1, 3, 4, 5))
    replacement = cluster.replace(2)
    cluster.run()
    replacement.repairs.asked.clear()  # nobody has heard of them
    before, replacement.peers[4].stream = replacement.peers[4].stream, UNSETTLED
    with mock.patch("ecrec.protocol.invariants.check"):
        cluster.pull(spec, np.arange(spec.rows))
        for _ in range(5):
            cluster.tick()
            cluster.run()
    late = [a for a in replacement.repairs.asked.values() if 4 in _members(replacement, a.stripes.class_id)]
    assert not late, f"{len(late)} repairs were asked for while the parities of their stripes may differ"
    replacement.peers[4].stream = before
    cluster.blocked.clear()
    cluster.drain()
    assert cluster.read(spec).tobytes() == expected.tobytes()
    cluster.scrub()


def _members(machine: ShardMachine, class_id: int) -> tuple[int, ...]:
    stripe = machine.context.placement.classes[class_id]
    return stripe.data + stripe.parity


def write_all_but_the_state(cluster: Cluster) -> None:
    for name, effect in list(cluster.files):
        if not effect.name.endswith((STATE, MANIFEST)):
            cluster.files.remove((name, effect))
            cluster.give(name, written(effect))


def test_a_manifest_waits_for_a_users_state_that_is_written_slowly() -> None:
    cluster, spec = Cluster(3), table(rows=60, code="2+1")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    tool = Address(TOOL, 7, 0)
    cluster.where[tool] = "tool"
    cluster.give("scheduler", Received(tool, m.Save(1, "sim://storage", 1.0, state=b"mine")))
    for _ in range(50):
        cluster.tick()
        cluster.run()
        write_all_but_the_state(cluster)
    assert len(cluster.scheduler.checkpoints._saved()) == 3, "all shards are done"
    assert [effect.name for _, effect in cluster.files] == [f"checkpoint-000001/{STATE}"]
    ((name, state),) = cluster.files
    assert (name, state.name, state.buffers) == ("scheduler", f"checkpoint-000001/{STATE}", (b"mine",))
    cluster.give("scheduler", written(state))
    cluster.tick()
    (_, manifest) = cluster.files[-1]
    assert decode(manifest.buffers[0], Manifest, "manifest").state == StateFile(4, crc32c(b"mine"))
    # The one after it has none.
    cluster.give("scheduler", written(manifest))
    cluster.files.clear()
    cluster.give("scheduler", Received(tool, m.Save(2, "sim://storage", 2.0)))
    for _ in range(50):
        cluster.tick()
        cluster.run()
        write_all_but_the_state(cluster)
    (_, manifest) = cluster.files[-1]
    assert decode(manifest.buffers[0], Manifest, "manifest").state is None


def test_a_successor_that_heard_nothing_of_a_member_reports_what_it_was_given() -> None:
    """A window that all but the successor have is undone by the others, when its sender dies."""
    cluster, spec = Cluster(5, ProtocolConfig(window_interval_ms=0.0)), table()
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    before = cluster.read(spec)
    spare, leaver = cluster.start(-1), cluster.shards[2]
    for _ in range(10):
        cluster.tick()
        cluster.run()
    cluster.blocked.add((cluster.shards[0], spare))
    cluster.give(leaver, ToldToEnd())
    cluster.settle_down(lambda: leaver in cluster.stopped)
    cluster.shards[2] = spare
    cluster.settle_down(lambda: cluster.shard(2).state == UP)
    cluster.push(spec, {row: 1.0 for row in range(spec.rows)})
    sender = cluster.shard(0).context
    cluster.settle_down(lambda: {2} in [window.waiting for window in sender.unstable.values()])
    cluster.kill(0)
    cluster.blocked.clear()
    cluster.declared(0)
    cluster.replace(0)
    cluster.drain()
    assert not cluster.failed
    assert cluster.read(spec).tobytes() == (before - np.float32(0.5)).tobytes()
    cluster.scrub()


def copied_slowly(shard: int) -> tuple[Cluster, TableSpec]:
    """A shard asks to leave, and its copy is nearly done."""
    cluster, spec = Cluster(5, ProtocolConfig(window_interval_ms=0.0)), table()
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.start(-1)
    for _ in range(10):
        cluster.tick()
        cluster.run()
    cluster.give(cluster.shards[shard], ToldToEnd())
    for _ in range(4000):
        if cluster.shard(shard).handover.state == NEAR:
            return cluster, spec
        if not cluster.deliver():
            cluster.tick()
    raise AssertionError("it is not copied")


def test_a_member_has_halted_when_all_have_its_windows() -> None:
    """A window that only the shard which leaves has could never be undone in the copy of its parity."""
    cluster, spec = copied_slowly(2)
    sender, leaver = cluster.shards[0], cluster.shard(2)
    cluster.blocked |= {(sender, cluster.shards[other]) for other in (1, 3, 4)}
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    for _ in range(20):
        cluster.tick()
        cluster.run()
    assert leaver.context.halted and cluster.shard(0).context.unstable and not leaver.handover._halted.get(0)
    assert cluster.shards[2] not in cluster.stopped
    cluster.blocked.clear()
    cluster.settle_down(lambda: leaver.process in cluster.stopped)
    assert [entry.event for entry in cluster.scheduler.state.history][-1] == "handed over"


def test_a_halt_that_comes_late_halts_nobody() -> None:
    cluster, spec = copied_slowly(2)
    halt = m.Halt(cluster.scheduler.state.groups[0].succeeding.view)
    cluster.give("scheduler", Received(Address(TOOL, 1, 0), m.Drain(1, 2, 1, stays=True)))
    cluster.settle_down(lambda: cluster.shard(0).handover.succession is None)
    cluster.give(cluster.shards[0], Received(cluster.shard(2).address, halt))
    assert not cluster.shard(0).context.halted
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()

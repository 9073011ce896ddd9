"""What must hold of a machine after every event. For tests and the simulator: nothing that is shipped asks.

An AssertionError names what does not hold. What a message may do to a machine is not checked here, but that whatever it
does leaves a state that the machine could have come to.
"""

from itertools import pairwise

import msgspec

from ecrec.protocol.arrays import frames_bytes
from ecrec.protocol.client import ClientMachine
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import DOWN, RECOVERING, RESEEDING, UP
from ecrec.protocol.peer import Peer
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.shard_context import ShardContext
from ecrec.protocol.state import Group, State, encode_state
from ecrec.protocol.transitions import JOINED, JOINED_BLIND, NO_STREAM, SETTLED, UNSETTLED


def check(machine: ShardMachine | SchedulerMachine | ClientMachine) -> None:
    """All invariants of a machine, whichever it is."""
    if isinstance(machine, ShardMachine):
        check_shard(machine)
    elif isinstance(machine, SchedulerMachine):
        check_scheduler(machine)
    else:
        check_client(machine)


# ---------------------------------------------------------------------- a shard
def check_shard(machine: ShardMachine) -> None:
    """The invariants of a shard's machine; of one without a place, that it has nothing yet."""
    assert not machine.context.effects, "effects of an event that were not handed out"
    if not machine.state:
        assert not machine.peers and machine.context.epoch == 0, "a process without a place knows peers"
        assert machine.early_bytes == sum(frames_bytes(event.frames) for event in machine.early)
        return
    assert not machine.early and not machine.early_bytes, "it has a place, and messages wait for one"
    assert machine.state in (UP, RECOVERING, RESEEDING), machine.state
    assert sorted(machine.peers) == list(range(machine.placement.n)), sorted(machine.peers)
    check_pushes(machine)
    for peer in machine.peers.values():
        if peer.shard != machine.shard:
            _check_peer(machine, peer)
    _check_recovery(machine)


def check_pushes(machine: ShardMachine) -> None:
    """The part of `check_shard` that costs little: windows, watermarks, queues."""
    if machine.state:
        _check_windows(machine.context)
        _check_workers(machine.context)


def _check_windows(context: ShardContext) -> None:
    open_windows = list(range(context.stable + 1, context.window_number))
    assert list(context.unstable) == open_windows, (list(context.unstable), open_windows)
    running = {peer.shard for peer in context.others() if peer.joined} if context.unstable else set()
    known: dict[int, int] = {}
    for number, unstable in context.unstable.items():
        assert unstable.waiting <= running, f"window {number} waits for {unstable.waiting}, of {running} that run"
        for worker, watermark in unstable.watermarks.items():
            assert known.get(worker, 0) <= watermark, f"the watermark of worker {worker} falls in window {number}"
            known[worker] = watermark
    if context.unstable:
        first = next(iter(context.unstable.values()))
        assert first.waiting, "the oldest window waits for nobody, and is not stable"
    for worker, watermark in context.open_watermarks.items():
        applied = context.watermarks[worker]
        assert known.get(worker, 0) <= watermark == applied, (worker, watermark, applied)
        known[worker] = watermark
    for worker, watermark in known.items():
        applied = context.watermarks[worker]
        assert watermark == applied, f"worker {worker}: {applied} applied, windows say {watermark}"


def _check_workers(context: ShardContext) -> None:
    for worker, durable in context.durable.items():
        assert durable <= context.watermarks.get(worker, 0), f"worker {worker}: {durable} durable, not all applied"
    for worker, state in context.workers.items():
        numbers = [queued.number for queued in state.queue]
        first = context.watermarks.get(worker, 0) + 1
        assert state.queue.nbytes == sum(queued.nbytes for queued in state.queue), f"bytes that wait of worker {worker}"
        assert numbers == list(range(first, first + len(numbers))), (worker, context.watermarks.get(worker, 0), numbers)
        fenced = context.fenced.get(worker, 0)
        assert not numbers or state.address.epoch > fenced, f"pushes of a fenced life of worker {worker} wait"
    assert set(context.open_pushes) <= set(context.open_watermarks)


def _check_peer(machine: ShardMachine, peer: Peer) -> None:
    state, down = peer.state, peer.state == DOWN
    own = peer.shard == machine.shard
    fitting = (UNSETTLED, SETTLED) if down else (NO_STREAM,) if own else (JOINED, JOINED_BLIND)
    assert peer.stream in fitting, f"{_who(peer)}: its stream is {peer.stream}"
    if peer.unsettled:
        assert peer.shard in machine.membership.reports, f"{_who(peer)}: nothing is reported of it"
    assert not peer.reseeding or state == RESEEDING, f"{_who(peer)} reseeds {sorted(peer.reseeding)}"
    if down:
        has_stream = peer.begins or peer.ends
        assert not has_stream, f"{_who(peer)}: has a stream"
        assert not len(machine.context.buffers.buffer(peer.shard)), f"{_who(peer)}: deltas wait for it"
        tasks = [key for key in machine.seeding.tasks if key[0] == peer.shard]
        assert not tasks, f"{_who(peer)}: seeds wait for it: {tasks}"
    if peer.undo:
        numbers = [undo.number for undo in peer.undo]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"{_who(peer)}: undo {numbers}"
        assert peer.received == numbers[-1], f"{_who(peer)}: received {peer.received}, undo {numbers}"


def _who(peer: Peer) -> str:
    return f"peer {peer.shard}.{peer.epoch} ({peer.state})"


def _check_recovery(machine: ShardMachine) -> None:
    placement, seeding, repairs = machine.placement, machine.seeding, machine.repairs
    for class_id, done in seeding.done.items():
        stripe = placement.classes[class_id]
        assert machine.shard in stripe.parity, f"class {class_id} is seeded, and is not mine"
        assert done.issubset(stripe.data), f"class {class_id} is seeded by {sorted(done)}"
    for (shard, class_id), _ in seeding.tasks.items():
        stripe = placement.classes[class_id]
        assert machine.shard in stripe.data and shard in stripe.parity, f"class {class_id} is not for shard {shard}"
    for class_id in repairs.incomplete:
        assert machine.shard in placement.classes[class_id].data, f"rows of class {class_id} are lost, and not mine"
    if machine.state == UP:
        assert repairs.complete(), f"it says that it is whole, and lacks rows of classes {sorted(repairs.incomplete)}"
        assert seeding.complete(), "it says that it is whole, and its parity is not seeded"
    elif machine.state == RESEEDING:
        assert repairs.complete(), f"it only reseeds, and lacks rows of classes {sorted(repairs.incomplete)}"
    assert machine.state == RECOVERING or not repairs.asked, "repairs are asked by a shard that has its rows"
    for assembly in machine.captures.assemblies.values():
        class_id = assembly.stripes.class_id
        assert machine.shard in placement.classes[class_id].parity, f"a capture of class {class_id}"


# ---------------------------------------------------------------------- a client
def check_client(machine: ClientMachine) -> None:
    """The invariants of a client's machine."""
    for number, shard in machine._shards.items():
        assert shard.acked <= shard.pushed, (number, shard.acked, shard.pushed)
        pushes = [kept.push for kept in shard.kept if kept.push]
        assert pushes == list(range(shard.acked + 1, shard.pushed + 1)), (number, pushes)
        for kept in shard.kept:
            assert kept.push or number not in machine._tickets[kept.request].answers
        assert not shard.greeted or (shard.connected and shard.welcomed), number
    kept_bytes = sum(kept.push_bytes for shard in machine._shards.values() for kept in shard.kept)
    assert machine._kept_bytes == kept_bytes, (machine._kept_bytes, kept_bytes)
    for ticket in machine._tickets.values():
        assert len(ticket.answers) < len(ticket.shards)
    numbers = [lease.lease for lease in machine.leasing.leases]
    assert numbers == sorted(set(numbers)), numbers
    cursors = [machine.leasing.cursor, *(cursor for _, cursor in machine.leasing._cursors)]
    assert cursors == sorted(set(cursors)), cursors


# ---------------------------------------------------------------------- the scheduler
def check_scheduler(machine: SchedulerMachine) -> None:
    """The invariants of the scheduler's machine and of its state."""
    assert not machine.context.effects, "effects of an event that were not handed out"
    state = machine.state
    names = [table.name for table in state.tables]
    assert len(names) == len(set(names)), f"tables of the same name: {names}"
    assert machine.context.placement.codes == list(dict.fromkeys(table.code for table in state.tables))
    for number, group in enumerate(state.groups):
        assert len(group.places) == state.n
        if not group.view:
            assert all(place.state == DOWN for place in group.places) and not group.views
            continue
        _check_views(number, group)
        _check_places(machine, number, group)
        assert len(group.table_views) <= len(state.tables), (number, group.table_views)
    placed = [p.process for group in state.groups for p in group.places if p.state != DOWN and p.process]
    assert len(placed) == len(set(placed)), f"a process has two places: {placed}"
    assert not machine.admission.candidates.keys() & set(placed), "a process that has a place waits for one"
    _check_leases(machine.leases)


def _check_views(number: int, group: Group) -> None:
    views = [view.number for view in group.views]
    assert not views or views == list(range(group.view - len(views) + 1, group.view + 1)), (number, group.view, views)
    assert group.adopted <= group.view, (number, group.adopted, group.view)


def _check_places(machine: SchedulerMachine, number: int, group: Group) -> None:
    down = {shard for shard, place in enumerate(group.places) if place.state == DOWN}
    assert down == set(group.settlements), f"group {number}: {down} are down, {set(group.settlements)} are settled"
    for shard, place in enumerate(group.places):
        who = f"place {shard} of group {number}, epoch {place.epoch} ({place.state})"
        assert place.state in (UP, RECOVERING, RESEEDING, DOWN), who
        assert not place.reseeding or place.state == RESEEDING, f"{who} reseeds {place.reseeding}"
        contact = machine.members.get(number, shard)
        if place.state == DOWN:
            settlement = group.settlements[shard]
            assert settlement.epoch == place.epoch, f"{who}: epoch {settlement.epoch} is settled"
            assert settlement.view <= group.view, f"{who}: settled by view {settlement.view} of {group.view}"
            assert contact is None, f"{who} is heard"
            continue
        assert place.start is not None and place.start.number <= group.view, f"{who}: started by a later view"
        assert contact is None or contact.view <= group.view, f"{who} confirms view {contact and contact.view}"


def _check_leases(leases: Leases) -> None:
    state = leases.state
    numbers = [lease.number for lease in state.leases]
    assert numbers == sorted(set(numbers)) and (not numbers or numbers[-1] <= state.number), (numbers, state.number)
    held = {key: [lease.number for lease in some] for key, some in leases._held.items() if some}
    by_worker: dict[tuple[int, int], list[int]] = {}
    for lease in state.leases:
        by_worker.setdefault((lease.worker, lease.epoch), []).append(lease.number)
        assert 0 <= lease.done <= lease.last - lease.first, lease
    assert held == by_worker, (held, by_worker)
    for index, data in enumerate(state.datasets):
        parts = sorted([*data.returned, *((s.first, s.last) for s in state.leases if s.dataset == index)])
        name = data.dataset.name
        for (_, last), (first, _) in pairwise(parts):
            assert last <= first, f"data set {name!r}: examples are in two hands: {parts}"
        out = sum(last - first for first, last in parts)
        assert data.trained + out == data.next, (
            f"data set {name!r}: {data.trained} trained, {out} out, next {data.next}"
        )


def must_be_stored(state: State) -> bytes:
    """All of a state that must have been persisted before anything was said. How far leases are is said again."""
    leases = [msgspec.structs.replace(lease, done=0) for lease in state.leases.leases]
    return encode_state(
        msgspec.structs.replace(state, leases=msgspec.structs.replace(state.leases, leases=leases), history=[])
    )

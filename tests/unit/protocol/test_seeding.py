"""What counts of the windows that arrive while parity is seeded, class by class."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ecrec.protocol.messages import RECOVERING, UP, Joined, Reseed
from ecrec.protocol.peer import Peer
from ecrec.protocol.placement import CodeSpec, Placement
from ecrec.protocol.seeding import ALL_CLASSES, UNLIMITED, Seeding
from ecrec.protocol.transitions import JOINED, JOINED_BLIND, NO_STREAM


class Wiped:
    """A store of which only wiping matters."""

    def __init__(self) -> None:
        self.classes: list[int] = []

    def wipe_parity(self, class_id: int) -> None:
        self.classes.append(class_id)


def replacement(state: str = RECOVERING) -> tuple[Seeding, Any]:
    """Shard 3 of a group of 4 with 2+1: it holds the parity of class 1, of which 1 and 2 have the data."""
    placement = Placement(4)
    placement.add(CodeSpec(2, 1))
    peers = {n: SimpleNamespace(shard=n, running=n != 2, rounds={}, undo=[]) for n in (0, 1, 2)}
    sent: list[Any] = []
    context = SimpleNamespace(
        placement=placement, shard=3, state=state, store=Wiped(), peers=peers, sent=sent,
        send=lambda peer, message: sent.append((peer.shard, message.class_id, message.round)),
    )  # fmt: skip
    seeding = Seeding(context, None)  # type: ignore[arg-type]
    seeding.begin()
    return seeding, context


def test_a_replacement_wants_its_parity_from_the_data_members_that_run() -> None:
    seeding, context = replacement()
    assert placement_of(seeding) == ({1: 0}, {1: set()})
    assert (seeding.incomplete(), seeding.complete()) == (1, False)
    seeding.ask_all()
    assert context.sent == [(1, 1, 0)]
    assert [seeding.wanted_from(shard) for shard in range(3)] == [{}, {1: 0}, {1: 0}]
    seeding.seeded(1, 1)
    seeding.seeded(2, 1)  # a class of which it holds no parity
    assert [seeding.wanted_from(shard) for shard in range(3)] == [{}, {}, {1: 0}]
    assert not seeding.complete()
    seeding.seeded(1, 2)
    assert (seeding.incomplete(), seeding.complete()) == (0, True)


def placement_of(seeding: Seeding) -> tuple[dict[int, int], dict[int, set[int]]]:
    return seeding.rounds, seeding.done


def test_of_another_round_nothing_of_the_class_counts_until_it_is_seeded() -> None:
    seeding, context = replacement()
    without = ALL_CLASSES & ~(1 << 1)
    assert seeding.accepted(1, {1: 0}) == ALL_CLASSES
    assert seeding.accepted(1, {}) == seeding.accepted(1, {1: 1}) == seeding.accepted(1, {2: 0}) == without
    seeding.seeded(1, 1)
    assert seeding.accepted(1, {}) == ALL_CLASSES, "it seeded this class"
    assert seeding.accepted(2, {}) == without
    context.state = UP
    assert seeding.accepted(2, {}) == ALL_CLASSES


def test_the_end_of_a_seed_counts_in_its_round_alone() -> None:
    seeding, context = replacement()
    peer = context.peers[1]
    peer.rounds = {1: 0, 2: 0}
    assert seeding.accepted_ends(peer, [0, 1, 2]) == [1]
    peer.rounds = {1: 1}
    assert seeding.accepted_ends(peer, [1]) == []


def test_a_settlement_begins_unfinished_classes_anew_and_what_was_wiped_is_not_undone() -> None:
    seeding, context = replacement()
    seeding.seeded(1, 1)
    undo = SimpleNamespace(class_mask=ALL_CLASSES, ends=[0, 1])
    context.peers[0].undo.append(undo)
    seeding.start_over()
    assert placement_of(seeding) == ({1: 1}, {1: set()})
    assert context.store.classes == [1] and context.sent == [(1, 1, 1)]
    assert (undo.class_mask, undo.ends) == (ALL_CLASSES & ~(1 << 1), [0])
    seeding.seeded(1, 1)
    seeding.seeded(1, 2)
    seeding.start_over()
    assert placement_of(seeding) == ({1: 1}, {1: {1, 2}}) and context.store.classes == [1], "it is fully seeded"
    seeding.done[1].clear()
    context.state = UP
    seeding.start_over()
    assert context.store.classes == [1]


def test_parity_of_a_new_code_is_seeded_from_the_start() -> None:
    seeding, context = replacement()
    context.placement.add(CodeSpec(1, 1))  # shard 3 holds the parity of its class 6, whose data are on 2
    seeding.table_added()
    assert placement_of(seeding) == ({1: 0, 6: 0}, {1: set(), 6: {2}})
    whole, context = replacement()
    context.state = UP
    context.placement.add(CodeSpec(1, 1))
    whole.table_added()
    assert placement_of(whole) == ({1: 0}, {1: set()})


# ------------------------------------------------------------------ seeding others
class Buffers:
    """An open window of which only what is left out of it matters."""

    def __init__(self) -> None:
        self.limits: dict[tuple[int, int], int] = {}
        self.removed: list[tuple[int, int]] = []

    def set_limit(self, peer: int, class_id: int, limit: int) -> None:
        self.limits[peer, class_id] = limit

    def buffer(self, peer: int) -> Any:
        return SimpleNamespace(remove_class=lambda class_id: self.removed.append((peer, class_id)))


def seeder(shard: int = 1) -> tuple[Seeding, Any]:
    """A member of a group of 4 with 2+1, all up. Class c has its data on c and c + 1 and its parity on c + 2."""
    placement = Placement(4)
    placement.add(CodeSpec(2, 1))
    peers = {n: Peer(n, 1, UP, f"tcp://{n}:1", JOINED_BLIND) for n in range(4)}
    context = SimpleNamespace(
        placement=placement, shard=shard, state=UP, store=Wiped(), peers=peers, announces=False, buffers=Buffers(),
        view=9, checked=lambda: None, others=lambda: [peer for peer in peers.values() if peer.shard != shard],
        send=lambda peer, message: None,
    )  # fmt: skip
    return Seeding(context, None), context  # type: ignore[arg-type]


def test_what_the_open_window_has_of_a_class_is_of_the_old_round() -> None:
    """It is in the seed again: sent too, it would cancel it."""
    seeding, context = seeder()
    peer = context.peers[3]
    peer.ends = [0, 1, 3]
    seeding.on_reseed(peer, Reseed(1, 4), ())
    assert context.buffers.removed == [(3, 1)] and context.buffers.limits == {(3, 1): 0}
    assert (peer.begins, peer.ends, seeding.tasks, context.announces) == ({1: 4}, [0, 3], {(3, 1): True}, True)
    seeding.on_reseed(peer, Reseed(1, 4), ())
    assert context.buffers.removed == [(3, 1)], "the round was heard of already"


def test_a_class_that_begins_anew_is_held_back_until_its_holder_asks() -> None:
    seeding, context = seeder()
    peer = context.peers[3]
    peer.begins, peer.ends = {1: 2, 0: 5}, [1, 0]
    seeding.reinitialise({1})
    assert context.buffers.removed == [(3, 1)] and context.buffers.limits == {(3, 1): 0}
    assert (peer.begins, peer.ends, seeding.tasks) == ({0: 5}, [0], {(3, 1): False})


@pytest.mark.parametrize(("class_id", "asks"), [(4, 3), (-1, 3), (2, 0), (1, 2), (0, 3)])
def test_only_a_holder_of_its_parity_asks_a_data_member_to_seed_a_class(class_id: int, asks: int) -> None:
    """Shard 1 has data of classes 0 and 1, whose parity is on 2 and 3."""
    seeding, context = seeder()
    with pytest.raises(ValueError, match="not for us two"):
        seeding.on_reseed(context.peers[asks], Reseed(class_id, 0), ())
    with pytest.raises(ValueError, match="not for us two"):
        seeding.on_joined(context.peers[asks], Joined({class_id: 0}), ())
    assert not seeding.tasks and context.peers[asks].is_joined_blind
    seeding.on_reseed(context.peers[2], Reseed(0, 0), ())
    assert seeding.tasks == {(2, 0): True}


def test_a_death_or_the_end_of_a_recovery_ends_the_seeding_of_that_peer_alone() -> None:
    for ends in ("forget", "whole"):
        seeding, context = seeder()
        seeding.tasks = {(2, 0): True, (3, 1): False}
        getattr(seeding, ends)(2)
        assert seeding.tasks == {(3, 1): False}
        assert context.buffers.limits == ({} if ends == "forget" else {(2, 0): UNLIMITED})


def test_classes_that_a_peer_no_longer_lacks_are_sent_whole_when_it_says_so() -> None:
    seeding, context = seeder()
    seeding.tasks = {(3, 1): False, (2, 0): False}
    seeding.on_joined(context.peers[3], Joined({}), ())
    assert seeding.tasks == {(2, 0): False} and context.buffers.limits == {(3, 1): UNLIMITED}
    assert not context.peers[3].is_joined_blind


def seeding_of(tasks: dict[tuple[int, int], bool]) -> tuple[Seeding, Any, list[tuple[int, int, int]]]:
    """Shard 1 with what it has to seed to peers that recover; and (peer, class, bytes at most) of each chunk."""
    seeding, context = seeder()
    chunks: list[tuple[int, int, int]] = []

    def seed(buffers: Any, shard: int, class_id: int, rows: int, bytes_max: int) -> tuple[bool, Any]:
        chunks.append((shard, class_id, bytes_max))
        return False, np.zeros(0, np.uint64)

    used: dict[int, int] = {}
    context.config = SimpleNamespace(
        windows_in_flight_max=2, frame_bytes_max=100, seed_bytes_max=40, seed_rows_max=8, recovery_share_percent=50,
        recovery_pause_max_ms=1000.0, foreground_ms=1000.0,
    )  # fmt: skip
    context.store = SimpleNamespace(seed=seed)
    context.buffers.buffer = lambda peer: SimpleNamespace(nbytes=used.get(peer, 0))
    context.used, context.unstable, context.stable, context.window_number = used, {}, 4, 5
    context.now_ms, context.worked_ms, context.workers_ask = 100.0, 100.0, False
    context.shares_time = lambda: context.workers_ask
    context.rows_at_once = lambda rows_max: rows_max
    for peer in context.peers.values():
        peer.stream, peer.state = JOINED, RECOVERING
    seeding.tasks = dict(tasks)
    return seeding, context, chunks


def test_each_peer_that_has_asked_gets_one_chunk_at_a_time() -> None:
    seeding, _, chunks = seeding_of({(2, 0): True, (3, 1): True, (3, 0): True})
    seeding.advance()
    assert chunks == [(2, 0, 40), (3, 1, 40)]


@pytest.mark.parametrize("why", ["has not asked", "has not joined", "is whole", "windows in flight"])
def test_nothing_is_seeded_that_the_peer_would_not_take(why: str) -> None:
    seeding, context, chunks = seeding_of({(2, 0): why != "has not asked"})
    if why == "has not joined":
        context.peers[2].stream = NO_STREAM
    elif why == "is whole":
        context.peers[2].state = UP
    elif why == "windows in flight":
        context.unstable = {4: None, 5: None}
    seeding.advance()
    assert not chunks


@pytest.mark.parametrize(("used", "frame_max", "expected"), [
    (60, 100, [(2, 0, 40)]), (61, 100, []), (0, 30, [(2, 0, 30)]), (0, 100, [(2, 0, 40)]), (10, 200, [(2, 0, 40)]),
])  # fmt: skip
def test_a_chunk_has_room_in_the_frame_that_it_goes_with(
    used: int, frame_max: int, expected: list[tuple[int, int, int]]
) -> None:
    """An empty window takes what fits; one that is so full that a chunk does not fit closes first."""
    seeding, context, chunks = seeding_of({(2, 0): True})
    context.used[2], context.config.frame_bytes_max = used, frame_max
    seeding.advance()
    assert chunks == expected


def test_while_workers_ask_a_chunk_waits_for_the_one_before_and_for_its_pause() -> None:
    seeding, context, chunks = seeding_of({(2, 0): True})
    context.workers_ask = True
    seeding.advance()
    context.window_number, context.now_ms, context.worked_ms = 6, 110.0, 110.0
    seeding.advance()
    assert len(chunks) == 1, "its window is not stable"
    context.stable = 5
    seeding.advance()
    assert len(chunks) == 1, "it took 10 ms, and so does the pause"
    context.now_ms = 119.0
    seeding.advance()
    assert len(chunks) == 1
    context.now_ms = 120.0
    seeding.advance()
    assert len(chunks) == 2
    context.workers_ask = False
    seeding.advance()
    assert len(chunks) == 3, "nobody asks: there are no pauses"

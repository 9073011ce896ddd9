"""What counts of the windows that arrive while parity is seeded, class by class."""

from types import SimpleNamespace
from typing import Any

from ecrec.protocol.messages import RECOVERING, UP
from ecrec.protocol.placement import CodeSpec, Placement
from ecrec.protocol.seeding import ALL_CLASSES, Seeding


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

"""Processes that want a place: who is kept, who is reached, who gets which place."""

from typing import Any

import pytest
from parts import Parts

from ecrec.protocol import messages as m
from ecrec.protocol.admission import CANDIDATES_MAX, Admission, Candidate
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connect, Disconnect, Send
from ecrec.protocol.messages import DOWN, SHARD, Address, Fenced, Knock, Register
from ecrec.protocol.suspicion import Suspicions

NOBODY = Address(SHARD, -1, 0)
REACH_MS, TIMEOUT_MS = ProtocolConfig().reach_timeout_ms, ProtocolConfig().heartbeat_timeout_ms


class Scheduler(Parts):
    """A group of three whose processes are p0, p1, p2 at inproc://p0 and so on."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__(n=3, groups=groups)
        self.admission = Admission(self.context, self.members)
        self.suspicions = [Suspicions(self.context.config, 3 * number) for number in range(groups)]

    def registers(self, process: str, wanted: int = -1, endpoint: str = "", reached: int = 0) -> list[Any]:
        """What the scheduler does then: messages to a process, connections that it makes and ends."""
        message = Register(process, endpoint or f"inproc://{process}", wanted, reached)
        self.admission.on_register(NOBODY, message, self.suspicions)
        effects, self.context.effects = self.context.effects, []
        return [e.message if isinstance(e, Send) else e for e in effects if isinstance(e, Send | Connect | Disconnect)]

    def waits(self, process: str, wanted: int = -1, endpoint: str = "", is_reached: bool = True) -> None:
        """A process that waits for a place, and is reached where it says."""
        candidate = Candidate(endpoint or f"inproc://{process}", wanted, self.context.now_ms, 0.0, 77, is_reached)
        self.admission.candidates[process] = candidate

    def dies(self, *shards: int, group: int = 0) -> None:
        for shard in shards:
            self.state.groups[group].places[shard].state = DOWN

    @property
    def waiting(self) -> list[str]:
        return list(self.admission.candidates)


# ------------------------------------------------------------------ who is kept
@pytest.mark.parametrize(("wanted", "is_kept"), [(-2, False), (-1, True), (0, True), (2, True), (3, False)])
def test_a_process_for_a_place_that_is_not_there_is_told_so(wanted: int, is_kept: bool) -> None:
    scheduler = Scheduler()
    first, *_ = scheduler.registers("new", wanted)
    assert isinstance(first, Connect if is_kept else Fenced) and scheduler.waiting == (["new"] if is_kept else [])


def test_a_process_that_has_a_place_is_heard_and_one_whose_place_is_down_waits_for_one() -> None:
    scheduler = Scheduler()
    scheduler.context.now_ms = 500.0
    assert scheduler.registers("p1") == [] and scheduler.waiting == []
    assert scheduler.members.contacts[0, 1].heard_ms == 500.0
    scheduler.dies(1)
    scheduler.registers("p1")
    assert scheduler.waiting == ["p1"]


def test_a_process_at_the_endpoint_of_a_member_waits_outside_until_that_one_is_down() -> None:
    scheduler = Scheduler()
    scheduler.registers("new", endpoint="inproc://same")
    scheduler.state.groups[0].places[1].endpoint = "inproc://same"
    (ended,) = scheduler.registers("new", endpoint="inproc://same")
    assert ended == Disconnect(Address(SHARD, -2, 0)) and scheduler.waiting == []
    scheduler.dies(1)
    scheduler.registers("new", endpoint="inproc://same")
    assert scheduler.waiting == ["new"]


def test_of_two_processes_at_one_endpoint_the_one_that_is_heard_stays() -> None:
    scheduler = Scheduler()
    assert scheduler.registers("new", endpoint="inproc://p1") == []
    scheduler.members.contacts[0, 1].heard_ms = TIMEOUT_MS
    assert scheduler.registers("new", endpoint="inproc://p1") == []
    scheduler.members.contacts[0, 1].heard_ms = TIMEOUT_MS + 1.0
    (fenced,) = scheduler.registers("new", endpoint="inproc://p1")
    assert isinstance(fenced, Fenced) and "shard 1 (epoch 1) (process p1) lives" in fenced.reason


def test_a_process_that_names_another_endpoint_is_looked_for_there() -> None:
    scheduler = Scheduler()
    connect, knock = scheduler.registers("new", endpoint="inproc://one")
    assert connect == Connect(Address(SHARD, -2, 0), "inproc://one") and knock == Knock("new", 1)
    scheduler.registers("new", endpoint="inproc://one", reached=1)
    scheduler.admission.candidates["new"].is_reached = False
    ended, connect, knock = scheduler.registers("new", endpoint="inproc://two", reached=1)
    assert ended == Disconnect(Address(SHARD, -2, 0)) and knock == Knock("new", 2)
    assert connect == Connect(Address(SHARD, -3, 0), "inproc://two")
    assert not scheduler.admission.candidates["new"].is_reached, "that it was reached elsewhere says nothing"


def test_so_many_processes_are_kept_and_those_heard_again() -> None:
    scheduler = Scheduler()
    for number in range(CANDIDATES_MAX - 1):
        scheduler.waits(f"c{number}")
    scheduler.registers("last")
    scheduler.registers("one more")
    assert len(scheduler.waiting) == CANDIDATES_MAX and "one more" not in scheduler.waiting
    scheduler.context.now_ms = 500.0
    scheduler.registers("c7", wanted=2)
    assert (scheduler.admission.candidates["c7"].heard_ms, scheduler.admission.candidates["c7"].wanted) == (500.0, 2)


def test_a_process_that_is_silent_is_forgotten_when_the_timeout_is_over() -> None:
    scheduler = Scheduler()
    scheduler.registers("new")
    scheduler.context.now_ms = TIMEOUT_MS
    scheduler.admission.on_tick()
    assert scheduler.waiting == ["new"]
    scheduler.context.now_ms += 1.0
    scheduler.admission.on_tick()
    assert scheduler.waiting == [] and scheduler.context.effects[-1] == Disconnect(Address(SHARD, -2, 0))


# ------------------------------------------------------------------ who is reached
def test_a_process_is_knocked_at_until_it_says_the_number() -> None:
    scheduler = Scheduler()
    scheduler.registers("new")
    assert scheduler.registers("new", reached=9) == [Knock("new", 1)]
    assert scheduler.registers("new", reached=1) == [Disconnect(Address(SHARD, -2, 0))]
    scheduler.context.now_ms = 2 * REACH_MS
    assert scheduler.registers("new") == [] and scheduler.registers("new", reached=1) == []
    assert scheduler.waiting == ["new"] and scheduler.admission.spares == 1


def test_one_that_is_not_reached_is_told_to_end_after_the_timeout() -> None:
    scheduler = Scheduler()
    scheduler.registers("new")
    scheduler.context.now_ms = REACH_MS
    assert scheduler.registers("new") == [Knock("new", 1)]
    scheduler.context.now_ms += 1.0
    ended, fenced = scheduler.registers("new")
    assert ended == Disconnect(Address(SHARD, -2, 0)) and scheduler.waiting == []
    assert "the scheduler cannot reach it at inproc://new; give --advertise" in fenced.reason


# ------------------------------------------------------------------ who gets a place
def test_a_place_goes_to_a_process_that_wants_it_then_to_a_spare_then_to_one_whose_place_is_taken() -> None:
    scheduler = Scheduler()
    scheduler.dies(0)
    choose = scheduler.admission.choose
    assert choose(0, 1) is None
    scheduler.waits("wants 1", 1)
    assert choose(0, 1) == "wants 1", "its place is another's"
    scheduler.waits("spare")
    assert choose(0, 1) == "spare"
    assert choose(0, 0) is None, "all spares are for groups at more risk"
    scheduler.waits("wants 0", 0)
    assert choose(0, 1) == "wants 0" and choose(0, 0) == "wants 0"
    scheduler.dies(1)
    del scheduler.admission.candidates["wants 0"], scheduler.admission.candidates["spare"]
    assert choose(0, 1) is None, "it waits for its own place"


@pytest.mark.parametrize("wanted", [0, -1])
@pytest.mark.parametrize("why", ["it is not reached", "a member is at its endpoint"])
def test_a_process_that_others_would_not_find_gets_no_place(wanted: int, why: str) -> None:
    for is_found in (False, True):
        scheduler = Scheduler()
        scheduler.dies(0)
        if why == "it is not reached":
            scheduler.waits("new", wanted, is_reached=is_found)
        else:
            scheduler.waits("new", wanted, "inproc://p0" if is_found else "inproc://p1")
        assert scheduler.admission.choose(0, 1) == ("new" if is_found else None)


def test_who_leaves_its_host_is_followed_by_a_process_on_another_one() -> None:
    scheduler = Scheduler()
    scheduler.dies(0)
    scheduler.waits("same", 0, "tcp://rack-1:9001")
    scheduler.waits("spare on the same", endpoint="tcp://rack-1:9002")
    choose = scheduler.admission.choose
    assert choose(0, 1, "rack-1") is None and choose(0, 1, "rack-2") == "same"
    scheduler.waits("other", endpoint="tcp://rack-10:9001")
    assert choose(0, 1, "rack-1") == "other" and choose(0, 1) == "same"
    assert choose(0, 1, "rack-1", but={"other"}) is None


def new_group(*waiting: tuple[Any, ...], groups: int = 1) -> list[str] | None:
    """Who gets the places of a new group."""
    scheduler = Scheduler(groups)
    for number in range(groups):
        scheduler.dies(0, 1, 2, group=number)
    for number, (wanted, *more) in enumerate(waiting):
        scheduler.waits(f"c{number}", wanted, *more)
    return scheduler.admission.choose_all(groups - 1)


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ([(2,), (0,), (1,)], ["c1", "c2", "c0"]),
        ([(-1,), (-1,), (-1,)], ["c0", "c1", "c2"]),
        ([(-1,), (1,), (-1,)], ["c0", "c1", "c2"]),
        ([(-1,), (-1,)], None),
        ([(0,), (0,), (-1,), (-1,)], ["c0", "c2", "c3"]),  # rather those that want any
        ([(0,), (0,), (-1,)], ["c0", "c2", "c1"]),  # of two that want one place the other is a spare
        ([(-1,), (-1,), (-1, "", False)], None),
        ([(0,), (1,), (2, "", False)], None),
        ([(-1, "inproc://same"), (-1, "inproc://same"), (-1,)], None),
        ([(-1, "inproc://same"), (-1, "inproc://same"), (-1,), (-1,)], ["c0", "c2", "c3"]),
        ([(0, "inproc://same"), (1, "inproc://same"), (-1,), (-1,)], ["c0", "c2", "c3"]),
    ],
)
def test_a_new_group_has_a_process_for_each_place_and_no_process_or_endpoint_twice(
    waiting: list[tuple[Any, ...]], chosen: list[str] | None
) -> None:
    assert new_group(*waiting) == chosen


def test_a_process_that_waits_for_a_place_of_another_new_group_is_no_spare() -> None:
    assert new_group((3,), (4,), (0,), groups=2) is None
    assert new_group((3,), (4,), (-1,), groups=2) == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("waiting", "shards", "can"),
    [
        ([], [], True),
        ([], [1], False),
        ([(1,)], [1], True),
        ([(1, "", False)], [1], False),
        ([(-1,)], [1], True),
        ([(-1,)], [1, 2], False),
        ([(-1,), (-1,)], [1, 2], True),
        ([(1,), (-1,)], [1, 2], True),
        ([(1,), (1,)], [1, 2], False),  # both wait for one place
        ([(0,)], [1], True),  # its own is taken
        ([(0,), (1,)], [1, 2], True),
        ([(2,)], [1], False),  # that one is down, and its own
    ],
)
def test_places_can_be_taken_if_a_process_waits_for_each(
    waiting: list[tuple[Any, ...]], shards: list[int], can: bool
) -> None:
    scheduler = Scheduler()
    scheduler.dies(2)
    for number, (wanted, *more) in enumerate(waiting):
        scheduler.waits(f"c{number}", wanted, *more)
    assert scheduler.admission.can_replace(0, shards) == can


def test_places_of_another_group_are_other_places() -> None:
    scheduler = Scheduler(groups=2)
    scheduler.dies(1, group=1)
    scheduler.dies(1, group=0)
    scheduler.waits("c", 4)
    assert scheduler.admission.can_replace(1, [1]) and not scheduler.admission.can_replace(0, [1])
    assert scheduler.admission.waiting() == [m.Waiting("inproc://c", 4, False, True, "c")]

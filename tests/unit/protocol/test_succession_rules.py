"""Successions as the scheduler decides them, one rule at a time: who is succeeded, by whom, when, and when it ends."""

from typing import Any

import pytest
from cluster import table
from parts import Parts

from ecrec.protocol import messages as m
from ecrec.protocol.admission import Admission, Candidate
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.departures import Departures
from ecrec.protocol.losses import Losses
from ecrec.protocol.messages import DOWN, RECOVERING, SHARD, UP, Address
from ecrec.protocol.settlement import Settlements
from ecrec.protocol.state import Settlement
from ecrec.protocol.successions import Successions

CONFIG = ProtocolConfig()
TIMEOUT_MS, AGAIN_MS = CONFIG.heartbeat_timeout_ms, CONFIG.succession_again_ms


class Scheduler(Parts):
    """Two groups of three; shard 1 of the first one asks to leave, and a spare waits."""

    def __init__(self, *spares: str) -> None:
        super().__init__(n=3, groups=2)
        self.state.tables = [table(code="2+1")]
        for number, group in enumerate(self.state.groups):
            group.table_views = [1]
            for place in group.places:
                place.process = f"p{number}.{place.process}"
        self.admission = Admission(self.context, self.members)
        self.departures = Departures(self.context, self.members)
        losses = Losses(self.context, self.members, self.announcer)
        settlements = Settlements(self.context, self.members, self.announcer, self.admission, losses)
        self.successions = Successions(self.context, self.members, self.announcer, self.admission, settlements)
        for name in spares or ("spare",):
            self.waits(name)
        self.asks(1)

    def waits(self, name: str) -> None:
        self.admission.candidates[name] = Candidate(f"inproc://{name}", -1, 0.0, 0.0, 1, True)

    def asks(self, shard: int, **fields: Any) -> None:
        """A shard, numbered over all groups, asks to leave, or says that it stays."""
        place = self.state.groups[shard // 3].places[shard % 3]
        self.departures.on_leave(Address(SHARD, shard, place.epoch), m.Leave(place.process, **fields))

    def leads(self, group: int = 0, **doubted: str) -> str:
        """Who is to succeed the one that leaves; empty: nobody yet."""
        of = self.state.groups[group]
        some = {int(name[1:]): reason for name, reason in doubted.items()}
        self.successions.leads(group, of, self.departures, some)
        return of.succeeding.process if of.succeeding is not None else ""

    def says(self, shard: int = 1, **fields: Any) -> bool:  # type: ignore[override]
        """What the member that is copied says; whether its place has changed hands."""
        group = self.state.groups[shard // 3]
        place = group.places[shard % 3]
        since = fields.pop("since", group.succeeding.view if group.succeeding else 1)
        process, epoch = fields.pop("process", place.process), fields.pop("epoch", place.epoch)
        told = m.Handover(process, since, **fields)
        return self.successions.on_handover(Address(SHARD, shard, epoch), told, lambda: {})

    def reason(self) -> str:
        return self.departures.waiting()[1]

    @property
    def group(self) -> Any:
        return self.state.groups[0]


# ------------------------------------------------------------------ who is succeeded
def test_who_asks_is_succeeded_by_a_spare() -> None:
    scheduler = Scheduler()
    assert scheduler.leads() == "spare" and scheduler.leads(1) == ""
    assert scheduler.group.views[-1] == m.Succession(2, 1, 2, "inproc://spare")
    assert scheduler.leads() == "spare" and scheduler.group.view == 2, "it is not begun again"


@pytest.mark.parametrize("why", ["data is lost", "nobody asks", "no tables", "it is switched off"])
def test_nobody_is_succeeded_where_there_is_nothing_to_hand_over(why: str) -> None:
    scheduler = Scheduler()
    if why == "data is lost":
        scheduler.group.lost = "all rows"
    elif why == "nobody asks":
        scheduler.asks(1, stays=True)
    elif why == "no tables":
        scheduler.state.tables = []
    else:
        scheduler.context.config = ProtocolConfig(hand_over=False)
    assert not scheduler.successions.leads(0, scheduler.group, scheduler.departures, {})
    assert scheduler.group.succeeding is None


def test_spares_are_left_for_those_that_are_down_and_for_other_successions() -> None:
    scheduler = Scheduler("first", "second")
    assert scheduler.leads() == "first"
    scheduler.asks(4)
    scheduler.group.places[2].state = DOWN
    scheduler.group.settlements[2] = Settlement(1)
    assert scheduler.leads(1) == "", "one copies, and one is for shard 2"
    scheduler.group.lost = "all rows"
    assert scheduler.leads(1) == "second", "nobody takes a place there any more"


@pytest.mark.parametrize("why", ["doubted", "recovering"])
def test_a_succession_begins_when_all_of_its_group_are_there_and_whole(why: str) -> None:
    scheduler = Scheduler()
    if why == "recovering":
        scheduler.group.places[2].state = RECOVERING
        assert scheduler.leads() == ""
        scheduler.group.places[2].state = UP
    else:
        assert scheduler.leads(s2="is silent") == ""
    assert (
        f"a spare will take its place; it waits: shard 2 {'is recovering' if why == 'recovering' else 'is silent'}"
        in (scheduler.reason())
    )
    assert scheduler.leads() == "spare"


def test_the_next_one_that_asks_is_told_for_whom_it_waits() -> None:
    scheduler = Scheduler("first", "second")
    scheduler.leads()
    scheduler.asks(2)
    assert scheduler.leads() == "first" and scheduler.group.succeeding.shard == 1
    assert scheduler.departures.waiting()[2] == "waits until shard 1 is handed over"


# ------------------------------------------------------------------ when it ends
def test_the_next_one_begins_after_a_while_and_knows_nothing_of_the_last_one() -> None:
    scheduler = Scheduler()
    scheduler.context.now_ms = 100.0
    assert scheduler.leads() == "spare"
    scheduler.says(left_bytes=9_000_000)
    scheduler.leads()
    assert scheduler.reason() == "is copied to a spare at inproc://spare, 9.0 MB are left"
    scheduler.successions.give_up(0, scheduler.group, "so")
    for later_ms, begins in ((0.0, ""), (AGAIN_MS - 1.0, ""), (AGAIN_MS, "spare")):
        scheduler.context.now_ms = 100.0 + later_ms
        scheduler.asks(1)
        assert scheduler.leads() == begins
    scheduler.leads()
    assert scheduler.reason() == "is copied to a spare at inproc://spare"


@pytest.mark.parametrize(("gone", "reason"), [("spare", "the spare is gone"), ("shard", "the shard stays")])
def test_one_of_both_may_be_away_for_a_moment(gone: str, reason: str) -> None:
    scheduler = Scheduler()
    assert scheduler.leads() == "spare"
    if gone == "spare":
        del scheduler.admission.candidates["spare"]
    else:
        scheduler.departures._requests.clear()
    for now_ms, goes_on in ((TIMEOUT_MS, True), (TIMEOUT_MS + 1, False)):
        scheduler.context.now_ms = now_ms
        if gone == "spare":
            scheduler.asks(1)
        assert bool(scheduler.leads()) == goes_on
    assert scheduler.context.story.events(scheduler.context.now_ms)
    assert scheduler.group.views[-1] == m.SuccessionOver(3, 1, 2)
    assert any(reason in each.text for each in scheduler.context.effects if hasattr(each, "text"))


def test_who_stays_after_all_may_be_handed_over_as_often_as_ever_later() -> None:
    scheduler = Scheduler()
    for tried in range(CONFIG.succession_tries_max):
        assert scheduler.successions.tried(0, 1) == tried
        scheduler.asks(1)
        assert scheduler.leads() == "spare"
        assert not scheduler.says(failure="so")
        scheduler.context.now_ms += AGAIN_MS
    scheduler.asks(1)
    assert scheduler.leads() == "", "it goes without a successor"
    scheduler.successions.stayed(0, 1)
    assert scheduler.successions.tried(0, 1) == 0 and scheduler.leads() == "spare"
    scheduler.successions.stayed(0, 2)
    assert scheduler.group.succeeding is not None, "that is another one"
    scheduler.successions.stayed(0, 1)
    assert scheduler.group.succeeding is None


def test_one_that_ends_because_its_spare_is_gone_has_not_failed_though_it_has_halted_for_long() -> None:
    scheduler = Scheduler()
    assert scheduler.leads() == "spare"
    scheduler.says(halts=True)
    del scheduler.admission.candidates["spare"]
    scheduler.context.now_ms = max(TIMEOUT_MS, CONFIG.succession_halt_timeout_ms) + 1.0
    scheduler.asks(1)
    assert scheduler.leads() == "" and scheduler.successions.tried(0, 1) == 0


@pytest.mark.parametrize(
    "fields", [{"since": 1}, {"shard": 2}, {"shard": 4}, {"shard": 9}, {"process": "another"}, {"epoch": 2}]
)
def test_only_the_member_that_is_copied_says_how_far_it_is_and_only_of_this_succession(fields: Any) -> None:
    scheduler = Scheduler()
    if fields.get("shard") == 9:
        assert scheduler.leads() == "spare"
        assert not scheduler.successions.on_handover(Address(SHARD, 9, 1), m.Handover("p", 2), lambda: {})
        return
    for begun in (False, True):
        assert not scheduler.says(**fields, failure="so", is_level=True)
        assert (scheduler.leads() if not begun else scheduler.group.succeeding.process) == "spare"
    assert scheduler.successions.tried(0, 1) == 0 and scheduler.group.places[1].epoch == 1


def test_the_place_changes_hands_only_while_the_successor_is_there_and_is_reached() -> None:
    scheduler = Scheduler()
    assert scheduler.leads() == "spare"
    spare = scheduler.admission.candidates.pop("spare")
    assert not scheduler.says(is_level=True), "it is gone, or this scheduler was just started"
    scheduler.admission.candidates["spare"], spare.is_reached = spare, False
    assert not scheduler.says(is_level=True)
    assert scheduler.group.places[1].process == "p0.p1"
    spare.is_reached = True
    assert scheduler.says(is_level=True, window=7, watermarks={0: 3})
    place = scheduler.group.places[1]
    assert (place.epoch, place.process, place.endpoint, place.state) == (2, "spare", "inproc://spare", UP)
    assert scheduler.group.views[-1] == m.Succeeded(3, 1, 2, "inproc://spare", 7, {0: 3})
    assert scheduler.admission.candidates == {} and scheduler.group.succeeding is None

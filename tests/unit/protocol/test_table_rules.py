"""Tables, one rule at a time: which can be, who waits for one, who prepares it, who writes its first values."""

from typing import Any

import msgspec
import pytest
from cluster import table
from parts import Parts, worker

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol import new_tables
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Send
from ecrec.protocol.initial import InitialValues
from ecrec.protocol.leases import Leases
from ecrec.protocol.messages import DOWN, TOOL, UP, Address, InitialiseTable, PrepareTable, Refused, TableReady
from ecrec.protocol.placement import TABLES_MAX, CodeSpec, OptimizerSpec, Placement, TableSpec
from ecrec.protocol.state import Claim, Group, Place, Settlement
from ecrec.protocol.tables import CREATING_MAX, FLOAT32_MAX, TABLE_BYTES_MAX, Tables, check_table

RESEND_MS, TIMEOUT_MS = ProtocolConfig().view_resend_ms, ProtocolConfig().lease_timeout_ms
WHO = Address(TOOL, 5, 0)


# ------------------------------------------------------------------ which can be
def fits(spec: TableSpec, others: int = 0, groups: int = 1, n: int = 5) -> str:
    """Why a table cannot be; empty if it can."""
    others_ = [table(f"other {i}") for i in range(others)]
    try:
        check_table(spec, others_, groups, Placement(n))
    except ConfigurationError as error:
        return str(error)
    return ""


def changed(**fields: Any) -> TableSpec:
    return msgspec.structs.replace(table("t", code="1+1"), **fields)


LARGEST = TABLE_BYTES_MAX // 64
"""Rows of 12 weights and no state: each has 48 bytes, and 16 more at most."""


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "x" * 256}, ""),
        ({"name": "x" * 257}, "expected 1 to 256 characters"),
        ({"name": ""}, "expected 1 to 256 characters"),
        ({"pooling": "x" * 4096}, ""),
        ({"pooling": "x" * 4097}, "4096 are possible"),
        ({"features": "x" * 4097}, "4096 are possible"),
        ({"first_values": "x" * 4097}, "4096 are possible"),
        ({"rows": 1}, ""),
        ({"rows": 0}, "0 rows; expected 1 to"),
        ({"rows": 2**47}, f"{2**47} rows; expected 1 to"),
        ({"rows": LARGEST, "dim": 12}, ""),
        ({"rows": LARGEST + 1, "dim": 12}, "bytes of address space"),
        ({"dim": 1}, ""),
        ({"dim": 0}, "dimension 0; expected 1 to 65536"),
        ({"dim": 65_536}, ""),
        ({"dim": 65_537}, "dimension 65537; expected 1 to 65536"),
        ({"optimizer": OptimizerSpec("sgd", ())}, "table 't': "),
        ({"init_scale": FLOAT32_MAX}, ""),
        ({"init_scale": -FLOAT32_MAX}, ""),
        ({"init_scale": 2 * FLOAT32_MAX}, "expected finite float32 numbers"),
        ({"init_scale": float("nan")}, "expected finite float32 numbers"),
        ({"init_state": float("inf")}, "expected finite float32 numbers"),
        ({"init_seed": 0}, ""),
        ({"init_seed": -1}, "a seed from 0 to 2**64 - 1"),
        ({"init_seed": 2**64 - 1}, ""),
        ({"init_seed": 2**64}, "a seed from 0 to 2**64 - 1"),
        ({"code": CodeSpec(1, 1, "isal-cauchy")}, ""),
        ({"code": CodeSpec(1, 1, "guess")}, "generator 'guess' is unknown"),
        ({"init": "zeros"}, ""),
        ({"init": "ones"}, "init 'ones'; expected zeros or uniform"),
        ({"code": CodeSpec(4, 2)}, "table 't': "),
    ],
)
def test_a_table_that_no_shard_could_hold_is_refused_with_the_limit(fields: dict[str, Any], why: str) -> None:
    found = fits(changed(**fields))
    assert why in found and bool(found) == bool(why)


def test_a_table_is_as_large_as_all_tables_allow() -> None:
    spec = changed(rows=LARGEST, dim=12)
    with pytest.raises(ConfigurationError, match="address space"):
        check_table(spec, [changed(name="o")], 1, Placement(5))
    check_table(spec, [changed(name="o")], 2, Placement(5))  # each group has half of them


def test_so_many_tables_can_be_and_no_more() -> None:
    assert fits(changed(), others=TABLES_MAX - 1) == ""
    assert f"there are {TABLES_MAX} tables already" in fits(changed(), others=TABLES_MAX)


# ------------------------------------------------------------------ who waits for one
class Scheduler(Parts):
    """A group of three that has begun, and knows the tables that a test gives it."""

    def __init__(self, *tables: TableSpec, groups: int = 1, begun: bool = True) -> None:
        super().__init__(n=3, groups=groups, workers={0: 1, 1: 1, 2: 1})
        for number in range(groups if begun else 0, groups):
            self.state.groups[number] = Group(places=[Place() for _ in range(3)])
        for spec in tables:
            self.state.tables.append(spec)
            self.context.placement.add(spec.code)
            for group in self.state.groups:
                group.table_views.append(1)
        self.tables = Tables(self.context, self.members, self.announcer)
        self.new = self.tables.preparing
        for group, shard in self.members.contacts:
            self.prepared(shard, 0, group=group)

    def prepared(self, shard: int, number: int, refusal: str = "", group: int = 0) -> None:
        self.says(group, shard, prepared=number, refusal=refusal)
        self.new.heard(number)

    def all_prepared(self, number: int) -> None:
        for group, shard in self.members.contacts:
            self.prepared(shard, number, group=group)

    def asks(self, spec: TableSpec, request: int = 1, who: Address = WHO) -> list[Any]:
        self.tables.on_create(who, m.CreateTable(request, spec))
        return self.sent()

    def prepares(self) -> dict[int, tuple[int, str | None]]:
        """Shards that are told to prepare a table, or to give back what they prepared."""
        self.tables.advance()
        told = {}
        for effect in self.context.effects:
            if isinstance(effect, Send) and isinstance(effect.message, PrepareTable):
                some = effect.message.table
                told[effect.to.id] = effect.message.number, some.name if some else None
        self.context.effects.clear()
        return told

    def confirm(self, view: int) -> None:
        for contact in self.members.contacts.values():
            contact.view = view


ONE, TWO = table("one", code="2+1"), table("two", code="2+1")


def test_a_table_is_made_once_for_all_who_ask_and_they_hear_when_all_shards_have_it() -> None:
    scheduler = Scheduler(ONE)
    other = Address(TOOL, 6, 0)
    assert scheduler.asks(ONE) == [TableReady(1, 0)], "it is there"
    assert scheduler.asks(TWO) == [] and scheduler.asks(TWO, 2, other) == []
    assert scheduler.prepares() == dict.fromkeys(range(3), (1, "two"))
    scheduler.all_prepared(1)
    assert scheduler.prepares() == {}
    assert scheduler.state.tables == [ONE, TWO] and scheduler.state.groups[0].view == 2
    assert scheduler.state.groups[0].views == [m.TableAdded(2, TWO)] and scheduler.state.initial.fresh == [1]
    scheduler.tables.answer()
    assert scheduler.sent() == [], "not before they have confirmed its view"
    assert scheduler.asks(TWO, 3) == []
    scheduler.confirm(2)
    scheduler.tables.answer()
    assert sorted(message.request for message in scheduler.sent()) == [1, 2, 3]
    scheduler.tables.answer()
    assert scheduler.sent() == [], "once"
    assert scheduler.asks(TWO, 4) == [TableReady(4, 1)]


def test_tables_are_prepared_one_behind_the_other() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE, 1)
    scheduler.asks(TWO, 2)
    assert scheduler.prepares() == dict.fromkeys(range(3), (1, "one"))
    scheduler.all_prepared(1)
    assert scheduler.prepares() == dict.fromkeys(range(3), (2, "two"))
    assert scheduler.state.tables == [ONE]
    scheduler.confirm(2)
    scheduler.tables.answer()
    assert scheduler.sent() == [TableReady(1, 0)], "the other one waits for its own"


def test_a_table_of_other_properties_is_refused_with_what_differs_whether_it_is_there_or_being_made() -> None:
    for there in (True, False):
        scheduler = Scheduler(*([ONE] if there else []))
        if not there:
            scheduler.asks(ONE)
        (refused,) = scheduler.asks(msgspec.structs.replace(ONE, dim=8), 2)
        assert "table 'one' exists with other properties: dim is 4, not 8" in refused.reason
        assert [waiting.table for waiting in scheduler.state.new_tables.queue] == ([] if there else [ONE])


def test_a_table_that_cannot_be_is_refused_and_so_is_every_copy_of_the_request() -> None:
    scheduler = Scheduler()
    wrong = msgspec.structs.replace(ONE, dim=0)
    (refused,) = scheduler.asks(wrong)
    assert "dimension 0" in refused.reason and scheduler.state.new_tables.queue == []
    assert scheduler.asks(ONE) == [refused], "a copy of the same request"
    assert scheduler.state.new_tables.queue == []
    assert scheduler.asks(ONE, 2) == [] and len(scheduler.state.new_tables.queue) == 1
    assert scheduler.asks(ONE, 1, Address(TOOL, 6, 0)) == [], "another one's request"


def test_what_waits_counts_where_a_table_is_checked() -> None:
    scheduler = Scheduler()
    large = msgspec.structs.replace(ONE, rows=int(LARGEST * 0.6), dim=12)
    assert scheduler.asks(large) == []
    (refused,) = scheduler.asks(msgspec.structs.replace(large, name="two"), 2)
    assert "address space" in refused.reason


def test_so_many_requests_wait_and_no_more() -> None:
    scheduler = Scheduler()
    for request in range(CREATING_MAX + 1):
        scheduler.tables.on_create(WHO, m.CreateTable(request, ONE))
    assert len(scheduler.tables.creating) == CREATING_MAX


@pytest.mark.parametrize("view", [1, 2])
def test_a_table_of_the_first_view_is_everywhere_when_that_one_is_confirmed(view: int) -> None:
    """And one of a later view when that one is."""
    scheduler = Scheduler(ONE, groups=2)
    scheduler.state.groups[1].table_views = [view]
    scheduler.state.groups[1].view = view
    assert scheduler.asks(ONE) == ([TableReady(1, 0)] if view == 1 else [])
    scheduler.state.groups[1].table_views = [0]
    scheduler.members.contacts[1, 2].view = 0
    assert scheduler.asks(ONE, 2) == [], "it may have been started by a view that a shard has yet to take"


def test_a_shard_that_is_in_the_way_has_all_requests_refused_once_and_nothing_is_prepared_any_more() -> None:
    scheduler = Scheduler(ONE)
    scheduler.confirm(0)
    assert scheduler.asks(ONE) == [] and scheduler.asks(TWO, 2) == []
    scheduler.prepares()
    scheduler.tables.refuse_all("shard 1 is in the way")
    first, second = scheduler.sent()
    assert "table 'one', which is there but not yet on all shards: shard 1 is in the way" in first.reason
    assert "table 'two': shard 1 is in the way" in second.reason
    assert scheduler.state.new_tables.queue == [] and scheduler.tables.creating == {}
    scheduler.tables.refuse_all("shard 1 is in the way")
    assert scheduler.sent() == []


# ------------------------------------------------------------------ who prepares it
def test_a_shard_is_told_again_after_a_while_until_it_says_that_it_has() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE)
    told = dict.fromkeys(range(3), (1, "one"))
    assert scheduler.prepares() == told and scheduler.prepares() == {}
    scheduler.context.now_ms = RESEND_MS - 1.0
    assert scheduler.prepares() == {}
    scheduler.context.now_ms = RESEND_MS
    scheduler.prepared(1, 1)
    del told[1]
    assert scheduler.prepares() == told
    scheduler.members.contacts[0, 2].status = None
    scheduler.context.now_ms = 2 * RESEND_MS
    assert scheduler.prepares() == {0: (1, "one")}, "one that was not heard is told when it is"


def test_a_table_that_one_shard_cannot_hold_is_refused_and_given_back_by_those_that_have_it() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE)
    scheduler.asks(ONE, 7, Address(TOOL, 6, 0))
    scheduler.prepares()
    scheduler.prepared(0, 1)
    scheduler.prepared(1, 1, "has no room")
    assert scheduler.new.waits_for(0) and not scheduler.new.waits_for(1)
    scheduler.tables.advance()
    sent = [effect for effect in scheduler.context.effects if isinstance(effect, Send)]
    assert {(e.to.id, e.message.number) for e in sent if isinstance(e.message, PrepareTable)} == {(0, 2), (1, 2)}
    reasons = [e.message.reason for e in sent if isinstance(e.message, Refused)]
    assert reasons == ["table 'one' does not fit, nothing of it was made: shard 1 has no room"] * 2
    assert scheduler.state.tables == [] and scheduler.tables.creating == {}
    scheduler.context.effects.clear()
    assert not scheduler.new.waits_for(0)
    scheduler.context.now_ms = RESEND_MS
    scheduler.prepared(0, 2)
    assert scheduler.prepares() == {1: (2, None)}, "one that has prepared nothing has nothing to give back"
    scheduler.prepared(1, 2)
    scheduler.context.now_ms = 2 * RESEND_MS
    assert scheduler.prepares() == {}


def test_what_was_refused_is_not_given_back_while_the_next_table_takes_its_place() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE, 1)
    scheduler.asks(TWO, 2)
    scheduler.prepares()
    scheduler.prepared(1, 1, "has no room")
    assert scheduler.prepares() == dict.fromkeys(range(3), (2, "two"))


def test_a_group_that_has_not_begun_is_waited_for() -> None:
    scheduler = Scheduler(groups=2)
    scheduler.state.groups[1].view = 0
    scheduler.asks(ONE)
    scheduler.all_prepared(1)
    assert scheduler.prepares() == {} and not scheduler.new.waits_for(0)
    assert scheduler.state.tables == []
    scheduler.state.groups[1].view = 1
    scheduler.prepares()
    assert scheduler.state.tables == [ONE]


def test_a_code_that_does_not_fit_those_made_meanwhile_is_refused() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE)
    scheduler.state.new_tables.queue[0].table = msgspec.structs.replace(ONE, code=CodeSpec(9, 9))
    scheduler.tables.advance()
    assert scheduler.state.tables == [] and scheduler.state.new_tables.queue == []


@pytest.mark.parametrize(
    ("down", "known", "lost", "is_made"),
    [
        ((), False, "", True),
        ((0,), False, "", True),
        ((0, 1), False, "", False),
        ((0, 1), True, "", True),  # its code counted already
        ((0, 1), False, "all", True),  # of a group that has lost data nothing is waited for
    ],
)
def test_a_table_of_a_new_code_waits_while_its_rows_would_count_as_lost(
    down: tuple[int, ...], known: bool, lost: str, is_made: bool
) -> None:
    scheduler = Scheduler(*([TWO] if known else []))
    scheduler.asks(ONE)
    group = scheduler.state.groups[0]
    group.lost = lost
    for shard in down:
        group.places[shard].state = DOWN
        group.settlements[shard] = Settlement(1)
    scheduler.all_prepared(1)
    scheduler.prepares()
    assert (ONE in scheduler.state.tables) == is_made
    if is_made and down and not known:
        reinitialised = [settlement.reinitialised for settlement in group.settlements.values()]
        classes = scheduler.context.placement
        assert reinitialised == [sorted(classes.data_classes(shard)) for shard in down], "their rows are initial ones"


def test_steps_go_on_from_those_that_a_shard_has_heard_of() -> None:
    """They are of a state that was lost."""
    scheduler = Scheduler()
    scheduler.asks(ONE)
    scheduler.changed()
    scheduler.new.heard(1)
    assert scheduler.state.new_tables.queue[0].number == 1 and not scheduler.changed()
    scheduler.new.heard(9)
    assert scheduler.state.new_tables.queue[0].number == 10 and scheduler.changed()
    scheduler = Scheduler()
    scheduler.new.heard(9)
    assert scheduler.state.new_tables.release == 10, "what it has prepared is given back"


def test_only_so_many_refusals_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_tables, "REFUSALS_MAX", 3)
    scheduler = Scheduler()
    for request in range(5):
        scheduler.new.refuse(WHO, request, f"reason {request}")
    assert [scheduler.new.refused(WHO, request) for request in range(5)] == ["", "", "reason 2", "reason 3", "reason 4"]


def test_nothing_is_kept_of_shards_that_are_gone() -> None:
    scheduler = Scheduler()
    scheduler.asks(ONE)
    scheduler.prepares()
    place = scheduler.state.groups[0].places[1]
    place.state = DOWN
    assert scheduler.prepares() == {}
    place.state, place.epoch = UP, 2
    assert scheduler.prepares() == {1: (1, "one")}, "another incarnation is told anew"
    assert len(scheduler.new._sent) == 3
    place.state, scheduler.state.groups[0].places[2].epoch = DOWN, 2
    scheduler.members.contacts[0, 2].status = None
    assert scheduler.prepares() == {} and len(scheduler.new._sent) == 1, "one that was not heard yet was told nothing"


# ------------------------------------------------------------------ who writes its first values
class First(Scheduler):
    """Tables 0 and 1 of three have no values yet."""

    def __init__(self) -> None:
        super().__init__(ONE, TWO, table("three", code="2+1"))
        self.leases = Leases(self.context, self.announcer)
        self.values = InitialValues(self.context, self.announcer, self.leases)
        self.state.initial.fresh = [0, 1]
        self.of = self.state.initial

    def says_it(self, number: int, tab: int = 0, claim: bool = True, done: bool = False, epoch: int = 1) -> Any:
        self.values.on_initialise(worker(number, epoch), InitialiseTable(1, tab, claim, done))
        (answer,) = self.sent()
        return answer.state if isinstance(answer, m.TableInitial) else answer


def test_one_life_of_one_worker_writes_the_first_values_and_the_others_wait() -> None:
    first = First()
    assert first.says_it(0, claim=False) == m.WAIT, "it does not want to write them"
    assert first.says_it(0) == m.WRITE and first.says_it(0) == m.WRITE and first.says_it(1) == m.WAIT
    assert first.says_it(1, 1) == m.WRITE and first.says_it(1, 2) == m.WRITTEN
    assert first.says_it(1, done=True) == m.WAIT, "it is not the one that writes"
    assert first.says_it(0, done=True) == m.WRITTEN and first.changed()
    assert first.says_it(1) == m.WRITTEN and first.of.fresh == [1] and list(first.of.claims) == [1]


def test_requests_of_no_table_or_of_one_whose_writer_nobody_knows_are_refused() -> None:
    first = First()
    assert "there is no table 3: they are 0 to 2" in first.says_it(0, 3).reason
    first.of.unsure = [2]
    assert "make it under another name" in first.says_it(0, 2).reason
    assert isinstance(first.says_it(0, epoch=2), m.Fenced), "and of a life that is none"


def test_what_a_life_that_is_over_wrote_counts_for_nothing_once_all_shards_have_confirmed_that() -> None:
    first = First()
    first.says_it(0)
    first.says_it(1, 1)
    first.values.ended(0, 1)
    views = [view for view in first.state.groups[0].views if isinstance(view, m.WorkerFenced)]
    assert [(view.number, view.worker, view.epoch) for view in views] == [(2, 0, 1)]
    assert first.state.leases.fenced == {0: 1} and first.of.claims == {0: Claim(0, 1, [2]), 1: Claim(1, 1)}
    first.values.ended(0, 1)
    assert first.of.claims[0].views == [2] and first.state.groups[0].view == 2, "it is over once"
    first.values.advance(first.members)
    assert 0 in first.of.claims
    assert first.says_it(1) == m.WAIT
    first.confirm(2)
    first.values.advance(first.members)
    assert list(first.of.claims) == [1], "another one's claim is not touched"
    assert first.says_it(1) == m.WRITE


def test_a_life_that_is_over_writes_nothing_more_though_its_word_comes_late() -> None:
    first = First()
    first.says_it(0)
    first.of.claims[0].views = [2]
    assert first.says_it(0, done=True) == m.WAIT and first.of.fresh == [0, 1]


def test_a_worker_that_is_started_again_ends_what_it_wrote_before() -> None:
    first = First()
    first.says_it(0)
    first.state.workers[0] = (2, "again")
    assert first.says_it(0, epoch=2) == m.WAIT
    assert first.of.claims[0].views == [2] and first.state.leases.fenced == {0: 1}
    first = First()
    first.says_it(0)
    first.values.ended(0, 0)
    assert first.of.claims[0].views == [], "an earlier life is not this one"


def test_a_life_that_holds_splits_too_has_them_handed_on_as_well() -> None:
    first = First()
    first.says_it(0)
    first.leases.on_lease_split(worker(0), m.LeaseSplit(1, m.Dataset("d", 10, 10, 5), 0))
    first.values.ended(0, 1)
    assert [(fence.worker, fence.epoch) for fence in first.state.leases.fences] == [(0, 1)]


@pytest.mark.parametrize("pause_ms", [0.0, 700.0])
def test_a_writer_that_is_silent_is_over_when_the_timeout_is_and_not_at_it(pause_ms: float) -> None:
    first = First()
    first.says_it(0)
    first.context.now_ms = 1_000.0
    first.values.heard(worker(0))
    first.values.heard(worker(1))
    first.context.now_ms = 1_000.0 + TIMEOUT_MS + pause_ms
    first.values.on_tick(pause_ms)
    assert first.of.claims[0].views == []
    first.context.now_ms += 1.0
    first.values.on_tick(0.0)
    assert first.of.claims[0].views == [2]


def test_nothing_is_kept_of_workers_that_write_nothing() -> None:
    first = First()
    first.says_it(0)
    first.says_it(0, done=True)
    first.values.on_tick(0.0)
    assert first.values._heard_ms == {}

"""Who is sent which views, and which copies of the state, and when again."""

from typing import Any

import msgspec
import pytest
from parts import Parts, worker

from ecrec.protocol import messages as m
from ecrec.protocol.announcer import Announcer, Client
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Send
from ecrec.protocol.messages import DOWN, SHARD, Address, FullView, Origin, ShardDown, StateCopy, Views
from ecrec.protocol.state import Group, Place, encode_copy, read_state

RESEND_MS, COPY_MS = ProtocolConfig().view_resend_ms, ProtocolConfig().state_copy_ms


class Scheduler(Parts):
    """A group that began with view 1, and has seen a death in view 2 and its settlement in view 3."""

    def __init__(self, views: int = 3) -> None:
        super().__init__(n=3)
        self.group = self.state.groups[0]
        for shard, place in enumerate(self.group.places):
            place.start = FullView(1, 0, 1, 3, shard, 1, False, 0, {}, [], [], [], "", ProtocolConfig())
            self.members.contacts[0, shard].view = 3
        self.group.view = views
        self.group.views = [m.WorkerFenced(number, 9, number) for number in range(2, views + 1)]

    def told(self, *clients: Client) -> dict[Address, list[int]]:
        """Whom is sent which views at this time."""
        self.announcer.send(clients)
        views = {e.to: [v.number for v in e.message.views] for e in self.effects() if isinstance(e.message, Views)}
        return views

    def effects(self) -> list[Any]:
        found = [effect for effect in self.context.effects if isinstance(effect, Send)]
        self.context.effects.clear()
        return found


def shard(number: int) -> Address:
    return Address(SHARD, number, 1)


# ------------------------------------------------------------------ views
@pytest.mark.parametrize(
    ("confirmed", "views"), [(-1, [1, 2, 3]), (0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, None), (9, None)]
)
def test_a_member_is_sent_the_views_after_the_last_that_it_confirmed(confirmed: int, views: list[int] | None) -> None:
    scheduler = Scheduler()
    scheduler.members.contacts[0, 1].view = confirmed
    assert scheduler.told() == ({} if views is None else {shard(1): views})


def test_views_that_were_sent_are_sent_again_after_a_while_and_newer_ones_at_once() -> None:
    scheduler = Scheduler()
    scheduler.members.contacts[0, 1].view = 1
    assert scheduler.told() == {shard(1): [2, 3]}
    scheduler.context.now_ms = RESEND_MS - 1.0
    assert scheduler.told() == {}
    scheduler.announcer.add(scheduler.group, ShardDown(scheduler.announcer.next_view(scheduler.group), 0, 1))
    assert scheduler.told() == {shard(0): [4], shard(1): [4], shard(2): [4]}
    scheduler.context.now_ms = 2 * RESEND_MS - 2.0
    assert scheduler.told() == {}
    scheduler.context.now_ms += 1.0
    assert scheduler.told() == {shard(0): [4], shard(1): [2, 3, 4], shard(2): [4]}


@pytest.mark.parametrize("lacks", ["it is down", "it was not met", "it was not started", "views are not kept"])
def test_who_cannot_be_told_views_is_sent_none_and_the_others_are(lacks: str) -> None:
    scheduler = Scheduler()
    for number in (1, 2):
        scheduler.members.contacts[0, number].view = 2 if lacks == "views are not kept" and number == 2 else 1
    if lacks == "it is down":
        scheduler.group.places[1].state = DOWN
    elif lacks == "it was not met":
        scheduler.members.forget(0, 1)
    elif lacks == "it was not started":
        scheduler.group.places[1].start = None
    else:
        del scheduler.group.views[0]
    assert scheduler.told() == {shard(2): [3] if lacks == "views are not kept" else [2, 3]}


def test_views_after_one_are_known_as_long_as_the_next_is_kept() -> None:
    scheduler = Scheduler()
    group, since = scheduler.group, scheduler.announcer.since
    assert [since(group, view) for view in (3, 4)] == [[], []]
    assert [view.number for view in since(group, 1) or []] == [2, 3]
    assert since(group, 0) is None
    assert since(Group(5), 4) is None


def client(view: int, epoch: int = 1, groups: int = 1) -> Client:
    return Client(worker(7, epoch), 4, [view] * groups, [-1] * groups, [-1e18] * groups, 0.0, {})


@pytest.mark.parametrize(
    ("view", "epoch", "views"),
    [(3, 1, None), (2, 1, [3]), (1, 1, [2, 3]), (0, 1, [3]), (-1, 1, [3]), (2, 0, [3])],
)
def test_a_worker_is_sent_what_it_lacks_or_the_present_view(view: int, epoch: int, views: list[int] | None) -> None:
    scheduler = Scheduler()
    some = client(view, epoch)
    scheduler.announcer.send([some])
    sent = [effect.message for effect in scheduler.effects()]
    assert [[v.number for v in message.views] for message in sent] == ([] if views is None else [views])
    if view < 1 or not epoch:
        (start,) = sent[0].views
        assert isinstance(start, FullView) and (start.shard, start.epoch) == (-1, 4), "its epoch is in it"


def test_a_worker_is_sent_again_what_it_has_not_confirmed_after_a_while() -> None:
    scheduler, some = Scheduler(), client(2)
    assert scheduler.told(some) == {worker(7): [3]}
    scheduler.context.now_ms = RESEND_MS - 1.0
    assert scheduler.told(some) == {}
    scheduler.context.now_ms = RESEND_MS
    assert scheduler.told(some) == {worker(7): [3]}
    some.views = [3]
    scheduler.context.now_ms = 3 * RESEND_MS
    assert scheduler.told(some) == {}


def test_of_a_group_that_has_not_begun_nobody_is_told_anything() -> None:
    scheduler = Scheduler()
    scheduler.state.groups.append(Group(places=[Place() for _ in range(3)]))
    some = client(3, groups=2)
    some.views[1] = -1
    assert scheduler.told(some) == {}


def test_only_so_many_views_are_kept_and_those_the_newest() -> None:
    scheduler = Scheduler()
    scheduler.context.config = ProtocolConfig(views_kept_max=2)
    for _ in range(3):
        scheduler.announcer.add(scheduler.group, ShardDown(scheduler.announcer.next_view(scheduler.group), 0, 1))
    assert [view.number for view in scheduler.group.views] == [5, 6] and scheduler.changed()


def test_other_limits_are_announced_once_and_the_same_ones_not_at_all() -> None:
    scheduler = Scheduler()
    scheduler.state.config = scheduler.context.config
    scheduler.announcer.configure()
    assert scheduler.group.view == 3 and not scheduler.changed()
    scheduler.state.config = ProtocolConfig(heartbeat_ms=77)
    for _ in range(2):
        scheduler.announcer.configure()
        assert scheduler.group.views[-1] == m.Configured(4, scheduler.context.config) and scheduler.group.view == 4


# ------------------------------------------------------------------ copies of the state
def test_a_shard_is_sent_a_copy_of_a_newer_state_from_time_to_time_until_it_keeps_it() -> None:
    scheduler = Scheduler()
    scheduler.state.serial = 5

    def copied(at_ms: float, keeps: int) -> bool:
        scheduler.context.now_ms = at_ms
        scheduler.says(0, 1, copied=keeps)
        scheduler.announcer.send_copy(shard(1))
        sent = [effect.message for effect in scheduler.effects()]
        assert sent in ([], [StateCopy(Origin("", 0, scheduler.state.serial))])
        return bool(sent)

    assert copied(0.0, 5), "it was sent none, whatever it says"
    assert scheduler.announcer.copied(0, 1) == 5 and scheduler.announcer.copied(0, 2) == 0
    assert not copied(9_000.0, 5) and not copied(9_000.0, 6)
    assert copied(9_000.0, 4), "it got lost"
    assert not copied(9_000.0 + COPY_MS - 1.0, 4)
    assert copied(9_000.0 + COPY_MS, 4)
    scheduler.state.serial = 6
    assert not copied(9_000.0 + 2 * COPY_MS - 1.0, 9)
    assert copied(9_000.0 + 2 * COPY_MS, 9), "the state is newer than its copy"
    assert scheduler.announcer.copied(0, 1) == 6


def test_a_shard_that_was_not_heard_yet_is_sent_a_copy() -> None:
    scheduler = Scheduler()
    scheduler.members.contacts[0, 1].status = None
    scheduler.announcer.send_copy(shard(1))
    assert [type(effect.message) for effect in scheduler.effects()] == [StateCopy]


def test_a_copy_has_all_but_what_members_know_themselves() -> None:
    scheduler = Scheduler(views=100)
    scheduler.group.table_views = []
    copy = read_state(encode_copy(scheduler.state))
    assert [view.number for view in copy.groups[0].views] == list(range(101 - m.VIEWS_TOLD_MAX, 101))
    assert all(place.start is None for place in copy.groups[0].places)
    kept = msgspec.structs.replace(copy, groups=scheduler.state.groups)
    assert kept == scheduler.state
    assert Announcer(scheduler.context, scheduler.members).copied(0, 0) == 0

"""From a death to its replacement, and what the scheduler asks members: what is told, to whom, and when not."""

from types import SimpleNamespace
from typing import Any

import pytest
from cluster import Cluster, table

from ecrec.errors import ConfigurationError
from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connection, Send, Tick
from ecrec.protocol.messages import DOWN, UP, Address
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.settlement import Settlements, _cuts

CONFIG = ProtocolConfig()


def formed(n: int = 5, code: str = "3+2") -> Cluster:
    cluster = Cluster(n)
    cluster.create(table(code=code))
    cluster.drain()
    return cluster


# ------------------------------------------------------------------ the cut
def settle(reports: list[m.Report | None], **fields: Any) -> tuple[Any, list[Any], list[Any]]:
    """Settle shard 0 of a group; what became of it, the views, and what was announced as lost."""
    settlement = SimpleNamespace(
        view=-1, epoch=4, window=-1, watermarks={},
        reports={f"{shard}:1": report for shard, report in enumerate(reports, 1) if report is not None},
    )  # fmt: skip
    start = SimpleNamespace(window=11, watermarks={7: 3})
    places = [SimpleNamespace(state=DOWN, epoch=4, start=start)]
    places += [SimpleNamespace(state=UP, epoch=1, start=start) for _ in reports]
    group = SimpleNamespace(places=places, settlements={0: settlement}, lost=fields.get("lost", ""), to_reinitialise=[])
    group.to_reinitialise = fields.get("to_reinitialise", [])
    views: list[Any] = []
    lost: list[Any] = []
    state = SimpleNamespace(losses=fields.get("losses", []), n=len(places), groups=[group])
    context: Any = SimpleNamespace(
        state=state, remember=lambda *words: None, placement=SimpleNamespace(data_classes=lambda shard: [5]),
    )  # fmt: skip
    announcer: Any = SimpleNamespace(next_view=lambda group: 20, add=lambda group, view: views.append(view))
    losses: Any = SimpleNamespace(lose=lambda number, group, why: lost.append(why))
    Settlements(context, None, announcer, None, losses)._try_settle(0, group, 0)  # type: ignore[arg-type]
    return settlement, views, lost


def report(window: int, mark: int = 0) -> m.Report:
    return m.Report(0, 4, window, {7: mark} if mark else {})


def test_the_shortest_report_is_the_cut_and_brings_its_watermarks() -> None:
    settlement, views, _ = settle([report(31, 9), report(30, 8), report(-1)])
    assert (settlement.window, settlement.watermarks, settlement.view) == (30, {7: 8}, 20)
    assert views == [m.Settle(20, 0, 4, 30, {7: 8})]


def test_nothing_is_settled_before_every_running_shard_has_reported() -> None:
    settlement, views, lost = settle([report(31, 9), None])
    assert settlement.view == -1 and not views and not lost


def test_where_nobody_heard_of_it_a_shard_goes_on_from_where_it_started() -> None:
    settlement, _, lost = settle([report(-1), report(-1)])
    assert (settlement.window, settlement.watermarks) == (11, {7: 3}) and not lost


@pytest.mark.parametrize("fields", [{"to_reinitialise": [2]}, {"losses": ["some"]}])
def test_where_data_is_lost_and_nobody_knows_what_it_applied_training_stops(fields: dict[str, Any]) -> None:
    settlement, views, lost = settle([report(-1), report(-1)], **fields)
    assert len(lost) == 1 and "nobody is left" in lost[0]
    assert settlement.view == -1 and not views


def test_nothing_is_settled_in_a_group_that_lost_data() -> None:
    settlement, views, _ = settle([report(31, 9)], lost="rows")
    assert settlement.view == -1 and not views


def test_only_deaths_that_are_settled_have_a_cut() -> None:
    settled, waits = (SimpleNamespace(view=view, window=3, watermarks={}, reinitialised=[]) for view in (0, -1))
    group: Any = SimpleNamespace(settlements={1: settled, 2: waits})
    assert [cut.shard for cut in _cuts(group)] == [1]


def test_a_replacement_is_told_which_deaths_are_settled_and_which_are_not() -> None:
    cluster = formed()
    for shard in (1, 3):
        cluster.kill(shard)
    cluster.declared(1, 3)
    cluster.run()
    start = cluster.replace(1).membership.start
    assert start is not None
    assert [member.shard for member in start.unsettled] == [] and [cut.shard for cut in start.cuts] == [3]


# ------------------------------------------------------------------ the scheduler
def test_a_connection_of_another_incarnation_or_of_nobody_says_nothing_of_the_member() -> None:
    scheduler = formed().scheduler
    broken: list[int] = []
    scheduler.deaths.suspicions[0].broke = lambda shard, now_ms: broken.append(shard)  # type: ignore[method-assign]
    for address in (Address(m.SHARD, 2, 2), Address(m.SHARD, 9, 1)):
        scheduler.handle(Connection(address, up=False), scheduler.context.now_ms)
    assert broken == []
    scheduler.handle(Connection(Address(m.SHARD, 2, 1), up=False), scheduler.context.now_ms)
    assert broken == [2]


def probes(scheduler: SchedulerMachine, unheard: dict[int, dict[int, int]]) -> dict[int, list[int]]:
    """Whom the scheduler asks about whom, as workers have not heard some."""
    scheduler.context.effects.clear()
    scheduler.deaths._ask_about(unheard)
    return {
        effect.to.id: effect.message.shards
        for effect in scheduler.context.effects
        if isinstance(effect, Send) and isinstance(effect.message, m.Probe)
    }


def test_members_are_asked_about_one_that_a_worker_does_not_hear_and_not_more_often_than_views_are_sent() -> None:
    cluster = formed()
    scheduler = cluster.scheduler
    context = scheduler.context
    assert probes(scheduler, {}) == {}
    everybody = {shard: [2] for shard in range(5)}
    assert probes(scheduler, {2: {0: 900}}) == everybody
    context.now_ms += CONFIG.view_resend_ms - 1
    assert probes(scheduler, {2: {0: 900}}) == {}
    context.now_ms += 1
    assert probes(scheduler, {2: {0: 900}}) == everybody
    cluster.kill(3)
    cluster.declared(3)
    context.now_ms += CONFIG.view_resend_ms
    assert probes(scheduler, {3: {0: 900}}) == {}, "it is down already"
    context.now_ms += CONFIG.view_resend_ms
    assert probes(scheduler, {2: {0: 900}, 3: {0: 900}}) == {shard: [2] for shard in (0, 1, 2, 4)}


def test_nobody_is_judged_before_the_group_has_begun() -> None:
    scheduler = SchedulerMachine(3, 1, CONFIG, None)
    for now_ms in (0.0, 60_000.0, 60_001.0):
        scheduler.handle(Tick(), now_ms)
    assert not scheduler.state.groups[0].settlements and not scheduler.state.history


def test_a_state_of_another_size_is_refused() -> None:
    state = formed().state
    for n, groups in ((4, 1), (5, 2)):
        with pytest.raises(ConfigurationError, match=r"1 group\(s\) of 5 shards"):
            SchedulerMachine(n, groups, CONFIG, state)
    assert SchedulerMachine(5, 1, CONFIG, state).state.n == 5

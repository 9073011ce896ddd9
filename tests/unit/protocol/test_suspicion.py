"""Who is declared down, and who is only suspected: closed connections, silence, cuts in one direction."""

from typing import Any

import pytest
from cluster import Cluster, register_at, table
from doubts import close_links, deafen, epochs, formed, mute, pass_time, restart_scheduler, states, suspected

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connection, Disconnected, Received, Send, Tick
from ecrec.protocol.messages import (
    DOWN,
    SHARD,
    TOOL,
    UP,
    WORKER,
    Address,
    CreateTable,
    Fenced,
    Register,
    Report,
    ShardStatus,
    ShardWhole,
    Views,
    WorkerStatus,
)
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine
from ecrec.protocol.state import encode_state
from ecrec.protocol.workers import CLAIMS_MAX

PLACE_KEPT_MS, PLACE_TAKEN_MS = ProtocolConfig().worker_place_kept_ms, ProtocolConfig().worker_place_taken_ms


# ------------------------------------------------------------------ closed connections
@pytest.mark.parametrize("shards", [(1,), (1, 3), (0, 1, 2, 3, 4)])
def test_closed_connections_of_living_shards_kill_nobody(shards: tuple[int, ...]) -> None:
    cluster, spec = formed()
    for shard in shards:
        cluster.give("scheduler", Disconnected(cluster.shard(shard).address))
    pass_time(cluster, 10_000.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5
    assert not cluster.scheduler.state.groups[0].lost
    cluster.push(spec, {0: 1.0})
    cluster.drain()


def test_a_closed_connection_of_a_busy_shard_is_no_death_while_peers_have_theirs() -> None:
    cluster, _ = formed()
    mute(cluster, 1)
    pass_time(cluster, 300.0)
    cluster.give("scheduler", Disconnected(cluster.shard(1).address))
    pass_time(cluster, 300.0)
    assert states(cluster) == [UP] * 5
    cluster.blocked.clear()
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 5


def test_one_that_was_just_placed_and_is_not_connected_yet_says_nothing_of_others() -> None:
    cluster, _ = formed(code="3+2")
    cluster.kill(1)
    cluster.declared(1)
    cluster.shards[1] = newcomer = cluster.start(1)
    cluster.blocked.add((newcomer, newcomer))  # its connections take their time
    cluster.settle_down(lambda: cluster.machines[newcomer].state != "")
    mute(cluster, 0, 2, 3, 4)  # the newcomer alone says something after the connection broke
    pass_time(cluster, cluster.config.reconnect_grace_ms + 20.0)
    cluster.give("scheduler", Disconnected(cluster.shard(3).address))
    pass_time(cluster, 100.0)
    assert states(cluster)[3] == UP
    cluster.blocked.clear()
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1, 2, 1, 1, 1]


def test_a_killed_process_is_noticed_as_soon_as_the_grace_is_over() -> None:
    cluster, _ = formed()
    victim = cluster.shard(2).address
    cluster.machines.pop(cluster.shards[2])
    close_links(cluster, victim)
    begin_ms = cluster.now_ms
    pass_time(cluster, cluster.config.reconnect_grace_ms)
    cluster.give("scheduler", Disconnected(victim))
    cluster.declared(2)
    assert cluster.now_ms - begin_ms < 250.0


def test_more_killed_processes_than_the_code_tolerates_are_declared_in_bounded_time() -> None:
    cluster, _ = formed()
    victims = [cluster.shard(shard).address for shard in (1, 3)]
    for shard in (1, 3):
        cluster.machines.pop(cluster.shards[shard])
    for victim in victims:
        close_links(cluster, victim)
    begin_ms = cluster.now_ms
    pass_time(cluster, cluster.config.reconnect_grace_ms)
    for victim in victims:
        cluster.give("scheduler", Disconnected(victim))
    pass_time(cluster, 3_000.0)
    assert not cluster.scheduler.state.groups[0].lost, "it waits before it says that data is lost"
    cluster.settle_down(lambda: bool(cluster.scheduler.state.groups[0].lost))
    assert cluster.now_ms - begin_ms < cluster.config.heartbeat_timeout_many_ms + 1_000.0


def test_one_that_died_is_declared_at_once_though_another_ones_connection_is_closed() -> None:
    cluster, _ = formed()
    victim = cluster.shard(2).address
    cluster.machines.pop(cluster.shards[2])
    close_links(cluster, victim)
    pass_time(cluster, cluster.config.reconnect_grace_ms)
    begin_ms = cluster.now_ms
    cluster.give("scheduler", Disconnected(cluster.shard(4).address))
    cluster.give("scheduler", Disconnected(victim))
    cluster.declared(2)
    assert cluster.now_ms - begin_ms < 300.0
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP, UP, DOWN, UP, UP]


def test_a_closed_connection_that_is_told_before_the_tick_after_a_pause_kills_nobody() -> None:
    """Silence counts from when the scheduler could hear again."""
    cluster, _ = formed()
    cluster.now_ms += 60_000.0
    for shard in (1, 2):
        cluster.give("scheduler", Disconnected(cluster.shard(shard).address))
    cluster.give("scheduler", Tick())
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5


def test_of_two_that_were_cut_off_together_the_second_may_come_back_later() -> None:
    """When the first is heard again, the other one alone would be tolerated: it is given time all the same."""
    cluster, _ = formed()
    mute(cluster, 1, 3)
    for shard in (1, 3):
        close_links(cluster, cluster.shard(shard).address)
    pass_time(cluster, 400.0)
    for shard in (1, 3):
        cluster.give("scheduler", Disconnected(cluster.shard(shard).address))
    pass_time(cluster, 200.0)
    assert suspected(cluster).keys() == {1, 3}
    cluster.blocked.remove((cluster.shards[3], "scheduler"))
    pass_time(cluster, 300.0)
    assert suspected(cluster).keys() == {1} and states(cluster) == [UP] * 5
    cluster.blocked.clear()
    pass_time(cluster, 3_000.0)
    assert suspected(cluster) == {} and states(cluster) == [UP] * 5


def test_of_two_connections_that_broke_together_the_first_grace_that_ends_kills_nobody() -> None:
    cluster, _ = formed()
    mute(cluster, 1, 3)
    for shard in (1, 3):
        close_links(cluster, cluster.shard(shard).address)
    pass_time(cluster, 160.0)
    cluster.give("scheduler", Disconnected(cluster.shard(1).address))
    pass_time(cluster, 20.0)
    assert states(cluster) == [UP] * 5
    cluster.give("scheduler", Disconnected(cluster.shard(3).address))
    pass_time(cluster, 2_000.0)
    assert states(cluster) == [UP] * 5
    cluster.blocked.clear()
    pass_time(cluster, 1_000.0)
    assert suspected(cluster) == {} and states(cluster) == [UP] * 5
    for _ in range(2):  # nor do they later, though neither connection is made again
        mute(cluster, 1, 3)
        pass_time(cluster, 1_500.0)
        assert suspected(cluster).keys() == {1, 3}
        cluster.blocked.clear()
        pass_time(cluster, 100.0)
    assert states(cluster) == [UP] * 5


# ------------------------------------------------------------------ silence
@pytest.mark.parametrize("busy", [True, False])
def test_shards_that_their_peers_hear_are_not_lost_data(busy: bool) -> None:
    """The scheduler alone hears nothing of them, for much longer than it waits with the dead."""
    cluster, spec = formed()
    mute(cluster, 1, 3)
    for _ in range(60):
        if busy and cluster.client.can_push:
            cluster.push(spec, {0: 1.0})
        pass_time(cluster, 200.0)
    assert states(cluster) == [UP] * 5
    assert sorted(suspected(cluster)) == [1, 3]
    assert "data would be lost" in suspected(cluster)[1]
    cluster.blocked.clear()
    pass_time(cluster, 500.0)
    assert suspected(cluster) == {}
    cluster.drain()
    cluster.scrub()


def test_silences_that_began_a_moment_apart_are_one_suspicion() -> None:
    cluster, _ = formed()
    mute(cluster, 1)
    pass_time(cluster, 200.0)
    mute(cluster, 3)
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and suspected(cluster).keys() == {1, 3}
    cluster.blocked.clear()
    pass_time(cluster, 500.0)
    assert suspected(cluster) == {} and states(cluster) == [UP] * 5


def test_one_that_finds_a_new_scheduler_late_and_serves_meanwhile_is_not_down() -> None:
    cluster, _ = formed()
    restart_scheduler(cluster)
    mute(cluster, 2)
    pass_time(cluster, 0.8 * cluster.config.heartbeat_timeout_many_ms)
    assert states(cluster) == [UP] * 5
    assert "may not have found yet" in suspected(cluster)[2]
    cluster.blocked.clear()
    pass_time(cluster, 1_000.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5 and not suspected(cluster)
    mute(cluster, 2)  # and one that was heard is not waited for
    cluster.declared(2)


def test_one_that_never_finds_a_new_scheduler_is_down_in_bounded_time() -> None:
    cluster, _ = formed()
    restart_scheduler(cluster)
    mute(cluster, 2)
    begin_ms = cluster.now_ms
    cluster.declared(2)
    assert cluster.now_ms - begin_ms < cluster.config.heartbeat_timeout_many_ms + 500.0


def test_one_that_died_with_the_scheduler_is_noticed_after_the_timeout() -> None:
    cluster, _ = formed()
    victim = cluster.shard(2).address
    cluster.machines.pop(cluster.shards[2])
    close_links(cluster, victim)
    restart_scheduler(cluster)
    begin_ms = cluster.now_ms
    cluster.declared(2)
    assert cluster.now_ms - begin_ms < 2.5 * cluster.config.heartbeat_timeout_ms


def test_silence_that_the_code_tolerates_is_noticed_after_the_timeout_class_by_class() -> None:
    """Two of six that are together in no stripe of a 1+1 code: nothing is lost without both."""
    cluster, _ = formed(6, code="1+1")
    for shard in (0, 3):
        cluster.machines.pop(cluster.shards[shard])
    begin_ms = cluster.now_ms
    cluster.declared(0, 3)
    assert cluster.now_ms - begin_ms < 1_000.0
    assert not cluster.scheduler.state.groups[0].lost


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_table_without_parity_makes_no_closed_connection_slow(goes_on: bool) -> None:
    cluster, _ = formed(config=ProtocolConfig(reinitialise_lost=goes_on))
    cluster.create(table("uncoded", code="2+0"))
    victim = cluster.shard(2).address
    cluster.machines.pop(cluster.shards[2])
    close_links(cluster, victim)
    pass_time(cluster, cluster.config.reconnect_grace_ms)
    begin_ms = cluster.now_ms
    cluster.give("scheduler", Disconnected(victim))
    cluster.declared(2)
    assert cluster.now_ms - begin_ms < 200.0
    assert bool(cluster.scheduler.state.groups[0].lost) != goes_on


# ------------------------------------------------------------------ two processes at one endpoint
def register(cluster: Cluster, process: str, endpoint: str) -> None:
    cluster.give("scheduler", Received(Address(SHARD, -1, 0), Register(process, endpoint, 1)))


def test_a_registration_under_a_living_shards_endpoint_waits_and_is_refused() -> None:
    cluster, _ = formed()
    newcomer = ShardMachine("copy", cluster.shard(1).endpoint, 1)
    cluster.machines["copy"] = newcomer
    pass_time(cluster, 500.0)
    assert states(cluster) == [UP] * 5 and "copy" not in cluster.scheduler.admission.candidates
    pass_time(cluster, 1_500.0)
    assert states(cluster) == [UP] * 5 and epochs(cluster) == [1] * 5
    assert "--advertise" in cluster.stopped["copy"] and "shard 1 (epoch 1)" in cluster.stopped["copy"]


def test_a_registration_after_a_pause_of_the_scheduler_is_not_refused_at_once() -> None:
    """What was heard after the pause, and before the tick that knows of it, is not of the future."""
    cluster, _ = formed()
    cluster.now_ms += 60_000.0
    cluster.run()
    for name in cluster.shards.values():
        cluster.give(name, Tick())
    cluster.run()
    cluster.give("scheduler", Tick())
    register(cluster, "restarted", cluster.shard(1).endpoint)
    effects = cluster.scheduler.handle(
        Received(Address(SHARD, -1, 0), Register("restarted", cluster.shard(1).endpoint, 1)), cluster.now_ms
    )
    assert not [e for e in effects if isinstance(e, Send) and isinstance(e.message, Fenced)]


def test_two_registrations_under_living_endpoints_lose_no_data() -> None:
    cluster, _ = formed()
    for shard in (1, 3):
        register(cluster, f"copy {shard}", cluster.shard(shard).endpoint)
    pass_time(cluster, 3_000.0)
    assert states(cluster) == [UP] * 5 and not cluster.scheduler.state.groups[0].lost


def test_a_process_that_is_restarted_at_its_endpoint_is_replaced_before_the_timeout() -> None:
    """So fast that its connections are back within the grace: to the new process."""
    cluster, spec = formed()
    old = cluster.shard(1)
    cluster.machines.pop(cluster.shards[1])
    close_links(cluster, old.address)
    for name in (cluster.shards[i] for i in (0, 2, 3, 4)):
        cluster.give(name, Connection(old.address, up=True))
    cluster.give("scheduler", Connection(old.address, up=True))
    begin_ms = cluster.now_ms
    cluster.machines["restarted"] = ShardMachine("restarted", old.endpoint, 1)
    cluster.shards[1] = "restarted"
    cluster.settle_down(lambda: epochs(cluster)[1] == 2)
    assert cluster.now_ms - begin_ms < cluster.config.heartbeat_timeout_ms
    cluster.drain()
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.scrub()


def test_two_candidates_with_one_endpoint_do_not_get_two_places() -> None:
    cluster, _ = formed(code="3+2", rows=60)
    for name in ("one", "two"):
        cluster.machines[name] = ShardMachine(name, "inproc://same", -1)
    pass_time(cluster, 200.0)
    for shard in (1, 2):
        close_links(cluster, cluster.shard(shard).address)
        cluster.kill(shard)
    cluster.settle_down(lambda: DOWN in states(cluster))
    pass_time(cluster, 1_000.0)
    assert sorted(epochs(cluster)) == [1, 1, 1, 1, 2]
    assert states(cluster).count(DOWN) == 1


# ------------------------------------------------------------------ heard, but hears nothing
def test_a_member_that_confirms_no_view_is_replaced_after_a_bounded_time() -> None:
    cluster, spec = formed()
    deafen(cluster, 1)
    name = cluster.shards[1]
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    begin_ms = cluster.now_ms
    cluster.declared(1)
    waited_ms = cluster.now_ms - begin_ms
    assert cluster.config.link_timeout_ms <= waited_ms < cluster.config.link_timeout_ms + 500.0
    cluster.blocked.clear()
    cluster.settle_down(lambda: name in cluster.stopped)
    cluster.replace(1)
    cluster.settle_down(lambda: cluster.client.table_ready("late"))
    cluster.push(spec, {0: 1.0})
    cluster.drain()
    cluster.scrub()


def test_members_that_confirm_no_view_are_waited_for_if_data_would_be_lost() -> None:
    cluster, _ = formed(config=ProtocolConfig(view_timeout_ms=300))
    deafen(cluster, 1, 3)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    pass_time(cluster, 8_000.0)
    assert states(cluster) == [UP] * 5
    assert sorted(suspected(cluster)) == [1, 3] and "has confirmed no view" in suspected(cluster)[3]
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("late"))
    pass_time(cluster, 100.0)
    assert suspected(cluster) == {} and epochs(cluster) == [1] * 5


def test_no_member_is_unfit_because_the_scheduler_stood_still() -> None:
    cluster, _ = formed(config=ProtocolConfig(view_timeout_ms=1_000))
    deafen(cluster, 1)
    cluster.carry_out("worker-0", cluster.client, cluster.client.create_table(table("late")))
    pass_time(cluster, 500.0)
    cluster.now_ms += 60_000.0
    cluster.give("scheduler", Tick())
    pass_time(cluster, 300.0)
    assert states(cluster) == [UP] * 5
    cluster.blocked.clear()
    cluster.settle_down(lambda: cluster.client.table_ready("late"))


def test_a_member_farther_behind_than_the_kept_views_is_told_to_stop() -> None:
    cluster, _ = formed(config=ProtocolConfig(views_kept_max=3))
    deafen(cluster, 1)
    address, behind = cluster.shard(1).address, cluster.shard(1).view
    for worker in range(4):
        cluster.scheduler.announcer.fence_worker(worker, 1)
        if worker < 3:
            cluster.tick()
            cluster.run()
    assert cluster.shard(1).view == behind
    said = [e.message for e in cluster.scheduler.handle(Tick(), cluster.now_ms) if getattr(e, "to", None) == address]
    assert [type(message) for message in said] == [Fenced]
    assert "views are kept from a later one on" in said[0].reason
    assert states(cluster) == [UP, DOWN, UP, UP, UP]


# ------------------------------------------------------------------ several groups
def scheduler_of(groups: int, spares: int, config: ProtocolConfig | None = None) -> SchedulerMachine:
    """A scheduler of groups of five that has a 3+2 table, and processes without a place."""
    config = config or ProtocolConfig(form_after_ms=0)
    scheduler = SchedulerMachine(5, groups, config, None)
    for i in range(5 * groups):
        registers(scheduler, f"p{i}", i)
    assert all(group.view for group in scheduler.state.groups)
    scheduler.handle(Received(Address(TOOL, 1, 0), CreateTable(1, table(code="3+2"))), 0.0)
    for shard in range(5 * groups):
        reports(scheduler, shard, 0.0)
    assert scheduler.state.tables
    for i in range(spares):
        registers(scheduler, f"spare{i}", -1)
    return scheduler


def registers(scheduler: SchedulerMachine, process: str, wanted: int, now_ms: float = 0.0) -> None:
    register_at(scheduler, process, f"inproc://{process}", wanted, now_ms)


def reports(scheduler: SchedulerMachine, shard: int, now_ms: float, **more: Any) -> list[Any]:
    """The heartbeat of a shard that has taken all views, and has no window of anybody."""
    group, number = divmod(shard, 5)
    place, view = scheduler.state.groups[group].places[number], scheduler.state.groups[group].view
    down = [Report(s, x.epoch, 0, {}) for s, x in scheduler.state.groups[group].settlements.items()]
    more.setdefault("prepared", scheduler.state.new_tables.number)
    status = ShardStatus(place.process, more.pop("view", view), False, down, {}, {}, {}, **more)
    return scheduler.handle(Received(Address(SHARD, shard, place.epoch), status), now_ms)


def test_a_spare_goes_to_the_group_with_the_least_redundancy_left() -> None:
    """Two are down in the second group, one in the first; the first is settled earlier."""
    scheduler = scheduler_of(2, spares=1)
    now_ms = 0.0
    dead = {0, 5, 6}
    while not all(scheduler.state.groups[g].places[s].state == DOWN for g, s in ((0, 0), (1, 0), (1, 1))):
        now_ms += 20.0
        assert now_ms < 2_000.0
        for shard in set(range(10)) - dead:
            reports(scheduler, shard, now_ms)
        registers(scheduler, "spare0", -1, now_ms)
        scheduler.handle(Tick(), now_ms)
    for _ in range(3):
        for shard in (1, 2, 3, 4, 7, 8, 9):
            reports(scheduler, shard, now_ms)
    assert [place.epoch for place in scheduler.state.groups[0].places] == [1] * 5
    assert sorted(place.epoch for place in scheduler.state.groups[1].places) == [1, 1, 1, 1, 2]


def test_views_of_one_group_do_not_keep_lost_views_of_another_from_a_client() -> None:
    """The second group has a view every few milliseconds; those of the first were lost."""
    config = ProtocolConfig(view_resend_ms=200, form_after_ms=0)
    scheduler = scheduler_of(2, 0, config)
    worker = Address(WORKER, 0, 1)
    scheduler.handle(Received(worker._replace(epoch=0), WorkerStatus("w", [], {})), 0.0)
    views = [group.view for group in scheduler.state.groups]
    scheduler.handle(Received(worker, WorkerStatus("w", views, {})), 0.0)
    scheduler.announcer.add(
        scheduler.state.groups[0], ShardWhole(scheduler.announcer.next_view(scheduler.state.groups[0]), 0, 1)
    )
    scheduler.handle(Tick(), 0.0)
    again = []
    for step in range(1, 40):
        group = scheduler.state.groups[1]
        scheduler.announcer.add(group, ShardWhole(scheduler.announcer.next_view(group), 0, 1))
        effects = [effect for shard in range(10) for effect in reports(scheduler, shard, 10.0 * step)]
        status = WorkerStatus("w", [views[0], group.view - 1], {})
        effects += scheduler.handle(Received(worker, status), 10.0 * step)
        again += [e for e in effects if getattr(e, "to", None) == worker and e.message.group == 0]
    assert again


# ------------------------------------------------------------------ workers
def beats(scheduler: SchedulerMachine, process: str, epoch: int) -> list[Any]:
    """Answers to a heartbeat of worker 0, without the views."""
    effects = scheduler.handle(Received(Address(WORKER, 0, epoch), WorkerStatus(process, [], {})), 0.0)
    return [e.message for e in effects if isinstance(e, Send) and not isinstance(e.message, Views)]


def epoch_given(scheduler: SchedulerMachine, process: str) -> int:
    effects = scheduler.handle(Received(Address(WORKER, 0, 0), WorkerStatus(process, [], {})), 0.0)
    (views,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Views)]
    return views.views[0].epoch


def test_a_late_first_heartbeat_of_a_dead_worker_does_not_end_the_living_one() -> None:
    scheduler = scheduler_of(1, 0)
    assert epoch_given(scheduler, "living") == 1
    assert beats(scheduler, "living", 1) == []
    assert epoch_given(scheduler, "dead") == 2
    assert beats(scheduler, "living", 1) == []
    assert scheduler.state.workers[0] == (1, "living")


def test_a_worker_that_is_started_again_ends_the_one_before_once_it_has_its_epoch() -> None:
    scheduler = scheduler_of(1, 0)
    epoch_given(scheduler, "first")
    beats(scheduler, "first", 1)
    assert epoch_given(scheduler, "second") == 2
    state = encode_state(scheduler.state)
    scheduler = SchedulerMachine(5, 1, scheduler.config, state)  # what was said survives a restart
    for shard in range(5):
        reports(scheduler, shard, 0.0)
    assert beats(scheduler, "second", 2) == []
    assert scheduler.state.workers[0] == (2, "second")
    for epoch in (0, 1):
        (fenced,) = beats(scheduler, "first", epoch)
        assert isinstance(fenced, Fenced) and "started again (epoch 2)" in fenced.reason
    assert scheduler.state.workers[0] == (2, "second")


def test_no_epoch_is_given_twice_and_what_is_remembered_is_bounded() -> None:
    scheduler = scheduler_of(1, 0)
    epoch_given(scheduler, "living")
    beats(scheduler, "living", 1)
    given = [epoch_given(scheduler, f"late {i}") for i in range(50)]
    assert given == list(range(2, 52))
    assert len(scheduler.state.claims[0]) <= CLAIMS_MAX
    assert beats(scheduler, "living", 1) == [] and scheduler.state.workers[0] == (1, "living")
    assert isinstance(beats(scheduler, "unknown", 77)[0], Fenced)


# ------------------------------------------------------------------ a worker that names no rank
class Asking:
    """A scheduler, worker 0 (``living``), and a process that yields to it."""

    def __init__(self, scheduler: SchedulerMachine) -> None:
        self.scheduler = scheduler
        self.now_ms = 0.0

    def living(self, epoch: int = 1, leaves: bool = False) -> list[Any]:
        return self.says(epoch, WorkerStatus("living", [], {}, leaves=leaves))

    def asks(self, process: str = "new", epoch: int = 0) -> list[Any]:
        return self.says(epoch, WorkerStatus(process, [], {}, yields=not epoch))

    def says(self, epoch: int, status: WorkerStatus) -> list[Any]:
        source = Address(WORKER, 0, epoch)
        effects = self.scheduler.handle(Received(source, status), self.now_ms)
        return [type(e.message) for e in effects if isinstance(e, Send) and e.to == source]

    def passes(self, ms: float, lives: bool = False, step_ms: float = 100.0) -> list[Any]:
        """What the process that asks has heard after that time."""
        end_ms, heard = self.now_ms + ms, []
        while self.now_ms < end_ms:
            self.now_ms += step_ms
            for shard in range(5):
                reports(self.scheduler, shard, self.now_ms)
            self.scheduler.handle(Tick(), self.now_ms)
            if lives:
                self.living()
            heard += self.asks()
        return heard


def asking() -> Asking:
    scheduler = scheduler_of(1, 0)
    epoch_given(scheduler, "living")
    beats(scheduler, "living", 1)
    return Asking(scheduler)


def test_a_process_that_yields_is_refused_while_the_worker_lives() -> None:
    case = asking()
    assert case.passes(PLACE_TAKEN_MS - 100, lives=True) == [], "it might be the last words of one that is dead"
    assert Fenced in case.passes(400, lives=True)
    assert case.scheduler.state.workers[0] == (1, "living") and len(case.scheduler.state.claims[0]) == 1


def test_a_process_that_yields_takes_the_place_of_a_worker_that_is_silent_for_long() -> None:
    case = asking()
    case.living()
    assert case.passes(PLACE_KEPT_MS - 100) == []
    assert Views in case.passes(300) and case.scheduler.state.workers[0] == (1, "living")
    case.asks(epoch=2)
    assert case.scheduler.state.workers[0] == (2, "new")


def test_a_process_that_yields_takes_the_place_of_one_that_has_left_or_never_was_at_once() -> None:
    case = asking()
    case.living(leaves=True)
    assert case.asks() == [Views]
    assert Asking(scheduler_of(1, 0)).asks() == [Views]


def test_of_two_processes_that_yield_the_second_is_refused_before_the_first_has_said_more() -> None:
    case = Asking(scheduler_of(1, 0))
    assert case.asks("first") == [Views]
    assert case.asks("second") == []
    case.now_ms += PLACE_TAKEN_MS
    case.asks("first", epoch=1)
    assert case.asks("second") == [Fenced]


def test_a_scheduler_that_was_started_again_listens_before_it_gives_the_place_away() -> None:
    case = asking()
    case.scheduler = SchedulerMachine(5, 1, case.scheduler.config, encode_state(case.scheduler.state))
    case.now_ms = 50_000.0
    for shard in range(5):
        reports(case.scheduler, shard, case.now_ms)
    assert case.passes(PLACE_KEPT_MS - 200) == []
    case.living()
    assert case.asks() == [Fenced]


def test_a_scheduler_that_stood_still_listens_before_it_gives_the_place_away() -> None:
    case = asking()
    case.passes(300, lives=True)
    case.now_ms += 3 * PLACE_KEPT_MS
    assert case.asks() == [], "it has yet to notice that it stood still"
    assert case.passes(300) == []
    assert Fenced in case.passes(600, lives=True)


def test_the_views_of_a_process_that_was_never_heard_again_do_not_reach_the_next_one() -> None:
    """Both are worker 0 without an epoch, at one address: the second would take the epoch of the first."""
    case = Asking(scheduler_of(1, 0))
    assert case.asks("first") == [Views]
    assert case.asks("second") == []
    source, heard = Address(WORKER, 0, 0), list[Any]()
    real = case.scheduler.handle

    def handle(event: Any, now_ms: float) -> list[Any]:
        effects = real(event, now_ms)
        heard.extend(e.message for e in effects if isinstance(e, Send) and e.to == source)
        return effects

    case.scheduler.handle = handle  # type: ignore[method-assign]
    while case.now_ms < PLACE_KEPT_MS - 200:
        case.now_ms += 100.0
        for shard in range(5):
            reports(case.scheduler, shard, case.now_ms)
        case.scheduler.handle(Tick(), case.now_ms)
        case.asks("second")
    assert heard == []
    case.now_ms += 300.0
    assert case.asks("second") == [Views]

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.groups import Groups, Tolerance
from ecrec.protocol.placement import CodeSpec
from ecrec.protocol.watch import Standing
from ecrec.train.kills import (
    ChaosSchedule,
    Kill,
    KillSchedule,
    WorkerKill,
    check_kills,
    check_worker_kills,
    parse_interval,
    parse_kill,
)


def stands(r, groups=1, n=5):
    return Tolerance(Groups(groups, n), CodeSpec(5 - r, r))


def cluster(shards=5, **changes):
    standing = {shard: Standing(1, "up") for shard in range(shards)}
    standing.update({int(name[1:]): value for name, value in changes.items()})
    return standing


def test_a_kill_is_read_and_written():
    assert parse_kill("ps:2@20") == Kill(2, 20)
    assert str(Kill(2, 20)) == "ps:2@20"
    assert parse_kill("worker:1@20") == WorkerKill(1, 20)
    assert str(WorkerKill(1, 20)) == "worker:1@20"


@pytest.mark.parametrize(
    "text",
    ["", "2@20", "ps:2", "ps:x@2", "ps:2@", "ps:-1@2", "worker:@3", "worker:0", "scheduler:0@3", "ps2@3", "ps:2@1.5"],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigurationError, match="expected ps:SHARD@STEP"):
        parse_kill(text)


@pytest.mark.parametrize(
    ("kill", "words"),
    [(Kill(5, 3), "no shard 5"), (Kill(1, 0), "counted from 1"), (Kill(1, 31), "only 30 steps")],
)
def test_kills_that_cannot_happen_are_refused(kill, words):
    with pytest.raises(ConfigurationError, match=words):
        check_kills([kill], stands(1), steps=30)


def test_the_same_kill_twice_is_refused():
    with pytest.raises(ConfigurationError, match="given twice"):
        check_kills([Kill(1, 3), Kill(1, 3)], stands(2), steps=None)


@pytest.mark.parametrize(
    ("kills", "words"),
    [
        ([WorkerKill(3, 3)], "no worker 3"),
        ([WorkerKill(1, 0)], "steps are 1 to 30"),
        ([WorkerKill(1, 31)], "steps are 1 to 30"),
        ([WorkerKill(1, 3)] * 2, "given twice"),
    ],
)
def test_kills_of_workers_that_cannot_happen_are_refused(kills, words):
    with pytest.raises(ConfigurationError, match=words):
        check_worker_kills(kills, workers=3, steps=30)
    check_worker_kills([WorkerKill(2, 30), WorkerKill(2, 1)], workers=3, steps=30)


def test_more_kills_at_a_step_than_the_code_stands_are_warned_of():
    assert check_kills([Kill(1, 3), Kill(2, 4)], stands(1), steps=None) == []
    (warning,) = check_kills([Kill(1, 3), Kill(2, 3)], stands(1), steps=None)
    assert "killing 2 shards at step 3" in warning
    assert "data will be lost, and the run will end with an error" in warning
    (warning,) = check_kills([Kill(1, 3), Kill(2, 3)], stands(1), steps=None, on_data_loss="reinitialise")
    assert "data will be lost, and rows may begin again at their initial values" in warning


def test_each_group_is_warned_of_by_itself_and_only_where_stripes_are_lost():
    kills = [Kill(1, 3), Kill(7, 3), Kill(12, 3)]
    assert check_kills(kills, stands(1, groups=3), steps=None) == []
    (warning,) = check_kills([*kills, Kill(13, 3)], stands(1, groups=3), steps=None)
    assert "killing 2 shards of group 2 at step 3" in warning
    assert check_kills([Kill(0, 3), Kill(5, 3)], stands(1, n=10), steps=None) == []
    with pytest.raises(ConfigurationError, match="no shard 15; shards are 0 to 14"):
        check_kills([Kill(15, 3)], stands(1, groups=3), steps=None)


def test_kills_come_at_their_step_in_order():
    schedule = KillSchedule([Kill(3, 9), Kill(1, 5)], stands(2))
    assert schedule.due(4, cluster()) == []
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(8, cluster()) == []
    assert schedule.left == [Kill(3, 9)]
    assert schedule.due(12, cluster()) == [Kill(3, 9)]
    assert schedule.due(12, cluster()) == schedule.left == []


def test_kills_of_a_step_come_together():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 5)], stands(2))
    assert schedule.due(5, cluster()) == [Kill(1, 5), Kill(3, 5)]


def test_nothing_is_killed_before_the_cluster_is_known():
    assert KillSchedule([Kill(1, 5)], stands(1)).due(9, {}) == []


def test_the_same_shard_again_waits_for_the_replacement_to_be_placed_not_to_be_whole():
    schedule = KillSchedule([Kill(1, 5), Kill(1, 6)], stands(1))
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == []  # the news is from before the kill
    assert schedule.due(7, cluster(s1=Standing(1, "down"))) == []
    assert schedule.due(8, cluster(s1=Standing(2, "recovering"))) == [Kill(1, 6)]


def test_another_shard_waits_until_the_code_stands_its_death():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 6)], stands(1))
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == []
    assert schedule.due(7, cluster(s1=Standing(2, "recovering"))) == []
    assert schedule.due(8, cluster(s1=Standing(2, "up"))) == [Kill(3, 6)]


def test_with_two_parities_another_shard_need_not_wait():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 6)], stands(2))
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == [Kill(3, 6)]


def test_kills_beyond_the_code_are_done_when_they_were_asked_for():
    assert KillSchedule([Kill(1, 5)], stands(0)).due(5, cluster()) == [Kill(1, 5)]
    schedule = KillSchedule([Kill(1, 5), Kill(3, 5)], stands(1))
    assert schedule.due(5, cluster()) == [Kill(1, 5), Kill(3, 5)]


def test_kills_in_several_groups_come_together_and_one_weak_group_does_not_hold_up_another():
    schedule = KillSchedule([Kill(1, 5), Kill(7, 5), Kill(3, 6), Kill(8, 7)], stands(1, groups=2))
    assert schedule.due(5, cluster(10)) == [Kill(1, 5), Kill(7, 5)]
    weak = {"s1": Standing(2, "recovering"), "s7": Standing(2, "recovering")}
    assert schedule.due(7, cluster(10, **weak)) == []
    assert schedule.due(7, cluster(10, **{**weak, "s1": Standing(2, "up")})) == [Kill(3, 6)]
    assert schedule.due(7, cluster(10, s1=Standing(2, "up"), s7=Standing(2, "up"))) == [Kill(8, 7)]


def test_a_group_that_cannot_lose_more_is_not_hit_together_with_one_that_can():
    schedule = KillSchedule([Kill(1, 5), Kill(7, 5)], stands(1, groups=2))
    assert schedule.due(5, cluster(10, s8=Standing(2, "recovering"))) == []
    asked = KillSchedule([Kill(1, 5), Kill(6, 5), Kill(7, 5)], stands(1, groups=2))
    assert len(asked.due(5, cluster(10, s8=Standing(2, "recovering")))) == 3, "a loss in that group was asked for"


# ------------------------------------------------------------------ chaos
@pytest.mark.parametrize(("text", "seconds"), [("10s", 10.0), ("500ms", 0.5), ("2m", 120.0), ("1.5s", 1.5)])
def test_an_interval_is_read(text, seconds):
    assert parse_interval("--x", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "0s", "-1s", "1h", "1e3s", "10 s", "nan", "infs", "9" * 400 + "s"])
def test_an_interval_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"--x .*expected a time like 10s"):
        parse_interval("--x", text)


def test_chaos_waits_for_the_interval_and_for_a_whole_cluster():
    chaos = ChaosSchedule(10.0, 1, stands(1))
    assert chaos.due(100.0, cluster()) == []
    assert chaos.due(109.9, cluster()) == []
    assert chaos.due(110.0, cluster(s2=Standing(1, "recovering"))) == []
    assert chaos.due(110.0, {}) == []
    (first,) = chaos.due(110.5, cluster())
    assert first in range(5)
    assert chaos.due(121.0, cluster()) == [], "the news is from before the kill"
    replaced = {f"s{first}": Standing(2, "recovering")}
    assert chaos.due(122.0, cluster(**replaced)) == []
    assert len(chaos.due(123.0, cluster(**{f"s{first}": Standing(2, "up")}))) == 1


def test_the_seed_gives_the_order_and_every_shard_has_its_turn():
    def order(seed):
        chaos, standing = ChaosSchedule(1.0, seed, stands(1)), cluster()
        chaos.due(0.0, standing)
        shards = []
        for now in range(1, 101):
            shards += chaos.due(float(now), standing)
            standing[shards[-1]] = Standing(standing[shards[-1]].epoch + 1, "up")
        return shards

    assert order(3) == order(3) != order(4)
    assert set(order(3)) == set(range(5))


def test_chaos_hits_several_groups_at_once_and_never_more_in_one_than_it_tolerates():
    tolerance = stands(2, groups=3)
    chaos, standing = ChaosSchedule(1.0, 5, tolerance), cluster(15)
    chaos.due(0.0, standing)
    weak, strikes = set(), []
    for now in range(1, 201):
        shards = chaos.due(float(now), standing)
        strikes.append(len(shards))
        weak |= set(shards)
        assert len({tolerance.groups.of(shard) for shard in shards}) == len(shards)
        assert tolerance.broken(weak) == set(), (now, weak)
        standing.update({shard: Standing(standing[shard].epoch + 1, "recovering") for shard in shards})
        if now % 3 == 0:
            standing.update({shard: Standing(standing[shard].epoch, "up") for shard in weak})
            weak = set()
    assert {0, 1, 2, 3} == set(strikes)

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.kills import (
    ChaosSchedule,
    Kill,
    KillSchedule,
    Standing,
    WorkerKill,
    check_kills,
    check_worker_kills,
    parse_interval,
    parse_kill,
)


def cluster(**changes):
    standing = {shard: Standing(1, "up") for shard in range(5)}
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
        check_kills([kill], shards=5, tolerance=1, steps=30)


def test_the_same_kill_twice_is_refused():
    with pytest.raises(ConfigurationError, match="given twice"):
        check_kills([Kill(1, 3), Kill(1, 3)], shards=5, tolerance=2, steps=None)


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
    assert check_kills([Kill(1, 3), Kill(2, 4)], shards=5, tolerance=1, steps=None) == []
    (warning,) = check_kills([Kill(1, 3), Kill(2, 3)], shards=5, tolerance=1, steps=None)
    assert "killing 2 shards at step 3" in warning
    assert "data will be lost, and the run will end with an error" in warning
    (warning,) = check_kills([Kill(1, 3), Kill(2, 3)], shards=5, tolerance=1, steps=None, goes_on=True)
    assert "data will be lost, and rows may begin again at their initial values" in warning


def test_kills_come_at_their_step_in_order():
    schedule = KillSchedule([Kill(3, 9), Kill(1, 5)], tolerance=2)
    assert schedule.due(4, cluster()) == []
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(8, cluster()) == []
    assert schedule.left == [Kill(3, 9)]
    assert schedule.due(12, cluster()) == [Kill(3, 9)]
    assert schedule.due(12, cluster()) == schedule.left == []


def test_kills_of_a_step_come_together():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 5)], tolerance=2)
    assert schedule.due(5, cluster()) == [Kill(1, 5), Kill(3, 5)]


def test_nothing_is_killed_before_the_cluster_is_known():
    assert KillSchedule([Kill(1, 5)], tolerance=1).due(9, {}) == []


def test_the_same_shard_again_waits_for_the_replacement_to_be_placed_not_to_be_whole():
    schedule = KillSchedule([Kill(1, 5), Kill(1, 6)], tolerance=1)
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == []  # the news is from before the kill
    assert schedule.due(7, cluster(s1=Standing(1, "down"))) == []
    assert schedule.due(8, cluster(s1=Standing(2, "recovering"))) == [Kill(1, 6)]


def test_another_shard_waits_until_the_code_stands_its_death():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 6)], tolerance=1)
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == []
    assert schedule.due(7, cluster(s1=Standing(2, "recovering"))) == []
    assert schedule.due(8, cluster(s1=Standing(2, "up"))) == [Kill(3, 6)]


def test_with_two_parities_another_shard_need_not_wait():
    schedule = KillSchedule([Kill(1, 5), Kill(3, 6)], tolerance=2)
    assert schedule.due(5, cluster()) == [Kill(1, 5)]
    assert schedule.due(6, cluster()) == [Kill(3, 6)]


def test_kills_beyond_the_code_are_done_when_they_were_asked_for():
    assert KillSchedule([Kill(1, 5)], tolerance=0).due(5, cluster()) == [Kill(1, 5)]
    schedule = KillSchedule([Kill(1, 5), Kill(3, 5)], tolerance=1)
    assert schedule.due(5, cluster()) == [Kill(1, 5), Kill(3, 5)]


# ------------------------------------------------------------------ chaos
@pytest.mark.parametrize(("text", "seconds"), [("10s", 10.0), ("500ms", 0.5), ("2m", 120.0), ("1.5s", 1.5)])
def test_an_interval_is_read(text, seconds):
    assert parse_interval("--x", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "0s", "-1s", "1h", "1e3s", "10 s", "nan", "infs", "9" * 400 + "s"])
def test_an_interval_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"--x .*expected a time like 10s"):
        parse_interval("--x", text)


def test_chaos_waits_for_the_interval_and_for_a_whole_cluster():
    chaos = ChaosSchedule(10.0, seed=1)
    assert chaos.due(100.0, cluster()) is None
    assert chaos.due(109.9, cluster()) is None
    assert chaos.due(110.0, cluster(s2=Standing(1, "recovering"))) is None
    assert chaos.due(110.0, {}) is None
    first = chaos.due(110.5, cluster())
    assert first in range(5)
    assert chaos.due(121.0, cluster()) is None, "the news is from before the kill"
    replaced = {f"s{first}": Standing(2, "recovering")}
    assert chaos.due(122.0, cluster(**replaced)) is None
    assert chaos.due(123.0, cluster(**{f"s{first}": Standing(2, "up")})) in range(5)


def test_the_seed_gives_the_order_and_every_shard_has_its_turn():
    def order(seed):
        chaos, standing = ChaosSchedule(1.0, seed), cluster()
        chaos.due(0.0, standing)
        shards = []
        for now in range(1, 101):
            shards.append(chaos.due(float(now), standing))
            standing[shards[-1]] = Standing(standing[shards[-1]].epoch + 1, "up")
        return shards

    assert order(3) == order(3) != order(4)
    assert set(order(3)) == set(range(5))

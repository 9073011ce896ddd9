"""Servers that are told to end by SIGTERM, as a service manager does: no data is lost with them."""

import signal
import time

from processes import DEADLINE_S, Cluster
from runs import wait_until

from ecrec.protocol.messages import DOWN

APART_S = 0.7


def test_two_sigterms_within_a_moment_are_no_deaths_and_training_goes_on(cluster: Cluster) -> None:
    """Spares take over, one after the other, and no server is missing at any time."""
    shards = cluster.start(rows=5000)
    for _ in range(2):
        cluster.shard("--spare")
    cluster.wait(lambda state: state.spares == 2)
    cluster.push(20)
    shards[1].terminate()
    second = time.monotonic() + APART_S
    while time.monotonic() < second:
        cluster.push(1)
    shards[3].terminate()
    cluster.push(20)
    assert [shards[shard].wait(DEADLINE_S) for shard in (1, 3)] == [0, 0], cluster.logs()
    state = cluster.whole({1: 2, 3: 2})
    changes = [(entry.event, entry.shard) for entry in state.history if entry.event in ("down", "handed over")]
    assert changes == [("handed over", 1), ("handed over", 3)]
    cluster.push(20)
    cluster.check(60)
    assert not state.lost and not state.leaving


def test_one_that_would_take_data_along_serves_on_and_the_second_signal_ends_it(cluster: Cluster) -> None:
    shards = cluster.start()
    cluster.push(20)
    shards[1].terminate()
    assert shards[1].wait(DEADLINE_S) == 0
    shards[3].terminate()
    state = cluster.wait(lambda state: "shard 1 is down" in state.leaving.get(3, ""))
    assert [shard.state == DOWN for shard in state.shards] == [False, True, False, False, False]
    cluster.shard("--spare")
    cluster.whole({1: 2})
    assert shards[3].wait(DEADLINE_S) == 0
    shards[0].terminate()  # shard 3 is down, and nobody waits for its place
    cluster.wait(lambda state: "shard 3 is down" in state.leaving.get(0, ""))
    wait_until(lambda: "serves on: data would be lost with it: shard 3 is down" in cluster.logs())
    assert cluster.logs().count("told to end: shard") == 3
    shards[0].terminate()
    assert shards[0].wait(DEADLINE_S) == 8, "nobody is told that all is well"
    assert "told to end again, ends at once" in cluster.logs()
    reason = "its process ends: it was told to end twice"  # the scheduler is told, and does not wait for silence
    cluster.wait(lambda state: (0, reason) in [(e.shard, e.reason) for e in state.history if e.event == "down"])


def test_a_limit_to_the_wait_ends_it_with_an_exit_code_of_its_own(cluster: Cluster) -> None:
    cluster.scheduler()
    patient = [cluster.shard("--shard", str(shard)) for shard in range(4)]
    hasty = cluster.shard("--shard", "4", "--leave-timeout-ms", "1500")
    cluster.wait(lambda state: all(shard.figures for shard in state.shards))
    patient[0].send_signal(signal.SIGKILL)
    cluster.wait(lambda state: state.shards[0].state == DOWN)
    assert cluster.scheduler_process
    cluster.scheduler_process.kill()  # nobody can let it go
    hasty.terminate()
    assert hasty.wait(DEADLINE_S) == 8
    logs = cluster.logs()
    assert "--leave-timeout-ms; data may be lost: the scheduler has not answered" in logs

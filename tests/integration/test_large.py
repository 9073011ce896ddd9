"""Large windows and large tables on real processes: what recoveries do must not depend on the size of a table."""

import time

import numpy as np
import pytest
from processes import DEADLINE_S, SHARDS, Cluster, Worker

from ecrec.launch.tools.verify import scrub
from ecrec.protocol.messages import UP, Section
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

ROWS = 60_000
"""More than the first slots of a window's index on each peer, and more than a seed adds at a time."""
HUGE = 100_000_000_000


def test_large_windows_while_a_replacement_is_seeded(cluster: Cluster) -> None:
    """A window that looks nothing up takes rows of pushes and rows of seeds: a survivor hung in it for ever."""
    shards = cluster.start(rows=ROWS)
    worker = cluster.worker
    assert worker
    for _ in range(2):  # no row comes again in a window: from the second one on nothing is looked up
        worker.push(2000)
        worker.flush()
    for victim in (1, 3):
        shards[victim].kill()
        cluster.shard("--shard", str(victim))
        for _ in range(6):
            worker.push(ROWS // 2)
        worker.flush()
        cluster.whole({victim: 2})
    state = cluster.whole({1: 2, 3: 2})
    assert [shard.epoch for shard in state.shards] == [1, 2, 1, 2, 1], "nobody else was declared down"
    cluster.check(14)


class SparseWorker(Worker):
    """A worker that touches a few rows of a table that no memory could hold."""

    def __init__(self, endpoint: str, rows: int) -> None:
        super().__init__(endpoint, 1)
        self.spec = TableSpec("huge", rows, 8, CodeSpec(3, 2), OptimizerSpec("sgd", (1.0,)), "uniform", 3, 0.5)
        self.rows = np.array([0, rows // 7, rows // 3, rows // 2, rows - 1], np.int64)
        stripes, slots = np.divmod(self.rows, 3)
        self.homes = (stripes + slots) % SHARDS

    def asked(self) -> dict[int, np.ndarray]:
        return {int(shard): self.rows[self.homes == shard] for shard in np.unique(self.homes)}

    def push_all(self) -> None:
        self.until(lambda: self.machine.can_push)
        index = self.machine.tables["huge"][0]
        parts = {
            shard: ([Section([index], [len(rows)])], (rows, np.ones(8 * len(rows), np.float32)))
            for shard, rows in self.asked().items()
        }
        self.node.perform(self.machine.push(parts))

    def pull_all(self) -> dict[int, bytes]:
        index = self.machine.tables["huge"][0]
        parts = {shard: ([Section([index], [len(rows)])], (rows,)) for shard, rows in self.asked().items()}
        ticket, effects = self.machine.pull(parts, exact=True)
        self.node.perform(effects)
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for done in self.node.pump(20):
                assert done.ticket == ticket, done
                return {shard: bytes(frames[0]) for shard, frames in done.answers.items()}
        raise AssertionError("no answer")


@pytest.mark.parametrize("rows", [HUGE, 3 * HUGE])
def test_a_huge_table_with_five_rows_touched_survives_deaths(cluster: Cluster, rows: int) -> None:
    """Nothing takes time or memory in proportion to the table: nobody is silent, and recovery is as fast as ever."""
    cluster.scheduler()
    shards = cluster.all_shards()
    worker = cluster.worker = SparseWorker(cluster.endpoint, rows)
    worker.until(lambda: worker.machine.ready)
    worker.node.perform(worker.machine.create_table(worker.spec))
    worker.until(lambda: worker.machine.table_ready("huge"))
    before = worker.pull_all()
    worker.push_all()
    worker.flush()
    for victim in (int(worker.homes[1]), int(worker.homes[2])):
        shards[victim].kill()
        shards[victim] = cluster.shard("--shard", str(victim))
        worker.push_all()
        worker.flush()
        cluster.wait(
            lambda state, victim=victim: state.shards[victim].epoch > 1 and all(s.state == UP for s in state.shards)
        )
    after = worker.pull_all()
    for shard, rows_before in before.items():
        expected = np.frombuffer(rows_before, np.float32)
        for _ in range(3):
            expected = expected - np.float32(1.0)
        assert np.array_equal(np.frombuffer(after[shard], np.float32), expected)
    state = cluster.whole()
    assert sum(shard.epoch for shard in state.shards) == SHARDS + len({int(worker.homes[1]), int(worker.homes[2])})
    outcome = scrub(cluster.endpoint, DEADLINE_S)
    assert outcome.ok is True and outcome.stripes == 5, outcome

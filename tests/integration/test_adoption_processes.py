"""A scheduler with a lost, wrong or older state beside a living cluster, on real processes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import DEADLINE_S, Cluster

OUTDATED = 7


class Survivors(Cluster):
    """A cluster whose scheduler is started with other states."""

    def state(self, name: str) -> Path:
        return self.directory / name

    def scheduler_must_refuse(self, state: Path) -> str:
        """Start a scheduler with this state at the cluster's endpoint; it must end by itself. Returns what it says."""
        process = self.program("scheduler", "--bind", self.endpoint, "--shards", "5", "--state", str(state))
        assert process.wait(DEADLINE_S) == OUTDATED, self.logs()
        return (self.directory / f"{len(self.running) - 1}.log").read_text()

    def save_state(self, name: str) -> Path:
        """A copy of the state, as a snapshot of the machine would have made it. The scheduler is stopped for it."""
        self.stop_scheduler()
        for path in self.directory.glob("state*"):
            if path.suffix != ".lock":
                shutil.copy(path, self.directory / path.name.replace("state", name, 1))
        self.scheduler()
        return self.state(name)

    def adopt(self, state: Path) -> None:
        process = self.program("scheduler", "--bind", self.endpoint, "--shards", "5", "--state", str(state), "--adopt")
        self.scheduler_process = process
        self.whole()

    def all_live(self, shards: list[subprocess.Popen[str]]) -> bool:
        return all(process.poll() is None for process in shards)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Survivors]:
    made = Survivors(tmp_path, "tcp")
    yield made
    made.close()


def test_an_empty_state_is_refused_and_adopts_the_living_cluster_when_told_to(cluster: Survivors) -> None:
    shards = cluster.start()
    cluster.push(20)
    cluster.stop_scheduler()
    said = cluster.scheduler_must_refuse(cluster.state("empty"))
    assert "is not of this cluster" in said and "--adopt" in said
    cluster.push(20)
    assert cluster.all_live(shards)
    cluster.adopt(cluster.state("empty"))
    assert cluster.all_live(shards)
    cluster.push(20)
    shards[3].kill()
    cluster.shard("--shard", "3")
    cluster.push(20)
    cluster.whole({3: 2})
    cluster.check(80)


def test_a_state_from_before_two_deaths_is_refused_and_brought_up_when_told_to(cluster: Survivors) -> None:
    shards = cluster.start()
    cluster.push(10)
    old = cluster.save_state("old")
    for shard in (1, 3):
        shards[shard].kill()
        shards[shard] = cluster.shard("--shard", str(shard))
        cluster.push(10)
        cluster.whole({shard: 2})
    cluster.stop_scheduler()
    said = cluster.scheduler_must_refuse(old)
    assert "is older than its cluster" in said
    cluster.push(10)
    assert cluster.all_live(shards)
    cluster.adopt(old)
    cluster.push(10)
    assert cluster.all_live(shards)
    shards[1].kill()
    cluster.shard("--spare")
    cluster.push(10)
    cluster.whole({1: 3, 3: 2})
    cluster.check(60)


def test_a_state_that_was_adopted_is_taken_up_again(cluster: Survivors) -> None:
    """The scheduler dies once more, and is started with what it wrote."""
    shards = cluster.start()
    cluster.push(10)
    cluster.stop_scheduler()
    cluster.adopt(cluster.state("new"))
    cluster.stop_scheduler()
    cluster.push(10)
    cluster.adopt(cluster.state("new"))
    cluster.push(10)
    assert cluster.all_live(shards)
    cluster.check(30)
    assert cluster.logs().count("making it again") == 1

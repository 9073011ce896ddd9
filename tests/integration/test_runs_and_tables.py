"""Real processes: a table that one server cannot hold, and workers that do not belong together."""

import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")

from msgspec import structs  # noqa: E402
from processes import Cluster, Worker  # noqa: E402

from ecrec.errors import ClusterError, RefusedError  # noqa: E402
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec  # noqa: E402
from ecrec.training import SGD, Session, connect  # noqa: E402

ROOM = 128 << 20
BIG = TableSpec("big", 100_000_000, 8, CodeSpec(4, 1), OptimizerSpec("sgd", (1.0,)), "zeros")


def limit_address_space(process: "subprocess.Popen[str]", more: int | None) -> None:
    """So many bytes more; None: no limit any longer."""
    limit = psutil.Process(process.pid).memory_info().vms + more if more is not None else resource.RLIM_INFINITY
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def test_a_table_that_one_server_cannot_hold_is_refused_and_training_goes_on(cluster: Cluster) -> None:
    shards = cluster.start()
    cluster.push(20)
    limit_address_space(shards[2], ROOM)
    with connect(cluster.endpoint, rank=1, world_size=2) as session:
        with pytest.raises(RefusedError, match=r"'big' does not fit.*shard 2 .*100,000,000 rows.* bytes of address"):
            session.create_tables([BIG])
        session.abandon()
    cluster.push(20)
    assert [process.poll() for process in shards] == [None] * len(shards)
    limit_address_space(shards[2], None)
    with connect(cluster.endpoint, rank=1, world_size=2) as session:
        session.create_tables([structs.replace(BIG, rows=10_000)])
    cluster.push(20)
    cluster.check(60)
    assert [process.poll() for process in shards] == [None] * len(shards)


def check(cluster: Cluster) -> None:
    """All rows and all parity are right. The cluster's worker begins another life: others had its number meanwhile."""
    assert cluster.worker
    cluster.worker.node.close()
    cluster.worker = Worker(cluster.endpoint)
    cluster.worker.start()
    cluster.push(10)
    cluster.check(10)


def step(session: Session) -> torch.nn.Linear:
    """A step of a small model that is replicated."""
    module = torch.nn.Linear(2, 1)
    dense = session.replicate(module, SGD(lr=1.0))
    module(torch.ones(1, 2)).sum().backward()
    session.push(1)
    session.flush()
    dense.pull()
    return module


def test_runs_of_different_sizes_follow_each_other_and_strangers_are_named(cluster: Cluster) -> None:
    cluster.start()

    def worker(rank: int, size: int) -> Any:
        with connect(cluster.endpoint, rank=rank, world_size=size, sync=True, wait_timeout_ms=30_000.0) as session:
            return [p.detach().clone() for p in step(session).parameters()]

    with ThreadPoolExecutor(3) as pool:
        for size in (2, 3, 2):
            values = list(pool.map(worker, range(size), [size] * size))
            for other in values[1:]:
                assert all(torch.equal(a, b) for a, b in zip(values[0], other, strict=True))
        wrong = [pool.submit(worker, 0, 2), pool.submit(worker, 1, 3)]
        for future in wrong:
            with pytest.raises(RefusedError, match=r"worker \d asks for a run of \d workers, but worker \d waits"):
                future.result()
    check(cluster)


def test_a_worker_that_is_started_again_in_a_barrier_ends_the_run(cluster: Cluster) -> None:
    cluster.start()
    with ThreadPoolExecutor(2) as pool:
        sessions = [
            connect(cluster.endpoint, rank=rank, world_size=2, sync=True, wait_timeout_ms=30_000.0) for rank in range(2)
        ]
        list(pool.map(step, sessions))
        waits = pool.submit(sessions[0].barrier)
        sessions[1].abandon()
        again = connect(cluster.endpoint, rank=1, world_size=2, sync=True, wait_timeout_ms=30_000.0)
        with pytest.raises(ClusterError, match=r"worker 1 \(epoch 1\) has been started again"):
            waits.result()
        sessions[0].abandon()
        first = connect(cluster.endpoint, rank=0, world_size=2, sync=True, wait_timeout_ms=30_000.0)
        one, other = pool.map(step, [first, again])
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        list(pool.map(Session.close, [first, again]))
    check(cluster)

"""Pushes of a barrier are applied as one sum, and only those."""

import numpy as np
from cluster import Cluster, table

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received
from ecrec.protocol.messages import RECOVERING, WORKER, Address, Push, Section
from ecrec.protocol.shard import ShardMachine

OTHER = Address(WORKER, 1, 5)


def start_to_recover(cluster: Cluster, shard: int) -> ShardMachine:
    """A replacement that can serve and has hardly begun to repair."""
    cluster.shards[shard] = cluster.start(shard)
    replacement = cluster.shard(shard)
    for _ in range(1000):
        if replacement.state == RECOVERING and not any(p.awaits_joined for p in replacement.peers.values()):
            return replacement
        if not cluster.deliver():
            cluster.tick()
    raise AssertionError("the replacement was not placed")


def test_a_barrier_waits_for_the_same_push_of_the_other_worker_not_for_an_earlier_one() -> None:
    config = ProtocolConfig(repair_rows_max=1, repairs_in_flight_max=1)
    cluster, spec = Cluster(5, config), table(rows=400)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.kill(1)
    replacement = start_to_recover(cluster, 1)
    cluster.blocked |= {(cluster.shards[peer], cluster.shards[1]) for peer in (0, 2, 3, 4)}

    cluster.carry_out("worker-0", cluster.client, cluster.client.push({}, barrier=2))
    cluster.run()
    lost = next(r for r in range(390, spec.rows) if (r // 4 + r % 4) % 5 == 1)
    gradient = np.ones(spec.dim, np.float32)
    early = Push(5, 1, 0, False, [Section([0], [1])])
    cluster.give(cluster.shards[1], Received(OTHER, early, (np.array([lost], np.int64), gradient)))
    assert (replacement.marks.get(0), replacement.marks.get(1)) == (1, None)

    cluster.blocked.clear()
    cluster.settle_down(lambda: replacement.marks.get(1) == 1)
    assert replacement.marks[0] == 1
    cluster.give(cluster.shards[1], Received(OTHER, Push(5, 2, 2, False, []), ()))
    assert (replacement.marks[0], replacement.marks[1]) == (2, 2)

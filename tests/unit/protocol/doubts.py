"""What scenarios of suspicions share: groups with all connections made, and what cuts members off."""

from typing import Any

from cluster import Cluster, table

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Connection, Received
from ecrec.protocol.messages import TOOL, Address, ClusterQuery
from ecrec.protocol.scheduler import SchedulerMachine


def states(cluster: Cluster) -> list[str]:
    return [place.state for place in cluster.scheduler.state.groups[0].places]


def epochs(cluster: Cluster) -> list[int]:
    return [place.epoch for place in cluster.scheduler.state.groups[0].places]


def pass_time(cluster: Cluster, ms: float) -> None:
    until_ms = cluster.now_ms + ms
    while cluster.now_ms < until_ms:
        cluster.tick()
        cluster.run()


def formed(n: int = 5, config: ProtocolConfig | None = None, code: str = "4+1", **more: Any) -> tuple[Cluster, Any]:
    """A group with a table that was pushed to, all connections of which are established."""
    cluster, spec = Cluster(n, config), table(code=code, **more)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    link_all(cluster)
    return cluster, spec


def link_all(cluster: Cluster) -> None:
    """All connections between shards are made."""
    for name in cluster.shards.values():
        for other in cluster.shards.values():
            if other != name:
                cluster.give(name, Connection(cluster.machines[other].address, up=True))
    pass_time(cluster, 200.0)


def close_links(cluster: Cluster, address: Address) -> None:
    """All connections to an incarnation break, those of its peers too."""
    for name in list(cluster.shards.values()):
        if name in cluster.machines and cluster.machines[name].address != address:
            cluster.give(name, Connection(address, up=False))
    cluster.give("scheduler", Connection(address, up=False))


def restart_scheduler(cluster: Cluster) -> None:
    """Another process with the state of the one before, which hears nobody yet."""
    cluster.scheduler = SchedulerMachine(cluster.n, 1, cluster.config, cluster.state, "")
    cluster.machines["scheduler"] = cluster.scheduler


def suspected(cluster: Cluster) -> dict[int, str]:
    cluster.give("scheduler", Received(Address(TOOL, 9, 0), ClusterQuery(1)))
    return cluster.tool_answers[-1][0].suspected if cluster.run() is None else {}


def mute(cluster: Cluster, *shards: int) -> None:
    """The scheduler does not hear them; everybody else does."""
    cluster.blocked |= {(cluster.shards[shard], "scheduler") for shard in shards}


def deafen(cluster: Cluster, *shards: int) -> None:
    """The scheduler does not reach them; it hears them."""
    cluster.blocked |= {("scheduler", cluster.shards[shard]) for shard in shards}

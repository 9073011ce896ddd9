"""A shard that has not heard of a table which the others have: it was declared dead, and does not know it."""

from typing import Any

import numpy as np
import pytest
from cluster import Cluster, table
from doubts import link_all, pass_time, states

from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Note, Received
from ecrec.protocol.messages import TOOL, WORKER, Address, Pull, Push, PushRefused, Section, ShardDown, Views
from ecrec.protocol.scheduler import SchedulerMachine

DEAF = 1
"""The shard that hears nothing of the scheduler."""


def with_a_deaf_shard(spec: Any, before: tuple[Any, ...] = ()) -> Cluster:
    """A cluster with a table of which one shard has not heard; the worker has not heard of that shard's death."""
    cluster = Cluster(5)
    for known in before:
        cluster.create(known)
    link_all(cluster)
    cluster.blocked.add(("scheduler", cluster.shards[DEAF]))
    send = cluster.send

    def lossy(name: str, machine: Any, effect: Any) -> None:
        views = effect.message.views if isinstance(effect.message, Views) else []
        if effect.to.role == WORKER and any(isinstance(view, ShardDown) for view in views):
            return
        send(name, machine, effect)

    cluster.send = lossy  # type: ignore[method-assign]
    cluster.create(spec)
    assert states(cluster)[DEAF] == "down" and not cluster.client.down()
    cluster.send = send  # type: ignore[method-assign]
    return cluster


def recovers(cluster: Cluster, pushes: int) -> None:
    """The worker's pushes are durable and applied once, also by the replacement of the deaf shard."""
    cluster.blocked.clear()
    cluster.shards[DEAF] = cluster.start(DEAF)
    cluster.drain()
    assert not cluster.failed
    assert all(cluster.shard(shard).watermarks.get(0, 0) == pushes for shard in range(5))
    cluster.scrub()


@pytest.mark.parametrize("names_it", [False, True])
def test_a_push_to_a_shard_that_knows_no_table_waits_for_its_replacement(names_it: bool) -> None:
    """Whether it names the table or is empty: nobody else would have it, and it is no mistake of the worker."""
    spec = table()
    cluster = with_a_deaf_shard(spec)
    rows = [row for row in range(spec.rows) if names_it or (row // 4 + row % 4) % 5 != DEAF]
    cluster.push(spec, dict.fromkeys(rows, 1.0))
    cluster.run()
    assert cluster.client.acked[DEAF] == 0 and not cluster.shard(DEAF).context.workers[0].queue
    recovers(cluster, pushes=1)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    moved = cluster.read(spec)
    assert not cluster.failed and len(moved) == spec.rows


@pytest.mark.parametrize("exact", [False, True])
def test_a_pull_from_a_shard_that_does_not_know_the_table_waits_for_its_replacement(exact: bool) -> None:
    spec = table("late")
    cluster = with_a_deaf_shard(spec, before=(table("early"),))
    ticket = cluster.pull(spec, range(spec.rows), exact)
    cluster.run()
    assert ticket not in cluster.done and not cluster.failed
    recovers(cluster, pushes=0)
    cluster.settle_down(lambda: ticket in cluster.done)


def test_one_newer_table_does_not_keep_pushes_to_known_ones_from_being_made() -> None:
    """Of a coded table that it knows its windows tell: it calls nothing durable that its peers do not have."""
    known = table("early")
    cluster = with_a_deaf_shard(table("late"), before=(known,))
    cluster.push(known, dict.fromkeys(range(known.rows), 1.0))
    cluster.run()
    assert cluster.shard(DEAF).watermarks[0] == 1 and cluster.client.acked[DEAF] == 0
    recovers(cluster, pushes=1)


def test_what_is_dropped_for_a_missing_view_is_said() -> None:
    cluster = Cluster(3)
    machine = cluster.shard(0)
    ids = np.zeros(1, np.int64)
    for source, message, frames in [
        (Address(WORKER, 0, 1), Push(1, 1, 0, False, [Section([0], [1])], 0, 0, 0), (ids, np.zeros(4, np.float32))),
        (Address(WORKER, 0, 1), Push(1, 1, 0, False, [], 0, 0, 0, 1), ()),
        (Address(TOOL, 7, 1), Pull(1, 0, False, [Section([0], [1])]), (ids,)),
    ]:
        effects = machine.handle(Received(source, message, frames), cluster.now_ms)
        assert [effect.level for effect in effects if isinstance(effect, Note)] == ["warning"]
        assert not any(isinstance(getattr(effect, "message", None), PushRefused) for effect in effects)
        assert not machine.context.pulls and not machine.watermarks


def test_watermarks_are_told_when_lost_rows_may_begin_again_from_now_on() -> None:
    """A scheduler is started with another option: from then on peers keep the watermarks of rows without parity."""
    cluster, spec = Cluster(3), table(code="2+0")
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    config = ProtocolConfig(reinitialise_lost=True)
    cluster.scheduler = cluster.machines["scheduler"] = SchedulerMachine(3, 1, config, cluster.state, "")
    cluster.settle_down(lambda: all(cluster.shard(shard).config.reinitialise_lost for shard in range(3)))
    pass_time(cluster, 1000.0)
    for shard in range(3):
        told = [cluster.shard(other).peers[shard].watermarks_received() for other in range(3) if other != shard]
        assert told == [{0: 1}] * 2

"""Learning rates in pushes: what a shard does not take is refused before anything of the push is applied."""

import math

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec.protocol import messages as m
from ecrec.protocol.events import Received, Send
from ecrec.protocol.placement import OptimizerSpec

SGD = OptimizerSpec("sgd", (1.0,))
FIRST, SECOND = table("first", 40, 2, "2+1", SGD), table("second", 40, 2, "2+1", SGD)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster(3)
    for spec in (FIRST, SECOND):
        cluster.create(spec)
    return cluster


@pytest.mark.parametrize(("rates", "assign", "says"), [
    ({1: math.nan}, False, "table 'second': learning rate nan"), ({1: -1.0}, False, "learning rate -1.0"),
    ({0: 0.5, 7: 0.5}, False, "a learning rate of table 7: there are 2"),
    ({0: 0.5}, True, "learning rates of a push that sets weights"),
])  # fmt: skip
def test_a_push_with_a_rate_that_cannot_be_is_refused_and_nothing_of_it_applied(
    cluster: Cluster, rates: dict[int, float], assign: bool, says: str
) -> None:
    """Also where the rate is that of a later section than the first."""
    shard = cluster.shard(0)
    touched, number = shard.store.memory()["data_rows_touched"], cluster.client.pushed[0] + 1
    sections = [m.Section([0], [1]), m.Section([1], [1])]
    frames = [np.array([0], np.int64), np.ones(2, np.float32)] * 2
    push = m.Push(cluster.client.epoch, number, 0, assign, sections, tables=2, rates=rates)
    effects = shard.handle(Received(cluster.client.address, push, frames), cluster.now_ms)
    refused = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.PushRefused)]
    assert [message.number for message in refused] == [number] and says in refused[0].reason
    assert shard.store.memory()["data_rows_touched"] == touched
    push = m.Push(cluster.client.epoch, number, 0, False, sections, tables=2)
    effects = shard.handle(Received(cluster.client.address, push, frames), cluster.now_ms)
    assert shard.store.memory()["data_rows_touched"] == touched + 2


def test_a_rate_of_one_table_leaves_that_of_others_and_comes_again_with_the_push_after_a_death(
    cluster: Cluster,
) -> None:
    before = {spec.name: cluster.read(spec) for spec in (FIRST, SECOND)}
    cluster.drain()
    cluster.kill(1)
    rows = range(FIRST.rows)
    parts = {
        shard: ([m.Section([index], [len(held)]) for index in (0, 1)], (held, np.ones(2 * len(held), np.float32)) * 2)
        for shard, held in cluster.by_shard(FIRST, rows).items()
    }
    cluster.carry_out("worker-0", cluster.client, cluster.client.push(parts, rates={1: 0.25}))
    cluster.declared(1)
    cluster.replace(1)
    cluster.drain()
    np.testing.assert_array_equal(cluster.read(FIRST), before["first"] - np.float32(1.0))
    np.testing.assert_array_equal(cluster.read(SECOND), before["second"] - np.float32(0.25))

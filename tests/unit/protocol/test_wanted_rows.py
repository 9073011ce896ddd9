"""What pushes, pulls and seeds that wait for lost rows cost: their rows are found once and asked for once."""

from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cluster import Cluster, table

from ecrec._native import Store
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Tick
from ecrec.protocol.messages import RECOVERING, Repair, Repaired
from ecrec.protocol.pulls import Pulls
from ecrec.protocol.wanted import Wanted

LOST = 1
QUIET_EVENTS = 50


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """How often shards looked for lost rows, and rows that they looked through for it."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        real = getattr(Store, name)

        def call(self: Store, *arguments: Any) -> Any:
            counts[name] += 1
            return real(self, *arguments)

        return mock.patch.object(Store, name, call)

    real_answer = Pulls._answer

    def answer(self: Pulls, queued: Any) -> bool:
        counts["_answer"] += 1
        return real_answer(self, queued)

    with counted("missing"), counted("missing_of"), counted("seed"), mock.patch.object(Pulls, "_answer", answer):
        yield counts


def recovering(code: str = "4+1", **limits: Any) -> tuple[Cluster, Any]:
    """A cluster whose shard 1 has been replaced, and hears nothing of its peers yet."""
    cluster, spec = Cluster(6, ProtocolConfig(**limits)), table(rows=4_000, code=code)
    cluster.create(spec)
    cluster.push(spec, dict.fromkeys(range(spec.rows), 1.0))
    cluster.drain()
    cluster.kill(LOST)
    cluster.declared(LOST)
    cluster.blocked = {(name, cluster.next_process) for name in cluster.shards.values()}
    cluster.replace(LOST)
    return cluster, spec


def named(cluster: Cluster) -> Counter[int]:
    """Watch which rows the replacement asks for by name; a counter that goes on counting."""
    asked: Counter[int] = Counter()
    send = cluster.send

    def watch(name: str, machine: Any, effect: Any) -> None:
        if isinstance(effect.message, Repair) and not effect.message.stripes.last:
            asked.update(np.frombuffer(effect.frames[0], np.uint64).tolist())
        send(name, machine, effect)

    cluster.send = watch  # type: ignore[method-assign]
    return asked


def own_rows(cluster: Cluster, spec: Any, step: int) -> Any:
    return cluster.by_shard(spec, range(spec.rows))[LOST][::step]


def test_rows_of_a_waiting_pull_are_found_once_and_asked_for_once(calls: Counter[str]) -> None:
    cluster, spec = recovering(repairs_wanted_max=3, repair_rows_max=16, repairs_in_flight_max=1)
    asked, rows = named(cluster), own_rows(cluster, spec, 2)
    tickets = [cluster.pull(spec, np.tile(rows, 2), exact=False), cluster.pull(spec, rows, exact=False)]
    cluster.run()
    machine = cluster.shard(LOST)
    assert machine.state == RECOVERING and len(machine.context.pulls) == 2 and sum(asked.values()) == 48
    before = Counter(calls)
    assert before["missing"] == 2
    for _ in range(QUIET_EVENTS):
        cluster.give(cluster.shards[LOST], Tick())
    assert calls == before, "nothing came, and something was looked for"
    cluster.blocked.clear()
    cluster.settle_down(lambda: all(ticket in cluster.done for ticket in tickets))
    assert calls["missing"] == 2 and set(asked.values()) == {1} and len(asked) <= len(rows)
    repairs = len(asked) / 16 + machine.store.class_size(0) * 5 / 16  # by name, and of the sweep
    assert calls["_answer"] - before["_answer"] <= 2 * (repairs + 20), "a pull is looked at when rows came"
    cluster.drain()
    cluster.scrub()


def test_rows_of_a_waiting_push_are_found_once(calls: Counter[str]) -> None:
    cluster, spec = recovering(repairs_wanted_max=2, repair_rows_max=16)
    asked, rows = named(cluster), own_rows(cluster, spec, 3)
    cluster.push(spec, dict.fromkeys(rows.tolist(), 1.0))
    cluster.push(spec, dict.fromkeys(rows.tolist(), 1.0))
    cluster.run()
    for _ in range(QUIET_EVENTS):
        cluster.give(cluster.shards[LOST], Tick())
    assert calls["missing"] == 1 and len(cluster.shard(LOST).context.workers[0].queue) == 2
    cluster.blocked.clear()
    cluster.drain()
    assert set(asked.values()) == {1} and calls["missing"] <= 2
    cluster.scrub()


def test_what_a_view_made_the_shard_forget_is_asked_for_again() -> None:
    cluster, spec = recovering(code="3+2", repairs_wanted_max=2, repair_rows_max=16)
    asked, rows = named(cluster), own_rows(cluster, spec, 2)
    ticket = cluster.pull(spec, rows, exact=False)
    cluster.run()
    first = Counter(asked)
    cluster.kill(3)
    cluster.declared(3)
    cluster.replace(3)
    cluster.blocked.clear()
    cluster.settle_down(lambda: ticket in cluster.done)
    assert any(asked[key] > 1 for key in first)
    cluster.drain()
    cluster.scrub()


def test_seeds_that_lack_rows_are_looked_at_when_the_rows_are_there(calls: Counter[str]) -> None:
    cluster, _ = recovering(code="3+2")
    machine, send = cluster.shard(LOST), cluster.send
    late: list[Any] = []

    def slow_repairs(name: str, source: Any, effect: Any) -> None:
        if isinstance(effect.message, Repaired) and effect.to.id == LOST:
            late.append((name, source, effect))
        else:
            send(name, source, effect)

    cluster.send = slow_repairs  # type: ignore[method-assign]
    cluster.blocked.clear()
    cluster.kill(2)
    cluster.declared(2)
    cluster.replace(2)
    cluster.settle_down(lambda: len(machine.seeding._blocked) > 0)
    cluster.run()
    before = calls["seed"]
    for _ in range(QUIET_EVENTS):
        cluster.give(cluster.shards[LOST], Tick())
    assert machine.state == RECOVERING and calls["seed"] == before
    cluster.send = send  # type: ignore[method-assign]
    for held in late:
        send(*held)
    cluster.drain()
    cluster.scrub()


def test_wanted_rows_come_in_any_order() -> None:
    cluster, spec = recovering()
    store, rows = cluster.shard(LOST).store, own_rows(cluster, spec, 1)
    one = np.array([0], np.int32), np.array([len(rows)], np.int64)
    keys = store.missing(*one, rows)
    wanted = Wanted(store, np.concatenate([keys[::-1], keys]))
    assert sorted(key for part in wanted.parts for key in part.keys.tolist()) == sorted(keys.tolist())
    order = np.random.default_rng(3).permutation(len(keys))
    for some in np.array_split(keys[order], 7):
        assert not wanted.is_here(store)
        store.mark_recovered_keys(some)
    assert wanted.is_here(store) and not wanted.parts
    assert Wanted(store, keys[:0]).is_here(store)

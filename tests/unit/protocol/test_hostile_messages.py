"""Messages that are well-formed and senseless, from workers, tools and processes without a place."""

from typing import Any

import numpy as np
from cluster import register_at
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wire import TYPES, frames_of, values

from ecrec.protocol import messages as m
from ecrec.protocol.config import ProtocolConfig
from ecrec.protocol.events import Received, Send, Stop, Tick
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.scheduler import SchedulerMachine
from ecrec.protocol.shard import ShardMachine

TABLE = TableSpec("t", 1000, 8, CodeSpec(4, 1), OptimizerSpec("sgd", (1.0,)), "zeros")
SCHEDULER = m.Address(m.SCHEDULER, 0, 0)
WORKER = m.Address(m.WORKER, 77, 1)

clients = st.builds(m.Address, st.sampled_from([m.WORKER, m.TOOL]), st.integers(-2, 3), st.integers(0, 3))
strangers = clients | st.builds(m.Address, st.just(m.SHARD), st.integers(-1, 6), st.just(0))
messages = st.one_of([values(kind) for kind in TYPES])
payload = st.sampled_from([b"", b"1234567", bytes(8), np.array([1, 5, 9], np.int64).tobytes(), bytes(96)])


def shard() -> ShardMachine:
    """Shard 2 of five that run."""
    machine = ShardMachine("p", "tcp://x:2", 2)
    members = [m.Member(i, 1, m.UP, f"tcp://x:{i}") for i in range(5)]
    start = m.FullView(1, 0, 1, 5, 2, 1, False, 0, {}, members, [TABLE], [], "", ProtocolConfig())
    machine.handle(Received(SCHEDULER, m.Views(0, [start])), 0.0)
    return machine


def scheduler() -> SchedulerMachine:
    """Of five shards that run."""
    machine = SchedulerMachine(5, 1, ProtocolConfig(form_after_ms=0), None)
    for i in range(5):
        register_at(machine, f"p{i}", f"tcp://x:{i}", i)
    return machine


def throw_at(machine: Any, data: Any, sources: st.SearchStrategy[m.Address]) -> None:
    """Send some messages; the machine must neither raise nor want to stop."""
    for _ in range(10):
        message = data.draw(messages)
        frames = [data.draw(payload) for _ in frames_of(message)]
        for event in (Received(data.draw(sources), message, frames), Tick()):
            effects = machine.handle(event, 0.0)
            assert not any(isinstance(effect, Stop) for effect in effects)


@settings(max_examples=100)
@given(st.data())
def test_a_shard_serves_on_after_anything_from_clients(data: Any) -> None:
    machine = shard()
    throw_at(machine, data, clients)
    section = m.Section([0], [1])
    row = np.array([8], np.int64)  # slot 0 of stripe 2
    pull = m.Pull(2**40, 0, False, [section])
    effects = machine.handle(Received(WORKER, pull, (row.tobytes(),)), 0.0)
    assert [e.message for e in effects if isinstance(e, Send) and e.to == WORKER] == [m.Rows(2**40)]


@settings(max_examples=100)
@given(st.data())
def test_a_scheduler_serves_on_after_anything_from_strangers(data: Any) -> None:
    machine = scheduler()
    throw_at(machine, data, strangers)
    effects = machine.handle(Received(WORKER, m.ClusterQuery(5)), 0.0)
    states = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, m.ClusterState)]
    assert len(states) == 1
    assert [member.state for member in states[0].shards] == [m.UP] * 5

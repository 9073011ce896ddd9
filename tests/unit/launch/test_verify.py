import numpy as np
import pytest

from ecrec.launch.verify import AGAIN_MS, SILENCE_MS, BadStripe, ScrubMachine, ScrubOutcome, describe_bad
from ecrec.protocol.events import Connect, Disconnect, Received, Send, Tick
from ecrec.protocol.messages import SHARD, Address, ClusterState, ScrubBusy, ScrubResult, ShardFigures
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec

N = 4
SIZE = 10
CHUNK = 4


def table(name, code):
    return TableSpec(name, 100, 8, CodeSpec.parse(code), OptimizerSpec("sgd", (0.1,)), "zeros")


def cluster(*codes, epochs=None, down=(), groups=1):
    epochs = epochs or {}
    shards = [
        ShardFigures(
            i,
            epochs.get(i, 1),
            "down" if i in down else "up",
            f"tcp://h:{i}{epochs.get(i, 1)}",
            5.0,
            {},
            {},
            {},
        )
        for i in range(N * groups)
    ]
    tables = [table(f"T{i}", code) for i, code in enumerate(codes)]
    return ClusterState(1, N, groups, [1] * groups, shards, {}, tables, [], 0, "")


class Shards:
    """Answers every question at once, or as told."""

    def __init__(self, bad=()):
        self.bad = list(bad)
        self.connected = {}
        self.questions = []

    def carry_out(self, machine, effects, now_ms, answer=None):
        effects = list(effects)
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, Connect):
                self.connected[effect.address.id] = effect.address
            elif isinstance(effect, Disconnect):
                assert self.connected.pop(effect.address.id) == effect.address
            else:
                assert isinstance(effect, Send)
                assert self.connected[effect.to.id] == effect.to
                self.questions.append((effect.to.id, effect.message))
                reply, frames = (answer or self.answer)(effect.to.id, effect.message)
                if reply is not None:
                    effects += machine.handle(Received(effect.to, reply, frames), now_ms)

    def answer(self, shard, scrub):
        last = min(SIZE, scrub.first + CHUNK)
        keys = [key for holder, class_id, key in self.bad if (holder, class_id) == (shard, scrub.class_id)]
        reply = ScrubResult(scrub.request, scrub.class_id, last, SIZE, last - scrub.first)
        return reply, (np.array(keys if last == SIZE else [], np.uint64),)


def run(machine, shards, state):
    shards.carry_out(machine, machine.update(state), 0.0)
    for now_ms in range(0, 5000, 50):
        if machine.done:
            return
        shards.carry_out(machine, machine.handle(Tick(), float(now_ms)), float(now_ms))
    pytest.fail(f"not done: {machine.refusal}")


def test_every_parity_holder_of_every_class_is_asked_chunk_by_chunk():
    state = cluster("2+1", "1+2", "2+1")
    machine, shards = ScrubMachine(state), Shards()
    run(machine, shards, state)
    assert {(shard, q.class_id) for shard, q in shards.questions} == {
        *(((g + 2) % N, g) for g in range(N)),
        *(((g + 1) % N, N + g) for g in range(N)),
        *(((g + 2) % N, N + g) for g in range(N)),
    }
    assert {q.first for _, q in shards.questions} == {0, 4, 8}
    assert machine.outcome == ScrubOutcome(2 * N * SIZE, 3 * N * SIZE, [])
    assert machine.outcome.ok is True


def test_shards_of_all_groups_are_asked():
    state = cluster("3+1", groups=2)
    machine, shards = ScrubMachine(state), Shards()
    run(machine, shards, state)
    assert {shard for shard, _ in shards.questions} == set(range(2 * N))


def test_what_does_not_fit_is_named():
    state = cluster("3+1", "3+1")
    machine, shards = ScrubMachine(state), Shards(bad=[(3, 0, (1 << 48) | 8)])
    run(machine, shards, state)
    assert machine.outcome.ok is False
    assert machine.outcome.bad == [BadStripe("T1", 8, 3)]
    assert list(describe_bad(machine.outcome.bad)) == ["table T1, stripe 8: the parity on shard 3 does not fit"]
    assert list(describe_bad(machine.outcome.bad * 12))[-1] == "and 2 more"


def test_without_parity_there_is_nothing_to_say():
    state = cluster("4+0")
    machine = ScrubMachine(state)
    assert machine.done
    assert machine.outcome.ok is None


def test_a_busy_shard_is_asked_again_a_little_later():
    state = cluster("3+1")
    machine, shards = ScrubMachine(state), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)

    def busy(shard, scrub):
        return ScrubBusy(scrub.request, "the membership changed"), ()

    shards.carry_out(machine, machine.handle(Tick(), 1000.0), 1000.0, busy)
    asked = len(shards.questions)
    assert machine.refusal == "the membership changed"
    assert machine.handle(Tick(), 1000.0 + AGAIN_MS / 2) == []
    shards.carry_out(machine, machine.handle(Tick(), 1000.0 + AGAIN_MS), 1000.0 + AGAIN_MS)
    assert len(shards.questions) > asked
    assert machine.done


def test_a_silent_shard_is_asked_again_and_its_late_answer_dropped():
    state = cluster("3+1")
    machine, shards = ScrubMachine(state), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)
    shards.carry_out(machine, machine.handle(Tick(), 1000.0), 1000.0, lambda shard, scrub: (None, ()))
    old = list(shards.questions)
    assert machine.handle(Tick(), 1500.0) == []
    shards.carry_out(machine, machine.handle(Tick(), 1000.0 + SILENCE_MS), 1000.0 + SILENCE_MS)
    assert machine.done
    for shard, scrub in old:
        reply, frames = shards.answer(shard, scrub)
        assert machine.handle(Received(Address(SHARD, shard, 1), reply, frames), 9000.0) == []
    assert machine.outcome.parity_rows == N * SIZE


def test_a_replaced_holder_starts_again():
    state = cluster("3+1")
    machine, shards = ScrubMachine(state), Shards()
    run(machine, shards, state)
    again = cluster("3+1", epochs={2: 2})
    shards.carry_out(machine, machine.update(cluster("3+1", down=(2,))), 6000.0)
    assert not machine.done
    assert 2 not in shards.connected
    shards.questions.clear()
    run(machine, shards, again)
    assert {shard for shard, _ in shards.questions} == {2}
    assert machine.outcome.parity_rows == N * SIZE

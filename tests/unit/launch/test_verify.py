import itertools

import numpy as np
import pytest

from ecrec.launch.tools.verify import describe_bad
from ecrec.protocol.events import Connect, Disconnect, Received, Send, Tick
from ecrec.protocol.messages import (
    LOCATED,
    SHARD,
    TOOL,
    UNSURE,
    Address,
    ClusterState,
    ScrubBusy,
    ScrubResult,
    ShardFigures,
)
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.scrub_tool import AGAIN_MS, SILENCE_MS, BadStripe, ScrubMachine, ScrubOutcome

N = 4
MINE = Address(TOOL, 7, 0)
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

    def __init__(self, bad=(), chunk_bytes=0):
        self.bad = list(bad)
        self.chunk_bytes = chunk_bytes
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
        """``bad``: (class, key, slot, verdict); found with the last chunk of the class."""
        last = min(SIZE, scrub.first + min(CHUNK, scrub.rows_max))
        bad = [some for class_id, *some in self.bad if class_id == scrub.class_id and last == SIZE]
        stripes = last - scrub.first
        reply = ScrubResult(
            scrub.request, scrub.class_id, last, SIZE, stripes, 2 * stripes, self.chunk_bytes, scrub.repair
        )  # fmt: skip
        columns = [np.array([some[i] for some in bad], t) for i, t in enumerate((np.uint64, np.uint8, np.uint8))]
        return reply, tuple(columns)


def run(machine, shards, state):
    shards.carry_out(machine, machine.update(state), 0.0)
    for now_ms in range(0, 5000, 50):
        if machine.done:
            return
        shards.carry_out(machine, machine.handle(Tick(), float(now_ms)), float(now_ms))
    pytest.fail(f"not done: {machine.refusal}")


def test_the_first_parity_holder_of_every_class_is_asked_chunk_by_chunk():
    state = cluster("2+1", "1+2", "2+1")
    machine, shards = ScrubMachine(MINE, state), Shards()
    run(machine, shards, state)
    assert {(shard, q.class_id) for shard, q in shards.questions} == {
        *(((g + 2) % N, g) for g in range(N)),
        *(((g + 1) % N, N + g) for g in range(N)),
    }
    assert {q.first for _, q in shards.questions} == {0, 4, 8}
    assert machine.outcome == ScrubOutcome(2 * N * SIZE, 4 * N * SIZE, [])
    assert machine.outcome.ok is True


def test_shards_of_all_groups_are_asked():
    state = cluster("3+1", groups=2)
    machine, shards = ScrubMachine(MINE, state), Shards()
    run(machine, shards, state)
    assert {shard for shard, _ in shards.questions} == set(range(2 * N))


@pytest.mark.parametrize("repair", [False, True])
def test_what_does_not_fit_is_named(repair):
    state = cluster("2+2", "3+1")
    bad = [(0, 8, 3, LOCATED), (0, 4, 1, LOCATED), (N, 1 << 48 | 12, 3, UNSURE)]
    machine, shards = ScrubMachine(MINE, state, repair), Shards(bad)
    run(machine, shards, state)
    assert machine.outcome.ok is False
    assert machine.outcome.bad == [
        BadStripe("T0", 8, 3, 3, None, 1, True, repair),
        BadStripe("T0", 4, 1, 1, 9, None, True, False),
        BadStripe("T1", 12, 3, 3, None, 0, False, repair),
    ]
    assert len(machine.outcome.unrepaired) == (1 if repair else 3)
    done = "rewritten from the data rows" if repair else "not repaired"
    assert list(describe_bad(machine.outcome.bad)) == [
        f"table T0, stripe 8: parity row 1 on shard 3 is wrong; {done}",
        "table T0, stripe 4: data row 9 on shard 1 is wrong, all parity agrees on it; it is not repaired: pushes since "
        "may have built on it",
        "table T1, stripe 12: parity row 0 on shard 3 is wrong, or else a data row: nobody can tell, and training uses "
        f"the data rows; {done}",
    ]
    assert list(describe_bad(machine.outcome.bad * 4))[-1] == "and 2 more"


def test_rows_of_other_groups_are_named_by_their_place_in_the_whole_table():
    state = cluster("2+1", groups=2)
    machine, shards = ScrubMachine(MINE, state), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)

    def answer(shard, scrub):
        if shard != N + 3 or scrub.class_id != 1:
            return shards.answer(shard, scrub)
        frames = np.array([5], np.uint64), np.array([2], np.uint8), np.array([UNSURE], np.uint8)
        return ScrubResult(scrub.request, 1, SIZE, SIZE, SIZE, SIZE, 0, False), frames

    for now_ms in range(0, 1000, 50):
        shards.carry_out(machine, machine.handle(Tick(), float(now_ms)), float(now_ms), answer)
    assert machine.outcome.bad == [BadStripe("T0", 11, N + 3, 2, None, 0, False, False)]


def test_a_rate_is_kept():
    """Chunks of 100 kB at 1 MB/s: ten a second, one after the other."""
    state = cluster("3+1")
    machine, shards = ScrubMachine(MINE, state, rate_mb_s=1.0), Shards(chunk_bytes=100_000)
    shards.carry_out(machine, machine.update(state), 0.0)
    now_ms, asked = 0.0, []
    while not machine.done:
        before = len(shards.questions)
        shards.carry_out(machine, machine.handle(Tick(), now_ms), now_ms)
        asked += [now_ms] * (len(shards.questions) - before)
        now_ms += 10.0
        assert now_ms < 10_000
    assert machine.outcome.bytes_read == 100_000 * len(asked) == 100_000 * N * 3
    assert min(later - earlier for earlier, later in itertools.pairwise(asked)) >= 100.0
    assert asked[-1] <= 100.0 * len(asked)


def test_with_a_rate_questions_are_short():
    state = cluster("3+1")
    machine, shards = ScrubMachine(MINE, state, rate_mb_s=0.001), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)
    shards.carry_out(machine, machine.handle(Tick(), 1e3), 1e3, lambda shard, scrub: (None, ()))
    ((_, question),) = shards.questions
    assert question.rows_max == 1


def test_without_parity_there_is_nothing_to_say():
    state = cluster("4+0")
    machine = ScrubMachine(MINE, state)
    assert machine.done
    assert machine.outcome.ok is None


def test_a_busy_shard_is_asked_again_a_little_later():
    state = cluster("3+1")
    machine, shards = ScrubMachine(MINE, state), Shards()
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
    machine, shards = ScrubMachine(MINE, state), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)
    shards.carry_out(machine, machine.handle(Tick(), 1000.0), 1000.0, lambda shard, scrub: (None, ()))
    old = list(shards.questions)
    assert machine.handle(Tick(), 1500.0) == []
    shards.carry_out(machine, machine.handle(Tick(), 1000.0 + SILENCE_MS), 1000.0 + SILENCE_MS)
    assert machine.done
    for shard, scrub in old:
        reply, frames = shards.answer(shard, scrub)
        assert machine.handle(Received(Address(SHARD, shard, 1), reply, frames), 9000.0) == []
    assert machine.outcome.parity_rows == 2 * N * SIZE


def test_what_it_waits_for_is_named():
    state = cluster("3+1", down=(1, 2))
    machine, shards = ScrubMachine(MINE, state), Shards()
    shards.carry_out(machine, machine.update(state), 0.0)
    assert machine.waits_for == "shards 1, 2 down"
    shards.carry_out(machine, machine.update(cluster("3+1", down=(2,))), 0.0)
    assert machine.waits_for == "shard 2 down"
    run(machine, shards, cluster("3+1"))
    assert machine.done and machine.waits_for == ""


def test_without_parity_nobody_is_asked():
    assert ScrubMachine(MINE, cluster()).is_empty
    assert ScrubMachine(MINE, cluster("4+0")).is_empty
    assert not ScrubMachine(MINE, cluster("3+1")).is_empty


def test_classes_of_a_replaced_holder_start_again():
    state = cluster("1+2")
    machine, shards = ScrubMachine(MINE, state, repair=True), Shards([(0, 0, 2, LOCATED), (0, 4, 1, UNSURE)])
    run(machine, shards, state)
    again = cluster("1+2", epochs={2: 2})
    shards.carry_out(machine, machine.update(cluster("1+2", down=(2,))), 6000.0)
    assert not machine.done
    assert 2 not in shards.connected
    shards.questions.clear()
    shards.bad.clear()
    run(machine, shards, again)
    assert {q.class_id for _, q in shards.questions} == {0, 1}
    assert machine.outcome.restarts == 2
    assert machine.outcome.parity_rows == 2 * N * SIZE
    # what was rewritten was wrong, whoever holds it now
    assert [(bad.stripe, bad.parity) for bad in machine.outcome.bad] == [(0, 1), (4, 0)]

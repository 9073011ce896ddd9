import msgspec

from ecrec.launch.tools.watch import ClusterWatch
from ecrec.protocol.events import Received, Tick
from ecrec.protocol.messages import SCHEDULER, TOOL, Address, ClusterState, HistoryEntry, ShardFigures
from ecrec.protocol.watch import EVERY_MS, WatchMachine

FROM = Address(SCHEDULER, 0, 0)


def state(request, *states):
    shards = [ShardFigures(i, 1, s, f"e{i}", 1.0, {}, {}, {}) for i, s in enumerate(states)]
    return ClusterState(request, 2, 1, [1], shards, {}, [], [], 0, "")


def test_it_asks_again_and_takes_only_the_answer_to_the_last_question():
    machine = WatchMachine(Address(TOOL, 7, 0))
    (first,) = machine.handle(Tick(), 1000.0)
    assert machine.handle(Tick(), 1000.0 + EVERY_MS / 2) == []
    (second,) = machine.handle(Tick(), 1000.0 + EVERY_MS)
    machine.handle(Received(FROM, state(first.message.request)), 1150.0)
    assert machine.seen is None
    machine.handle(Received(FROM, state(second.message.request)), 1160.0)
    assert machine.seen.asked_at == (1000.0 + EVERY_MS) / 1e3


def test_all_are_up_when_all_are_known_and_whole():
    watch = ClusterWatch("tcp://127.0.0.1:1")
    assert (watch.all_up, watch.standing, watch.lost) == (False, {}, "")

    def seen(*states):
        (ask,) = watch._machine.handle(Tick(), seen.now)
        seen.now += EVERY_MS
        watch._machine.handle(Received(FROM, state(ask.message.request, *states)), seen.now)
        return watch.all_up

    seen.now = 0.0
    assert not seen("up")
    assert not seen("up", "recovering")
    assert seen("up", "up")
    assert watch.standing[1].endpoint == "e1"


def test_the_history_is_whole_although_the_scheduler_keeps_only_the_last_events():
    machine = WatchMachine(Address(TOOL, 7, 0))
    happened = [HistoryEntry(float(at // 3), "down", at % 5, at) for at in range(40)]
    for now, end in enumerate((0, 3, 10, 10, 17, 40)):
        (ask,) = machine.handle(Tick(), now * EVERY_MS)
        kept = happened[max(0, end - 10) : end]
        answer = msgspec.structs.replace(state(ask.message.request), history=kept)
        machine.handle(Received(FROM, answer), now * EVERY_MS + 1)
    # Of 23 events since the last look the scheduler kept 10: the others nobody saw.
    assert machine.seen.state.history == happened[:17] + happened[30:]

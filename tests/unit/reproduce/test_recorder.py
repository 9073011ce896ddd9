"""The recorder: seconds, positions, pauses, and going back, on a clock of its own."""

from pathlib import Path
from typing import Any

import pytest
from hand_made import MACHINE, make_run

from ecrec.reproduce.raw import RawWriter, Record, read
from ecrec.reproduce.recorder import Recorder


class Bench:
    """A recorder whose time the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.path = folder / "a.jsonl"
        self.raw = RawWriter(self.path, make_run(), MACHINE, {})
        self.recorder = Recorder(self.raw, lambda: self.now)

    def step(self, at: float, examples: int = 10, worker: int = 0, waited_s: float = 0.0) -> None:
        self.now = at
        self.recorder.step(worker, at, examples, 0.5, waited_s)

    def read(self) -> Record:
        self.recorder.close()
        with self.raw as raw:
            raw.end(t=0.0, position=self.recorder.position, examples=self.recorder.examples)
        return read(self.path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_steps_are_gathered_by_worker_and_second(bench: Bench) -> None:
    bench.step(100.0)
    bench.recorder.begin()
    for at, worker in ((100.1, 0), (100.2, 1), (100.35, 0), (101.05, 0), (101.9, 1)):
        bench.step(at, worker=worker, waited_s=at - 100.0)
    found = bench.read()
    lines = {(line["t"], line["worker"]): line for line in found.seconds}
    assert {key: line["examples"] for key, line in lines.items()} == {(0, 0): 20, (0, 1): 10, (1, 0): 10, (1, 1): 10}
    assert lines[0, 0]["longest_s"] == pytest.approx(0.25) and lines[0, 0]["waited_s"] == pytest.approx(0.35)
    assert found.end["position"] == 60 and found.end["examples"] == 50


def test_a_long_time_between_two_steps_is_a_pause(bench: Bench) -> None:
    bench.step(100.0)
    bench.recorder.begin()
    bench.step(100.1)
    bench.step(100.7)
    (pause,) = bench.read().of("pause")
    assert pause["t"] == pytest.approx(0.7) and pause["seconds"] == pytest.approx(0.6)


def test_going_back_sets_the_position_and_says_when_it_is_reached_again(bench: Bench) -> None:
    bench.step(100.0)
    bench.recorder.begin()
    for i in range(10):
        bench.step(100.1 + i / 10)
    bench.recorder.back_to(50)
    assert bench.recorder.position == 50 and bench.recorder.is_behind
    bench.recorder.forget_workers()
    for i in range(7):
        bench.step(103.0 + i / 10)
    assert not bench.recorder.is_behind
    found = bench.read()
    (back,), (caught,) = found.of("goes back"), found.of("caught up")
    assert back["examples"] == 60 and back["position"] == 50
    assert caught["t"] == pytest.approx(3.5) and caught["position"] == 110
    assert max(pause["seconds"] for pause in found.of("pause")) == pytest.approx(2.0)
    assert found.end == {"t": 0.0, "position": 120, "examples": 170}


def test_going_back_by_nothing_is_over_with_the_next_step(bench: Bench) -> None:
    bench.step(100.0)
    bench.recorder.begin()
    bench.recorder.back_to(10)
    assert bench.recorder.is_behind
    bench.step(102.0)
    found = bench.read()
    assert found.of("goes back")[0]["examples"] == 0 and found.of("caught up")[0]["t"] == pytest.approx(2.0)


def test_an_event_that_is_heard_of_late_has_the_position_of_its_own_time(bench: Bench) -> None:
    bench.step(100.0)
    bench.recorder.begin()
    for i in range(1, 6):
        bench.step(100.0 + i / 10)
    bench.recorder.event("whole", 100.25, shard=1)
    bench.recorder.event("now")
    found = bench.read()
    positions: dict[str, Any] = {name: found.of(name)[0]["position"] for name in ("whole", "now")}
    assert positions == {"whole": 30, "now": 60}

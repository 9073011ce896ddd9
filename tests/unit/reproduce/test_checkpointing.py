"""When checkpoints are written, who stands still for them, and how workers are held."""

import threading
from pathlib import Path

import pytest

from ecrec.errors import ClusterError
from ecrec.reproduce.checkpointing import INTERVAL_S_MIN, Holding, Task, interval_s
from ecrec.reproduce.control import Control
from ecrec.reproduce.plan import Mode

STOP = Mode(title="stop", code="4+0", checkpoint="stop", recovery="restart")


def test_the_interval_is_given_or_after_daly() -> None:
    assert interval_s(STOP, 10.0, 1.0, None) == 10.0
    rare = Mode(title="rare", code="4+0", checkpoint="stop", every_times=2.0)
    assert interval_s(rare, 10.0, 1.0, None) == 20.0
    assert interval_s(rare, "daly", 2.0, 100.0) == pytest.approx(40.0)
    assert interval_s(STOP, "daly", 2.0, 100.0) == pytest.approx(20.0)
    copy = Mode(title="copy", code="4+0", checkpoint="copy", cost_share=0.25)
    assert interval_s(copy, "daly", 2.0, 100.0) == pytest.approx(10.0)
    assert interval_s(STOP, "daly", 1e-9, 1.0) == INTERVAL_S_MIN
    with pytest.raises(ValueError, match="mean time"):
        interval_s(STOP, "daly", 1.0, None)


def test_workers_stand_still_from_pause_to_resume(tmp_path: Path) -> None:
    control, told, steps = Control(tmp_path), list[str](), list[int]()
    holding = Holding(control, 1)
    done = threading.Event()

    def tell(event: str) -> None:
        told.append(event)
        holding.heard(event, 0)

    def work() -> None:
        while not done.is_set():
            steps.append(1)
            control.hold(tell)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert holding.pause(10.0) and holding.all_paused
        count = len(steps)
        assert holding.pause(10.0), "two may hold them"
        holding.resume()
        assert holding.all_paused and len(steps) == count
        holding.resume()
        while len(steps) == count:
            pass
    finally:
        done.set()
        control.stop()
        thread.join(10.0)
    assert not thread.is_alive() and told[:2] == ["paused", "resumed"]


def test_a_worker_that_does_not_stand_still_is_not_waited_for_without_end(tmp_path: Path) -> None:
    assert not Holding(Control(tmp_path), 1).pause(0.01)


def test_workers_that_do_not_see_the_directory_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    control = Control(tmp_path, lambda name, is_set: told.append((name, is_set)))
    control.pause()
    control.go()
    control.resume()
    control.stop()
    assert told == [("pause", True), ("go", True), ("pause", False), ("stop", True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["go", "stop"]


def test_a_worker_waits_for_the_word_to_go(tmp_path: Path) -> None:
    control = Control(tmp_path)
    thread = threading.Thread(target=control.wait_to_go)
    thread.start()
    thread.join(0.01)
    assert thread.is_alive() and not control.stopped
    control.go()
    thread.join(10.0)
    assert not thread.is_alive()


def test_a_task_keeps_its_result_or_its_error() -> None:
    task = Task(lambda: 5)
    task.wait()
    assert task.is_done and task.result == 5 and task.error is None

    def fail() -> None:
        raise ClusterError("gone")

    task = Task(fail)
    task.wait()
    assert str(task.error) == "gone"

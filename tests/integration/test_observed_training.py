"""``ecrec train --metrics --tensorboard --trace``: two workers, of which one dies, a server that dies, and a run that
goes on."""

import json
import sys
import types

import pytest
from runs import SMALL

STEPS, BATCH = 100, 256
OPTIONS = (*SMALL, "--steps", str(STEPS), "--batch", str(BATCH), "--workers", "2")


def lines_of(path):
    """All lines; each is whole."""
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def lives(lines, worker):
    """Lines of a worker, by its lives."""
    found = {}
    for line in lines:
        if line["worker"] == worker:
            found.setdefault(line["epoch"], []).append(line)
    return [found[epoch] for epoch in sorted(found)]


def scalars(directory, tag):
    # TensorBoard then reads files by itself, and does not take half a minute to load TensorFlow.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(directory))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def test_deaths_of_a_worker_and_a_server_are_seen_and_a_resumed_run_goes_on(trainer, tmp_path):
    pytest.importorskip("tensorboard")
    metrics, board, trace = tmp_path / "metrics.jsonl", tmp_path / "board", tmp_path / "trace.json"
    observed = ("--metrics", str(metrics), "--tensorboard", str(board), "--trace", str(trace))
    kills = ("--kill", "worker:1@60", "--kill", "ps:2@20")
    checkpoint = str(tmp_path / "checkpoint")
    finished = trainer.run(*OPTIONS, *observed, *kills, "--trace-steps", "10000", "--checkpoint", checkpoint)
    assert finished.code == 0, finished.story
    report = finished.report
    assert (report["worker_deaths"], report["examples_trained"]) == (1, STEPS * BATCH), finished.story

    lines = lines_of(metrics)
    (steady,) = lives(lines, 0)
    of_replaced = lives(lines, 1)
    last = [steady[-1], of_replaced[-1][-1]]
    assert [line["waited_s"] for line in last] == report["waited_s"]
    assert (steady[-1]["deaths"], steady[-1]["recoveries"]) == (1, 1)
    assert steady[-1]["step"] == sum(line["steps"] for line in steady) > 0
    assert steady[-1]["window_examples"] == report["training"]["examples"]
    for figure in ("auc", "logloss", "normalized_entropy"):
        assert steady[-1][figure] == report["training"][figure]
    # Its last life goes on behind the steps of the one before, of which some may not have been written when it died.
    before_death = last[1]["step"] - sum(line["steps"] for line in of_replaced[-1])
    assert before_death >= 0
    assert all(line["step"] <= before_death for line in of_replaced[0] if len(of_replaced) > 1)
    # A step that was pushed in the instant of the kill may have been told to nobody.
    assert sum(line["step"] for line in last) >= 2 * STEPS - 1

    for rank in (0, 1):
        mine = [line for life in lives(lines, rank) for line in life if line["loss"] is not None]
        wanted = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in mine]
        if rank == 0:
            assert scalars(board / "worker-0", "training/loss") == wanted
        # Where starting took it long, the first life of worker 1 was over before it was observed.
        assert 1 <= len(list((board / f"worker-{rank}").iterdir())) <= 1 + rank

    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"worker 0", "worker 1, life 2"} <= names <= {"worker 0", "worker 1", "worker 1, life 2"}
    (first,) = {e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == "worker 0"}
    mine = [event for event in events if event["pid"] == first]
    assert sum(event["name"] == "step" for event in mine) == steady[-1]["step"]
    waits = sum(event["dur"] for event in mine if event["name"] == "wait") / 1e6
    assert 0 < waits <= report["waited_s"][0] + 1e-6  # those before it was observed are no part of the trace
    assert {event["name"] for event in mine if event["ph"] == "i"} == {"shard 2 is down", "shard 2 is there again"}
    times = [event["ts"] for event in events if "ts" in event]
    assert times == sorted(times)

    again = trainer.run(*OPTIONS, "--steps", str(STEPS + 20), "--resume", checkpoint, *observed)
    assert again.code == 0, again.story
    more = lines_of(metrics)[len(lines) :]
    assert lines_of(metrics)[: len(lines)] == lines
    for rank in (0, 1):
        (resumed,) = lives(more, rank)
        assert resumed[-1]["step"] - sum(line["steps"] for line in resumed) == STEPS

"""What a session measures while it trains: lines, TensorBoard's files, traces; and disks that do not take them."""

import itertools
import json
import math
import os
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from in_process import InProcessCluster  # noqa: E402
from test_session import batches, tables, tower  # noqa: E402

from ecrec.errors import ConfigurationError  # noqa: E402
from ecrec.train.traces import Traces, read_events  # noqa: E402
from ecrec.training import SGD, Session, observation, observed_files  # noqa: E402
from ecrec.training.metrics import Window, auc, log_loss, normalized_entropy  # noqa: E402
from ecrec.training.observed_files import SCALARS, Appended, EventFiles, Line, own_file  # noqa: E402

NEVER_S = 3600.0
"""Only the last line is written."""

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def train(session: Session, observed: Any, steps: int = 6, at_step: Any = lambda step: None) -> list[Any]:
    """(loss, labels, logits) of each step."""
    sparse, module = tables(session), tower()
    dense = session.replicate(module, SGD(lr=0.5))
    seen = []
    for step, (features, labels) in enumerate(
        session.prefetch(batches(steps), sparse, dense, features=lambda batch: batch[0], depth=1)
    ):
        logits = module(sparse(features).values()).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        session.push(len(labels))
        observed.step(loss, labels, logits)
        seen.append((loss.item(), labels.numpy(), logits.detach().numpy()))
        at_step(step)
    session.flush()
    return seen


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until(condition: Any, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_line_says_what_was_trained(tmp_path: Path) -> None:
    file = tmp_path / "new" / "metrics.jsonl"
    began = time.time()
    cluster = InProcessCluster()
    with cluster.session() as session:
        with session.observe(metrics=file, every_s=NEVER_S, first_step=100, window_examples=50) as observed:
            seen = train(session, observed, at_step=lambda step: step == 2 and cluster.kill(1))
            session.wait(lambda: session.machine.recoveries == 1, "the replacement to be whole")
        (line,) = lines_of(file)
        labels, logits = (np.concatenate([part[i] for part in seen])[-50:] for i in (1, 2))
        assert 0 < line.pop("seconds") <= time.time() - began
        assert line.pop("examples_per_s") > 0
        assert 0 <= line.pop("waiting") <= 1
        assert began <= line.pop("time_s") <= time.time()
        assert line == {
            "worker": 0,
            "epoch": session.machine.epoch,
            "step": 106,
            "loss": pytest.approx(np.mean([loss for loss, _, _ in seen])),
            "auc": auc(labels, logits),
            "logloss": pytest.approx(log_loss(labels, logits)),
            "normalized_entropy": pytest.approx(normalized_entropy(labels, logits)),
            "window_examples": 50,
            "steps": 6,
            "examples": 72,
            "waited_s": session.figures.waited_s,
            "deaths": 1,
            "recoveries": 1,
        }


def test_the_documentation_has_the_fields_of_a_line_and_the_tags() -> None:
    text = DOCS.read_text().partition("## Watching a training run")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:3] == "| `"]
    rows = [row for row in rows if len(row) == 3]  # not those of the table of spans
    assert [row[0] for row in rows] == list(Line.__struct_fields__)
    assert {row[2]: row[0] for row in rows if row[2]} == SCALARS


def test_lines_come_while_training_goes_on_and_add_up(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with InProcessCluster().session() as session:
        shown = []

        def behind_a_line(step: int) -> None:
            # What a line has measured is told by the next step.
            shown.append(session.machine.figures)
            written = len(lines_of(file))
            if step >= 10:
                wait_until(lambda: len(lines_of(file)) > written)

        with session.observe(metrics=file, every_s=0.1) as observed:
            train(session, observed, 20, behind_a_line)
        # Those of a time in which there was no step are taken away again.
        (first, *_) = [figures for figures in shown if "auc" in figures]
        assert math.isfinite(first["loss"]) and 0 < first["auc"] < 1 and first["normalized_entropy"] > 0
        lines = lines_of(file)
        assert len(lines) >= 3
        assert sum(line["steps"] for line in lines) == 20
        assert sum(line["examples"] for line in lines) == 20 * 12
        assert [line["step"] for line in lines] == np.cumsum([line["steps"] for line in lines]).tolist()
        assert [line["waited_s"] for line in lines] == sorted(line["waited_s"] for line in lines)
        assert lines[-1]["waited_s"] == session.figures.waited_s
        assert all(line["loss"] is None for line in lines if not line["steps"])


def test_a_wait_that_goes_on_counts_before_it_is_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with InProcessCluster().session() as session, session.observe(metrics=file, every_s=0.1):
        session.wait(lambda: len(lines_of(file)) >= 3, "two lines")
        first, second, third = lines_of(file)[:3]
        assert first["waited_s"] < second["waited_s"] < third["waited_s"]
        assert third["waiting"] == pytest.approx(1.0, abs=0.01)


def test_numbers_that_are_none_do_not_end_the_training(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with InProcessCluster().session() as session, session.observe(metrics=file, every_s=NEVER_S) as observed:
        observed.step(math.nan, np.array([0.0, 1.0, 1.0]), np.array([0.5, math.nan, 1.5]))
        assert observed.window.figures().examples == 2
        for labels, logits in (([0.0, 2.0], [1.0, 1.0]), ([0.0], [1.0, 2.0]), ([0.0], None)):
            with pytest.raises(ConfigurationError, match=r"observation\.step: labels"):
                observed.step(0.5, np.array(labels), None if logits is None else np.array(logits))
    (line,) = lines_of(file)
    assert line["loss"] is None and line["auc"] == 1.0


# ---------------------------------------------------------------------- TensorBoard
def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    # TensorBoard then reads files by itself, and does not take half a minute to load TensorFlow.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(directory))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def a_line(step: int, **others: Any) -> Line:
    values = dict.fromkeys(Line.__struct_fields__, 0) | {"step": step, "time_s": time.time()} | others
    return Line(**values)


def test_tensorboard_reads_what_a_session_wrote(tmp_path: Path) -> None:
    files = {"tensorboard": tmp_path, "metrics": tmp_path / "lines"}
    with InProcessCluster().session() as session, session.observe(**files, every_s=NEVER_S) as observed:
        train(session, observed)
    (line,) = lines_of(tmp_path / "lines")
    assert scalars(tmp_path / "worker-0") == {
        tag: [(6, pytest.approx(line[field], rel=1e-6))] for tag, field in SCALARS.items()
    }


def test_a_run_that_goes_on_replaces_the_steps_that_it_repeats_and_a_torn_file_is_read(tmp_path: Path) -> None:
    first = EventFiles(tmp_path, 1, pytest.fail)
    for step in (10, 20, 30):
        first.write(a_line(step, loss=float(step)))
    first.close()
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - 5)  # the step 30, of a process that was killed
    second = EventFiles(tmp_path, 16, pytest.fail)
    second.write(a_line(18, loss=None, auc=0.75))
    second.write(a_line(40, loss=4.0))
    second.close()
    found = scalars(tmp_path)
    assert found["training/loss"] == [(10, 10.0), (40, 4.0)]
    assert found["training/auc"] == [(10, 0.0), (18, 0.75), (40, 0.0)]


def test_without_tensorboard_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with InProcessCluster().session() as session:
        with pytest.raises(ConfigurationError, match=r'--tensorboard .*: pip install "ecrec\[tensorboard\]"'):
            session.observe(tensorboard=tmp_path, metrics=tmp_path / "lines")
        session.observe(metrics=tmp_path / "lines").close()  # nothing of the first one is left


# ---------------------------------------------------------------------- disks
def test_a_full_disk_is_one_warning_and_training_goes_on(tmp_path: Path, caplog: Any) -> None:
    with InProcessCluster().session() as session:
        with session.observe(metrics="/dev/full", every_s=0.1) as observed:
            train(session, observed, 4, lambda step: step == 2 and wait_until(lambda: observed.warnings))
            assert observed.is_open
        assert session.figures.steps == 4
    assert observed.warnings == [
        "/dev/full: No space left on device; what cannot be written is left out, and training goes on"
    ]
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize("shared", [False, True])
def test_a_piece_that_was_cut_short_harms_none_of_the_others(tmp_path: Path, shared: bool) -> None:
    path, warnings = tmp_path / "file", list[str]()
    file = Appended("--metrics", path, warnings.append, shared=shared)
    assert file.append(b"first\n")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, usual[1]))  # a write beyond is cut short, as by a full disk
    try:
        assert not file.append(b"second\n")
        assert not file.append(b"third\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert file.append(b"fourth\n")
    file.close()
    assert path.read_bytes() == (b"first\nseco\nfourth\n" if shared else b"first\nfourth\n")
    assert len(warnings) == 1 and "File too large" in warnings[0]


def test_a_line_of_a_killed_process_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"step":1}\n{"st')
    for text in (b"{}\n", b"[]\n"):
        file = Appended("--metrics", path, pytest.fail, shared=True)
        file.append(text)
        file.close()
    assert path.read_bytes() == b'{"step":1}\n{"st\n{}\n[]\n'


def test_a_disk_that_hangs_holds_up_no_step(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(observation, "CLOSE_S", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    filled = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(BlockingIOError):
            while True:
                os.write(filled, b"x" * 4096)
        with InProcessCluster().session() as session:
            with session.observe(metrics=pipe, every_s=0.1) as observed:
                train(session, observed)
            assert session.figures.steps == 6
            assert observed.warnings == ["what was measured last is not written: its disk has not answered for 0 s"]
    finally:
        os.read(filled, 1 << 20)
        os.close(filled)


def test_what_cannot_be_observed_is_refused_and_the_session_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with InProcessCluster().session() as session:
        for options, words in (
            ({"metrics": tmp_path}, "--metrics .*: cannot be written: Is a directory"),
            ({"trace": tmp_path / "file" / "trace"}, "--trace .*: cannot be written: (Not a directory|File exists)"),
            ({"every_s": 0.0}, "every_s is 0.0, expected at least 0.1"),
            ({"trace_steps": 10_001}, "trace_steps is 10001, expected 1 to 10000"),
            ({"first_step": -1}, "first_step is -1"),
            ({"window_examples": 0}, "window_examples is 0"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                session.observe(**options)
        with session.observe(metrics=tmp_path / "file"), pytest.raises(ConfigurationError, match="observed already"):
            session.observe(metrics=tmp_path / "file")
        train(session, session.observe())  # the session closes it


def test_the_window_costs_at_most_its_share(monkeypatch: Any, tmp_path: Path) -> None:
    clock = [0.0]
    monkeypatch.setattr(observation.time, "thread_time", lambda: clock[0])

    def figures(window: Window) -> Any:
        clock[0] += 0.010
        return real(window)

    real = Window.figures
    monkeypatch.setattr(Window, "figures", figures)
    with InProcessCluster().session() as session:
        observed = session.observe(every_s=NEVER_S)
        observed.step(0.5, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
        times = [0.0, 1.0, 4.9, 5.0, 6.0, 9.9, 10.1]
        found = [observed._window_figures(at, False).examples for at in times]
        assert found == [2, 0, 0, 2, 0, 0, 2]  # 10 ms each 5 s are 0.2 %
        assert observed._window_figures(10.2, True).examples == 2


# ---------------------------------------------------------------------- traces
def trace_of(path: Path, **kill: Any) -> tuple[list[dict[str, Any]], Session]:
    cluster = InProcessCluster()
    with cluster.session() as session, session.observe(trace=path, trace_steps=5, every_s=0.1) as observed:
        waited = session.figures.waited_s
        train(session, observed, 5, lambda step: step == kill.get("at") and cluster.kill(1))
        waited = session.figures.waited_s - waited
    events = json.loads(path.read_text())
    assert read_events(path) == events
    return events, waited


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Spans of a thread lie in each other or behind each other."""
    stack: list[tuple[int, int]] = []
    spans = [(round(e["ts"] * 1e3), round((e["ts"] + e["dur"]) * 1e3)) for e in events if e["ph"] == "X"]
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        assert begin <= end
        while stack and stack[-1][1] <= begin:
            stack.pop()
        assert not stack or end <= stack[-1][1] + 1, (stack, begin, end)  # a nanosecond of rounding
        stack.append((begin, end))


def test_a_trace_has_what_each_step_did(tmp_path: Path) -> None:
    events, waited = trace_of(tmp_path / "trace.json")
    spans = [event for event in events if event["ph"] == "X"]
    check_nesting(events)
    steps = sorted((event for event in spans if event["name"] == "step"), key=lambda event: event["ts"])
    assert [event["args"] for event in steps] == [{"step": step, "examples": 12} for step in range(1, 6)]
    for before, after in itertools.pairwise(steps):
        assert before["ts"] + before["dur"] <= after["ts"] + 1e-2
    inside = [
        [e["name"] for e in spans if step["ts"] <= e["ts"] and e["ts"] + e["dur"] <= step["ts"] + step["dur"] + 1e-2]
        for step in steps
    ]
    for names in inside:
        assert {"read", "pull", "compute", "push", "wait"} <= set(names)
    # Of depth 1 the first step reads two batches, and the last one looks for one in vain.
    assert [names.count("plan") for names in inside] == [2, 1, 1, 1, 0]
    assert [names.count("read") for names in inside] == [2, 1, 1, 1, 1]
    names = {event["args"]["name"] for event in events if event["ph"] == "M" and event["name"].endswith("_name")}
    assert names == {"worker 0", "script"}
    in_steps = sum(event["dur"] for event in spans if event["name"] == "wait") / 1e6
    assert 0 < in_steps <= waited


def test_waits_of_a_trace_add_up_to_the_seconds_waited(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with InProcessCluster().session() as session, session.observe(trace=path, trace_steps=10_000) as observed:
        before = session.figures.waited_s
        train(session, observed)
        waited = session.figures.waited_s - before
    waits = [event for event in json.loads(path.read_text()) if event["name"] == "wait"]
    assert sum(event["dur"] for event in waits) / 1e6 == pytest.approx(waited, abs=1e-6)
    assert {"the answers to a pull", "room for a push", "all pushes to be durable"} <= {e["args"]["for"] for e in waits}


@pytest.mark.parametrize("kill", [{}, {"at": 2}])
def test_what_is_in_flight_to_a_shard_begins_and_ends(tmp_path: Path, kill: dict[str, int]) -> None:
    events, _ = trace_of(tmp_path / "trace.json", **kill)
    begun = {e["id2"]["local"]: e for e in events if e["ph"] == "b"}
    ended = {e["id2"]["local"]: e for e in events if e["ph"] == "e"}
    assert begun.keys() == ended.keys() and len(begun) == sum(e["ph"] == "b" for e in events)
    for number, begin in begun.items():
        assert (begin["name"], begin["cat"]) == (ended[number]["name"], ended[number]["cat"])
        assert begin["ts"] <= ended[number]["ts"]
    names = [event["name"] for event in begun.values()]
    assert [names.count(f"push shard {shard}") for shard in range(3)] == [6, 6, 6]  # with that of the first values
    assert all(f"pull shard {shard}" in names for shard in range(3))
    said = [event["name"] for event in events if event["ph"] == "i"]
    assert said == (["shard 1 is down", "shard 1 is there again"] if kill else [])


def test_workers_that_share_a_name_for_their_traces_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    found = [own_file(path, *who).name for who in ((0, 1, 1), (0, 1, 2), (1, 3, 1), (1, 3, 2))]
    assert found == ["trace.json", "trace.life2.json", "trace.1.json", "trace.1.life2.json"]


def test_the_trace_of_a_run_has_those_of_all_workers_also_of_one_that_was_killed(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    whole, cut = traces.of_life(1), traces.of_life(2).with_name("trace.1.json")
    file = observed_files.TraceFile(whole, pytest.fail)
    file.write([b'{"ts":3}', b'{"ts":1}'])
    file.write([b'{"ts":4}'])
    file.close()
    cut.parent.mkdir()
    cut.write_bytes(b'[\n{"ts":2},\n{"ts":5},\n{"t')
    assert traces.write(tmp_path / "all.json") == ""
    written = json.loads((tmp_path / "all.json").read_text())
    assert written == {"displayTimeUnit": "ms", "traceEvents": [{"ts": ts} for ts in (1, 2, 3, 4, 5)]}
    assert "cannot be written" in traces.write(tmp_path / "nowhere" / "all.json")
    empty = observed_files.TraceFile(tmp_path / "empty.json", pytest.fail)
    empty.close()
    assert json.loads((tmp_path / "empty.json").read_text()) == []

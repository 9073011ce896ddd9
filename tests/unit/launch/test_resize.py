"""Requests for another number of servers, between the command and a run."""

import threading
import time

import pytest

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.launch import resize
from ecrec.launch.resize import ANSWER_FILE, REQUEST_FILE, Answer, Requests, ask, not_complete, wait_for_cluster
from ecrec.launch.rewind import Point
from ecrec.protocol.messages import DOWN, UP, ClusterState, ShardFigures
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.train import resizing
from ecrec.train.options import TrainOptions
from ecrec.train.resizing import ResizeDueError, Resizing


def answered(run_dir, answer):
    """A run that takes one request, and answers it."""

    def run():
        requests, end = Requests(run_dir), time.monotonic() + 10
        while time.monotonic() < end:
            if (request := requests.take()) is not None:
                requests.answer(answer(request))
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_request_is_taken_once_and_answered(tmp_path):
    run = answered(tmp_path, lambda request: Answer(request.id, "", 3, str(request.shards), 7, 1.5))
    answer = ask(tmp_path, 8, None, "6+2", 10.0)
    assert (answer.checkpoint, answer.url, answer.examples_repeated) == (3, "8", 7)
    assert answer.seconds_stood_still == 1.5
    run.join()


def test_a_refusal_is_an_error_and_training_goes_on(tmp_path):
    run = answered(tmp_path, lambda request: Answer(request.id, "a stripe needs 5 servers"))
    with pytest.raises(ConfigurationError, match="training goes on as it was: a stripe needs 5 servers"):
        ask(tmp_path, 3, None, None, 10.0)
    run.join()


def test_nobody_takes_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(resize, "TAKEN_S", 0.0)
    with pytest.raises(ConfigurationError, match="no `ecrec train` that trains has taken the request"):
        ask(tmp_path, 3, None, None, 10.0)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(resize, "TAKEN_S", 60.0)
    with pytest.raises(ClusterError, match="not resized within 0 s"):
        ask(tmp_path, 3, None, None, 0.2)
    with pytest.raises(ConfigurationError, match="there is no such directory"):
        ask(tmp_path / "no", 3, None, None, 1.0)


def test_a_request_that_cannot_be_read_is_dropped_and_answered(tmp_path):
    (tmp_path / REQUEST_FILE).write_bytes(b"[" * 100_000)
    assert Requests(tmp_path).take() is None and not (tmp_path / REQUEST_FILE).exists()
    assert b"resize.json" in (tmp_path / ANSWER_FILE).read_bytes()


@pytest.fixture
def saved(monkeypatch):
    """Checkpoints are complete at once, or fail with what is put here."""
    outcome = []

    def save_checkpoint(endpoint, url, timeout_s, keys):
        if outcome:
            raise outcome[0]
        return Point(url, 5)

    class Figures(Point):
        checkpoint = property(lambda self: self.number)

    monkeypatch.setattr(resizing, "save_checkpoint", lambda *given: Figures(*save_checkpoint(*given)))
    return outcome


def until_it_is_answered(wanted, run_dir, options):
    end = time.monotonic() + 10
    while not (run_dir / ANSWER_FILE).exists():
        wanted.look("ipc://nowhere", options)
        assert time.monotonic() < end
    return (run_dir / ANSWER_FILE).read_text()


def request(run_dir, **fields):
    (run_dir / REQUEST_FILE).write_bytes(resize.msgspec.json.encode(resize.Request("id", **fields)))


def test_a_run_has_its_checkpoint_written_and_is_told_to_go_on_from_there(tmp_path, saved):
    wanted, options = Resizing(tmp_path, None), TrainOptions()
    request(tmp_path, shards=7, code="3+2")
    with pytest.raises(ResizeDueError, match="resized to 7 servers, code 3") as due:
        until_it_is_answered(wanted, tmp_path, options)
    assert due.value.point == (str(tmp_path / "resize"), 5)
    assert (due.value.options.shards, due.value.options.code) == (7, "3+2")
    wanted.done(due.value, 64, 2.5)
    assert '"examples_repeated":64' in (tmp_path / ANSWER_FILE).read_text()


def test_servers_that_cannot_be_and_a_checkpoint_that_fails_change_nothing(tmp_path, saved):
    wanted = Resizing(tmp_path, "url")
    for fields, options, words in [
        ({"shards": 3}, {}, "--shards 3 --code 4+1"),
        ({"shards": 7}, {"workers": 2, "sync": True}, "with --sync no worker leases"),
        ({"shards": 5, "code": "x"}, {}, "x"),
    ]:
        request(tmp_path, **fields)
        assert words in until_it_is_answered(wanted, tmp_path, TrainOptions(**options))
        (tmp_path / ANSWER_FILE).unlink()
    saved.append(ClusterError("the disk is full"))
    request(tmp_path, shards=7)
    assert "the disk is full" in until_it_is_answered(wanted, tmp_path, TrainOptions())


def test_who_waits_when_training_ends_is_told(tmp_path, saved):
    wanted = Resizing(tmp_path, None)
    request(tmp_path, shards=7)
    wanted.over()
    assert "training has ended" in (tmp_path / ANSWER_FILE).read_text()


def state(up, tables=(), lost="", n=3):
    shards = [ShardFigures(number, 1, UP if number < up else DOWN, "", 0.0, {}, {}, {}) for number in range(n)]
    return ClusterState(1, n, 1, [1], shards, {}, list(tables), [], 0, lost)


def test_a_cluster_that_was_just_started_is_waited_for(monkeypatch):
    spec = TableSpec("t", 9, 4, CodeSpec(2, 1), OptimizerSpec("sgd", (0.1,)), "zeros")
    seen = [state(3, [spec], "rows"), ClusterError("nobody"), state(3, [spec]), state(1), state(3)]

    def ask_scheduler(endpoint, curve_dir):
        found = seen.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(resize, "_state", ask_scheduler)
    monkeypatch.setattr(resize, "POLL_S", 0.0)
    said = []
    wait_for_cluster("ipc://x", not_complete, 10.0, said.append)
    assert [text.split(": ")[1] for text in said] == [
        "the cluster has lost data", "no scheduler answers", "the cluster has tables already",
        "1 of 3 servers are there",
    ]  # fmt: skip
    seen += [state(2)]
    with pytest.raises(ClusterError, match="no such cluster within -1 s: 2 of 3 servers are there"):
        wait_for_cluster("ipc://x", not_complete, -1.0, said.append)

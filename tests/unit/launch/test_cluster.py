import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from ecrec.errors import ClusterError
from ecrec.launch.cluster import ClusterSettings, LocalCluster


def settings(tmp_path, **changes):
    return ClusterSettings(
        transport="tcp", shards=2, run_dir=tmp_path, scheduler_module="fake_server", shard_module="fake_server"
    )._replace(**changes)


@pytest.fixture
def cluster(tmp_path, fakes):
    with LocalCluster(settings(tmp_path)) as running:
        running.start(20)
        running.wait_ready(20)
        yield running


def pids(tmp_path):
    return json.loads((tmp_path / "cluster.json").read_text())["pids"]


def endpoint(tmp_path, name):
    return f"tcp://127.0.0.1:{pids(tmp_path)[name]}"


def pump_until(cluster, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        cluster.pump(deadline - time.monotonic())


def test_all_processes_are_up_and_written_down(cluster, tmp_path):
    assert cluster.endpoint == "tcp://127.0.0.1:7070"
    written = json.loads((tmp_path / "cluster.json").read_text())
    assert written["scheduler"] == cluster.endpoint
    assert set(written["pids"]) == {"scheduler", "ps 0", "ps 1"}
    assert all(psutil.pid_exists(pid) for pid in written["pids"].values())
    log = (tmp_path / "logs" / "ps-1.log").read_text()
    assert "--scheduler tcp://127.0.0.1:7070 --shard 1" in log


def test_a_killed_shard_gets_a_replacement_in_its_place(cluster, tmp_path):
    before = pids(tmp_path)
    cluster.kill(endpoint(tmp_path, "ps 1"))
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)
    assert cluster.replaced == ["ps 1"]
    assert pids(tmp_path)["ps 1"] != before["ps 1"]
    assert pids(tmp_path)["ps 0"] == before["ps 0"]


def test_many_kills_are_no_failure(cluster, tmp_path):
    for count in range(1, 7):
        cluster.kill(endpoint(tmp_path, "ps 0"))
        pump_until(cluster, lambda count=count: len(cluster.replaced) == count)
        cluster.wait_ready(20)


def test_the_scheduler_comes_back_on_its_endpoint(cluster, tmp_path):
    os.kill(pids(tmp_path)["scheduler"], signal.SIGKILL)
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)
    assert cluster.replaced == ["scheduler"]
    assert "--bind tcp://127.0.0.1:7070" in (tmp_path / "logs" / "scheduler.log").read_text()


def test_a_server_that_keeps_ending_is_given_up_with_its_last_words(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_EXIT", "5")
    cluster.kill(endpoint(tmp_path, "ps 0"))
    with pytest.raises(ClusterError, match=r"ps 0 keeps ending: .*exit code 5(.|\n)*started with"):
        pump_until(cluster, lambda: False)


def test_a_scheduler_that_cannot_start_is_an_error(tmp_path, fakes, monkeypatch):
    monkeypatch.setenv("FAKE_EXIT", "1")
    with LocalCluster(settings(tmp_path)) as cluster, pytest.raises(ClusterError, match="scheduler ended"):
        cluster.start(20)


def test_a_process_that_is_never_ready_is_named(tmp_path, fakes, monkeypatch):
    monkeypatch.setenv("FAKE_LATE", "1")
    with (
        LocalCluster(settings(tmp_path)) as cluster,
        pytest.raises(ClusterError, match="not ready in time: the sched"),
    ):
        cluster.start(0.1)


def test_ipc_sockets_have_a_short_path_one_for_each_incarnation(tmp_path, fakes):
    run_dir = tmp_path / ("x" * 100)
    with LocalCluster(settings(run_dir, transport="ipc")) as cluster:
        endpoint = cluster.start(20)
        assert endpoint.startswith("ipc://")
        directory = Path(endpoint.removeprefix("ipc://")).parent
        assert directory.is_dir()
        cluster.wait_ready(20)
        cluster.kill(f"ipc://{directory}/ps-2")
        pump_until(cluster, lambda: cluster.replaced)
        cluster.wait_ready(20)
    log = (run_dir / "logs" / "ps-1.log").read_text()
    assert f"{directory}/ps-2" in log
    assert f"{directory}/ps-3" in log
    assert not directory.exists()


def test_nothing_is_left_when_it_is_closed(tmp_path, fakes):
    with LocalCluster(settings(tmp_path)) as cluster:
        cluster.start(20)
        cluster.wait_ready(20)
        running = [psutil.Process(pid) for pid in pids(tmp_path).values()]
    assert not any(process.is_running() for process in running)


def test_with_a_spare_a_server_that_ends_is_replaced_by_another_spare(cluster, tmp_path):
    cluster.add_spare()
    cluster.wait_ready(20)
    assert "--spare" in (tmp_path / "logs" / "spare-1.log").read_text()
    gone, spare = endpoint(tmp_path, "ps 0"), endpoint(tmp_path, "spare 1")
    assert cluster.runs(gone)
    cluster.kill(gone)
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)
    assert not cluster.runs(gone)
    assert set(pids(tmp_path)) == {"scheduler", "ps 1", "spare 1", "spare 2"}
    cluster.kill(spare)
    pump_until(cluster, lambda: len(cluster.replaced) == 2)
    cluster.wait_ready(20)
    assert set(pids(tmp_path)) == {"scheduler", "ps 1", "spare 2", "spare 3"}

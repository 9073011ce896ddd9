import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from ecrec.errors import ClusterError
from ecrec.launch.connect import Keeper
from ecrec.launch.local import cluster as cluster_module
from ecrec.launch.local.children import Ended
from ecrec.launch.local.cluster import START_TIMEOUT_S, ClusterSettings, LocalCluster


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


def test_a_replacement_is_told_how_the_server_before_it_ended(cluster, tmp_path):
    """For `ecrec status`: only who started it knows that it was out of memory, for example."""
    before = pids(tmp_path)["ps 1"]
    os.kill(before, signal.SIGKILL)
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)

    def last_start():
        lines = (tmp_path / "logs" / "ps-1.log").read_text().splitlines()
        return [line for line in lines if line.startswith("started with")][-1]

    assert f"--predecessor name-{before}:ps 1 was ended by SIGKILL; last lines of" in last_start()
    cluster.kill(endpoint(tmp_path, "ps 1"))  # from here: nobody needs to be told
    pump_until(cluster, lambda: len(cluster.replaced) == 2)
    cluster.wait_ready(20)
    assert "--predecessor" not in last_start()


@pytest.mark.parametrize(
    ("process", "code"),
    [
        pytest.param("ps 0", "9", id="a server that another one has replaced"),
        pytest.param("scheduler", "4", id="a scheduler without room for its state"),
    ],
)
def test_a_process_that_may_yet_start_is_not_given_up(process, code, cluster, tmp_path, monkeypatch):
    """A busy host takes a server for dead again and again, a full disk is emptied: the cluster lives."""
    monkeypatch.setattr(cluster_module, "BACK_OFF_S", (0.0, 0.0))
    monkeypatch.setenv("FAKE_EXIT", code)
    os.kill(pids(tmp_path)[process], signal.SIGKILL)
    pump_until(cluster, lambda: len(cluster.replaced) > 12)
    monkeypatch.delenv("FAKE_EXIT")
    cluster.wait_ready(20)


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
    monkeypatch.setattr(cluster_module, "BACK_OFF_S", (0.0, 0.0, 0.01, 0.02))
    monkeypatch.setenv("FAKE_EXIT", "5")
    cluster.kill(endpoint(tmp_path, "ps 0"))
    with pytest.raises(ClusterError, match=r"ps 0 keeps ending, 10 times in 120 s: .*exit code 5(.|\n)*started with"):
        pump_until(cluster, lambda: False)
    assert len(cluster.failures) == 10


def test_a_server_that_ends_again_and_again_is_started_later_each_time(cluster, tmp_path, monkeypatch):
    waits = []
    count_end = cluster._count_end
    monkeypatch.setattr(cluster_module, "BACK_OFF_S", (0.0, 0.0, 0.01, 0.02))
    monkeypatch.setattr(cluster, "_count_end", lambda *args: waits.append(count_end(*args)) or waits[-1])
    monkeypatch.setenv("FAKE_EXIT", "5")
    cluster.kill(endpoint(tmp_path, "ps 0"))
    pump_until(cluster, lambda: len(waits) == 5)
    monkeypatch.delenv("FAKE_EXIT")
    assert waits == [0.0, 0.0, 0.01, 0.02, 0.02]
    cluster.wait_ready(20)
    assert {"ps 0", "ps 1"} < set(pids(tmp_path)), "the one that waits for its time was waited for"


def test_one_that_cannot_be_started_now_is_started_later(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "BACK_OFF_S", (0.0, 0.0, 0.01, 0.02))
    start, refusals = cluster.children.start, iter(range(3))

    def refused(*args, **options):
        if next(refusals, None) is not None:
            raise ClusterError("cannot start ps 0: Resource temporarily unavailable")
        return start(*args, **options)

    monkeypatch.setattr(cluster.children, "start", refused)
    cluster.kill(endpoint(tmp_path, "ps 0"))
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)
    assert next(refusals, None) is None
    assert {"ps 0", "ps 1"} < set(pids(tmp_path))


def test_what_only_informs_ends_nothing(cluster, tmp_path, monkeypatch, caplog):
    (tmp_path / "cluster.json").unlink()
    (tmp_path / "cluster.json").mkdir()
    (tmp_path / "cluster.json" / "in the way").touch()
    for log in (tmp_path / "logs").iterdir():
        log.unlink()
        log.mkdir()
    os.kill(next(iter(cluster._shards)).pid, signal.SIGKILL)
    pump_until(cluster, lambda: cluster.replaced)
    cluster.wait_ready(20)
    assert "cluster.json could not be written, and is out of date" in caplog.text
    assert "ps 0 has no log" in caplog.text


def test_a_child_of_fork_ends_nobody(cluster, tmp_path):
    running = pids(tmp_path)
    child = os.fork()
    if child == 0:
        cluster.close()
        cluster.children.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in running.values())
    assert cluster.pump(0.0) == [] and cluster.replaced == []


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


def scheduler_log(tmp_path):
    return (tmp_path / "logs" / "scheduler.log").read_text()


def test_the_scheduler_is_told_all_shards_and_the_groups(tmp_path, fakes):
    with LocalCluster(settings(tmp_path, shards=4, groups=2)) as cluster:
        cluster.start(20)
        cluster.wait_ready(20)
        assert set(pids(tmp_path)) == {"scheduler", "ps 0", "ps 1", "ps 2", "ps 3"}
    assert "--shards 4 --groups 2" in scheduler_log(tmp_path)


def test_time_outs_grow_with_the_servers_that_share_a_core(tmp_path, fakes, monkeypatch):
    def timeout_ms(**changes):
        with LocalCluster(settings(tmp_path, **changes)) as cluster:
            assert cluster._start_deadline(None) >= time.monotonic() + START_TIMEOUT_S * changes["shards"] / 8 - 5
            return cluster.heartbeat_timeout_ms

    monkeypatch.setattr(cluster_module, "cores", lambda: 2)
    assert [timeout_ms(shards=shards) for shards in (5, 8, 20, 64)] == [800, 800, 2000, 6400]
    assert timeout_ms(shards=64, heartbeat_timeout_ms=300) == 300
    monkeypatch.setattr(cluster_module, "cores", lambda: 1)
    with LocalCluster(settings(tmp_path, shards=5)) as cluster:
        cluster.start(20)
        cluster.wait_ready(20)
    assert "--heartbeat-timeout-ms 1000" in scheduler_log(tmp_path)


def test_servers_outlive_the_thread_that_started_them(tmp_path, fakes):
    """Linux sends the signal that ties a child to its parent when the thread ends that made it."""
    cluster = LocalCluster(settings(tmp_path))
    with cluster:

        def begin():
            cluster.start(20)
            cluster.wait_ready(20)

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        before = pids(tmp_path)
        os.kill(before["ps 0"], signal.SIGKILL)
        pump_until(cluster, lambda: cluster.replaced)
        cluster.wait_ready(20)
        assert cluster.replaced == ["ps 0"] and {**before, "ps 0": pids(tmp_path)["ps 0"]} == pids(tmp_path)


def test_what_a_worker_says_before_the_servers_are_ready_is_not_lost(tmp_path, fakes):
    with LocalCluster(settings(tmp_path)) as cluster:
        cluster.start(20)
        worker = cluster.start_worker(0, 1, ["no such file.py"], {})
        deadline = time.monotonic() + 20
        while worker in cluster.children.running:
            assert time.monotonic() < deadline
            cluster._pump_until(time.monotonic() + 0.1, "the worker")
        cluster.wait_ready(20)
        assert worker in [event.child for event in cluster.pump(5) if isinstance(event, Ended)]


def test_whatever_ends_the_thread_that_replaces_servers_is_told(tmp_path, monkeypatch):
    cluster = LocalCluster(settings(tmp_path))
    monkeypatch.setattr(cluster, "pump", lambda timeout_s: [][1])
    with pytest.raises(ClusterError, match=r"has ended: IndexError"), Keeper(cluster) as keeper:
        deadline = time.monotonic() + 20
        while keeper.failure() is None:
            assert time.monotonic() < deadline
    cluster.close()

import pytest

from ecrec.launch.threads import thread_environment, worker_threads


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (2, 4, 1), (4, 1, 3), (16, 1, 12), (16, 2, 6)]
)
def test_workers_share_what_the_servers_leave(cores, workers, threads):
    assert worker_threads(cores, workers) == threads


def test_waiting_threads_sleep():
    environment = thread_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"

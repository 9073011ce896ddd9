"""Figures of a run, from hand-made raw lines."""

from pathlib import Path

import pytest
from hand_made import MODES, end, event, make_run, record_of, second, servers

from ecrec.reproduce.measure import measure, median, throughput, timeline
from ecrec.reproduce.plan import KillAt

KILL = (KillAt(4.0, None, (0.5,)),)


def test_throughput_counts_parts_of_seconds(tmp_path: Path) -> None:
    record = record_of(tmp_path, make_run(), second(0, 100), second(1, 200), second(2, 400), end(3.0))
    assert throughput(record, 0.0, 2.0) == pytest.approx(150)
    assert throughput(record, 0.5, 1.5) == pytest.approx(150)
    assert throughput(record, 1.0, 3.0) == pytest.approx(300)
    assert throughput(record, 1.0, 1.2) is None


def test_workers_count_together_and_empty_seconds_are_there(tmp_path: Path) -> None:
    lines = [second(0, 10), second(0, 20, worker=1), second(3, 5)]
    assert timeline(record_of(tmp_path, make_run(), *lines, end(4.2))) == [(0, 30.0), (1, 0.0), (2, 0.0), (3, 5.0)]


def test_a_calm_run(tmp_path: Path) -> None:
    lines = [second(t, 100) for t in range(10)]
    lines += [servers(1.0, cpu_s=1.0, worker_cpu_s=2.0), servers(9.0, data=8000.0, cpu_s=3.0, worker_cpu_s=8.0)]
    lines += [event(0.0, "begin", position=50), event(3.0, "checkpoint ends", seconds=0.5, bytes=7, rows=1)]
    found = measure(record_of(tmp_path, make_run(warm_up_s=1.0), *lines, end(10.0, position=1050)))
    assert found.rate == pytest.approx(100) and found.useful == 1000 and found.useful_rate == pytest.approx(100)
    assert found.cpu_ms == pytest.approx(1000 * 8.0 / 800 * 1000)
    assert (found.checkpoints, found.checkpoint_s, found.checkpoint_bytes) == (1, 0.5, 7)
    assert (found.data_bytes, found.parity_bytes) == (8000.0, 1000.0)
    assert found.failures == [] and found.lost_examples == 0


def test_a_death_with_parity(tmp_path: Path) -> None:
    lines = [second(t, 100) for t in range(10)]
    lines += [
        event(4.0, "kill", 400, shard=2), event(4.05, "process ended", 405), event(4.2, "down", 410, shard=2, epoch=1),
        event(4.3, "first row", 410, shard=2, epoch=2), event(4.4, "pause", 412, worker=0, seconds=0.3),
        event(4.35, "first row", 410, shard=3, epoch=9), event(4.8, "whole", 440, shard=2, epoch=2),
        event(9.0, "pause", 900, worker=0, seconds=3.0),
    ]  # fmt: skip
    found = measure(record_of(tmp_path, make_run(kills=KILL), *lines, end()))
    (failure,) = found.failures
    assert found.rate == pytest.approx(100)
    assert failure.noticed_s == pytest.approx(0.2) and failure.first_row_s == pytest.approx(0.3)
    assert failure.whole_s == failure.recovery_s == pytest.approx(0.8)
    assert failure.pause_s == pytest.approx(0.3) and failure.lost_examples == 0
    assert failure.during == pytest.approx(50) and failure.ratio == pytest.approx(0.5)
    assert failure.loaded_s is None and failure.caught_up_s is None


def test_a_server_that_hands_its_rows_over_leaves_all_whole(tmp_path: Path) -> None:
    lines = [event(4.0, "kill", 400, shard=2, signal="TERM"), event(6.0, "handed over", 600, shard=2, epoch=2)]
    (failure,) = measure(record_of(tmp_path, make_run(kills=KILL), *lines, end())).failures
    assert failure.recovery_s == failure.whole_s == pytest.approx(2.0) and failure.during == pytest.approx(100)
    assert failure.noticed_s is None


def test_two_deaths_at_once_are_over_when_both_are(tmp_path: Path) -> None:
    run = make_run(mode="ec41", kills=KILL)
    lines = [event(4.0, "kill", 0, shard=1), event(4.1, "kill", 0, shard=2)]
    lines += [event(4.3, "down", 0, shard=1, epoch=1), event(4.4, "down", 0, shard=2, epoch=1)]
    one_whole = [*lines, event(4.9, "whole", 0, shard=1, epoch=2)]
    (failure,) = measure(record_of(tmp_path, run, *one_whole, end())).failures
    assert failure.servers == 2 and failure.noticed_s == pytest.approx(0.4) and failure.recovery_s is None
    (failure,) = measure(record_of(tmp_path, run, *one_whole, event(5.5, "whole", 0, shard=2, epoch=2), end())).failures
    assert failure.recovery_s == pytest.approx(1.5)


def test_later_kills_are_failures_of_their_own(tmp_path: Path) -> None:
    lines = [event(2.0, "kill", 0, shard=1), event(2.5, "whole", 0, shard=1, epoch=2), event(6.0, "kill", 0, shard=1)]
    first, other = measure(record_of(tmp_path, make_run(kills=KILL), *lines, end())).failures
    assert (first.at_s, first.whole_s) == (2.0, pytest.approx(0.5)) and (other.at_s, other.whole_s) == (6.0, None)


def test_going_back_takes_until_all_is_repeated(tmp_path: Path) -> None:
    lines = [second(t, 100) for t in (0, 1, 2, 3, 6, 7, 8, 9)]
    lines += [
        event(4.0, "kill", 400, shard=2), event(4.02, "process ended", 400),
        event(4.1, "goes back", 250, examples=150), event(5.5, "loaded", 250, seconds=1.4, bytes=1000, rows=9),
        event(6.0, "first row", 250, shard=0, epoch=1), event(7.5, "caught up", 400),
    ]  # fmt: skip
    found = measure(record_of(tmp_path, make_run(mode="stop", kills=KILL), *lines, end(10.0, position=650)))
    (failure,) = found.failures
    assert failure.noticed_s == pytest.approx(0.02) and failure.loaded_s == pytest.approx(1.5)
    assert (failure.load_s, failure.load_bytes, failure.lost_examples) == (1.4, 1000.0, 150.0)
    assert failure.first_row_s == pytest.approx(2.0)
    assert failure.recovery_s == failure.caught_up_s == pytest.approx(3.5) and failure.whole_s is None
    assert failure.during == pytest.approx(0.0), "what is repeated is not progress"
    assert found.lost_examples == 150 and found.useful == 650


def test_a_run_that_ends_before_all_is_repeated_has_no_time_of_recovery(tmp_path: Path) -> None:
    lines = [event(4.0, "kill", 400, shard=2), event(4.1, "goes back", 250, examples=150)]
    (failure,) = measure(record_of(tmp_path, make_run(mode="stop", kills=KILL), *lines, end())).failures
    assert failure.recovery_s is None and failure.during is None and failure.lost_examples == 150


def test_partial_recovery_is_over_when_its_rows_are_put_back(tmp_path: Path) -> None:
    assert MODES["partial"].recovery == "partial"
    lines = [
        event(4.0, "kill", 400, shard=2), event(4.2, "down", 400, shard=2, epoch=1),
        event(4.5, "whole", 420, shard=2, epoch=2), event(5.0, "put back", 440, seconds=0.5, bytes=100),
    ]  # fmt: skip
    (failure,) = measure(record_of(tmp_path, make_run(mode="partial", kills=KILL), *lines, end())).failures
    assert failure.recovery_s == pytest.approx(1.0) and failure.during == pytest.approx(40)
    (failure,) = measure(record_of(tmp_path, make_run(mode="partial", kills=KILL), *lines[:3], end())).failures
    assert failure.recovery_s is None


def test_the_median_of_none_one_and_many() -> None:
    assert median([]) is None and median([3.0]) == 3.0 and median([3.0, 1.0, 2.0]) == 2.0 and median([1.0, 2.0]) == 1.5

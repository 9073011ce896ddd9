import sqlite3
from pathlib import Path

import pytest

from ecrec.errors import ClusterError, ConfigurationError
from ecrec.transport import persistence
from ecrec.transport.persistence import StateFile


def test_the_newest_state_is_there_after_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    first = StateFile(path)
    assert first.load() is None
    first.save(b"one")
    first.note("warning", "shard 2 (epoch 1) is down")
    first.save(b"two")
    first.close()
    second = StateFile(path)
    assert second.load() == b"two"
    assert [row[1:] for row in second.history()] == [("warning", "shard 2 (epoch 1) is down")]
    second.close()


def test_a_state_is_on_disk_when_save_returns(tmp_path: Path) -> None:
    state_file = StateFile(str(tmp_path / "state"))
    state_file.save(b"one")
    other = sqlite3.connect(tmp_path / "state")
    assert other.execute("SELECT blob FROM state").fetchone() == (b"one",)
    assert state_file._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert state_file._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    state_file.close()


def test_notes_are_bounded_in_memory_and_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "HISTORY_MAX", 1500)
    file = StateFile(str(tmp_path / "state"))
    for life in range(3):
        for number in range(5 * persistence.NOTES_MAX):
            file.note("info", f"{life} {number}")
        file.save(b"state")
    history = [event for _, _, event in file.history()]
    file.close()
    last = 5 * persistence.NOTES_MAX
    assert history == [
        *(f"1 {number}" for number in range(last - 500, last)),
        *(f"2 {number}" for number in range(last - 1000, last)),
    ]


def test_a_second_scheduler_on_the_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    first = StateFile(path)
    with pytest.raises(ConfigurationError, match="another ecrec-scheduler uses it"):
        StateFile(path)
    first.close()
    StateFile(path).close()


def test_a_full_disk_is_an_error_that_says_what_to_do_and_keeps_the_old_state(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    state_file = StateFile(path)
    state_file.save(b"one")
    state_file._connection.execute("PRAGMA max_page_count=1")
    with pytest.raises(ClusterError, match=r"state cannot be written: .*full.*; make room"):
        state_file.save(bytes(1_000_000))
    assert state_file.load() == b"one"
    state_file.close()


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory; name a file in a directory"):
        StateFile(str(tmp_path / "no" / "state"))


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unable to open database file; name a file"):
        StateFile(str(tmp_path))


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"label,I1,I2\n" * 1000)
    with pytest.raises(ConfigurationError, match="not a database"):
        StateFile(str(path))
    assert path.read_bytes() == b"label,I1,I2\n" * 1000

"""What is removed: old checkpoints, and broken ones that nobody can be writing."""

from pathlib import Path

import pytest
from written_checkpoint import table, write_checkpoint

from ecrec.checkpoint.checking import Pruned, prune
from ecrec.checkpoint.files import Folder
from ecrec.checkpoint.reading import checkpoints
from ecrec.errors import CheckpointError, ConfigurationError
from ecrec.protocol.saved import MANIFEST, checkpoint_folder

TABLES = [table("t", rows=8)]


def unfinished(url: str, number: int) -> None:
    Folder(url).write(f"{checkpoint_folder(number)}/shard-00000/part-000000.safetensors", [b"some"])


def removed(done: list[Pruned]) -> list[int]:
    return [each.info.number for each in done if each.is_removed]


def left(url: str) -> list[int]:
    return [info.number for info in checkpoints(url)]


def test_the_newest_are_kept(url: str) -> None:
    for number in (1, 2, 5, 9):
        write_checkpoint(url, TABLES, number)
    Folder(url).write("notes/readme", [b"x"])
    assert removed(prune(url, keep=4)) == []
    assert removed(prune(url, keep=2)) == [1, 2]
    assert left(url) == [5, 9]
    assert removed(prune(url, keep=1)) == [5]
    assert Folder(url).exists("notes/readme")


def test_unfinished_ones_go_if_they_are_older(url: str) -> None:
    unfinished(url, 1)
    write_checkpoint(url, TABLES, 2)
    unfinished(url, 3)
    done = prune(url, keep=3)
    assert removed(done) == [1] and left(url) == [2, 3]
    assert done[-1].why == "unfinished; it may be being written"
    assert removed(prune(url, keep=3, broken=True)) == [3]


def test_nothing_goes_where_nothing_is_complete(url: str) -> None:
    assert prune(url, keep=1) == []
    unfinished(url, 1)
    unfinished(url, 2)
    assert removed(prune(url, keep=1)) == []
    assert removed(prune(url, keep=1, broken=True)) == [1, 2]


def test_a_damaged_one_goes_as_an_unfinished_one(url: str) -> None:
    for number in (1, 2, 3):
        write_checkpoint(url, TABLES, number)
    for number in (1, 3):
        name = f"{checkpoint_folder(number)}/{MANIFEST}"
        Folder(url).write(name, [Folder(url).read(name, 1 << 20)[:-1] + b"]"])
    assert removed(prune(url, keep=1)) == [1]
    assert removed(prune(url, keep=1, broken=True)) == [3]


def test_those_of_another_version_or_that_cannot_be_read_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path)
    for number in (1, 2, 3):
        write_checkpoint(url, TABLES, number)
    path = tmp_path / checkpoint_folder(1) / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 3', 1))
    path = tmp_path / checkpoint_folder(2) / MANIFEST
    path.unlink()
    path.mkdir()  # reading it is an error
    assert removed(prune(url, keep=1, broken=True)) == []
    assert left(url) == [1, 2, 3]


def test_one_that_is_half_removed_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        write_checkpoint(str(tmp_path), TABLES, number)

    def fail(self: Folder, name: str) -> None:
        raise CheckpointError(f"{name}: cannot remove it")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "remove_tree", fail)
        with pytest.raises(CheckpointError):
            prune(str(tmp_path), keep=1)
    assert [info.is_complete for info in checkpoints(str(tmp_path))] == [False, True]
    assert removed(prune(str(tmp_path), keep=1)) == [1]


def test_none_to_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keep is 0; expected at least 1"):
        prune(str(tmp_path), keep=0)

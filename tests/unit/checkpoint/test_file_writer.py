"""Files of checkpoints are there as a whole or not at all, whatever their sizes, and errors say which file and why."""

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ecrec import _native
from ecrec.checkpoint.writer import FileWriter
from ecrec.protocol.events import FileWritten, WriteFile
from ecrec.protocol.saved import MANIFEST, checkpoint_folder

DEADLINE_S = 30.0
MIB = 1 << 20


@pytest.fixture
def writer() -> Iterator[FileWriter]:
    writer = FileWriter()
    yield writer
    writer.close()


def ended(writer: FileWriter, count: int) -> list[FileWritten]:
    found: list[FileWritten] = []
    end = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} files are written"
        found += writer.take()
        threading.Event().wait(0.001)
    return found


SIZES = (0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 4096, 5 * MIB + 17)
"""Around a block, what goes past the page cache, and what is written at a time."""


@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_the_bytes_of_its_buffers(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    cut = random.Random(size).randrange(size + 1)
    path = tmp_path / "new" / "folder" / "file"
    buffers = [data[:cut].tobytes(), b"", data[cut:]]
    written = _native.write_file(str(path), f"{path}.partial", buffers)
    assert written == (size, _native.crc32c(data))
    assert path.read_bytes() == data.tobytes()
    assert os.listdir(path.parent) == ["file"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * MIB))
    _native.write_file(str(path), f"{path}.partial", [b"new"])
    assert path.read_bytes() == b"new"


def test_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(NotADirectoryError) as caught:
        _native.write_file(str(tmp_path / "file" / "below"), str(tmp_path / "file" / "partial"), [b"x"])
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_cannot_be_renamed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        _native.write_file(str(tmp_path / "file"), str(tmp_path / "partial"), [bytes(2 * MIB)])
    assert os.listdir(tmp_path) == ["file"]


def test_a_partial_file_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(b"his")
    with pytest.raises(FileExistsError):
        _native.write_file(str(tmp_path / "file"), str(tmp_path / "partial"), [b"mine"])
    assert (tmp_path / "partial").read_bytes() == b"his"


@pytest.mark.parametrize("urgent", [False, True])
def test_files_are_written_meanwhile(tmp_path: Path, writer: FileWriter, urgent: bool) -> None:
    data = [np.random.default_rng(i).integers(0, 256, 100_000 * i, np.uint8) for i in range(20)]
    for i, each in enumerate(data):
        writer.write(WriteFile(3, str(tmp_path), f"a/{i}", (b"head", each), urgent))
    done = {each.name: each for each in ended(writer, len(data))}
    assert writer.pending == 0
    for i, each in enumerate(data):
        content = b"head" + each.tobytes()
        assert (tmp_path / "a" / str(i)).read_bytes() == content
        assert done[f"a/{i}"] == FileWritten(3, f"a/{i}", len(content), _native.crc32c(content), "")


def test_a_buffer_lives_until_it_is_written(tmp_path: Path, writer: FileWriter) -> None:
    for i in range(8):
        writer.write(WriteFile(1, str(tmp_path), str(i), (np.full(3 * MIB, i, np.uint8),)))
    ended(writer, 8)
    for i in range(8):
        assert (tmp_path / str(i)).read_bytes() == bytes([i]) * (3 * MIB)


def test_a_file_cannot_be_written_and_says_why(tmp_path: Path, writer: FileWriter) -> None:
    (tmp_path / "blocked").write_bytes(b"")
    writer.write(WriteFile(1, str(tmp_path), "blocked/part", (b"x",)))
    (done,) = ended(writer, 1)
    assert "blocked/part: cannot write it: Not a directory" in done.error


def test_nothing_is_written_into_a_complete_checkpoint(tmp_path: Path, writer: FileWriter) -> None:
    folder = tmp_path / checkpoint_folder(7)
    folder.mkdir()
    (folder / MANIFEST).write_bytes(b"{}")
    writer.write(WriteFile(7, str(tmp_path), f"{checkpoint_folder(7)}/part", (b"x",)))
    (done,) = ended(writer, 1)
    assert "another cluster" in done.error
    assert os.listdir(folder) == [MANIFEST]


def test_a_url_without_its_package_is_an_error_of_the_file(writer: FileWriter) -> None:
    writer.write(WriteFile(1, "nowhere://bucket/x", "part", (b"x",)))
    (done,) = ended(writer, 1)
    assert "nowhere" in done.error


def test_a_writer_that_is_closed_with_files_in_hand(tmp_path: Path) -> None:
    writer = FileWriter()
    for i in range(50):
        writer.write(WriteFile(1, str(tmp_path), str(i), (np.full(MIB, i, np.uint8),)))
    writer.close()
    writer.write(WriteFile(1, str(tmp_path), "late", (b"x",)))
    assert "closed" in writer.take()[-1].error
    for name in os.listdir(tmp_path):
        if not name.startswith("."):
            assert (tmp_path / name).read_bytes() == bytes([int(name)]) * MIB

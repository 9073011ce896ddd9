"""A file appears whole or not at all, and every error names it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ecrec.checkpoint.files import Folder, is_partial
from ecrec.errors import CheckpointError, ConfigurationError, FileMissingError

MANY = 1 << 20


def names(folder: Folder, name: str = "") -> list[str]:
    return [entry.name for entry in folder.list(name)]


def test_what_is_written_is_read(url: str) -> None:
    folder = Folder(url)
    numbers = np.arange(1000, dtype=np.int64)
    folder.write("a/b.bin", [b"head", numbers, bytearray(b"tail"), b""])
    assert folder.read("a/b.bin", MANY) == b"head" + numbers.tobytes() + b"tail"
    assert folder.exists("a/b.bin") and folder.exists("a") and not folder.exists("c")
    assert names(folder) == ["a"] and names(folder, "a") == ["b.bin"]
    assert folder.list("a")[0].nbytes == 8008 and not folder.list("a")[0].is_folder and folder.list()[0].is_folder
    assert folder.within("a").read("b.bin", MANY)[:4] == b"head"
    with folder.open("a/b.bin") as file:
        some = bytearray(16)
        file.read_into(4 + 8 * 10, memoryview(some))
        assert np.frombuffer(some, np.int64).tolist() == [10, 11]
        with pytest.raises(CheckpointError, match=r"a/b\.bin: it ended at byte 8008"):
            file.read_into(8000, memoryview(some))
    folder.write("a/b.bin", [b"new"])
    assert folder.read("a/b.bin", MANY) == b"new"
    folder.write("a/empty", [])
    assert folder.read("a/empty", MANY) == b""
    folder.sync()
    folder.remove("a/empty")
    folder.remove_tree("a")
    assert not folder.exists("a")


def test_what_is_not_there_is_missing(url: str) -> None:
    folder = Folder(url)
    folder.remove("no")
    folder.remove_tree("no")
    for attempt in (lambda: folder.read("no", MANY), lambda: folder.list("no"), lambda: folder.list()):
        with pytest.raises(FileMissingError, match="checkpoints"):
            attempt()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../../b", "..", ".", "a//b", "a/", "a\\b", "a\nb", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(url: str, name: str) -> None:
    folder = Folder(url)
    for attempt in (
        lambda: folder.write(name, [b"x"]),
        lambda: folder.read(name, MANY),
        lambda: folder.exists(name),
        lambda: folder.remove(name),
        lambda: folder.remove_tree(name),
        lambda: folder.within(name),
    ):
        with pytest.raises(CheckpointError, match="is no name of a file in it"):
            attempt()


def test_a_file_that_is_too_large_is_not_read(url: str) -> None:
    Folder(url).write("a", [b"12345"])
    with pytest.raises(CheckpointError, match="it has 5 bytes, and at most 4 are read"):
        Folder(url).read("a", 4)


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("c", str(tmp_path / "c"), f"file://{tmp_path}/c", f"file://localhost{tmp_path}/c/"):
        Folder(url).write("a", [url.encode()])
        assert (tmp_path / "c" / "a").read_bytes() == url.encode()
    for url in ("", "file://c", "a\0b"):
        with pytest.raises(ConfigurationError, match="expected"):
            Folder(url)
    with pytest.raises(ConfigurationError, match=r"fsspec cannot open it|is missing"):
        Folder("nonsense://x")


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("c")
    monkeypatch.chdir("/")
    folder.write("a", [b"x"])
    assert (tmp_path / "c" / "a").exists()


def test_without_fsspec_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigurationError, match=r'pip install "ecrec\[checkpoints\]"'):
        Folder("s3://bucket/x")
    Folder("/tmp")


def test_without_the_package_of_a_protocol_it_is_said_what_to_install() -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.register_implementation("hermit", "no_such_package.Hermit", errtxt="Please install hermitfs", clobber=True)
    with pytest.raises(ConfigurationError, match=r"a package for hermit:// is missing: Please install hermitfs"):
        Folder("hermit://x/y")


def test_a_password_is_not_shown() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ConfigurationError) as error:
        Folder("nonsense://me:secret@host/x")
    assert "secret" not in str(error.value) and "host/x" in str(error.value)


# ---------------------------------------------------------------------- local files and their faults
@pytest.fixture(scope="session")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that makes calls of the operating system fail (``faulty_disk.c``)."""
    library = tmp_path_factory.mktemp("faulty") / "faulty_disk.so"
    source = Path(__file__).parent / "faulty_disk.c"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    return str(library)


def write_in_another_process(library: str, folder: Path, data: str, **fault: str) -> subprocess.CompletedProcess[str]:
    """Write file ``a``, in a process in which it is faulty."""
    program = f"from ecrec.checkpoint.files import Folder; Folder({str(folder)!r}).write('a', {data})"
    environment = {**os.environ, "LD_PRELOAD": library, "FAULTY_NAME": f"{folder}/", **fault}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, timeout=60, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("size", [3, 5_000_000])
def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, faulty_disk: str, call: str, size: int) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", [b"old"])
    done = write_in_another_process(faulty_disk, tmp_path, f"[bytes({size})]", FAULTY_CALL=call)
    assert "CheckpointError" in done.stderr and "/a: cannot write it: No space left on device" in done.stderr
    assert folder.read("a", MANY) == b"old"
    assert names(folder) == ["a"]


def test_a_file_that_the_system_does_not_let_grow_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, signal; from ecrec.checkpoint.files import Folder;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000));"
        f"Folder({str(tmp_path)!r}).write('a', [bytes(9_000_000)]);"
        f"Folder({str(tmp_path)!r}).write('b', [bytes(5_000_000)] * 3)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True, text=True)
    assert "CheckpointError" in done.stderr and "/b: cannot write it: File too large" in done.stderr
    assert names(Folder(str(tmp_path))) == ["a"]


@pytest.mark.parametrize("repeats", [1, 50_000])
def test_a_disk_that_takes_a_little_at_a_time_gets_all(tmp_path: Path, faulty_disk: str, repeats: int) -> None:
    data = f"[bytes([i]) * {repeats} * (i % 5) for i in range(60)]"
    done = write_in_another_process(faulty_disk, tmp_path, data, FAULTY_HOW="few")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a").read_bytes() == b"".join(bytes([i]) * repeats * (i % 5) for i in range(60))


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    buffers = [bytes([i % 256]) for i in range(5000)]
    Folder(str(tmp_path)).write("a", buffers)
    assert (tmp_path / "a").read_bytes() == b"".join(buffers)


def test_large_buffers(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, 20_000_003, dtype=np.uint8)
    Folder(str(tmp_path)).write("a", [data, b"end"])
    assert (tmp_path / "a").read_bytes() == data.tobytes() + b"end"


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_writer_that_is_killed_leaves_no_file_of_that_name(tmp_path: Path, faulty_disk: str, call: str) -> None:
    done = write_in_another_process(faulty_disk, tmp_path, "[b'half']", FAULTY_CALL=call, FAULTY_HOW="kill")
    assert done.returncode == -9, done.stderr
    left = names(Folder(str(tmp_path)))
    assert len(left) == 1 and is_partial(left[0]) and left[0] != "a"
    Folder(str(tmp_path)).write("a", [b"whole"])  # the next one does not mind
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_the_files_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Folder(str(tmp_path)).write("a/b", [b"x"])
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o644


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match=f"/{name}: cannot read it: "):
            Folder(str(tmp_path)).read(name, MANY)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a/b: cannot write it: (Not a directory|File exists)"):
        Folder(str(tmp_path)).write("a/b", [b"x"])
    assert not Folder(str(tmp_path)).exists("a/b")


def test_a_link_in_a_tree_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "tree" / "deep" / "file").symlink_to(tmp_path / "precious" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    for name in ("tree", "link"):
        Folder(str(tmp_path)).remove_tree(name)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious" / "file").read_bytes() == b"x"


def test_several_threads_write(tmp_path: Path) -> None:
    folder, errors = Folder(str(tmp_path)), []

    def write(thread: int) -> None:
        try:
            for i in range(20):
                folder.write(f"x/y/{i % 3}", [bytes([thread]) * 1000])
        except CheckpointError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for name in names(folder, "x/y"):
        assert len(set(folder.read(f"x/y/{name}", MANY))) == 1
    assert names(folder, "x/y") == ["0", "1", "2"]

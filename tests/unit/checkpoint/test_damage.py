"""Damage of every kind is found, and named; hostile files cost no memory and end nothing."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_group import OPTIMIZERS
from written_checkpoint import (
    Written,
    part_bytes,
    rewrite_index,
    rewrite_manifest,
    rewrite_part,
    table,
    write_checkpoint,
)

from ecrec._native import crc32c
from ecrec.checkpoint import parts
from ecrec.checkpoint.checking import check
from ecrec.checkpoint.files import Folder
from ecrec.checkpoint.reading import State, checkpoints, open_checkpoint
from ecrec.errors import CheckpointError, CheckpointVersionError, EcrecError
from ecrec.protocol.placement import OptimizerSpec
from ecrec.protocol.saved import MANIFEST, Manifest, Part, ShardIndex, decode, index_name

TABLES = [table("a", "adagrad"), table("b", "adam", dim=3, rows=30)]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_checkpoint(str(tmp_path / "checkpoints"), TABLES)


def texts(written: Written) -> str:
    checked = check(written.url)
    assert not checked.is_whole
    return "\n".join(problem.text for problem in checked.problems if problem.is_damage)


def files(written: Written) -> list[Path]:
    return sorted(path for path in written.folder.rglob("*") if path.is_file())


def read_all(url: str) -> None:
    checkpoint = open_checkpoint(url)
    for spec in checkpoint.manifest.tables:
        for _ in checkpoint.rows(spec.name):
            pass


def assert_found(written: Written, path: Path, before: bytes, named: str = "") -> None:
    """`check` names the file, and whoever reads it is told."""
    assert (named or str(path)) in texts(written)
    with pytest.raises(EcrecError, match=named or str(path)):
        read_all(written.url)
    path.write_bytes(before)


@settings(max_examples=150)
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    written = shared(tmp_path_factory)
    path = data.draw(st.sampled_from(files(written)))
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    path.write_bytes(after)
    assert_found(written, path, before)


@settings(max_examples=60)
@given(st.data())
def test_a_file_that_is_too_short_or_too_long_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    written = shared(tmp_path_factory)
    path = data.draw(st.sampled_from(files(written)))
    before = path.read_bytes()
    cut = data.draw(st.integers(0, len(before) - 1))
    path.write_bytes(data.draw(st.sampled_from([before[:cut], before + b"\n", before + before, before[cut + 1 :]])))
    assert_found(written, path, before)


@pytest.mark.parametrize("large", [False, True])
def test_damage_of_a_part_that_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(parts, "PART_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(parts, "CHUNK_BYTES", 60)
    written = write_checkpoint(str(tmp_path), TABLES, rows_in_part=1000)
    path = written.folder / "shard-00001" / "part-000001.safetensors"
    before = path.read_bytes()
    for byte in range(0, len(before), 7):
        path.write_bytes(before[:byte] + bytes([before[byte] ^ 16]) + before[byte + 1 :])
        assert_found(written, path, before)


_shared: list[Written] = []


def shared(factory: pytest.TempPathFactory) -> Written:
    """One for all examples of a test, who leave it as it was."""
    if not _shared:
        _shared.append(write_checkpoint(str(factory.mktemp("shared")), TABLES, shards=3))
    assert check(_shared[0].url).is_whole
    return _shared[0]


def test_every_byte_of_a_manifest_counts(written: Written) -> None:
    data = (written.folder / MANIFEST).read_bytes()
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(CheckpointError, match="the file"):
            decode(changed, Manifest, "the file")
        with pytest.raises(CheckpointError, match="the file"):
            decode(data[:i], Manifest, "the file")


def test_a_missing_file_is_named(written: Written) -> None:
    for path in files(written):
        before = path.read_bytes()
        path.unlink()
        assert_found(written, path, before, "it has no manifest" if path.name == MANIFEST else "")


def test_all_damage_is_named_not_only_the_first(written: Written) -> None:
    damaged = [path for path in files(written) if path.name != MANIFEST and "shard-00002" not in str(path)]
    damaged = [path for path in damaged if path.name != "index.json" or "shard-00003" in str(path)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    said = texts(written)
    of_lost_index = [path for path in damaged if "shard-00003" in str(path) and path.name != "index.json"]
    assert [path for path in damaged if str(path) not in said] == of_lost_index


def test_what_a_killed_writer_left_and_files_of_others_are_named_and_do_no_harm(written: Written) -> None:
    extra = ["shard-00000/.part-000099.safetensors.77-0.partial", "shard-00001/part-000099.safetensors", "notes.txt",
             "shard-00000/deep/file"]  # fmt: skip
    for name in extra:
        (written.folder / name).parent.mkdir(exist_ok=True)
        (written.folder / name).write_bytes(b"x")
    checked = check(written.url)
    assert checked.is_whole and len(checked.problems) == len(extra)
    said = "\n".join(problem.text for problem in checked.problems)
    assert "77-0.partial: left by a writer that was killed" in said
    assert "part-000099.safetensors: not of this checkpoint" in said and "notes.txt" in said and "deep/" in said
    read_all(written.url)


# ---------------------------------------------------------------------- versions
def test_a_newer_version_is_said(written: Written) -> None:
    path = written.folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 3', 1))
    with pytest.raises(CheckpointError, match="another version"):
        open_checkpoint(written.url)
    with pytest.raises(CheckpointVersionError, match=r"has version 3 of the format, and this ecrec reads 1 and 2"):
        open_checkpoint(str(written.folder))
    assert checkpoints(written.url)[0].state is State.OTHER_VERSION
    path.write_bytes(b"{}")
    with pytest.raises(CheckpointVersionError, match="no version"):
        open_checkpoint(str(written.folder))


def test_an_index_of_a_newer_version_is_said(written: Written) -> None:
    index = decode((written.folder / index_name(1)).read_bytes(), ShardIndex, "")
    index.version = 3
    rewrite_index(written, 1, index)
    assert "shard-00001/index.json: it has version 3" in texts(written)


# ---------------------------------------------------------------------- lies, with checksums that fit
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shards": 0}, "a coding group has 1 to 16 shards, not 0"),
        ({"shards": 1 << 70}, "a coding group has 1 to 16 shards"),
        ({"groups": 0}, "it has 0 groups"),
        ({"groups": 1 << 40}, "groups, expected 1 to"),
        ({"shards": 5}, "it has indexes of shards 0, 1, 2, 3, expected 0 to 4"),
        ({"indexes": []}, "it has indexes of shards none"),
        ({"tables": [TABLES[0], TABLES[0]]}, "two of its tables have one name"),
        ({"tables": [table("a", rows=1 << 60)]}, "rows; expected 1 to 2"),
        ({"tables": [table("a", rows=0)]}, "0 rows"),
        ({"tables": [table("a", dim=1 << 30)]}, "dimension"),
        ({"tables": [table("a", dim=0)]}, "dimension"),
        ({"tables": [table("a", rows=1 << 45, dim=60_000)]}, "bytes of address space"),
        ({"tables": [table("a", k=9)]}, "needs k \\+ r = 10"),
        ({"tables": [table("a", k=0)]}, "needs k"),
        ({"checkpoint": 13}, "it is the manifest of checkpoint 13, and lies in the folder of 12"),
        ({"checkpoint": -1}, "has the number -1"),
        ({"workers": [-1]}, "a worker has no number"),
        ({"fresh": [9]}, "a table without first values is not there"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself(written: Written, changed: dict[str, Any], words: str) -> None:
    rewrite_manifest(written, **changed)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(str(written.folder))
    assert str(written.folder / MANIFEST) in str(error.value)
    assert checkpoints(written.url)[0].state is State.DAMAGED
    assert words.split("\\")[0] in texts(written)


def test_an_unknown_optimizer(written: Written) -> None:
    import msgspec

    spec = msgspec.structs.replace(TABLES[0], optimizer=OptimizerSpec("lion", (0.1,)))
    rewrite_manifest(written, tables=[spec, TABLES[1]])
    assert "optimizer 'lion': expected one of" in texts(written)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "../../etc/passwd.safetensors"}, "expected a file in the same folder"),
        ({"name": "/etc/passwd.safetensors"}, "expected a file in the same folder"),
        ({"name": ".hidden.safetensors"}, "expected a file in the same folder"),
        ({"name": "a\n.safetensors"}, "expected a file in the same folder"),
        ({"name": "index.json"}, "expected a name of a .safetensors file"),
        ({"name": "part-000001.safetensors"}, "it lists 'part-000001.safetensors' twice"),
        ({"table": 2}, "is of table 2, of 2 tables"),
        ({"table": -1}, "is of table -1, of 2 tables"),
        ({"rows": -1}, "has -1 rows of table 'a', which has 50"),
        ({"rows": 51}, "has 51 rows of table 'a', which has 50"),
        ({"rows": 20}, "bytes; 20 rows of table 'a' have"),
        ({"nbytes": 1 << 62}, "has 4611686018427387904 bytes"),
        ({"nbytes": 0}, "has 0 bytes"),
    ],
)
def test_an_index_that_lies_about_a_part(written: Written, changed: dict[str, Any], words: str) -> None:
    index = decode((written.folder / index_name(1)).read_bytes(), ShardIndex, "")
    for name, value in changed.items():
        setattr(index.parts[0], name, value)
    rewrite_index(written, 1, index)
    said = texts(written)
    assert words in said and str(written.folder / index_name(1)) in said
    with pytest.raises(CheckpointError):
        read_all(written.url)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "../shard-00001/index.json"}, "the index of shard 1 is called"),
        ({"nbytes": 1 << 62}, "expected at most"),
        ({"nbytes": -1}, "expected at most"),
        ({"nbytes": 5}, "and at most 5 are read"),
        ({"crc32c": 5}, "damaged: its CRC-32C is"),
        ({"rows": 1}, "the manifest says 1 rows"),
        ({"part_bytes": 1}, "rows and 1 bytes"),
    ],
)
def test_a_manifest_that_lies_about_an_index(written: Written, entry: dict[str, Any], words: str) -> None:
    rewrite_index(written, 1, decode((written.folder / index_name(1)).read_bytes(), ShardIndex, ""), **entry)
    assert words in texts(written)


def test_a_part_has_fewer_rows_in_the_index_than_in_its_header(written: Written) -> None:
    index = decode((written.folder / index_name(1)).read_bytes(), ShardIndex, "")
    index.parts[0].rows = 6
    rewrite_index(written, 1, index)
    assert "part-000000.safetensors: its header says that rows is I64 [7]; expected I64 [6]" in texts(written)


def test_two_indexes_of_one_shard(written: Written) -> None:
    indexes = written.manifest.indexes
    rewrite_manifest(written, indexes=[indexes[0], indexes[2], indexes[2], indexes[3]])
    assert "indexes of shards 0, 2, 2, 3" in texts(written)


def test_an_index_of_another_shard_or_checkpoint(written: Written) -> None:
    index = decode((written.folder / index_name(1)).read_bytes(), ShardIndex, "")
    index.shard = 2
    rewrite_index(written, 1, index)
    assert "it is of checkpoint 12, shard 2; expected checkpoint 12, shard 1" in texts(written)
    index.shard, index.checkpoint = 1, 11
    rewrite_index(written, 1, index)
    assert "it is of checkpoint 11, shard 1" in texts(written)


def lying(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def honest(written: Written) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of the first part of shard 1, of table a."""
    data = (written.folder / "shard-00001" / "part-000000.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _changed(tensor: str, **fields: Any) -> Any:
    return lambda header: {**header, tensor: {**header[tensor], **fields}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_changed("weights", dtype="F16"), "weights is F16 [7, 4]; expected F32 [7, 4]"),
        (_changed("rows", dtype="F64"), "rows is F64 [7]"),
        (_changed("weights", shape=[4, 7]), "weights is F32 [4, 7]"),
        (_changed("weights", shape=[28]), "weights is F32 [28]"),
        (_changed("rows", shape=[1 << 62]), "expected I64 [7]"),
        (_changed("rows", data_offsets=[8, 64]), "rows is in bytes [8, 64]; expected [0, 56]"),
        (_changed("sum", data_offsets=[56, 168]), "is in bytes [56, 168]; expected"),
        (_changed("sum", data_offsets=[-1, 1 << 70]), "in bytes [-1"),
        (_changed("__metadata__", table="b"), "its header says table 'b'; the index says 'a'"),
        (lambda header: {k: v for k, v in header.items() if k != "__metadata__"}, "its header says table 'None'"),
        (lambda header: {k: v for k, v in header.items() if k != "sum"}, "its header has the tensors rows, weights;"),
        (lambda header: {**header, "more": header["rows"]}, "its header has the tensors more, rows, sum, weights"),
        (lambda header: {**header, "rows": 5}, "its header is damaged"),
        (lambda header: [header], "its header is damaged"),
        (lambda header: b"[" * 5000, "its header is damaged"),
        (lambda header: b"\xff" * 100, "its header is damaged"),
        (lambda header: b"", "its header is damaged"),
    ],
)
def test_a_header_that_lies(written: Written, change: Any, words: str) -> None:
    header, data = honest(written)
    rewrite_part(written, 1, 0, lying(change(header), data))
    said = texts(written)
    assert words in said and "shard-00001/part-000000.safetensors" in said
    with pytest.raises(CheckpointError, match="part-000000"):
        read_all(written.url)


@pytest.mark.parametrize("size", [1 << 63, 1 << 40, 10_000, 1])
def test_a_header_that_lies_about_its_length(written: Written, size: int) -> None:
    header, data = honest(written)
    rewrite_part(written, 1, 0, struct.pack("<Q", size) + lying(header, data)[8:])
    assert "shard-00001/part-000000.safetensors: its header" in texts(written)


def test_tensors_in_another_order_are_read(written: Written) -> None:
    header, data = honest(written)
    offsets = {"sum": [0, 112], "weights": [112, 224], "rows": [224, 280]}
    header = {name: {**each, "data_offsets": offsets.get(name)} for name, each in header.items()}
    header["__metadata__"].pop("data_offsets")
    rewrite_part(written, 1, 0, lying(header, data[168:] + data[56:168] + data[:56]))
    assert check(written.url).problems == []
    assert (open_checkpoint(written.url).dense("a").view(np.uint32) == written.weights(TABLES[0]).view(np.uint32)).all()


@pytest.mark.parametrize(
    ("place", "row", "words"),
    [
        (2, 50, "it has row 50 of table 'a', whose rows are 0 to 49"),
        (0, -1, "it has row -1 of table 'a'"),
        (3, -(1 << 63), "it has row -9223372036854775808 of table 'a'"),
        (3, (1 << 63) - 1, "it has row 9223372036854775807 of table 'a'"),
        (4, 0, "it has row 0 of table 'a', which does not lie on shard 1"),
    ],
)
def test_rows_that_cannot_be_there(written: Written, place: int, row: int, words: str) -> None:
    header, data = honest(written)
    rows = np.frombuffer(data[:56], np.int64).copy()
    rows[place] = row
    rewrite_part(written, 1, 0, lying(header, rows.tobytes() + data[56:]))
    assert words in texts(written)


@pytest.mark.parametrize("where", ["in one part", "in two parts"])
def test_a_row_that_is_there_twice(tmp_path: Path, where: str) -> None:
    written = write_checkpoint(str(tmp_path), TABLES, touched=1.0, rows_in_part=5)
    header, data = honest(written)
    rows = np.frombuffer(data[:40], np.int64).copy()
    checkpoint = open_checkpoint(written.url)
    other = next(checkpoint.rows_of(checkpoint.own_parts(0, 1)[1]))[0]
    rows[3] = rows[1] if where == "in one part" else other[0]
    rewrite_part(written, 1, 0, lying(header, rows.tobytes() + data[40:]))
    assert f"it has row {rows[3]} of table 'a', which is twice in the parts of shard 1" in texts(written)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_part_of_another_optimizer(tmp_path: Path, optimizer: str) -> None:
    mine, other = table("t", optimizer), table("t", "ftrl" if optimizer != "ftrl" else "adam")
    written = write_checkpoint(str(tmp_path), [mine])
    index = decode((written.folder / index_name(0)).read_bytes(), ShardIndex, "")
    data = b"".join(part_bytes(other, [0], np.zeros((1, other.record_bytes), np.uint8)))
    (written.folder / "shard-00000" / "part-000000.safetensors").write_bytes(data)
    index.parts[0] = Part("part-000000.safetensors", 0, 1, len(data), crc32c(data))
    rewrite_index(written, 0, index)
    assert "t" in texts(written)


# ---------------------------------------------------------------------- anything at all
def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
    | st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, -1, 1 << 31, 1 << 47, (1 << 63) - 1, 1 << 63, 1 << 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=100)
@given(st.data())
def test_whatever_a_manifest_or_an_index_says_it_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    written = shared(tmp_path_factory)
    manifest_path, path = written.folder / MANIFEST, written.folder / index_name(1)
    before = manifest_path.read_bytes(), path.read_bytes()
    is_manifest = data.draw(st.booleans())
    value = json.loads(before[0] if is_manifest else before[1])
    value.pop("crc32c", None)
    *way, last = data.draw(st.sampled_from(leaves(value)))
    inside = value
    for key in way:
        inside = inside[key]
    inside[last] = data.draw(ANYTHING)
    changed = json.dumps(value, indent=1).encode()
    if not is_manifest:
        path.write_bytes(changed)
        value = json.loads(before[0])
        value.pop("crc32c")
        value["indexes"][1].update(nbytes=len(changed), crc32c=crc32c(changed))
        changed = json.dumps(value, indent=1).encode()
    body = changed.removesuffix(b"\n}")
    manifest_path.write_bytes(body + b',\n "crc32c": %d\n}' % crc32c(body))
    tracemalloc.start()
    try:
        check(written.url)
        try:
            read_all(written.url)
        except EcrecError as error:
            assert str(written.folder.parent) in str(error)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
        manifest_path.write_bytes(before[0])
        path.write_bytes(before[1])


@settings(max_examples=70)
@given(st.data())
def test_whatever_a_part_says_it_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    written = shared(tmp_path_factory)
    before = {path: path.read_bytes() for path in files(written)}
    header, tensors = honest(written)
    *way, last = data.draw(st.sampled_from(leaves(header)))
    inside: Any = header
    for key in way:
        inside = inside[key]
    inside[last] = data.draw(ANYTHING)
    try:
        rewrite_part(written, 1, 0, lying(header, tensors))
        for problem in check(written.url).problems:
            assert "shard-00001/part-000000" in problem.text or "index.json: part part-000000" in problem.text
    finally:
        for path, content in before.items():
            path.write_bytes(content)


# ---------------------------------------------------------------------- a network that fails
@pytest.mark.parametrize("every", [2, 3, 5, 11])
def test_a_network_that_fails_now_and_then_is_an_error_never_other_rows(every: int) -> None:
    url = faulty.start()
    written = write_checkpoint(url, TABLES)
    count = [0]

    def fails(name: str) -> bool:
        count[0] += 1
        return count[0] % every == 0

    faulty.FaultyFileSystem.fails = staticmethod(fails)  # type: ignore[assignment]
    said = check(url)
    assert not said.is_whole and all("faulty://" in problem.text for problem in said.problems)
    outcomes = []
    for _ in range(60):
        try:
            checkpoint = open_checkpoint(url)
            assert checkpoint.dense("a").tobytes() == written.weights(TABLES[0]).tobytes()
            outcomes.append("read")
        except CheckpointError as error:
            assert "faulty://" in str(error)
            outcomes.append("error")
    assert "error" in outcomes
    faulty.FaultyFileSystem.fails = staticmethod(faulty.never)  # type: ignore[assignment]
    assert check(url).problems == []


@pytest.mark.parametrize("where", ["write", "info", "rename"])
def test_a_write_that_fails_leaves_nothing_under_the_name(where: str) -> None:
    url = faulty.start()
    folder = Folder(url)
    folder.write("other", [b"x"])
    faulty.FaultyFileSystem.fails = staticmethod(lambda name: name == where)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"faulty://bucket/checkpoints/a: cannot write it: the network failed"):
        folder.write("a", [b"many bytes"])
    faulty.FaultyFileSystem.fails = staticmethod(faulty.never)  # type: ignore[assignment]
    assert [entry.name for entry in folder.list()] == ["other"]


@pytest.mark.parametrize("where", ["open", "read", "list"])
def test_a_request_that_fails_is_named(where: str) -> None:
    url = faulty.start()
    write_checkpoint(url, TABLES)
    faulty.FaultyFileSystem.fails = staticmethod(lambda name: name == where)  # type: ignore[assignment]
    if where == "list":
        with pytest.raises(CheckpointError, match="checkpoints: cannot list it: the network failed at list"):
            checkpoints(url)
    else:
        assert checkpoints(url)[0].state is State.UNREADABLE
        with pytest.raises(CheckpointError, match=r"manifest\.json: cannot read it: the network failed"):
            open_checkpoint(url)


def test_a_close_that_fails_does_not_matter_to_who_has_read() -> None:
    url = faulty.start()
    write_checkpoint(url, TABLES)
    faulty.FaultyFileSystem.fails = staticmethod(lambda name: name == "close")  # type: ignore[assignment]
    assert check(url).problems == []

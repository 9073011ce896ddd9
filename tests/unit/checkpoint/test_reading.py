"""What was written is read: values, state, and the initial values of rows that were never touched."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_group import OPTIMIZERS
from written_checkpoint import (
    Written,
    columns_of_records,
    every_optimizer,
    shard_of,
    table,
    write_checkpoint,
)

from ecrec.checkpoint import parts, reading
from ecrec.checkpoint.checking import check
from ecrec.checkpoint.files import Folder
from ecrec.checkpoint.reading import State, checkpoints, open_checkpoint
from ecrec.checkpoint.rows import RowsSeen, initial_rows, records_of, shards_of_rows
from ecrec.errors import CheckpointError, ConfigurationError, FileMissingError
from ecrec.protocol.placement import TableSpec
from ecrec.protocol.saved import checkpoint_folder, columns_of
from ecrec.store.reference import initial_uniform


def assert_reads_as_written(written: Written) -> None:
    checkpoint = open_checkpoint(written.url)
    for spec in checkpoint.manifest.tables:
        seen: list[int] = []
        for rows, columns in checkpoint.rows(spec.name):
            assert list(columns) == [column.name for column in columns_of(spec.dim, spec.optimizer)]
            expected = columns_of_records(spec, written.records[spec.name][rows])
            assert [array.tobytes() for array in columns.values()] == expected
            assert columns["weights"].shape == (len(rows), spec.dim)
            assert records_of(spec, columns).tobytes() == written.records[spec.name][rows].tobytes()
            seen += rows.tolist()
        assert len(seen) == len(set(seen)) and set(seen) == written.touched[spec.name]
        assert checkpoint.touched_rows(spec.name) == len(seen)
        assert checkpoint.dense(spec.name).tobytes() == written.weights(spec).tobytes()
    checked = check(written.url)
    assert checked.problems == [] and checked.is_whole
    assert checked.rows == sum(map(len, written.touched.values()))


@pytest.mark.parametrize(("shards", "groups"), [(4, 1), (5, 2), (16, 3)])
def test_every_optimizer(url: str, shards: int, groups: int) -> None:
    written = write_checkpoint(url, every_optimizer(), shards=shards, groups=groups)
    assert_reads_as_written(written)
    (info,) = checkpoints(url)
    assert info.is_complete and (info.number, info.tables) == (12, len(OPTIMIZERS))
    assert info.rows == sum(map(len, written.touched.values()))
    if written.folder.exists():
        assert info.nbytes == sum(path.stat().st_size for path in written.folder.rglob("*") if path.is_file())


@st.composite
def tables(draw: st.DrawFn) -> list[TableSpec]:
    found = []
    for i in range(draw(st.integers(1, 4))):
        optimizer, k = draw(st.sampled_from(list(OPTIMIZERS))), draw(st.integers(1, 3))
        name = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)) + str(i)
        found.append(
            table(name, optimizer, draw(st.integers(1, 60)), draw(st.integers(1, 9)), k, draw(st.integers(0, 1)))
        )
    return found


@settings(max_examples=30)
@given(st.data())
def test_any_tables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    written = write_checkpoint(
        str(tmp_path_factory.mktemp("any")),
        data.draw(tables()),
        shards=data.draw(st.integers(4, 6)),
        groups=data.draw(st.integers(1, 3)),
        rows_in_part=data.draw(st.integers(1, 40)),
        touched=data.draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=data.draw(st.integers(0, 99)),
    )
    assert_reads_as_written(written)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1000])
def test_a_large_part_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    written = write_checkpoint(str(tmp_path), every_optimizer(), rows_in_part=10_000)
    monkeypatch.setattr(parts, "CHUNK_BYTES", chunk_bytes)
    assert_reads_as_written(written)
    monkeypatch.setattr(parts, "PART_BYTES_IN_MEMORY", 0)
    assert_reads_as_written(written)


def test_a_large_part_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_checkpoint(str(tmp_path), [table("t", dim=8)], rows_in_part=10_000)
    monkeypatch.setattr(parts, "CHUNK_BYTES", 100)
    monkeypatch.setattr(parts, "PART_BYTES_IN_MEMORY", 0)
    path = written.folder / "shard-00000" / "part-000000.safetensors"
    rows = open_checkpoint(str(tmp_path)).rows("t")
    next(rows)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    with pytest.raises(CheckpointError, match="it was changed while it was read"):
        for _ in rows:
            pass


def test_rows_are_for_reading_only(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), [table("t", "adam", dim=1)])
    for rows, columns in open_checkpoint(str(tmp_path)).rows("t"):
        for array in (rows, *columns.values()):
            assert array.flags.aligned and not array.flags.writeable


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_initial_values_are_those_of_the_servers(optimizer: str) -> None:
    spec = table("t", optimizer, rows=1 << 30, dim=5)
    rows = np.array([0, 7, (1 << 30) - 1])
    columns = initial_rows(spec, rows)
    for i, row in enumerate(rows.tolist()):
        assert columns["weights"][i].tobytes() == initial_uniform(5, spec.init_seed, row, spec.init_scale).tobytes()
    state = {name: np.unique(array).tolist() for name, array in columns.items() if name != "weights"}
    starts = {"sum": [spec.init_state], "n": [spec.init_state]}
    assert state == {name: starts.get(name, [0.0]) for name in state}
    assert [c.name for c in columns_of(5, spec.optimizer)] == list(columns)
    with pytest.raises(IndexError):
        initial_rows(spec, np.array([1 << 30]))


@settings(max_examples=50)
@given(st.integers(1, 16), st.integers(1, 5), st.data())
def test_where_a_row_lies_and_whether_it_was_there(shards: int, groups: int, data: st.DataObject) -> None:
    spec = table("t", rows=data.draw(st.integers(1, 2000)), k=data.draw(st.integers(1, shards)), r=0)
    manifest = write_nothing(shards, groups)
    rows = np.arange(spec.rows)
    found = shards_of_rows(spec, manifest.shards, manifest.groups, rows)
    assert found.tolist() == [g * shards + s for g, s in (shard_of(spec, r, shards, groups) for r in range(spec.rows))]
    mine = np.flatnonzero(found == found[data.draw(st.integers(0, spec.rows - 1))])
    order = np.array(data.draw(st.permutations(mine.tolist())))
    for bitmap_max in (1 << 20, -1):
        seen = RowsSeen(spec, manifest, int(found[mine[0]]), len(mine) if bitmap_max > 0 else -1)
        if bitmap_max < 0:
            seen._bits = None  # as for a table of which few rows were touched
        cut = len(order) // 2
        assert seen.add(order[:cut]) is None and seen.add(order[cut:]) is None
        for row in order[:3]:
            assert seen.add(np.array([row])) == row


def write_nothing(shards: int, groups: int) -> reading.Manifest:
    return reading.Manifest(1, 1, "", "", 0.0, 0.0, shards, groups, [], [], [], {})


def test_few_rows_of_a_giant_table(tmp_path: Path) -> None:
    spec = table("giant", rows=1 << 40, dim=1, k=1, r=0)
    seen = RowsSeen(spec, write_nothing(1, 1), 0, 5)
    assert seen._bits is None
    seen = RowsSeen(table("large", rows=1 << 30, k=1, r=0), write_nothing(1, 1), 0, 5)
    assert seen._bits is not None


# ---------------------------------------------------------------------- which checkpoint
def test_the_newest_complete_one_is_opened(url: str) -> None:
    for number in (3, 4, 20):
        write_checkpoint(url, [table("t")], number)
    Folder(url).write(f"{checkpoint_folder(21)}/shard-00000/part-000000.safetensors", [b"being written"])
    Folder(url).write("notes/readme", [b"not ours"])
    Folder(url).write("checkpoint-7/manifest.json", [b"not ours either"])
    found = checkpoints(url)
    assert [(info.number, info.state) for info in found] == [
        (3, State.COMPLETE), (4, State.COMPLETE), (20, State.COMPLETE), (21, State.UNFINISHED)
    ]  # fmt: skip
    checkpoint = open_checkpoint(url)
    assert checkpoint.manifest.checkpoint == 20 and [info.number for info in checkpoint.newer] == [21]
    assert open_checkpoint(url, 4).manifest.checkpoint == 4
    inside = open_checkpoint(f"{url}/{checkpoint_folder(3)}")
    assert inside.manifest.checkpoint == 3 and inside.touched_rows("t")
    for number, words in ((21, "unfinished: it has no manifest"), (5, "there is no checkpoint 5; there are 3, 4, 20")):
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(url, number)
    with pytest.raises(CheckpointError, match="it is checkpoint 3, and 4 was asked for"):
        open_checkpoint(f"{url}/{checkpoint_folder(3)}", 4)


def test_none_is_complete(url: str) -> None:
    assert checkpoints(url) == []
    for attempt in (open_checkpoint, check):
        with pytest.raises(FileMissingError, match="there is no checkpoint"):
            attempt(url)
    Folder(url).write(f"{checkpoint_folder(1)}/shard-00000/index.json", [b"{}"])
    with pytest.raises(CheckpointError, match=r"none of its 1 checkpoints is complete.*unfinished"):
        open_checkpoint(url)
    assert not check(url).is_whole


def test_a_table_that_it_has_not(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), [table("a"), table("b")])
    with pytest.raises(ConfigurationError, match="there is no table 'c'; it has 'a', 'b'"):
        next(open_checkpoint(str(tmp_path)).rows("c"))


def test_a_table_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), [table("t", rows=50, dim=4)])
    with pytest.raises(ConfigurationError, match=r"table 't' has 0\.0 GB of weights"):
        open_checkpoint(str(tmp_path)).dense("t", bytes_max=799)
    assert open_checkpoint(str(tmp_path)).dense("t", bytes_max=800).shape == (50, 4)

"""Checkpoints that have only what changed since another one: read with their bases, or not at all."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_checkpoint import Written, every_optimizer, rewrite_index, rewrite_manifest, table, write_chain

from ecrec.checkpoint import rows as checkpoint_rows
from ecrec.checkpoint.checking import check, prune
from ecrec.checkpoint.export import export, file_name
from ecrec.checkpoint.reading import State, checkpoints, open_checkpoint
from ecrec.checkpoint.rows import records_of
from ecrec.errors import CheckpointError
from ecrec.protocol.saved import MANIFEST, ShardIndex, decode, index_name


def records_at(url: str, number: int | None = None) -> dict[str, dict[int, bytes]]:
    """Table -> row -> record, of all rows that a checkpoint has."""
    checkpoint = open_checkpoint(url, number)
    found: dict[str, dict[int, bytes]] = {}
    for spec in checkpoint.manifest.tables:
        of_table = found.setdefault(spec.name, {})
        for rows, columns in checkpoint.rows(spec.name):
            records = records_of(spec, columns)
            assert not of_table.keys() & set(rows.tolist())
            of_table.update((row, records[i].tobytes()) for i, row in enumerate(rows.tolist()))
        assert checkpoint.touched_rows(spec.name) == len(of_table)
    return found


def expected_of(written: Written) -> dict[str, dict[int, bytes]]:
    return {
        name: {row: written.records[name][row].tobytes() for row in touched}
        for name, touched in written.touched.items()
    }


@pytest.fixture
def chain(tmp_path: Path) -> list[Written]:
    return write_chain(str(tmp_path / "checkpoints"), every_optimizer(), [[], [1], [], [0, 3], []])


@pytest.mark.parametrize("sorted_numbers", [False, True])
def test_each_of_a_chain_has_the_rows_of_its_cut(
    chain: list[Written], sorted_numbers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sorted_numbers:  # instead of a bitmap, as where a shard may have far more rows than it has
        monkeypatch.setattr(checkpoint_rows, "BITMAP_BYTES_MAX", -1)
    for written in chain:
        assert records_at(written.url, written.number) == expected_of(written)
        checked = check(written.url, written.number)
        assert checked.is_whole and not checked.problems
        touched = records_at(str(written.folder))  # named by its own folder
        assert touched == expected_of(written)
    newest = open_checkpoint(chain[-1].url)
    assert [base.manifest.checkpoint for base in newest.bases] == [w.number for w in chain[-2::-1]]
    assert len(newest.links(0)) == 2 and len(newest.links(1)) == 4 and len(newest.links(2)) == 6
    infos = checkpoints(chain[0].url)
    assert [info.base for info in infos] == [0, *(written.number for written in chain[:-1])]
    assert all(info.is_complete for info in infos) and infos[-1].nbytes < infos[0].nbytes


def test_a_checkpoint_of_which_all_shards_wrote_everything_needs_no_other(tmp_path: Path) -> None:
    chain = write_chain(str(tmp_path), [table("a")], [[0, 1, 2, 3], []])
    assert [info.base for info in checkpoints(str(tmp_path))] == [0, 0, chain[1].number]
    assert chain[1].manifest.version == 1 and chain[2].manifest.version == 2
    shutil.rmtree(chain[0].folder)
    assert records_at(str(tmp_path)) == expected_of(chain[2])


def test_an_export_of_an_increment_has_all_rows(chain: list[Written], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    done = export(chain[-1].url, "safetensors", str(tmp_path / "out"))
    assert done.touched == sum(map(len, chain[-1].touched.values()))
    for spec in chain[-1].manifest.tables:
        rows = sorted(chain[-1].touched[spec.name])
        found = load_file(tmp_path / "out" / f"{file_name(spec.name)}.safetensors")[f"{spec.name}.weight"][rows]
        np.testing.assert_array_equal(found, chain[-1].weights(spec)[rows])


# ---------------------------------------------------------------------- bases that are not what they were
def remove_base(chain: list[Written]) -> None:
    shutil.rmtree(chain[1].folder)


def remove_manifest(chain: list[Written]) -> None:
    (chain[1].folder / MANIFEST).unlink()


def damage_manifest(chain: list[Written]) -> None:
    path = chain[1].folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"cluster"', b'"klaster"'))


def write_it_again(chain: list[Written]) -> None:
    rewrite_manifest(chain[1], seconds=7.0)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (remove_base, "it is not there"),
        (remove_manifest, "that is unfinished"),
        (damage_manifest, "that is damaged"),
        (write_it_again, "that is another one now"),
    ],
)
def test_without_its_base_a_checkpoint_is_none(chain: list[Written], harm: Any, says: str) -> None:
    harm(chain)
    infos = {info.number: info for info in checkpoints(chain[0].url)}
    assert infos[chain[0].number].is_complete
    assert infos[chain[2].number].state is State.BASE_LOST and says in infos[chain[2].number].problem
    for written in chain[3:]:
        assert infos[written.number].state is State.BASE_LOST
        assert "lacks its base" in infos[written.number].problem
        with pytest.raises(CheckpointError, match="lacks its base"):
            open_checkpoint(written.url, written.number)
        with pytest.raises(CheckpointError, match=f"only what changed since checkpoint {chain[1].number}"):
            open_checkpoint(str(written.folder))
    newest = open_checkpoint(chain[0].url).manifest.checkpoint
    assert newest == (chain[1].number if harm is write_it_again else chain[0].number)


def test_a_base_of_another_cluster_is_refused_though_its_checksum_fits(chain: list[Written]) -> None:
    from ecrec._native import crc32c

    rewrite_manifest(chain[0], cluster="another")
    rewrite_manifest(chain[1], base_crc32c=crc32c((chain[0].folder / MANIFEST).read_bytes()))
    with pytest.raises(CheckpointError, match="of another cluster, or has other tables"):
        open_checkpoint(chain[0].url, chain[1].number)


def test_a_row_that_is_in_no_link_is_missed(chain: list[Written]) -> None:
    last = chain[-1]
    index = decode((last.folder / index_name(2)).read_bytes(), ShardIndex, "")
    index.touched[0] += 1
    rewrite_index(last, 2, index, base=index.base)
    name = last.manifest.tables[0].name
    with pytest.raises(CheckpointError, match=f"rows of table '{name}' were trained, and its parts and those of"):
        list(open_checkpoint(last.url).rows(name))
    assert [problem.text for problem in check(last.url).problems if "were trained" in problem.text]


def test_damage_in_a_base_is_found_where_it_matters(chain: list[Written]) -> None:
    of_base = chain[-2].folder / "shard-00001"  # newer ones need it
    part = sorted(of_base.glob("*.safetensors"))[0]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    not_needed = sorted((chain[0].folder / "shard-00003").glob("*.safetensors"))[0]  # shard 3 wrote all since
    not_needed.write_bytes(b"")
    checked = check(chain[-1].url)
    assert [problem.text for problem in checked.problems] == [
        problem.text for problem in checked.problems if str(part) in problem.text
    ]
    assert not checked.is_whole and not check(chain[0].url, chain[0].number).is_whole
    assert check(chain[-1].url, chain[-3].number).is_whole is False  # of shard 3 it has what lies in the first one
    with pytest.raises(CheckpointError, match=part.name):
        records_at(chain[-1].url)


@pytest.mark.parametrize(
    "changed",
    [
        {"base": 0, "base_crc32c": 0},
        {"base": 1000},
        {"base": -1},
        {"version": 1},
    ],
)
def test_manifests_that_contradict_themselves_are_refused(chain: list[Written], changed: dict[str, int]) -> None:
    rewrite_manifest(chain[1], **changed)
    with pytest.raises(CheckpointError):
        open_checkpoint(chain[1].url, chain[1].number)


@pytest.mark.parametrize("changed", [{"base": 0}, {"version": 1}, {"touched": [10**9]}, {"touched": [1] * 99}])
def test_indexes_that_contradict_their_manifest_are_refused(chain: list[Written], changed: dict[str, Any]) -> None:
    path = chain[1].folder / index_name(2)
    index = decode(path.read_bytes(), ShardIndex, "")
    base = index.base
    for name, value in changed.items():
        setattr(index, name, value)
    rewrite_index(chain[1], 2, index, base=base)
    with pytest.raises(CheckpointError):
        list(open_checkpoint(chain[1].url, chain[1].number).rows(chain[1].manifest.tables[0].name))


# ---------------------------------------------------------------------- prune
def test_prune_keeps_what_a_kept_checkpoint_builds_on(chain: list[Written]) -> None:
    done = prune(chain[0].url, keep=1)
    assert not any(each.is_removed for each in done)
    assert done[0].why == f"checkpoint {chain[1].number} has only what changed since"
    assert records_at(chain[-1].url) == expected_of(chain[-1])


def test_prune_removes_a_chain_that_nobody_needs(tmp_path: Path) -> None:
    chain = write_chain(str(tmp_path), [table("a")], [[], [], [0, 1, 2, 3], []])
    done = prune(str(tmp_path), keep=2)
    assert [each.is_removed for each in done] == [True, True, True, False, False]
    assert records_at(str(tmp_path)) == expected_of(chain[-1])


def test_prune_removes_those_that_lost_their_base_and_keeps_what_an_unreadable_one_may_need(tmp_path: Path) -> None:
    chain = write_chain(str(tmp_path), [table("a")], [[], [], [0, 1, 2, 3]])
    (chain[1].folder / MANIFEST).unlink()
    done = {each.info.number: each for each in prune(str(tmp_path), keep=1)}
    assert all(done[written.number].is_removed for written in chain[:3]) and not done[chain[3].number].is_removed
    chain = write_chain(str(tmp_path), [table("a")], [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]], first=50)
    path = chain[2].folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 9', 1))
    done = {each.info.number: each for each in prune(str(tmp_path), keep=1)}
    assert not any(done[written.number].is_removed for written in chain)
    assert done[chain[0].number].why == f"checkpoint {chain[2].number} may need it: its manifest cannot be read"

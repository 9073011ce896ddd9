"""Checkpoints of a few tables, written as servers write them, from stores whose rows were trained a little."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from store_group import OPTIMIZERS

from ecrec._native import Snapshot, Store, crc32c
from ecrec.checkpoint.files import Folder
from ecrec.protocol.placement import CodeSpec, OptimizerSpec, TableSpec
from ecrec.protocol.saved import (
    MANIFEST,
    VERSION,
    IndexFile,
    Manifest,
    Part,
    SavedDataset,
    SavedLease,
    ShardIndex,
    checkpoint_folder,
    columns_of,
    encode,
    index_name,
    part_header,
    part_name,
    shard_folder,
    version_of,
)
from ecrec.protocol.table_memory import add_table


def table(name: str, optimizer: str = "adagrad", rows: int = 50, dim: int = 4, k: int = 2, r: int = 1) -> TableSpec:
    return TableSpec(
        name, rows, dim, CodeSpec(k, r), OptimizerSpec(optimizer, OPTIMIZERS[optimizer]), "uniform", 7 + rows, 0.5, 0.25
    )


def every_optimizer(dim: int = 3) -> list[TableSpec]:
    return [table(f"of {name}", name, rows=40 + i, dim=dim, k=1 + i % 3) for i, name in enumerate(OPTIMIZERS)]


class Written(NamedTuple):
    """A checkpoint, and what the stores had."""

    url: str
    number: int
    folder: Path
    """Of the checkpoint, where it is local."""
    manifest: Manifest
    records: dict[str, NDArray[np.uint8]]
    """Of all rows of each table, the untouched ones too."""
    touched: dict[str, set[int]]

    def weights(self, spec: TableSpec) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.records[spec.name][:, : 4 * spec.dim]).view(np.float32)


def columns_of_records(spec: TableSpec, records: NDArray[np.uint8]) -> list[bytes]:
    columns, begin = [], 0
    for column in columns_of(spec.dim, spec.optimizer):
        columns.append(np.ascontiguousarray(records[:, begin : begin + column.nbytes]).tobytes())
        begin += column.nbytes
    return columns


def part_bytes(spec: TableSpec, rows: Sequence[int], records: NDArray[np.uint8]) -> list[bytes]:
    """What a part consists of; ``records`` uint8[len(rows), record_bytes]."""
    columns = columns_of(spec.dim, spec.optimizer)
    numbers = np.array(rows, np.int64).tobytes()
    return [part_header(spec.name, len(rows), columns), numbers, *columns_of_records(spec, records)]


def shard_of(spec: TableSpec, row: int, shards: int, groups: int) -> tuple[int, int]:
    """(group, shard in it)."""
    stripe, slot = divmod(row, spec.code.k)
    return stripe % groups, (stripe // groups + slot) % shards


def write_checkpoint(
    url: str,
    specs: Sequence[TableSpec],
    number: int = 12,
    shards: int = 4,
    groups: int = 1,
    rows_in_part: int = 7,
    touched: float = 0.6,
    seed: int = 1,
    changed: Mapping[str, Any] | None = None,
) -> Written:
    """A complete checkpoint. ``changed``: fields of the manifest."""
    draw = np.random.default_rng(seed)
    folder = Folder(url).within(checkpoint_folder(number))
    all_records = {spec.name: np.zeros((spec.rows, spec.record_bytes), np.uint8) for spec in specs}
    all_touched: dict[str, set[int]] = {spec.name: set() for spec in specs}
    indexes = []
    for shard in range(shards * groups):
        group, place = divmod(shard, shards)
        store = Store(place, shards, group, groups)
        for spec in specs:
            add_table(store, spec, recovered=True)
        parts = []
        for index, spec in enumerate(specs):
            mine = [row for row in range(spec.rows) if shard_of(spec, row, shards, groups) == (group, place)]
            if not mine:
                continue
            rows = [row for row in mine if draw.random() < touched]
            tables, counts = np.array([index], np.int32), np.array([len(rows)], np.int64)
            for _ in range(2):
                gradients = draw.standard_normal(len(rows) * spec.dim).astype(np.float32)
                store.apply(tables, counts, np.array(rows, np.int64), gradients, None)
            out = np.empty(len(mine) * spec.record_bytes, np.uint8)
            store.gather(tables, np.array([len(mine)], np.int64), np.array(mine, np.int64), out, True)
            all_records[spec.name][mine] = out.reshape(len(mine), -1)
            all_touched[spec.name].update(rows)
            order = draw.permutation(rows).astype(int).tolist()
            for first in range(0, len(order), rows_in_part):
                some = order[first : first + rows_in_part]
                name = part_name(len(parts))
                data = b"".join(part_bytes(spec, some, all_records[spec.name][some]))
                folder.write(f"shard-{shard:05d}/{name}", [data])
                parts.append(Part(name, index, len(some), len(data), crc32c(data)))
        watermarks = {0: 10, 1: 12, (1 << 20) + 1: 3}
        data = encode(ShardIndex(VERSION, number, shard, watermarks, parts))
        folder.write(index_name(shard), [data])
        sums = sum(p.rows for p in parts), sum(p.nbytes for p in parts)
        indexes.append(IndexFile(shard, index_name(shard), len(data), crc32c(data), *sums))
    dataset = SavedDataset("clicks", 100, 200, 10, 50, [(10, 20)], [SavedLease(5, 1, 40, 50, 3)], 33, 2)
    fields = {
        "version": VERSION, "checkpoint": number, "cluster": "c1", "ecrec": "0.1.0", "time_s": 1.8e9, "seconds": 2.5,
        "shards": shards, "groups": groups, "tables": list(specs), "indexes": indexes, "datasets": [dataset],
        "workers": [0, 1],
    }  # fmt: skip
    manifest = Manifest(**{**fields, **(changed or {})})
    folder.write(MANIFEST, [encode(manifest)])
    return Written(url, number, Path(url) / checkpoint_folder(number), manifest, all_records, all_touched)


def write_chain(
    url: str, specs: Sequence[TableSpec], replaced: Sequence[Sequence[int]], seed: int = 1, first: int = 12
) -> list[Written]:
    """Checkpoints of one cluster, each with what changed since the one before; the first one is a whole one.

    ``replaced``: for each but the first one, the shards that were replaced before it, which write all their rows. The
    last table is not in the first checkpoint.
    """
    shards, draw = 4, np.random.default_rng(seed)
    stores = [Store(place, shards) for place in range(shards)]
    marks, number, base, base_crc32c = [0] * shards, first, 0, 0
    found = []
    for which, gone in enumerate([range(shards), *replaced]):
        known = specs[:-1] if which == 0 and len(specs) > 1 else specs
        records = {spec.name: np.zeros((spec.rows, spec.record_bytes), np.uint8) for spec in known}
        touched: dict[str, set[int]] = {spec.name: set() for spec in known}
        folder, indexes = Path(url) / checkpoint_folder(number), []
        for place, store in enumerate(stores):
            (folder / shard_folder(place)).mkdir(parents=True)
            while store.tables < len(known):
                add_table(store, known[store.tables], recovered=True)
            for index, spec in enumerate(known):
                mine = [row for row in range(spec.rows) if shard_of(spec, row, shards, 1)[1] == place]
                rows = [row for row in mine if draw.random() < (0.5 if which == 0 else 0.2)]
                gradients = draw.standard_normal(len(rows) * spec.dim).astype(np.float32)
                store.apply(*listed(index, rows), gradients, None)
                if found:
                    touched[spec.name] |= found[-1].touched.get(spec.name, set()) & set(mine)
                touched[spec.name].update(rows)
                out = np.empty(len(mine) * spec.record_bytes, np.uint8)
                store.gather(*listed(index, mine), out, True)
                records[spec.name][mine] = out.reshape(len(mine), -1)
            mark, own_base = store.mark_changes(), 0 if place in gone else base
            widths = [[column.nbytes for column in columns_of(spec.dim, spec.optimizer)] for spec in known]
            snapshot, parts = Snapshot(store, widths, (marks[place], mark) if own_base else None), []
            while True:
                table, count, data = snapshot.take(2000)
                if not count:
                    break
                spec = known[table]
                header = part_header(spec.name, count, columns_of(spec.dim, spec.optimizer))
                content = header + data.tobytes()
                parts.append(Part(part_name(len(parts)), table, count, len(content), crc32c(content)))
                (folder / shard_folder(place) / parts[-1].name).write_bytes(content)
            snapshot.close()
            marks[place] = mark
            saved = ShardIndex(
                version_of(own_base), number, place, {}, parts, own_base, store.touched_rows().tolist()
            )  # fmt: skip
            data = encode(saved)
            (folder / index_name(place)).write_bytes(data)
            sums = sum(p.rows for p in parts), sum(p.nbytes for p in parts)
            indexes.append(IndexFile(place, index_name(place), len(data), crc32c(data), *sums, own_base))
        base = max(index.base for index in indexes)
        manifest = Manifest(
            version_of(base), number, "c1", "0.1.0", 1.8e9 + which, 2.5, shards, 1, list(known), indexes, [], [0], [],
            base=base, base_crc32c=base_crc32c if base else 0,
        )  # fmt: skip
        data = encode(manifest)
        (folder / MANIFEST).write_bytes(data)
        found.append(Written(url, number, folder, manifest, records, touched))
        base, base_crc32c, number = number, crc32c(data), number + 1 + which % 2
    return found


def listed(table: int, rows: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one table, as `Store` takes them."""
    return np.array([table], np.int32), np.array([len(rows)], np.int64), np.array(rows, np.int64)


def rewrite_manifest(written: Written, **changed: Any) -> None:
    """With other fields, and a checksum that fits."""
    fields = {name: getattr(written.manifest, name) for name in written.manifest.__struct_fields__}
    (written.folder / MANIFEST).write_bytes(encode(Manifest(**{**fields, **changed})))


def rewrite_index(written: Written, shard: int, index: ShardIndex, **entry: Any) -> None:
    """With a manifest that fits; ``entry``: other fields of what it says of the index."""
    data = encode(index)
    (written.folder / index_name(shard)).write_bytes(data)
    sums = {"rows": sum(p.rows for p in index.parts), "part_bytes": sum(p.nbytes for p in index.parts)}
    fields = {"shard": shard, "name": index_name(shard), "nbytes": len(data), "crc32c": crc32c(data), **sums, **entry}
    indexes = list(written.manifest.indexes)
    indexes[shard] = IndexFile(**fields)
    rewrite_manifest(written, indexes=indexes)


def rewrite_part(written: Written, shard: int, which: int, data: bytes, **changed: Any) -> None:
    """With an index and a manifest that fit: what a part lies about is told by itself alone."""
    from ecrec.protocol.saved import decode

    index = decode((written.folder / index_name(shard)).read_bytes(), ShardIndex, "")
    part = index.parts[which]
    (written.folder / f"shard-{shard:05d}" / part.name).write_bytes(data)
    part.nbytes, part.crc32c = len(data), crc32c(data)
    for name, value in changed.items():
        setattr(part, name, value)
    rewrite_index(written, shard, index)

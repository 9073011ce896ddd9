"""What must be true of a manifest and of an index before anything that they say is used. All of it may be hostile."""

import msgspec

from ecrec.errors import CheckpointError, ConfigurationError
from ecrec.protocol.placement import Placement, TableSpec
from ecrec.protocol.saved import (
    STATE_BYTES_MAX,
    Column,
    IndexFile,
    Manifest,
    Part,
    ShardIndex,
    columns_of,
    index_name,
    part_header,
    version_of,
)
from ecrec.protocol.tables import check_table

FILE_BYTES_MAX = 256 << 20
"""Of a manifest or an index. 65,535 tables need 30 MB, and a million parts of a shard 110 MB."""

GROUPS_MAX = 65_536
"""Far more than one scheduler can have."""

_NUMBER_MAX = (1 << 63) - 1
HEADER_BYTES_MAX = 64 << 10
"""Of a part. It has some 10 tensors and the table's name, of at most 256 characters."""


def check_manifest(manifest: Manifest, name: str) -> None:
    """Raise CheckpointError if a manifest contradicts itself, or describes what no cluster can hold."""

    def require(is_so: bool, what: str) -> None:
        if not is_so:
            raise CheckpointError(f"{name}: {what}: it is damaged, or was not written by ecrec")

    require(0 <= manifest.checkpoint <= _NUMBER_MAX, f"its checkpoint has the number {manifest.checkpoint}")
    require(1 <= manifest.groups <= GROUPS_MAX, f"it has {manifest.groups} groups, expected 1 to {GROUPS_MAX}")
    try:
        placement = Placement(manifest.shards)
        for spec in manifest.tables:
            check_table(spec, (), manifest.groups, placement)
            placement.add(spec.code)
    except ConfigurationError as error:
        raise CheckpointError(f"{name}: {error}: it is damaged, or was not written by ecrec") from error
    names = [spec.name for spec in manifest.tables]
    require(len(names) == len(set(names)), "two of its tables have one name")
    every = manifest.shards * manifest.groups
    require(
        [index.shard for index in manifest.indexes] == list(range(every)),
        f"it has indexes of shards {_listed([index.shard for index in manifest.indexes])}, expected 0 to {every - 1}, "
        "each once, in order",
    )
    require(0 <= manifest.base < max(manifest.checkpoint, 1), f"its base has the number {manifest.base}")
    for index in manifest.indexes:
        _check_index_file(index, name)
        require(index.base in (0, manifest.base), f"shard {index.shard} has the base {index.base}")
    require(manifest.version == version_of(manifest.base), f"it has version {manifest.version}")
    if manifest.state is not None:
        nbytes = manifest.state.nbytes
        require(0 < nbytes <= STATE_BYTES_MAX, f"its state has {nbytes} bytes, expected 1 to {STATE_BYTES_MAX}")
    require(all(0 <= number <= _NUMBER_MAX for number in manifest.workers), "a worker has no number that can be")
    require(all(0 <= table < len(names) for table in manifest.fresh), "a table without first values is not there")
    for dataset in manifest.datasets:
        ranges = [*dataset.returned, *((lease.first, lease.last) for lease in dataset.leases)]
        numbers_of = [dataset.examples, dataset.end, dataset.split_examples, dataset.next, dataset.trained]
        numbers_of += [dataset.repeated, *(n for lease in dataset.leases for n in (lease.number, lease.worker))]
        numbers_of += [lease.done for lease in dataset.leases]
        fits = all(0 <= first <= last <= _NUMBER_MAX for first, last in ranges)
        fits &= all(0 <= number <= _NUMBER_MAX for number in numbers_of)
        require(fits, f"its data set {dataset.name[:100]!r} has invalid numbers of examples")


def _check_index_file(index: IndexFile, name: str) -> None:
    if index.name != index_name(index.shard):
        raise CheckpointError(
            f"{name}: the index of shard {index.shard} is called {index.name[:100]!r}, expected "
            f"{index_name(index.shard)!r}"
        )
    if not 0 <= index.nbytes <= FILE_BYTES_MAX:
        raise CheckpointError(
            f"{name}: the index of shard {index.shard} has {index.nbytes} bytes, expected at most {FILE_BYTES_MAX}"
        )
    if not (0 <= index.rows <= _NUMBER_MAX and 0 <= index.part_bytes <= _NUMBER_MAX):
        raise CheckpointError(
            f"{name}: the index of shard {index.shard} has {index.rows} rows and {index.part_bytes} bytes in its parts"
        )


def check_base(base: Manifest, manifest: Manifest, name: str) -> None:
    """Raise CheckpointError if ``base`` cannot be what ``manifest`` builds on; ``name`` is that of the base."""
    tables = manifest.tables[: len(base.tables)]
    here = (base.cluster, base.shards, base.groups, base.tables)
    if here != (manifest.cluster, manifest.shards, manifest.groups, tables):
        raise CheckpointError(
            f"{name}: checkpoint {manifest.checkpoint} has only what changed since this one, which is of another "
            "cluster, or has other tables"
        )


def check_index(index: ShardIndex, entry: IndexFile, manifest: Manifest, name: str) -> None:
    """Raise CheckpointError if an index does not fit its manifest, or contradicts itself."""
    said = (index.checkpoint, index.shard)
    if said != (manifest.checkpoint, entry.shard):
        raise CheckpointError(
            f"{name}: it is of checkpoint {said[0]}, shard {said[1]}; expected checkpoint {manifest.checkpoint}, shard "
            f"{entry.shard}"
        )
    if not all(
        -_NUMBER_MAX <= key <= _NUMBER_MAX and 0 <= number <= _NUMBER_MAX for key, number in index.watermarks.items()
    ):
        raise CheckpointError(f"{name}: a watermark of it is no number of a push")
    if index.base != entry.base or index.version != version_of(index.base):
        raise CheckpointError(
            f"{name}: it has version {index.version} and base {index.base}; the manifest says base {entry.base}"
        )
    if len(index.touched) > len(manifest.tables):
        raise CheckpointError(f"{name}: it has {len(index.touched)} tables, the manifest {len(manifest.tables)}")
    for touched, spec in zip(index.touched, manifest.tables, strict=False):
        if not 0 <= touched <= spec.rows:
            raise CheckpointError(f"{name}: {touched} rows of table {spec.name!r}, which has {spec.rows}, were trained")
    names = set()
    for part in index.parts:
        _check_part(part, manifest, name)
        if part.name in names:
            raise CheckpointError(f"{name}: it lists {part.name!r} twice")
        names.add(part.name)
    sums = (sum(part.rows for part in index.parts), sum(part.nbytes for part in index.parts))
    if sums != (entry.rows, entry.part_bytes):
        raise CheckpointError(
            f"{name}: its parts have {sums[0]} rows and {sums[1]} bytes; the manifest says {entry.rows} rows and "
            f"{entry.part_bytes} bytes"
        )


def _check_part(part: Part, manifest: Manifest, name: str) -> None:
    # Only a plain file of the folder: a name may be hostile, and two of them may differ by dots alone.
    if not part.name.endswith(".safetensors") or part.name != part.name.strip() or len(part.name) > 200:
        raise CheckpointError(f"{name}: it lists the part {part.name[:200]!r}, expected a name of a .safetensors file")
    if "/" in part.name or "\\" in part.name or part.name.startswith(".") or not part.name.isprintable():
        raise CheckpointError(f"{name}: it lists the part {part.name[:200]!r}, expected a file in the same folder")
    if not 0 <= part.table < len(manifest.tables):
        raise CheckpointError(f"{name}: part {part.name} is of table {part.table}, of {len(manifest.tables)} tables")
    spec = manifest.tables[part.table]
    if not 0 <= part.rows <= spec.rows:
        raise CheckpointError(
            f"{name}: part {part.name} has {part.rows} rows of table {spec.name!r}, which has {spec.rows}"
        )
    # The file may have another header than ecrec writes, as long as it says the same.
    least = part.rows * row_bytes(spec)
    if not least < part.nbytes <= least + 8 + HEADER_BYTES_MAX:
        expected = least + len(part_header(spec.name, part.rows, columns_of(spec.dim, spec.optimizer)))
        raise CheckpointError(
            f"{name}: part {part.name} has {part.nbytes} bytes; {part.rows} rows of table {spec.name!r} have {expected}"
        )


def row_bytes(spec: TableSpec) -> int:
    """Bytes of a row in a part, its number included."""
    return 8 + sum(column.nbytes for column in columns_of(spec.dim, spec.optimizer))


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def check_header(header: bytes, spec: TableSpec, rows: int, name: str) -> dict[str, tuple[Column, int]]:
    """Compare the JSON header of a part with what the index and the manifest say of it.

    Returns for each tensor what it is, and where it begins behind the header. The tensors must be those of
    `columns_of` and ``rows``, without a gap, in any order. Raises CheckpointError.
    """
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        tensors = {key: msgspec.json.decode(raw, type=_Tensor) for key, raw in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header is damaged, or it is no safetensors file: {error}") from error
    if metadata.get("table") != spec.name:
        said = str(metadata.get("table"))[:300]
        raise CheckpointError(f"{name}: its header says table {said!r}; the index says {spec.name!r}")
    expected = {column.name: column for column in [Column("rows", "I64", 0, 8), *columns_of(spec.dim, spec.optimizer)]}
    if tensors.keys() != expected.keys():
        raise CheckpointError(
            f"{name}: its header has the tensors {_listed(sorted(tensors))}; table {spec.name!r}, optimizer "
            f"{spec.optimizer.name}, has {_listed(sorted(expected))}"
        )
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        column = expected[key]
        shape = [rows, column.width] if column.width else [rows]
        if (tensor.dtype, tensor.shape) != (column.dtype, shape):
            raise CheckpointError(
                f"{name}: its header says that {key} is {tensor.dtype} {tensor.shape}; expected {column.dtype} {shape}"
            )
        if tensor.data_offsets != (end, end + rows * column.nbytes):
            raise CheckpointError(
                f"{name}: its header says that {key} is in bytes {list(tensor.data_offsets)}; expected "
                f"{[end, end + rows * column.nbytes]}"
            )
        end += rows * column.nbytes
    return {key: (expected[key], tensor.data_offsets[0]) for key, tensor in tensors.items()}


def _listed(items: list[int] | list[str]) -> str:
    text = ", ".join(map(str, items[:20])) + (", ..." if len(items) > 20 else "")
    return text or "none"

"""Checkpoints, written as files that others read: safetensors, torch, TorchRec, torch.distributed.checkpoint, Parquet.

Tables are filled in through memory maps of their final size, block by block, so a table may be larger than memory. The
output appears under its name when all of it is written.
"""

import contextlib
import itertools
import json
import os
import shutil
import struct
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ecrec.checkpoint.checking import Progress, no_progress
from ecrec.checkpoint.filling import SCRATCH, TABLE, Done, Job, arrays_in, fill, mapped, tensor_name, wanted_columns
from ecrec.checkpoint.reading import Checkpoint, open_checkpoint
from ecrec.errors import CheckpointError, ConfigurationError
from ecrec.protocol.placement import TableSpec

FORMATS = ("safetensors", "torch", "torchrec", "dcp", "parquet")
WEIGHT_NAMES = dict.fromkeys(FORMATS, f"{TABLE}.weight") | {"torchrec": f"embedding_bags.{TABLE}.weight"}
"""What the weights of a table are called: as nn.ModuleDict and EmbeddingBagCollection call them."""

_counter = itertools.count()


class Exported(NamedTuple):
    """What an export wrote."""

    checkpoint: int
    files: list[str]
    """In the folder of the export."""
    tables: list[str]
    rows: int
    """Of all tables."""
    touched: int
    """Those of them that are in the checkpoint; the others have their initial values."""
    warnings: list[str]
    """Newer checkpoints that were passed over because they are not complete; tables that do not have all values."""


def export(
    url: str,
    to: str,
    out: str | os.PathLike[str],
    *,
    number: int | None = None,
    tables: Sequence[str] | None = None,
    with_state: bool = False,
    names: str | None = None,
    progress: Progress = no_progress,
) -> Exported:
    """Write tables of a checkpoint (all, unless ``tables`` names some) into the new folder ``out``.

    ``to``: one of `FORMATS`. ``with_state``: the optimizer's state, too. ``names``: what the weights of a table are
    called, with ``{table}`` in it; by default that of `WEIGHT_NAMES`. Parquet has the rows that were ever touched, the
    other formats have all rows.
    Raises ConfigurationError for what cannot be, or a package that is missing; CheckpointError for a checkpoint that is
    damaged, and a disk that is full. Nothing is left at ``out`` then.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"format {to!r}; expected one of {', '.join(FORMATS)}")
    names = WEIGHT_NAMES[to] if names is None else names
    if TABLE not in names:
        raise ConfigurationError(f"names {names!r}: expected {TABLE} in it, for example {WEIGHT_NAMES[to]!r}")
    write = _writer(to)
    checkpoint = open_checkpoint(url, number)
    wanted = list(dict.fromkeys(tables)) if tables else [spec.name for spec in checkpoint.manifest.tables]
    specs = [checkpoint.spec(name) for name in wanted]
    if not specs:
        raise ConfigurationError(f"{checkpoint.folder}: it has no tables")
    names_of = [tensor_name(names, spec, column) for spec in specs for column in wanted_columns(spec, with_state)]
    if len(names_of) != len(set(names_of)):
        twice = next(name for name in names_of if names_of.count(name) > 1)
        raise ConfigurationError(f"names {names!r}: two tensors would be called {twice!r}")
    path = Path(os.path.abspath(out))
    with _new_folder(path) as folder:
        total = sum(_bytes_to_do(checkpoint, spec, to, with_state) for spec in specs)
        job = Job(checkpoint, specs, folder, with_state, names, Done(total, progress))
        try:
            write(job)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder / SCRATCH)
            files = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
            for each in files:
                _sync(folder / each)
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot write it: {error.strerror or error}") from error
    touched = sum(checkpoint.touched_rows(spec.name) for spec in specs)
    warnings = [
        f"checkpoint {info.number} is newer and {info.state.value}: {info.problem}"
        for info in checkpoint.newer
        if not info.is_complete and number is None
    ]
    warnings += [
        f"table {spec.name!r}: the worker that writes its first values had not written all of them; export a later "
        "checkpoint"
        for index, spec in enumerate(checkpoint.manifest.tables)
        if index in checkpoint.manifest.fresh and spec in specs and spec.is_written
    ]
    rows = sum(spec.rows for spec in specs)
    return Exported(checkpoint.manifest.checkpoint, files, wanted, rows, touched, warnings)


def _writer(to: str) -> Any:
    """The function of a format. Raises ConfigurationError for a package that is missing."""
    if to == "safetensors":
        return _write_safetensors
    if to == "parquet":
        _require("pyarrow", "Parquet files are written", "parquet")
        return _write_parquet
    _require("torch", "files of torch are written", "train")
    from ecrec.checkpoint import export_torch

    return export_torch.write_dcp if to == "dcp" else export_torch.write_state_dict


def _require(package: str, what: str, extra: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise ConfigurationError(f'{what} by {package}, which is missing: pip install "ecrec[{extra}]"') from error


def _bytes_to_do(checkpoint: Checkpoint, spec: TableSpec, to: str, with_state: bool) -> int:
    row = sum(column.nbytes for column in wanted_columns(spec, with_state))
    touched = checkpoint.touched_rows(spec.name)
    return row * touched + (0 if to == "parquet" else row * spec.rows)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, which gets that name at the end, or is removed."""
    try:
        is_free = not any(path.iterdir())
    except FileNotFoundError:
        is_free = True
    except OSError as error:
        raise ConfigurationError(f"--out {path}: {error.strerror}; expected a new folder") from error
    if not is_free:
        raise ConfigurationError(f"--out {path}: it is not empty; expected a new folder")
    partial = path.parent / f".{path.name}.{os.getpid()}-{next(_counter)}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise ConfigurationError(f"--out {path}: cannot make it: {error.strerror}") from error
    try:
        yield partial
        try:
            partial.rename(path)
            _sync(path.parent)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot make it: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(table: str) -> str:
    """The name of a table as that of a file: letters, digits and ``_.-~`` as they are, the rest in ``%``."""
    text = urllib.parse.quote(table, safe="")
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > 200:  # file systems take 255 bytes; names that begin alike stay different
        text = f"{text[:180]}~{_digest(table)}"
    return text


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- formats
def _write_safetensors(job: Job) -> None:
    """A file for each table."""
    for spec in job.specs:
        # Numbers of 8 bytes first, so that all lie where such numbers may.
        columns = sorted(job.columns(spec), key=lambda column: column.dtype != "F64")
        metadata = {"format": "pt", "table": spec.name, "checkpoint": str(job.checkpoint.manifest.checkpoint)}
        entries: dict[str, object] = {"__metadata__": metadata}
        offsets, end = [], 0
        for column in columns:
            shape = [spec.rows, column.width] if column.width else [spec.rows]
            size = spec.rows * column.nbytes
            entries[job.tensor_name(spec, column)] = {
                "dtype": column.dtype, "shape": shape, "data_offsets": [end, end + size]
            }  # fmt: skip
            offsets.append(end)
            end += size
        header = msgspec.json.encode(entries)
        header += b" " * (-len(header) % 8)
        beginning = struct.pack("<Q", len(header)) + header
        path = job.folder / f"{file_name(spec.name)}.safetensors"
        with mapped(path, len(beginning) + end) as memory:
            memory[: len(beginning)] = beginning
            fill(job, spec, arrays_in(memory, [len(beginning) + offset for offset in offsets], columns, spec.rows))


def _write_parquet(job: Job) -> None:
    """A file for each table: ``row``, ``weights`` and the state, of the rows that were ever touched."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"F32": pa.float32(), "F64": pa.float64()}
    for spec in job.specs:
        columns = job.columns(spec)
        fields = [pa.field("row", pa.int64(), nullable=False)]
        for column in columns:
            number = numbers[column.dtype]
            kind = pa.list_(pa.field("element", number, nullable=False), column.width) if column.width else number
            fields.append(pa.field(column.name, kind, nullable=False))
        about = {"table": spec.name, "rows": spec.rows, "checkpoint": job.checkpoint.manifest.checkpoint}
        schema = pa.schema(fields, {"ecrec": json.dumps(about)})
        path = job.folder / f"{file_name(spec.name)}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for rows, found in job.checkpoint.rows(spec.name):
                arrays = [pa.array(rows)]
                for field, column in zip(fields[1:], columns, strict=True):
                    flat = pa.array(found[column.name].reshape(-1))
                    arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type) if column.width else flat)
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                job.done.add(sum(found[column.name].nbytes for column in columns))

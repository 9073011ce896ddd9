"""Files of others with weights of tables, read in blocks of rows: safetensors, torch's state dicts, directories of
torch.distributed.checkpoint. Nothing of them is unpickled that could run."""

import json
import math
import os
import pickletools
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecrec.checkpoint.rows import CHUNK_BYTES, F32
from ecrec.errors import CheckpointError, ConfigurationError

Blocks = Iterator[tuple[int, F32]]
"""First row, and the weights of that row and the ones behind it: float32[m, dim]."""

HEADER_BYTES_MAX = 64 << 20
METADATA_BYTES_MAX = 256 << 20

_FLOATS = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
"""Types of safetensors that weights may have."""

_DCP_GLOBALS = {
    **dict.fromkeys(
        (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
            "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.metadata",
    ),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "Size": "torch",
    "_get_layout": "torch.serialization",
    "PosixPath": "pathlib",
    "PurePosixPath": "pathlib",
    "OrderedDict": "collections",
}  # fmt: skip
"""What a `.metadata` of torch.distributed.checkpoint names: data classes alone, which run nothing."""
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_PUSH_STRING = ("SHORT_BINUNICODE", "BINUNICODE")
_MOVE_NOTHING = ("MEMOIZE", "FRAME", "PROTO", "BINPUT", "LONG_BINPUT")


class Source(NamedTuple):
    """A tensor of two dimensions in a file."""

    shape: tuple[int, ...]
    blocks: Callable[[], Blocks]


def open_sources(path: str | os.PathLike[str]) -> dict[str, Source]:
    """The tensors of numbers at a path, by name: of a ``.safetensors`` file or a folder of such, of a state dict that
    `torch.save` wrote, or of a directory of torch.distributed.checkpoint.

    Raises ConfigurationError for a path that is none of them, CheckpointError for a file that is damaged.
    """
    where = Path(path)
    if where.is_dir():
        if (where / ".metadata").exists():
            return _dcp(where)
        files = sorted(where.glob("*.safetensors"))
        if not files:
            raise ConfigurationError(
                f"{where}: neither .metadata of torch.distributed.checkpoint nor .safetensors files"
            )
        return _merged([_safetensors(file) for file in files], where)
    if not where.is_file():
        raise ConfigurationError(f"{where}: there is no such file or folder")
    return _safetensors(where) if where.suffix == ".safetensors" else _state_dict(where)


def _merged(found: list[dict[str, Source]], where: Path) -> dict[str, Source]:
    merged: dict[str, Source] = {}
    for each in found:
        if twice := sorted(merged.keys() & each.keys()):
            raise CheckpointError(f"{where}: tensor {twice[0]!r} is in two files")
        merged |= each
    return merged


# ---------------------------------------------------------------------- safetensors
def _safetensors(path: Path) -> dict[str, Source]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(HEADER_BYTES_MAX, size - 8):
                raise ValueError(f"its header has {length} bytes, the file {size}")
            header = json.loads(file.read(length))
        found = {}
        header.pop("__metadata__", None)
        for name, entry in header.items():
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in _FLOATS:
                continue
            dtype = np.dtype(_FLOATS[entry["dtype"]])
            if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
                raise ValueError(f"tensor {name!r} has no shape that can be")
            if last - first != math.prod(shape) * dtype.itemsize or 8 + length + last > size:
                raise ValueError(f"tensor {name!r} has another length than its shape")
            found[name] = _mapped(path, dtype, entry["dtype"], 8 + length + first, shape)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file: {str(error)[:300]}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror}") from error


def _mapped(path: Path, dtype: "np.dtype[Any]", kind: str, offset: int, shape: tuple[int, ...]) -> Source:
    def blocks() -> Blocks:
        array = np.memmap(path, dtype, "r", offset, shape)
        yield from _in_blocks(shape, lambda first, last: _floats(np.asarray(array[first:last]), kind))

    return Source(shape, blocks)


def _floats(array: Any, kind: str) -> F32:
    if kind == "BF16":
        return np.ascontiguousarray((array.astype(np.uint32) << 16).view(np.float32))
    return np.ascontiguousarray(array, np.float32)


def _in_blocks(shape: tuple[int, ...], rows: Callable[[int, int], F32]) -> Blocks:
    step = max(1, CHUNK_BYTES // (4 * max(1, shape[1])))
    for first in range(0, shape[0], step):
        yield first, rows(first, min(first + step, shape[0]))


# ---------------------------------------------------------------------- torch
def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConfigurationError(f'{what} is read by torch, which is missing: pip install "ecrec[train]"') from error
    return torch


def _state_dict(path: Path) -> dict[str, Source]:
    """Tensors stay in the file, and are mapped; those of dicts in the dict have names with dots between."""
    torch = _torch(str(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has many; old files cannot be mapped
        raise CheckpointError(f"{path}: torch cannot load it with weights_only and mmap: {str(error)[:500]}") from error
    found: dict[str, Source] = {}

    def add(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and value.layout == torch.strided:
                found[name] = _tensor(value)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                add(each, f"{name}.{key}" if name else str(key))

    add(loaded, "")
    return found


def _tensor(tensor: Any) -> Source:
    shape = tuple(tensor.shape)

    def rows(first: int, last: int) -> F32:
        values: F32 = np.ascontiguousarray(tensor[first:last].detach().float().numpy())
        return values

    return Source(shape, lambda: _in_blocks(shape, rows))


# ---------------------------------------------------------------------- torch.distributed.checkpoint
def check_metadata(data: bytes, name: str) -> None:
    """Raise CheckpointError for a pickle that is no metadata of torch.distributed.checkpoint.

    Its opcodes are read, and nothing is run: it may name those data classes alone.
    """
    memo: list[str | None] = []
    before: list[str | None] = [None, None]
    """The two strings that were pushed last, if nothing else was since."""
    try:
        for op, argument, _ in pickletools.genops(data):
            if op.name == "MEMOIZE":
                memo.append(before[-1])
            if op.name in _MOVE_NOTHING:
                if "PUT" in op.name:
                    raise ValueError(f"it has the opcode {op.name}")
                continue
            if op.name == "STACK_GLOBAL":
                _check_global(before[-2], before[-1])
            elif op.name in ("GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "DUP", "POP", "POP_MARK"):
                raise ValueError(f"it has the opcode {op.name}")
            if op.name in _PUSH_STRING:
                pushed = argument
            elif op.name in ("BINGET", "LONG_BINGET"):
                pushed = memo[int(argument or 0)]
            else:
                pushed = None
            before = [before[-1], pushed]
    except Exception as error:  # pickletools raises what it likes
        raise CheckpointError(f"{name}: no metadata of torch.distributed.checkpoint: {str(error)[:300]}") from error


def _check_global(module: str | None, name: str | None) -> None:
    if module is None or name is None:
        raise ValueError("it names something that cannot be told")
    if not (_DCP_GLOBALS.get(name) == module or (module == "torch" and name in _DTYPES)):
        raise ValueError(f"it names {module[:100]}.{name[:100]}, which is not a part of such metadata")


def _dcp(folder: Path) -> dict[str, Source]:
    torch = _torch(str(folder))
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    path = folder / ".metadata"
    try:
        if path.stat().st_size > METADATA_BYTES_MAX:
            raise CheckpointError(f"{path}: it has more than {METADATA_BYTES_MAX:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror}") from error
    check_metadata(data, str(path))

    class Reader(FileSystemReader):
        """Reads the metadata that were checked, not what is there now."""

        def _get_metadata_path(self, rank: int | None = None) -> Path:
            return checked

    with tempfile.TemporaryDirectory(prefix="ecrec-import-") as scratch:
        checked = Path(scratch) / ".metadata"
        checked.write_bytes(data)
        reader = Reader(folder)
        try:
            metadata = reader.read_metadata()
            reader.set_up_storage_reader(metadata, is_coordinator=True)
        except Exception as error:
            raise CheckpointError(f"{path}: torch cannot read it: {str(error)[:300]}") from error
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype.is_floating_point:
            found[name] = Source(tuple(entry.size), _chunks(torch, reader, folder, name, entry))
    return found


def _chunks(torch: Any, reader: Any, folder: Path, name: str, entry: Any) -> Callable[[], Blocks]:
    """Each chunk is brought into memory as a whole: torch reads no less of it."""
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

    def blocks() -> Blocks:
        for number, chunk in enumerate(entry.chunks):
            if chunk.offsets[1] or chunk.sizes[1] != entry.size[1]:
                raise ConfigurationError(f"{folder}: tensor {name!r} is cut by columns; expected chunks of whole rows")
            values = torch.empty(chunk.sizes, dtype=entry.properties.dtype)

            class Planner:
                def resolve_tensor(self, item: Any, into: Any = values) -> Any:
                    return into

                def commit_tensor(self, item: Any, tensor: Any) -> None:
                    """It is there."""

            index = MetadataIndex(name, chunk.offsets, number)
            none = torch.Size([0] * len(chunk.sizes))
            item = ReadItem(LoadItemType.TENSOR, index, none, index, none, chunk.sizes)
            try:
                reader.read_data(LoadPlan([item]), Planner()).wait()
            except Exception as error:
                raise CheckpointError(f"{folder}: tensor {name!r}: torch cannot read it: {str(error)[:300]}") from error
            for first, rows in _tensor(values).blocks():
                yield chunk.offsets[0] + first, rows

    return blocks
